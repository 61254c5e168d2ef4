//! What was measured, for people and for scripts.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{BenchArgs, devices::Received, floor::Floor, load::Counts, pace::Clock};
use crate::proto::PushStatus;

/// When it is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    clock: Clock,
    start: Duration,
    begin: Duration,
    end: Duration,
}

impl Window {
    /// From the warm-up's end, which begins now, for `duration`.
    pub(super) fn new(clock: Clock, warm_up: Duration, duration: Duration) -> Self {
        let start = clock.now();
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

/// Between the window's begin and end.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Pushes handed to devices.
    pub(super) pushes: u64,
    pub(super) elapsed: Duration,
    /// Of the gateway's process.
    pub(super) cpu: Option<Duration>,
}

/// The whole; its fields are what `--json` promises.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    mode: &'static str,
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
    /// From the meant time to the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    reply_us: Option<Percentiles>,
    /// Of the whole run, warm-up too.
    statuses: BTreeMap<&'static str, u64>,
    lost: u64,
    doubled: u64,
    connections_ended: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_us_per_push: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_device: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor: Option<FloorReport>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct Percentiles {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
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
    fn of(latency: &Histogram<u64>) -> Self {
        let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: latency.max() as f64 / 1e3 }
    }
}

impl Report {
    pub(super) fn new(
        args: &BenchArgs,
        counts: &Counts,
        measured: &Measured,
        received: &Received,
        bytes_per_device: Option<f64>,
        floor: Option<Floor>,
    ) -> Self {
        let statuses = (0..).map_while(|number| PushStatus::try_from(number).ok());
        let statuses = statuses.map(|status| (name(status), counts.of(status))).filter(|(_, count)| *count > 0);
        let replies = counts.replies();
        let cpu_us_per_push = measured.cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / measured.pushes.max(1) as f64);
        Self {
            mode: args.mode.name(),
            devices: args.devices,
            body_bytes: args.body,
            rate: args.rate,
            pushes: measured.pushes,
            pushes_per_second: measured.pushes as f64 / measured.elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            latency_us: Percentiles::of(&received.latency),
            reply_us: (!replies.is_empty()).then(|| Percentiles::of(&replies)),
            statuses: statuses.collect(),
            lost: counts.delivered().saturating_sub(received.pushes),
            doubled: received.doubled,
            connections_ended: received.ended,
            cpu_us_per_push,
            bytes_per_device,
            floor: floor.map(|floor| FloorReport {
                cpu_us_per_write: floor.cpu_us,
                writes_per_second: floor.writes_per_second,
                cpu_ratio: cpu_us_per_push.map(|cpu| cpu / floor.cpu_us),
            }),
        }
    }

    /// Whether each push came once.
    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0
    }

    pub(super) fn table(&self) -> String {
        let mut rows = vec![
            ("mode", format!("{}, {} devices, bodies of {} bytes", self.mode, self.devices, self.body_bytes)),
            (
                "pushes",
                format!("{} in the window, {:.0} a second{}", self.pushes, self.pushes_per_second, self.asked()),
            ),
            ("to the device", self.latency_us.words()),
        ];
        if let Some(reply) = &self.reply_us {
            rows.push(("to the reply", reply.words()));
        }
        let statuses: Vec<_> = self.statuses.iter().map(|(name, count)| format!("{name} {count}")).collect();
        rows.push(("outcomes", statuses.join(", ")));
        rows.push(("lost, doubled", format!("{}, {}", self.lost, self.doubled)));
        if self.connections_ended > 0 {
            rows.push(("ended", format!("{} connections", self.connections_ended)));
        }
        if let Some(cpu) = self.cpu_us_per_push {
            rows.push(("gateway's CPU", format!("{cpu:.2} µs a push")));
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
        rows.iter().map(|(name, value)| format!("{name:<14} {value}")).collect::<Vec<_>>().join("\n")
    }

    fn asked(&self) -> String {
        self.rate.map_or_else(String::new, |rate| format!(" ({rate} asked for)"))
    }
}

impl Percentiles {
    fn words(&self) -> String {
        format!("p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs, max {:.0} µs", self.p50, self.p99, self.p999, self.max)
    }
}

fn name(status: PushStatus) -> &'static str {
    let name = status.as_str_name();
    name.strip_prefix("PUSH_STATUS_").unwrap_or(name)
}
