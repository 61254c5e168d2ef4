//! The end of a node with many devices is folded in parts: what is seen and told in between.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::cluster::{
    fold::{Effects, Folding, Join, Message, Record, SPEAKS, Told, fold},
    wire::{self, PartHead},
};

/// A node that folds what the test says, beside two others.
struct Reading {
    cluster: Cluster,
    _inbox: Inbox,
    sequence: u64,
    doomed: Incarnation,
    stays: Incarnation,
    /// The number of the next batch, of each.
    next: BTreeMap<Incarnation, u64>,
}

impl Reading {
    fn new(connections_per_uid: u16) -> Self {
        let (cluster, _inbox) = alone(Options { connections_per_uid, ..options() });
        let nobody = Incarnation(0);
        let mut new = Self { cluster, _inbox, sequence: 2_000, doomed: nobody, stays: nobody, next: BTreeMap::new() };
        new.doomed = new.join("doomed", connections_per_uid);
        new.stays = new.join("stays", connections_per_uid);
        new
    }

    fn join(&mut self, text: &str, connections_per_uid: u16) -> Incarnation {
        let (start, version) = (self.sequence, "1".into());
        let join = Join { name: name(text), start, attempt: 0, speaks: SPEAKS, connections_per_uid, version };
        self.fold(&Message::Join(join), usize::MAX, |_| {});
        Incarnation(self.sequence)
    }

    /// Folds the next message; `between` is called between its parts, of so many looks each. Tells how often.
    fn fold(&mut self, message: &Message<'_>, looks: usize, mut between: impl FnMut(&Cluster)) -> u32 {
        self.sequence += 1;
        let mut folding = Folding::new(self.sequence, self.cluster.now(), Some(message));
        let (mut effects, mut parts) = (Effects::default(), 0);
        while !self.cluster.0.fold_part(&mut folding, looks, &mut effects) {
            parts += 1;
            between(&self.cluster);
        }
        parts
    }

    fn batch(&mut self, of: Incarnation, records: Vec<Record>) -> Message<'static> {
        let next = self.next.entry(of).or_default();
        *next += 1;
        Message::Batch { incarnation: of, number: *next - 1, sent: 0, records: records.into() }
    }

    fn claim(&mut self, of: Incarnation, uids: impl IntoIterator<Item = usize>) {
        let records = self.claims(uids);
        let batch = self.batch(of, records);
        self.fold(&batch, usize::MAX, |_| {});
    }

    fn claims(&self, uids: impl IntoIterator<Item = usize>) -> Vec<Record> {
        let accepted = self.cluster.now();
        let claim = |n| Record::Claim { uid: uid_of(n), number: ConnectionNumber(n as u32), replaces: None, accepted };
        uids.into_iter().map(claim).collect()
    }

    /// What says that the doomed node has ended.
    fn dead(&self) -> Record {
        Record::Dead { incarnation: self.doomed, next: self.next.get(&self.doomed).copied().unwrap_or_default() }
    }

    fn end(&mut self, between: impl FnMut(&Cluster)) -> u32 {
        let dead = self.dead();
        let batch = self.batch(self.stays, vec![dead]);
        self.fold(&batch, 1, between)
    }
}

fn uid_of(n: usize) -> Uid {
    uid(&format!("u{n}"))
}

/// All 256 parts, as a node that joins is told them; `None` while they can't be had.
fn told_to_who_joins(cluster: &Cluster) -> Option<usize> {
    let parts = (0..=u8::MAX).map(|part| {
        let encode = |presence: &node::Presence| {
            let (sequence, at) = presence.folded;
            wire::encode_part(&presence.state, PartHead { part, sequence, at })
        };
        Some(cluster.0.whole(encode).now_or_never()?.len())
    });
    parts.sum()
}

#[tokio::test(start_paused = true)]
async fn each_uid_of_a_lost_node_goes_once_and_all_are_told_at_once() {
    let mut reading = Reading::new(1);
    reading.claim(reading.doomed, 0..500);
    reading.claim(reading.stays, 500..520);
    let mut watcher = reading.cluster.everyone();
    assert!(words(&mut watcher).ends_with("live"));
    let slots = reading.cluster.0.presence().ring.end();

    let mut gone = BTreeSet::new();
    let parts = reading.end(|cluster| {
        for n in 0..500 {
            match cluster.lookup(uid_of(n).as_str()) {
                Some(holding) => assert!(holding.node == name("doomed") && !gone.contains(&n), "u{n} is back"),
                None => _ = gone.insert(n),
            }
        }
        assert!((500..520).all(|n| cluster.lookup(uid_of(n).as_str()).is_some()));
        assert_eq!(cluster.uids() as usize, 520 - gone.len());
        assert_eq!(told_now(&mut watcher), None);
    });
    assert!(parts > 100 && gone.len() > 400, "{parts} parts, {} gone", gone.len());

    let updates: Vec<_> = std::iter::from_fn(|| told_now(&mut watcher)).collect();
    let changes = updates.iter().flat_map(|update| &update.events).map(|event| match event {
        PresenceEvent::Change(change) => (change.epoch, change.uid.clone()),
        other => panic!("{other:?}"),
    });
    let (epochs, uids): (BTreeSet<_>, BTreeSet<_>) = changes.unzip();
    assert_eq!((epochs.len(), uids), (1, (0..500).map(uid_of).collect()));
    assert_eq!(reading.cluster.0.presence().ring.end(), slots + 1, "one place in the history");
    assert_eq!(reading.cluster.uids(), 20);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_begins_in_the_middle_of_an_end_waits_for_all_of_it() {
    let mut reading = Reading::new(1);
    reading.claim(reading.doomed, 0..200);
    reading.claim(reading.stays, [200]);
    let before = told_to_who_joins(&reading.cluster).unwrap();
    let (mut some, mut all) = (None, None);
    reading.end(|cluster| {
        assert_eq!(told_to_who_joins(cluster), None);
        let uids = || (0..=200).map(uid_of).collect();
        let some = some.get_or_insert_with(|| cluster.watch(uids(), false, ""));
        let all = all.get_or_insert_with(|| cluster.everyone());
        assert_eq!((told_now(some), told_now(all)), (None, None));
    });
    assert_eq!(words(&mut some.unwrap()), "=u200 live");
    assert_eq!(words(&mut all.unwrap()), "=u200 live");
    assert!(told_to_who_joins(&reading.cluster).unwrap() < before);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_end_in_parts_is_woken_by_its_last() {
    let mut reading = Reading::new(1);
    reading.claim(reading.doomed, 0..200);
    let (mut tasks, before) = (Vec::new(), tokio::time::Instant::now());
    let dead = reading.dead();
    let batch = reading.batch(reading.stays, vec![dead]);
    let cluster = reading.cluster.clone();
    let mut folding = Folding::new(reading.sequence + 1, cluster.now(), Some(&batch));
    let mut effects = Effects::default();
    while !cluster.0.fold_part(&mut folding, 1, &mut effects) {
        if tasks.is_empty() {
            let (mut all, joins) = (cluster.everyone(), cluster.clone());
            tasks.push(tokio::spawn(async move { all.next().await.events.len() }));
            tasks.push(tokio::spawn(async move { joins.0.whole(|presence| presence.state.live().count()).await }));
        }
        tokio::task::yield_now().await;
        assert!(tasks.iter().all(|task| !task.is_finished()));
    }
    for (task, expected) in tasks.into_iter().zip([1, 2]) {
        let told = tokio::time::timeout(Duration::from_secs(10), task).await;
        assert_eq!(told.expect("it is woken").unwrap(), expected);
    }
    assert_eq!(tokio::time::Instant::now(), before);
}

/// How many devices the lost node has: 100,000, or as many as `PLEX_ENDING_UIDS` says. With a million, in release, and
/// `--nocapture` it is a measurement.
fn many() -> usize {
    std::env::var("PLEX_ENDING_UIDS").ok().and_then(|uids| uids.parse().ok()).unwrap_or(100_000)
}

fn reading_of_many() -> Reading {
    let mut reading = Reading::new(1);
    for from in (0..many()).step_by(1_000) {
        reading.claim(reading.doomed, from..many().min(from + 1_000));
    }
    reading
}

#[test]
fn no_part_of_an_end_is_more_than_its_share() {
    let mut reading = reading_of_many();
    let part_max = (0..256).map(|part| reading.cluster.0.presence().state.directory.part(part).len()).max().unwrap();
    let (mut left, mut most, mut longest) = (many(), 0, Duration::ZERO);
    let dead = reading.dead();
    let batch = reading.batch(reading.stays, vec![dead]);
    let (began, mut last) = (std::time::Instant::now(), std::time::Instant::now());
    reading.fold(&batch, node::LOOKS_MAX, |cluster| {
        longest = longest.max(last.elapsed());
        let now = cluster.uids() as usize;
        most = most.max(left - now);
        (left, last) = (now, std::time::Instant::now());
    });
    println!("{} uids end in {:?}, the longest part takes {longest:?}", many(), began.elapsed());
    let share = node::LOOKS_MAX + part_max;
    assert!(most <= share && left <= share, "{most} at once, {left} with the last, of {share}");
}

#[test]
fn look_ups_go_on_while_a_node_of_many_ends() {
    let mut reading = reading_of_many();
    let (stop, looked) = (Arc::new(AtomicU64::new(0)), std::sync::Barrier::new(2));
    let cluster = reading.cluster.clone();
    let dead = reading.dead();
    let batch = reading.batch(reading.stays, vec![dead]);
    let (amid, longest) = std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            looked.wait();
            let (mut amid, mut longest) = (0_u64, Duration::ZERO);
            while stop.load(Ordering::Relaxed) == 0 {
                let began = std::time::Instant::now();
                amid += u64::from((1..many() as u64).contains(&cluster.uids()));
                longest = longest.max(began.elapsed());
            }
            (amid, longest)
        });
        looked.wait();
        let mut effects = Effects::default();
        reading.cluster.0.fold(reading.sequence + 1, reading.cluster.now(), Some(&batch), &mut effects);
        stop.store(1, Ordering::Relaxed);
        looks.join().unwrap()
    });
    println!("{amid} look-ups while {} uids end, the longest waits for {longest:?}", many());
    assert!(amid > 0);
    assert_eq!(reading.cluster.uids(), 0);
}

const UIDS: usize = 60;

/// Something that happens between two parts.
#[derive(Debug, Clone)]
enum Op {
    /// A watcher comes, of every first, second or third uid; of 0: of everyone.
    Watch {
        each: usize,
        skip: bool,
        events: usize,
    },
    Read {
        pick: usize,
    },
    /// It comes back with the cursor that it kept.
    Resume {
        pick: usize,
    },
}

fn ops() -> impl Strategy<Value = Vec<(u32, Op)>> {
    let op = prop_oneof![
        2 => (0..4_usize, any::<bool>(), 1..40_usize).prop_map(|(each, skip, events)| Op::Watch { each, skip, events }),
        3 => any::<usize>().prop_map(|pick| Op::Read { pick }),
        1 => any::<usize>().prop_map(|pick| Op::Resume { pick }),
    ];
    proptest::collection::vec((0..300_u32, op), 0..25)
}

/// What a subscriber was told.
struct Follower {
    watcher: Watcher,
    each: usize,
    told: BTreeMap<Uid, (bool, u64)>,
    live: bool,
    cursor: String,
    resumed: bool,
}

impl Follower {
    /// `known` is what it knows already where it wants no snapshot.
    fn new(cluster: &Cluster, each: usize, events: usize, known: Option<&BTreeMap<Uid, (bool, u64)>>) -> Self {
        let watcher = cluster.watch(Self::filter(each), known.is_some(), "").with_limits(events, events + 1);
        let told = known.cloned().unwrap_or_default();
        Self { watcher, each, told, live: false, cursor: String::new(), resumed: false }
    }

    fn filter(each: usize) -> Vec<Uid> {
        if each == 0 { Vec::new() } else { (0..UIDS).step_by(each).map(uid_of).collect() }
    }

    fn resume(&mut self, cluster: &Cluster) {
        if !self.cursor.is_empty() {
            self.watcher = cluster.watch(Self::filter(self.each), false, &self.cursor);
            self.resumed = true;
        }
    }

    fn read(&mut self) {
        while let Some(update) = told_now(&mut self.watcher) {
            assert!(!update.events.is_empty(), "the clock stands still");
            for event in &update.events {
                match event {
                    PresenceEvent::Change(change) => {
                        let new = (change.offline.is_none(), change.epoch);
                        match self.told.insert(change.uid.clone(), new) {
                            // What was told before the cursor that it kept may come again, the same.
                            Some(same) if self.resumed && same == new => {}
                            Some((was, epoch)) => assert!(was != new.0 && epoch < new.1, "{change:?} after {epoch}"),
                            None => assert!(new.0, "{change:?}, and never told online"),
                        }
                    }
                    PresenceEvent::Snapshot { uid, epoch, .. } => {
                        assert_eq!(self.told.insert(uid.clone(), (true, *epoch)), None, "{uid} told twice");
                    }
                    PresenceEvent::Live { .. } => self.live = true,
                    PresenceEvent::Reset { .. } => panic!("it could have gone on"),
                }
            }
            if !update.cursor.is_empty() {
                self.cursor = update.cursor;
            }
        }
    }

    fn finish(mut self, cluster: &Cluster) {
        self.read();
        assert!(self.live);
        let mut online: BTreeSet<_> = (0..UIDS).map(uid_of).collect();
        online.retain(|uid| cluster.lookup(uid.as_str()).is_some());
        if self.each > 0 {
            let filter: BTreeSet<_> = Self::filter(self.each).into_iter().collect();
            online.retain(|uid| filter.contains(uid));
            self.told.retain(|uid, _| filter.contains(uid));
        }
        self.told.retain(|_, (online, _)| *online);
        assert_eq!(self.told.into_keys().collect::<BTreeSet<_>>(), online);
    }
}

/// Who holds what of one fold, and what it tells, its deaths in one order.
fn outcome(state: &State, told: impl IntoIterator<Item = Told>) -> String {
    let held =
        (0..UIDS).map(|n| state.directory.get(uid_of(n).as_str()).map(|entry| (entry.epoch(), entry.connections())));
    let told = told.into_iter().map(|mut told| {
        if let Told::Death(death) = &mut told {
            death.uids.sort();
        }
        told
    });
    format!("{:?} {:?}", held.collect::<Vec<_>>(), told.collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_end_in_parts_is_told_once_to_whoever_comes_in_between(
        connections_per_uid in 1..3_u16,
        held in proptest::collection::vec(0..4_u8, UIDS),
        by_join in any::<bool>(),
        earlier in proptest::collection::vec(0..UIDS, 0..5),
        later in proptest::collection::vec(0..UIDS, 0..5),
        ops in ops(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut reading = Reading::new(connections_per_uid);
            for (node, bit) in [(reading.doomed, 1), (reading.stays, 2)] {
                reading.claim(node, (0..UIDS).filter(|n| held[*n] & bit != 0));
            }
            let known: BTreeMap<_, _> = (0..UIDS).map(uid_of).map(|uid| {
                let presence = reading.cluster.0.presence();
                let epoch = presence.state.directory.get(uid.as_str()).map(|entry| entry.epoch());
                (uid, (epoch.is_some(), epoch.unwrap_or(0)))
            }).collect();
            let mut followers: Vec<Follower> = Vec::new();
            let mut run = |cluster: &Cluster, part: u32| for (_, op) in ops.iter().filter(|(at, _)| *at == part) {
                let some = followers.len().max(1);
                match *op {
                    Op::Watch { each, skip, events } => {
                        followers.push(Follower::new(cluster, each, events, skip.then_some(&known)));
                    }
                    Op::Read { pick } => followers.get_mut(pick % some).into_iter().for_each(Follower::read),
                    Op::Resume { pick } => {
                        followers.get_mut(pick % some).into_iter().for_each(|follower| follower.resume(cluster));
                    }
                }
            };
            // What comes first comes before the end.
            let start = 20;
            (0..start).for_each(|part| run(&reading.cluster, part));

            let message = if by_join {
                let start = u64::MAX;
                let (name, version) = (name("doomed"), "2".into());
                Message::Join(Join { name, start, attempt: 0, speaks: SPEAKS, connections_per_uid, version })
            } else {
                let records = [reading.claims(earlier), vec![reading.dead()], reading.claims(later)].concat();
                reading.batch(reading.stays, records)
            };
            let (mut at_once, slots) = {
                let presence = reading.cluster.0.presence();
                (presence.state.clone(), presence.ring.end())
            };
            let mut effects = Effects::default();
            let mut part = start;
            reading.fold(&message, 1, |cluster| {
                run(cluster, part);
                part += 1;
            });
            fold(&mut at_once, reading.sequence, reading.cluster.now(), &message, &mut effects);
            {
                let presence = reading.cluster.0.presence();
                let told = (slots..presence.ring.end()).map(|slot| presence.ring.get(slot).unwrap().clone());
                assert_eq!(outcome(&presence.state, told), outcome(&at_once, effects.changes));
            }
            followers.into_iter().for_each(|follower| follower.finish(&reading.cluster));
        });
    }
}
