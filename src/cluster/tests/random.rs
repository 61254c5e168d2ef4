//! Random logins, losses and watchers, against a model that knows the rules in the plainest words.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use proptest::prelude::*;

use super::*;
use crate::cluster::fold::Told;

const UIDS: usize = 7;

#[derive(Debug, Clone)]
enum Op {
    Tick(u64),
    /// A login at a node, accepted so many ms ago, in place of one of its own where it has one.
    Login {
        node: usize,
        uid: usize,
        ago: u64,
        replaces: bool,
    },
    /// A connection ends, of those that count or of those that were displaced.
    End {
        pick: usize,
    },
    /// A node dies without a word, or its name joins again, or it leaves; then it is back.
    Lose {
        node: usize,
        how: u8,
    },
    Watch {
        node: usize,
        filter: u8,
        skip: bool,
        events: usize,
    },
    Read {
        pick: usize,
        updates: usize,
    },
    /// A watcher breaks and comes back at a node with the cursor it kept.
    Resume {
        pick: usize,
        node: usize,
        events: usize,
    },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let events = 1..6_usize;
    let op = prop_oneof![
        2 => (0..3_000_u64).prop_map(Op::Tick),
        12 => (0..3_usize, 0..UIDS, prop_oneof![3 => Just(0), 1 => 0..6_000_u64], any::<bool>())
            .prop_map(|(node, uid, ago, replaces)| Op::Login { node, uid, ago, replaces }),
        9 => any::<usize>().prop_map(|pick| Op::End { pick }),
        1 => (0..3_usize, 0..3_u8).prop_map(|(node, how)| Op::Lose { node, how }),
        2 => (0..3_usize, prop_oneof![Just(0), any::<u8>()], any::<bool>(), events.clone())
            .prop_map(|(node, filter, skip, events)| Op::Watch { node, filter, skip, events }),
        6 => (any::<usize>(), 1..4_usize).prop_map(|(pick, updates)| Op::Read { pick, updates }),
        3 => (any::<usize>(), 0..3_usize, events)
            .prop_map(|(pick, node, events)| Op::Resume { pick, node, events }),
    ];
    proptest::collection::vec(op, 1..150)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Conn {
    uid: usize,
    life: u64,
    number: u32,
    accepted: u64,
}

struct World {
    clock: Clock,
    time: u64,
    log: LocalLog,
    options: Options,
    nodes: Vec<(Cluster, Inbox)>,
    /// Holds no devices and never dies: what it was told is the reference.
    recorder: Cluster,
    recorded: u64,
    reference: Vec<(usize, u64, bool)>,
    numbers: u32,
    /// Per uid, oldest first: what is true.
    truth: Vec<Vec<Conn>>,
    /// Displaced, and not ended yet.
    half_open: Vec<Conn>,
    to_close: BTreeSet<(u64, u32)>,
    closed: BTreeSet<(u64, u32)>,
    watchers: Vec<Follower>,
}

fn uid_of(n: usize) -> Uid {
    uid(&format!("u{n}"))
}

fn index_of(uid: &Uid) -> usize {
    uid.as_str()[1..].parse().unwrap()
}

fn filtered(filter: u8) -> Vec<Uid> {
    (0..UIDS).filter(|n| filter & (1 << n) != 0).map(uid_of).collect()
}

fn wants(filter: u8, n: usize) -> bool {
    filtered(filter).is_empty() || filter & (1 << n) != 0
}

impl World {
    fn new(nodes: usize, connections_per_uid: u16, history: usize) -> Self {
        let clock = Clock::default();
        let log = clock.log();
        let options = Options { connections_per_uid, history, ..options() };
        let (recorder, _) = Cluster::join(&log, name("recorder"), Options { history: 10_000, ..options.clone() });
        let join = |n| Cluster::join(&log, name(&format!("n{n}")), options.clone());
        Self {
            nodes: (0..nodes).map(join).collect(),
            clock,
            time: 0,
            recorder,
            recorded: 0,
            reference: Vec::new(),
            numbers: 0,
            truth: vec![Vec::new(); UIDS],
            half_open: Vec::new(),
            to_close: BTreeSet::new(),
            closed: BTreeSet::new(),
            watchers: Vec::new(),
            log,
            options,
        }
    }

    fn run(&mut self, op: &Op) {
        let before: Vec<bool> = self.truth.iter().map(|held| !held.is_empty()).collect();
        let nodes = self.nodes.len();
        match *op {
            Op::Tick(ms) => {
                self.time += ms;
                self.clock.set(self.time);
            }
            Op::Login { node, uid, ago, replaces } => self.login(node % nodes, uid, ago, replaces),
            Op::End { pick } => self.end(pick),
            Op::Lose { node, how } => self.lose(node % nodes, how),
            Op::Watch { node, filter, skip, events } => {
                let follower = Follower::new(self, node % nodes, filter, skip, events);
                self.watchers.push(follower);
            }
            Op::Read { pick, updates } => self.with_follower(pick, |follower, world| {
                (0..updates).all(|_| follower.read(world));
            }),
            Op::Resume { pick, node, events } => {
                self.with_follower(pick, |follower, world| follower.resume(world, node % nodes, events));
            }
        }
        self.record(&before);
    }

    fn with_follower(&mut self, pick: usize, act: impl FnOnce(&mut Follower, &Self)) {
        if !self.watchers.is_empty() {
            let mut follower = self.watchers.swap_remove(pick % self.watchers.len());
            act(&mut follower, self);
            self.watchers.push(follower);
        }
    }

    fn login(&mut self, node: usize, n: usize, ago: u64, replaces: bool) {
        let cluster = &self.nodes[node].0;
        let life = cluster.incarnation().0;
        self.numbers += 1;
        let accepted = Clock::START + self.time - ago.min(self.time);
        let new = Conn { uid: n, life, number: self.numbers, accepted: accepted / 1_000 };
        let aged = Clock::START + self.time - accepted > 1_000;
        let held = &mut self.truth[n];
        let old = held.iter().position(|old| replaces && old.life == life);
        let old = old.map(|at| held.remove(at));
        let mut displaced = Vec::new();
        let at = held.iter().position(|other| aged && other.accepted > new.accepted).unwrap_or(held.len());
        held.insert(at, new);
        if held.len() > self.options.connections_per_uid as usize {
            displaced.push(held.remove(0));
        }
        let old = old.map(|old| ConnectionNumber(old.number));
        cluster.claim(&uid_of(n), ConnectionNumber(new.number), old, Millis(accepted));
        self.to_close.extend(displaced.iter().map(|old| (old.life, old.number)));
        self.half_open.extend(displaced);
    }

    fn end(&mut self, pick: usize) {
        let counting: Vec<_> = self.truth.iter().flatten().copied().collect();
        let all: Vec<_> = counting.iter().chain(&self.half_open).copied().collect();
        let Some(conn) = all.get(pick % all.len().max(1)) else { return };
        self.truth[conn.uid].retain(|other| other != conn);
        self.half_open.retain(|other| other != conn);
        if let Some((node, _)) = self.nodes.iter().find(|(node, _)| node.incarnation().0 == conn.life) {
            node.release(&uid_of(conn.uid), ConnectionNumber(conn.number), EndReason::Closed);
        }
    }

    fn lose(&mut self, at: usize, how: u8) {
        self.take_closes();
        let node = &self.nodes[at].0;
        let (name, life) = (node.name().clone(), node.incarnation().0);
        match how {
            0 => assert!(self.log.end(&name)),
            1 => drop(node.leave()),
            _ => {}
        }
        let late = node.clone();
        self.nodes[at] = Cluster::join(&self.log, name, self.options.clone());
        // What the old life says late does nothing.
        late.come("u0", 1);
        drop(late.leave());
        self.truth.iter_mut().for_each(|held| held.retain(|conn| conn.life != life));
        self.half_open.retain(|conn| conn.life != life);
    }

    fn take_closes(&mut self) {
        for (node, inbox) in &mut self.nodes {
            while let Some(Inbound::Close { number: ConnectionNumber(number), .. }) = inbox.try_recv() {
                assert!(self.closed.insert((node.incarnation().0, number)), "closed twice");
            }
        }
    }

    /// Takes what the recorder was told by the last operation, and compares it with the truth and the other nodes.
    fn record(&mut self, before: &[bool]) {
        let told: Vec<Told> = {
            let presence = self.recorder.0.presence();
            (self.recorded..presence.ring.end()).map(|at| presence.ring.get(at).unwrap().clone()).collect()
        };
        self.recorded += told.len() as u64;
        let mut changed = Vec::new();
        for told in &told {
            for change in (0..told.uids().len()).map(|n| told.change(n)) {
                let n = index_of(&change.uid);
                let last = self.reference.iter().rev().find(|(other, ..)| *other == n);
                assert!(
                    last.is_none_or(|(_, epoch, online)| *epoch < change.epoch && *online == change.offline.is_some())
                );
                self.reference.push((n, change.epoch, change.offline.is_none()));
                changed.push((n, change.offline.is_none()));
            }
        }
        changed.sort_unstable();
        let now = self.truth.iter().map(|held| !held.is_empty());
        let expected: Vec<_> = now.enumerate().filter(|(n, online)| *online != before[*n]).collect();
        assert_eq!(changed, expected);
        let sorted = |told: Option<&Told>| {
            let told = told.cloned();
            told.map(|mut told| {
                if let Told::Death(death) = &mut told {
                    death.uids.sort();
                }
                told
            })
        };
        for (node, _) in &self.nodes {
            let presence = node.0.presence();
            if let Some(last) = told.last().filter(|told| told.epoch() > presence.ring.floor()) {
                let own = presence.ring.end().checked_sub(1).and_then(|at| presence.ring.get(at));
                // Who joined within this operation hasn't seen what was before.
                if node.incarnation().0 * 1024 < last.epoch() {
                    assert_eq!(sorted(own), sorted(Some(last)));
                }
            }
        }
    }

    fn check_state(&mut self) {
        self.take_closes();
        let live: HashSet<_> = self.nodes.iter().map(|(node, _)| node.incarnation().0).collect();
        let to_close: BTreeSet<_> = self.to_close.iter().filter(|(life, _)| live.contains(life)).collect();
        let closed: BTreeSet<_> = self.closed.iter().filter(|(life, _)| live.contains(life)).collect();
        assert_eq!(closed, to_close);
        for (n, held) in self.truth.iter().enumerate() {
            let mut lives: Vec<_> = held.iter().rev().map(|conn| Incarnation(conn.life)).collect();
            let mut seen = HashSet::new();
            lives.retain(|life| seen.insert(*life));
            for (node, _) in &self.nodes {
                let holding = node.lookup(uid_of(n).as_str());
                assert_eq!(holding.as_ref().map_or(0, |holding| holding.connections as usize), held.len());
                assert_eq!(holding.map_or(Vec::new(), |holding| holding.nodes), lives);
            }
        }
        let online = self.truth.iter().filter(|held| !held.is_empty()).count();
        assert!(self.nodes.iter().all(|(node, _)| node.uids() == online as u64));
    }
}

/// What a subscriber knows.
struct Follower {
    watcher: Watcher,
    node: Cluster,
    filter: u8,
    /// The most events of an update.
    events: usize,
    /// Per uid: whether it is online, and the last epoch; absent: not told of.
    known: BTreeMap<usize, (bool, u64)>,
    live: bool,
    /// Whether a snapshot or a reset has begun and `Live` hasn't come.
    within_snapshot: bool,
    cursor: String,
    /// It resumed in the middle of that epoch's events, perhaps.
    repeats: Option<u64>,
    /// The place it asked for, until it was granted.
    asked: Option<u64>,
}

impl Follower {
    fn new(world: &World, node: usize, filter: u8, skip: bool, events: usize) -> Self {
        let node = world.nodes[node].0.clone();
        let watcher = node.watch(filtered(filter), skip, "").with_limits(events, events + 1);
        let all = (0..UIDS).map(|n| {
            let last = world.reference.iter().rev().find(|(other, ..)| *other == n);
            (n, last.map_or((false, 0), |(_, epoch, online)| (*online, *epoch)))
        });
        let known = if skip { all.collect() } else { BTreeMap::new() };
        Self {
            watcher,
            node,
            filter,
            events,
            known,
            live: false,
            within_snapshot: !skip,
            cursor: String::new(),
            repeats: None,
            asked: None,
        }
    }

    fn resume(&mut self, world: &World, node: usize, events: usize) {
        let Some(cursor) = cursor::Cursor::read(&self.cursor) else {
            *self = Self::new(world, node, self.filter, false, events);
            return;
        };
        self.node = world.nodes[node].0.clone();
        self.watcher = self.node.watch(filtered(self.filter), false, &self.cursor).with_limits(events, events + 1);
        self.live = false;
        self.events = events;
        self.asked = Some(cursor.place);
        self.repeats = self.known.values().map(|(_, epoch)| *epoch).max();
    }

    /// Takes one update; false where there is none now.
    fn read(&mut self, world: &World) -> bool {
        let Some(update) = told_now(&mut self.watcher) else { return false };
        assert!(!update.events.is_empty(), "the clock stands still");
        assert!(update.events.len() <= self.events);
        let last = update.events.len() - 1;
        for (at, event) in update.events.iter().enumerate() {
            match event {
                PresenceEvent::Change(change) => self.change(world, change),
                PresenceEvent::Snapshot { uid, epoch, .. } => {
                    assert!(self.within_snapshot && !self.live);
                    let n = index_of(uid);
                    assert!(wants(self.filter, n));
                    assert!(self.known.insert(n, (true, *epoch)).is_none(), "told twice");
                    let changes = world.reference.iter().filter(|(other, at, _)| *other == n && at <= epoch);
                    assert!(changes.max().unwrap().2, "was it online then?");
                }
                PresenceEvent::Live { .. } => {
                    assert_eq!(at, last);
                    assert!(!self.live, "live once");
                    self.live = true;
                    self.within_snapshot = false;
                    let filter = self.filter;
                    let place = cursor::Cursor::read(&update.cursor).unwrap().place;
                    // Who hasn't been told of by then is offline.
                    for n in (0..UIDS).filter(|n| wants(filter, *n)) {
                        let changes = world.reference.iter().filter(|(other, epoch, _)| *other == n && *epoch <= place);
                        let epoch = changes.map(|(_, epoch, _)| *epoch).max().unwrap_or(0);
                        self.known.entry(n).or_insert((false, epoch));
                    }
                }
                PresenceEvent::Reset { .. } => {
                    assert_eq!(at, last);
                    let floor = self.node.0.presence().ring.floor();
                    assert!(self.asked.is_none_or(|place| place < floor), "it could have been granted");
                    self.known.clear();
                    (self.live, self.within_snapshot) = (false, true);
                    (self.repeats, self.cursor) = (None, String::new());
                }
            }
        }
        self.asked = None;
        assert_eq!(update.cursor.is_empty(), self.within_snapshot);
        if !update.cursor.is_empty() {
            self.cursor = update.cursor;
        }
        true
    }

    fn change(&mut self, world: &World, change: &crate::model::PresenceChange) {
        let n = index_of(&change.uid);
        assert!(wants(self.filter, n));
        let online = change.offline.is_none();
        let (was, epoch) = self.known.get(&n).copied().unwrap_or((false, 0));
        if epoch == change.epoch && self.repeats == Some(epoch) && !online {
            return;
        }
        assert!(change.epoch > epoch, "reversed or doubled");
        assert_ne!(was, online, "not alternating");
        if self.known.contains_key(&n) {
            let next = world.reference.iter().find(|(other, at, _)| *other == n && *at > epoch);
            assert_eq!(next, Some(&(n, change.epoch, online)), "one was lost");
        }
        self.known.insert(n, (online, change.epoch));
    }

    fn finish(&mut self, world: &World) {
        while self.read(world) {}
        assert!(self.live);
        for n in (0..UIDS).filter(|n| wants(self.filter, *n)) {
            let (online, epoch) = self.known[&n];
            assert_eq!(online, !world.truth[n].is_empty(), "u{n}");
            assert!(world.reference.iter().all(|(other, at, _)| *other != n || *at <= epoch), "u{n}: one was lost");
        }
    }
}

/// Enough to meet every rule each time; `PROPTEST_CASES` says otherwise.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_watcher_knows_the_truth(
        ops in ops(),
        nodes in 1..4_usize,
        connections_per_uid in 1..3_u16,
        history in prop_oneof![1..5_usize, Just(1_000)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(nodes, connections_per_uid, history);
            for op in &ops {
                world.run(op);
            }
            world.check_state();
            let mut watchers = std::mem::take(&mut world.watchers);
            watchers.iter_mut().for_each(|follower| follower.finish(&world));
        });
    }
}
