//! A part of the directory. A hash table of entries leaves from an eighth to over a half of its room unused, by how many
//! there are; here that concerns four bytes of each, and the entries lie dense.

use std::{hash::BuildHasher, mem};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table};

use super::Entry;

/// How many entries lie together: as many bytes as an allocator has a size for.
const CHUNK: usize = 64;
#[cfg(test)]
pub(super) const CHUNK_BYTES: usize = CHUNK * size_of::<Entry>();

/// The table is made smaller when less than this share of it is used, so that a storm's peak doesn't stay.
const SHRINK_BELOW: usize = 8;
/// Below this many places a table isn't worth shrinking.
const SHRINK_FROM: usize = 64;

#[derive(Debug, Clone, Default)]
pub(super) struct Part {
    /// Where each uid's entry is.
    places: HashTable<u32>,
    entries: Entries,
}

/// Entries by their place. All chunks but the last are full.
#[derive(Debug, Clone, Default)]
struct Entries(Vec<Vec<Entry>>);

/// What [`Part::get_or_insert`] found.
pub(super) enum Found<'a> {
    New,
    Old(&'a mut Entry),
}

impl Part {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &Entry> {
        (0..self.len()).map(|place| self.entries.at(place as u32))
    }

    pub(super) fn get(&self, uid: &str, hasher: &DefaultHashBuilder) -> Option<&Entry> {
        let Self { places, entries } = self;
        let place = places.find(hasher.hash_one(uid), |place| entries.at(*place).uid.as_str() == uid)?;
        Some(entries.at(*place))
    }

    /// Puts an entry in whose uid isn't there.
    pub(super) fn insert(&mut self, entry: Entry, hasher: &DefaultHashBuilder) {
        let Self { places, entries } = self;
        let hash = hasher.hash_one(entry.uid.as_str());
        let place = entries.push(entry, places.len());
        places.insert_unique(hash, place, |place| entries.hash(*place, hasher));
    }

    pub(super) fn get_or_insert(
        &mut self,
        uid: &str,
        new: impl FnOnce() -> Entry,
        hasher: &DefaultHashBuilder,
    ) -> Found<'_> {
        let Self { places, entries } = self;
        let count = places.len();
        let found = places.entry(
            hasher.hash_one(uid),
            |place| entries.at(*place).uid.as_str() == uid,
            |place| entries.hash(*place, hasher),
        );
        match found {
            hash_table::Entry::Occupied(place) => Found::Old(entries.at_mut(*place.get())),
            hash_table::Entry::Vacant(vacant) => {
                vacant.insert(entries.push(new(), count));
                Found::New
            }
        }
    }

    /// Removes the entry of `uid` where `goes` says so; tells whether it has.
    pub(super) fn remove_if(
        &mut self,
        uid: &str,
        goes: impl FnOnce(&mut Entry) -> bool,
        hasher: &DefaultHashBuilder,
    ) -> bool {
        let Self { places, entries } = self;
        let found = places.find(hasher.hash_one(uid), |place| entries.at(*place).uid.as_str() == uid);
        let Some(place) = found.copied() else { return false };
        let goes = goes(entries.at_mut(place));
        if goes {
            self.remove(place, hasher);
            self.shrink(hasher);
        }
        goes
    }

    /// Removes all for which `goes` says so; `each` gets them.
    pub(super) fn extract_if(
        &mut self,
        mut goes: impl FnMut(&mut Entry) -> bool,
        mut each: impl FnMut(Entry),
        hasher: &DefaultHashBuilder,
    ) {
        let mut place = 0;
        while (place as usize) < self.len() {
            if goes(self.entries.at_mut(place)) {
                each(self.remove(place, hasher));
            } else {
                place += 1;
            }
        }
        self.shrink(hasher);
    }

    /// The last one takes the place of the one that goes.
    fn remove(&mut self, place: u32, hasher: &DefaultHashBuilder) -> Entry {
        let Self { places, entries } = self;
        let last = (places.len() - 1) as u32;
        let own = places.find_entry(entries.hash(place, hasher), |held| *held == place);
        own.expect("each entry has its place").remove();
        if place == last {
            return entries.pop();
        }
        let moved = places.find_mut(entries.hash(last, hasher), |held| *held == last);
        *moved.expect("each entry has its place") = place;
        let moved = entries.pop();
        mem::replace(entries.at_mut(place), moved)
    }

    fn shrink(&mut self, hasher: &DefaultHashBuilder) {
        let Self { places, entries } = self;
        if places.capacity() > SHRINK_FROM && places.len() * SHRINK_BELOW < places.capacity() {
            places.shrink_to(places.len() * 2, |place| entries.hash(*place, hasher));
            entries.0.shrink_to_fit();
        }
    }

    /// What it takes, without the texts of its uids.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let chunks: usize = self.entries.0.iter().map(|chunk| chunk.capacity() * size_of::<Entry>()).sum();
        self.places.allocation_size() + self.entries.0.capacity() * size_of::<Vec<Entry>>() + chunks
    }
}

impl Entries {
    fn at(&self, place: u32) -> &Entry {
        &self.0[place as usize / CHUNK][place as usize % CHUNK]
    }

    fn at_mut(&mut self, place: u32) -> &mut Entry {
        &mut self.0[place as usize / CHUNK][place as usize % CHUNK]
    }

    fn hash(&self, place: u32, hasher: &DefaultHashBuilder) -> u64 {
        hasher.hash_one(self.at(place).uid.as_str())
    }

    /// Puts one behind the `count` that are there; gives its place.
    fn push(&mut self, entry: Entry, count: usize) -> u32 {
        if count.is_multiple_of(CHUNK) {
            self.0.push(Vec::with_capacity(CHUNK));
        }
        self.0.last_mut().expect("there is one with room").push(entry);
        u32::try_from(count).expect("a part has fewer than 2³² uids")
    }

    /// Takes the last one out.
    fn pop(&mut self) -> Entry {
        let chunk = self.0.last_mut().expect("there is an entry");
        let last = chunk.pop().expect("a chunk without entries is removed");
        if chunk.is_empty() {
            self.0.pop();
        }
        last
    }
}
