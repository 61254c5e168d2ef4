//! What the project's own tests and benchmarks need beside the public surface. No part of the promised interface.

use std::{
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr},
    task::{Context, Poll},
};

pub use crate::cluster::LocalLog;
use crate::{
    hub::{Hub, Registered, connection::Wire},
    model::{EndReason, Uid, UidError},
};

/// The hub of a running gateway, where connections can be made without sockets.
#[derive(Clone)]
pub struct TestHub(Hub);

/// A connection that takes every byte and does nothing with it. Dropping it ends it as `closed`.
pub struct TestConnection(Registered<Sink>);

struct Sink;

impl TestHub {
    pub(crate) fn new(hub: Hub) -> Self {
        Self(hub)
    }

    /// Registers a connection of `uid`, as a session does after authentication.
    ///
    /// # Errors
    ///
    /// [`UidError`] where that is no uid.
    pub fn connect(&self, uid: &str) -> Result<TestConnection, UidError> {
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Ok(TestConnection(self.0.register(Uid::new(uid)?, remote, 1, "success".into(), Sink)))
    }
}

impl TestConnection {
    /// Ends it, as where its device was silent for too long. Tells whether this call ended it.
    pub fn time_out(&self) -> bool {
        self.0.end(EndReason::Timeout)
    }
}

impl Wire for Sink {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(pieces.iter().map(|piece| piece.len()).sum())
    }

    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
