//! Gateways that are one cluster over real NATS servers, each in this process with its own ports, and a subscriber at
//! each of them.

use std::time::Duration;

use plex::{
    Config,
    config::LogStorage,
    proto::{OfflineReason, OnlineStatusEvent, PushResponse, PushStatus},
};
use tokio::time::timeout;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    Backend, PATIENCE, TestDevice, TestServer,
    cluster::know_each_other,
    eventually, http, online, push,
    watch::{Watch, everyone, word, words},
};

/// The stream of the log, and the subject that it takes.
pub const STREAM: &str = "plex_plex_presence";
pub const LOG: &str = "plex.plex.log";

/// The gateways "node-1", "node-2" and so on, and a backend at each.
pub struct Gateways {
    pub nodes: Vec<TestServer>,
    pub backends: Vec<Backend>,
}

/// Has a configuration name these servers.
pub fn over(config: &mut Config, urls: &[String], number: usize) {
    config.node.name = format!("node-{number}").as_str().into();
    config.auth.insecure = true;
    config.cluster.urls = urls.iter().map(|url| url.parse().expect("a URL of a NATS server")).collect();
}

/// Keeps the log in memory.
pub fn in_memory(config: &mut Config) {
    config.cluster.storage = LogStorage::Memory;
}

impl Gateways {
    /// Three that are in step, at these servers.
    pub async fn three(urls: &[String]) -> Self {
        Self::with([urls; 3], |_, _| {}).await
    }

    /// One for each of these lists of servers, configured besides by its place; in step, and each knows the others.
    pub async fn with<const N: usize>(urls: [&[String]; N], change: impl Fn(usize, &mut Config)) -> Self {
        let (mut nodes, mut backends) = (Vec::new(), Vec::new());
        for (index, urls) in urls.into_iter().enumerate() {
            let node = TestServer::with(|config| {
                over(config, urls, index + 1);
                change(index, config);
            })
            .await;
            backends.push(node.backend().await);
            nodes.push(node);
        }
        let all = Self { nodes, backends };
        all.are_in_step().await;
        all
    }

    pub async fn login(&self, node: usize, uid: &str) -> TestDevice {
        self.nodes[node].login(uid).await
    }

    pub async fn push(&mut self, from: usize, uid: &str) -> PushResponse {
        let outcome = timeout(PATIENCE, self.backends[from].push(push(uid, "/x", ""))).await;
        outcome.expect("an outcome in time").expect("an outcome").into_inner()
    }

    /// Pushes to a device from a node: it is sent, and comes.
    pub async fn expect_push(&mut self, from: usize, device: &mut TestDevice, uid: &str) {
        let outcome = self.push(from, uid).await;
        assert_eq!((outcome.status(), outcome.connections), (PushStatus::Sent, 1), "{uid} from {from}: {outcome:?}");
        let message = device.next().await;
        assert_eq!((&*message.uri, message.seq), ("/x", outcome.seq), "{message:?}");
    }

    /// What the health service of a node says of its part in the cluster.
    pub async fn health(&self, node: usize) -> ServingStatus {
        health(&self.nodes[node], "plex.v1.Gateway.cluster").await.expect("it is told")
    }

    /// Waits until all are in step, and each knows all of them.
    pub async fn are_in_step(&self) {
        for index in 0..self.nodes.len() {
            self.health_is(index, ServingStatus::Serving).await;
        }
        know_each_other(&self.backends).await;
    }

    /// Waits until the log stands still for all.
    pub async fn stand_still(&self) {
        for index in 0..self.nodes.len() {
            self.health_is(index, ServingStatus::NotServing).await;
        }
    }

    pub async fn health_is(&self, node: usize, status: ServingStatus) {
        eventually(&format!("node {node} is {status:?}"), || async {
            (health(&self.nodes[node], "plex.v1.Gateway.cluster").await == Some(status)).then_some(())
        })
        .await;
    }

    /// A subscriber of everyone at each node, all of which were told the same.
    pub async fn watch(&mut self) -> Watches {
        let mut watches = Vec::new();
        for backend in &mut self.backends {
            watches.push(Watch::live(backend, everyone()).await.0);
        }
        Watches(watches)
    }

    /// Expects that every node knows the same of these.
    pub async fn expect_same(&mut self, uids: &[&str]) {
        let mut told = Vec::new();
        for backend in &mut self.backends {
            told.push(online(backend, uids).await);
        }
        assert!(told.iter().all(|states| *states == told[0]), "{told:?}");
    }
}

/// What a node's health service says; None: it hasn't heard of that.
pub async fn health(node: &TestServer, service: &str) -> Option<ServingStatus> {
    let mut health = HealthClient::new(node.bare_channel().await);
    let answer = health.check(HealthCheckRequest { service: service.into() }).await.ok()?;
    Some(answer.into_inner().status())
}

/// What `/readyz` of a node answers.
pub async fn readyz(node: &TestServer) -> u16 {
    http(node.addresses.http, "GET", "/readyz").await.0
}

/// A subscriber at each node.
pub struct Watches(pub Vec<Watch>);

impl Watches {
    /// What each is told up to and with this word; the same for all, with the same numbers.
    pub async fn until(&mut self, last: &str) -> Vec<OnlineStatusEvent> {
        let mut all: Vec<Vec<OnlineStatusEvent>> = Vec::new();
        for watch in &mut self.0 {
            let mut told = Vec::new();
            while told.last().is_none_or(|event| word(event) != last) {
                told.push(watch.event().await);
            }
            all.push(told);
        }
        for told in &all {
            assert_eq!(told, &all[0], "{} and {}", words(told), words(&all[0]));
        }
        all.remove(0)
    }

    /// The next so many that each is told; the same for all, with the same numbers. The events of one death, which have no
    /// order, in that of their uids.
    pub async fn next(&mut self, count: usize) -> Vec<OnlineStatusEvent> {
        let mut all: Vec<Vec<OnlineStatusEvent>> = Vec::new();
        for watch in &mut self.0 {
            let mut told = Vec::new();
            while told.len() < count {
                told.push(watch.event().await);
            }
            told.sort_by(|one, other| (one.epoch, &one.uid).cmp(&(other.epoch, &other.uid)));
            all.push(told);
        }
        assert!(all.iter().all(|told| *told == all[0]), "{all:?}");
        all.remove(0)
    }

    /// The same as [`Watches::until`], of whom none was declared dead.
    pub async fn until_and_none_lost(&mut self, last: &str) -> Vec<OnlineStatusEvent> {
        let told = self.until(last).await;
        assert!(told.iter().all(|event| event.reason() != OfflineReason::NodeLost), "{told:?}");
        told
    }

    /// Each is told RESET, a snapshot and LIVE: who was online then, by uid.
    pub async fn reset(&mut self) -> Vec<OnlineStatusEvent> {
        let mut all: Vec<Vec<OnlineStatusEvent>> = Vec::new();
        for watch in &mut self.0 {
            assert_eq!(word(&watch.event().await), "reset");
            let mut told = watch.until_live().await;
            told.sort_by(|one, other| one.uid.cmp(&other.uid));
            all.push(told);
        }
        assert!(all.iter().all(|told| words(told) == words(&all[0])), "{all:?}");
        all.remove(0)
    }
}

/// Longer than a node that says nothing lives: no word can be awaited where none may come.
pub async fn longer_than_a_death() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}
