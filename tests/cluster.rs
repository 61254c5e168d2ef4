//! Three nodes in one process, each with its own ports: a backend may call any of them. Every promise holds on either
//! log; what may lag behind on one of a server is awaited.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use common::{
    Backend, Message, PATIENCE, TestDevice, TestServer, call,
    cluster::{Log, Nodes, listed},
    eventually, http, online, push,
    pushing::Pushing,
    sessions,
    watch::{Watch, after, everyone, only, sorted_words, words},
};
use plex::proto::{
    BroadcastRequest, DisconnectRequest, GetHostRequest, GetInfoRequest, NodeState, OfflineReason, PushManyRequest,
    PushResponse, PushStatus,
};
use tokio::time::timeout;

/// A test of each for both logs.
macro_rules! on_both_logs {
    ($($promise:ident)*) => {
        mod on_a_log_in_process {
            $(
                #[tokio::test]
                async fn $promise() {
                    super::$promise(super::Log::in_process()).await;
                }
            )*
        }

        #[cfg(feature = "nats")]
        mod on_a_nats_server {
            $(
                #[tokio::test]
                async fn $promise() {
                    if let Some(log) = super::Log::over_nats().await {
                        super::$promise(log).await;
                    }
                }
            )*
        }
    };
}

on_both_logs! {
    a_push_reaches_its_device_from_every_node
    a_call_to_a_device_of_another_node_brings_its_answer_back
    a_push_stream_keeps_its_order_whichever_nodes_hold_the_devices
    push_many_and_broadcast_reach_the_devices_of_all_nodes
    every_node_tells_the_same_presence_with_the_same_numbers
    a_watcher_resumes_at_another_node_with_exactly_what_it_missed
    a_newer_login_at_another_node_replaces_the_older_without_a_word_of_presence
    of_many_logins_of_one_uid_on_all_nodes_exactly_one_stays
    several_connections_of_a_uid_may_be_spread_over_the_nodes
    a_push_to_connections_on_several_nodes_tells_the_number_of_the_newest_and_the_sum_of_all
    disconnect_and_the_list_of_sessions_span_the_nodes
    a_disconnect_ends_connections_of_other_nodes_however_long_its_reason_is
    every_node_sends_devices_to_the_least_loaded_and_not_to_one_that_drains
    every_node_lists_all_nodes_and_no_more_one_that_has_left
    a_node_that_drains_hands_its_devices_over_and_tells_them_offline_once
    a_node_that_joins_again_under_its_name_ends_what_its_earlier_life_held
}

/// Waits until a node knows that `uid` is offline.
async fn gone(backend: &Backend, uid: &str) {
    eventually("it has gone", || async { (!online(&mut backend.clone(), &[uid]).await[0].online).then_some(()) }).await;
}

/// The next message, which is a push with this number.
async fn expect_push(device: &mut TestDevice, outcome: &PushResponse) -> Message {
    let message = device.next().await;
    assert_eq!((&*message.uri, message.seq), ("/x", outcome.seq), "{message:?}");
    message
}

async fn a_push_reaches_its_device_from_every_node(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let mut alice = nodes.login(1, "alice").await;
    for from in 0..3 {
        let outcome = nodes.push(from, "alice").await;
        assert_eq!((outcome.status(), outcome.connections), (PushStatus::Sent, 1), "{outcome:?}");
        expect_push(&mut alice, &outcome).await;
        assert_eq!(nodes.push(from, "nobody").await.status(), PushStatus::Offline);
    }
}

async fn a_call_to_a_device_of_another_node_brings_its_answer_back(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let mut alice = nodes.login(2, "alice").await;
    let minute = Duration::from_secs(60);
    for (uri, expected) in [("/yes", PushStatus::Acked), ("/no", PushStatus::Nacked)] {
        let mut backend = nodes.backends[0].clone();
        let asking = tokio::spawn(async move { backend.push(call("alice", uri, "well?", minute)).await });
        let seq = alice.next().await.seq;
        match expected {
            PushStatus::Acked => alice.ack(seq, "indeed").await,
            _ => alice.nack(seq, "indeed").await,
        }
        let outcome = asking.await.unwrap().unwrap().into_inner();
        assert_eq!((outcome.status(), &*outcome.reply, outcome.seq), (expected, "indeed", seq));
    }
    let silent = nodes.backends[0].push(call("alice", "/x", "", Duration::from_millis(20))).await.unwrap().into_inner();
    assert_eq!(silent.status(), PushStatus::AckTimeout);
    alice.next().await;

    let mut backend = nodes.backends[1].clone();
    let asking = tokio::spawn(async move { backend.push(call("alice", "/x", "", minute)).await });
    alice.next().await;
    drop(alice);
    assert_eq!(asking.await.unwrap().unwrap().into_inner().status(), PushStatus::ConnectionLost);
}

async fn a_push_stream_keeps_its_order_whichever_nodes_hold_the_devices(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let mut devices = Vec::new();
    for node in 0..3 {
        devices.push(nodes.login(node, &format!("device-{node}")).await);
    }
    let mut pushing = Pushing::open(&mut nodes.backends[0]).await;
    let pushes = (1..=300u64).map(|id| {
        let uid = if id % 10 == 0 { "nobody".to_owned() } else { format!("device-{}", id % 3) };
        plex::proto::PushRequest { id, ..push(&uid, "/x", &id.to_string()) }
    });
    pushing.send(pushes.collect()).await;
    pushing.close();
    let (results, end) = pushing.rest().await;
    end.unwrap();
    assert!(results.iter().map(|result| result.id).eq(1..=300), "in the order of the pushes");
    for result in &results {
        let expected = if result.id.is_multiple_of(10) { PushStatus::Offline } else { PushStatus::Sent };
        assert_eq!(result.status(), expected, "{result:?}");
    }
    for (node, device) in devices.iter_mut().enumerate() {
        for id in (1..=300).filter(|id| id % 3 == node && id % 10 != 0) {
            assert_eq!(device.next().await.body, id.to_string());
        }
    }
}

async fn push_many_and_broadcast_reach_the_devices_of_all_nodes(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let mut devices = Vec::new();
    for node in 0..3 {
        devices.push(nodes.login(node, &format!("device-{node}")).await);
    }
    let uids: Vec<_> = ["device-2", "nobody", "device-0", "device-1"].map(str::to_owned).into();
    let many = PushManyRequest { uids, uri: "/x".into(), body: String::new() };
    let results = nodes.backends[1].push_many(many).await.unwrap().into_inner().results;
    let statuses: Vec<_> = results.iter().map(PushResponse::status).collect();
    assert_eq!(statuses, [PushStatus::Sent, PushStatus::Offline, PushStatus::Sent, PushStatus::Sent]);
    for (device, result) in devices.iter_mut().zip([2, 3, 0]) {
        expect_push(device, &results[result]).await;
    }

    let all = BroadcastRequest { uri: "/all".into(), body: "hello".into() };
    let told = nodes.backends[2].broadcast(all).await.unwrap().into_inner();
    assert_eq!((told.sent, told.queue_full, told.silent_nodes), (3, 0, Vec::new()));
    for device in &mut devices {
        assert_eq!(device.next().await.uri, "/all");
    }
}

async fn every_node_tells_the_same_presence_with_the_same_numbers(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let _before = nodes.login(0, "before").await;
    let mut watches = Vec::new();
    for backend in &mut nodes.backends {
        let (watch, told) = Watch::live(backend, everyone()).await;
        assert_eq!(words(&told), "=before");
        watches.push(watch);
    }
    let alice = nodes.login(1, "alice").await;
    drop(alice);
    let mut told = Vec::new();
    for watch in &mut watches {
        let came = watch.expect_online("alice").await;
        let went = watch.expect_offline("alice", OfflineReason::Closed).await;
        assert_eq!((&*came.node, &*went.node), ("node-2", "node-2"));
        told.push((came, went));
    }
    assert!(told.iter().all(|events| *events == told[0]), "the same epochs and times: {told:?}");

    let mut states = Vec::new();
    for backend in &mut nodes.backends {
        states.push(online(backend, &["before", "alice"]).await);
        assert_eq!(backend.get_info(GetInfoRequest {}).await.unwrap().into_inner().uids, 1);
    }
    assert!(states.iter().all(|state| *state == states[0]), "{states:?}");
    assert_eq!((states[0][0].online, &*states[0][0].node, states[0][1].online), (true, "node-1", false));
}

async fn a_watcher_resumes_at_another_node_with_exactly_what_it_missed(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let uids = ["a", "b", "c"];
    let (watch, _) = Watch::live(&mut nodes.backends[0], only(&uids)).await;
    let cursor = watch.cursor.clone();
    drop(watch);
    let _a = nodes.login(0, "a").await;
    drop(nodes.login(1, "b").await);
    let _other = nodes.login(2, "other").await;
    gone(&nodes.backends[2], "b").await;
    let missed = after(&cursor, only(&["c", "b", "a"]));
    let (_, told) = Watch::live(&mut nodes.backends[2], missed).await;
    assert_eq!(words(&told), "+a +b -b");
}

async fn a_newer_login_at_another_node_replaces_the_older_without_a_word_of_presence(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let (mut watch, _) = Watch::live(&mut nodes.backends[2], everyone()).await;
    let mut devices = vec![nodes.login(0, "alice").await];
    watch.expect_online("alice").await;
    for round in 1..9 {
        let node = round % 3;
        devices.push(nodes.login(node, "alice").await);
        let kick = devices[round - 1].expect_kick("replaced").await;
        assert_eq!(kick["reconnect"], false);
        let outcome = nodes.push((node + 1) % 3, "alice").await;
        assert_eq!((outcome.status(), outcome.connections), (PushStatus::Sent, 1));
        expect_push(&mut devices[round], &outcome).await;
    }
    let state = &online(&mut nodes.backends[0], &["alice"]).await[0];
    assert_eq!((&*state.node, state.connections), ("node-3", 1));
    let _next = nodes.login(0, "next").await;
    watch.expect_online("next").await;
}

async fn of_many_logins_of_one_uid_on_all_nodes_exactly_one_stays(log: Log) {
    let mut nodes = Nodes::with(log, |config| config.device.replaces_per_minute = 0).await;
    let (mut watch, _) = Watch::live(&mut nodes.backends[0], only(&["alice"])).await;
    let addresses: Vec<_> = nodes.nodes.iter().map(TestServer::device).collect();
    let logins = (0..60).map(|number| {
        let address = addresses[number % 3];
        tokio::spawn(async move { TestDevice::login(address, "alice").await })
    });
    let mut devices = Vec::new();
    for login in logins.collect::<Vec<_>>() {
        devices.push(login.await.unwrap());
    }
    let one = || {
        let mut backends = nodes.backends.clone();
        async move {
            let mut counts = BTreeSet::new();
            let mut held = 0;
            for backend in &mut backends {
                counts.insert(online(backend, &["alice"]).await[0].connections);
                held += backend.get_info(GetInfoRequest {}).await.unwrap().into_inner().connections;
            }
            (counts == BTreeSet::from([1]) && held == 1).then_some(())
        }
    };
    eventually("one connection is left", one).await;
    let outcome = nodes.push(0, "alice").await;
    assert_eq!((outcome.status(), outcome.connections), (PushStatus::Sent, 1));
    let (mut pushed, mut kicked) = (0, 0);
    for device in &mut devices {
        match &*device.next().await.uri {
            "/x" => pushed += 1,
            "/plex/kick" => kicked += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!((pushed, kicked), (1, 59));
    // Online once, offline at the end: nothing between.
    watch.expect_online("alice").await;
    drop(devices);
    watch.expect_offline("alice", OfflineReason::Closed).await;
}

async fn several_connections_of_a_uid_may_be_spread_over_the_nodes(log: Log) {
    let mut nodes = Nodes::with(log, |config| config.device.connections_per_uid = 2).await;
    let (mut first, mut second) = (nodes.login(0, "alice").await, nodes.login(1, "alice").await);
    let outcome = nodes.push(2, "alice").await;
    assert_eq!((outcome.status(), outcome.connections), (PushStatus::Sent, 2));
    assert_eq!((&*first.next().await.uri, &*second.next().await.uri), ("/x", "/x"));
    let state = online(&mut nodes.backends[2], &["alice"]).await.remove(0);
    assert_eq!((state.connections, &*state.node), (2, "node-2"));

    // The first answer counts, of whichever node, against that node's own number.
    let mut backend = nodes.backends[2].clone();
    let asking = tokio::spawn(async move { backend.push(call("alice", "/ask", "", Duration::from_secs(60))).await });
    let seq = first.next().await.seq;
    second.next().await;
    first.ack(seq, "the first").await;
    let outcome = asking.await.unwrap().unwrap().into_inner();
    assert_eq!((outcome.status(), &*outcome.reply), (PushStatus::Acked, "the first"));

    let mut third = nodes.login(2, "alice").await;
    first.expect_kick("replaced").await;
    let outcome = nodes.push(0, "alice").await;
    assert_eq!(outcome.connections, 2);
    assert_eq!((&*second.next().await.uri, &*third.next().await.uri), ("/x", "/x"));
}

async fn a_push_to_connections_on_several_nodes_tells_the_number_of_the_newest_and_the_sum_of_all(log: Log) {
    let mut nodes = Nodes::with(log, |config| config.device.connections_per_uid = 2).await;
    for (older_at, newest_at) in [(0, 1), (2, 0)] {
        let uid = format!("device-{older_at}-{newest_at}");
        let mut older = nodes.login(older_at, &uid).await;
        let mut newest = nodes.login(newest_at, &uid).await;
        for from in 0..3 {
            let outcome = nodes.push(from, &uid).await;
            assert_eq!((outcome.status(), outcome.connections), (PushStatus::Sent, 2), "asked {from}: {outcome:?}");
            expect_push(&mut newest, &outcome).await;
            older.next().await;

            let many = PushManyRequest { uids: vec![uid.clone()], uri: "/x".into(), body: String::new() };
            let outcome = nodes.backends[from].push_many(many).await.unwrap().into_inner().results.remove(0);
            assert_eq!((outcome.status(), outcome.connections), (PushStatus::Sent, 2), "asked {from}: {outcome:?}");
            expect_push(&mut newest, &outcome).await;
            older.next().await;

            for newest_answers in [false, true] {
                let (mut backend, asked) =
                    (nodes.backends[from].clone(), call(&uid, "/x", "", Duration::from_secs(60)));
                let asking = tokio::spawn(async move { backend.push(asked).await });
                let (of_older, of_newest) = (older.next().await.seq, newest.next().await.seq);
                if newest_answers {
                    newest.ack(of_newest, "newest").await;
                } else {
                    older.nack(of_older, "older").await;
                }
                let outcome = asking.await.unwrap().unwrap().into_inner();
                let (status, reply) =
                    if newest_answers { (PushStatus::Acked, "newest") } else { (PushStatus::Nacked, "older") };
                assert_eq!((outcome.status(), &*outcome.reply), (status, reply), "asked {from}");
                assert_eq!((outcome.seq, outcome.connections), (of_newest, 2), "asked {from}: {outcome:?}");
            }
        }
    }
}

async fn disconnect_and_the_list_of_sessions_span_the_nodes(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let mut devices = Vec::new();
    for node in 0..3 {
        devices.push(nodes.login(node, &format!("device-{node}")).await);
    }
    let listed = sessions(&mut nodes.backends[0], "").await;
    let places: BTreeMap<_, _> = listed.iter().map(|session| (&*session.uid, &*session.node)).collect();
    let expected = [("device-0", "node-1"), ("device-1", "node-2"), ("device-2", "node-3")];
    assert_eq!((places, listed.len()), (expected.into(), 3));
    let one = sessions(&mut nodes.backends[0], "device-2").await;
    assert_eq!((one.len(), &*one[0].node), (1, "node-3"));

    let request = DisconnectRequest { uid: "device-2".into(), reason: "because".into() };
    let ended = nodes.backends[0].disconnect(request).await.unwrap().into_inner();
    assert_eq!(ended.connections, 1);
    devices[2].expect_kick("disconnected").await;
    gone(&nodes.backends[1], "device-2").await;
}

/// The address that a node tells for devices.
async fn host(backend: &mut Backend) -> (String, String) {
    let answer = backend.get_host(GetHostRequest::default()).await.unwrap().into_inner();
    (answer.host, answer.node)
}

async fn every_node_sends_devices_to_the_least_loaded_and_not_to_one_that_drains(log: Log) {
    let mut nodes = Nodes::with(log, |config| config.device.max_connections = 100).await;
    let addresses: Vec<_> = nodes.nodes.iter().map(|node| node.device().to_string()).collect();
    let mut held = Vec::new();
    for number in 0..30 {
        held.push(nodes.login(0, &format!("first-{number}")).await);
        held.push(nodes.login(1, &format!("second-{number}")).await);
    }
    // Their loads are 30, 30 and 0 of 100, once they have told. Not by asking for hosts: each answer counts as load.
    for backend in &nodes.backends {
        eventually("their connections are told", || async {
            let connections: Vec<_> = listed(&mut backend.clone()).await.iter().map(|node| node.connections).collect();
            (connections == [30, 30, 0]).then_some(())
        })
        .await;
    }
    // A node tells its own as it is, and may read that a moment later.
    for backend in &nodes.backends {
        eventually("the third is told", || async {
            for _ in 0..8 {
                if host(&mut backend.clone()).await.1 != "node-3" {
                    return None;
                }
            }
            Some(())
        })
        .await;
    }
    let (_, _, body) = http(nodes.nodes[1].addresses.http, "GET", "/plex/v1/host").await;
    assert_eq!(body, format!(r#"{{"host":"{}"}}"#, addresses[2]));

    nodes.pop().stopped().await;
    for backend in &mut nodes.backends {
        left(backend).await;
        let (address, node) = host(backend).await;
        assert!(node != "node-3" && addresses[..2].contains(&address), "{node} at {address}");
    }
}

async fn every_node_lists_all_nodes_and_no_more_one_that_has_left(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let _devices = [nodes.login(1, "alice").await, nodes.login(1, "bob").await];
    let expected: Vec<_> = (0..3u64)
        .map(|index| {
            (format!("node-{}", index + 1), nodes.nodes[index as usize].device().to_string(), u64::from(index == 1) * 2)
        })
        .collect();
    for backend in &nodes.backends {
        // Connections of others come with their cards.
        eventually("all are listed, and ready", || async {
            let listed = listed(&mut backend.clone()).await;
            let ready = listed.iter().all(|node| node.state() == NodeState::Ready && node.since.is_some());
            let told: Vec<_> = listed.into_iter().map(|node| (node.name, node.address, node.connections)).collect();
            (ready && told == expected).then_some(())
        })
        .await;
    }
    nodes.pop().stopped().await;
    for backend in &nodes.backends {
        left(backend).await;
    }
}

/// Waits until a node lists the first two alone.
async fn left(backend: &Backend) {
    eventually("the third has left", || async {
        let names: Vec<_> = listed(&mut backend.clone()).await.into_iter().map(|node| node.name).collect();
        (names == ["node-1", "node-2"]).then_some(())
    })
    .await;
}

async fn a_node_that_drains_hands_its_devices_over_and_tells_them_offline_once(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let (mut watch, _) = Watch::live(&mut nodes.backends[0], everyone()).await;
    let mut leaves = nodes.login(2, "leaves").await;
    let mut stays = nodes.login(1, "stays").await;
    assert_eq!(sorted_words(&[watch.event().await, watch.event().await]), "+leaves +stays");
    let mut third = nodes.pop();
    let stopped = third.stopping();
    let kick = leaves.expect_kick("draining").await;
    assert!(kick["after_ms"].as_u64().unwrap() <= 5_000);
    let went = watch.expect_offline("leaves", OfflineReason::Draining).await;
    assert_eq!(went.node, "node-3");
    stopped.await;
    let _back = nodes.login(0, "leaves").await;
    let came = watch.expect_online("leaves").await;
    assert!(came.epoch > went.epoch && came.node == "node-1", "{came:?}");
    for from in 0..2 {
        let outcome = nodes.push(from, "stays").await;
        expect_push(&mut stays, &outcome).await;
    }
}

async fn a_node_that_joins_again_under_its_name_ends_what_its_earlier_life_held(log: Log) {
    let (first, second) = (log.node("first", |_| {}).await, log.node("second", |_| {}).await);
    let (mut watch, _) = Watch::live(&mut first.backend().await, everyone()).await;
    let _device = second.login("alice").await;
    let came = watch.expect_online("alice").await;
    let again = log.node("second", |_| {}).await;
    let went = watch.expect_offline("alice", OfflineReason::NodeLost).await;
    assert!(went.epoch > came.epoch);
    let mut back = again.login("alice").await;
    watch.expect_online("alice").await;
    let outcome = first.backend().await.push(push("alice", "/x", "")).await.unwrap().into_inner();
    assert_eq!((outcome.status(), outcome.connections), (PushStatus::Sent, 1));
    expect_push(&mut back, &outcome).await;
}

async fn a_disconnect_ends_connections_of_other_nodes_however_long_its_reason_is(log: Log) {
    let mut nodes = Nodes::start(log).await;
    let mut alice = nodes.login(2, "alice").await;
    // More than the servers of the cluster take.
    let request = DisconnectRequest { uid: "alice".into(), reason: "x".repeat(2 << 20) };
    let ended = timeout(PATIENCE, nodes.backends[0].disconnect(request)).await;
    assert_eq!(ended.expect("an answer in time").unwrap().into_inner().connections, 1);
    alice.expect_kick("disconnected").await;
}
