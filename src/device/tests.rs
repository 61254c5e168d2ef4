//! What is a matter of time, with a paused clock: a device at the other end of a pipe.

mod auth;
mod ends;
mod pace;
pub(super) mod pipe;
mod size;
mod tls;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
    time::Instant,
};

use self::pipe::{Far, pipe};
use super::{
    Devices,
    listener::{Stranger, arrival},
    transport::Transport,
};
use crate::{
    auth::{AuthError, AuthFuture, AuthRequest, Authenticator, Gate, Identity},
    cluster::{Cluster, LocalLog, Options},
    config::DeviceConfig,
    frame,
    hub::{Hub, Pushed, Settings},
    model::{NodeName, Push, PushOutcome, PushStatus},
    state::Numbers,
    telemetry::Metrics,
};

/// One connection, from its first byte to its last.
async fn connection<T: Transport>(devices: Devices, transport: T, remote: SocketAddr, stranger: Stranger) {
    if let Some(session) = arrival(devices, transport, remote, stranger).await {
        session.run().await;
    }
}

/// Far longer than anything takes; the paused clock gets there at once when nothing happens.
const NEVER: Duration = Duration::from_hours(24 * 7);

const MILLI: Duration = Duration::from_millis(1);

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Answers by what the credential says: `refuse`, `down`, `hang`, `panic`; `30:down` after 30 seconds;
/// `alice/90` is alice for 90 seconds; any other is a uid.
#[derive(Clone, Default)]
struct Oracle {
    asked: Arc<AtomicUsize>,
    under_way: Arc<AtomicUsize>,
}

struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Authenticator for Oracle {
    fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a> {
        self.asked.fetch_add(1, SeqCst);
        self.under_way.fetch_add(1, SeqCst);
        let under_way = UnderWay(self.under_way.clone());
        Box::pin(async move {
            let _under_way = under_way;
            let mut credential = request.credential;
            if let Some((wait, rest)) = credential.split_once(':') {
                tokio::time::sleep(seconds(wait.parse().unwrap())).await;
                credential = rest;
            }
            match credential {
                "refuse" => Err(AuthError::Refused),
                "down" => Err(AuthError::Unavailable("asked to be".into())),
                "hang" => std::future::pending().await,
                "panic" => panic!("asked to"),
                _ => Ok(match credential.split_once('/') {
                    Some((uid, lasts)) => {
                        Identity::new(uid).expires_at(SystemTime::now() + seconds(lasts.parse().unwrap()))
                    }
                    None => Identity::new(credential),
                }),
            }
        })
    }
}

/// A node without sockets.
struct Node {
    devices: Devices,
    oracle: Oracle,
}

impl Node {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut DeviceConfig)) -> Self {
        let mut config = DeviceConfig::default();
        change(&mut config);
        let name = NodeName::new("node-1");
        let options = Options { connections_per_uid: config.connections_per_uid as u16, ..Options::of_tests() };
        let (cluster, _) = Cluster::join(&LocalLog::new(1, |_| {}), name.clone(), options);
        let settings = Settings {
            encode: |seq, push, out| frame::encode(frame::ByteOrder::Big, seq, push.uri, push.body, out),
            connections_per_uid: config.connections_per_uid as usize,
            replaces_per_minute: config.replaces_per_minute as usize,
            queue_bytes_max: config.queue_bytes as usize,
            ack_waits_max: 100,
        };
        let metrics = Metrics::new();
        let hub = Hub::new(settings, cluster, Numbers::open(None), metrics.clone());
        let oracle = Oracle::default();
        let gate = Gate::new(Arc::new(oracle.clone()), 10, seconds(100));
        Self { devices: Devices::new(config, seconds(1), name, gate, hub, metrics), oracle }
    }

    /// A device that has connected; what isn't read of the gateway's is held back behind `room` bytes.
    fn connect_with(&self, room: usize) -> Device {
        let (near, far) = pipe(room);
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let stranger = Stranger::new(&self.devices);
        let task = tokio::spawn(connection(self.devices.clone(), near, remote, stranger));
        Device { stream: far, task }
    }

    fn connect(&self) -> Device {
        self.connect_with(64 * 1024)
    }

    async fn login(&self, credential: &str) -> Device {
        self.login_with(credential, 64 * 1024).await
    }

    async fn login_with(&self, credential: &str, room: usize) -> Device {
        let mut device = self.connect_with(room);
        device.auth(credential).await;
        assert_eq!(device.next().await.0, "/auth/success");
        device
    }

    fn push(&self, uid: &str, body: &str) -> PushOutcome {
        match self.devices.hub.push(uid, Push { uri: "/push", body }, None, None) {
            Pushed::Done(outcome) => outcome,
            _ => unreachable!("nothing is waited for"),
        }
    }

    fn is_online(&self, uid: &str) -> bool {
        self.devices.hub.sessions_here(Some(uid.to_owned())).flatten().count() > 0
    }
}

/// The device's end.
struct Device {
    stream: Far,
    task: JoinHandle<()>,
}

impl Device {
    async fn send(&mut self, message: &str) {
        self.write(&u32::try_from(message.len()).unwrap().to_be_bytes()).await;
        self.write(message.as_bytes()).await;
    }

    async fn write(&mut self, bytes: &[u8]) {
        patient(self.stream.write_all(bytes)).await.expect("the gateway holds the other end");
    }

    async fn auth(&mut self, credential: &str) {
        self.send(&json!({"uri": "/auth/server", "body": credential, "v": 2}).to_string()).await;
    }

    async fn heartbeat(&mut self) {
        self.send(r#"{"uri":"/heartbeat"}"#).await;
    }

    /// Uri and body of the next message; None at the end of the stream.
    async fn maybe_next(&mut self) -> Option<(String, Value)> {
        let mut prefix = [0; 4];
        if patient(self.stream.read(&mut prefix[..1])).await.unwrap() == 0 {
            return None;
        }
        patient(self.stream.read_exact(&mut prefix[1..])).await.unwrap();
        let mut message = vec![0; u32::from_be_bytes(prefix) as usize];
        patient(self.stream.read_exact(&mut message)).await.unwrap();
        let message: Value = serde_json::from_slice(&message).unwrap();
        let body = message["body"].as_str().unwrap_or_default();
        let body = serde_json::from_str(body).unwrap_or_else(|_| body.into());
        Some((message["uri"].as_str().unwrap().to_owned(), body))
    }

    async fn next(&mut self) -> (String, Value) {
        self.maybe_next().await.expect("a message, not the end")
    }

    async fn expect_failed(&mut self, reason: &str) {
        assert_eq!(self.next().await, ("/auth/failed".into(), json!({ "reason": reason })));
    }

    async fn expect_kick(&mut self, reason: &str) {
        let (uri, body) = self.next().await;
        assert_eq!((&*uri, &body["reason"]), ("/plex/kick", &json!(reason)));
        assert_eq!(self.maybe_next().await, None);
    }

    /// Goes away.
    fn gone(self) -> JoinHandle<()> {
        drop(self.stream);
        self.task
    }
}

async fn patient<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(NEVER, future).await.expect("it happens some day")
}

/// How long something takes by the paused clock.
async fn timed<T>(future: impl Future<Output = T>) -> (Duration, T) {
    let begun = Instant::now();
    let done = future.await;
    (begun.elapsed(), done)
}

/// Lets all tasks do what they can do now.
async fn settle() {
    tokio::time::sleep(MILLI).await;
}
