//! The page of metrics is what `docs/metrics.md` says, and the live numbers come out of the counters.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{TestServer, eventually, http, push};

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
