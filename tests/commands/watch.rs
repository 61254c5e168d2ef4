//! `plex watch`: the snapshot, LIVE, every change once, over broken connections too.

use serde_json::{Value, json};

use super::{
    Ground,
    common::{TestServer, eventually, link::Link, process::Lines},
};

/// The kind and the uid of the next line.
async fn next(stdout: &mut Lines) -> (String, String) {
    let line = stdout.json().await;
    let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
    (text("kind"), text("uid"))
}

fn told(kind: &str, uid: &str) -> (String, String) {
    (kind.to_owned(), uid.to_owned())
}

#[tokio::test]
async fn watch_tells_the_snapshot_then_live_then_every_change() {
    let ground = Ground::new().await;
    let _alice = ground.server.login("alice").await;
    let mut watch = ground.spawn(&["watch"]);
    let line = watch.stdout.next().await;
    assert!(line.starts_with("20") && line.ends_with("Z is online alice at node-1"), "{line}");
    let line = watch.stdout.next().await;
    assert!(line.starts_with("live: who hasn't been named is offline; known since 20"), "{line}");
    let bob = ground.server.login("bob").await;
    let line = watch.stdout.next().await;
    assert!(line.starts_with("20") && line.ends_with("Z online bob at node-1"), "{line}");
    drop(bob);
    let line = watch.stdout.next().await;
    assert!(line.starts_with("20") && line.ends_with("Z offline bob at node-1, CLOSED"), "{line}");
    watch.signal("INT");
    let ended = watch.finished().await;
    assert_eq!((ended.code, &*ended.stderr), (0, ""), "Ctrl-C is how it ends");
}

#[tokio::test]
async fn watch_as_json_has_the_fields_of_an_event() {
    let ground = Ground::new().await;
    let _alice = ground.server.login("alice").await;
    let mut watch = ground.spawn(&["watch", "--json"]);
    let snapshot = watch.stdout.json().await;
    assert_eq!(
        (&snapshot["kind"], &snapshot["uid"], &snapshot["online"]),
        (&"SNAPSHOT".into(), &"alice".into(), &true.into())
    );
    assert!(snapshot["epoch"].is_string() && snapshot["at"].is_string(), "{snapshot}");
    let live = watch.stdout.json().await;
    let keys = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!((&live["kind"], keys(&live)), (&"LIVE".into(), vec!["at".to_owned(), "kind".to_owned()]));
    drop(ground.server.login("bob").await);
    let (online, offline) = (watch.stdout.json().await, watch.stdout.json().await);
    assert_eq!(
        (&online["online"], &offline["online"], &offline["reason"]),
        (&true.into(), &false.into(), &"CLOSED".into())
    );
    assert_eq!(online["reason"], json!(null));
    let epoch = |line: &Value| line["epoch"].as_str().unwrap().parse::<i64>().unwrap();
    assert!(epoch(&snapshot) < epoch(&online) && epoch(&online) < epoch(&offline));
    watch.signal("TERM");
    assert_eq!(watch.finished().await.code, 0);
}

#[tokio::test]
async fn watch_follows_only_those_who_are_named() {
    let ground = Ground::new().await;
    let _dora = ground.server.login("dora").await;
    let mut watch = ground.spawn(&["watch", "bob", "carol", "--json"]);
    assert_eq!(next(&mut watch.stdout).await, told("LIVE", ""));
    let _alice = ground.server.login("alice").await;
    let _carol = ground.server.login("carol").await;
    assert_eq!(next(&mut watch.stdout).await, told("CHANGE", "carol"));
}

#[tokio::test]
async fn watch_comes_back_over_a_broken_connection_and_loses_and_repeats_nothing() {
    let ground = Ground::new().await;
    let mut link = Link::to(ground.server.addresses.control).await;
    let url = format!("http://{}", link.address);
    let mut watch = ground.home.spawn(&["watch", "--json", "--control", &url, "--secret-file", &ground.secret]);
    assert_eq!(next(&mut watch.stdout).await, told("LIVE", ""));
    let mut online = Vec::new();
    for round in 0..4 {
        // Changes while it listens, while it can't, and while it comes back.
        online.push(ground.server.hub.connect(&format!("{round}-before")).unwrap());
        link.cut();
        online.push(ground.server.hub.connect(&format!("{round}-within")).unwrap());
        link.tried().await;
        link.mend();
        online.push(ground.server.hub.connect(&format!("{round}-behind")).unwrap());
        drop(online.remove(0));
    }
    let mut changes: Vec<Value> = Vec::new();
    while changes.len() < 16 {
        let line = watch.stdout.json().await;
        match line["kind"].as_str() {
            Some("CHANGE") => changes.push(line),
            Some("LIVE") => {}
            _ => panic!("the cursor was granted: {line}"),
        }
    }
    let epochs: Vec<i64> = changes.iter().map(|line| line["epoch"].as_str().unwrap().parse().unwrap()).collect();
    assert!(epochs.is_sorted_by(|a, b| a < b), "each once, in order: {changes:?}");
    let told: Vec<_> = changes.iter().map(|line| (line["uid"].as_str().unwrap(), line["online"] == true)).collect();
    let gone = ["0-before", "0-within", "0-behind", "1-before"];
    let mut happened = Vec::new();
    for (round, gone) in gone.iter().enumerate() {
        happened.extend(["before", "within", "behind"].map(|when| (format!("{round}-{when}"), true)));
        happened.push(((*gone).to_owned(), false));
    }
    assert_eq!(told, happened.iter().map(|(uid, online)| (&**uid, *online)).collect::<Vec<_>>());
    watch.signal("INT");
    let ended = watch.finished().await;
    assert_eq!(ended.code, 0);
    assert!(ended.stderr.lines().count() >= 4, "a broken connection is complained of: {ended:?}");
    assert!(ended.stderr.lines().all(|line| line.starts_with("plex: ") && line.contains("; trying again in ")));
}

#[tokio::test]
async fn watch_tells_a_reset_where_the_gateway_was_restarted() {
    let ground = Ground::new().await;
    let mut link = Link::to(ground.server.addresses.control).await;
    let other = TestServer::start().await;
    let _carol = other.login("carol").await;
    let url = format!("http://{}", link.address);
    let mut watch = ground.home.spawn(&["watch", "--json", "--control", &url, "--secret-file", &ground.secret]);
    assert_eq!(next(&mut watch.stdout).await, told("LIVE", ""));
    link.cut();
    link.tried().await;
    // Another log at the same address.
    link.lead(other.addresses.control);
    link.mend();
    assert_eq!(next(&mut watch.stdout).await, told("RESET", ""));
    assert_eq!(next(&mut watch.stdout).await, told("SNAPSHOT", "carol"));
    assert_eq!(next(&mut watch.stdout).await, told("LIVE", ""));
}

#[tokio::test]
async fn watch_ends_quietly_when_nobody_reads() {
    let ground = Ground::new().await;
    let mut watch = ground.spawn(&["watch"]);
    watch.stdout.until("live: ").await;
    watch.stdout.close();
    // It learns of it by what it writes.
    let status = eventually("it ends", || {
        drop(ground.server.hub.connect("alice").unwrap());
        std::future::ready(watch.ended())
    })
    .await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(watch.stderr.all().await, "");
}
