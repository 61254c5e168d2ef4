//! What was counted. Of processes that ran at the same time it adds up.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::cli::{Exit, Failure};

/// The counts of one process, or of several together. Times are nanoseconds; histograms are lists of a value and how often
/// it was seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tally {
    #[serde(skip, default = "one")]
    pub(super) processes: usize,
    pub(super) mode: String,
    pub(super) devices: u32,
    pub(super) body_bytes: u32,
    pub(super) rate: Option<u32>,
    /// The `--start-at` and `--duration` of a process that is one of several.
    pub(super) window: Option<String>,
    pub(super) pushes: u64,
    pub(super) elapsed_ns: u64,
    #[serde(with = "buckets")]
    pub(super) local: Histogram<u64>,
    #[serde(with = "buckets")]
    pub(super) forwarded: Histogram<u64>,
    #[serde(with = "buckets")]
    pub(super) replies: Histogram<u64>,
    pub(super) statuses: BTreeMap<String, u64>,
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) connections_ended: u64,
    /// Of the gateway's processes, by their pids.
    pub(super) cpu_ns: BTreeMap<u32, u64>,
}

fn one() -> usize {
    1
}

/// A line of `--json`, as far as it is needed here.
#[derive(Deserialize)]
struct Line {
    tally: Option<Tally>,
}

impl Tally {
    /// Whether it is one of several that can be added up.
    pub(super) fn is_part(&self) -> bool {
        self.window.is_some()
    }

    /// Adds up what these files hold.
    pub(super) fn merged(files: &[PathBuf]) -> Result<Self, Failure> {
        let mut whole: Option<Self> = None;
        for file in files {
            let part = read(file)?;
            match &mut whole {
                None => whole = Some(part),
                Some(whole) => whole.add(part, file)?,
            }
        }
        let whole = whole.ok_or_else(|| Failure::new(Exit::Usage, "--merge: no file"))?;
        // What is added up isn't a part any more: a second merge would count it as one process.
        Ok(Self { window: None, ..whole })
    }

    fn add(&mut self, other: Self, file: &Path) -> Result<(), Failure> {
        for (what, differs) in [
            ("--mode", self.mode != other.mode),
            ("--body", self.body_bytes != other.body_bytes),
            ("--start-at, --warm-up or --duration", self.window != other.window),
        ] {
            if differs {
                return Err(failure(file, &format!("was measured with another {what} than the first")));
            }
        }
        self.processes += other.processes;
        self.devices = self.devices.saturating_add(other.devices);
        self.rate = self.rate.zip(other.rate).map(|(rate, other)| rate.saturating_add(other));
        self.pushes += other.pushes;
        self.elapsed_ns = self.elapsed_ns.max(other.elapsed_ns);
        for (mine, others) in [
            (&mut self.local, &other.local),
            (&mut self.forwarded, &other.forwarded),
            (&mut self.replies, &other.replies),
        ] {
            mine.add(others).expect("their bounds are the same");
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.connections_ended += other.connections_ended;
        // Two that looked at the same process in the same window saw the same.
        for (pid, cpu) in other.cpu_ns {
            let mine = self.cpu_ns.entry(pid).or_default();
            *mine = cpu.max(*mine);
        }
        Ok(())
    }
}

fn read(file: &Path) -> Result<Tally, Failure> {
    let text = fs::read_to_string(file).map_err(|error| failure(file, &error))?;
    let line: Line = serde_json::from_str(&text)
        .map_err(|error| failure(file, &format!("isn't one report of plex bench --json: {error}")))?;
    line.tally.ok_or_else(|| failure(file, &"was measured without --start-at, so not at the time of the others"))
}

fn failure(file: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, format!("--merge {}: {why}", file.display()))
}

/// A histogram as what was seen, and how often.
mod buckets {
    use hdrhistogram::Histogram;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::cli::bench::report::latencies;

    pub(super) fn serialize<S: Serializer>(histogram: &Histogram<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(
            histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_since_last_iteration())),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Histogram<u64>, D::Error> {
        let mut histogram = latencies();
        for (value, count) in Vec::<(u64, u64)>::deserialize(deserializer)? {
            histogram.record_n(value, count).map_err(D::Error::custom)?;
        }
        Ok(histogram)
    }
}
