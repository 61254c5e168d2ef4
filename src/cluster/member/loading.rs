//! A snapshot on its way: 256 parts, each exact at its own place in the log.

use super::{Incarnation, LogIdentity, State, wire};
use crate::{
    cluster::{
        directory::PARTS,
        wire::{PartHead, Unreadable},
    },
    model::Millis,
};

/// How many parts are asked for at a time.
const WINDOW: usize = 16;

/// What became of a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Took {
    More,
    All,
    /// It doesn't go with the others.
    Useless,
}

#[derive(Debug)]
pub(crate) struct Loading {
    log: LogIdentity,
    /// Its number: answers to an earlier one's questions are void.
    snapshot: u64,
    /// Who tells it.
    of: Option<Incarnation>,
    parts: Vec<Option<(PartHead, Vec<u8>)>>,
    asked: Vec<bool>,
    came: usize,
    /// Each is taken in at its own place; else all at the first one's.
    exact: bool,
}

impl Loading {
    pub(crate) fn new(log: LogIdentity, snapshot: u64) -> Self {
        let parts = (0..PARTS).map(|_| None).collect();
        Self { log, snapshot, of: None, parts, asked: vec![false; PARTS], came: 0, exact: true }
    }

    pub(crate) fn log(&self) -> LogIdentity {
        self.log
    }

    pub(crate) fn snapshot(&self) -> u64 {
        self.snapshot
    }

    /// The last place at which a part that came is exact.
    pub(crate) fn last(&self) -> u64 {
        self.parts.iter().flatten().map(|(head, _)| head.sequence).max().unwrap_or(0)
    }

    pub(crate) fn exact(&mut self, exact: bool) {
        self.exact = exact;
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.came == PARTS
    }

    /// What to ask for now: the first part of anybody, then the others of who told it.
    pub(crate) fn asks(&mut self) -> impl Iterator<Item = (u8, Option<Incarnation>)> + use<> {
        let of = self.of;
        let (until, window) = if of.is_some() { (PARTS, WINDOW) } else { (1, 1) };
        let mut asks = Vec::new();
        let mut under_way = 0;
        for part in 0..until {
            if self.parts[part].is_some() || under_way == window {
                continue;
            }
            under_way += 1;
            if !std::mem::replace(&mut self.asked[part], true) {
                asks.push((part as u8, of));
            }
        }
        asks.into_iter()
    }

    /// A part came.
    pub(crate) fn came(&mut self, part: u8, of: Incarnation, bytes: Vec<u8>) -> Took {
        let index = usize::from(part);
        if self.parts[index].is_some() || self.of.is_some_and(|known| known != of) {
            return Took::More;
        }
        let Ok(head) = wire::part_head(&bytes) else { return Took::Useless };
        if head.part != part {
            return Took::Useless;
        }
        // The log is read from the first part's place on: none may be older.
        let first = self.parts[0].as_ref().map(|(first, _)| first.sequence);
        if part != 0 && first.is_none_or(|first| head.sequence < first) {
            return Took::Useless;
        }
        self.of = Some(of);
        self.parts[index] = Some((head, bytes));
        self.came += 1;
        if self.is_whole() { Took::All } else { Took::More }
    }

    /// The state at the place of the first part, without any part of the directory.
    pub(crate) fn state(&self) -> Result<(State, PartHead), Unreadable> {
        let (head, bytes) = self.parts[0].as_ref().ok_or(Unreadable)?;
        Ok((wire::decode_live(bytes)?, *head))
    }

    /// Whether parts are to be put in at `sequence`.
    pub(crate) fn is_due(&self, sequence: u64) -> bool {
        self.parts.iter().flatten().any(|(head, _)| is_due(head, sequence, self.exact))
    }

    /// Puts those parts into `state` that are exact at `sequence`, a message that the log took `at`; true where none is
    /// left.
    pub(crate) fn take(&mut self, sequence: u64, at: Millis, state: &mut State) -> Result<bool, Unreadable> {
        if !state.is_partial() {
            return Ok(false);
        }
        for part in &mut self.parts {
            if let Some((head, bytes)) = part.take_if(|(head, _)| is_due(head, sequence, self.exact)) {
                if self.exact && (head.sequence, head.at) != (sequence, at) {
                    // Another history of the log.
                    return Err(Unreadable);
                }
                wire::decode_part(&bytes, state)?;
            }
        }
        Ok(!state.is_partial())
    }
}

fn is_due(head: &PartHead, sequence: u64, exact: bool) -> bool {
    head.sequence <= sequence || !exact
}
