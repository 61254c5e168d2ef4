//! Many nodes over NATS with JetStream: the log is a stream, what nodes ask each other goes over plain subjects. All
//! decisions are the [`Member`]'s; here they are carried out.

mod answering;
mod api;
mod bus;
mod questions;
mod refusals;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    task::AbortHandle,
    time::{sleep_until, timeout},
};

pub(crate) use self::api::LogSettings;
use self::{
    answering::Answering,
    api::{Api, Failed, Read},
    bus::Bus,
    refusals::Refusals,
};
use super::{
    Cluster, Options,
    bus::{Inbound, Inbox},
    engine::Engine,
    fold::Incarnation,
    hosts::Card,
    member::{Bounds, Command, Member, Micros, Settings},
    node::Node,
    outgoing::Outgoing,
    rules::Rules,
    wire::Reader,
};
use crate::model::{ConnectionNumber, EndReason, Millis, NodeName, Uid};

/// How long a connection to a server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two tries to connect, once each server was tried.
const RECONNECT: Duration = Duration::from_millis(250);
/// How often a node hears itself over the bus, and how many times it may miss that.
const ECHO: Duration = Duration::from_millis(500);
const ECHOES_MISSED: u32 = 3;
/// After so many another server is looked for: this one stands still.
const ECHOES_GIVEN_UP: u32 = 6;
/// What was read and isn't folded yet.
const READ_AHEAD: usize = 1_024;
/// How much is folded before the time is looked at.
const FOLD_SLICE: usize = 256;
/// How long a part of a snapshot may take.
const PART_TIMEOUT: Duration = Duration::from_secs(2);
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
    let Options { heartbeat, forward_timeout, broadcast_timeout, .. } = options;
    let bus = Bus::new(client.clone(), subjects.clone(), runtime.clone(), forward_timeout, broadcast_timeout);
    let outgoing = Arc::new(Outgoing::default());
    let left = Arc::new(Notify::new());
    let (began, base) = (Instant::now(), Millis::now());
    let engine = Nats { outgoing: outgoing.clone(), bus: bus.clone(), began, base, left: left.clone() };
    let (closes, requests, inbox) = Inbox::new();
    let node = Arc::new(Node::new(name, Arc::new(engine), false, closes, options));
    let member = Settings {
        start: unix_micros(),
        heartbeat,
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

/// A node's part in the log, which has yet to begin.
pub(crate) struct Joining {
    driver: Driver,
    link: mpsc::Receiver<Event>,
    answered: mpsc::Receiver<Answer>,
    reads: mpsc::Receiver<(u64, Reading)>,
    left: Arc<Notify>,
}

/// What comes of reading the log.
enum Reading {
    Message(Read),
    /// There is a gap, nothing comes any more, or it can't be read.
    Over(Result<(), Failed>),
}

/// What was asked of the engine, and came.
enum Answer {
    Bounds(u64, Result<Option<Bounds>, Failed>),
    Changed(Result<(), Failed>),
    Part { snapshot: u64, part: u8, answer: Option<(Incarnation, Vec<u8>)> },
}

struct Driver {
    client: Client,
    subjects: Subjects,
    api: Api,
    bus: Bus,
    node: Arc<Node>,
    member: Member,
    outgoing: Arc<Outgoing>,
    requests: mpsc::Sender<Inbound>,
    began: Instant,
    answers: mpsc::Sender<Answer>,
    read: mpsc::Sender<(u64, Reading)>,
    reader: Option<AbortHandle>,
    /// Which reading is the latest: what others read is void.
    generation: u64,
    answering: Option<Answering>,
    /// Of the life before: others may ask that until they have read of the new one.
    answering_before: Option<Answering>,
    on_sequence: Box<dyn Fn(u64) + Send>,
    /// The longest message that a server has to take.
    payload_needed: usize,
    refusals: Refusals,
    /// Why this node ends by itself.
    over: Option<Over>,
}

impl Joining {
    /// Takes part in the log until the node has left, or another process took its name.
    pub(crate) async fn run(self) -> Over {
        let Self { mut driver, mut link, mut answered, mut reads, left } = self;
        let _answers = Abort(tokio::spawn(driver.bus.clone().take_messages()).abort_handle());
        let echo = driver.subjects.echo(rand::random());
        let _echoes = Abort(tokio::spawn(hear_oneself(driver.client.clone(), driver.bus.clone(), echo)).abort_handle());
        let outgoing = driver.outgoing.clone();
        let mut batch = Vec::with_capacity(FOLD_SLICE);
        let over = loop {
            let now = driver.now();
            let deadline =
                tokio::time::Instant::now() + Duration::from_micros(driver.member.deadline(now).saturating_sub(now));
            let mut out = Vec::new();
            tokio::select! {
                Some(event) = link.recv() => driver.link(&event, &mut out),
                Some(answer) = answered.recv() => driver.take(answer, &mut out),
                count = reads.recv_many(&mut batch, FOLD_SLICE) => {
                    debug_assert!(count > 0, "this driver holds the other end");
                    driver.fold(&mut batch, &mut out);
                }
                () = outgoing.woken.notified() => {}
                () = sleep_until(deadline) => {}
            }
            let now = driver.now();
            driver.member.tick(now, &mut out);
            if let Some(over) = driver.carry_out(out).await.or_else(|| driver.over.take()) {
                break over;
            }
        };
        driver.node.end();
        left.notify_one();
        // What was handed over last goes out.
        _ = timeout(Duration::from_millis(500), driver.client.flush()).await;
        over
    }
}

impl Driver {
    fn now(&self) -> Micros {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn link(&mut self, event: &Event, out: &mut Vec<Command>) {
        let now = self.now();
        match event {
            Event::Connected => {
                tracing::info!("connected to the cluster's servers");
                if !self.is_payload_taken() && !self.node.was_in_step() {
                    return;
                }
                self.bus.set_up(true);
                self.member.link_up(now, out);
            }
            Event::Disconnected => {
                tracing::warn!("the cluster's servers can't be reached");
                self.refusals.servers_away();
                self.bus.set_up(false);
                self.stop_reading();
                self.member.link_down(now);
            }
            Event::LameDuckMode => {
                tracing::info!("the server of the cluster is about to stop: going to another");
                tokio::spawn(go_to_another(self.client.clone()));
            }
            Event::SlowConsumer(_) => tracing::warn!("messages of the cluster were dropped: read again"),
            Event::ServerError(error) => self.note_server_error(&error.to_string()),
            Event::ClientError(error) => self.note_unreachable(&error.to_string()),
            other => tracing::warn!(event = %other, "the cluster's servers"),
        }
    }

    fn take(&mut self, answer: Answer, out: &mut Vec<Command>) {
        let now = self.now();
        match answer {
            Answer::Bounds(ask, bounds) => {
                let bounds = self.note_failed(bounds);
                self.member.bounds(now, ask, bounds.map_err(|_| ()), out);
            }
            Answer::Changed(done) => {
                if self.note_failed(done).is_ok() {
                    self.member.changed(now, out);
                }
            }
            Answer::Part { snapshot, part, answer } => self.member.part(now, snapshot, part, answer),
        }
    }

    fn fold(&mut self, batch: &mut Vec<(u64, Reading)>, out: &mut Vec<Command>) {
        for (generation, read) in batch.drain(..) {
            if generation != self.generation {
                continue;
            }
            let now = self.now();
            match read {
                Reading::Message(Read { sequence, at, bytes }) => {
                    (self.on_sequence)(sequence);
                    self.member.message(now, sequence, at, &bytes, out);
                }
                Reading::Over(over) => match self.note_failed(over) {
                    Ok(()) => self.member.reading_ended(now, out),
                    Err(_) => self.member.reading_failed(now),
                },
            }
        }
    }

    fn stop_reading(&mut self) {
        self.generation += 1;
        if let Some(reader) = self.reader.take() {
            reader.abort();
        }
    }

    async fn carry_out(&mut self, commands: Vec<Command>) -> Option<Over> {
        for command in commands {
            match command {
                // At most once: what the client doesn't take now is written again later.
                Command::Append(bytes) => {
                    _ = self.client.publish(self.subjects.log.clone(), bytes.into()).now_or_never()
                }
                Command::Bounds { ask } => {
                    self.spawn(move |api| async move { Answer::Bounds(ask, api.bounds().await) });
                }
                Command::Create { first } => {
                    // The node's own clock may have stood still, with the machine.
                    let first = first.max(unix_micros());
                    tracing::info!(first, "making the presence log");
                    self.spawn(move |api| async move { Answer::Changed(api.create(first).await) });
                }
                Command::Discard(log) => {
                    tracing::warn!("the presence log was rolled back: making it anew");
                    self.spawn(move |api| async move { Answer::Changed(api.discard(log).await) });
                }
                Command::Read { from } => self.start_reading(from),
                Command::Ask { snapshot, part, of } => {
                    let asked = ask_part(self.client.clone(), self.subjects.clone(), part, of);
                    self.spawn(move |_| async move { Answer::Part { snapshot, part, answer: asked.await } });
                }
                Command::Joined(incarnation) => {
                    tracing::info!(incarnation = incarnation.0, "joined the cluster");
                    self.refusals.joined();
                    let Self { client, subjects, node, requests, .. } = self;
                    let answering = Answering::begin(client, subjects, node, incarnation, requests);
                    self.answering_before = self.answering.replace(answering).map(Answering::without_state);
                }
                Command::Ended(ended) => self.bus.ended(&ended),
                Command::Refused { why, waits: true } => {
                    tracing::error!(%why, "the cluster doesn't let this node in");
                }
                Command::Refused { why, waits: false } => self.refuse(&why, "the cluster doesn't let this node in"),
                Command::Superseded => return Some(Over::Superseded),
                Command::Left => return Some(Over::Left),
            }
        }
        None
    }

    fn spawn<F: Future<Output = Answer> + Send + 'static>(&self, ask: impl FnOnce(Api) -> F) {
        let (asked, answers) = (ask(self.api.clone()), self.answers.clone());
        tokio::spawn(async move { _ = answers.send(asked.await).await });
    }

    fn start_reading(&mut self, from: u64) {
        self.stop_reading();
        let (api, read, generation) = (self.api.clone(), self.read.clone(), self.generation);
        let reading = tokio::spawn(async move {
            let each = |message| {
                let read = read.clone();
                async move { read.send((generation, Reading::Message(message))).await.is_ok() }
            };
            let over = api.read(from, each).await;
            _ = read.send((generation, Reading::Over(over))).await;
        });
        self.reader = Some(reading.abort_handle());
    }
}

/// What the machine's clock says, in µs.
fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Notices a bus that is silent, which its own connection would take a minute to show.
async fn hear_oneself(client: Client, bus: Bus, subject: String) {
    let Ok(mut echoes) = client.subscribe(subject.clone()).await else { return };
    let mut missed = 0;
    let mut beat = tokio::time::interval(ECHO);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            echo = echoes.next() => match echo {
                Some(_) => {
                    missed = 0;
                    if client.connection_state() == async_nats::connection::State::Connected {
                        bus.set_up(true);
                    }
                }
                None => return,
            },
            _ = beat.tick() => {
                // What was sent before a connection broke doesn't come any more.
                if client.connection_state() != async_nats::connection::State::Connected {
                    missed = 0;
                    continue;
                }
                if missed >= ECHOES_MISSED {
                    bus.set_up(false);
                }
                missed += 1;
                if missed == ECHOES_GIVEN_UP {
                    go_to_another(client.clone()).await;
                }
                _ = client.publish(subject.clone(), Bytes::new()).now_or_never();
            }
        }
    }
}

/// Leaves the server for another, if there is one.
async fn go_to_another(client: Client) {
    if client.server_info().connect_urls.len() > 1 {
        _ = client.force_reconnect().await;
    }
}

/// A part of the state of a node that has it, in pieces.
async fn ask_part(
    client: Client,
    subjects: Subjects,
    part: u8,
    of: Option<Incarnation>,
) -> Option<(Incarnation, Vec<u8>)> {
    let inbox = client.new_inbox();
    let mut pieces = client.subscribe(inbox.clone()).await.ok()?;
    let subject = of.map_or_else(|| subjects.snap(), |of| subjects.snap_of(of));
    client.publish_with_reply(subject, inbox, vec![part].into()).await.ok()?;
    let mut whole = Vec::new();
    for next in 0_u16.. {
        let message = timeout(PART_TIMEOUT, pieces.next()).await.ok()??;
        if message.status.is_some() {
            return None;
        }
        let mut reader = Reader(&message.payload);
        let (told, index, count) = (reader.u64().ok()?, reader.u16().ok()?, reader.u16().ok()?);
        if index != next {
            return None;
        }
        whole.extend(reader.0);
        if index + 1 == count {
            return Some((Incarnation(told), whole));
        }
    }
    None
}
