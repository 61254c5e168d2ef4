//! What one node has made of the log.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, TryLockError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::Waker,
    thread,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};

use crate::model::{ConnectionNumber, Millis, NodeName, Uid};

use super::{
    bus::Inbox,
    changes::{Ring, Watchers},
    directory::Entry,
    engine::{Engine, Standing},
    fold::{Effects, Folding, Incarnation, Message, State, end_of},
    hosts::{Card, Grants},
    log::LocalLog,
    rules::Rule,
};

/// How many uids of a node that ends are looked at under one lock, and the rest of a part: what a look-up may have to
/// wait for.
pub(super) const LOOKS_MAX: usize = 2_048;
/// For how long, and how often at most, the fold lets go of the presence where others wait for it.
const TURN: Duration = Duration::from_micros(20);
const TURNS_MAX: usize = 20;

/// How a node takes part.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// How many connections a uid may have, at least 1; the same on every node of a log.
    pub(crate) connections_per_uid: u16,
    /// How many changes are kept for who resumes.
    pub(crate) history: usize,
    /// How long after the start `Live` is first told.
    pub(crate) settle: Duration,
    /// After how long without an update a watcher gets one with no event.
    pub(crate) keepalive: Duration,
    /// How often a node gives a sign of life.
    pub(crate) heartbeat: Duration,
    /// How long the answer of another node may take beyond what the question itself takes.
    pub(crate) forward_timeout: Duration,
    /// The same where every node is asked, or connections have to end first.
    pub(crate) broadcast_timeout: Duration,
}

#[cfg(test)]
impl Options {
    /// What tests take where they say nothing else.
    pub(crate) fn of_tests() -> Self {
        Self {
            connections_per_uid: 1,
            history: 1_000,
            settle: Duration::ZERO,
            keepalive: Duration::from_secs(15),
            heartbeat: Duration::from_millis(500),
            forward_timeout: Duration::from_secs(2),
            broadcast_timeout: Duration::from_secs(30),
        }
    }
}

/// Which log a node follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogIdentity {
    /// Tells it from every other.
    pub(crate) id: u64,
    /// Since when it is kept.
    pub(crate) born: Millis,
}

pub(crate) struct Node {
    name: NodeName,
    /// 0: it isn't in the log.
    incarnation: AtomicU64,
    engine: Arc<dyn Engine>,
    options: Options,
    settled_at: Instant,
    presence: Mutex<Presence>,
    /// How many wait for it.
    waiting: AtomicU32,
    /// A message is folded that was for a while folded in part.
    whole: Notify,
    grants: Mutex<Grants>,
    /// Whether no other node can hold a uid: the log is in this process, and nobody else is on it.
    single: AtomicBool,
    may_be_single: bool,
    /// That of the presence, for who waits until it is another.
    standing: watch::Sender<Standing>,
    /// It has been in step with the log.
    was_in_step: AtomicBool,
    /// How many messages of the log couldn't be read.
    unreadable: AtomicU64,
    /// How many messages of others, beside the log, couldn't be read.
    unreadable_questions: AtomicU64,
    /// How many errors the servers told.
    server_errors: AtomicU64,
    /// What this node last told of itself.
    card: Mutex<Option<Card>>,
}

/// What changes with the log, all of it at once.
pub(crate) struct Presence {
    pub(crate) state: State,
    /// While the node isn't in step again: what it knew before.
    pub(crate) past: Option<Past>,
    pub(crate) ring: Ring,
    pub(crate) watchers: Watchers,
    pub(crate) standing: Standing,
    /// `None`: no log is known yet.
    pub(crate) log: Option<LogIdentity>,
    /// The last message that is folded, and when the log took it.
    pub(crate) folded: (u64, Millis),
    /// Gone once this node has ended for good.
    closes: Option<mpsc::UnboundedSender<(Uid, ConnectionNumber)>>,
    /// Kept for its room.
    wakers: Vec<Waker>,
}

/// What was known before the state was lost. It answers for whom the new one doesn't know yet.
pub(crate) struct Past {
    pub(crate) state: State,
    pub(crate) log: Option<LogIdentity>,
}

/// What is known of a uid.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) state: &'a State,
    pub(crate) entry: &'a Entry,
    /// It is what was before the state was lost.
    pub(crate) is_past: bool,
}

impl Presence {
    /// What is known of `uid`; `None`: it is offline.
    pub(crate) fn find(&self, uid: &str) -> Option<Known<'_>> {
        if let Some(entry) = self.state.directory.get(uid) {
            return Some(Known { state: &self.state, entry, is_past: false });
        }
        let state = &self.past.as_ref()?.state;
        Some(Known { state, entry: state.directory.get(uid)?, is_past: true })
    }

    /// Whether watchers may be told what is here.
    pub(crate) fn is_open(&self) -> bool {
        self.standing != Standing::Joining
    }
}

type Closes = mpsc::UnboundedSender<(Uid, ConnectionNumber)>;

impl Node {
    /// Joins a log of this process; the join is folded when it returns.
    pub(crate) fn join(log: &LocalLog, name: NodeName, options: Options) -> (Arc<Self>, Inbox) {
        let (closes, requests, inbox) = Inbox::new();
        let connections_per_uid = options.connections_per_uid;
        let node = log.join(name.clone(), connections_per_uid, |incarnation, folded, state| {
            log.bus().enter(incarnation, requests);
            let node = Self::new(name, Arc::new(log.clone()), true, closes, options);
            node.incarnation.store(incarnation.0, Ordering::Relaxed);
            let mut presence = node.presence();
            presence.state = state.unwrap_or_else(|| State::new(connections_per_uid));
            presence.ring = Ring::new(node.options.history, end_of(folded));
            presence.folded = (folded, log.born());
            presence.log = Some(log.identity());
            presence.standing = Standing::InStep;
            node.tell_standing(presence.standing);
            drop(presence);
            Arc::new(node)
        });
        (node, inbox)
    }

    /// A node that isn't in a log yet.
    pub(crate) fn new(
        name: NodeName,
        engine: Arc<dyn Engine>,
        may_be_single: bool,
        closes: Closes,
        options: Options,
    ) -> Self {
        Self {
            name,
            incarnation: AtomicU64::new(0),
            engine,
            settled_at: Instant::now() + options.settle,
            presence: Mutex::new(Presence {
                state: State::new(options.connections_per_uid),
                past: None,
                ring: Ring::new(options.history, 0),
                watchers: Watchers::default(),
                standing: Standing::Joining,
                log: None,
                folded: (0, Millis(0)),
                closes: Some(closes),
                wakers: Vec::new(),
            }),
            waiting: AtomicU32::new(0),
            whole: Notify::new(),
            grants: Mutex::default(),
            single: AtomicBool::new(may_be_single),
            may_be_single,
            standing: watch::Sender::new(Standing::Joining),
            was_in_step: AtomicBool::new(may_be_single),
            unreadable: AtomicU64::new(0),
            unreadable_questions: AtomicU64::new(0),
            server_errors: AtomicU64::new(0),
            card: Mutex::default(),
            options,
        }
    }

    /// Folds one message; called in order, once the one before is folded. `None`: one that can't be read. What it did
    /// to this node's own connections, and who ended by it, is in `effects` afterwards. The end of a node of many is
    /// folded in parts, and whoever waits for the presence gets it in between.
    pub(crate) fn fold(&self, sequence: u64, at: Millis, message: Option<&Message<'_>>, effects: &mut Effects) {
        let mut folding = Folding::new(sequence, at, message);
        while !self.fold_part(&mut folding, LOOKS_MAX, effects) {
            folding.make_room();
            self.let_others_in();
        }
    }

    /// What [`Node::fold`] does under one lock; false: it has to go on.
    pub(crate) fn fold_part(&self, folding: &mut Folding<'_>, looks: usize, effects: &mut Effects) -> bool {
        // Dropped without the lock, as they may be large.
        let (mut spent, mut void) = (Vec::new(), None);
        let mut guard = self.presence();
        let Presence { state, past, ring, watchers, standing, log, closes, wakers, folded } = &mut *guard;
        let was_midway = state.is_midway();
        if !folding.step(state, looks, effects, |uid| watchers.gather_of(uid)) {
            watchers.gather();
            return false;
        }
        let Folding { sequence, at, message, .. } = *folding;
        if message.is_none() {
            self.unreadable.fetch_add(1, Ordering::Relaxed);
        }
        *folded = (sequence, at);
        if effects.reset || state.is_partial() {
            spent = mem::take(&mut effects.changes);
            if *standing != Standing::Joining {
                *past = effects.void.take().map(|state| Past { state, log: *log });
            }
            void = Some((effects.void.take(), ring.void(end_of(sequence))));
            if effects.reset {
                // Before anybody looks: that nobody is online isn't so.
                *standing = Standing::Joining;
                self.tell_standing(*standing);
            }
            watchers.note_all(wakers);
        }
        for told in effects.changes.drain(..) {
            watchers.note(ring.end(), &told, wakers);
            spent.extend(ring.push(told));
        }
        ring.folded_to(end_of(sequence));
        watchers.note_any(ring.end(), wakers);
        let own = self.incarnation();
        let closes = closes.as_ref().filter(|_| state.rules().hold(Rule::Displaced));
        for (incarnation, uid, number) in &effects.displaced {
            if let Some(closes) = closes.filter(|_| *incarnation == own) {
                // Fails where nobody takes what comes in any more, and then nobody holds connections either.
                _ = closes.send((uid.clone(), *number));
            }
        }
        if self.may_be_single {
            let others = state.live().any(|live| live.incarnation != own);
            self.single.store(!others, Ordering::Relaxed);
        }
        if was_midway {
            self.whole.notify_waiters();
        }
        self.wake(guard);
        drop((spent, void));
        true
    }

    /// Between two parts. A mutex is had by who is there first, and that is the thread that has just let go of it: those
    /// who wait get time to come.
    fn let_others_in(&self) {
        for _ in 0..TURNS_MAX {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                break;
            }
            thread::sleep(TURN);
        }
    }

    /// Reads what is here while no message is folded in part. Waits for that as long as it takes to fold one.
    pub(crate) async fn whole<T>(&self, read: impl FnOnce(&Presence) -> T) -> T {
        loop {
            // Made before it is looked: so it isn't missed.
            let whole = self.whole.notified();
            {
                let presence = self.presence();
                if !presence.state.is_midway() {
                    return read(&presence);
                }
            }
            whole.await;
        }
    }

    /// Changes what is known otherwise than by a message; all watchers look again.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Presence)) {
        // Dropped without the lock: it may be large.
        let mut past = None;
        let mut guard = self.presence();
        change(&mut guard);
        if guard.is_open() {
            past = guard.past.take();
        }
        if guard.standing == Standing::InStep {
            self.was_in_step.store(true, Ordering::Relaxed);
        }
        self.tell_standing(guard.standing);
        let Presence { watchers, wakers, .. } = &mut *guard;
        watchers.wake_all(wakers);
        self.wake(guard);
        drop(past);
    }

    /// Takes another state, or none, for the one that was: nobody can follow from that to this. Watchers are told
    /// nothing until the node is in step, and what they were told until now is what is answered.
    pub(crate) fn restart(&self, state: State, log: Option<LogIdentity>, folded: (u64, Millis)) {
        // Dropped without the lock: it may be large.
        let mut void = None;
        self.change(|presence| {
            let mut before = Some(Past {
                state: mem::replace(&mut presence.state, state),
                log: mem::replace(&mut presence.log, log),
            });
            if presence.is_open() {
                presence.past = before.take();
            }
            presence.folded = folded;
            presence.standing = Standing::Joining;
            void = Some((before, presence.ring.void(end_of(folded.0))));
            let Presence { watchers, wakers, .. } = presence;
            watchers.note_all(wakers);
        });
        drop(void);
    }

    /// What was known before isn't answered any more.
    pub(crate) fn forget_past(&self) {
        // Dropped without the lock.
        let past = self.presence().past.take();
        drop(past);
    }

    fn tell_standing(&self, standing: Standing) {
        self.standing.send_if_modified(|told| mem::replace(told, standing) != standing);
    }

    /// Woken without the lock, which is the first thing they take.
    fn wake(&self, mut guard: MutexGuard<'_, Presence>) {
        if guard.wakers.is_empty() {
            return;
        }
        let mut woken = mem::take(&mut guard.wakers);
        drop(guard);
        woken.drain(..).for_each(Waker::wake);
        self.presence().wakers = woken;
    }

    /// Nothing comes in any more: this node has ended.
    pub(crate) fn end(&self) {
        self.presence().closes = None;
    }

    /// Says which life this node leads from now on; `None`: none.
    pub(crate) fn set_incarnation(&self, incarnation: Option<Incarnation>) {
        self.incarnation.store(incarnation.map_or(0, |incarnation| incarnation.0), Ordering::Relaxed);
    }

    /// Never held across an await. Whoever holds it locks nothing else but the bus.
    pub(crate) fn presence(&self) -> MutexGuard<'_, Presence> {
        let presence = match self.presence.try_lock() {
            Err(TryLockError::WouldBlock) => {
                self.waiting.fetch_add(1, Ordering::Relaxed);
                let presence = self.presence.lock();
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                presence.ok()
            }
            free => free.ok(),
        };
        presence.expect("nobody panics while holding the presence")
    }

    pub(crate) fn grants(&self) -> MutexGuard<'_, Grants> {
        self.grants.lock().expect("nobody panics while holding the grants")
    }

    /// What this node last told of itself.
    pub(crate) fn card(&self) -> MutexGuard<'_, Option<Card>> {
        self.card.lock().expect("nobody panics while holding the card")
    }

    /// How many messages of the log couldn't be read.
    pub(crate) fn unreadable(&self) -> u64 {
        self.unreadable.load(Ordering::Relaxed)
    }

    /// Somebody sent this node what it can't read.
    #[cfg(feature = "nats")]
    pub(crate) fn note_unreadable_question(&self) {
        self.unreadable_questions.fetch_add(1, Ordering::Relaxed);
    }

    /// How many messages of others, beside the log, couldn't be read.
    pub(crate) fn unreadable_questions(&self) -> u64 {
        self.unreadable_questions.load(Ordering::Relaxed)
    }

    /// The cluster's servers told an error.
    #[cfg(feature = "nats")]
    pub(crate) fn note_server_error(&self) {
        self.server_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// How many errors the cluster's servers told.
    pub(crate) fn server_errors(&self) -> u64 {
        self.server_errors.load(Ordering::Relaxed)
    }

    pub(crate) fn name(&self) -> &NodeName {
        &self.name
    }

    /// This node's life; of number 0, which is nobody's, where it isn't in the log.
    pub(crate) fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Relaxed))
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// From when on `Live` may be told.
    pub(crate) fn settled_at(&self) -> Instant {
        self.settled_at
    }

    /// How it stands to the log, and each time that this changes.
    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Whether it is alone wherever nobody else is known.
    pub(crate) fn may_be_single(&self) -> bool {
        self.may_be_single
    }

    pub(crate) fn was_in_step(&self) -> bool {
        self.was_in_step.load(Ordering::Relaxed)
    }

    pub(crate) fn is_single(&self) -> bool {
        self.single.load(Ordering::Relaxed)
    }
}
