//! What can't be pushed: INVALID_ARGUMENT names the field, and nothing is sent.

mod common;

use common::{Backend, TestDevice, TestServer, call, expect_invalid, push};
use plex::proto::{self, PushStatus};
use std::time::Duration;

const RESERVED: [&str; 9] = [
    "/auth/",
    "/auth/server",
    "/auth/anything/else",
    "/inner/",
    "/inner/push",
    "/logic/send/msg",
    "/heartbeat",
    "/plex/",
    "/plex/kick",
];

const FREE: [&str; 9] =
    ["/auth", "/authority", "/inner", "/logic/send/msgs", "/heartbeats", "/plex", "x", "/AUTH/x", "é"];

async fn sent(backend: &mut Backend, request: proto::PushRequest) -> i64 {
    let result = backend.push(request).await.expect("it is processed").into_inner();
    assert_eq!(result.status(), PushStatus::Sent);
    result.seq
}

/// A uri and a body whose message has exactly so many bytes, its seq counted as 16 digits.
fn body_for(uri: &str, bytes: usize) -> String {
    let frame = format!(r#"{{"seq":{},"uri":"{uri}","body":""}}"#, "0".repeat(16));
    "x".repeat(bytes - frame.len())
}

#[tokio::test]
async fn a_uid_has_1_to_255_bytes() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    expect_invalid(backend.push(push("", "/x", "")).await, "uid");
    expect_invalid(backend.push(push(&"u".repeat(256), "/x", "")).await, "uid");
    // Bytes, not characters.
    expect_invalid(backend.push(push(&"é".repeat(128), "/x", "")).await, "uid");
    let longest = "é".repeat(127) + "u";
    let mut device = server.login(&longest).await;
    sent(&mut backend, push(&longest, "/x", "")).await;
    device.next().await;
}

#[tokio::test]
async fn a_uid_is_compared_byte_by_byte() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut device = server.login("Alice ").await;
    for other in ["alice ", "Alice", " Alice ", "Alice\u{a0}", "Alice \0"] {
        let result = backend.push(push(other, "/x", "")).await.unwrap().into_inner();
        assert_eq!(result.status(), PushStatus::Offline, "{other:?}");
    }
    sent(&mut backend, push("Alice ", "/x", "")).await;
    device.next().await;
}

#[tokio::test]
async fn an_empty_or_reserved_uri_is_refused_by_every_push() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut device = server.login("alice").await;
    for uri in RESERVED.into_iter().chain([""]) {
        let (uids, uri) = (vec!["alice".to_owned()], uri.to_owned());
        expect_invalid(backend.push(push("alice", &uri, "")).await, "uri");
        let many = proto::PushManyRequest { uids, uri: uri.clone(), body: String::new() };
        expect_invalid(backend.push_many(many).await, "uri");
        expect_invalid(backend.broadcast(proto::BroadcastRequest { uri, body: String::new() }).await, "uri");
    }
    device.expect_quiet().await;
}

#[tokio::test]
async fn a_uri_that_only_looks_like_a_reserved_one_is_pushed() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut device = server.login("alice").await;
    for uri in FREE {
        sent(&mut backend, push("alice", uri, "")).await;
        assert_eq!(device.next().await.uri, uri);
    }
}

#[tokio::test]
async fn an_ack_timeout_is_over_0_and_at_most_5_minutes() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    for (seconds, nanos) in [
        (0, 0),
        (-1, 0),
        (0, -1),
        (300, 1),
        (301, 0),
        (i64::MAX, 0),
        (i64::MIN, 0),
        (0, i32::MIN),
        (1, -1),
        (1, 1_000_000_000),
    ] {
        let ack_timeout = Some(prost_types::Duration { seconds, nanos });
        let request = proto::PushRequest { ack_timeout, ..push("nobody", "/x", "") };
        expect_invalid(backend.push(request).await, "ack_timeout");
    }
    for wait in [Duration::from_nanos(1), Duration::from_secs(300)] {
        let result = backend.push(call("nobody", "/x", "", wait)).await.unwrap().into_inner();
        assert_eq!(result.status(), PushStatus::Offline);
    }
}

#[tokio::test]
async fn the_size_of_a_frame_counts_seq_as_16_digits() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let limit = backend.get_info(proto::GetInfoRequest {}).await.unwrap().into_inner().frame_bytes_max as usize;
    assert_eq!(limit, 64 << 10);
    let mut device = server.login("alice").await;
    let fits = body_for("/x", limit);
    let seq = sent(&mut backend, push("alice", "/x", &fits)).await;
    let message = device.next().await;
    assert_eq!(message.raw.len() + 16 - seq.to_string().len(), limit);

    let over = body_for("/x", limit + 1);
    expect_invalid(backend.push(push("alice", "/x", &over)).await, "body");
    let uids = vec!["alice".to_owned()];
    let many = proto::PushManyRequest { uids, uri: "/x".into(), body: over.clone() };
    expect_invalid(backend.push_many(many).await, "body");
    expect_invalid(backend.broadcast(proto::BroadcastRequest { uri: "/x".into(), body: over }).await, "body");
    device.expect_quiet().await;
}

#[tokio::test]
async fn the_size_of_a_frame_counts_what_is_escaped() {
    let server = TestServer::with(|config| config.device.max_frame = 1024).await;
    let mut backend = server.backend().await;
    let mut device = server.login("alice").await;
    for (escaped, bytes) in
        [("\"", 2), ("\\", 2), ("\n", 2), ("\u{8}", 2), ("\u{1}", 6), ("\u{1f}", 6), ("\u{7f}", 1), ("é", 2)]
    {
        let room = body_for("/x", 1024).len();
        let fits = escaped.repeat(room / bytes) + &"x".repeat(room % bytes);
        sent(&mut backend, push("alice", "/x", &fits)).await;
        let message = device.next().await;
        assert_eq!(message.body, fits);
        assert_eq!(message.raw.len() + 16 - message.seq.to_string().len(), 1024, "{escaped:?}");
        expect_invalid(backend.push(push("alice", "/x", &(fits + "x"))).await, "body");
    }
    // A uri takes its part.
    let uri = "/".to_owned() + &"u".repeat(1024);
    expect_invalid(backend.push(push("alice", &uri, "")).await, "body");
}

#[tokio::test]
async fn a_message_is_written_as_the_protocol_says() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut device = TestDevice::login_v1(server.device(), "alice").await;
    let seq = sent(&mut backend, push("alice", "/a\"b", "\\ \u{8}\t\n\u{c}\r \u{0}\u{1f}\u{7f} é 😀 </")).await;
    let text = format!(r#"{{"seq":{seq},"uri":"/a\"b","body":"\\ \b\t\n\f\r \u0000\u001f{} é 😀 </"}}"#, '\u{7f}');
    assert_eq!(String::from_utf8(device.next().await.raw).unwrap(), text);
}

#[tokio::test]
async fn a_message_names_the_field_and_the_limit() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let refused = [
        (push("", "/x", ""), "255"),
        (push("u", "/x", &"x".repeat(70_000)), "device.max_frame"),
        (push("u", "/heartbeat", ""), "/heartbeat"),
        (call("u", "/x", "", Duration::from_secs(301)), "300"),
    ];
    for (request, limit) in refused {
        let status = backend.push(request).await.unwrap_err();
        assert!(status.message().contains(limit), "{status}");
    }
}

#[tokio::test]
async fn the_lists_of_uids_have_their_limits() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let many = |count: usize| vec!["nobody".to_owned(); count];
    let push = |uids| proto::PushManyRequest { uids, uri: "/x".into(), body: String::new() };
    for count in [0, 10_001] {
        expect_invalid(backend.push_many(push(many(count))).await, "uids");
        expect_invalid(backend.is_online(proto::IsOnlineRequest { uids: many(count) }).await, "uids");
    }
    let followed = |uids| proto::OnlineStatusRequest { uids, ..Default::default() };
    expect_invalid(backend.online_status(followed(many(10_001))).await, "uids");
    for bad in [String::new(), "u".repeat(256)] {
        let uids = vec!["alice".to_owned(), bad.clone()];
        expect_invalid(backend.push_many(push(uids.clone())).await, "uids[1]");
        expect_invalid(backend.is_online(proto::IsOnlineRequest { uids: uids.clone() }).await, "uids[1]");
        expect_invalid(backend.online_status(followed(uids)).await, "uids[1]");
        if !bad.is_empty() {
            expect_invalid(backend.list_sessions(proto::ListSessionsRequest { uid: bad.clone() }).await, "uid");
        }
        expect_invalid(backend.disconnect(proto::DisconnectRequest { uid: bad, reason: String::new() }).await, "uid");
    }
    assert_eq!(backend.push_many(push(many(10_000))).await.unwrap().into_inner().results.len(), 10_000);
    let asked = proto::IsOnlineRequest { uids: many(10_000) };
    assert_eq!(backend.is_online(asked).await.unwrap().into_inner().states.len(), 10_000);
    backend.online_status(followed(many(10_000))).await.unwrap();
}
