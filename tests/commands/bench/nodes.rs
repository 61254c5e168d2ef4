//! Of several nodes, devices and pushes are spread over all.

use std::net::{Ipv4Addr, SocketAddr};

use plex::config::Secret;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use super::{Ground, SHORT, outcome};
use crate::common::{SECRET, TestServer};

async fn bench(ground: &Ground, addresses: &[SocketAddr], urls: &[&str]) -> Value {
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    let named = ["--connect", &addresses.join(","), "--control", &urls.join(","), "--secret-file", &ground.secret];
    let done = ground.home.run(&[&["bench", "--json", "--rate", "1000"], &SHORT[..], &named].concat()).await;
    assert_eq!((done.code, &*done.stderr), (0, ""), "{done:?}");
    done.json().remove(0)
}

/// Stands before a gateway, and has its devices believe that they are at `node-2`.
async fn renamed(gateway: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut device, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut gateway = TcpStream::connect(gateway).await.unwrap();
                let mut bytes = vec![0; 4096];
                let count = device.read(&mut bytes).await.unwrap();
                gateway.write_all(&bytes[..count]).await.unwrap();
                let count = gateway.read(&mut bytes).await.unwrap();
                let name = bytes[..count].windows(6).position(|bytes| bytes == b"node-1").expect("it is told its node");
                bytes[name + 5] = b'2';
                device.write_all(&bytes[..count]).await.unwrap();
                let _ = copy_bidirectional(&mut device, &mut gateway).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn devices_are_spread_over_addresses_and_each_is_pushed_to_by_each_node() {
    let ground = Ground::new().await;
    let second = TestServer::with(|config| {
        config.node.name = "node-2".into();
        config.control.secrets = vec![Secret::new(SECRET).unwrap().into()];
    })
    .await;
    let url = format!("http://{}", second.addresses.control);
    let addresses = [ground.server.device(), second.device()];
    // They are no cluster: what is asked at the other node is OFFLINE, which is every other push to each device.
    for mode in ["stream", "batch", "unary", "many"] {
        let named = ["--control", &[&*ground.url, &url].join(","), "--secret-file", &ground.secret];
        let connect = addresses.map(|address| address.to_string()).join(",");
        let all = [&["bench", "--json", "--rate", "1000", "--mode", mode, "--batch", "5"], &SHORT[..]].concat();
        let done = ground.home.run(&[&all[..], &["--connect", &connect], &named].concat()).await;
        assert_eq!(done.code, 0, "{done:?}");
        let report = &done.json()[0];
        let (sent, offline) = (outcome(report, "SENT"), outcome(report, "OFFLINE"));
        assert!(sent > 0 && sent.abs_diff(offline) <= (sent + offline) / 10, "{mode}: {report}");
        assert!(report.get("forwardedUs").is_none(), "{report}");
    }
    // Of one node alone, half of the devices are there.
    let report = bench(&ground, &addresses, &[&url]).await;
    assert!(outcome(&report, "SENT").abs_diff(outcome(&report, "OFFLINE")) <= 20, "{report}");
    let logins = "plex_connections_opened_total";
    assert_eq!(ground.server.metric(logins).await, second.metric(logins).await);
}

#[tokio::test]
async fn latency_is_told_apart_by_whether_the_node_that_was_asked_has_the_device() {
    let ground = Ground::new().await;
    let (here, elsewhere) = (ground.server.device(), renamed(ground.server.device()).await);
    let report = bench(&ground, &[here, elsewhere], &[&ground.url]).await;
    let count = |name: &str| report[name]["count"].as_u64().unwrap_or_default();
    assert!(count("localUs") > 0 && count("localUs").abs_diff(count("forwardedUs")) <= 20, "{report}");
    assert_eq!(count("latencyUs"), count("localUs") + count("forwardedUs"));
    assert!(count("latencyUs") >= 290, "{report}");
    // All of them at the other node: what the commands of docs/measuring.md fix.
    let report = bench(&ground, &[elsewhere], &[&ground.url]).await;
    assert!(report.get("localUs").is_none() && report["forwardedUs"]["count"].as_u64().unwrap() >= 290, "{report}");
    // Two addresses of one node are one node.
    let report = bench(&ground, &[here], &[&ground.url, &ground.url]).await;
    assert!(report.get("forwardedUs").is_none() && report["latencyUs"]["count"].as_u64().unwrap() >= 290, "{report}");
}

#[tokio::test]
async fn the_cpu_of_each_of_several_processes_is_told() {
    let ground = Ground::new().await;
    let other = ground.home.spawn(&["device", "--uid", "carol", "--connect", &ground.server.device().to_string()]);
    let (own, other) = (std::process::id().to_string(), other.id().to_string());
    let pids = [&*own, &other].join(",");
    let done = ground.run(&[&["bench", "--json", "--rate", "1000", "--pid", &pids], &SHORT[..]].concat()).await;
    assert_eq!(done.code, 0, "{done:?}");
    let report = &done.json()[0];
    let nodes = report["nodes"].as_array().unwrap();
    let mut pids: Vec<_> = nodes.iter().map(|node| node["pid"].to_string()).collect();
    pids.sort();
    let mut expected = [own, other];
    expected.sort();
    assert_eq!(pids, expected);
    let sum: f64 = nodes.iter().map(|node| node["cpuUsPerPush"].as_f64().unwrap()).sum();
    assert!((sum - report["cpuUsPerPush"].as_f64().unwrap()).abs() < 1e-6, "{report}");
}
