//! What a Rust user of a gateway needs, and what the commands and the tests use: [`Control`] is a backend, [`Device`] a
//! device.

mod backoff;
mod control;
mod device;
mod error;
mod presence;

pub(crate) use self::device::DeviceConnector;
pub use self::{
    backoff::Backoff,
    control::{Control, ControlOptions, Responses},
    device::{AuthAnswer, Device, DeviceOptions, DeviceStream, DeviceTls, Event, Heartbeats, LoginError, Welcome},
    error::{CallError, ConnectError},
    presence::{Follower, Update},
};

#[cfg(test)]
mod tests;
