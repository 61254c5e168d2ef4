//! What the client promises to a Rust user, against a real gateway: typed outcomes and errors, presence that is followed
//! over restarts, devices that come back.

mod common;

#[path = "client/devices.rs"]
mod devices;
#[path = "client/presence.rs"]
mod presence;

use std::time::Duration;

use common::{PATIENCE, SECRET, TestServer, config, process::own_loopback};
use futures_util::StreamExt;
use plex::{
    client::{
        AuthAnswer, CallError, Control, Device, DeviceOptions, Event, LoginError, OnlineState, PushRequest, PushStatus,
    },
    model::Transport,
};
use tokio::time::timeout;

fn control(server: &TestServer) -> Control {
    Control::connect(&format!("http://{}", server.addresses.control), SECRET).unwrap()
}

async fn device(server: &TestServer, uid: &str) -> Device {
    Device::connect(server.device(), DeviceOptions::new(uid)).await.unwrap()
}

async fn event(device: &mut Device) -> Event {
    timeout(PATIENCE, device.next()).await.expect("an event in time").expect("frames")
}

/// Takes pushes until the connection ends, and answers with what `answer` says of the body.
fn answering(mut device: Device, answer: impl Fn(&str) -> Result<String, String> + Send + 'static) {
    tokio::spawn(async move {
        while let Ok(Event::Push { seq, body, .. }) = device.next().await {
            let _ = match answer(&body) {
                Ok(reply) => device.ack(seq, &reply).await,
                Err(why) => device.nack(seq, &why).await,
            };
        }
    });
}

#[tokio::test]
async fn a_push_has_its_typed_outcome() {
    let server = TestServer::start().await;
    let control = control(&server);
    let minute = Duration::from_secs(60);
    answering(device(&server, "alice").await, |body| if body == "no" { Err("never".into()) } else { Ok(body.into()) });
    let mut mute = device(&server, "mute").await;

    let sent = control.push("mute", "/a", "b").await.unwrap();
    assert_eq!((sent.status, sent.connections), (PushStatus::Sent, 1));
    assert_eq!(event(&mut mute).await, Event::Push { seq: sent.seq, uri: "/a".into(), body: "b".into() });
    assert_eq!(control.push("nobody", "/a", "b").await.unwrap().status, PushStatus::Offline);
    let acked = control.ask("alice", "/a", "yes", minute).await.unwrap();
    assert_eq!((acked.status, &*acked.reply), (PushStatus::Acked, "yes"));
    let nacked = control.ask("alice", "/a", "no", minute).await.unwrap();
    assert_eq!((nacked.status, &*nacked.reply), (PushStatus::Nacked, "never"));
    let silent = control.ask("mute", "/a", "b", Duration::from_millis(1)).await.unwrap();
    assert_eq!(silent.status, PushStatus::AckTimeout);
    let asking = tokio::spawn({
        let control = control.clone();
        async move { control.ask("mute", "/last", "b", minute).await }
    });
    while !matches!(event(&mut mute).await, Event::Push { uri, .. } if uri == "/last") {}
    drop(mute);
    assert_eq!(asking.await.unwrap().unwrap().status, PushStatus::ConnectionLost);
}

#[tokio::test]
async fn every_call_answers_with_its_own_type() {
    let server = TestServer::start().await;
    let control = control(&server);
    let mut alice = device(&server, "alice").await;
    let statuses = control.push_many(["alice", "bob"], "/many", "m").await.unwrap();
    let statuses: Vec<_> = statuses.iter().map(|result| result.status).collect();
    assert_eq!(statuses, [PushStatus::Sent, PushStatus::Offline]);
    let broadcast = control.broadcast("/all", "b").await.unwrap();
    assert_eq!((broadcast.sent, broadcast.queue_full), (1, 0));
    for uri in ["/many", "/all"] {
        assert!(matches!(event(&mut alice).await, Event::Push { uri: found, .. } if found == uri));
    }
    let states = control.is_online(["bob", "alice"]).await.unwrap();
    let held = |state: &OnlineState| state.online.as_ref().map(|online| (online.node.clone(), online.connections));
    let held: Vec<_> = states.iter().map(|state| (&*state.uid, held(state))).collect();
    assert_eq!(held, [("bob", None), ("alice", Some(("node-1".to_owned(), 1)))]);
    assert_eq!(control.host(Transport::Tcp).await.unwrap().address, server.device().to_string());
    let info = control.info().await.unwrap();
    assert_eq!((info.uids, info.connections, &*info.node), (1, 1, "node-1"));
    assert!(info.known_since.is_some_and(|since| since <= states[1].online.as_ref().unwrap().since));
    let listed: Vec<_> = control.sessions("").await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!((listed.len(), &*listed[0].uid, listed[0].dialect), (1, "alice", 2));
    assert_eq!(control.disconnect("alice", "done").await.unwrap(), 1);
    let kick = Event::Kick { reason: "disconnected".into(), reconnect: false, after: Duration::ZERO };
    assert_eq!(event(&mut alice).await, kick);
    assert_eq!(event(&mut alice).await, Event::Closed);
    assert_eq!(control.disconnect("alice", "again").await.unwrap(), 0);
}

#[tokio::test]
async fn a_stream_of_pushes_gives_a_result_for_each_and_ends_when_its_caller_does() {
    let server = TestServer::start().await;
    let control = control(&server);
    let _alice = device(&server, "alice").await;
    // Far more than the window, so that it has to be given back.
    let (pushes, outcomes) = control.push_stream(4).await.unwrap();
    let pushing = tokio::spawn(async move {
        for id in 0..3_000 {
            let (uid, uri) = (if id % 2 == 0 { "alice" } else { "bob" }, if id == 5 { "/auth/x" } else { "/a" });
            pushes.send(PushRequest { id, ..PushRequest::new(uid, uri, "") }).await.unwrap();
        }
    });
    let outcomes: Vec<_> = outcomes.map(Result::unwrap).collect().await;
    pushing.await.unwrap();
    assert!(outcomes.iter().map(|outcome| outcome.id).eq(0..3_000));
    for outcome in outcomes {
        let expected = match outcome.id {
            5 => PushStatus::Invalid,
            even if even % 2 == 0 => PushStatus::Sent,
            _ => PushStatus::Offline,
        };
        assert_eq!(outcome.status, expected, "{outcome:?}");
        assert_eq!(outcome.error.contains("uri"), outcome.id == 5, "{outcome:?}");
    }
}

#[tokio::test]
async fn what_is_no_outcome_is_a_typed_error() {
    let server = TestServer::with(|config| config.control.ack_waits = 1).await;
    let ours = control(&server);
    let invalid = ours.push("alice", "/plex/x", "").await.unwrap_err();
    assert!(matches!(&invalid, CallError::Invalid(text) if text.contains("uri")), "{invalid:?}");
    let long = ours.ask("alice", "/a", "", Duration::MAX).await.unwrap_err();
    assert!(matches!(&long, CallError::Invalid(text) if text.contains("ack_timeout")), "{long:?}");
    let no_tls = ours.host(Transport::Tls).await.unwrap_err();
    assert!(matches!(no_tls, CallError::Unavailable(_)), "{no_tls:?}");
    let url = format!("http://{}", server.addresses.control);
    for secret in ["", "another"] {
        let refused = Control::connect(&url, secret).unwrap().info().await.unwrap_err();
        assert!(matches!(refused, CallError::Refused(_)), "{refused:?}");
        let refused = Control::connect(&url, secret).unwrap().online_status([""; 0]).next().await;
        let refused = refused.expect("it ends with an error").unwrap_err();
        assert!(matches!(refused, CallError::Refused(_)), "{refused:?}");
    }

    let mut alice = device(&server, "alice").await;
    let waiting = tokio::spawn({
        let ours = ours.clone();
        async move { ours.ask("alice", "/wait", "", Duration::from_secs(60)).await }
    });
    event(&mut alice).await;
    let over = ours.ask("alice", "/a", "", Duration::from_secs(60)).await.unwrap_err();
    assert!(matches!(over, CallError::Exhausted(_)), "{over:?}");
    drop(alice);
    waiting.await.unwrap().unwrap();

    server.stopped().await;
    let gone = ours.info().await.unwrap_err();
    assert!(matches!(gone, CallError::Unreachable(_)), "{gone:?}");
}

/// Where a gateway can be started again: its own address of loopback, the folder that outlives it.
fn at_one_place() -> (plex::Config, tempfile::TempDir) {
    let (mut config, folder) = config();
    let host = own_loopback();
    config.device.listen = Some(format!("{host}:9578").parse().unwrap());
    config.control.listen = format!("{host}:9580").parse().unwrap();
    (config, folder)
}

#[tokio::test]
async fn a_device_learns_why_it_is_not_let_in() {
    let server = TestServer::start().await;
    let refused = Device::connect(server.device(), DeviceOptions::new("u".repeat(256))).await.unwrap_err();
    assert!(matches!(refused, LoginError::Refused), "{refused:?}");
    let long = Device::connect(server.device(), DeviceOptions::new("u".repeat(5_000))).await.unwrap_err();
    // More than a gateway takes before it knows who it is.
    assert!(matches!(long, LoginError::Protocol(_) | LoginError::Closed), "{long:?}");
    let address = server.device();
    server.stopped().await;
    let gone = Device::connect(address, DeviceOptions::new("alice")).await.unwrap_err();
    assert!(matches!(gone, LoginError::Io(_)), "{gone:?}");
}

#[tokio::test]
async fn a_device_speaks_either_dialect_and_authenticates_again() {
    let server = TestServer::start().await;
    let mut device = device(&server, "alice").await;
    let welcome = device.welcome().cloned().expect("a device of dialect 2 is told");
    assert_eq!((welcome.v, &*welcome.node, welcome.heartbeat_seconds), (2, "node-1", 60));
    assert_eq!((welcome.heartbeat_timeout_seconds, welcome.max_frame_bytes), (120, 65_536));
    device.authenticate("alice").await.unwrap();
    assert_eq!(event(&mut device).await, Event::Auth(AuthAnswer::Success(Some(welcome))));
    device.authenticate("bob").await.unwrap();
    assert_eq!(event(&mut device).await, Event::Auth(AuthAnswer::Refused));
    device.heartbeat().await.unwrap();
    assert_eq!(event(&mut device).await, Event::Heartbeat);
    device.send_raw(b"\0\0\0\x03123").await.unwrap();
    assert!(matches!(event(&mut device).await, Event::Error { reason, .. } if reason == "malformed"));

    let options = DeviceOptions { v2: false, ..DeviceOptions::new("old") };
    let mut old = Device::connect(server.device(), options).await.unwrap();
    assert_eq!(old.welcome(), None);
    control(&server).disconnect("old", "").await.unwrap();
    assert_eq!(event(&mut old).await, Event::Closed, "no kick for the old dialect");
}

#[tokio::test]
async fn a_control_goes_on_by_itself_after_a_restart() {
    let (config, _folder) = at_one_place();
    let server = TestServer::of(config.clone(), None, |builder| builder).await;
    let control = control(&server);
    control.info().await.unwrap();
    server.stopped().await;
    assert!(matches!(control.info().await, Err(CallError::Unreachable(_))));
    let _server = TestServer::of(config, None, |builder| builder).await;
    common::eventually("the connection is made anew", || async { control.info().await.ok() }).await;
}

#[tokio::test]
async fn a_call_that_is_given_up_breaks_no_other() {
    let server = TestServer::start().await;
    let control = control(&server);
    let mut alice = device(&server, "alice").await;
    for round in 0..3 {
        tokio::select! {
            biased;
            outcome = control.ask("alice", "/ask", "", PATIENCE) => panic!("nobody answers: {outcome:?}"),
            // It has arrived, and what was given up is not taken back.
            asked = event(&mut alice) => assert!(matches!(asked, Event::Push { uri, .. } if uri == "/ask")),
        }
        let sent = control.push("alice", "/a", &round.to_string()).await.unwrap();
        assert_eq!(sent.status, PushStatus::Sent);
        assert_eq!(event(&mut alice).await, Event::Push { seq: sent.seq, uri: "/a".into(), body: round.to_string() });
    }
}
