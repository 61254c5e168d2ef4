//! Several nodes on one log, and what they ask each other.

use tokio::{
    sync::oneshot,
    time::{Instant, advance},
};

use super::*;
use crate::model::{PushOutcome, PushStatus, Session, Transport};

fn pair() -> (LocalLog, (Cluster, Inbox), (Cluster, Inbox)) {
    let log = Clock::default().log();
    let a = Cluster::join(&log, name("a"), options());
    let b = Cluster::join(&log, name("b"), options());
    (log, a, b)
}

fn push(text: &str) -> ForwardedPush {
    ForwardedPush { uid: uid(text), uri: "/x".into(), body: "".into(), ack_timeout: None, many: 0, deadline: None }
}

fn card(connections: u32, capacity: u32, address: &str) -> Card {
    Card {
        ready: true,
        draining: false,
        connections,
        capacity,
        lag_ms: 0,
        addresses: vec![address.into()],
        addresses_tls: Vec::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn all_nodes_know_the_same() {
    let (_log, (a, mut a_inbox), (b, _b_inbox)) = pair();
    let (mut at_a, mut at_b) = (a.everyone(), b.everyone());
    assert_eq!((words(&mut at_a), words(&mut at_b)), ("live".into(), "live".into()));
    a.come("x", 1);
    b.come("x", 9);
    assert!(matches!(a_inbox.try_recv(), Some(Inbound::Close { number: ConnectionNumber(1), .. })));
    a.go("x", 1);
    let holding = a.lookup("x").unwrap();
    assert_eq!(Some(&holding), b.lookup("x").as_ref());
    assert_eq!((holding.node, holding.connections, holding.nodes), (name("b"), 1, vec![b.incarnation()]));
    assert_eq!(a.epoch_of("x", ConnectionNumber(9)), None);
    assert!(b.epoch_of("x", ConnectionNumber(9)).is_some());
    assert_eq!((a.uids(), b.uids()), (1, 1));
    b.go("x", 9);
    assert_eq!((words(&mut at_a), words(&mut at_b)), ("+x -x".into(), "+x -x".into()));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_joins_knows_what_was_before() {
    let log = Clock::default().log();
    let (a, _a_inbox) = Cluster::join(&log, name("a"), options());
    assert!(a.is_single());
    a.come("x", 1);
    let cursor = told_now(&mut a.everyone()).unwrap().cursor;
    a.come("y", 2);
    let (b, _b_inbox) = Cluster::join(&log, name("b"), options());
    assert!(!a.is_single() && !b.is_single());
    assert_eq!(a.lookup("x"), b.lookup("x"));
    // It has no history before its join.
    assert!(words(&mut b.watch(Vec::new(), true, &cursor)).starts_with("reset ="));
    let cursor = told_now(&mut a.everyone()).unwrap().cursor;
    a.go("x", 1);
    assert_eq!(words(&mut b.watch(Vec::new(), true, &cursor)), "-x live");
    drop(b.leave());
    assert!(a.is_single());
}

#[tokio::test(start_paused = true)]
async fn a_name_joined_again_ends_the_earlier() {
    let (log, (a, mut a_inbox), (b, _b_inbox)) = pair();
    a.come("x", 1);
    let mut watcher = b.everyone();
    assert_eq!(words(&mut watcher), "=x live");
    let (again, _again_inbox) = Cluster::join(&log, name("a"), options());
    assert!(a_inbox.recv().await.is_none());
    a.come("y", 2);
    assert_eq!(words(&mut watcher), "-x");
    assert_eq!(b.lookup("y"), None);
    assert_eq!(b.node_names().len(), 2);
    again.come("x", 1);
    assert_eq!(words(&mut watcher), "+x");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_takes_its_devices_offline_as_draining_and_claims_no_more() {
    let log = Clock::default().log();
    let (a, mut a_inbox) = Cluster::join(&log, name("a"), options());
    let (b, _b_inbox) = Cluster::join(&log, name("b"), Options { history: 10_000, ..options() });
    for number in 1..=2_000 {
        a.come(&format!("u{number}"), number);
    }
    b.come("stays", 1);
    let mut watcher = b.watch(vec![uid("u1"), uid("u2000")], true, "");
    drop(a.leave());
    a.come("late", 5_000);
    drop(a.leave());
    assert!(a_inbox.recv().await.is_none());
    assert_eq!(b.uids(), 1);
    assert_eq!(b.node_names(), [name("b")]);
    let reasons = std::iter::from_fn(|| told_now(&mut watcher)).flat_map(|update| update.events);
    let reasons = reasons.filter_map(|event| match event {
        PresenceEvent::Change(change) => change.offline,
        _ => None,
    });
    assert_eq!(reasons.collect::<Vec<_>>(), [crate::model::OfflineReason::Draining; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_push_goes_to_the_node_that_holds_the_uid() {
    let (_log, (a, _a_inbox), (b, mut b_inbox)) = pair();
    let node = b.incarnation();
    let answering = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(Inbound::Push { push, departure, answer }) = b_inbox.recv().await {
            assert!(departure.take(), "nobody has given it up");
            seen.push(push.uid.to_string());
            match push.uid.as_str() {
                "here" => {
                    answer.send(AtOnce::Told(Forwarded::Outcome(PushOutcome::unsent(PushStatus::QueueFull)))).unwrap()
                }
                "gone" => answer.send(AtOnce::Told(Forwarded::NotHere)).unwrap(),
                _ => drop(answer),
            }
            if seen.len() == 3 {
                break;
            }
        }
        (seen, b_inbox)
    });
    // Asked in the order of the calls, however they are awaited.
    let [here, gone, lost] = ["here", "gone", "lost"].map(|text| a.forward(node, push(text)));
    assert_eq!(told(lost).await, Forwarded::Unknown);
    assert_eq!(told(gone).await, Forwarded::NotHere);
    assert_eq!(told(here).await, Forwarded::Outcome(PushOutcome::unsent(PushStatus::QueueFull)));
    let (seen, inbox) = answering.await.unwrap();
    assert_eq!(seen, ["here", "gone", "lost"]);

    drop(inbox);
    assert_eq!(told(a.forward(node, push("x"))).await, Forwarded::Unreachable);
    assert_eq!(told(a.forward(Incarnation(1), push("x"))).await, Forwarded::Unreachable);
}

/// What a node says at once, where nothing waits.
async fn told(asked: impl Future<Output = AtOnce>) -> Forwarded {
    match asked.await {
        AtOnce::Told(forwarded) => forwarded,
        waits => panic!("{waits:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_s_time_begins_with_the_call_and_what_has_not_left_by_its_end_is_not_sent() {
    let (_log, (a, _a_inbox), (b, mut b_inbox)) = pair();
    let before = Instant::now();
    let timely = |seconds| ForwardedPush { deadline: Some(before + Duration::from_secs(seconds)), ..push("timely") };
    // A node says at once that a device's answer is waited for; one that says nothing isn't waited for.
    let patient = ForwardedPush { ack_timeout: Some(Duration::from_secs(60)), ..push("slow") };
    let asked = [push("left"), patient, timely(1), timely(60)].map(|push| a.forward(b.incarnation(), push));
    let Some(Inbound::Push { departure, answer: _unanswered, .. }) = b_inbox.recv().await else { panic!("a push") };
    assert!(departure.take());
    let [left, patient, hurried, timely] = asked;
    assert_eq!(told(hurried).await, Forwarded::Unreachable);
    assert_eq!(Instant::now() - before, Duration::from_secs(1));
    assert_eq!(told(left).await, Forwarded::Unknown);
    assert_eq!(Instant::now() - before, Duration::from_secs(2));
    for waits in [patient, timely] {
        assert_eq!(told(waits).await, Forwarded::Unreachable);
        assert_eq!(Instant::now() - before, Duration::from_secs(2), "each has waited all the time");
        let Some(Inbound::Push { departure, .. }) = b_inbox.recv().await else { panic!("a push") };
        assert!(!departure.take(), "it was given up");
    }
}

#[tokio::test(start_paused = true)]
async fn what_becomes_of_a_push_that_was_sent_tells_its_number_and_who_took_it() {
    let (_log, (a, _a_inbox), _b) = pair();
    let sent = PushOutcome { status: PushStatus::Sent, seq: 7, connections: 2, reply: String::new() };
    let (second, ack_timeout) = (Duration::from_secs(1), Duration::from_secs(60));
    let ended = |status| PushOutcome { status, ..sent.clone() };
    let waits = || {
        let (later, outcome) = oneshot::channel();
        (later, SentAndWaits { sent: sent.clone(), outcome })
    };
    let (later, lost) = waits();
    drop(later);
    assert_eq!(a.outcome_of(lost, ack_timeout, None).await, ended(PushStatus::ConnectionLost), "its node has ended");
    let (_later, silent) = waits();
    assert_eq!(a.outcome_of(silent, ack_timeout, None).await, ended(PushStatus::Unknown), "its node doesn't tell");
    let (_later, hurried) = waits();
    let deadline = Some(Instant::now() + second);
    assert_eq!(a.outcome_of(hurried, ack_timeout, deadline).await, ended(PushStatus::AckTimeout));
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_of_a_node_makes_it_unreachable() {
    let (_log, (a, _a_inbox), (b, mut b_inbox)) = pair();
    let waiting: Vec<_> = (0..bus::QUEUE_MAX).map(|_| a.forward(b.incarnation(), push("x"))).collect();
    assert_eq!(told(a.forward(b.incarnation(), push("x"))).await, Forwarded::Unreachable);
    // What has to be closed has a queue of its own.
    b.come("y", 1);
    a.come("y", 1);
    assert!(matches!(b_inbox.recv().await, Some(Inbound::Close { number: ConnectionNumber(1), .. })));
    drop(waiting);
}

#[tokio::test(start_paused = true)]
async fn a_broadcast_sums_the_others_and_names_the_silent() {
    let (log, (a, _a_inbox), (_b, mut b_inbox)) = pair();
    let (_c, _silent) = Cluster::join(&log, name("c"), options());
    let asked = a.broadcast(&"/x".into(), &"".into(), None);
    let Some(Inbound::Broadcast { answer, .. }) = b_inbox.recv().await else { panic!("a broadcast") };
    answer.send(BroadcastTally { sent: 5, queue_full: 1 }).unwrap();
    let before = Instant::now();
    assert_eq!(asked.await, (BroadcastTally { sent: 5, queue_full: 1 }, vec![name("c")]));
    assert_eq!(Instant::now() - before, Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn disconnect_and_sessions_ask_the_others() {
    let (_log, (a, mut a_inbox), (b, mut b_inbox)) = pair();
    let ended = a.disconnect(&[a.incarnation(), b.incarnation()], &uid("x"), "why", None);
    let Some(Inbound::Disconnect { answer, .. }) = b_inbox.recv().await else { panic!("a disconnect") };
    answer.send(2).unwrap();
    assert_eq!(ended.await, 2);
    let mut pages = a.sessions(None, None);
    let Some(Inbound::Sessions { uid: None, answer }) = b_inbox.recv().await else { panic!("sessions") };
    answer.try_send(Vec::<Session>::new()).unwrap();
    assert!(answer.try_send(Vec::new()).is_err(), "one page at a time");
    drop(answer);
    assert_eq!(pages.next().await, Some(Vec::new()));
    assert_eq!(pages.next().await, None);
    // Of one uid: only who holds it is asked.
    assert_eq!(a.sessions(Some(&uid("x")), None).next().await, None);
    assert!(b_inbox.try_recv().is_none());
    b.come("x", 1);
    let _pages = a.sessions(Some(&uid("x")), None);
    assert!(matches!(b_inbox.try_recv(), Some(Inbound::Sessions { uid: Some(_), .. })));
    assert!(a_inbox.try_recv().is_none());
}

#[tokio::test(start_paused = true)]
async fn many_are_looked_up_in_order() {
    let (_log, (a, _a_inbox), (b, _b_inbox)) = pair();
    (0..600).step_by(2).for_each(|number| b.come(&format!("u{number}"), number + 1));
    let uids: Vec<_> = (0..600).map(|number| format!("u{number}")).collect();
    let mut online = Vec::new();
    a.presence_of(uids.iter().map(String::as_str), |presence| {
        online.push(presence.is_some_and(|presence| presence.connections == 1 && presence.node == b.name()));
    });
    assert_eq!(online, (0..600).map(|number| number % 2 == 0).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_device_is_sent_to_the_ready_node_with_the_lowest_load() {
    let (_log, (a, _a_inbox), (b, _b_inbox)) = pair();
    assert_eq!(a.choose_host(Transport::Tcp), None);
    a.announce(card(50, 100, "a:1"));
    b.announce(card(400, 1_000, "b:1"));
    assert_eq!(a.choose_host(Transport::Tcp), Some(("b:1".into(), name("b"))));
    for bad in [
        Card { ready: false, ..card(0, 1_000, "b:1") },
        Card { draining: true, ..card(0, 1_000, "b:1") },
        Card { addresses: Vec::new(), ..card(0, 1_000, "b:1") },
        card(0, 0, "b:1"),
    ] {
        b.announce(bad);
        assert_eq!(a.choose_host(Transport::Tcp), Some(("a:1".into(), name("a"))));
    }
    drop(b.leave());
    a.announce(Card { draining: true, ..card(0, 100, "a:1") });
    assert_eq!(a.choose_host(Transport::Tcp), None);
}

#[tokio::test(start_paused = true)]
async fn loads_within_two_percent_share_the_devices() {
    let (_log, (a, _a_inbox), (b, _b_inbox)) = pair();
    let granted = |count: usize| (0..count).filter(|_| a.choose_host(Transport::Tcp).unwrap().1 == name("b")).count();
    a.announce(card(500_000, 1_000_000, "a:1"));
    b.announce(card(515_000, 1_000_000, "b:1"));
    let shared = granted(100);
    assert!((10..=90).contains(&shared), "{shared}");
    b.announce(card(525_000, 1_000_000, "b:1"));
    assert_eq!(granted(100), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_granted_counts_for_five_seconds() {
    let (_log, (a, _a_inbox), (b, _b_inbox)) = pair();
    a.announce(card(0, 100, "a:1"));
    b.announce(card(50, 100, "b:1"));
    let granted = |count: usize| (0..count).filter(|_| a.choose_host(Transport::Tcp).unwrap().1 == name("b")).count();
    assert_eq!(granted(45), 0);
    let both = granted(40);
    assert!((5..=35).contains(&both), "{both}");
    advance(Duration::from_millis(5_300)).await;
    assert_eq!(granted(45), 0);
}

#[tokio::test(start_paused = true)]
async fn a_card_told_twice_is_written_once() {
    let sequences = Arc::new(AtomicU64::new(0));
    let seen = sequences.clone();
    let log = LocalLog::new(77, move |sequence| seen.store(sequence, Ordering::Relaxed));
    let (a, _inbox) = Cluster::join(&log, name("a"), options());
    assert_eq!(a.incarnation(), Incarnation(77));
    a.announce(card(0, 1, "a:1"));
    a.announce(card(0, 1, "a:1"));
    assert_eq!(sequences.load(Ordering::Relaxed), 78);
    a.announce(card(1, 1, "a:1"));
    assert_eq!(sequences.load(Ordering::Relaxed), 79);
}

#[tokio::test]
async fn writers_on_many_threads_make_one_order() {
    let (_log, (a, _a_inbox), (b, _b_inbox)) = pair();
    let mut watcher = a.watch(Vec::new(), true, "");
    assert_eq!(words(&mut watcher), "live");
    let threads = [(&a, 0), (&b, 1), (&a, 2), (&b, 3)].map(|(cluster, thread)| {
        let cluster = cluster.clone();
        std::thread::spawn(move || {
            for number in (0..200).map(|n| n * 4 + thread) {
                let text = format!("u{}", number % 5);
                cluster.come(&text, number);
                cluster.go(&text, number);
            }
            cluster.come(&format!("end{thread}"), 10_000 + thread);
        })
    });
    let mut online = std::collections::HashMap::new();
    while (0..4).any(|thread| !online.contains_key(&uid(&format!("end{thread}")))) {
        for event in watcher.next().await.events {
            match event {
                PresenceEvent::Change(change) => {
                    let came = change.offline.is_none();
                    assert_ne!(online.insert(change.uid, came).unwrap_or(false), came);
                }
                // A reader may be left behind on a machine under load; it begins anew.
                PresenceEvent::Reset { .. } => online.clear(),
                PresenceEvent::Snapshot { uid, .. } => _ = online.insert(uid, true),
                PresenceEvent::Live { .. } => {}
            }
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!((a.uids(), b.uids()), (4, 4));
}
