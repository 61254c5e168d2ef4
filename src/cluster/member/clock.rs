//! The log's clock: that of its leader, as far as this node has seen it.

use crate::model::Millis;

use super::Micros;

/// Later than this a message read back tells too little of the clock.
const TOLD_BELOW: Micros = 1_000_000;
/// Where every message takes longer, the best of so many has to do.
const TRIES: u32 = 5;

/// What the log's clock is ahead of the node's own.
#[derive(Debug)]
pub(crate) struct LogClock {
    /// The node's own clock at 0 µs.
    base: Millis,
    /// As far as is known, and how long the message took that told it.
    skew: Option<(i64, Micros)>,
    late: u32,
}

impl LogClock {
    pub(crate) fn new(base: Millis) -> Self {
        Self { base, skew: None, late: 0 }
    }

    /// The node's own clock.
    pub(crate) fn wall(&self, now: Micros) -> Millis {
        Millis(self.base.0 + now / 1_000)
    }

    /// A message sent at `sent` was read back `now`; the log took it at `at`.
    pub(crate) fn read_back(&mut self, now: Micros, sent: Micros, at: Millis) {
        let took = now.saturating_sub(sent);
        if took >= TOLD_BELOW {
            self.late = self.late.saturating_add(1);
        }
        let better = self.skew.is_none_or(|(_, best)| !self.is_known() && took < best);
        if took < TOLD_BELOW || better {
            let own = self.wall(sent + took / 2);
            self.skew = Some((at.0 as i64 - own.0 as i64, took));
        }
    }

    /// A message was read that the log took at `at`: it isn't earlier now. So the node's clock may have stood still, with the
    /// machine, and who comes then isn't taken for older than it is.
    pub(crate) fn read(&mut self, now: Micros, at: Millis) {
        let least = at.0 as i64 - self.wall(now).0 as i64;
        if let Some((skew, _)) = &mut self.skew {
            *skew = least.max(*skew);
        }
    }

    /// Whether it is known well enough to tell how old a connection is.
    pub(crate) fn is_known(&self) -> bool {
        self.skew.is_some_and(|(_, took)| took < TOLD_BELOW || self.late >= TRIES)
    }

    /// How many ms the log's clock is ahead, as far as is known.
    pub(crate) fn skew_ms(&self) -> Option<i64> {
        self.skew.map(|(skew, _)| skew)
    }
}
