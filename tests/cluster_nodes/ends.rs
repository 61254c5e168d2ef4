//! How nodes end: killed, frozen, drained.

use std::collections::BTreeSet;

use plex::proto::{GetHostRequest, NodeState, OfflineReason, PushStatus};

use super::{
    before,
    common::{
        at_scale,
        cluster::listed,
        eventually, http,
        node_processes::Gateways,
        push,
        watch::{Watch, sorted_words},
    },
    watches,
};

/// The next events, which say that these came online.
async fn came(watch: &mut Watch, uids: &BTreeSet<String>) {
    let mut told = BTreeSet::new();
    for _ in uids {
        let event = watch.event().await;
        assert!(event.online, "{event:?}");
        told.insert(event.uid);
    }
    assert_eq!(told, *uids);
}

#[tokio::test]
async fn a_killed_node_s_uids_are_told_offline_once_at_every_other_with_one_epoch() {
    let Some(mut nodes) = Gateways::three().await else { return };
    let mut watches = watches(&mut nodes, &[0, 1]).await;
    let uids: BTreeSet<_> = (0..at_scale(300, 9_000)).map(|number| format!("device-{number}")).collect();
    let mut devices = Vec::new();
    for uid in &uids {
        devices.push(nodes.login(2, uid).await);
    }
    for watch in &mut watches {
        came(watch, &uids).await;
    }

    nodes.kill(2);
    let mut ends = Vec::new();
    for (index, watch) in watches.iter_mut().enumerate() {
        let mut gone = BTreeSet::new();
        for _ in &uids {
            let event = watch.event().await;
            assert_eq!((event.online, event.reason(), &*event.node), (false, OfflineReason::NodeLost, "node-3"));
            ends.push(event.epoch);
            assert!(gone.insert(event.uid.clone()), "once: {event:?}");
        }
        assert_eq!(gone, uids);
        nodes.told_states(index, &[("node-1", "ready"), ("node-2", "ready")]).await;
        let outcome = nodes.backends[index].push(push("device-7", "/x", "")).await.unwrap().into_inner();
        assert_eq!(outcome.status(), PushStatus::Offline);
    }
    assert!(ends.iter().all(|epoch| *epoch == ends[0]), "{ends:?}");
    let _after = nodes.login(1, "after").await;
    for watch in &mut watches {
        assert_eq!(sorted_words(&before(watch, "after").await), "");
    }
}

#[tokio::test]
async fn a_node_that_was_frozen_joins_again_and_takes_nothing_from_where_its_devices_went() {
    // Long enough to be seen silent by a command that takes its time.
    let patient = |_| vec!["cluster.dead_after=20".to_owned()];
    let Some(mut nodes) = Gateways::each(patient).await else { return };
    let (mut early, mut late) = (nodes.login(2, "early").await, nodes.login(2, "late").await);
    let mut stays = nodes.login(2, "stays").await;
    let _others = [nodes.login(0, "first").await, nodes.login(1, "second").await];
    for (uid, node) in [("early", "node-3"), ("late", "node-3"), ("stays", "node-3"), ("first", "node-1")] {
        nodes.knows(0, uid, Some(node)).await;
        nodes.knows(1, uid, Some(node)).await;
    }
    nodes.knows(0, "second", Some("node-2")).await;
    let mut told = watches(&mut nodes, &[0, 1]).await;
    let since = |listed: Vec<plex::proto::Node>| listed.into_iter().map(|node| node.since).collect::<Vec<_>>();
    let began = since(listed(&mut nodes.backends[0]).await);

    nodes.node(2).process.signal("STOP");
    // One goes before the others have noticed, one afterwards.
    let mut early_now = nodes.login(1, "early").await;
    nodes.told_states(0, &[("node-1", "ready"), ("node-2", "ready"), ("node-3", "silent")]).await;
    for watch in &mut told {
        let lost = [watch.event().await, watch.event().await];
        assert_eq!(sorted_words(&lost), "-late -stays");
        assert!(lost.iter().all(|event| event.reason() == OfflineReason::NodeLost), "{lost:?}");
    }
    let mut late_now = nodes.login(0, "late").await;
    for watch in &mut told {
        watch.expect_online("late").await;
    }

    nodes.node(2).process.signal("CONT");
    early.expect_kick("replaced").await;
    late.expect_kick("replaced").await;
    for watch in &mut told {
        let back = watch.expect_online("stays").await;
        assert_eq!(back.node, "node-3");
    }
    nodes.all_ready().await;
    let now = since(listed(&mut nodes.backends[0]).await);
    assert_eq!(now[..2], began[..2], "nobody else was declared dead");
    assert_ne!(now[2], began[2]);
    for index in 0..3 {
        for (uid, node) in [("early", "node-2"), ("late", "node-1"), ("stays", "node-3"), ("first", "node-1")] {
            nodes.knows(index, uid, Some(node)).await;
            if uid != "first" {
                let outcome = nodes.backends[index].push(push(uid, "/x", "")).await.unwrap().into_inner();
                assert_eq!((outcome.status(), outcome.connections), (PushStatus::Sent, 1), "{uid}");
            }
        }
    }
    for device in [&mut early_now, &mut late_now, &mut stays] {
        for _ in 0..3 {
            assert_eq!(device.next().await.uri, "/x");
        }
        device.expect_quiet().await;
    }
    let _after = nodes.login(2, "after").await;
    for watch in &mut told {
        assert_eq!(sorted_words(&before(watch, "after").await), "", "nothing more was told");
    }
}

#[tokio::test]
async fn a_node_that_drains_is_named_no_more_and_its_devices_are_told_to_go() {
    // The third is by far the least loaded, and takes its time to drain.
    let sets = |index| match index {
        2 => vec!["device.max_connections=100000".to_owned(), "drain.rate=1".to_owned()],
        _ => vec!["device.max_connections=100".to_owned()],
    };
    let Some(mut nodes) = Gateways::each(sets).await else { return };
    let mut watches = watches(&mut nodes, &[0, 1]).await;
    let (mut others, other_uids) =
        (Vec::new(), (0..10).map(|number| format!("other-{number}")).collect::<BTreeSet<_>>());
    for (number, uid) in other_uids.iter().enumerate() {
        others.push(nodes.login(number % 2, uid).await);
    }
    for watch in &mut watches {
        came(watch, &other_uids).await;
    }
    let uids: BTreeSet<_> = (0..40).map(|number| format!("device-{number}")).collect();
    let mut devices = Vec::new();
    for uid in &uids {
        devices.push(nodes.login(2, uid).await);
    }
    for watch in &mut watches {
        came(watch, &uids).await;
    }
    let host = |index: usize| {
        let mut backend = nodes.backends[index].clone();
        async move { backend.get_host(GetHostRequest::default()).await.unwrap().into_inner().node }
    };
    for index in 0..2 {
        eventually("the third is named", || async { (host(index).await == "node-3").then_some(()) }).await;
    }

    nodes.node(2).process.signal("TERM");
    for index in 0..2 {
        nodes.told_states(index, &[("node-1", "ready"), ("node-2", "ready"), ("node-3", "draining")]).await;
        for _ in 0..20 {
            assert_ne!(host(index).await, "node-3");
        }
    }
    assert_eq!(http(nodes.node(2).http, "GET", "/readyz").await.0, 503);
    for device in &mut devices {
        device.expect_kick("draining").await;
    }
    let ended = nodes.take(2).process.finished().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let _after = nodes.login(0, "after").await;
    for watch in &mut watches {
        let told = before(watch, "after").await;
        assert!(told.iter().all(|event| event.reason() == OfflineReason::Draining), "{told:?}");
        assert_eq!(told.iter().map(|event| event.uid.clone()).collect::<BTreeSet<_>>(), uids);
        assert_eq!(told.len(), uids.len(), "once");
    }
    for index in 0..2 {
        let listed = listed(&mut nodes.backends[index]).await;
        assert!(listed.len() == 2 && listed.iter().all(|node| node.state() == NodeState::Ready), "{listed:?}");
        assert_ne!(
            nodes.backends[index].get_host(GetHostRequest::default()).await.unwrap().into_inner().node,
            "node-3"
        );
    }
}
