//! Pushes that wait for the device's answer.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU32, Ordering::AcqRel},
    },
    task::{Context, Poll},
};

use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::{Instant, Sleep},
};

use super::connection::Connection;
use crate::model::{PushOutcome, PushStatus};

/// One push that waits: shared by the connections that took it. The first answer decides; when the last of them has
/// ended without one, it is lost.
pub(crate) struct Wait {
    answer: Mutex<Option<oneshot::Sender<(PushStatus, String)>>>,
    /// Connections that may still answer, and the pushing thread while it is at work.
    open: AtomicU32,
}

impl Wait {
    pub(super) fn new() -> (Arc<Self>, oneshot::Receiver<(PushStatus, String)>) {
        let (sender, receiver) = oneshot::channel();
        (Arc::new(Self { answer: Mutex::new(Some(sender)), open: AtomicU32::new(1) }), receiver)
    }

    /// One more connection may answer.
    pub(super) fn opened(&self) {
        self.open.fetch_add(1, AcqRel);
    }

    /// One that might have answered has ended.
    pub(super) fn closed(&self) {
        if self.open.fetch_sub(1, AcqRel) == 1 {
            self.resolve(PushStatus::ConnectionLost, String::new());
        }
    }

    /// The outcome is known; only the first counts. Tells whether this was it.
    pub(super) fn resolve(&self, status: PushStatus, reply: String) -> bool {
        let sender = self.answer.lock().expect("nothing panics while it holds this").take();
        sender.is_some_and(|sender| sender.send((status, reply)).is_ok())
    }
}

/// The outcome of a push with `ack_timeout`, once it is known. Dropping it gives its place up.
#[must_use]
pub(crate) struct Waiting {
    pub(super) seq: i64,
    pub(super) receiver: oneshot::Receiver<(PushStatus, String)>,
    /// Those that took it; weak, so that it keeps no socket open.
    pub(super) connections: Vec<Weak<Connection>>,
    pub(super) timer: Pin<Box<Sleep>>,
    /// Its place among `control.ack_waits`.
    pub(super) _place: Option<OwnedSemaphorePermit>,
}

impl Waiting {
    /// What is known already: it was sent.
    pub(super) fn sent(&self) -> PushOutcome {
        let connections = u32::try_from(self.connections.len()).unwrap_or(u32::MAX);
        PushOutcome { status: PushStatus::Sent, seq: self.seq, connections, reply: String::new() }
    }

    pub(super) fn timer(deadline: Instant) -> Pin<Box<Sleep>> {
        Box::pin(tokio::time::sleep_until(deadline))
    }
}

impl Future for Waiting {
    type Output = PushOutcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<PushOutcome> {
        let this = &mut *self;
        let (status, reply) = match Pin::new(&mut this.receiver).poll(cx) {
            Poll::Ready(Ok(answer)) => answer,
            // The last connection's end drops the sender only after it has told.
            Poll::Ready(Err(_)) => (PushStatus::ConnectionLost, String::new()),
            Poll::Pending => match this.timer.as_mut().poll(cx) {
                Poll::Ready(()) => (PushStatus::AckTimeout, String::new()),
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(PushOutcome { status, reply, ..this.sent() })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        for connection in self.connections.iter().filter_map(Weak::upgrade) {
            connection.take_wait(self.seq);
        }
    }
}
