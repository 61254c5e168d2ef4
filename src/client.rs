//! What a Rust user of a gateway needs, and what the commands and the tests use: [`Control`] is a backend, [`Device`] a
//! device.

mod answer;
mod backoff;
mod control;
mod device;
mod error;
mod presence;

pub use self::{
    answer::{BroadcastOutcome, Host, Info, Online, OnlineState, PushOutcome, PushRequest, PushStatus, Session},
    backoff::Backoff,
    control::{Control, ControlOptions, PushOutcomes, PushSink, RawClient, Sessions},
    device::{
        AckError, AuthAnswer, Credential, Device, DeviceEvent, DeviceOptions, DevicePush, DeviceSocket, DeviceStream,
        DeviceTls, Event, Heartbeats, LoginError, Welcome,
    },
    error::{CallError, ConnectError},
    presence::{Follower, OnlineEvent, OnlineStatus, Update},
};

// They need a gateway that says what it is told to.
#[cfg(all(test, feature = "server"))]
mod tests;
