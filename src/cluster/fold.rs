//! The state machine: an ordered log in, state and changes out. No I/O and no clock, so every node that folds the same
//! messages has the same state, the same changes in the same order, with the same numbers.

mod folding;

use std::{borrow::Cow, sync::Arc};

use crate::model::{ConnectionNumber, EndReason, Millis, NodeName, OfflineReason, PresenceChange, Uid};

use super::{
    directory::{Claim, Directory, NodeIndex, PARTS, part_of},
    hosts::Card,
    rules::{Rule, Rules},
};
use folding::Ending;
pub(crate) use folding::Folding;
#[cfg(test)]
pub(crate) use folding::fold;

/// One life of a node in the log: the sequence of its join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Incarnation(pub u64);

/// The most records of one message: their index has ten bits of an epoch, and 0 is the message itself.
pub(crate) const RECORDS_MAX: usize = 1_023;
const PLACES: u64 = RECORDS_MAX as u64 + 1;

/// The version of the records that this build writes and understands.
pub(crate) const SPEAKS: u8 = 1;

/// What stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// A node begins a life; it ends an earlier one of that name.
    Join(Join),
    /// What a node tells, at most [`RECORDS_MAX`] records. Counts once, as the next of its incarnation.
    Batch {
        incarnation: Incarnation,
        number: u64,
        /// When it was sent, on its sender's own clock, in µs.
        sent: u64,
        records: Cow<'a, [Record]>,
    },
    /// Everything before it is void: nobody knows the state, and nobody writes.
    Reset { nonce: u64 },
    /// A node without the state listens whether anybody writes.
    Hello { nonce: u64 },
}

/// How a node begins a life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Join {
    pub(crate) name: NodeName,
    /// When its process started, in µs since 1970; of two lives of a name the later counts.
    pub(crate) start: u64,
    /// How often this process has joined before.
    pub(crate) attempt: u32,
    /// The version of the records that it understands.
    pub(crate) speaks: u8,
    /// How many connections a uid may have; a node that says otherwise than those that are live doesn't get in.
    pub(crate) connections_per_uid: u16,
    /// Of its program.
    pub(crate) version: Arc<str>,
}

/// One thing that a node tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// It holds a connection of the uid, in place of its own connection `replaces`.
    Claim { uid: Uid, number: ConnectionNumber, replaces: Option<ConnectionNumber>, accepted: Millis },
    /// That connection has ended.
    Release { uid: Uid, number: ConnectionNumber, reason: EndReason },
    /// That incarnation has ended, if `next` is still its next batch.
    Dead { incarnation: Incarnation, next: u64 },
    /// What the node can take.
    Card(Card),
    /// One that this build can't read: it keeps its place.
    Unknown,
}

/// A node that is live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Live {
    pub(crate) incarnation: Incarnation,
    pub(crate) name: NodeName,
    /// What it can take, once it has told.
    pub(crate) card: Option<Card>,
    /// When it joined.
    pub(crate) since: Millis,
    /// When its last word came.
    pub(crate) heard: Millis,
    pub(crate) version: Arc<str>,
    pub(crate) start: u64,
    pub(crate) attempt: u32,
    pub(crate) speaks: u8,
    pub(crate) next: u64,
}

/// All that the log says.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// A place is taken again once all connections of its node have ended.
    nodes: Vec<Option<Live>>,
    pub(crate) directory: Directory,
    connections_per_uid: u16,
    rules: Rules,
    /// Who has ended; kept only where [`Rule::OnlyLive`] doesn't hold.
    ended: Vec<Live>,
    /// While a snapshot is taken in: which parts of it are here. What concerns the others is passed over.
    parts: Option<Box<[bool; PARTS]>>,
    /// The end of a node is folded in part.
    midway: bool,
}

/// What one message changes.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) changes: Vec<Told>,
    /// Connections that others have displaced, for their nodes to close.
    pub(crate) displaced: Vec<(Incarnation, Uid, ConnectionNumber)>,
    /// Nodes that have ended.
    pub(crate) ended: Vec<Incarnation>,
    /// The state before is void, and nothing that went is told.
    pub(crate) reset: bool,
    /// That state: dropping it takes long.
    pub(crate) void: Option<State>,
}

impl Effects {
    pub(crate) fn clear(&mut self) {
        self.changes.clear();
        self.displaced.clear();
        self.ended.clear();
        self.reset = false;
        self.void = None;
    }
}

/// One place in the history of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// A uid came or went.
    One(PresenceChange),
    /// A node was lost, and these with it: one place for a million of them.
    Death(Box<Death>),
}

/// Who went offline with a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Death {
    pub(crate) epoch: u64,
    pub(crate) at: Millis,
    pub(crate) node: NodeName,
    /// At least one; in each node's own order.
    pub(crate) uids: Vec<Uid>,
}

impl Told {
    /// Its place in the log; grows from one to the next.
    pub(crate) fn epoch(&self) -> u64 {
        match self {
            Self::One(change) => change.epoch,
            Self::Death(death) => death.epoch,
        }
    }

    /// Whom it concerns.
    pub(crate) fn uids(&self) -> &[Uid] {
        match self {
            Self::One(change) => std::slice::from_ref(&change.uid),
            Self::Death(death) => &death.uids,
        }
    }

    /// The change of the uid with that index in [`Told::uids`].
    pub(crate) fn change(&self, index: usize) -> PresenceChange {
        match self {
            Self::One(change) => change.clone(),
            Self::Death(death) => PresenceChange {
                uid: death.uids[index].clone(),
                epoch: death.epoch,
                at: death.at,
                node: death.node.clone(),
                offline: Some(OfflineReason::NodeLost),
            },
        }
    }
}

/// The last place of the message at `sequence`: everything that it told is at or below it.
pub(crate) fn end_of(sequence: u64) -> u64 {
    sequence * PLACES + RECORDS_MAX as u64
}

impl State {
    /// Nobody live, nobody online.
    pub(crate) fn new(connections_per_uid: u16) -> Self {
        Self {
            nodes: Vec::new(),
            directory: Directory::new(),
            connections_per_uid,
            rules: Rules::ALL,
            ended: Vec::new(),
            parts: None,
            midway: false,
        }
    }

    /// With rules left out.
    pub(crate) fn with_rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// The state of a snapshot's first part, of which no part of the directory is here yet.
    pub(crate) fn of_snapshot(connections_per_uid: u16, live: Vec<Live>) -> Self {
        let nodes = live.into_iter().map(Some).collect();
        Self { nodes, parts: Some(Box::new([false; PARTS])), ..Self::new(connections_per_uid) }
    }

    /// Says that a part of the directory is here now; true with the last one.
    pub(crate) fn part_came(&mut self, part: usize) -> bool {
        if let Some(parts) = &mut self.parts {
            parts[part] = true;
            if parts.iter().all(|came| *came) {
                self.parts = None;
            }
        }
        self.parts.is_none()
    }

    /// Whether parts of the directory are missing.
    pub(crate) fn is_partial(&self) -> bool {
        self.parts.is_some()
    }

    /// Whether a message is folded in part: some uids of a node that has ended are offline already, and others not yet.
    pub(crate) fn is_midway(&self) -> bool {
        self.midway
    }

    pub(crate) fn rules(&self) -> Rules {
        self.rules
    }

    /// How many connections a uid may have.
    pub(crate) fn connections_per_uid(&self) -> u16 {
        self.connections_per_uid
    }

    fn has_part_of(&self, uid: &Uid) -> bool {
        self.parts.as_ref().is_none_or(|parts| parts[part_of(uid.as_str())])
    }

    /// The nodes that are live.
    pub(crate) fn live(&self) -> impl Iterator<Item = &Live> {
        self.nodes.iter().flatten()
    }

    /// The node that holds a connection.
    pub(crate) fn node(&self, index: NodeIndex) -> &Live {
        self.nodes[index.0 as usize].as_ref().expect("a node's connections end with it")
    }

    /// Where a live incarnation is.
    pub(crate) fn index_of(&self, incarnation: Incarnation) -> Option<NodeIndex> {
        let is = |node: &Option<Live>| node.as_ref().is_some_and(|node| node.incarnation == incarnation);
        let index = self.nodes.iter().position(is)?;
        Some(NodeIndex(u32::try_from(index).expect("fewer nodes than 2³²")))
    }

    /// The number of a live incarnation's next batch.
    pub(crate) fn next_of(&self, incarnation: Incarnation) -> Option<u64> {
        self.index_of(incarnation).map(|index| self.node(index).next)
    }

    fn node_mut(&mut self, index: NodeIndex) -> &mut Live {
        self.nodes[index.0 as usize].as_mut().expect("the index is that of a live node")
    }

    /// Takes a node in, where a place is free.
    fn place(&mut self, live: Live) {
        match self.nodes.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(live),
            None => self.nodes.push(Some(live)),
        }
    }

    /// Where [`Rule::OnlyLive`] doesn't hold, an incarnation that has ended counts as one that is live.
    fn index_of_ended(&mut self, incarnation: Incarnation) -> Option<NodeIndex> {
        let ended = self.ended.iter().position(|node| node.incarnation == incarnation)?;
        let node = self.ended.swap_remove(ended);
        self.place(node);
        self.index_of(incarnation)
    }

    /// A node has ended, whose connections have all gone.
    fn end(&mut self, ending: Ending, at: Millis, effects: &mut Effects) {
        let Ending { node, epoch, uids, .. } = ending;
        let node = self.nodes[node.0 as usize].take().expect("the index is that of a live node");
        effects.ended.push(node.incarnation);
        if !self.rules.hold(Rule::OnlyLive) {
            self.ended.push(node.clone());
        }
        if !uids.is_empty() {
            effects.changes.push(Told::Death(Box::new(Death { epoch, at, node: node.name, uids })));
        }
    }

    fn claim(&mut self, node: NodeIndex, claim: &Claim<'_>, effects: &mut Effects) {
        let nodes = &self.nodes;
        let online = self.directory.claim(claim, |old| {
            let holder = nodes[old.node.0 as usize].as_ref().expect("a node's connections end with it");
            effects.displaced.push((holder.incarnation, claim.uid.clone(), old.number));
        });
        if online {
            effects.changes.push(Told::One(PresenceChange {
                uid: claim.uid.clone(),
                epoch: claim.connection.epoch,
                at: claim.at,
                node: self.node(node).name.clone(),
                offline: None,
            }));
        }
    }
}
