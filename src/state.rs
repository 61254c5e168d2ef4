//! What outlives a restart, in the data folder: the control secret that was made up, and the mark above which the next
//! start's numbers begin.

mod folder;
mod numbers;
mod secret;

pub use self::{
    numbers::Numbers,
    secret::{StateError, control_secret},
};
