//! Nodes that join where the log has lost its beginning, so that another node has to tell them the state: under changes,
//! while that one is killed, and while the log loses what the join still needs.

use std::collections::BTreeSet;

use super::{
    before,
    common::{
        TestDevice, at_scale, eventually, online,
        watch::{Watch, everyone, sorted_words},
    },
    joining::{Ground, HELLO, RESET, before_it_reads_on, devices_of, in_the_middle_of_the_parts, tries},
};

/// Users of the crowd, and their changes in a second: so few that most of them don't change within a test, and that the
/// shortest log there is holds some seconds of it.
const USERS: usize = 10_000;
const CHANGES: usize = 2_000;

#[tokio::test]
async fn a_node_whose_peer_is_killed_in_the_middle_of_its_join_takes_the_state_from_another() {
    let Some(mut ground) = Ground::of(2, at_scale(USERS, 200_000), at_scale(1, 16)).await else { return };
    let began = ground.lives(0).await;
    let mut told = vec![ground.subscribe(0).await, ground.subscribe(1).await];
    ground.changes(at_scale(CHANGES, 10_000)).await;
    let link = ground.joins(&[], in_the_middle_of_the_parts).await;
    let tried = tries(&link);
    let giver = ground.giver(&link).await;
    let stays = 1 - giver;
    told.remove(giver).abort();
    told.push(ground.subscribe(2).await);

    ground.kill(giver).await;
    assert_eq!(ground.nodes.node(2).readyz().await, 503);
    link.mend();
    let some: Vec<_> = ground.crowd_uids().take(1_000).chain(devices_of(stays)).collect();
    ground.is_ready_and_knows(2, &some).await;
    assert!(tries(&link) > tried, "it has asked the other");
    let lost: BTreeSet<_> = devices_of(giver).collect();
    for index in [stays, 2] {
        for uid in &lost {
            ground.nodes.knows(index, uid, None).await;
        }
    }

    let told = ground.ends(told, ground.crowd_uids().chain(devices_of(stays))).await;
    ground.expect_same_answers([stays, 2], &some).await;
    let of_giver = format!("node-{}", giver + 1);
    for event in told.iter().flat_map(|told| &told.lost) {
        assert!(lost.contains(&event.uid) && event.node == of_giver, "{event:?}");
        assert_eq!(event.epoch, told[0].lost[0].epoch, "one epoch: {event:?}");
    }
    // Who joined is told of those that were in its snapshot.
    assert_eq!(told[0].lost.len(), lost.len(), "all of them, once");
    let now = ground.lives(stays).await;
    assert!(
        began.iter().all(|(name, since)| (now.get(name) == Some(since)) == (*name != of_giver)),
        "{began:?} {now:?}"
    );
    assert_eq!(ground.log.written(RESET), 0);
}

#[tokio::test]
async fn a_node_whose_only_peer_is_killed_begins_anew_but_not_while_anybody_writes() {
    let Some(mut ground) = Ground::of(1, USERS, 1).await else { return };
    let (_, before_it) = Watch::live(&mut ground.nodes.backends[0].clone(), everyone()).await;
    let highest = before_it.iter().map(|event| event.epoch).max().expect("somebody is online");
    ground.changes(CHANGES).await;
    let link = ground.joins(&["cluster.heartbeat=100ms"], in_the_middle_of_the_parts).await;
    let _early = ground.nodes.login(1, "early").await;
    let mut watch = Watch::open(&mut ground.nodes.backends[1].clone(), everyone()).await;
    ground.kill(0).await;
    link.mend();

    // Twice as many as would do if nobody wrote.
    let enough = ground.log.written(HELLO) + 2 * 8;
    eventually("it asks whether anybody writes", || async {
        assert_eq!((ground.nodes.node(1).readyz().await, ground.log.written(RESET)), (503, 0));
        (ground.log.written(HELLO) >= enough).then_some(())
    })
    .await;
    let Ground { crowd, nodes, log, .. } = ground;
    crowd.fall_silent();
    nodes.node(1).is_ready().await;
    assert_eq!(log.written(RESET), 1);

    assert_eq!(sorted_words(&watch.until_live().await), "=early");
    let mut devices = Vec::new();
    for uid in devices_of(0) {
        assert!(!online(&mut nodes.backends[1].clone(), &[&uid]).await[0].online, "{uid}");
        devices.push(TestDevice::login(nodes.node(1).device(), &uid).await);
        let came = watch.expect_online(&uid).await;
        assert!(came.epoch > highest, "epochs grow: {came:?} after {highest}");
    }
    let _after = nodes.login(1, "after").await;
    assert_eq!(sorted_words(&before(&mut watch, "after").await), "");
}

#[tokio::test]
async fn a_node_joins_anew_where_the_log_is_lost_under_it_while_parts_are_still_to_come() {
    the_log_is_lost_under_the_join(in_the_middle_of_the_parts).await;
}

#[tokio::test]
async fn a_node_joins_anew_where_the_log_is_lost_under_it_before_it_reads_on() {
    the_log_is_lost_under_the_join(before_it_reads_on).await;
}

async fn the_log_is_lost_under_the_join(moment: fn(&str) -> bool) {
    let Some(mut ground) = Ground::of(1, USERS, 1).await else { return };
    let began = ground.lives(0).await;
    let mut told = vec![ground.subscribe(0).await];
    ground.changes(CHANGES).await;
    let link = ground.joins(&[], moment).await;
    let tried = tries(&link);
    told.push(ground.subscribe(1).await);
    ground.changes(5 * CHANGES).await;
    ground.log.is_another().await;
    ground.changes(CHANGES).await;
    assert_eq!(ground.nodes.node(1).readyz().await, 503);

    link.mend();
    let some: Vec<_> = ground.crowd_uids().take(1_000).chain(devices_of(0)).collect();
    ground.is_ready_and_knows(1, &some).await;
    assert!(tries(&link) > tried, "it has begun anew");
    let told = ground.ends(told, ground.crowd_uids().chain(devices_of(0))).await;
    ground.expect_same_answers([0, 1], &some).await;
    assert!(told.iter().all(|told| told.lost.is_empty()), "nobody is declared dead");
    let now = ground.lives(0).await;
    assert!(began.iter().all(|(name, since)| now.get(name) == Some(since)), "{began:?} {now:?}");
    assert_eq!(ground.log.written(RESET), 0);
}
