//! What the client promises to a Rust user, against a real gateway: typed outcomes and errors, presence that is followed
//! over restarts, devices that come back.

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{PATIENCE, SECRET, TestServer, config, link::Link, process::own_loopback};
use futures_util::{StreamExt, stream};
use plex::{
    client::{AuthAnswer, Backoff, CallError, Control, Device, DeviceOptions, Event, Follower, LoginError, Update},
    proto::{OnlineStatusRequest, PushRequest, PushStatus, PushStreamRequest},
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

async fn next(follower: &mut Follower) -> Update {
    timeout(PATIENCE, follower.next()).await.expect("an update in time").expect("nobody refuses")
}

/// What an update says, in a word or two.
fn word(update: &Update) -> String {
    match update {
        Update::Begun { resumed } => format!("begun {resumed}"),
        Update::Reset { .. } => "reset".to_owned(),
        Update::Snapshot { uid, .. } => format!("is {uid}"),
        Update::Online { uid, .. } => format!("+{uid}"),
        Update::Offline { uid, .. } => format!("-{uid}"),
        Update::Live { .. } => "live".to_owned(),
        Update::Cursor(_) => "cursor".to_owned(),
        Update::Interrupted { .. } => "interrupted".to_owned(),
    }
}

/// The words up to and with the first that is `last`, cursors and interruptions left out.
async fn until(follower: &mut Follower, last: &str) -> Vec<String> {
    let mut words = Vec::new();
    more(follower, &mut words, last).await;
    words
}

/// As [`until`], behind what `words` has; what came is there also where it is dropped.
async fn more(follower: &mut Follower, words: &mut Vec<String>, last: &str) {
    loop {
        let word = word(&next(follower).await);
        let is_last = word == last;
        if word != "cursor" && word != "interrupted" {
            words.push(word);
        }
        if is_last {
            return;
        }
    }
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
    assert_eq!((sent.status(), sent.connections), (PushStatus::Sent, 1));
    assert_eq!(event(&mut mute).await, Event::Push { seq: sent.seq, uri: "/a".into(), body: "b".into() });
    assert_eq!(control.push("nobody", "/a", "b").await.unwrap().status(), PushStatus::Offline);
    let acked = control.ask("alice", "/a", "yes", minute).await.unwrap();
    assert_eq!((acked.status(), &*acked.reply), (PushStatus::Acked, "yes"));
    let nacked = control.ask("alice", "/a", "no", minute).await.unwrap();
    assert_eq!((nacked.status(), &*nacked.reply), (PushStatus::Nacked, "never"));
    let silent = control.ask("mute", "/a", "b", Duration::from_millis(1)).await.unwrap();
    assert_eq!(silent.status(), PushStatus::AckTimeout);
    let asking = tokio::spawn({
        let control = control.clone();
        async move { control.ask("mute", "/last", "b", minute).await }
    });
    while !matches!(event(&mut mute).await, Event::Push { uri, .. } if uri == "/last") {}
    drop(mute);
    assert_eq!(asking.await.unwrap().unwrap().status(), PushStatus::ConnectionLost);
}

#[tokio::test]
async fn every_call_answers_with_its_own_type() {
    let server = TestServer::start().await;
    let control = control(&server);
    let mut alice = device(&server, "alice").await;
    let statuses = control.push_many(["alice", "bob"], "/many", "m").await.unwrap();
    let statuses: Vec<_> = statuses.iter().map(|result| result.status()).collect();
    assert_eq!(statuses, [PushStatus::Sent, PushStatus::Offline]);
    let broadcast = control.broadcast("/all", "b").await.unwrap();
    assert_eq!((broadcast.sent, broadcast.queue_full), (1, 0));
    for uri in ["/many", "/all"] {
        assert!(matches!(event(&mut alice).await, Event::Push { uri: found, .. } if found == uri));
    }
    let states = control.is_online(["bob", "alice"]).await.unwrap().states;
    assert_eq!(
        states.iter().map(|state| (&*state.uid, state.online)).collect::<Vec<_>>(),
        [("bob", false), ("alice", true)]
    );
    assert_eq!(control.host("").await.unwrap().host, server.device().to_string());
    let info = control.info().await.unwrap();
    assert_eq!((info.uids, info.connections, &*info.node), (1, 1, "node-1"));
    let mut sessions = control.sessions("").await.unwrap();
    let listed = sessions.message().await.unwrap().unwrap().sessions;
    assert_eq!((listed.len(), &*listed[0].uid, listed[0].dialect), (1, "alice", 2));
    assert_eq!(sessions.message().await.unwrap(), None);
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
    let push = |id: u64| PushRequest {
        uid: if id.is_multiple_of(2) { "alice" } else { "bob" }.to_owned(),
        uri: if id == 5 { "/auth/x" } else { "/a" }.to_owned(),
        id,
        ..Default::default()
    };
    let batches =
        (0..10).map(move |batch| PushStreamRequest { pushes: (batch * 3..batch * 3 + 3).map(push).collect() });
    let results = control.push_stream(stream::iter(batches)).await.unwrap();
    let results: Vec<_> = results.flat_map(|response| stream::iter(response.unwrap().results)).collect().await;
    assert_eq!(results.iter().map(|result| result.id).collect::<Vec<_>>(), (0..30).collect::<Vec<_>>());
    for result in results {
        let expected = match result.id {
            5 => PushStatus::Invalid,
            even if even % 2 == 0 => PushStatus::Sent,
            _ => PushStatus::Offline,
        };
        assert_eq!(result.status(), expected, "{result:?}");
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
    let no_tls = ours.host("tls").await.unwrap_err();
    assert!(matches!(no_tls, CallError::Unavailable(_)), "{no_tls:?}");
    let url = format!("http://{}", server.addresses.control);
    for secret in ["", "another"] {
        let refused = Control::connect(&url, secret).unwrap().info().await.unwrap_err();
        assert!(matches!(refused, CallError::Refused(_)), "{refused:?}");
        let refused = Control::connect(&url, secret).unwrap().follow([""; 0]).next().await.unwrap_err();
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
async fn a_follower_goes_over_a_restart_of_the_gateway_to_a_reset() {
    let (config, _folder) = at_one_place();
    let server = TestServer::of(config.clone(), None, |builder| builder).await;
    let mut follower = control(&server).follow([""; 0]);
    let alice = server.hub.connect("alice").unwrap();
    assert_eq!(until(&mut follower, "live").await, ["begun false", "is alice", "live"]);
    let bob = server.hub.connect("bob").unwrap();
    let Update::Online { epoch: before, .. } = next_change(&mut follower).await else { panic!("bob came") };
    drop((alice, bob));
    server.stopped().await;

    let server = TestServer::of(config, None, |builder| builder).await;
    let _carol = server.hub.connect("carol").unwrap();
    let told = until(&mut follower, "live").await;
    let last = told.iter().rposition(|word| word == "reset").expect("another log");
    assert!(told[last..].contains(&"is carol".to_owned()) || told.contains(&"+carol".to_owned()), "{told:?}");
    assert!(told[..last].iter().all(|word| word.starts_with('-') || word.starts_with("begun ")), "{told:?}");
    let _dora = server.hub.connect("dora").unwrap();
    let Update::Online { uid, epoch, .. } = next_change(&mut follower).await else { panic!("dora came") };
    assert_eq!(uid, "dora");
    assert!(epoch > before, "epochs grow over a restart");
}

/// The next update that is a change.
async fn next_change(follower: &mut Follower) -> Update {
    loop {
        match next(follower).await {
            change @ (Update::Online { .. } | Update::Offline { .. }) => return change,
            Update::Cursor(_) => {}
            other => panic!("a change: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_follower_goes_over_a_broken_connection_without_losing_or_repeating() {
    let server = TestServer::start().await;
    let mut link = Link::to(server.addresses.control).await;
    let mut follower = Control::connect(&format!("http://{}", link.address), SECRET).unwrap().follow(["a", "b", "c"]);
    assert_eq!(until(&mut follower, "live").await, ["begun false", "live"]);
    let mut expected = Vec::new();
    let mut told = Vec::new();
    for _ in 0..5 {
        let a = server.hub.connect("a").unwrap();
        link.cut();
        let b = server.hub.connect("b").unwrap();
        server.hub.connect("not followed").unwrap();
        expected.extend(["+a", "+b"]);
        // Polled while it can't get through.
        tokio::select! {
            () = link.tried() => {}
            () = more(&mut follower, &mut told, "never") => {}
        }
        link.mend();
        drop((a, b));
        expected.extend(["-a", "-b"]);
        more(&mut follower, &mut told, "-b").await;
    }
    told.retain(|word| word != "live" && word != "begun true");
    assert_eq!(told, expected);
}

#[tokio::test]
async fn from_a_kept_cursor_only_what_was_missed_is_told() {
    let server = TestServer::start().await;
    let control = control(&server);
    let mut follower = control.follow([""; 0]);
    let _alice = server.hub.connect("alice").unwrap();
    let mut kept = String::new();
    while kept.is_empty() {
        if let Update::Cursor(cursor) = next(&mut follower).await {
            kept = cursor;
        }
    }
    drop(follower);
    let _bob = server.hub.connect("bob").unwrap();
    let request = OnlineStatusRequest { resume_after: kept, ..Default::default() };
    let mut follower = control.follow_request(request);
    assert_eq!(until(&mut follower, "live").await, ["begun true", "+bob", "live"]);
}

#[tokio::test]
async fn a_cursor_that_is_too_old_brings_a_reset_also_where_no_snapshot_was_wanted() {
    let server = TestServer::with(|config| config.presence.history = 2).await;
    let control = control(&server);
    let mut follower = control.follow_request(OnlineStatusRequest { skip_snapshot: true, ..Default::default() });
    let _alice = server.hub.connect("alice").unwrap();
    let mut kept = String::new();
    while kept.is_empty() {
        if let Update::Cursor(cursor) = next(&mut follower).await {
            kept = cursor;
        }
    }
    let _many: Vec<_> = (0..5_000).map(|uid| server.hub.connect(&format!("uid-{uid}")).unwrap()).collect();
    let request = OnlineStatusRequest { resume_after: kept, skip_snapshot: true, ..Default::default() };
    let mut follower = control.follow_request(request);
    assert_eq!(word(&next(&mut follower).await), "begun true");
    assert_eq!(word(&next(&mut follower).await), "reset");
    let told = until(&mut follower, "live").await;
    assert_eq!(told.len(), 5_002, "everyone, and LIVE");
}

#[tokio::test]
async fn a_call_of_next_that_is_dropped_loses_no_update() {
    let server = TestServer::start().await;
    let mut follower = control(&server).follow([""; 0]);
    assert_eq!(until(&mut follower, "live").await, ["begun false", "live"]);
    let _all: Vec<_> = (0..500).map(|uid| server.hub.connect(&format!("{uid}")).unwrap()).collect();
    let mut seen = BTreeMap::new();
    while seen.len() < 500 {
        tokio::select! {
            biased;
            update = next(&mut follower) => if let Update::Online { uid, .. } = update {
                *seen.entry(uid).or_insert(0) += 1;
            },
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
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
async fn a_device_comes_back_after_a_drain_and_a_restart() {
    let (mut config, _folder) = at_one_place();
    config.drain.timeout = Duration::from_secs(5);
    let server = TestServer::of(config.clone(), None, |builder| builder).await;
    let address = server.device();
    let mut device = device(&server, "alice").await;
    let mut server = server;
    let stopped = server.stopping();
    let Event::Kick { reason, reconnect, after } = event(&mut device).await else { panic!("a kick comes first") };
    assert_eq!((&*reason, reconnect), ("draining", true));
    assert!(after <= Duration::from_secs(5), "{after:?}");
    assert_eq!(event(&mut device).await, Event::Closed);
    stopped.await;

    let mut backoff = Backoff::default();
    let coming = tokio::spawn(async move {
        loop {
            match Device::connect(address, DeviceOptions::new("alice")).await {
                Ok(device) => return device,
                Err(LoginError::Io(_) | LoginError::Closed) => tokio::time::sleep(backoff.failed()).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    let server = TestServer::of(config, None, |builder| builder).await;
    let mut device = timeout(PATIENCE, coming).await.expect("it comes back").unwrap();
    let pushed = control(&server).push("alice", "/a", "again").await.unwrap();
    assert_eq!(pushed.status(), PushStatus::Sent);
    assert!(matches!(event(&mut device).await, Event::Push { seq, .. } if seq == pushed.seq));
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
