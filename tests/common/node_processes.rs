//! Nodes of one cluster, each a process of its own, on one real NATS server.

use serde_json::Value;

use super::{
    Backend, SECRET, TestDevice, backend,
    cluster::know_each_other,
    eventually,
    nats::Nats,
    online,
    process::{ANY_PORTS, Home, TestGateway, TestProcess},
};

/// The nodes, "node-1" and so on, and a backend at each.
pub struct Gateways {
    /// None: it was ended.
    nodes: Vec<Option<TestGateway>>,
    pub backends: Vec<Backend>,
    homes: Vec<Home>,
    pub nats: Nats,
}

/// Starts a process of a cluster over these servers, in this home; what is set besides comes last.
pub fn spawn(home: &Home, urls: &[String], name: &str, sets: &[&str]) -> TestProcess {
    home.write("secret", SECRET);
    let all = [
        &format!("node.name={name}"),
        &format!("cluster.urls={}", urls.join(",")),
        "auth.insecure=true",
        &format!("control.secrets={SECRET}"),
        "drain.timeout=8s",
    ];
    let arguments: Vec<_> = all.iter().chain(sets).flat_map(|set| ["--set", *set]).collect();
    home.spawn(&[&["serve"], &ANY_PORTS[..], &arguments].concat())
}

impl Gateways {
    /// Three, of which each knows that all are ready; None: there is no NATS server, and the test is skipped.
    pub async fn three() -> Option<Self> {
        Self::each(|_| Vec::new()).await
    }

    /// Three, and what is set for each besides.
    pub async fn each(sets: impl Fn(usize) -> Vec<String>) -> Option<Self> {
        Self::several(3, sets).await
    }

    /// So many, and what is set for each besides.
    pub async fn several(count: usize, sets: impl Fn(usize) -> Vec<String>) -> Option<Self> {
        let nats = Nats::one().await?;
        let mut all = Self { nodes: Vec::new(), backends: Vec::new(), homes: Vec::new(), nats };
        for index in 0..count {
            let urls = all.nats.urls();
            all.add(&urls, &sets(index)).await;
        }
        all.all_ready().await;
        Some(all)
    }

    /// One more, which reaches the servers by these URLs; it listens, and is the last of all.
    pub async fn add(&mut self, urls: &[String], sets: &[String]) {
        let name = format!("node-{}", self.nodes.len() + 1);
        let node = self.spawn(urls, &name, sets).await;
        self.backends.push(backend(node.control, SECRET).await);
        self.nodes.push(Some(node));
    }

    /// Another process of this cluster, which listens.
    pub async fn start(&mut self, name: &str, sets: &[String]) -> TestGateway {
        let urls = self.nats.urls();
        self.spawn(&urls, name, sets).await
    }

    async fn spawn(&mut self, urls: &[String], name: &str, sets: &[String]) -> TestGateway {
        let home = Home::new();
        let sets: Vec<_> = sets.iter().map(String::as_str).collect();
        let node = TestGateway::of(spawn(&home, urls, name, &sets)).await;
        self.homes.push(home);
        node
    }

    /// Waits until each knows that all are ready, and takes devices.
    pub async fn all_ready(&self) {
        know_each_other(&self.backends).await;
        for node in self.nodes.iter().flatten() {
            assert_eq!(node.readyz().await, 200);
        }
    }

    pub fn node(&self, index: usize) -> &TestGateway {
        self.nodes[index].as_ref().expect("it runs")
    }

    /// The number of its first life in the log.
    pub async fn incarnation(&mut self, index: usize) -> u64 {
        const SAYS: &str = "joined the cluster incarnation=";
        let log = &mut self.nodes[index].as_mut().expect("it runs").process.stderr;
        let line = match log.seen.iter().find(|line| line.contains(SAYS)) {
            Some(line) => line.clone(),
            None => log.until(SAYS).await,
        };
        let (_, number) = line.split_once(SAYS).expect("it was looked for");
        number.trim_end().parse().unwrap_or_else(|_| panic!("a number: {line}"))
    }

    /// Takes a node out, for the test to end it.
    pub fn take(&mut self, index: usize) -> TestGateway {
        self.nodes[index].take().expect("it runs")
    }

    /// SIGKILL.
    pub fn kill(&mut self, index: usize) {
        self.take(index).process.kill();
    }

    pub async fn login(&self, index: usize, uid: &str) -> TestDevice {
        TestDevice::login(self.node(index).device(), uid).await
    }

    /// Waits until this node knows that `uid` is at that one, or nowhere.
    pub async fn knows(&self, asked: usize, uid: &str, at: Option<&str>) {
        eventually(&format!("{uid} is at {at:?}"), || async {
            let state = online(&mut self.backends[asked].clone(), &[uid]).await.remove(0);
            (state.online.then_some(&*state.node) == at && state.connections == u32::from(at.is_some())).then_some(())
        })
        .await;
    }

    /// What `plex nodes --json` tells of each node at this one.
    pub async fn told(&self, index: usize) -> Vec<Value> {
        let (home, url) = (&self.homes[index], self.node(index).url());
        let told = home.run(&["nodes", "--json", "--control", &url, "--secret-file", &home.text("secret")]).await;
        assert_eq!((told.code, &*told.stderr), (0, ""), "{told:?}");
        told.json()
    }

    /// Waits until that tells these states, in the order of the nodes' names.
    pub async fn told_states(&self, index: usize, expected: &[(&str, &str)]) {
        eventually(&format!("the nodes are {expected:?}"), || async {
            let told = self.told(index).await;
            let states: Vec<_> = told
                .iter()
                .map(|node| (node["name"].as_str().unwrap_or_default(), node["state"].as_str().unwrap_or_default()))
                .collect();
            (states == expected).then_some(())
        })
        .await;
    }
}
