//! The gateway as a library: what a program gives to its builder, and that nothing of it blocks or breaks the gateway.

mod common;

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{
    PATIENCE, TestDevice, TestServer, authenticator::Oracle, backend, config, eventually, http, online, push,
};
use plex::{
    AuthError, AuthFuture, AuthRequest, Authenticator, Config, Identity, PresenceEvent, Server, StartError,
    model::OfflineReason, proto::PushStatus,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc::{self, UnboundedReceiver, unbounded_channel},
    time::timeout,
};

/// Knows devices by "uid:word", and where they come from.
struct Word(&'static str);

impl Authenticator for Word {
    fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a> {
        Box::pin(async move {
            let from_here = request.remote_address.starts_with("127.0.0.1:");
            match request.credential.split_once(':') {
                Some((uid, word)) if word == self.0 && from_here => Ok(Identity::new(uid)),
                Some((_, "later")) => Err(AuthError::Unavailable("asked to be".into())),
                _ => Err(AuthError::Refused),
            }
        })
    }
}

/// Authenticates; gives the uri and the reason of the answer.
async fn answer(device: &mut TestDevice, credential: &str) -> (String, String) {
    device.auth_v2(credential).await;
    let answer = device.next().await;
    let reason = answer.json()["reason"].as_str().unwrap_or_default().to_owned();
    (answer.uri, reason)
}

fn failed(reason: &str) -> (String, String) {
    ("/auth/failed".into(), reason.into())
}

fn success() -> (String, String) {
    ("/auth/success".into(), String::new())
}

#[tokio::test]
async fn an_authenticator_of_the_program_decides_instead_of_the_mode() {
    let server = TestServer::built(
        |config| config.auth.unavailable_delay = Duration::ZERO,
        |builder| builder.authenticator(Word("sesame")),
    )
    .await;
    let mut device = TestDevice::connect(server.device()).await;
    assert_eq!(answer(&mut device, "alice").await, failed("refused"), "its word alone isn't enough");
    assert_eq!(answer(&mut device, "alice:later").await, failed("unavailable"));
    assert_eq!(answer(&mut device, "alice:sesame").await, success());
    let states = online(&mut server.backend().await, &["alice", "alice:sesame"]).await;
    assert_eq!(states.iter().map(|state| state.online).collect::<Vec<_>>(), [true, false]);
}

#[tokio::test]
async fn with_an_authenticator_of_its_own_nothing_has_to_be_said_about_trust() {
    let (mut config, _folder) = config();
    config.device.listen = Some("0.0.0.0:0".parse().unwrap());
    config.hosts.advertise = Some(vec!["gateway.example:9578".parse().unwrap()]);
    assert!(matches!(Server::builder(config.clone()).build(), Err(StartError::Config(_))), "trust would be refused");
    assert!(Server::builder(config).authenticator(Word("sesame")).build().is_ok());
}

#[tokio::test]
async fn a_configuration_put_together_by_a_program_is_checked_as_a_file_is() {
    let error = |change: fn(&mut Config)| {
        let (mut config, _folder) = config();
        change(&mut config);
        match Server::builder(config).build() {
            Err(error) => error.to_string(),
            Ok(_) => panic!("it is refused"),
        }
    };
    assert!(error(|config| config.device.auth_attempts = 0).starts_with("device.auth_attempts = 0: "));
    let heartbeat = error(|config| config.device.heartbeat = config.device.heartbeat_timeout);
    assert!(heartbeat.starts_with("device.heartbeat = \"2m\": "), "{heartbeat}");
    let control = error(|config| config.control.listen = "0.0.0.0:0".parse().unwrap());
    assert!(control.starts_with("control.listen = \"0.0.0.0:0\": "), "{control}");
}

#[tokio::test]
async fn who_waits_longer_than_the_timeout_for_a_place_is_told_unavailable() {
    let oracle = Oracle::default();
    let authenticator = oracle.clone();
    let server = TestServer::built(
        |config| {
            config.auth.max_in_flight = 1;
            config.auth.timeout = Duration::from_millis(300);
            config.auth.unavailable_delay = Duration::ZERO;
        },
        |builder| builder.authenticator(authenticator),
    )
    .await;
    // Each of these has the only place for the whole time-out: the last one waits longer for it.
    let mut devices = Vec::new();
    for place in 0..4 {
        let mut device = TestDevice::connect(server.device()).await;
        device.auth_v2("hang").await;
        if place == 0 {
            oracle.until_asked(1).await;
        }
        devices.push(device);
    }
    for device in &mut devices {
        assert_eq!(device.next().await.json(), json!({"reason": "unavailable"}));
    }
    assert!(oracle.asked() < 4, "one at a time, and who waited too long wasn't asked about: {}", oracle.asked());
    // The places have come back.
    assert_eq!(answer(&mut devices[0], "alice").await, success());
}

/// An event in short, as the tests of the control plane have them.
fn word(event: &PresenceEvent) -> String {
    match event {
        PresenceEvent::Change(change) if change.offline.is_none() => format!("+{}", change.uid.as_str()),
        PresenceEvent::Change(change) => format!("-{}", change.uid.as_str()),
        PresenceEvent::Snapshot { uid, .. } => format!("={}", uid.as_str()),
        PresenceEvent::Live { .. } => "live".into(),
        PresenceEvent::Reset { .. } => "reset".into(),
    }
}

/// What a gateway has told to its program.
struct Told(UnboundedReceiver<PresenceEvent>);

impl Told {
    async fn next(&mut self) -> PresenceEvent {
        timeout(PATIENCE, self.0.recv()).await.expect("an event in time").expect("it is told more")
    }

    /// The words up to and with the first that is `last`.
    async fn until(&mut self, last: &str) -> Vec<String> {
        let mut words = Vec::new();
        while words.last().is_none_or(|word| word != last) {
            words.push(word(&self.next().await));
        }
        words
    }

    /// Expects that it is told nothing more, as it was dropped.
    async fn expect_end(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        while let Some(event) = timeout(PATIENCE, self.0.recv()).await.expect("the end in time") {
            words.push(word(&event));
        }
        words
    }
}

/// A gateway that tells presence to the test.
async fn telling(change: impl FnOnce(&mut Config)) -> (TestServer, Told) {
    let (tell, told) = unbounded_channel();
    let server = TestServer::built(change, |builder| builder.on_presence(move |event| drop(tell.send(event)))).await;
    (server, Told(told))
}

/// A push arrives, so the gateway lives.
async fn expect_alive(server: &TestServer, uid: &str) {
    let mut device = server.login(uid).await;
    let outcome = server.backend().await.push(push(uid, "/greeting", "")).await.unwrap().into_inner();
    assert_eq!(outcome.status(), PushStatus::Sent);
    assert_eq!(device.next().await.uri, "/greeting");
    assert_eq!(http(server.addresses.http, "GET", "/readyz").await.0, 200);
}

#[tokio::test]
async fn on_presence_is_told_live_and_then_every_change() {
    let (server, mut told) = telling(|_| {}).await;
    assert_eq!(told.until("live").await, ["live"], "nobody is there yet");
    let alice = server.login("alice").await;
    let PresenceEvent::Change(online) = told.next().await else { panic!("a change") };
    assert_eq!((online.uid.as_str(), online.node.as_str(), online.offline), ("alice", "node-1", None));
    drop(alice);
    let PresenceEvent::Change(offline) = told.next().await else { panic!("a change") };
    assert_eq!((offline.uid.as_str(), offline.offline), ("alice", Some(OfflineReason::Closed)));
    assert!(offline.epoch > online.epoch && offline.at >= online.at);
}

#[tokio::test]
async fn on_presence_is_not_told_live_before_presence_has_settled() {
    let (server, mut told) = telling(|config| config.presence.settle = Duration::from_secs(1)).await;
    let _alice = server.login("alice").await;
    let words = told.until("live").await;
    assert!(words == ["+alice", "live"] || words == ["=alice", "live"], "{words:?}");
}

/// Something that is waited for outside of any runtime.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    fn wait(&self) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

#[tokio::test]
async fn on_presence_that_blocks_falls_behind_and_is_told_a_reset_and_nobody_waits_for_it() {
    let (tell, told) = unbounded_channel();
    let mut told = Told(told);
    let gate = Arc::new(Gate::default());
    let blocked = Arc::clone(&gate);
    let server = TestServer::built(
        |config| config.presence.history = 10,
        |builder| {
            builder.on_presence(move |event| {
                drop(tell.send(event));
                blocked.wait();
            })
        },
    )
    .await;
    assert_eq!(told.until("live").await, ["live"]);
    let _alice = server.login("alice").await;
    for round in 0..20 {
        expect_alive(&server, &format!("guest-{round}")).await;
    }
    let mut backend = server.backend().await;
    eventually("the guests have gone", || {
        let mut backend = backend.clone();
        async move { online(&mut backend, &["guest-19"]).await.iter().all(|state| !state.online).then_some(()) }
    })
    .await;
    assert!(told.0.try_recv().is_err(), "it is still blocked");
    gate.open();
    let words = told.until("live").await;
    assert_eq!(words[words.len() - 3..], ["reset", "=alice", "live"], "a snapshot replaces what was missed: {words:?}");
    let _bob = server.login("bob").await;
    assert_eq!(word(&told.next().await), "+bob");
    assert!(online(&mut backend, &["alice", "bob"]).await.iter().all(|state| state.online));
}

#[tokio::test]
async fn a_gateway_stops_in_time_while_on_presence_blocks() {
    let gate = Arc::new(Gate::default());
    let (blocked, entered) = (Arc::clone(&gate), Arc::new(AtomicBool::new(false)));
    let enters = Arc::clone(&entered);
    let server = TestServer::built(
        |_| {},
        |builder| {
            builder.on_presence(move |_| {
                enters.store(true, SeqCst);
                blocked.wait();
            })
        },
    )
    .await;
    eventually("it blocks", || async { entered.load(SeqCst).then_some(()) }).await;
    server.stopped().await;
    gate.open();
}

#[tokio::test]
async fn on_presence_may_block_by_the_means_of_a_runtime() {
    let (tell, mut told) = mpsc::channel(1);
    let runtime = tokio::runtime::Handle::current();
    let server = TestServer::built(
        |_| {},
        |builder| {
            builder.on_presence(move |event| {
                tell.blocking_send(word(&event)).expect("somebody listens");
                runtime.block_on(tell.send("and so on".into())).expect("somebody listens");
            })
        },
    )
    .await;
    let mut next = async || timeout(PATIENCE, told.recv()).await.expect("in time").expect("it hasn't panicked");
    assert_eq!((next().await, next().await), ("live".into(), "and so on".into()));
    let _alice = server.login("alice").await;
    assert_eq!((next().await, next().await), ("+alice".into(), "and so on".into()));
}

#[tokio::test]
async fn on_presence_that_panics_is_told_nothing_more_and_the_gateway_goes_on() {
    let (tell, told) = unbounded_channel();
    let mut told = Told(told);
    let server = TestServer::built(
        |_| {},
        |builder| {
            builder.on_presence(move |event| {
                let panics = word(&event) == "+alice";
                drop(tell.send(event));
                assert!(!panics, "asked to");
            })
        },
    )
    .await;
    assert_eq!(told.until("live").await, ["live"]);
    expect_alive(&server, "alice").await;
    assert_eq!(told.expect_end().await, ["+alice"]);
    expect_alive(&server, "bob").await;
    server.stopped().await;
}

#[tokio::test]
async fn on_presence_is_told_of_all_whom_the_drain_sends_away() {
    let (server, mut told) = telling(|config| config.drain.rate = 1).await;
    assert_eq!(told.until("live").await, ["live"]);
    let mut devices = Vec::new();
    for uid in ["a", "b"] {
        devices.push(server.login(uid).await);
    }
    assert_eq!(told.until("+b").await, ["+a", "+b"]);
    let stopped = tokio::spawn(server.stopped());
    for _ in 0..2 {
        let PresenceEvent::Change(change) = told.next().await else { panic!("a change") };
        assert_eq!(change.offline, Some(OfflineReason::Draining), "{change:?}");
    }
    drop(devices);
    stopped.await.unwrap();
    assert!(told.expect_end().await.is_empty());
}

#[tokio::test]
async fn dropping_a_running_gateway_stops_all_of_it() {
    let (tell, told) = unbounded_channel();
    let mut told = Told(told);
    let (config, _folder) = config();
    let server = Server::builder(config).on_presence(move |event| drop(tell.send(event))).build().unwrap();
    let bound = server.bind().await.unwrap();
    let addresses = bound.addresses();
    let running = tokio::spawn(bound.run());
    assert_eq!(told.until("live").await, ["live"]);
    let mut alice = TestDevice::login(addresses.device.unwrap(), "alice").await;
    assert_eq!(word(&told.next().await), "+alice");
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    told.expect_end().await;
    let ended = timeout(PATIENCE, alice.stream.read(&mut [0])).await.expect("it ends");
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    for address in [addresses.device, Some(addresses.control), Some(addresses.http), addresses.metrics] {
        let address = address.expect("all are on");
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens at {address}");
    }
}

/// A caller that has begun to speak HTTP/2, and then does nothing more.
async fn deaf(server: &TestServer) -> TcpStream {
    let mut caller = TcpStream::connect(server.addresses.control).await.unwrap();
    caller.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // The gateway's own settings: it knows that it is spoken with.
    timeout(PATIENCE, caller.read_exact(&mut [0; 9])).await.expect("in time").unwrap();
    caller
}

#[tokio::test]
async fn a_caller_that_does_not_listen_holds_a_stop_no_longer_than_drain_timeout_lets_it() {
    let mut patient = TestServer::with(|config| config.drain.timeout = Duration::from_secs(3_600)).await;
    let mut hasty = TestServer::with(|config| config.drain.timeout = Duration::from_millis(1)).await;
    let _callers = (deaf(&patient).await, deaf(&hasty).await);
    let (patient, hasty) = (patient.stopping(), hasty.stopping());
    tokio::select! {
        () = hasty => {}
        () = patient => panic!("the one with less time is the first"),
    }
}

#[test]
fn a_gateway_runs_and_drains_inside_a_runtime_without_a_clock() {
    let (config, _folder) = config();
    // Neither time nor sockets: what the gateway needs of them it has itself.
    let host = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let bound = host.block_on(async { Server::builder(config).build().unwrap().bind().await.unwrap() });
    let (addresses, stop) = (bound.addresses(), bound.stopper());
    let running = std::thread::spawn(move || host.block_on(bound.run()));
    let test = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    test.block_on(async {
        let mut alice = TestDevice::login(addresses.device.unwrap(), "alice").await;
        let mut backend = backend(addresses.control, common::SECRET).await;
        backend.push(push("alice", "/greeting", "")).await.unwrap();
        assert_eq!(alice.next().await.uri, "/greeting");
        stop.shutdown();
        alice.expect_kick("draining").await;
        tokio::task::spawn_blocking(|| running.join()).await.unwrap().expect("it doesn't panic");
    });
}
