//! One subscriber's way through the snapshot and the changes.

use std::{collections::VecDeque, future::poll_fn, sync::Arc, task::Poll, time::Duration};

use tokio::{
    task::yield_now,
    time::{Instant, timeout_at},
};

use crate::model::{Millis, PresenceEvent, Uid};

use super::{
    changes::WatcherId,
    cursor::{Cursor, hash_of},
    directory::{Entry, PARTS, part_of},
    fold::State,
    node::{LogIdentity, Node, Presence},
};

/// The most events of one update. The longest uid and node name make each less than 500 bytes, so an update is well
/// below a mebibyte.
pub(crate) const EVENTS_MAX: usize = 1_000;
/// The most changes looked at, or uids looked up, under one lock: what a claim may have to wait for.
const LOOKS_MAX: usize = 4_096;
/// How many uids are put in or out of the index of followers under one lock.
const FOLLOW_CHUNK: usize = 512;
/// How long a cursor may be ahead of the log: its node read faster than this one.
const AHEAD: Duration = Duration::from_secs(2);

/// What a watcher is told at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Update {
    /// At most 1,000, together below 1 MiB; none: nothing has happened for the time of a keepalive. `Live` and `Reset`
    /// are only ever the last.
    pub(crate) events: Vec<PresenceEvent>,
    /// The place after the last event, to resume from. Empty where nobody can resume: from the start of a snapshot or
    /// a reset up to the update that ends with `Live`, which has one.
    pub(crate) cursor: String,
}

/// How much is done under one lock.
#[derive(Debug, Clone, Copy)]
struct Limits {
    events: usize,
    looks: usize,
}

/// Follows presence: a snapshot, or what was missed, then every change. Leaves when dropped.
pub(crate) struct Watcher {
    node: Arc<Node>,
    position: Position,
    /// When a keepalive is due.
    quiet_until: Instant,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its cursor has yet to be compared with the log, or is ahead of it.
    Resume {
        log: u64,
        place: u64,
        /// Until when it may be ahead, once that has been seen.
        until: Option<Instant>,
    },
    /// It has to begin anew.
    Reset,
    /// The snapshot is told.
    Parts,
    /// What it missed is told, up to the change with that index.
    Missed {
        end: u64,
    },
    /// Only `Live` is missing, which isn't told before the node is settled.
    Settle,
    Live,
}

#[derive(Debug)]
struct Position {
    id: WatcherId,
    limits: Limits,
    /// By part, then by text, each once. Empty: everyone.
    filter: Vec<Uid>,
    filter_hash: u64,
    phase: Phase,
    /// The next change to read, and how many uids of it, if it is a death, have been read.
    next: u64,
    inside: usize,
    /// Everything at or below this place has been told.
    place: u64,
    /// How many parts of the snapshot have been taken: changes of others aren't told yet.
    parts: usize,
    /// How many of `filter` have been looked up for it.
    looked_up: usize,
    /// What was taken of the snapshot and isn't told yet: at most a part and 1,000 events.
    taken: VecDeque<PresenceEvent>,
    /// Whether updates carry a cursor.
    resumable: bool,
    /// Nothing has been told yet.
    fresh: bool,
    /// The log that it follows.
    log: u64,
    /// The node isn't in step with the log: there is nothing to tell.
    waits_for_open: bool,
}

enum Step {
    Tell(Vec<PresenceEvent>),
    /// There is more to look at.
    Again,
    /// Until a change comes, or that time.
    Wait(Option<Instant>),
}

impl Watcher {
    pub(super) fn new(node: Arc<Node>, mut uids: Vec<Uid>, skip_snapshot: bool, resume_after: &str) -> Self {
        uids.sort_by_cached_key(|uid| (part_of(uid.as_str()), uid.clone()));
        uids.dedup();
        let filter_hash = hash_of(&uids);
        let now = Instant::now();
        let phase = match Cursor::read(resume_after) {
            _ if resume_after.is_empty() && skip_snapshot => Phase::Settle,
            _ if resume_after.is_empty() => Phase::Parts,
            Some(cursor) if cursor.filter == filter_hash => {
                Phase::Resume { log: cursor.log, place: cursor.place, until: None }
            }
            _ => Phase::Reset,
        };
        let id = node.presence().watchers.enter(uids.is_empty());
        for chunk in uids.chunks(FOLLOW_CHUNK) {
            node.presence().watchers.follow(id, chunk);
        }
        let mut position = Position {
            id,
            limits: Limits { events: EVENTS_MAX, looks: LOOKS_MAX },
            filter: uids,
            filter_hash,
            phase,
            next: 0,
            inside: 0,
            place: 0,
            parts: if phase == Phase::Settle { PARTS } else { 0 },
            looked_up: 0,
            taken: VecDeque::new(),
            resumable: phase == Phase::Settle,
            fresh: true,
            log: 0,
            waits_for_open: false,
        };
        position.begin_at_end(&mut node.presence());
        let quiet_until = now + node.options().keepalive;
        Self { node, position, quiet_until }
    }

    /// With other limits than those that serve.
    #[cfg(test)]
    pub(crate) fn with_limits(mut self, events: usize, looks: usize) -> Self {
        self.position.limits = Limits { events, looks };
        self
    }

    /// What there is to tell, as soon as there is something; after the time of a keepalive without it, an update with
    /// no event. Never ends. Cancel-safe: a call that is dropped has taken nothing.
    pub(crate) async fn next(&mut self) -> Update {
        loop {
            match self.step() {
                Step::Tell(events) => return self.update(events),
                Step::Again => yield_now().await,
                Step::Wait(_) if Instant::now() >= self.quiet_until => return self.update(Vec::new()),
                Step::Wait(until) => {
                    let until = until.map_or(self.quiet_until, |until| until.min(self.quiet_until));
                    let Self { node, position, .. } = self;
                    let hit = poll_fn(|context| {
                        let mut presence = node.presence();
                        let open = presence.is_open();
                        // Opened since it was looked at.
                        let opened = open && position.waits_for_open;
                        match presence.watchers.poll(position.id, context.waker(), open) || opened {
                            true => Poll::Ready(()),
                            false => Poll::Pending,
                        }
                    });
                    // In time or not, the next step finds out.
                    _ = timeout_at(until, hit).await;
                }
            }
        }
    }

    /// What has happened and isn't told yet; `None` where that is nothing, or nobody could go on from it: the snapshot isn't
    /// whole. Cancel-safe as [`Watcher::next`].
    pub(crate) async fn rest(&mut self) -> Option<Update> {
        while self.position.resumable {
            match self.step() {
                Step::Tell(events) => return Some(self.update(events)),
                Step::Again => yield_now().await,
                Step::Wait(_) => return None,
            }
        }
        None
    }

    /// A function of its own: no lock is held across an await.
    fn step(&mut self) -> Step {
        let mut presence = self.node.presence();
        let step = self.position.step(&mut presence, self.node.settled_at());
        if matches!(step, Step::Tell(_)) {
            self.position.fresh = false;
        }
        step
    }

    fn update(&mut self, events: Vec<PresenceEvent>) -> Update {
        self.quiet_until = Instant::now() + self.node.options().keepalive;
        let Position { place, filter_hash: filter, resumable, log, waits_for_open, .. } = self.position;
        let cursor = Cursor { log, place, filter };
        Update { events, cursor: if resumable && !waits_for_open { cursor.text() } else { String::new() } }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        for chunk in self.position.filter.chunks(FOLLOW_CHUNK) {
            self.node.presence().watchers.unfollow(self.position.id, chunk);
        }
        self.node.presence().watchers.leave(self.position.id);
    }
}

impl Position {
    /// One exact moment: the caller holds the lock.
    fn step(&mut self, presence: &mut Presence, settled_at: Instant) -> Step {
        let log = presence.log.filter(|_| presence.is_open());
        self.waits_for_open = log.is_none();
        let Some(LogIdentity { id, born }) = log else { return Step::Wait(None) };
        self.log = id;
        if let Phase::Resume { log, place, until } = self.phase {
            let now = Instant::now();
            let until = until.unwrap_or(now + AHEAD);
            if log == id && place > presence.ring.folded() && now < until {
                self.phase = Phase::Resume { log, place, until: Some(until) };
                presence.watchers.await_any(self.id);
                return Step::Wait(Some(until));
            }
            self.resume(presence, log, place);
        }
        if self.fresh && matches!(self.phase, Phase::Parts | Phase::Settle) && self.next < presence.ring.voided() {
            // What was there before the node got in step was never told.
            (self.looked_up, self.parts) = (0, if self.phase == Phase::Settle { PARTS } else { 0 });
            self.taken.clear();
            self.begin_at_end(presence);
        }
        if self.phase == Phase::Reset {
            return self.reset(presence, born);
        }
        let mut events = Vec::new();
        let mut waits = false;
        let settled = || Instant::now() >= settled_at;
        if self.taken.is_empty() && !(self.phase == Phase::Settle && settled()) {
            self.catch_up(presence);
            if self.next < presence.ring.first() {
                return self.reset(presence, born);
            }
            let end = match self.phase {
                Phase::Missed { end } => end,
                _ => presence.ring.end(),
            };
            self.read(presence, end, &mut events);
            if self.next >= end {
                match self.phase {
                    // Whose end is folded in part would be missing here, and told to be gone afterwards.
                    Phase::Parts if presence.state.is_midway() => {
                        presence.watchers.await_any(self.id);
                        waits = true;
                    }
                    Phase::Parts => self.take_parts(&presence.state),
                    Phase::Missed { .. } => self.phase = Phase::Settle,
                    _ => {}
                }
            }
        }
        let room = self.limits.events - events.len();
        events.extend(self.taken.drain(..room.min(self.taken.len())));
        if self.phase == Phase::Parts && self.parts == PARTS && self.taken.is_empty() {
            self.phase = Phase::Settle;
        }
        if self.phase == Phase::Settle && events.len() < self.limits.events && settled() {
            events.push(PresenceEvent::Live { since: born });
            self.phase = Phase::Live;
            self.resumable = true;
        }
        if !events.is_empty() {
            Step::Tell(events)
        } else if waits {
            Step::Wait(None)
        } else if presence.watchers.hit(self.id).is_some() || matches!(self.phase, Phase::Parts | Phase::Missed { .. })
        {
            Step::Again
        } else {
            Step::Wait((self.phase == Phase::Settle).then_some(settled_at))
        }
    }

    /// Grants what a cursor asks for, or doesn't.
    fn resume(&mut self, presence: &mut Presence, log: u64, place: u64) {
        // It knows something: what it misses from here on has to be told.
        self.fresh = false;
        let Presence { ring, watchers, .. } = presence;
        if log != self.log || place < ring.floor() || place > ring.folded() {
            self.phase = Phase::Reset;
            return;
        }
        self.next = ring.index_after(place);
        self.place = place;
        self.parts = PARTS;
        self.resumable = true;
        self.phase = Phase::Missed { end: ring.end() };
        watchers.set_hit(self.id, (self.next < ring.end()).then_some(self.next));
    }

    /// Called where nothing is taken: what was taken is told before it is known whether it fell behind.
    fn reset(&mut self, presence: &mut Presence, born: Millis) -> Step {
        self.phase = Phase::Parts;
        self.parts = 0;
        self.looked_up = 0;
        self.resumable = false;
        self.begin_at_end(presence);
        Step::Tell(vec![PresenceEvent::Reset { since: born }])
    }

    fn begin_at_end(&mut self, presence: &mut Presence) {
        self.next = presence.ring.end();
        self.inside = 0;
        self.place = presence.ring.folded();
        presence.watchers.set_hit(self.id, None);
    }

    /// Passes over the changes that don't concern it.
    fn catch_up(&mut self, presence: &Presence) {
        let next = presence.watchers.hit(self.id).unwrap_or(presence.ring.end());
        if next > self.next {
            (self.next, self.inside) = (next, 0);
        }
    }

    /// Reads changes before the one with the index `end`, and notes where it stopped.
    fn read(&mut self, presence: &mut Presence, end: u64, events: &mut Vec<PresenceEvent>) {
        let Presence { ring, watchers, .. } = presence;
        let mut looks = 0;
        while self.next < end && events.len() < self.limits.events && looks < self.limits.looks {
            let told = ring.get(self.next).expect("it is within the history: the caller has checked");
            if let Some(uid) = told.uids().get(self.inside) {
                let known = self.parts == PARTS || part_of(uid.as_str()) < self.parts;
                if known && (self.filter.is_empty() || watchers.follows(self.id, uid)) {
                    events.push(PresenceEvent::Change(told.change(self.inside)));
                }
                self.inside += 1;
                looks += 1;
            }
            if self.inside >= told.uids().len() {
                (self.next, self.inside) = (self.next + 1, 0);
            }
        }
        self.place = ring.place_before(self.next);
        watchers.set_hit(self.id, (self.next < ring.end()).then_some(self.next));
    }

    /// Takes parts of the snapshot as they are now, until there is enough to tell.
    fn take_parts(&mut self, state: &State) {
        let mut looks = 0;
        while self.parts < PARTS && self.taken.len() < self.limits.events && looks < self.limits.looks {
            if self.filter.is_empty() {
                let part = state.directory.part(self.parts);
                self.taken.extend(part.map(|entry| snapshot_of(state, entry)));
            }
            while let Some(uid) = self.filter.get(self.looked_up).filter(|uid| part_of(uid.as_str()) == self.parts) {
                self.taken.extend(state.directory.get(uid.as_str()).map(|entry| snapshot_of(state, entry)));
                self.looked_up += 1;
                looks += 1;
            }
            self.parts += 1;
        }
    }
}

fn snapshot_of(state: &State, entry: &Entry) -> PresenceEvent {
    PresenceEvent::Snapshot {
        uid: entry.uid().clone(),
        epoch: entry.epoch(),
        since: entry.since(),
        node: state.node(entry.newest().node).name.clone(),
    }
}
