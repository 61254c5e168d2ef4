//! Pushes to devices that other nodes hold, also as those nodes die.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use plex::proto::{OnlineStatusKind, PushManyRequest, PushStatus};
use tokio::task::JoinSet;

use super::{
    common::{TestDevice, at_scale, call, node_processes::Gateways, push, watch::Watch},
    watches,
};

/// How many devices are there at a time.
const DEVICES: usize = 900;

#[tokio::test]
async fn who_was_told_online_by_one_node_is_offline_to_no_push_from_any() {
    let Some(mut nodes) = Gateways::three().await else { return };
    let mut watch = watches(&mut nodes, &[0]).await.remove(0);
    for generation in 0..at_scale(1, 112) {
        push_as_they_come(&mut nodes, &mut watch, generation).await;
    }
}

/// Devices come to all nodes; as soon as one node tells one, it is pushed to from one of all.
async fn push_as_they_come(nodes: &mut Gateways, watch: &mut Watch, generation: usize) {
    let addresses = [0, 1, 2].map(|index| nodes.node(index).device());
    let coming = tokio::spawn(async move {
        let mut devices = Vec::new();
        for number in 0..DEVICES {
            devices.push(TestDevice::login(addresses[number % 3], &format!("uid-{generation}-{number}")).await);
        }
        devices
    });
    let (mut seen, mut round) = (0, 0);
    while seen < DEVICES {
        let events = watch.response().await.unwrap().events;
        // Those of the generation before go meanwhile.
        let came = events.into_iter().filter(|event| event.online && event.kind() == OnlineStatusKind::Change);
        let uids: Vec<_> = came.map(|event| event.uid).collect();
        seen += uids.len();
        if uids.is_empty() {
            continue;
        }
        round += 1;
        let many = PushManyRequest { uids: uids.clone(), uri: "/x".into(), body: String::new() };
        let results = nodes.backends[round % 3].push_many(many).await.unwrap().into_inner().results;
        for (uid, result) in uids.iter().zip(&results) {
            assert_eq!((result.status(), result.connections), (PushStatus::Sent, 1), "{uid}: {result:?}");
        }
    }
    for device in &mut coming.await.unwrap() {
        assert_eq!(device.next().await.uri, "/x");
    }
}

#[tokio::test]
async fn of_a_node_that_is_killed_no_push_claims_an_answer_that_was_not_given() {
    const CALLS: usize = 60;
    let Some(mut nodes) = Gateways::three().await else { return };
    let mut devices = Vec::new();
    for number in 0..CALLS {
        devices.push(nodes.login(2, &format!("uid-{number}")).await);
        nodes.knows(0, &format!("uid-{number}"), Some("node-3")).await;
    }
    let mut calls = JoinSet::new();
    for number in 0..CALLS {
        let mut backend = nodes.backends[0].clone();
        let request = call(&format!("uid-{number}"), "/ask", "well?", Duration::from_secs(60));
        calls.spawn(async move { (number, backend.push(request).await.unwrap().into_inner()) });
    }
    // A third answers in time, a third as the node dies, and a third never.
    let mut outcomes = BTreeMap::new();
    let mut asked = Vec::new();
    for device in &mut devices {
        asked.push(device.next().await.seq);
    }
    for number in (0..CALLS).step_by(3) {
        devices[number].ack(asked[number], "indeed").await;
    }
    while outcomes.len() < CALLS / 3 {
        let (number, outcome) = calls.join_next().await.unwrap().unwrap();
        assert_eq!((number % 3, outcome.status(), &*outcome.reply), (0, PushStatus::Acked, "indeed"));
        outcomes.insert(number, outcome);
    }
    for number in (1..CALLS).step_by(3) {
        devices[number].ack(asked[number], "indeed").await;
    }
    nodes.kill(2);
    // It isn't known to be dead yet.
    let after = nodes.backends[0].push(push("uid-0", "/late", "")).await.unwrap().into_inner();
    assert!(matches!(after.status(), PushStatus::Unknown | PushStatus::Unreachable), "{after:?}");
    while let Some(ended) = calls.join_next().await {
        let (number, outcome) = ended.unwrap();
        match outcome.status() {
            PushStatus::Acked => assert_eq!((number % 3, &*outcome.reply), (1, "indeed"), "it answered"),
            PushStatus::ConnectionLost => {
                assert_eq!((outcome.seq, outcome.connections), (asked[number], 1), "it was sent");
            }
            PushStatus::Unknown => {}
            other => panic!("{number}: {other:?}"),
        }
        outcomes.insert(number, outcome);
    }
    assert!(outcomes.into_keys().eq(0..CALLS), "each has one outcome");
    let offline: BTreeSet<_> = (0..CALLS).map(|number| format!("uid-{number}")).collect();
    for index in 0..2 {
        for uid in &offline {
            nodes.knows(index, uid, None).await;
        }
        let outcome = nodes.backends[index].push(push("uid-0", "/x", "")).await.unwrap().into_inner();
        assert_eq!(outcome.status(), PushStatus::Offline);
    }
}
