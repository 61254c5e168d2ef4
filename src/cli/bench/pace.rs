//! When pushes are meant to be made.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

/// Pushes that were meant to be made and aren't yet: as many as go through in a second or two.
const BEHIND_MAX: usize = 1 << 20;

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
    /// At these times, whatever has become of those before.
    Open(mpsc::Receiver<u64>),
}

impl Pace {
    /// `rate` a second, `step` of them at a time, from `begun` to `end`; without a rate, whenever there is room.
    pub(super) fn start(clock: Clock, rate: Option<u32>, step: u32, begun: Duration, end: Duration) -> Self {
        let Some(rate) = rate else { return Self::Full { clock, end } };
        let (due, times) = mpsc::channel(BEHIND_MAX);
        let interval = f64::from(step) / f64::from(rate);
        // A thread sleeps finer than a runtime's timer, whose millisecond would show in every latency.
        thread::spawn(move || {
            sleep_exactly();
            for step in 0.. {
                let at = begun + Duration::from_secs_f64(interval * f64::from(step));
                if at >= end {
                    return;
                }
                if let Some(early) = at.checked_sub(clock.now()) {
                    thread::sleep(early);
                }
                if due.blocking_send(at.as_nanos() as u64).is_err() {
                    return;
                }
            }
        });
        Self::Open(times)
    }

    /// The time for which the next push is meant, once it has come; none at the end.
    pub(super) async fn next(&mut self) -> Option<u64> {
        match self {
            Self::Full { clock, end } => (clock.now() < *end).then(|| clock.nanos()),
            Self::Open(times) => times.recv().await,
        }
    }

    /// The next one, if it is due already.
    pub(super) fn next_due(&mut self) -> Option<u64> {
        match self {
            Self::Full { clock, end } => (clock.now() < *end).then(|| clock.nanos()),
            Self::Open(times) => times.try_recv().ok(),
        }
    }

    /// Whether pushes wait for room instead of for their time.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// Asks the kernel not to let this thread sleep longer than told, to save power: by default it may, by 50 µs, which would
/// show in every latency. Where it doesn't listen, it does.
fn sleep_exactly() {
    let own = fs::read_link("/proc/thread-self").ok();
    // "PID/task/TID", and a thread may write only its own, which stands under its number as if it were a process.
    let thread = own.as_deref().and_then(Path::file_name);
    let _ = thread.map(|thread| fs::write(Path::new("/proc").join(thread).join("timerslack_ns"), "1"));
}
