//! What was measured, for people and for scripts.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{floor::Floor, pace::Clock, tally::Tally};

/// When it is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    clock: Clock,
    start: Duration,
    begin: Duration,
    end: Duration,
}

impl Window {
    /// From the end of the warm-up, which begins at `start`, for `duration`.
    pub(super) fn new(clock: Clock, start: Duration, warm_up: Duration, duration: Duration) -> Self {
        Self { clock, start, begin: start + warm_up, end: start + warm_up + duration }
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// When the warm-up begins.
    pub(super) fn start(&self) -> Duration {
        self.start
    }

    pub(super) fn begin(&self) -> Duration {
        self.begin
    }

    pub(super) fn end(&self) -> Duration {
        self.end
    }

    /// Warm-up and all.
    pub(super) fn total(&self) -> Duration {
        self.end - self.start
    }

    /// Whether a time, in nanoseconds of the clock, is inside.
    pub(super) fn holds(&self, nanos: u64) -> bool {
        (self.begin..self.end).contains(&Duration::from_nanos(nanos))
    }
}

/// Latencies in nanoseconds: from a microsecond to ten minutes, with three digits.
pub(super) fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("the bounds are in order")
}

/// The whole; its fields are what `--json` promises.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    mode: String,
    /// How many reports were added up.
    #[serde(skip_serializing_if = "Option::is_none")]
    processes: Option<usize>,
    devices: u32,
    body_bytes: u32,
    /// Pushes a second that were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u32>,
    /// Pushes to devices in the window, and a second.
    pushes: u64,
    pushes_per_second: f64,
    /// From the meant time to the device.
    latency_us: Percentiles,
    /// The same of pushes that the device's own node was asked for, and of others; where there were others.
    #[serde(skip_serializing_if = "Option::is_none")]
    local_us: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    forwarded_us: Option<Percentiles>,
    /// From the meant time to the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_us: Option<Percentiles>,
    /// Of the whole run, warm-up too.
    statuses: BTreeMap<String, u64>,
    lost: u64,
    doubled: u64,
    connections_ended: u64,
    /// Of all processes of the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us_per_push: Option<f64>,
    /// Of each, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<NodeReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_device: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<FloorReport>,
    /// What `--merge` adds up, of one of several processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    tally: Option<Tally>,
}

/// Latencies in microseconds, and of how many.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Percentiles {
    count: u64,
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// One process of the gateway.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeReport {
    pid: u32,
    cpu_us_per_push: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FloorReport {
    cpu_us_per_write: f64,
    writes_per_second: f64,
    /// The gateway's CPU for a push against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_ratio: Option<f64>,
}

impl Percentiles {
    pub(super) fn of(latency: &Histogram<u64>) -> Self {
        let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        Self { count: latency.len(), p50: at(0.5), p99: at(0.99), p999: at(0.999), max: latency.max() as f64 / 1e3 }
    }

    /// None where there is nothing to tell of.
    fn some(latency: &Histogram<u64>) -> Option<Self> {
        (!latency.is_empty()).then(|| Self::of(latency))
    }
}

impl Report {
    pub(super) fn new(tally: Tally, bytes_per_device: Option<f64>, floor: Option<Floor>) -> Self {
        let per_push = |cpu: u64| cpu as f64 / 1e3 / tally.pushes as f64;
        let has_cpu = !tally.cpu_ns.is_empty() && tally.pushes > 0;
        let cpu_us_per_push = has_cpu.then(|| per_push(tally.cpu_ns.values().sum()));
        let nodes = tally.cpu_ns.iter().map(|(pid, cpu)| NodeReport { pid: *pid, cpu_us_per_push: per_push(*cpu) });
        let was_forwarded = !tally.forwarded.is_empty();
        let mut latency = tally.local.clone();
        latency.add(&tally.forwarded).expect("their bounds are the same");
        Self {
            mode: tally.mode.clone(),
            processes: (tally.processes > 1).then_some(tally.processes),
            devices: tally.devices,
            body_bytes: tally.body_bytes,
            rate: tally.rate,
            pushes: tally.pushes,
            pushes_per_second: tally.pushes as f64 / (tally.elapsed_ns as f64 / 1e9).max(f64::MIN_POSITIVE),
            latency_us: Percentiles::of(&latency),
            local_us: Percentiles::some(&tally.local).filter(|_| was_forwarded),
            forwarded_us: Percentiles::some(&tally.forwarded),
            reply_us: Percentiles::some(&tally.replies),
            statuses: tally.statuses.clone(),
            lost: tally.lost,
            doubled: tally.doubled,
            connections_ended: tally.connections_ended,
            cpu_us_per_push,
            nodes: if has_cpu && tally.cpu_ns.len() > 1 { nodes.collect() } else { Vec::new() },
            bytes_per_device,
            floor: floor.map(|floor| FloorReport {
                cpu_us_per_write: floor.cpu_us,
                writes_per_second: floor.writes_per_second,
                cpu_ratio: cpu_us_per_push.map(|cpu| cpu / floor.cpu_us),
            }),
            tally: tally.is_part().then_some(tally),
        }
    }

    /// Whether each push came once.
    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0
    }

    pub(super) fn table(&self) -> String {
        let processes = self.processes.map_or_else(String::new, |count| format!(", {count} processes"));
        let mut rows = vec![
            (
                "mode",
                format!("{}, {} devices, bodies of {} bytes{processes}", self.mode, self.devices, self.body_bytes),
            ),
            (
                "pushes",
                format!("{} in the window, {:.0} a second{}", self.pushes, self.pushes_per_second, self.asked()),
            ),
            ("to the device", self.latency_us.words()),
        ];
        let further =
            [("  at its node", &self.local_us), ("  by another", &self.forwarded_us), ("to the reply", &self.reply_us)];
        rows.extend(further.into_iter().filter_map(|(name, latency)| Some((name, latency.as_ref()?.words()))));
        let statuses: Vec<_> = self.statuses.iter().map(|(name, count)| format!("{name} {count}")).collect();
        rows.push(("outcomes", statuses.join(", ")));
        rows.push(("lost, doubled", format!("{}, {}", self.lost, self.doubled)));
        if self.connections_ended > 0 {
            rows.push(("ended", format!("{} connections", self.connections_ended)));
        }
        if let Some(cpu) = self.cpu_us_per_push {
            rows.push(("gateway's CPU", format!("{cpu:.2} µs a push{}", self.cpu_of_nodes())));
        }
        if let Some(bytes) = self.bytes_per_device {
            rows.push(("its memory", format!("{bytes:.0} bytes a device")));
        }
        if let Some(floor) = &self.floor {
            let ratio =
                floor.cpu_ratio.map_or_else(String::new, |ratio| format!("; the gateway's is {ratio:.2} times that"));
            rows.push((
                "floor",
                format!("{:.2} µs a write, {:.0} a second{ratio}", floor.cpu_us_per_write, floor.writes_per_second),
            ));
        }
        table(&rows)
    }

    fn asked(&self) -> String {
        self.rate.map_or_else(String::new, |rate| format!(" ({rate} asked for)"))
    }

    fn cpu_of_nodes(&self) -> String {
        let each = self.nodes.iter().map(|node| format!("{:.2} of {}", node.cpu_us_per_push, node.pid));
        let each: Vec<_> = each.collect();
        if each.is_empty() { String::new() } else { format!(": {}", each.join(", ")) }
    }
}

/// Names and values, below each other.
pub(super) fn table(rows: &[(&str, String)]) -> String {
    rows.iter().map(|(name, value)| format!("{name:<14} {value}")).collect::<Vec<_>>().join("\n")
}

impl Percentiles {
    pub(super) fn words(&self) -> String {
        format!("p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs, max {:.0} µs", self.p50, self.p99, self.p999, self.max)
    }
}
