//! The state machine: an ordered log in, state and changes out. No I/O and no clock, so every node that folds the same
//! messages has the same state, the same changes in the same order, with the same numbers.

use crate::model::{ConnectionNumber, EndReason, Millis, NodeName, OfflineReason, PresenceChange, Uid};

use super::{
    directory::{Claim, Connection, Directory, NodeIndex},
    hosts::Card,
};

/// One life of a node in the log: the sequence of its join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Incarnation(pub u64);

/// The most records of one message: their index has ten bits of an epoch, and 0 is the message itself.
pub(crate) const RECORDS_MAX: usize = 1_023;
const PLACES: u64 = RECORDS_MAX as u64 + 1;
/// Older than this at its place in the log, in milliseconds, a claim was sent again and is sorted by its time.
const AGED_MS: u64 = 1_000;

/// What stands in the log.
#[derive(Debug, Clone)]
pub(crate) enum Message<'a> {
    /// A node begins a life; it ends an earlier one of that name.
    Join {
        name: NodeName,
        /// When its process started; of two lives of a name the later counts.
        start: u64,
        /// How often this process has joined before.
        attempt: u32,
    },
    /// What a node tells, at most [`RECORDS_MAX`] records. Counts once, as the next of its incarnation.
    Batch { incarnation: Incarnation, number: u64, records: &'a [Record] },
}

/// One thing that a node tells.
#[derive(Debug, Clone)]
pub(crate) enum Record {
    /// It holds a connection of the uid, in place of its own connection `replaces`.
    Claim { uid: Uid, number: ConnectionNumber, replaces: Option<ConnectionNumber>, accepted: Millis },
    /// That connection has ended.
    Release { uid: Uid, number: ConnectionNumber, reason: EndReason },
    /// That incarnation has ended, if `next` is still its next batch.
    Dead { incarnation: Incarnation, next: u64 },
    /// What the node can take.
    Card(Card),
}

/// A node that is live.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) incarnation: Incarnation,
    pub(crate) name: NodeName,
    /// What it can take, once it has told.
    pub(crate) card: Option<Card>,
    /// When it joined.
    pub(crate) since: Millis,
    start: u64,
    attempt: u32,
    next: u64,
}

impl Live {
    /// The number of its next batch.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }
}

/// All that the log says.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// A place is taken again once all connections of its node have ended.
    nodes: Vec<Option<Live>>,
    pub(crate) directory: Directory,
    connections_per_uid: usize,
}

/// What one message changes.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) changes: Vec<Told>,
    /// Connections that others have displaced, for their nodes to close.
    pub(crate) displaced: Vec<(Incarnation, Uid, ConnectionNumber)>,
    /// Nodes that have ended.
    pub(crate) ended: Vec<Incarnation>,
}

impl Effects {
    pub(crate) fn clear(&mut self) {
        self.changes.clear();
        self.displaced.clear();
        self.ended.clear();
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
    pub(crate) fn new(connections_per_uid: u32) -> Self {
        let connections_per_uid = usize::try_from(connections_per_uid.max(1)).unwrap_or(usize::MAX);
        Self { nodes: Vec::new(), directory: Directory::new(), connections_per_uid }
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

    fn end(&mut self, index: NodeIndex, epoch: u64, at: Millis, effects: &mut Effects) {
        let uids = self.directory.end(index);
        let node = self.nodes[index.0 as usize].take().expect("the index is that of a live node");
        effects.ended.push(node.incarnation);
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

/// Folds the message at `sequence`, which the log took at `at`; what it changes is added to `effects`. Sequences grow,
/// and `at` never falls. Told twice, or by a node that isn't live, a batch changes nothing.
pub(crate) fn fold(state: &mut State, sequence: u64, at: Millis, message: &Message<'_>, effects: &mut Effects) {
    let epoch = sequence * PLACES;
    match message {
        Message::Join { name, start, attempt } => {
            let earlier = state.live().find(|node| node.name == *name);
            if let Some(earlier) = earlier {
                if (*start, *attempt) <= (earlier.start, earlier.attempt) {
                    return;
                }
                let index = state.index_of(earlier.incarnation).expect("it is live");
                state.end(index, epoch, at, effects);
            }
            let joined = Live {
                incarnation: Incarnation(sequence),
                name: name.clone(),
                card: None,
                since: at,
                start: *start,
                attempt: *attempt,
                next: 0,
            };
            match state.nodes.iter_mut().find(|place| place.is_none()) {
                Some(place) => *place = Some(joined),
                None => state.nodes.push(Some(joined)),
            }
        }
        Message::Batch { incarnation, number, records } => {
            let Some(index) = state.index_of(*incarnation) else { return };
            let node = state.node_mut(index);
            if node.next != *number {
                return;
            }
            node.next += 1;
            for (place, record) in (epoch + 1..).zip(records.iter().take(RECORDS_MAX)) {
                fold_record(state, index, place, at, record, effects);
                if effects.ended.contains(incarnation) {
                    return;
                }
            }
        }
    }
}

fn fold_record(state: &mut State, node: NodeIndex, epoch: u64, at: Millis, record: &Record, effects: &mut Effects) {
    match record {
        Record::Claim { uid, number, replaces, accepted } => {
            // A clock that is ahead must not make a connection newer than those to come.
            let accepted = at.min(*accepted);
            let connection = Connection::new(epoch, node, *number, accepted);
            let aged = at.0 - accepted.0 > AGED_MS;
            let limit = state.connections_per_uid;
            state.claim(node, &Claim { uid, at, connection, aged, replaces: *replaces, limit }, effects);
        }
        Record::Release { uid, number, reason } => {
            if state.directory.release(uid.as_str(), node, *number) {
                effects.changes.push(Told::One(PresenceChange {
                    uid: uid.clone(),
                    epoch,
                    at,
                    node: state.node(node).name.clone(),
                    offline: Some((*reason).into()),
                }));
            }
        }
        Record::Dead { incarnation, next } => {
            let dead = state.index_of(*incarnation);
            if let Some(dead) = dead.filter(|index| state.node(*index).next == *next) {
                state.end(dead, epoch, at, effects);
            }
        }
        Record::Card(card) => state.node_mut(node).card = Some(card.clone()),
    }
}
