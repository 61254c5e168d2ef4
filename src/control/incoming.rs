//! Accepted control connections, and what a call knows of its own: when its time is over.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream::{self, Stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::Connected;

/// Pause after an accept that failed: descriptors or memory are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection of a backend.
pub(super) struct Connection {
    stream: TcpStream,
    info: ConnectionInfo,
    /// Ends the timer of its age.
    _gone: DropGuard,
}

/// What a call knows of its connection.
#[derive(Clone, Debug)]
pub(super) struct ConnectionInfo {
    /// Its time (`control.max_connection_age`) is over: its streams end.
    pub(super) over: CancellationToken,
}

/// The connections that come to `listener`. `max_age` as `control.max_connection_age`.
pub(super) fn incoming(listener: TcpListener, max_age: Option<Duration>) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold(listener, move |listener| async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(Connection::new(stream, max_age)), listener)),
                Err(error) => {
                    tracing::error!(%error, "accepting backends");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

impl Connection {
    fn new(stream: TcpStream, max_age: Option<Duration>) -> Self {
        // Fails only on a dead socket.
        let _ = stream.set_nodelay(true);
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
        Self { stream, info: ConnectionInfo { over }, _gone: gone.drop_guard() }
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
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
