//! `plex bench`: what a gateway on this machine, or another, holds and how fast it is.
//!
//! The load is open-loop where a rate is given: each push has the time at which it was meant to be made, and its latency
//! counts from there, so that a gateway that stalls can't hide it by stalling the load as well (no coordinated omission).

mod args;
mod devices;
mod floor;
mod load;
mod login;
mod pace;
mod presence;
mod process;
mod progress;
mod report;
mod roster;
mod tally;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, SystemTime},
};

use indicatif::ProgressBar;
use tokio::task::LocalSet;

pub(super) use self::args::{BenchArgs, FloorArgs};
use self::{
    args::Mode,
    devices::{Fleet, FleetPlan},
    load::{Load, Node},
    login::Logins,
    pace::{Clock, Pace},
    process::Processes,
    progress::Bars,
    report::{Report, Window},
    roster::Roster,
    tally::Tally,
};
use super::{Exit, Failure, Output};
use crate::{client::Control, model::Transport};

/// How long is waited, once nothing more is pushed, for what is under way.
const ARRIVE: Duration = Duration::from_secs(5);

/// Where the slope of memory begins: below it a process is mostly itself.
const SLOPE_FROM: u32 = 1_000;

pub(super) use floor::serve as floor;

/// Measures. No is the answer where a push was lost or came twice, or a change of presence wasn't told.
pub(super) async fn bench(args: BenchArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    // Devices may live on this thread.
    LocalSet::new().run_until(measure(args, config)).await
}

async fn measure(args: BenchArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let mut output = Output::stdout(args.json);
    if !args.merge.is_empty() {
        let report = Report::new(Tally::merged(&args.merge)?, None, None);
        output.answer(&report, || report.table())?;
        return Ok(if report.is_clean() { Exit::Done } else { Exit::No });
    }
    args.check()?;
    let run = Run::of(args, config).await?;
    let is_clean = if run.args.mode == Mode::Presence {
        let report = presence::measure(run).await?;
        output.answer(&report, || report.table())?;
        report.is_clean()
    } else {
        let report = pushes(run).await?;
        output.answer(&report, || report.table())?;
        report.is_clean()
    };
    Ok(if is_clean { Exit::Done } else { Exit::No })
}

/// What a run works with, of either kind.
struct Run {
    args: BenchArgs,
    controls: Vec<Control>,
    /// The name of the node behind each.
    names: Vec<String>,
    roster: Arc<Roster>,
    processes: Processes,
    bars: Bars,
    clock: Clock,
}

impl Run {
    async fn of(args: BenchArgs, config: Option<PathBuf>) -> Result<Self, Failure> {
        let processes = Processes::of(&args.pid)?;
        let roster = Arc::new(Roster::of(&args, config.clone())?);
        let mut access = args.access.clone();
        let urls: Vec<_> = if args.control.is_empty() { vec![None] } else { args.control.iter().map(Some).collect() };
        let is_plain = |url: &Option<&String>| url.is_none_or(|url| !url.to_ascii_lowercase().starts_with("https:"));
        if args.tls && urls.iter().all(is_plain) {
            // It is for the devices: a control plane without TLS shows no certificate, one of this machine its own.
            access.ca = None;
        }
        let connect = |url: Option<&String>| access.connect(url.map(String::as_str), config.clone());
        let controls = urls.into_iter().map(connect).collect::<Result<Vec<_>, _>>()?;
        let mut names = Vec::new();
        for control in &controls {
            names.push(control.info().await?.node);
        }
        let bars = Bars::new(args.json);
        Ok(Self { args, controls, names, roster, processes, bars, clock: Clock::start() })
    }

    /// The devices, none of them connected. `sent` takes the times of their logins.
    async fn fleet(&self, sent: Arc<[AtomicU64]>) -> Result<Fleet, Failure> {
        let addresses = match &self.args.connect[..] {
            [] => {
                let transport = if self.args.tls { Transport::Tls } else { Transport::Tcp };
                vec![self.controls[0].host(transport).await?.address]
            }
            addresses => addresses.to_vec(),
        };
        Fleet::start(FleetPlan {
            logins: Logins::at(&addresses, &self.args, Arc::clone(&self.roster)).await?,
            nodes: self.names.clone(),
            acks: self.args.mode == Mode::Ack,
            clock: self.clock,
            sent,
        })
    }

    /// When devices log in, if at a rate.
    fn logins(&self) -> Option<Pace> {
        let rate = self.args.logins?;
        Some(Pace::start(self.clock, Some(rate), 1, self.clock.now(), Duration::MAX))
    }

    /// Connects all devices; gives the gateway's bytes for each.
    async fn connect(&self, fleet: &mut Fleet) -> Result<Option<f64>, Failure> {
        let count = self.args.devices;
        let bar = self.bars.bar(u64::from(count), "devices");
        let few = count.min(SLOPE_FROM);
        // Of several that connect at the same time none could tell what its own devices take.
        let is_alone = self.args.start_at.is_none();
        fleet.connect(few, self.logins(), &bar).await?;
        let before = if is_alone { self.settled().await? } else { None };
        fleet.connect(count, self.logins(), &bar).await?;
        let after = if is_alone { self.settled().await? } else { None };
        bar.finish_and_clear();
        let more = f64::from(count - few);
        Ok(before.zip(after).filter(|_| more > 0.0).map(|(few, all)| (all as f64 - few as f64) / more))
    }

    /// The resident set of the gateway once it stands still.
    async fn settled(&self) -> Result<Option<u64>, Failure> {
        let mut last = 0u64;
        loop {
            let Some(now) = self.processes.resident()? else { return Ok(None) };
            if now.abs_diff(last) < 64 << 10 {
                return Ok(Some(now));
            }
            last = now;
            tokio::time::sleep(Duration::from_millis(1_500)).await;
        }
    }

    /// From now on, or from `--start-at`.
    fn window(&self) -> Result<Window, Failure> {
        let wait = match self.args.start_at {
            None => Duration::ZERO,
            Some(at) => at.duration_since(SystemTime::now()).map_err(|late| {
                let late = humantime::format_duration(Duration::from_millis(late.duration().as_millis() as u64));
                Failure::new(Exit::No, format!("--start-at was {late} ago when all devices were connected"))
            })?,
        };
        Ok(Window::new(self.clock, self.clock.now() + wait, self.args.warm_up, self.args.duration))
    }
}

async fn pushes(run: Run) -> Result<Report, Failure> {
    let Run { args, clock, .. } = &run;
    let mut fleet = run.fleet(Arc::default()).await?;
    let bytes_per_device = run.connect(&mut fleet).await?;

    let window = run.window()?;
    fleet.measure(&window);
    // Two addresses of one node are one place.
    let place = |name: &String| run.names.iter().position(|other| other == name).unwrap_or_default() as u8;
    let node = |(control, name): (&Control, &String)| Node { control: control.clone(), place: place(name) };
    let nodes = run.controls.iter().zip(&run.names).map(node).collect();
    let load = Load::new(nodes, Arc::clone(&run.roster), *clock, args);
    let bar = run.bars.bar(window.total().as_millis() as u64, "pushing");
    let pushing = async {
        tokio::time::sleep(window.start().saturating_sub(clock.now())).await;
        let pace = Pace::start(*clock, args.rate, load.step(), window.start(), window.end());
        load.run(pace, &window).await
    };
    let watching = watch(&window, &run.processes, load.counts(), &bar);
    let (pushed, measured) = tokio::join!(pushing, watching);
    pushed?;
    let measured = measured?;
    bar.finish_and_clear();
    let received = fleet.finish(load.counts().delivered(), ARRIVE).await;

    let floor = if args.floor {
        let bar = run.bars.spinner("floor");
        let floor = floor::measure(args.devices, args.body, args.duration, &args.sources).await?;
        bar.finish_and_clear();
        Some(floor)
    } else {
        None
    };
    let tally = Tally {
        processes: 1,
        mode: args.mode.name().to_owned(),
        devices: args.devices,
        body_bytes: args.body,
        rate: args.rate,
        window: args.start_at.map(|at| {
            let [warm_up, duration] = [args.warm_up, args.duration].map(humantime::format_duration);
            format!("{} + {warm_up}, {duration}", humantime::format_rfc3339(at))
        }),
        pushes: measured.pushes,
        elapsed_ns: measured.elapsed.as_nanos() as u64,
        lost: load.counts().delivered().saturating_sub(received.pushes),
        doubled: received.doubled,
        connections_ended: received.ended,
        local: received.local,
        forwarded: received.forwarded,
        replies: load.counts().replies(),
        statuses: load.counts().named(),
        cpu_ns: measured.cpu.into_iter().map(|(pid, cpu)| (pid, cpu.as_nanos() as u64)).collect(),
    };
    Ok(Report::new(tally, bytes_per_device, floor))
}

/// Between the window's begin and end.
struct Measured {
    /// Pushes handed to devices.
    pushes: u64,
    elapsed: Duration,
    /// Of each of the gateway's processes.
    cpu: BTreeMap<u32, Duration>,
}

/// Notes, at the window's begin and end, what has been done and what the gateway has spent.
async fn watch(
    window: &Window,
    processes: &Processes,
    counts: &load::Counts,
    bar: &ProgressBar,
) -> Result<Measured, Failure> {
    let look = || Ok::<_, Failure>((processes.cpu()?, counts.delivered(), window.clock().now()));
    advance_to(window.begin(), window, bar).await;
    let (cpu, count, at) = look()?;
    advance_to(window.end(), window, bar).await;
    let (cpu_end, count_end, at_end) = look()?;
    let spent = |(pid, end): (u32, Duration)| (pid, end.saturating_sub(cpu.get(&pid).copied().unwrap_or_default()));
    Ok(Measured { pushes: count_end - count, elapsed: at_end - at, cpu: cpu_end.into_iter().map(spent).collect() })
}

async fn advance_to(until: Duration, window: &Window, bar: &ProgressBar) {
    while let Some(left) = until.checked_sub(window.clock().now()).filter(|left| !left.is_zero()) {
        tokio::time::sleep(left.min(Duration::from_millis(100))).await;
        bar.set_position(window.clock().now().saturating_sub(window.start()).as_millis() as u64);
    }
}
