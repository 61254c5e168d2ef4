//! Devices at one node, asked for or heard of at another: what `plex bench` tells of it.

use std::{fs, process::Command};

use serde_json::Value;
use tempfile::NamedTempFile;

use crate::{
    Broken,
    ground::{Ground, Node, eventually, known},
    support::{self, Arguments, SECRET, cpu_of},
    table,
};

/// Pushes that the devices' own node is asked for, and the same asked of another.
pub(crate) fn forward(arguments: &Arguments, broken: &mut Broken) {
    let devices = arguments.number("devices", 5_000);
    let seconds = arguments.number("seconds", 5);
    let rate = arguments.number("rate", 5_000);
    let ground = support::runtime().block_on(Ground::start(&["a", "b", "c"], &[]));
    let [a, b, c] = &ground.nodes[..] else { unreachable!("three were started") };
    let measured: Vec<_> = [(a, rate), (b, rate), (a, 0), (b, 0)]
        .into_iter()
        .map(|(asked, rate)| {
            let mut bench = bench(&ground, a, asked, devices);
            bench.args(["--duration", &format!("{seconds}s")]);
            if rate > 0 {
                bench.args(["--rate", &rate.to_string()]);
            }
            let report = report(&mut bench);
            assert!(asked.pid() == a.pid() || report["forwardedUs"].is_object(), "all are forwarded: {report}");
            broken.unless(report["lost"] == 0 && report["doubled"] == 0, || {
                format!("each push comes once: lost {}, doubled {}", report["lost"], report["doubled"])
            });
            report
        })
        .collect();
    let row = |cell: &dyn Fn(&Value) -> String| measured.iter().map(cell).collect::<Vec<_>>();
    let of_process = |pid: u32| {
        let nodes = move |report: &Value| {
            let nodes = report["nodes"].as_array().expect("of several processes");
            let node = nodes.iter().find(|node| node["pid"] == pid).expect("it was named");
            format!("{:.1} µs", number(&node["cpuUsPerPush"]))
        };
        row(&nodes)
    };
    table(
        &format!("Pushes to {devices} devices at one of three nodes"),
        &[
            &format!("its own node is asked, {rate}/s"),
            &format!("another is asked, {rate}/s"),
            "its own node, full load",
            "another, full load",
        ],
        &[
            ("pushes/s", row(&|report| format!("{:.0}", number(&report["pushesPerSecond"])))),
            ("p50 to the device", row(&|report| us(&report["latencyUs"]["p50"]))),
            ("p99", row(&|report| us(&report["latencyUs"]["p99"]))),
            ("CPU a push of the devices' node", of_process(a.pid())),
            ("of the other, which forwards", of_process(b.pid())),
            ("of the third", of_process(c.pid())),
            ("of the NATS server", of_process(ground.nats.pid())),
            ("lost, doubled", row(&|report| format!("{}, {}", report["lost"], report["doubled"]))),
        ],
    );
}

/// Logins at one node, told by another.
pub(crate) async fn presence(arguments: &Arguments, broken: &mut Broken) {
    let devices = arguments.number("devices", 5_000);
    let rate = arguments.number("logins", 1_000);
    let ground = Ground::start(&["a", "b"], &[]).await;
    let [a, b] = &ground.nodes[..] else { unreachable!("two were started") };
    let mut backend = b.backend().await;
    let pids = [a.pid(), b.pid(), ground.nats.pid()];
    let mut measured = Vec::new();
    for rate in [rate, 0] {
        let before = pids.map(cpu_of);
        let mut bench = bench(&ground, a, b, devices);
        bench.args(["--mode", "presence"]);
        if rate > 0 {
            bench.args(["--logins", &rate.to_string()]);
        }
        let report = report(&mut bench);
        eventually("all have gone", async || (known(&mut backend).await == 0).then_some(())).await;
        let spent: [_; 3] =
            std::array::from_fn(|index| (cpu_of(pids[index]) - before[index]).as_secs_f64() * 1e6 / devices as f64);
        let told = &report["subscribers"][0];
        broken.unless(told["lost"] == 0 && told["doubled"] == 0, || {
            format!("each login is told once: lost {}, doubled {}", told["lost"], told["doubled"])
        });
        measured.push((report, spent));
    }
    let row = |cell: &dyn Fn(&Value) -> String| measured.iter().map(|(report, _)| cell(report)).collect::<Vec<_>>();
    let cpu = |index: usize| measured.iter().map(|(_, spent)| format!("{:.0} µs", spent[index])).collect::<Vec<_>>();
    table(
        &format!("{devices} logins at one of two nodes, told by the other"),
        &[&format!("{rate} a second"), "as fast as they go"],
        &[
            ("logins/s", row(&|report| format!("{:.0}", number(&report["loginsPerSecond"])))),
            ("p50 to the CHANGE", row(&|report| us(&report["subscribers"][0]["lagUs"]["p50"]))),
            ("p99", row(&|report| us(&report["subscribers"][0]["lagUs"]["p99"]))),
            ("CPU of the devices' node for one's coming and going", cpu(0)),
            ("of the one that tells", cpu(1)),
            ("of the NATS server", cpu(2)),
            ("lost, doubled", {
                row(&|report| format!("{}, {}", report["subscribers"][0]["lost"], report["subscribers"][0]["doubled"]))
            }),
        ],
    );
}

/// `plex bench` with the devices at one node, asking another, or the same.
fn bench(ground: &Ground, at: &Node, asked: &Node, devices: usize) -> Command {
    let mut bench = Command::new(support::PLEX);
    let pids: Vec<_> =
        ground.nodes.iter().map(Node::pid).chain([ground.nats.pid()]).map(|pid| pid.to_string()).collect();
    bench.args(["bench", "--json", "--devices", &devices.to_string(), "--pid", &pids.join(",")]).args([
        "--connect",
        &at.device.to_string(),
        "--control",
        &format!("http://{}", asked.control),
    ]);
    bench
}

/// What it tells; it ends with 1 where something was lost, which is told as well.
fn report(bench: &mut Command) -> Value {
    let secret = NamedTempFile::new().expect("a file");
    fs::write(&secret, SECRET).expect("it can be written");
    let done = bench.arg("--secret-file").arg(secret.path()).output().expect("it can be run");
    serde_json::from_slice(&done.stdout).unwrap_or_else(|_| panic!("{bench:?}: {done:?}"))
}

fn us(value: &Value) -> String {
    let us = number(value);
    if us < 10_000.0 { format!("{us:.0} µs") } else { format!("{:.0} ms", us / 1e3) }
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}
