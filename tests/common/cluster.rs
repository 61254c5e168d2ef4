//! Three nodes in this process that act as one, on a log in this process or on that of a real NATS server.

use plex::{
    Config,
    proto::{ListNodesRequest, Node, NodeState, PushResponse},
    testing::LocalLog,
};

use super::{Backend, TestDevice, TestServer, eventually, http, nats::Nats, online, push};

/// What nodes agree by.
pub enum Log {
    InProcess(LocalLog),
    OverNats(Nats),
}

impl Log {
    pub fn in_process() -> Self {
        Self::InProcess(LocalLog::new(1_000_000, |_| {}))
    }

    /// None: there is no program, and the test is skipped.
    pub async fn over_nats() -> Option<Self> {
        Nats::one().await.map(Self::OverNats)
    }

    /// A node that is in step.
    pub async fn node(&self, name: &str, change: impl FnOnce(&mut Config)) -> TestServer {
        let named = |config: &mut Config| {
            config.node.name = name.into();
            change(config);
        };
        let node = match self {
            Self::InProcess(log) => TestServer::built(named, |builder| builder.log(log)).await,
            Self::OverNats(nats) => {
                let on_servers = |config: &mut Config| {
                    config.cluster.urls = nats.urls().iter().map(|url| url.parse().unwrap()).collect();
                    config.auth.insecure = true;
                    named(config);
                };
                TestServer::with(on_servers).await
            }
        };
        eventually("the node is in step", || async {
            (http(node.addresses.http, "GET", "/readyz").await.0 == 200).then_some(())
        })
        .await;
        node
    }
}

/// The nodes, "node-1" to "node-3", and a backend at each. Each of them knows that all are ready.
pub struct Nodes {
    pub nodes: Vec<TestServer>,
    pub backends: Vec<Backend>,
    /// Ends last.
    _log: Log,
}

impl Nodes {
    pub async fn start(log: Log) -> Self {
        Self::with(log, |_| {}).await
    }

    pub async fn with(log: Log, change: impl Fn(&mut Config)) -> Self {
        let (mut nodes, mut backends) = (Vec::new(), Vec::new());
        for number in 1..=3 {
            let node = log.node(&format!("node-{number}"), &change).await;
            backends.push(node.backend().await);
            nodes.push(node);
        }
        know_each_other(&backends).await;
        Self { nodes, backends, _log: log }
    }

    /// A device that all nodes know to be at this one.
    pub async fn login(&self, node: usize, uid: &str) -> TestDevice {
        let device = self.nodes[node].login(uid).await;
        let name = format!("node-{}", node + 1);
        for backend in &self.backends {
            eventually("the login is known", || async {
                let state = online(&mut backend.clone(), &[uid]).await.remove(0);
                (state.online && state.node == name).then_some(())
            })
            .await;
        }
        device
    }

    pub async fn push(&mut self, from: usize, uid: &str) -> PushResponse {
        self.backends[from].push(push(uid, "/x", "")).await.expect("an outcome").into_inner()
    }

    /// Takes the last node out, for the test to stop it.
    pub fn pop(&mut self) -> TestServer {
        self.backends.pop();
        self.nodes.pop().expect("there is one left")
    }
}

/// The nodes that are live.
pub async fn listed(backend: &mut Backend) -> Vec<Node> {
    backend.list_nodes(ListNodesRequest {}).await.expect("it answers").into_inner().nodes
}

/// Waits until each of these nodes knows that all of them are there and ready, and nobody else.
pub async fn know_each_other(backends: &[Backend]) {
    for backend in backends {
        eventually("all nodes are ready", || async {
            let listed = listed(&mut backend.clone()).await;
            let ready = listed.iter().all(|node| node.state() == NodeState::Ready);
            (listed.len() == backends.len() && ready).then_some(())
        })
        .await;
    }
}
