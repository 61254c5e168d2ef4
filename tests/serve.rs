//! The life of `plex serve`: its start, its log, its end, and what outlives it.

mod common;

use std::{fs, net::TcpListener};

use common::{
    TestDevice, backend, eventually, http,
    process::{ANY_PORTS, Home, TestGateway, TestProcess, mode, own_loopback},
    push,
};
use plex::proto::{IsOnlineRequest, OnlineStatusRequest};
use serde_json::Value;

/// A device that has come online gets a push: the push's number, and the epoch of its coming.
async fn numbers(gateway: &TestGateway, secret: &str) -> (i64, i64) {
    let mut device = TestDevice::login(gateway.device(), "alice").await;
    let mut backend = backend(gateway.control, secret).await;
    let seq = backend.push(push("alice", "/a", "")).await.unwrap().into_inner().seq;
    assert_eq!(device.next().await.seq, seq);
    let mut stream = backend.online_status(OnlineStatusRequest::default()).await.unwrap().into_inner();
    let epoch = loop {
        let events = stream.message().await.unwrap().expect("a stream without an end").events;
        if let Some(event) = events.iter().find(|event| event.uid == "alice" && event.online) {
            break event.epoch;
        }
    };
    (seq, epoch)
}

/// As many as a gateway with `drain.rate=1` needs a minute for.
async fn a_minute_of_devices(gateway: &TestGateway) -> Vec<TestDevice> {
    let mut devices = Vec::new();
    for uid in 0..60 {
        devices.push(TestDevice::login(gateway.device(), &format!("device-{uid}")).await);
    }
    devices
}

#[tokio::test]
async fn a_port_that_is_taken_ends_the_start_with_1_and_a_line_that_names_it() {
    let home = Home::new();
    for key in ["device.listen", "control.listen", "http.listen", "metrics.listen"] {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let set = format!("{key}={address}");
        let ended = home.run(&[&["serve"], &ANY_PORTS[..], &["--set", &set]].concat()).await;
        assert_eq!((ended.code, &*ended.stdout), (1, ""), "{ended:?}");
        let last = ended.stderr.lines().last().unwrap();
        assert!(last.starts_with(&format!("plex: {key} = \"{address}\": can't listen there: ")), "{last}");
        assert!(!ended.stderr.contains("listening"), "{ended:?}");
    }
}

#[tokio::test]
async fn one_port_for_two_listeners_is_taken_for_the_second() {
    let home = Home::new();
    let host = own_loopback();
    let sets = ["device", "http"].map(|section| format!("{section}.listen={host}:9578"));
    let ended = home.run(&[&["serve"], &ANY_PORTS[..], &["--set", &sets[0], "--set", &sets[1]]].concat()).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.starts_with(&format!("plex: http.listen = \"{host}:9578\": can't listen there: ")), "{last}");
}

#[tokio::test]
async fn an_address_that_is_not_this_machine_s_ends_the_start_with_1() {
    let home = Home::new();
    let ended = home.run(&[&["serve"], &ANY_PORTS[..], &["--set", "http.listen=192.0.2.1:1"]].concat()).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.starts_with("plex: http.listen = \"192.0.2.1:1\": can't listen there: "), "{last}");
}

#[tokio::test]
async fn sigterm_and_ctrl_c_drain_and_end_with_0() {
    for signal in ["TERM", "INT"] {
        let home = Home::new();
        let gateway = home.serve(&["--set", "drain.timeout=10s"]).await;
        let mut device = TestDevice::login(gateway.device(), "alice").await;
        gateway.process.signal(signal);
        let kick = device.expect_kick("draining").await;
        assert_eq!(kick["reconnect"], true, "{kick}");
        assert!(kick["after_ms"].as_u64().unwrap_or(0) <= 5_000, "{kick}");
        drop(device);
        let ended = gateway.process.finished().await;
        assert_eq!((ended.code, &*ended.stdout), (0, ""), "{ended:?}");
        assert!(ended.stderr.lines().last().unwrap().contains("stopped"), "{ended:?}");
    }
}

#[tokio::test]
async fn while_it_drains_it_lives_and_answers_and_is_not_ready() {
    let home = Home::new();
    let mut gateway = home.serve(&["--set", "drain.timeout=1h", "--set", "drain.rate=1"]).await;
    let _devices = a_minute_of_devices(&gateway).await;
    let mut backend = backend(gateway.control, &home.secret()).await;
    gateway.process.signal("TERM");
    gateway.process.stderr.until("draining").await;
    eventually("it isn't ready", || async { (http(gateway.http, "GET", "/readyz").await.0 == 503).then_some(()) })
        .await;
    assert_eq!(http(gateway.http, "GET", "/livez").await.0, 200);
    assert_eq!(http(gateway.http, "GET", "/plex/v1/host").await.0, 503);
    assert_eq!(home.ask(&gateway, &["host"]).await.code, 1);
    let states = backend.is_online(IsOnlineRequest { uids: vec!["nobody".into()] }).await.unwrap().into_inner().states;
    assert!(!states[0].online);
}

#[tokio::test]
async fn a_second_signal_ends_at_once_with_128_and_its_number() {
    for (first, second, code) in
        [("TERM", "TERM", 143), ("TERM", "INT", 130), ("INT", "TERM", 143), ("INT", "INT", 130)]
    {
        let home = Home::new();
        let mut gateway = home.serve(&["--set", "drain.timeout=1h", "--set", "drain.rate=1"]).await;
        let _devices = a_minute_of_devices(&gateway).await;
        gateway.process.signal(first);
        gateway.process.stderr.until("stopping").await;
        gateway.process.signal(second);
        let ended = gateway.process.finished().await;
        assert_eq!(ended.code, code, "{first}, {second}: {ended:?}");
    }
}

#[tokio::test]
async fn numbers_grow_over_restarts_and_over_a_death_without_a_word() {
    let home = Home::new();
    let (mut seqs, mut epochs) = (Vec::new(), Vec::new());
    for round in 0..4 {
        let mut gateway = home.serve(&[]).await;
        let (seq, epoch) = numbers(&gateway, &home.secret()).await;
        seqs.push(seq);
        epochs.push(epoch);
        if round % 2 == 0 {
            gateway.process.kill();
        } else {
            assert_eq!(gateway.stopped().await.code, 0);
        }
    }
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");
    assert!(epochs.is_sorted_by(|a, b| a < b), "{epochs:?}");
    assert!(seqs[3] < 1 << 53, "a JavaScript client keeps it exact");
}

#[tokio::test]
async fn numbers_grow_also_where_the_clock_has_gone_back() {
    let home = Home::new();
    let gateway = home.serve(&[]).await;
    assert_eq!(gateway.stopped().await.code, 0);
    // What a start a year from now would have left.
    let mark = home.path(".local/state/plex/mark");
    let later = fs::read_to_string(&mark).unwrap().trim().parse::<i64>().unwrap() + 365 * 86_400 * 1_000_000;
    fs::write(&mark, format!("{later}\n")).unwrap();
    let gateway = home.serve(&[]).await;
    let (seq, epoch) = numbers(&gateway, &home.secret()).await;
    assert!(seq >= later && epoch >= later, "{seq} {epoch} {later}");
}

#[tokio::test]
async fn a_made_up_secret_is_for_its_owner_alone_and_stays_over_restarts() {
    let home = Home::new();
    let mut gateway = home.serve(&[]).await;
    let secret = home.secret();
    assert!(secret.len() >= 32, "nobody guesses it");
    assert_eq!((mode(home.secret_file()), mode(home.path(".local/state/plex"))), (0o600, 0o700));
    assert_eq!(home.run(&["secret"]).await.lines(), [&*secret]);
    numbers(&gateway, &secret).await;
    gateway.process.kill();
    let again = home.serve(&[]).await;
    assert_eq!(home.secret(), secret);
    numbers(&again, &secret).await;
    let ended = again.stopped().await;
    assert!(!ended.stderr.contains(&secret), "the log doesn't tell it");
    let elsewhere = Home::new();
    elsewhere.serve(&[]).await;
    assert_ne!(elsewhere.secret(), secret, "each makes up its own");
}

#[tokio::test]
async fn a_data_folder_that_cannot_be_written_is_warned_of_once_and_it_runs() {
    let home = Home::new();
    home.write("file", "");
    let gateway = home.serve(&["--set", "data_dir=file/state", "--set", "control.secrets=s"]).await;
    let before = numbers(&gateway, "s").await;
    let ended = gateway.stopped().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let warnings: Vec<_> = ended.stderr.lines().filter(|line| line.contains(" WARN ")).collect();
    assert_eq!(warnings.iter().filter(|line| line.contains("file/state")).count(), 1, "{ended:?}");
    assert_eq!(warnings.len(), 2, "that, and trust: {warnings:?}");
    // The clock alone sees to it.
    let gateway = home.serve(&["--set", "data_dir=file/state", "--set", "control.secrets=s"]).await;
    let after = numbers(&gateway, "s").await;
    assert!(before.0 < after.0 && before.1 < after.1, "{before:?} {after:?}");
}

#[tokio::test]
async fn a_mark_that_cannot_be_kept_is_warned_of_once_and_it_runs() {
    let home = Home::new();
    fs::create_dir_all(home.path(".local/state/plex/mark/x")).unwrap();
    let gateway = home.serve(&[]).await;
    numbers(&gateway, &home.secret()).await;
    let ended = gateway.stopped().await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let warned = |line: &&str| line.contains(" WARN ") && line.contains(".local/state/plex/mark");
    assert_eq!(ended.stderr.lines().filter(warned).count(), 1, "{ended:?}");
}

#[tokio::test]
async fn a_secret_that_cannot_be_kept_ends_the_start_with_1_and_the_path() {
    let home = Home::new();
    home.write("file", "");
    let ended = home.run(&[&["serve"], &ANY_PORTS[..], &["--set", "data_dir=file/state"]].concat()).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.lines().last().unwrap().starts_with("plex: file/state"), "{ended:?}");
    // A file that holds no secret isn't replaced: whoever knew the old one would be locked out.
    fs::create_dir_all(home.path("state")).unwrap();
    home.write("state/control.secret", "");
    let ended = home.run(&[&["serve"], &ANY_PORTS[..], &["--set", "data_dir=state"]].concat()).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.lines().last().unwrap().contains("state/control.secret: holds no secret"), "{ended:?}");
    assert_eq!(fs::read_to_string(home.path("state/control.secret")).unwrap(), "");
}

#[tokio::test]
async fn the_log_as_json_is_one_object_to_a_line_with_fields() {
    let home = Home::new();
    let gateway = home.serve(&["--set", "log.format=json", "--set", "log.level=debug", "--set", "node.name=n"]).await;
    let control = gateway.control.to_string();
    drop(TestDevice::login(gateway.device(), "ali\"ce").await);
    let ended = gateway.stopped().await;
    let read = |line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let lines: Vec<_> = ended.stderr.lines().map(read).collect();
    for line in &lines {
        assert!(["level", "timestamp", "message"].iter().all(|key| line[key].is_string()), "{line}");
    }
    let listening = lines.iter().find(|line| line["message"] == "listening").unwrap();
    assert_eq!((&listening["control"], &listening["node"]), (&control.into(), &"n".into()));
    assert_eq!(listening["level"], "INFO");
}

#[tokio::test]
async fn the_log_as_text_has_no_colours_where_nobody_sees_them() {
    let home = Home::new();
    let ended = home.serve(&["--set", "log.level=trace"]).await.stopped().await;
    assert!(!ended.stderr.contains('\u{1b}'), "{ended:?}");
    assert_eq!(ended.stdout, "", "the log goes to stderr");
}

#[tokio::test]
async fn one_connection_s_life_is_debug() {
    for (level, told) in [("info", false), ("debug", true)] {
        let home = Home::new();
        let gateway = home.serve(&["--set", &format!("log.level={level}")]).await;
        let mut device = TestDevice::login(gateway.device(), "the-device").await;
        device.expect_quiet().await;
        drop(device);
        let backend = backend(gateway.control, &home.secret()).await;
        eventually("it is offline", || {
            let mut backend = backend.clone();
            async move {
                let asked = backend.is_online(IsOnlineRequest { uids: vec!["the-device".into()] }).await;
                (!asked.unwrap().into_inner().states[0].online).then_some(())
            }
        })
        .await;
        let ended = gateway.stopped().await;
        assert_eq!(ended.stderr.contains("the-device"), told, "{level}: {ended:?}");
        assert_eq!(ended.stderr.contains(" DEBUG "), told, "{level}: {ended:?}");
    }
}

#[tokio::test]
async fn the_level_says_what_is_the_least_important_that_is_logged() {
    for (level, warns, informs) in [("error", false, false), ("warn", true, false), ("info", true, true)] {
        let home = Home::new();
        let level_set = format!("log.level={level}");
        let arguments = [&["serve"], &ANY_PORTS[..], &["--set", &level_set]].concat();
        let process = TestProcess::spawn(home.command(&arguments));
        // Below info nothing tells that it runs but what it leaves in its folder, last of all the mark.
        eventually("it has started", || async { home.path(".local/state/plex/mark").exists().then_some(()) }).await;
        process.signal("TERM");
        let ended = process.finished().await;
        assert_eq!(ended.code, 0, "{ended:?}");
        assert_eq!(ended.stderr.contains(" WARN "), warns, "{level}: {ended:?}");
        assert_eq!(ended.stderr.contains(" INFO "), informs, "{level}: {ended:?}");
    }
}
