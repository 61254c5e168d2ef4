//! What concerns other nodes: pushes to the uids that they hold, questions to all, and the questions of others.

use std::sync::Arc;

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all},
    stream::{self, BoxStream},
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{Hub, Pushed};
use crate::{
    cluster::{AtOnce, BroadcastTally, Forwarded, ForwardedPush, Inbound, Inbox, Incarnation, NodeStatus},
    model::{EndReason, NodeName, Push, PushOutcome, PushStatus, Session, Transport, Uid},
};

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

impl Hub {
    /// Pushes here and to the other nodes that hold the uid.
    pub(super) fn push_anywhere(&self, uid: &str, push: Push<'_>, ack_deadline: Option<Instant>) -> Pushed {
        if self.0.unresolved.has(uid) {
            // Behind those that wait, so that they keep their order.
            return self.unresolved(uid, push, ack_deadline, 0);
        }
        let others = self.others_with(uid);
        let only_one = self.0.settings.connections_per_uid == 1;
        if others.is_empty() || (only_one && self.0.registry.find(uid).iter().next().is_some()) {
            return match self.push_here(uid, push, ack_deadline) {
                Pushed::Done(outcome) if outcome.status == PushStatus::Offline && self.0.cluster.reads_late() => {
                    self.unresolved(uid, push, ack_deadline, 0)
                }
                pushed => pushed,
            };
        }
        let here = self.push_here(uid, push, ack_deadline);
        Pushed::Elsewhere(self.ask_others(others, forwarded(uid, push, ack_deadline, 0), ack_deadline, here))
    }

    /// Waits until it is known who holds the uid.
    fn unresolved(&self, uid: &str, push: Push<'_>, ack_deadline: Option<Instant>, many: u64) -> Pushed {
        let outcome = self.resolve(forwarded(uid, push, ack_deadline, many), ack_deadline);
        Pushed::Elsewhere(Elsewhere { outcome, waits: ack_deadline.is_some() })
    }

    /// Adds what other nodes do with a push of [`Hub::push_many`].
    pub(super) fn with_elsewhere(&self, uid: &str, push: Push<'_>, many: u64, here: Pushed) -> Pushed {
        if self.0.cluster.is_single() {
            return here;
        }
        let sent_here = !matches!(&here, Pushed::Done(outcome) if outcome.status == PushStatus::Offline);
        let only_one = self.0.settings.connections_per_uid == 1;
        match self.others_with(uid) {
            _ if sent_here && only_one => here,
            _ if !sent_here && self.0.unresolved.has(uid) => self.unresolved(uid, push, None, many),
            others if others.is_empty() && !sent_here && self.0.cluster.reads_late() => {
                self.unresolved(uid, push, None, many)
            }
            others if others.is_empty() => here,
            others => Pushed::Elsewhere(self.ask_others(others, forwarded(uid, push, None, many), None, here)),
        }
    }

    /// The other nodes that hold a uid, that of the newest connection first.
    pub(super) fn others_with(&self, uid: &str) -> Vec<Incarnation> {
        let own = self.0.cluster.incarnation();
        let nodes = self.0.cluster.lookup(uid).map(|holding| holding.nodes).unwrap_or_default();
        nodes.into_iter().filter(|node| *node != own).collect()
    }

    /// All are asked when this returns, so that pushes keep their order.
    fn ask_others(
        &self,
        others: Vec<Incarnation>,
        forwarded: ForwardedPush,
        ack_deadline: Option<Instant>,
        here: Pushed,
    ) -> Elsewhere {
        let asked: Vec<_> =
            others.iter().map(|node| self.forward(*node, forwarded.clone(), ack_deadline).boxed()).collect();
        let here = async move {
            match here {
                Pushed::Done(outcome) => outcome,
                Pushed::Waiting(waiting) => waiting.await,
                Pushed::Elsewhere(elsewhere) => elsewhere.outcome().await,
            }
        };
        let waits = ack_deadline.is_some();
        let outcome = async move {
            if waits {
                first_answer(here.boxed(), asked).await
            } else {
                let (here, mut all) = futures_util::future::join(here, join_all(asked)).await;
                all.push(here);
                all.into_iter().reduce(better).expect("this node's is among them")
            }
        };
        Elsewhere { outcome: outcome.boxed(), waits }
    }

    /// Hands a push to another node; where that hasn't the uid any more, once to the node that has it then.
    fn forward(
        &self,
        node: Incarnation,
        push: ForwardedPush,
        ack_deadline: Option<Instant>,
    ) -> impl Future<Output = PushOutcome> + Send + use<> {
        let (hub, first) = (self.clone(), self.0.cluster.forward(node, push.clone()));
        async move {
            match first.await {
                Forwarded::Outcome(outcome) => outcome,
                Forwarded::NotHere => hub.resolve(push, ack_deadline).await,
                Forwarded::Unreachable => PushOutcome::unsent(PushStatus::Unreachable),
                Forwarded::Unknown => PushOutcome::unsent(PushStatus::Unknown),
            }
        }
    }

    /// Pushes to every connection of every node.
    pub(crate) async fn broadcast(&self, push: Push<'_>) -> Broadcast {
        let others = self.0.cluster.broadcast(&push.uri.into(), &push.body.into());
        let ((sent, queue_full), (tally, silent)) = futures_util::future::join(self.broadcast_here(push), others).await;
        Broadcast { sent: sent + tally.sent, queue_full: queue_full + tally.queue_full, silent }
    }

    /// Ends all connections of a uid, on every node. Returns how many.
    pub(crate) async fn disconnect(&self, uid: &str, reason: &str) -> u32 {
        let others = if self.0.cluster.is_single() { Vec::new() } else { self.others_with(uid) };
        let here = self.disconnect_here(uid, reason);
        if others.is_empty() {
            return here;
        }
        let uid = Uid::new(uid).expect("it was checked");
        here + self.0.cluster.disconnect(&others, &uid, reason).await
    }

    /// The sessions of one uid, or of all, of every node: a page after the other.
    pub(crate) fn sessions(&self, uid: Option<String>) -> BoxStream<'static, Vec<Session>> {
        let asked = uid.as_deref().map(|uid| Uid::new(uid).expect("it was checked"));
        let others = stream::unfold(self.0.cluster.sessions(asked.as_ref()), |mut pages| async move {
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
                Inbound::Push { push, answer } => self.push_for_other(&push, answer),
                Inbound::Holds { uids, answer } => {
                    let holds = uids.iter().map(|uid| self.0.registry.find(uid.as_str()).iter().next().is_some());
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
                let _ = answer.send(AtOnce::Waits(outcome));
                tokio::spawn(async move {
                    let _ = later.send(waiting.await);
                });
            }
            Pushed::Elsewhere(_) => unreachable!("this node was asked for its own connections"),
        }
    }
}

fn forwarded(uid: &str, push: Push<'_>, ack_deadline: Option<Instant>, many: u64) -> ForwardedPush {
    ForwardedPush {
        uid: Uid::new(uid).expect("it was checked"),
        uri: push.uri.into(),
        body: push.body.into(),
        ack_timeout: ack_deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
        many,
    }
}

/// The first ack or nack of any node; where none comes, the best of what they know.
async fn first_answer(
    here: BoxFuture<'static, PushOutcome>,
    others: Vec<BoxFuture<'static, PushOutcome>>,
) -> PushOutcome {
    let mut all: stream::FuturesUnordered<_> = others.into_iter().chain([here]).collect();
    let mut best: Option<PushOutcome> = None;
    while let Some(outcome) = all.next().await {
        if matches!(outcome.status, PushStatus::Acked | PushStatus::Nacked) {
            return outcome;
        }
        best = Some(match best {
            None => outcome,
            Some(other) => better(other, outcome),
        });
    }
    best.expect("this node's is among them")
}

/// One outcome of two nodes' for one push: the better status, the connections of both, the seq of the better.
fn better(one: PushOutcome, other: PushOutcome) -> PushOutcome {
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
    let connections = one.connections + other.connections;
    // `one` comes first where they are equal: the nodes are asked newest connection first.
    let better = if rank(&other) < rank(&one) { other } else { one };
    PushOutcome { connections, ..better }
}
