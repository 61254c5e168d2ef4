//! The byte stream below a session: a socket, or in tests a pipe.

use std::{
    future::Future,
    io::{self, IoSlice},
    net::Shutdown,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{io::Interest, net::TcpStream};

use crate::hub::connection::Wire;

/// How often a connection that isn't read is looked at, to notice that its peer has gone.
const CLOSED_LOOK: Duration = Duration::from_millis(250);

/// A stream that several threads may write to, and one task reads.
pub(super) trait Transport: Wire + 'static {
    /// Reads what is there; 0 at the end of the stream.
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Says that nothing more comes, where the stream has a word for it; it is taken as what is written, so it is to be
    /// flushed. What is read from now on is only to be thrown away.
    fn say_end(&self) {}

    /// Tells the peer that nothing more comes.
    fn shut_write(&self);

    /// Resolves once the peer has closed its side, without reading what it sent before.
    fn peer_closed(&self) -> impl Future<Output = ()> + Send;
}

impl Wire for TcpStream {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        TcpStream::try_write(self, bytes)
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        TcpStream::try_write_vectored(self, pieces)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_write_ready(cx)
    }
}

impl Transport for TcpStream {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            std::task::ready!(self.poll_read_ready(cx))?;
            match self.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn shut_write(&self) {
        // Fails only where the peer has gone already.
        let _ = socket2::SockRef::from(self).shutdown(Shutdown::Write);
    }

    async fn peer_closed(&self) {
        loop {
            match self.ready(Interest::READABLE).await {
                Ok(ready) if !ready.is_read_closed() => tokio::time::sleep(CLOSED_LOOK).await,
                _ => return,
            }
        }
    }
}
