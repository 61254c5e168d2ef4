//! The way in: the state, from the log or from another node, then the join, then the claims of all that is held; and the
//! way out.

use super::{
    Bounds, Command, Life, MILLISECOND, Member, Micros, RESEND, Step,
    loading::{Loading, Took},
};
use crate::{
    cluster::{
        engine::Standing,
        fold::{Incarnation, Join, Message, SPEAKS},
        hosts::Card,
        node::LogIdentity,
        rules::Rule,
        wire,
    },
    model::{Millis, NodeName},
};

/// For how many of its own heartbeats a node waits, after a loss of the state, until those who were live have claimed
/// what they hold: 10 s by default.
const AWAITED_BEATS: u32 = 20;
/// How often a node that isn't let in tries again.
const REFUSED_RETRY: Micros = 5_000 * MILLISECOND;

/// Asks whether anybody writes.
#[derive(Debug, Default)]
pub(super) struct Hello {
    /// How many were read back without a word of anybody.
    pub(super) read: u32,
    /// When the last was sent, until it is read back.
    pub(super) sent: Option<Micros>,
    pub(super) next_at: Micros,
}

impl Member {
    pub(super) fn listen(&mut self, now: Micros, bounds: Bounds, out: &mut Vec<Command>) {
        self.step = Step::Listening { after: bounds.last };
        self.hello = Hello::default();
        self.ask_parts_from(now, bounds.log);
        out.push(Command::Read { from: bounds.last + 1 });
    }

    /// A message is read, and nothing is known yet.
    pub(super) fn overhear(
        &mut self,
        now: Micros,
        after: u64,
        (sequence, at): (u64, Millis),
        bytes: &[u8],
        out: &mut Vec<Command>,
    ) {
        if sequence != after + 1 {
            return self.ask(now, out);
        }
        self.step = Step::Listening { after: sequence };
        match wire::decode(bytes) {
            Ok(Message::Reset { .. }) => {
                let log = self.loading.take().map(|loading| loading.log());
                self.begin(self.empty(), log.expect("who listens wants a snapshot"), sequence, at);
                self.step = Step::Following;
            }
            Ok(message) => self.hear(now, &message, out),
            Err(_) => {}
        }
    }

    /// Counts how many words of its own are read without one of anybody else; voids the log when they are enough.
    pub(super) fn hear(&mut self, now: Micros, message: &Message<'_>, out: &mut Vec<Command>) {
        match message {
            Message::Hello { nonce } if *nonce == self.nonce => {
                self.hello.sent = None;
                self.hello.read += 1;
                if self.hello.read > self.settings.dead_after {
                    out.push(Command::Append(wire::encode(&Message::Reset { nonce: self.nonce })));
                    self.hello.read = 0;
                }
                self.hello.next_at = now + self.beat();
            }
            Message::Batch { .. } => self.hello.read = 0,
            _ => {}
        }
    }

    pub(super) fn say_hello(&mut self, now: Micros, out: &mut Vec<Command>) {
        let lost = self.hello.sent.is_some_and(|sent| now >= sent + RESEND);
        if (self.hello.sent.is_none() && now >= self.hello.next_at) || lost {
            self.hello.sent = Some(now);
            out.push(Command::Append(wire::encode(&Message::Hello { nonce: self.nonce })));
        }
    }

    /// Asks for the parts that are missing; once all are here, follows the log from the first of them.
    pub(super) fn load(&mut self, now: Micros, out: &mut Vec<Command>) {
        let Some(loading) = &mut self.loading else { return };
        if now < self.ask_at {
            return;
        }
        if !loading.is_whole() {
            let snapshot = loading.snapshot();
            out.extend(loading.asks().map(|(part, of)| Command::Ask { snapshot, part, of }));
            return;
        }
        let rules = self.settings.rules;
        let Ok((state, head)) = loading.state() else { return self.part_failed(now) };
        let log = loading.log();
        self.loading.as_mut().expect("it is here").exact(rules.hold(Rule::ExactParts));
        let loading = self.loading.take();
        self.begin(state.with_rules(rules), log, head.sequence, head.at);
        self.loading = loading;
        self.take_parts(now, head.sequence, head.at);
        self.ask(now, out);
    }

    /// A part of the snapshot; `None`: it can't be had there. `snapshot` as it was asked with.
    pub(crate) fn part(&mut self, now: Micros, snapshot: u64, part: u8, answer: Option<(Incarnation, Vec<u8>)>) {
        let Step::Listening { .. } = self.step else { return };
        // What an earlier one missed may be told seconds later, and says nothing of this one.
        let Some(loading) = self.loading.as_mut().filter(|loading| loading.snapshot() == snapshot) else { return };
        match answer {
            Some((of, bytes)) => match loading.came(part, of, bytes) {
                Took::More => {}
                Took::All => self.ask_at = now,
                Took::Useless => self.part_failed(now),
            },
            None => self.part_failed(now),
        }
    }

    fn part_failed(&mut self, now: Micros) {
        if let Some(loading) = &self.loading {
            self.ask_parts_from(now + self.beat(), loading.log());
        }
    }

    /// From then on the parts are asked for, all of them anew.
    fn ask_parts_from(&mut self, at: Micros, log: LogIdentity) {
        self.snapshots += 1;
        self.loading = Some(Loading::new(log, self.snapshots));
        self.ask_at = at;
    }

    /// Takes in the parts that are exact at `sequence`.
    pub(super) fn take_parts(&mut self, now: Micros, sequence: u64, at: Millis) {
        // Who waits is woken by a change, and needn't be by each message.
        let Some(mut loading) = self.loading.take_if(|loading| loading.is_due(sequence)) else { return };
        let mut whole = Ok(false);
        self.node.change(|presence| whole = loading.take(sequence, at, &mut presence.state));
        match whole {
            Ok(false) => self.loading = Some(loading),
            Ok(true) => {}
            // What a node told that doesn't hold together: none of it counts.
            Err(_) => {
                self.forget(now);
                self.retry(now);
            }
        }
    }

    pub(super) fn join(&mut self, now: Micros, out: &mut Vec<Command>) {
        if self.outgoing.leaves() {
            return;
        }
        if let Some(until) = self.refused_until {
            self.say_hello(now, out);
            if now < until {
                return;
            }
            self.refused_until = None;
        }
        if self.join_sent.is_none_or(|sent| now >= sent + RESEND) {
            if self.join_sent.is_some() {
                self.ask(now, out);
            }
            self.join_sent = Some(now);
            out.push(Command::Append(wire::encode(&Message::Join(Join {
                name: self.node.name().clone(),
                start: self.settings.start,
                attempt: self.attempt,
                speaks: SPEAKS,
                connections_per_uid: self.node.options().connections_per_uid,
                version: env!("CARGO_PKG_VERSION").into(),
            }))));
        }
    }

    pub(super) fn read_join(&mut self, now: Micros, sequence: u64, join: &Join, out: &mut Vec<Command>) {
        let joined = self.node.presence().state.index_of(Incarnation(sequence)).is_some();
        if join.name != *self.node.name() {
            if joined {
                self.silence.insert(Incarnation(sequence), 0);
            }
            return;
        }
        if joined && self.is_replaced_by(join.start, Incarnation(sequence)) {
            return out.push(Command::Superseded);
        }
        if join.start != self.settings.start || join.attempt != self.attempt || self.life != Life::Out {
            return;
        }
        self.join_sent = None;
        if !joined {
            self.refuse(now, out);
            return;
        }
        self.life = Life::In(Incarnation(sequence));
        self.last_life = Some(Incarnation(sequence));
        self.told_refusal = false;
        self.next_number = 0;
        self.last_append = None;
        self.last_beat = now.saturating_sub(self.beat());
        self.resent = now;
        self.claimed_by = Some(None);
        self.node.set_incarnation(Some(Incarnation(sequence)));
        let presence = self.node.presence();
        let others = presence.state.live().map(|live| live.incarnation).filter(|other| other.0 != sequence);
        self.silence = others.map(|other| (other, 0)).collect();
        drop(presence);
        self.outgoing.enter();
        out.push(Command::Joined(Incarnation(sequence)));
    }

    /// Whether a life of this name is a later process's: it started later, and joined after this one has lived. What is
    /// read of the log again doesn't count.
    fn is_replaced_by(&self, start: u64, life: Incarnation) -> bool {
        start > self.settings.start && self.last_life.is_some_and(|last| life > last)
    }

    /// The join was read and didn't count: by another number of connections, or for a life of this name that seems later.
    fn refuse(&mut self, now: Micros, out: &mut Vec<Command>) {
        let own = self.node.options().connections_per_uid;
        let presence = self.node.presence();
        // Its join may have been in what was lost, or came as a part of the state.
        let name = self.node.name();
        if presence.state.live().any(|live| live.name == *name && self.is_replaced_by(live.start, live.incarnation)) {
            return out.push(Command::Superseded);
        }
        let theirs = presence.state.connections_per_uid();
        let others = presence.state.live().any(|live| live.name != *self.node.name());
        let waits = !others || own == theirs;
        let why = if waits {
            format!("node.name: a node \"{}\" that started later is there; waiting until it is gone", self.node.name())
        } else {
            format!("device.connections_per_uid: the nodes that are there have {theirs}, this one has {own}")
        };
        drop(presence);
        // It won't learn what has become of that.
        self.node.forget_past();
        self.refused_until = Some(now + if waits { RESEND } else { REFUSED_RETRY });
        if !std::mem::replace(&mut self.told_refusal, true) {
            out.push(Command::Refused { why, waits });
        }
    }

    pub(super) fn await_those_who_were_live(&mut self) {
        let presence = self.node.presence();
        if self.life == Life::Out && !presence.is_open() {
            return;
        }
        let others = presence.state.live().map(|live| live.name.clone()).filter(|name| name != self.node.name());
        let mut others: Vec<_> = others.collect();
        // Those who haven't come since the loss before.
        let awaited = self.awaited.take().map(|(names, _)| names).unwrap_or_default();
        others.extend(awaited);
        others.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        others.dedup();
        self.awaited = Some((others, 0));
    }

    /// In step: it is in the log with all that it holds; after a loss also those that were there before, if they come.
    pub(super) fn check_ready(&mut self, now: Micros) {
        let Life::In(_) = self.life else { return };
        if let Some(Some(number)) = self.claimed_by
            && self.unread.front().is_none_or(|oldest| oldest.number > number)
        {
            self.claimed_by = None;
            // Told with the next word, and that at once.
            self.last_beat = now.saturating_sub(self.beat());
        }
        if self.claimed_by.is_some() || self.standing() != Standing::Joining {
            return;
        }
        if let Some((names, beats)) = &self.awaited
            && *beats < AWAITED_BEATS
        {
            let presence = self.node.presence();
            let is_back = |name: &NodeName| {
                let ready = |card: &Card| card.ready || card.draining;
                presence.state.live().any(|live| live.name == *name && live.card.as_ref().is_some_and(ready))
            };
            if !names.iter().all(is_back) {
                return;
            }
        }
        self.awaited = None;
        self.stand(Standing::InStep);
    }

    /// This life has ended.
    pub(super) fn go_out(&mut self, now: Micros) {
        self.outgoing.exit();
        self.node.set_incarnation(None);
        if matches!(self.life, Life::In(_)) {
            self.attempt += 1;
        }
        self.life = Life::Out;
        self.unread.clear();
        self.dead.clear();
        self.join_sent = None;
        self.claimed_by = None;
        self.hello = Hello::default();
        self.refused_until = if self.settings.rules.hold(Rule::Again) { None } else { Some(now + u64::MAX / 2) };
    }
}
