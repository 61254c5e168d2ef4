//! The server's side of handshakes: each has a deadline, and only so many are under way.

use std::{collections::VecDeque, io, time::Duration};

use rustls::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::ServerTls;

/// How long one may take: the slowest network needs less.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many are under way on one listener's thread. Backends and balancers are few; over it the one that has taken longest
/// is cut, so that many slow ones keep no good one waiting.
const HANDSHAKES_MAX: usize = 1_000;

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The client showed no certificate where one is needed, or one that isn't good.
    Certificate,
    /// It took too long.
    Timeout,
    /// The client has gone, speaks no TLS, or none that fits.
    Broken,
}

/// Shakes hands with a client, within [`HANDSHAKE_TIMEOUT`].
pub(crate) async fn accept<S>(tls: &ServerTls, stream: S) -> Result<TlsStream<S>, Failed>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(tls.config()).accept(stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) if is_about_certificate(&error) => Err(Failed::Certificate),
        Ok(Err(_)) => Err(Failed::Broken),
        Err(_) => Err(Failed::Timeout),
    }
}

fn is_about_certificate(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    matches!(error, Some(Error::NoCertificatesPresented | Error::InvalidCertificate(_)))
}

/// The handshakes of one listener that are under way. They end with it.
pub(crate) struct Handshakes<T> {
    max: usize,
    running: JoinSet<Option<T>>,
    /// In the order in which they began; with those that have ended since the last look.
    order: VecDeque<AbortHandle>,
}

impl<T: Send + 'static> Default for Handshakes<T> {
    fn default() -> Self {
        Self::new(HANDSHAKES_MAX)
    }
}

impl<T: Send + 'static> Handshakes<T> {
    /// At most `max` at a time.
    fn new(max: usize) -> Self {
        Self { max, running: JoinSet::new(), order: VecDeque::new() }
    }

    /// Begins one, on this thread. Where too many are under way the one that has taken longest is cut: that is none of a
    /// client that keeps pace. Tells whether one was.
    pub(crate) fn begin(&mut self, handshake: impl Future<Output = Option<T>> + Send + 'static) -> bool {
        let mut cut = false;
        if self.running.len() >= self.max {
            while let Some(oldest) = self.order.pop_front() {
                if !oldest.is_finished() {
                    oldest.abort();
                    cut = true;
                    break;
                }
            }
        }
        if self.order.len() >= 2 * self.max {
            self.order.retain(|handshake| !handshake.is_finished());
        }
        self.order.push_back(self.running.spawn(handshake));
        cut
    }

    /// The next that has succeeded. Cancel-safe; waits for ever where there is none.
    pub(crate) async fn next(&mut self) -> T {
        loop {
            match self.running.join_next().await {
                Some(Ok(Some(done))) => return done,
                // Failed, or cut.
                Some(Ok(None) | Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn over_the_bound_the_oldest_is_cut() {
        let mut handshakes = Handshakes::new(2);
        let (first, first_told) = oneshot::channel::<()>();
        let (second, second_told) = oneshot::channel();
        let wait = |told: oneshot::Receiver<()>, number: u32| async move { told.await.ok().map(|()| number) };
        assert!(!handshakes.begin(wait(first_told, 1)));
        assert!(!handshakes.begin(wait(second_told, 2)));
        assert!(handshakes.begin(async { Some(3) }));
        assert_eq!(handshakes.next().await, 3);
        second.send(()).unwrap();
        assert_eq!(handshakes.next().await, 2);
        assert!(first.send(()).is_err(), "it was cut");
    }

    #[tokio::test]
    async fn those_that_ended_are_not_kept() {
        let mut handshakes = Handshakes::new(2);
        let (_first, told) = oneshot::channel::<()>();
        handshakes.begin(async move { told.await.ok().map(|()| 0) });
        for number in 1..100 {
            assert!(!handshakes.begin(async move { Some(number) }));
            assert_eq!(handshakes.next().await, number);
        }
        assert!(handshakes.order.len() <= 4);
    }
}
