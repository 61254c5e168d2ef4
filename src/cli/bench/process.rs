//! What the kernel counts of another process on this machine (Linux).

use std::{collections::BTreeMap, fs, time::Duration};

use crate::cli::{Exit, Failure};

/// Those that `--pid` names: the nodes of one gateway.
#[derive(Debug)]
pub(super) struct Processes(Vec<Process>);

impl Processes {
    /// Fails where one isn't there, or not for us to see.
    pub(super) fn of(pids: &[u32]) -> Result<Self, Failure> {
        Ok(Self(pids.iter().copied().map(Process::of).collect::<Result<_, _>>()?))
    }

    /// What the scheduler has given to each.
    pub(super) fn cpu(&self) -> Result<BTreeMap<u32, Duration>, Failure> {
        self.0.iter().map(|process| Ok((process.0, process.cpu()?))).collect()
    }

    /// Their resident sets together, in bytes; none where there are no processes.
    pub(super) fn resident(&self) -> Result<Option<u64>, Failure> {
        if self.0.is_empty() {
            return Ok(None);
        }
        self.0.iter().map(Process::resident).sum::<Result<u64, _>>().map(Some)
    }
}

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
