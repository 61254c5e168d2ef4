//! How a device authenticates, and what it is answered.

mod common;

use std::time::Duration;

use common::{PATIENCE, TestDevice, TestServer, authenticator::Oracle, eventually, push};
use plex::{
    config::Config,
    proto::{ListSessionsRequest, PushStatus},
};
use serde_json::json;
use tokio::{io::AsyncReadExt, time::timeout};

async fn with_oracle(change: impl FnOnce(&mut Config)) -> (TestServer, Oracle) {
    let oracle = Oracle::default();
    let authenticator = oracle.clone();
    let changed = |config: &mut Config| {
        config.auth.unavailable_delay = Duration::ZERO;
        change(config);
    };
    (TestServer::built(changed, |builder| builder.authenticator(authenticator)).await, oracle)
}

const REFUSED: &str = r#"{"reason":"refused"}"#;
const UNAVAILABLE: &str = r#"{"reason":"unavailable"}"#;

async fn expect_failed(device: &mut TestDevice, body: &str) {
    let answer = device.next().await;
    assert_eq!((&*answer.uri, &*answer.body), ("/auth/failed", body));
}

async fn expect_success(device: &mut TestDevice) {
    let answer = device.next().await;
    assert_eq!(answer.uri, "/auth/success", "{answer:?}");
}

#[tokio::test]
async fn success_tells_a_v2_device_what_it_has_to_know() {
    let server = TestServer::with(|config| {
        config.node.name = "node-7".into();
        config.device.heartbeat = Duration::from_millis(1_001);
        config.device.heartbeat_timeout = Duration::from_millis(59_900);
        config.device.max_frame = 5_000;
    })
    .await;
    let mut device = TestDevice::connect(server.device()).await;
    device.auth_v2("alice").await;
    let expected = json!({
        "v": 2, "node": "node-7", "heartbeat_seconds": 2, "heartbeat_timeout_seconds": 60, "max_frame_bytes": 5000,
    });
    assert_eq!(device.next().await.json(), expected, "seconds are rounded up, and it doesn't end by itself");
}

#[tokio::test]
async fn success_tells_the_defaults() {
    let server = TestServer::start().await;
    let mut device = TestDevice::connect(server.device()).await;
    device.auth_v2("alice").await;
    let body = device.next().await.json();
    assert_eq!(body["heartbeat_seconds"], 60);
    assert_eq!(body["heartbeat_timeout_seconds"], 120);
    assert_eq!(body["max_frame_bytes"], 65_536);
}

#[tokio::test]
async fn success_tells_when_a_session_ends_by_itself() {
    let (server, _) = with_oracle(|_| {}).await;
    let mut device = TestDevice::connect(server.device()).await;
    device.auth_v2("alice/3599500").await;
    assert_eq!(device.next().await.json()["expires_in_seconds"], 3600);
}

#[tokio::test]
async fn success_is_the_first_frame_whoever_pushes_meanwhile() {
    let server = TestServer::with(|config| config.device.replaces_per_minute = 0).await;
    let mut backend = server.backend().await;
    let pushing = tokio::spawn(async move {
        loop {
            backend.push(push("alice", "/storm", "")).await.unwrap();
        }
    });
    for _ in 0..50 {
        let mut device = server.login("alice").await;
        assert_eq!(device.next().await.uri, "/storm");
    }
    pushing.abort();
}

#[tokio::test]
async fn three_attempts_are_answered_then_the_connection_is_closed() {
    let (server, oracle) = with_oracle(|_| {}).await;
    let mut device = TestDevice::connect(server.device()).await;
    for _ in 0..3 {
        device.auth_v2("refuse").await;
        expect_failed(&mut device, REFUSED).await;
    }
    device.expect_close().await;
    assert_eq!(oracle.asked(), 3);

    let mut device = TestDevice::connect(server.device()).await;
    for _ in 0..2 {
        device.auth_v2("refuse").await;
        expect_failed(&mut device, REFUSED).await;
    }
    device.auth_v2("alice").await;
    expect_success(&mut device).await;
}

#[tokio::test]
async fn auth_attempts_may_be_one() {
    let (server, _) = with_oracle(|config| config.device.auth_attempts = 1).await;
    let mut device = TestDevice::connect(server.device()).await;
    device.auth_v2("refuse").await;
    expect_failed(&mut device, REFUSED).await;
    device.expect_close().await;
}

#[tokio::test]
async fn whatever_else_comes_before_authentication_is_an_attempt() {
    let server = TestServer::with(|config| config.device.auth_attempts = 2).await;
    let others = [
        r#"{"uri":"/heartbeat"}"#,
        r#"{"uri":"/plex/ack","seq":1}"#,
        r#"{"uri":"/plex/nack","seq":1}"#,
        r#"{"uri":"/auth/success"}"#,
        r#"{"uri":"/AUTH/SERVER","body":"alice"}"#,
        r#"{"uri":"/auth/server/","body":"alice"}"#,
        r#"{"uri":"/some/where"}"#,
        "{}",
        "no JSON",
        "[]",
        r#"{"uri":1}"#,
    ];
    for other in others {
        let mut device = TestDevice::connect(server.device()).await;
        for _ in 0..2 {
            device.send(other).await;
            expect_failed(&mut device, "").await;
        }
        device.expect_close().await;
    }
}

#[tokio::test]
async fn a_missing_credential_is_an_empty_one() {
    let (server, oracle) = with_oracle(|_| {}).await;
    let mut device = TestDevice::connect(server.device()).await;
    device.send(r#"{"uri":"/auth/server","v":2}"#).await;
    expect_failed(&mut device, REFUSED).await;
    assert_eq!(oracle.asked(), 1, "the uid that it gives is none");
}

#[tokio::test]
async fn auth_timeout_closes_without_a_frame() {
    let server = TestServer::with(|config| config.device.auth_timeout = Duration::from_millis(200)).await;
    let mut silent = TestDevice::connect(server.device()).await;
    let mut tried = TestDevice::connect(server.device()).await;
    tried.send(r#"{"uri":"/auth/server","v":2}"#).await;
    expect_failed(&mut tried, REFUSED).await;
    tried.expect_close().await;
    silent.expect_close().await;
}

#[tokio::test]
async fn an_authenticator_that_fails_by_itself_is_unavailable() {
    let (server, _) = with_oracle(|config| config.auth.timeout = Duration::from_millis(100)).await;
    let mut device = TestDevice::connect(server.device()).await;
    for credential in ["panic", "hang"] {
        device.auth_v2(credential).await;
        expect_failed(&mut device, UNAVAILABLE).await;
    }
    device.auth_v2("alice").await;
    expect_success(&mut device).await;
}

#[tokio::test]
async fn unavailable_counts_as_no_attempt() {
    let (server, _) = with_oracle(|config| config.device.auth_attempts = 2).await;
    let mut device = TestDevice::connect(server.device()).await;
    for credential in ["down", "down", "refuse", "down", "down"] {
        device.auth_v2(credential).await;
        expect_failed(&mut device, if credential == "down" { UNAVAILABLE } else { REFUSED }).await;
    }
    device.auth_v2("alice").await;
    expect_success(&mut device).await;
}

#[tokio::test]
async fn the_third_unavailable_in_a_row_closes() {
    let (server, _) = with_oracle(|_| {}).await;
    let mut device = TestDevice::connect(server.device()).await;
    for _ in 0..3 {
        device.auth_v2("down").await;
        expect_failed(&mut device, UNAVAILABLE).await;
    }
    device.expect_close().await;
}

#[tokio::test]
async fn a_uid_that_is_none_is_refused_from_any_authenticator() {
    let (server, _) = with_oracle(|_| {}).await;
    for credential in ["", &"x".repeat(256)] {
        let mut device = TestDevice::connect(server.device()).await;
        device.auth_v2(credential).await;
        expect_failed(&mut device, REFUSED).await;
    }
}

#[tokio::test]
async fn a_credential_whose_time_is_over_is_refused() {
    let (server, _) = with_oracle(|_| {}).await;
    let mut device = TestDevice::connect(server.device()).await;
    device.auth_v2("alice/-1").await;
    expect_failed(&mut device, REFUSED).await;
    device.auth_v2("alice/-99999999").await;
    expect_failed(&mut device, REFUSED).await;
}

#[tokio::test]
async fn only_an_integer_of_2_or_more_asks_for_dialect_2() {
    let server = TestServer::start().await;
    let cases = [
        ("2", true),
        ("3", true),
        ("9223372036854775807", true),
        ("1", false),
        ("0", false),
        ("-2", false),
        ("2.0", false),
        ("2e0", false),
        (r#""2""#, false),
        ("true", false),
        ("null", false),
        ("[2]", false),
        ("{}", false),
        ("9223372036854775808", false),
    ];
    for (v, speaks_2) in cases {
        let mut device = TestDevice::connect(server.device()).await;
        device.send(&format!(r#"{{"uri":"/auth/server","body":"dev-{speaks_2}","v":{v}}}"#)).await;
        let answer = device.next().await;
        assert_eq!(answer.uri, "/auth/success", "v {v}");
        assert_eq!(!answer.body.is_empty(), speaks_2, "v {v}: {answer:?}");
    }
}

#[tokio::test]
async fn the_latest_auth_message_decides_the_dialect_also_where_it_is_refused() {
    let (server, _) = with_oracle(|_| {}).await;
    let mut device = TestDevice::connect(server.device()).await;
    device.auth_v2("refuse").await;
    expect_failed(&mut device, REFUSED).await;
    device.auth_v1("refuse").await;
    expect_failed(&mut device, "").await;
    device.auth_v2("alice").await;
    assert!(!device.next().await.body.is_empty());
    // On a session, too: refused, and yet it speaks dialect 1 from now on.
    device.auth_v1("refuse").await;
    expect_failed(&mut device, "").await;
    device.send("no JSON").await;
    device.expect_quiet().await;
    device.auth_v2("refuse").await;
    expect_failed(&mut device, REFUSED).await;
    device.send("no JSON").await;
    assert_eq!(device.next().await.uri, "/plex/error");
    // What isn't well-formed decides nothing.
    device.send(r#"{"uri":"/auth/server","body":1,"v":1}"#).await;
    assert_eq!(device.next().await.uri, "/plex/error");
    assert_eq!(dialect(&server, "alice").await, 2);
}

async fn dialect(server: &TestServer, uid: &str) -> u32 {
    let request = ListSessionsRequest { uid: uid.into() };
    let mut sessions = server.backend().await.list_sessions(request).await.unwrap().into_inner();
    sessions.message().await.unwrap().expect("it is connected").sessions[0].dialect
}

#[tokio::test]
async fn anything_else_before_authentication_keeps_the_dialect() {
    let (server, _) = with_oracle(|config| config.device.auth_attempts = 10).await;
    let mut device = TestDevice::connect(server.device()).await;
    device.auth_v2("refuse").await;
    expect_failed(&mut device, REFUSED).await;
    device.send("no JSON").await;
    expect_failed(&mut device, REFUSED).await;
    device.heartbeat().await;
    expect_failed(&mut device, REFUSED).await;
}

#[tokio::test]
async fn a_session_re_authenticates_as_itself_only() {
    let (server, _) = with_oracle(|config| config.device.auth_attempts = 1).await;
    let mut device = server.login("alice").await;
    for _ in 0..5 {
        for (credential, body) in [("bob", REFUSED), ("refuse", REFUSED), ("", REFUSED), ("down", UNAVAILABLE)] {
            device.auth_v2(credential).await;
            expect_failed(&mut device, body).await;
        }
        device.auth_v2("alice").await;
        expect_success(&mut device).await;
    }
    let mut backend = server.backend().await;
    assert_eq!(backend.push(push("bob", "/a", "")).await.unwrap().into_inner().status(), PushStatus::Offline);
    assert_eq!(backend.push(push("alice", "/a", "")).await.unwrap().into_inner().connections, 1);
    assert_eq!(device.next().await.uri, "/a");
}

#[tokio::test]
async fn a_re_authentication_is_no_new_connection() {
    let (server, _) = with_oracle(|_| {}).await;
    let mut device = server.login("alice").await;
    let opened = server.metric("plex_connections_opened_total").await;
    device.auth_v2("alice/60000").await;
    assert_eq!(device.next().await.json()["expires_in_seconds"], 60);
    assert_eq!(server.metric("plex_connections_opened_total").await, opened);
}

#[tokio::test]
async fn pushes_go_on_and_nothing_is_read_while_a_session_re_authenticates() {
    let (server, oracle) = with_oracle(|config| config.auth.timeout = PATIENCE).await;
    let mut device = server.login("alice").await;
    let mut backend = server.backend().await;
    device.auth_v2("wait:alice").await;
    device.heartbeat().await;
    oracle.until_asked(2).await;
    for _ in 0..3 {
        let pushed = backend.push(push("alice", "/meanwhile", "")).await.unwrap().into_inner();
        assert_eq!(pushed.status(), PushStatus::Sent);
        assert_eq!(device.next().await.uri, "/meanwhile", "and not the answer to the heartbeat");
    }
    oracle.let_one_go();
    expect_success(&mut device).await;
    assert_eq!(device.next().await.uri, "/heartbeat");
}

#[tokio::test]
async fn nothing_is_read_while_a_device_authenticates() {
    let (server, oracle) = with_oracle(|config| config.auth.timeout = PATIENCE).await;
    let mut device = TestDevice::connect(server.device()).await;
    let frames = [device.frame(br#"{"uri":"/auth/server","body":"wait:refuse"}"#), device.frame(b"no JSON")].concat();
    device.send_bytes(&frames).await;
    oracle.until_asked(1).await;
    let mut byte = [0];
    let early = timeout(Duration::from_millis(50), device.stream.read(&mut byte)).await;
    assert!(early.is_err(), "no answer before the authenticator's: {early:?}");
    oracle.let_one_go();
    expect_failed(&mut device, "").await;
    expect_failed(&mut device, "").await;
}

#[tokio::test]
async fn a_hanging_authenticator_blocks_no_other_device() {
    let (server, oracle) = with_oracle(|config| config.auth.timeout = PATIENCE).await;
    let mut hanging = Vec::new();
    for number in 1..=20 {
        let mut device = TestDevice::connect(server.device()).await;
        device.auth_v2("hang").await;
        oracle.until_asked(number).await;
        hanging.push(device);
    }
    server.login("alice").await.expect_quiet().await;
}

#[tokio::test]
async fn a_device_that_goes_while_it_is_asked_about_gives_its_place_back() {
    let (server, oracle) = with_oracle(|config| {
        config.auth.timeout = PATIENCE;
        config.auth.max_in_flight = 1;
    })
    .await;
    for number in 1..=3 {
        let mut device = TestDevice::connect(server.device()).await;
        device.auth_v2("hang").await;
        oracle.until_asked(number).await;
    }
    server.login("alice").await;
}

#[tokio::test]
async fn a_session_that_goes_while_it_re_authenticates_is_offline_at_once() {
    let (server, oracle) = with_oracle(|config| config.auth.timeout = Duration::from_secs(3600)).await;
    let mut device = server.login("alice").await;
    device.auth_v2("hang").await;
    device.heartbeat().await;
    oracle.until_asked(2).await;
    drop(device);
    let mut backend = server.backend().await;
    let request = plex::proto::IsOnlineRequest { uids: vec!["alice".into()] };
    eventually("alice is offline", || {
        let (mut backend, request) = (backend.clone(), request.clone());
        async move { (!backend.is_online(request).await.unwrap().into_inner().states[0].online).then_some(()) }
    })
    .await;
    assert_eq!(backend.push(push("alice", "/a", "")).await.unwrap().into_inner().status(), PushStatus::Offline);
}
