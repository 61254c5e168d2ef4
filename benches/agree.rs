//! Whether `plex bench` tells what an independent load program tells: `agree/load.c`, which shares no code with plex and
//! needs a C compiler.
//!
//! ```text
//! cargo bench --bench agree
//! cargo bench --bench agree -- --devices 10000 --seconds 6 --rounds 7 --rate 5000
//! ```
//!
//! Both measure one gateway, in turn, in the same run; of each figure the medians are compared. It fails where they are
//! further apart than 10 %, latencies also than what a gRPC library takes: plex bench pushes by one, as backends do, and
//! `load.c` writes bytes that it has made before.

#[path = "support/mod.rs"]
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use serde_json::Value;
use support::{Arguments, Gateway, SECRET, median};

/// How far apart two figures may be.
const APART_MAX: f64 = 0.10;

/// What the library may take, in µs: 4 more from the timer to the socket, and on two cores the gateway waits for what it
/// does behind that.
const LIBRARY_US: f64 = 20.0;

/// What one program tells of one round.
struct Figures {
    pushes_per_second: f64,
    cpu_us: f64,
    p50_us: f64,
}

/// One gateway, and what is asked of it.
struct Ground {
    gateway: Gateway,
    load: PathBuf,
    secret: tempfile::NamedTempFile,
    devices: String,
    seconds: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::read();
    let rate = arguments.number("rate", 5_000);
    let ground = Ground::new(&arguments);
    let (mut full, mut paced) = (Vec::new(), Vec::new());
    for round in 0..arguments.number("rounds", 7) {
        full.push(ground.round(0, round));
        paced.push(ground.round(rate, round));
    }
    println!("\n| | plex bench | load.c | apart |\n| --- | --- | --- | --- |");
    let rows = [
        compare("pushes/s, full load", &full, |figures| figures.pushes_per_second, 0.0),
        compare("µs CPU a push, full load", &full, |figures| figures.cpu_us, 0.0),
        compare(&format!("µs CPU a push, {rate}/s"), &paced, |figures| figures.cpu_us, 0.0),
        compare(&format!("p50 in µs, {rate}/s"), &paced, |figures| figures.p50_us, LIBRARY_US),
    ];
    if rows.into_iter().all(|agrees| agrees) {
        return ExitCode::SUCCESS;
    }
    eprintln!("they are further apart than {:.0} %, latencies and {LIBRARY_US:.0} µs", APART_MAX * 100.0);
    ExitCode::FAILURE
}

/// Prints a row: the medians of both, and how far apart they are. `more` is what the own may be above.
fn compare(what: &str, rounds: &[(Figures, Figures)], figure: impl Fn(&Figures) -> f64, more: f64) -> bool {
    let own = median(rounds.iter().map(|(own, _)| figure(own)));
    let independent = median(rounds.iter().map(|(_, independent)| figure(independent)));
    let apart = own / independent - 1.0;
    println!("| {what} | {own:.1} | {independent:.1} | {:+.1} % |", apart * 100.0);
    (independent * (1.0 - APART_MAX)..=independent * (1.0 + APART_MAX) + more).contains(&own)
}

impl Ground {
    fn new(arguments: &Arguments) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/agree/load.c");
        let load = Path::new(env!("CARGO_TARGET_TMPDIR")).join("load");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let compiled = Command::new(compiler).args(["-O2", "-Wall", "-Wextra", "-o"]).args([&load, &source]).status();
        assert!(compiled.expect("there is a C compiler").success(), "{} compiles", source.display());
        let secret = tempfile::NamedTempFile::new().expect("a file");
        fs::write(&secret, SECRET).expect("it can be written");
        Self {
            gateway: Gateway::start(&[]),
            load,
            secret,
            devices: arguments.number("devices", 10_000).to_string(),
            seconds: arguments.number("seconds", 6).to_string(),
        }
    }

    /// Both, each first in every other round. Rate 0 is full load.
    fn round(&self, rate: usize, round: usize) -> (Figures, Figures) {
        let (own, independent) = if round.is_multiple_of(2) {
            let own = self.own(rate);
            (own, self.independent(rate))
        } else {
            let independent = self.independent(rate);
            (self.own(rate), independent)
        };
        let words = |figures: &Figures| {
            let Figures { pushes_per_second, cpu_us, p50_us } = figures;
            format!("{pushes_per_second:.0}/s, {cpu_us:.2} µs CPU, p50 {p50_us:.1} µs")
        };
        let load = if rate == 0 { "full load".to_owned() } else { format!("{rate}/s") };
        println!("round {}, {load}: plex bench {}; load.c {}", round + 1, words(&own), words(&independent));
        (own, independent)
    }

    fn own(&self, rate: usize) -> Figures {
        let mut command = Command::new(support::PLEX);
        command
            .args(["bench", "--json", "--devices", &self.devices, "--duration", &format!("{}s", self.seconds)])
            .args(["--pid", &self.gateway.pid().to_string(), "--connect", &self.gateway.plain.address().to_string()])
            .args(["--control", &format!("http://{}", self.gateway.control), "--secret-file"])
            .arg(self.secret.path());
        if rate > 0 {
            command.args(["--rate", &rate.to_string()]);
        }
        let report = report(&mut command);
        Figures {
            pushes_per_second: number(&report["pushesPerSecond"]),
            cpu_us: number(&report["cpuUsPerPush"]),
            p50_us: number(&report["latencyUs"]["p50"]),
        }
    }

    fn independent(&self, rate: usize) -> Figures {
        let mut command = Command::new(&self.load);
        let (plain, control) = (self.gateway.plain.address(), self.gateway.control);
        command
            .args([&plain.port().to_string(), &control.port().to_string(), SECRET, &self.gateway.pid().to_string()])
            .args([&self.devices, &rate.to_string(), &self.seconds]);
        let report = report(&mut command);
        Figures {
            pushes_per_second: number(&report["pushesPerSecond"]),
            cpu_us: number(&report["cpuUsPerPush"]),
            p50_us: number(&report["p50"]),
        }
    }
}

/// Runs a program to its end, which has to be a good one: nothing was lost, nothing came twice.
fn report(command: &mut Command) -> Value {
    let done = command.output().expect("it can be run");
    assert!(done.status.success(), "{command:?}: {done:?}");
    serde_json::from_slice(&done.stdout).expect("it prints JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}
