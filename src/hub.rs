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
mod registry;
#[cfg(test)]
mod tests;
mod unresolved;
pub(crate) mod wait;

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use rand::RngExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

pub(crate) use self::elsewhere::Elsewhere;
use self::{
    connection::{Connection, Frame, Taken, Wire},
    registry::{Found, Registry, SHARDS},
    wait::{Wait, Waiting},
};
use crate::{
    cluster::{Cluster, ForwardedPush},
    model::{ConnectionNumber, EndReason, Millis, Push, PushOutcome, PushStatus, Session, Uid},
    state::Numbers,
    telemetry::Metrics,
};

/// Sessions handed on at a time.
const SESSIONS_PAGE: usize = 1_000;

/// Connections that a broadcast reaches before it lets others run.
const BROADCAST_SLICE: usize = 512;

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

/// What became of a push, as far as it is known when [`Hub::push`] returns.
#[must_use]
pub(crate) enum Pushed {
    /// The outcome.
    Done(PushOutcome),
    /// The device's answer is waited for.
    Waiting(Waiting),
    /// Other nodes have to be asked.
    Elsewhere(Elsewhere),
}

/// How a push with `ack_timeout` waits: until when, and by which place among `control.ack_waits`.
pub(crate) struct Ack {
    pub(crate) deadline: Instant,
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

impl Pushed {
    /// What becomes of it.
    pub(crate) async fn outcome(self) -> PushOutcome {
        match self {
            Self::Done(outcome) => outcome,
            Self::Waiting(waiting) => waiting.await,
            Self::Elsewhere(elsewhere) => elsewhere.outcome().await,
        }
    }

    /// Whether nobody took it, as this node holds no connection of the uid.
    fn is_offline(&self) -> bool {
        matches!(self, Self::Done(outcome) if outcome.status == PushStatus::Offline)
    }

    /// Keeps a place for as long as the outcome is waited for.
    fn holding(self, place: Option<OwnedSemaphorePermit>) -> Self {
        match (self, place) {
            (Self::Waiting(mut waiting), place) => {
                waiting._place = place;
                Self::Waiting(waiting)
            }
            (Self::Elsewhere(elsewhere), Some(place)) => Self::Elsewhere(elsewhere.holding(place)),
            (other, _) => other,
        }
    }
}

thread_local! {
    /// The frame of the push that this thread is at: no allocation for a push.
    static FRAME: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A frame buffer larger than this is given back.
const FRAME_KEPT_BYTES: usize = 256 * 1024;

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

    /// Pushes to all connections of a uid. With `ack` the device's answer is waited for. The outcome is known by
    /// `deadline`.
    pub(crate) fn push(&self, uid: &str, push: Push<'_>, ack: Option<Ack>, deadline: Option<Instant>) -> Pushed {
        let (ack, place) = ack.map(|ack| (ack.deadline, ack.permit)).unzip();
        let forwarded = || elsewhere::forwarded(uid, push, ack, 0, deadline);
        let pushed = self.push_anywhere(uid, ack, || self.push_here(uid, push, ack), forwarded);
        pushed.holding(place.flatten())
    }

    /// Pushes to the connections of a uid that this node holds.
    fn push_here(&self, uid: &str, push: Push<'_>, ack: Option<Instant>) -> Pushed {
        self.push_numbered(uid, push, ack, || self.0.numbers.next_seq())
    }

    /// As [`Hub::push_here`], where another node has asked for it, or a PushMany here had to wait: all of one PushMany get
    /// one number.
    fn push_forwarded(&self, push: &ForwardedPush, ack: Option<Instant>) -> Pushed {
        let (uid, many) = (push.uid.as_str(), push.many);
        let push = Push { uri: &push.uri, body: &push.body };
        self.push_numbered(uid, push, ack, || if many == 0 { self.0.numbers.next_seq() } else { self.seq_of(many) })
    }

    fn seq_of(&self, many: u64) -> i64 {
        let mut known = self.0.many.lock().expect("nobody panics while holding the numbers");
        if let Some((_, seq)) = known.iter().find(|(other, _)| *other == many) {
            return *seq;
        }
        let seq = self.0.numbers.next_seq();
        remember(&mut known, many, seq);
        seq
    }

    fn push_numbered(&self, uid: &str, push: Push<'_>, ack: Option<Instant>, seq: impl FnOnce() -> i64) -> Pushed {
        let found = self.0.registry.find(uid);
        if found.iter().next().is_none() {
            return Pushed::Done(PushOutcome::unsent(PushStatus::Offline));
        }
        let seq = seq();
        FRAME.with_borrow_mut(|frame| {
            frame.clear();
            (self.0.settings.encode)(seq, push, frame);
            let pushed = self.push_frame(uid, found, seq, Frame::Own(frame), ack);
            if frame.capacity() > FRAME_KEPT_BYTES {
                *frame = Vec::new();
            }
            pushed
        })
    }

    /// Hands a frame to the connections that were found. Where all have ended meanwhile, those that took their place
    /// are found: a uid that replaces its connection is never offline.
    fn push_frame(&self, uid: &str, mut found: Found, seq: i64, frame: Frame<'_>, ack: Option<Instant>) -> Pushed {
        let queue_bytes_max = self.0.settings.queue_bytes_max;
        let wait = ack.map(|_| Wait::new());
        let mut waiting = Vec::new();
        let mut connections = 0u32;
        let mut full = false;
        loop {
            let mut any = false;
            for connection in found.iter() {
                any = true;
                let taken = connection.push(frame, queue_bytes_max, wait.as_ref().map(|(wait, _)| (seq, wait)));
                match taken {
                    Taken::Sent => {
                        connections += 1;
                        if wait.is_some() {
                            waiting.push(Arc::downgrade(connection));
                        }
                    }
                    Taken::Full => full = true,
                    Taken::Ended => {}
                    Taken::Broken => {
                        self.end(connection, EndReason::Closed);
                    }
                }
            }
            if connections > 0 || full || !any {
                break;
            }
            found = self.0.registry.find(uid);
        }
        if connections == 0 {
            return Pushed::Done(PushOutcome::unsent(if full { PushStatus::QueueFull } else { PushStatus::Offline }));
        }
        match (wait, ack) {
            (Some((wait, receiver)), Some(deadline)) => {
                wait.closed();
                let timer = Waiting::timer(deadline);
                Pushed::Waiting(Waiting { seq, receiver, connections: waiting, timer, _place: None })
            }
            _ => Pushed::Done(PushOutcome { status: PushStatus::Sent, seq, connections, reply: String::new() }),
        }
    }

    /// Pushes one message to many uids, encoded once, with one seq. One outcome for each uid, in order; all are known by
    /// `deadline`.
    pub(crate) async fn push_many(
        &self,
        uids: &[String],
        push: Push<'_>,
        deadline: Option<Instant>,
    ) -> Vec<PushOutcome> {
        let (seq, frame) = self.shared_frame(push);
        let mut many = 0;
        if !self.0.cluster.is_single() {
            many = rand::rng().random_range(1..=u64::MAX);
            remember(&mut self.0.many.lock().expect("nobody panics while holding the numbers"), many, seq);
        }
        let mut outcomes = Vec::with_capacity(uids.len());
        // All are waited for at a time.
        let mut later = FuturesUnordered::new();
        for (place, uid) in uids.iter().enumerate() {
            let here = || self.push_frame(uid, self.0.registry.find(uid), seq, Frame::Shared(&frame), None);
            let forwarded = || elsewhere::forwarded(uid, push, None, many, deadline);
            match self.push_anywhere(uid, None, here, forwarded) {
                Pushed::Done(outcome) => outcomes.push(outcome),
                pushed => {
                    outcomes.push(PushOutcome::unsent(PushStatus::Unknown));
                    later.push(pushed.outcome().map(move |outcome| (place, outcome)));
                }
            }
            tokio::task::consume_budget().await;
        }
        while let Some((place, outcome)) = later.next().await {
            outcomes[place] = outcome;
        }
        outcomes
    }

    fn shared_frame(&self, push: Push<'_>) -> (i64, Bytes) {
        let seq = self.0.numbers.next_seq();
        let mut frame = Vec::new();
        (self.0.settings.encode)(seq, push, &mut frame);
        (seq, frame.into())
    }

    /// Pushes to every connection of this node. Returns how many took it, and how many had their queue full.
    pub(crate) async fn broadcast_here(&self, push: Push<'_>) -> (u64, u64) {
        let (_, frame) = self.shared_frame(push);
        let (mut sent, mut full) = (0, 0);
        for shard in 0..SHARDS {
            // Those of one shard are kept alive for a moment; none of them is held up.
            let connections: Vec<_> = self.0.registry.shard(shard).all().cloned().collect();
            for slice in connections.chunks(BROADCAST_SLICE) {
                for connection in slice {
                    match connection.push(Frame::Shared(&frame), self.0.settings.queue_bytes_max, None) {
                        Taken::Sent => sent += 1,
                        Taken::Full => full += 1,
                        Taken::Ended => {}
                        Taken::Broken => {
                            self.end(connection, EndReason::Closed);
                        }
                    }
                }
                tokio::task::yield_now().await;
            }
        }
        self.0.metrics.broadcast_sent.inc_by(sent);
        self.0.metrics.broadcast_full.inc_by(full);
        (sent, full)
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

/// How many PushManys are known by their number: those that may be under way at a time.
const MANY_KNOWN: usize = 256;

fn remember(known: &mut VecDeque<(u64, i64)>, many: u64, seq: i64) {
    if known.len() == MANY_KNOWN {
        known.pop_front();
    }
    known.push_back((many, seq));
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
