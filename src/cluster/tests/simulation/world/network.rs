//! What goes between the nodes, the log, and each other, and how long it takes.

use super::*;
use crate::cluster::wire::{PartHead, encode_part};

impl World {
    pub(super) fn reaches(&self, node: usize) -> bool {
        self.engine.up && self.now >= self.cut_until[node]
    }

    pub(super) fn at(&mut self, delay: u64, node: usize, happens: Happens) {
        self.counter += 1;
        let life = self.life_of(node);
        self.events.insert((self.now + delay, self.counter), (node, life, happens));
    }

    pub(super) fn life_of(&self, node: usize) -> u64 {
        self.processes[node].as_ref().map_or(u64::MAX, |process| process.begun)
    }

    pub(super) fn carry_out(&mut self, node: usize, commands: Vec<Command>) {
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
                Command::Ask { snapshot, part, of } => {
                    let delay = self.random.below(60);
                    self.at(delay, node, Happens::Ask { snapshot, part, of });
                }
                Command::Superseded | Command::Left => {
                    self.processes[node].as_mut().expect("it has just spoken").ended = true;
                }
                Command::Ended(_) | Command::Joined(_) | Command::Refused { .. } => {}
            }
        }
    }

    /// What the log has goes on its way to its readers.
    pub(super) fn read_log(&mut self) {
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

    pub(super) fn api(&mut self, node: usize, life: u64, command: &Command) {
        if life != self.life_of(node) {
            return;
        }
        let reaches = self.reaches(node) && !self.random.chance(self.loss / 4);
        if reaches {
            let wall = self.wall();
            match command {
                Command::Create { first } => {
                    let above = self.rules.hold(Rule::Above);
                    self.engine.create(if above { (wall.0 * 1_000).max(*first) } else { *first }, wall);
                }
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
            Command::Bounds { ask } if reaches => {
                Happens::Bounds(*ask, Ok(self.engine.stream.as_ref().map(super::engine::Stream::bounds)))
            }
            Command::Bounds { ask } => Happens::Bounds(*ask, Err(())),
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

    pub(super) fn ask(&mut self, (node, life): (usize, u64), snapshot: u64, part: u8, of: Option<Incarnation>) {
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
            return self.at(delay, node, Happens::Part { snapshot, part, answer: None });
        }
        let (teller, incarnation) = tellers[self.random.below(tellers.len() as u64) as usize];
        let process = self.processes[teller].as_ref().expect("it has the state");
        let presence = process.cluster.0.presence();
        let head = PartHead { part, sequence: presence.folded.0, at: presence.folded.1 };
        let bytes = encode_part(&presence.state, head);
        drop(presence);
        let delay = self.random.below(60);
        self.at(delay, node, Happens::Part { snapshot, part, answer: Some((incarnation, bytes)) });
    }

    pub(super) fn happens(&mut self, node: usize, happens: Happens) {
        let now = self.now;
        let Some(process) = &mut self.processes[node] else { return };
        let own = process.own_clock(now);
        let mut out = Vec::new();
        match happens {
            Happens::Bounds(ask, answer) => process.member.bounds(own, ask, answer, &mut out),
            Happens::Changed => process.member.changed(own, &mut out),
            Happens::Read { generation, sequence, at, bytes } => {
                if process.reader.as_ref().is_some_and(|reader| reader.generation == generation) {
                    process.member.message(own, sequence, at, &bytes, &mut out);
                }
            }
            Happens::ReadingEnded => process.member.reading_ended(own, &mut out),
            Happens::Part { snapshot, part, answer } => process.member.part(own, snapshot, part, answer),
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
}
