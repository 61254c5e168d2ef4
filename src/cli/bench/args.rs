//! What `plex bench` is told.

use std::{
    net::IpAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum};

use super::load::Stamp;
use crate::cli::{Exit, Failure, gateway::AccessArgs};

/// What is kept of a body for the number of the push and its time.
const BODY_BYTES_MIN: u32 = Stamp::BYTES as u32;

#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct BenchArgs {
    /// Devices that are connected
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) devices: u32,
    /// What is measured: how devices are pushed to, or presence
    #[arg(long, value_enum, default_value_t = Mode::Stream)]
    pub(super) mode: Mode,
    /// Pushes a second, each to one device; open loop [default: as many as go, with a window of 8,000]
    #[arg(long, value_name = "PUSHES", value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub(super) rate: Option<u32>,
    /// Logins a second; open loop [default: as many as go, 200 at a time]
    #[arg(long, value_name = "LOGINS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(super) logins: Option<u32>,
    /// How long is measured
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) duration: Duration,
    /// How long is pushed before
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub(super) warm_up: Duration,
    /// Length of a push's body in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64, value_parser = clap::value_parser!(u32).range(i64::from(BODY_BYTES_MIN)..=1 << 20))]
    pub(super) body: u32,
    /// Pushes to a message (batch, ack), uids to a call (many)
    #[arg(long, value_name = "COUNT", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(super) batch: u32,
    /// Calls under way at a time [default: 64 (unary, many), 2 (broadcast)]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) in_flight: Option<u32>,
    /// The gateway's addresses for devices, HOST:PORT; of several nodes all, each gets as many devices [default: what
    /// GetHost tells]
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    pub(super) connect: Vec<String>,
    /// Connect devices by TLS
    #[arg(long)]
    pub(super) tls: bool,
    /// Addresses that devices connect from, in turn, so that ports last [default: the system's choice; of loopback one for
    /// each 20,000 devices]
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    pub(super) sources: Vec<IpAddr>,
    /// What the uids begin with: another for each of several processes [default: bench and the process's number]
    #[arg(long, value_name = "TEXT")]
    pub(super) prefix: Option<String>,
    /// The file with the HMAC secret by which devices' tokens are signed, where auth.mode is token; with the issuer and the
    /// audience of the configuration [default: a device's credential is its uid]
    #[arg(long, value_name = "FILE")]
    pub(super) token_key: Option<PathBuf>,
    /// A file with a line for each device: its uid, white space, its credential
    #[arg(long, value_name = "FILE", conflicts_with_all = ["token_key", "prefix"])]
    pub(super) credentials: Option<PathBuf>,
    /// The gateway's process on this machine, of several nodes all: tells its CPU per push, and its memory per device
    #[arg(long, value_name = "PIDS", value_delimiter = ',')]
    pub(super) pid: Vec<u32>,
    /// Measure a bare write() loop of the same frames to as many devices as well, and tell the ratio
    #[arg(long)]
    pub(super) floor: bool,
    /// Write lengths in little-endian, as where device.little_endian is set
    #[arg(long)]
    pub(super) little_endian: bool,
    /// When to begin to push, as 2026-01-31T12:00:00Z: the same for several processes, whose reports --merge adds up
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339, conflicts_with = "floor")]
    pub(super) start_at: Option<SystemTime>,
    /// Add up the reports, made with --json, of processes that began by one --start-at; nothing is measured
    #[arg(long, value_name = "FILES", num_args = 1.., conflicts_with = "start_at")]
    pub(super) merge: Vec<PathBuf>,
    /// The gateway's control plane, http://HOST:PORT or https://HOST:PORT; of several nodes all, which are called in turn
    /// [default: control.listen of the configuration]
    #[arg(long, value_name = "URLS", value_delimiter = ',')]
    pub(super) control: Vec<String>,
    #[command(flatten)]
    pub(super) access: AccessArgs,
    /// Print one JSON object to a line
    #[arg(long)]
    pub(super) json: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Mode {
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
    /// No pushes: from logins to the changes that subscribers are told, one at each --control
    Presence,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Batch => "batch",
            Self::Unary => "unary",
            Self::Many => "many",
            Self::Broadcast => "broadcast",
            Self::Ack => "ack",
            Self::Presence => "presence",
        }
    }
}

impl BenchArgs {
    /// What goes with pushes doesn't go with presence.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let usage = |message: &str| Err(Failure::new(Exit::Usage, message));
        if self.control.len() > Stamp::NODES_MAX {
            return usage("--control: at most 256 nodes");
        }
        if self.mode == Mode::Presence && (self.rate.is_some() || self.floor || self.start_at.is_some()) {
            return usage("--mode presence pushes nothing: --rate, --floor and --start-at don't go with it");
        }
        Ok(())
    }
}

/// The bare write() loop, in a process of its own.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct FloorArgs {
    #[arg(long)]
    pub(super) devices: u32,
    #[arg(long)]
    pub(super) body: u32,
}
