//! PushMany and Broadcast.

mod common;

use common::{TestDevice, TestServer, expect_invalid, push};
use plex::proto::{self, PushResponse, PushStatus};

fn many(uids: &[&str], body: &str) -> proto::PushManyRequest {
    let uids = uids.iter().map(|uid| (*uid).to_owned()).collect();
    proto::PushManyRequest { uids, uri: "/many".into(), body: body.into() }
}

fn everyone(body: &str) -> proto::BroadcastRequest {
    proto::BroadcastRequest { uri: "/all".into(), body: body.into() }
}

async fn push_many(server: &TestServer, request: proto::PushManyRequest) -> Vec<PushResponse> {
    server.backend().await.push_many(request).await.expect("it is processed").into_inner().results
}

async fn broadcast(server: &TestServer, body: &str) -> (u64, u64) {
    let answer = server.backend().await.broadcast(everyone(body)).await.expect("it is always OK").into_inner();
    assert!(answer.silent_nodes.is_empty(), "{answer:?}");
    (answer.sent, answer.queue_full)
}

/// Fills the queue of a device that doesn't read.
async fn fill(server: &TestServer, uid: &str) {
    let mut backend = server.backend().await;
    let body = "x".repeat(60_000);
    let mut refused = 0;
    while refused < 20 {
        let sent = backend.push(push(uid, "/fill", &body)).await.unwrap().into_inner().status() == PushStatus::Sent;
        refused = if sent { 0 } else { refused + 1 };
    }
}

#[tokio::test]
async fn push_many_answers_for_each_uid_in_order() {
    let server = TestServer::start().await;
    let (mut alice, mut bob) = (server.login("alice").await, server.login("bob").await);
    let results = push_many(&server, many(&["alice", "nobody", "bob"], "hello")).await;
    let statuses: Vec<_> = results.iter().map(PushResponse::status).collect();
    assert_eq!(statuses, [PushStatus::Sent, PushStatus::Offline, PushStatus::Sent]);
    assert_eq!((results[1].seq, results[1].connections), (0, 0));
    for (device, result) in [(&mut alice, &results[0]), (&mut bob, &results[2])] {
        let message = device.next().await;
        assert_eq!((message.seq, &*message.uri, &*message.body), (result.seq, "/many", "hello"));
        assert_eq!((result.connections, result.id), (1, 0));
    }
    // One number for all of them, above what was given before.
    assert_eq!(results[0].seq, results[2].seq);
    let later = push_many(&server, many(&["alice"], "")).await;
    assert!(later[0].seq > results[0].seq);
}

#[tokio::test]
async fn a_uid_given_twice_is_pushed_twice() {
    let server = TestServer::start().await;
    let mut alice = server.login("alice").await;
    let results = push_many(&server, many(&["alice", "alice", "alice"], "")).await;
    assert_eq!(results.len(), 3);
    for result in results {
        assert_eq!((result.status(), result.connections), (PushStatus::Sent, 1));
        assert_eq!(alice.next().await.seq, result.seq);
    }
    alice.expect_quiet().await;
}

#[tokio::test]
async fn all_uids_are_checked_before_any_is_pushed() {
    let server = TestServer::start().await;
    let mut alice = server.login("alice").await;
    let mut backend = server.backend().await;
    expect_invalid(backend.push_many(many(&["alice", "alice", ""], "")).await, "uids[2]");
    alice.expect_quiet().await;
}

#[tokio::test]
async fn push_many_tells_whose_queue_was_full() {
    let server = TestServer::start().await;
    let (_slow, mut other) = (server.login("slow").await, server.login("other").await);
    fill(&server, "slow").await;
    let results = push_many(&server, many(&["slow", "other"], &"x".repeat(60_000))).await;
    assert_eq!((results[0].status(), results[0].seq, results[0].connections), (PushStatus::QueueFull, 0, 0));
    assert_eq!(results[1].status(), PushStatus::Sent);
    assert_eq!(other.next().await.seq, results[1].seq);
}

#[tokio::test]
async fn push_many_runs_to_its_end_though_its_call_is_cancelled() {
    let server = TestServer::start().await;
    let (mut first, mut last) = (server.login("first").await, server.login("last").await);
    let uids: Vec<_> = (0..9_998).map(|number| format!("user-{number}")).collect();
    let _others: Vec<_> = uids.iter().map(|uid| server.hub.connect(uid).unwrap()).collect();
    let mut all = vec!["first"];
    all.extend(uids.iter().map(String::as_str));
    all.push("last");
    let (mut backend, request) = (server.backend().await, many(&all, ""));
    let pushing = tokio::spawn(async move { backend.push_many(request).await });
    let seq = first.next().await.seq;
    pushing.abort();
    assert_eq!(last.next().await.seq, seq);
}

#[tokio::test]
async fn a_broadcast_reaches_every_connection_once() {
    let server = TestServer::with(|config| config.device.connections_per_uid = 2).await;
    assert_eq!(broadcast(&server, "nobody").await, (0, 0));
    let mut devices = Vec::new();
    for uid in ["alice", "alice", "bob", "carol"] {
        devices.push(server.login(uid).await);
    }
    devices.push(TestDevice::login_v1(server.device(), "dora").await);
    let mut stranger = TestDevice::connect(server.device()).await;
    assert_eq!(broadcast(&server, "hello").await, (5, 0));
    let mut seqs = Vec::new();
    for device in &mut devices {
        let message = device.next().await;
        assert_eq!((&*message.uri, &*message.body), ("/all", "hello"));
        seqs.push(message.seq);
        device.expect_quiet().await;
    }
    assert!(seqs[0] > 0 && seqs.iter().all(|seq| *seq == seqs[0]), "{seqs:?}");
    stranger.auth_v2("erik").await;
    assert_eq!(stranger.next().await.uri, "/auth/success");
    stranger.expect_quiet().await;
}

#[tokio::test]
async fn a_broadcast_counts_those_whose_queue_was_full() {
    let server = TestServer::start().await;
    let (_slow, mut other) = (server.login("slow").await, server.login("other").await);
    fill(&server, "slow").await;
    assert_eq!(broadcast(&server, &"x".repeat(60_000)).await, (1, 1));
    other.next().await;
    assert_eq!(server.metric(r#"plex_broadcast_deliveries_total{status="sent"}"#).await, 1);
    assert_eq!(server.metric(r#"plex_broadcast_deliveries_total{status="queue_full"}"#).await, 1);
}

#[tokio::test]
async fn a_broadcast_runs_to_its_end_though_its_call_is_cancelled() {
    let server = TestServer::start().await;
    let mut devices = Vec::new();
    for number in 0..30 {
        devices.push(server.login(&format!("device-{number}")).await);
    }
    let _others: Vec<_> = (0..10_000).map(|number| server.hub.connect(&format!("user-{number}")).unwrap()).collect();
    let mut backend = server.backend().await;
    let pushing = tokio::spawn(async move { backend.broadcast(everyone("")).await });
    let seq = devices[0].next().await.seq;
    pushing.abort();
    for device in &mut devices[1..] {
        assert_eq!(device.next().await.seq, seq);
    }
}
