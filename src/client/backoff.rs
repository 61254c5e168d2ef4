//! How long to wait before another try.

use std::time::Duration;

/// Waits that double from a first to a longest, each a random part of that, so that many who lost the same gateway don't
/// come back as a herd.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits of at most `first` after the first failure in a row, of twice that after the second, and so on, and of never
    /// more than `longest`; each is at least half of its most.
    #[must_use]
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// The time to wait after one more failure.
    pub(super) fn failed(&mut self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let most = self.first.saturating_mul(factor).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        rand::random_range(most / 2..=most)
    }

    /// It worked: the next wait is a short one again.
    pub(super) fn worked(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(10));
        let mut backoff = Backoff::new(first, longest);
        for failure in 0..200 {
            let most = Duration::from_millis(100 << failure.min(8)).min(longest);
            let wait = backoff.failed();
            assert!((most / 2..=most).contains(&wait), "{failure}: {wait:?}");
        }
        backoff.worked();
        assert!(backoff.failed() <= first);
    }
}
