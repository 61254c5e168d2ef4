//! TLS below a session.
//!
//! An idle connection owns no buffer: records are read into a buffer of the thread and opened there, and made in one and
//! written at once. Kept are only the front of a record that hasn't come whole, text that the reader had no room for, and
//! the end of a record that the socket didn't take: one record, so at most 16 KiB and its frame are taken beyond what the
//! outbox counts.
//!
//! The thread that pushes and the one that reads share the state behind a lock, which is never held across an await. Lock
//! order: an outbox, then this.

mod core;
#[cfg(test)]
pub(super) mod tests;

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use rustls::ServerConfig;

use self::core::Core;
use super::{close, transport::Transport};
use crate::hub::connection::Wire;

/// The most text in one record.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Bytes read at a time at most. With the front of a record that came before, it makes no more text than a session's
/// buffer takes.
const READ_BYTES_MAX: usize = 32 * 1024;

/// Bytes read at a time at least, however little room the reader has.
const READ_BYTES_MIN: usize = 4 * 1024;

/// While a connection isn't read, it is opened up to this much of what comes, to find out whether the peer said its end.
const AHEAD_BYTES_MAX: usize = 16 * 1024;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES_MAX].into_boxed_slice());
    /// Records on their way out.
    static RECORDS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// The text of a record that is made of several frames.
    static TEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// TLS over `T`, once the handshake is done.
pub(super) struct Tls<T> {
    inner: T,
    core: Mutex<Core>,
    /// Records wait for room in `inner`. Changes under the lock; read without it.
    holds_back: AtomicBool,
}

impl<T: Transport> Tls<T> {
    /// The state before the handshake.
    pub(super) fn new(inner: T, config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self { inner, core: Mutex::new(Core::new(config)?), holds_back: AtomicBool::new(false) })
    }

    /// Does the handshake. Where it fails, the peer has been told why if the socket took it.
    pub(super) async fn handshake(&self) -> io::Result<()> {
        loop {
            let read = poll_fn(|cx| self.poll_fill(cx, &mut self.core(), &mut [])).await;
            close::flush(self).await?;
            read?;
            let core = self.core();
            if core.has_peer_ended() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if !core.is_handshaking() {
                return Ok(());
            }
        }
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(|poisoned| {
            // Only this connection is lost, not the threads that push to it.
            let mut core = poisoned.into_inner();
            core.fail();
            core
        })
    }

    /// Reads once, and opens what has come whole: into `buffer`, what doesn't fit is kept. How many bytes `buffer` got.
    fn poll_fill(&self, cx: &mut Context<'_>, core: &mut Core, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let room = buffer.len().clamp(READ_BYTES_MIN, READ_BYTES_MAX);
        READ_BUFFER.with_borrow_mut(|read| {
            let count = match ready!(self.inner.poll_read(cx, &mut read[..room]))? {
                0 => {
                    core.peer_ended();
                    return Poll::Ready(Ok(0));
                }
                count => count,
            };
            RECORDS.with_borrow_mut(|records| {
                records.clear();
                let opened = core.open(&mut read[..count], buffer, records);
                // A peer that isn't understood is told so, if there is room.
                let sent = self.send(core, records);
                let opened = opened.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                sent?;
                Poll::Ready(Ok(opened))
            })
        })
    }

    /// Seals `text`, which fits into one record, and writes it; what the socket doesn't take is held back.
    fn write_record(&self, core: &mut Core, text: &[u8]) -> io::Result<()> {
        RECORDS.with_borrow_mut(|records| {
            records.clear();
            core.seal(text, records).map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))?;
            self.send(core, records)
        })
    }

    /// Writes records; what the socket doesn't take is held back.
    fn send(&self, core: &mut Core, records: &[u8]) -> io::Result<()> {
        let written = if core.outgoing.is_empty() && !records.is_empty() {
            match self.inner.try_write(records) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                written => written?,
            }
        } else {
            0
        };
        core.outgoing.extend_from_slice(&records[written..]);
        self.holds_back.store(!core.outgoing.is_empty(), Relaxed);
        Ok(())
    }

    /// As [`Wire::try_flush`].
    fn flush(&self, core: &mut Core) -> io::Result<usize> {
        if core.outgoing.is_empty() {
            return Ok(0);
        }
        let written = self.inner.try_write(&core.outgoing)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if written == core.outgoing.len() {
            core.outgoing = Vec::new();
        } else {
            core.outgoing.drain(..written);
        }
        self.holds_back.store(!core.outgoing.is_empty(), Relaxed);
        Ok(written)
    }

    /// Whether something can be sealed; flushes first.
    fn begin_write(&self, core: &mut Core) -> io::Result<()> {
        self.flush(core)?;
        if core.outgoing.is_empty() { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }
}

impl<T: Transport> Wire for Tls<T> {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut core = self.core();
        self.begin_write(&mut core)?;
        let mut taken = 0;
        for text in bytes.chunks(TEXT_BYTES_MAX) {
            self.write_record(&mut core, text)?;
            taken += text.len();
            if !core.outgoing.is_empty() {
                break;
            }
        }
        Ok(taken)
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        if let [piece] = pieces {
            return self.try_write(piece);
        }
        let mut core = self.core();
        self.begin_write(&mut core)?;
        TEXT.with_borrow_mut(|text| {
            text.clear();
            for piece in pieces {
                let room = TEXT_BYTES_MAX - text.len();
                text.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            self.write_record(&mut core, text)?;
            Ok(text.len())
        })
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_writable(cx)
    }

    fn holds_back(&self) -> bool {
        self.holds_back.load(Relaxed)
    }

    fn try_flush(&self) -> io::Result<usize> {
        self.flush(&mut self.core())
    }
}

impl<T: Transport> Transport for Tls<T> {
    fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut core = self.core();
        if core.has_said_end() {
            return self.inner.poll_read(cx, buffer);
        }
        loop {
            let count = core.take_text(buffer);
            if count > 0 || core.has_peer_ended() {
                return Poll::Ready(Ok(count));
            }
            if core.has_failed() {
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            let count = ready!(self.poll_fill(cx, &mut core, buffer))?;
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn say_end(&self) {
        let mut core = self.core();
        RECORDS.with_borrow_mut(|records| {
            records.clear();
            core.say_end(records);
            // Where the socket is broken, nobody is left to be told.
            let _ = self.send(&mut core, records);
        });
    }

    fn shut_write(&self) {
        self.inner.shut_write();
    }

    async fn peer_closed(&self) {
        let ended = poll_fn(|cx| {
            let mut core = self.core();
            while !core.has_peer_ended() && !core.has_failed() {
                if core.text_bytes() >= AHEAD_BYTES_MAX {
                    return Poll::Ready(false);
                }
                if ready!(self.poll_fill(cx, &mut core, &mut [])).is_err() {
                    break;
                }
            }
            Poll::Ready(true)
        });
        if !ended.await {
            self.inner.peer_closed().await;
        }
    }
}
