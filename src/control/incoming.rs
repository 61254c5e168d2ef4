//! Accepted control connections, and what a call knows of its own: who is at its other end, when its time is over.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream::{self, Stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::Connected;

use super::secret::{Caller, ClientNames};
use crate::{
    telemetry::{HandshakeEnd, Metrics},
    tls::{self, Failed, Handshakes, ServerTls},
};

/// Pause after an accept that failed: descriptors or memory are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection of a backend.
pub(super) struct Connection {
    stream: Transport,
    info: ConnectionInfo,
    /// Ends the timer of its age.
    _gone: DropGuard,
}

enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What a call knows of its connection. Cheap to clone: each call gets one.
#[derive(Clone)]
pub(super) struct ConnectionInfo(Arc<Info>);

struct Info {
    peer: SocketAddr,
    shown: Shown,
    /// Its time (`control.max_connection_age`) is over: its streams end.
    over: CancellationToken,
}

/// The certificate that a caller has shown.
pub(super) enum Shown {
    /// None.
    Nothing,
    /// One that stands in for a secret.
    Named(Caller),
    /// One whose name isn't among `control.client_names`.
    Unnamed,
}

impl ConnectionInfo {
    /// Of a connection that nobody has made.
    #[cfg(test)]
    pub(super) fn imagined(peer: SocketAddr, shown: Shown) -> Self {
        Self(Arc::new(Info { peer, shown, over: CancellationToken::new() }))
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    pub(super) fn shown(&self) -> &Shown {
        &self.0.shown
    }

    pub(super) fn over(&self) -> &CancellationToken {
        &self.0.over
    }
}

/// How connections are taken.
#[derive(Clone)]
pub(super) struct Settings {
    /// None: without TLS.
    pub(super) tls: Option<ServerTls>,
    /// `control.client_names`.
    pub(super) names: ClientNames,
    /// `control.max_connection_age`.
    pub(super) max_age: Option<Duration>,
    pub(super) metrics: Metrics,
}

/// The connections that come to `listener`, each once it has shaken hands.
pub(super) fn incoming(listener: TcpListener, settings: Settings) -> impl Stream<Item = io::Result<Connection>> {
    let accepting = Accepting { listener, settings, handshakes: Handshakes::default() };
    stream::unfold(accepting, |mut accepting| async move {
        let connection = accepting.next().await;
        Some((Ok(connection), accepting))
    })
}

struct Accepting {
    listener: TcpListener,
    settings: Settings,
    handshakes: Handshakes<Connection>,
}

impl Accepting {
    async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => {
                        // Fails only on a dead socket.
                        let _ = stream.set_nodelay(true);
                        match self.settings.tls.clone() {
                            None => return Connection::plain(stream, peer, self.settings.max_age),
                            Some(tls) => self.shake_hands(tls, stream, peer),
                        }
                    }
                    Err(error) => {
                        tracing::error!(%error, "accepting backends");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                connection = self.handshakes.next() => return connection,
            }
        }
    }

    fn shake_hands(&mut self, tls: ServerTls, stream: TcpStream, peer: SocketAddr) {
        let settings = self.settings.clone();
        let cut = self.handshakes.begin(async move {
            match tls::accept(&tls, stream).await {
                Ok(stream) => Some(Connection::tls(stream, peer, &settings)),
                Err(failed) => {
                    settings.metrics.handshake_failed(match failed {
                        Failed::Certificate => HandshakeEnd::Certificate,
                        Failed::Timeout => HandshakeEnd::Timeout,
                        Failed::Broken => HandshakeEnd::Broken,
                    });
                    tracing::debug!(%peer, ?failed, "TLS handshake of a backend");
                    None
                }
            }
        });
        if cut {
            self.settings.metrics.handshake_failed(HandshakeEnd::Cut);
        }
    }
}

impl Connection {
    fn plain(stream: TcpStream, peer: SocketAddr, max_age: Option<Duration>) -> Self {
        Self::new(Transport::Plain(stream), peer, Shown::Nothing, max_age)
    }

    fn tls(stream: TlsStream<TcpStream>, peer: SocketAddr, settings: &Settings) -> Self {
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let shown = match certificate.map(|certificate| settings.names.of_certificate(certificate)) {
            None => Shown::Nothing,
            Some(None) => Shown::Unnamed,
            Some(Some(caller)) => Shown::Named(caller),
        };
        Self::new(Transport::Tls(Box::new(stream)), peer, shown, settings.max_age)
    }

    fn new(stream: Transport, peer: SocketAddr, shown: Shown, max_age: Option<Duration>) -> Self {
        let (over, gone) = (CancellationToken::new(), CancellationToken::new());
        if let Some(age) = max_age {
            let (over, gone) = (over.clone(), gone.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = gone.cancelled() => {}
                    () = tokio::time::sleep(age) => over.cancel(),
                }
            });
        }
        Self { stream, info: ConnectionInfo(Arc::new(Info { peer, shown, over })), _gone: gone.drop_guard() }
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Transport::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
