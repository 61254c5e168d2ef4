//! Many devices on one thread, each a socket and a few numbers: they log in, read, and count what came.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Poll, ready},
    thread::JoinHandle,
    time::Duration,
};

use futures_util::{StreamExt, stream};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    net::{TcpSocket, TcpStream, lookup_host},
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::{Instant, sleep_until},
};

use super::{
    load::Stamp,
    pace::Clock,
    report::{Window, latencies},
};
use crate::{
    cli::{Exit, Failure},
    frame::{self, ByteOrder},
};

/// Devices that log in at a time.
const LOGINS_MAX: usize = 200;

/// Devices to a source address of loopback: below the number of ephemeral ports (28,232).
const DEVICES_PER_SOURCE: u32 = 20_000;

/// Below the gateway's default time-out of 120 s, with room for one that is lost.
const HEARTBEAT: Duration = Duration::from_secs(50);

/// Numbers of pushes that a device remembers, to know one that comes twice.
const REMEMBERED: usize = 64;

/// What the devices need to know.
pub(super) struct FleetPlan {
    pub(super) address: String,
    pub(super) sources: Vec<IpAddr>,
    pub(super) prefix: String,
    pub(super) order: ByteOrder,
    /// Whether each push is answered.
    pub(super) acks: bool,
    pub(super) clock: Clock,
}

/// The devices, on a thread of their own.
pub(super) struct Fleet {
    orders: mpsc::UnboundedSender<Order>,
    connected: u32,
    came: Arc<AtomicU64>,
    thread: JoinHandle<Received>,
}

/// What the devices got.
pub(super) struct Received {
    /// Pushes, each counted once.
    pub(super) pushes: u64,
    pub(super) doubled: u64,
    /// Connections that ended before the run did.
    pub(super) ended: u64,
    /// From the time for which a push was meant to its arrival, in nanoseconds; those of the window.
    pub(super) latency: Histogram<u64>,
}

enum Order {
    Connect { first: u32, count: u32, bar: ProgressBar, done: oneshot::Sender<Result<(), String>> },
    Measure { begin: u64, end: u64 },
    Finish,
}

/// What the devices of the thread share.
struct Shared {
    plan: FleetPlan,
    came: Arc<AtomicU64>,
    received: RefCell<Received>,
    /// The window, in nanoseconds of the clock.
    window: RefCell<(u64, u64)>,
}

thread_local! {
    /// What all devices of the thread read into.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 64 << 10]);
}

impl Fleet {
    pub(super) fn start(plan: FleetPlan) -> Result<Self, Failure> {
        let (orders, inbox) = mpsc::unbounded_channel();
        let came = Arc::new(AtomicU64::new(0));
        let received = RefCell::new(Received { pushes: 0, doubled: 0, ended: 0, latency: latencies() });
        let counted = Arc::clone(&came);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Exit::No, format!("can't start: {error}")))?;
        let thread = std::thread::spawn(move || {
            let shared = Rc::new(Shared { plan, came: counted, received, window: RefCell::new((u64::MAX, 0)) });
            let local = LocalSet::new();
            local.block_on(&runtime, serve(Rc::clone(&shared), inbox));
            drop(local);
            let Some(shared) = Rc::into_inner(shared) else { unreachable!("its tasks have gone with their set") };
            shared.received.into_inner()
        });
        Ok(Self { orders, connected: 0, came, thread })
    }

    /// Connects more devices, until there are `count`.
    pub(super) async fn connect(&mut self, count: u32, bar: &ProgressBar) -> Result<(), Failure> {
        let (done, answer) = oneshot::channel();
        let (first, count) = (self.connected, count - self.connected);
        self.connected += count;
        let _ = self.orders.send(Order::Connect { first, count, bar: bar.clone(), done });
        let answer = answer.await.unwrap_or_else(|_| Err("the devices' thread ended".to_owned()));
        answer.map_err(|why| Failure::new(Exit::Unreachable, why))
    }

    /// Keeps the latencies of pushes that are meant for this window.
    pub(super) fn measure(&self, window: &Window) {
        let (begin, end) = (window.begin().as_nanos() as u64, window.end().as_nanos() as u64);
        let _ = self.orders.send(Order::Measure { begin, end });
    }

    /// Waits until `expected` pushes have come, or no more come for some time; closes the devices.
    pub(super) async fn finish(self, expected: u64, patience: Duration) -> Received {
        let (mut last, mut since) = (0, Instant::now());
        while self.came.load(Relaxed) < expected && since.elapsed() < patience {
            let now = self.came.load(Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let _ = self.orders.send(Order::Finish);
        let thread = self.thread;
        tokio::task::spawn_blocking(|| thread.join().expect("devices don't panic")).await.expect("it isn't cancelled")
    }
}

async fn serve(shared: Rc<Shared>, mut inbox: mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = inbox.recv().await {
        match order {
            Order::Connect { first, count, bar, done } => {
                let logins = stream::iter(first..first + count).map(|number| login(&shared, number));
                let mut logins = logins.buffer_unordered(LOGINS_MAX);
                let mut outcome = Ok(());
                while let Some(login) = logins.next().await {
                    match login {
                        Ok(stream) => {
                            tokio::task::spawn_local(device(Rc::clone(&shared), stream));
                            bar.inc(1);
                        }
                        Err(why) => {
                            outcome = Err(why);
                            break;
                        }
                    }
                }
                let _ = done.send(outcome);
            }
            Order::Measure { begin, end } => *shared.window.borrow_mut() = (begin, end),
            Order::Finish => return,
        }
    }
}

/// The uid of a device.
pub(super) fn uid(prefix: &str, number: u32) -> String {
    format!("{prefix}{number:06}")
}

async fn login(shared: &Shared, number: u32) -> Result<TcpStream, String> {
    let FleetPlan { address, prefix, order, .. } = &shared.plan;
    let failure = |error: io::Error| format!("device {number} of {address}: {error}");
    let to = lookup_host(address).await.map_err(failure)?.next().ok_or_else(|| format!("{address}: no such host"))?;
    let mut stream = dial(to, source(&shared.plan.sources, to, number)).await.map_err(failure)?;
    let credential = uid(prefix, number);
    let mut frame = Vec::new();
    frame::encode(*order, 0, "/auth/server", &credential, &mut frame);
    stream.write_all(&frame).await.map_err(failure)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.map_err(failure)?;
    let length = match order {
        ByteOrder::Big => u32::from_be_bytes(length),
        ByteOrder::Little => u32::from_le_bytes(length),
    };
    let mut answer = vec![0; (length as usize).min(4 << 10)];
    stream.read_exact(&mut answer).await.map_err(failure)?;
    match frame::parse(&answer) {
        Ok(Some(message)) if message.uri == "/auth/success" => Ok(stream),
        _ => Err(format!("device {number} of {address}: {credential} isn't let in")),
    }
}

/// Where a device connects from; none: the system chooses.
pub(super) fn source(sources: &[IpAddr], to: SocketAddr, number: u32) -> Option<IpAddr> {
    if !sources.is_empty() {
        return Some(sources[number as usize % sources.len()]);
    }
    let place = number / DEVICES_PER_SOURCE;
    let is_loopback = matches!(to.ip(), IpAddr::V4(ip) if ip.is_loopback());
    (is_loopback && place > 0).then(|| Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + place).into())
}

pub(super) async fn dial(to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One device, to its end.
async fn device(shared: Rc<Shared>, mut stream: TcpStream) {
    let mut heard = Heard::default();
    let mut answers = Vec::new();
    let mut beat = Instant::now() + HEARTBEAT;
    loop {
        let read = tokio::select! {
            read = poll_fn(|cx| {
                BUFFER.with_borrow_mut(|buffer| {
                    let mut buffer = ReadBuf::new(buffer);
                    ready!(Pin::new(&mut stream).poll_read(cx, &mut buffer))?;
                    heard.take(buffer.filled(), &shared, &mut answers);
                    Poll::Ready(io::Result::Ok(buffer.filled().len()))
                })
            }) => read,
            () = sleep_until(beat) => {
                beat += HEARTBEAT;
                frame::encode(shared.plan.order, 0, "/heartbeat", "", &mut answers);
                Ok(1)
            }
        };
        let open = read.is_ok_and(|bytes| bytes > 0);
        if !open || (!answers.is_empty() && stream.write_all(&answers).await.is_err()) {
            shared.received.borrow_mut().ended += 1;
            return;
        }
        answers.clear();
    }
}

/// What one device has heard.
#[derive(Default)]
struct Heard {
    /// A part of a frame.
    rest: Vec<u8>,
    last: u64,
    recent: VecDeque<u64>,
}

impl Heard {
    /// Takes bytes as they come; what is to be answered goes to `answers`.
    fn take(&mut self, bytes: &[u8], shared: &Shared, answers: &mut Vec<u8>) {
        if self.rest.is_empty() {
            let handled = self.frames(bytes, shared, answers);
            self.rest.extend_from_slice(&bytes[handled..]);
        } else {
            let mut all = std::mem::take(&mut self.rest);
            all.extend_from_slice(bytes);
            let handled = self.frames(&all, shared, answers);
            all.drain(..handled);
            self.rest = all;
        }
    }

    /// Goes through whole frames; gives how many bytes they took.
    fn frames(&mut self, bytes: &[u8], shared: &Shared, answers: &mut Vec<u8>) -> usize {
        let mut handled = 0;
        while let Ok(Some(message)) = frame::split(shared.plan.order, u32::MAX as usize, &bytes[handled..]) {
            // An empty frame has no message behind its length.
            let (begin, end) = (handled + message.start, handled + message.end.max(4));
            self.message(&bytes[begin.min(end)..end], shared, answers);
            handled = end;
        }
        handled
    }

    fn message(&mut self, message: &[u8], shared: &Shared, answers: &mut Vec<u8>) {
        // Answers to heartbeats, and pushes of others, have no stamp.
        let Some(stamp) = Stamp::find(message) else { return };
        let mut received = shared.received.borrow_mut();
        if stamp.number < self.last && self.recent.contains(&stamp.number) || stamp.number == self.last {
            received.doubled += 1;
            return;
        }
        self.last = self.last.max(stamp.number);
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(stamp.number);
        received.pushes += 1;
        shared.came.fetch_add(1, Relaxed);
        let (begin, end) = *shared.window.borrow();
        if (begin..end).contains(&stamp.meant) {
            let latency = shared.plan.clock.nanos().saturating_sub(stamp.meant);
            received.latency.saturating_record(latency);
        }
        if shared.plan.acks
            && let Ok(Some(push)) = frame::parse(message)
        {
            frame::encode(shared.plan.order, push.seq, "/plex/ack", "", answers);
        }
    }
}
