//! Secrets of the control plane: their names and scopes, their files, and that nobody gets to see one.

mod common;

use std::{fs, path::Path};

use common::{
    Backend, PATIENCE, TestServer, backend, eventually,
    process::{Home, TestGateway},
    push,
};
use futures_util::stream;
use plex::{
    Config, Server,
    config::{ControlSecret, Scopes, Secret, SecretSource},
    proto,
};
use tonic::{Code, Status};

fn named(name: &str, source: SecretSource, scopes: Scopes) -> ControlSecret {
    ControlSecret { name: name.to_owned(), source, scopes }
}

fn text(secret: &str) -> SecretSource {
    SecretSource::Text(Secret::new(secret).unwrap())
}

fn file(path: impl AsRef<Path>) -> SecretSource {
    SecretSource::File(path.as_ref().to_owned())
}

/// A secret for each scope, and one for all.
fn of_each_scope(config: &mut Config) {
    config.control.secrets = vec![
        named("pusher", text("the-push-secret"), Scopes::PUSH),
        named("watcher", text("the-presence-secret"), Scopes::PRESENCE),
        named("operator", text("the-admin-secret"), Scopes::ADMIN),
        named("two", text("the-secret-of-two"), Scopes::PUSH.with(Scopes::ADMIN)),
        named("all", text("the-secret-of-all"), Scopes::ALL),
    ];
}

/// Every call, with what it needs: the name, the scope, and how it ended.
async fn every_call(backend: &mut Backend) -> Vec<(&'static str, &'static str, Result<(), Status>)> {
    let uids = vec!["alice".to_owned()];
    let many = proto::PushManyRequest { uids: uids.clone(), uri: "/x".into(), body: "".into() };
    vec![
        ("Push", "push", backend.push(push("alice", "/x", "")).await.map(drop)),
        ("PushStream", "push", backend.push_stream(stream::empty::<proto::PushStreamRequest>()).await.map(drop)),
        ("PushMany", "push", backend.push_many(many).await.map(drop)),
        (
            "Broadcast",
            "push",
            backend.broadcast(proto::BroadcastRequest { uri: "/x".into(), body: "".into() }).await.map(drop),
        ),
        ("IsOnline", "presence", backend.is_online(proto::IsOnlineRequest { uids }).await.map(drop)),
        ("OnlineStatus", "presence", backend.online_status(proto::OnlineStatusRequest::default()).await.map(drop)),
        ("GetHost", "", backend.get_host(proto::GetHostRequest::default()).await.map(drop)),
        ("GetInfo", "", backend.get_info(proto::GetInfoRequest {}).await.map(drop)),
        (
            "Disconnect",
            "admin",
            backend.disconnect(proto::DisconnectRequest { uid: "alice".into(), reason: "".into() }).await.map(drop),
        ),
        ("ListSessions", "admin", backend.list_sessions(proto::ListSessionsRequest::default()).await.map(drop)),
        ("ListNodes", "admin", backend.list_nodes(proto::ListNodesRequest {}).await.map(drop)),
    ]
}

/// Checks what each call answers to somebody with these scopes.
async fn expect_scopes(backend: &mut Backend, scopes: &[&str]) {
    let calls = every_call(backend).await;
    assert_eq!(calls.len(), 11);
    for (call, needed, result) in calls {
        if needed.is_empty() || scopes.contains(&needed) {
            result.unwrap_or_else(|status| panic!("{call} with {scopes:?}: {status}"));
        } else {
            let status = result.expect_err(call);
            assert_eq!(status.code(), Code::PermissionDenied, "{call} with {scopes:?}: {status}");
            assert!(status.message().contains(&format!("the scope \"{needed}\"")), "{status}");
        }
    }
}

#[tokio::test]
async fn each_secret_may_call_what_its_scopes_say_and_nothing_else() {
    let server = TestServer::with(of_each_scope).await;
    for (secret, scopes) in [
        ("the-push-secret", &["push"][..]),
        ("the-presence-secret", &["presence"]),
        ("the-admin-secret", &["admin"]),
        ("the-secret-of-two", &["push", "admin"]),
        ("the-secret-of-all", &["push", "presence", "admin"]),
    ] {
        expect_scopes(&mut backend(server.addresses.control, secret).await, scopes).await;
    }
}

#[tokio::test]
async fn refused_calls_are_counted_by_reason() {
    let server = TestServer::with(of_each_scope).await;
    let count =
        async |reason: &str| server.metric(&format!("plex_control_unauthorized_total{{reason=\"{reason}\"}}")).await;
    for (_, _, result) in every_call(&mut backend(server.addresses.control, "no-secret").await).await {
        assert_eq!(result.unwrap_err().code(), Code::Unauthenticated);
    }
    every_call(&mut backend(server.addresses.control, "the-admin-secret").await).await;
    let mut bare = proto::gateway_client::GatewayClient::new(server.bare_channel().await);
    bare.get_info(proto::GetInfoRequest {}).await.unwrap_err();
    assert_eq!((count("unknown").await, count("scope").await, count("missing").await), (11, 6, 1));
    assert_eq!(count("certificate").await, 0);
}

async fn opens(server: &TestServer, secret: &str) -> bool {
    match backend(server.addresses.control, secret).await.get_info(proto::GetInfoRequest {}).await {
        Ok(_) => true,
        Err(status) => {
            assert_eq!(status.code(), Code::Unauthenticated, "{status}");
            false
        }
    }
}

#[tokio::test]
async fn a_secret_in_a_file_is_rotated_without_a_stop_and_open_streams_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    fs::write(&first, "one\n").unwrap();
    fs::write(&second, "two").unwrap();
    let server = TestServer::with(|config| {
        config.control.secrets =
            vec![named("first", file(&first), Scopes::ALL), named("second", file(&second), Scopes::ALL)];
    })
    .await;
    assert!(opens(&server, "one").await && opens(&server, "two").await);
    let mut caller = backend(server.addresses.control, "one").await;
    let (mut watch, _) = common::watch::Watch::live(&mut caller, common::watch::everyone()).await;

    fs::write(&first, "three\n").unwrap();
    eventually("the new secret opens", || async { opens(&server, "three").await.then_some(()) }).await;
    assert!(!opens(&server, "one").await, "the old one doesn't any more");
    assert!(opens(&server, "two").await, "the other isn't touched");
    // What began with it goes on; what begins now is refused, over the same connection too.
    let _alice = server.login("alice").await;
    assert_eq!(watch.event().await.uid, "alice");
    assert_eq!(caller.get_info(proto::GetInfoRequest {}).await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_bad_new_file_keeps_the_old_secret_and_a_good_one_after_it_counts() {
    let folder = tempfile::tempdir().unwrap();
    let (broken, other) = (folder.path().join("broken"), folder.path().join("other"));
    fs::write(&broken, "old").unwrap();
    fs::write(&other, "before").unwrap();
    let server = TestServer::with(|config| {
        config.control.secrets =
            vec![named("broken", file(&broken), Scopes::ALL), named("other", file(&other), Scopes::ALL)];
    })
    .await;
    let mut last = "before".to_owned();
    for (number, content) in [&b""[..], b"\n", b"two\nlines\n", b"\xff\xfe", &[b'x'; 2000]].into_iter().enumerate() {
        fs::write(&broken, content).unwrap();
        // The other file is looked at after it, so by then the bad one has been, too.
        last = format!("after-{number}");
        fs::write(&other, &last).unwrap();
        eventually("the other is read", || async { opens(&server, &last).await.then_some(()) }).await;
        assert!(opens(&server, "old").await, "{content:?}");
    }
    fs::remove_file(&broken).unwrap();
    fs::write(&other, "removed").unwrap();
    eventually("the other is read", || async { opens(&server, "removed").await.then_some(()) }).await;
    assert!(opens(&server, "old").await && !opens(&server, &last).await);
    fs::write(&broken, "new\n").unwrap();
    eventually("the good one counts", || async { opens(&server, "new").await.then_some(()) }).await;
    assert!(!opens(&server, "old").await);
}

#[tokio::test]
async fn the_library_is_given_the_first_secret_with_all_scopes() {
    let (mut config, _folder) = common::config();
    of_each_scope(&mut config);
    let bound = Server::builder(config).build().unwrap().bind().await.unwrap();
    assert_eq!(bound.secret().expose(), "the-secret-of-all");
}

/// A home with a configuration that has secrets of all kinds.
fn home_with_secrets() -> Home {
    let home = Home::new();
    home.write("the-file", "hush-of-the-file\n");
    home.write(
        "plex.toml",
        "[log]\nlevel = \"trace\"\n[control]\nsecrets = [{ name = \"pusher\", secret = \"hush-push\", scopes = [\"push\"] }, \
         { name = \"ops\", file = \"the-file\" }, \"hush-third\"]\n",
    );
    home
}

#[tokio::test]
async fn plex_secret_prints_the_first_that_has_all_scopes_also_from_a_file() {
    let home = home_with_secrets();
    assert_eq!(home.run(&["secret"]).await.lines(), ["hush-of-the-file"]);
    home.write("the-file", "hush-new");
    assert_eq!(home.run(&["secret"]).await.lines(), ["hush-new"]);

    home.write("the-file", "two\nlines\n");
    let refused = home.run(&["secret"]).await;
    assert!(refused.refusal().starts_with("the-file: holds no secret"), "{refused:?}");
    fs::remove_file(home.path("the-file")).unwrap();
    let refused = home.run(&["secret"]).await;
    assert!(refused.refusal().starts_with("the-file: can't be read"), "{refused:?}");

    home.write("plex.toml", "[control]\nsecrets = [{ secret = \"hush\", scopes = [\"push\", \"admin\"] }]\n");
    let none = home.run(&["secret"]).await;
    assert_eq!((none.code, &*none.stdout), (1, ""), "{none:?}");
    assert!(none.complaint().contains("all scopes") && !none.stderr.contains("hush"), "{none:?}");
}

#[tokio::test]
async fn a_secret_file_that_cannot_be_used_stops_the_start_with_one_line() {
    for (content, problem) in [(None, "can't be read: "), (Some("two\nlines\n"), "holds no secret: ")] {
        let home = home_with_secrets();
        match content {
            Some(content) => drop(home.write("the-file", content)),
            None => fs::remove_file(home.path("the-file")).unwrap(),
        }
        let refused =
            home.run(&[&["serve"], &common::process::ANY_PORTS[..], &["--set", "log.level=error"]].concat()).await;
        assert!(
            refused.refusal().starts_with(&format!("control.secrets = \"the-file\": {problem}"))
                && !refused.stderr.contains("lines\n"),
            "{refused:?}"
        );
    }
}

async fn exits(home: &Home, gateway: &TestGateway, secret: &str, command: &[&str]) -> i32 {
    let (url, file) = (gateway.url(), home.write("shown", secret));
    home.run(&[command, &["--control", &url, "--secret-file", &file]].concat()).await.code
}

#[tokio::test]
async fn a_command_whose_secret_has_not_the_scope_is_refused_with_3() {
    let home = home_with_secrets();
    let gateway = home.serve(&[]).await;
    assert_eq!(exits(&home, &gateway, "hush-push", &["online", "alice"]).await, 3);
    assert_eq!(exits(&home, &gateway, "hush-push", &["push", "alice", "/x", ""]).await, 1, "nobody is there");
    assert_eq!(exits(&home, &gateway, "hush-wrong", &["info"]).await, 3);
    // Those on this machine take the one that has all.
    assert_eq!(home.run(&["online", "alice", "--control", &gateway.url()]).await.code, 1);
}

#[tokio::test]
async fn disconnect_and_broadcast_log_who_asked_and_no_output_holds_a_secret() {
    let home = home_with_secrets();
    let mut gateway = home.serve(&["--set", "log.level=trace"]).await;
    let mut all = backend(gateway.control, "hush-of-the-file").await;
    all.disconnect(proto::DisconnectRequest { uid: "alice".into(), reason: "a test".into() }).await.unwrap();
    let line = gateway.process.stderr.until("Disconnect").await;
    assert!(line.contains("INFO") && line.contains("caller=secret:ops") && line.contains("uid=\"alice\""), "{line}");
    let mut pusher = backend(gateway.control, "hush-push").await;
    pusher.broadcast(proto::BroadcastRequest { uri: "/x".into(), body: "".into() }).await.unwrap();
    let line = gateway.process.stderr.until("Broadcast").await;
    assert!(line.contains("INFO") && line.contains("caller=secret:pusher"), "{line}");
    let mut third = backend(gateway.control, "hush-third").await;
    third.broadcast(proto::BroadcastRequest { uri: "/x".into(), body: "".into() }).await.unwrap();
    gateway.process.stderr.until("caller=secret:secret-3").await;

    // Good and bad ones, in every way in which one could be told.
    every_call(&mut pusher).await;
    for wrong in ["hush-wrong", "hush-of-the-file-", "hush-"] {
        every_call(&mut backend(gateway.control, wrong).await).await;
    }
    home.write("the-file", "hush-broken\nhush-lines\n");
    gateway.process.stderr.until("the secret before goes on").await;
    home.write("the-file", "hush-rotated\n");
    gateway.process.stderr.until("secret read again").await;
    let arguments = fs::read(format!("/proc/{}/cmdline", gateway.process.id())).unwrap();
    assert!(!String::from_utf8_lossy(&arguments).contains("hush"));
    let (_, _, metrics) = common::http(gateway.metrics.unwrap(), "GET", "/metrics").await;
    let ended = gateway.stopped().await;
    assert_eq!(ended.code, 0);
    assert!(ended.stderr.contains("call refused"), "the log tells everything: {ended:?}");
    assert!(!format!("{ended:?}{metrics}").contains("hush"), "{ended:?}");
}

#[tokio::test]
async fn the_made_up_secret_is_called_so_in_the_log() {
    let home = Home::new();
    let mut gateway = home.serve(&[]).await;
    let mut caller = backend(gateway.control, &home.secret()).await;
    caller.broadcast(proto::BroadcastRequest { uri: "/x".into(), body: "".into() }).await.unwrap();
    gateway.process.stderr.until("caller=secret:made-up").await;
    let secret = home.secret();
    let ended = gateway.stopped().await;
    assert!(!format!("{ended:?}").contains(&secret), "{ended:?}");
}

#[tokio::test]
async fn failures_on_loopback_are_not_slowed() {
    let server = TestServer::start().await;
    let mut wrong = backend(server.addresses.control, "wrong").await;
    // The hundredth answer would have come after more than three minutes.
    let refused = async {
        for _ in 0..100 {
            wrong.get_info(proto::GetInfoRequest {}).await.unwrap_err();
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.expect("each is answered at once");
}
