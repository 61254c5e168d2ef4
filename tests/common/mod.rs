//! What the tests share: a gateway on port 0 that is stopped by its own handle, a device that speaks bytes, a backend.
//!
//! The device is written from the protocol alone and uses none of the gateway's code, so that a mistake in the codec
//! can't hide behind itself.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod authenticator;
pub mod certs;
pub mod cluster;
#[cfg(feature = "nats")]
pub mod gateways;
pub mod known;
pub mod link;
pub mod nats;
#[cfg(feature = "nats")]
pub mod node_processes;
pub mod process;
pub mod pushing;
pub mod script;
pub mod tls_device;
pub mod watch;

use std::{future::Future, net::SocketAddr, time::Duration};

use plex::{
    Addresses, Config, Server, ServerBuilder, Stopper,
    config::Secret,
    proto::{self, gateway_client::GatewayClient},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tonic::{
    Code, Request, Status,
    metadata::MetadataValue,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

/// Longer than anything takes, shorter than a test may hang.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How many of something a test takes: `large` where `PLEX_TEST_LARGE` is set, as it is before a release.
pub fn at_scale(normal: usize, large: usize) -> usize {
    if std::env::var_os("PLEX_TEST_LARGE").is_some() { large } else { normal }
}

/// The secret of every test gateway.
pub const SECRET: &str = "a-secret-of-the-tests";

/// A gateway in this process. Stopped when it is dropped.
pub struct TestServer {
    pub addresses: Addresses,
    pub stop: Stopper,
    pub hub: plex::testing::TestHub,
    running: Option<JoinHandle<plex::Ended>>,
    pub data_dir: Option<TempDir>,
}

/// A configuration on port 0 of loopback, with a secret, and its own folder.
pub fn config() -> (Config, TempDir) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let mut config = Config { data_dir: Some(folder.path().to_owned()), ..Config::default() };
    config.node.name = "node-1".into();
    config.device.listen = Some("127.0.0.1:0".parse().unwrap());
    config.control.listen = "127.0.0.1:0".parse().unwrap();
    config.control.secrets = vec![Secret::new(SECRET).unwrap().into()];
    config.http.listen = "127.0.0.1:0".parse().unwrap();
    config.metrics.listen = Some("127.0.0.1:0".parse().unwrap());
    config.drain.timeout = Duration::from_secs(5);
    (config, folder)
}

impl TestServer {
    /// A gateway with the defaults.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// A gateway whose configuration is changed first.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::built(change, |builder| builder).await
    }

    /// A gateway whose configuration and parts are changed first.
    pub async fn built(change: impl FnOnce(&mut Config), build: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        let (mut config, folder) = config();
        change(&mut config);
        Self::of(config, Some(folder), build).await
    }

    /// A gateway of exactly this configuration.
    pub async fn of(
        config: Config,
        data_dir: Option<TempDir>,
        build: impl FnOnce(ServerBuilder) -> ServerBuilder,
    ) -> Self {
        let server = build(Server::builder(config)).build().expect("the configuration holds together");
        let bound = server.bind().await.expect("port 0 can be bound");
        let (addresses, stop, hub) = (bound.addresses(), bound.stopper(), bound.hub_for_tests());
        let running = Some(tokio::spawn(bound.run()));
        Self { addresses, stop, hub, running, data_dir }
    }

    pub fn device(&self) -> SocketAddr {
        self.addresses.device.expect("devices are listened for")
    }

    /// The control plane, with the secret.
    pub async fn backend(&self) -> Backend {
        backend(self.addresses.control, SECRET).await
    }

    /// The control plane over a connection of its own, without a secret.
    pub async fn bare_channel(&self) -> Channel {
        channel(self.addresses.control).await
    }

    /// The value of a metric with this name and these labels, as the page of `/metrics` writes them.
    pub async fn metric(&self, name: &str) -> u64 {
        let (status, _, page) = http(self.addresses.metrics.expect("metrics are on"), "GET", "/metrics").await;
        assert_eq!(status, 200);
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} in {page}")).parse().expect("a number")
    }

    /// Waits until a metric has this value.
    pub async fn metric_is(&self, name: &str, value: u64) {
        eventually(&format!("{name} is {value}"), || async { (self.metric(name).await == value).then_some(()) }).await;
    }

    /// Waits until a metric has this value, or more.
    pub async fn metric_reaches(&self, name: &str, least: u64) {
        eventually(&format!("{name} is {least}"), || async { (self.metric(name).await >= least).then_some(()) }).await;
    }

    /// A device that has authenticated, of dialect 2.
    pub async fn login(&self, uid: &str) -> TestDevice {
        TestDevice::login(self.device(), uid).await
    }

    /// Begins the drain, and waits for its end.
    pub async fn stopped(mut self) {
        self.stop.shutdown();
        let running = self.running.take().expect("it is stopped once");
        timeout(PATIENCE, running).await.expect("it stops in time").expect("it doesn't panic");
    }

    /// Begins the drain; resolves at its end.
    pub fn stopping(&mut self) -> impl Future<Output = ()> + use<> {
        self.stop.shutdown();
        let running = self.running.take().expect("it is stopped once");
        async move {
            _ = timeout(PATIENCE, running).await.expect("it stops in time").expect("it doesn't panic");
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stop.shutdown();
        if let Some(running) = self.running.take() {
            running.abort();
        }
    }
}

/// The generated client, with the secret.
pub type Backend = GatewayClient<InterceptedService<Channel, Bearer>>;

/// Adds the secret to each call.
#[derive(Clone)]
pub struct Bearer(pub String);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let value: MetadataValue<_> = format!("Bearer {}", self.0).parse().expect("a secret is ASCII");
        request.metadata_mut().insert("authorization", value);
        Ok(request)
    }
}

pub async fn channel(address: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.expect("the control plane listens")
}

pub async fn backend(address: SocketAddr, secret: &str) -> Backend {
    GatewayClient::with_interceptor(channel(address).await, Bearer(secret.to_owned()))
}

/// A push without `ack_timeout`.
pub fn push(uid: &str, uri: &str, body: &str) -> proto::PushRequest {
    proto::PushRequest { uid: uid.into(), uri: uri.into(), body: body.into(), ack_timeout: None, id: 0 }
}

/// A push that waits for the device's answer.
pub fn call(uid: &str, uri: &str, body: &str, wait: Duration) -> proto::PushRequest {
    let ack_timeout = Some(prost_types::Duration { seconds: wait.as_secs() as i64, nanos: wait.subsec_nanos() as i32 });
    proto::PushRequest { ack_timeout, ..push(uid, uri, body) }
}

/// A message from the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    pub seq: i64,
    pub uri: String,
    pub body: String,
    /// The bytes after the length.
    pub raw: Vec<u8>,
}

impl Message {
    /// Its body, read as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("a JSON body: {self:?}"))
    }
}

/// A device that speaks bytes.
pub struct TestDevice<S = TcpStream> {
    pub stream: S,
    pub little_endian: bool,
}

impl TestDevice {
    /// Connects, and says nothing.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the gateway takes devices");
        stream.set_nodelay(true).unwrap();
        Self { stream, little_endian: false }
    }

    /// Connects with a small window: what it doesn't read soon fills the gateway's socket.
    pub async fn connect_narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(address).await.expect("the gateway takes devices");
        stream.set_nodelay(true).unwrap();
        Self { stream, little_endian: false }
    }

    /// Connects and authenticates as a device of dialect 2.
    pub async fn login(address: SocketAddr, uid: &str) -> Self {
        let mut device = Self::connect(address).await;
        device.auth_v2(uid).await;
        let answer = device.next().await;
        assert_eq!(answer.uri, "/auth/success", "{answer:?}");
        device
    }

    /// Connects and authenticates as a client of the old framework.
    pub async fn login_v1(address: SocketAddr, uid: &str) -> Self {
        let mut device = Self::connect(address).await;
        device.auth_v1(uid).await;
        let answer = device.next().await;
        assert_eq!(answer.uri, "/auth/success", "{answer:?}");
        device
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TestDevice<S> {
    pub async fn auth_v1(&mut self, credential: &str) {
        self.send(&json!({"uri": "/auth/server", "body": credential}).to_string()).await;
    }

    pub async fn auth_v2(&mut self, credential: &str) {
        self.send(&json!({"uri": "/auth/server", "body": credential, "v": 2}).to_string()).await;
    }

    pub async fn ack(&mut self, seq: i64, body: &str) {
        self.send(&json!({"seq": seq, "uri": "/plex/ack", "body": body}).to_string()).await;
    }

    pub async fn nack(&mut self, seq: i64, body: &str) {
        self.send(&json!({"seq": seq, "uri": "/plex/nack", "body": body}).to_string()).await;
    }

    pub async fn heartbeat(&mut self) {
        self.send(r#"{"uri":"/heartbeat"}"#).await;
    }

    /// One frame with this text.
    pub async fn send(&mut self, text: &str) {
        self.send_message(text.as_bytes()).await;
    }

    /// One frame with these bytes.
    pub async fn send_message(&mut self, message: &[u8]) {
        let frame = self.frame(message);
        self.send_bytes(&frame).await;
    }

    /// These bytes, and nothing around them.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let send = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout(PATIENCE, send).await.expect("the gateway reads").expect("it is connected");
    }

    pub fn frame(&self, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap();
        let prefix = if self.little_endian { length.to_le_bytes() } else { length.to_be_bytes() };
        [&prefix[..], message].concat()
    }

    /// The next message; panics where the connection ends first.
    pub async fn next(&mut self) -> Message {
        self.maybe_next().await.expect("a message, not the end of the stream")
    }

    /// The next message, or the orderly end of the stream. A reset, or an end inside a frame, panics.
    pub async fn maybe_next(&mut self) -> Option<Message> {
        timeout(PATIENCE, self.read()).await.expect("a message or the end in time")
    }

    async fn read(&mut self) -> Option<Message> {
        let mut prefix = [0; 4];
        if self.stream.read(&mut prefix[..1]).await.expect("no reset") == 0 {
            return None;
        }
        self.stream.read_exact(&mut prefix[1..]).await.expect("a whole length");
        let length = if self.little_endian { u32::from_le_bytes(prefix) } else { u32::from_be_bytes(prefix) };
        let mut raw = vec![0; length as usize];
        self.stream.read_exact(&mut raw).await.expect("a whole message");
        let value: Value = serde_json::from_slice(&raw).expect("a message is JSON");
        Some(Message {
            seq: value["seq"].as_i64().unwrap_or(0),
            uri: value["uri"].as_str().unwrap_or_default().to_owned(),
            body: value["body"].as_str().unwrap_or_default().to_owned(),
            raw,
        })
    }

    /// Sends a heartbeat and expects its answer next: nothing else has come before.
    pub async fn expect_quiet(&mut self) {
        self.heartbeat().await;
        let answer = self.next().await;
        assert_eq!(answer.uri, "/heartbeat", "nothing was to come before the answer to the heartbeat: {answer:?}");
    }

    /// Expects the orderly end of the stream, and nothing before it.
    pub async fn expect_close(&mut self) {
        let message = self.maybe_next().await;
        assert_eq!(message, None, "the stream ends");
    }

    /// Expects a kick with this reason as the last frame.
    pub async fn expect_kick(&mut self, reason: &str) -> Value {
        let kick = self.next().await;
        assert_eq!(kick.uri, "/plex/kick", "{kick:?}");
        assert_eq!(kick.json()["reason"], reason, "{kick:?}");
        self.expect_close().await;
        kick.json()
    }
}

/// Everything that ListSessions tells.
pub async fn sessions(backend: &mut Backend, uid: &str) -> Vec<proto::Session> {
    let request = proto::ListSessionsRequest { uid: uid.to_owned() };
    let mut pages = backend.list_sessions(request).await.expect("the list begins").into_inner();
    let mut all = Vec::new();
    while let Some(page) = timeout(PATIENCE, pages.message()).await.expect("a page in time").expect("the list goes on")
    {
        assert!(page.sessions.len() <= 1_000, "{} sessions", page.sessions.len());
        all.extend(page.sessions);
    }
    all
}

/// Whether each of these is online.
pub async fn online(backend: &mut Backend, uids: &[&str]) -> Vec<proto::OnlineState> {
    let uids: Vec<_> = uids.iter().map(|uid| (*uid).to_owned()).collect();
    let states = backend.is_online(proto::IsOnlineRequest { uids: uids.clone() }).await.unwrap().into_inner().states;
    assert!(uids.iter().eq(states.iter().map(|state| &state.uid)), "one for each, in order");
    states
}

/// Expects that a request can't be processed, since this field is wrong.
pub fn expect_invalid<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>, field: &str) {
    let status = answer.expect_err(field);
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().starts_with(field), "names {field}: {status}");
}

/// Waits until `condition` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let begun = tokio::time::Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One HTTP request; gives the status, the head and the body.
pub async fn http(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.expect("the HTTP port listens");
    let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}
