//! The end of a connection, so that its last frame arrives: last frame, half-close, what still comes is thrown away,
//! close. (A socket that is closed with unread input resets the connection, and the reset may overtake the frame.)

use std::{future::poll_fn, io, task::Poll, time::Duration};

use super::{Devices, transport::Transport};
use crate::{
    hub::connection::{Connection, Wire},
    model::EndReason,
};

/// How long the last frame is tried on a full socket, and how long input is thrown away afterwards.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Closes a session that has ended: what is due of its queue, the kick, the close.
pub(super) async fn session<T: Transport>(devices: &Devices, connection: &Connection<T>, reason: EndReason) {
    if reason == EndReason::Closed {
        connection.wire.say_end();
        return;
    }
    let with_pushes = match reason {
        EndReason::Draining | EndReason::Expired | EndReason::Disconnected | EndReason::Replaced => true,
        EndReason::Closed | EndReason::Slow | EndReason::Timeout | EndReason::Protocol => false,
    };
    let transport = &connection.wire;
    let frames = connection.take_queue().map(|queue| queue.into_last_frames(with_pushes)).unwrap_or_default();
    if !frames.is_empty() || transport.holds_back() {
        let within = if with_pushes { devices.config.write_timeout } else { LAST_WORDS };
        let written = tokio::time::timeout(within, async {
            for frame in frames {
                write_all(transport, &frame).await?;
            }
            flush(transport).await
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            // Behind a frame that was cut off no other can be told.
            Err(_) => return part(transport).await,
        }
    }
    last(transport, devices.kick(connection.dialect(), reason).as_deref()).await;
}

/// Writes the last frame, where there is one, and closes.
pub(super) async fn last<T: Transport>(transport: &T, frame: Option<&[u8]>) {
    let written = tokio::time::timeout(LAST_WORDS, async {
        write_all(transport, frame.unwrap_or_default()).await?;
        transport.say_end();
        flush(transport).await
    });
    if let Ok(Err(_)) = written.await {
        return;
    }
    part(transport).await;
}

/// Half-close, then close. What the socket has taken arrives, also where the last frame found no room.
async fn part<T: Transport>(transport: &T) {
    transport.shut_write();
    let _ = tokio::time::timeout(LAST_WORDS, discard(transport)).await;
}

/// Writes all of it, to where nothing is held back.
pub(super) async fn write_all<W: Wire>(wire: &W, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match wire.try_write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll_fn(|cx| wire.poll_writable(cx)).await?;
            }
            Err(error) => return Err(error),
        }
    }
    flush(wire).await
}

/// Hands on all that the wire holds back.
pub(super) async fn flush<W: Wire>(wire: &W) -> io::Result<()> {
    while wire.holds_back() {
        match wire.try_flush() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll_fn(|cx| wire.poll_writable(cx)).await?;
            }
            done => {
                done?;
            }
        }
    }
    Ok(())
}

/// Throws away what comes, to the end of the stream.
async fn discard<T: Transport>(transport: &T) {
    poll_fn(|cx| {
        let mut buffer = [0; 4096];
        // Some reads a turn, then others run.
        for _ in 0..16 {
            match transport.poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
