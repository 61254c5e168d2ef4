//! A node's part in a log that many write: when to join and how to get the state, what to write and when to write it
//! again, who is dead, and what to do when the log was lost. No I/O and no clock: it is told what happened and when, and
//! says what has to be done. What carries that out is `nats`; the simulator of the tests is another.
//!
//! It acts on what it has *read* from the log, never on what it has sent.

mod arriving;
mod clock;
mod finding;
mod loading;
mod writing;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::model::{Millis, NodeName};

use self::{arriving::Hello, clock::LogClock, loading::Loading, writing::Unread};
use super::{
    engine::Standing,
    fold::{Effects, Incarnation, Message, State},
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

/// How a member takes part.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// When the process started, in µs since 1970.
    pub(crate) start: u64,
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
    /// Ask for the log's bounds. The answer comes with the number of the question.
    Bounds { ask: u64 },
    /// Make the log, to begin with this sequence.
    Create { first: u64 },
    /// Delete the log, if it is still that one.
    Discard(LogIdentity),
    /// Read from this sequence on; what was read before ends.
    Read { from: u64 },
    /// Ask a node that has the state for a part of it: that one, or any. The answer comes with the number of the
    /// snapshot.
    Ask { snapshot: u64, part: u8, of: Option<Incarnation> },
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
    /// The last life, of which nothing need be left.
    last_life: Option<Incarnation>,
    attempt: u32,
    /// The log that is followed, and its last message that is folded; `None`: no state.
    followed: Option<(LogIdentity, u64, Millis)>,
    /// How often the log's bounds were asked for, and the last place of it that was known the last time.
    asked: (u64, u64),
    /// That message has to come again, and be the same.
    checks: bool,
    loading: Option<Loading>,
    /// How many snapshots were asked for.
    snapshots: u64,
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
    /// When it last followed the log, where it doesn't.
    followed_until: Option<Micros>,
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
            last_life: None,
            attempt: 0,
            followed: None,
            asked: (0, 0),
            checks: false,
            loading: None,
            snapshots: 0,
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
            followed_until: None,
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

    /// The log can't be read now.
    pub(crate) fn reading_failed(&mut self, now: Micros) {
        if matches!(self.step, Step::Following | Step::Listening { .. }) {
            self.retry(now);
        }
    }

    /// A message of the log. Out of order, it is a gap.
    pub(crate) fn message(&mut self, now: Micros, sequence: u64, at: Millis, bytes: &[u8], out: &mut Vec<Command>) {
        if let Step::Listening { after } = self.step {
            return self.overhear(now, after, (sequence, at), bytes, out);
        }
        let Some((log, folded, folded_at)) = self.followed else { return };
        if self.checks {
            if sequence != folded {
                return self.note_gap(now, out);
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
            return self.note_gap(now, out);
        }
        self.followed = Some((log, sequence, at));
        self.fold(now, sequence, at, bytes, out);
    }

    /// What is read isn't what comes next. Until the answer is there no other question is: one that is asked again is void.
    fn note_gap(&mut self, now: Micros, out: &mut Vec<Command>) {
        if self.step == Step::Following {
            self.ask(now, out);
        }
    }

    fn fold(&mut self, now: Micros, sequence: u64, at: Millis, bytes: &[u8], out: &mut Vec<Command>) {
        let message = wire::decode(bytes).ok();
        let mut effects = std::mem::take(&mut self.effects);
        effects.clear();
        if matches!(message, Some(Message::Reset { .. })) {
            self.await_those_who_were_live();
        }
        self.clock.read(now, at);
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
        }
        // Its own end, but not by a join of its own that has just counted.
        if let Life::In(incarnation) = own
            && effects.ended.contains(&incarnation)
            && self.life == own
        {
            self.read_own_end(now, out);
        }
        if let Some(skew) = self.clock.skew_ms() {
            self.outgoing.set_skew(skew);
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

    fn read_own_end(&mut self, now: Micros, out: &mut Vec<Command>) {
        self.go_out(now);
        if self.outgoing.leaves() {
            out.push(Command::Left);
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

    /// How long it is from a heartbeat to the next.
    fn beat(&self) -> Micros {
        micros(self.node.options().heartbeat)
    }

    fn standing(&self) -> Standing {
        self.node.presence().standing
    }

    fn stand(&self, standing: Standing) {
        self.node.change(|presence| presence.standing = standing);
    }

    /// When [`Member::tick`] has something to do next, if nothing comes.
    pub(crate) fn deadline(&self, now: Micros) -> Micros {
        let beat = self.beat();
        match self.step {
            Step::Away => now + beat.min(STILL),
            Step::Asking { until: at } | Step::Retrying { at } => at,
            Step::Listening { .. } => self.hello.next_at.max(now + 10 * MILLISECOND).min(now + beat),
            Step::Following if self.loading.is_some() => now + beat,
            Step::Following => match self.life {
                Life::Out => now + 50 * MILLISECOND,
                Life::In(_) => self.writes_at(now),
            },
        }
    }
}

fn micros(duration: Duration) -> Micros {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
