//! How a message changes the state.

use std::mem;

use super::{Effects, Incarnation, Join, Live, Message, PLACES, RECORDS_MAX, Record, State, Told};
use crate::{
    cluster::{
        directory::{Claim, Connection, NodeIndex, PARTS},
        rules::Rule,
    },
    model::{Millis, PresenceChange, Uid},
};

/// Older than this at its place in the log, in milliseconds, a claim was sent again and is sorted by its time.
const AGED_MS: u64 = 1_000;
/// So many go offline without the growing of their list: more than are in a part of a directory of millions.
const ROOM: usize = 1 << 16;

/// Folds the message at `sequence`, which the log took at `at`; what it changes is added to `effects`. Sequences grow,
/// and `at` never falls. Told twice, or by a node that isn't live, a batch changes nothing.
#[cfg(test)]
pub(crate) fn fold(state: &mut State, sequence: u64, at: Millis, message: &Message<'_>, effects: &mut Effects) {
    let whole = Folding::new(sequence, at, Some(message)).step(state, usize::MAX, effects, |_| {});
    assert!(whole, "as many looks as it takes");
}

/// A message on its way into the state. That takes one step, but where a node of many uids ends: then it takes some,
/// and between two of them the state may be read, by who can do with a uid of that node either still online or already
/// offline ([`State::is_midway`]). What has changed is told after the last, as if it had been one.
#[derive(Debug)]
pub(crate) struct Folding<'a> {
    pub(crate) sequence: u64,
    pub(crate) at: Millis,
    /// `None`: it can't be read.
    pub(crate) message: Option<&'a Message<'a>>,
    /// How many of its records are folded.
    records: usize,
    ending: Option<Ending>,
}

/// The end of a node on its way through the directory.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) node: NodeIndex,
    pub(super) epoch: u64,
    /// The next part to go through.
    part: usize,
    /// Who went offline so far.
    pub(super) uids: Vec<Uid>,
}

impl Ending {
    fn new(node: NodeIndex, epoch: u64) -> Self {
        Self { node, epoch, part: 0, uids: Vec::new() }
    }
}

impl<'a> Folding<'a> {
    /// Of the message at `sequence`, which the log took at `at`. Sequences grow, and `at` never falls.
    pub(crate) fn new(sequence: u64, at: Millis, message: Option<&'a Message<'a>>) -> Self {
        Self { sequence, at, message, records: 0, ending: None }
    }

    /// Goes on until all is folded, which is true then, or so many uids were looked at, and the rest of a part.
    /// `offline` is told who goes with a node.
    pub(crate) fn step(
        &mut self,
        state: &mut State,
        mut looks: usize,
        effects: &mut Effects,
        mut offline: impl FnMut(&Uid),
    ) -> bool {
        loop {
            if let Some(ending) = &mut self.ending {
                while ending.part < PARTS && looks > 0 {
                    let Ending { node, part, uids, .. } = ending;
                    let looked = state.directory.end_in(*part, *node, |uid| {
                        offline(&uid);
                        uids.push(uid);
                    });
                    // A part with nobody in it takes its time, too.
                    looks = looks.saturating_sub(looked.max(1));
                    *part += 1;
                }
            }
            state.midway = self.ending.as_ref().is_some_and(|ending| ending.part < PARTS);
            if state.midway {
                return false;
            }
            if let Some(ended) = self.ending.take() {
                state.end(ended, self.at, effects);
            }
            self.ending = self.go_on(state, effects);
            if self.ending.is_none() {
                return true;
            }
        }
    }

    /// To be called between two steps: makes room for who goes offline in the next, while nobody waits for that.
    pub(crate) fn make_room(&mut self) {
        if let Some(Ending { uids, .. }) = &mut self.ending {
            uids.reserve(ROOM);
        }
    }

    /// Folds up to the end of a node, if there is one.
    fn go_on(&mut self, state: &mut State, effects: &mut Effects) -> Option<Ending> {
        let Self { sequence, at, message, .. } = *self;
        match message? {
            Message::Join(join) => fold_join(state, sequence, at, join),
            Message::Batch { incarnation, number, records, .. } => {
                if effects.ended.contains(incarnation) {
                    return None;
                }
                let index = state.index_of(*incarnation).or_else(|| state.index_of_ended(*incarnation))?;
                if self.records == 0 {
                    let once_in_order = state.rules.hold(Rule::OnceInOrder);
                    let node = state.node_mut(index);
                    if node.next != *number && once_in_order {
                        return None;
                    }
                    node.next = *number + 1;
                    node.heard = at;
                }
                let mut rest = records.iter().take(RECORDS_MAX).skip(self.records);
                rest.find_map(|record| {
                    self.records += 1;
                    let epoch = sequence * PLACES + self.records as u64;
                    fold_record(state, index, epoch, at, record, effects)
                })
            }
            Message::Reset { .. } => {
                effects.ended.extend(state.live().map(|live| live.incarnation));
                let empty = State::new(state.connections_per_uid).with_rules(state.rules);
                effects.void = Some(mem::replace(state, empty));
                effects.reset = true;
                None
            }
            Message::Hello { .. } => None,
        }
    }
}

/// Says who ends by it first, if anybody does; called again then.
fn fold_join(state: &mut State, sequence: u64, at: Millis, join: &Join) -> Option<Ending> {
    let Join { name, start, attempt, speaks, connections_per_uid, version } = join;
    let earlier = state.live().find(|node| node.name == *name).map(|node| (node.incarnation, node.start, node.attempt));
    let earlier = earlier.filter(|_| state.rules.hold(Rule::JoinEnds));
    if earlier.is_some_and(|(_, before, tried)| (*start, *attempt) <= (before, tried)) {
        return None;
    }
    let others = state.live().any(|node| node.name != *name);
    if others && *connections_per_uid != state.connections_per_uid {
        return None;
    }
    state.connections_per_uid = *connections_per_uid;
    if let Some((earlier, ..)) = earlier {
        let index = state.index_of(earlier).expect("it is live");
        return Some(Ending::new(index, sequence * PLACES));
    }
    let joined = Live {
        incarnation: Incarnation(sequence),
        name: name.clone(),
        card: None,
        since: at,
        heard: at,
        version: version.clone(),
        start: *start,
        attempt: *attempt,
        speaks: *speaks,
        next: 0,
    };
    state.place(joined);
    None
}

/// Says who ends by it.
fn fold_record(
    state: &mut State,
    node: NodeIndex,
    epoch: u64,
    at: Millis,
    record: &Record,
    effects: &mut Effects,
) -> Option<Ending> {
    match record {
        Record::Claim { uid, .. } | Record::Release { uid, .. } if !state.has_part_of(uid) => {}
        Record::Claim { uid, number, replaces, accepted } => {
            // A clock that is ahead must not make a connection newer than those to come.
            let accepted = at.min(*accepted);
            let connection = Connection::new(epoch, node, *number, accepted);
            let aged = at.0 - accepted.0 > AGED_MS && state.rules.hold(Rule::Aged);
            let limit = usize::from(state.connections_per_uid.max(1));
            state.claim(node, &Claim { uid, at, connection, aged, replaces: *replaces, limit }, effects);
        }
        Record::Release { uid, number, reason } => {
            let exact = state.rules.hold(Rule::ExactRelease);
            if state.directory.release(uid.as_str(), |held| !exact || held.is(node, *number)) {
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
            let if_silent = state.rules.hold(Rule::DeadIfSilent);
            let dead = dead.filter(|index| !if_silent || state.node(*index).next == *next);
            return dead.map(|dead| Ending::new(dead, epoch));
        }
        Record::Card(card) => state.node_mut(node).card = Some(card.clone()),
        Record::Unknown => {}
    }
    None
}
