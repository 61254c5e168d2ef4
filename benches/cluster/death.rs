//! A node with very many users is lost: when each of them is told offline, and how long others wait meanwhile.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use plex::proto::{
    IsOnlineRequest, OfflineReason, OnlineStatusEvent, OnlineStatusKind, OnlineStatusRequest, OnlineStatusResponse,
    PushRequest, PushStatus,
};
use tonic::Streaming;

use crate::{
    Broken,
    crowd::{self, Crowd},
    ground::{Ground, Node},
    ms, seconds,
    support::{
        self,
        devices::{Devices, Reader, Route, Speak, uid},
    },
    table,
};

/// How long is waited for those that are missing. Promised are five seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two calls of a kind.
const CALL_EVERY: Duration = Duration::from_millis(5);

/// The crowd says nothing any more.
pub(crate) async fn death(ground: &Ground, crowd: Crowd, users: u32, broken: &mut Broken) {
    let node = &ground.nodes[1];
    let _reads = Reader::start(Route::plain(node.device), 1, Speak::Plex);
    // Its own login isn't told to the subscriber any more.
    ground.all_know(u64::from(users) + 1).await;
    let stream = live(node).await;
    let calls = Calls::start(node.control);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = calls.stop();
    let calls = Calls::start(node.control);
    let silent = crowd.fall_silent();
    let lost = Lost::hear(stream, node, users).await;
    let meanwhile = calls.stop();

    let once = lost.told.iter().filter(|told| **told == 1).count();
    broken.unless(once == users as usize && lost.other.is_none() && lost.epochs.len() == 1, || {
        format!(
            "each of {users} users of a lost node is told offline once, with one epoch, and nothing else: {} aren't told, {} \
             more than once, {} epochs, {:?}",
            lost.told.iter().filter(|told| **told == 0).count(),
            lost.told.iter().filter(|told| **told > 1).count(),
            lost.epochs.len(),
            lost.other
        )
    });
    let after = |at: Option<Instant>| at.map_or_else(|| "never".to_owned(), |at| seconds(at - silent));
    table(
        &format!("A node with {users} users falls silent"),
        &["measured"],
        &[
            ("until the first is told offline", vec![after(lost.first)]),
            ("until the last is", vec![after(lost.last)]),
            ("told once, of all; epochs", vec![format!("{once} of {users}; {}", lost.epochs.len())]),
        ],
    );
    let row = |which: usize, share: f64| [&before, &meanwhile].map(|calls| ms(at(&calls[which], share))).to_vec();
    table(
        "Calls at the node that tells it",
        &["before", "meanwhile"],
        &[
            ("IsOnline p50", row(0, 0.5)),
            ("p99", row(0, 0.99)),
            ("max", row(0, 1.0)),
            ("Push to a device of its own p50", row(1, 0.5)),
            ("p99", row(1, 0.99)),
            ("max", row(1, 1.0)),
        ],
    );
}

/// Follows all changes from now on.
async fn live(node: &Node) -> Streaming<OnlineStatusResponse> {
    let request = OnlineStatusRequest { skip_snapshot: true, ..OnlineStatusRequest::default() };
    let mut stream = node.backend().await.online_status(request).await.expect("a stream").into_inner();
    loop {
        let response = stream.message().await.expect("it goes on").expect("it goes on");
        if response.events.iter().any(|event| event.kind() == OnlineStatusKind::Live) {
            return stream;
        }
    }
}

/// What a subscriber has heard.
struct Lost {
    /// How often, of each user.
    told: Vec<u8>,
    count: u32,
    epochs: BTreeSet<i64>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// The first that was told otherwise.
    other: Option<OnlineStatusEvent>,
}

impl Lost {
    /// Until all are told, or no more are waited for; and then up to the login of a device, behind which nothing is left.
    async fn hear(mut stream: Streaming<OnlineStatusResponse>, node: &Node, users: u32) -> Self {
        let mut lost = Self {
            told: vec![0; users as usize],
            count: 0,
            epochs: BTreeSet::new(),
            first: None,
            last: None,
            other: None,
        };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut last = Devices::default();
        let mut is_last = false;
        loop {
            if !is_last && (lost.count == users || tokio::time::Instant::now() >= deadline) {
                last.connect(&Route::plain(node.device), 1..2).await;
                is_last = true;
            }
            let response = tokio::select! {
                response = stream.message() => response.expect("it goes on").expect("it goes on"),
                () = tokio::time::sleep_until(deadline), if !is_last => continue,
            };
            let now = Instant::now();
            for event in &response.events {
                if event.uid == uid(1) {
                    return lost;
                }
                lost.take(event, now);
            }
        }
    }

    fn take(&mut self, event: &OnlineStatusEvent, now: Instant) {
        let lost = event.kind() == OnlineStatusKind::Change
            && !event.online
            && event.reason() == OfflineReason::NodeLost
            && event.node == crowd::NAME;
        let user = crowd::number_of(&event.uid).and_then(|number| self.told.get_mut(number as usize));
        let Some(told) = user.filter(|_| lost) else {
            self.other.get_or_insert_with(|| event.clone());
            return;
        };
        *told = told.saturating_add(1);
        self.count += u32::from(*told == 1);
        self.epochs.insert(event.epoch);
        self.first.get_or_insert(now);
        self.last = Some(now);
    }
}

/// IsOnline and Push, each every 5 ms, from a thread of their own.
struct Calls {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<[Vec<Duration>; 2]>,
}

impl Calls {
    fn start(control: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            support::runtime().block_on(async {
                let (ask, push) = (support::backend(control).await, support::backend(control).await);
                let asks = every(&stopped, async || {
                    let uids = vec![crowd::uid(0), uid(0)];
                    ask.clone().is_online(IsOnlineRequest { uids }).await.expect("an answer");
                });
                let pushes = every(&stopped, async || {
                    let request = PushRequest { uid: uid(0), uri: "/bench".into(), ..PushRequest::default() };
                    let outcome = push.clone().push(request).await.expect("an outcome").into_inner();
                    assert_eq!(outcome.status(), PushStatus::Sent, "its device is there");
                });
                let (asks, pushes) = tokio::join!(asks, pushes);
                [asks, pushes]
            })
        });
        Self { stop, thread }
    }

    /// How long each took, in order.
    fn stop(self) -> [Vec<Duration>; 2] {
        self.stop.store(true, Relaxed);
        let mut took = self.thread.join().expect("all calls are answered");
        took.iter_mut().for_each(|took| took.sort());
        took
    }
}

/// Calls one after the other. One that had to wait for the one before it took that time as well.
async fn every(stop: &AtomicBool, call: impl AsyncFn()) -> Vec<Duration> {
    let mut took = Vec::new();
    let mut due = Instant::now();
    while !stop.load(Relaxed) {
        due += CALL_EVERY;
        let waited = Instant::now() >= due;
        if !waited {
            tokio::time::sleep_until(due.into()).await;
        }
        let begun = if waited { due } else { Instant::now() };
        call().await;
        took.push(begun.elapsed());
    }
    took
}

fn at(took: &[Duration], share: f64) -> Duration {
    took[((took.len() - 1) as f64 * share) as usize]
}
