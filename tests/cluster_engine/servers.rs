//! What becomes of the cluster when one of its three servers goes, that which leads the log.

use plex::{Config, proto::PushStatus};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::common::{
    eventually,
    gateways::{Gateways, STREAM},
    nats::Nats,
    watch::{sorted_words, word, words},
};

fn three_replicas(_: usize, config: &mut Config) {
    config.cluster.replicas = 3;
}

async fn leader(nats: &Nats) -> usize {
    eventually("the log has a leader", || nats.leader(STREAM)).await
}

#[tokio::test]
async fn the_crash_of_the_server_that_leads_the_log_delays_presence_and_no_push() {
    let Some(mut nats) = Nats::three().await else { return };
    let urls = nats.urls();
    let mut gateways = Gateways::with([&urls[..]; 3], three_replicas).await;
    let mut watches = gateways.watch().await;
    let mut known = gateways.login(1, "known").await;
    watches.until("+known").await;
    let old = gateways.login(1, "moves").await;
    watches.until("+moves").await;

    nats.kill(leader(&nats).await);
    gateways.stand_still().await;
    drop(old);
    let mut moves = gateways.login(2, "moves").await;
    let mut new = gateways.login(2, "new").await;
    for from in 0..3 {
        gateways.expect_push(from, &mut known, "known").await;
        gateways.expect_push(from, &mut moves, "moves").await;
        gateways.expect_push(from, &mut new, "new").await;
        // All that are there say that they don't hold it.
        assert_eq!(gateways.push(from, "nobody").await.status(), PushStatus::Offline);
    }
    let stood_still = gateways.health(0).await == ServingStatus::NotServing;
    assert!(stood_still, "an election takes seconds");

    gateways.are_in_step().await;
    let _last = gateways.login(0, "last").await;
    let told = watches.until_and_none_lost("+last").await;
    // Its old node's word may come before its new one's.
    let rest: Vec<_> = told.into_iter().filter(|event| event.uid != "moves").collect();
    assert_eq!(sorted_words(&rest), "+last +new");
    for from in 0..3 {
        gateways.expect_push(from, &mut moves, "moves").await;
    }
    gateways.expect_same(&["known", "moves", "new", "last"]).await;
}

#[tokio::test]
async fn a_server_that_is_stopped_in_order_costs_nothing_though_it_leads_the_log() {
    let Some(mut nats) = Nats::three().await else { return };
    let urls = nats.urls();
    let mut gateways = Gateways::with([&urls[..]; 3], three_replicas).await;
    let mut watches = gateways.watch().await;
    let mut alice = gateways.login(1, "alice").await;
    watches.until("+alice").await;

    let stopped = leader(&nats).await;
    nats.terminate(stopped).await;
    let _meanwhile = gateways.login(0, "meanwhile").await;
    let told = watches.until_and_none_lost("+meanwhile").await;
    assert_eq!(words(&told), "+meanwhile");
    gateways.are_in_step().await;
    for from in 0..3 {
        gateways.expect_push(from, &mut alice, "alice").await;
    }
    assert_ne!(leader(&nats).await, stopped);
    nats.restart(stopped).await;
    let _last = gateways.login(2, "last").await;
    assert_eq!(word(&watches.until_and_none_lost("+last").await[0]), "+last");
    gateways.expect_same(&["alice", "meanwhile", "last"]).await;
}
