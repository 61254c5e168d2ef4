//! What a frame is, on the wire.

mod common;

use common::{TestDevice, TestServer, call, push};
use plex::proto::{BroadcastRequest, PushManyRequest, PushStatus};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_frame_is_a_big_endian_length_and_a_message() {
    let server = TestServer::start().await;
    let mut device = TestDevice::connect(server.device()).await;
    device.send_bytes(b"\x00\x00\x00\x25{\"uri\":\"/auth/server\",\"body\":\"alice\"}").await;
    let mut answer = [0; 4 + 23];
    read(&mut device, &mut answer).await;
    assert_eq!(&answer, b"\x00\x00\x00\x17{\"uri\":\"/auth/success\"}");
}

#[tokio::test]
async fn a_length_is_little_endian_where_the_gateway_is() {
    let server = TestServer::with(|config| config.device.little_endian = true).await;
    let mut device = TestDevice::connect(server.device()).await;
    device.little_endian = true;
    device.send_bytes(b"\x25\x00\x00\x00{\"uri\":\"/auth/server\",\"body\":\"alice\"}").await;
    let mut answer = [0; 4 + 23];
    read(&mut device, &mut answer).await;
    assert_eq!(&answer, b"\x17\x00\x00\x00{\"uri\":\"/auth/success\"}");
    let mut backend = server.backend().await;
    let pushed = backend.push(push("alice", "/a", "b")).await.unwrap().into_inner();
    assert_eq!(device.next().await.seq, pushed.seq);
    // One push to many is encoded on another way.
    let many = PushManyRequest { uids: vec!["alice".into()], uri: "/many".into(), body: "x".into() };
    backend.push_many(many).await.unwrap();
    assert_eq!(device.next().await.uri, "/many");
    backend.disconnect(plex::proto::DisconnectRequest { uid: "alice".into(), reason: String::new() }).await.unwrap();
    device.expect_close().await;
}

async fn read(device: &mut TestDevice, buffer: &mut [u8]) {
    use tokio::io::AsyncReadExt;
    tokio::time::timeout(common::PATIENCE, device.stream.read_exact(buffer)).await.unwrap().unwrap();
}

#[tokio::test]
async fn frames_arrive_split_at_any_byte() {
    let server = TestServer::with(|config| config.device.frames_burst = 10_000).await;
    let frames = {
        let mut device = TestDevice::connect(server.device()).await;
        let first = device.frame(br#"{"uri":"/auth/server","body":"alice","v":2}"#);
        let second = device.frame(br#"{"uri":"/heartbeat"}"#);
        let both = [first, second].concat();
        // Byte by byte.
        for byte in &both {
            device.send_bytes(&[*byte]).await;
        }
        assert_eq!(device.next().await.uri, "/auth/success");
        assert_eq!(device.next().await.uri, "/heartbeat");
        both
    };
    for cut in 1..frames.len() {
        let mut device = TestDevice::connect(server.device()).await;
        device.send_bytes(&frames[..cut]).await;
        tokio::task::yield_now().await;
        device.send_bytes(&frames[cut..]).await;
        assert_eq!(device.next().await.uri, "/auth/success", "cut at {cut}");
        assert_eq!(device.next().await.uri, "/heartbeat", "cut at {cut}");
    }
}

#[tokio::test]
async fn a_large_frame_arrives_in_many_pieces() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    let pushing =
        tokio::spawn(async move { backend.push(call("alice", "/ask", "", LONG)).await.unwrap().into_inner() });
    let seq = device.next().await.seq;
    let reply = "r".repeat(60_000);
    let frame = device.frame(format!(r#"{{"seq":{seq},"uri":"/plex/ack","body":"{reply}"}}"#).as_bytes());
    for piece in frame.chunks(997) {
        device.send_bytes(piece).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(pushing.await.unwrap().reply, reply);
    device.expect_quiet().await;
}

#[tokio::test]
async fn many_frames_come_in_one_packet() {
    let server = TestServer::start().await;
    let mut device = TestDevice::connect(server.device()).await;
    let auth = device.frame(br#"{"uri":"/auth/server","body":"alice","v":2}"#);
    let heartbeats = device.frame(br#"{"uri":"/heartbeat"}"#).repeat(50);
    device.send_bytes(&[auth, heartbeats].concat()).await;
    assert_eq!(device.next().await.uri, "/auth/success");
    for _ in 0..50 {
        assert_eq!(device.next().await.uri, "/heartbeat");
    }
}

#[tokio::test]
async fn fields_are_matched_in_any_case_and_unknown_ones_ignored() {
    let server = TestServer::start().await;
    let mut device = TestDevice::connect(server.device()).await;
    device.send(r#"{"Uri":"/auth/server","BODY":"alice","V":2,"token":{"deep":[1,{"uri":5}]},"seqs":"x"}"#).await;
    let success = device.next().await;
    assert_eq!((&*success.uri, &success.json()["v"]), ("/auth/success", &2.into()));
    let mut backend = server.backend().await;
    let pushing =
        tokio::spawn(async move { backend.push(call("alice", "/ask", "", LONG)).await.unwrap().into_inner() });
    let seq = device.next().await.seq;
    device
        .send(&format!(r#" {{ "SEQ" : {seq} , "URI":"\/plex\/ack",{tab}"Body":"\u0079es" }} "#, tab = "\t\r\n"))
        .await;
    assert_eq!(pushing.await.unwrap().reply, "yes");
}

#[tokio::test]
async fn of_a_field_given_twice_the_last_counts_and_null_leaves_what_was_there() {
    let server = TestServer::start().await;
    let mut device = TestDevice::connect(server.device()).await;
    device
        .send(r#"{"uri":"/heartbeat","URI":"/auth/server","body":"bob","Body":"alice","body":null,"v":1,"V":2}"#)
        .await;
    assert_eq!(device.next().await.json()["v"], 2);
    let pushed = server.backend().await.push(push("alice", "/a", "")).await.unwrap().into_inner();
    assert_eq!(pushed.status(), PushStatus::Sent);
    assert_eq!(device.next().await.uri, "/a");
    // Each must have the right type; alone a null counts as missing.
    device.send(r#"{"uri":5,"uri":"/heartbeat"}"#).await;
    assert_eq!(device.next().await.uri, "/plex/error");
    device.send(r#"{"seq":null,"uri":"/heartbeat","body":null}"#).await;
    assert_eq!(device.next().await.uri, "/heartbeat");
}

#[tokio::test]
async fn empty_frames_and_null_are_ignored() {
    let server = TestServer::with(|config| config.device.auth_attempts = 1).await;
    let mut device = TestDevice::connect(server.device()).await;
    // Before authentication: no attempt.
    for _ in 0..3 {
        device.send_bytes(&[0; 4]).await;
        device.send(" null ").await;
    }
    device.auth_v2("alice").await;
    assert_eq!(device.next().await.uri, "/auth/success");
    for _ in 0..3 {
        device.send_bytes(&[0; 4]).await;
        device.send("null").await;
    }
    device.expect_quiet().await;
}

#[tokio::test]
async fn what_is_no_message_is_told() {
    let server = TestServer::with(|config| config.device.max_errors = 1_000).await;
    let mut device = server.login("alice").await;
    let wrong: &[&[u8]] = &[
        b"x",
        b" ",
        b"{",
        b"[]",
        b"[{}]",
        b"7",
        b"true",
        b"\"/heartbeat\"",
        b"{}{}",
        b"{\"uri\":\"/heartbeat\"} x",
        b"{\"uri\":1}",
        b"{\"uri\":[]}",
        b"{\"body\":{}}",
        b"{\"body\":false}",
        b"{\"seq\":\"1\"}",
        b"{\"seq\":1.0}",
        b"{\"seq\":1e3}",
        b"{\"seq\":true}",
        b"{\"seq\":9223372036854775808}",
        b"{\"seq\":-9223372036854775809}",
        b"{\"body\":\"\xff\"}",
        b"{\"other\":\"\xc3\x28\"}",
        b"{\"body\":\"\\ud800\"}",
        b"{\"body\":\"\\udc00\\ud800\"}",
        b"{\"other\":\"\\ud83d x\"}",
        b"{\"body\":\"\n\"}",
        b"\xef\xbb\xbf{}",
        b"NaN",
        b"{\"seq\":01}",
        b"{,}",
        b"{\"uri\":\"/a\",}",
    ];
    for message in wrong {
        device.send_message(message).await;
        let error = device.next().await;
        let told = String::from_utf8_lossy(message);
        assert_eq!((&*error.uri, error.seq), ("/plex/error", 0), "{told}");
        assert_eq!(error.json()["reason"], "malformed", "{told}");
        assert!(error.json()["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{told}");
    }
    for good in [r#"{"seq":9223372036854775807}"#, r#"{"seq":-9223372036854775808}"#, r#"{"seq":-0}"#, "{}"] {
        device.send(good).await;
        device.expect_quiet().await;
    }
}

#[tokio::test]
async fn a_deeply_nested_frame_hurts_nobody() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    for deep in ["[".repeat(60_000), format!(r#"{{"uri":{}"#, "[".repeat(60_000)), r#"{"a":"#.repeat(12_000)] {
        device.send(&deep).await;
        assert_eq!(device.next().await.uri, "/plex/error");
    }
    device.expect_quiet().await;
}

#[tokio::test]
async fn the_gateways_own_answers_carry_no_seq_and_echo_nothing() {
    let server = TestServer::start().await;
    let mut device = TestDevice::connect(server.device()).await;
    device.send(r#"{"seq":5,"uri":"/x","body":"secret"}"#).await;
    assert_eq!(device.next().await.raw, br#"{"uri":"/auth/failed"}"#);
    device.send(r#"{"seq":6,"uri":"/auth/server","body":"alice"}"#).await;
    assert_eq!(device.next().await.raw, br#"{"uri":"/auth/success"}"#);
    device.send(r#"{"seq":7,"uri":"/heartbeat","body":"here"}"#).await;
    assert_eq!(device.next().await.raw, br#"{"uri":"/heartbeat"}"#);
    device.send(r#"{"seq":8,"uri":"/auth/server","body":"alice","v":2}"#).await;
    assert_eq!(device.next().await.seq, 0);
    device.send(r#"{"seq":9,"uri":"/heartbeat","body":"here"}"#).await;
    assert_eq!(device.next().await.raw, br#"{"uri":"/heartbeat"}"#);
}

#[tokio::test]
async fn the_bodies_of_the_gateways_own_answers_have_their_fields_in_the_protocols_order() {
    let server = TestServer::start().await;
    let mut device = TestDevice::connect(server.device()).await;
    device.auth_v2("alice").await;
    let success = device.next().await.body;
    assert!(success.starts_with(r#"{"v":2,"node":"node-1","heartbeat_seconds":60,"#), "{success}");
    assert!(success.ends_with(r#","heartbeat_timeout_seconds":120,"max_frame_bytes":65536}"#), "{success}");
    device.send("x").await;
    let error = device.next().await.body;
    assert!(error.starts_with(r#"{"reason":"malformed","detail":"#), "{error}");
    drop(tokio::spawn(server.stopped()));
    let kick = device.next().await.body;
    assert!(kick.starts_with(r#"{"reason":"draining","reconnect":true,"after_ms":"#), "{kick}");
}

#[tokio::test]
async fn a_push_is_written_in_order_and_escaped_only_where_it_must_be() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    let body = "\"\\/\u{8}\t\n\u{c}\r\u{0}\u{1f}\u{7f}é\u{2028}<>&😀";
    let seq = backend.push(push("alice", "/a\"b", body)).await.unwrap().into_inner().seq;
    let expected = format!(
        "{{\"seq\":{seq},\"uri\":\"/a\\\"b\",\"body\":\"\\\"\\\\/\\b\\t\\n\\f\\r\\u0000\\u001f\u{7f}é\u{2028}<>&😀\"}}"
    );
    let message = device.next().await;
    assert_eq!(String::from_utf8(message.raw).unwrap(), expected);
    assert_eq!(message.body, body);
    let seq = backend.push(push("alice", "/empty", "")).await.unwrap().into_inner().seq;
    assert_eq!(device.next().await.raw, format!(r#"{{"seq":{seq},"uri":"/empty"}}"#).into_bytes());
}

#[tokio::test]
async fn seq_rises_with_every_push_and_is_one_for_all_of_a_push_to_many() {
    let server = TestServer::start().await;
    let (mut alice, mut bob) = (server.login("alice").await, server.login("bob").await);
    let mut backend = server.backend().await;
    let mut last = 0;
    for _ in 0..10 {
        let seq = backend.push(push("alice", "/a", "")).await.unwrap().into_inner().seq;
        assert!(seq > last && seq < 1 << 53, "{seq} after {last}");
        assert_eq!(alice.next().await.seq, seq);
        last = seq;
    }
    let uids = ["alice", "bob", "alice"].map(String::from).to_vec();
    let many = PushManyRequest { uids, uri: "/many".into(), body: String::new() };
    let results = backend.push_many(many).await.unwrap().into_inner().results;
    let seq = results[0].seq;
    assert!(seq > last);
    assert!(results.iter().all(|result| result.seq == seq), "{results:?}");
    assert_eq!([alice.next().await.seq, alice.next().await.seq, bob.next().await.seq], [seq; 3]);
    backend.broadcast(BroadcastRequest { uri: "/all".into(), body: String::new() }).await.unwrap();
    let told = alice.next().await.seq;
    assert!(told > seq);
    assert_eq!(bob.next().await.seq, told);
}

#[tokio::test]
async fn a_uid_has_1_to_255_bytes_and_is_compared_byte_by_byte() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut held = Vec::new();
    for uid in ["é", "e\u{301}", "Alice", "alice", " alice", "a\u{0}b", &"x".repeat(255), &"é".repeat(127)] {
        let mut device = server.login(uid).await;
        assert_eq!(backend.push(push(uid, "/a", "")).await.unwrap().into_inner().connections, 1, "{uid:?}");
        assert_eq!(device.next().await.uri, "/a");
        // Kept open: another of these uids would take its place, if it were the same.
        held.push(device);
    }
    let info = backend.get_info(plex::proto::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.uids, 8);
    for uid in [String::new(), "x".repeat(256), "é".repeat(128)] {
        let mut device = TestDevice::connect(server.device()).await;
        device.auth_v2(&uid).await;
        let answer = device.next().await;
        assert_eq!((&*answer.uri, &*answer.body), ("/auth/failed", r#"{"reason":"refused"}"#));
    }
}

#[tokio::test]
async fn reserved_uris_cant_be_pushed() {
    let server = TestServer::start().await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    for uri in ["/auth/x", "/auth/server", "/inner/x", "/logic/send/msg", "/heartbeat", "/plex/kick", "/plex/x", ""] {
        let refused = backend.push(push("alice", uri, "")).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{uri:?}");
        assert!(refused.message().contains("uri"), "{refused:?}");
    }
    for uri in ["/authx", "/heartbeats", "/plexx", "/innermost", "/logic/send/msg2", "auth", "/"] {
        backend.push(push("alice", uri, "")).await.unwrap_or_else(|error| panic!("{uri}: {error}"));
        assert_eq!(device.next().await.uri, uri);
    }
}
