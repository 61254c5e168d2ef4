//! The authenticated connections of this node, by uid.

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use hashbrown::{DefaultHashBuilder, HashTable};
use tokio::time::Instant;

use super::connection::Connection;
use crate::model::{ConnectionNumber, Uid};

/// Locks that the uids are spread over: enough that two threads seldom meet.
pub(super) const SHARDS: usize = 64;

/// How far back replacements of one uid are counted.
const REPLACES_WINDOW: Duration = Duration::from_secs(60);

/// All connections. A connection is its own entry, so that nothing is held twice: several of one uid share its hash.
pub(super) struct Registry {
    hasher: DefaultHashBuilder,
    shards: [Mutex<Shard>; SHARDS],
}

/// The uids of one lock.
#[derive(Default)]
pub(super) struct Shard {
    connections: HashTable<Arc<Connection>>,
    replaced: HashMap<Uid, Replaced>,
    /// Above this many entries those that are over are looked for.
    replaced_swept_at: usize,
}

/// When connections of one uid were replaced, in the last minute.
#[derive(Default)]
struct Replaced {
    at: VecDeque<Instant>,
    logged: Option<Instant>,
}

/// The connections of one uid: none, one, or (rarely) more.
pub(super) struct Found {
    first: Option<Arc<Connection>>,
    more: Vec<Arc<Connection>>,
}

impl Found {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.first.iter().chain(&self.more)
    }
}

impl Registry {
    pub(super) fn new() -> Self {
        Self { hasher: DefaultHashBuilder::default(), shards: std::array::from_fn(|_| Mutex::default()) }
    }

    fn hash(&self, uid: &str) -> u64 {
        self.hasher.hash_one(uid)
    }

    /// Locks the shard of a uid. Nothing waits, and nothing is written, while it is held; the presence log's and an
    /// outbox's lock may be taken inside.
    pub(super) fn lock(&self, uid: &str) -> (MutexGuard<'_, Shard>, u64) {
        let hash = self.hash(uid);
        // The table takes the hash's low and top bits.
        (self.shard((hash >> 32) as usize % SHARDS), hash)
    }

    /// Locks one shard by its place, 0 to [`SHARDS`] - 1.
    pub(super) fn shard(&self, place: usize) -> MutexGuard<'_, Shard> {
        self.shards[place].lock().expect("nothing panics while it holds a shard")
    }

    /// The connections of a uid now.
    pub(super) fn find(&self, uid: &str) -> Found {
        let (shard, hash) = self.lock(uid);
        let mut all = shard.of(uid, hash);
        Found { first: all.next().cloned(), more: all.cloned().collect() }
    }

    pub(super) fn insert(&self, shard: &mut Shard, hash: u64, connection: Arc<Connection>) {
        shard.connections.insert_unique(hash, connection, |other| self.hash(other.uid.as_str()));
    }

    /// Removes exactly this connection, never a newer one of the uid. Gives memory back after a storm.
    pub(super) fn remove(&self, shard: &mut Shard, hash: u64, uid: &Uid, number: ConnectionNumber) -> bool {
        let table = &mut shard.connections;
        let Ok(entry) = table.find_entry(hash, |other| other.number == number && other.uid == *uid) else {
            return false;
        };
        entry.remove();
        if table.capacity() > 64 && table.len() < table.capacity() / 4 {
            table.shrink_to(table.len() * 2, |other| self.hash(other.uid.as_str()));
        }
        true
    }
}

impl Shard {
    /// The connections of a uid, in no order.
    pub(super) fn of(&self, uid: &str, hash: u64) -> impl Iterator<Item = &Arc<Connection>> {
        self.connections.iter_hash(hash).filter(move |connection| connection.uid.as_str() == uid)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Connection>> {
        self.connections.iter()
    }

    /// Notes that a connection of the uid was replaced.
    pub(super) fn note_replaced(&mut self, uid: &Uid, replaces_per_minute: usize) {
        let now = Instant::now();
        if self.replaced.len() >= self.replaced_swept_at {
            self.replaced.retain(|_, replaced| {
                replaced.forget_before(now);
                !replaced.at.is_empty()
            });
            self.replaced_swept_at = (self.replaced.len() * 2).max(64);
        }
        let replaced = self.replaced.entry(uid.clone()).or_default();
        replaced.forget_before(now);
        if replaced.at.len() > replaces_per_minute {
            replaced.at.pop_front();
        }
        replaced.at.push_back(now);
    }

    /// Whether more than `replaces_per_minute` connections of the uid were replaced in the last minute, and the next
    /// login `would_replace` one; and whether that is to be logged now, once a minute.
    pub(super) fn replaced_too_often(
        &mut self,
        uid: &str,
        replaces_per_minute: usize,
        would_replace: impl FnOnce() -> bool,
    ) -> Option<LogIt> {
        let now = Instant::now();
        let replaced = self.replaced.get_mut(uid)?;
        replaced.forget_before(now);
        if replaced.at.len() <= replaces_per_minute || !would_replace() {
            return None;
        }
        let quiet = replaced.logged.is_some_and(|at| now.duration_since(at) < REPLACES_WINDOW);
        if !quiet {
            replaced.logged = Some(now);
        }
        Some(LogIt(!quiet))
    }
}

/// Whether a line is due.
pub(super) struct LogIt(pub(super) bool);

impl Replaced {
    fn forget_before(&mut self, now: Instant) {
        while self.at.front().is_some_and(|at| now.duration_since(*at) >= REPLACES_WINDOW) {
            self.at.pop_front();
        }
    }
}
