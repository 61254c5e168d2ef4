//! Who is online anywhere: presence, folded from one log, and what nodes ask each other. It doesn't know the hub, which
//! writes claims and releases, and takes what comes in.

mod asking;
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

use std::{fmt, future::Future, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{sync::watch, time::Instant};

use crate::model::{ConnectionNumber, EndReason, Millis, NodeName, Transport, Uid};

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
