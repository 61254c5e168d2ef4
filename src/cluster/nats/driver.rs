//! Carries out what the [`Member`] decides: writes, reads and asks, and tells it what came of that.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Client, Event};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
    time::{sleep_until, timeout},
};

use super::{
    Over, Subjects,
    answering::Answering,
    api::{Api, Failed, Read},
    bus::Bus,
    refusals::Refusals,
    unix_micros,
};
use crate::cluster::{
    bus::Inbound,
    fold::Incarnation,
    member::{Bounds, Command, Member, Micros},
    node::Node,
    outgoing::Outgoing,
    wire::Reader,
};

/// How often a node hears itself over the bus, and how many times it may miss that.
const ECHO: Duration = Duration::from_millis(500);
const ECHOES_MISSED: u32 = 3;
/// After so many another server is looked for: this one stands still.
const ECHOES_GIVEN_UP: u32 = 6;
/// How much is folded before the time is looked at.
const FOLD_SLICE: usize = 256;
/// How long a part of a snapshot may take.
const PART_TIMEOUT: Duration = Duration::from_secs(2);

/// A node's part in the log, which has yet to begin.
pub(crate) struct Joining {
    pub(super) driver: Driver,
    pub(super) link: mpsc::Receiver<Event>,
    pub(super) answered: mpsc::Receiver<Answer>,
    pub(super) reads: mpsc::Receiver<(u64, Reading)>,
    pub(super) left: Arc<Notify>,
}

/// What comes of reading the log.
pub(super) enum Reading {
    Message(Read),
    /// There is a gap, nothing comes any more, or it can't be read.
    Over(Result<(), Failed>),
}

/// What was asked of the engine, and came.
pub(super) enum Answer {
    Bounds(u64, Result<Option<Bounds>, Failed>),
    Changed(Result<(), Failed>),
    Part { snapshot: u64, part: u8, answer: Option<(Incarnation, Vec<u8>)> },
}

pub(super) struct Driver {
    pub(super) client: Client,
    pub(super) subjects: Subjects,
    pub(super) api: Api,
    pub(super) bus: Bus,
    pub(super) node: Arc<Node>,
    pub(super) member: Member,
    pub(super) outgoing: Arc<Outgoing>,
    pub(super) requests: mpsc::Sender<Inbound>,
    pub(super) began: Instant,
    pub(super) answers: mpsc::Sender<Answer>,
    pub(super) read: mpsc::Sender<(u64, Reading)>,
    pub(super) reader: Option<AbortHandle>,
    /// Which reading is the latest: what others read is void.
    pub(super) generation: u64,
    pub(super) answering: Option<Answering>,
    /// Of the life before: others may ask that until they have read of the new one.
    pub(super) answering_before: Option<Answering>,
    pub(super) on_sequence: Box<dyn Fn(u64) + Send>,
    /// The longest message that a server has to take.
    pub(super) payload_needed: usize,
    pub(super) refusals: Refusals,
    /// Why this node ends by itself.
    pub(super) over: Option<Over>,
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
