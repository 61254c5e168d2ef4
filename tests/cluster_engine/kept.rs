//! What gateways answer while they aren't in step: what they knew before, and what they hold themselves.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use plex::proto::{GetHostRequest, GetInfoRequest, PushStatus};
use tonic::Code;

use crate::common::{
    Backend, TestServer, eventually,
    gateways::{Gateways, STREAM, over},
    http,
    link::Link,
    nats::Nats,
    online, push,
    watch::{Watch, everyone, word, words},
};

async fn delete_log(urls: &[String]) {
    let engine = async_nats::connect(&urls[0]).await.expect("the server listens");
    let answer = engine.request(format!("$JS.API.STREAM.DELETE.{STREAM}"), "".into()).await.expect("an answer");
    assert!(answer.payload.windows(14).any(|part| part == b"\"success\":true"), "{answer:?}");
}

/// Asks a node over and over for those who stay: who was offline, or couldn't be pushed to.
async fn ask_on(mut backend: Backend, uids: &[&str], stop: &AtomicBool) -> Vec<String> {
    let mut wrong = Vec::new();
    while !stop.load(Relaxed) {
        let states = online(&mut backend, uids).await;
        wrong.extend(states.iter().filter(|state| !state.online).map(|state| format!("{} is offline", state.uid)));
        let known = backend.get_info(GetInfoRequest {}).await.unwrap().into_inner().uids;
        if known < uids.len() as u64 {
            wrong.push(format!("{known} are online"));
        }
        for uid in uids {
            let outcome = backend.push(push(uid, "/x", "")).await.expect("an outcome").into_inner();
            if outcome.status() != PushStatus::Sent {
                wrong.push(format!("{uid} is {:?}", outcome.status()));
            }
        }
    }
    wrong
}

#[tokio::test]
async fn who_stays_is_online_and_pushed_to_while_a_deleted_log_is_made_anew() {
    let Some(nats) = Nats::one().await else { return };
    let mut gateways = Gateways::three(&nats.urls()).await;
    let mut watches = gateways.watch().await;
    let (mut devices, uids) = (Vec::new(), ["a1", "b1", "c1", "a2", "b2", "c2"]);
    for (index, uid) in uids.iter().enumerate() {
        devices.push(gateways.login(index % 3, uid).await);
        watches.until(&format!("+{uid}")).await;
    }

    let stop = AtomicBool::new(false);
    let ask = |index: usize| ask_on(gateways.backends[index].clone(), &uids, &stop);
    let losing = async {
        delete_log(&nats.urls()).await;
        let told = watches.reset().await;
        stop.store(true, Relaxed);
        told
    };
    let (told, one, two, three) = tokio::join!(losing, ask(0), ask(1), ask(2));
    assert_eq!(words(&told), "=a1 =a2 =b1 =b2 =c1 =c2");
    for (node, wrong) in [one, two, three].iter().enumerate() {
        assert!(wrong.is_empty(), "node {node}: {wrong:?}");
    }
}

#[tokio::test]
async fn a_gateway_that_does_not_come_back_after_a_lost_log_is_waited_for() {
    let Some(nats) = Nats::one().await else { return };
    let (urls, link) = (nats.urls(), Link::to(nats.address(0)).await);
    let away = [format!("nats://{}", link.address)];
    let mut gateways = Gateways::with([&urls[..], &urls, &away], |_, _| {}).await;
    let mut watches = gateways.watch().await;
    let _near = gateways.login(0, "near").await;
    watches.until("+near").await;
    let _far = gateways.login(2, "far").await;
    watches.until("+far").await;

    link.freeze();
    delete_log(&urls).await;
    eventually("it isn't waited for any more", || {
        let mut backend = gateways.backends[1].clone();
        async move {
            let states = online(&mut backend, &["near", "far"]).await;
            assert!(states[0].online, "{states:?}");
            (!states[1].online).then_some(())
        }
    })
    .await;
    assert_eq!(gateways.nodes[1].metric("plex_presence_in_step").await, 1, "not before all is told anew");
    for watch in &mut watches.0[..2] {
        assert_eq!(word(&watch.event().await), "reset");
        assert_eq!(words(&watch.until_live().await), "=near");
    }
    link.mend();
    for watch in &mut watches.0[..2] {
        assert_eq!(word(&watch.event().await), "+far");
    }
}

#[tokio::test]
async fn what_a_gateway_holds_itself_counts_at_once_in_an_outage() {
    let Some(mut nats) = Nats::one().await else { return };
    let mut gateways = Gateways::three(&nats.urls()).await;
    let mut watches = gateways.watch().await;
    let _old = gateways.login(1, "moves").await;
    watches.until("+moves").await;
    let since = online(&mut gateways.backends[0], &["moves"]).await[0].since;

    nats.kill(0);
    let _moved = gateways.login(0, "moves").await;
    let _new = gateways.login(0, "new").await;
    for stands_still in [false, true] {
        if stands_still {
            gateways.stand_still().await;
        }
        for state in online(&mut gateways.backends[0], &["moves", "new"]).await {
            assert_eq!((state.online, &*state.node, state.connections), (true, "node-1", 1), "{state:?}");
            assert!(state.uid != "moves" || state.since == since, "it was online all along: {state:?}");
        }
        let elsewhere = online(&mut gateways.backends[2], &["moves", "new"]).await;
        assert_eq!((&*elsewhere[0].node, elsewhere[1].online), ("node-2", false), "{elsewhere:?}");
        let host = gateways.backends[0].get_host(GetHostRequest::default()).await;
        assert!(host.is_ok(), "an outage isn't told by it: {host:?}");
    }
}

#[tokio::test]
async fn a_gateway_sends_no_device_anywhere_before_it_was_in_step() {
    let Some(mut nats) = Nats::one().await else { return };
    let urls = nats.urls();
    nats.kill(0);
    let node = TestServer::with(|config| over(config, &urls, 1)).await;
    let mut backend = node.backend().await;
    let _alice = node.login("alice").await;
    let none = backend.get_host(GetHostRequest::default()).await.unwrap_err();
    assert_eq!(none.code(), Code::Unavailable, "{none:?}");
    assert_eq!(http(node.addresses.http, "GET", "/plex/v1/host").await.0, 503);

    nats.restart(0).await;
    Watch::live(&mut backend, everyone()).await;
    eventually("it takes devices", || {
        let mut backend = backend.clone();
        async move { backend.get_host(GetHostRequest::default()).await.ok() }
    })
    .await;
    assert_eq!(http(node.addresses.http, "GET", "/plex/v1/host").await.0, 200);
}
