//! A device that stays connected.

mod connection;

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{
    FutureExt, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};

use self::connection::Connection;
use super::{Backoff, Device, DeviceOptions, DevicePush, Event, LoginError, Welcome, login};

/// A connection that lasted so long was a good one: the next wait is a short one again.
const LASTED: Duration = Duration::from_secs(10);

/// What happens to a device that stays connected.
#[derive(Debug)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// It is connected and authenticated. Pushes follow.
    Connected {
        /// To where, `HOST:PORT`.
        address: String,
        /// The gateway's settings; none where it speaks the first dialect.
        welcome: Option<Welcome>,
    },
    /// A backend's push.
    Push(DevicePush),
    /// The gateway didn't understand what the device sent last.
    Error {
        /// `malformed` or `too_large`.
        reason: String,
        /// More, for people.
        detail: String,
    },
    /// The gateway closes the connection on purpose.
    Kicked {
        /// Why, as the protocol names it: `draining`, `replaced`, …
        reason: String,
        /// How long the device waits before it connects again: as the gateway tells, else by
        /// [`DeviceOptions::backoff`]. None: it is not to come back, and the stream ends.
        retry_in: Option<Duration>,
    },
    /// The connection broke, or could not be made.
    Interrupted {
        /// Why.
        error: LoginError,
        /// How long the device waits before it connects again.
        retry_in: Duration,
    },
}

/// A device that stays connected, as a `Stream` of [`DeviceEvent`]s. Begun by [`Device::stream`].
///
/// It connects, and connects again after a random wait, by [`DeviceOptions::backoff`], which grows until a connection has
/// lasted 10 s; a gateway that drains tells another wait. Where [`DeviceOptions::credential`] is made by a function, a new
/// one is sent before the session ends, on the same connection, and one that is refused is followed by another.
///
/// It ends after a kick that says not to come back, and after an error: [`LoginError::Refused`] of a credential that is
/// always the same, [`LoginError::Address`] and [`LoginError::ServerName`]. Nothing else ends it.
///
/// It does everything, heartbeats and answers too, while it is polled, and only then: what takes long is handled in another
/// task, to which the [`DevicePush`] goes along. Dropping it closes the connection; a future of its next item can be dropped
/// at any time without losing one.
pub struct DeviceStream(BoxStream<'static, Result<DeviceEvent, LoginError>>);

impl Device {
    /// A device that stays connected; `address` is as for [`Device::connect`], and looked up anew each time. Nothing is
    /// connected before it is polled.
    #[must_use]
    pub fn stream(address: impl ToString, options: DeviceOptions) -> DeviceStream {
        let address = address.to_string();
        let with = options.clone();
        DeviceStream::of(options, move || {
            let (address, options) = (address.clone(), with.clone());
            async move { login::connect(&address, &options).await }.boxed()
        })
    }
}

/// What makes a connection, and tells to where.
type Connect<S> = BoxFuture<'static, Result<(String, Device<S>), LoginError>>;

impl DeviceStream {
    fn of<S>(options: DeviceOptions, connect: impl FnMut() -> Connect<S> + Send + 'static) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let backoff = options.backoff.clone();
        let life = Life { options, connect, backoff, phase: Phase::Away(Instant::now()) };
        // The step under way is kept in the stream, whatever becomes of who waits for it.
        Self(stream::unfold(life, |mut life| async { life.next().await.map(|event| (event, life)) }).fuse().boxed())
    }
}

impl Stream for DeviceStream {
    type Item = Result<DeviceEvent, LoginError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(cx)
    }
}

impl fmt::Debug for DeviceStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceStream").finish_non_exhaustive()
    }
}

struct Life<C, S> {
    options: DeviceOptions,
    connect: C,
    backoff: Backoff,
    phase: Phase<S>,
}

enum Phase<S> {
    /// To be connected at this time.
    Away(Instant),
    Connected(Box<Connection<S>>),
    Over,
}

impl<C, S> Life<C, S>
where
    C: FnMut() -> Connect<S>,
    S: AsyncRead + AsyncWrite + Unpin,
{
    async fn next(&mut self) -> Option<Result<DeviceEvent, LoginError>> {
        match &mut self.phase {
            Phase::Over => None,
            Phase::Away(at) => {
                sleep_until(*at).await;
                Some(match (self.connect)().await {
                    Ok((address, device)) => {
                        let welcome = device.welcome().cloned();
                        let connection = Connection::new(device, &self.options);
                        self.phase = Phase::Connected(Box::new(connection));
                        Ok(DeviceEvent::Connected { address, welcome })
                    }
                    Err(error) => self.failed(error),
                })
            }
            Phase::Connected(connection) => loop {
                let event = match connection.next().await {
                    Ok(Event::Push { seq, uri, body }) => DeviceEvent::Push(connection.answers().push(seq, uri, body)),
                    Ok(Event::Error { reason, detail }) => DeviceEvent::Error { reason, detail },
                    Ok(Event::Heartbeat) => continue,
                    Ok(Event::Auth(answer)) => {
                        connection.was_answered(&answer);
                        continue;
                    }
                    Ok(Event::Kick { reason, reconnect, after }) => self.kicked(reason, reconnect, after),
                    Ok(Event::Closed) => self.interrupted(LoginError::Closed),
                    Err(error) => self.interrupted(error.into()),
                };
                return Some(Ok(event));
            },
        }
    }

    /// A connection could not be made.
    fn failed(&mut self, error: LoginError) -> Result<DeviceEvent, LoginError> {
        let may_change = matches!(error, LoginError::Refused) && !self.options.credential.is_fixed();
        if error.is_final() && !may_change {
            self.phase = Phase::Over;
            return Err(error);
        }
        Ok(self.interrupted(error))
    }

    fn interrupted(&mut self, error: LoginError) -> DeviceEvent {
        let retry_in = self.wait();
        self.phase = Phase::Away(Instant::now() + retry_in);
        DeviceEvent::Interrupted { error, retry_in }
    }

    fn kicked(&mut self, reason: String, reconnect: bool, after: Duration) -> DeviceEvent {
        let retry_in = match (reconnect, after.is_zero()) {
            (false, _) => None,
            (true, true) => Some(self.wait()),
            (true, false) => Some(after),
        };
        self.phase = retry_in.map_or(Phase::Over, |wait| Phase::Away(Instant::now() + wait));
        DeviceEvent::Kicked { reason, retry_in }
    }

    /// How long to wait after this connection, or after none.
    fn wait(&mut self) -> Duration {
        if let Phase::Connected(connection) = &self.phase
            && connection.since().elapsed() >= LASTED
        {
            self.backoff.worked();
        }
        self.backoff.failed()
    }
}

#[cfg(test)]
mod tests;
