//! Sleeps to the microsecond. A runtime's timer has milliseconds, which would show in every latency; so would the way from
//! a thread that sleeps to the one that pushes.

use std::time::Duration;

use super::Clock;

/// What wakes one task at a time.
pub(super) struct Alarm {
    clock: Clock,
    #[cfg(target_os = "linux")]
    timer: Option<linux::Timer>,
}

impl Alarm {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            #[cfg(target_os = "linux")]
            timer: None,
        }
    }

    /// Sleeps until `at` of the clock; cancel-safe. By milliseconds where the system has no better.
    pub(super) async fn sleep_until(&mut self, at: Duration) {
        while let Some(early) = at.checked_sub(self.clock.now()).filter(|early| !early.is_zero()) {
            #[cfg(target_os = "linux")]
            if let Some(timer) = self.timer()
                && timer.sleep_until(at).await.is_ok()
            {
                continue;
            }
            tokio::time::sleep(early).await;
        }
    }

    /// Made at its first use: it belongs to the runtime that sleeps.
    #[cfg(target_os = "linux")]
    fn timer(&mut self) -> Option<&mut linux::Timer> {
        if self.timer.is_none() {
            self.timer = linux::Timer::new(self.clock).ok();
        }
        self.timer.as_mut()
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{io, os::fd::AsFd, time::Duration};

    use rustix::time::{
        ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
        timerfd_settime,
    };
    use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver};

    use super::Clock;

    /// A timer of the kernel's. It is read as a pipe is, which the runtime knows: eight bytes come when its time has.
    pub(super) struct Timer {
        pipe: Receiver,
        /// When the clock began, as the kernel counts.
        begun: Duration,
    }

    impl Timer {
        pub(super) fn new(clock: Clock) -> io::Result<Self> {
            let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).map_err(io::Error::other)?;
            let begun = now.saturating_sub(clock.now());
            Ok(Self { pipe: Receiver::from_owned_fd_unchecked(timer)?, begun })
        }

        pub(super) async fn sleep_until(&mut self, at: Duration) -> io::Result<()> {
            let it_value = Timespec::try_from(self.begun.saturating_add(at)).map_err(io::Error::other)?;
            let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
            timerfd_settime(self.pipe.as_fd(), TimerfdTimerFlags::ABSTIME, &Itimerspec { it_interval, it_value })?;
            // Room for more than it tells, so that the runtime knows that nothing is left to read.
            self.pipe.read(&mut [0; 16]).await.map(drop)
        }
    }
}
