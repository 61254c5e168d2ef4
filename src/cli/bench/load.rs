//! Pushes, in every way that a backend can.

use std::{
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream, stream::FuturesUnordered};
use hdrhistogram::Histogram;
use tokio::sync::{Notify, mpsc};

use super::{
    BenchArgs, Mode, devices,
    pace::Clock,
    pace::Pace,
    report::{Window, latencies},
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

/// What a body begins with: the push's number for its device, and the time for which it was meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// From 1 on; grows.
    pub(super) number: u64,
    /// In nanoseconds of the run's clock.
    pub(super) meant: u64,
}

impl Stamp {
    /// Its length in a body: two numbers in hexadecimal behind a mark.
    pub(super) const BYTES: usize = Self::MARK.len() + 32;
    const MARK: &'static str = "plex";

    fn body(self, length: usize) -> String {
        let mut body = format!("{}{:016x}{:016x}", Self::MARK, self.number, self.meant);
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
        Some(Self { number: hex(at..at + 16)?, meant: hex(at + 16..at + 32)? })
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
        Self { body: args.body as usize, batch: args.batch, in_flight: args.in_flight as usize }
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

    /// The latencies of answers.
    pub(super) fn replies(&self) -> Histogram<u64> {
        self.replies.lock().expect("nobody panics while holding it").clone()
    }
}

/// The pushing side.
pub(super) struct Load {
    control: Control,
    prefix: String,
    devices: u32,
    mode: Mode,
    clock: Clock,
    sizes: Sizes,
    counts: Counts,
}

impl Load {
    pub(super) fn new(control: Control, prefix: String, devices: u32, mode: Mode, clock: Clock, sizes: Sizes) -> Self {
        let replies = Mutex::new(latencies());
        let counts = Counts { statuses: Default::default(), replies };
        Self { control, prefix, devices, mode, clock, sizes, counts }
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Pushes that are made at a time.
    pub(super) fn step(&self) -> u32 {
        match self.mode {
            Mode::Stream | Mode::Batch | Mode::Ack | Mode::Unary => 1,
            Mode::Many => self.sizes.batch.min(self.devices),
            Mode::Broadcast => self.devices,
        }
    }

    /// Pushes as `pace` tells, to its end, and waits for all results.
    pub(super) async fn run(&self, pace: Pace, window: &Window) -> Result<(), Failure> {
        match self.mode {
            Mode::Stream => self.stream(pace, 1, None, window).await,
            Mode::Batch => self.stream(pace, self.sizes.batch as usize, None, window).await,
            Mode::Ack => self.stream(pace, self.sizes.batch as usize, Some(ACK_TIMEOUT), window).await,
            Mode::Unary | Mode::Many | Mode::Broadcast => self.calls(pace).await,
        }
    }

    /// The push of this place in the run: devices take turns.
    fn push(&self, place: u64, meant: u64) -> PushRequest {
        let (number, device) = (1 + place / u64::from(self.devices), (place % u64::from(self.devices)) as u32);
        PushRequest {
            uid: devices::uid(&self.prefix, device),
            uri: URI.to_owned(),
            body: Stamp { number, meant }.body(self.sizes.body),
            // What tells, with its result, when it was meant.
            id: meant,
            ..PushRequest::default()
        }
    }

    /// One PushStream, up to `batch` pushes to a message.
    async fn stream(
        &self,
        mut pace: Pace,
        batch: usize,
        ack_timeout: Option<Duration>,
        window: &Window,
    ) -> Result<(), Failure> {
        let ack_timeout = ack_timeout.map(|wait| wait.try_into().expect("half a minute"));
        let (requests, receiver) = mpsc::channel(64);
        let requests_stream =
            stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|next| (next, receiver)) });
        let mut results = self.control.raw().push_stream(requests_stream).await.map_err(CallError::from)?.into_inner();
        let (answered, room) = (AtomicU64::new(0), Notify::new());
        let write = async {
            let (requests, mut place) = (requests, 0);
            while let Some(first) = pace.next().await {
                let mut pushes = Vec::with_capacity(batch);
                let mut due = Some(first);
                while let Some(meant) = due.take() {
                    pushes.push(PushRequest { ack_timeout, ..self.push(place, meant) });
                    place += 1;
                    if pushes.len() < batch {
                        due = pace.next_due();
                    }
                }
                if requests.send(PushStreamRequest { pushes }).await.is_err() {
                    // The stream has ended: its end tells why.
                    return;
                }
                while pace.is_full() && place - answered.load(Relaxed) > WINDOW {
                    room.notified().await;
                }
            }
        };
        let read = async {
            while let Some(batch) = results.message().await? {
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
        match self.mode {
            Mode::Many => {
                // One body for all: its number is the call's, which grows for each of its devices too.
                let number = 1 + place / u64::from(self.step());
                let device = |place: u64| devices::uid(&self.prefix, (place % u64::from(self.devices)) as u32);
                let request = PushManyRequest {
                    uids: (place..place + u64::from(self.step())).map(device).collect(),
                    uri: URI.to_owned(),
                    body: Stamp { number, meant }.body(self.sizes.body),
                };
                let results = self.control.raw().push_many(request).await?.into_inner().results;
                results.iter().for_each(|result| self.note(result, None));
            }
            Mode::Broadcast => {
                let number = 1 + place / u64::from(self.step());
                let told = self.control.broadcast(URI, &Stamp { number, meant }.body(self.sizes.body)).await?;
                self.counts.add(PushStatus::Sent, told.sent);
                self.counts.add(PushStatus::QueueFull, told.queue_full);
            }
            Mode::Unary | Mode::Stream | Mode::Batch | Mode::Ack => {
                let result = self.control.raw().push(self.push(place, meant)).await?.into_inner();
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
        let stamp = Stamp { number: 7, meant: u64::MAX };
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
