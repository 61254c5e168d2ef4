//! Watchers that follow many changes: do they keep pace, and how far are they behind?
//!
//! ```text
//! cargo bench --bench presence                                        four watchers, 20,000 changes a second, a minute
//! cargo bench --bench presence -- --rate 50000 --seconds 10 --watchers 2 --online 100000
//! ```
//!
//! The gateway is in this process; devices come and go at its hub, without sockets, as no two cores could make so many
//! connections beside it. The watchers are another process and follow over gRPC, each on a connection of its own. Behind
//! is a change's time in the log against the watcher's clock when it has the event.

#[path = "support/mod.rs"]
mod support;

use std::{
    collections::HashMap,
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use plex::{
    Config, Server,
    config::Secret,
    proto::{OnlineStatusKind, OnlineStatusRequest},
};
use support::{Arguments, Child, cpu_of};

fn main() {
    let arguments = Arguments::read();
    match arguments.word(0) {
        Some("watch") => watch(&arguments),
        None => drive(&arguments),
        Some(other) => panic!("{other}: nothing but flags is understood"),
    }
}

/// The gateway, and the devices that come and go.
fn drive(arguments: &Arguments) {
    let (rate, seconds) = (arguments.number("rate", 20_000), arguments.number("seconds", 60));
    let (watchers, online) = (arguments.number("watchers", 4), arguments.number("online", 20_000));
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = Config { data_dir: Some(folder.path().to_owned()), ..Config::default() };
    config.device.listen = None;
    config.control.listen = "127.0.0.1:0".parse().expect("an address");
    config.control.secrets = vec![Secret::new(support::SECRET).expect("a secret").into()];
    config.http.listen = "127.0.0.1:0".parse().expect("an address");
    config.metrics.listen = None;

    let runtime = support::runtime();
    let gateway = runtime.block_on(async { Server::builder(config).build().expect("it holds together").bind().await });
    let gateway = gateway.expect("port 0 can be bound");
    let (hub, control, stop) = (gateway.hub_for_tests(), gateway.addresses().control, gateway.stopper());
    let serving = std::thread::spawn(move || runtime.block_on(gateway.run()));

    // The first half of the uids is online at the start, the other half takes its place, and so on.
    let uid = |number: usize| format!("device-{number:06}");
    let mut here: Vec<_> = (0..online).map(|number| hub.connect(&uid(number)).expect("a uid")).collect();
    let child = Command::new(std::env::current_exe().expect("it has a path"))
        .args(["watch", "--port", &control.port().to_string(), "--watchers", &watchers.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be run again");
    let mut child = Child::new(child);
    assert_eq!(child.line(), "live");

    let (begun, cpu) = (Instant::now(), cpu_of(std::process::id()));
    let (mut changes, mut next) = (0, online);
    while begun.elapsed() < Duration::from_secs(seconds as u64) {
        let due = (begun.elapsed().as_secs_f64() * rate as f64) as usize;
        while changes < due {
            // One goes, another comes: two changes.
            let place = next % online;
            here[place] = hub.connect(&uid(next % (2 * online))).expect("a uid");
            next += 1;
            changes += 2;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let (elapsed, cpu) = (begun.elapsed(), cpu_of(std::process::id()) - cpu);
    // The last change of all, by which watchers know that they have seen every one.
    let last = hub.connect("last").expect("a uid");
    changes += 1;
    println!(
        "{:.0} changes a second for {:.0} s, {online} uids online; gateway and devices: {:.1} % of a core",
        changes as f64 / elapsed.as_secs_f64(),
        elapsed.as_secs_f64(),
        100.0 * cpu.as_secs_f64() / elapsed.as_secs_f64()
    );
    for _ in 0..watchers {
        let line = child.line();
        println!("{line}");
        assert!(line.contains(&format!("{changes} changes, 0 resets")), "each of the {changes} changes, and no RESET");
    }
    drop((last, here));
    stop.shutdown();
    serving.join().expect("it stops");
}

/// The watchers.
fn watch(arguments: &Arguments) {
    let address = ([127, 0, 0, 1], u16::try_from(arguments.number("port", 0)).expect("a port")).into();
    let watchers = arguments.number("watchers", 4);
    let (live, mut lives) = tokio::sync::mpsc::unbounded_channel();
    support::runtime().block_on(async {
        let following: Vec<_> = (1..=watchers).map(|name| tokio::spawn(follow(name, address, live.clone()))).collect();
        for _ in 0..watchers {
            lives.recv().await.expect("each comes so far");
        }
        println!("live");
        std::io::stdout().flush().expect("a pipe");
        for follower in following {
            println!("{}", follower.await.expect("it doesn't panic"));
        }
    });
}

/// Follows to the last change, checks each, and tells what it saw.
async fn follow(name: usize, address: std::net::SocketAddr, live: tokio::sync::mpsc::UnboundedSender<()>) -> String {
    let mut backend = support::backend(address).await;
    let request = OnlineStatusRequest::default();
    let mut stream = backend.online_status(request).await.expect("a stream").into_inner();
    let mut epochs: HashMap<String, (i64, bool)> = HashMap::new();
    let (mut changes, mut resets) = (0, 0);
    let mut behind = Vec::new();
    loop {
        let response = stream.message().await.expect("it goes on").expect("it goes on");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        for event in response.events {
            match event.kind() {
                OnlineStatusKind::Live => live.send(()).expect("somebody waits"),
                OnlineStatusKind::Reset => resets += 1,
                OnlineStatusKind::Snapshot => {
                    epochs.insert(event.uid, (event.epoch, true));
                }
                _ => {
                    changes += 1;
                    let at = event.at.expect("each change has its time");
                    let at = Duration::new(at.seconds.unsigned_abs(), at.nanos.unsigned_abs());
                    behind.push(now.saturating_sub(at));
                    let before = epochs.insert(event.uid.clone(), (event.epoch, event.online)).unwrap_or_default();
                    assert!(before.0 < event.epoch && before.1 != event.online, "in order, and none twice: {event:?}");
                    if event.uid == "last" {
                        behind.sort();
                        let at = |share: f64| behind[((behind.len() - 1) as f64 * share) as usize].as_millis();
                        return format!(
                            "watcher {name}: {changes} changes, {resets} resets; behind by {} ms (median), {} ms (99 %), \
                             {} ms (most)",
                            at(0.5),
                            at(0.99),
                            at(1.0)
                        );
                    }
                }
            }
        }
    }
}
