//! The nodes of the simulator, step by step.

mod checks;
mod disturbances;
mod follower;
mod network;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::BoxFuture;

use self::follower::Follower;
use super::{
    engine::{Engine, Stream},
    *,
};
use crate::cluster::{
    engine::{Engine as EngineSeam, Standing},
    member::{Command, Member, Settings},
    node::Node,
    outgoing::Outgoing,
};

const NODES: usize = 4;
const UIDS: usize = 20;
/// One step, in ms.
const STEP: u64 = 50;
const STEPS: u64 = 2_400;
const QUIET: u64 = 1_200;
/// How long a connection whose age can't be told may matter to others of its uid: until it is closed, mostly.
const AGELESS: u64 = 30_000;
/// Of two logins of a uid within this time either may win: the second that the rule gives, and what the log's clock
/// isn't known by.
const CLOSE_LOGINS: u64 = 1_900;
/// How far the clock of a new leader may be off; by so much more where one was.
const LEADER_AHEAD: u64 = 5_000;

/// What came of a run, or of several.
#[derive(Debug, Default, Clone)]
pub(super) struct Outcome {
    pub(super) broken: Vec<String>,
    pub(super) changes: u64,
    pub(super) deaths: u64,
    pub(super) healthy_ended: u64,
    /// How often a uid came online by a node that had ended.
    pub(super) ghosts: u64,
    pub(super) states_lost: u64,
    pub(super) resets: u64,
}

impl Outcome {
    pub(super) fn and(mut self, other: Self) -> Self {
        self.broken.extend(other.broken);
        self.changes += other.changes;
        self.deaths += other.deaths;
        self.healthy_ended += other.healthy_ended;
        self.ghosts += other.ghosts;
        self.states_lost += other.states_lost;
        self.resets += other.resets;
        self
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }
}

/// Takes a node's words; the world does the rest.
struct Words(Arc<Outgoing>, Clock, Stood);

/// For how long the clock of a process has stood still, in ms.
type Stood = Arc<AtomicU64>;

impl EngineSeam for Words {
    fn claim(
        &self,
        _: &Node,
        uid: &Uid,
        number: ConnectionNumber,
        replaces: Option<ConnectionNumber>,
        accepted: Millis,
    ) {
        self.0.claim(uid, number, replaces, accepted);
    }

    fn release(&self, _: &Node, uid: &Uid, number: ConnectionNumber, reason: EndReason) {
        self.0.release(uid, number, reason);
    }

    fn announce(&self, _: &Node, card: Card) {
        self.0.announce(card);
    }

    fn now(&self) -> Millis {
        Millis(self.1.0.load(Ordering::Relaxed) - self.2.load(Ordering::Relaxed))
    }

    fn send(&self, _: Incarnation, _: Inbound) -> bool {
        false
    }

    fn barrier(&self) -> Option<BoxFuture<'static, bool>> {
        None
    }

    fn is_bus_up(&self) -> bool {
        true
    }

    fn leave(&self, _: &Node) -> BoxFuture<'static, ()> {
        self.0.leave();
        async {}.boxed()
    }
}

/// A process.
struct Process {
    member: Member,
    cluster: Cluster,
    inbox: Inbox,
    /// The world's time at which its own clock was 0.
    begun: u64,
    stood: Stood,
    outgoing: Arc<Outgoing>,
    /// Told by this process since its start.
    follower: Follower,
    linked: bool,
    reader: Option<ReaderAt>,
    /// The log that it was last in step with, and how far it had folded that.
    place: Option<(u64, u64)>,
    /// Until when each direction delivers in order.
    last_out: u64,
    ended: bool,
}

impl Process {
    /// In µs.
    fn own_clock(&self, now: u64) -> u64 {
        (now - self.begun - self.stood.load(Ordering::Relaxed)) * 1_000
    }
}

struct ReaderAt {
    generation: u64,
    next: u64,
    log: u64,
    last_at: u64,
}

/// A connection, as it truly is: (node, number) → whose, and when it was accepted.
#[derive(Debug, Clone, Copy)]
struct Open {
    uid: usize,
    accepted: u64,
    /// Its device has gone, and the node hasn't seen it.
    half_open: bool,
}

enum Happens {
    Write(Vec<u8>),
    Api(Command),
    Bounds(u64, Result<Option<crate::cluster::member::Bounds>, ()>),
    Changed,
    Read { generation: u64, sequence: u64, at: Millis, bytes: Vec<u8> },
    ReadingEnded,
    Ask { snapshot: u64, part: u8, of: Option<Incarnation> },
    Part { snapshot: u64, part: u8, answer: Option<(Incarnation, Vec<u8>)> },
    Close { number: u32 },
}

pub(super) struct World {
    random: Random,
    rules: Rules,
    now: u64,
    connections_per_uid: u16,
    clock: Clock,
    engine: Engine,
    saved: Option<(u64, Stream)>,
    processes: Vec<Option<Process>>,
    lives: u64,
    frozen_until: [u64; NODES],
    /// While it is frozen: with its clock.
    machine_stands: [bool; NODES],
    /// Of connections that were accepted right before or after that nobody can tell how old they are.
    ageless: BTreeSet<u32>,
    cut_until: [u64; NODES],
    engine_back: u64,
    loss: u64,
    numbers: u32,
    open: BTreeMap<(usize, u32), Open>,
    /// Of all that ever were: whose, and when they were accepted.
    logins: BTreeMap<u32, (usize, u64)>,
    /// By time, then order: whose, of which life.
    events: BTreeMap<(u64, u64), (usize, u64, Happens)>,
    counter: u64,
    outcome: Outcome,
    seed: u64,
    quiet: bool,
    leader_jumped: bool,
}

impl World {
    pub(super) fn new(seed: u64, rules: Rules) -> Self {
        let mut random = Random(seed);
        let connections_per_uid = 1 + random.below(2) as u16;
        let keeps = [100_000, 250][usize::from(random.chance(500))];
        let clock = Clock::default();
        clock.set(0);
        Self {
            loss: [0, 0, 50, 200][random.below(4) as usize],
            random,
            rules,
            now: 0,
            connections_per_uid,
            clock,
            engine: Engine::new(keeps, connections_per_uid, rules),
            saved: None,
            processes: (0..NODES).map(|_| None).collect(),
            lives: 0,
            frozen_until: [0; NODES],
            machine_stands: [false; NODES],
            ageless: BTreeSet::new(),
            cut_until: [0; NODES],
            engine_back: 0,
            numbers: 0,
            open: BTreeMap::new(),
            logins: BTreeMap::new(),
            events: BTreeMap::new(),
            counter: 0,
            outcome: Outcome::default(),
            seed,
            quiet: false,
            leader_jumped: false,
        }
    }

    pub(super) async fn run(mut self) -> Outcome {
        for node in 0..NODES {
            self.start(node);
        }
        for _ in 0..STEPS {
            self.step().await;
            self.disturb();
            if !self.outcome.broken.is_empty() {
                return self.outcome;
            }
        }
        self.calm();
        for _ in 0..QUIET {
            self.step().await;
        }
        self.check();
        self.outcome.changes = self.engine.changes.len() as u64;
        self.outcome.ghosts = self.engine.ghosts;
        self.outcome
    }

    fn wall(&self) -> Millis {
        Millis(Clock::START + self.now)
    }

    fn broken(&mut self, what: String) {
        self.outcome.broken.push(format!("seed {} at {} ms: {what}", self.seed, self.now));
    }

    fn start(&mut self, node: usize) {
        let outgoing = Arc::new(Outgoing::default());
        let (closes, _, inbox) = Inbox::new();
        let options = Options { connections_per_uid: self.connections_per_uid, history: 1 << 20, ..options() };
        let stood = Stood::default();
        let words = Arc::new(Words(outgoing.clone(), self.clock.clone(), stood.clone()));
        let inner = Node::new(name(&format!("n{node}")), words, false, closes, options);
        inner.change(|presence| {
            presence.state = std::mem::replace(&mut presence.state, State::new(1)).with_rules(self.rules)
        });
        let inner = Arc::new(inner);
        let settings = Settings {
            start: self.wall().0 * 1_000,
            dead_after: 7,
            gather: Duration::from_millis(5),
            window: 4,
            first_floor: 1,
            rules: self.rules,
        };
        let (base, nonce) = (self.wall(), self.random.next());
        let mut member = Member::new(inner.clone(), outgoing.clone(), base, nonce, settings);
        outgoing.announce(Card { ready: true, capacity: 1, ..Card::default() });
        let cluster = Cluster(inner);
        self.lives += 1;
        let mut out = Vec::new();
        member.link_up(0, &mut out);
        let follower = Follower::new(cluster.watch(Vec::new(), false, ""));
        self.processes[node] = Some(Process {
            member,
            cluster,
            inbox,
            begun: self.now,
            stood,
            outgoing,
            follower,
            linked: true,
            reader: None,
            place: None,
            last_out: 0,
            ended: false,
        });
        self.carry_out(node, out);
    }

    async fn step(&mut self) {
        self.now += STEP;
        self.clock.set(self.now);
        tokio::time::advance(Duration::from_millis(STEP)).await;
        for node in 0..NODES {
            let stands = self.machine_stands[node] && self.now < self.frozen_until[node];
            if let Some(process) = self.processes[node].as_ref().filter(|_| stands) {
                process.stood.fetch_add(STEP, Ordering::Relaxed);
            }
        }
        self.read_log();
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (node, life, happens) = entry.remove();
            let frozen = self.now < self.frozen_until[node];
            match happens {
                Happens::Write(bytes) => {
                    if self.reaches(node) {
                        let wall = self.wall();
                        self.engine.append(wall, bytes);
                    }
                }
                Happens::Api(command) => self.api(node, life, &command),
                Happens::Ask { snapshot, part, of } => self.ask((node, life), snapshot, part, of),
                happens if life != self.life_of(node) => drop(happens),
                happens if frozen => {
                    let delay = self.frozen_until[node] - self.now + STEP;
                    self.at(delay, node, happens);
                }
                happens => self.happens(node, happens),
            }
        }
        for node in 0..NODES {
            self.run_node(node);
        }
        self.note_ended();
    }

    fn run_node(&mut self, node: usize) {
        if self.now < self.frozen_until[node] {
            return;
        }
        let reaches = self.reaches(node);
        let now = self.now;
        let Some(process) = &mut self.processes[node] else { return };
        let own = process.own_clock(now);
        let mut out = Vec::new();
        if reaches && !process.linked {
            process.linked = true;
            process.member.link_up(own, &mut out);
        } else if !reaches && process.linked && self.random.chance(100) {
            process.linked = false;
            process.reader = None;
            process.member.link_down(own);
        }
        process.member.tick(own, &mut out);
        let is_idle = process.member.deadline(own) > own;
        let mut closes = Vec::new();
        while let Some(Inbound::Close { number, .. }) = process.inbox.try_recv() {
            closes.push(number.0);
        }
        let ended = process.ended;
        let resets = process.follower.resets;
        let told = process.follower.read();
        let (is_reset, place) = (process.follower.resets > resets, process.place);
        let presence = process.cluster.0.presence();
        if let Some(log) = presence.log.filter(|_| presence.is_open()) {
            process.place = Some((log.id, presence.folded.0));
        }
        drop(presence);
        if is_reset && !self.could_not_go_on(place) {
            self.broken(format!("node {node} tells a needless reset: it was at {place:?}"));
        }
        if !is_idle {
            self.broken(format!("node {node} never sleeps"));
        }
        self.carry_out(node, out);
        for number in closes {
            self.displace(node, number);
        }
        if let Err(what) = told {
            self.broken(format!("node {node} tells: {what}"));
        }
        if ended {
            self.crash(node);
        }
    }
}

fn uid_of(uid: usize) -> Uid {
    Uid::new(&format!("u{uid}")).unwrap()
}

fn uid_index(uid: &Uid) -> usize {
    uid.as_str()[1..].parse().unwrap()
}
