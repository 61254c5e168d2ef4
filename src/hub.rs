//! Who is connected to this node, and pushes to them.
//!
//! The hub knows no socket, no JSON and no gRPC: a connection is a [`Wire`] that takes bytes, a frame is made by the
//! encoder that it was given. What this node's connections mean for the presence of their uids it tells the
//! [`Cluster`]; what other nodes ask of it comes through [`Hub::run`].
//!
//! Lock order: a shard of the registry, then the presence log, then an outbox. Claims and releases of a uid are
//! written while its shard is held, so the log has them in the order in which the registry changed.

pub(crate) mod connection;
mod elsewhere;
mod pushing;
mod registry;
#[cfg(test)]
mod tests;
mod unresolved;
pub(crate) mod wait;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use rand::RngExt;
use tokio::{sync::Semaphore, time::Instant};

pub(crate) use self::pushing::{Ack, Pushed};
use self::{
    connection::{Connection, Wire},
    registry::{Registry, SHARDS},
};
use crate::{
    cluster::Cluster,
    model::{ConnectionNumber, EndReason, Millis, Push, PushStatus, Session, Uid},
    state::Numbers,
    telemetry::Metrics,
};

/// Sessions handed on at a time.
const SESSIONS_PAGE: usize = 1_000;

/// A uid that is replaced too often waits a random time in this range, in milliseconds.
const REPLACE_DELAY_MS: std::ops::RangeInclusive<u64> = 1_000..=30_000;

/// Turns a push with its seq into the bytes of a frame, which it appends.
pub(crate) type Encode = fn(i64, Push<'_>, &mut Vec<u8>);

/// What the hub keeps to.
#[derive(Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) encode: Encode,
    pub(crate) connections_per_uid: usize,
    pub(crate) replaces_per_minute: usize,
    pub(crate) queue_bytes_max: usize,
    pub(crate) ack_waits_max: usize,
}

/// The connections of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Hub(Arc<Inner>);

struct Inner {
    settings: Settings,
    registry: Registry,
    cluster: Cluster,
    numbers: Numbers,
    metrics: Metrics,
    next_connection: AtomicU32,
    connections: AtomicUsize,
    ack_waits: Arc<Semaphore>,
    draining: AtomicBool,
    unresolved: unresolved::Unresolved,
    /// The numbers of the latest PushManys of which a part came, or may come, by another node.
    many: Mutex<VecDeque<(u64, i64)>>,
}

impl Hub {
    pub(crate) fn new(settings: Settings, cluster: Cluster, numbers: Numbers, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            settings,
            registry: Registry::new(),
            cluster,
            numbers,
            metrics,
            next_connection: AtomicU32::new(1),
            connections: AtomicUsize::new(0),
            ack_waits: Arc::new(Semaphore::new(settings.ack_waits_max)),
            draining: AtomicBool::new(false),
            unresolved: unresolved::Unresolved::default(),
            many: Mutex::default(),
        }))
    }

    /// Presence, over all nodes.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.0.cluster
    }

    /// Since when, and by how many connections, this node holds a uid; `None` where it doesn't.
    pub(crate) fn held_here(&self, uid: &str) -> Option<(Millis, u32)> {
        let found = self.0.registry.find(uid);
        let accepted: Vec<_> = found.iter().map(|connection| connection.connected_at()).collect();
        Some((accepted.iter().min().copied()?, u32::try_from(accepted.len()).unwrap_or(u32::MAX)))
    }

    /// The most connections that a uid may have.
    pub(crate) fn connections_per_uid(&self) -> u32 {
        u32::try_from(self.0.settings.connections_per_uid).unwrap_or(u32::MAX)
    }

    /// How many authenticated connections this node holds.
    pub(crate) fn connections(&self) -> usize {
        self.0.connections.load(Relaxed)
    }

    /// The places for pushes that wait for an answer.
    pub(crate) fn ack_waits(&self) -> &Arc<Semaphore> {
        &self.0.ack_waits
    }

    /// How long a login that would replace another connection of its uid, on whatever node, has to wait: nothing, unless
    /// more than `replaces_per_minute` of them were replaced at this node in the last minute.
    pub(crate) fn replace_delay(&self, uid: &Uid) -> Option<Duration> {
        let Settings { connections_per_uid, replaces_per_minute, .. } = self.0.settings;
        if replaces_per_minute == 0 {
            return None;
        }
        let (mut shard, hash) = self.0.registry.lock(uid.as_str());
        let here = shard.of(uid.as_str(), hash).count();
        let would_replace = || here + self.held_by_others(uid.as_str()) >= connections_per_uid;
        let log = shard.replaced_too_often(uid.as_str(), replaces_per_minute, would_replace)?;
        drop(shard);
        let delay = Duration::from_millis(rand::rng().random_range(REPLACE_DELAY_MS));
        self.0.metrics.logins_slowed.inc();
        if log.0 {
            tracing::warn!(%uid, replaces_per_minute, "connections of one uid replace each other: slowed");
        }
        Some(delay)
    }

    /// How many connections of a uid other nodes hold, as far as is known.
    fn held_by_others(&self, uid: &str) -> usize {
        let mut held = 0;
        self.0.cluster.presence_of([uid], |presence| {
            held = presence.map_or(0, |presence| presence.connections - presence.held_by(self.0.cluster.name()));
        });
        held as usize
    }

    /// Makes a connection known: from now on pushes reach it, behind `success`, its first frame. Where the uid holds
    /// all the connections that it may, the oldest is replaced in the same step.
    pub(crate) fn register<W: Wire + 'static>(
        &self,
        uid: Uid,
        remote: SocketAddr,
        dialect: u8,
        success: Bytes,
        wire: W,
    ) -> Registered<W> {
        let Inner { registry, settings, cluster, metrics, .. } = &*self.0;
        let number = self.next_number();
        // The log's clock: the machine's may go back, and the login look older than those before it.
        let accepted = cluster.now();
        let connection = Arc::new(Connection::new(uid.clone(), number, remote, dialect, success, accepted, wire));

        let (mut shard, hash) = registry.lock(uid.as_str());
        let mut replaced = None;
        if shard.of(uid.as_str(), hash).count() >= settings.connections_per_uid {
            let oldest = shard.of(uid.as_str(), hash).min_by_key(|other| (other.connected_at(), other.number)).cloned();
            if let Some(oldest) = oldest
                && let Some(ended) = oldest.end(EndReason::Replaced)
            {
                registry.remove(&mut shard, hash, &uid, oldest.number);
                shard.note_replaced(&uid, settings.replaces_per_minute);
                replaced = Some((oldest, ended));
            }
        }
        registry.insert(&mut shard, hash, Arc::clone(&connection) as Arc<Connection>);
        cluster.claim(&uid, number, replaced.as_ref().map(|(oldest, _)| oldest.number), accepted);
        if replaced.is_none() {
            // Before it can end.
            self.0.connections.fetch_add(1, Relaxed);
        }
        drop(shard);

        metrics.connections_opened.inc();
        if let Some((_, ended)) = replaced {
            metrics.ended(EndReason::Replaced);
            ended.settle();
        }
        Registered { hub: self.clone(), connection }
    }

    fn next_number(&self) -> ConnectionNumber {
        loop {
            let number = self.0.next_connection.fetch_add(1, Relaxed);
            // 0 means "none" in the log.
            if number != 0 {
                return ConnectionNumber(number);
            }
        }
    }

    /// Ends a connection, once: from now on it takes no push, its waits are lost, presence has its release. Its task
    /// is woken and closes the wire. Tells whether this call ended it.
    pub(crate) fn end<W: Wire + ?Sized>(&self, connection: &Connection<W>, reason: EndReason) -> bool {
        let Inner { registry, cluster, metrics, .. } = &*self.0;
        let uid = &connection.uid;
        let (mut shard, hash) = registry.lock(uid.as_str());
        let Some(ended) = connection.end(reason) else { return false };
        registry.remove(&mut shard, hash, uid, connection.number);
        if reason == EndReason::Replaced {
            // By another node's: one of this node's is replaced as its successor registers.
            shard.note_replaced(uid, self.0.settings.replaces_per_minute);
        }
        cluster.release(uid, connection.number, reason);
        drop(shard);
        self.0.connections.fetch_sub(1, Relaxed);
        metrics.ended(reason);
        ended.settle();
        true
    }

    /// The device answered the push `seq`. Tells whether a push waited for it.
    pub(crate) fn answered<W: Wire + ?Sized>(
        &self,
        connection: &Connection<W>,
        seq: i64,
        status: PushStatus,
        reply: &str,
    ) -> bool {
        connection.take_wait(seq).is_some_and(|wait| wait.resolve(status, reply.to_owned()))
    }

    /// Ends all connections of a uid that this node holds. Returns how many.
    pub(crate) fn disconnect_here(&self, uid: &str, reason: &str) -> u32 {
        let mut count = 0;
        for connection in self.0.registry.find(uid).iter() {
            if self.end(connection, EndReason::Disconnected) {
                tracing::info!(%uid, number = connection.number.0, reason, "disconnected by a backend");
                count += 1;
            }
        }
        count
    }

    /// Ends all connections of a uid for a reason of the test's choice.
    #[cfg(test)]
    pub(crate) fn end_here(&self, uid: &str, reason: EndReason) {
        for connection in self.0.registry.find(uid).iter() {
            self.end(connection, reason);
        }
    }

    /// The sessions of one uid, or of all, that this node holds: a page after the other. Between two pages no
    /// connection is kept alive.
    pub(crate) fn sessions_here(&self, uid: Option<String>) -> impl Iterator<Item = Vec<Session>> + use<> {
        let (here, shards) = (self.clone(), if uid.is_some() { 0..0 } else { 0..SHARDS });
        let hub = self.clone();
        let weak = |connections: &mut dyn Iterator<Item = &Arc<Connection>>| -> Vec<_> {
            connections.map(Arc::downgrade).collect()
        };
        let one = uid.map(|uid| weak(&mut hub.0.registry.find(&uid).iter()));
        let all = shards.map(move |shard| weak(&mut hub.0.registry.shard(shard).all()));
        one.into_iter()
            .chain(all)
            .flat_map(|connections| connections.chunks(SESSIONS_PAGE).map(<[_]>::to_vec).collect::<Vec<_>>())
            .map(move |page| {
                let alive = page.iter().filter_map(Weak::upgrade).filter(|connection| !connection.has_ended());
                alive.map(|connection| here.session(&connection)).collect()
            })
    }

    fn session(&self, connection: &Connection) -> Session {
        Session {
            uid: connection.uid.clone(),
            number: connection.number,
            epoch: self.0.cluster.epoch_of(connection.uid.as_str(), connection.number).unwrap_or(0),
            node: self.0.cluster.name().clone(),
            remote_address: connection.remote.to_string(),
            connected_at: connection.connected_at(),
            last_seen: connection.last_seen(),
            queued_bytes: connection.queued_bytes() as u64,
            pushes_sent: connection.pushes_sent(),
            pushes_dropped: connection.pushes_dropped(),
            dialect: connection.dialect(),
        }
    }

    /// Whether this node is stopping.
    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.load(Relaxed)
    }

    /// From now on no host answer names this node.
    pub(crate) fn start_draining(&self) {
        self.0.draining.store(true, Relaxed);
    }

    /// Ends every connection as `draining`, `rate` a second, more where that wouldn't do `within` the time.
    pub(crate) async fn drain(&self, rate: u32, within: Duration) {
        const STEP: Duration = Duration::from_millis(20);
        let all: Vec<_> = (0..SHARDS)
            .flat_map(|shard| self.0.registry.shard(shard).all().map(Arc::downgrade).collect::<Vec<_>>())
            .collect();
        let needed = all.len() as f64 / within.as_secs_f64().max(STEP.as_secs_f64());
        let rate = f64::from(rate).max(needed);
        let begun = Instant::now();
        let mut told = 0;
        let mut rest = all.into_iter().peekable();
        loop {
            let due = ((rate * (begun.elapsed() + STEP).as_secs_f64()) as usize).max(1);
            // Those that went by themselves take nobody's turn.
            let has_gone = |weak: &Weak<Connection>| weak.upgrade().is_none_or(|connection| connection.has_ended());
            while let Some(weak) = rest.next_if(|weak| told < due || has_gone(weak)) {
                let ended = weak.upgrade().is_some_and(|connection| self.end(&*connection, EndReason::Draining));
                told += usize::from(ended);
            }
            if rest.peek().is_none() {
                return;
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

/// A connection that the hub knows. Dropping it ends the connection, if nothing else has: an aborted task too goes
/// offline.
pub(crate) struct Registered<W: Wire> {
    hub: Hub,
    pub(crate) connection: Arc<Connection<W>>,
}

impl<W: Wire> Registered<W> {
    pub(crate) fn end(&self, reason: EndReason) -> bool {
        self.hub.end(&*self.connection, reason)
    }
}

impl<W: Wire> Drop for Registered<W> {
    fn drop(&mut self) {
        self.end(EndReason::Closed);
    }
}
