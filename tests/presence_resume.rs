//! What becomes of a subscriber that comes back, or falls behind: it gets exactly what it missed, or RESET.

mod common;

use common::{
    TestServer,
    known::Known,
    watch::{Watch, after, everyone, only, sorted_words, word, words},
};
use plex::proto::{OfflineReason, OnlineStatusKind, OnlineStatusRequest};
use std::time::Duration;

/// What a stream tells up to LIVE, in short.
async fn told(server: &TestServer, request: OnlineStatusRequest) -> String {
    let (_, told) = Watch::live(&mut server.backend().await, request).await;
    words(&told)
}

#[tokio::test]
async fn who_comes_back_gets_exactly_what_it_missed_then_live() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let alice = server.hub.connect("alice").unwrap();
    let _bob = server.hub.connect("bob").unwrap();
    let (watch, _) = Watch::live(&mut backend, everyone()).await;
    let cursor = watch.cursor.clone();
    drop(watch);
    drop(alice);
    let _carol = server.hub.connect("carol").unwrap();
    let _alice = server.hub.connect("alice").unwrap();
    // As often as it likes, over any connection, whatever `skip_snapshot` says.
    for skip_snapshot in [false, true, false] {
        let request = OnlineStatusRequest { skip_snapshot, ..after(&cursor, everyone()) };
        assert_eq!(told(&server, request).await, "-alice +carol +alice");
    }
    let mut watch = Watch::open(&mut backend, after(&cursor, everyone())).await;
    // A granted resume has a cursor in every response.
    assert!(!watch.response().await.unwrap().cursor.is_empty());
    let (mut watch, missed) = Watch::live(&mut backend, after(&watch.cursor.clone(), everyone())).await;
    assert_eq!(words(&missed), "");
    drop(_carol);
    watch.expect_offline("carol", OfflineReason::Closed).await;
}

#[tokio::test]
async fn every_cursor_of_a_stream_resumes_right_behind_its_response() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let (mut watch, _) = Watch::live(&mut backend, everyone()).await;
    let mut cursors = vec![(0, watch.cursor.clone())];
    let mut all = Vec::new();
    for number in 0..30 {
        // Some at a time, so that responses have several events.
        for part in 0..=number % 4 {
            drop(server.hub.connect(&format!("user-{number}-{part}")).unwrap());
        }
        let response = watch.response().await.unwrap();
        all.extend(response.events.iter().map(word));
        cursors.push((all.len(), response.cursor));
    }
    while all.len() < 2 * (0..30).map(|number| number % 4 + 1).sum::<usize>() {
        let response = watch.response().await.unwrap();
        all.extend(response.events.iter().map(word));
        cursors.push((all.len(), response.cursor));
    }
    for (place, cursor) in cursors {
        assert_eq!(told(&server, after(&cursor, everyone())).await, all[place..].join(" "));
    }
}

#[tokio::test]
async fn a_filter_is_the_same_in_any_order() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let (watch, _) = Watch::live(&mut backend, only(&["alice", "bob", "carol"])).await;
    drop(server.hub.connect("bob").unwrap());
    drop(server.hub.connect("zoe").unwrap());
    for uids in [["alice", "bob", "carol"], ["carol", "alice", "bob"]] {
        assert_eq!(told(&server, after(&watch.cursor, only(&uids))).await, "+bob -bob");
    }
    assert_eq!(told(&server, after(&watch.cursor, only(&["bob", "alice", "carol", "bob"]))).await, "+bob -bob");
}

#[tokio::test]
async fn a_cursor_of_another_filter_is_answered_with_reset_and_a_snapshot() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let _users = [server.hub.connect("alice").unwrap(), server.hub.connect("bob").unwrap()];
    let (of_all, _) = Watch::live(&mut backend, everyone()).await;
    let (of_alice, _) = Watch::live(&mut backend, only(&["alice"])).await;
    assert_eq!(told(&server, after(&of_all.cursor, only(&["alice"]))).await, "reset =alice");
    assert_eq!(told(&server, after(&of_alice.cursor, only(&["alice", "bob"]))).await.len(), "reset =alice =bob".len());
    assert_eq!(told(&server, after(&of_alice.cursor, only(&["bob"]))).await, "reset =bob");
    let (_, all) = Watch::live(&mut backend, after(&of_alice.cursor, everyone())).await;
    assert_eq!((word(&all[0]), sorted_words(&all[1..])), ("reset".into(), "=alice =bob".into()));
}

#[tokio::test]
async fn what_is_no_cursor_is_answered_with_reset_and_a_snapshot_whatever_skip_snapshot_says() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let _alice = server.hub.connect("alice").unwrap();
    let (watch, _) = Watch::live(&mut backend, everyone()).await;
    let changed = watch.cursor.replace(watch.cursor.chars().last().unwrap(), "~");
    for bad in ["x", " ", "é", &changed, &watch.cursor[1..], &format!("{}0", watch.cursor), &"c".repeat(10_000)] {
        let request = OnlineStatusRequest { skip_snapshot: true, ..after(bad, everyone()) };
        let mut watch = Watch::open(&mut backend, request).await;
        let reset = watch.response().await.unwrap();
        assert_eq!((reset.events.len(), reset.events[0].kind()), (1, OnlineStatusKind::Reset), "{bad:?}");
        assert_eq!(reset.cursor, "");
        assert_eq!(words(&watch.until_live().await), "=alice");
        assert!(!watch.cursor.is_empty());
    }
}

#[tokio::test]
async fn a_cursor_of_an_earlier_start_is_answered_with_reset() {
    let (config, _folder) = common::config();
    let server = TestServer::of(config.clone(), None, |builder| builder).await;
    let (watch, _) = Watch::live(&mut server.backend().await, everyone()).await;
    server.stopped().await;
    let server = TestServer::of(config, None, |builder| builder).await;
    let _alice = server.hub.connect("alice").unwrap();
    assert_eq!(told(&server, after(&watch.cursor, everyone())).await, "reset =alice");
}

#[tokio::test]
async fn a_cursor_is_good_for_at_least_the_history_and_then_reset() {
    let server = TestServer::with(|config| config.presence.history = 10).await;
    let mut backend = server.backend().await;
    let (watch, _) = Watch::live(&mut backend, everyone()).await;
    let (filtered, _) = Watch::live(&mut backend, only(&["user-0"])).await;
    let users: Vec<_> = (0..10).map(|number| server.hub.connect(&format!("user-{number}")).unwrap()).collect();
    let all: Vec<_> = (0..10).map(|number| format!("+user-{number}")).collect();
    assert_eq!(told(&server, after(&watch.cursor, everyone())).await, all.join(" "));
    assert_eq!(told(&server, after(&filtered.cursor, only(&["user-0"]))).await, "+user-0");
    let _one_more = server.hub.connect("user-10").unwrap();
    let (_, late) = Watch::live(&mut backend, after(&watch.cursor, everyone())).await;
    assert_eq!((word(&late[0]), late.len()), ("reset".into(), 12));
    assert_eq!(told(&server, after(&filtered.cursor, only(&["user-0"]))).await, "reset =user-0");
    drop(users);
}

#[tokio::test]
async fn a_keepalive_s_cursor_is_good_though_many_changes_of_others_have_passed() {
    let server = TestServer::with(|config| {
        config.presence.history = 5;
        config.presence.keepalive = Duration::from_millis(20);
    })
    .await;
    let (mut watch, _) = Watch::live(&mut server.backend().await, only(&["alice"])).await;
    for _ in 0..50 {
        drop(server.hub.connect("bob").unwrap());
    }
    let old = watch.cursor.clone();
    watch.expect_moved_on(&old).await;
    drop(server.hub.connect("alice").unwrap());
    assert_eq!(told(&server, after(&watch.cursor, only(&["alice"]))).await, "+alice -alice");
}

#[tokio::test]
async fn a_subscriber_that_falls_behind_gets_reset_and_a_snapshot() {
    let server = TestServer::with(|config| config.presence.history = 100).await;
    let mut backend = server.backend().await;
    let _alice = server.hub.connect("alice").unwrap();
    let (mut slow, mut known) = (Watch::open(&mut backend, everyone()).await, Known::default());
    while !known.is_live() {
        known.fold(&slow.event().await);
    }
    // More than the kernel and HTTP/2 keep for a reader that doesn't read, each time with a long name.
    let long = "x".repeat(240);
    for number in 0..50_000 {
        drop(server.hub.connect(&format!("{number}-{long}")).unwrap());
        if number % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let _bob = server.hub.connect("bob").unwrap();
    let mut told = 0;
    while !(known.is_live() && known.online() == ["alice", "bob"]) {
        known.fold(&slow.event().await);
        told += 1;
        assert!(told < 100_000, "it can't have got all of them");
    }
    assert!(known.resets > 0, "it fell behind");
    // From there on it is told every change again.
    drop(_bob);
    slow.expect_offline("bob", OfflineReason::Closed).await;
}

#[tokio::test]
async fn a_slow_subscriber_holds_up_nobody() {
    let server = TestServer::with(|config| config.presence.history = 100).await;
    let mut backend = server.backend().await;
    // Over another connection: one that isn't read holds up its own.
    let (_slow, _) = Watch::live(&mut server.backend().await, everyone()).await;
    let (mut keeps_pace, _) = Watch::live(&mut backend, everyone()).await;
    let long = "x".repeat(240);
    for number in 0..20_000 {
        let uid = format!("{number}-{long}");
        drop(server.hub.connect(&uid).unwrap());
        if number % 20 == 19 {
            for number in number - 19..=number {
                let uid = format!("{number}-{long}");
                keeps_pace.expect_online(&uid).await;
                keeps_pace.expect_offline(&uid, OfflineReason::Closed).await;
            }
        }
    }
}
