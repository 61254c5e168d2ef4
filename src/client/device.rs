//! A device, as one written in Rust is one.

mod address;
mod credential;
mod event;
mod login;
mod push;
mod socket;
mod stream;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use futures_util::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};
use tokio_util::codec::{Encoder, FramedRead};

#[cfg(feature = "cli")]
pub(crate) use self::socket::DeviceConnector;
pub use self::{
    credential::Credential,
    event::{AuthAnswer, Event, Welcome},
    login::LoginError,
    push::{AckError, DevicePush},
    socket::{DeviceSocket, DeviceTls},
    stream::{DeviceEvent, DeviceStream},
};
use super::Backoff;
use crate::{
    codec::{CodecError, FrameCodec, OwnedMessage},
    frame::ByteOrder,
};

/// The interval of heartbeats for a device that isn't told one.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// Less would only be a flood, whatever is told.
const HEARTBEAT_MIN: Duration = Duration::from_millis(10);

/// How a device connects.
#[derive(Debug, Clone)]
pub struct DeviceOptions {
    /// What it authenticates with. Where the gateway trusts devices, its uid.
    pub credential: Credential,
    /// Whether it asks for kicks, errors and the gateway's settings. Default: true.
    pub v2: bool,
    /// How lengths are written; the gateway's `device.little_endian`. Default: big-endian.
    pub order: ByteOrder,
    /// When it shows that it is alive. Default: as the gateway tells.
    pub heartbeats: Heartbeats,
    /// How long connecting and authenticating may take together. Default: 40 s, since a gateway may hold its answer
    /// back for up to 30 s.
    pub timeout: Duration,
    /// The longest message that it takes, in bytes. Default: 16 MiB, more than a control plane can push. Nothing is
    /// allocated before it has come.
    pub frame_bytes_max: usize,
    /// Whether it connects by TLS, to the gateway's `device.tls_listen`. Default: none, plain TCP.
    pub tls: Option<DeviceTls>,
    /// How long a [`DeviceStream`] waits before it connects again, where the gateway doesn't tell. Default: up to 1 s,
    /// doubling to a minute.
    pub backoff: Backoff,
}

/// When a device sends heartbeats by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Heartbeats {
    /// At the interval that the gateway tells, and twice in its time-out at least; every 60 s where it tells none.
    #[default]
    AsTold,
    /// At this interval.
    Every(Duration),
    /// Never: [`Device::heartbeat`] does.
    Off,
}

impl DeviceOptions {
    /// The defaults, for a device that authenticates with `credential`.
    #[must_use]
    pub fn new(credential: impl Into<Credential>) -> Self {
        Self {
            credential: credential.into(),
            v2: true,
            order: ByteOrder::default(),
            heartbeats: Heartbeats::default(),
            timeout: Duration::from_secs(40),
            frame_bytes_max: 16 << 20,
            tls: None,
            backoff: Backoff::new(Duration::from_secs(1), Duration::from_secs(60)),
        }
    }

    /// Connects by TLS.
    #[must_use]
    pub fn tls(mut self, tls: DeviceTls) -> Self {
        self.tls = Some(tls);
        self
    }
}

/// An authenticated connection. It is closed when this is dropped.
#[derive(Debug)]
pub struct Device<S = DeviceSocket> {
    input: FramedRead<S, FrameCodec>,
    /// Frames that the socket has not taken yet.
    output: BytesMut,
    v2: bool,
    welcome: Option<Welcome>,
    heartbeats: Option<Interval>,
    /// Writing failed, so only what has come can still be read.
    broken: bool,
    closed: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Device<S> {
    /// What the gateway told with its last `/auth/success`; none for a device that isn't v 2.
    #[must_use]
    pub fn welcome(&self) -> Option<&Welcome> {
        self.welcome.as_ref()
    }

    /// The next thing that happens. While it is polled, heartbeats are sent as they fall due.
    ///
    /// Cancel-safe: what isn't returned is kept for the next call. After [`Event::Closed`] there is nothing more.
    ///
    /// # Errors
    ///
    /// [`CodecError`] where the connection broke, or the gateway sent what is no frame. The next call after it returns
    /// [`Event::Closed`].
    pub async fn next(&mut self) -> Result<Event, CodecError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Tells that the push `seq` was taken; `body` is the reply, if there is one. Cancel-safe as [`Device::send`] is.
    ///
    /// # Errors
    ///
    /// As [`Device::send`].
    pub async fn ack(&mut self, seq: i64, body: &str) -> Result<(), CodecError> {
        self.send(OwnedMessage { seq, ..OwnedMessage::new("/plex/ack", body) }).await
    }

    /// Tells that the push `seq` could not be handled, and why. Cancel-safe as [`Device::send`] is.
    ///
    /// # Errors
    ///
    /// As [`Device::send`].
    pub async fn nack(&mut self, seq: i64, body: &str) -> Result<(), CodecError> {
        self.send(OwnedMessage { seq, ..OwnedMessage::new("/plex/nack", body) }).await
    }

    /// Sends a heartbeat now; [`Event::Heartbeat`] is its answer. Cancel-safe as [`Device::send`] is.
    ///
    /// # Errors
    ///
    /// As [`Device::send`].
    pub async fn heartbeat(&mut self) -> Result<(), CodecError> {
        self.send(OwnedMessage::new("/heartbeat", "")).await
    }

    /// Authenticates again on this connection, before its credential's time is over. [`Event::Auth`] is the answer.
    /// Cancel-safe as [`Device::send`] is.
    ///
    /// # Errors
    ///
    /// As [`Device::send`].
    pub async fn authenticate(&mut self, credential: &str) -> Result<(), CodecError> {
        self.send(self.auth_message(credential)).await
    }

    fn auth_message(&self, credential: &str) -> OwnedMessage {
        OwnedMessage { v: self.v2.then_some(2), ..OwnedMessage::new("/auth/server", credential) }
    }

    /// Sends any message. Returns when the socket has taken it.
    ///
    /// Cancel-safe: where it is dropped before, the rest goes out with the next call of any method.
    ///
    /// # Errors
    ///
    /// [`CodecError`] where the connection broke, or the message is longer than `frame_bytes_max`.
    pub async fn send(&mut self, message: OwnedMessage) -> Result<(), CodecError> {
        self.queue(message)?;
        Ok(poll_fn(|cx| self.poll_flush(cx)).await?)
    }

    /// As [`Device::send`], but leaves the writing to the next call of any method.
    fn queue(&mut self, message: OwnedMessage) -> Result<(), CodecError> {
        let mut codec = *self.input.decoder();
        codec.encode(message, &mut self.output)
    }

    /// Sends bytes as they are, a frame or not: to see what a gateway makes of them. Cancel-safe as [`Device::send`] is.
    ///
    /// # Errors
    ///
    /// Where the connection broke.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.extend_from_slice(bytes);
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn new(stream: S, options: &DeviceOptions) -> Self {
        let codec = FrameCodec { order: options.order, bytes_max: options.frame_bytes_max };
        Self {
            input: FramedRead::new(stream, codec),
            output: BytesMut::new(),
            v2: options.v2,
            welcome: None,
            heartbeats: None,
            broken: false,
            closed: false,
        }
    }

    fn beat(&mut self, heartbeats: Heartbeats) {
        let period = match (heartbeats, &self.welcome) {
            (Heartbeats::Off, _) => return,
            (Heartbeats::Every(period), _) => period,
            (Heartbeats::AsTold, Some(welcome)) => welcome.heartbeat().unwrap_or(HEARTBEAT),
            (Heartbeats::AsTold, None) => HEARTBEAT,
        };
        let period = period.max(HEARTBEAT_MIN);
        let mut interval = interval_at(Instant::now() + period, period);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.heartbeats = Some(interval);
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, CodecError>> {
        self.poll_heartbeat(cx);
        while !self.closed {
            let message = match ready!(Pin::new(&mut self.input).poll_next(cx)) {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    self.closed = true;
                    return Poll::Ready(Err(error));
                }
                None => {
                    self.closed = true;
                    break;
                }
            };
            if let Some(event) = Event::from_message(message) {
                if let Event::Auth(AuthAnswer::Success(Some(welcome))) = &event {
                    self.welcome = Some(welcome.clone());
                }
                return Poll::Ready(Ok(event));
            }
        }
        Poll::Ready(Ok(Event::Closed))
    }

    /// Queues a heartbeat that is due, and writes what waits. A failure here isn't told: what the gateway said before
    /// it closed may still be there to read, and reading tells the end.
    fn poll_heartbeat(&mut self, cx: &mut Context<'_>) {
        if self.broken {
            return;
        }
        let mut codec = *self.input.decoder();
        if let Some(interval) = &mut self.heartbeats {
            // Until it is pending, or it would wake nobody.
            while interval.poll_tick(cx).is_ready() {
                // What waits already is a sign of life as good.
                if self.output.is_empty() {
                    self.broken |= codec.encode(OwnedMessage::new("/heartbeat", ""), &mut self.output).is_err();
                }
            }
        }
        if let Poll::Ready(Err(_)) = self.poll_flush(cx) {
            self.broken = true;
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.input.get_mut();
        while !self.output.is_empty() {
            let bytes = ready!(Pin::new(&mut *stream).poll_write(cx, &self.output))?;
            if bytes == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(bytes);
        }
        Pin::new(stream).poll_flush(cx)
    }
}

#[cfg(test)]
mod tests;
