//! What one node has made of the log.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use crate::model::{ConnectionNumber, Millis, NodeName, Uid};

use super::{
    bus::Inbox,
    changes::{Ring, Watchers},
    fold::{Effects, Incarnation, Message, Record, State, end_of, fold},
    hosts::Grants,
    log::LocalLog,
};

/// How a node takes part.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// How many connections a uid may have, at least 1; the same on every node of a log.
    pub(crate) connections_per_uid: u32,
    /// How many changes are kept for who resumes.
    pub(crate) history: usize,
    /// How long after the start `Live` is first told.
    pub(crate) settle: Duration,
    /// After how long without an update a watcher gets one with no event.
    pub(crate) keepalive: Duration,
}

pub(crate) struct Node {
    name: NodeName,
    incarnation: Incarnation,
    log: LocalLog,
    options: Options,
    settled_at: Instant,
    presence: Mutex<Presence>,
    grants: Mutex<Grants>,
    /// Whether no other node is live.
    single: AtomicBool,
}

/// What changes with the log, all of it at once.
pub(crate) struct Presence {
    pub(crate) state: State,
    pub(crate) ring: Ring,
    pub(crate) watchers: Watchers,
    /// Gone once this node has ended.
    closes: Option<mpsc::UnboundedSender<(Uid, ConnectionNumber)>>,
    /// Kept for its room.
    wakers: Vec<Waker>,
}

impl Node {
    /// Joins the log; the join is folded when it returns.
    pub(crate) fn join(log: &LocalLog, name: NodeName, options: Options) -> (Arc<Self>, Inbox) {
        let (closes, requests, inbox) = Inbox::new();
        let node = log.join(name.clone(), |incarnation, folded, state| {
            log.bus().enter(incarnation, requests);
            Arc::new(Self {
                name,
                incarnation,
                log: log.clone(),
                settled_at: Instant::now() + options.settle,
                presence: Mutex::new(Presence {
                    state: state.unwrap_or_else(|| State::new(options.connections_per_uid)),
                    ring: Ring::new(options.history, folded),
                    watchers: Watchers::default(),
                    closes: Some(closes),
                    wakers: Vec::new(),
                }),
                grants: Mutex::default(),
                single: AtomicBool::new(true),
                options,
            })
        });
        (node, inbox)
    }

    /// Folds one message. Called by the log, in order.
    pub(crate) fn fold(&self, sequence: u64, at: Millis, message: &Message<'_>, effects: &mut Effects) {
        let mut guard = self.presence();
        let Presence { state, ring, watchers, closes, wakers } = &mut *guard;
        fold(state, sequence, at, message, effects);
        for told in effects.changes.drain(..) {
            watchers.note(ring.end(), &told, wakers);
            ring.push(told);
        }
        ring.folded_to(end_of(sequence));
        watchers.note_any(ring.end(), wakers);
        for (incarnation, uid, number) in effects.displaced.drain(..) {
            if let Some(closes) = closes.as_ref().filter(|_| incarnation == self.incarnation) {
                // Fails where nobody takes what comes in any more, and then nobody holds connections either.
                _ = closes.send((uid, number));
            }
        }
        if effects.ended.contains(&self.incarnation) {
            *closes = None;
            self.log.bus().leave(self.incarnation);
        }
        if !effects.ended.is_empty() || matches!(message, Message::Join { .. }) {
            let others = state.live().any(|live| live.incarnation != self.incarnation);
            self.single.store(!others, Ordering::Relaxed);
        }
        if wakers.is_empty() {
            return;
        }
        // Woken without the lock, which is the first thing they take.
        let mut woken = std::mem::take(wakers);
        drop(guard);
        woken.drain(..).for_each(Waker::wake);
        self.presence().wakers = woken;
    }

    pub(crate) fn write(&self, records: &[Record]) {
        self.log.write(self.incarnation, self, records);
    }

    /// Never held across an await. Whoever holds it locks nothing else but the bus.
    pub(crate) fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().expect("nobody panics while holding the presence")
    }

    pub(crate) fn grants(&self) -> MutexGuard<'_, Grants> {
        self.grants.lock().expect("nobody panics while holding the grants")
    }

    pub(crate) fn name(&self) -> &NodeName {
        &self.name
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(crate) fn log(&self) -> &LocalLog {
        &self.log
    }

    pub(crate) fn log_identity(&self) -> u64 {
        self.log.identity()
    }

    pub(crate) fn known_since(&self) -> Millis {
        self.log.born()
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// From when on `Live` may be told.
    pub(crate) fn settled_at(&self) -> Instant {
        self.settled_at
    }

    pub(crate) fn is_single(&self) -> bool {
        self.single.load(Ordering::Relaxed)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.log.bus().leave(self.incarnation);
    }
}
