//! What becomes of the cluster when one of its three servers goes, that which leads the log.

use std::process::ExitStatus;

use plex::{Config, proto::PushStatus};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::common::{
    eventually,
    gateways::{Gateways, STREAM},
    nats::Nats,
    watch::{sorted_words, words},
};

fn three_replicas(_: usize, config: &mut Config) {
    config.cluster.replicas = 3;
}

async fn leader(nats: &Nats) -> usize {
    eventually("the log has a leader", || nats.leader(STREAM)).await
}

/// Has another server than the first lead the log; which.
async fn leader_beside_the_first(nats: &Nats) -> usize {
    let engine = async_nats::connect(&nats.urls()[0]).await.expect("the server listens");
    eventually("another server leads the log", || async {
        let leader = nats.leader(STREAM).await?;
        if leader == 0 {
            // An answer, or none where it has just done so.
            _ = engine.request(format!("$JS.API.STREAM.LEADER.STEPDOWN.{STREAM}"), "".into()).await;
        }
        (leader != 0).then_some(leader)
    })
    .await
}

#[tokio::test]
async fn the_crash_of_the_server_that_leads_the_log_delays_presence_and_no_push() {
    let Some(mut nats) = Nats::three().await else { return };
    // All are at the first, which stays.
    let urls = nats.urls();
    let mut gateways = Gateways::with([&urls[..1]; 3], three_replicas).await;
    let leads = leader_beside_the_first(&nats).await;
    gateways.are_in_step().await;
    let mut watches = gateways.watch().await;
    let mut known = gateways.login(1, "known").await;
    watches.until("+known").await;
    let old = gateways.login(1, "moves").await;
    watches.until("+moves").await;

    // As long as the third is frozen, too, no other is elected, however long the pushes take.
    let third = 3 - leads;
    nats.freeze(third).await;
    nats.kill(leads);
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
    for node in 0..3 {
        assert_eq!(gateways.health(node).await, ServingStatus::NotServing, "presence stood still all the time");
    }

    nats.thaw(third);
    gateways.are_in_step().await;
    assert_ne!(leader(&nats).await, leads);
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
async fn a_server_that_stands_still_is_left_for_another() {
    let Some(mut nats) = Nats::three().await else { return };
    // The first gateway is at the first server, and learns of the others there.
    let urls = nats.urls();
    let mut gateways = Gateways::with([&urls[..1], &urls[1..2], &urls[2..]], three_replicas).await;
    leader_beside_the_first(&nats).await;
    gateways.are_in_step().await;
    let mut alice = gateways.login(0, "alice").await;

    nats.freeze(0).await;
    gateways.health_is(0, ServingStatus::NotServing).await;
    gateways.are_in_step().await;
    for from in 0..3 {
        gateways.expect_push(from, &mut alice, "alice").await;
    }
    gateways.expect_same(&["alice"]).await;
    nats.thaw(0);
    nats.serves(0).await;
}

#[tokio::test]
async fn a_server_that_is_stopped_in_order_costs_nothing_though_it_leads_the_log() {
    the_leader_stops(async |nats, leader| nats.terminate(leader).await, "Server Exiting").await;
}

#[tokio::test]
async fn a_server_in_lame_duck_mode_costs_nothing_though_it_leads_the_log() {
    the_leader_stops(async |nats, leader| nats.lame_duck(leader).await, "lame duck mode").await;
}

/// `said` is what it writes to its own log then.
async fn the_leader_stops(stop: impl AsyncFn(&mut Nats, usize) -> ExitStatus, said: &str) {
    let Some(mut nats) = Nats::three().await else { return };
    let urls = nats.urls();
    let mut gateways = Gateways::with([&urls[..]; 3], three_replicas).await;
    let mut watches = gateways.watch().await;
    let mut alice = gateways.login(1, "alice").await;
    watches.until("+alice").await;

    let stopped = leader(&nats).await;
    let meanwhile = async {
        let device = gateways.login(0, "meanwhile").await;
        let told = watches.until_and_none_lost("+meanwhile").await;
        assert_eq!(words(&told), "+meanwhile");
        device
    };
    let (_, _meanwhile) = tokio::join!(stop(&mut nats, stopped), meanwhile);
    assert!(nats.log_text(stopped).contains(said), "{}", nats.log_text(stopped));
    let _after = gateways.login(2, "after").await;
    assert_eq!(words(&watches.until_and_none_lost("+after").await), "+after");
    gateways.are_in_step().await;
    for from in 0..3 {
        gateways.expect_push(from, &mut alice, "alice").await;
    }
    assert_ne!(leader(&nats).await, stopped);
    nats.restart(stopped).await;
    let _last = gateways.login(2, "last").await;
    assert_eq!(words(&watches.until_and_none_lost("+last").await), "+last");
    gateways.expect_same(&["alice", "meanwhile", "after", "last"]).await;
}
