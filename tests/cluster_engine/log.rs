//! What becomes of the cluster when somebody lays hands on its log.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use futures_util::StreamExt;
use plex::proto::{OfflineReason, OnlineStatusKind, PushStatus};

use crate::common::{
    TestDevice, TestServer, eventually,
    gateways::{Gateways, LOG, STREAM, over},
    nats::Nats,
    online,
    watch::{Watch, sorted_words, words},
};

/// Devices that come and go at one node until they are told to stop; those that are there at the end.
async fn come_and_go(
    node: &TestServer,
    name: &str,
    logins: &AtomicUsize,
    stop: &AtomicBool,
) -> Vec<(String, TestDevice)> {
    let mut held = Vec::new();
    for number in (0..40).cycle() {
        if stop.load(Relaxed) {
            break;
        }
        let uid = format!("{name}-{number}");
        held.retain(|(other, _)| *other != uid);
        held.push((uid.clone(), node.login(&uid).await));
        if held.len() > 20 {
            held.remove(number % 20);
        }
        logins.fetch_add(1, Relaxed);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    held
}

/// What a stream has told, folded, up to the snapshot or the change that says `last`. How often it began anew.
async fn fold(watch: &mut Watch, last: &str) -> (BTreeMap<String, i64>, usize) {
    let (mut state, mut highest, mut resets) = (BTreeMap::new(), BTreeMap::<String, i64>::new(), 0);
    let mut is_live = true;
    while !is_live || !state.contains_key(last) {
        let event = watch.event().await;
        let before = highest.get(&event.uid).copied().unwrap_or(0);
        match event.kind() {
            OnlineStatusKind::Reset => {
                state.clear();
                resets += 1;
                is_live = false;
            }
            OnlineStatusKind::Live => is_live = true,
            OnlineStatusKind::Change if !event.online => {
                assert!(event.epoch > before, "epochs grow: {event:?} after {before}");
                assert!(state.remove(&event.uid).is_some(), "it was online: {event:?}");
            }
            kind => {
                let grows = event.epoch > before || kind == OnlineStatusKind::Snapshot && event.epoch == before;
                assert!(grows, "epochs grow: {event:?} after {before}");
                assert!(state.insert(event.uid.clone(), event.epoch).is_none(), "it was offline: {event:?}");
            }
        }
        highest.insert(event.uid, event.epoch);
    }
    (state, resets)
}

#[tokio::test]
async fn a_log_that_is_deleted_under_load_is_made_anew_and_all_nodes_agree_with_the_truth() {
    let Some(nats) = Nats::one().await else { return };
    let mut gateways = Gateways::three(&nats.urls()).await;
    let mut watches = gateways.watch().await;
    let mut constant = gateways.login(0, "constant").await;
    let came = watches.until("+constant").await.pop().expect("it came");

    let (logins, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let so_many_more = async |count: usize| {
        let least = logins.load(Relaxed) + count;
        eventually("devices come and go", || std::future::ready((logins.load(Relaxed) >= least).then_some(()))).await;
    };
    let [one, two, three] = &gateways.nodes[..] else { unreachable!("there are three") };
    let loads = async {
        tokio::join!(
            come_and_go(one, "one", &logins, &stop),
            come_and_go(two, "two", &logins, &stop),
            come_and_go(three, "three", &logins, &stop)
        )
    };
    let deleting = async {
        let engine = async_nats::connect(&nats.urls()[0]).await.expect("the server listens");
        so_many_more(100).await;
        let answer = engine.request(format!("$JS.API.STREAM.DELETE.{STREAM}"), "".into()).await.expect("an answer");
        assert!(answer.payload.windows(14).any(|part| part == b"\"success\":true"), "{answer:?}");
        so_many_more(100).await;
        gateways.are_in_step().await;
        so_many_more(100).await;
        stop.store(true, Relaxed);
    };
    let ((one, two, three), ()) = tokio::join!(loads, deleting);

    let held: Vec<_> = one.into_iter().chain(two).chain(three).collect();
    let mut truth: BTreeSet<_> = held.iter().map(|(uid, _)| uid.clone()).collect();
    truth.insert("constant".to_owned());
    let all: Vec<_> =
        ["one", "two", "three"].iter().flat_map(|name| (0..40).map(move |number| format!("{name}-{number}"))).collect();
    let all: Vec<_> = all.iter().map(String::as_str).chain(["constant"]).collect();
    for backend in &gateways.backends {
        eventually("what is known is the truth", || async {
            let states = online(&mut backend.clone(), &all).await;
            let known: BTreeSet<_> = states.into_iter().filter(|state| state.online).map(|state| state.uid).collect();
            (known == truth).then_some(())
        })
        .await;
    }
    let _last = gateways.login(1, "last").await;
    truth.insert("last".to_owned());
    let mut folds = Vec::new();
    for watch in &mut watches.0 {
        let (state, resets) = fold(watch, "last").await;
        assert_eq!(state.keys().cloned().collect::<BTreeSet<_>>(), truth);
        assert!(state["constant"] > came.epoch && resets >= 1, "{resets} resets");
        folds.push(state);
    }
    assert!(folds.iter().all(|state| *state == folds[0]), "the same epochs everywhere");
    gateways.expect_push(2, &mut constant, "constant").await;
}

#[tokio::test]
async fn what_no_node_can_read_is_counted_alike_and_changes_nothing() {
    let Some(nats) = Nats::one().await else { return };
    let urls = nats.urls();
    let mut gateways = Gateways::three(&urls).await;
    let mut watches = gateways.watch().await;
    let mut alice = gateways.login(1, "alice").await;
    watches.until("+alice").await;

    let engine = async_nats::connect(&urls[0]).await.expect("the server listens");
    let long = vec![0xff; 100_000];
    let unreadable: [&[u8]; 10] = [
        // Nothing, an unknown version, an unknown kind, each kind without all that it needs, a record that is cut short.
        b"",
        b"\x02\x02aaaaaaaabbbbbbbbcccccccc",
        b"\x01\x63aaaaaaaa",
        b"\x01",
        b"\x01\x01aaaa",
        b"\x01\x01aaaaaaaabbbb\x01\x01\x00\xffname",
        b"\x01\x02aaaaaaaabbbbbbb",
        b"\x01\x03aaa",
        b"\x01\x02aaaaaaaabbbbbbbbcccccccc\x01\xff\xff",
        &long,
    ];
    for message in unreadable {
        engine.publish(LOG, message.to_vec().into()).await.unwrap();
    }
    // Of nobody's life, with a record of an unknown kind: read, and void.
    engine.publish(LOG, b"\x01\x02aaaaaaaabbbbbbbbcccccccc\xff\x00\x00".to_vec().into()).await.unwrap();
    engine.flush().await.unwrap();
    let count = unreadable.len() as u64;
    for node in &gateways.nodes {
        node.metric_is("plex_presence_unreadable_messages", count).await;
    }
    let bob = gateways.login(0, "bob").await;
    assert_eq!(words(&watches.until("+bob").await), "+bob");
    drop(bob);
    assert_eq!(words(&watches.until_and_none_lost("-bob").await), "-bob");
    for from in 0..3 {
        gateways.expect_push(from, &mut alice, "alice").await;
    }
    // One that reads them later.
    let fourth = TestServer::with(|config| over(config, &urls, 4)).await;
    fourth.metric_is("plex_presence_unreadable_messages", count).await;
    let (_, told) = Watch::live(&mut fourth.backend().await, Default::default()).await;
    assert_eq!(words(&told), "=alice");
}

#[tokio::test]
async fn what_is_no_question_to_a_node_is_counted_there_and_changes_nothing() {
    const COUNT: &str = "plex_cluster_unreadable_messages";
    let Some(nats) = Nats::one().await else { return };
    let urls = nats.urls();
    let mut gateways = Gateways::three(&urls).await;
    let mut watches = gateways.watch().await;
    let mut alice = gateways.login(1, "alice").await;
    watches.until("+alice").await;
    let engine = async_nats::connect(&urls[0]).await.expect("the server listens");
    let mut asked = engine.subscribe("plex.plex.to.*").await.unwrap();
    engine.flush().await.unwrap();
    gateways.expect_push(0, &mut alice, "alice").await;
    // A node's name there is its number; an echo's isn't.
    let subject = loop {
        let subject = asked.next().await.expect("the push was seen").subject;
        if subject.rsplit('.').next().is_some_and(|last| last.parse::<u64>().is_ok()) {
            break subject;
        }
    };

    for unreadable in [&b""[..], b"\x02\x02", b"\x01\x63aaaa", b"\x01\x01aaaa", b"\x01\x04\xff"] {
        engine.publish_with_reply(subject.clone(), "nobody", unreadable.to_vec().into()).await.unwrap();
    }
    engine.publish(subject, b"\x01\x02".to_vec().into()).await.unwrap();
    engine.flush().await.unwrap();
    gateways.nodes[1].metric_is(COUNT, 6).await;
    for node in [0, 2] {
        assert_eq!(gateways.nodes[node].metric(COUNT).await, 0);
    }
    // One of those that have the state hears it.
    engine.publish("plex.plex.snap", b"which?".to_vec().into()).await.unwrap();
    engine.flush().await.unwrap();
    eventually("it is counted", || async {
        let mut sum = 0;
        for node in &gateways.nodes {
            sum += node.metric(COUNT).await;
        }
        (sum == 7).then_some(())
    })
    .await;
    for from in 0..3 {
        gateways.expect_push(from, &mut alice, "alice").await;
    }
}

#[tokio::test]
async fn while_the_log_takes_nothing_a_push_finds_all_nodes_that_hold_its_uid() {
    let users = |denied: &str| {
        let permissions = format!("permissions {{ publish: {{ deny: [{denied}] }} }}");
        format!("authorization {{ users: [ {{ user: plex, password: plex, {permissions} }} ] }}")
    };
    let Some(nats) = Nats::with(1, |_| users("\"nothing\"")).await else { return };
    let (urls, folder) = (nats.urls(), tempfile::tempdir().unwrap());
    let password = folder.path().join("password");
    std::fs::write(&password, "plex").unwrap();
    let mut gateways = Gateways::with([&urls[..]; 3], |_, config| {
        config.device.connections_per_uid = 2;
        (config.cluster.user, config.cluster.password_file) = (Some("plex".into()), Some(password.clone()));
    })
    .await;
    nats.reconfigure(0, &users(&format!("\"{LOG}\"")));
    gateways.stand_still().await;
    let mut devices = [gateways.login(1, "alice").await, gateways.login(2, "alice").await];
    let _bob = gateways.login(1, "bob").await;
    for (uid, status, connections) in
        [("alice", PushStatus::Sent, 2), ("bob", PushStatus::Sent, 1), ("nobody", PushStatus::Offline, 0)]
    {
        let outcome = gateways.push(0, uid).await;
        assert_eq!((outcome.status(), outcome.connections), (status, connections), "{uid}: {outcome:?}");
    }
    for device in &mut devices {
        assert_eq!(device.next().await.uri, "/x");
        device.expect_quiet().await;
    }
}

/// Users for the gateways, of whom the third may write to the log, or may not.
fn users(third: &str) -> String {
    let others = ["node-1", "node-2"].map(|name| format!("{{ user: {name}, password: \"{name}\" }}")).join(", ");
    format!(
        "authorization {{ users: [ {others}, {{ user: node-3, password: node-3, permissions: {{ publish: {{ deny: \
         [{third}] }} }} }} ] }}"
    )
}

#[tokio::test]
async fn a_gateway_that_may_not_write_any_more_is_declared_dead_and_returns_when_it_may() {
    let Some(nats) = Nats::with(1, |_| users("\"nothing\"")).await else { return };
    let (urls, folder) = (nats.urls(), tempfile::tempdir().unwrap());
    let mut gateways = Gateways::with([&urls[..]; 3], |index, config| {
        let name = format!("node-{}", index + 1);
        let file = folder.path().join(&name);
        std::fs::write(&file, &name).unwrap();
        (config.cluster.user, config.cluster.password_file) = (Some(name), Some(file));
    })
    .await;
    let mut watches = gateways.watch().await;
    let mut alice = gateways.login(2, "alice").await;
    watches.until("+alice").await;

    nats.reconfigure(0, &users(&format!("\"{LOG}\"")));
    let told = watches.until("-alice").await;
    assert_eq!(told[0].reason(), OfflineReason::NodeLost);
    gateways.health_is(2, tonic_health::pb::health_check_response::ServingStatus::NotServing).await;
    gateways.nodes[2].metric_reaches("plex_cluster_server_errors", 1).await;
    for node in &gateways.nodes[..2] {
        assert_eq!(node.metric("plex_cluster_server_errors").await, 0);
    }
    gateways.expect_push(2, &mut alice, "alice").await;
    let _bob = gateways.login(2, "bob").await;

    nats.reconfigure(0, &users("\"nothing\""));
    gateways.are_in_step().await;
    assert_eq!(sorted_words(&watches.next(2).await), "+alice +bob");
    for from in 0..3 {
        gateways.expect_push(from, &mut alice, "alice").await;
    }
}
