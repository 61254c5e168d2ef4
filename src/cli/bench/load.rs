//! Pushes, in every way that a backend can.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream, stream::FuturesUnordered};
use hdrhistogram::Histogram;
use tokio::sync::{Notify, mpsc};

use super::{
    BenchArgs, Mode,
    pace::{Clock, Pace},
    report::{Window, latencies},
    roster::Roster,
};
use crate::{
    cli::Failure,
    client::{CallError, Control},
    proto::{PushManyRequest, PushRequest, PushResponse, PushStatus, PushStreamRequest},
};

/// What pushes are called.
const URI: &str = "/bench";

/// Pushes of a stream without a result, at full load: enough that the gateway never waits, and below its window.
const WINDOW: u64 = 8_000;

/// How long a device may take for its answer.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// What a body begins with: the push's number for its device, the node that was asked, and the time for which it was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// From 1 on; grows. Below 2^56.
    pub(super) number: u64,
    /// The place of the node that was asked to push it.
    pub(super) node: u8,
    /// In nanoseconds of the run's clock.
    pub(super) meant: u64,
}

impl Stamp {
    /// As many nodes as it can tell.
    pub(super) const NODES_MAX: usize = 256;
    /// Its length in a body: the numbers in hexadecimal behind a mark.
    pub(super) const BYTES: usize = Self::MARK.len() + 32;
    const MARK: &'static str = "plex";

    fn body(self, length: usize) -> String {
        let mut body = format!("{}{:014x}{:02x}{:016x}", Self::MARK, self.number, self.node, self.meant);
        body.extend(std::iter::repeat_n('x', length.saturating_sub(Self::BYTES)));
        body
    }

    /// The stamp of a message as it came, without reading the rest of it.
    pub(super) fn find(message: &[u8]) -> Option<Self> {
        const BEFORE: &[u8] = br#""body":"plex"#;
        let at = message.windows(BEFORE.len()).position(|bytes| bytes == BEFORE)? + BEFORE.len();
        let hex = |range: Range<usize>| {
            let digits = std::str::from_utf8(message.get(range)?).ok()?;
            u64::from_str_radix(digits, 16).ok()
        };
        let node = hex(at + 14..at + 16)? as u8;
        Some(Self { number: hex(at..at + 14)?, node, meant: hex(at + 16..at + 32)? })
    }
}

/// How large things are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    body: usize,
    batch: u32,
    in_flight: usize,
}

impl Sizes {
    pub(super) fn of(args: &BenchArgs) -> Self {
        // Broadcasts that are made at the same time end at the same time, and late.
        let in_flight = args.in_flight.unwrap_or(if args.mode == Mode::Broadcast { 2 } else { 64 });
        Self { body: args.body as usize, batch: args.batch, in_flight: in_flight as usize }
    }
}

/// What became of the pushes.
#[derive(Debug)]
pub(super) struct Counts {
    statuses: [AtomicU64; STATUSES],
    /// Of `ack`: from the meant time to the result, in nanoseconds; those of the window.
    replies: Mutex<Histogram<u64>>,
}

/// One more than the last status that this program knows.
const STATUSES: usize = PushStatus::Unknown as usize + 1;

impl Counts {
    fn add(&self, status: PushStatus, count: u64) {
        self.statuses[status as usize].fetch_add(count, Relaxed);
    }

    /// How many pushes had this outcome.
    pub(super) fn of(&self, status: PushStatus) -> u64 {
        self.statuses[status as usize].load(Relaxed)
    }

    /// Pushes that were handed to a device.
    pub(super) fn delivered(&self) -> u64 {
        let taken = [
            PushStatus::Sent,
            PushStatus::Acked,
            PushStatus::Nacked,
            PushStatus::AckTimeout,
            PushStatus::ConnectionLost,
        ];
        taken.into_iter().map(|status| self.of(status)).sum()
    }

    /// The outcomes that there were, by their names.
    pub(super) fn named(&self) -> BTreeMap<String, u64> {
        let statuses = (0..).map_while(|number| PushStatus::try_from(number).ok());
        let named = |status: PushStatus| {
            let name = status.as_str_name();
            (name.strip_prefix("PUSH_STATUS_").unwrap_or(name).to_owned(), self.of(status))
        };
        statuses.map(named).filter(|(_, count)| *count > 0).collect()
    }

    /// The latencies of answers.
    pub(super) fn replies(&self) -> Histogram<u64> {
        self.replies.lock().expect("nobody panics while holding it").clone()
    }
}

/// The pushing side.
pub(super) struct Load {
    nodes: Vec<Node>,
    roster: Arc<Roster>,
    devices: u32,
    mode: Mode,
    clock: Clock,
    sizes: Sizes,
    counts: Counts,
}

/// A node that is asked to push, and its place for stamps.
pub(super) struct Node {
    pub(super) control: Control,
    pub(super) place: u8,
}

impl Load {
    pub(super) fn new(nodes: Vec<Node>, roster: Arc<Roster>, clock: Clock, args: &BenchArgs) -> Self {
        let counts = Counts { statuses: Default::default(), replies: Mutex::new(latencies()) };
        Self { nodes, roster, devices: args.devices, mode: args.mode, clock, sizes: Sizes::of(args), counts }
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Pushes that are made at a time.
    pub(super) fn step(&self) -> u32 {
        match self.mode {
            Mode::Many => self.sizes.batch.min(self.devices),
            Mode::Broadcast => self.devices,
            _ => 1,
        }
    }

    /// Pushes as `pace` tells, to its end, and waits for all results.
    pub(super) async fn run(&self, pace: Pace, window: &Window) -> Result<(), Failure> {
        match self.mode {
            Mode::Stream => self.streams(pace, 1, None, window).await,
            Mode::Batch => self.streams(pace, self.sizes.batch as usize, None, window).await,
            Mode::Ack => self.streams(pace, self.sizes.batch as usize, Some(ACK_TIMEOUT), window).await,
            Mode::Unary | Mode::Many | Mode::Broadcast => self.calls(pace).await,
            Mode::Presence => Ok(()),
        }
    }

    /// Which node is asked for what begins at this place in the run, `step` pushes at a time. Nodes take turns, and begin
    /// each round of all devices with another, or each device would always be pushed to by the same.
    fn node(&self, place: u64, step: u64) -> usize {
        let devices = u64::from(self.devices);
        let round = if step < devices { place / devices } else { 0 };
        ((place / step + round) % self.nodes.len() as u64) as usize
    }

    /// The push of this place in the run: devices take turns.
    fn push(&self, place: u64, meant: u64, node: &Node) -> PushRequest {
        let (number, device) = (1 + place / u64::from(self.devices), (place % u64::from(self.devices)) as u32);
        PushRequest {
            uid: self.roster.uid(device),
            uri: URI.to_owned(),
            body: Stamp { number, node: node.place, meant }.body(self.sizes.body),
            // What tells, with its result, when it was meant.
            id: meant,
            ..PushRequest::default()
        }
    }

    /// One PushStream to each node, up to `batch` pushes to a message.
    async fn streams(
        &self,
        mut pace: Pace,
        batch: usize,
        ack_timeout: Option<Duration>,
        window: &Window,
    ) -> Result<(), Failure> {
        let ack_timeout = ack_timeout.map(|wait| wait.try_into().expect("half a minute"));
        let (mut streams, mut results) = (Vec::new(), Vec::new());
        for node in &self.nodes {
            let (requests, receiver) = mpsc::channel(64);
            let requests_stream =
                stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|next| (next, receiver)) });
            let answer = node.control.raw().push_stream(requests_stream).await.map_err(CallError::from)?;
            results.push(answer.into_inner());
            streams.push(requests);
        }
        let mut results = stream::select_all(results);
        let (answered, room) = (AtomicU64::new(0), Notify::new());
        let write = async {
            let (streams, mut place) = (streams, 0);
            loop {
                let node = self.node(place, batch as u64);
                let push = |place, meant| PushRequest { ack_timeout, ..self.push(place, meant, &self.nodes[node]) };
                // Made before its time, so that making it isn't told as latency.
                let ready = pace.coming().map(|meant| push(place, meant));
                let Some(first) = pace.next().await else { return };
                let mut pushes = Vec::with_capacity(batch);
                pushes.push(ready.unwrap_or_else(|| push(place, first)));
                place += 1;
                while pushes.len() < batch
                    && let Some(meant) = pace.next_due()
                {
                    pushes.push(push(place, meant));
                    place += 1;
                }
                if streams[node].send(PushStreamRequest { pushes }).await.is_err() {
                    // The stream has ended: its end tells why.
                    return;
                }
                while pace.is_full() && place - answered.load(Relaxed) > WINDOW {
                    room.notified().await;
                }
            }
        };
        let read = async {
            while let Some(batch) = results.next().await {
                let batch = batch?;
                for result in &batch.results {
                    self.note(result, ack_timeout.is_some().then_some(window));
                }
                answered.fetch_add(batch.results.len() as u64, Relaxed);
                room.notify_one();
            }
            Ok::<_, CallError>(())
        };
        let (read, ()) = tokio::join!(
            async {
                let read = read.await;
                // A stream that broke gives no more room.
                answered.store(u64::MAX / 2, Relaxed);
                room.notify_one();
                read
            },
            write
        );
        Ok(read?)
    }

    fn note(&self, result: &PushResponse, window: Option<&Window>) {
        let status = PushStatus::try_from(result.status).unwrap_or(PushStatus::Unknown);
        self.counts.add(status, 1);
        if let Some(window) = window
            && window.holds(result.id)
        {
            let latency = self.clock.nanos().saturating_sub(result.id);
            self.counts.replies.lock().expect("nobody panics while holding it").saturating_record(latency);
        }
    }

    /// Calls, some at a time.
    async fn calls(&self, mut pace: Pace) -> Result<(), Failure> {
        let (mut under_way, mut place) = (FuturesUnordered::new(), 0);
        loop {
            if under_way.len() >= self.sizes.in_flight {
                under_way.next().await.expect("some are under way")?;
                continue;
            }
            tokio::select! {
                biased;
                Some(done) = under_way.next() => done?,
                due = pace.next() => match due {
                    Some(meant) => {
                        under_way.push(self.call(place, meant));
                        place += u64::from(self.step());
                    }
                    None => break,
                },
            }
        }
        while let Some(done) = under_way.next().await {
            done?;
        }
        Ok(())
    }

    async fn call(&self, place: u64, meant: u64) -> Result<(), CallError> {
        let step = u64::from(self.step());
        let node = &self.nodes[self.node(place, step)];
        // One body for all of a call: its number is the call's, which grows for each of its devices too.
        let body = || Stamp { number: 1 + place / step, node: node.place, meant }.body(self.sizes.body);
        match self.mode {
            Mode::Many => {
                let uids = place..place + step;
                let request = PushManyRequest {
                    uids: uids.map(|place| self.roster.uid((place % u64::from(self.devices)) as u32)).collect(),
                    uri: URI.to_owned(),
                    body: body(),
                };
                let results = node.control.raw().push_many(request).await?.into_inner().results;
                results.iter().for_each(|result| self.note(result, None));
            }
            Mode::Broadcast => {
                let told = node.control.broadcast(URI, &body()).await?;
                self.counts.add(PushStatus::Sent, told.sent);
                self.counts.add(PushStatus::QueueFull, told.queue_full);
            }
            _ => {
                let result = node.control.raw().push(self.push(place, meant, node)).await?.into_inner();
                self.note(&result, None);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_found_in_the_frame_that_carries_it() {
        let stamp = Stamp { number: 7, node: 255, meant: u64::MAX };
        let body = stamp.body(64);
        assert_eq!(body.len(), 64);
        let message = format!(r#"{{"seq":1,"uri":"/bench","body":"{body}"}}"#);
        assert_eq!(Stamp::find(message.as_bytes()), Some(stamp));
        for other in
            ["", r#"{"uri":"/heartbeat"}"#, r#"{"body":"plex"}"#, r#"{"body":"plexzzzzzzzzzzzzzzzz0000000000000000"}"#]
        {
            assert_eq!(Stamp::find(other.as_bytes()), None, "{other}");
        }
    }
}
