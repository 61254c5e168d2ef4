//! What happens to nodes, devices and the engine.

use super::*;

impl World {
    /// One thing or none.
    pub(super) fn disturb(&mut self) {
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
            425..428 => {
                self.frozen_until[node] = self.now + 500 + self.random.below(12_000);
                self.machine_stands[node] = self.random.chance(400);
                if self.machine_stands[node] {
                    let own = self.open.iter().filter(|((holder, _), _)| *holder == node);
                    let last = own.filter(|(_, open)| self.now <= open.accepted + CLOSE_LOGINS);
                    self.ageless.extend(last.map(|((_, number), _)| number));
                }
            }
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

    pub(super) fn login(&mut self, node: usize, uid: usize) {
        if self.now < self.frozen_until[node] {
            return;
        }
        let Some(process) = &self.processes[node] else { return };
        // It hasn't learned yet for how long its clock has stood still.
        let log_clock = process.cluster.now().0.saturating_add_signed(process.outgoing.skew());
        let is_late = process.stood.load(Ordering::Relaxed) > 0 && log_clock + 500 < self.wall().0 + self.engine.ahead;
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
        if is_late {
            self.ageless.insert(number);
        }
        self.open.insert((node, number), Open { uid, accepted: self.now, half_open: false });
    }

    pub(super) fn crash(&mut self, node: usize) {
        self.processes[node] = None;
        self.open.retain(|(holder, _), _| *holder != node);
    }

    /// All comes back, and stays.
    pub(super) fn calm(&mut self) {
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

    /// The last message that any node has read.
    pub(super) fn read_most(&self) -> u64 {
        let read = self.processes.iter().flatten().map(|process| process.cluster.0.presence().folded.0);
        read.max().unwrap_or(0)
    }
}
