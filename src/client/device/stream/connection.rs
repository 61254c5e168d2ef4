//! One connection of a device that stays connected: its answers go out, and its session is renewed in time.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::{
    client::device::{AuthAnswer, Credential, Device, DeviceOptions, Event, LoginError, push::Answers},
    codec::{CodecError, OwnedMessage},
};

/// Bytes that wait for the socket before no more answers are taken.
const OUTPUT_BYTES: usize = 64 << 10;

/// A session is renewed when three quarters of its time are over, and then of what is left; never sooner than this, lest
/// one that has no time left asks without end.
const RENEWAL_MIN: Duration = Duration::from_secs(1);

pub(super) struct Connection<S> {
    device: Device<S>,
    since: Instant,
    answers: Answers,
    to_write: mpsc::Receiver<OwnedMessage>,
    credential: Credential,
    /// How long a new credential may take.
    timeout: Duration,
    /// When the session ends by itself. None: never, or its credential is always the same.
    ends: Option<Instant>,
    /// Waits until it is time, and then for a new credential.
    renewal: Option<BoxFuture<'static, Option<String>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(super) fn new(device: Device<S>, options: &DeviceOptions) -> Self {
        let (answers, to_write) = Answers::new(device.welcome(), options.frame_bytes_max);
        let (credential, timeout) = (options.credential.clone(), options.timeout);
        let since = Instant::now();
        let mut connection = Self { device, since, answers, to_write, credential, timeout, ends: None, renewal: None };
        connection.welcomed();
        connection
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// Where the answers to its pushes go.
    pub(super) fn answers(&self) -> &Answers {
        &self.answers
    }

    /// The next thing that happens, whatever else goes out meanwhile.
    pub(super) async fn next(&mut self) -> Result<Event, CodecError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// What the gateway said to a renewal. A bad answer leaves the session as it is: there may be time for another.
    pub(super) fn was_answered(&mut self, answer: &AuthAnswer) {
        match answer {
            AuthAnswer::Success(_) => self.welcomed(),
            AuthAnswer::Refused | AuthAnswer::Unavailable => self.renew(),
        }
    }

    /// The session's end is known anew.
    fn welcomed(&mut self) {
        let told = self.device.welcome().and_then(|welcome| welcome.expires_in_seconds);
        let told = told.filter(|_| !self.credential.is_fixed());
        // One that is out of any calendar never ends.
        self.ends = told.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        self.renew();
    }

    fn renew(&mut self) {
        self.renewal = self.ends.map(|ends| {
            let wait = (ends.saturating_duration_since(Instant::now()) / 4 * 3).max(RENEWAL_MIN);
            let (credential, limit) = (self.credential.clone(), self.timeout);
            async move {
                sleep(wait).await;
                timeout(limit, credential.get()).await.map_err(|_| LoginError::TimedOut(limit)).flatten().ok()
            }
            .boxed()
        });
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, CodecError>> {
        while let Some(Poll::Ready(credential)) = self.renewal.as_mut().map(|renewal| renewal.poll_unpin(cx)) {
            self.renewal = None;
            match credential {
                // Goes on with the answer.
                Some(credential) => self.device.queue(self.device.auth_message(&credential))?,
                None => self.renew(),
            }
        }
        loop {
            while self.device.output.len() < OUTPUT_BYTES
                && let Poll::Ready(Some(answer)) = self.to_write.poll_recv(cx)
            {
                self.device.queue(answer)?;
            }
            let was_full = self.device.output.len() >= OUTPUT_BYTES;
            let event = self.device.poll_next(cx);
            // Room that came meanwhile wakes nobody.
            if !(event.is_pending() && was_full && self.device.output.len() < OUTPUT_BYTES) {
                return event;
            }
        }
    }
}
