//! How long to wait before another try.

use std::time::Duration;

/// The first wait at most.
const FIRST: Duration = Duration::from_millis(100);

/// The longest wait: a gateway that came back is found within it.
const LONGEST: Duration = Duration::from_secs(10);

/// Waits that double from 0.1 s to 10 s, each a random part of that, so that many who lost the same gateway don't come
/// back as a herd.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The time to wait after one more failure: a random one from half of the doubled time to all of it.
    pub fn failed(&mut self) -> Duration {
        let most = FIRST.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        rand::random_range(most / 2..=most)
    }

    /// It worked: the next wait is a short one again.
    pub fn worked(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew() {
        let mut backoff = Backoff::default();
        for failure in 0..200 {
            let most = Duration::from_millis(100 << failure.min(8)).min(LONGEST);
            let wait = backoff.failed();
            assert!((most / 2..=most).contains(&wait), "{failure}: {wait:?}");
        }
        backoff.worked();
        assert!(backoff.failed() <= FIRST);
    }
}
