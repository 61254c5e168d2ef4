//! The nodes of the simulator, what happens to them, and what has to hold.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::BoxFuture;

use super::{
    engine::{Engine, Stream},
    *,
};
use crate::cluster::{
    engine::{Engine as EngineSeam, Standing},
    member::{Command, Member, Settings},
    node::Node,
    outgoing::Outgoing,
    wire::{PartHead, encode_part},
};

const NODES: usize = 4;
const UIDS: usize = 20;
/// One step, in ms.
const STEP: u64 = 50;
const STEPS: u64 = 2_400;
const QUIET: u64 = 1_200;
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
struct Words(Arc<Outgoing>, Clock);

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
        Millis(self.1.0.load(Ordering::Relaxed))
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
    Ask { part: u8, of: Option<Incarnation> },
    Part { part: u8, answer: Option<(Incarnation, Vec<u8>)> },
    Close { number: u32 },
}

/// What a subscriber knows, and whether it could.
struct Follower {
    watcher: Option<Watcher>,
    online: BTreeMap<usize, u64>,
    before_reset: BTreeMap<usize, u64>,
    highest: BTreeMap<usize, u64>,
    live: bool,
    /// All changes told since the last snapshot was whole, by epoch.
    changes: Vec<(u64, usize)>,
    resets: u64,
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
        let words = Arc::new(Words(outgoing.clone(), self.clock.clone()));
        let inner = Node::new(name(&format!("n{node}")), words, false, closes, options);
        inner.change(|presence| {
            presence.state = std::mem::replace(&mut presence.state, State::new(1)).with_rules(self.rules)
        });
        let inner = Arc::new(inner);
        let settings = Settings {
            start: self.wall().0 * 1_000,
            heartbeat: Duration::from_millis(500),
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
            follower,
            linked: true,
            reader: None,
            place: None,
            last_out: 0,
            ended: false,
        });
        self.carry_out(node, out);
    }

    fn at(&mut self, delay: u64, node: usize, happens: Happens) {
        self.counter += 1;
        let life = self.life_of(node);
        self.events.insert((self.now + delay, self.counter), (node, life, happens));
    }

    fn life_of(&self, node: usize) -> u64 {
        self.processes[node].as_ref().map_or(u64::MAX, |process| process.begun)
    }

    fn reaches(&self, node: usize) -> bool {
        self.engine.up && self.now >= self.cut_until[node]
    }

    fn carry_out(&mut self, node: usize, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Append(bytes) => {
                    let delay =
                        match (self.random.chance(self.loss), self.random.chance(if self.quiet { 0 } else { 10 })) {
                            (true, _) => continue,
                            (_, true) => self.random.below(15_000),
                            _ => {
                                // In order, as a connection is.
                                let at = self.now + self.random.below(40);
                                let process = self.processes[node].as_mut().expect("it has just spoken");
                                process.last_out = process.last_out.max(at);
                                process.last_out - self.now
                            }
                        };
                    self.at(delay, node, Happens::Write(bytes));
                }
                Command::Bounds { .. } | Command::Create { .. } | Command::Discard(_) => {
                    let delay = self.random.below(40);
                    self.at(delay, node, Happens::Api(command));
                }
                Command::Read { from } => {
                    self.counter += 1;
                    let log = self.engine.stream.as_ref().map_or(0, |stream| stream.log.id);
                    let process = self.processes[node].as_mut().expect("it has just spoken");
                    process.reader = Some(ReaderAt { generation: self.counter, next: from, log, last_at: self.now });
                }
                Command::Ask { part, of } => {
                    let delay = self.random.below(60);
                    self.at(delay, node, Happens::Ask { part, of });
                }
                Command::Superseded | Command::Left => {
                    self.processes[node].as_mut().expect("it has just spoken").ended = true;
                }
                Command::Ended(_) | Command::Joined(_) | Command::Refused(_) => {}
            }
        }
    }

    async fn step(&mut self) {
        self.now += STEP;
        self.clock.set(self.now);
        tokio::time::advance(Duration::from_millis(STEP)).await;
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
                Happens::Ask { part, of } => self.ask(node, life, part, of),
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

    /// What the log has goes on its way to its readers.
    fn read_log(&mut self) {
        for node in 0..NODES {
            let reaches = self.reaches(node);
            let now = self.now;
            let Some(process) = &mut self.processes[node] else { continue };
            let Some(reader) = &mut process.reader else { continue };
            let generation = reader.generation;
            let stream = self.engine.stream.as_ref().filter(|stream| stream.log.id == reader.log);
            let delays = [self.random.below(40), self.random.below(40)];
            let mut sent = Vec::new();
            let mut ended = false;
            match stream.filter(|_| reaches) {
                Some(stream) if reader.next < stream.first => ended = true,
                Some(stream) => {
                    while let Some((at, bytes)) = stream.get(reader.next) {
                        sent.push((reader.next, *at, bytes.clone()));
                        reader.next += 1;
                    }
                    reader.last_at = now;
                }
                None => ended = now > reader.last_at + 1_500,
            }
            if ended {
                process.reader = None;
                self.at(0, node, Happens::ReadingEnded);
            }
            let delay = delays[0].max(delays[1]);
            for (sequence, at, bytes) in sent {
                self.at(delay, node, Happens::Read { generation, sequence, at, bytes });
            }
        }
    }

    fn api(&mut self, node: usize, life: u64, command: &Command) {
        if life != self.life_of(node) {
            return;
        }
        let reaches = self.reaches(node) && !self.random.chance(self.loss / 4);
        if reaches {
            let wall = self.wall();
            match command {
                Command::Create { first } => self.engine.create(*first, wall),
                Command::Discard(log) if self.engine.stream.as_ref().is_some_and(|stream| stream.log == *log) => {
                    let stream = self.engine.stream.take();
                    if !stream.is_some_and(|stream| stream.rolled_back) {
                        self.broken(format!("node {node} deletes a log that nothing is wrong with"));
                    }
                }
                _ => {}
            }
        }
        let answer = match command {
            Command::Bounds { known } if reaches => {
                Happens::Bounds(*known, Ok(self.engine.stream.as_ref().map(super::engine::Stream::bounds)))
            }
            Command::Bounds { known } => Happens::Bounds(*known, Err(())),
            _ => Happens::Changed,
        };
        // In some runs, some come a moment late: what was written meanwhile may be read before them.
        let is_late = self.seed % 12 == 11 && !self.quiet && self.random.chance(50);
        let delay = match reaches {
            true if is_late => self.random.below(400),
            true => self.random.below(40),
            false => 400,
        };
        self.at(delay, node, answer);
    }

    fn ask(&mut self, node: usize, life: u64, part: u8, of: Option<Incarnation>) {
        if life != self.life_of(node) {
            return;
        }
        let mut tellers = Vec::new();
        for other in 0..NODES {
            let up = self.reaches(other) && self.now >= self.frozen_until[other];
            if let Some(process) = self.processes[other].as_ref().filter(|process| up && process.member.has_state()) {
                let incarnation = process.cluster.incarnation();
                if of.is_none_or(|of| of == incarnation) && other != node {
                    tellers.push((other, incarnation));
                }
            }
        }
        if tellers.is_empty() || !self.reaches(node) || self.random.chance(self.loss / 20) {
            let delay = if tellers.is_empty() { 40 } else { 2_000 };
            return self.at(delay, node, Happens::Part { part, answer: None });
        }
        let (teller, incarnation) = tellers[self.random.below(tellers.len() as u64) as usize];
        let process = self.processes[teller].as_ref().expect("it has the state");
        let presence = process.cluster.0.presence();
        let head = PartHead { part, sequence: presence.folded.0, at: presence.folded.1 };
        let bytes = encode_part(&presence.state, head);
        drop(presence);
        let delay = self.random.below(60);
        self.at(delay, node, Happens::Part { part, answer: Some((incarnation, bytes)) });
    }

    fn happens(&mut self, node: usize, happens: Happens) {
        let now = self.now;
        let Some(process) = &mut self.processes[node] else { return };
        let own = (now - process.begun) * 1_000;
        let mut out = Vec::new();
        match happens {
            Happens::Bounds(known, answer) => process.member.bounds(own, known, answer, &mut out),
            Happens::Changed => process.member.changed(own, &mut out),
            Happens::Read { generation, sequence, at, bytes } => {
                if process.reader.as_ref().is_some_and(|reader| reader.generation == generation) {
                    process.member.message(own, sequence, at, &bytes, &mut out);
                }
            }
            Happens::ReadingEnded => process.member.reading_ended(own, &mut out),
            Happens::Part { part, answer } => process.member.part(own, part, answer),
            Happens::Close { number } => {
                if let Some(open) = self.open.remove(&(node, number)) {
                    let uid = uid_of(open.uid);
                    process.cluster.release(&uid, ConnectionNumber(number), EndReason::Closed);
                }
            }
            Happens::Write(_) | Happens::Api(_) | Happens::Ask { .. } => unreachable!("done where it arrives"),
        }
        self.carry_out(node, out);
    }

    fn run_node(&mut self, node: usize) {
        if self.now < self.frozen_until[node] {
            return;
        }
        let reaches = self.reaches(node);
        let now = self.now;
        let Some(process) = &mut self.processes[node] else { return };
        let own = (now - process.begun) * 1_000;
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

    /// Whether what is told can't follow from what was told at `place`: that log is gone, or what comes after that place,
    /// or it has since been made void because nobody knew the state. Freezes and outages alone are no reason.
    fn could_not_go_on(&self, place: Option<(u64, u64)>) -> bool {
        let Some((log, folded)) = place else { return false };
        let stream = self.engine.stream.as_ref().filter(|stream| stream.log.id == log);
        stream.is_none_or(|stream| stream.first > folded || stream.voided > folded)
    }

    /// The log has displaced a connection: its node closes it.
    fn displace(&mut self, node: usize, number: u32) {
        let Some(gone) = self.open.remove(&(node, number)) else { return };
        let process = self.processes[node].as_ref().expect("it has just spoken");
        process.cluster.release(&uid_of(gone.uid), ConnectionNumber(number), EndReason::Replaced);
        let close = CLOSE_LOGINS + if self.leader_jumped { LEADER_AHEAD } else { 0 };
        // It may have closed meanwhile.
        let newer = self.logins.iter().filter(|(other, accepted)| {
            **other != number && accepted.0 == gone.uid && accepted.1 + close > gone.accepted
        });
        if newer.count() == 0 {
            let others: Vec<_> = self.open.iter().filter(|(_, open)| open.uid == gone.uid).collect();
            self.broken(format!("an older connection took the place of {node}:{number}, {gone:?}: {others:?}"));
        }
    }

    fn crash(&mut self, node: usize) {
        self.processes[node] = None;
        self.open.retain(|(holder, _), _| *holder != node);
    }

    fn note_ended(&mut self) {
        for (incarnation, name) in std::mem::take(&mut self.engine.ended) {
            self.outcome.deaths += 1;
            let node: usize = name.as_str()[1..].parse().unwrap();
            let healthy = self.processes[node].as_ref().is_some_and(|process| {
                process.cluster.incarnation() == incarnation && self.now > self.cut_until[node] + 5_000
            });
            if healthy && self.now > self.frozen_until[node] + 5_000 && self.now > self.engine_back + 10_000 {
                self.outcome.healthy_ended += 1;
            }
        }
    }

    fn login(&mut self, node: usize, uid: usize) {
        if self.now < self.frozen_until[node] {
            return;
        }
        let Some(process) = &self.processes[node] else { return };
        let limit = usize::from(self.connections_per_uid);
        let mut own: Vec<_> =
            self.open.iter().filter(|((holder, _), open)| *holder == node && open.uid == uid).collect();
        own.sort_by_key(|((_, number), open)| (open.accepted, *number));
        let replaces = (own.len() >= limit).then(|| own[0].0.1);
        self.numbers += 1;
        let number = self.numbers;
        process.cluster.claim(
            &uid_of(uid),
            ConnectionNumber(number),
            replaces.map(ConnectionNumber),
            process.cluster.now(),
        );
        if let Some(replaced) = replaces {
            self.open.remove(&(node, replaced));
        }
        self.logins.insert(number, (uid, self.now));
        self.open.insert((node, number), Open { uid, accepted: self.now, half_open: false });
    }

    /// One thing or none.
    fn disturb(&mut self) {
        let node = self.random.below(NODES as u64) as usize;
        let uid = self.random.below(UIDS as u64) as usize;
        let picks = self.open.len() as u64;
        match self.random.below(1_000) {
            // A device comes, or moves: the old connection closes late, or never by itself.
            0..250 => {
                let before: Vec<_> =
                    self.open.iter().filter(|(_, open)| open.uid == uid).map(|(key, _)| *key).collect();
                self.login(node, uid);
                for (holder, number) in before {
                    if let Some(old) = self.open.get_mut(&(holder, number)) {
                        old.half_open = true;
                        if self.random.chance(700) {
                            let delay = self.random.below(4_000);
                            self.at(delay, holder, Happens::Close { number });
                        }
                    }
                }
            }
            250..400 if picks > 0 => {
                let pick = self.random.below(picks) as usize;
                let (node, number) = *self.open.keys().nth(pick).expect("it is one of them");
                self.at(0, node, Happens::Close { number });
            }
            400..406 => self.crash(node),
            406..425 if self.processes[node].is_none() => self.start(node),
            425..428 => self.frozen_until[node] = self.now + 500 + self.random.below(12_000),
            428..431 => self.cut_until[node] = self.now + 500 + self.random.below(12_000),
            431..433 => {
                self.engine.up = false;
                self.engine_back = self.now + 500 + self.random.below(10_000);
            }
            433 if self.random.chance(300) => {
                let read = self.read_most();
                self.engine.lose(read);
                self.outcome.states_lost += 1;
            }
            434 if self.random.chance(500) => {
                if let Some((_, before)) = self.saved.take()
                    && self.engine.stream.as_ref().is_some_and(|now| now.log == before.log)
                {
                    self.outcome.states_lost += 1;
                    let read = self.read_most();
                    self.engine.roll_back(before, read);
                    // It was restarted: whoever read begins anew.
                    self.engine.up = false;
                    self.engine_back = self.now + 1_000;
                    self.processes.iter_mut().flatten().for_each(|process| process.reader = None);
                    (0..NODES).for_each(|node| self.at(0, node, Happens::ReadingEnded));
                }
            }
            435..440 => self.saved = self.engine.stream.clone().map(|stream| (self.now, stream)),
            440 => {
                self.engine.ahead = self.random.below(LEADER_AHEAD);
                self.leader_jumped = true;
            }
            441 if self.random.chance(100) => (0..NODES).for_each(|node| self.crash(node)),
            _ => {}
        }
        if !self.engine.up && self.now >= self.engine_back {
            self.engine.up = true;
        }
    }

    /// The last message that any node has read.
    fn read_most(&self) -> u64 {
        let read = self.processes.iter().flatten().map(|process| process.cluster.0.presence().folded.0);
        read.max().unwrap_or(0)
    }

    /// All comes back, and stays.
    fn calm(&mut self) {
        self.quiet = true;
        self.loss = 0;
        self.engine.up = true;
        self.cut_until = [self.now; NODES];
        self.frozen_until = [self.now; NODES];
        for node in 0..NODES {
            if self.processes[node].is_none() {
                self.start(node);
            }
        }
    }

    fn check(&mut self) {
        let Some(stream) = self.engine.stream.clone() else { return self.broken("no log".into()) };
        let reference = held(&stream.state);
        let truth: BTreeMap<usize, BTreeSet<(usize, u32)>> =
            self.open.iter().fold(BTreeMap::new(), |mut truth, ((node, number), open)| {
                truth.entry(open.uid).or_default().insert((*node, *number));
                truth
            });
        if reference != truth {
            self.broken(format!("the log says {reference:?}, but {truth:?} is true"));
        }
        for (uid, connections) in &truth {
            if connections.len() > usize::from(self.connections_per_uid) {
                self.broken(format!("u{uid} has {connections:?}"));
            }
        }
        let processes = std::mem::take(&mut self.processes);
        for (node, process) in processes.iter().enumerate() {
            let process = process.as_ref().expect("all were started");
            let presence = process.cluster.0.presence();
            if exact(&presence.state) != exact(&stream.state) || presence.standing != Standing::InStep {
                let (standing, here, there) = (presence.standing, exact(&presence.state), exact(&stream.state));
                let other: Vec<_> = here.iter().zip(there).filter(|(here, there)| *here != there).collect();
                self.broken(format!(
                    "node {node} ({standing:?}) differs from the log in {other:?}: {:?}",
                    process.member
                ));
            }
            drop(presence);
            let follower = &process.follower;
            let online: BTreeSet<_> = follower.online.keys().copied().collect();
            if !follower.live || online != truth.keys().copied().collect() {
                self.broken(format!("who follows node {node} knows {online:?}, live: {}", follower.live));
            }
            let told: BTreeSet<_> = follower.changes.iter().copied().collect();
            let from = follower.changes.iter().map(|(epoch, _)| *epoch).min().unwrap_or(u64::MAX);
            let all = self.engine.changes.iter().map(|change| (change.epoch, uid_index(&change.uid)));
            let missed: Vec<_> = all.filter(|(epoch, uid)| *epoch > from && !told.contains(&(*epoch, *uid))).collect();
            if !missed.is_empty() && !self.engine.doomed {
                self.broken(format!("who follows node {node} wasn't told {missed:?}"));
            }
            self.outcome.resets += follower.resets;
        }
        let mut highest = BTreeMap::new();
        let changes = std::mem::take(&mut self.engine.changes);
        for change in &changes {
            let before = highest.insert(change.uid.clone(), change.epoch);
            if before.is_some_and(|before| before >= change.epoch) {
                self.broken(format!(
                    "the epochs of {} fall from {} to {}",
                    change.uid,
                    before.unwrap_or(0) / 1024,
                    change.epoch / 1024
                ));
            }
        }
        self.engine.changes = changes;
    }
}

fn uid_of(uid: usize) -> Uid {
    Uid::new(&format!("u{uid}")).unwrap()
}

fn uid_index(uid: &Uid) -> usize {
    uid.as_str()[1..].parse().unwrap()
}

/// Who holds what: by uid, (node, number).
fn held(state: &State) -> BTreeMap<usize, BTreeSet<(usize, u32)>> {
    let mut held = BTreeMap::new();
    for uid in 0..UIDS {
        let Some(entry) = state.directory.get(&format!("u{uid}")) else { continue };
        let connections = entry
            .connections()
            .iter()
            .map(|connection| (state.node(connection.node).name.as_str()[1..].parse().unwrap(), connection.number.0));
        held.insert(uid, connections.collect());
    }
    held
}

/// All that is known of each uid: its connections, oldest first, with their places, and its own.
fn exact(state: &State) -> Vec<String> {
    let uids = (0..UIDS).map(|uid| match state.directory.get(&format!("u{uid}")) {
        None => format!("u{uid}: offline"),
        Some(entry) => {
            let connections = entry
                .connections()
                .iter()
                .map(|held| (state.node(held.node).incarnation, held.number, held.epoch, held.accepted));
            format!("u{uid} {:?} {} {:?}", entry.since(), entry.epoch(), connections.collect::<Vec<_>>())
        }
    });
    uids.collect()
}

impl Follower {
    fn new(watcher: Watcher) -> Self {
        Self {
            watcher: Some(watcher),
            online: BTreeMap::new(),
            before_reset: BTreeMap::new(),
            highest: BTreeMap::new(),
            live: false,
            changes: Vec::new(),
            resets: 0,
        }
    }

    /// Takes what there is to tell.
    fn read(&mut self) -> Result<(), String> {
        let mut watcher = self.watcher.take().expect("it is put back");
        let mut result = Ok(());
        // With so few uids a watcher yields once or twice before it waits.
        while let Some(update) = (0..4).find_map(|_| watcher.next().now_or_never()) {
            if update.events.is_empty() {
                break;
            }
            for event in update.events {
                result = result.and_then(|()| self.take(event));
            }
        }
        self.watcher = Some(watcher);
        result
    }

    fn take(&mut self, event: PresenceEvent) -> Result<(), String> {
        match event {
            PresenceEvent::Change(change) => {
                let (uid, online) = (uid_index(&change.uid), change.offline.is_none());
                if self.highest.get(&uid).is_some_and(|highest| *highest >= change.epoch) {
                    return Err(format!("u{uid}: epoch {} after {}", change.epoch, self.highest[&uid]));
                }
                if online == self.online.contains_key(&uid) {
                    return Err(format!("u{uid}: {} twice", if online { "online" } else { "offline" }));
                }
                self.highest.insert(uid, change.epoch);
                self.changes.push((change.epoch, uid));
                if online {
                    self.online.insert(uid, change.epoch);
                } else {
                    self.online.remove(&uid);
                }
            }
            PresenceEvent::Snapshot { uid, epoch, .. } => {
                let uid = uid_index(&uid);
                if self.highest.get(&uid).is_some_and(|highest| *highest > epoch) {
                    return Err(format!("u{uid}: a snapshot of {epoch} after {}", self.highest[&uid]));
                }
                self.highest.insert(uid, epoch);
                self.online.insert(uid, epoch);
            }
            PresenceEvent::Reset { .. } => {
                self.before_reset = std::mem::take(&mut self.online);
                self.changes.clear();
                self.live = false;
                self.resets += 1;
            }
            PresenceEvent::Live { .. } => {
                // Only from here on does it know all.
                self.changes.clear();
                self.live = true;
            }
        }
        Ok(())
    }
}
