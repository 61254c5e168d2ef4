//! Nodes that can't take part as they are: at their start they end and say why, later they serve who they have.

use plex::proto::PushStatus;
use serde_json::json;

use super::common::{
    TestDevice,
    cluster::listed,
    eventually,
    gateways::{LOG, STREAM, longer_than_a_death},
    http,
    link::Link,
    nats::{Nats, user_denied},
    node_processes::{Gateways, spawn},
    process::{Home, TestGateway, TestProcess},
    push,
};

/// The end of a node that isn't taken: exit code 1, and a line that says why.
async fn refusal(node: TestProcess) -> String {
    let ended = node.finished().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let mut told = ended.stderr.lines().filter_map(|line| line.strip_prefix("plex: cluster: "));
    let (Some(why), None) = (told.next(), told.next()) else { panic!("one line says why: {ended:?}") };
    why.to_owned()
}

const ANOTHER_NUMBER: &str = "device.connections_per_uid: the nodes that are there have 1, this one has 2";

#[tokio::test]
async fn a_node_that_allows_another_number_of_connections_ends_at_its_start_and_says_why() {
    let Some(mut nodes) = Gateways::three().await else { return };
    let home = Home::new();
    let other = spawn(&home, &nodes.nats.urls(), "node-4", &["device.connections_per_uid=2"]);
    assert_eq!(refusal(other).await, ANOTHER_NUMBER);
    for backend in &mut nodes.backends {
        let names: Vec<_> = listed(backend).await.into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["node-1", "node-2", "node-3"]);
    }
}

#[tokio::test]
async fn a_node_that_finds_out_later_that_it_is_not_let_in_serves_its_own_devices_and_says_why() {
    let Some(mut nodes) = Gateways::three().await else { return };
    let (home, mut link) = (Home::new(), Link::to(nodes.nats.address(0)).await);
    link.cut();
    let urls = [format!("nats://{}", link.address)];
    let mut other = TestGateway::of(spawn(&home, &urls, "node-4", &["device.connections_per_uid=2"])).await;
    // The second try comes after the first has failed.
    link.tried().await;
    link.tried().await;
    link.mend();
    let line = other.process.stderr.until("the cluster doesn't let this node in").await;
    assert!(line.contains(ANOTHER_NUMBER), "{line}");
    assert_eq!(other.readyz().await, 503);
    // It serves its own devices, of which the others know nothing.
    TestDevice::login(other.device(), "alice").await.expect_quiet().await;
    for backend in &mut nodes.backends {
        let names: Vec<_> = listed(backend).await.into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["node-1", "node-2", "node-3"]);
        let outcome = backend.push(push("alice", "/x", "")).await.unwrap().into_inner();
        assert_eq!(outcome.status(), PushStatus::Offline);
    }
    assert_eq!(other.readyz().await, 503);
}

#[tokio::test]
async fn a_log_that_was_made_without_a_first_sequence_ends_the_node_which_says_why() {
    let Some(nats) = Nats::one().await else { return };
    let engine = async_nats::connect(&nats.urls()[0]).await.expect("the server listens");
    // What a server before 2.10 makes of any request.
    let config = json!({"name": STREAM, "subjects": [LOG]}).to_string();
    let answer = engine.request(format!("$JS.API.STREAM.CREATE.{STREAM}"), config.into()).await.expect("an answer");
    assert!(!String::from_utf8_lossy(&answer.payload).contains("\"error\""), "{answer:?}");
    let home = Home::new();
    let why = refusal(spawn(&home, &nats.urls(), "node-1", &[])).await;
    assert!(why.starts_with("the stream has no first_seq: the server is older than 2.10"), "{why}");
}

#[tokio::test]
async fn a_server_whose_messages_are_too_short_for_a_push_ends_the_node_which_names_the_number() {
    // A push whose frame has 1 MiB, its uid, and what stands around them.
    const NEEDED: usize = (1 << 20) + 255 + 31;
    let sets = ["device.max_frame=1MiB", "device.queue_bytes=4MiB"];
    let Some(nats) = Nats::with(1, |_| format!("max_payload: {}", NEEDED - 1)).await else { return };
    let home = Home::new();
    let why = refusal(spawn(&home, &nats.urls(), "node-1", &sets)).await;
    assert!(why.starts_with("max_payload: ") && why.contains(&NEEDED.to_string()), "{why}");
    // By default a server's and a node's go together.
    let Some(default) = Nats::one().await else { return };
    TestGateway::of(spawn(&home, &default.urls(), "node-1", &[])).await.is_ready().await;

    let Some(nats) = Nats::with(1, |_| format!("max_payload: {NEEDED}")).await else { return };
    let (one, other) = (Home::new(), Home::new());
    let one = TestGateway::of(spawn(&one, &nats.urls(), "node-1", &sets)).await;
    let other = TestGateway::of(spawn(&other, &nats.urls(), "node-2", &sets)).await;
    one.is_ready().await;
    other.is_ready().await;
    let uid = "u".repeat(255);
    let mut device = TestDevice::login(one.device(), &uid).await;
    let mut backend = super::common::backend(other.control, super::common::SECRET).await;
    // The longest that is taken.
    let (mut least, mut most) = (1 << 19, 1 << 20);
    while most - least > 1 {
        let middle = (least + most) / 2;
        match backend.push(push("nobody", "/x", &"x".repeat(middle))).await {
            Ok(_) => least = middle,
            Err(_) => most = middle,
        }
    }
    let body = "x".repeat(least);
    let outcome = backend.push(push(&uid, "/x", &body)).await.unwrap().into_inner();
    assert_eq!(outcome.status(), PushStatus::Sent, "{least}");
    assert!(device.next().await.body == body);
}

#[tokio::test]
async fn a_server_whose_messages_are_too_short_leaves_a_node_that_meets_it_later_to_its_own_devices() {
    let Some(nats) = Nats::with(1, |_| "max_payload: 65536".to_owned()).await else { return };
    let (home, mut link) = (Home::new(), Link::to(nats.address(0)).await);
    link.cut();
    let urls = [format!("nats://{}", link.address)];
    let mut node = TestGateway::of(spawn(&home, &urls, "node-1", &[])).await;
    link.tried().await;
    link.tried().await;
    link.mend();
    let line = node.process.stderr.until("max_payload: ").await;
    assert!(line.contains("the cluster's servers won't do"), "{line}");
    TestDevice::login(node.device(), "alice").await.expect_quiet().await;
    longer_than_a_death().await;
    assert_eq!(node.readyz().await, 503, "it doesn't join");
}

#[tokio::test]
async fn a_node_that_may_not_write_to_the_log_says_which_permission_it_lacks_once_and_joins_when_it_has_it() {
    let Some(nats) = Nats::with(1, |_| user_denied(LOG)).await else { return };
    let home = Home::new();
    let password = format!("cluster.password_file={}", home.write("password", "hush"));
    let mut node = TestGateway::of(spawn(&home, &nats.urls(), "node-1", &["cluster.user=plex", &password])).await;
    let line = node.process.stderr.until("the cluster's servers refuse what this node does").await;
    assert!(line.contains("Permissions Violation") && line.contains(LOG), "{line}");
    let errors = async || {
        let (_, _, page) = http(node.metrics.expect("metrics are on"), "GET", "/metrics").await;
        let value = page.lines().find_map(|line| line.strip_prefix("plex_cluster_server_errors "));
        value.expect("it is there").parse::<u64>().expect("a number")
    };
    eventually("it goes on trying", || async { (errors().await >= 3).then_some(()) }).await;
    assert_eq!(node.readyz().await, 503);

    nats.reconfigure(0, &user_denied("nothing"));
    node.is_ready().await;
    let told = node.process.stderr.until("in step with the cluster").await;
    assert!(!told.is_empty());
    let refused = node.process.stderr.seen.iter().filter(|line| line.contains("Permissions Violation"));
    assert_eq!(refused.count(), 1, "{:#?}", node.process.stderr.seen);
}

#[tokio::test]
async fn a_node_whose_servers_keep_no_log_says_so_and_joins_when_they_do() {
    let Some(mut nats) = Nats::with(1, |_| "jetstream: disabled".to_owned()).await else { return };
    let home = Home::new();
    let mut node = TestGateway::of(spawn(&home, &nats.urls(), "node-1", &[])).await;
    let line = node.process.stderr.until("the cluster's servers refuse it").await;
    assert!(line.contains("nobody answers for JetStream"), "{line}");
    assert_eq!(node.readyz().await, 503);
    nats.reconfigure(0, "");
    nats.kill(0);
    nats.restart(0).await;
    node.is_ready().await;
}

#[tokio::test]
async fn a_node_that_may_not_read_the_log_says_why_once_and_tries_again_after_a_while() {
    // Of two accounts, theirs may have one reader.
    let accounts = "accounts { gateways { users: [ { user: plex, password: hush } ], \
                    jetstream: { max_streams: 1, max_consumers: 1, max_file: 1GiB, max_memory: 64MiB } } }";
    let Some(nats) = Nats::with(1, |_| accounts.to_owned()).await else { return };
    let (one, other) = (Home::new(), Home::new());
    let sets = [&one, &other].map(|home| format!("cluster.password_file={}", home.write("password", "hush")));
    let mut nodes = Vec::new();
    for (home, (name, password)) in [&one, &other].into_iter().zip(["node-1", "node-2"].into_iter().zip(&sets)) {
        nodes.push(TestGateway::of(spawn(home, &nats.urls(), name, &["cluster.user=plex", password])).await);
        if name == "node-1" {
            nodes[0].is_ready().await;
        }
    }
    let line = nodes[1].process.stderr.until("the cluster's servers refuse it").await;
    assert!(line.contains("can't be read") && line.contains("consumers"), "{line}");
    assert_eq!(nodes[1].readyz().await, 503);
    // The place of the reader that has gone is free.
    nodes.remove(0);
    nodes[0].is_ready().await;
    let refused = nodes[0].process.stderr.seen.iter().filter(|line| line.contains("can't be read"));
    assert_eq!(refused.count(), 1, "{:#?}", nodes[0].process.stderr.seen);
}
