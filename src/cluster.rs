//! Who is online anywhere: presence, folded from one log, and what nodes ask each other. It doesn't know the hub, which
//! writes claims and releases, and takes what comes in.

mod bus;
mod changes;
mod cursor;
mod directory;
mod engine;
mod fold;
mod hosts;
mod log;
mod member;
#[cfg(feature = "nats")]
pub(crate) mod nats;
mod node;
mod outgoing;
mod rules;
#[cfg(test)]
mod tests;
mod watcher;
mod wire;

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all},
    stream::{self, BoxStream, FuturesUnordered},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

use crate::model::{ConnectionNumber, EndReason, Millis, NodeName, PushOutcome, PushStatus, Transport, Uid};

pub(crate) use engine::Standing;
use fold::Live;
use node::{Known, Node};

pub(crate) use bus::{
    AtOnce, BroadcastTally, Departure, Forwarded, ForwardedPush, Inbound, Inbox, SentAndWaits, SessionPages, sooner,
};
pub(crate) use fold::Incarnation;
pub(crate) use hosts::Card;
pub use log::LocalLog;
pub(crate) use node::Options;
pub(crate) use watcher::{Update, Watcher};

/// How many uids are looked up under one lock.
const LOOK_UP_CHUNK: usize = 256;

/// A node that has said nothing for so many heartbeats, while others have, is told as silent: 1.5 s by default.
const SILENT_BEATS: u32 = 3;

/// A node's part in presence. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster(Arc<Node>);

/// What a uid that is online holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holding {
    /// When it came online.
    pub(crate) since: Millis,
    /// The node of its newest connection.
    pub(crate) node: NodeName,
    /// How many connections it has, on all nodes.
    pub(crate) connections: u32,
    /// The nodes that hold them, that of the newest first, each once.
    pub(crate) nodes: Vec<Incarnation>,
}

/// What [`Cluster::presence_of`] tells of a uid that is online.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Presence<'a> {
    /// When it came online.
    pub(crate) since: Millis,
    /// The node of its newest connection.
    pub(crate) node: &'a NodeName,
    /// How many connections it has, on all nodes.
    pub(crate) connections: u32,
    known: Known<'a>,
}

impl Presence<'_> {
    /// How many of its connections are that node's.
    pub(crate) fn held_by(&self, node: &NodeName) -> u32 {
        let Known { state, entry, .. } = self.known;
        let held = entry.connections().iter().filter(|held| state.node(held.node).name == *node);
        u32::try_from(held.count()).unwrap_or(u32::MAX)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("node", self.name()).field("incarnation", &self.incarnation()).finish()
    }
}

impl Cluster {
    /// Joins `log` as `node`; the join is folded when it returns. An earlier node of that name on the log ends: what it
    /// held goes offline, and its inbox ends. `connections_per_uid` is that of the nodes already there.
    #[must_use]
    pub(crate) fn join(log: &LocalLog, node: NodeName, options: Options) -> (Self, Inbox) {
        let (node, inbox) = Node::join(log, node, options);
        (Self(node), inbox)
    }

    /// Says that this node holds a connection of `uid`, in place of its own connection `replaces`. `accepted` is on the
    /// clock of [`Cluster::now`]; where it is over a second ago, newer connections keep their place. Folded by every
    /// node of the log when it returns. Those that have to go, which may be this one, come in as
    /// [`Inbound::Close`]; `replaces` has ended already. Without effect once this node has ended.
    pub(crate) fn claim(
        &self,
        uid: &Uid,
        number: ConnectionNumber,
        replaces: Option<ConnectionNumber>,
        accepted: Millis,
    ) {
        self.0.engine().claim(&self.0, uid, number, replaces, accepted);
    }

    /// Says that a connection of this node has ended. Folded as [`Cluster::claim`]; without effect where the log has
    /// displaced it before.
    pub(crate) fn release(&self, uid: &Uid, number: ConnectionNumber, reason: EndReason) {
        self.0.engine().release(&self.0, uid, number, reason);
    }

    /// The log's time now; never goes back.
    #[must_use]
    pub(crate) fn now(&self) -> Millis {
        self.0.engine().now()
    }

    /// What `uid` holds; `None` where it is offline. After a loss of the state, as long as the node isn't in step again,
    /// what it held before where nothing is known of it yet; then without this node, which knows that itself.
    #[must_use]
    pub(crate) fn lookup(&self, uid: &str) -> Option<Holding> {
        let presence = self.0.presence();
        let known = presence.find(uid)?;
        let mut nodes = Vec::with_capacity(1);
        for connection in known.entry.connections().iter().rev() {
            let live = known.state.node(connection.node);
            let incarnation = match known.is_past {
                true if live.name == *self.name() => continue,
                true => life_of(live, &presence),
                false => live.incarnation,
            };
            if !nodes.contains(&incarnation) {
                nodes.push(incarnation);
            }
        }
        let Presence { since, node, connections, .. } = presence_in(known);
        Some(Holding { since, node: node.clone(), connections, nodes })
    }

    /// Tells `each`, in order, what every one of `uids` holds, as [`Cluster::lookup`]. Many are looked up under one lock: `each` may not call
    /// the cluster.
    pub(crate) fn presence_of<'a>(
        &self,
        uids: impl IntoIterator<Item = &'a str>,
        mut each: impl FnMut(Option<Presence<'_>>),
    ) {
        let mut uids = uids.into_iter().peekable();
        while uids.peek().is_some() {
            let presence = self.0.presence();
            for uid in uids.by_ref().take(LOOK_UP_CHUNK) {
                each(presence.find(uid).map(presence_in));
            }
        }
    }

    /// The place in the log of a connection of this node; `None` where it isn't there.
    #[must_use]
    pub(crate) fn epoch_of(&self, uid: &str, number: ConnectionNumber) -> Option<u64> {
        let presence = self.0.presence();
        let own = presence.state.index_of(self.incarnation())?;
        let entry = presence.state.directory.get(uid)?;
        let mut connections = entry.connections().iter();
        Some(connections.find(|connection| connection.node == own && connection.number == number)?.epoch)
    }

    /// How many uids are online. After a loss of the state, until the node is in step again: how many were, or are known
    /// anew where these are more.
    #[must_use]
    pub(crate) fn uids(&self) -> u64 {
        let presence = self.0.presence();
        let before = presence.past.as_ref().map_or(0, |past| past.state.directory.uids());
        presence.state.directory.uids().max(before)
    }

    /// Since when the log is kept whose state is told; `None` as long as none is known.
    #[must_use]
    pub(crate) fn known_since(&self) -> Option<Millis> {
        let presence = self.0.presence();
        let log = presence.past.as_ref().map_or(presence.log, |past| past.log);
        Some(log?.born)
    }

    /// Whether it has been in step with the log.
    #[must_use]
    pub(crate) fn was_in_step(&self) -> bool {
        self.0.was_in_step()
    }

    /// How many messages of the log couldn't be read, by any node of this version.
    #[must_use]
    pub(crate) fn unreadable(&self) -> u64 {
        self.0.unreadable()
    }

    /// How many messages to this node, beside the log, couldn't be read.
    #[must_use]
    pub(crate) fn unreadable_questions(&self) -> u64 {
        self.0.unreadable_questions()
    }

    /// How many errors the cluster's servers told this node.
    #[must_use]
    pub(crate) fn server_errors(&self) -> u64 {
        self.0.server_errors()
    }

    /// How this node stands to the log.
    #[must_use]
    pub(crate) fn standing(&self) -> Standing {
        self.0.presence().standing
    }

    /// The same, and each time that it changes.
    #[must_use]
    pub(crate) fn watch_standing(&self) -> watch::Receiver<Standing> {
        self.0.standing()
    }

    /// What this node is called.
    #[must_use]
    pub(crate) fn name(&self) -> &NodeName {
        self.0.name()
    }

    /// This node's life.
    #[must_use]
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.0.incarnation()
    }

    /// Whether no other node is live.
    #[must_use]
    pub(crate) fn is_single(&self) -> bool {
        self.0.is_single()
    }

    /// The names of the nodes that are live, this one too.
    #[cfg(test)]
    pub(crate) fn node_names(&self) -> Vec<NodeName> {
        self.0.presence().state.live().map(|live| live.name.clone()).collect()
    }

    /// Hands a push to a node that [`Cluster::lookup`] named: it is in that node's queue, or isn't, when this returns, so
    /// that pushes keep their order. What became of it comes within `cluster.forward_timeout` of this call, or by the
    /// push's deadline; one that is in the queue then isn't sent any more.
    pub(crate) fn forward(
        &self,
        node: Incarnation,
        push: ForwardedPush,
    ) -> impl Future<Output = AtOnce> + Send + use<> {
        let end = sooner(Instant::now() + self.0.options().forward_timeout, push.deadline);
        let (answer, answered) = oneshot::channel();
        let departure = Departure::shared();
        let queued = Inbound::Push { push, departure: departure.clone(), answer };
        let taken = self.0.engine().send(node, queued);
        async move {
            match timeout_at(end, answered).await {
                _ if !taken => AtOnce::Told(Forwarded::Unreachable),
                Ok(Ok(at_once)) => at_once,
                // It hasn't left, and won't any more.
                _ if departure.take() => AtOnce::Told(Forwarded::Unreachable),
                _ => AtOnce::Told(Forwarded::Unknown),
            }
        }
    }

    /// What becomes of a push that waits at another node, which has `cluster.forward_timeout` to tell beyond
    /// `ack_timeout`; by `deadline` the device hasn't answered in time.
    pub(crate) fn outcome_of(
        &self,
        waits: SentAndWaits,
        ack_timeout: Duration,
        deadline: Option<Instant>,
    ) -> impl Future<Output = PushOutcome> + Send + use<> {
        let end = Instant::now() + ack_timeout + self.0.options().forward_timeout;
        let SentAndWaits { sent, outcome } = waits;
        async move {
            let status = match timeout_at(sooner(end, deadline), outcome).await {
                Ok(Ok(outcome)) => return outcome,
                // Its node has ended, and with it the connections.
                Ok(Err(_)) => PushStatus::ConnectionLost,
                Err(_) if deadline.is_some_and(|deadline| deadline < end) => PushStatus::AckTimeout,
                Err(_) => PushStatus::Unknown,
            };
            PushOutcome { status, ..sent }
        }
    }

    /// Resolves once all that was written before this call, by whomever, is folded here; false: that can't be told.
    /// `None`: it is folded already.
    pub(crate) fn barrier(&self) -> Option<BoxFuture<'static, bool>> {
        let barrier = self.0.engine().barrier()?;
        // What is folded isn't all yet: others have still to claim what they hold.
        let is_known = self.standing() != Standing::Joining;
        Some(if is_known { barrier } else { std::future::ready(false).boxed() })
    }

    /// Whether it is known which other nodes there are, or were when the state was lost.
    #[must_use]
    pub(crate) fn knows_others(&self) -> bool {
        let presence = self.0.presence();
        presence.is_open() || presence.past.is_some()
    }

    /// Whether others may have written what isn't folded here yet.
    #[must_use]
    pub(crate) fn reads_late(&self) -> bool {
        !self.0.may_be_single()
    }

    /// Whether other nodes can be asked, as far as is known.
    #[must_use]
    pub(crate) fn is_bus_up(&self) -> bool {
        self.0.engine().is_bus_up()
    }

    /// Asks every *other* node which of `uids`, at most 2,000, it holds. Gives the answers as they come, each with those
    /// that are held; then once `None`, if all have answered in `cluster.forward_timeout`.
    pub(crate) fn who_holds(&self, uids: Arc<[Uid]>) -> BoxStream<'static, Option<(Incarnation, Vec<Uid>)>> {
        let asked: FuturesUnordered<_> = self
            .others()
            .into_iter()
            .map(|(node, _)| {
                let (answer, answered) = oneshot::channel();
                self.0.engine().send(node, Inbound::Holds { uids: uids.clone(), answer });
                let (wait, uids) = (self.0.options().forward_timeout, uids.clone());
                async move {
                    let held = timeout(wait, answered).await.ok()?.ok()?;
                    let held = uids.iter().zip(held).filter(|(_, held)| *held);
                    Some((node, held.map(|(uid, _)| uid.clone()).collect::<Vec<_>>()))
                }
            })
            .collect();
        // Told are those who answered; the end only if nobody is missing.
        let told = asked.scan(true, |all, answer| {
            *all &= answer.is_some();
            std::future::ready(Some((answer, *all)))
        });
        let all = Arc::new(AtomicBool::new(true));
        let complete = all.clone();
        told.filter_map(move |(answer, so_far)| {
            all.store(so_far, Ordering::Relaxed);
            std::future::ready(answer.map(Some))
        })
        .chain(
            stream::once(async move { complete.load(Ordering::Relaxed) })
                .filter_map(|complete| std::future::ready(complete.then_some(None))),
        )
        .boxed()
    }

    /// Asks every *other* node to push to all its devices; sums their answers, and names those that didn't answer in
    /// `cluster.broadcast_timeout`, or by `deadline`. All have been asked when this returns.
    pub(crate) fn broadcast(
        &self,
        uri: &Arc<str>,
        body: &Arc<str>,
        deadline: Option<Instant>,
    ) -> impl Future<Output = (BroadcastTally, Vec<NodeName>)> + Send + use<> {
        let asked = self.others().into_iter().map(|(node, name)| {
            let (uri, body) = (uri.clone(), body.clone());
            let answered = self.ask(node, deadline, |answer| Inbound::Broadcast { uri, body, answer });
            async move { (name, answered.await) }
        });
        // Collected: asked now, not when the answers are waited for.
        let asked: Vec<_> = asked.collect();
        async move {
            let mut all = (BroadcastTally::default(), Vec::new());
            for (name, answer) in join_all(asked).await {
                match answer {
                    Some(tally) => {
                        all.0.sent += tally.sent;
                        all.0.queue_full += tally.queue_full;
                    }
                    None => all.1.push(name),
                }
            }
            all
        }
    }

    /// Asks those of `nodes` that aren't this one to end the connections of `uid`; gives how many they have ended. One
    /// that doesn't answer in `cluster.broadcast_timeout`, or by `deadline`, counts none.
    pub(crate) fn disconnect(
        &self,
        nodes: &[Incarnation],
        uid: &Uid,
        reason: &str,
        deadline: Option<Instant>,
    ) -> impl Future<Output = u32> + Send + use<> {
        let reason: Arc<str> = reason.into();
        let others = nodes.iter().filter(|node| **node != self.incarnation());
        let asked = others.map(|node| {
            let (uid, reason) = (uid.clone(), reason.clone());
            self.ask(*node, deadline, |answer| Inbound::Disconnect { uid, reason, answer })
        });
        let asked: Vec<_> = asked.collect();
        async move { join_all(asked).await.into_iter().flatten().sum() }
    }

    /// The sessions of *other* nodes: those of one uid, of the nodes that hold it, or all of all. What a node doesn't tell
    /// in `cluster.broadcast_timeout` a page, or by `deadline`, is missing.
    #[must_use]
    pub(crate) fn sessions(&self, uid: Option<&Uid>, deadline: Option<Instant>) -> SessionPages {
        let (answer, pages) = mpsc::channel(1);
        let holders = uid.map(|uid| self.lookup(uid.as_str()).map_or_else(Vec::new, |holding| holding.nodes));
        for (node, _) in self.others() {
            if holders.as_ref().is_some_and(|holders| !holders.contains(&node)) {
                continue;
            }
            self.0.engine().send(node, Inbound::Sessions { uid: uid.cloned(), answer: answer.clone() });
        }
        SessionPages { pages, wait: self.0.options().broadcast_timeout, deadline }
    }

    /// Tells all nodes what this one can take. Without effect where that is what it last told.
    pub(crate) fn announce(&self, card: Card) {
        let told = self.0.card().replace(card.clone());
        if told.as_ref() != Some(&card) {
            self.0.engine().announce(&self.0, card);
        }
    }

    /// Where a new device should connect by this transport: an address of the ready node with the lowest load (its connections, and those
    /// that this node has sent there in the last 5 s), at random where loads are within 2 %. `None`: no node takes
    /// devices, or this one was never in step, or isn't let in, and so can't tell.
    #[must_use]
    pub(crate) fn choose_host(&self, transport: Transport) -> Option<(String, NodeName)> {
        let mut grants = self.0.grants();
        // The log may not say so yet.
        let is_draining = self.0.card().as_ref().is_some_and(|card| card.draining);
        let presence = self.0.presence();
        let state = match &presence.past {
            Some(past) => &past.state,
            None if presence.is_open() => &presence.state,
            None => return None,
        };
        let nodes = state.live().filter(|live| !is_draining || live.name != *self.name());
        let (address, node) = grants.choose(nodes, transport, Instant::now())?;
        Some((address, node.name.clone()))
    }

    /// Follows the presence of `uids`, in any order, of everyone where there are none. Begins now with a snapshot, or
    /// without it where `skip_snapshot` says so; or, where `resume_after` is a cursor of a watcher of the same uids that
    /// this node can follow, with what was missed since. Where it can't: reset and snapshot.
    #[must_use]
    pub(crate) fn watch(&self, uids: Vec<Uid>, skip_snapshot: bool, resume_after: &str) -> Watcher {
        Watcher::new(self.0.clone(), uids, skip_snapshot, resume_after)
    }

    /// Ends this node's life in the log: what it still holds goes offline (draining), its inbox ends, and later claims are
    /// ignored. Resolves once that is folded, or can't be.
    pub(crate) fn leave(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.engine().leave(&self.0)
    }

    /// The nodes that are live, this one too, in the order of their names.
    #[must_use]
    pub(crate) fn nodes(&self) -> Vec<NodeStatus> {
        let presence = self.0.presence();
        let mut nodes: Vec<_> = presence.state.live().map(|live| self.status_of(live, presence.folded.1)).collect();
        drop(presence);
        nodes.sort_by(|one, other| one.name.as_str().cmp(other.name.as_str()));
        nodes
    }

    fn status_of(&self, live: &Live, told: Millis) -> NodeStatus {
        let silent = self.reads_late() && told.since(live.heard) > self.0.options().heartbeat * SILENT_BEATS;
        let own = live.incarnation == self.incarnation();
        let card = live.card.as_ref();
        NodeStatus {
            name: live.name.clone(),
            address: card.and_then(Card::first_address).unwrap_or_default().to_owned(),
            version: live.version.to_string(),
            connections: card.map_or(0, |card| card.connections),
            state: match card {
                _ if silent => NodeState::Silent,
                Some(card) if card.draining => NodeState::Draining,
                Some(card) if card.ready => NodeState::Ready,
                _ => NodeState::Joining,
            },
            since: if silent { live.heard } else { live.since },
            lag: Duration::from_millis(card.map_or(0, |card| card.lag_ms.into())),
            own,
        }
    }

    /// The other nodes that are live, or were when the state was lost.
    fn others(&self) -> Vec<(Incarnation, NodeName)> {
        let presence = self.0.presence();
        let past = presence.past.iter().flat_map(|past| past.state.live());
        let mut others: Vec<_> = past
            .filter(|live| live.name != *self.name())
            .map(|live| (life_of(live, &presence), live.name.clone()))
            .collect();
        for live in presence.state.live().filter(|live| live.name != *self.name()) {
            if !others.iter().any(|(_, name)| *name == live.name) {
                others.push((live.incarnation, live.name.clone()));
            }
        }
        others
    }

    /// Puts a question now, and gives the answer, if one comes in time.
    fn ask<T: Send + 'static, Q: FnOnce(oneshot::Sender<T>) -> Inbound>(
        &self,
        node: Incarnation,
        deadline: Option<Instant>,
        question: Q,
    ) -> impl Future<Output = Option<T>> + Send + use<T, Q> {
        let (answer, answered) = oneshot::channel();
        let end = sooner(Instant::now() + self.0.options().broadcast_timeout, deadline);
        // Not taken: the answer's place is dropped with it.
        self.0.engine().send(node, question(answer));
        async move { timeout_at(end, answered).await.ok()?.ok() }
    }
}

/// By which of its lives a node is asked that was live when the state was lost: by its new one once that has told, as
/// then it listens; until then by the one before, which it answers for as well.
fn life_of(before: &Live, presence: &node::Presence) -> Incarnation {
    let anew = presence.state.live().find(|live| live.name == before.name && live.card.is_some());
    anew.unwrap_or(before).incarnation
}

fn presence_in(known: Known<'_>) -> Presence<'_> {
    let Known { state, entry, .. } = known;
    let connections = u32::try_from(entry.connections().len()).unwrap_or(u32::MAX);
    Presence { since: entry.since(), node: &state.node(entry.newest().node).name, connections, known }
}

/// What is known of a live node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NodeStatus {
    pub(crate) name: NodeName,
    /// Where it sends devices; empty: not told.
    pub(crate) address: String,
    /// Empty: not told.
    pub(crate) version: String,
    /// How many it holds, as it last told.
    pub(crate) connections: u32,
    pub(crate) state: NodeState,
    /// When it joined, of a silent one when it was last heard; on the log's clock.
    pub(crate) since: Millis,
    /// From a record's being written to its being read back by the node itself, as it last told.
    pub(crate) lag: Duration,
    /// It is this node.
    pub(crate) own: bool,
}

/// How it is with a live node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeState {
    /// It has joined, and doesn't take devices yet.
    Joining,
    Ready,
    Draining,
    /// Others write, and it doesn't.
    Silent,
}
