//! What a device may not do, and what it meets then.

mod common;

use std::time::Duration;

use common::{Backend, TestDevice, TestServer, eventually, http, push};
use plex::proto::{DisconnectRequest, GetInfoRequest, ListSessionsRequest, PushManyRequest, PushStatus, Session};
use tokio::{io::AsyncWriteExt, time::timeout};

const MALFORMED: &str = "malformed";

async fn expect_error(device: &mut TestDevice, reason: &str) {
    let error = device.next().await;
    assert_eq!(error.uri, "/plex/error", "{error:?}");
    assert_eq!(error.json()["reason"], reason, "{error:?}");
    assert!(error.json()["detail"].is_string(), "{error:?}");
}

async fn session(backend: &mut Backend, uid: &str) -> Session {
    let request = ListSessionsRequest { uid: uid.into() };
    let mut sessions = backend.list_sessions(request).await.unwrap().into_inner();
    sessions.message().await.unwrap().expect("it is connected").sessions.remove(0)
}

#[tokio::test]
async fn the_error_after_max_errors_in_a_row_is_answered_then_comes_the_kick() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    for _ in 0..8 {
        device.send("x").await;
        expect_error(&mut device, MALFORMED).await;
    }
    device.send("x").await;
    expect_error(&mut device, MALFORMED).await;
    device.expect_kick("protocol").await;
}

#[tokio::test]
async fn all_errors_in_one_packet_are_answered_before_the_kick() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let frames = device.frame(b"x").repeat(20);
    device.send_bytes(&frames).await;
    for _ in 0..9 {
        expect_error(&mut device, MALFORMED).await;
    }
    device.expect_kick("protocol").await;
}

#[tokio::test]
async fn any_message_that_can_be_read_starts_the_count_of_errors_anew() {
    let server = TestServer::with(|config| config.device.max_errors = 2).await;
    let mut device = server.login("alice").await;
    for good in [r#"{"uri":"/app"}"#, r#"{"uri":"/plex/what"}"#, "{}", r#"{"uri":"/plex/ack","seq":1}"#] {
        for _ in 0..2 {
            device.send("x").await;
            expect_error(&mut device, MALFORMED).await;
        }
        device.send(good).await;
    }
    device.expect_quiet().await;
    // Signs of life are no messages.
    device.send("x").await;
    device.send_bytes(&[0; 4]).await;
    device.send("x").await;
    device.send("null").await;
    device.send("x").await;
    for _ in 0..3 {
        expect_error(&mut device, MALFORMED).await;
    }
    device.expect_kick("protocol").await;
}

#[tokio::test]
async fn unknown_and_reserved_uris_of_a_device_are_ignored_and_counted() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let uris = ["/app", "", "/plex/kick", "/plex/x", "/auth/success", "/inner/x", "/logic/send/msg", "/HEARTBEAT"];
    for uri in uris {
        device.send(&format!(r#"{{"uri":"{uri}","body":"x"}}"#)).await;
    }
    // An ack that nothing waits for isn't a uri that means nothing.
    device.ack(12345, "x").await;
    device.nack(12345, "x").await;
    device.expect_quiet().await;
    assert_eq!(server.metric("plex_device_frames_bad_total{reason=\"unknown_uri\"}").await, uris.len() as u64);
    assert_eq!(server.metric("plex_device_answers_late_total").await, 2);
}

#[tokio::test]
async fn a_frame_may_have_max_frame_bytes_and_no_more() {
    let server = TestServer::with(|config| config.device.max_frame = 10_000).await;
    let mut device = server.login("alice").await;
    let sized = |bytes: usize| {
        let empty = r#"{"uri":"/heartbeat","body":""}"#.len();
        format!(r#"{{"uri":"/heartbeat","body":"{}"}}"#, "x".repeat(bytes - empty))
    };
    device.send(&sized(10_000)).await;
    assert_eq!(device.next().await.uri, "/heartbeat");
    device.send(&sized(10_001)).await;
    expect_error(&mut device, "too_large").await;
    device.expect_kick("protocol").await;
}

#[tokio::test]
async fn a_length_over_the_limit_is_answered_before_its_bytes_come() {
    let server = TestServer::start().await;
    for length in [65_537_u32, 1 << 24, u32::MAX] {
        let mut device = server.login("alice").await;
        device.send_bytes(&length.to_be_bytes()).await;
        expect_error(&mut device, "too_large").await;
        device.expect_kick("protocol").await;
    }
}

#[tokio::test]
async fn before_authentication_a_frame_may_have_4_kib() {
    let server = TestServer::start().await;
    let sized = |bytes: usize| {
        let rest = r#"{"uri":"/auth/server","body":"alice","v":2,"x":""}"#.len();
        format!(r#"{{"uri":"/auth/server","body":"alice","v":2,"x":"{}"}}"#, "x".repeat(bytes - rest))
    };
    let mut device = TestDevice::connect(server.device()).await;
    device.send(&sized(4096)).await;
    assert_eq!(device.next().await.uri, "/auth/success");
    // Before any well-formed /auth/server with v 2: without a frame, as its dialect isn't known.
    let mut device = TestDevice::connect(server.device()).await;
    device.send(&sized(4097)).await;
    device.expect_close().await;
    let mut device = TestDevice::connect(server.device()).await;
    device.send_bytes(&u32::MAX.to_be_bytes()).await;
    device.expect_close().await;
    // After one: with an error, and no kick.
    let mut device = TestDevice::connect(server.device()).await;
    device.auth_v2("").await;
    assert_eq!(device.next().await.uri, "/auth/failed");
    device.send(&sized(4097)).await;
    expect_error(&mut device, "too_large").await;
    device.expect_close().await;
}

#[tokio::test]
async fn a_frame_right_behind_auth_is_judged_after_the_answer() {
    let server = TestServer::start().await;
    let mut device = TestDevice::connect(server.device()).await;
    let large = format!(r#"{{"uri":"/heartbeat","x":"{}"}}"#, "x".repeat(60_000));
    let auth = device.frame(br#"{"uri":"/auth/server","body":"alice","v":2}"#);
    let both = [auth, device.frame(large.as_bytes())].concat();
    device.send_bytes(&both).await;
    assert_eq!(device.next().await.uri, "/auth/success");
    assert_eq!(device.next().await.uri, "/heartbeat");

    let mut device = TestDevice::connect(server.device()).await;
    let auth = device.frame(br#"{"uri":"/auth/server","v":2}"#);
    let both = [auth, device.frame(large.as_bytes())].concat();
    device.send_bytes(&both).await;
    assert_eq!(device.next().await.uri, "/auth/failed");
    expect_error(&mut device, "too_large").await;
    device.expect_close().await;
}

#[tokio::test]
async fn the_bytes_of_an_oversized_frame_are_thrown_away() {
    let server = TestServer::start().await;
    let device = server.login("alice").await;
    // As many as the sockets hold, and behind them.
    let frame = device.frame(&vec![b'x'; 1 << 20]);
    let (mut reader, mut writer) = device.stream.into_split();
    let writing = tokio::spawn(async move { writer.write_all(&frame).await.map(|()| writer) });
    let mut rest = Vec::new();
    timeout(common::PATIENCE, tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut rest)).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&rest);
    assert!(text.contains("too_large") && text.contains("protocol"), "{text}");
    drop(writing.await);
}

#[tokio::test]
async fn a_flood_is_held_back_by_tcp_and_blocks_nobody() {
    let server = TestServer::with(|config| config.device.workers = 1).await;
    let mut flooding = server.login("flood").await;
    let mut other = server.login("alice").await;
    let frames = flooding.frame(br#"{"uri":"/x"}"#).repeat(4_000);
    let mut written = 0;
    // Until the sockets are full: nothing is taken for a while.
    while let Ok(Ok(count)) = timeout(Duration::from_millis(300), flooding.stream.write(&frames[written % 16..])).await
    {
        written += count;
        other.expect_quiet().await;
        assert!(written < 64 << 20, "TCP never held it back");
    }
    let handled = server.metric("plex_device_frames_total").await;
    assert!(handled < (written / 32) as u64, "{handled} of {} frames were read", written / 16);
    let mut backend = server.backend().await;
    assert_eq!(backend.push(push("flood", "/a", "")).await.unwrap().into_inner().status(), PushStatus::Sent);
    assert_eq!(flooding.next().await.uri, "/a", "pushes go on");
    other.expect_quiet().await;
}

#[tokio::test]
async fn every_frame_of_a_flood_is_handled_some_day() {
    let server = TestServer::with(|config| {
        config.device.max_frames_per_second = 1_000;
        config.device.frames_burst = 10;
    })
    .await;
    let mut device = server.login("alice").await;
    let frames = device.frame(br#"{"uri":"/heartbeat"}"#).repeat(500);
    device.send_bytes(&frames).await;
    for _ in 0..500 {
        assert_eq!(device.next().await.uri, "/heartbeat");
    }
    device.expect_quiet().await;
}

#[tokio::test]
async fn a_flood_keeps_nobody_online_who_has_gone() {
    let server = TestServer::start().await;
    let backend = server.backend().await;
    for reset in [false, true] {
        let mut device = server.login("flood").await;
        // At the steady rate these are minutes.
        device.send_bytes(&[0; 4].repeat(20_000)).await;
        if reset {
            device.stream.set_zero_linger().unwrap();
        }
        drop(device);
        eventually("it has gone", || {
            let mut backend = backend.clone();
            async move {
                let info = backend.get_info(GetInfoRequest {}).await.unwrap().into_inner();
                (info.connections == 0).then_some(())
            }
        })
        .await;
    }
}

#[tokio::test]
async fn connections_over_max_connections_are_closed_at_once_and_counted() {
    let server = TestServer::with(|config| config.device.max_connections = 2).await;
    let mut alice = server.login("alice").await;
    // One that hasn't authenticated counts, too.
    let mut silent = TestDevice::connect(server.device()).await;
    server.metric_reaches("plex_device_sockets_accepted_total", 2).await;
    for _ in 0..3 {
        TestDevice::connect(server.device()).await.expect_close().await;
    }
    assert_eq!(server.metric("plex_device_sockets_dropped_total{reason=\"over_limit\"}").await, 3);
    alice.expect_quiet().await;
    silent.auth_v2("bob").await;
    assert_eq!(silent.next().await.uri, "/auth/success");
    TestDevice::connect(server.device()).await.expect_close().await;
    drop(alice);
    let mut backend = server.backend().await;
    eventually("there is room again", || {
        let mut backend = backend.clone();
        async move { (backend.get_info(GetInfoRequest {}).await.unwrap().into_inner().connections == 1).then_some(()) }
    })
    .await;
    server.login("carol").await.expect_quiet().await;
    drop(backend.get_info(GetInfoRequest {}).await);
}

#[tokio::test]
async fn a_push_that_doesnt_fit_the_queue_is_queue_full_and_the_gateways_answers_still_go() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut device = TestDevice::connect_narrow(server.device()).await;
    device.auth_v2("alice").await;
    assert_eq!(device.next().await.uri, "/auth/success");
    // What is as large as the whole queue is taken where nothing waits.
    let body = "x".repeat(65_000);
    let mut sent = 0;
    let full = loop {
        let pushed = backend.push(push("alice", "/fill", &body)).await.unwrap().into_inner();
        match pushed.status() {
            PushStatus::Sent => sent += 1,
            _ => break pushed,
        }
    };
    assert_eq!((full.status(), full.seq, full.connections), (PushStatus::QueueFull, 0, 0));
    let told = session(&mut backend, "alice").await;
    assert!(told.queued_bytes > 0 && told.queued_bytes <= 2 * 65_536, "{told:?}");
    assert_eq!((told.pushes_sent, told.pushes_dropped), (sent, 1));
    for _ in 0..30 {
        device.heartbeat().await;
        device.send("x").await;
        device.send("{}").await;
    }
    server.metric_reaches("plex_device_frames_total", 91).await;
    let mut uris = Vec::new();
    while uris.iter().filter(|uri| *uri == "/fill").count() < sent as usize {
        uris.push(device.next().await.uri);
    }
    device.send(r#"{"uri":"/auth/server","body":"alice","v":2}"#).await;
    loop {
        let uri = device.next().await.uri;
        uris.push(uri.clone());
        if uri == "/auth/success" {
            break;
        }
    }
    for answer in ["/heartbeat", "/plex/error"] {
        let count = uris.iter().filter(|uri| *uri == answer).count();
        assert!((1..=30).contains(&count), "{count} times {answer}");
    }
    let pushed = backend.push(push("alice", "/again", "")).await.unwrap().into_inner();
    assert_eq!(pushed.status(), PushStatus::Sent, "there is room again");
    assert_eq!(device.next().await.uri, "/again");
}

#[tokio::test]
async fn an_empty_queue_takes_any_frame() {
    let server = TestServer::with(|config| config.device.queue_bytes = 1024).await;
    let mut backend = server.backend().await;
    let mut device = server.login("alice").await;
    let body = "x".repeat(60_000);
    for _ in 0..20 {
        assert_eq!(backend.push(push("alice", "/a", &body)).await.unwrap().into_inner().status(), PushStatus::Sent);
        assert_eq!(device.next().await.body, body);
    }
}

#[tokio::test]
async fn one_device_that_doesnt_read_holds_up_no_other() {
    let server = TestServer::with(|config| config.device.workers = 1).await;
    let mut backend = server.backend().await;
    let mut blocked = TestDevice::connect_narrow(server.device()).await;
    blocked.auth_v2("blocked").await;
    let mut other = server.login("alice").await;
    let many =
        PushManyRequest { uids: vec!["blocked".into(), "alice".into()], uri: "/many".into(), body: "x".repeat(60_000) };
    loop {
        let results = backend.push_many(many.clone()).await.unwrap().into_inner().results;
        assert_eq!(results[1].status(), PushStatus::Sent);
        assert_eq!(other.next().await.uri, "/many");
        if results[0].status() == PushStatus::QueueFull {
            break;
        }
    }
    other.expect_quiet().await;
}

#[tokio::test]
async fn one_more_connection_than_a_uid_may_hold_replaces_the_oldest() {
    let server = TestServer::with(|config| config.device.connections_per_uid = 3).await;
    let mut backend = server.backend().await;
    let mut devices = Vec::new();
    for _ in 0..3 {
        devices.push(server.login("alice").await);
    }
    let mut newest = server.login("alice").await;
    devices.remove(0).expect_kick("replaced").await;
    let pushed = backend.push(push("alice", "/all", "")).await.unwrap().into_inner();
    assert_eq!((pushed.status(), pushed.connections), (PushStatus::Sent, 3));
    for device in devices.iter_mut().chain([&mut newest]) {
        assert_eq!(device.next().await.seq, pushed.seq);
    }
    let request = DisconnectRequest { uid: "alice".into(), reason: String::new() };
    assert_eq!(backend.disconnect(request).await.unwrap().into_inner().connections, 3);
    for device in devices.iter_mut().chain([&mut newest]) {
        device.expect_kick("disconnected").await;
    }
}

#[tokio::test]
async fn a_connection_that_would_replace_once_too_often_waits_and_the_older_keeps_its_place() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut held = server.login("alice").await;
    for _ in 0..11 {
        let newer = server.login("alice").await;
        held.expect_kick("replaced").await;
        held = newer;
    }
    let mut newer = TestDevice::connect(server.device()).await;
    newer.auth_v2("alice").await;
    server.metric_reaches("plex_logins_slowed_total", 1).await;
    let pushed = backend.push(push("alice", "/still", "")).await.unwrap().into_inner();
    assert_eq!(pushed.connections, 1);
    assert_eq!(held.next().await.uri, "/still");
    // Another uid isn't slowed, and who goes replaces nobody.
    server.login("bob").await.expect_quiet().await;
    drop(newer);
    server.metric_reaches("plex_device_sockets_dropped_total{reason=\"unauthenticated\"}", 1).await;
    held.expect_quiet().await;
}

#[tokio::test]
async fn a_host_is_told_that_devices_can_connect_to() {
    let server = TestServer::start().await;
    let (status, _, body) = http(server.addresses.http, "GET", "/plex/v1/host").await;
    assert_eq!(status, 200);
    let host: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(host, serde_json::json!({ "host": server.device().to_string() }));
    for (method, path, expected) in [
        ("GET", "/plex/v1/host?transport=tcp", 200),
        ("GET", "/plex/v1/host?transport=", 200),
        ("GET", "/plex/v1/host?other=1", 200),
        ("HEAD", "/plex/v1/host", 200),
        ("GET", "/plex/v1/host?transport=tls", 503),
        ("GET", "/plex/v1/host?transport=quic", 400),
        ("POST", "/plex/v1/host", 405),
        ("GET", "/plex/v1", 404),
    ] {
        let (status, _, body) = http(server.addresses.http, method, path).await;
        assert_eq!(status, expected, "{method} {path}");
        if status == 503 {
            let told: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert!(told["error"].is_string(), "{body}");
        }
    }
}
