//! The page of metrics is what `docs/metrics.md` says, and the live numbers come out of the counters.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use common::{SECRET, TestDevice, TestServer, call, eventually, http, push, pushing::Pushing, watch::Watch};
use plex::proto;

const DOCUMENT: &str = include_str!("../docs/metrics.md");

/// The samples of the page: name with labels, value.
async fn samples(server: &TestServer) -> BTreeMap<String, f64> {
    let (status, head, page) = http(server.addresses.metrics.unwrap(), "GET", "/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert!(page.ends_with("# EOF\n"), "{page}");
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        (name.to_owned(), value.parse().expect("a number"))
    };
    page.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}

/// The rows of the document's tables that begin with a metric: its name, the rest.
fn rows() -> BTreeMap<&'static str, &'static str> {
    let row = |line: &'static str| line.strip_prefix("| `plex_")?.split_once('`');
    DOCUMENT.lines().filter_map(row).collect()
}

#[tokio::test]
async fn every_metric_of_the_page_is_documented_and_every_documented_one_is_there() {
    let server = TestServer::start().await;
    let samples = samples(&server).await;
    let name = |sample: &str| sample.split('{').next().unwrap().trim_start_matches("plex_").to_owned();
    let there: BTreeSet<_> = samples.keys().map(|sample| name(sample)).collect();
    let documented: BTreeSet<_> = rows().into_keys().map(str::to_owned).collect();
    assert_eq!(there, documented);
}

#[tokio::test]
async fn every_label_and_each_of_its_values_is_documented() {
    let server = TestServer::start().await;
    for sample in samples(&server).await.keys() {
        let Some((name, labels)) = sample.split_once('{') else { continue };
        let row = rows()[name.trim_start_matches("plex_")];
        let (label, value) = labels.trim_end_matches('}').split_once('=').expect("one label");
        assert!(row.contains(&format!("| `{label}` |")), "{sample}: {row}");
        let value = value.trim_matches('"');
        assert!(label == "version" || row.contains(&format!("`{value}`")), "{sample}: {row}");
    }
}

#[tokio::test]
async fn the_live_numbers_come_out_of_the_counters() {
    let server = TestServer::start().await;
    let alice = server.login("alice").await;
    let mut bob = server.login("bob").await;
    server.backend().await.push(push("alice", "/x", "")).await.unwrap();
    server.backend().await.push(push("nobody", "/x", "")).await.unwrap();
    bob.send("not JSON").await;
    bob.send(r#"{"uri":"/whatever"}"#).await;
    bob.heartbeat().await;
    drop(alice);

    let seen = eventually("alice is gone, and bob's frames are read", || async {
        let seen = samples(&server).await;
        let read = seen["plex_device_frames_bad_total{reason=\"unknown_uri\"}"] == 1.0;
        (seen["plex_connections"] == 1.0 && read).then_some(seen)
    })
    .await;
    let sum = |name: &str| -> f64 {
        seen.iter().filter(|(sample, _)| sample.split('{').next() == Some(name)).map(|(_, value)| value).sum()
    };
    assert_eq!(sum("plex_connections_opened_total") - sum("plex_connections_ended_total"), 1.0);
    assert_eq!(seen["plex_connections_ended_total{reason=\"closed\"}"], 1.0);
    assert_eq!(sum("plex_device_sockets_accepted_total"), 2.0);
    assert_eq!(sum("plex_device_sockets_dropped_total"), 0.0);
    assert_eq!(sum("plex_uids_online"), 1.0);
    assert_eq!(seen["plex_auth_answers_total{answer=\"success\"}"], 2.0);
    assert_eq!(seen["plex_pushes_total{status=\"sent\"}"], 1.0);
    assert_eq!(seen["plex_pushes_total{status=\"offline\"}"], 1.0);
    assert_eq!(seen["plex_device_frames_bad_total{reason=\"malformed\"}"], 1.0);
    assert!(sum("plex_device_frames_total") >= 4.0);
}

#[tokio::test]
async fn the_metrics_tell_what_happens() {
    let server = TestServer::with(|config| {
        config.device.max_connections = 4;
        config.device.max_errors = 1;
    })
    .await;
    let mut backend = server.backend().await;
    let before = samples(&server).await;
    let _watch = Watch::live(&mut backend, common::watch::everyone()).await;

    let (mut alice, mut bob) = (server.login("alice").await, server.login("bob").await);
    // Refused before it is told who it is, then gone.
    let mut stranger = TestDevice::connect(server.device()).await;
    stranger.send(r#"{"uri":"/x"}"#).await;
    assert_eq!(stranger.next().await.uri, "/auth/failed");
    drop(stranger);
    server.metric_is(r#"plex_device_sockets_dropped_total{reason="unauthenticated"}"#, 1).await;
    alice.send(r#"{"uri":"/ignored"}"#).await;
    alice.expect_quiet().await;

    let results = [
        (push("alice", "/x", ""), "sent"),
        (push("nobody", "/x", ""), "offline"),
        (call("bob", "/x", "", Duration::from_millis(1)), "ack_timeout"),
    ];
    for (request, _) in results.clone() {
        backend.push(request).await.unwrap();
    }
    let mut pushing = Pushing::open(&mut backend).await;
    for (request, _) in results.clone() {
        pushing.send(vec![request]).await;
        pushing.result().await;
    }
    let mut asks = backend.clone();
    let asking = tokio::spawn(async move { asks.push(call("alice", "/ask", "", Duration::from_secs(60))).await });
    alice.next().await;
    alice.next().await;
    let seq = alice.next().await.seq;
    server.metric_is("plex_ack_waits", 1).await;
    alice.nack(seq, "").await;
    asking.await.unwrap().unwrap();
    alice.ack(seq, "again").await;
    alice.expect_quiet().await;
    backend.broadcast(proto::BroadcastRequest { uri: "/all".into(), body: String::new() }).await.unwrap();

    let _alice = server.login("alice").await;
    for _ in 0..2 {
        bob.send("no JSON").await;
    }
    server.metric_is("plex_connections", 1).await;

    let after = samples(&server).await;
    let grown: Vec<_> = after.iter().filter(|(name, value)| before[*name] != **value).collect();
    let grown: Vec<_> = grown.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let expected = [
        r#"plex_auth_answers_total{answer="refused"} 1"#,
        r#"plex_auth_answers_total{answer="success"} 3"#,
        r#"plex_broadcast_deliveries_total{status="sent"} 2"#,
        "plex_connections 1",
        r#"plex_connections_ended_total{reason="protocol"} 1"#,
        r#"plex_connections_ended_total{reason="replaced"} 1"#,
        "plex_connections_opened_total 3",
        "plex_control_streams_opened_total 2",
        "plex_device_answers_late_total 1",
        r#"plex_device_frames_bad_total{reason="malformed"} 2"#,
        r#"plex_device_frames_bad_total{reason="unknown_uri"} 1"#,
        // 3 logins, 1 stranger, 1 ignored, 2 heartbeats, 1 nack, 1 ack, 2 malformed.
        "plex_device_frames_total 11",
        "plex_device_sockets_accepted_total 4",
        r#"plex_device_sockets_dropped_total{reason="unauthenticated"} 1"#,
        r#"plex_pushes_total{status="ack_timeout"} 2"#,
        r#"plex_pushes_total{status="nacked"} 1"#,
        r#"plex_pushes_total{status="offline"} 2"#,
        r#"plex_pushes_total{status="sent"} 2"#,
        "plex_uids_online 1",
    ];
    assert_eq!(grown, expected);
    drop(pushing);
    server.metric_is("plex_control_streams_ended_total", 1).await;
}

#[tokio::test]
async fn the_page_holds_no_secret_and_nobody_s_name() {
    let server = TestServer::start().await;
    let _device = server.login("alice-and-nobody-else").await;
    let (_, _, page) = http(server.addresses.metrics.unwrap(), "GET", "/metrics").await;
    assert!(!page.contains(SECRET) && !page.contains("alice"), "{page}");
}
