//! A crowd: a node of the log that holds hundreds of thousands of users and no sockets. It writes the bytes that the log's
//! format asks for with an encoder of its own, so that gateways read what another program has written. Tests have it too.

use std::{
    collections::VecDeque,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

/// What the crowd's node is called.
pub(crate) const NAME: &str = "crowd";

const LOG: &str = "plex.plex.log";
const INBOX: &str = "plex.plex.inbox.crowd";

/// The most records of a message, and messages that the log hasn't taken yet.
const RECORDS_MAX: usize = 1_023;
const WINDOW: u64 = 4;
/// For how long changes are gathered, and how often it says that it is there: as gateways by default.
const GATHER: Duration = Duration::from_millis(5);
const HEARTBEAT: Duration = Duration::from_millis(500);

/// One of its users: 21 bytes.
pub(crate) fn uid(number: u32) -> String {
    format!("{NAME}-{number:015}")
}

/// Which of its users that is.
pub(crate) fn number_of(uid: &str) -> Option<u32> {
    uid.strip_prefix(NAME)?.strip_prefix('-')?.parse().ok()
}

/// The crowd, at work on a thread of its own.
pub(crate) struct Crowd {
    orders: mpsc::UnboundedSender<(Order, oneshot::Sender<u64>)>,
    thread: JoinHandle<Instant>,
}

enum Order {
    /// To hold the users up to that one.
    Claim(u32),
    /// So many changes a second: one goes and is back at once, two changes.
    Change(u32),
    /// To hold this one besides.
    Mark(String),
}

impl Crowd {
    /// Joins the log of the server at `url`, which has to be there.
    pub(crate) async fn join(url: &str) -> Self {
        let (orders, taken) = mpsc::unbounded_channel();
        let (joined, join) = oneshot::channel();
        let url = url.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let writer = Writer::join(&url).await;
                joined.send(()).expect("somebody waits");
                writer.run(taken).await
            })
        });
        join.await.expect("it joins");
        Self { orders, thread }
    }

    /// Claims users as fast as the log takes them, until there are so many; they are in the log when this resolves.
    pub(crate) async fn claim(&self, users: u32) {
        self.order(Order::Claim(users)).await;
    }

    /// From now on so many changes a second; 0: none, and all there were are in the log when this resolves. Gives how many
    /// changes there were since it joined.
    pub(crate) async fn change(&self, per_second: u32) -> u64 {
        self.order(Order::Change(per_second)).await
    }

    /// Claims one more, behind what it has said; it is in the log when this resolves.
    pub(crate) async fn mark(&self, uid: &str) {
        self.order(Order::Mark(uid.to_owned())).await;
    }

    async fn order(&self, order: Order) -> u64 {
        let (done, is_done) = oneshot::channel();
        self.orders.send((order, done)).expect("it runs");
        is_done.await.expect("it runs")
    }

    /// Says nothing any more; gives when its last word was.
    pub(crate) fn fall_silent(self) -> Instant {
        drop(self.orders);
        self.thread.join().expect("it doesn't panic")
    }
}

struct Writer {
    client: Client,
    acks: Subscriber,
    incarnation: u64,
    began: Instant,
    /// Of the next message, and how many the log has taken.
    next: u64,
    taken: u64,
    last_sent: Instant,
    last_beat: Instant,
    /// The number of each user's connection, and the last that was given.
    held: Vec<u32>,
    last_number: u32,
    wanted: usize,
    claimed: Option<oneshot::Sender<u64>>,
    pace: Pace,
    marks: VecDeque<(String, oneshot::Sender<u64>)>,
    /// Who is told when the log has so many messages.
    waiting: VecDeque<(u64, oneshot::Sender<u64>)>,
}

/// Changes at a steady rate.
struct Pace {
    per_second: u32,
    since: Instant,
    pairs: u64,
    /// Whose turn it is.
    place: usize,
    /// Changes of former paces.
    before: u64,
}

impl Pace {
    /// How often somebody has yet to go and come back.
    fn due(&self) -> usize {
        let pairs = self.since.elapsed().as_secs_f64() * f64::from(self.per_second) / 2.0;
        (pairs as u64 - self.pairs.min(pairs as u64)) as usize
    }

    /// How many changes there were.
    fn changes(&self) -> u64 {
        self.before + 2 * self.pairs
    }

    fn set(&mut self, per_second: u32) {
        *self = Self { per_second, since: Instant::now(), pairs: 0, place: self.place, before: self.changes() };
    }
}

impl Writer {
    async fn join(url: &str) -> Self {
        let client = async_nats::ConnectOptions::new().name(NAME).connect(url).await.expect("the server listens");
        let mut acks = client.subscribe(INBOX).await.expect("it is connected");
        let mut join = vec![1, 1];
        join.extend(micros(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")).to_le_bytes());
        join.extend(0_u32.to_le_bytes());
        join.push(1);
        join.extend(1_u16.to_le_bytes());
        text(NAME, &mut join);
        text("0.0.0", &mut join);
        client.publish_with_reply(LOG, INBOX, join.into()).await.expect("it is connected");
        let incarnation = sequence(&acks.next().await.expect("an answer").payload);
        let now = Instant::now();
        Self {
            client,
            acks,
            incarnation,
            began: now,
            next: 0,
            taken: 0,
            last_sent: now,
            last_beat: now - HEARTBEAT,
            held: Vec::new(),
            last_number: 0,
            wanted: 0,
            claimed: None,
            pace: Pace { per_second: 0, since: now, pairs: 0, place: 0, before: 0 },
            marks: VecDeque::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Until nobody orders any more.
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<(Order, oneshot::Sender<u64>)>) -> Instant {
        loop {
            while self.next - self.taken < WINDOW {
                let Some(batch) = self.batch() else { break };
                self.client.publish_with_reply(LOG, INBOX, batch.into()).await.expect("it is connected");
                self.next += 1;
                self.last_sent = Instant::now();
            }
            let busy = self.waits() > 0 || self.pace.per_second > 0;
            let due = if busy { self.last_sent + GATHER } else { self.last_beat + HEARTBEAT };
            let has_room = self.next - self.taken < WINDOW;
            tokio::select! {
                order = orders.recv() => match order {
                    Some((order, done)) => self.take(order, done),
                    None => return self.last_sent,
                },
                Some(ack) = self.acks.next() => self.acknowledged(&ack.payload),
                () = tokio::time::sleep_until(due.into()), if has_room => {}
            }
        }
    }

    fn take(&mut self, order: Order, done: oneshot::Sender<u64>) {
        match order {
            Order::Claim(users) => {
                self.wanted = users as usize;
                self.claimed = Some(done);
            }
            Order::Mark(uid) => self.marks.push_back((uid, done)),
            Order::Change(per_second) => {
                self.pace.set(per_second);
                self.waiting.push_back((self.next, done));
                self.tell();
            }
        }
    }

    fn acknowledged(&mut self, payload: &[u8]) {
        sequence(payload);
        self.taken += 1;
        self.tell();
    }

    fn tell(&mut self) {
        while self.waiting.front().is_some_and(|(next, _)| *next <= self.taken) {
            let (_, done) = self.waiting.pop_front().expect("it was just seen");
            // Whoever gave up waiting doesn't need it.
            _ = done.send(self.pace.changes());
        }
    }

    fn waits(&self) -> usize {
        self.wanted - self.held.len().min(self.wanted) + self.marks.len() + 2 * self.pace.due()
    }

    /// The next message, where there is something to say.
    fn batch(&mut self) -> Option<Vec<u8>> {
        let now = Instant::now();
        let beats = now >= self.last_beat + HEARTBEAT;
        let waits = self.waits();
        let gathered = now >= self.last_sent + GATHER;
        if !(beats || waits >= RECORDS_MAX || waits > 0 && gathered) {
            return None;
        }
        let mut out = vec![1, 2];
        out.extend(self.incarnation.to_le_bytes());
        out.extend(self.next.to_le_bytes());
        out.extend(micros(now - self.began).to_le_bytes());
        let mut room = RECORDS_MAX;
        if beats {
            self.last_beat = now;
            card(self.held.len() as u32, &mut out);
            room -= 1;
        }
        while room > 0 && self.held.len() < self.wanted {
            self.last_number += 1;
            claim(&uid(self.held.len() as u32), self.last_number, &mut out);
            self.held.push(self.last_number);
            room -= 1;
        }
        for _ in 0..self.pace.due().min(room / 2) {
            let place = self.pace.place % self.held.len();
            let uid = uid(place as u32);
            release(&uid, self.held[place], &mut out);
            self.last_number += 1;
            claim(&uid, self.last_number, &mut out);
            self.held[place] = self.last_number;
            self.pace.place = place + 1;
            self.pace.pairs += 1;
            room -= 2;
        }
        let mut told = Vec::new();
        while room > 0
            && let Some((uid, done)) = self.marks.pop_front()
        {
            self.last_number += 1;
            claim(&uid, self.last_number, &mut out);
            told.push(done);
            room -= 1;
        }
        if self.held.len() >= self.wanted {
            told.extend(self.claimed.take());
        }
        self.waiting.extend(told.into_iter().map(|done| (self.next + 1, done)));
        Some(out)
    }
}

/// Where the log has taken a message.
fn sequence(payload: &[u8]) -> u64 {
    let ack: Value = serde_json::from_slice(payload).expect("JSON");
    ack["seq"].as_u64().unwrap_or_else(|| panic!("the log takes it: {ack}"))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("a time of our days")
}

fn text(text: &str, out: &mut Vec<u8>) {
    out.push(u8::try_from(text.len()).expect("it is short"));
    out.extend(text.as_bytes());
}

fn record(kind: u8, fields: &[&[u8]], uid: &str, out: &mut Vec<u8>) {
    let length = fields.iter().map(|field| field.len()).sum::<usize>() + 1 + uid.len();
    out.push(kind);
    out.extend(u16::try_from(length).expect("it is short").to_le_bytes());
    fields.iter().for_each(|field| out.extend(*field));
    text(uid, out);
}

fn claim(uid: &str, number: u32, out: &mut Vec<u8>) {
    let accepted = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64;
    record(1, &[&number.to_le_bytes(), &0_u32.to_le_bytes(), &accepted.to_le_bytes()], uid, out);
}

/// Closed by the device.
fn release(uid: &str, number: u32, out: &mut Vec<u8>) {
    record(2, &[&number.to_le_bytes(), &[1]], uid, out);
}

/// It is ready, and takes no devices.
fn card(connections: u32, out: &mut Vec<u8>) {
    out.push(4);
    out.extend(14_u16.to_le_bytes());
    out.push(1);
    for field in [connections, connections, 0] {
        out.extend(field.to_le_bytes());
    }
    out.push(0);
}
