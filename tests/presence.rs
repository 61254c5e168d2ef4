//! What presence promises to one subscriber: IsOnline, the snapshot, LIVE, every change, and the fields of each event.
//! What becomes of a stream that breaks, or falls behind, stands in `presence_resume.rs`.

mod common;

use common::{
    Bearer, SECRET, TestDevice, TestServer, eventually, online, sessions,
    watch::{Watch, everyone, only, sorted_words, word, words},
};
use plex::proto::{self, OfflineReason, OnlineStatusKind, OnlineStatusRequest, gateway_client::GatewayClient};
use prost_types::Timestamp;
use std::time::{Duration, SystemTime};
use tonic::{Code, transport::Endpoint};

fn millis(time: Option<Timestamp>) -> i64 {
    let time = time.expect("a time");
    assert_eq!(time.nanos % 1_000_000, 0);
    time.seconds * 1_000 + i64::from(time.nanos) / 1_000_000
}

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Waits until nobody is online.
async fn deserted(server: &TestServer) {
    server.metric_is("plex_uids_online", 0).await;
}

#[tokio::test]
async fn is_online_answers_for_each_uid_in_order() {
    let before = now();
    let server = TestServer::with(|config| config.device.connections_per_uid = 2).await;
    let mut backend = server.backend().await;
    let _alice = (server.login("alice").await, server.login("alice").await);
    let bob = server.login("bob").await;
    let states = online(&mut backend, &["nobody", "bob", "alice", "bob"]).await;
    assert_eq!(states[0], proto::OnlineState { uid: "nobody".into(), ..Default::default() });
    let told: Vec<_> = states.iter().map(|state| (state.online, state.connections, &*state.node)).collect();
    assert_eq!(told, [(false, 0, ""), (true, 1, "node-1"), (true, 2, "node-1"), (true, 1, "node-1")]);
    for state in &states[1..] {
        assert!((before..=now()).contains(&millis(state.since)), "{state:?}");
    }
    drop(bob);
    eventually("bob has gone", || async {
        let states = online(&mut backend.clone(), &["bob"]).await;
        (states[0] == proto::OnlineState { uid: "bob".into(), ..Default::default() }).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_uid_is_online_from_its_success_on_until_its_last_connection_has_ended() {
    let server = TestServer::with(|config| config.device.connections_per_uid = 2).await;
    let mut backend = server.backend().await;
    let mut stranger = TestDevice::connect(server.device()).await;
    assert!(!online(&mut backend, &["alice"]).await[0].online);
    stranger.auth_v2("alice").await;
    stranger.next().await;
    assert!(online(&mut backend, &["alice"]).await[0].online);
    let (mut watch, _) = Watch::live(&mut backend, everyone()).await;
    let other = server.login("alice").await;
    drop(stranger);
    eventually("one connection", || async {
        (online(&mut backend.clone(), &["alice"]).await[0].connections == 1).then_some(())
    })
    .await;
    drop(other);
    watch.expect_offline("alice", OfflineReason::Closed).await;
}

#[tokio::test]
async fn known_since_is_when_the_log_began_in_every_answer() {
    let before = now();
    let server = TestServer::start().await;
    let begun = now();
    let mut backend = server.backend().await;
    let asked = proto::IsOnlineRequest { uids: vec!["alice".into()] };
    let known_since = backend.is_online(asked).await.unwrap().into_inner().known_since;
    assert!((before..=begun).contains(&millis(known_since)));
    assert_eq!(backend.get_info(proto::GetInfoRequest {}).await.unwrap().into_inner().known_since, known_since);
    let live = Watch::open(&mut backend, everyone()).await.event().await;
    assert_eq!((live.kind(), live.at), (OnlineStatusKind::Live, known_since));
    let no_cursor = OnlineStatusRequest { resume_after: "no cursor".into(), ..everyone() };
    let reset = Watch::open(&mut backend, no_cursor).await.event().await;
    assert_eq!((reset.kind(), reset.at), (OnlineStatusKind::Reset, known_since));
}

#[tokio::test]
async fn a_stream_tells_who_is_online_then_live_then_every_change() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let (alice, _bob) = (server.login("alice").await, server.login("bob").await);
    let (mut watch, told) = Watch::live(&mut backend, everyone()).await;
    assert_eq!(sorted_words(&told), "=alice =bob");
    let _carol = server.login("carol").await;
    watch.expect_online("carol").await;
    drop(alice);
    watch.expect_offline("alice", OfflineReason::Closed).await;
    let _alice = server.login("alice").await;
    watch.expect_online("alice").await;
}

#[tokio::test]
async fn without_the_snapshot_a_stream_begins_with_live_and_tells_what_changes() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let alice = server.login("alice").await;
    let request = OnlineStatusRequest { skip_snapshot: true, ..everyone() };
    let (mut watch, told) = Watch::live(&mut backend, request).await;
    assert_eq!(words(&told), "");
    assert!(!watch.cursor.is_empty());
    drop(alice);
    watch.expect_offline("alice", OfflineReason::Closed).await;
}

#[tokio::test]
async fn a_uid_that_replaces_its_connection_gets_no_event_and_keeps_its_since() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let (mut watch, _) = Watch::live(&mut backend, everyone()).await;
    let mut device = server.login("alice").await;
    let came = watch.expect_online("alice").await;
    for _ in 0..5 {
        let next = server.login("alice").await;
        device.expect_kick("replaced").await;
        device = next;
        let state = online(&mut backend, &["alice"]).await.remove(0);
        assert_eq!((state.since, state.connections), (came.at, 1));
    }
    let _bob = server.login("bob").await;
    watch.expect_online("bob").await;
    drop(device);
    let left = watch.expect_offline("alice", OfflineReason::Closed).await;
    assert!(left.epoch > came.epoch);
}

#[tokio::test]
async fn several_connections_of_a_uid_are_one_coming_and_one_going() {
    let server = TestServer::with(|config| config.device.connections_per_uid = 3).await;
    let mut backend = server.backend().await;
    let (mut watch, _) = Watch::live(&mut backend, everyone()).await;
    let devices = [server.login("alice").await, server.login("alice").await, server.login("alice").await];
    let came = watch.expect_online("alice").await;
    // The snapshot's epoch is that of the newest connection.
    let (_, told) = Watch::live(&mut backend, everyone()).await;
    assert_eq!(words(&told), "=alice");
    let listed = sessions(&mut backend, "alice").await;
    assert_eq!(listed.iter().map(|session| session.epoch).max(), Some(told[0].epoch));
    assert!(told[0].epoch > came.epoch && listed.iter().any(|session| session.epoch == came.epoch));
    drop(devices);
    let left = watch.expect_offline("alice", OfflineReason::Closed).await;
    assert!(left.epoch > told[0].epoch);
    let _bob = server.login("bob").await;
    watch.expect_online("bob").await;
}

#[tokio::test]
async fn each_event_has_its_fields() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let (mut watch, _) = Watch::live(&mut backend, everyone()).await;
    let before = now();
    let device = server.login("alice").await;
    let came = watch.expect_online("alice").await;
    assert_eq!((came.kind(), came.online, &*came.node), (OnlineStatusKind::Change, true, "node-1"));
    assert!((before..=now()).contains(&millis(came.at)));
    assert_eq!(came.at, online(&mut backend, &["alice"]).await[0].since);
    assert_eq!(came.epoch, sessions(&mut backend, "alice").await[0].epoch);

    let (_, told) = Watch::live(&mut backend, everyone()).await;
    assert_eq!((told[0].kind(), told[0].online, told[0].at), (OnlineStatusKind::Snapshot, true, came.at));
    assert_eq!((&*told[0].node, told[0].reason()), ("node-1", OfflineReason::Unspecified));
    assert!(told[0].epoch >= came.epoch);

    drop(device);
    let left = watch.expect_offline("alice", OfflineReason::Closed).await;
    assert_eq!((left.kind(), &*left.node), (OnlineStatusKind::Change, "node-1"));
    assert!(millis(left.at) >= millis(came.at) && left.epoch > came.epoch);
}

#[tokio::test]
async fn only_the_changes_of_those_who_are_followed_are_told() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let (alice, _zoe) = (server.login("alice").await, server.login("zoe").await);
    let (mut watch, told) = Watch::live(&mut backend, only(&["alice", "bob", "alice"])).await;
    assert_eq!(words(&told), "=alice");
    for number in 0..50 {
        drop(server.login(&format!("other-{number}")).await);
    }
    let _bob = server.login("bob").await;
    watch.expect_online("bob").await;
    drop(alice);
    watch.expect_offline("alice", OfflineReason::Closed).await;
}

#[tokio::test]
async fn epochs_of_a_uid_grow_with_every_change_and_over_a_restart() {
    let (config, _folder) = common::config();
    let mut last = 0;
    for start in 0..3 {
        let server = TestServer::of(config.clone(), None, |builder| builder).await;
        let (mut watch, _) = Watch::live(&mut server.backend().await, everyone()).await;
        for _ in 0..5 {
            let device = server.login("alice").await;
            let came = watch.expect_online("alice").await.epoch;
            drop(device);
            let left = watch.expect_offline("alice", OfflineReason::Closed).await.epoch;
            assert!(last < came && came < left, "{last} {came} {left}");
            last = left;
        }
        if start == 0 {
            server.stopped().await;
        }
    }
}

#[tokio::test]
async fn a_batch_has_at_most_a_thousand_events() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let (mut watch, _) = Watch::live(&mut backend, everyone()).await;
    let users: Vec<_> = (0..5_000).map(|number| server.hub.connect(&format!("user-{number}")).unwrap()).collect();
    // The size of each response is checked by the stream's helper.
    for number in 0..5_000 {
        watch.expect_online(&format!("user-{number}")).await;
    }
    let (_, told) = Watch::live(&mut backend, everyone()).await;
    assert_eq!(told.len(), 5_000);
    let some: Vec<_> = (0..10_000).map(|number| format!("user-{number}")).collect();
    let some: Vec<_> = some.iter().map(String::as_str).collect();
    let (_, told) = Watch::live(&mut backend, only(&some)).await;
    assert_eq!(told.len(), 5_000);
    drop(users);
    for number in 0..5_000 {
        let event = watch.event().await;
        assert_eq!(word(&event), format!("-user-{number}"));
    }
}

#[tokio::test]
async fn a_change_waits_for_no_other() {
    let server = TestServer::start().await;
    let (mut watch, _) = Watch::live(&mut server.backend().await, everyone()).await;
    for _ in 0..20 {
        let _connection = server.hub.connect("alice").unwrap();
        watch.expect_online("alice").await;
        drop(_connection);
        watch.expect_offline("alice", OfflineReason::Closed).await;
    }
}

#[tokio::test]
async fn a_keepalive_has_no_event_and_its_cursor_moves_on_with_the_changes_of_others() {
    let server = TestServer::with(|config| config.presence.keepalive = Duration::from_millis(30)).await;
    let mut backend = server.backend().await;
    let (mut watch, _) = Watch::live(&mut backend, only(&["alice"])).await;
    let quiet = watch.response().await.unwrap();
    assert_eq!(quiet.events, []);
    let first = quiet.cursor;
    drop(server.login("bob").await);
    watch.expect_moved_on(&first).await;
}

#[tokio::test]
async fn live_is_not_told_before_the_node_has_settled_and_keepalives_come_meanwhile() {
    let server = TestServer::with(|config| {
        config.presence.keepalive = Duration::from_millis(20);
        config.presence.settle = Duration::from_millis(700);
    })
    .await;
    let began = std::time::Instant::now();
    let mut backend = server.backend().await;
    let (mut watch, mut skips) = (
        Watch::open(&mut backend, everyone()).await,
        Watch::open(&mut backend, OnlineStatusRequest { skip_snapshot: true, ..everyone() }).await,
    );
    let keepalive = watch.response().await.unwrap();
    assert_eq!((&*keepalive.events, &*keepalive.cursor), (&[][..], ""), "nobody resumes in the middle of a snapshot");
    let _alice = server.login("alice").await;
    // Told already, as a change.
    watch.expect_online("alice").await;
    skips.expect_online("alice").await;
    assert_eq!(words(&watch.until_live().await), "");
    assert_eq!(words(&skips.until_live().await), "");
    // A lower bound is no timing: LIVE may come as late as it likes.
    assert!(began.elapsed() >= Duration::from_millis(500), "{:?}", began.elapsed());
    let (_, told) = Watch::live(&mut backend, everyone()).await;
    assert_eq!(words(&told), "=alice");
}

mod reasons {
    //! Each way to end has its reason.

    use super::*;
    use plex::{AuthFuture, AuthRequest, Authenticator, Config, Identity};

    async fn watched(change: impl FnOnce(&mut Config)) -> (TestServer, Watch) {
        let server = TestServer::with(change).await;
        let (watch, _) = Watch::live(&mut server.backend().await, everyone()).await;
        (server, watch)
    }

    #[tokio::test]
    async fn closed_where_the_device_goes_or_the_connection_breaks() {
        let (server, mut watch) = watched(|_| {}).await;
        drop(server.login("alice").await);
        watch.expect_online("alice").await;
        watch.expect_offline("alice", OfflineReason::Closed).await;

        let mut breaks = server.login("alice").await;
        watch.expect_online("alice").await;
        // In the middle of a frame, and with unread bytes: a reset.
        breaks.send_bytes(&[0, 0, 1, 0, b'{']).await;
        let pushed = server.backend().await.push(common::push("alice", "/x", "")).await.unwrap().into_inner();
        assert_eq!(pushed.connections, 1);
        breaks.stream.readable().await.unwrap();
        drop(breaks);
        watch.expect_offline("alice", OfflineReason::Closed).await;
        deserted(&server).await;
    }

    #[tokio::test]
    async fn timeout_where_no_sign_of_life_comes() {
        let (server, mut watch) = watched(|config| {
            config.device.heartbeat = Duration::from_millis(100);
            config.device.heartbeat_timeout = Duration::from_millis(200);
        })
        .await;
        let mut device = server.login("alice").await;
        watch.expect_online("alice").await;
        watch.expect_offline("alice", OfflineReason::Timeout).await;
        device.expect_kick("timeout").await;
    }

    #[tokio::test]
    async fn disconnected_where_a_backend_says_so() {
        let (server, mut watch) = watched(|_| {}).await;
        let mut device = server.login("alice").await;
        watch.expect_online("alice").await;
        let request = proto::DisconnectRequest { uid: "alice".into(), reason: String::new() };
        server.backend().await.disconnect(request).await.unwrap();
        watch.expect_offline("alice", OfflineReason::Disconnected).await;
        device.expect_kick("disconnected").await;
    }

    #[tokio::test]
    async fn draining_where_the_node_stops() {
        let (mut server, mut watch) = watched(|_| {}).await;
        let mut device = server.login("alice").await;
        watch.expect_online("alice").await;
        let stopped = server.stopping();
        watch.expect_offline("alice", OfflineReason::Draining).await;
        device.expect_kick("draining").await;
        drop(device);
        watch.expect_unavailable().await;
        stopped.await;
    }

    struct ForAMoment;

    impl Authenticator for ForAMoment {
        fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a> {
            let end = SystemTime::now() + Duration::from_millis(200);
            Box::pin(async move { Ok(Identity::new(request.credential).expires_at(end)) })
        }
    }

    #[tokio::test]
    async fn expired_where_the_credential_s_time_is_over() {
        let server = TestServer::built(|_| {}, |builder| builder.authenticator(ForAMoment)).await;
        let (mut watch, _) = Watch::live(&mut server.backend().await, everyone()).await;
        let mut device = server.login("alice").await;
        watch.expect_online("alice").await;
        watch.expect_offline("alice", OfflineReason::Expired).await;
        device.expect_kick("expired").await;
    }

    #[tokio::test]
    async fn slow_where_the_queue_is_not_read() {
        let (server, mut watch) = watched(|config| config.device.write_timeout = Duration::from_millis(200)).await;
        let _device = server.login("alice").await;
        watch.expect_online("alice").await;
        let mut backend = server.backend().await;
        let body = "x".repeat(60_000);
        eventually("it is slow", || {
            let (mut backend, push) = (backend.clone(), common::push("alice", "/x", &body));
            async move {
                let status = backend.push(push).await.unwrap().into_inner().status();
                (status == proto::PushStatus::Offline).then_some(())
            }
        })
        .await;
        watch.expect_offline("alice", OfflineReason::Slow).await;
        assert!(sessions(&mut backend, "alice").await.is_empty());
    }

    #[tokio::test]
    async fn protocol_where_there_are_too_many_errors_or_a_frame_is_too_large() {
        let (server, mut watch) = watched(|config| config.device.max_errors = 1).await;
        let mut device = server.login("alice").await;
        watch.expect_online("alice").await;
        device.send("no JSON").await;
        device.send("no JSON").await;
        watch.expect_offline("alice", OfflineReason::Protocol).await;
        let mut device = server.login("alice").await;
        watch.expect_online("alice").await;
        device.send_bytes(&[0x7f, 0, 0, 0]).await;
        watch.expect_offline("alice", OfflineReason::Protocol).await;
        deserted(&server).await;
    }
}

#[tokio::test]
async fn the_changes_of_a_drain_are_told_before_its_end_to_one_who_reads_late_too() {
    let mut server = TestServer::start().await;
    let long = "u".repeat(240);
    let mut devices = Vec::new();
    for number in 0..200 {
        devices.push(server.login(&format!("{long}{number}")).await);
    }
    // What isn't read is held back by the gateway, not on the way.
    let window = 1 << 12;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.addresses.control)).unwrap();
    let narrow = endpoint.initial_stream_window_size(window).initial_connection_window_size(window);
    let mut backend = GatewayClient::with_interceptor(narrow.connect().await.unwrap(), Bearer(SECRET.to_owned()));
    let request = OnlineStatusRequest { skip_snapshot: true, ..everyone() };
    let (mut watch, _) = Watch::live(&mut backend, request).await;
    let (mut prompt, _) = Watch::live(&mut server.backend().await, only(&["nobody"])).await;
    let stopped = server.stopping();
    drop(devices);
    // It is over for one who waited.
    prompt.expect_unavailable().await;
    let (told, status) = watch.rest().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(told.iter().filter(|event| !event.online).count(), 200);
    stopped.await;
}
