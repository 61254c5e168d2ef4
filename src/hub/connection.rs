//! One authenticated connection: what is told of it, its outbound queue, the pushes that wait for its answer.
//!
//! An idle connection owns no queue. A push is written by the thread that pushes; what the wire doesn't take is queued
//! and left to the connection's own task, which is woken. Everything is decided under one lock, so a connection that
//! has ended takes nothing more.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use hashbrown::HashMap;
use tokio::time::Instant;

use super::wait::Wait;
use crate::model::{ConnectionNumber, EndReason, Millis, Uid};

/// What a connection writes to. The hub knows no socket.
pub(crate) trait Wire: Send + Sync {
    /// Writes as much as is taken at once; `WouldBlock` where that is nothing.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// As [`Wire::try_write`], of several pieces in one go.
    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ready once something can be written again. For the connection's own task alone.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Whether some of what was taken still waits within the wire, which has sealed it and can't give it back. Nothing
    /// more is taken until it has gone.
    fn holds_back(&self) -> bool {
        false
    }

    /// Hands on what is held back: how many bytes have gone, 0 where none waited; `WouldBlock` where none could go.
    fn try_flush(&self) -> io::Result<usize> {
        Ok(0)
    }
}

/// Pieces handed to the wire at once; more saves no system call that counts.
const PIECES_MAX: usize = 32;

/// One authenticated connection.
pub(crate) struct Connection<W: ?Sized = dyn Wire> {
    pub(crate) uid: Uid,
    pub(crate) number: ConnectionNumber,
    pub(crate) remote: SocketAddr,
    connected_at: Millis,
    last_seen: AtomicU64,
    pushes_sent: AtomicU64,
    pushes_dropped: AtomicU64,
    dialect: AtomicU8,
    outbox: Mutex<Outbox>,
    pub(crate) wire: W,
}

#[derive(Default)]
struct Outbox {
    ended: Option<EndReason>,
    waker: Option<Waker>,
    /// None: nothing waits.
    queue: Option<Box<Queue>>,
    /// Pushes that wait for this connection's answer, by their seq. None: none.
    waits: Option<Box<HashMap<i64, Arc<Wait>>>>,
}

/// What waits to be written, in the order of writing: the rest of a frame, the gateway's answers, pushes.
pub(crate) struct Queue {
    /// The rest of the frame whose first bytes have gone, and whether it is a push.
    rest: Option<(Bytes, bool)>,
    answers: [Option<Bytes>; 3],
    pushes: VecDeque<Bytes>,
    /// Bytes of the pushes, the rest of one included.
    push_bytes: usize,
    /// When the wire last took a byte, or the queue began.
    progress: Instant,
}

/// The gateway's own answers: at most one of each waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// `/auth/…`
    Auth,
    /// `/plex/error`
    Error,
    /// `/heartbeat`
    Heartbeat,
}

/// What a connection did with a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Written or queued.
    Sent,
    /// Its queue is full.
    Full,
    /// It has ended.
    Ended,
    /// Its wire is broken: whoever learns of it ends it.
    Broken,
}

/// How far the connection's own task came with the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flush {
    /// Nothing waits.
    Idle,
    /// The wire takes no more; it last took a byte (or the queue began) then.
    Blocked(Instant),
    /// The wire is broken.
    Broken,
    /// The connection has ended, for this reason.
    Ended(EndReason),
}

/// A frame to be pushed: in a buffer of the pushing thread, or shared by many.
#[derive(Clone, Copy)]
pub(crate) enum Frame<'a> {
    /// Copied where it must be queued.
    Own(&'a [u8]),
    /// Encoded once for many.
    Shared(&'a Bytes),
}

impl Frame<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    fn from(&self, written: usize) -> Bytes {
        match self {
            Self::Own(bytes) => Bytes::copy_from_slice(&bytes[written..]),
            Self::Shared(bytes) => bytes.slice(written..),
        }
    }
}

impl<W: Wire> Connection<W> {
    /// A connection whose first frame is `success`; nothing is written yet.
    pub(super) fn new(
        uid: Uid,
        number: ConnectionNumber,
        remote: SocketAddr,
        dialect: u8,
        success: Bytes,
        connected_at: Millis,
        wire: W,
    ) -> Self {
        let mut queue = Box::new(Queue::new());
        queue.answers[Answer::Auth as usize] = Some(success);
        Self {
            uid,
            number,
            remote,
            connected_at,
            last_seen: AtomicU64::new(connected_at.0),
            pushes_sent: AtomicU64::new(0),
            pushes_dropped: AtomicU64::new(0),
            dialect: AtomicU8::new(dialect),
            outbox: Mutex::new(Outbox { queue: Some(queue), ..Outbox::default() }),
            wire,
        }
    }
}

impl<W: Wire + ?Sized> Connection<W> {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().expect("nothing panics while it holds an outbox")
    }

    /// 1 or 2.
    pub(crate) fn dialect(&self) -> u8 {
        self.dialect.load(Relaxed)
    }

    pub(crate) fn set_dialect(&self, dialect: u8) {
        self.dialect.store(dialect, Relaxed);
    }

    pub(crate) fn connected_at(&self) -> Millis {
        self.connected_at
    }

    pub(crate) fn last_seen(&self) -> Millis {
        Millis(self.last_seen.load(Relaxed))
    }

    /// Notes that a whole frame has come.
    pub(crate) fn seen(&self) {
        self.last_seen.store(Millis::now().0, Relaxed);
    }

    pub(crate) fn pushes_sent(&self) -> u64 {
        self.pushes_sent.load(Relaxed)
    }

    pub(crate) fn pushes_dropped(&self) -> u64 {
        self.pushes_dropped.load(Relaxed)
    }

    /// Bytes that wait to be written.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.outbox().queue.as_ref().map_or(0, |queue| queue.bytes())
    }

    /// Writes the frame of a push, or queues what the wire doesn't take, up to `queue_bytes_max` (an empty queue takes
    /// any). With `wait`, an answer to `seq` resolves it from now on.
    pub(super) fn push(&self, frame: Frame<'_>, queue_bytes_max: usize, wait: Option<(i64, &Arc<Wait>)>) -> Taken {
        let mut outbox = self.outbox();
        if outbox.ended.is_some() {
            return Taken::Ended;
        }
        let bytes = frame.bytes();
        let waker = match &mut outbox.queue {
            Some(queue) if queue.push_bytes > 0 && queue.push_bytes + bytes.len() > queue_bytes_max => {
                self.pushes_dropped.fetch_add(1, Relaxed);
                return Taken::Full;
            }
            Some(queue) => {
                queue.push_bytes += bytes.len();
                queue.pushes.push_back(frame.from(0));
                None
            }
            None => match self.wire.try_write(bytes) {
                Ok(written) if written == bytes.len() && !self.wire.holds_back() => None,
                Ok(written) if written == bytes.len() => {
                    // A queue without a frame: the wire itself has to be flushed, and is slow where it can't be.
                    outbox.queue = Some(Box::new(Queue::new()));
                    outbox.waker.take()
                }
                Ok(written) => {
                    let mut queue = Queue::new();
                    queue.push_bytes = bytes.len() - written;
                    queue.rest = Some((frame.from(written), true));
                    outbox.queue = Some(Box::new(queue));
                    outbox.waker.take()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut queue = Queue::new();
                    queue.push_bytes = bytes.len();
                    queue.pushes.push_back(frame.from(0));
                    outbox.queue = Some(Box::new(queue));
                    outbox.waker.take()
                }
                Err(_) => return Taken::Broken,
            },
        };
        if let Some((seq, wait)) = wait {
            wait.opened();
            outbox.waits.get_or_insert_default().insert(seq, Arc::clone(wait));
        }
        drop(outbox);
        self.pushes_sent.fetch_add(1, Relaxed);
        if let Some(waker) = waker {
            waker.wake();
        }
        Taken::Sent
    }

    /// Writes or queues one of the gateway's own answers, ahead of the pushes. One that waits already stands for it.
    ///
    /// Called by the connection's own task, which flushes afterwards.
    pub(crate) fn answer(&self, kind: Answer, frame: &[u8]) {
        let mut outbox = self.outbox();
        if outbox.ended.is_some() {
            return;
        }
        let queue = match &mut outbox.queue {
            Some(queue) => queue,
            None => match self.wire.try_write(frame) {
                Ok(written) if written == frame.len() => return,
                Ok(written) if written > 0 => {
                    let mut queue = Queue::new();
                    queue.rest = Some((Bytes::copy_from_slice(&frame[written..]), false));
                    outbox.queue = Some(Box::new(queue));
                    return;
                }
                // A broken wire shows itself at the flush.
                _ => outbox.queue.insert(Box::new(Queue::new())),
            },
        };
        queue.answers[kind as usize].get_or_insert_with(|| Bytes::copy_from_slice(frame));
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.outbox().ended.is_some()
    }

    /// Whether an `/auth/…` answer still waits: until it is written no frame is read.
    pub(crate) fn auth_answer_waits(&self) -> bool {
        let outbox = self.outbox();
        let waits = outbox
            .queue
            .as_ref()
            .is_some_and(|queue| queue.answers[Answer::Auth as usize].is_some() || queue.rest_is_answer());
        waits || self.wire.holds_back()
    }

    /// Writes what waits, and sees to it that the calling task is woken when there is more to do: something was
    /// queued, the wire takes bytes again, or the connection has ended.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Flush {
        let mut guard = self.outbox();
        let outbox = &mut *guard;
        if let Some(reason) = outbox.ended {
            return Flush::Ended(reason);
        }
        match &mut outbox.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            waker => *waker = Some(cx.waker().clone()),
        }
        loop {
            let holds_back = self.wire.holds_back();
            let queue = match &mut outbox.queue {
                Some(queue) if queue.is_empty() && !holds_back => {
                    outbox.queue = None;
                    return Flush::Idle;
                }
                None if !holds_back => return Flush::Idle,
                queue => queue.get_or_insert_with(|| Box::new(Queue::new())),
            };
            match if holds_back { queue.flush(&self.wire) } else { queue.write_to(&self.wire) } {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.wire.poll_writable(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Flush::Broken,
                    Poll::Pending => return Flush::Blocked(queue.progress),
                },
                Err(_) => return Flush::Broken,
            }
        }
    }

    /// Decides that the connection has ended: nothing is taken from now on. Returns the waits that it leaves behind,
    /// None where it had ended before. `Hub::end` calls it, so that registry and presence change in the same step.
    pub(super) fn end(&self, reason: EndReason) -> Option<Ended> {
        let mut outbox = self.outbox();
        if outbox.ended.is_some() {
            return None;
        }
        outbox.ended = Some(reason);
        Some(Ended { waits: outbox.waits.take(), waker: outbox.waker.take() })
    }

    /// What is left in the queue of a connection that has ended.
    pub(crate) fn take_queue(&self) -> Option<Box<Queue>> {
        self.outbox().queue.take()
    }

    /// Takes the wait for an answer to `seq`, where one is open.
    pub(super) fn take_wait(&self, seq: i64) -> Option<Arc<Wait>> {
        let mut outbox = self.outbox();
        let waits = outbox.waits.as_mut()?;
        let wait = waits.remove(&seq);
        if waits.is_empty() {
            outbox.waits = None;
        }
        wait
    }
}

/// What a connection leaves behind: to be done outside every lock.
#[must_use]
pub(super) struct Ended {
    waits: Option<Box<HashMap<i64, Arc<Wait>>>>,
    waker: Option<Waker>,
}

impl Ended {
    pub(super) fn settle(self) {
        for wait in self.waits.iter().flat_map(|waits| waits.values()) {
            wait.closed();
        }
        if let Some(waker) = self.waker {
            waker.wake();
        }
    }
}

impl Queue {
    fn new() -> Self {
        Self {
            rest: None,
            answers: [None, None, None],
            pushes: VecDeque::new(),
            push_bytes: 0,
            progress: Instant::now(),
        }
    }

    fn bytes(&self) -> usize {
        let rest = self.rest.as_ref().map_or(0, |(rest, push)| if *push { 0 } else { rest.len() });
        self.push_bytes + rest + self.answers.iter().flatten().map(Bytes::len).sum::<usize>()
    }

    fn is_empty(&self) -> bool {
        self.rest.is_none() && self.pushes.is_empty() && self.answers.iter().all(Option::is_none)
    }

    fn rest_is_answer(&self) -> bool {
        matches!(self.rest, Some((_, false)))
    }

    /// Hands the wire as much as it takes in one call.
    fn write_to<W: Wire + ?Sized>(&mut self, wire: &W) -> io::Result<()> {
        let mut pieces = [IoSlice::new(&[]); PIECES_MAX];
        let mut count = 0;
        let frames = self.rest.iter().map(|(rest, _)| rest).chain(self.answers.iter().flatten()).chain(&self.pushes);
        for (piece, frame) in pieces.iter_mut().zip(frames) {
            *piece = IoSlice::new(frame);
            count += 1;
        }
        let written = wire.try_write_vectored(&pieces[..count])?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.progress = Instant::now();
        self.advance(written);
        Ok(())
    }

    /// Hands on what the wire holds back.
    fn flush<W: Wire + ?Sized>(&mut self, wire: &W) -> io::Result<()> {
        if wire.try_flush()? > 0 {
            self.progress = Instant::now();
        }
        Ok(())
    }

    /// Forgets what has been written; a frame of which only a part has becomes the rest.
    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let Some((mut frame, push)) = self.next() else { return };
            let taken = written.min(frame.len());
            written -= taken;
            if push {
                self.push_bytes -= taken;
            }
            if taken < frame.len() {
                frame.advance(taken);
                self.rest = Some((frame, push));
            }
        }
    }

    fn next(&mut self) -> Option<(Bytes, bool)> {
        if let Some(rest) = self.rest.take() {
            return Some(rest);
        }
        if let Some(answer) = self.answers.iter_mut().find_map(Option::take) {
            return Some((answer, false));
        }
        self.pushes.pop_front().map(|push| (push, true))
    }

    /// The last frames of a connection that is closed on purpose: a frame that was begun is always finished, and
    /// answers go out; pushes only where `pushes` says so.
    pub(crate) fn into_last_frames(mut self, pushes: bool) -> Vec<Bytes> {
        if !pushes {
            self.pushes.clear();
        }
        std::iter::from_fn(|| self.next()).map(|(frame, _)| frame).collect()
    }
}
