//! Presence is exact: whatever devices and subscribers do, each subscriber is told what happened, nothing lost, doubled
//! or reversed.
//!
//! A random course of logins, replacements, ends, bursts and subscribers (of all or some, slow, broken off, resumed)
//! runs over real sockets. Beside it stands the truth, in the order in which it happened. `PROPTEST_CASES` says how many.

mod common;

use std::{
    collections::{BTreeMap, VecDeque},
    env,
};

use common::{
    Backend, TestDevice, TestServer, eventually,
    known::Known,
    online, sessions,
    watch::{Watch, after},
};
use plex::{
    proto::{DisconnectRequest, OnlineStatusKind, OnlineStatusRequest},
    testing::TestConnection,
};
use proptest::{collection::vec, prelude::*, test_runner::TestRunner};

/// Whose changes are counted on: a subscriber that has been told its last one has been told all before.
const MARKER: &str = "marker";

const USERS: usize = 6;
const WATCHERS: usize = 3;

/// A change, and whether it was one for better.
type Happened = (String, bool);

#[derive(Debug, Clone)]
enum Step {
    /// A device logs in, over a socket or without.
    Connect { user: usize, socket: bool },
    /// The oldest connection of a user ends.
    Drop { user: usize },
    /// A backend ends all of them.
    Disconnect { user: usize },
    /// Many come and go at once.
    Burst { count: usize },
    /// A subscriber opens a stream, where it has none; with its cursor, if it has one and `fresh` doesn't say otherwise.
    Watch { watcher: usize, fresh: bool, skip_snapshot: bool },
    /// A subscriber reads one response.
    Read { watcher: usize },
    /// A subscriber reads all there is, and is held against the truth.
    CatchUp { watcher: usize },
    /// A subscriber's stream is broken off.
    Break { watcher: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (user, watcher) = (0..USERS, 0..WATCHERS);
    prop_oneof![
        6 => (user.clone(), any::<bool>()).prop_map(|(user, socket)| Step::Connect { user, socket }),
        4 => user.clone().prop_map(|user| Step::Drop { user }),
        1 => user.prop_map(|user| Step::Disconnect { user }),
        1 => (1..300usize).prop_map(|count| Step::Burst { count }),
        4 => (watcher.clone(), prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(watcher, fresh, skip_snapshot)| Step::Watch { watcher, fresh, skip_snapshot }),
        3 => watcher.clone().prop_map(|watcher| Step::Read { watcher }),
        2 => watcher.clone().prop_map(|watcher| Step::CatchUp { watcher }),
        2 => watcher.prop_map(|watcher| Step::Break { watcher }),
    ]
}

enum Connection {
    Socket(TestDevice),
    /// Held: it ends when it is dropped.
    Hub(#[expect(dead_code, reason = "held")] TestConnection),
}

#[derive(Default)]
struct Subscriber {
    /// Nobody: everyone.
    filter: Vec<String>,
    stream: Option<Watch>,
    cursor: String,
    known: Known,
    /// What it was told since the last LIVE of a stream that began anew.
    told: Vec<Happened>,
    /// How much had happened when it last had been told all of it.
    caught_up_at: Option<usize>,
    /// Whether it knows who is online: its stream began with a snapshot.
    knows_all: bool,
    /// Whether it may not be told RESET before LIVE.
    exact_resume: bool,
}

struct Course {
    server: TestServer,
    backend: Backend,
    connections_per_uid: usize,
    history: usize,
    users: BTreeMap<String, VecDeque<Connection>>,
    marker: Option<TestConnection>,
    happened: Vec<Happened>,
    subscribers: Vec<Subscriber>,
}

impl Course {
    async fn begin(connections_per_uid: usize, history: usize) -> Self {
        let server = TestServer::with(|config| {
            config.device.connections_per_uid = connections_per_uid as u32;
            config.device.replaces_per_minute = 0;
            config.presence.history = history as u32;
        })
        .await;
        let filters: [&[&str]; WATCHERS] =
            [&[], &["user-0", MARKER], &["user-5", "user-1", "user-0", "user-3", MARKER]];
        let of = |filter: &[&str]| Subscriber {
            filter: filter.iter().map(|uid| (*uid).to_owned()).collect(),
            ..Subscriber::default()
        };
        Self {
            backend: server.backend().await,
            server,
            connections_per_uid,
            history,
            users: BTreeMap::new(),
            marker: None,
            happened: Vec::new(),
            subscribers: filters.into_iter().map(of).collect(),
        }
    }

    fn note(&mut self, uid: &str, online: bool) {
        self.happened.push((uid.to_owned(), online));
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Connect { user, socket } => self.connect(&format!("user-{user}"), socket).await,
            Step::Drop { user } => self.drop_oldest(&format!("user-{user}")).await,
            Step::Disconnect { user } => {
                let uid = format!("user-{user}");
                // Kept alive: it is the backend that ends them.
                let held = self.users.remove(&uid).unwrap_or_default();
                let request = DisconnectRequest { uid: uid.clone(), reason: String::new() };
                let ended = self.backend.disconnect(request).await.unwrap().into_inner().connections;
                assert_eq!(ended as usize, held.len());
                if !held.is_empty() {
                    self.note(&uid, false);
                }
            }
            Step::Burst { count } => {
                for number in 0..count {
                    let uid = format!("{number}-{}", "x".repeat(240));
                    drop(self.server.hub.connect(&uid).unwrap());
                    self.note(&uid, true);
                    self.note(&uid, false);
                }
            }
            Step::Watch { watcher, fresh, skip_snapshot } => self.watch(watcher, fresh, skip_snapshot).await,
            Step::Read { watcher } => {
                let subscriber = &mut self.subscribers[watcher];
                if subscriber.stream.is_some() && !subscriber.known.is_live() {
                    subscriber.read().await;
                }
            }
            Step::CatchUp { watcher } => self.catch_up(watcher).await,
            Step::Break { watcher } => self.subscribers[watcher].stream = None,
        }
    }

    async fn connect(&mut self, uid: &str, socket: bool) {
        let connection = match socket {
            true => Connection::Socket(self.server.login(uid).await),
            false => Connection::Hub(self.server.hub.connect(uid).unwrap()),
        };
        let held = self.users.entry(uid.to_owned()).or_default();
        held.push_back(connection);
        match held.len() {
            1 => self.note(uid, true),
            count if count > self.connections_per_uid => {
                if let Some(Connection::Socket(mut replaced)) = held.pop_front() {
                    replaced.expect_kick("replaced").await;
                }
            }
            _ => {}
        }
    }

    async fn drop_oldest(&mut self, uid: &str) {
        let Some(held) = self.users.get_mut(uid) else { return };
        let oldest = held.pop_front();
        let left = held.len() as u32;
        if let Some(Connection::Socket(device)) = oldest {
            drop(device);
            let backend = &self.backend;
            eventually("the end is noticed", || async {
                (online(&mut backend.clone(), &[uid]).await[0].connections == left).then_some(())
            })
            .await;
        }
        if left == 0 {
            self.users.remove(uid);
            self.note(uid, false);
        }
    }

    async fn watch(&mut self, watcher: usize, fresh: bool, skip_snapshot: bool) {
        let subscriber = &mut self.subscribers[watcher];
        if subscriber.stream.is_some() {
            return;
        }
        let mut request = OnlineStatusRequest { uids: subscriber.filter.clone(), skip_snapshot, ..Default::default() };
        let resumes = !fresh && !subscriber.cursor.is_empty();
        if resumes {
            // The order of a filter says nothing.
            request.uids.reverse();
            request = after(&subscriber.cursor, request);
            let missed = subscriber.caught_up_at.map(|at| self.happened.len() - at);
            subscriber.exact_resume = missed.is_some_and(|missed| missed <= self.history);
        } else {
            subscriber.begin_anew(skip_snapshot);
        }
        subscriber.known.begin(resumes || skip_snapshot);
        // Each over a connection of its own, so that a slow one holds up itself.
        let mut backend = self.server.backend().await;
        subscriber.stream = Some(Watch::open(&mut backend, request).await);
    }

    /// Sees to it that a subscriber has been told all, and holds it against the truth.
    async fn catch_up(&mut self, watcher: usize) {
        if self.subscribers[watcher].stream.is_none() {
            return;
        }
        if self.marker.take().is_some() {
            self.note(MARKER, false);
        }
        self.marker = Some(self.server.hub.connect(MARKER).unwrap());
        self.note(MARKER, true);
        let epoch = sessions(&mut self.backend, MARKER).await[0].epoch;
        let subscriber = &mut self.subscribers[watcher];
        while !(subscriber.known.is_live() && subscriber.known.epoch(MARKER) >= epoch) {
            subscriber.read().await;
        }
        subscriber.caught_up_at = Some(self.happened.len());

        let concerns = |uid: &str| subscriber.filter.is_empty() || subscriber.filter.iter().any(|own| own == uid);
        if subscriber.knows_all {
            let now = self.users.keys().map(String::as_str).chain([MARKER]).filter(|uid| concerns(uid));
            let mut now: Vec<_> = now.collect();
            now.sort_unstable();
            assert_eq!(subscriber.known.online(), now, "it knows who is online");
        }
        let truth: Vec<_> = self.happened.iter().filter(|(uid, _)| concerns(uid)).collect();
        let told: Vec<_> = subscriber.told.iter().collect();
        assert!(truth.ends_with(&told), "told {told:?}\nof {truth:?}");
    }

    async fn end(&mut self) {
        for watcher in 0..WATCHERS {
            self.watch(watcher, false, false).await;
            self.catch_up(watcher).await;
        }
    }
}

impl Subscriber {
    fn begin_anew(&mut self, skip_snapshot: bool) {
        self.told.clear();
        self.caught_up_at = None;
        self.knows_all = !skip_snapshot;
        self.exact_resume = false;
        self.cursor.clear();
        if skip_snapshot {
            self.known.forget();
        }
    }

    /// Takes one response whole, as who keeps its cursor has to.
    async fn read(&mut self) {
        let stream = self.stream.as_mut().expect("it is open");
        let response = stream.response().await.expect("it goes on");
        for event in &response.events {
            self.known.fold(event);
            match event.kind() {
                OnlineStatusKind::Reset => {
                    assert!(!self.exact_resume, "the gateway still has what it missed");
                    self.begin_anew(false);
                }
                OnlineStatusKind::Live => self.exact_resume = false,
                // Before LIVE of a snapshot those are told that it has told of.
                OnlineStatusKind::Change if !self.known.is_drafting() => {
                    self.told.push((event.uid.clone(), event.online));
                }
                _ => {}
            }
        }
        if !response.cursor.is_empty() {
            self.cursor = response.cursor;
        }
    }
}

#[test]
fn every_subscriber_is_told_exactly_what_happened() {
    let cases = env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24);
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default() };
    let course = (1..=2usize, prop_oneof![Just(25usize), Just(100_000)], vec(step(), 1..150));
    let run = |(connections_per_uid, history, steps): (usize, usize, Vec<Step>)| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut course = Course::begin(connections_per_uid, history).await;
            for step in steps {
                course.step(step).await;
            }
            course.end().await;
        });
        Ok(())
    };
    TestRunner::new(config).run(&course, run).unwrap();
}
