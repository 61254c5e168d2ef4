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
use hashbrown::{HashMap, HashSet};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout, timeout_at},
};

use super::{Hub, Pushed, elsewhere::Others};
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
/// How long the other nodes may take to say that they hold what one of them does: as many as a uid may have connections.
const OTHERS_PATIENCE: Duration = Duration::from_millis(50);

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
    /// Where it goes once it is handed on.
    answer: oneshot::Sender<Pushed>,
}

/// A uid that is looked for.
struct Sought {
    uid: Uid,
    /// How many pushes to it waited when that began.
    count: usize,
    /// The nodes that say that they hold it.
    nodes: Vec<Incarnation>,
}

/// Where a uid was found.
#[derive(Debug)]
enum Found {
    /// Here, or at these nodes, or both.
    At(Others),
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
        let (answer, mut handed_on) = oneshot::channel();
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
                None => Ok((&mut handed_on).await),
                Some(deadline) => timeout_at(deadline, &mut handed_on).await,
            };
            let told = match told {
                Ok(told) => told,
                Err(_) if departure.take() => return PushOutcome::unsent(PushStatus::Unreachable),
                // It is being handed on, and told by then.
                Err(_) => handed_on.await,
            };
            match told {
                Ok(pushed) => pushed.outcome().await,
                Err(_) => PushOutcome::unsent(PushStatus::Unknown),
            }
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

    /// The uids that nobody looks for yet.
    fn next_group(&self) -> Option<Vec<Sought>> {
        let mut waiting = self.0.unresolved.waiting();
        let count = waiting.fresh.len().min(GROUP_MAX);
        let uids: Vec<_> = waiting.fresh.drain(..count).collect();
        waiting.gathering = !uids.is_empty();
        if uids.is_empty() {
            return None;
        }
        let seek = |uid: Uid| {
            let count = waiting.uids.get(&uid).map_or(0, VecDeque::len);
            Sought { uid, count, nodes: Vec::new() }
        };
        Some(uids.into_iter().map(seek).collect())
    }

    async fn find(self, mut group: Vec<Sought>) {
        let cluster = &self.0.cluster;
        let mut barrier = match cluster.barrier() {
            None => async { true }.boxed(),
            Some(barrier) => barrier,
        };
        let mut read = timeout(LOG_PATIENCE, &mut barrier).await;
        // All other nodes have answered.
        let mut all_told = false;
        if read != Ok(true) && cluster.is_bus_up() {
            let uids: Vec<_> = group.iter().map(|sought| sought.uid.clone()).collect();
            let mut answers = cluster.who_holds(uids.into());
            // Until when others may tell that they hold what one has told.
            let mut others_by = None;
            loop {
                let answer = tokio::select! {
                    biased;
                    done = &mut barrier, if read.is_err() => {
                        read = Ok(done);
                        if done { break } else { continue }
                    }
                    answer = answers.next() => answer,
                    () = until(others_by) => {
                        others_by = None;
                        self.found_at(&mut group, 1);
                        continue;
                    }
                };
                match answer {
                    Some(Some((node, held))) => {
                        let held: HashSet<_> = held.into_iter().collect();
                        let holds = group.iter_mut().filter(|sought| held.contains(&sought.uid));
                        holds.for_each(|sought| sought.nodes.push(node));
                        if self.found_at(&mut group, self.0.settings.connections_per_uid) {
                            others_by.get_or_insert_with(|| Instant::now() + OTHERS_PATIENCE);
                        }
                    }
                    Some(None) => {
                        all_told = true;
                        break;
                    }
                    None => break,
                }
            }
        }
        for Sought { uid, count, nodes } in group {
            let mut others = Others { nodes, newer: 0 };
            if read == Ok(true) {
                let mut known = self.others_with(uid.as_str());
                others.nodes.retain(|node| !known.nodes.contains(node));
                known.nodes.append(&mut others.nodes);
                others = known;
            }
            let found = match !others.nodes.is_empty() || self.holds(uid.as_str()) {
                true => Found::At(others),
                false if read == Ok(true) || all_told => Found::Nowhere,
                false => Found::Unknown,
            };
            self.found(&uid, count, &found);
        }
    }

    /// Sends on what waits for the uids that at least so many nodes hold; whether there are some that fewer do.
    fn found_at(&self, group: &mut Vec<Sought>, least: usize) -> bool {
        for sought in group.extract_if(.., |sought| sought.nodes.len() >= least) {
            self.found(&sought.uid, sought.count, &Found::At(Others { nodes: sought.nodes, newer: 0 }));
        }
        group.iter().any(|sought| !sought.nodes.is_empty())
    }

    /// Whether this node holds a connection of `uid`.
    pub(super) fn holds(&self, uid: &str) -> bool {
        self.0.registry.find(uid).iter().next().is_some()
    }

    /// Sends on what waits for a uid. That it is nowhere holds for the first `count` pushes only: the others came after
    /// that was asked.
    fn found(&self, uid: &Uid, count: usize, found: &Found) {
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
        let count = items.len();
        // Handed on under the lock, and counted until then: a later push to this uid comes behind these.
        for item in items {
            self.hand_on(item, found);
        }
        self.0.unresolved.count.fetch_sub(count, Relaxed);
        self.gather(waiting);
    }

    fn hand_on(&self, item: Item, found: &Found) {
        let Item { push, ack_deadline, departure, answer } = item;
        if !departure.take() {
            return;
        }
        let pushed = match found {
            Found::At(others) => self.push_at(others, &push, ack_deadline),
            Found::Nowhere => Pushed::Done(PushOutcome::unsent(PushStatus::Offline)),
            Found::Unknown => Pushed::Done(PushOutcome::unsent(PushStatus::Unreachable)),
        };
        // Fails where nobody waits any more.
        let _ = answer.send(pushed);
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

impl std::fmt::Debug for Unresolved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unresolved").field("count", &self.count).finish_non_exhaustive()
    }
}
