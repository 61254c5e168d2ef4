//! Many devices on one thread, each a socket and a few numbers: they log in, read, and count what came.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io,
    ops::Range,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Poll, ready},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    sync::{mpsc, oneshot},
    task::LocalSet,
    time::{Instant, sleep},
};

use super::{
    load::Stamp,
    login::{LoggedIn, Logins},
    pace::{Clock, Pace},
    report::{Window, latencies},
};
use crate::{
    cli::{Exit, Failure},
    client::DeviceSocket,
    frame,
};

/// Devices that log in at a time, where no rate is told.
const LOGINS_MAX: usize = 200;

/// The same where one is: so many may be late before the next has to wait.
const LOGINS_OPEN_MAX: usize = 10_000;

/// Numbers of pushes that a device remembers, to know one that comes twice.
const REMEMBERED: usize = 64;

/// What the devices need to know.
pub(super) struct FleetPlan {
    pub(super) logins: Logins,
    /// The nodes that push, by name: their places are what stamps tell, of two of one name that of the first.
    pub(super) nodes: Vec<String>,
    /// Whether each push is answered.
    pub(super) acks: bool,
    pub(super) clock: Clock,
    /// When each device sent its credential, in nanoseconds of the clock; of those for which there is room.
    pub(super) sent: Arc<[AtomicU64]>,
}

/// The devices, all on one thread.
pub(super) struct Fleet {
    orders: mpsc::UnboundedSender<Order>,
    connected: u32,
    came: Arc<AtomicU64>,
    running: Running,
}

/// Where they live.
enum Running {
    /// On a thread of their own.
    Thread(std::thread::JoinHandle<Received>),
    /// On that which pushes.
    Task(tokio::task::JoinHandle<Received>),
}

/// What the devices got.
pub(super) struct Received {
    /// Pushes, each counted once.
    pub(super) pushes: u64,
    pub(super) doubled: u64,
    /// Connections that ended before the run did.
    pub(super) ended: u64,
    /// From the time for which a push was meant to its arrival, in nanoseconds; those of the window. Of pushes that were
    /// made at the device's own node.
    pub(super) local: Histogram<u64>,
    /// The same of those that another node was asked for.
    pub(super) forwarded: Histogram<u64>,
    /// From the time for which a login was meant to its success.
    pub(super) logins: Histogram<u64>,
}

enum Order {
    Connect { numbers: Range<u32>, pace: Option<Pace>, bar: ProgressBar, done: oneshot::Sender<Result<(), Failure>> },
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
        let received = RefCell::new(Received {
            pushes: 0,
            doubled: 0,
            ended: 0,
            local: latencies(),
            forwarded: latencies(),
            logins: latencies(),
        });
        let counted = Arc::clone(&came);
        let running = if own_thread() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Failure::new(Exit::No, format!("can't start: {error}")))?;
            Running::Thread(std::thread::spawn(move || runtime.block_on(live(plan, counted, received, inbox))))
        } else {
            Running::Task(tokio::task::spawn_local(live(plan, counted, received, inbox)))
        };
        Ok(Self { orders, connected: 0, came, running })
    }

    /// Connects more devices, until there are `count`: at this pace, else as fast as they get in.
    pub(super) async fn connect(&mut self, count: u32, pace: Option<Pace>, bar: &ProgressBar) -> Result<(), Failure> {
        let (done, answer) = oneshot::channel();
        let numbers = self.connected..count;
        self.connected = count;
        let _ = self.orders.send(Order::Connect { numbers, pace, bar: bar.clone(), done });
        answer.await.unwrap_or_else(|_| Err(Failure::new(Exit::No, "the devices' thread ended")))
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
        let received = match self.running {
            Running::Task(task) => task.await,
            Running::Thread(thread) => {
                tokio::task::spawn_blocking(|| thread.join().expect("devices don't panic")).await
            }
        };
        received.expect("it isn't cancelled")
    }
}

/// Whether there are cores enough for devices and pushes beside a gateway that has as many. On fewer they would take
/// turns, and their waiting would be told as the gateway's latency.
fn own_thread() -> bool {
    std::thread::available_parallelism().is_ok_and(|cores| cores.get() >= 4)
}

/// All of them, to the end of the run.
async fn live(
    plan: FleetPlan,
    came: Arc<AtomicU64>,
    received: RefCell<Received>,
    inbox: mpsc::UnboundedReceiver<Order>,
) -> Received {
    let shared = Rc::new(Shared { plan, came, received, window: RefCell::new((u64::MAX, 0)) });
    let local = LocalSet::new();
    local.run_until(serve(Rc::clone(&shared), inbox)).await;
    drop(local);
    let Some(shared) = Rc::into_inner(shared) else { unreachable!("its tasks have gone with their set") };
    shared.received.into_inner()
}

async fn serve(shared: Rc<Shared>, mut inbox: mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = inbox.recv().await {
        match order {
            Order::Connect { numbers, pace, bar, done } => {
                let _ = done.send(connect(&shared, numbers, pace, &bar).await);
            }
            Order::Measure { begin, end } => *shared.window.borrow_mut() = (begin, end),
            Order::Finish => return,
        }
    }
}

/// Logs devices in, at this pace or one for each that got in; those that got in live on their own.
async fn connect(
    shared: &Rc<Shared>,
    numbers: Range<u32>,
    pace: Option<Pace>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let at_a_time = if pace.is_some() { LOGINS_OPEN_MAX } else { LOGINS_MAX };
    let due = stream::unfold((numbers, pace), |(mut numbers, mut pace)| async {
        let number = numbers.next()?;
        let meant = match &mut pace {
            Some(pace) => pace.next().await?,
            None => shared.plan.clock.nanos(),
        };
        Some(((number, meant), (numbers, pace)))
    });
    let logins = due.map(|(number, meant)| login(shared, number, meant));
    let mut logins = std::pin::pin!(logins.buffer_unordered(at_a_time));
    while let Some(logged_in) = logins.next().await {
        tokio::task::spawn_local(device(Rc::clone(shared), logged_in?));
        bar.inc(1);
    }
    Ok(())
}

async fn login(shared: &Shared, number: u32, meant: u64) -> Result<LoggedIn, Failure> {
    let FleetPlan { logins, clock, sent, .. } = &shared.plan;
    let dialled = logins.dial(number).await?;
    if let Some(sent) = sent.get(number as usize) {
        sent.store(clock.nanos(), Relaxed);
    }
    let logged_in = logins.authenticate(number, dialled).await?;
    shared.received.borrow_mut().logins.saturating_record(clock.nanos().saturating_sub(meant));
    Ok(logged_in)
}

/// One device, to its end.
async fn device(shared: Rc<Shared>, logged_in: LoggedIn) {
    let LoggedIn { mut stream, node, heartbeat } = logged_in;
    let order = shared.plan.logins.order();
    let mut heard = Heard { home: Home::of(&node, &shared.plan.nodes), ..Heard::default() };
    let mut answers = Vec::new();
    let mut beat = Box::pin(sleep(heartbeat));
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
            () = &mut beat => {
                beat.as_mut().reset(Instant::now() + heartbeat);
                frame::encode(order, 0, "/heartbeat", "", &mut answers);
                Ok(1)
            }
        };
        let open = read.is_ok_and(|bytes| bytes > 0);
        if !open || (!answers.is_empty() && write(&mut stream, &answers).await.is_err()) {
            shared.received.borrow_mut().ended += 1;
            return;
        }
        answers.clear();
    }
}

async fn write(stream: &mut DeviceSocket, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// Where a device is, among the nodes that push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Home {
    /// Its gateway tells no name.
    #[default]
    Unknown,
    /// At the node of this place.
    At(u8),
    /// At none of them.
    Elsewhere,
}

impl Home {
    fn of(node: &str, nodes: &[String]) -> Self {
        if node.is_empty() {
            return Self::Unknown;
        }
        let place = nodes.iter().position(|named| named == node).and_then(|place| u8::try_from(place).ok());
        place.map_or(Self::Elsewhere, Self::At)
    }
}

/// What one device has heard.
#[derive(Default)]
struct Heard {
    home: Home,
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
        while let Ok(Some(message)) = frame::split(shared.plan.logins.order(), u32::MAX as usize, &bytes[handled..]) {
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
            let is_local = self.home == Home::Unknown || self.home == Home::At(stamp.node);
            let latencies = if is_local { &mut received.local } else { &mut received.forwarded };
            latencies.saturating_record(latency);
        }
        if shared.plan.acks
            && let Ok(Some(push)) = frame::parse(message)
        {
            frame::encode(shared.plan.logins.order(), push.seq, "/plex/ack", "", answers);
        }
    }
}
