//! Devices that move between nodes, and what subscribers are told of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use plex::proto::{DisconnectRequest, GetInfoRequest, OfflineReason, OnlineStatusEvent, OnlineStatusKind};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    before,
    common::{
        PATIENCE, TestDevice, at_scale, eventually,
        node_processes::Gateways,
        online, sessions,
        watch::{Watch, after, everyone, sorted_words},
    },
    watches,
};

/// At which the connections of a uid may replace each other as often as they like.
async fn three_that_slow_nobody() -> Option<Gateways> {
    Gateways::each(|_| vec!["device.replaces_per_minute=0".to_owned()]).await
}

fn devices_at(nodes: &Gateways) -> [SocketAddr; 3] {
    [0, 1, 2].map(|index| nodes.node(index).device())
}

#[tokio::test]
async fn of_many_logins_of_a_uid_that_is_online_one_stays_and_no_event_is_told() {
    let Some(mut nodes) = three_that_slow_nobody().await else { return };
    let mut watches = watches(&mut nodes, &[0, 1, 2]).await;
    let mut held = vec![nodes.login(0, "alice").await];
    for watch in &mut watches {
        watch.expect_online("alice").await;
    }
    let addresses = devices_at(&nodes);
    let mut logins = JoinSet::new();
    for number in 0..at_scale(600, 1_000) {
        logins.spawn(TestDevice::login(addresses[number % 3], "alice"));
    }
    held.extend(logins.join_all().await);
    eventually("one connection is left", || async {
        let mut left = 0;
        for backend in &nodes.backends {
            left += backend.clone().get_info(GetInfoRequest {}).await.unwrap().into_inner().connections;
            if online(&mut backend.clone(), &["alice"]).await[0].connections != 1 {
                return None;
            }
        }
        (left == 1).then_some(())
    })
    .await;
    let _after = nodes.login(1, "after").await;
    for watch in &mut watches {
        assert_eq!(sorted_words(&before(watch, "after").await), "");
    }
    drop(held);
    for watch in &mut watches {
        watch.expect_offline("alice", OfflineReason::Closed).await;
    }
}

const UIDS: usize = 40;

/// One device that moves from node to node. Its old socket is closed before, or after, or never.
async fn wander(uid: String, number: usize, addresses: [SocketAddr; 3]) -> Vec<TestDevice> {
    let (mut now, mut half_open) = (None, Vec::new());
    for step in 0..at_scale(50, 250) {
        let address = addresses[(number + step * (1 + number % 2)) % 3];
        match (number + step) % 3 {
            0 => {
                drop(now.take());
                now = Some(TestDevice::login(address, &uid).await);
            }
            1 => drop(now.replace(TestDevice::login(address, &uid).await)),
            _ => half_open.extend(now.replace(TestDevice::login(address, &uid).await)),
        }
    }
    half_open.extend(now);
    half_open
}

/// Where each uid's connection is, by the nodes' own sessions, once every node's presence says the same.
async fn settled(nodes: &Gateways, uids: &[String]) -> BTreeMap<String, String> {
    let all: Vec<_> = uids.iter().map(String::as_str).collect();
    eventually("presence is what the nodes hold", || async {
        let listed = sessions(&mut nodes.backends[0].clone(), "").await;
        let (count, held): (_, BTreeMap<_, _>) =
            (listed.len(), listed.into_iter().map(|session| (session.uid, session.node)).collect());
        if count != held.len() {
            return None;
        }
        for backend in &nodes.backends {
            let states = online(&mut backend.clone(), &all).await.into_iter().filter(|state| state.online);
            let told: BTreeMap<_, _> = states.map(|state| (state.uid, state.node)).collect();
            if told != held {
                return None;
            }
        }
        Some(held)
    })
    .await
}

#[tokio::test]
async fn after_thousands_of_moves_presence_is_the_truth_and_every_node_has_told_the_same() {
    let Some(mut nodes) = three_that_slow_nobody().await else { return };
    let watches = watches(&mut nodes, &[0, 1, 2]).await;
    let mut reading = JoinSet::new();
    for (index, mut watch) in watches.into_iter().enumerate() {
        reading.spawn(async move { (index, before(&mut watch, "end").await) });
    }
    let uids: Vec<_> = (0..UIDS).map(|number| format!("uid-{number}")).collect();
    let addresses = devices_at(&nodes);
    let mut moving = JoinSet::new();
    for (number, uid) in uids.iter().enumerate() {
        moving.spawn(wander(uid.clone(), number, addresses));
    }
    let half_open = moving.join_all().await;
    settled(&nodes, &uids).await;

    // From rest, the last word of each is sure: half of them move once more, the others are disconnected.
    let (mut left, mut truth) = (Vec::from_iter(half_open.into_iter().flatten()), BTreeMap::new());
    for (number, uid) in uids.iter().enumerate().filter(|(number, _)| number % 2 == 0) {
        left.push(nodes.login(number % 3, uid).await);
        truth.insert(uid.clone(), format!("node-{}", number % 3 + 1));
    }
    for uid in uids.iter().skip(1).step_by(2) {
        let request = DisconnectRequest { uid: uid.clone(), reason: String::new() };
        nodes.backends[0].disconnect(request).await.unwrap();
    }
    eventually("the last moves are known", || async { (settled(&nodes, &uids).await == truth).then_some(()) }).await;

    // Of all the sockets, exactly these are still served.
    let mut served = 0;
    for device in &mut left {
        served += usize::from(is_served(device).await);
    }
    assert_eq!(served, truth.len());

    let _end = nodes.login(0, "end").await;
    let told: BTreeMap<_, _> = reading.join_all().await.into_iter().collect();
    assert!(told[&0] == told[&1] && told[&0] == told[&2], "the same, in the same order");
    let mut last: BTreeMap<String, OnlineStatusEvent> = BTreeMap::new();
    for event in &told[&0] {
        let before = last.insert(event.uid.clone(), event.clone());
        assert_eq!(event.online, before.as_ref().is_none_or(|before| !before.online), "{before:?} {event:?}");
        assert!(before.is_none_or(|before| before.epoch < event.epoch), "epochs grow: {event:?}");
    }
    let online: BTreeSet<_> = last.into_values().filter(|event| event.online).map(|event| event.uid).collect();
    assert_eq!(online, truth.into_keys().collect());
}

/// Whether a heartbeat is answered; else the stream has ended, with a kick or without.
async fn is_served(device: &mut TestDevice) -> bool {
    let heartbeat = device.frame(br#"{"uri":"/heartbeat"}"#);
    let mut bytes = [0; 4096];
    // Where it has ended the write may fail, or be answered by a reset.
    if device.stream.write_all(&heartbeat).await.is_err() {
        return false;
    }
    let read = timeout(PATIENCE, device.stream.read(&mut bytes)).await;
    match read.expect("an answer or the end in time") {
        Ok(0) | Err(_) => false,
        Ok(count) => !String::from_utf8_lossy(&bytes[..count]).contains("/plex/kick"),
    }
}

#[tokio::test]
async fn a_subscriber_that_goes_from_node_to_node_misses_nothing_and_hears_nothing_twice() {
    // From so many it hears, one after the other.
    let streams_least = at_scale(60, 1_000);
    let Some(mut nodes) = three_that_slow_nobody().await else { return };
    let mut watches = watches(&mut nodes, &[0, 1]).await;
    let (mut reference, first) = (watches.remove(0), watches.remove(0));
    let mut cursor = first.cursor.clone();
    drop(first);
    let reading = tokio::spawn(async move { before(&mut reference, "end").await });
    let addresses = devices_at(&nodes);
    let enough = CancellationToken::new();
    let mut changing = JoinSet::new();
    for number in 0..6 {
        let enough = enough.clone();
        changing.spawn(async move {
            let mut step = number;
            while !enough.is_cancelled() {
                drop(TestDevice::login(addresses[step % 3], &format!("uid-{number}")).await);
                step += 1;
            }
        });
    }
    let end = tokio::spawn(async move {
        changing.join_all().await;
        TestDevice::login(addresses[0], "end").await
    });
    let (mut heard, mut streams) = (Vec::new(), 0);
    let ended = |heard: &[OnlineStatusEvent]| heard.iter().any(|event| event.uid == "end");
    while !ended(&heard) {
        let mut watch = Watch::open(&mut nodes.backends[streams % 3], after(&cursor, everyone())).await;
        // Some hear a little, some more; what has no cursor yet is heard again.
        let mut since = Vec::new();
        for _ in 0..=streams % 4 {
            let response = watch.response().await.unwrap();
            since.extend(response.events.into_iter().filter(|event| event.kind() != OnlineStatusKind::Live));
            assert!(since.iter().all(|event| event.kind() == OnlineStatusKind::Change), "{since:?}");
            if !response.cursor.is_empty() {
                heard.append(&mut since);
                cursor = response.cursor;
            }
            if ended(&heard) {
                break;
            }
        }
        streams += 1;
        if streams == streams_least {
            enough.cancel();
        }
    }
    let _end = end.await.unwrap();
    assert!(streams >= streams_least, "{streams}");
    let told = reading.await.unwrap();
    // A change that a closed socket causes may come behind.
    heard.truncate(heard.iter().position(|event| event.uid == "end").expect("it was heard"));
    assert!(told.len() > streams_least, "{} changes", told.len());
    assert!(heard == told, "of {} changes, {} were heard", told.len(), heard.len());
}
