//! Which log there is: the one that was followed, another, one that was rolled back, or none.

use super::{Bounds, Command, Member, Micros, RETRY, Step, loading::Loading};
use crate::{
    cluster::{
        fold::{Message, State},
        node::LogIdentity,
        rules::Rule,
        wire,
    },
    model::Millis,
};

/// How far above the last place that is known a lost log begins: what others may have read beyond it.
const ABOVE: u64 = 1 << 20;

impl Member {
    pub(super) fn ask(&mut self, now: Micros, out: &mut Vec<Command>) {
        // Twice what an answer may take.
        self.step = Step::Asking { until: now + 2 * RETRY };
        self.asked = (self.asked.0 + 1, self.known_last());
        out.push(Command::Bounds { ask: self.asked.0 });
    }

    pub(super) fn retry(&mut self, now: Micros) {
        self.step = Step::Retrying { at: now + RETRY };
    }

    /// The last place of the log that is known to have been.
    fn known_last(&self) -> u64 {
        let folded = self.followed.map_or(0, |(_, sequence, _)| sequence);
        folded.max(self.loading.as_ref().map_or(0, Loading::last))
    }

    /// The log's bounds: `Ok(None)` where there is none, an error where that can't be told. `ask` as it was asked with.
    pub(crate) fn bounds(&mut self, now: Micros, ask: u64, answer: Result<Option<Bounds>, ()>, out: &mut Vec<Command>) {
        let (asked, known) = self.asked;
        // Of a node that stood still answers may come very late: they may tell of a log that has gone since.
        if ask != asked || !matches!(self.step, Step::Asking { until } if now < until) {
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
    pub(super) fn forget(&mut self, now: Micros) {
        self.await_those_who_were_live();
        self.followed = None;
        self.loading = None;
        let (sequence, at) = self.node.presence().folded;
        self.node.restart(self.empty(), None, (sequence, at));
        self.go_out(now);
    }

    /// Nobody live, nobody online.
    pub(super) fn empty(&self) -> State {
        State::new(self.node.options().connections_per_uid).with_rules(self.settings.rules)
    }

    /// Begins to fold with that state.
    pub(super) fn begin(&mut self, state: State, log: LogIdentity, sequence: u64, at: Millis) {
        self.followed = Some((log, sequence, at));
        self.checks = false;
        self.silence.clear();
        self.node.restart(state, Some(log), (sequence, at));
    }
}
