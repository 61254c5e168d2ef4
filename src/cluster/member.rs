//! A node's part in a log that many write: when to join and how to get the state, what to write and when to write it
//! again, who is dead, and what to do when the log was lost. No I/O and no clock: it is told what happened and when, and
//! says what has to be done. What carries that out is `nats`; the simulator of the tests is another.
//!
//! It acts on what it has *read* from the log, never on what it has sent.

mod clock;
mod loading;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::model::{Millis, NodeName};

use self::{
    clock::LogClock,
    loading::{Loading, Took},
};
use super::{
    engine::Standing,
    fold::{Effects, Incarnation, Join, Message, Record, SPEAKS, State},
    node::{LogIdentity, Node},
    outgoing::Outgoing,
    rules::{Rule, Rules},
    wire,
};

/// A time on this node's own clock, in µs.
pub(crate) type Micros = u64;

const MILLISECOND: Micros = 1_000;
/// What isn't read back in this time is written again.
const RESEND: Micros = 700 * MILLISECOND;
/// Where the engine doesn't answer, or answers with an error, it is asked again after this time.
const RETRY: Micros = 400 * MILLISECOND;
/// Where nothing of one's own was read back for this time, the log stands still.
const STILL: Micros = 1_500 * MILLISECOND;
/// How often a node that isn't let in tries again.
const REFUSED_RETRY: Micros = 5_000 * MILLISECOND;
/// How far above the last place that is known a lost log begins: what others may have read beyond it.
const ABOVE: u64 = 1 << 20;

/// How a member takes part.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// When the process started, in µs since 1970.
    pub(crate) start: u64,
    pub(crate) heartbeat: Duration,
    /// After how many of its own heartbeats a node that says nothing is dead.
    pub(crate) dead_after: u32,
    pub(crate) gather: Duration,
    /// The most batches that aren't read back.
    pub(crate) window: usize,
    /// A log that is made begins here at the least.
    pub(crate) first_floor: u64,
    pub(crate) rules: Rules,
}

/// Where a log begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) log: LogIdentity,
    /// The sequence that it was made to begin with.
    pub(crate) made_from: u64,
    /// The first that is kept; where none is, the one after `last`.
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// What has to be done. Answers come by [`Member::bounds`], [`Member::changed`], [`Member::message`],
/// [`Member::part`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// Write to the log, at most once.
    Append(Vec<u8>),
    /// Ask for the log's bounds. The answer comes with `known`, the last place that was known when it was asked for.
    Bounds { known: u64 },
    /// Make the log, to begin with this sequence.
    Create { first: u64 },
    /// Delete the log, if it is still that one.
    Discard(LogIdentity),
    /// Read from this sequence on; what was read before ends.
    Read { from: u64 },
    /// Ask a node that has the state for a part of it: that one, or any.
    Ask { part: u8, of: Option<Incarnation> },
    /// Tell the operator: a life began.
    Joined(Incarnation),
    /// Incarnations that have ended.
    Ended(Vec<Incarnation>),
    /// Tell the operator why the others don't let this node in, and whether it only has to wait.
    Refused { why: String, waits: bool },
    /// A later process of this name has joined: stop.
    Superseded,
    /// The last word was read: this node is out of the log.
    Left,
}

/// How far it is with the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The engine can't be reached.
    Away,
    /// Its bounds were asked for, or it is being made.
    Asking { until: Micros },
    /// Asked again then.
    Retrying { at: Micros },
    /// The log's beginning is gone, and nobody has told the state: the log's end is read.
    Listening { after: u64 },
    /// What is read is folded.
    Following,
}

/// A node's life in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Out,
    In(Incarnation),
}

/// A batch that was written and not read back.
#[derive(Debug)]
struct Unread {
    number: u64,
    sent: Micros,
    bytes: Vec<u8>,
    /// A heartbeat, by which others' silence is counted.
    beat: bool,
    barriers: Vec<oneshot::Sender<bool>>,
}

/// Asks whether anybody writes.
#[derive(Debug, Default)]
struct Hello {
    /// How many were read back without a word of anybody.
    read: u32,
    /// When the last was sent, until it is read back.
    sent: Option<Micros>,
    next_at: Micros,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("step", &self.step)
            .field("life", &self.life)
            .field("attempt", &self.attempt)
            .field("followed", &self.followed)
            .field("loading", &self.loading.is_some())
            .field("join_sent", &self.join_sent)
            .field("refused_until", &self.refused_until)
            .field("unread", &self.unread.iter().map(|u| (u.number, u.sent)).collect::<Vec<_>>())
            .field("resent", &self.resent)
            .field("next_number", &self.next_number)
            .field("claimed_by", &self.claimed_by)
            .field("awaited", &self.awaited)
            .finish_non_exhaustive()
    }
}

/// See the module.
pub(crate) struct Member {
    node: Arc<Node>,
    outgoing: Arc<Outgoing>,
    settings: Settings,
    step: Step,
    life: Life,
    attempt: u32,
    /// The log that is followed, and its last message that is folded; `None`: no state.
    followed: Option<(LogIdentity, u64, Millis)>,
    /// That message has to come again, and be the same.
    checks: bool,
    loading: Option<Loading>,
    /// Where the snapshot can't be had: asked for again then.
    ask_at: Micros,
    hello: Hello,
    nonce: u64,
    /// When the join was written that hasn't been read back.
    join_sent: Option<Micros>,
    /// The join was read, and didn't count.
    refused_until: Option<Micros>,
    told_refusal: bool,
    unread: VecDeque<Unread>,
    next_number: u64,
    resent: Micros,
    last_append: Option<Micros>,
    last_beat: Micros,
    /// How many of its own heartbeats were read since the last word of each other node.
    silence: BTreeMap<Incarnation, u32>,
    /// Who is to be declared dead with the next batch.
    dead: Vec<(Incarnation, u64)>,
    clock: LogClock,
    lag_ms: u32,
    /// The batch that has the last of what was held at the join; until it is read back the node isn't ready.
    claimed_by: Option<Option<u64>>,
    /// After the loss of a state: whose claims are waited for, and for how many heartbeats at most.
    awaited: Option<(Vec<NodeName>, u32)>,
    last_word_sent: bool,
    effects: Effects,
}

impl Member {
    /// The clock of `base` is what [`Engine::now`](super::engine::Engine::now) said at 0 of the node's own clock.
    pub(crate) fn new(node: Arc<Node>, outgoing: Arc<Outgoing>, base: Millis, nonce: u64, settings: Settings) -> Self {
        Self {
            node,
            outgoing,
            settings,
            step: Step::Away,
            life: Life::Out,
            attempt: 0,
            followed: None,
            checks: false,
            loading: None,
            ask_at: 0,
            hello: Hello::default(),
            nonce,
            join_sent: None,
            refused_until: None,
            told_refusal: false,
            unread: VecDeque::new(),
            next_number: 0,
            resent: 0,
            last_append: None,
            last_beat: 0,
            silence: BTreeMap::new(),
            dead: Vec::new(),
            clock: LogClock::new(base),
            lag_ms: 0,
            claimed_by: None,
            awaited: None,
            last_word_sent: false,
            effects: Effects::default(),
        }
    }

    /// Whether this node can tell its state to others.
    #[cfg(test)]
    pub(crate) fn has_state(&self) -> bool {
        self.step == Step::Following && self.loading.is_none() && matches!(self.life, Life::In(_))
    }

    /// The engine can be reached (again).
    pub(crate) fn link_up(&mut self, now: Micros, out: &mut Vec<Command>) {
        self.ask(now, out);
    }

    /// The engine can't be reached.
    pub(crate) fn link_down(&mut self, now: Micros) {
        self.step = Step::Away;
        self.check_still(now);
    }

    /// What was read has ended: there is a gap, or nothing comes.
    pub(crate) fn reading_ended(&mut self, now: Micros, out: &mut Vec<Command>) {
        if matches!(self.step, Step::Following | Step::Listening { .. }) {
            self.ask(now, out);
        }
    }

    fn ask(&mut self, now: Micros, out: &mut Vec<Command>) {
        // Twice what an answer may take.
        self.step = Step::Asking { until: now + 2 * RETRY };
        out.push(Command::Bounds { known: self.known_last() });
    }

    fn retry(&mut self, now: Micros) {
        self.step = Step::Retrying { at: now + RETRY };
    }

    /// The last place of the log that is known to have been.
    fn known_last(&self) -> u64 {
        let folded = self.followed.map_or(0, |(_, sequence, _)| sequence);
        folded.max(self.loading.as_ref().map_or(0, Loading::last))
    }

    /// The log's bounds: `Ok(None)` where there is none, an error where that can't be told. `known` as it was asked with.
    pub(crate) fn bounds(
        &mut self,
        now: Micros,
        known: u64,
        answer: Result<Option<Bounds>, ()>,
        out: &mut Vec<Command>,
    ) {
        if !matches!(self.step, Step::Asking { .. }) {
            return;
        }
        let bounds = match answer {
            Ok(Some(mut bounds)) => {
                let same = |log: LogIdentity| log == bounds.log;
                let is_same = self.followed.is_none_or(|(log, ..)| same(log))
                    && self.loading.as_ref().is_none_or(|loading| same(loading.log()));
                if is_same && bounds.last >= known {
                    // Whole when it answered. What was read since is in the log, though it came before the answer.
                    bounds.last = bounds.last.max(self.known_last());
                }
                bounds
            }
            Ok(None) => {
                self.step = Step::Asking { until: now + 4 * RETRY };
                return out.push(Command::Create { first: self.first_of_new(now) });
            }
            Err(()) => return self.retry(now),
        };
        if self.loading.as_ref().is_some_and(|loading| loading.last() > bounds.last) {
            // Told by a node that has read what this log never had.
            self.forget(now);
        }
        if let Some((log, sequence, at)) = self.followed {
            if !self.settings.rules.hold(Rule::Identity) {
                self.followed = Some((bounds.log, sequence, at));
            } else if log == bounds.log && bounds.last < sequence {
                self.step = Step::Asking { until: now + 4 * RETRY };
                return out.push(Command::Discard(bounds.log));
            } else if log != bounds.log {
                self.forget(now);
            }
            // What comes after what is folded is kept still: the last folded, too, or nothing has come since.
            if self.followed.is_some() && bounds.first <= sequence {
                self.step = Step::Following;
                self.checks = self.settings.rules.hold(Rule::Identity);
                return out.push(Command::Read { from: if self.checks { sequence } else { sequence + 1 } });
            }
            if self.followed.is_some() && bounds.first == sequence + 1 && bounds.made_from == bounds.first {
                self.step = Step::Following;
                self.checks = false;
                return out.push(Command::Read { from: bounds.first });
            }
            self.forget(now);
        }
        if bounds.first == bounds.made_from {
            self.loading = None;
            self.begin(self.empty(), bounds.log, bounds.first - 1, Millis(0));
            self.step = Step::Following;
            out.push(Command::Read { from: bounds.first });
        } else {
            if !self.settings.rules.hold(Rule::ResetIfSilent) {
                // Without the rule: whoever doesn't know says that nobody knows.
                out.push(Command::Append(wire::encode(&Message::Reset { nonce: self.nonce })));
            }
            self.listen(now, bounds, out);
        }
    }

    fn listen(&mut self, now: Micros, bounds: Bounds, out: &mut Vec<Command>) {
        self.step = Step::Listening { after: bounds.last };
        self.hello = Hello::default();
        self.loading = Some(Loading::new(bounds.log));
        self.ask_at = now;
        out.push(Command::Read { from: bounds.last + 1 });
    }

    /// The log was made, or deleted, or wasn't.
    pub(crate) fn changed(&mut self, now: Micros, out: &mut Vec<Command>) {
        if matches!(self.step, Step::Asking { .. }) {
            self.ask(now, out);
        }
    }

    /// Where a new log begins: above every place that is known.
    fn first_of_new(&self, now: Micros) -> u64 {
        if !self.settings.rules.hold(Rule::Above) {
            return 1;
        }
        let known = self.node.presence().folded.0;
        let micros = self.clock.wall(now).0 * 1_000;
        micros.max(known + ABOVE).max(self.settings.first_floor)
    }

    /// Nothing is known any more.
    fn forget(&mut self, now: Micros) {
        self.await_those_who_were_live();
        self.followed = None;
        self.loading = None;
        let (sequence, at) = self.node.presence().folded;
        self.node.restart(self.empty(), None, (sequence, at));
        self.go_out(now);
    }

    /// Nobody live, nobody online.
    fn empty(&self) -> State {
        State::new(self.node.options().connections_per_uid).with_rules(self.settings.rules)
    }

    /// Begins to fold with that state.
    fn begin(&mut self, state: State, log: LogIdentity, sequence: u64, at: Millis) {
        self.followed = Some((log, sequence, at));
        self.checks = false;
        self.silence.clear();
        self.node.restart(state, Some(log), (sequence, at));
    }

    fn await_those_who_were_live(&mut self) {
        if matches!(self.life, Life::Out) {
            return;
        }
        let presence = self.node.presence();
        let others = presence.state.live().map(|live| live.name.clone()).filter(|name| name != self.node.name());
        self.awaited = Some((others.collect(), 0));
    }

    /// This life has ended.
    fn go_out(&mut self, now: Micros) {
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

    /// A message of the log. Out of order, it is a gap.
    pub(crate) fn message(&mut self, now: Micros, sequence: u64, at: Millis, bytes: &[u8], out: &mut Vec<Command>) {
        if let Step::Listening { after } = self.step {
            return self.overhear(now, after, (sequence, at), bytes, out);
        }
        let Some((log, folded, folded_at)) = self.followed else { return };
        if self.checks {
            if sequence != folded {
                return self.ask(now, out);
            }
            self.checks = false;
            if at != folded_at {
                // Another history under the same name.
                self.step = Step::Asking { until: now + 4 * RETRY };
                out.push(Command::Discard(log));
            }
            return;
        }
        if sequence <= folded {
            return;
        }
        if sequence != folded + 1 {
            return self.ask(now, out);
        }
        self.followed = Some((log, sequence, at));
        self.fold(now, sequence, at, bytes, out);
    }

    /// A message is read, and nothing is known yet.
    fn overhear(
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
    fn hear(&mut self, now: Micros, message: &Message<'_>, out: &mut Vec<Command>) {
        match message {
            Message::Hello { nonce } if *nonce == self.nonce => {
                self.hello.sent = None;
                self.hello.read += 1;
                if self.hello.read > self.settings.dead_after {
                    out.push(Command::Append(wire::encode(&Message::Reset { nonce: self.nonce })));
                    self.hello.read = 0;
                }
                self.hello.next_at = now + micros(self.settings.heartbeat);
            }
            Message::Batch { .. } => self.hello.read = 0,
            _ => {}
        }
    }

    fn fold(&mut self, now: Micros, sequence: u64, at: Millis, bytes: &[u8], out: &mut Vec<Command>) {
        let message = wire::decode(bytes).ok();
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        if matches!(message, Some(Message::Reset { .. })) {
            self.await_those_who_were_live();
        }
        let counted = self.counts(message.as_ref());
        self.node.fold(sequence, at, message.as_ref(), &mut effects);
        let own = self.life;
        for (incarnation, _, number) in &effects.displaced {
            if own == Life::In(*incarnation) {
                self.outgoing.displaced(*number);
            }
        }
        match &message {
            Some(Message::Join(join)) => self.read_join(now, sequence, join, out),
            Some(Message::Batch { incarnation, number, sent, .. }) => {
                // One that doesn't count is as unread: a batch before it was lost.
                let counts = counted || !self.settings.rules.hold(Rule::OnceInOrder);
                if own == Life::In(*incarnation) && counts {
                    self.read_own(now, *number, *sent, at);
                } else if counted {
                    self.silence.insert(*incarnation, 0);
                }
                // Only where it isn't let in does it ask whether anybody writes.
                if own == Life::Out && counted {
                    self.hello.read = 0;
                }
            }
            Some(message) if own == Life::Out => self.hear(now, message, out),
            _ => {}
        }
        if !effects.ended.is_empty() {
            effects.ended.iter().for_each(|ended| _ = self.silence.remove(ended));
            out.push(Command::Ended(effects.ended.clone()));
        }
        if effects.reset {
            // Nobody knows what was before: there is nothing to take in.
            self.loading = None;
            self.node.change(|presence| presence.standing = Standing::Joining);
        }
        // Its own end, but not by a join of its own that has just counted.
        if let Life::In(incarnation) = own
            && effects.ended.contains(&incarnation)
            && self.life == own
        {
            self.read_own_end(now, out);
        }
        self.effects = effects;
        self.take_parts(now, sequence, at);
        self.check_ready(now);
    }

    /// Whether a message is a batch that the fold takes.
    fn counts(&self, message: Option<&Message<'_>>) -> bool {
        let Some(Message::Batch { incarnation, number, .. }) = message else { return false };
        self.node.presence().state.next_of(*incarnation) == Some(*number)
    }

    fn read_join(&mut self, now: Micros, sequence: u64, join: &Join, out: &mut Vec<Command>) {
        let joined = self.node.presence().state.index_of(Incarnation(sequence)).is_some();
        if join.name != *self.node.name() {
            if joined {
                self.silence.insert(Incarnation(sequence), 0);
            }
            return;
        }
        if join.start > self.settings.start && joined && self.life != Life::Out {
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
        self.told_refusal = false;
        self.next_number = 0;
        self.last_append = None;
        self.last_beat = now.saturating_sub(micros(self.settings.heartbeat));
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

    /// The join was read and didn't count: by another number of connections, or for a life of this name that seems later.
    fn refuse(&mut self, now: Micros, out: &mut Vec<Command>) {
        let own = self.node.options().connections_per_uid;
        let presence = self.node.presence();
        let theirs = presence.state.connections_per_uid();
        let others = presence.state.live().any(|live| live.name != *self.node.name());
        let waits = !others || own == theirs;
        let why = if !waits {
            format!("device.connections_per_uid: the nodes that are there have {theirs}, this one has {own}")
        } else {
            format!("node.name: a node \"{}\" that started later is there; waiting until it is gone", self.node.name())
        };
        drop(presence);
        self.refused_until = Some(now + if waits { RESEND } else { REFUSED_RETRY });
        if !std::mem::replace(&mut self.told_refusal, true) {
            out.push(Command::Refused { why, waits });
        }
    }

    /// A batch of its own was read back.
    fn read_own(&mut self, now: Micros, number: u64, sent: Micros, at: Millis) {
        let mut beat = false;
        while self.unread.front().is_some_and(|unread| unread.number <= number) {
            let unread = self.unread.pop_front().expect("it was just seen");
            beat |= unread.beat && unread.number == number;
            unread.barriers.into_iter().for_each(|barrier| _ = barrier.send(true));
        }
        if sent <= now {
            self.lag_ms = u32::try_from((now - sent) / 1_000).unwrap_or(u32::MAX);
            self.clock.read_back(now, sent, at);
        }
        if self.standing() == Standing::Still {
            self.stand(Standing::InStep);
        }
        if beat {
            self.count_silence();
            if let Some((_, beats)) = &mut self.awaited {
                *beats += 1;
            }
        }
    }

    fn count_silence(&mut self) {
        for (incarnation, silent) in &mut self.silence {
            *silent += 1;
            if *silent >= self.settings.dead_after {
                *silent = 0;
                // Found so now: if it speaks before this is read, it lives.
                let next = self.node.presence().state.next_of(*incarnation);
                self.dead.extend(next.map(|next| (*incarnation, next)));
            }
        }
    }

    fn read_own_end(&mut self, now: Micros, out: &mut Vec<Command>) {
        self.go_out(now);
        if self.outgoing.leaves() {
            out.push(Command::Left);
        }
    }

    /// A part of the snapshot; `None`: it can't be had there.
    pub(crate) fn part(&mut self, now: Micros, part: u8, answer: Option<(Incarnation, Vec<u8>)>) {
        let Step::Listening { .. } = self.step else { return };
        let Some(loading) = &mut self.loading else { return };
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
        if let Some(loading) = &mut self.loading {
            *loading = Loading::new(loading.log());
        }
        self.ask_at = now + micros(self.settings.heartbeat);
    }

    /// Asks for the parts that are missing; once all are here, follows the log from the first of them.
    fn load(&mut self, now: Micros, out: &mut Vec<Command>) {
        let Some(loading) = &mut self.loading else { return };
        if now < self.ask_at {
            return;
        }
        if !loading.is_whole() {
            out.extend(loading.asks().map(|(part, of)| Command::Ask { part, of }));
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

    /// Takes in the parts that are exact at `sequence`.
    fn take_parts(&mut self, now: Micros, sequence: u64, at: Millis) {
        let Some(mut loading) = self.loading.take() else { return };
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

    /// What the time has brought.
    pub(crate) fn tick(&mut self, now: Micros, out: &mut Vec<Command>) {
        match self.step {
            Step::Away => {}
            Step::Asking { until } if now >= until => self.ask(now, out),
            Step::Asking { .. } => {}
            Step::Retrying { at } if now >= at => self.ask(now, out),
            Step::Retrying { .. } => {}
            Step::Listening { .. } => {
                self.load(now, out);
                if matches!(self.step, Step::Listening { .. }) {
                    self.say_hello(now, out);
                }
            }
            Step::Following if self.loading.is_some() => {}
            Step::Following => match self.life {
                Life::Out => self.join(now, out),
                Life::In(incarnation) => self.write(now, incarnation, out),
            },
        }
        self.check_still(now);
        self.check_ready(now);
        if self.life == Life::Out && self.outgoing.leaves() && !std::mem::replace(&mut self.last_word_sent, true) {
            out.push(Command::Left);
        }
    }

    fn say_hello(&mut self, now: Micros, out: &mut Vec<Command>) {
        let lost = self.hello.sent.is_some_and(|sent| now >= sent + RESEND);
        if (self.hello.sent.is_none() && now >= self.hello.next_at) || lost {
            self.hello.sent = Some(now);
            out.push(Command::Append(wire::encode(&Message::Hello { nonce: self.nonce })));
        }
    }

    fn join(&mut self, now: Micros, out: &mut Vec<Command>) {
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

    fn write(&mut self, now: Micros, incarnation: Incarnation, out: &mut Vec<Command>) {
        if let Some(oldest) = self.unread.front()
            && now >= oldest.sent.max(self.resent) + RESEND
        {
            self.resent = now;
            out.extend(self.unread.iter().map(|unread| Command::Append(unread.bytes.clone())));
            // Lost on its way, or is it the reading that stands still?
            return self.ask(now, out);
        }
        if !self.settings.rules.hold(Rule::OwnHeartbeats) && now >= self.last_beat + micros(self.settings.heartbeat) {
            // Without the rule: by the clock.
            self.count_silence();
        }
        while self.unread.len() < self.settings.window && !self.last_word_sent {
            // The first, which is empty, tells the log's clock: what is said after it needs that.
            let asks_time = self.next_number == 0 || !self.clock.is_known();
            if (asks_time || self.next_number == 1) && !self.unread.is_empty() {
                return;
            }
            if asks_time {
                self.write_batch(now, incarnation, true, Vec::new(), out);
                continue;
            }
            let beat_unread = self.unread.iter().any(|unread| unread.beat);
            let beat = !beat_unread && now >= self.last_beat + micros(self.settings.heartbeat);
            let gathered = self.last_append.is_none_or(|last| now >= last + micros(self.settings.gather));
            let waits = self.outgoing.len();
            let barrier = self.outgoing.has_barriers();
            let leaving = waits == 0 && self.outgoing.leaves();
            let full = waits >= super::fold::RECORDS_MAX;
            if !(beat || leaving || (waits > 0 || barrier || !self.dead.is_empty()) && (gathered || full)) {
                return;
            }
            let records = self.records(incarnation, beat, leaving);
            self.write_batch(now, incarnation, beat, records, out);
        }
    }

    /// What the next batch says.
    fn records(&mut self, incarnation: Incarnation, beat: bool, last: bool) -> Vec<u8> {
        let (mut records, mut count) = (Vec::new(), 0);
        if beat && let Some(mut card) = self.outgoing.card() {
            card.ready &= self.claimed_by.is_none();
            card.lag_ms = self.lag_ms;
            wire::encode_record(&Record::Card(card), &mut records);
            count += 1;
        }
        for (incarnation, next) in self.dead.drain(..) {
            wire::encode_record(&Record::Dead { incarnation, next }, &mut records);
            count += 1;
        }
        if last {
            wire::encode_record(&Record::Dead { incarnation, next: self.next_number + 1 }, &mut records);
            self.last_word_sent = true;
        } else {
            self.outgoing.take(count, self.clock.skew_ms(), &mut records);
        }
        if self.claimed_by == Some(None) && self.outgoing.len() == 0 {
            self.claimed_by = Some(Some(self.next_number));
        }
        records
    }

    fn write_batch(
        &mut self,
        now: Micros,
        incarnation: Incarnation,
        beat: bool,
        records: Vec<u8>,
        out: &mut Vec<Command>,
    ) {
        let number = self.next_number;
        let bytes = wire::encode_batch(incarnation, number, now, &records);
        out.push(Command::Append(bytes.clone()));
        let barriers = self.outgoing.take_barriers();
        self.unread.push_back(Unread { number, sent: now, bytes, beat, barriers });
        self.next_number += 1;
        self.last_append = Some(now);
        if beat {
            self.last_beat = now;
        }
    }

    fn standing(&self) -> Standing {
        self.node.presence().standing
    }

    fn stand(&self, standing: Standing) {
        self.node.change(|presence| presence.standing = standing);
    }

    /// Where nothing of its own comes back, the log stands still.
    fn check_still(&mut self, now: Micros) {
        let late = self.unread.front().is_some_and(|oldest| now >= oldest.sent + STILL);
        let not_following = self.step != Step::Following && self.last_append.is_none_or(|last| now >= last + STILL);
        if (late || not_following) && self.standing() == Standing::InStep {
            self.stand(Standing::Still);
        }
    }

    /// In step: it is in the log with all that it holds; after a loss also those that were there before, if they come.
    fn check_ready(&mut self, now: Micros) {
        let Life::In(_) = self.life else { return };
        if let Some(Some(number)) = self.claimed_by
            && self.unread.front().is_none_or(|oldest| oldest.number > number)
        {
            self.claimed_by = None;
            // Told with the next word, and that at once.
            self.last_beat = now.saturating_sub(micros(self.settings.heartbeat));
        }
        if self.claimed_by.is_some() || self.standing() != Standing::Joining {
            return;
        }
        if let Some((names, beats)) = &self.awaited
            && *beats < self.settings.dead_after
        {
            let presence = self.node.presence();
            let is_back = |name: &NodeName| {
                let ready = |card: &super::hosts::Card| card.ready || card.draining;
                presence.state.live().any(|live| live.name == *name && live.card.as_ref().is_some_and(ready))
            };
            if !names.iter().all(is_back) {
                return;
            }
        }
        self.awaited = None;
        self.stand(Standing::InStep);
    }

    /// When [`Member::tick`] has something to do next, if nothing comes.
    pub(crate) fn deadline(&self, now: Micros) -> Micros {
        let beat = micros(self.settings.heartbeat);
        match self.step {
            Step::Away => now + beat,
            Step::Asking { until: at } | Step::Retrying { at } => at,
            Step::Listening { .. } => self.hello.next_at.max(now + 10 * MILLISECOND).min(now + beat),
            Step::Following => match self.life {
                Life::Out => now + 50 * MILLISECOND,
                Life::In(_) => {
                    let mut at = now + beat;
                    if !self.unread.iter().any(|unread| unread.beat) {
                        at = at.min(self.last_beat + beat);
                    }
                    if let Some(oldest) = self.unread.front() {
                        at = at.min(oldest.sent.max(self.resent) + RESEND);
                    }
                    let room = self.unread.len() < self.settings.window;
                    if room && (self.outgoing.len() > 0 || self.outgoing.has_barriers()) {
                        at = at.min(self.last_append.map_or(now, |last| last + micros(self.settings.gather)));
                    }
                    at
                }
            },
        }
    }
}

fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
