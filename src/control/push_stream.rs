//! PushStream: one task reads pushes and makes them, the response stream takes what is known of them.
//!
//! Results of pushes without `ack_timeout` come in order, the others when they are known. What is read but not
//! answered is bounded by `control.stream_window`: then the stream isn't read on.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use futures_util::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{FuturesOrdered, FuturesUnordered, Stream},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Status, Streaming};

use super::{
    BATCH_MAX, Control,
    call::{self, LAST_WORDS, StreamEnd},
    convert::{self, Invalid},
    over,
    push::ack_deadline,
};
use crate::{
    hub::{Ack, Pushed},
    proto::{PushRequest, PushResponse, PushStreamRequest, PushStreamResponse},
    telemetry::StreamOpen,
};

/// Most pushes in one message.
const PUSHES_MAX: usize = 1_000;

/// Most bytes of results in one message; a larger one comes alone.
const RESULTS_BYTES_MAX: usize = 1 << 20;

/// A result without its texts has at most this many bytes.
const RESULT_BYTES: usize = 64;

/// Messages between two looks at whether a stream has to end.
const MESSAGES_BETWEEN: u64 = 64;

/// The response stream.
pub(crate) struct Results {
    shared: Arc<Shared>,
    /// The reading task: a call that is cancelled reads no more.
    _reader: AbortOnDropHandle<()>,
    _open: StreamOpen,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Some results were taken.
    taken: Notify,
}

#[derive(Default)]
struct State {
    results: Vec<PushResponse>,
    /// Pushes read whose result hasn't been taken.
    unanswered: usize,
    /// The reader waits for results to be taken.
    crowded: bool,
    /// No result comes any more.
    end: Option<Result<(), Status>>,
    waker: Option<Waker>,
}

pub(super) fn start(control: Control, request: Request<Streaming<PushStreamRequest>>) -> Results {
    let shared = Arc::new(Shared::default());
    let open = control.0.metrics.stream_opened();
    let reader = Reader {
        deadline: call::deadline(request.metadata()),
        end: StreamEnd::of(&control, request.extensions()),
        control,
        shared: Arc::clone(&shared),
        later: Later::default(),
    };
    let task = tokio::spawn(reader.run(request.into_inner()));
    Results { shared, _reader: AbortOnDropHandle::new(task), _open: open }
}

struct Reader {
    control: Control,
    deadline: Option<Instant>,
    end: StreamEnd,
    shared: Arc<Shared>,
    later: Later,
}

/// Pushes whose outcome isn't known yet.
#[derive(Default)]
struct Later {
    /// With `ack_timeout`: told as they come.
    acks: FuturesUnordered<BoxFuture<'static, PushResponse>>,
    /// Behind a push to another node: told in order.
    ordered: FuturesOrdered<BoxFuture<'static, PushResponse>>,
}

/// Why a stream is not read on.
enum Stop {
    /// The caller has closed its side.
    Finished,
    /// The gateway ends it.
    Over,
    /// It can't be read.
    Failed(Status),
}

impl Reader {
    async fn run(mut self, mut pushes: Streaming<PushStreamRequest>) {
        let stop = self.read(&mut pushes).await;
        let end = match stop {
            Stop::Finished => {
                let Self { later, shared, end, .. } = &mut self;
                let over = tokio::select! {
                    biased;
                    () = later.finish(shared, true) => false,
                    () = end.reached() => true,
                };
                if over { self.wind_up().await } else { Ok(()) }
            }
            Stop::Over => self.wind_up().await,
            Stop::Failed(status) => {
                self.later.finish(&self.shared, false).await;
                Err(status)
            }
        };
        self.shared.end(end);
    }

    /// The last results of a stream that the gateway ends.
    async fn wind_up(&mut self) -> Result<(), Status> {
        let _ = tokio::time::timeout(LAST_WORDS, self.later.finish(&self.shared, true)).await;
        Err(over())
    }

    async fn read(&mut self, pushes: &mut Streaming<PushStreamRequest>) -> Stop {
        for count in 0u64.. {
            let next = {
                let Self { later, shared, end, .. } = self;
                // A stream that always has more is asked now and then; one that waits is woken.
                if count % MESSAGES_BETWEEN == 0 && end.is_reached() {
                    return Stop::Over;
                }
                tokio::select! {
                    biased;
                    next = later.drive(shared, pushes.message()) => next,
                    () = end.reached() => return Stop::Over,
                }
            };
            let batch = match next {
                Ok(Some(message)) => message.pushes,
                Ok(None) => return Stop::Finished,
                Err(status) => return Stop::Failed(status),
            };
            if batch.len() > PUSHES_MAX {
                let limit = format!("pushes: at most {PUSHES_MAX} to a message, these are {}", batch.len());
                return Stop::Failed(Status::invalid_argument(limit));
            }
            for push in batch {
                if !self.window().await || !self.push(push).await {
                    return Stop::Over;
                }
                tokio::task::consume_budget().await;
            }
        }
        unreachable!("a stream has fewer than 2⁶⁴ messages")
    }

    /// Waits until one more push may be unanswered, and counts it. False: the stream is over.
    async fn window(&mut self) -> bool {
        let Self { control, later, shared, end, .. } = self;
        while !shared.count_one(control.0.stream_window) {
            tokio::select! {
                biased;
                // Keeps the word of one who takes results between the look and the wait.
                () = later.drive(shared, shared.taken.notified()) => {}
                () = end.reached() => return false,
            }
        }
        true
    }

    /// Pushes, and sees to it that the result is told. False: the stream is over, and nothing was pushed.
    async fn push(&mut self, request: PushRequest) -> bool {
        let id = request.id;
        let pushed = match self.try_push(request).await {
            Ok(Some(pushed)) => Ok(pushed),
            Ok(None) => return false,
            Err(invalid) => Err(invalid),
        };
        match pushed {
            Ok(Pushed::Done(outcome)) => {
                self.control.0.metrics.pushed(outcome.status);
                self.tell_in_order(convert::push_response(outcome, id));
            }
            Ok(Pushed::Waiting(waiting)) => {
                let metrics = self.control.0.metrics.clone();
                let result = waiting.map(move |outcome| {
                    metrics.pushed(outcome.status);
                    convert::push_response(outcome, id)
                });
                self.later.acks.push(result.boxed());
            }
            Ok(Pushed::Elsewhere(elsewhere)) => {
                let metrics = self.control.0.metrics.clone();
                let waits = elsewhere.waits();
                let result = async move {
                    let outcome = elsewhere.outcome().await;
                    metrics.pushed(outcome.status);
                    convert::push_response(outcome, id)
                };
                if waits {
                    self.later.acks.push(result.boxed());
                } else {
                    self.later.ordered.push_back(result.boxed());
                }
            }
            Err(invalid) => self.tell_in_order(convert::invalid_response(invalid, id)),
        }
        true
    }

    /// None: the stream was over before there was a place to wait for an answer.
    async fn try_push(&mut self, request: PushRequest) -> Result<Option<Pushed>, Invalid> {
        let Self { control, later, shared, deadline, end } = self;
        convert::uid("uid", &request.uid)?;
        let push = control.0.checks.push(&request.uri, &request.body)?;
        let ack = match convert::ack_timeout(request.ack_timeout)? {
            None => None,
            Some(timeout) => {
                let place = control.0.hub.ack_waits().clone().acquire_owned();
                let permit = tokio::select! {
                    biased;
                    permit = later.drive(shared, place) => permit,
                    () = end.reached() => return Ok(None),
                };
                Some(Ack { deadline: ack_deadline(timeout, *deadline), permit: permit.ok() })
            }
        };
        Ok(Some(control.0.hub.push(&request.uid, push, ack, *deadline)))
    }

    fn tell_in_order(&mut self, result: PushResponse) {
        if self.later.ordered.is_empty() {
            self.shared.tell(result);
        } else {
            self.later.ordered.push_back(std::future::ready(result).boxed());
        }
    }
}

impl Later {
    /// Tells the outcomes that are not known yet as they come, to the last; those of waits only where `acks` says so.
    async fn finish(&mut self, shared: &Shared, acks: bool) {
        loop {
            tokio::select! {
                Some(result) = self.ordered.next() => shared.tell(result),
                Some(result) = self.acks.next(), if acks => shared.tell(result),
                else => return,
            }
        }
    }

    /// Waits for `until`, and tells what becomes known meanwhile.
    async fn drive<T>(&mut self, shared: &Shared, until: impl Future<Output = T>) -> T {
        let mut until = std::pin::pin!(until);
        loop {
            tokio::select! {
                biased;
                Some(result) = self.acks.next(), if !self.acks.is_empty() => shared.tell(result),
                Some(result) = self.ordered.next(), if !self.ordered.is_empty() => shared.tell(result),
                done = &mut until => return done,
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the results")
    }

    /// Counts one more push as unanswered, where that leaves at most `max` of them.
    fn count_one(&self, max: usize) -> bool {
        let mut state = self.state();
        let room = state.unanswered < max;
        state.unanswered += usize::from(room);
        state.crowded = !room;
        room
    }

    fn tell(&self, result: PushResponse) {
        let waker = {
            let mut state = self.state();
            state.results.push(result);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn end(&self, end: Result<(), Status>) {
        let waker = {
            let mut state = self.state();
            state.end = Some(end);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Stream for Results {
    type Item = Result<PushStreamResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.shared.state();
        if !state.results.is_empty() {
            let results = state.take_batch();
            state.unanswered -= results.len();
            let crowded = std::mem::take(&mut state.crowded);
            drop(state);
            if crowded {
                self.shared.taken.notify_one();
            }
            return Poll::Ready(Some(Ok(PushStreamResponse { results })));
        }
        match &mut state.end {
            Some(end) => match std::mem::replace(end, Ok(())) {
                Ok(()) => Poll::Ready(None),
                Err(status) => Poll::Ready(Some(Err(status))),
            },
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl State {
    /// As many results as one message takes.
    fn take_batch(&mut self) -> Vec<PushResponse> {
        let mut bytes = 0;
        let fits = |result: &&PushResponse| {
            bytes += RESULT_BYTES + result.reply.len() + result.error.len();
            bytes <= RESULTS_BYTES_MAX
        };
        let count = self.results.iter().take(BATCH_MAX).take_while(fits).count().max(1);
        if count == self.results.len() {
            return std::mem::take(&mut self.results);
        }
        self.results.drain(..count).collect()
    }
}
