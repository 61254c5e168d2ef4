//! What a device and a push cost, beside a bare write() loop in the same run.
//!
//! ```text
//! cargo bench --bench cost                          both, as the README shows them
//! cargo bench --bench cost -- memory --devices 15000
//! cargo bench --bench cost -- push --devices 10000 --seconds 10 --rounds 3
//! cargo bench --bench cost -- --tls                 devices that come by TLS beside those that don't, in one table
//! cargo bench --bench cost -- --against FILE        another `plex`, such as that of an earlier commit, beside this one
//! ```
//!
//! The gateway is the `plex` binary in a process of its own; devices and the backend share one thread of another; the
//! floor is a third, which writes the same frames to the same number of sockets with nothing around write(). So two
//! threads are at work on either side, which is what two cores can bear. CPU is what the scheduler counted for all
//! threads of a process, memory is its resident set.

#[path = "support/mod.rs"]
mod support;

use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use plex::proto::{PushRequest, PushStatus, PushStreamRequest};
use support::{
    Arguments, Child, Gateway, PLEX, cpu_of,
    devices::{self, Route},
    median, settled,
};

/// As in a chat or a price feed.
const BODY_BYTES: usize = 64;

/// Pushes without a result at a time: enough that the gateway never waits for the backend.
const AHEAD: u64 = 8_000;

fn main() {
    let arguments = Arguments::read();
    let own = Side { name: "plain", program: PLEX, by: |gateway| &gateway.plain };
    // The gateway's folder is another.
    let other = arguments.text("against").map(|file| std::fs::canonicalize(file).expect("a program"));
    let beside = match other.as_ref().and_then(|file| file.to_str()) {
        Some(program) => Some(Side { name: "against", program, ..own }),
        None if arguments.has("tls") => Some(Side { name: "TLS 1.3", by: |gateway| &gateway.tls, ..own }),
        None => None,
    };
    match arguments.word(0) {
        Some("floor") => floor(arguments.number("devices", 0)),
        what @ (None | Some("memory" | "push")) => {
            if let Some(beside) = beside {
                return compare(what, &arguments, [own, beside]);
            }
            if what != Some("push") {
                memory(&arguments, own);
            }
            if what != Some("memory") {
                push(&arguments, own);
            }
        }
        Some(other) => panic!("{other}: memory, push, or nothing for both"),
    }
}

/// What is measured: a program, and by which of its ports devices come.
#[derive(Clone, Copy)]
struct Side<'a> {
    name: &'static str,
    program: &'a str,
    by: fn(&Gateway) -> &Route,
}

impl Side<'_> {
    fn start(&self) -> Gateway {
        Gateway::of(self.program, &[])
    }
}

/// Two, round by round in turn, in one table.
fn compare(what: Option<&str>, arguments: &Arguments, sides: [Side<'_>; 2]) {
    let mut rows = Vec::new();
    if what != Some("push") {
        let [first, second] = sides.map(|side| memory(arguments, side));
        rows.push(("bytes per idle device", first.0, second.0));
        rows.push(("after all have reconnected", first.1, second.1));
    }
    if what != Some("memory") {
        let rounds: Vec<_> = (0..arguments.number("rounds", 3))
            .map(|_| sides.map(|side| gateway_round(side, &Load::of(arguments))))
            .collect();
        let of = |side: usize, cell: fn(&(f64, f64)) -> f64| median(rounds.iter().map(|round| cell(&round[side])));
        rows.push(("µs CPU a push", of(0, |round| round.0), of(1, |round| round.0)));
        rows.push(("pushes/s", of(0, |round| round.1), of(1, |round| round.1)));
    }
    println!("\n| | {} | {} | ratio |\n| --- | --- | --- | --- |", sides[0].name, sides[1].name);
    for (what, first, second) in rows {
        println!("| {what} | {first:.2} | {second:.2} | {:.3} |", second / first);
    }
}

/// What is pushed, and for how long.
struct Load {
    devices: usize,
    seconds: u64,
    per_message: usize,
}

impl Load {
    fn of(arguments: &Arguments) -> Self {
        Self {
            devices: arguments.number("devices", 10_000),
            seconds: arguments.number("seconds", 10) as u64,
            per_message: arguments.number("batch", 1),
        }
    }
}

/// Bytes of resident memory per idle device: the slope from 1,000 devices to all, and once they have all reconnected.
fn memory(arguments: &Arguments, side: Side<'_>) -> (f64, f64) {
    let (few, many) = (1_000, arguments.number("devices", 15_000));
    let gateway = side.start();
    let mut held = devices::Devices::default();
    support::runtime().block_on(async {
        held.connect((side.by)(&gateway), 0..few).await;
        let before = settled(gateway.pid());
        held.connect((side.by)(&gateway), few..many).await;
        let after = settled(gateway.pid());
        println!("resident with {few} devices: {} KiB, with {many}: {} KiB", before / 1024, after / 1024);
        let per_device = |resident: u64| resident.saturating_sub(before) as f64 / (many - few) as f64;
        println!("bytes per idle device: {:.0}", per_device(after));
        held.close_all();
        gateway.wait_for_connections(0).await;
        held.connect((side.by)(&gateway), 0..many).await;
        let again = settled(gateway.pid());
        println!("after all have reconnected: {:.0}", per_device(again));
        (per_device(after), per_device(again))
    })
}

/// CPU per push at full load, on a PushStream with one push to a message, and of the floor.
fn push(arguments: &Arguments, side: Side<'_>) {
    let load = Load::of(arguments);
    let mut rounds = Vec::new();
    for round in 1..=arguments.number("rounds", 3) {
        let (gateway_us, gateway_rate) = gateway_round(side, &load);
        let (floor_us, floor_rate) = floor_round(load.devices, load.seconds);
        println!(
            "round {round}: gateway {gateway_us:.2} µs a push, {gateway_rate:.0}/s; floor {floor_us:.2} µs a write, \
             {floor_rate:.0}/s; ratio {:.2}",
            gateway_us / floor_us
        );
        rounds.push((gateway_us, floor_us));
    }
    let gateway = median(rounds.iter().map(|round| round.0));
    let floor = median(rounds.iter().map(|round| round.1));
    let ratio = median(rounds.iter().map(|(gateway, floor)| gateway / floor));
    println!("median: gateway {gateway:.2} µs CPU a push, floor {floor:.2} µs a write, ratio {ratio:.2}");
}

fn gateway_round(side: Side<'_>, load: &Load) -> (f64, f64) {
    let gateway = side.start();
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (ready, wait) = std::sync::mpsc::channel();
        let (gateway, sent, stop) = (&gateway, &sent, &stop);
        scope.spawn(move || {
            support::runtime().block_on(async {
                let _received = devices::read_all((side.by)(gateway), load.devices, devices::Speak::Plex).await;
                ready.send(()).expect("somebody waits");
                backend(gateway, load, sent, stop).await;
            });
        });
        wait.recv().expect("all have logged in");
        measure(gateway.pid(), load.seconds, || sent.load(Relaxed), || stop.store(true, Relaxed))
    })
}

/// Pushes to one device after the other, as fast as results come.
async fn backend(gateway: &Gateway, load: &Load, sent: &AtomicU64, stop: &AtomicBool) {
    let body = "x".repeat(BODY_BYTES);
    let answered = AtomicU64::new(0);
    let room = tokio::sync::Notify::new();
    let (requests, receiver) = tokio::sync::mpsc::channel(64);
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|request| (request, receiver))
    });
    let mut results = gateway.backend().await.push_stream(stream).await.expect("a stream").into_inner();
    let write = async {
        let mut pushed = 0;
        while !stop.load(Relaxed) {
            let push = |n: u64| PushRequest {
                uid: devices::uid((pushed + n) as usize % load.devices),
                uri: "/bench".into(),
                body: body.clone(),
                ..Default::default()
            };
            let pushes: Vec<_> = (0..load.per_message as u64).map(push).collect();
            pushed += pushes.len() as u64;
            if requests.send(PushStreamRequest { pushes }).await.is_err() {
                return;
            }
            while pushed - answered.load(Relaxed) > AHEAD {
                room.notified().await;
            }
        }
        drop(requests);
    };
    let read = async {
        while let Some(batch) = results.message().await.expect("results") {
            let ok = batch.results.iter().filter(|result| result.status() == PushStatus::Sent).count();
            assert_eq!(ok, batch.results.len(), "every push is sent");
            answered.fetch_add(ok as u64, Relaxed);
            sent.fetch_add(ok as u64, Relaxed);
            room.notify_one();
        }
    };
    tokio::join!(write, read);
}

fn floor_round(count: usize, seconds: u64) -> (f64, f64) {
    let child = Command::new(std::env::current_exe().expect("it has a path"))
        .args(["floor", "--devices", &count.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it can be run again");
    let mut child = Child::new(child);
    let address: SocketAddr = child.line().parse().expect("its address");
    let received = devices::Reader::start(Route::plain(address), count, devices::Speak::Nothing);
    // What it has written is read from the devices' side: every byte arrives.
    let frame = frame().len() as u64;
    measure(child.pid(), seconds, || received.bytes() / frame, || {})
}

/// The same frame as the gateway's.
fn frame() -> Vec<u8> {
    let mut frame = Vec::new();
    let seq = 1_790_000_000_000_000;
    plex::frame::encode(plex::frame::ByteOrder::Big, seq, "/bench", &"x".repeat(BODY_BYTES), &mut frame);
    frame
}

/// The floor: accepts, then writes for ever, to one after the other.
fn floor(count: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    support::deepen(&listener);
    println!("{}", listener.local_addr().expect("an address"));
    std::io::stdout().flush().expect("a pipe");
    let mut sockets: Vec<TcpStream> = (0..count).map(|_| listener.accept().expect("a device").0).collect();
    for socket in &sockets {
        socket.set_nodelay(true).expect("a live socket");
    }
    let frame = frame();
    loop {
        for socket in &mut sockets {
            // Blocks where the devices don't keep up: nothing is lost, and waiting costs no CPU.
            if socket.write_all(&frame).is_err() {
                return;
            }
        }
    }
}

/// CPU in µs for each of what `done` counts, and how many in a second; once a second of warming up is over.
fn measure(pid: u32, seconds: u64, done: impl Fn() -> u64, stop: impl Fn()) -> (f64, f64) {
    std::thread::sleep(Duration::from_secs(1));
    let (begun, cpu, count) = (Instant::now(), cpu_of(pid), done());
    std::thread::sleep(Duration::from_secs(seconds));
    let (elapsed, cpu, count) = (begun.elapsed(), cpu_of(pid) - cpu, done() - count);
    stop();
    assert!(count > 0, "something was done");
    (cpu.as_secs_f64() * 1e6 / count as f64, count as f64 / elapsed.as_secs_f64())
}
