//! Pushes to this node's connections, and what is known of a push.

use std::{cell::RefCell, collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use rand::RngExt;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    Hub,
    connection::{Frame, Taken},
    elsewhere::{self, Elsewhere},
    registry::{Found, SHARDS},
    wait::{Wait, Waiting},
};
use crate::{
    cluster::ForwardedPush,
    model::{EndReason, Push, PushOutcome, PushStatus},
};

/// Connections that a broadcast reaches before it lets others run.
const BROADCAST_SLICE: usize = 512;

/// What became of a push, as far as it is known when [`Hub::push`] returns.
#[must_use]
pub(crate) enum Pushed {
    /// The outcome.
    Done(PushOutcome),
    /// The device's answer is waited for.
    Waiting(Waiting),
    /// Other nodes have to be asked.
    Elsewhere(Elsewhere),
}

/// How a push with `ack_timeout` waits: until when, and by which place among `control.ack_waits`.
pub(crate) struct Ack {
    pub(crate) deadline: Instant,
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

impl Pushed {
    /// What becomes of it.
    pub(crate) async fn outcome(self) -> PushOutcome {
        match self {
            Self::Done(outcome) => outcome,
            Self::Waiting(waiting) => waiting.await,
            Self::Elsewhere(elsewhere) => elsewhere.outcome().await,
        }
    }

    /// Whether nobody took it, as this node holds no connection of the uid.
    pub(super) fn is_offline(&self) -> bool {
        matches!(self, Self::Done(outcome) if outcome.status == PushStatus::Offline)
    }

    /// Keeps a place for as long as the outcome is waited for.
    pub(super) fn holding(self, place: Option<OwnedSemaphorePermit>) -> Self {
        match (self, place) {
            (Self::Waiting(mut waiting), place) => {
                waiting._place = place;
                Self::Waiting(waiting)
            }
            (Self::Elsewhere(elsewhere), Some(place)) => Self::Elsewhere(elsewhere.holding(place)),
            (other, _) => other,
        }
    }
}

thread_local! {
    /// The frame of the push that this thread is at: no allocation for a push.
    static FRAME: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A frame buffer larger than this is given back.
const FRAME_KEPT_BYTES: usize = 256 * 1024;

impl Hub {
    /// Pushes to all connections of a uid. With `ack` the device's answer is waited for. The outcome is known by
    /// `deadline`.
    pub(crate) fn push(&self, uid: &str, push: Push<'_>, ack: Option<Ack>, deadline: Option<Instant>) -> Pushed {
        let (ack, place) = ack.map(|ack| (ack.deadline, ack.permit)).unzip();
        let forwarded = || elsewhere::forwarded(uid, push, ack, 0, deadline);
        let pushed = self.push_anywhere(uid, ack, || self.push_here(uid, push, ack), forwarded);
        pushed.holding(place.flatten())
    }

    /// Pushes to the connections of a uid that this node holds.
    fn push_here(&self, uid: &str, push: Push<'_>, ack: Option<Instant>) -> Pushed {
        self.push_numbered(uid, push, ack, || self.0.numbers.next_seq())
    }

    /// As [`Hub::push_here`], where another node has asked for it, or a PushMany here had to wait: all of one PushMany get
    /// one number.
    pub(super) fn push_forwarded(&self, push: &ForwardedPush, ack: Option<Instant>) -> Pushed {
        let (uid, many) = (push.uid.as_str(), push.many);
        let push = Push { uri: &push.uri, body: &push.body };
        self.push_numbered(uid, push, ack, || if many == 0 { self.0.numbers.next_seq() } else { self.seq_of(many) })
    }

    fn seq_of(&self, many: u64) -> i64 {
        let mut known = self.0.many.lock().expect("nobody panics while holding the numbers");
        if let Some((_, seq)) = known.iter().find(|(other, _)| *other == many) {
            return *seq;
        }
        let seq = self.0.numbers.next_seq();
        remember(&mut known, many, seq);
        seq
    }

    fn push_numbered(&self, uid: &str, push: Push<'_>, ack: Option<Instant>, seq: impl FnOnce() -> i64) -> Pushed {
        let found = self.0.registry.find(uid);
        if found.iter().next().is_none() {
            return Pushed::Done(PushOutcome::unsent(PushStatus::Offline));
        }
        let seq = seq();
        FRAME.with_borrow_mut(|frame| {
            frame.clear();
            (self.0.settings.encode)(seq, push, frame);
            let pushed = self.push_frame(uid, found, seq, Frame::Own(frame), ack);
            if frame.capacity() > FRAME_KEPT_BYTES {
                *frame = Vec::new();
            }
            pushed
        })
    }

    /// Hands a frame to the connections that were found. Where all have ended meanwhile, those that took their place
    /// are found: a uid that replaces its connection is never offline.
    fn push_frame(&self, uid: &str, mut found: Found, seq: i64, frame: Frame<'_>, ack: Option<Instant>) -> Pushed {
        let queue_bytes_max = self.0.settings.queue_bytes_max;
        let wait = ack.map(|_| Wait::new());
        let mut waiting = Vec::new();
        let mut connections = 0u32;
        let mut full = false;
        loop {
            let mut any = false;
            for connection in found.iter() {
                any = true;
                let taken = connection.push(frame, queue_bytes_max, wait.as_ref().map(|(wait, _)| (seq, wait)));
                match taken {
                    Taken::Sent => {
                        connections += 1;
                        if wait.is_some() {
                            waiting.push(Arc::downgrade(connection));
                        }
                    }
                    Taken::Full => full = true,
                    Taken::Ended => {}
                    Taken::Broken => {
                        self.end(connection, EndReason::Closed);
                    }
                }
            }
            if connections > 0 || full || !any {
                break;
            }
            found = self.0.registry.find(uid);
        }
        if connections == 0 {
            return Pushed::Done(PushOutcome::unsent(if full { PushStatus::QueueFull } else { PushStatus::Offline }));
        }
        match (wait, ack) {
            (Some((wait, receiver)), Some(deadline)) => {
                wait.closed();
                let timer = Waiting::timer(deadline);
                Pushed::Waiting(Waiting { seq, receiver, connections: waiting, timer, _place: None })
            }
            _ => Pushed::Done(PushOutcome { status: PushStatus::Sent, seq, connections, reply: String::new() }),
        }
    }

    /// Pushes one message to many uids, encoded once, with one seq. One outcome for each uid, in order; all are known by
    /// `deadline`.
    pub(crate) async fn push_many(
        &self,
        uids: &[String],
        push: Push<'_>,
        deadline: Option<Instant>,
    ) -> Vec<PushOutcome> {
        let (seq, frame) = self.shared_frame(push);
        let mut many = 0;
        if !self.0.cluster.is_single() {
            many = rand::rng().random_range(1..=u64::MAX);
            remember(&mut self.0.many.lock().expect("nobody panics while holding the numbers"), many, seq);
        }
        let mut outcomes = Vec::with_capacity(uids.len());
        // All are waited for at a time.
        let mut later = FuturesUnordered::new();
        for (place, uid) in uids.iter().enumerate() {
            let here = || self.push_frame(uid, self.0.registry.find(uid), seq, Frame::Shared(&frame), None);
            let forwarded = || elsewhere::forwarded(uid, push, None, many, deadline);
            match self.push_anywhere(uid, None, here, forwarded) {
                Pushed::Done(outcome) => outcomes.push(outcome),
                pushed => {
                    outcomes.push(PushOutcome::unsent(PushStatus::Unknown));
                    later.push(pushed.outcome().map(move |outcome| (place, outcome)));
                }
            }
            tokio::task::consume_budget().await;
        }
        while let Some((place, outcome)) = later.next().await {
            outcomes[place] = outcome;
        }
        outcomes
    }

    fn shared_frame(&self, push: Push<'_>) -> (i64, Bytes) {
        let seq = self.0.numbers.next_seq();
        let mut frame = Vec::new();
        (self.0.settings.encode)(seq, push, &mut frame);
        (seq, frame.into())
    }

    /// Pushes to every connection of this node. Returns how many took it, and how many had their queue full.
    pub(crate) async fn broadcast_here(&self, push: Push<'_>) -> (u64, u64) {
        let (_, frame) = self.shared_frame(push);
        let (mut sent, mut full) = (0, 0);
        for shard in 0..SHARDS {
            // Those of one shard are kept alive for a moment; none of them is held up.
            let connections: Vec<_> = self.0.registry.shard(shard).all().cloned().collect();
            for slice in connections.chunks(BROADCAST_SLICE) {
                for connection in slice {
                    match connection.push(Frame::Shared(&frame), self.0.settings.queue_bytes_max, None) {
                        Taken::Sent => sent += 1,
                        Taken::Full => full += 1,
                        Taken::Ended => {}
                        Taken::Broken => {
                            self.end(connection, EndReason::Closed);
                        }
                    }
                }
                tokio::task::yield_now().await;
            }
        }
        self.0.metrics.broadcast_sent.inc_by(sent);
        self.0.metrics.broadcast_full.inc_by(full);
        (sent, full)
    }
}

/// How many PushManys are known by their number: those that may be under way at a time.
const MANY_KNOWN: usize = 256;

fn remember(known: &mut VecDeque<(u64, i64)>, many: u64, seq: i64) {
    if known.len() == MANY_KNOWN {
        known.pop_front();
    }
    known.push_back((many, seq));
}
