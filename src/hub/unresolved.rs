//! Pushes to uids that nobody is known to hold, where what is known may be late: they wait until everything that was
//! written before them has been read. Only then is a uid offline.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use hashbrown::HashMap;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use super::{Hub, Pushed};
use crate::{
    cluster::{Departure, ForwardedPush, Incarnation},
    model::{PushOutcome, PushStatus, Uid},
};

/// How many pushes wait; over it, the others can't be reached.
const WAITING_MAX: usize = 65_536;
/// How many uids are looked for together: the longest, in one question, are half of what a server of the cluster takes.
const GROUP_MAX: usize = 2_000;
/// How long the log is waited for before the nodes themselves are asked: it stands still, or is about to.
const LOG_PATIENCE: Duration = Duration::from_millis(50);

/// What waits, by uid. A uid is here as long as a push to it waits, and all later ones come behind it.
#[derive(Default)]
pub(super) struct Unresolved {
    waiting: Mutex<Waiting>,
    count: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    uids: HashMap<Uid, VecDeque<Item>>,
    /// Nobody looks for these yet.
    fresh: Vec<Uid>,
    /// A task is about to.
    gathering: bool,
}

struct Item {
    push: ForwardedPush,
    ack_deadline: Option<Instant>,
    departure: Departure,
    answer: oneshot::Sender<PushOutcome>,
}

/// Where a uid was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Here,
    At(Incarnation),
    Nowhere,
    /// Nobody can tell.
    Unknown,
}

impl Unresolved {
    /// Whether pushes to `uid` wait.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.count.load(Relaxed) > 0 && self.waiting().uids.contains_key(uid)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nobody panics while holding what waits")
    }
}

impl Hub {
    /// Has a push wait until it is known who holds its uid.
    pub(super) fn resolve(
        &self,
        push: ForwardedPush,
        ack_deadline: Option<Instant>,
    ) -> BoxFuture<'static, PushOutcome> {
        let unresolved = &self.0.unresolved;
        if unresolved.count.fetch_add(1, Relaxed) >= WAITING_MAX || !self.0.cluster.knows_others() {
            unresolved.count.fetch_sub(1, Relaxed);
            return async { PushOutcome::unsent(PushStatus::Unreachable) }.boxed();
        }
        let (answer, mut outcome) = oneshot::channel();
        let (uid, deadline, departure) = (push.uid.clone(), push.deadline, Departure::shared());
        let item = Item { push, ack_deadline, departure: departure.clone(), answer };
        let mut waiting = unresolved.waiting();
        match waiting.uids.get_mut(&uid) {
            Some(items) => items.push_back(item),
            None => {
                waiting.uids.insert(uid.clone(), VecDeque::from([item]));
                waiting.fresh.push(uid);
            }
        }
        self.gather(waiting);
        async move {
            let told = match deadline {
                None => Ok((&mut outcome).await),
                Some(deadline) => timeout_at(deadline, &mut outcome).await,
            };
            let told = match told {
                Ok(told) => told,
                Err(_) if departure.take() => return PushOutcome::unsent(PushStatus::Unreachable),
                // It has been handed on, and is told by then.
                Err(_) => outcome.await,
            };
            told.unwrap_or(PushOutcome::unsent(PushStatus::Unknown))
        }
        .boxed()
    }

    fn gather(&self, mut waiting: MutexGuard<'_, Waiting>) {
        if !waiting.fresh.is_empty() && !std::mem::replace(&mut waiting.gathering, true) {
            drop(waiting);
            let hub = self.clone();
            tokio::spawn(async move {
                // Whoever runs now adds to the same group.
                tokio::task::yield_now().await;
                while let Some(group) = hub.next_group() {
                    tokio::spawn(hub.clone().find(group));
                }
            });
        }
    }

    /// The uids that nobody looks for yet, and how many pushes to each wait now.
    fn next_group(&self) -> Option<Vec<(Uid, usize)>> {
        let mut waiting = self.0.unresolved.waiting();
        let count = waiting.fresh.len().min(GROUP_MAX);
        let uids: Vec<_> = waiting.fresh.drain(..count).collect();
        waiting.gathering = !uids.is_empty();
        if uids.is_empty() {
            return None;
        }
        Some(uids.into_iter().map(|uid| (uid.clone(), waiting.uids.get(&uid).map_or(0, VecDeque::len))).collect())
    }

    async fn find(self, group: Vec<(Uid, usize)>) {
        let cluster = &self.0.cluster;
        let mut barrier = match cluster.barrier() {
            None => async { true }.boxed(),
            Some(barrier) => barrier,
        };
        let mut read = timeout(LOG_PATIENCE, &mut barrier).await;
        let mut left = group;
        if read != Ok(true) && cluster.is_bus_up() {
            let uids: Vec<_> = left.iter().map(|(uid, _)| uid.clone()).collect();
            let mut answers = cluster.who_holds(uids.into());
            loop {
                let answer = tokio::select! {
                    biased;
                    done = &mut barrier, if read.is_err() => {
                        read = Ok(done);
                        if done { break } else { continue }
                    }
                    answer = answers.next() => answer,
                };
                match answer {
                    Some(Some((node, held))) => {
                        let holds: Vec<_> = held.iter().map(Uid::as_str).collect();
                        left.retain(|(uid, count)| {
                            let is_here = holds.contains(&uid.as_str());
                            if is_here {
                                self.found(uid, *count, Found::At(node));
                            }
                            !is_here
                        });
                    }
                    // All have answered: none of them holds it.
                    Some(None) => {
                        left.drain(..).for_each(|(uid, count)| self.found(&uid, count, self.nowhere_else(&uid)));
                        return;
                    }
                    None => break,
                }
            }
        }
        for (uid, count) in left {
            let found = match read {
                Ok(true) => match self.others_with(uid.as_str()).nodes.first() {
                    _ if self.holds(uid.as_str()) => Found::Here,
                    Some(node) => Found::At(*node),
                    None => Found::Nowhere,
                },
                _ if self.holds(uid.as_str()) => Found::Here,
                _ => Found::Unknown,
            };
            self.found(&uid, count, found);
        }
    }

    fn nowhere_else(&self, uid: &Uid) -> Found {
        if self.holds(uid.as_str()) { Found::Here } else { Found::Nowhere }
    }

    fn holds(&self, uid: &str) -> bool {
        self.0.registry.find(uid).iter().next().is_some()
    }

    /// Sends on what waits for a uid. That it is nowhere holds for the first `count` pushes only: the others came after
    /// that was asked.
    fn found(&self, uid: &Uid, count: usize, found: Found) {
        let mut waiting = self.0.unresolved.waiting();
        let Some(mut items) = waiting.uids.remove(uid) else { return };
        let rest = match found {
            Found::Nowhere => items.split_off(count.min(items.len())),
            _ => VecDeque::new(),
        };
        if !rest.is_empty() {
            waiting.uids.insert(uid.clone(), rest);
            waiting.fresh.push(uid.clone());
        }
        self.0.unresolved.count.fetch_sub(items.len(), Relaxed);
        // Handed on under the lock: a later push to this uid comes behind these.
        for item in items {
            self.hand_on(item, found);
        }
        self.gather(waiting);
    }

    fn hand_on(&self, item: Item, found: Found) {
        let Item { push, ack_deadline, departure, mut answer } = item;
        if !departure.take() {
            return;
        }
        match found {
            Found::Nowhere => _ = answer.send(PushOutcome::unsent(PushStatus::Offline)),
            Found::Unknown => _ = answer.send(PushOutcome::unsent(PushStatus::Unreachable)),
            Found::Here => {
                match self.push_forwarded(&push, ack_deadline) {
                    Pushed::Done(outcome) => _ = answer.send(outcome),
                    Pushed::Waiting(waiting) => {
                        tokio::spawn(async move {
                            tokio::select! {
                                outcome = waiting => {
                                    let _ = answer.send(outcome);
                                }
                                // Nobody waits any more, nor is there a place for it.
                                () = answer.closed() => {}
                            }
                        });
                    }
                    Pushed::Elsewhere(_) => unreachable!("this node's own connections were pushed to"),
                }
            }
            Found::At(node) => {
                // The log has nobody else, and it says that it isn't there.
                let nowhere = async { PushOutcome::unsent(PushStatus::Offline) };
                let forwarded = self.forward(node, push, move |_, _| nowhere.boxed());
                tokio::spawn(async move {
                    let _ = answer.send(forwarded.await.outcome().await);
                });
            }
        }
    }
}

impl std::fmt::Debug for Unresolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unresolved").field("count", &self.count).finish_non_exhaustive()
    }
}
