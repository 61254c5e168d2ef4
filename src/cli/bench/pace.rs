//! When pushes are meant to be made.

mod alarm;

use std::time::{Duration, Instant};

use self::alarm::Alarm;

/// The time of this run: what all its threads count from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// Since its start.
    pub(super) fn now(self) -> Duration {
        self.0.elapsed()
    }

    /// The same in nanoseconds: half a millennium's worth.
    pub(super) fn nanos(self) -> u64 {
        self.now().as_nanos() as u64
    }
}

/// Tells when the next push is due.
pub(super) enum Pace {
    /// As soon as there is room, until then.
    Full { clock: Clock, end: Duration },
    /// At its times, whatever has become of those before.
    Open(Times),
}

/// Times that are evenly apart.
pub(super) struct Times {
    clock: Clock,
    begun: Duration,
    end: Duration,
    interval: f64,
    /// How many have been told.
    told: u64,
    alarm: Alarm,
}

impl Pace {
    /// `rate` a second, `step` of them at a time, from `begun` to `end`; without a rate, whenever there is room.
    pub(super) fn start(clock: Clock, rate: Option<u32>, step: u32, begun: Duration, end: Duration) -> Self {
        let Some(rate) = rate else { return Self::Full { clock, end } };
        let interval = f64::from(step) / f64::from(rate);
        Self::Open(Times { clock, begun, end, interval, told: 0, alarm: Alarm::new(clock) })
    }

    /// The time for which the next push is meant, once it has come; none at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<u64> {
        let times = match self {
            Self::Full { clock, end } => return (clock.now() < *end).then(|| clock.nanos()),
            Self::Open(times) => times,
        };
        let at = times.coming()?;
        times.alarm.sleep_until(at).await;
        Some(times.tell(at))
    }

    /// The time for which the next push is meant, before it has come; none where that isn't known.
    pub(super) fn coming(&self) -> Option<u64> {
        match self {
            Self::Full { .. } => None,
            Self::Open(times) => Some(times.coming()?.as_nanos() as u64),
        }
    }

    /// The next one, if it is due already.
    pub(super) fn next_due(&mut self) -> Option<u64> {
        match self {
            Self::Full { clock, end } => (clock.now() < *end).then(|| clock.nanos()),
            Self::Open(times) => {
                let at = times.coming().filter(|at| *at <= times.clock.now())?;
                Some(times.tell(at))
            }
        }
    }

    /// Whether pushes wait for room instead of for their time.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

impl Times {
    fn coming(&self) -> Option<Duration> {
        let at = self.begun + Duration::from_secs_f64(self.interval * self.told as f64);
        (at < self.end).then_some(at)
    }

    fn tell(&mut self, at: Duration) -> u64 {
        self.told += 1;
        at.as_nanos() as u64
    }
}
