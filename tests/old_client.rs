//! A client of the old framework: it knows `/auth/server`, `/auth/success`, `/auth/failed` and `/heartbeat`, hands
//! every other uri to its application, and has no idea of dialects.

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::{Message, PATIENCE, TestDevice, TestServer, authenticator::Oracle, call, push};
use plex::{
    config::Config,
    proto::{DisconnectRequest, PushStatus},
};

/// A server of this byte order.
async fn gateway(little_endian: bool, change: impl FnOnce(&mut Config)) -> TestServer {
    let change = |config: &mut Config| {
        config.device.little_endian = little_endian;
        config.auth.unavailable_delay = Duration::ZERO;
        change(config);
    };
    TestServer::built(change, |builder| builder.authenticator(Oracle::default())).await
}

async fn connect(server: &TestServer, little_endian: bool) -> TestDevice {
    let mut device = TestDevice::connect(server.device()).await;
    device.little_endian = little_endian;
    device
}

/// What the old client does with its credential: the message as its Go library writes it.
async fn login(server: &TestServer, little_endian: bool, uid: &str) -> TestDevice {
    let mut device = connect(server, little_endian).await;
    device.send(&format!(r#"{{"seq":1462346531,"uri":"/auth/server","body":"{uid}"}}"#)).await;
    expect(&mut device, r#"{"uri":"/auth/success"}"#).await;
    device
}

async fn expect(device: &mut TestDevice, raw: &str) {
    assert_eq!(String::from_utf8(device.next().await.raw).unwrap(), raw);
}

/// The gateway's own, as an old client knows it.
fn is_known(message: &Message) -> bool {
    let known = ["/auth/success", "/auth/failed", "/heartbeat"].contains(&&*message.uri);
    known && message.body.is_empty() && message.seq == 0
}

#[tokio::test]
async fn it_connects_authenticates_heartbeats_and_gets_pushes() {
    for little_endian in [false, true] {
        let server = gateway(little_endian, |_| {}).await;
        let mut device = login(&server, little_endian, "alice").await;
        device.send(r#"{"seq":1462346532,"uri":"/heartbeat"}"#).await;
        expect(&mut device, r#"{"uri":"/heartbeat"}"#).await;
        let mut backend = server.backend().await;
        let seq = backend.push(push("alice", "/msg", "hello")).await.unwrap().into_inner().seq;
        expect(&mut device, &format!(r#"{{"seq":{seq},"uri":"/msg","body":"hello"}}"#)).await;
    }
}

#[tokio::test]
async fn it_never_acks_and_only_who_waits_for_an_ack_notices() {
    let server = gateway(false, |_| {}).await;
    let mut device = login(&server, false, "alice").await;
    let mut backend = server.backend().await;
    let asked = backend.push(call("alice", "/ask", "", Duration::from_millis(100))).await.unwrap().into_inner();
    assert_eq!(asked.status(), PushStatus::AckTimeout);
    assert_eq!(device.next().await.uri, "/ask");
    // Acks need no asking: a client may send them without another dialect.
    let mut caller = backend.clone();
    let asking = tokio::spawn(async move { caller.push(call("alice", "/ask", "", PATIENCE)).await });
    let seq = device.next().await.seq;
    device.ack(seq, "yes").await;
    assert_eq!(asking.await.unwrap().unwrap().into_inner().reply, "yes");
}

#[tokio::test]
async fn its_auth_answers_have_no_body_whatever_happens() {
    for little_endian in [false, true] {
        let server = gateway(little_endian, |config| config.device.auth_attempts = 100).await;
        let mut device = connect(&server, little_endian).await;
        for frame in [
            r#"{"uri":"/auth/server","body":"refuse"}"#,
            r#"{"uri":"/auth/server","body":"down"}"#,
            r#"{"uri":"/auth/server","body":"refuse","v":1}"#,
            r#"{"uri":"/heartbeat"}"#,
            r#"{"uri":"/app"}"#,
            "no JSON",
        ] {
            device.send(frame).await;
            expect(&mut device, r#"{"uri":"/auth/failed"}"#).await;
        }
        device.send(r#"{"uri":"/auth/server","body":"alice/3600000"}"#).await;
        expect(&mut device, r#"{"uri":"/auth/success"}"#).await;
        for (credential, answer) in [("bob", "failed"), ("refuse", "failed"), ("down", "failed"), ("alice", "success")]
        {
            device.send(&format!(r#"{{"uri":"/auth/server","body":"{credential}"}}"#)).await;
            expect(&mut device, &format!(r#"{{"uri":"/auth/{answer}"}}"#)).await;
        }
    }
}

#[tokio::test]
async fn it_is_closed_where_a_device_of_dialect_2_is_kicked() {
    for little_endian in [false, true] {
        let mut server = gateway(little_endian, |config| {
            config.device.max_errors = 2;
            config.device.heartbeat = Duration::from_millis(500);
            config.device.heartbeat_timeout = Duration::from_secs(2);
        })
        .await;
        let mut backend = server.backend().await;

        let mut replaced = login(&server, little_endian, "alice").await;
        let mut disconnected = login(&server, little_endian, "alice").await;
        replaced.expect_close().await;
        let request = DisconnectRequest { uid: "alice".into(), reason: String::new() };
        backend.disconnect(request).await.unwrap();
        disconnected.expect_close().await;

        let mut expired = login(&server, little_endian, "bob/200").await;
        expired.expect_close().await;

        let mut wrong = login(&server, little_endian, "carol").await;
        for _ in 0..3 {
            wrong.send("no JSON").await;
        }
        wrong.expect_close().await;

        let mut large = login(&server, little_endian, "dave").await;
        large.send_bytes(&[0xFF; 4]).await;
        large.expect_close().await;

        let mut silent = login(&server, little_endian, "erin").await;
        silent.expect_close().await;

        let mut drained = login(&server, little_endian, "frank").await;
        let stopping = tokio::spawn(server.stopping());
        drained.expect_close().await;
        stopping.await.unwrap();
    }
}

#[tokio::test]
async fn errors_are_met_with_silence() {
    let server = gateway(false, |_| {}).await;
    let mut device = login(&server, false, "alice").await;
    for wrong in ["no JSON", "[]", r#"{"uri":1}"#, "", "null"] {
        device.send(wrong).await;
        device.expect_quiet().await;
    }
}

#[tokio::test]
async fn its_application_sees_the_pushes_and_nothing_else() {
    let server = gateway(false, |config| config.device.max_errors = 3).await;
    let mut device = login(&server, false, "alice").await;
    let mut backend = server.backend().await;
    let mut uris = BTreeSet::new();
    for number in 0..20 {
        backend.push(push("alice", &format!("/app/{number}"), "x")).await.unwrap();
        device.send("no JSON").await;
        device.send(r#"{"uri":"/app","body":"upwards"}"#).await;
        device.heartbeat().await;
        device.auth_v1("refuse").await;
    }
    let (mut pushes, mut heartbeats, mut failed) = (0, 0, 0);
    while heartbeats < 20 || failed < 20 || pushes < 20 {
        let message = device.next().await;
        match &*message.uri {
            "/heartbeat" => heartbeats += 1,
            "/auth/failed" => failed += 1,
            uri => {
                assert!(uri.starts_with("/app/"), "{message:?}");
                pushes += 1;
                uris.insert(message.uri);
                continue;
            }
        }
        assert!(is_known(&message), "{message:?}");
    }
    assert_eq!(uris.len(), 20);
    device.expect_quiet().await;
}
