//! An authenticated connection, served by one task with one timer.
//!
//! The idle state is small: no buffer, no queue. [`Session::poll`] does what there is to do (flush the queue, read,
//! look at the clock) and sleeps; frames are judged by [`Session::on_frame`], which touches no socket.

use std::{
    cell::RefCell,
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::FutureExt;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Devices,
    answer::Failed,
    close,
    handshake::{self, Login},
    inbox::{Cut, Inbox, Rate},
    transport::Transport,
};
use crate::{
    auth::{Admitted, AuthError},
    frame::{self, Message},
    hub::{
        Registered,
        connection::{Answer, Connection, Flush},
    },
    model::{EndReason, PushStatus},
};

/// Bytes read at a time, into a buffer of the thread.
const READ_BYTES: usize = 64 * 1024;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// A re-authentication under way. None: the peer has gone.
type Asking = Pin<Box<dyn Future<Output = Option<Result<Admitted, AuthError>>> + Send>>;

pub(super) struct Session<T: Transport> {
    devices: Devices,
    registered: Registered<T>,
    inbox: Inbox,
    /// The last sign of life.
    seen: Instant,
    expires: Option<Instant>,
    /// Frames are not read until then: there were too many.
    held_until: Option<Instant>,
    asking: Option<Asking>,
    /// An `/auth/…` answer may still be unwritten: frames are not read.
    answering: bool,
    /// Bad frames in a row.
    errors: u32,
}

impl<T: Transport> Session<T> {
    /// Makes a device known that has authenticated.
    pub(super) fn begin(devices: Devices, transport: T, remote: SocketAddr, inbox: Inbox, login: Login) -> Self {
        let Login { uid, dialect, expires } = login;
        let seen = Instant::now();
        let lasts = expires.map(|expires| expires.saturating_duration_since(seen));
        let success = devices.success(dialect, lasts);
        devices.metrics.auth_success.inc();
        let registered = devices.hub.register(uid, remote, dialect, success.into(), transport);
        let connection = &registered.connection;
        tracing::debug!(uid = %connection.uid, number = connection.number.0, %remote, dialect, "authenticated");
        Self { devices, registered, inbox, seen, expires, held_until: None, asking: None, answering: true, errors: 0 }
    }

    /// Serves the device to its end.
    pub(super) fn run(self) -> impl Future<Output = ()> + Send {
        let mut session = self;
        // A block that captures, not an `async fn`: that would hold its parameter twice.
        async move {
            let reason = {
                let mut timer = pin!(sleep_until(session.seen + session.devices.config.heartbeat_timeout));
                poll_fn(|cx| session.poll(cx, timer.as_mut())).await
            };
            // Nobody waits for it any more.
            session.asking = None;
            let connection = session.connection();
            tracing::debug!(
                uid = %connection.uid, number = connection.number.0, remote = %connection.remote,
                reason = reason.name(), pushes = connection.pushes_sent(), dropped = connection.pushes_dropped(),
                "connection ended",
            );
            // Boxed, so that an idle session doesn't carry its room.
            Box::pin(close::session(&session.devices, connection, reason)).await;
        }
    }

    fn connection(&self) -> &Connection<T> {
        &self.registered.connection
    }

    /// Does what there is to do; ready with the reason once the connection has ended.
    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<EndReason> {
        loop {
            self.poll_asking(cx);
            let blocked = match self.registered.connection.poll_flush(cx) {
                Flush::Ended(reason) => return Poll::Ready(reason),
                Flush::Broken => {
                    self.registered.end(EndReason::Closed);
                    continue;
                }
                Flush::Blocked(since) => Some(since),
                Flush::Idle => None,
            };
            if self.poll_frames(cx).is_ready() {
                continue;
            }
            let now = Instant::now();
            let due = self.due(blocked);
            if due <= now {
                self.on_time(now, blocked);
                continue;
            }
            // Re-armed lazily: a frame moves no timer, the timer looks again when it fires.
            if due < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            match timer.as_mut().poll(cx) {
                Poll::Ready(()) => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// When the clock has to be looked at next.
    fn due(&self, blocked: Option<Instant>) -> Instant {
        let config = &self.devices.config;
        // A frame that is held back is there: no silence.
        let silent = (self.asking.is_none() && self.held_until.is_none()).then(|| self.seen + config.heartbeat_timeout);
        let slow = blocked.map(|since| since + config.write_timeout);
        let dues = [silent, slow, self.expires, self.held_until];
        // Only a re-authentication leaves it without any, and that ends by itself.
        dues.into_iter().flatten().min().unwrap_or_else(|| self.seen + config.heartbeat_timeout * 2)
    }

    fn on_time(&mut self, now: Instant, blocked: Option<Instant>) {
        let config = &self.devices.config;
        let reason = if self.expires.is_some_and(|at| at <= now) {
            EndReason::Expired
        } else if blocked.is_some_and(|since| since + config.write_timeout <= now) {
            EndReason::Slow
        } else if self.held_until.is_some_and(|until| until <= now) {
            self.held_until = None;
            // What a device that has gone left unread may be hours of frames: they don't keep it online.
            if self.connection().wire.peer_closed().now_or_never().is_none() {
                return;
            }
            EndReason::Closed
        } else if self.asking.is_none() {
            EndReason::Timeout
        } else {
            self.seen = now;
            return;
        };
        self.registered.end(reason);
    }

    /// Reads and judges frames while that is allowed. Ready: something was done that may allow more.
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_held() {
            return Poll::Pending;
        }
        if !self.inbox.is_empty() {
            let bytes = self.inbox.take();
            let handled = self.on_bytes(&bytes);
            self.inbox.keep(bytes, handled);
            if handled > 0 || self.is_held() {
                return Poll::Ready(());
            }
        }
        READ_BUFFER.with_borrow_mut(|buffer| match self.registered.connection.wire.poll_read(cx, buffer) {
            Poll::Ready(Ok(count @ 1..)) => {
                if self.inbox.is_empty() {
                    let handled = self.on_bytes(&buffer[..count]);
                    self.inbox.keep_slice(&buffer[handled..count]);
                } else {
                    self.inbox.keep_slice(&buffer[..count]);
                }
                Poll::Ready(())
            }
            Poll::Ready(Ok(0) | Err(_)) => {
                self.registered.end(EndReason::Closed);
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        })
    }

    /// Whether no frame is read now.
    fn is_held(&mut self) -> bool {
        if self.answering {
            self.answering = self.connection().auth_answer_waits();
        }
        self.answering || self.asking.is_some() || self.held_until.is_some()
    }

    /// Judges the frames at the front of `bytes`; returns how many bytes that were.
    fn on_bytes(&mut self, bytes: &[u8]) -> usize {
        let mut handled = 0;
        loop {
            let (order, bytes_max) = (self.devices.order(), self.devices.config.max_frame as usize);
            match self.inbox.cut(order, bytes_max, self.devices.rate(), &bytes[handled..]) {
                Cut::Frame { message, bytes: frame_bytes } => {
                    let start = handled;
                    handled += frame_bytes;
                    self.on_frame(&bytes[start + message.start..start + message.end]);
                    if self.asking.is_some() || self.connection().has_ended() {
                        return handled;
                    }
                }
                Cut::Incomplete => return handled,
                Cut::Later(until) => {
                    self.held_until = Some(until);
                    return handled;
                }
                Cut::TooLarge { detail } => {
                    self.devices.metrics.frames_too_large.inc();
                    self.error("too_large", &detail);
                    self.registered.end(EndReason::Protocol);
                    return bytes.len();
                }
            }
        }
    }

    /// One whole frame.
    fn on_frame(&mut self, message: &[u8]) {
        let devices = &self.devices;
        devices.metrics.frames.inc();
        self.seen = Instant::now();
        self.connection().seen();
        let Message { seq, uri, body, v } = match frame::parse(message) {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(malformed) => {
                devices.metrics.frames_malformed.inc();
                self.errors += 1;
                self.error("malformed", &malformed.to_string());
                if self.errors > self.devices.config.max_errors {
                    self.registered.end(EndReason::Protocol);
                }
                return;
            }
        };
        self.errors = 0;
        match &*uri {
            "/heartbeat" => self.connection().answer(Answer::Heartbeat, &devices.heartbeat()),
            "/plex/ack" => self.on_answer(seq, PushStatus::Acked, &body),
            "/plex/nack" => self.on_answer(seq, PushStatus::Nacked, &body),
            "/auth/server" => self.ask(body.into_owned(), v),
            _ => {
                devices.metrics.frames_ignored.inc();
            }
        }
    }

    fn on_answer(&self, seq: i64, status: PushStatus, reply: &str) {
        if !self.devices.hub.answered(self.connection(), seq, status, reply) {
            self.devices.metrics.answers_late.inc();
        }
    }

    fn error(&self, reason: &str, detail: &str) {
        if let Some(frame) = self.devices.error(self.connection().dialect(), reason, detail) {
            self.connection().answer(Answer::Error, &frame);
        }
    }

    /// Begins a re-authentication: pushes go on meanwhile, frames are not read.
    fn ask(&mut self, credential: String, v: Option<i64>) {
        self.connection().set_dialect(handshake::dialect(v));
        let devices = self.devices.clone();
        let connection = Arc::clone(&self.registered.connection);
        self.asking = Some(Box::pin(async move {
            let answer = async {
                let answer = devices.gate.admit(&credential, &connection.remote.to_string()).await;
                if let Err(AuthError::Unavailable(_)) = answer {
                    tokio::time::sleep(handshake::unavailable_delay(&devices)).await;
                }
                answer
            };
            tokio::select! {
                biased;
                answer = answer => Some(answer),
                // Nobody reads meanwhile, who would see the end of the stream.
                () = connection.wire.peer_closed() => None,
            }
        }));
    }

    fn poll_asking(&mut self, cx: &mut Context<'_>) {
        let Some(asking) = &mut self.asking else { return };
        let Poll::Ready(answer) = asking.as_mut().poll(cx) else { return };
        self.asking = None;
        let Some(answer) = answer else {
            self.registered.end(EndReason::Closed);
            return;
        };
        self.answering = true;
        // It wasn't read meanwhile, so it can't have shown a sign of life.
        self.seen = Instant::now();
        let (devices, connection) = (&self.devices, self.connection());
        let dialect = connection.dialect();
        let frame = match answer {
            Ok(Admitted { uid, lasts }) if uid == connection.uid => {
                devices.metrics.auth_success.inc();
                let frame = devices.success(dialect, lasts);
                self.expires = lasts.and_then(|lasts| self.seen.checked_add(lasts));
                frame
            }
            Ok(_) | Err(AuthError::Refused) => {
                devices.metrics.auth_refused.inc();
                devices.failed(dialect, Failed::Refused)
            }
            Err(AuthError::Unavailable(_)) => {
                devices.metrics.auth_unavailable.inc();
                devices.failed(dialect, Failed::Unavailable)
            }
        };
        self.connection().answer(Answer::Auth, &frame);
    }
}

impl Devices {
    pub(super) fn rate(&self) -> Rate {
        Rate { frames_per_second: self.config.max_frames_per_second, burst: self.config.frames_burst }
    }
}
