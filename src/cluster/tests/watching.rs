//! What presence promises to who watches.

use tokio::time::{Instant, advance};

use super::*;

fn cursor_of(watcher: &mut Watcher) -> String {
    std::iter::from_fn(|| told_now(watcher)).last().unwrap().cursor
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_then_live_then_every_change() {
    let (cluster, _inbox) = alone(options());
    cluster.come("a", 1);
    let mut watcher = cluster.everyone();
    let first = watcher.next().await;
    let epoch = cluster.epoch_of("a", ConnectionNumber(1)).unwrap();
    let born = cluster.known_since().unwrap();
    let since = Millis(Clock::START);
    assert_eq!(
        first.events,
        [PresenceEvent::Snapshot { uid: uid("a"), epoch, since, node: name("n") }, PresenceEvent::Live { since: born }]
    );
    cluster.come("b", 2);
    cluster.go("a", 1);
    assert_eq!(words(&mut watcher), "+b -a");
    // A replaced connection is no event.
    cluster.come("b", 3);
    cluster.go("b", 2);
    assert_eq!(words(&mut watcher), "");
}

#[tokio::test(start_paused = true)]
async fn a_change_carries_the_time_of_the_log_and_so_does_since() {
    let clock = Clock::default();
    let (cluster, _inbox) = Cluster::join(&clock.log(), name("n"), options());
    let mut watcher = cluster.watch(Vec::new(), true, "");
    assert_eq!(words(&mut watcher), "live");
    clock.set(1_234);
    cluster.come("a", 1);
    let PresenceEvent::Change(change) = watcher.next().await.events.remove(0) else { panic!("a change") };
    assert_eq!((change.at, change.offline), (Millis(Clock::START + 1_234), None));
    // The clock goes back, the log's doesn't.
    clock.set(0);
    cluster.come("a", 2);
    assert_eq!(cluster.lookup("a").unwrap().since, change.at);
    assert_eq!(cluster.now(), change.at);
}

#[tokio::test(start_paused = true)]
async fn a_filter_shows_its_uids_only_and_nothing_twice() {
    let (cluster, _inbox) = alone(options());
    cluster.come("a", 1);
    cluster.come("b", 2);
    let mut watcher = cluster.watch(["c", "a", "c"].map(uid).into(), false, "");
    assert_eq!(words(&mut watcher), "=a live");
    cluster.go("b", 2);
    cluster.come("c", 3);
    cluster.go("a", 1);
    assert_eq!(words(&mut watcher), "+c -a");
    drop(watcher);
    cluster.come("a", 4);
    assert!(format!("{:?}", cluster.0.presence().watchers).contains("by_uid: {}"));
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_by_a_change_and_not_by_those_of_others() {
    let (cluster, _inbox) = alone(options());
    let mut watcher = cluster.watch(vec![uid("a")], true, "");
    watcher.next().await;
    let waiting = tokio::spawn(async move { watcher.next().await });
    tokio::task::yield_now().await;
    cluster.come("b", 1);
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    cluster.come("a", 2);
    let before = Instant::now();
    assert_eq!(waiting.await.unwrap().events.iter().map(word).collect::<Vec<_>>(), ["+a"]);
    assert_eq!(Instant::now(), before);
}

#[tokio::test(start_paused = true)]
async fn a_filter_is_not_outrun_by_the_changes_of_others() {
    let (cluster, _inbox) = alone(Options { history: 10, ..options() });
    let mut watcher = cluster.watch(vec![uid("a")], true, "");
    assert_eq!(words(&mut watcher), "live");
    for number in 1..100 {
        cluster.come(&format!("b{number}"), number);
    }
    assert_eq!(words(&mut watcher), "");
    cluster.come("a", 200);
    assert_eq!(words(&mut watcher), "+a");
}

#[tokio::test(start_paused = true)]
async fn a_keepalive_comes_after_silence_and_its_cursor_moves_on() {
    let (cluster, _inbox) = alone(options());
    let mut watcher = cluster.watch(vec![uid("a")], false, "");
    let live = watcher.next().await;
    let before = Instant::now();
    cluster.come("b", 1);
    let keepalive = watcher.next().await;
    assert_eq!(Instant::now() - before, options().keepalive);
    assert!(keepalive.events.is_empty());
    assert_ne!(keepalive.cursor, live.cursor);
    // The time counts from the last response, also where the call is made anew.
    advance(Duration::from_secs(10)).await;
    assert!(told_now(&mut watcher).is_none());
    cluster.come("a", 2);
    assert!(told_now(&mut watcher).is_some());
    advance(Duration::from_secs(10)).await;
    assert!(told_now(&mut watcher).is_none());
    advance(Duration::from_secs(5)).await;
    assert!(told_now(&mut watcher).unwrap().events.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_resumes_gets_exactly_what_it_missed() {
    let (cluster, _inbox) = alone(options());
    let mut watcher = cluster.watch(["a", "b"].map(uid).into(), false, "");
    cluster.come("a", 1);
    let cursor = cursor_of(&mut watcher);
    cluster.come("b", 2);
    cluster.come("c", 3);
    cluster.go("a", 1);
    // The same set in another order; with a cursor in every response.
    let mut resumed = cluster.watch(["b", "a", "b"].map(uid).into(), true, &cursor).with_limits(1, 1);
    let updates: Vec<_> = std::iter::from_fn(|| told_now(&mut resumed)).collect();
    let told: Vec<_> = updates.iter().flat_map(|update| update.events.iter().map(word)).collect();
    assert_eq!((told, updates.len()), (["+b", "-a", "live"].map(String::from).into(), 3));
    for (n, update) in updates.iter().enumerate() {
        let mut again = cluster.watch(["a", "b"].map(uid).into(), false, &update.cursor);
        assert_eq!(words(&mut again), ["-a live", "live", "live"][n]);
    }
}

#[tokio::test(start_paused = true)]
async fn who_resumes_gets_live_however_much_happens_meanwhile() {
    let (cluster, _inbox) = alone(options());
    let cursor = cursor_of(&mut cluster.everyone());
    cluster.come("a", 1);
    cluster.come("b", 2);
    let mut resumed = cluster.watch(Vec::new(), true, &cursor).with_limits(1, 1);
    let mut told = Vec::new();
    for number in 10..14 {
        told.extend(told_now(&mut resumed).unwrap().events.iter().map(word));
        cluster.come(&format!("more{number}"), number);
    }
    assert_eq!(told, ["+a", "+b", "live", "+more10"]);
}

#[tokio::test(start_paused = true)]
async fn who_resumes_within_one_batch_gets_the_rest_of_it() {
    let (cluster, _inbox) = alone(options());
    (1..=3).for_each(|number| cluster.come(&format!("u{number}"), number));
    let mut watcher = cluster.watch(Vec::new(), true, "").with_limits(1, 1);
    assert_eq!(words(&mut watcher), "live");
    // Three releases in one message.
    drop(cluster.leave());
    for rest in (0..3).rev() {
        let update = told_now(&mut watcher).unwrap();
        let missed = words(&mut cluster.watch(Vec::new(), true, &update.cursor));
        assert_eq!(missed.matches('-').count(), rest, "{missed}");
        assert!(!missed.contains(&word(&update.events[0])), "{missed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cursor_that_cannot_be_followed_gets_a_reset_and_a_snapshot() {
    let (cluster, _inbox) = alone(Options { history: 2, ..options() });
    cluster.come("a", 1);
    let old = cursor_of(&mut cluster.everyone());
    for number in 2..5 {
        cluster.come(&format!("b{number}"), number);
    }
    cluster.go("b2", 2);
    cluster.go("b3", 3);
    let good = cursor::Cursor::read(&cursor_of(&mut cluster.everyone())).unwrap();
    assert_eq!(words(&mut cluster.watch(Vec::new(), true, &good.text())), "live");
    let foreign = cursor::Cursor { log: good.log + 1, ..good }.text();
    let filtered = cursor_of(&mut cluster.watch(vec![uid("a")], false, ""));
    for bad in [&old, &foreign, &filtered, "nonsense"] {
        let mut watcher = cluster.watch(Vec::new(), true, bad);
        let reset = watcher.next().await;
        assert_eq!((reset.events.iter().map(word).collect::<Vec<_>>(), &*reset.cursor), (vec!["reset".into()], ""));
        let rest = words(&mut watcher);
        assert!(["=a =b4 live", "=b4 =a live"].contains(&&*rest), "{rest}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cursor_ahead_of_the_log_waits_up_to_two_seconds() {
    let clock = Clock::default();
    let (cluster, _inbox) = Cluster::join(&clock.log(), name("n"), options());
    let filter = || vec![uid("c")];
    let now = cursor::Cursor::read(&cursor_of(&mut cluster.watch(filter(), true, ""))).unwrap();
    // Two messages from now: at the end of the first it is still ahead. Neither concerns the watcher.
    let ahead = cursor::Cursor { place: now.place + 2 * 1024, ..now }.text();
    let mut watcher = cluster.watch(filter(), false, &ahead);
    assert!(told_now(&mut watcher).is_none());
    let mut in_time = tokio::spawn(async move { watcher.next().await });
    tokio::task::yield_now().await;
    cluster.come("a", 1);
    tokio::task::yield_now().await;
    assert!((&mut in_time).now_or_never().is_none());
    cluster.come("b", 2);
    let before = Instant::now();
    let first = in_time.await.unwrap();
    assert_eq!(Instant::now(), before);
    assert_eq!(first.events.iter().map(word).collect::<Vec<_>>(), ["live"]);

    let ahead = cursor::Cursor { place: now.place + 100 * 1024, ..now }.text();
    let mut watcher = cluster.watch(filter(), false, &ahead);
    let before = Instant::now();
    assert_eq!(watcher.next().await.events.iter().map(word).collect::<Vec<_>>(), ["reset"]);
    assert_eq!(Instant::now() - before, Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn who_falls_behind_gets_a_reset_and_a_snapshot() {
    let (cluster, _inbox) = alone(Options { history: 3, ..options() });
    let mut watcher = cluster.everyone();
    assert_eq!(words(&mut watcher), "live");
    for number in 1..=3 {
        cluster.come(&format!("a{number}"), number);
    }
    assert_eq!(words(&mut watcher), "+a1 +a2 +a3");
    for number in 1..=3 {
        cluster.go(&format!("a{number}"), number);
    }
    cluster.come("b", 4);
    assert_eq!(words(&mut watcher), "reset =b live");
    cluster.go("b", 4);
    assert_eq!(words(&mut watcher), "-b");
}

#[tokio::test(start_paused = true)]
async fn live_is_not_told_before_the_node_is_settled() {
    let settle = Duration::from_secs(40);
    let (cluster, _inbox) = alone(Options { settle, ..options() });
    let before = Instant::now();
    let (mut all, mut news) = (cluster.everyone(), cluster.watch(Vec::new(), true, ""));
    cluster.come("a", 1);
    for watcher in [&mut all, &mut news] {
        let change = watcher.next().await;
        assert!(matches!(change.events[..], [PresenceEvent::Change(_) | PresenceEvent::Snapshot { .. }]));
    }
    // Keepalives meanwhile: nobody resumes in the middle of a snapshot.
    for _ in 0..2 {
        assert_eq!(all.next().await, Update { events: Vec::new(), cursor: String::new() });
    }
    let live = all.next().await;
    assert_eq!(Instant::now() - before, settle);
    assert_eq!(live.events, [PresenceEvent::Live { since: cluster.known_since().unwrap() }]);
    assert!(!live.cursor.is_empty());
    assert_eq!(words(&mut news), "live");
    // Who comes later doesn't wait.
    assert_eq!(words(&mut cluster.everyone()), "=a live");
}

#[tokio::test(start_paused = true)]
async fn an_update_holds_at_most_1000_events_and_one_cursor_per_snapshot() {
    let (cluster, _inbox) = alone(options());
    for number in 1..=2_500 {
        cluster.come(&format!("u{number}"), number);
    }
    let mut watcher = cluster.everyone();
    let updates: Vec<_> = std::iter::from_fn(|| told_now(&mut watcher)).collect();
    assert!(updates.iter().all(|update| update.events.len() <= 1_000));
    assert_eq!(updates.iter().map(|update| update.events.len()).sum::<usize>(), 2_501);
    let (last, before) = updates.split_last().unwrap();
    assert!(before.iter().all(|update| update.cursor.is_empty()));
    assert!(!last.cursor.is_empty() && matches!(last.events.last(), Some(PresenceEvent::Live { .. })));
}

#[tokio::test(start_paused = true)]
async fn changes_of_what_was_told_go_between_the_parts_of_a_snapshot() {
    let (cluster, _inbox) = alone(options());
    for number in 0..600 {
        cluster.come(&format!("u{number}"), number + 1);
    }
    let mut watcher = cluster.everyone().with_limits(50, 10);
    let told = |watcher: &mut Watcher| told_now(watcher).unwrap().events.iter().map(word).collect::<Vec<_>>();
    let first = told(&mut watcher);
    (0..600).for_each(|number| cluster.go(&format!("u{number}"), number + 1));
    let mut rest = words(&mut watcher);
    // What was taken with the first part but not told yet is told, then taken back.
    for uid in &first {
        assert!(rest.contains(&uid.replace('=', "-")), "{uid} stayed");
    }
    let seen = first.join(" ") + " " + &rest;
    assert_eq!(seen.matches('=').count(), seen.matches('-').count());
    assert!(seen.matches('=').count() < 120, "{seen}");
    rest.truncate(rest.len() - 4);
    assert!(!rest.contains("live"));
}

#[tokio::test(start_paused = true)]
async fn a_death_is_told_in_pieces_and_a_resume_in_its_middle_repeats() {
    let log = Clock::default().log();
    let (cluster, _inbox) = Cluster::join(&log, name("n"), options());
    let (lost, _lost_inbox) = Cluster::join(&log, name("lost"), options());
    for number in 1..=25 {
        lost.come(&format!("u{number}"), number);
    }
    let mut watcher = cluster.watch(Vec::new(), true, "").with_limits(10, 7);
    assert_eq!(words(&mut watcher), "live");
    assert!(log.end(&name("lost")));
    let updates: Vec<_> = std::iter::from_fn(|| told_now(&mut watcher)).collect();
    let events: Vec<_> = updates.iter().flat_map(|update| &update.events).collect();
    let epochs = events.iter().map(|event| match event {
        PresenceEvent::Change(change) => change.epoch,
        other => panic!("{other:?}"),
    });
    let epochs = epochs.collect::<std::collections::HashSet<_>>();
    assert_eq!((events.len(), epochs.len()), (25, 1));
    let (last, before) = updates.split_last().unwrap();
    for update in before {
        let again = words(&mut cluster.watch(Vec::new(), true, &update.cursor));
        assert_eq!(again.matches('-').count(), 25);
        assert!(!again.contains("reset"));
    }
    assert_eq!(words(&mut cluster.watch(Vec::new(), true, &last.cursor)), "live");
}
