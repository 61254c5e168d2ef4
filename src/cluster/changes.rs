//! The history of changes, and who waits for which of them.

use std::{collections::VecDeque, mem, task::Waker};

use hashbrown::{HashMap, hash_map::EntryRef};

use crate::model::Uid;

use super::fold::Told;

/// The last changes, `history` of them, oldest first. Each has an index, from 0 for the first since the start.
#[derive(Debug)]
pub(crate) struct Ring {
    told: VecDeque<Told>,
    /// The index of the oldest that is kept.
    first: u64,
    /// Every change above this place is kept.
    floor: u64,
    /// The place up to which the log is folded.
    folded: u64,
    history: usize,
    /// The index of the first since it was last forgotten.
    voided: u64,
}

impl Ring {
    /// Begins behind the place `folded`.
    pub(crate) fn new(history: usize, folded: u64) -> Self {
        Self { told: VecDeque::new(), first: 0, floor: folded, folded, history: history.max(1), voided: 0 }
    }

    /// Adds a change; gives the one that is kept no longer, where dropping it may take long.
    #[must_use]
    pub(crate) fn push(&mut self, change: Told) -> Option<Told> {
        let mut spent = None;
        if self.told.len() == self.history {
            let oldest = self.told.pop_front().expect("a history holds at least one");
            self.floor = oldest.epoch();
            self.first += 1;
            spent = Some(oldest).filter(|oldest| matches!(oldest, Told::Death(_)));
        } else if self.told.len() == self.told.capacity() {
            // Doubles, but not over what it may ever hold.
            let more = self.told.len().max(64).min(self.history - self.told.len());
            self.told.reserve_exact(more);
        }
        self.told.push_back(change);
        spent
    }

    /// Forgets all: who has read up to here can't go on from here. Begins anew behind `place`. Gives what it has
    /// forgotten: dropping it may take long.
    #[must_use]
    pub(crate) fn void(&mut self, place: u64) -> VecDeque<Told> {
        self.first = self.end() + 1;
        self.voided = self.first;
        (self.floor, self.folded) = (place, place);
        mem::take(&mut self.told)
    }

    /// Says that the log is folded up to `place`.
    pub(crate) fn folded_to(&mut self, place: u64) {
        self.folded = place;
    }

    pub(crate) fn folded(&self) -> u64 {
        self.folded
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// The index with which it began anew, when it last had to.
    pub(crate) fn voided(&self) -> u64 {
        self.voided
    }

    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// The index of the next change to come.
    pub(crate) fn end(&self) -> u64 {
        self.first + self.told.len() as u64
    }

    /// The change with that index, if it is kept.
    pub(crate) fn get(&self, index: u64) -> Option<&Told> {
        self.told.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    /// The index of the first change above `place`, which isn't below the floor.
    pub(crate) fn index_after(&self, place: u64) -> u64 {
        self.first + self.told.partition_point(|told| told.epoch() <= place) as u64
    }

    /// The place of who has been told everything before the change with that index.
    pub(crate) fn place_before(&self, index: u64) -> u64 {
        self.get(index).map_or(self.folded, |told| told.epoch() - 1)
    }
}

/// Names one of the [`Watchers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WatcherId(u32);

/// Who waits for which changes. A change costs one look-up and what it takes to wake those whom it concerns, however
/// many others watch: a watcher of few isn't woken, and doesn't read the history, for the changes of others.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    seats: Vec<Seat>,
    free: Vec<WatcherId>,
    everyone: Vec<WatcherId>,
    /// Those who wait for any message at all, once.
    any: Vec<WatcherId>,
    by_uid: HashMap<Uid, Vec<WatcherId>>,
    /// Those whom the end of a node concerns that is folded in part, as far as it is, and who came since it began.
    concerned: Option<Vec<WatcherId>>,
}

#[derive(Debug, Default)]
struct Seat {
    /// The index of the first change that concerns it and that it hasn't read.
    hit: Option<u64>,
    waker: Option<Waker>,
    /// It is among the [`Watchers::concerned`].
    concerned: bool,
}

impl Watchers {
    /// Lets a watcher in, for everyone or for those whom [`Watchers::follow`] adds.
    pub(crate) fn enter(&mut self, everyone: bool) -> WatcherId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.seats.push(Seat::default());
            WatcherId(u32::try_from(self.seats.len() - 1).expect("fewer streams than 2³²"))
        });
        if everyone {
            self.everyone.push(id);
        }
        id
    }

    /// Adds to whom a watcher follows, each uid once.
    pub(crate) fn follow(&mut self, id: WatcherId, uids: &[Uid]) {
        for uid in uids {
            match self.by_uid.entry_ref(uid) {
                EntryRef::Occupied(mut watchers) => watchers.get_mut().push(id),
                EntryRef::Vacant(vacant) => _ = vacant.insert(vec![id]),
            }
        }
        if let Some(concerned) = &mut self.concerned {
            // Of those whom it follows some may have gone, which is still to be told.
            concern(concerned, &mut self.seats, id);
        }
    }

    /// Takes back what [`Watchers::follow`] added.
    pub(crate) fn unfollow(&mut self, id: WatcherId, uids: &[Uid]) {
        for uid in uids {
            if let EntryRef::Occupied(mut watchers) = self.by_uid.entry_ref(uid) {
                watchers.get_mut().retain(|other| *other != id);
                if watchers.get().is_empty() {
                    watchers.remove();
                }
            }
        }
        if self.by_uid.is_empty() {
            self.by_uid.shrink_to_fit();
        }
    }

    /// Lets a watcher go, after it follows nobody.
    pub(crate) fn leave(&mut self, id: WatcherId) {
        self.everyone.retain(|other| *other != id);
        self.any.retain(|other| *other != id);
        if let Some(concerned) = &mut self.concerned {
            concerned.retain(|other| *other != id);
        }
        *self.seat(id) = Seat::default();
        self.free.push(id);
    }

    /// Whether a watcher that doesn't watch everyone follows `uid`.
    pub(crate) fn follows(&self, id: WatcherId, uid: &Uid) -> bool {
        self.by_uid.get(uid).is_some_and(|watchers| watchers.contains(&id))
    }

    /// The first change that concerns it and that it hasn't read.
    pub(crate) fn hit(&self, id: WatcherId) -> Option<u64> {
        self.seats[id.0 as usize].hit
    }

    /// Says what a watcher has yet to read: from that change on, or nothing.
    pub(crate) fn set_hit(&mut self, id: WatcherId, hit: Option<u64>) {
        self.seat(id).hit = hit;
    }

    /// Has a watcher woken at the next message, whatever it says.
    pub(crate) fn await_any(&mut self, id: WatcherId) {
        self.seat(id).hit = None;
        if !self.any.contains(&id) {
            self.any.push(id);
        }
    }

    /// Has `waker` woken at the next change that concerns the watcher; true where one has already come. While they
    /// aren't `open`, no change is worth waking for.
    pub(crate) fn poll(&mut self, id: WatcherId, waker: &Waker, open: bool) -> bool {
        let seat = self.seat(id);
        if seat.hit.is_none() || !open {
            match &mut seat.waker {
                Some(old) => old.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
        seat.hit.is_some() && open
    }

    /// Says that the end of a node is folded in part.
    pub(crate) fn gather(&mut self) {
        self.concerned.get_or_insert_default();
    }

    /// Says that `uid` goes offline by the end of a node, which is told, and noted, once all of it is folded.
    pub(crate) fn gather_of(&mut self, uid: &Uid) {
        let Self { seats, by_uid, concerned, .. } = self;
        // Hashes nothing where nobody follows anybody.
        for id in by_uid.get(uid).into_iter().flatten() {
            concern(concerned.get_or_insert_default(), seats, *id);
        }
    }

    /// Notes the change with that index; those to wake are added to `wakers`. Whom the end of a node concerns has been
    /// gathered.
    pub(crate) fn note(&mut self, index: u64, told: &Told, wakers: &mut Vec<Waker>) {
        let Self { seats, everyone, by_uid, concerned, .. } = self;
        let followers = match told {
            Told::One(change) => by_uid.get(&change.uid),
            Told::Death(_) => concerned.as_ref(),
        };
        for id in everyone.iter().chain(followers.into_iter().flatten()) {
            seats[id.0 as usize].note(index, wakers);
        }
    }

    /// Notes that a message came, all of which is folded; `end` is the index of the next change.
    pub(crate) fn note_any(&mut self, end: u64, wakers: &mut Vec<Waker>) {
        for id in self.concerned.take().into_iter().flatten() {
            self.seat(id).concerned = false;
        }
        for id in self.any.drain(..) {
            self.seats[id.0 as usize].note(end, wakers);
        }
    }

    /// Notes for all that they can't go on: whatever they have read is forgotten.
    pub(crate) fn note_all(&mut self, wakers: &mut Vec<Waker>) {
        self.seats.iter_mut().for_each(|seat| seat.note(0, wakers));
    }

    /// Wakes all, whatever has come.
    pub(crate) fn wake_all(&mut self, wakers: &mut Vec<Waker>) {
        wakers.extend(self.seats.iter_mut().filter_map(|seat| seat.waker.take()));
    }

    fn seat(&mut self, id: WatcherId) -> &mut Seat {
        &mut self.seats[id.0 as usize]
    }
}

fn concern(concerned: &mut Vec<WatcherId>, seats: &mut [Seat], id: WatcherId) {
    if !std::mem::replace(&mut seats[id.0 as usize].concerned, true) {
        concerned.push(id);
    }
}

impl Seat {
    fn note(&mut self, index: u64, wakers: &mut Vec<Waker>) {
        if self.hit.is_none() {
            self.hit = Some(index);
            wakers.extend(self.waker.take());
        }
    }
}
