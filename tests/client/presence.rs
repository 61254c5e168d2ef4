//! Presence that is followed over restarts and broken connections: the fold of [`OnlineStatus`], and the events below it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use plex::{
    PresenceChange, PresenceEvent,
    client::{Control, Follower, OnlineEvent, OnlineStatus, Update},
};
use tokio::time::timeout;

use crate::{
    at_one_place,
    common::{PATIENCE, SECRET, TestServer, link::Link},
    control,
};

/// What a stream has told up to and with the next LIVE: `+alice`, `-alice`, `-alice?` where nobody knows when.
async fn live(presence: &mut OnlineStatus) -> Vec<String> {
    let mut words = Vec::new();
    while words.last().is_none_or(|last| last != "live") {
        words.extend(told(presence).await);
    }
    words
}

/// The next event; none where that is an interruption.
async fn told(presence: &mut OnlineStatus) -> Option<String> {
    let event = timeout(PATIENCE, presence.next()).await.expect("an event in time").expect("it goes on");
    match event.expect("nobody refuses") {
        OnlineEvent::Online { uid, .. } => Some(format!("+{uid}")),
        OnlineEvent::Offline { uid, ended, .. } => Some(format!("-{uid}{}", if ended.is_some() { "" } else { "?" })),
        OnlineEvent::Live => Some("live".to_owned()),
        OnlineEvent::Interrupted { .. } => None,
        other => panic!("{other:?}"),
    }
}

/// The events of one uid alone, in their order.
fn of<'a>(uid: &str, words: &'a [String]) -> Vec<&'a str> {
    words.iter().filter(|word| word.trim_matches(['+', '-', '?']) == uid).map(|word| &**word).collect()
}

#[tokio::test]
async fn over_a_restart_of_the_gateway_nothing_is_lost_and_nothing_told_twice() {
    let (config, _folder) = at_one_place();
    let server = TestServer::of(config.clone(), None, |builder| builder).await;
    let mut presence = control(&server).online_status([""; 0]);
    let (alice, bob) = (server.hub.connect("alice").unwrap(), server.hub.connect("bob").unwrap());
    let mut words = live(&mut presence).await;
    words.sort();
    assert_eq!(words, ["+alice", "+bob", "live"]);
    // Nobody looks while the gateway stops and is another: who went, who came, and who did both.
    drop((alice, bob));
    server.stopped().await;
    let server = TestServer::of(config, None, |builder| builder).await;
    let _here = (server.hub.connect("bob").unwrap(), server.hub.connect("carol").unwrap());
    let words = live(&mut presence).await;
    // The stop may have told the two before its end, or not: once, in either case.
    assert_eq!(of("alice", &words).len(), 1, "{words:?}");
    assert!(matches!(of("bob", &words)[..], ["+bob"] | ["-bob", "+bob"]), "{words:?}");
    assert_eq!(of("carol", &words), ["+carol"], "{words:?}");
    let _dora = server.hub.connect("dora").unwrap();
    assert_eq!(told(&mut presence).await.as_deref(), Some("+dora"));
}

#[tokio::test]
async fn over_broken_connections_each_change_is_told_once_and_in_order() {
    let server = TestServer::start().await;
    let mut link = Link::to(server.addresses.control).await;
    let mut presence = Control::connect(&format!("http://{}", link.address), SECRET).unwrap().online_status(["a", "b"]);
    assert_eq!(live(&mut presence).await, ["live"]);
    let (mut words, mut expected) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let a = server.hub.connect("a").unwrap();
        link.cut();
        let b = server.hub.connect("b").unwrap();
        server.hub.connect("not followed").unwrap();
        // Polled while it can't get through, and given up in the middle.
        let more = async {
            loop {
                words.extend(told(&mut presence).await);
            }
        };
        tokio::select! {
            () = link.tried() => {}
            () = more => {}
        }
        link.mend();
        drop((a, b));
        expected.extend(["+a", "+b", "-a", "-b"]);
        while words.last().is_none_or(|last| last != "-b") {
            words.extend(told(&mut presence).await);
        }
    }
    words.retain(|word| word != "live");
    assert_eq!(words, expected);
}

#[tokio::test]
async fn who_falls_behind_is_told_the_state_and_not_every_step() {
    let server = TestServer::with(|config| config.presence.history = 2).await;
    let link = Link::to(server.addresses.control).await;
    let mut presence = Control::connect(&format!("http://{}", link.address), SECRET).unwrap().online_status([""; 0]);
    let stays = server.hub.connect("stays").unwrap();
    let goes = server.hub.connect("goes").unwrap();
    assert_eq!(live(&mut presence).await.iter().map(String::as_str).collect::<BTreeSet<_>>(), {
        BTreeSet::from(["+stays", "+goes", "live"])
    });
    link.cut();
    while told(&mut presence).await.is_some() {}
    drop(goes);
    for _ in 0..3_000 {
        server.hub.connect("comes and goes").unwrap();
    }
    let _new = server.hub.connect("new").unwrap();
    link.mend();
    let words = live(&mut presence).await;
    assert_eq!(words, ["+new", "-goes?", "live"], "nothing of who stayed or is as before");
    drop(stays);
    assert_eq!(told(&mut presence).await.as_deref(), Some("-stays"));
}

#[tokio::test]
async fn a_future_of_the_next_event_that_is_dropped_loses_none() {
    let server = TestServer::start().await;
    let mut presence = control(&server).online_status([""; 0]);
    let _all: Vec<_> = (0..500).map(|uid| server.hub.connect(&format!("{uid}")).unwrap()).collect();
    let mut words = Vec::new();
    while words.last().is_none_or(|last| last != "live") {
        tokio::select! {
            biased;
            word = told(&mut presence) => words.extend(word),
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(words.len(), 501);
    assert_eq!(words.iter().collect::<BTreeSet<_>>().len(), 501, "each once");
}

async fn next(follower: &mut Follower) -> Update {
    timeout(PATIENCE, follower.next()).await.expect("an update in time").expect("it goes on").expect("nobody refuses")
}

/// What an update says, in a word or two.
fn word(update: &Update) -> String {
    match update {
        Update::Begun { resumed } => format!("begun {resumed}"),
        Update::Event(PresenceEvent::Reset { .. }) => "reset".to_owned(),
        Update::Event(PresenceEvent::Snapshot { uid, .. }) => format!("is {uid}"),
        Update::Event(PresenceEvent::Change(change)) => {
            format!("{}{}", if change.offline.is_none() { '+' } else { '-' }, change.uid)
        }
        Update::Event(PresenceEvent::Live { .. }) => "live".to_owned(),
        Update::Cursor(_) => "cursor".to_owned(),
        Update::Interrupted { .. } => "interrupted".to_owned(),
    }
}

/// The words up to and with the first that is `last`, cursors and interruptions left out.
async fn until(follower: &mut Follower, last: &str) -> Vec<String> {
    let mut words = Vec::new();
    more(follower, &mut words, last).await;
    words
}

/// As [`until`], behind what `words` has; what came is there also where it is dropped.
async fn more(follower: &mut Follower, words: &mut Vec<String>, last: &str) {
    loop {
        let word = word(&next(follower).await);
        let is_last = word == last;
        if word != "cursor" && word != "interrupted" {
            words.push(word);
        }
        if is_last {
            return;
        }
    }
}

#[tokio::test]
async fn a_follower_goes_over_a_restart_of_the_gateway_to_a_reset() {
    let (config, _folder) = at_one_place();
    let server = TestServer::of(config.clone(), None, |builder| builder).await;
    let mut follower = control(&server).follow([""; 0]);
    let alice = server.hub.connect("alice").unwrap();
    assert_eq!(until(&mut follower, "live").await, ["begun false", "is alice", "live"]);
    let bob = server.hub.connect("bob").unwrap();
    let before = next_change(&mut follower).await.epoch;
    drop((alice, bob));
    server.stopped().await;

    let server = TestServer::of(config, None, |builder| builder).await;
    let _carol = server.hub.connect("carol").unwrap();
    let told = until(&mut follower, "live").await;
    let last = told.iter().rposition(|word| word == "reset").expect("another log");
    assert!(told[last..].contains(&"is carol".to_owned()) || told.contains(&"+carol".to_owned()), "{told:?}");
    assert!(told[..last].iter().all(|word| word.starts_with('-') || word.starts_with("begun ")), "{told:?}");
    let _dora = server.hub.connect("dora").unwrap();
    let dora = next_change(&mut follower).await;
    assert_eq!(dora.uid.as_str(), "dora");
    assert!(dora.epoch > before, "epochs grow over a restart");
}

/// The next update that is a change.
async fn next_change(follower: &mut Follower) -> PresenceChange {
    loop {
        match next(follower).await {
            Update::Event(PresenceEvent::Change(change)) => return change,
            Update::Cursor(_) => {}
            other => panic!("a change: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_follower_goes_over_a_broken_connection_without_losing_or_repeating() {
    let server = TestServer::start().await;
    let mut link = Link::to(server.addresses.control).await;
    let mut follower = Control::connect(&format!("http://{}", link.address), SECRET).unwrap().follow(["a", "b", "c"]);
    assert_eq!(until(&mut follower, "live").await, ["begun false", "live"]);
    let mut expected = Vec::new();
    let mut told = Vec::new();
    for _ in 0..5 {
        let a = server.hub.connect("a").unwrap();
        link.cut();
        let b = server.hub.connect("b").unwrap();
        server.hub.connect("not followed").unwrap();
        expected.extend(["+a", "+b"]);
        // Polled while it can't get through.
        tokio::select! {
            () = link.tried() => {}
            () = more(&mut follower, &mut told, "never") => {}
        }
        link.mend();
        drop((a, b));
        expected.extend(["-a", "-b"]);
        more(&mut follower, &mut told, "-b").await;
    }
    told.retain(|word| word != "live" && word != "begun true");
    assert_eq!(told, expected);
}

#[tokio::test]
async fn from_a_kept_cursor_only_what_was_missed_is_told() {
    let server = TestServer::start().await;
    let control = control(&server);
    let mut follower = control.follow([""; 0]);
    let _alice = server.hub.connect("alice").unwrap();
    let mut kept = String::new();
    while kept.is_empty() {
        if let Update::Cursor(cursor) = next(&mut follower).await {
            kept = cursor;
        }
    }
    drop(follower);
    let _bob = server.hub.connect("bob").unwrap();
    let mut follower = control.follow([""; 0]).resume_after(kept);
    assert_eq!(until(&mut follower, "live").await, ["begun true", "+bob", "live"]);
}

#[tokio::test]
async fn a_cursor_that_is_too_old_brings_a_reset_also_where_no_snapshot_was_wanted() {
    let server = TestServer::with(|config| config.presence.history = 2).await;
    let control = control(&server);
    let mut follower = control.follow([""; 0]).skip_snapshot();
    let _alice = server.hub.connect("alice").unwrap();
    let mut kept = String::new();
    while kept.is_empty() {
        if let Update::Cursor(cursor) = next(&mut follower).await {
            kept = cursor;
        }
    }
    let _many: Vec<_> = (0..5_000).map(|uid| server.hub.connect(&format!("uid-{uid}")).unwrap()).collect();
    let mut follower = control.follow([""; 0]).resume_after(kept).skip_snapshot();
    assert_eq!(word(&next(&mut follower).await), "begun true");
    assert_eq!(word(&next(&mut follower).await), "reset");
    let told = until(&mut follower, "live").await;
    assert_eq!(told.len(), 5_002, "everyone, and LIVE");
}

#[tokio::test]
async fn a_call_of_next_that_is_dropped_loses_no_update() {
    let server = TestServer::start().await;
    let mut follower = control(&server).follow([""; 0]);
    assert_eq!(until(&mut follower, "live").await, ["begun false", "live"]);
    let _all: Vec<_> = (0..500).map(|uid| server.hub.connect(&format!("{uid}")).unwrap()).collect();
    let mut seen = BTreeMap::new();
    while seen.len() < 500 {
        tokio::select! {
            biased;
            update = next(&mut follower) => if let Update::Event(PresenceEvent::Change(change)) = update {
                *seen.entry(change.uid).or_insert(0) += 1;
            },
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(seen.values().all(|times| *times == 1), "{seen:?}");
}
