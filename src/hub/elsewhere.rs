//! What concerns other nodes: pushes to the uids that they hold, questions to all, and the questions of others.

use std::{sync::Arc, time::Duration};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all},
    stream::{self, BoxStream, FuturesUnordered},
};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use super::{Hub, Pushed};
use crate::{
    cluster::{
        AtOnce, BroadcastTally, Forwarded, ForwardedPush, Inbound, Inbox, Incarnation, NodeStatus, SentAndWaits, sooner,
    },
    model::{EndReason, NodeName, Push, PushOutcome, PushStatus, Session, Transport, Uid},
};

/// How long the first answer of a device waits for what other nodes say of the same push.
const WORD_OF_OTHERS: Duration = Duration::from_millis(200);

/// A push that other nodes have to be asked about.
#[must_use]
pub(crate) struct Elsewhere {
    outcome: BoxFuture<'static, PushOutcome>,
    waits: bool,
}

impl Elsewhere {
    /// Whether it waits for a device's answer.
    pub(crate) fn waits(&self) -> bool {
        self.waits
    }

    pub(crate) async fn outcome(self) -> PushOutcome {
        self.outcome.await
    }

    /// Keeps a place among `control.ack_waits` until the outcome is known, or nobody waits for it any more.
    pub(super) fn holding(self, place: OwnedSemaphorePermit) -> Self {
        let Self { outcome, waits } = self;
        let held = async move {
            let _place = place;
            outcome.await
        };
        Self { outcome: held.boxed(), waits }
    }
}

/// What a broadcast did, over all nodes.
#[derive(Debug)]
pub(crate) struct Broadcast {
    pub(crate) sent: u64,
    pub(crate) queue_full: u64,
    /// Nodes that didn't tell.
    pub(crate) silent: Vec<NodeName>,
}

/// What a node says of its part in a push.
enum Part {
    /// What became of it.
    Done(PushOutcome),
    /// It was sent as the first says; how it ends comes later.
    Waits(PushOutcome, BoxFuture<'static, PushOutcome>),
}

/// The nodes that hold a uid besides this one, that of the newest connection first.
#[derive(Debug, Default)]
pub(super) struct Others {
    pub(super) nodes: Vec<Incarnation>,
    /// How many of them hold a newer connection than this one.
    pub(super) newer: usize,
}

impl Hub {
    /// Pushes to the connections of a uid: `here` to those of this node, `forwarded` is what goes to the others.
    pub(super) fn push_anywhere(
        &self,
        uid: &str,
        ack_deadline: Option<Instant>,
        here: impl FnOnce() -> Pushed,
        forwarded: impl FnOnce() -> ForwardedPush,
    ) -> Pushed {
        if self.0.cluster.is_single() {
            return here();
        }
        let waits = ack_deadline.is_some();
        if self.0.unresolved.has(uid) {
            // Behind those that wait, so that they keep their order.
            let outcome = self.resolve(forwarded(), ack_deadline);
            return Pushed::Elsewhere(Elsewhere { outcome, waits });
        }
        let here = here();
        if self.has_them_all(&here) {
            return here;
        }
        let others = self.others_with(uid);
        if others.nodes.is_empty() && !(here.is_offline() && self.0.cluster.reads_late()) {
            return here;
        }
        let push = forwarded();
        let outcome = if others.nodes.is_empty() {
            self.resolve(push, ack_deadline)
        } else {
            let (hub, asked) = (self.clone(), self.ask_others(&others, &push, ack_deadline, here));
            async move {
                match asked.await {
                    // It has left all of them.
                    outcome if outcome.status == PushStatus::Offline => hub.resolve(push, ack_deadline).await,
                    outcome => outcome,
                }
            }
            .boxed()
        };
        Pushed::Elsewhere(Elsewhere { outcome, waits })
    }

    /// Pushes to the connections of a uid here and at these nodes. Where none of them has one any more that is the last
    /// word.
    pub(super) fn push_at(&self, others: &Others, push: &ForwardedPush, ack_deadline: Option<Instant>) -> Pushed {
        let here = self.push_forwarded(push, ack_deadline);
        if others.nodes.is_empty() || self.has_them_all(&here) {
            return here;
        }
        let outcome = self.ask_others(others, push, ack_deadline, here).boxed();
        Pushed::Elsewhere(Elsewhere { outcome, waits: ack_deadline.is_some() })
    }

    /// Whether a push that was made here can't have to go to others as well.
    fn has_them_all(&self, here: &Pushed) -> bool {
        self.0.settings.connections_per_uid == 1 && !here.is_offline()
    }

    pub(super) fn others_with(&self, uid: &str) -> Others {
        let own = self.0.cluster.incarnation();
        let mut nodes = self.0.cluster.lookup(uid).map(|holding| holding.nodes).unwrap_or_default();
        // What the log doesn't have yet is the newest.
        let newer = nodes.iter().position(|node| *node == own).unwrap_or(0);
        nodes.retain(|node| *node != own);
        Others { nodes, newer }
    }

    /// Adds what these nodes do with a push; OFFLINE: none of them holds its uid, nor does this one. All are asked when this
    /// returns, so that pushes keep their order.
    fn ask_others(
        &self,
        others: &Others,
        push: &ForwardedPush,
        ack_deadline: Option<Instant>,
        here: Pushed,
    ) -> impl Future<Output = PushOutcome> + Send + use<> {
        let mut parts: Vec<_> = others.nodes.iter().map(|node| self.forward(*node, push.clone()).boxed()).collect();
        let here = match here {
            Pushed::Done(outcome) => Part::Done(outcome),
            Pushed::Waiting(waiting) => Part::Waits(waiting.sent(), waiting.boxed()),
            Pushed::Elsewhere(_) => unreachable!("this node's own connections were pushed to"),
        };
        let (newer, deadline) = (others.newer, push.deadline);
        if ack_deadline.is_some() {
            parts.insert(newer, std::future::ready(here).boxed());
            return first_answer(parts, deadline).left_future();
        }
        let all = async move {
            let mut parts = join_all(parts).await;
            parts.insert(newer, here);
            sum(parts.into_iter().map(|part| match part {
                Part::Done(outcome) | Part::Waits(outcome, _) => outcome,
            }))
        };
        all.right_future()
    }

    /// Hands a push to another node. OFFLINE: that hasn't the uid any more.
    fn forward(&self, node: Incarnation, push: ForwardedPush) -> impl Future<Output = Part> + Send + use<> {
        let (ack_timeout, deadline) = (push.ack_timeout.unwrap_or_default(), push.deadline);
        let (cluster, told) = (self.0.cluster.clone(), self.0.cluster.forward(node, push));
        async move {
            let unsent = match told.await {
                AtOnce::Waits(waits) => {
                    let sent = waits.sent.clone();
                    return Part::Waits(sent, cluster.outcome_of(waits, ack_timeout, deadline).boxed());
                }
                AtOnce::Told(Forwarded::Outcome(outcome)) => return Part::Done(outcome),
                AtOnce::Told(Forwarded::NotHere) => PushStatus::Offline,
                AtOnce::Told(Forwarded::Unreachable) => PushStatus::Unreachable,
                AtOnce::Told(Forwarded::Unknown) => PushStatus::Unknown,
            };
            Part::Done(PushOutcome::unsent(unsent))
        }
    }

    /// Pushes to every connection of every node. A node that hasn't told by `deadline` is silent.
    pub(crate) async fn broadcast(&self, push: Push<'_>, deadline: Option<Instant>) -> Broadcast {
        let others = self.0.cluster.broadcast(&push.uri.into(), &push.body.into(), deadline);
        let ((sent, queue_full), (tally, silent)) = futures_util::future::join(self.broadcast_here(push), others).await;
        Broadcast { sent: sent + tally.sent, queue_full: queue_full + tally.queue_full, silent }
    }

    /// Ends all connections of a uid, on every node. Returns how many, as far as that is told by `deadline`.
    pub(crate) async fn disconnect(&self, uid: &str, reason: &str, deadline: Option<Instant>) -> u32 {
        let others = if self.0.cluster.is_single() { Vec::new() } else { self.others_with(uid).nodes };
        let here = self.disconnect_here(uid, reason);
        if others.is_empty() {
            return here;
        }
        let uid = Uid::new(uid).expect("it was checked");
        here + self.0.cluster.disconnect(&others, &uid, reason, deadline).await
    }

    /// The sessions of one uid, or of all, of every node: a page after the other. What a node hasn't told by `deadline` is
    /// missing.
    pub(crate) fn sessions(&self, uid: Option<String>, deadline: Option<Instant>) -> BoxStream<'static, Vec<Session>> {
        let asked = uid.as_deref().map(|uid| Uid::new(uid).expect("it was checked"));
        let others = stream::unfold(self.0.cluster.sessions(asked.as_ref(), deadline), |mut pages| async move {
            pages.next().await.map(|page| (page, pages))
        });
        stream::iter(self.sessions_here(uid)).chain(others).boxed()
    }

    /// Where a device should connect now by this transport, and which node that is.
    pub(crate) fn choose_host(&self, transport: Transport) -> Option<(String, NodeName)> {
        self.0.cluster.choose_host(transport)
    }

    /// All nodes that are live, in the order of their names; of this one how many connections it holds now.
    pub(crate) fn nodes(&self) -> Vec<NodeStatus> {
        let mut nodes = self.0.cluster.nodes();
        for node in nodes.iter_mut().filter(|node| node.own) {
            node.connections = u32::try_from(self.connections()).unwrap_or(u32::MAX);
        }
        nodes
    }

    /// Does what other nodes ask, and what the presence log decides, until the node leaves.
    pub(crate) async fn run(self, mut inbox: Inbox) {
        while let Some(inbound) = inbox.recv().await {
            match inbound {
                Inbound::Close { uid, number } => {
                    let found = self.0.registry.find(uid.as_str());
                    if let Some(connection) = found.iter().find(|connection| connection.number == number) {
                        self.end(&**connection, EndReason::Replaced);
                    }
                }
                // Else its time was up before it came to its turn.
                Inbound::Push { push, departure, answer } => {
                    if departure.take() {
                        self.push_for_other(&push, answer);
                    }
                }
                Inbound::Holds { uids, answer } => {
                    let holds = uids.iter().map(|uid| self.holds(uid.as_str()));
                    let _ = answer.send(holds.collect());
                }
                Inbound::Broadcast { uri, body, answer } => {
                    let hub = self.clone();
                    tokio::spawn(async move {
                        let (sent, queue_full) = hub.broadcast_here(Push { uri: &uri, body: &body }).await;
                        let _ = answer.send(BroadcastTally { sent, queue_full });
                    });
                }
                Inbound::Disconnect { uid, reason, answer } => {
                    let _ = answer.send(self.disconnect_here(uid.as_str(), &reason));
                }
                Inbound::Sessions { uid, answer } => {
                    let hub = self.clone();
                    tokio::spawn(async move {
                        for page in hub.sessions_here(uid.map(|uid| uid.as_str().to_owned())) {
                            if answer.send(page).await.is_err() {
                                return;
                            }
                        }
                    });
                }
            }
        }
    }

    fn push_for_other(&self, push: &ForwardedPush, answer: tokio::sync::oneshot::Sender<AtOnce>) {
        let place = match push.ack_timeout {
            None => None,
            Some(_) => match Arc::clone(&self.0.ack_waits).try_acquire_owned() {
                Ok(place) => Some(place),
                // Takes no more at this time; nothing was sent.
                Err(_) => {
                    let _ = answer.send(AtOnce::Told(Forwarded::Unreachable));
                    return;
                }
            },
        };
        let ack_deadline = push.ack_timeout.map(|timeout| Instant::now() + timeout);
        match self.push_forwarded(push, ack_deadline).holding(place) {
            Pushed::Done(outcome) => {
                let _ = answer.send(AtOnce::Told(match outcome.status {
                    PushStatus::Offline => Forwarded::NotHere,
                    _ => Forwarded::Outcome(outcome),
                }));
            }
            Pushed::Waiting(waiting) => {
                let (later, outcome) = tokio::sync::oneshot::channel();
                let _ = answer.send(AtOnce::Waits(SentAndWaits { sent: waiting.sent(), outcome }));
                tokio::spawn(async move {
                    let _ = later.send(waiting.await);
                });
            }
            Pushed::Elsewhere(_) => unreachable!("this node was asked for its own connections"),
        }
    }
}

/// What goes to other nodes of a push, whose uid was checked.
pub(super) fn forwarded(
    uid: &str,
    push: Push<'_>,
    ack_deadline: Option<Instant>,
    many: u64,
    deadline: Option<Instant>,
) -> ForwardedPush {
    ForwardedPush {
        uid: Uid::new(uid).expect("it was checked"),
        uri: push.uri.into(),
        body: push.body.into(),
        ack_timeout: ack_deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
        many,
        deadline,
    }
}

/// The first ack or nack of any node, that with the newest connection first; where none comes, the best of what they
/// know.
async fn first_answer(parts: Vec<BoxFuture<'static, Part>>, deadline: Option<Instant>) -> PushOutcome {
    let is_answer = |outcome: &PushOutcome| matches!(outcome.status, PushStatus::Acked | PushStatus::Nacked);
    let mut known: Vec<Option<PushOutcome>> = parts.iter().map(|_| None).collect();
    let placed = |(place, part): (usize, BoxFuture<'static, Part>)| part.map(move |part| (place, part));
    let mut parts: FuturesUnordered<_> = parts.into_iter().enumerate().map(placed).collect();
    let mut waits = FuturesUnordered::new();
    loop {
        let (place, outcome) = tokio::select! {
            Some((place, part)) = parts.next() => match part {
                Part::Done(outcome) => (place, outcome),
                Part::Waits(sent, outcome) => {
                    waits.push(outcome.map(move |outcome| (place, outcome)));
                    (place, sent)
                }
            },
            Some(ended) = waits.next() => ended,
            else => break,
        };
        let answered = is_answer(&outcome);
        known[place] = Some(outcome);
        if answered {
            // How many took it, and as what, is on its way.
            let end = sooner(Instant::now() + WORD_OF_OTHERS, deadline);
            while let Ok(Some((place, part))) = timeout_at(end, parts.next()).await {
                // The first answer counts.
                let (Part::Done(sent) | Part::Waits(sent, _)) = part;
                let status = if is_answer(&sent) { PushStatus::Sent } else { sent.status };
                known[place] = Some(PushOutcome { status, ..sent });
            }
            break;
        }
    }
    sum(known.into_iter().flatten())
}

/// One outcome of several nodes' for one push, that with the newest connection first: the best status, the connections of
/// all, the number of the first that sent it.
fn sum(outcomes: impl Iterator<Item = PushOutcome>) -> PushOutcome {
    let rank = |outcome: &PushOutcome| match outcome.status {
        PushStatus::Acked | PushStatus::Nacked => 0,
        PushStatus::Sent => 1,
        PushStatus::AckTimeout => 2,
        PushStatus::ConnectionLost => 3,
        PushStatus::Unknown => 4,
        PushStatus::QueueFull => 5,
        PushStatus::Unreachable => 6,
        PushStatus::Offline => 7,
    };
    let add = |one: PushOutcome, other: PushOutcome| {
        let seq = if one.connections > 0 { one.seq } else { other.seq };
        let connections = one.connections + other.connections;
        let better = if rank(&other) < rank(&one) { other } else { one };
        PushOutcome { seq, connections, ..better }
    };
    outcomes.reduce(add).expect("this node's is among them")
}
