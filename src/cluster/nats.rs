//! Many nodes over NATS with JetStream: the log is a stream, what nodes ask each other goes over plain subjects. All
//! decisions are the [`Member`]'s; here they are carried out.

mod answering;
mod api;
mod bus;
mod driver;
mod questions;
mod refusals;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_nats::{ConnectOptions, ServerAddr};
use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    time::timeout,
};

use self::{api::Api, bus::Bus, driver::Driver, refusals::Refusals};
pub(crate) use self::{api::LogSettings, driver::Joining};
use super::{
    Cluster, Options,
    bus::{Inbound, Inbox},
    engine::Engine,
    fold::Incarnation,
    hosts::Card,
    member::{Member, Settings},
    node::Node,
    outgoing::Outgoing,
    rules::Rules,
};
use crate::model::{ConnectionNumber, EndReason, Millis, NodeName, Uid};

/// How long a connection to a server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two tries to connect, once each server was tried.
const RECONNECT: Duration = Duration::from_millis(250);
/// What was read and isn't folded yet.
const READ_AHEAD: usize = 1_024;
/// How long the last word may take to come back.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How to reach the servers, and what to keep there.
pub(crate) struct NatsSettings {
    /// What tells clusters apart.
    pub(crate) cluster: String,
    pub(crate) urls: Vec<String>,
    /// A user's JWT and the seed of its key, as a credentials file has them.
    pub(crate) credentials: Option<String>,
    pub(crate) user: Option<(String, String)>,
    /// For servers that are reached by TLS.
    pub(crate) tls: rustls::ClientConfig,
    pub(crate) requires_tls: bool,
    pub(crate) log: LogSettings,
    pub(crate) dead_after: u32,
    pub(crate) gather: Duration,
    pub(crate) window: usize,
    /// The longest frame of a device, and so of a push.
    pub(crate) max_frame: usize,
    /// A log that is made begins here at the least.
    pub(crate) first_floor: u64,
    /// Is told each sequence that was read.
    pub(crate) on_sequence: Box<dyn Fn(u64) + Send>,
}

/// The subjects of one cluster.
#[derive(Debug, Clone)]
struct Subjects {
    stream: String,
    log: String,
    prefix: String,
}

impl Subjects {
    fn new(cluster: &str) -> Self {
        let prefix = format!("plex.{cluster}");
        Self { stream: format!("plex_{cluster}_presence"), log: format!("{prefix}.log"), prefix }
    }

    fn to(&self, node: Incarnation) -> String {
        format!("{}.to.{}", self.prefix, node.0)
    }

    fn echo(&self, nonce: u64) -> String {
        format!("{}.to.echo-{nonce:x}", self.prefix)
    }

    fn snap(&self) -> String {
        format!("{}.snap", self.prefix)
    }

    fn snap_of(&self, node: Incarnation) -> String {
        format!("{}.snap.{}", self.prefix, node.0)
    }
}

/// Why a node's part in the log is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Over {
    /// A process of the same name that started later has joined.
    Superseded,
    /// The servers, or the other nodes, don't take it as it is, from its start on: why.
    Refused(String),
    /// It has left.
    Left,
}

/// A node's engine: takes its words, which the driver writes.
struct Nats {
    outgoing: Arc<Outgoing>,
    bus: Bus,
    /// When this node's clock was 0, and what the machine's said then.
    began: Instant,
    base: Millis,
    left: Arc<Notify>,
}

impl Engine for Nats {
    fn claim(
        &self,
        _: &Node,
        uid: &Uid,
        number: ConnectionNumber,
        replaces: Option<ConnectionNumber>,
        accepted: Millis,
    ) {
        self.outgoing.claim(uid, number, replaces, accepted);
    }

    fn release(&self, _: &Node, uid: &Uid, number: ConnectionNumber, reason: EndReason) {
        self.outgoing.release(uid, number, reason);
    }

    fn announce(&self, _: &Node, card: Card) {
        self.outgoing.announce(card);
    }

    fn now(&self) -> Millis {
        Millis(self.base.0 + u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn send(&self, to: Incarnation, question: Inbound) -> bool {
        self.bus.send(to, question)
    }

    fn barrier(&self) -> Option<BoxFuture<'static, bool>> {
        let barrier = self.outgoing.barrier();
        Some(async move { barrier.await.unwrap_or(false) }.boxed())
    }

    fn is_bus_up(&self) -> bool {
        self.bus.is_up()
    }

    fn leave(&self, _: &Node) -> BoxFuture<'static, ()> {
        self.outgoing.leave();
        let left = self.left.clone();
        async move { _ = timeout(LEAVE_TIMEOUT, left.notified()).await }.boxed()
    }
}

/// Makes a node of the cluster. Its part in the log is [`Joining::run`], which has to run on `runtime`.
///
/// # Errors
///
/// Where the servers' addresses or the credentials can't be used, in words.
pub(crate) async fn join(
    settings: NatsSettings,
    name: NodeName,
    options: Options,
    runtime: Handle,
) -> Result<(Cluster, Inbox, Joining), String> {
    let (events, link) = mpsc::channel(64);
    let addresses = settings.urls.iter().map(|url| url.parse::<ServerAddr>()).collect::<Result<Vec<_>, _>>();
    let addresses = addresses.map_err(|error| error.to_string())?;
    let servers = addresses.len();
    let mut connect = ConnectOptions::new()
        .name(format!("plex {name}"))
        .custom_inbox_prefix(format!("plex.{}.inbox", settings.cluster))
        .connection_timeout(CONNECT_TIMEOUT)
        .reconnect_delay_callback(move |tries| if tries <= servers { Duration::ZERO } else { RECONNECT })
        .max_reconnects(None)
        .retry_on_initial_connect()
        .tls_client_config(settings.tls)
        .require_tls(settings.requires_tls)
        .event_callback(move |event| {
            let events = events.clone();
            async move { _ = events.send(event).await }
        });
    if let Some((user, password)) = settings.user {
        connect = connect.user_and_password(user, password);
    }
    if let Some(credentials) = &settings.credentials {
        connect = connect.credentials(credentials).map_err(|error| error.to_string())?;
    }
    let client = {
        let _inside = runtime.enter();
        connect.connect(addresses)
    };
    let client = runtime.spawn(client).await.expect("connecting doesn't panic").map_err(|error| error.to_string())?;

    let subjects = Subjects::new(&settings.cluster);
    let Options { forward_timeout, broadcast_timeout, .. } = options;
    let bus = Bus::new(client.clone(), subjects.clone(), runtime.clone(), forward_timeout, broadcast_timeout);
    let outgoing = Arc::new(Outgoing::default());
    let left = Arc::new(Notify::new());
    let (began, base) = (Instant::now(), Millis::now());
    let engine = Nats { outgoing: outgoing.clone(), bus: bus.clone(), began, base, left: left.clone() };
    let (closes, requests, inbox) = Inbox::new();
    let node = Arc::new(Node::new(name, Arc::new(engine), false, closes, options));
    let member = Settings {
        start: unix_micros(),
        dead_after: settings.dead_after,
        gather: settings.gather,
        window: settings.window,
        first_floor: settings.first_floor,
        rules: Rules::ALL,
    };
    let member = Member::new(node.clone(), outgoing.clone(), base, rand::random(), member);
    let api = Api { client: client.clone(), subjects: subjects.clone(), log: settings.log };
    let (answers, answered) = mpsc::channel(READ_AHEAD);
    let (read, reads) = mpsc::channel(READ_AHEAD);
    let driver = Driver {
        client,
        subjects,
        api,
        bus,
        node: node.clone(),
        member,
        outgoing,
        requests,
        began,
        answers,
        read,
        reader: None,
        generation: 0,
        answering: None,
        answering_before: None,
        on_sequence: settings.on_sequence,
        payload_needed: questions::bytes_max(settings.max_frame).max(answering::BYTES_MAX),
        refusals: Refusals::new(node.clone()),
        over: None,
    };
    Ok((Cluster(node), inbox, Joining { driver, link, answered, reads, left }))
}

/// What the machine's clock says, in µs.
fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
