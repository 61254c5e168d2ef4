//! What waits for a device's answer has a place among `control.ack_waits`, also where it isn't known yet who has the device.

use std::time::Duration;

use plex::proto::{PushResponse, PushStatus};
use tokio::task::JoinHandle;
use tonic::{Code, Response, Status};

use crate::common::{
    Backend, call, eventually,
    gateways::{Gateways, LOG},
    link::Link,
    nats::{Nats, user_denied},
};

const PLACES: &str = "plex_ack_waits";

/// A push that waits for alice's answer for longer than a test takes.
fn ask(backend: &Backend, uri: &str) -> JoinHandle<Result<PushResponse, Status>> {
    let (mut backend, request) = (backend.clone(), call("alice", uri, "well?", Duration::from_secs(100)));
    tokio::spawn(async move { backend.push(request).await.map(Response::into_inner) })
}

#[tokio::test]
async fn a_push_has_its_place_from_the_search_for_its_device_to_the_answer_or_the_end_of_the_call() {
    let Some(nats) = Nats::with(1, |_| user_denied("nothing")).await else { return };
    let (urls, link) = (nats.urls(), Link::to(nats.address(0)).await);
    let (far, folder) = ([format!("nats://{}", link.address)], tempfile::tempdir().unwrap());
    let password = folder.path().join("password");
    std::fs::write(&password, "hush").unwrap();
    let gateways = Gateways::with([&urls[..], &far], |_, config| {
        (config.cluster.user, config.cluster.password_file) = (Some("plex".into()), Some(password.clone()));
        config.cluster.forward_timeout = Duration::from_secs(60);
        config.control.ack_waits = 2;
    })
    .await;
    // The log stands still, so the other node is asked.
    nats.reconfigure(0, &user_denied(LOG));
    gateways.stand_still().await;
    eventually("the other node answers", || {
        let mut backend = gateways.backends[0].clone();
        async move {
            let outcome = backend.push(call("nobody", "/x", "", Duration::from_secs(1))).await.unwrap().into_inner();
            (outcome.status() == PushStatus::Offline).then_some(())
        }
    })
    .await;
    gateways.nodes[0].metric_is(PLACES, 0).await;

    link.freeze();
    let (first, second) = (ask(&gateways.backends[0], "/first"), ask(&gateways.backends[0], "/second"));
    gateways.nodes[0].metric_is(PLACES, 2).await;
    let refused = ask(&gateways.backends[0], "/third").await.unwrap().expect_err("there is no place");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let mut alice = gateways.login(0, "alice").await;
    link.mend();
    let mut asked = [alice.next().await, alice.next().await];
    asked.sort_by(|one, other| one.uri.cmp(&other.uri));
    assert_eq!([&*asked[0].uri, &asked[1].uri], ["/first", "/second"]);
    assert_eq!(gateways.nodes[0].metric(PLACES).await, 2, "both wait for alice");

    alice.ack(asked[0].seq, "indeed").await;
    let answered = first.await.unwrap().expect("an outcome");
    assert_eq!((answered.status(), &*answered.reply), (PushStatus::Acked, "indeed"));
    gateways.nodes[0].metric_is(PLACES, 1).await;
    second.abort();
    gateways.nodes[0].metric_is(PLACES, 0).await;
    // What nobody waits for any more, no answer ends.
    gateways.nodes[0].metric_is("plex_device_answers_late_total", 0).await;
    alice.ack(asked[1].seq, "too late").await;
    gateways.nodes[0].metric_is("plex_device_answers_late_total", 1).await;

    // A device of another node: its place is at both.
    nats.reconfigure(0, &user_denied("nothing"));
    gateways.are_in_step().await;
    let mut bob = gateways.login(1, "bob").await;
    eventually("bob is known", || async {
        crate::common::online(&mut gateways.backends[0].clone(), &["bob"]).await[0].online.then_some(())
    })
    .await;
    let mut backend = gateways.backends[0].clone();
    let waits = tokio::spawn(async move { backend.push(call("bob", "/ask", "", Duration::from_secs(100))).await });
    let asked = bob.next().await;
    for node in &gateways.nodes {
        assert_eq!(node.metric(PLACES).await, 1);
    }
    bob.ack(asked.seq, "indeed").await;
    assert_eq!(waits.await.unwrap().unwrap().into_inner().status(), PushStatus::Acked);
    for node in &gateways.nodes {
        node.metric_is(PLACES, 0).await;
    }
}
