//! Real NATS servers with JetStream, one or three, on addresses of loopback that nobody else has: so a server that was
//! ended comes back at the same ports, with the same store.
//!
//! The program is `PLEX_NATS_SERVER`, else `nats-server` of the PATH, from 2.10 on. Where there is none the test is
//! skipped, with a line that says so; where `CI=true` it fails.

use std::{
    env, fs,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Command, ExitStatus},
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    PATIENCE, eventually,
    process::{TestProcess, own_loopback},
};

const CLIENTS: u16 = 4222;
const ROUTES: u16 = 6222;
const MONITORING: u16 = 8222;

/// Servers that know each other. Ended, with all that they stored, when it is dropped.
pub struct Nats {
    program: PathBuf,
    servers: Vec<NatsServer>,
    folder: TempDir,
}

struct NatsServer {
    host: Ipv4Addr,
    /// None: it was ended.
    process: Option<TestProcess>,
}

impl Nats {
    /// One server; None: there is no program, and the test is skipped.
    pub async fn one() -> Option<Self> {
        Self::with(1, |_| String::new()).await
    }

    /// Three servers, which are one cluster.
    pub async fn three() -> Option<Self> {
        Self::with(3, |_| String::new()).await
    }

    /// So many servers, each configured besides with what `more` says of its address: accounts, TLS. They are in service
    /// when this resolves.
    pub async fn with(count: usize, more: impl Fn(Ipv4Addr) -> String) -> Option<Self> {
        let program = program()?;
        let folder = tempfile::tempdir().expect("a folder for the test");
        let servers: Vec<_> = (0..count).map(|_| NatsServer { host: own_loopback(), process: None }).collect();
        let mut nats = Self { program, servers, folder };
        for index in 0..count {
            fs::write(nats.config(index), nats.configured(index, &more(nats.servers[index].host)))
                .expect("the test's folder can be written");
            nats.spawn(index);
        }
        for index in 0..count {
            nats.serves(index).await;
        }
        Some(nats)
    }

    /// Where clients connect, `nats://…`, a URL for each server.
    pub fn urls(&self) -> Vec<String> {
        (0..self.servers.len()).map(|index| format!("nats://{}", self.address(index))).collect()
    }

    /// Where clients connect to one of them.
    pub fn address(&self, index: usize) -> SocketAddr {
        (self.servers[index].host, CLIENTS).into()
    }

    /// What one of them is called.
    pub fn name(index: usize) -> String {
        format!("n{index}")
    }

    /// The folder of what one of them stored.
    pub fn store(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("store-{index}"))
    }

    /// Its process, to be asked for its id.
    pub fn process(&self, index: usize) -> &TestProcess {
        self.servers[index].process.as_ref().expect("it runs")
    }

    /// SIGKILL: it ends without a word.
    pub fn kill(&mut self, index: usize) {
        self.servers[index].process.take().expect("it runs").kill();
    }

    /// SIGTERM, as an operator stops it; resolves at its end.
    pub async fn terminate(&mut self, index: usize) -> ExitStatus {
        self.ended_by(index, "TERM").await
    }

    /// SIGUSR2: lame duck, it sends its clients elsewhere and ends; resolves at its end, which with many clients takes
    /// half a minute.
    pub async fn lame_duck(&mut self, index: usize) -> ExitStatus {
        self.ended_by(index, "USR2").await
    }

    async fn ended_by(&mut self, index: usize, signal: &str) -> ExitStatus {
        let mut process = self.servers[index].process.take().expect("it runs");
        process.signal(signal);
        process.exit().await
    }

    /// SIGSTOP: its connections stay, and it does nothing. Resolves when it stands still.
    pub async fn freeze(&self, index: usize) {
        self.process(index).signal("STOP");
        let stat = format!("/proc/{}/stat", self.process(index).id());
        // Where there is no /proc, the signal alone has to do.
        eventually("it stands still", || {
            let stopped = fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") T "));
            std::future::ready(stopped.then_some(()))
        })
        .await;
    }

    /// SIGCONT: it goes on.
    pub fn thaw(&self, index: usize) {
        self.process(index).signal("CONT");
    }

    /// Has one that runs read another configuration, with what `more` says in place of what was said: its users may have
    /// other permissions then.
    pub fn reconfigure(&self, index: usize, more: &str) {
        fs::write(self.config(index), self.configured(index, more)).expect("the test's folder can be written");
        self.process(index).signal("HUP");
    }

    /// Starts one that was ended, with the same ports and store; resolves when it is in service.
    pub async fn restart(&mut self, index: usize) {
        self.spawn(index);
        self.serves(index).await;
    }

    /// Starts one that was ended, and doesn't wait for it.
    pub fn spawn(&mut self, index: usize) {
        assert!(self.servers[index].process.is_none(), "it was ended");
        let mut command = Command::new(&self.program);
        // Enough for what a test stores, so that a mistake can't take the machine's memory.
        command.arg("--config").arg(self.config(index)).env("GOMEMLIMIT", "256MiB");
        self.servers[index].process = Some(TestProcess::spawn(command));
    }

    /// Waits until it is in service: JetStream has its store, and in a cluster a leader and what that knows.
    pub async fn serves(&mut self, index: usize) {
        let log = self.log(index);
        let address = self.monitoring(index);
        let server = &mut self.servers[index];
        eventually("a NATS server is in service", || {
            let process = server.process.as_mut().expect("it runs");
            if let Some(status) = process.ended() {
                panic!("{status}: {}", fs::read_to_string(&log).unwrap_or_default());
            }
            async move { monitored(address, "/healthz").await.map(drop) }
        })
        .await;
    }

    /// Which server leads a stream; None: none does. Asks one that runs.
    pub async fn leader(&self, stream: &str) -> Option<usize> {
        let asked = self.servers.iter().position(|server| server.process.is_some()).expect("one of them runs");
        let page = monitored(self.monitoring(asked), "/jsz?accounts=true&streams=true").await?;
        let accounts = page["account_details"].as_array()?;
        let mut streams = accounts.iter().filter_map(|account| account["stream_detail"].as_array()).flatten();
        let leader = streams.find(|found| found["name"] == stream)?["cluster"]["leader"].as_str()?.to_owned();
        (0..self.servers.len()).find(|index| Self::name(*index) == leader)
    }

    /// What one of them has written to its log.
    pub fn log_text(&self, index: usize) -> String {
        fs::read_to_string(self.log(index)).unwrap_or_default()
    }

    fn monitoring(&self, index: usize) -> SocketAddr {
        (self.servers[index].host, MONITORING).into()
    }

    fn config(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("{}.conf", Self::name(index)))
    }

    fn log(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("{}.log", Self::name(index)))
    }

    fn configured(&self, index: usize, more: &str) -> String {
        let (name, host) = (Self::name(index), self.servers[index].host);
        let (store, log) = (self.store(index), self.log(index));
        let cluster = if self.servers.len() == 1 {
            String::new()
        } else {
            let routes: Vec<_> =
                self.servers.iter().map(|server| format!("\"nats-route://{}:{ROUTES}\"", server.host)).collect();
            format!("cluster {{ name: tests, listen: \"{host}:{ROUTES}\", routes: [{}] }}\n", routes.join(", "))
        };
        format!(
            "server_name: {name}\nlisten: \"{host}:{CLIENTS}\"\nhttp: \"{host}:{MONITORING}\"\nlog_file: {log:?}\n\
             jetstream {{ store_dir: {store:?}, max_memory_store: 512MiB, max_file_store: 4GiB }}\n\
             lame_duck_grace_period: \"1s\"\nlame_duck_duration: \"30s\"\n{cluster}{more}\n"
        )
    }
}

/// Has a server know one user, "plex" with the password "hush", who may not publish this.
pub fn user_denied(subject: &str) -> String {
    format!(
        "authorization {{ users: [ {{ user: plex, password: hush, permissions: {{ publish: {{ deny: [\"{subject}\"] }} \
         }} }} ] }}"
    )
}

/// A page of a server's monitoring, where it answers 200.
async fn monitored(address: SocketAddr, path: &str) -> Option<Value> {
    // Until it listens there is nobody to ask.
    let mut stream = TcpStream::connect(address).await.ok()?;
    // Of version 1.0, or it comes in chunks.
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    (head.split(' ').nth(1) == Some("200")).then(|| serde_json::from_str(body).expect("JSON"))
}

/// The program; None, with a line that says so: there is none.
fn program() -> Option<PathBuf> {
    let named = env::var_os("PLEX_NATS_SERVER").map(PathBuf::from);
    let program = named.clone().unwrap_or_else(|| "nats-server".into());
    let problem = match Command::new(&program).arg("--version").output() {
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            match version(&told) {
                Some(version) if version >= (2, 10) => return Some(program),
                _ => format!("2.10 or newer is needed, this is {:?}", told.lines().next().unwrap_or_default()),
            }
        }
        Err(error) => error.to_string(),
    };
    assert!(named.is_none(), "PLEX_NATS_SERVER={}: {problem}", program.display());
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has a NATS server: {problem}");
    // Not captured, so that whoever runs the tests sees it.
    let _ = writeln!(io::stderr(), "skipped: what needs a NATS server (PLEX_NATS_SERVER=FILE): {problem}");
    None
}

/// Of "nats-server: v2.15.1".
fn version(told: &str) -> Option<(u32, u32)> {
    let (_, version) = told.trim().rsplit_once('v')?;
    let mut parts = version.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}
