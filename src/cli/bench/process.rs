//! What the kernel counts of another process on this machine (Linux).

use std::{fs, time::Duration};

use crate::cli::{Exit, Failure};

/// A process by its number.
#[derive(Debug)]
pub(super) struct Process(u32);

impl Process {
    /// Fails where there is none, or not for us to see.
    pub(super) fn of(pid: u32) -> Result<Self, Failure> {
        let process = Self(pid);
        process.cpu()?;
        Ok(process)
    }

    /// What the scheduler has given to all its threads.
    pub(super) fn cpu(&self) -> Result<Duration, Failure> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.0)).map_err(|error| self.failure(&error))?;
        let nanos = tasks.filter_map(|task| {
            // A thread may end meanwhile.
            let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Ok(Duration::from_nanos(nanos.sum()))
    }

    /// Its resident set, in bytes.
    pub(super) fn resident(&self) -> Result<u64, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).map_err(|error| self.failure(&error))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
        kib.map(|kib| kib * 1024).ok_or_else(|| self.failure(&"it tells no resident set"))
    }

    fn failure(&self, why: &dyn std::fmt::Display) -> Failure {
        Failure::new(Exit::Usage, format!("--pid {}: {why}", self.0))
    }
}
