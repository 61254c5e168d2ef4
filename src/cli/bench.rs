//! `plex bench`: what a gateway on this machine, or another, holds and how fast it is.
//!
//! The load is open-loop where a rate is given: each push has the time at which it was meant to be made, and its latency
//! counts from there, so that a gateway that stalls can't hide it by stalling the load as well (no coordinated omission).

mod devices;
mod floor;
mod load;
mod pace;
mod process;
mod report;

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::{
    devices::{Fleet, FleetPlan},
    load::Load,
    pace::Clock,
    process::Process,
    report::{Report, Window},
};
use super::{Exit, Failure, Output, gateway::GatewayArgs};
use crate::{frame::ByteOrder, model::Transport};

/// What is kept of a body for the number of the push and its time.
const BODY_BYTES_MIN: u32 = load::Stamp::BYTES as u32;

/// How long is waited, once nothing more is pushed, for what is under way.
const ARRIVE: Duration = Duration::from_secs(5);

/// Where the slope of memory begins: below it a process is mostly itself.
const SLOPE_FROM: u32 = 1_000;

#[derive(Debug, Clone, Args)]
pub(super) struct BenchArgs {
    /// Devices that are connected
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    devices: u32,
    /// How they are pushed to
    #[arg(long, value_enum, default_value_t = Mode::Stream)]
    mode: Mode,
    /// Pushes a second, each to one device; open loop [default: as many as go, with a window of 8,000]
    #[arg(long, value_name = "PUSHES", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    rate: Option<u32>,
    /// How long is measured
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long is pushed before
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Length of a push's body in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(i64::from(BODY_BYTES_MIN)..=1 << 20))]
    body: u32,
    /// Pushes to a message (batch, ack), uids to a call (many)
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    batch: u32,
    /// Calls under way at a time (unary, many, broadcast)
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    in_flight: u32,
    /// The gateway's address for devices, HOST:PORT [default: what its GetHost tells]
    #[arg(long, value_name = "ADDRESS")]
    connect: Option<String>,
    /// Addresses that devices connect from, in turn, so that ports last [default: the system's choice; of loopback one for
    /// each 20,000 devices]
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    sources: Vec<IpAddr>,
    /// What the uids begin with: another for each of several processes [default: bench and the process's number]
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// The gateway's process on this machine: tells its CPU per push, and its memory per device
    #[arg(long)]
    pid: Option<u32>,
    /// Measure a bare write() loop of the same frames to as many devices as well, and tell the ratio
    #[arg(long)]
    floor: bool,
    /// Write lengths in little-endian, as where device.little_endian is set
    #[arg(long)]
    little_endian: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// How devices are pushed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// PushStream, one push to a message
    Stream,
    /// PushStream, --batch pushes to a message
    Batch,
    /// Push, a call for each
    Unary,
    /// PushMany, --batch uids to a call
    Many,
    /// Broadcast to all devices
    Broadcast,
    /// PushStream with ack_timeout: every device answers
    Ack,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Batch => "batch",
            Self::Unary => "unary",
            Self::Many => "many",
            Self::Broadcast => "broadcast",
            Self::Ack => "ack",
        }
    }
}

/// The bare write() loop, in a process of its own.
#[derive(Debug, Clone, Args)]
pub(super) struct FloorArgs {
    #[arg(long)]
    devices: u32,
    #[arg(long)]
    body: u32,
}

pub(super) use floor::serve as floor;

/// Measures. No is the answer where a push was lost or came twice.
pub(super) async fn bench(args: BenchArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let control = args.gateway.connect(config)?;
    let address = match &args.connect {
        Some(address) => address.clone(),
        None => control.host(Transport::Tcp).await?.address,
    };
    let process = args.pid.map(Process::of).transpose()?;
    let bars = Bars::new(args.gateway.json);
    let clock = Clock::start();
    let prefix = args.prefix.clone().unwrap_or_else(|| format!("bench-{}-", std::process::id()));
    let mut fleet = Fleet::start(FleetPlan {
        address,
        sources: args.sources.clone(),
        prefix: prefix.clone(),
        order: if args.little_endian { ByteOrder::Little } else { ByteOrder::Big },
        acks: args.mode == Mode::Ack,
        clock,
    })?;

    let bar = bars.bar(u64::from(args.devices), "devices");
    let few = args.devices.min(SLOPE_FROM);
    fleet.connect(few, &bar).await?;
    let before = settled(process.as_ref()).await?;
    fleet.connect(args.devices, &bar).await?;
    let after = settled(process.as_ref()).await?;
    bar.finish_and_clear();
    let more = f64::from(args.devices - few);
    let bytes_per_device = before.zip(after).filter(|_| more > 0.0).map(|(few, all)| (all as f64 - few as f64) / more);

    let window = Window::new(clock, args.warm_up, args.duration);
    fleet.measure(&window);
    let load = Load::new(control, prefix, args.devices, args.mode, clock, load::Sizes::of(&args));
    let bar = bars.bar(window.total().as_millis() as u64, "pushing");
    let pace = pace::Pace::start(clock, args.rate, load.step(), window.end());
    let mut loading = std::pin::pin!(load.run(pace, &window));
    let mut measured = report::Measured::default();
    let watching = watch(&window, process.as_ref(), load.counts(), &bar, &mut measured);
    let (told, watched) = tokio::join!(&mut loading, watching);
    told?;
    watched?;
    bar.finish_and_clear();
    let received = fleet.finish(load.counts().delivered(), ARRIVE).await;

    let floor = if args.floor {
        let bar = bars.spinner("floor");
        let floor = floor::measure(args.devices, args.body, args.duration, &args.sources).await?;
        bar.finish_and_clear();
        Some(floor)
    } else {
        None
    };
    let report = Report::new(&args, load.counts(), &measured, &received, bytes_per_device, floor);
    Output::stdout(args.gateway.json).answer(&report, || report.table())?;
    Ok(if report.is_clean() { Exit::Done } else { Exit::No })
}

/// Notes, at the window's begin and end, what has been done and what the gateway has spent.
async fn watch(
    window: &Window,
    process: Option<&Process>,
    counts: &load::Counts,
    bar: &ProgressBar,
    measured: &mut report::Measured,
) -> Result<(), Failure> {
    let look = || Ok::<_, Failure>((process.map(Process::cpu).transpose()?, counts.delivered(), window.clock().now()));
    advance_to(window.begin(), window, bar).await;
    let (cpu, count, at) = look()?;
    advance_to(window.end(), window, bar).await;
    let (cpu_end, count_end, at_end) = look()?;
    measured.pushes = count_end - count;
    measured.elapsed = at_end - at;
    measured.cpu = cpu.zip(cpu_end).map(|(begin, end)| end.saturating_sub(begin));
    Ok(())
}

async fn advance_to(until: Duration, window: &Window, bar: &ProgressBar) {
    while let Some(left) = until.checked_sub(window.clock().now()).filter(|left| !left.is_zero()) {
        tokio::time::sleep(left.min(Duration::from_millis(100))).await;
        bar.set_position(window.clock().now().saturating_sub(window.start()).as_millis() as u64);
    }
}

/// The resident set of the gateway once it stands still.
async fn settled(process: Option<&Process>) -> Result<Option<u64>, Failure> {
    let Some(process) = process else { return Ok(None) };
    let mut last = 0u64;
    loop {
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let now = process.resident()?;
        if now.abs_diff(last) < 64 << 10 {
            return Ok(Some(now));
        }
        last = now;
    }
}

/// Bars on stderr, for people only.
struct Bars {
    hidden: bool,
}

impl Bars {
    fn new(json: bool) -> Self {
        Self { hidden: json }
    }

    fn bar(&self, length: u64, what: &'static str) -> ProgressBar {
        let style =
            ProgressStyle::with_template("{msg:8} {wide_bar} {percent:>3} %").expect("a template that is known");
        self.shown(ProgressBar::new(length).with_style(style), what)
    }

    fn spinner(&self, what: &'static str) -> ProgressBar {
        let bar = self.shown(ProgressBar::new_spinner(), what);
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn shown(&self, bar: ProgressBar, what: &'static str) -> ProgressBar {
        // Hidden by itself where stderr is no terminal.
        bar.set_draw_target(if self.hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
        bar.with_message(what)
    }
}
