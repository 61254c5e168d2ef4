//! `plex device`: it authenticates, beats, shows and answers pushes, and obeys kicks.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{
    Ground,
    common::{
        call,
        link::Link,
        process::Home,
        push,
        script::{Script, say},
    },
    nobody,
};
use plex::proto::{DisconnectRequest, PushStatus};

#[tokio::test]
async fn a_device_authenticates_shows_pushes_and_acknowledges_them() {
    let ground = Ground::new().await;
    let address = ground.server.device().to_string();
    let mut device = ground.home.spawn(&["device", "--uid", "alice", "--connect", &address]);
    assert_eq!(device.stdout.next().await, format!("connected to {address}, node node-1"));
    let mut backend = ground.server.backend().await;
    let asked = call("alice", "/ask", "how\nare you", Duration::from_secs(60));
    let outcome = backend.push(asked).await.unwrap().into_inner();
    assert_eq!((outcome.status(), &*outcome.reply), (PushStatus::Acked, ""));
    assert_eq!(device.stdout.next().await, format!("push {} /ask how\\nare you", outcome.seq));
    device.signal("INT");
    let ended = device.finished().await;
    assert_eq!((ended.code, &*ended.stderr), (0, ""), "Ctrl-C is how it ends");
}

#[tokio::test]
async fn with_echo_each_push_is_answered_with_its_own_body() {
    let ground = Ground::new().await;
    let address = ground.server.device().to_string();
    let mut device = ground.home.spawn(&["device", "--uid", "alice", "--connect", &address, "--echo", "--json"]);
    let connected = device.stdout.json().await;
    assert_eq!(connected, json!({"event": "connected", "address": address, "node": "node-1", "dialect": 2}));
    let pushed = ground.run(&["push", "alice", "/ask", "{\"a\":\"ä\"}", "--ack", "1m", "--json"]).await;
    let pushed = &pushed.json()[0];
    assert_eq!((&pushed["status"], &pushed["reply"]), (&"ACKED".into(), &"{\"a\":\"ä\"}".into()));
    let shown = device.stdout.json().await;
    assert_eq!(shown, json!({"event": "push", "seq": pushed["seq"], "uri": "/ask", "body": "{\"a\":\"ä\"}"}));
    device.signal("TERM");
    assert_eq!(device.finished().await.code, 0);
}

#[tokio::test]
async fn a_body_too_long_to_be_echoed_is_answered_with_a_nack() {
    let ground = Ground::new().await;
    let address = ground.server.device().to_string();
    let mut device = ground.home.spawn(&["device", "--uid", "alice", "--connect", &address, "--echo"]);
    device.stdout.until("connected to").await;
    let mut backend = ground.server.backend().await;
    // As a push with a uri of one letter it fits, as an ack it doesn't.
    let body = "x".repeat((64 << 10) - r#"{"seq":1234567890123456,"uri":"a","body":""}"#.len());
    let outcome = backend.push(call("alice", "a", &body, Duration::from_secs(60))).await.unwrap().into_inner();
    assert_eq!(outcome.status(), PushStatus::Nacked, "{outcome:?}");
    assert_eq!(backend.push(push("alice", "/b", "")).await.unwrap().into_inner().status(), PushStatus::Sent);
}

#[tokio::test]
async fn a_device_asks_for_the_second_dialect_unless_told_not_to() {
    let home = Home::new();
    let script = Script::new().await;
    let _device = home.spawn(&["device", "--uid", "alice", "--connect", &script.address]);
    assert_eq!(script.accept().await.1, json!({"uri": "/auth/server", "body": "alice", "v": 2}));
    let mut old = home.spawn(&["device", "--uid", "alice", "--connect", &script.address, "--v1"]);
    let (mut end, auth) = script.accept().await;
    assert_eq!(auth, json!({"uri": "/auth/server", "body": "alice"}));
    end.send(r#"{"uri":"/auth/success"}"#).await;
    assert_eq!(old.stdout.next().await, format!("connected to {}", script.address));
}

#[tokio::test]
async fn a_credential_is_what_it_authenticates_with() {
    let home = Home::new();
    let script = Script::new().await;
    let credential = ["--credential", "a token", "--connect", &script.address];
    for uid in [&[][..], &["--uid", "alice"]] {
        let _device = home.spawn(&[&["device"], &credential[..], uid].concat());
        assert_eq!(script.accept().await.1["body"], "a token");
    }
}

#[tokio::test]
async fn a_device_sends_heartbeats_as_it_is_told() {
    let home = Home::new();
    let script = Script::new().await;
    let _device = home.spawn(&["device", "--uid", "alice", "--connect", &script.address]);
    let mut end = script.welcome(&json!({"v": 2, "heartbeat_seconds": 1, "heartbeat_timeout_seconds": 1})).await;
    for _ in 0..3 {
        assert_eq!(end.next().await.uri, "/heartbeat");
        end.send(r#"{"uri":"/heartbeat"}"#).await;
    }
}

#[tokio::test]
async fn its_heartbeats_keep_it_connected() {
    let ground = Ground::with(|config| {
        config.device.heartbeat = Duration::from_secs(1);
        config.device.heartbeat_timeout = Duration::from_secs(4);
    })
    .await;
    let address = ground.server.device().to_string();
    let mut device = ground.home.spawn(&["device", "--uid", "alice", "--connect", &address]);
    device.stdout.until("connected to").await;
    let mut silent = ground.server.login("bob").await;
    // Whoever is silent goes, and the other, who came first, stays.
    silent.expect_kick("timeout").await;
    assert_eq!(ground.run(&["push", "alice", "/a", "still here"]).await.code, 0);
    assert!(device.stdout.next().await.ends_with(" /a still here"), "it is the same connection");
}

#[tokio::test]
async fn a_kick_without_a_return_ends_it_with_1_and_the_reason() {
    let ground = Ground::new().await;
    let address = ground.server.device().to_string();
    let connect = ["device", "--uid", "alice", "--connect", &address];
    let mut device = ground.home.spawn(&connect);
    device.stdout.until("connected to").await;
    let mut backend = ground.server.backend().await;
    let gone = DisconnectRequest { uid: "alice".into(), reason: "for the test".into() };
    assert_eq!(backend.disconnect(gone).await.unwrap().into_inner().connections, 1);
    let ended = device.finished().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stdout.ends_with("\nkicked: disconnected\n"), "{ended:?}");
    assert_eq!(ended.complaint(), "told not to come back: disconnected");

    let mut device = ground.home.spawn(&[&connect[..], &["--json"]].concat());
    device.stdout.until("connected").await;
    let _newer = ground.server.login("alice").await;
    let kick = device.stdout.json().await;
    assert_eq!(kick, json!({"event": "kick", "reason": "replaced", "reconnect": false, "afterMs": "0"}));
    assert_eq!(device.finished().await.code, 1);
}

#[tokio::test]
async fn a_kick_with_a_time_brings_it_back_after_that_and_not_before() {
    let home = Home::new();
    let script = Script::new().await;
    let mut device = home.spawn(&["device", "--uid", "alice", "--connect", &script.address]);
    let mut end = script.welcome(&json!({"v": 2, "node": "n"})).await;
    let told = Instant::now();
    say(&mut end, "/plex/kick", &json!({"reason": "draining", "reconnect": true, "after_ms": 1500})).await;
    drop(end);
    let _end = script.welcome(&json!({"v": 2, "node": "other"})).await;
    assert!(told.elapsed() >= Duration::from_millis(1500), "{:?}", told.elapsed());
    device.stdout.until(", node n").await;
    assert_eq!(device.stdout.next().await, "kicked: draining, to come back after 1500 ms");
    assert!(device.stdout.next().await.ends_with(", node other"));
}

#[tokio::test]
async fn a_kick_with_a_return_and_no_time_brings_it_back() {
    let home = Home::new();
    let script = Script::new().await;
    let mut device = home.spawn(&["device", "--uid", "alice", "--connect", &script.address, "--json"]);
    for reason in ["timeout", "slow", "expired"] {
        let mut end = script.welcome(&json!({"v": 2})).await;
        say(&mut end, "/plex/kick", &json!({"reason": reason, "reconnect": true})).await;
        assert_eq!(device.stdout.json().await["event"], "connected");
        let kick = device.stdout.json().await;
        assert_eq!((&kick["reason"], &kick["reconnect"]), (&reason.into(), &true.into()));
    }
    script.welcome(&json!({"v": 2})).await;
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_anew() {
    let ground = Ground::new().await;
    let mut link = Link::to(ground.server.device()).await;
    let address = link.address.to_string();
    let mut device = ground.home.spawn(&["device", "--uid", "alice", "--connect", &address]);
    for round in 0..2 {
        assert!(device.stdout.next().await.starts_with("connected to "), "{round}");
        link.cut();
        link.tried().await;
        link.mend();
        assert_eq!(device.stdout.next().await, "closed");
    }
    assert!(device.stdout.next().await.starts_with("connected to "));
    assert_eq!(ground.run(&["push", "alice", "/a", "again"]).await.code, 0);
    assert!(device.stdout.next().await.ends_with(" /a again"));
    device.stderr.until("; trying again").await;
}

#[tokio::test]
async fn a_credential_that_is_refused_is_3() {
    let ground = Ground::new().await;
    let address = ground.server.device().to_string();
    let long = "u".repeat(256);
    for dialect in [&[][..], &["--v1"]] {
        let refused = ground.home.run(&[&["device", "--uid", &long, "--connect", &address], dialect].concat()).await;
        assert_eq!((refused.code, &*refused.stdout), (3, ""), "{refused:?}");
        assert_eq!(refused.complaint(), "the credential was refused");
    }
}

#[tokio::test]
async fn a_gateway_that_cannot_check_a_credential_is_asked_again() {
    let home = Home::new();
    let script = Script::new().await;
    let mut device = home.spawn(&["device", "--uid", "alice", "--connect", &script.address]);
    let (mut end, _) = script.accept().await;
    say(&mut end, "/auth/failed", &json!({"reason": "unavailable"})).await;
    let _end = script.welcome(&json!({"v": 2, "node": "n"})).await;
    assert!(device.stdout.next().await.starts_with("connected to "));
    assert!(device.stderr.next().await.ends_with("can't check credentials at this time; trying again"));
}

#[tokio::test]
async fn nobody_at_its_address_is_4() {
    let home = Home::new();
    let address = nobody();
    let failed = home.run(&["device", "--uid", "alice", "--connect", &address]).await;
    assert_eq!((failed.code, &*failed.stdout), (4, ""), "{failed:?}");
    assert!(failed.complaint().starts_with(&format!("{address}: ")), "{failed:?}");
}

#[tokio::test]
async fn an_error_of_the_gateway_is_shown_and_ends_nothing() {
    let home = Home::new();
    let script = Script::new().await;
    let mut device = home.spawn(&["device", "--uid", "alice", "--connect", &script.address]);
    let mut end = script.welcome(&json!({"v": 2})).await;
    say(&mut end, "/plex/error", &json!({"reason": "malformed", "detail": "not \u{1b} JSON"})).await;
    // What it doesn't know is ignored.
    say(&mut end, "/plex/later", &json!({})).await;
    end.send(r#"{"seq":7,"uri":"/a"}"#).await;
    device.stdout.until("connected to").await;
    assert_eq!(device.stdout.next().await, "error malformed: not \\u{1b} JSON");
    assert_eq!(device.stdout.next().await, "push 7 /a ");
    let ack = end.next().await;
    assert_eq!((&*ack.uri, ack.seq, &*ack.body), ("/plex/ack", 7, ""));
}

#[tokio::test]
async fn lengths_are_written_as_the_gateway_wants_them() {
    let ground = Ground::with(|config| config.device.little_endian = true).await;
    let address = ground.server.device().to_string();
    let arguments = ["device", "--uid", "alice", "--connect", &address];
    let mut device = ground.home.spawn(&[&arguments[..], &["--little-endian"]].concat());
    device.stdout.until("connected to").await;
    // By the configuration of that gateway, too.
    let config = ground.home.write("other.toml", &format!("[device]\nlittle_endian = true\nlisten = \"{address}\"\n"));
    let mut device = ground.home.spawn(&["device", "--uid", "bob", "--config", &config]);
    device.stdout.until("connected to").await;
}

#[tokio::test]
async fn a_device_that_nobody_reads_ends_quietly() {
    let ground = Ground::new().await;
    let address = ground.server.device().to_string();
    let mut device = ground.home.spawn(&["device", "--uid", "alice", "--connect", &address]);
    device.stdout.until("connected to").await;
    device.stdout.close();
    let mut backend = ground.server.backend().await;
    // It learns of it by what it writes.
    let mut pushes = 0;
    let status = loop {
        if let Some(status) = device.ended() {
            break status;
        }
        pushes += 1;
        assert!(pushes < 10_000, "it ends");
        // Acknowledged once it was shown, or tried to be.
        backend.push(call("alice", "/a", "", Duration::from_secs(60))).await.unwrap();
    };
    assert_eq!(status.code(), Some(0));
    assert_eq!(device.stderr.all().await, "");
}
