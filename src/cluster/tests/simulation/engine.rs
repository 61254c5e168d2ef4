//! The log of the simulator, and beside it the truth about it: a fold made where it is written.

use std::collections::VecDeque;

use super::*;
use crate::PresenceChange;
use crate::cluster::{
    fold::{Effects, State, end_of, fold},
    member::Bounds,
    node::LogIdentity,
    wire,
};

/// A stream as an engine keeps it.
#[derive(Clone)]
pub(super) struct Stream {
    pub(super) log: LogIdentity,
    pub(super) made_from: u64,
    pub(super) first: u64,
    pub(super) messages: VecDeque<(Millis, Vec<u8>)>,
    pub(super) state: State,
    /// It has been rolled back: whoever has read what isn't in it any more has to delete it.
    pub(super) rolled_back: bool,
    /// The last message that made everything before it void.
    pub(super) voided: u64,
}

impl Stream {
    pub(super) fn last(&self) -> u64 {
        self.first + self.messages.len() as u64 - 1
    }

    pub(super) fn get(&self, sequence: u64) -> Option<&(Millis, Vec<u8>)> {
        self.messages.get(sequence.checked_sub(self.first)? as usize)
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds { log: self.log, made_from: self.made_from, first: self.first, last: self.last() }
    }
}

/// The engine: one stream, which may be away, and what it did.
pub(super) struct Engine {
    pub(super) stream: Option<Stream>,
    pub(super) up: bool,
    /// What its clock is ahead, in ms.
    pub(super) ahead: u64,
    latest: Millis,
    made: u64,
    keeps: usize,
    rules: Rules,
    connections_per_uid: u16,
    /// The log was rolled back, and a node knows: what is written to it now will be void. It stays so where that node has
    /// crashed before it noticed, and then what was told can't be compared.
    pub(super) doomed: bool,
    from_the_dead: bool,
    /// How often a uid came online by a node that had ended.
    pub(super) ghosts: u64,
    /// What every fold has to tell, over all logs.
    pub(super) changes: Vec<PresenceChange>,
    /// Who has ended, and by what.
    pub(super) ended: Vec<(Incarnation, NodeName)>,
}

impl Engine {
    pub(super) fn new(keeps: usize, connections_per_uid: u16, rules: Rules) -> Self {
        Self {
            stream: None,
            up: true,
            ahead: 0,
            latest: Millis(0),
            made: 0,
            keeps,
            rules,
            connections_per_uid,
            doomed: false,
            from_the_dead: false,
            ghosts: 0,
            changes: Vec::new(),
            ended: Vec::new(),
        }
    }

    pub(super) fn create(&mut self, first: u64, now: Millis) {
        if self.stream.is_none() {
            self.made += 1;
            self.doomed = false;
            self.stream = Some(Stream {
                log: LogIdentity { id: self.made, born: now },
                made_from: first,
                first,
                messages: VecDeque::new(),
                state: State::new(self.connections_per_uid).with_rules(self.rules),
                rolled_back: false,
                voided: 0,
            });
        }
    }

    pub(super) fn append(&mut self, now: Millis, bytes: Vec<u8>) {
        let Some(stream) = &mut self.stream else { return };
        let sequence = stream.last() + 1;
        self.latest = self.latest.max(Millis(now.0 + self.ahead));
        if let Ok(message) = wire::decode(&bytes) {
            if let crate::cluster::fold::Message::Batch { incarnation, .. } = &message {
                self.from_the_dead = stream.state.index_of(*incarnation).is_none();
            }
            let names: Vec<_> = stream.state.live().map(|live| (live.incarnation, live.name.clone())).collect();
            let mut effects = Effects::default();
            fold(&mut stream.state, sequence, self.latest, &message, &mut effects);
            if effects.reset {
                stream.voided = sequence;
            }
            let ended = names.into_iter().filter(|(incarnation, _)| effects.ended.contains(incarnation));
            self.ended.extend(ended);
            if self.from_the_dead {
                let online = effects.changes.iter().flat_map(|told| (0..told.uids().len()).map(|n| told.change(n)));
                self.ghosts += online.filter(|change| change.offline.is_none()).count() as u64;
            }
            for told in effects.changes.iter().filter(|_| !self.doomed) {
                self.changes.extend((0..told.uids().len()).map(|index| told.change(index)));
            }
        }
        stream.messages.push_back((self.latest, bytes));
        if stream.messages.len() > self.keeps {
            stream.messages.pop_front();
            stream.first += 1;
        }
    }

    /// The log is gone; what nobody has read of it, beyond `read`, never was.
    pub(super) fn lose(&mut self, read: u64) {
        self.stream = None;
        self.changes.retain(|change| change.epoch <= end_of(read));
    }

    /// The log is as it was some messages ago; what was written since is void, and what nobody has read of it, up to
    /// `read`, never was.
    pub(super) fn roll_back(&mut self, before: Stream, read: u64) {
        let known = end_of(before.last().max(read));
        self.doomed = read > before.last();
        self.changes.retain(|change| change.epoch <= known);
        self.stream = Some(Stream { rolled_back: true, ..before });
    }
}
