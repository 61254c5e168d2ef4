//! What has come from a device and isn't handled yet: cuts frames, and bounds how many are handled in a second.
//!
//! Nothing is kept for a connection without a partial frame: the bytes are read into a buffer of the thread.

use std::time::Duration;

use tokio::time::Instant;

use crate::frame::{self, ByteOrder};

/// Bytes of a frame's length.
const PREFIX_BYTES: usize = 4;

/// Bytes that wait: a part of a frame, or frames that may not be handled yet.
#[derive(Default)]
pub(super) struct Inbox {
    rest: Vec<u8>,
    /// When the frames handled so far would have been due at the steady rate (the "theoretical arrival time" of the
    /// generic cell rate algorithm). None: none yet.
    due: Option<Instant>,
}

/// How many frames are handled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate {
    pub(super) frames_per_second: u32,
    pub(super) burst: u32,
}

/// What stands at the front of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// A message, and the whole frame's length.
    Frame { message: std::ops::Range<usize>, bytes: usize },
    /// Not a whole frame.
    Incomplete,
    /// A frame over the limit.
    TooLarge { detail: String },
    /// A frame that may be handled from then on.
    Later(Instant),
}

impl Inbox {
    /// Looks at the front of `bytes`, and counts the frame that it finds.
    pub(super) fn cut(&mut self, order: ByteOrder, bytes_max: usize, rate: Rate, bytes: &[u8]) -> Cut {
        let message = match frame::split(order, bytes_max, bytes) {
            Ok(Some(message)) => message,
            Ok(None) => return Cut::Incomplete,
            Err(error) => return Cut::TooLarge { detail: error.to_string() },
        };
        let now = Instant::now();
        let interval = Duration::from_secs(1) / rate.frames_per_second;
        let due = self.due.map_or(now, |due| due.max(now));
        let allowed = due.checked_sub(interval * rate.burst.saturating_sub(1)).unwrap_or(now);
        if allowed > now {
            return Cut::Later(allowed);
        }
        self.due = Some(due + interval);
        Cut::Frame { bytes: message.end.max(PREFIX_BYTES), message }
    }

    /// Takes what waits, to go through it.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rest)
    }

    /// Keeps what couldn't be handled, in no more memory than it needs.
    pub(super) fn keep(&mut self, mut bytes: Vec<u8>, handled: usize) {
        if handled < bytes.len() {
            bytes.drain(..handled);
            // Halving it at least makes the copies cost no more than the bytes did.
            if bytes.capacity() / 2 > bytes.len() {
                bytes.shrink_to_fit();
            }
            self.rest = bytes;
        }
    }

    /// Keeps a part of a thread's buffer.
    pub(super) fn keep_slice(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.rest.reserve_exact(bytes.len());
            self.rest.extend_from_slice(bytes);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_large_buffer_is_small() {
        let mut inbox = Inbox::default();
        inbox.keep(vec![0; 1 << 20], (1 << 20) - 5);
        assert_eq!(inbox.rest.len(), 5);
        assert!(inbox.rest.capacity() <= 64, "{} bytes are held for 5", inbox.rest.capacity());
    }
}
