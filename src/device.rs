//! Devices: the protocol that they speak, and the sessions that speak it with them.
//!
//! A device sends and gets frames: a length of four bytes, then that many bytes of JSON, `{"seq":N,"uri":"…","body":"…"}`
//! with zero and empty fields left out. It authenticates with `/auth/server`, is answered with `/auth/success`, sends
//! `/heartbeat` now and then, and gets pushes: every uri that isn't reserved.
//!
//! A connection is one task on the thread that accepted it. [`listener`] accepts it, [`opening`] goes through what stands
//! before its frames ([`proxy`] header, [`tls`]), [`handshake`] finds out who it is, [`session`] serves it from then on,
//! [`close`] ends it so that its last frame arrives. What comes in goes through [`inbox`], which cuts frames and bounds
//! their rate; [`frame`](crate::frame) reads and writes them.

mod answer;
mod close;
mod handshake;
mod inbox;
mod listener;
mod opening;
mod proxy;
mod session;
mod tls;
mod transport;

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::listener::{serve, tune};
use self::opening::Openings;
use crate::{auth::Gate, config::DeviceConfig, frame::ByteOrder, hub::Hub, model::NodeName, telemetry::Metrics};

/// What all sessions of a node share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Devices(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) config: DeviceConfig,
    /// `auth.unavailable_delay`.
    pub(crate) unavailable_delay: Duration,
    pub(crate) node: NodeName,
    pub(crate) gate: Gate,
    pub(crate) hub: Hub,
    pub(crate) metrics: Metrics,
    /// The tasks of all connections.
    pub(crate) tasks: TaskTracker,
    /// Nothing is accepted any more, and who hasn't authenticated is closed.
    pub(crate) stopping: CancellationToken,
    /// Connections that haven't authenticated.
    pub(crate) strangers: AtomicUsize,
    /// Of those, PROXY headers and handshakes of TLS under way.
    pub(crate) openings: Openings,
}

impl Devices {
    pub(crate) fn new(
        config: DeviceConfig,
        unavailable_delay: Duration,
        node: NodeName,
        gate: Gate,
        hub: Hub,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Shared {
            config,
            unavailable_delay,
            node,
            gate,
            hub,
            metrics,
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            strangers: AtomicUsize::new(0),
            openings: Openings::default(),
        }))
    }

    fn order(&self) -> ByteOrder {
        if self.config.little_endian { ByteOrder::Little } else { ByteOrder::Big }
    }

    /// Whether one more connection would be over `device.max_connections`.
    fn is_full(&self) -> bool {
        let max = self.config.max_connections as usize;
        max > 0 && self.hub.connections() + self.strangers.load(Relaxed) >= max
    }
}

impl Deref for Devices {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

#[cfg(test)]
mod tests;
