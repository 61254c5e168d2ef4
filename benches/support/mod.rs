//! What the benchmarks share: the gateway as a process, what the kernel counts of it, and many devices.
#![allow(dead_code, unreachable_pub)]

pub mod devices;

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::Relaxed},
    },
    time::Duration,
};

use plex::proto::{GetInfoRequest, gateway_client::GatewayClient};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use tempfile::TempDir;
use tonic::{
    Request, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use self::devices::Route;

pub const SECRET: &str = "bench-secret";

/// The program that was built with this.
pub const PLEX: &str = env!("CARGO_BIN_EXE_plex");

/// What stands on the command line: words, and `--name value`.
pub struct Arguments(Vec<String>);

impl Arguments {
    pub fn read() -> Self {
        // `cargo bench` adds `--bench`.
        Self(std::env::args().skip(1).filter(|argument| argument != "--bench").collect())
    }

    pub fn word(&self, place: usize) -> Option<&str> {
        let first_flag = self.0.iter().position(|argument| argument.starts_with("--")).unwrap_or(self.0.len());
        self.0[..first_flag].get(place).map(String::as_str)
    }

    /// Whether this flag is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|argument| argument.strip_prefix("--") == Some(name))
    }

    /// The value of this flag, if it is there.
    pub fn text(&self, name: &str) -> Option<&str> {
        let place = self.0.iter().position(|argument| argument.strip_prefix("--") == Some(name))?;
        Some(self.0.get(place + 1).expect("it has a value"))
    }

    pub fn number(&self, name: &str, default: usize) -> usize {
        self.text(name).map_or(default, |value| value.parse().expect("a whole number"))
    }
}

/// A process that is ended with this.
pub struct Child {
    child: std::process::Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Child {
    pub fn new(mut child: std::process::Child) -> Self {
        let lines = BufReader::new(child.stdout.take().expect("its output is piped"));
        Self { child, lines }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("its output is text");
        line.trim().to_owned()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The gateway, as users run it.
pub struct Gateway {
    child: std::process::Child,
    /// To its plain port.
    pub plain: Route,
    /// To its TLS port.
    pub tls: Route,
    pub control: SocketAddr,
    _data_dir: TempDir,
}

impl Gateway {
    /// Starts it on free ports, with more of its settings as `KEY=VALUE`.
    pub fn start(settings: &[&str]) -> Self {
        Self::of(PLEX, settings)
    }

    /// The same of another program file.
    pub fn of(program: &str, settings: &[&str]) -> Self {
        let data_dir = tempfile::tempdir().expect("a folder");
        let (device, device_tls, control) = (free_address(), free_address(), free_address());
        let trust = certificate(data_dir.path());
        let mut command = Command::new(program);
        command.arg("serve").current_dir(data_dir.path()).stdout(Stdio::null());
        let own = [
            format!("data_dir={}", data_dir.path().display()),
            format!("device.listen={device}"),
            format!("device.tls_listen={device_tls}"),
            format!("device.tls_cert={}", data_dir.path().join("cert.pem").display()),
            format!("device.tls_key={}", data_dir.path().join("key.pem").display()),
            format!("control.listen={control}"),
            format!("control.secrets={SECRET}"),
            "http.listen=127.0.0.1:0".to_owned(),
            "metrics.listen=".to_owned(),
            "log.level=error".to_owned(),
        ];
        for setting in own.iter().map(String::as_str).chain(settings.iter().copied()) {
            command.args(["--set", setting]);
        }
        let child = command.spawn().expect("the gateway starts");
        let (plain, tls) = (Route::plain(device), Route::tls(device_tls, trust));
        let gateway = Self { child, plain, tls, control, _data_dir: data_dir };
        while std::net::TcpStream::connect(control).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        gateway
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub async fn backend(&self) -> Backend {
        backend(self.control).await
    }

    pub async fn wait_for_connections(&self, count: u64) {
        let mut backend = self.backend().await;
        loop {
            let info = backend.get_info(GetInfoRequest {}).await.expect("an answer").into_inner();
            if info.connections == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What calls a control plane.
pub type Backend = GatewayClient<InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>>;

pub async fn backend(address: SocketAddr) -> Backend {
    fn bearer(mut request: Request<()>) -> Result<Request<()>, Status> {
        let value = format!("Bearer {SECRET}").parse().expect("a secret is ASCII");
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address is a URL");
    let channel = endpoint.connect().await.expect("the control plane listens");
    GatewayClient::with_interceptor(channel, bearer)
}

/// A certificate for `localhost` in `cert.pem` and `key.pem`; who trusts it.
fn certificate(folder: &Path) -> Arc<ClientConfig> {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("a certificate");
    fs::write(folder.join("cert.pem"), certificate.pem()).expect("the folder can be written");
    fs::write(folder.join("key.pem"), key.serialize_pem()).expect("the folder can be written");
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("a good certificate");
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("TLS 1.2 and 1.3");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// Below the ports that the kernel gives to clients: one that connects there before the gateway listens could be given
/// the same, and meet itself.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(10_000 + std::process::id() % 20_000).expect("it is below 30,000");
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], first + NEXT.fetch_add(1, Relaxed) % 2_000));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// As deep a backlog as the gateway's.
pub fn deepen(listener: &TcpListener) {
    socket2::SockRef::from(listener).listen(65_535).expect("it listens");
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// What the scheduler has given to all threads of a process.
pub fn cpu_of(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let nanos = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// The resident set of a process, in bytes.
pub fn resident_of(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the kernel tells it");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}

/// The resident set of a process once it stands still.
pub fn settled(pid: u32) -> u64 {
    let mut last = 0;
    loop {
        std::thread::sleep(Duration::from_millis(1_500));
        let now = resident_of(pid);
        if now.abs_diff(last) < 64 * 1024 {
            return now;
        }
        last = now;
    }
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
