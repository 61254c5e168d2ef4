//! What a node finds that joins late: a log that has lost its beginning, under changes, and nodes that have the state. It
//! reaches the server over a link that freezes when it should.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use async_nats::{Client, RequestErrorKind};
use futures_util::StreamExt;
use plex::proto::{GetInfoRequest, OfflineReason, OnlineStatusEvent, OnlineStatusKind, PushStatus};
use prost_types::Timestamp;
use serde_json::Value;
use tokio::task::{AbortHandle, JoinHandle};

use super::{
    common::{
        TestDevice,
        cluster::listed,
        eventually,
        gateways::{LOG, STREAM},
        link::Link,
        node_processes::Gateways,
        online, push,
        watch::{Watch, everyone},
    },
    crowd::{self, Crowd},
};

/// Devices of each node. Many more users are the crowd's.
pub(super) const DEVICES: usize = 40;
/// What comes last, and ends what is told.
pub(super) const LAST: &str = "last";
/// Asks anybody for the first part of the state, and a node for another.
const ASKS_ANYBODY: &str = "PUB plex.plex.snap ";
const ASKS_ONE: &str = "PUB plex.plex.snap.";
/// All parts but the first.
const PARTS_OF_ONE: usize = 255;

/// Nodes with the state, a crowd that changes it, and the log.
pub(super) struct Ground {
    pub(super) nodes: Gateways,
    pub(super) crowd: Crowd,
    pub(super) log: Log,
    users: usize,
    /// What is set for each node.
    log_bytes: String,
    devices: Vec<TestDevice>,
}

impl Ground {
    /// So many nodes, users of the crowd, and MiB of the log; None: there is no NATS server, and the test is skipped.
    pub(super) async fn of(count: usize, users: usize, log_mib: usize) -> Option<Self> {
        let log_bytes = format!("cluster.log_bytes={log_mib}MiB");
        let nodes = Gateways::several(count, |_| vec![log_bytes.clone()]).await?;
        let url = &nodes.nats.urls()[0];
        let (crowd, log) = (Crowd::join(url).await, Log::of(url).await);
        let mut ground = Self { nodes, crowd, log, users, log_bytes, devices: Vec::new() };
        // By and by: who reads too late falls out of a log this short.
        for some in (0..=users).step_by(5_000) {
            ground.crowd.claim(number(some)).await;
            ground.all_know(some).await;
        }
        for index in 0..count {
            for uid in devices_of(index) {
                ground.devices.push(ground.nodes.login(index, &uid).await);
            }
        }
        ground.all_know(users + count * DEVICES).await;
        ground.lose_the_beginning().await;
        Some(ground)
    }

    async fn all_know(&self, users: usize) {
        for backend in &self.nodes.backends {
            eventually("all users are known", || async {
                let told = backend.clone().get_info(GetInfoRequest {}).await.expect("an answer").into_inner();
                (told.uids == users as u64).then_some(())
            })
            .await;
        }
    }

    /// Fills the log with what changes nothing.
    async fn lose_the_beginning(&mut self) {
        // A batch of nobody's life: one record of an unknown kind.
        let void = [b"\x01\x02aaaaaaaabbbbbbbbcccccccc\xff\x00\xf0", &[0; 0xf000][..]].concat();
        while self.log.bounds().await.has_its_beginning() {
            for _ in 0..4 {
                self.log.engine.publish(LOG, void.clone().into()).await.expect("it is connected");
            }
            self.log.engine.flush().await.expect("it is connected");
            // True of a node only once it has read all of that.
            for backend in &mut self.nodes.backends {
                let outcome = backend.push(push("nobody", "/x", "")).await.expect("an outcome").into_inner();
                assert_eq!(outcome.status(), PushStatus::Offline);
            }
        }
    }

    /// Starts another node, at the last place, which reaches the server over this link; frozen then, since `springs` says
    /// so of what it has sent.
    pub(super) async fn joins(&mut self, sets: &[&str], springs: fn(&str) -> bool) -> Link {
        let link = Link::to(self.nodes.nats.address(0)).await;
        link.freeze_when(springs);
        let sets: Vec<_> = sets.iter().copied().map(str::to_owned).chain([self.log_bytes.clone()]).collect();
        self.nodes.add(&[format!("nats://{}", link.address)], &sets).await;
        link.is_frozen().await;
        link
    }

    /// Which of the first nodes tells the state to the one behind this link.
    pub(super) async fn giver(&mut self, link: &Link) -> usize {
        let sent = link.sent();
        let asked: u64 = sent
            .rsplit_once(ASKS_ONE)
            .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
            .expect("a node was asked by its number");
        for index in 0..self.nodes.backends.len() - 1 {
            if self.nodes.incarnation(index).await == asked {
                return index;
            }
        }
        panic!("nobody is {asked}")
    }

    /// SIGKILL; the server knows that it has gone when this resolves.
    pub(super) async fn kill(&mut self, index: usize) {
        let subject = format!("plex.plex.to.{}", self.nodes.incarnation(index).await);
        self.nodes.kill(index);
        eventually("nobody is there to be asked", || async {
            let asked = self.log.engine.request(subject.clone(), "".into()).await;
            asked.is_err_and(|error| error.kind() == RequestErrorKind::NoResponders).then_some(())
        })
        .await;
    }

    /// Waits until a node is ready; in that moment it knows these to be online.
    pub(super) async fn is_ready_and_knows(&self, index: usize, uids: &[String]) {
        self.nodes.node(index).is_ready().await;
        let uids: Vec<_> = uids.iter().map(String::as_str).collect();
        let states = online(&mut self.nodes.backends[index].clone(), &uids).await;
        let missing: Vec<_> = states.iter().filter(|state| !state.online).map(|state| &state.uid).collect();
        assert!(missing.is_empty(), "{} of {}, as {}", missing.len(), uids.len(), missing[0]);
    }

    /// From now on the crowd has so many changes in a second.
    pub(super) async fn changes(&self, per_second: usize) {
        self.crowd.change(number(per_second)).await;
    }

    /// The crowd's users.
    pub(super) fn crowd_uids(&self) -> impl Iterator<Item = String> {
        (0..number(self.users)).map(crowd::uid)
    }

    /// Since when each node is live, as one of them tells.
    pub(super) async fn lives(&self, index: usize) -> BTreeMap<String, Option<Timestamp>> {
        let listed = listed(&mut self.nodes.backends[index].clone()).await;
        listed.into_iter().map(|node| (node.name, node.since)).collect()
    }

    /// A subscriber at a node, from now on up to [`LAST`].
    pub(super) async fn subscribe(&self, index: usize) -> JoinHandle<Told> {
        let watch = Watch::open(&mut self.nodes.backends[index].clone(), everyone()).await;
        tokio::spawn(Told::by(watch))
    }

    /// No changes any more, and then [`LAST`]. All subscribers are told the same to be online, with the same epochs, which
    /// is what [`LAST`] and these are. Gives what each was told.
    pub(super) async fn ends(&self, told: Vec<JoinHandle<Told>>, uids: impl Iterator<Item = String>) -> Vec<Told> {
        self.changes(0).await;
        self.crowd.mark(LAST).await;
        let mut all: Vec<Told> = Vec::new();
        for told in told {
            all.push(told.await.expect("it is told what it should be"));
        }
        let mut uids: Vec<_> = uids.chain([LAST.to_owned()]).collect();
        uids.sort();
        for told in &all {
            assert!(told.online.keys().eq(&uids), "{} told online of {}", told.online.len(), uids.len());
            let other = told.online.iter().zip(&all[0].online).find(|(own, first)| own != first);
            assert!(other.is_none(), "the same everywhere: {other:?}");
        }
        all
    }

    /// Expects that two nodes answer the same of these.
    pub(super) async fn expect_same_answers(&self, nodes: [usize; 2], uids: &[String]) {
        let uids: Vec<_> = uids.iter().map(String::as_str).collect();
        let [one, other] = nodes.map(|index| self.nodes.backends[index].clone());
        let (one, other) = (online(&mut { one }, &uids).await, online(&mut { other }, &uids).await);
        let differs = one.iter().zip(&other).find(|(one, other)| one != other);
        assert!(differs.is_none(), "{differs:?}");
    }
}

fn number(of_users: usize) -> u32 {
    u32::try_from(of_users).expect("fewer than 2³²")
}

/// The devices of one of the first nodes.
pub(super) fn devices_of(index: usize) -> impl Iterator<Item = String> + Clone {
    (0..DEVICES).map(move |number| format!("device-{}-{number}", index + 1))
}

/// How often the state was asked for anew.
pub(super) fn tries(link: &Link) -> usize {
    link.sent().matches(ASKS_ANYBODY).count()
}

/// What was sent since the state was asked for anew.
fn last_try(sent: &str) -> &str {
    sent.rsplit(ASKS_ANYBODY).next().unwrap_or_default()
}

/// Some of the parts were asked for, and many are still to come.
pub(super) fn in_the_middle_of_the_parts(sent: &str) -> bool {
    last_try(sent).matches(ASKS_ONE).count() >= 100
}

/// All parts have come, and the log is about to be read from where they were made.
pub(super) fn before_it_reads_on(sent: &str) -> bool {
    let sent = last_try(sent);
    let reads = sent.rfind("CONSUMER.CREATE").unwrap_or(0);
    sent.matches(ASKS_ONE).count() == PARTS_OF_ONE && sent.rfind(ASKS_ONE).is_some_and(|asks| reads > asks)
}

/// What a subscriber was told: who is online, with which epoch, and who was lost with a node.
#[derive(Default)]
pub(super) struct Told {
    pub(super) online: BTreeMap<String, i64>,
    pub(super) lost: Vec<OnlineStatusEvent>,
}

impl Told {
    /// Up to [`LAST`].
    async fn by(mut watch: Watch) -> Self {
        let mut told = Self::default();
        while !told.online.contains_key(LAST) {
            let event = watch.event().await;
            match event.kind() {
                OnlineStatusKind::Live => {}
                OnlineStatusKind::Reset => panic!("nobody is told RESET"),
                _ if event.online => {
                    let before = told.online.insert(event.uid.clone(), event.epoch);
                    assert!(before.is_none(), "it was offline: {event:?} after {before:?}");
                }
                _ => {
                    let before = told.online.remove(&event.uid);
                    assert!(before.is_some_and(|before| before < event.epoch), "{event:?} after {before:?}");
                    if event.reason() == OfflineReason::NodeLost {
                        told.lost.push(event);
                    }
                }
            }
        }
        told
    }
}

/// The kinds of the log's messages.
pub(super) const RESET: u8 = 3;
pub(super) const HELLO: u8 = 4;

/// The log, as a client of the server sees it.
pub(super) struct Log {
    engine: Client,
    /// How many messages of each kind were written.
    written: Arc<[AtomicUsize; 5]>,
    task: AbortHandle,
}

/// With which sequence it was made to begin; the first and the last that it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogBounds {
    made_from: u64,
    first: u64,
    last: u64,
}

impl LogBounds {
    fn has_its_beginning(self) -> bool {
        self.made_from == self.first
    }
}

impl Log {
    async fn of(url: &str) -> Self {
        let engine = async_nats::connect(url).await.expect("the server listens");
        let mut messages = engine.subscribe(LOG).await.expect("it is connected");
        engine.flush().await.expect("it is connected");
        let written = Arc::<[AtomicUsize; 5]>::default();
        let counts = written.clone();
        let task = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                counts[usize::from(message.payload[1])].fetch_add(1, Relaxed);
            }
        });
        Self { engine, written, task: task.abort_handle() }
    }

    pub(super) fn written(&self, kind: u8) -> usize {
        self.written[usize::from(kind)].load(Relaxed)
    }

    pub(super) async fn bounds(&self) -> LogBounds {
        let answer = self.engine.request(format!("$JS.API.STREAM.INFO.{STREAM}"), "".into()).await.expect("an answer");
        let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("a stream: {answer}"));
        LogBounds {
            made_from: number(&answer["config"]["first_seq"]),
            first: number(&answer["state"]["first_seq"]),
            last: number(&answer["state"]["last_seq"]),
        }
    }

    /// Waits until it has lost all that it has now.
    pub(super) async fn is_another(&self) {
        let now = self.bounds().await;
        eventually("the log has lost what it had", || async { (self.bounds().await.first > now.last).then_some(()) })
            .await;
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.task.abort();
    }
}
