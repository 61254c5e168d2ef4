//! How connections end: kicks, last frames, what became of pushes and presence.

mod common;

use std::time::Duration;

use common::{Backend, TestDevice, TestServer, authenticator::Oracle, call, eventually, push};
use plex::{
    model::EndReason,
    proto::{
        DisconnectRequest, GetInfoRequest, IsOnlineRequest, ListSessionsRequest, OfflineReason, OnlineStatusEvent,
        OnlineStatusKind, OnlineStatusRequest, PushStatus,
    },
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn disconnect(backend: &mut Backend, uid: &str) -> u32 {
    let request = DisconnectRequest { uid: uid.into(), reason: "test".into() };
    backend.disconnect(request).await.unwrap().into_inner().connections
}

async fn is_online(backend: &mut Backend, uid: &str) -> bool {
    let request = IsOnlineRequest { uids: vec![uid.into()] };
    backend.is_online(request).await.unwrap().into_inner().states[0].online
}

async fn until_offline(backend: &Backend, uid: &str) {
    eventually("it is offline", || {
        let mut backend = backend.clone();
        async move { (!is_online(&mut backend, uid).await).then_some(()) }
    })
    .await;
}

/// Follows one uid, from LIVE on.
async fn watch(backend: &mut Backend, uid: &str) -> tonic::Streaming<plex::proto::OnlineStatusResponse> {
    let request = OnlineStatusRequest { uids: vec![uid.into()], skip_snapshot: true, resume_after: String::new() };
    let mut stream = backend.online_status(request).await.unwrap().into_inner();
    let first = stream.message().await.unwrap().unwrap().events;
    assert_eq!(first[0].kind(), OnlineStatusKind::Live);
    stream
}

async fn changes(
    stream: &mut tonic::Streaming<plex::proto::OnlineStatusResponse>,
    count: usize,
) -> Vec<OnlineStatusEvent> {
    let mut events = Vec::new();
    while events.len() < count {
        let message = tokio::time::timeout(common::PATIENCE, stream.message()).await.expect("a change in time");
        events.extend(message.unwrap().expect("the stream goes on").events);
    }
    events
}

#[tokio::test]
async fn a_replaced_connection_is_kicked_for_good() {
    let server = TestServer::start().await;
    let mut older = server.login("alice").await;
    let mut newer = server.login("alice").await;
    assert_eq!(older.expect_kick("replaced").await, json!({"reason": "replaced", "reconnect": false}));
    newer.expect_quiet().await;
    let mut backend = server.backend().await;
    assert_eq!(backend.push(push("alice", "/a", "")).await.unwrap().into_inner().connections, 1);
    assert_eq!(newer.next().await.uri, "/a");
}

#[tokio::test]
async fn replacing_is_no_presence_change() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut stream = watch(&mut backend, "alice").await;
    let mut held = server.login("alice").await;
    for _ in 0..5 {
        let newer = server.login("alice").await;
        held.expect_kick("replaced").await;
        held = newer;
    }
    drop(held);
    let events = changes(&mut stream, 2).await;
    assert_eq!(events.iter().map(|event| event.online).collect::<Vec<_>>(), [true, false]);
    assert_eq!(events[1].reason(), OfflineReason::Closed);
}

#[tokio::test]
async fn a_disconnected_device_is_kicked_for_good() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    assert_eq!(disconnect(&mut backend, "alice").await, 1);
    assert_eq!(device.expect_kick("disconnected").await, json!({"reason": "disconnected", "reconnect": false}));
}

#[tokio::test]
async fn a_draining_node_sends_its_devices_away_for_a_random_time() {
    let mut server = TestServer::start().await;
    let mut devices = Vec::new();
    for number in 0..20 {
        devices.push(server.login(&format!("device-{number}")).await);
    }
    let stopping = tokio::spawn(server.stopping());
    let mut delays = Vec::new();
    for mut device in devices {
        let kick = device.expect_kick("draining").await;
        let delay = kick["after_ms"].as_u64().expect("milliseconds");
        assert!(delay <= 5_000, "{delay}");
        assert_eq!(kick, json!({"reason": "draining", "reconnect": true, "after_ms": delay}));
        delays.push(delay);
    }
    delays.sort_unstable();
    delays.dedup();
    assert!(delays.len() > 10, "a herd would come back: {delays:?}");
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_draining_node_closes_who_hasnt_authenticated_without_a_frame() {
    let oracle = Oracle::default();
    let authenticator = oracle.clone();
    let mut server = TestServer::built(|_| {}, |builder| builder.authenticator(authenticator)).await;
    let mut silent = TestDevice::connect(server.device()).await;
    let mut asking = TestDevice::connect(server.device()).await;
    silent.send_bytes(&[0; 4]).await;
    asking.auth_v2("hang").await;
    oracle.until_asked(1).await;
    let stopping = tokio::spawn(server.stopping());
    silent.expect_close().await;
    asking.expect_close().await;
    drop((silent, asking));
    stopping.await.unwrap();
}

#[tokio::test]
async fn an_expired_device_is_kicked_and_may_come_back() {
    let oracle = Oracle::default();
    let server = TestServer::built(|_| {}, |builder| builder.authenticator(oracle)).await;
    let mut device = server.login("alice/300").await;
    assert_eq!(device.expect_kick("expired").await, json!({"reason": "expired", "reconnect": true}));
}

#[tokio::test]
async fn a_silent_device_is_kicked_though_it_gets_pushes() {
    let server = TestServer::with(|config| {
        config.device.heartbeat = Duration::from_millis(100);
        config.device.heartbeat_timeout = Duration::from_millis(400);
    })
    .await;
    let mut backend = server.backend().await;
    let mut device = server.login("alice").await;
    let pushing = tokio::spawn(async move {
        while backend.push(push("alice", "/a", "")).await.unwrap().into_inner().status() == PushStatus::Sent {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let kick = loop {
        let message = device.next().await;
        match &*message.uri {
            "/a" => {}
            "/plex/kick" => break message.json(),
            other => panic!("{other}"),
        }
    };
    assert_eq!(kick, json!({"reason": "timeout", "reconnect": true}));
    device.expect_close().await;
    pushing.await.unwrap();
}

/// Pushes until the queue is full. Returns how many were sent.
async fn fill(backend: &mut Backend, uid: &str) -> usize {
    let body = "x".repeat(60_000);
    for sent in 0.. {
        let pushed = backend.push(push(uid, "/fill", &body)).await.unwrap().into_inner();
        match pushed.status() {
            PushStatus::Sent => {}
            // Or so slow that it has ended meanwhile.
            PushStatus::QueueFull | PushStatus::Offline => return sent,
            other => panic!("{other:?}"),
        }
    }
    unreachable!()
}

async fn narrow(server: &TestServer, uid: &str) -> TestDevice {
    let mut device = TestDevice::connect_narrow(server.device()).await;
    device.auth_v2(uid).await;
    assert_eq!(device.next().await.uri, "/auth/success");
    device
}

#[tokio::test]
async fn a_device_that_doesnt_read_is_slow() {
    let server = TestServer::with(|config| config.device.write_timeout = Duration::from_millis(300)).await;
    let mut backend = server.backend().await;
    let mut stream = watch(&mut backend, "alice").await;
    let mut device = narrow(&server, "alice").await;
    fill(&mut backend, "alice").await;
    let events = changes(&mut stream, 2).await;
    assert_eq!((events[1].online, events[1].reason()), (false, OfflineReason::Slow));
    // The socket is full for longer than the last frame is tried: the stream ends, without a reset.
    let mut rest = Vec::new();
    tokio::time::timeout(common::PATIENCE, device.stream.read_to_end(&mut rest)).await.unwrap().expect("no reset");
}

#[tokio::test]
async fn a_device_that_reads_little_but_reads_isnt_slow() {
    let write_timeout = Duration::from_secs(1);
    let server = TestServer::with(|config| config.device.write_timeout = write_timeout).await;
    let mut backend = server.backend().await;
    let mut device = narrow(&server, "alice").await;
    // Something always waits.
    let mut fills = backend.clone();
    let filling = tokio::spawn(async move {
        loop {
            fill(&mut fills, "alice").await;
            tokio::time::sleep(write_timeout / 100).await;
        }
    });
    // Far less in that time than the third of its buffer of which the kernel tells by default.
    let mut piece = vec![0; 4 * 1024];
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < write_timeout * 3 {
        device.stream.read_exact(&mut piece).await.unwrap();
        tokio::time::sleep(write_timeout / 16).await;
    }
    assert!(is_online(&mut backend, "alice").await);
    assert_eq!(server.metric("plex_connections_ended_total{reason=\"slow\"}").await, 0);
    filling.abort();
}

#[tokio::test]
async fn too_many_errors_are_a_kick_for_good() {
    let server = TestServer::with(|config| config.device.max_errors = 1).await;
    let mut device = server.login("alice").await;
    device.send("x").await;
    device.send("x").await;
    assert_eq!([device.next().await.uri, device.next().await.uri], ["/plex/error", "/plex/error"]);
    assert_eq!(device.expect_kick("protocol").await, json!({"reason": "protocol", "reconnect": false}));
}

#[tokio::test]
async fn what_was_queued_goes_out_before_the_kick() {
    for reason in ["replaced", "disconnected", "draining", "expired"] {
        let oracle = Oracle::default();
        let mut server = TestServer::built(|_| {}, |builder| builder.authenticator(oracle)).await;
        let mut backend = server.backend().await;
        let mut device = narrow(&server, if reason == "expired" { "alice/2000" } else { "alice" }).await;
        let sent = fill(&mut backend, "alice").await;
        let mut newer = None;
        match reason {
            "replaced" => newer = Some(server.login("alice").await),
            "disconnected" => assert_eq!(disconnect(&mut backend, "alice").await, 1),
            "draining" => drop(tokio::spawn(server.stopping())),
            _ => until_offline(&backend, "alice").await,
        }
        for number in 0..sent {
            assert_eq!(device.next().await.uri, "/fill", "{reason}: {number} of {sent}");
        }
        device.expect_kick(reason).await;
        drop(newer);
    }
}

#[tokio::test]
async fn no_reset_destroys_the_last_frame_though_input_is_unread() {
    let server = TestServer::with(|config| config.device.frames_burst = 2).await;
    let mut backend = server.backend().await;
    for number in 0..20 {
        let uid = format!("device-{number}");
        let device = server.login(&uid).await;
        // More than is read at this rate.
        let flood = device.frame(br#"{"uri":"/x","body":"................................"}"#).repeat(5_000);
        let (mut reader, mut writer) = device.stream.into_split();
        let writing = tokio::spawn(async move {
            let _ = writer.write_all(&flood).await;
            writer
        });
        assert_eq!(disconnect(&mut backend, &uid).await, 1);
        let mut rest = Vec::new();
        let read = tokio::time::timeout(common::PATIENCE, reader.read_to_end(&mut rest)).await.unwrap();
        read.expect("no reset");
        let text = String::from_utf8_lossy(&rest);
        assert!(text.contains("disconnected"), "{text}");
        drop(writing.await);
    }
}

#[tokio::test]
async fn what_was_written_is_not_destroyed_where_the_last_frame_finds_no_room() {
    let mut server = TestServer::with(|config| config.device.write_timeout = Duration::from_secs(1)).await;
    let mut backend = server.backend().await;
    let mut device = narrow(&server, "alice").await;
    fill(&mut backend, "alice").await;
    assert_eq!(disconnect(&mut backend, "alice").await, 1);
    // Unread when the gateway gives up.
    device.heartbeat().await;
    // Ends when all connections are closed.
    server.stopping().await;
    let mut rest = Vec::new();
    tokio::time::timeout(common::PATIENCE, device.stream.read_to_end(&mut rest)).await.unwrap().expect("no reset");
}

#[tokio::test]
async fn a_connection_ends_at_the_moment_of_the_decision() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut device = narrow(&server, "alice").await;
    let mut waiter = backend.clone();
    let waiting = tokio::spawn(async move {
        waiter.push(call("alice", "/ask", "", Duration::from_secs(60))).await.unwrap().into_inner()
    });
    let asked = device.next().await;
    fill(&mut backend, "alice").await;
    assert_eq!(disconnect(&mut backend, "alice").await, 1);
    // Its socket is there, and full.
    assert_eq!(backend.push(push("alice", "/late", "")).await.unwrap().into_inner().status(), PushStatus::Offline);
    assert!(!is_online(&mut backend, "alice").await);
    assert_eq!(disconnect(&mut backend, "alice").await, 0);
    let info = backend.get_info(GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.connections, info.uids), (0, 0));
    let request = ListSessionsRequest { uid: String::new() };
    let mut sessions = backend.list_sessions(request).await.unwrap().into_inner();
    assert!(sessions.message().await.unwrap().is_none_or(|page| page.sessions.is_empty()));
    device.ack(asked.seq, "too late").await;
    let result = waiting.await.unwrap();
    assert_eq!((result.status(), &*result.reply), (PushStatus::ConnectionLost, ""));
    loop {
        let message = device.next().await;
        assert_ne!(message.uri, "/late");
        if message.uri == "/plex/kick" {
            break;
        }
    }
    device.expect_close().await;
}

#[tokio::test]
async fn however_a_device_goes_its_state_is_freed_and_told_once() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut stream = watch(&mut backend, "alice").await;
    for way in ["between frames", "inside a length", "inside a frame", "half-close", "reset"] {
        let mut device = server.login("alice").await;
        match way {
            "inside a length" => device.send_bytes(&[0, 0]).await,
            "inside a frame" => device.send_bytes(b"\0\0\0\x20{\"uri\"").await,
            "half-close" => device.stream.shutdown().await.unwrap(),
            "reset" => socket2::SockRef::from(&device.stream).set_linger(Some(Duration::ZERO)).unwrap(),
            _ => {}
        }
        if way != "half-close" {
            drop(device);
        }
        until_offline(&backend, "alice").await;
        let events = changes(&mut stream, 2).await;
        assert_eq!(events.iter().map(|event| event.online).collect::<Vec<_>>(), [true, false], "{way}");
        assert_eq!(events[1].reason(), OfflineReason::Closed, "{way}");
        let info = backend.get_info(GetInfoRequest {}).await.unwrap().into_inner();
        assert_eq!((info.connections, info.uids), (0, 0), "{way}");
    }
}

#[tokio::test]
async fn who_closes_gets_no_kick() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    device.stream.shutdown().await.unwrap();
    device.expect_close().await;
}

#[test]
fn every_reason_is_among_those_that_are_tested() {
    let tested = ["closed", "timeout", "disconnected", "draining", "expired", "slow", "protocol", "replaced"];
    assert_eq!(EndReason::ALL.map(EndReason::name), tested);
}
