//! What a cluster costs and how soon it is told, and whether its promises hold: several gateways on one NATS server, each
//! a process of its own.
//!
//! ```text
//! cargo bench --bench cluster                    all of it, some two minutes
//! cargo bench --bench cluster -- forward         pushes that another node is asked for, beside those that the device's own is
//! cargo bench --bench cluster -- presence        logins at one node, told at another
//! cargo bench --bench cluster -- users           a node with a million users: memory of each, joining, and their loss
//! cargo bench --bench cluster -- slow            a node that stands still for 20 s under 30,000 changes a second
//! ```
//!
//! It needs a `nats-server` with JetStream, that of `PLEX_NATS_SERVER` or of the PATH. It fails where a push is lost or
//! comes twice, a user takes more than 120 bytes, a node that joins or wakes doesn't come to know what the others do, or the
//! loss of a node isn't told of each of its users once, with one epoch. Times are told, and none is too long: the load and
//! the server share the machine with what is measured.

#[path = "cluster/crowd.rs"]
mod crowd;
#[path = "cluster/death.rs"]
mod death;
#[path = "cluster/devices.rs"]
mod devices;
#[path = "cluster/ground.rs"]
mod ground;
#[path = "cluster/joining.rs"]
mod joining;
#[path = "cluster/memory.rs"]
mod memory;
#[path = "cluster/slow.rs"]
mod slow;
#[path = "support/mod.rs"]
mod support;

use std::{process::ExitCode, time::Duration};

use support::Arguments;

use self::{crowd::Crowd, ground::Ground};

fn main() -> ExitCode {
    let arguments = Arguments::read();
    let only = arguments.word(0);
    let sections = ["forward", "presence", "users", "slow"];
    assert!(only.is_none_or(|only| sections.contains(&only)), "one of {sections:?}, or nothing for all");
    let is_on = |section| only.is_none_or(|only| only == section);
    let mut broken = Broken::default();
    if is_on("forward") {
        devices::forward(&arguments, &mut broken);
    }
    if is_on("presence") {
        support::runtime().block_on(devices::presence(&arguments, &mut broken));
    }
    if is_on("users") {
        support::runtime().block_on(users(&arguments, &mut broken));
    }
    if is_on("slow") {
        support::runtime().block_on(slow::slow(&arguments, &mut broken));
    }
    for promise in &broken.0 {
        eprintln!("broken: {promise}");
    }
    if broken.0.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The promises that don't hold.
#[derive(Default)]
struct Broken(Vec<String>);

impl Broken {
    fn unless(&mut self, holds: bool, promise: impl FnOnce() -> String) {
        if !holds {
            self.0.push(promise());
        }
    }
}

/// The length of a log that keeps its beginning, and of one that doesn't.
const LONG_LOG: &str = "cluster.log_bytes=256MiB";
const SHORT_LOG: &str = "cluster.log_bytes=8MiB";

/// A crowd at one node: what its users cost the others.
async fn users(arguments: &Arguments, broken: &mut Broken) {
    let users = u32::try_from(arguments.number("users", 1_000_000)).expect("fewer than 2³²");
    let rate = u32::try_from(arguments.number("changes", 10_000)).expect("fewer than 2³²");
    let mut joined = Vec::new();
    {
        let ground = Ground::start(&["a", "b"], &[LONG_LOG]).await;
        let crowd = Crowd::join(&ground.nats.url).await;
        memory::users(&ground, &crowd, users, broken).await;
        joined.extend(joining::joins(&ground, &crowd, rate, LONG_LOG, broken).await);
        death::death(&ground, crowd, users, broken).await;
    }
    let ground = Ground::start(&["a", "b"], &[SHORT_LOG]).await;
    let crowd = Crowd::join(&ground.nats.url).await;
    // Slowly, or the nodes that are there fall out of a log this short.
    for some in (users / 10..=users).step_by(users as usize / 10) {
        crowd.claim(some).await;
        ground.all_know(some.into()).await;
    }
    joined.extend(joining::joins(&ground, &crowd, rate, SHORT_LOG, broken).await);
    joining::show(&joined);
}

/// Prints a table: what its rows have in common, its columns, and the rows.
fn table(title: &str, columns: &[&str], rows: &[(&str, Vec<String>)]) {
    println!("\n{title}\n\n| | {} |\n| --- |{}", columns.join(" | "), " --- |".repeat(columns.len()));
    for (name, cells) in rows {
        println!("| {name} | {} |", cells.join(" | "));
    }
}

fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
