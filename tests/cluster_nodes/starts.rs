//! How nodes begin.

use plex::proto::{OfflineReason, PushStatus};

use super::{
    common::{
        TestDevice, eventually,
        link::Link,
        node_processes::{Gateways, spawn},
        process::{Home, TestGateway},
        push,
    },
    crowd::{self, Crowd},
    watches,
};

#[tokio::test]
async fn nodes_are_listed_alike_at_each_of_them() {
    let Some(nodes) = Gateways::three().await else { return };
    let _devices = [nodes.login(1, "alice").await, nodes.login(1, "bob").await];
    for index in 0..3 {
        eventually("all are told, with their connections", || async {
            let told = nodes.told(index).await;
            let told: Vec<_> = told.iter().map(|node| [&node["name"], &node["connections"], &node["state"]]).collect();
            (told == [["node-1", "0", "ready"], ["node-2", "2", "ready"], ["node-3", "0", "ready"]]).then_some(())
        })
        .await;
        for (number, node) in nodes.told(index).await.iter().enumerate() {
            assert_eq!(node["address"], nodes.node(number).device().to_string(), "{node}");
            assert_eq!(node["version"], env!("CARGO_PKG_VERSION"), "{node}");
            assert!(node["since"].is_string() && node["lag_ms"].is_u64(), "{node}");
        }
    }
}

#[tokio::test]
async fn of_two_processes_with_one_name_the_earlier_ends_with_1_and_the_later_serves() {
    let Some(mut nodes) = Gateways::three().await else { return };
    let mut watches = watches(&mut nodes, &[0, 1]).await;
    let mut alice = nodes.login(2, "alice").await;
    for watch in &mut watches {
        watch.expect_online("alice").await;
    }
    let later = nodes.start("node-3", &[]).await;
    alice.expect_kick("draining").await;
    let ended = nodes.take(2).process.finished().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("another process of this name has joined the cluster"), "{ended:?}");
    for watch in &mut watches {
        watch.expect_offline("alice", OfflineReason::NodeLost).await;
    }
    let mut alice = TestDevice::login(later.device(), "alice").await;
    for (index, watch) in watches.iter_mut().enumerate() {
        let came = watch.expect_online("alice").await;
        assert_eq!(came.node, "node-3");
        let outcome = nodes.backends[index].push(push("alice", "/x", "")).await.unwrap().into_inner();
        assert_eq!((outcome.status(), outcome.connections), (PushStatus::Sent, 1));
        assert_eq!(alice.next().await.uri, "/x");
    }
    nodes.told_states(0, &[("node-1", "ready"), ("node-2", "ready"), ("node-3", "ready")]).await;
}

#[tokio::test]
async fn a_process_that_was_declared_dead_and_replaced_meanwhile_ends_with_1_when_it_comes_back() {
    let Some(mut nodes) = Gateways::three().await else { return };
    let mut watches = watches(&mut nodes, &[0]).await;
    let mut alice = nodes.login(2, "alice").await;
    watches[0].expect_online("alice").await;
    nodes.node(2).process.signal("STOP");
    watches[0].expect_offline("alice", OfflineReason::NodeLost).await;
    let _later = nodes.start("node-3", &[]).await;
    nodes.node(2).process.signal("CONT");
    alice.expect_kick("draining").await;
    let ended = nodes.take(2).process.finished().await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("another process of this name has joined the cluster"), "{ended:?}");
    nodes.told_states(0, &[("node-1", "ready"), ("node-2", "ready"), ("node-3", "ready")]).await;
}

#[tokio::test]
async fn a_node_whose_clock_is_behind_that_of_the_process_before_it_waits_until_that_is_found_dead() {
    let Some(mut nodes) = Gateways::three().await else { return };
    let mut watches = watches(&mut nodes, &[0, 1]).await;
    // It began earlier than the process before it, as it seems.
    let (home, mut link) = (Home::new(), Link::to(nodes.nats.address(0)).await);
    link.cut();
    let mut node = TestGateway::of(spawn(&home, &[format!("nats://{}", link.address)], crowd::NAME, &[])).await;
    link.tried().await;
    link.tried().await;
    let before = Crowd::join(&nodes.nats.urls()[0]).await;
    before.claim(1).await;
    for watch in &mut watches {
        watch.expect_online(&crowd::uid(0)).await;
    }
    link.mend();
    let line = node.process.stderr.until("the cluster doesn't let this node in").await;
    assert!(line.contains("that started later is there; waiting until it is gone"), "{line}");
    assert_eq!(node.readyz().await, 503);

    before.fall_silent();
    for watch in &mut watches {
        watch.expect_offline(&crowd::uid(0), OfflineReason::NodeLost).await;
    }
    node.is_ready().await;
    nodes
        .told_states(0, &[(crowd::NAME, "ready"), ("node-1", "ready"), ("node-2", "ready"), ("node-3", "ready")])
        .await;
}
