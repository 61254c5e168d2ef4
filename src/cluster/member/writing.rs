//! What is written, when, and when again; and who is silent meanwhile.

use tokio::sync::oneshot;

use super::{Command, Member, Micros, RESEND, STILL, Step, micros};
use crate::{
    cluster::{
        engine::Standing,
        fold::{Incarnation, RECORDS_MAX, Record},
        rules::Rule,
        wire,
    },
    model::Millis,
};

/// A batch that was written and not read back.
#[derive(Debug)]
pub(super) struct Unread {
    pub(super) number: u64,
    pub(super) sent: Micros,
    pub(super) bytes: Vec<u8>,
    /// A heartbeat, by which others' silence is counted.
    pub(super) beat: bool,
    pub(super) barriers: Vec<oneshot::Sender<bool>>,
}

impl Member {
    pub(super) fn write(&mut self, now: Micros, incarnation: Incarnation, out: &mut Vec<Command>) {
        if let Some(oldest) = self.unread.front()
            && now >= oldest.sent.max(self.resent) + RESEND
        {
            self.resent = now;
            out.extend(self.unread.iter().map(|unread| Command::Append(unread.bytes.clone())));
            // Lost on its way, or is it the reading that stands still?
            return self.ask(now, out);
        }
        if !self.settings.rules.hold(Rule::OwnHeartbeats) && now >= self.last_beat + self.beat() {
            // Without the rule: by the clock.
            self.count_silence();
        }
        while self.may_write() && now >= self.due() {
            if self.asks_time() {
                self.write_batch(now, incarnation, true, Vec::new(), out);
                continue;
            }
            let beat = self.beat_at().is_some_and(|at| now >= at);
            let leaving = self.outgoing.len() == 0 && self.outgoing.leaves();
            let records = self.records(incarnation, beat, leaving);
            self.write_batch(now, incarnation, beat, records, out);
        }
    }

    /// The first, which is empty, tells the log's clock: what is said after it needs that.
    fn asks_time(&self) -> bool {
        self.next_number == 0 || !self.clock.is_known()
    }

    fn may_write(&self) -> bool {
        let alone = self.asks_time() || self.next_number == 1;
        let room = if alone { 1 } else { self.settings.window };
        self.unread.len() < room && !self.last_word_sent
    }

    /// Nothing that was held at the join waits any more; the batch that is written now says so, and needn't wait either.
    fn has_claimed_all(&self) -> bool {
        self.claimed_by == Some(None) && self.outgoing.len() == 0
    }

    /// When the next heartbeat is due; `None`: one is still to be read.
    fn beat_at(&self) -> Option<Micros> {
        let is_read = !self.unread.iter().any(|unread| unread.beat);
        is_read.then_some(self.last_beat + self.beat())
    }

    /// When the next batch is due, where one may be written.
    fn due(&self) -> Micros {
        let waits = self.outgoing.len();
        let leaving = waits == 0 && self.outgoing.leaves();
        if self.asks_time() || self.has_claimed_all() || leaving || waits >= RECORDS_MAX {
            return 0;
        }
        let gathers = waits > 0 || self.outgoing.has_barriers() || !self.dead.is_empty();
        let gathered_at = || self.last_append.map_or(0, |last| last + micros(self.settings.gather));
        let at = self.beat_at().into_iter().chain(gathers.then(gathered_at)).min();
        at.unwrap_or(Micros::MAX)
    }

    /// When [`Member::write`] has something to do next, if nothing is read.
    pub(super) fn writes_at(&self, now: Micros) -> Micros {
        let resends_at = self.unread.front().map(|oldest| oldest.sent.max(self.resent) + RESEND);
        let writes_at = self.may_write().then(|| self.due());
        resends_at.into_iter().chain(writes_at).fold(now + self.beat(), Micros::min)
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
            self.outgoing.take(count, &mut records);
        }
        if self.has_claimed_all() {
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

    /// A batch of its own was read back.
    pub(super) fn read_own(&mut self, now: Micros, number: u64, sent: Micros, at: Millis) {
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

    /// Where nothing of its own comes back, the log stands still.
    pub(super) fn check_still(&mut self, now: Micros) {
        let late = self.unread.front().is_some_and(|oldest| now >= oldest.sent + STILL);
        let since = match self.step {
            Step::Following => None,
            _ => Some(self.followed_until.unwrap_or(now)),
        };
        self.followed_until = since;
        let not_following = since.is_some_and(|since| now >= since + STILL);
        if (late || not_following) && self.standing() == Standing::InStep {
            self.stand(Standing::Still);
        }
    }
}
