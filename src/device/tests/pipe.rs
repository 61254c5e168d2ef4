//! A pipe whose near end is a [`Transport`]. (tokio's can't be asked whether it is writable, nor whether the other end
//! has gone, without reading or writing.)

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{device::transport::Transport, hub::connection::Wire};

/// How often an end with unread bytes looks whether the other has gone: rarely, so that it shows who relies on it.
const CLOSED_LOOK: Duration = Duration::from_secs(5);

/// One direction.
struct Flow {
    bytes: VecDeque<u8>,
    room: usize,
    /// One of the ends is there no longer.
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Who only wants to know of the end.
    watcher: Option<Waker>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Flow>>);

impl Shared {
    fn new(room: usize) -> Self {
        let bytes = VecDeque::new();
        Self(Arc::new(Mutex::new(Flow { bytes, room, closed: false, reader: None, writer: None, watcher: None })))
    }

    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut flow = self.0.lock().unwrap();
        if flow.bytes.is_empty() && !flow.closed {
            flow.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = buffer.len().min(flow.bytes.len());
        for (place, byte) in buffer.iter_mut().zip(flow.bytes.drain(..count)) {
            *place = byte;
        }
        if let Some(writer) = flow.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(count))
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut flow = self.0.lock().unwrap();
        if flow.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(flow.room - flow.bytes.len());
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        flow.bytes.extend(&bytes[..count]);
        if let Some(reader) = flow.reader.take() {
            reader.wake();
        }
        Ok(count)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut flow = self.0.lock().unwrap();
        if flow.closed || flow.bytes.len() < flow.room {
            return Poll::Ready(Ok(()));
        }
        flow.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut flow = self.0.lock().unwrap();
        if flow.closed {
            return Poll::Ready(());
        }
        flow.watcher = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_closed(&self) -> bool {
        self.0.lock().unwrap().closed
    }

    fn has_unread(&self) -> bool {
        !self.0.lock().unwrap().bytes.is_empty()
    }

    fn close(&self) {
        let mut flow = self.0.lock().unwrap();
        flow.closed = true;
        for waker in [flow.reader.take(), flow.writer.take(), flow.watcher.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

struct End {
    input: Shared,
    output: Shared,
}

impl Drop for End {
    fn drop(&mut self) {
        self.input.close();
        self.output.close();
    }
}

/// The gateway's end.
pub(in crate::device) struct Near(End);

/// The device's end.
pub(in crate::device) struct Far(End);

/// A pipe that holds `room` bytes on the way to the device.
pub(in crate::device) fn pipe(room: usize) -> (Near, Far) {
    let (to_device, to_gateway) = (Shared::new(room), Shared::new(64 * 1024));
    let near = End { input: to_gateway.clone(), output: to_device.clone() };
    (Near(near), Far(End { input: to_device, output: to_gateway }))
}

impl Wire for Near {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.output.try_write(bytes)
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let piece = pieces.iter().find(|piece| !piece.is_empty()).expect("something is written");
        self.try_write(piece)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.output.poll_writable(cx)
    }
}

impl Transport for Near {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.0.input.poll_read(cx, buffer)
    }

    fn shut_write(&self) {
        self.0.output.close();
    }

    async fn peer_closed(&self) {
        // As a socket, which can't be waited for while it holds unread bytes.
        while self.0.input.has_unread() {
            if self.0.input.is_closed() {
                return;
            }
            tokio::time::sleep(CLOSED_LOOK).await;
        }
        poll_fn(|cx| self.0.input.poll_closed(cx)).await;
    }
}

impl AsyncRead for Far {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.0.input.poll_read(cx, buffer.initialize_unfilled());
        read.map_ok(|count| buffer.advance(count))
    }
}

impl AsyncWrite for Far {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.0.output.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.output.poll_writable(cx).map_ok(|()| unreachable!("it was full under the same thread"))
            }
            done => Poll::Ready(done),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.output.close();
        Poll::Ready(Ok(()))
    }
}
