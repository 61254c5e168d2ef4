//! What nodes ask each other, in one process: each node's queue, and the questions.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::model::{ConnectionNumber, PushOutcome, Session, Uid};

use super::fold::Incarnation;

/// How many questions wait for one node; over it, it can't be reached.
pub(crate) const QUEUE_MAX: usize = 65_536;

/// A push for a uid that another node holds. Cheap to clone, for a uid that several hold.
#[derive(Debug, Clone)]
pub(crate) struct ForwardedPush {
    /// Whose.
    pub(crate) uid: Uid,
    /// What the message is.
    pub(crate) uri: Arc<str>,
    /// Its content.
    pub(crate) body: Arc<str>,
    /// How long an answer of the device is waited for; `None`: it isn't.
    pub(crate) ack_timeout: Option<Duration>,
    /// Of a PushMany: which, so that its node gives all of it one number. 0: it is alone.
    pub(crate) many: u64,
    /// Until when its caller waits, for an answer of the device too; `None`: as long as it takes. Stays at this node.
    pub(crate) deadline: Option<Instant>,
}

/// A push's way out of a queue. The queue and who waits for the push share it: whoever takes it decides whether the push
/// is sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Departure(Option<Arc<AtomicBool>>);

impl Departure {
    /// One that who waits may take away from the queue.
    pub(crate) fn shared() -> Self {
        Self(Some(Arc::default()))
    }

    /// Whether nobody else has taken it.
    pub(crate) fn take(&self) -> bool {
        self.0.as_ref().is_none_or(|taken| !taken.swap(true, Relaxed))
    }
}

/// What became of a push at another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Forwarded {
    /// What that node says.
    Outcome(PushOutcome),
    /// That node doesn't hold the uid any more; nothing was sent.
    NotHere,
    /// That node has gone, or takes no more at this time; nothing was sent.
    Unreachable,
    /// That node took it, and didn't answer in time: it may have been sent.
    Unknown,
}

/// What a node says of a push at once.
#[derive(Debug)]
pub(crate) enum AtOnce {
    /// What became of it.
    Told(Forwarded),
    /// It was sent, and the device's answer is waited for.
    Waits(SentAndWaits),
}

/// A push that another node has sent, and that waits for its device there.
#[derive(Debug)]
pub(crate) struct SentAndWaits {
    /// SENT, with what that node knows: its number, and how many connections took it.
    pub(crate) sent: PushOutcome,
    /// What becomes of it; dropped: the connections that took it have ended.
    pub(crate) outcome: oneshot::Receiver<PushOutcome>,
}

/// What a broadcast did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BroadcastTally {
    /// How many connections took it.
    pub(crate) sent: u64,
    /// How many could not.
    pub(crate) queue_full: u64,
}

/// What a node is asked by the others, or has to do for the log. An answer that is dropped is none.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// End this connection: a newer one has taken its place (kick `replaced`). It may have ended already.
    Close {
        /// Whose it is.
        uid: Uid,
        /// Its number at this node.
        number: ConnectionNumber,
    },
    /// Push to a device of this node; answered with what became of it.
    Push {
        /// What to push.
        push: ForwardedPush,
        /// Taken as it leaves the queue; where somebody has, it isn't sent.
        departure: Departure,
        /// Where the answer goes; dropped: nobody knows.
        answer: oneshot::Sender<AtOnce>,
    },
    /// Tell which of these this node holds.
    Holds {
        /// Whom it may hold, at most 2,000.
        uids: Arc<[Uid]>,
        /// Where the answer goes: for each whether it does, in order.
        answer: oneshot::Sender<Vec<bool>>,
    },
    /// Push to every device of this node.
    Broadcast {
        /// What the message is.
        uri: Arc<str>,
        /// Its content.
        body: Arc<str>,
        /// Where the answer goes.
        answer: oneshot::Sender<BroadcastTally>,
    },
    /// End the connections of a uid at this node; answered with how many, once they have ended.
    Disconnect {
        /// Whose.
        uid: Uid,
        /// For the log.
        reason: Arc<str>,
        /// Where the answer goes.
        answer: oneshot::Sender<u32>,
    },
    /// List this node's sessions, of one uid or all, in pages of at most 1,000. Holds one page that isn't read yet; the
    /// list ends when it is dropped.
    Sessions {
        /// Whose; `None`: all.
        uid: Option<Uid>,
        /// Where the pages go.
        answer: mpsc::Sender<Vec<Session>>,
    },
}

/// What comes in for a node. Drop it, and the node can't be reached any more.
#[derive(Debug)]
pub(crate) struct Inbox {
    closes: mpsc::UnboundedReceiver<(Uid, ConnectionNumber)>,
    requests: mpsc::Receiver<Inbound>,
}

impl Inbox {
    /// A node's inbox and its two ends: what has to be closed, which may not get lost and never blocks (unbounded, but
    /// each connection is in it once), and what others ask.
    pub(crate) fn new() -> (mpsc::UnboundedSender<(Uid, ConnectionNumber)>, mpsc::Sender<Inbound>, Self) {
        let (close, closes) = mpsc::unbounded_channel();
        let (request, requests) = mpsc::channel(QUEUE_MAX);
        (close, request, Self { closes, requests })
    }

    /// The next, connections to close first; `None` once the node has left, or its name has joined again, and
    /// everything before has been taken. Cancel-safe.
    pub(crate) async fn recv(&mut self) -> Option<Inbound> {
        tokio::select! {
            biased;
            Some((uid, number)) = self.closes.recv() => Some(Inbound::Close { uid, number }),
            Some(request) = self.requests.recv() => Some(request),
            else => None,
        }
    }

    /// As [`Inbox::recv`], but only what is there already.
    #[cfg(test)]
    pub(crate) fn try_recv(&mut self) -> Option<Inbound> {
        let close = self.closes.try_recv().map(|(uid, number)| Inbound::Close { uid, number });
        close.or_else(|_| self.requests.try_recv()).ok()
    }
}

/// The pages of several nodes' sessions, as they come.
#[derive(Debug)]
pub(crate) struct SessionPages {
    pub(crate) pages: mpsc::Receiver<Vec<Session>>,
    /// How long one may take.
    pub(crate) wait: Duration,
    /// Until when any is waited for.
    pub(crate) deadline: Option<Instant>,
}

impl SessionPages {
    /// The next page; `None` after the last, or when none has come in time.
    pub(crate) async fn next(&mut self) -> Option<Vec<Session>> {
        timeout_at(sooner(Instant::now() + self.wait, self.deadline), self.pages.recv()).await.ok().flatten()
    }
}

/// The sooner of a wait's own end and the caller's.
pub(crate) fn sooner(end: Instant, deadline: Option<Instant>) -> Instant {
    deadline.map_or(end, |deadline| deadline.min(end))
}

/// The nodes that can be reached.
#[derive(Debug, Default)]
pub(crate) struct Bus(Mutex<Vec<(Incarnation, mpsc::Sender<Inbound>)>>);

impl Bus {
    pub(crate) fn enter(&self, node: Incarnation, requests: mpsc::Sender<Inbound>) {
        self.nodes().push((node, requests));
    }

    pub(crate) fn leave(&self, node: Incarnation) {
        self.nodes().retain(|(other, _)| *other != node);
    }

    /// Puts a question into a node's queue; false where it wasn't taken.
    pub(crate) fn send(&self, node: Incarnation, question: Inbound) -> bool {
        let nodes = self.nodes();
        nodes.iter().find(|(other, _)| *other == node).is_some_and(|(_, requests)| requests.try_send(question).is_ok())
    }

    fn nodes(&self) -> std::sync::MutexGuard<'_, Vec<(Incarnation, mpsc::Sender<Inbound>)>> {
        self.0.lock().expect("nobody panics while holding the bus")
    }
}
