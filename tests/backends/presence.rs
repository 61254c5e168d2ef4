//! Who is online, as the example tells it.

use std::{collections::BTreeMap, process::Command};

use serde_json::json;
use tokio::sync::Mutex;

use crate::{
    common::{TestDevice, link::Link, process::TestProcess},
    ground::Ground,
};

/// Held by whoever has ten thousand devices: the machine needn't hold them for every language at a time.
static CROWD: Mutex<()> = Mutex::const_new(());

/// Somebody who watches: what was told, and who is online by that.
pub struct Watcher {
    process: TestProcess,
    online: BTreeMap<String, bool>,
    epochs: BTreeMap<String, u64>,
}

impl Ground {
    pub async fn a_broken_connection_is_resumed(&self) {
        let (_alice, bob) = (self.device("alice").await, self.device("bob").await);
        let link = Link::to(self.gateway.control).await;
        let watch = self.example.command(link.address, &self.home.secret(), &["watch"]);
        let mut watcher = Watcher::of(watch);
        assert_eq!(watcher.until_live().await, ["+alice", "+bob"]);
        link.cut();
        drop(bob);
        let _carol = self.device("carol").await;
        assert!(!self.online("bob").await);
        link.mend();
        // By a snapshot nobody would know why bob has gone.
        let news = watcher.until_live().await;
        assert_eq!(news, ["+carol", "-bob CLOSED"]);
        watcher.ends_as(self, &["alice", "bob", "carol"]).await;
    }

    pub async fn restarts_and_a_drain(mut self) -> Self {
        let uids = ["alice", "bob", "carol", "dave"];
        let (alice, _bob) = (self.device("alice").await, self.device("bob").await);
        let mut watcher = Watcher::of(self.command(&["watch", "alice", "bob", "carol", "dave"]));
        assert_eq!(watcher.until_live().await, ["+alice", "+bob"]);
        let before = watcher.epochs["alice"];

        // It dies without a word. Alice comes back before the log is told to be whole, so she hasn't been away for
        // who watches; bob doesn't.
        self.gateway.process.kill();
        drop(alice);
        self = self.again().await;
        let alice = self.device("alice").await;
        let _carol = self.device("carol").await;
        // One that doesn't hang up: the gateway's end waits for it a little, and the watcher is told of the others.
        let _idle = TestDevice::login(self.gateway.device(), "idle").await;
        assert_eq!(watcher.until_live().await, ["+carol", "-bob"]);
        watcher.ends_as(&self, &uids).await;
        drop(alice);
        assert_eq!(watcher.next().await, "-alice CLOSED");
        assert!(watcher.epochs["alice"] > before);
        let _alice = self.device("alice").await;
        let _dave = self.device("dave").await;
        assert_eq!([watcher.next().await, watcher.next().await], ["+alice", "+dave"]);
        watcher.ends_as(&self, &uids).await;

        self.gateway.process.signal("TERM");
        let mut gone = Vec::new();
        for _ in 0..3 {
            gone.push(watcher.next().await);
        }
        gone.sort();
        assert_eq!(gone, ["-alice DRAINING", "-carol DRAINING", "-dave DRAINING"]);
        let status = self.gateway.process.exit().await;
        assert!(status.success(), "{status}");

        self = self.again().await;
        assert_eq!(watcher.until_live().await, [""; 0]);
        let _bob = self.device("bob").await;
        assert_eq!(watcher.next().await, "+bob");
        watcher.ends_as(&self, &uids).await;
        self
    }

    /// They come, are asked for and pushed to, are a snapshot, and have gone after a restart of the gateway.
    pub async fn ten_thousand_devices_and_a_restart(mut self) {
        let _alone = CROWD.lock().await;
        let uids: Vec<_> = (0..10_000).map(|number| format!("crowd-{number:06}")).collect();
        let signed = |sign: char| uids.iter().map(|uid| format!("{sign}{uid}")).collect::<Vec<_>>();
        self.gateway.process.kill();
        self = self.again().await;
        let mut first = Watcher::of(self.command(&["watch"]));
        assert_eq!(first.until_live().await, [""; 0]);

        let (url, file) = (self.gateway.url(), self.home.secret_file());
        let bench = ["bench", "--devices", "10000", "--prefix", "crowd-", "--rate", "1", "--duration", "10m"];
        let crowd = self.home.spawn(&[&bench[..], &["--control", &url, "--secret-file", &file]].concat());
        let mut come = Vec::new();
        while come.len() < uids.len() {
            come.push(first.next().await);
        }
        come.sort();
        assert_eq!(come, signed('+'));

        // One more than a request may hold.
        let lines = format!("{}\nnobody\n", uids.join("\n"));
        let states = self.ask_of(&["online"], lines.clone()).await;
        let results = self.ask_of(&["many", "/news", "it rains"], lines).await;
        assert_eq!([states.len(), results.len()], [10_001; 2]);
        for (uid, (state, result)) in uids.iter().zip(states.iter().zip(&results)) {
            assert_eq!(*state, json!({"uid": uid, "online": true, "connections": 1}));
            assert_eq!([&result["uid"], &result["status"]], [uid, "SENT"]);
        }
        assert_eq!(states[10_000], json!({"uid": "nobody", "online": false, "connections": 0}));
        assert_eq!([&results[10_000]["uid"], &results[10_000]["status"]], ["nobody", "OFFLINE"]);

        let mut second = Watcher::of(self.command(&["watch"]));
        assert_eq!(second.until_live().await, signed('+'));
        self.gateway.process.kill();
        drop(crowd);
        self = self.again().await;
        for watcher in [&mut first, &mut second] {
            assert_eq!(watcher.until_live().await, signed('-'));
            watcher.ends_as(&self, &["crowd-000000", "crowd-009999"]).await;
        }
    }
}

impl Watcher {
    pub fn of(command: Command) -> Self {
        Self { process: TestProcess::spawn(command), online: BTreeMap::new(), epochs: BTreeMap::new() }
    }

    /// The next news, in short: `+uid`, `-uid REASON`, `live`.
    pub async fn next(&mut self) -> String {
        let line = self.process.stdout.json().await;
        if line["live"] == true {
            return "live".into();
        }
        let uid = line["uid"].as_str().expect("a uid").to_owned();
        let online = line["online"].as_bool().expect("whether it is online");
        let epoch = line["epoch"].as_str().expect("a text, since it has 64 bits").parse().expect("a number");
        let before = self.epochs.insert(uid.clone(), epoch).unwrap_or(0);
        let reason = line["reason"].as_str();
        // Who has gone unseen has the epoch that it had.
        assert!(epoch > before || epoch == before && !online && reason.is_none(), "{line} after {before}");
        assert_ne!(self.online.insert(uid.clone(), online).unwrap_or(false), online, "{line}");
        match (online, reason) {
            (true, None) => format!("+{uid}"),
            (false, None) => format!("-{uid}"),
            (false, Some(reason)) => format!("-{uid} {reason}"),
            (true, Some(_)) => panic!("{line}"),
        }
    }

    /// All news up to the next time that all is known, sorted.
    pub async fn until_live(&mut self) -> Vec<String> {
        let mut news = Vec::new();
        loop {
            match self.next().await {
                live if live == "live" => break,
                other => news.push(other),
            }
        }
        news.sort();
        news
    }

    /// Expects that these are online for it as for the gateway.
    pub async fn ends_as(&mut self, ground: &Ground, uids: &[&str]) {
        for state in ground.ask(&[&["online"], uids].concat()).await {
            let uid = state["uid"].as_str().unwrap();
            assert_eq!(self.online.get(uid).copied().unwrap_or(false), state["online"] == true, "{uid}");
        }
        assert!(self.process.ended().is_none());
    }
}
