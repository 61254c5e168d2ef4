//! What becomes of three gateways when the server that they are one cluster by is ended, frozen, cut off, or loses what
//! it had stored.
#![cfg(feature = "nats")]

#[path = "cluster_engine/anew.rs"]
mod anew;
mod common;
#[path = "cluster_engine/kept.rs"]
mod kept;
#[path = "cluster_engine/log.rs"]
mod log;
#[path = "cluster_engine/places.rs"]
mod places;
#[path = "cluster_engine/servers.rs"]
mod servers;

use common::{
    TestServer, eventually,
    gateways::{Gateways, Watches, health, in_memory, longer_than_a_death, over, readyz},
    link::Link,
    nats::Nats,
    online,
    watch::{Watch, after, everyone, only, sorted_words, word, words},
};
use plex::proto::{GetInfoRequest, OfflineReason, PushStatus};
use tonic_health::pb::health_check_response::ServingStatus;

#[tokio::test]
async fn an_outage_of_the_engine_costs_no_change_and_no_node() {
    let Some(mut nats) = Nats::one().await else { return };
    let mut gateways = Gateways::three(&nats.urls()).await;
    let mut watches = gateways.watch().await;
    let mut alice = gateways.login(1, "alice").await;
    watches.until("+alice").await;
    let bob = gateways.login(2, "bob").await;
    watches.until("+bob").await;

    nats.kill(0);
    gateways.stand_still().await;
    for node in &gateways.nodes {
        assert_eq!(readyz(node).await, 200);
        assert_eq!(health(node, "").await, Some(ServingStatus::Serving));
    }
    let mut carol = gateways.login(0, "carol").await;
    drop(bob);
    // What was, and beside it what a node holds itself.
    for (node, expected) in [(0, [true, true, true]), (1, [true, true, false])] {
        let states = online(&mut gateways.backends[node], &["alice", "bob", "carol"]).await;
        assert_eq!(states.iter().map(|state| state.online).collect::<Vec<_>>(), expected, "{states:?}");
    }
    gateways.expect_push(0, &mut carol, "carol").await;
    gateways.expect_push(1, &mut alice, "alice").await;
    for uid in ["alice", "nobody"] {
        assert_eq!(gateways.push(0, uid).await.status(), PushStatus::Unreachable, "{uid}");
    }

    nats.restart(0).await;
    gateways.are_in_step().await;
    let _last = gateways.login(1, "last").await;
    let told = watches.until_and_none_lost("+last").await;
    assert_eq!(sorted_words(&told), "+carol +last -bob");
    for from in 0..3 {
        gateways.expect_push(from, &mut alice, "alice").await;
        gateways.expect_push(from, &mut carol, "carol").await;
    }
    gateways.expect_same(&["alice", "bob", "carol", "last"]).await;
}

#[tokio::test]
async fn a_watcher_resumes_at_another_node_after_an_outage_of_the_engine() {
    let Some(mut nats) = Nats::one().await else { return };
    let mut gateways = Gateways::three(&nats.urls()).await;
    let (mut watch, _) = Watch::live(&mut gateways.backends[0], everyone()).await;
    let _before = gateways.login(0, "before").await;
    watch.expect_online("before").await;
    let cursor = watch.cursor.clone();
    drop(watch);

    nats.kill(0);
    gateways.stand_still().await;
    let _missed = gateways.login(1, "missed").await;
    nats.restart(0).await;
    gateways.are_in_step().await;
    let _last = gateways.login(1, "last").await;
    for backend in &mut gateways.backends {
        // One that hasn't read so far yet tells the last afterwards.
        let mut watch = Watch::open(backend, after(&cursor, everyone())).await;
        let mut told = Vec::new();
        while !words(&told).contains("+last") {
            told.push(watch.event().await);
        }
        told.retain(|event| word(event) != "live");
        assert_eq!(words(&told), "+missed +last");
    }
}

#[tokio::test]
async fn a_log_that_was_lost_is_told_as_one_reset_and_costs_no_connection() {
    let Some(mut nats) = Nats::one().await else { return };
    let urls = nats.urls();
    let mut gateways = Gateways::with([&urls[..]; 3], |_, config| in_memory(config)).await;
    let mut watches = gateways.watch().await;
    let mut devices = Vec::new();
    for (node, uid) in ["a", "b", "c"].into_iter().enumerate() {
        devices.push(gateways.login(node, uid).await);
        watches.until(&format!("+{uid}")).await;
    }
    let mut before = Vec::new();
    for backend in &mut gateways.backends {
        before.push(Watch::live(backend, everyone()).await);
    }
    let cursor = watches.0[0].cursor.clone();

    nats.kill(0);
    gateways.stand_still().await;
    devices.push(gateways.login(1, "meanwhile").await);
    nats.restart(0).await;
    let told = watches.reset().await;
    assert_eq!(words(&told), "=a =b =c =meanwhile");
    for (_, before) in &before {
        for old in before {
            let new = told.iter().find(|event| event.uid == old.uid).expect("it is online still");
            assert!(new.epoch > old.epoch && new.node == old.node, "{old:?} {new:?}");
        }
    }
    gateways.are_in_step().await;
    for device in &mut devices {
        device.expect_quiet().await;
    }
    let _last = gateways.login(2, "last").await;
    assert_eq!(words(&watches.until("+last").await), "+last", "nothing but the one reset");
    for (uid, device) in ["a", "b", "c", "meanwhile"].into_iter().zip(&mut devices) {
        gateways.expect_push(2, device, uid).await;
    }
    // A cursor of the lost log says nothing of this one.
    let mut late = Watch::open(&mut gateways.backends[1], after(&cursor, only(&["a"]))).await;
    assert_eq!(word(&late.event().await), "reset");
    assert_eq!(words(&late.until_live().await), "=a");
}

#[tokio::test]
async fn a_frozen_engine_costs_remote_pushes_at_once_and_nobody_is_declared_dead() {
    let Some(nats) = Nats::one().await else { return };
    let mut gateways = Gateways::three(&nats.urls()).await;
    let mut watches = gateways.watch().await;
    let mut alice = gateways.login(1, "alice").await;
    watches.until("+alice").await;

    nats.freeze(0).await;
    // What is handed over before the silence is noticed has an unknown outcome.
    for from in [0, 2] {
        eventually("the silence is noticed", || {
            let mut backend = gateways.backends[from].clone();
            async move {
                let outcome = backend.push(common::push("alice", "/early", "")).await.unwrap().into_inner();
                (outcome.status() == PushStatus::Unreachable).then_some(())
            }
        })
        .await;
        // So many would take minutes if each were waited for.
        for uid in ["alice", "nobody"].repeat(30) {
            assert_eq!(gateways.push(from, uid).await.status(), PushStatus::Unreachable, "{uid}");
        }
    }
    let mut carol = gateways.login(0, "carol").await;
    gateways.expect_push(0, &mut carol, "carol").await;
    gateways.stand_still().await;
    longer_than_a_death().await;

    nats.thaw(0);
    gateways.are_in_step().await;
    let _last = gateways.login(2, "last").await;
    assert_eq!(words(&watches.until_and_none_lost("+last").await), "+carol +last");
    // What was handed over may come late, but once.
    let outcome = gateways.push(0, "alice").await;
    assert_eq!(outcome.status(), PushStatus::Sent, "{outcome:?}");
    let mut early = 0;
    loop {
        let message = alice.next().await;
        if message.uri == "/x" {
            assert_eq!(message.seq, outcome.seq);
            break;
        }
        early += 1;
    }
    assert!(early <= 2 * 3, "{early} of those whose outcome was unknown");
    gateways.expect_same(&["alice", "carol", "last"]).await;
}

#[tokio::test]
async fn a_gateway_that_is_there_before_its_engine_serves_its_own_devices_and_joins_later() {
    let Some(mut nats) = Nats::one().await else { return };
    let urls = nats.urls();
    nats.kill(0);
    let node = TestServer::with(|config| over(config, &urls, 1)).await;
    let mut backend = node.backend().await;
    let mut alice = node.login("alice").await;
    let mut watch = Watch::open(&mut backend, everyone()).await;
    let push = async |uid: &str| {
        node.backend().await.push(common::push(uid, "/x", "")).await.expect("an outcome").into_inner().status()
    };
    assert_eq!(push("alice").await, PushStatus::Sent);
    assert_eq!(alice.next().await.uri, "/x");
    assert_eq!(push("nobody").await, PushStatus::Unreachable);
    assert!(online(&mut backend, &["alice"]).await[0].online);
    assert_eq!(backend.get_info(GetInfoRequest {}).await.unwrap().into_inner().known_since, None);
    assert_eq!(readyz(&node).await, 503);
    assert_eq!(health(&node, "plex.v1.Gateway.cluster").await, Some(ServingStatus::NotServing));

    nats.restart(0).await;
    assert_eq!(words(&watch.until_live().await), "=alice");
    assert_eq!(readyz(&node).await, 200);
    assert!(backend.get_info(GetInfoRequest {}).await.unwrap().into_inner().known_since.is_some());
    let other = TestServer::with(|config| over(config, &urls, 2)).await;
    let mut backend = other.backend().await;
    assert_eq!(words(&Watch::live(&mut backend, everyone()).await.1), "=alice");
    assert_eq!(backend.push(common::push("alice", "/y", "")).await.unwrap().into_inner().status(), PushStatus::Sent);
    assert_eq!(alice.next().await.uri, "/y");
}

#[tokio::test]
async fn a_gateway_that_is_cut_off_is_declared_dead_and_returns_by_itself_with_its_devices() {
    a_gateway_is_away_and_returns(Link::cut).await;
}

#[tokio::test]
async fn a_gateway_whose_connection_is_silent_is_declared_dead_and_returns_by_itself_with_its_devices() {
    a_gateway_is_away_and_returns(Link::freeze).await;
}

async fn a_gateway_is_away_and_returns(goes: fn(&Link)) {
    let Some(nats) = Nats::one().await else { return };
    let (urls, link) = (nats.urls(), Link::to(nats.address(0)).await);
    let away = [format!("nats://{}", link.address)];
    let mut gateways = Gateways::with([&urls[..], &urls, &away], |_, _| {}).await;
    let mut near = gateways.watch().await;
    let mut stays = gateways.login(2, "stays").await;
    near.until("+stays").await;
    let mut moves = gateways.login(2, "moves").await;
    near.until("+moves").await;
    let mut far = Watches(near.0.split_off(2));

    goes(&link);
    let mut told = near.next(2).await;
    assert_eq!(sorted_words(&told), "-moves -stays");
    assert!(told.iter().all(|event| event.reason() == OfflineReason::NodeLost), "{told:?}");
    assert_eq!(gateways.push(0, "stays").await.status(), PushStatus::Offline);
    gateways.expect_push(2, &mut stays, "stays").await;
    assert_eq!(gateways.push(2, "nobody").await.status(), PushStatus::Unreachable);
    let mut moved = gateways.login(0, "moves").await;
    told.extend(near.until("+moves").await);

    link.mend();
    told.extend(near.until("+stays").await);
    assert_eq!(far.next(4).await, told, "the same at the one that was away");
    // Its old connection is older than the new one elsewhere.
    moves.expect_kick("replaced").await;
    gateways.are_in_step().await;
    for from in 0..3 {
        gateways.expect_push(from, &mut stays, "stays").await;
        gateways.expect_push(from, &mut moved, "moves").await;
    }
    gateways.expect_same(&["stays", "moves"]).await;
}
