//! What is measured: a NATS server and gateways on it, each a process of its own.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::{Duration, Instant},
};

use plex::proto::{GetInfoRequest, ListNodesRequest, NodeState};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{self, Backend, SECRET};

/// How long anything may take that has to come; nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks every 2 ms until there is something.
///
/// # Panics
///
/// Where there is nothing after a minute.
pub(crate) async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, look).await.unwrap_or_else(|| panic!("{what}: not in {PATIENCE:?}"))
}

/// Looks every 2 ms until there is something, or the time is over.
pub(crate) async fn within<T>(patience: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + patience;
    loop {
        let found = look().await;
        if found.is_some() || Instant::now() >= until {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A child process that is ended with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The engine, on a port that was free, with a store of its own.
pub(crate) struct Nats {
    process: Process,
    pub(crate) url: String,
    _folder: TempDir,
}

impl Nats {
    async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let program = env::var_os("PLEX_NATS_SERVER").unwrap_or_else(|| "nats-server".into());
        let mut command = Command::new(&program);
        command.args(["--jetstream", "--addr", "127.0.0.1", "--port", "-1"]);
        command.arg("--store_dir").arg(folder.path()).arg("--ports_file_dir").arg(folder.path());
        command.arg("--log").arg(folder.path().join("log"));
        let process = Process(command.spawn().unwrap_or_else(|error| {
            panic!("a NATS server is needed (PLEX_NATS_SERVER=FILE, or nats-server on the PATH): {error}")
        }));
        let url = eventually("the NATS server tells its port", async || url_of(folder.path())).await;
        Self { process, url, _folder: folder }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// With which sequence the log was made to begin, and the first that it still has.
    pub(crate) async fn log_begins(&self) -> (u64, u64) {
        let client = async_nats::connect(&self.url).await.expect("it listens");
        let answer = client.request("$JS.API.STREAM.INFO.plex_plex_presence", "".into()).await.expect("it answers");
        let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("a stream: {answer}"));
        (number(&answer["config"]["first_seq"]), number(&answer["state"]["first_seq"]))
    }
}

/// Where clients connect, as the file tells that the server writes once it listens.
fn url_of(folder: &Path) -> Option<String> {
    let mut files = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let file = files.find(|path| path.extension().is_some_and(|extension| extension == "ports"))?;
    let ports: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    Some(ports["nats"][0].as_str()?.to_owned())
}

/// A gateway.
pub(crate) struct Node {
    process: Process,
    pub(crate) started: Instant,
    pub(crate) device: SocketAddr,
    pub(crate) control: SocketAddr,
    http: SocketAddr,
    /// What it logs, and when it did.
    coming: Receiver<(Instant, String)>,
    logged: Vec<(Instant, String)>,
    _folder: TempDir,
}

impl Node {
    /// Starts one with these settings; it listens when this returns.
    pub(crate) fn start(nats: &Nats, name: &str, settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(support::PLEX);
        command.arg("serve").current_dir(folder.path()).stdin(Stdio::null()).stderr(Stdio::piped());
        let own = [
            format!("node.name={name}"),
            format!("cluster.urls={}", nats.url),
            format!("data_dir={}", folder.path().display()),
            format!("control.secrets={SECRET}"),
            "auth.insecure=true".to_owned(),
            "device.listen=127.0.0.1:0".to_owned(),
            "control.listen=127.0.0.1:0".to_owned(),
            "http.listen=127.0.0.1:0".to_owned(),
            "metrics.listen=".to_owned(),
        ];
        for setting in own.iter().map(String::as_str).chain(settings.iter().copied()) {
            command.args(["--set", setting]);
        }
        let started = Instant::now();
        let mut process = Process(command.spawn().expect("the gateway starts"));
        let lines = BufReader::new(process.0.stderr.take().expect("it is piped")).lines();
        // More than it logs in any of this; what is more isn't kept.
        let (line, coming) = sync_channel(10_000);
        thread::spawn(move || lines.map_while(Result::ok).for_each(|text| _ = line.try_send((Instant::now(), text))));
        let mut logged = Vec::new();
        let listening = loop {
            let (at, text) = coming.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("it listens: {logged:?}"));
            logged.push((at, text.clone()));
            if text.contains(" listening ") {
                break text;
            }
        };
        let address = |name: &str| {
            let text = listening.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("where it listens: {listening}"))
        };
        let (device, control, http) = (address("device"), address("control"), address("http"));
        Self { process, started, device, control, http, coming, logged, _folder: folder }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.pid().to_string()]).status();
        assert!(sent.expect("there is a kill").success());
    }

    /// When each line was logged that has `text` in it.
    pub(crate) fn logged(&mut self, text: &str) -> Vec<Instant> {
        self.logged.extend(self.coming.try_iter());
        self.logged.iter().filter(|(_, line)| line.contains(text)).map(|(at, _)| *at).collect()
    }

    /// When `/readyz` first answered 200.
    pub(crate) async fn ready(&self) -> Instant {
        eventually("it is ready", async || self.is_ready().await.then(Instant::now)).await
    }

    async fn is_ready(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.http).await else { return false };
        let mut answer = String::new();
        stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await.is_ok()
            && stream.read_to_string(&mut answer).await.is_ok()
            && answer.split(' ').nth(1) == Some("200")
    }

    pub(crate) async fn backend(&self) -> Backend {
        support::backend(self.control).await
    }
}

/// How many users a node knows to be online.
pub(crate) async fn known(backend: &mut Backend) -> u64 {
    backend.get_info(GetInfoRequest {}).await.expect("an answer").into_inner().uids
}

/// A server and the nodes that were started on it.
pub(crate) struct Ground {
    pub(crate) nodes: Vec<Node>,
    pub(crate) nats: Nats,
}

impl Ground {
    /// Nodes of these names, of which each knows that all are ready.
    pub(crate) async fn start(names: &[&str], settings: &[&str]) -> Self {
        let nats = Nats::start().await;
        let nodes: Vec<_> = names.iter().map(|name| Node::start(&nats, name, settings)).collect();
        let ground = Self { nodes, nats };
        for node in &ground.nodes {
            node.ready().await;
            let mut backend = node.backend().await;
            eventually("all nodes are ready", async || {
                (ready_nodes(&mut backend).await.len() == names.len()).then_some(())
            })
            .await;
        }
        ground
    }

    /// Waits until each node knows so many users to be online.
    pub(crate) async fn all_know(&self, users: u64) {
        for node in &self.nodes {
            let mut backend = node.backend().await;
            eventually("all users are known", async || (known(&mut backend).await == users).then_some(())).await;
        }
    }
}

/// The names of the nodes that are ready, as one of them sees it.
pub(crate) async fn ready_nodes(backend: &mut Backend) -> Vec<String> {
    let nodes = backend.list_nodes(ListNodesRequest {}).await.expect("an answer").into_inner().nodes;
    let ready = nodes.into_iter().filter(|node| node.state() == NodeState::Ready);
    ready.map(|node| node.name).collect()
}
