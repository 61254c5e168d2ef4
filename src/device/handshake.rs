//! Who is it? From the accepted socket to a uid.

use std::{future::poll_fn, io, net::SocketAddr, task::Poll, time::Duration};

use rand::RngExt;
use tokio::time::Instant;

use super::{
    Devices,
    answer::{DIALECT_2, Failed},
    close,
    inbox::{Cut, Inbox},
    transport::Transport,
};
use crate::{
    auth::{Admitted, AuthError},
    frame::{self, Message},
    model::Uid,
};

/// The largest message of a device that hasn't authenticated.
const FRAME_BYTES_MAX: usize = 4 * 1024;

/// This many `unavailable` answers in a row close the connection.
const UNAVAILABLE_MAX: u32 = 3;

/// A device that authenticated.
pub(super) struct Login {
    pub(super) uid: Uid,
    /// 1 or 2.
    pub(super) dialect: u8,
    /// When its session ends by itself.
    pub(super) expires: Option<Instant>,
}

/// How a handshake ends without a login.
#[derive(Debug)]
pub(super) enum Failure {
    /// The peer has gone.
    Gone,
    /// The gateway closes the connection, after this frame (where there is one).
    Close(Option<Vec<u8>>),
}

struct Handshake<'a, T> {
    devices: &'a Devices,
    transport: &'a T,
    remote: SocketAddr,
    inbox: &'a mut Inbox,
    dialect: u8,
    attempts: u32,
    unavailable: u32,
    /// What is left of `device.auth_timeout`: it runs only while the gateway waits for the device.
    time_left: Duration,
}

/// What a device sent.
enum Incoming {
    Credential { credential: String, v: Option<i64> },
    Other,
    TooLarge { detail: String },
}

/// Talks with the device until it has authenticated.
pub(super) async fn handshake<T: Transport>(
    devices: &Devices,
    transport: &T,
    remote: SocketAddr,
    inbox: &mut Inbox,
) -> Result<Login, Failure> {
    let time_left = devices.config.auth_timeout;
    let handshake = Handshake { devices, transport, remote, inbox, dialect: 1, attempts: 0, unavailable: 0, time_left };
    tokio::select! {
        biased;
        () = devices.stopping.cancelled() => Err(Failure::Close(None)),
        login = handshake.run() => login,
    }
}

impl<T: Transport> Handshake<'_, T> {
    async fn run(mut self) -> Result<Login, Failure> {
        loop {
            let answer = match self.receive().await? {
                Incoming::TooLarge { detail } => {
                    self.devices.metrics.frames_too_large.inc();
                    return Err(Failure::Close(self.devices.error(self.dialect, "too_large", &detail)));
                }
                Incoming::Other => self.refused()?,
                Incoming::Credential { credential, v } => {
                    self.dialect = dialect(v);
                    match self.ask(&credential).await? {
                        Ok(admitted) => return self.admitted(admitted).await,
                        Err(AuthError::Refused) => self.refused()?,
                        Err(AuthError::Unavailable(why)) => {
                            tracing::debug!(remote = %self.remote, why, "credential can't be checked");
                            self.unavailable().await?
                        }
                    }
                }
            };
            self.send(&answer).await?;
        }
    }

    /// The next message of the device.
    async fn receive(&mut self) -> Result<Incoming, Failure> {
        let begun = Instant::now();
        let received = tokio::time::timeout(self.time_left, self.read()).await;
        self.time_left = self.time_left.saturating_sub(begun.elapsed());
        received.unwrap_or(Err(Failure::Close(None)))
    }

    async fn read(&mut self) -> Result<Incoming, Failure> {
        let (order, rate) = (self.devices.order(), self.devices.rate());
        loop {
            let bytes = self.inbox.take();
            let cut = self.inbox.cut(order, FRAME_BYTES_MAX, rate, &bytes);
            let later = if let Cut::Later(until) = cut { Some(until) } else { None };
            let (handled, incoming) = match cut {
                Cut::Frame { message, bytes: handled } => {
                    self.devices.metrics.frames.inc();
                    let incoming = match frame::parse(&bytes[message]) {
                        Ok(None) => None,
                        Ok(Some(Message { uri, body, v, .. })) if uri == "/auth/server" => {
                            Some(Incoming::Credential { credential: body.into_owned(), v })
                        }
                        Ok(Some(_)) => Some(Incoming::Other),
                        Err(_) => {
                            self.devices.metrics.frames_malformed.inc();
                            Some(Incoming::Other)
                        }
                    };
                    (handled, incoming)
                }
                Cut::TooLarge { detail } => (0, Some(Incoming::TooLarge { detail })),
                Cut::Incomplete | Cut::Later(_) => (0, None),
            };
            self.inbox.keep(bytes, handled);
            if let Some(incoming) = incoming {
                return Ok(incoming);
            }
            match later {
                Some(until) => tokio::time::sleep_until(until).await,
                None if handled > 0 => {}
                None => self.fill().await?,
            }
        }
    }

    /// Reads what has come.
    async fn fill(&mut self) -> Result<(), Failure> {
        let read = poll_fn(|cx| {
            let mut buffer = [0; FRAME_BYTES_MAX];
            match self.transport.poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(count)) => {
                    self.inbox.keep_slice(&buffer[..count]);
                    Poll::Ready(Ok(count))
                }
                other => other,
            }
        })
        .await;
        match read {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(Failure::Gone),
        }
    }

    /// Asks the authenticator; a peer that goes meanwhile takes its question back.
    async fn ask(&self, credential: &str) -> Result<Result<Admitted, AuthError>, Failure> {
        let remote = self.remote.to_string();
        tokio::select! {
            biased;
            answer = self.devices.gate.admit(credential, &remote) => Ok(answer),
            () = self.transport.peer_closed() => Err(Failure::Gone),
        }
    }

    /// One attempt is used up: the answer, which is the last frame where it was the last attempt.
    fn refused(&mut self) -> Result<Vec<u8>, Failure> {
        self.devices.metrics.auth_refused.inc();
        self.unavailable = 0;
        self.attempts += 1;
        let answer = self.devices.failed(self.dialect, Failed::Refused);
        if self.attempts < self.devices.config.auth_attempts { Ok(answer) } else { Err(Failure::Close(Some(answer))) }
    }

    /// The credential can't be checked: the answer is held back, as old clients ask again at every frame.
    async fn unavailable(&mut self) -> Result<Vec<u8>, Failure> {
        self.devices.metrics.auth_unavailable.inc();
        self.unavailable += 1;
        self.pause(unavailable_delay(self.devices)).await?;
        let answer = self.devices.failed(self.dialect, Failed::Unavailable);
        if self.unavailable < UNAVAILABLE_MAX { Ok(answer) } else { Err(Failure::Close(Some(answer))) }
    }

    async fn admitted(self, admitted: Admitted) -> Result<Login, Failure> {
        let expires = admitted.lasts.and_then(|lasts| Instant::now().checked_add(lasts));
        if let Some(delay) = self.devices.hub.replace_delay(&admitted.uid) {
            self.pause(delay).await?;
        }
        Ok(Login { uid: admitted.uid, dialect: self.dialect, expires })
    }

    /// Waits without reading; fails where the peer goes meanwhile.
    async fn pause(&self, delay: Duration) -> Result<(), Failure> {
        let gone = tokio::time::timeout(delay, self.transport.peer_closed()).await.is_ok()
            // It is looked for only now and then: so once more, at the end.
            || tokio::time::timeout(Duration::ZERO, self.transport.peer_closed()).await.is_ok();
        if gone { Err(Failure::Gone) } else { Ok(()) }
    }

    async fn send(&self, frame: &[u8]) -> Result<(), Failure> {
        let sent = tokio::time::timeout(self.devices.config.write_timeout, close::write_all(self.transport, frame));
        match sent.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::Gone),
            Err(_) => Err(Failure::Close(None)),
        }
    }
}

/// A random 1 to 3 × `auth.unavailable_delay`.
pub(super) fn unavailable_delay(devices: &Devices) -> Duration {
    devices.unavailable_delay.mul_f64(rand::rng().random_range(1.0..=3.0))
}

/// The dialect of a device whose `/auth/server` had this `v`.
pub(super) fn dialect(v: Option<i64>) -> u8 {
    if v.is_some_and(|v| v >= i64::from(DIALECT_2)) { DIALECT_2 } else { 1 }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}
