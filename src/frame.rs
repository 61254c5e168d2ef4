//! Frames: what goes over the wire between a device and the gateway, in both directions.
//!
//! A frame is a length of four bytes, big-endian unless the gateway is configured otherwise, then that many bytes of
//! JSON. The length, and every limit on a frame, counts the message without its prefix.
//!
//! ```text
//! 00 00 00 20  {"seq":7,"uri":"/a","body":"hi"}   a push
//! 00 00 00 14  {"uri":"/heartbeat"}               a field that is zero or empty is left out
//! 00 00 00 00                                     a frame of length 0 is a sign of life and nothing else
//! ```

mod read;
mod write;

use std::ops::Range;

pub(crate) use self::write::encode_message;
pub use self::{
    read::{Malformed, Message, parse},
    write::{encode, message_bytes},
};

/// The bytes before each message that tell its length.
pub const PREFIX_BYTES: usize = 4;

/// How the length before a message is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ByteOrder {
    /// The most significant byte first; the default.
    #[default]
    Big,
    /// The least significant byte first (`device.little_endian`).
    Little,
}

impl ByteOrder {
    fn read(self, prefix: [u8; PREFIX_BYTES]) -> u32 {
        match self {
            Self::Big => u32::from_be_bytes(prefix),
            Self::Little => u32::from_le_bytes(prefix),
        }
    }

    fn write(self, bytes: u32) -> [u8; PREFIX_BYTES] {
        match self {
            Self::Big => bytes.to_be_bytes(),
            Self::Little => bytes.to_le_bytes(),
        }
    }
}

/// A frame that announces a longer message than is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {bytes} bytes, at most {bytes_max} are allowed")]
pub struct TooLarge {
    /// The length that its prefix tells.
    pub bytes: usize,
    /// The most that is allowed.
    pub bytes_max: usize,
}

/// Finds the first frame in `buffer`: where its message stands, behind the prefix. The frame ends where that range
/// ends. `None`: it isn't complete yet.
///
/// # Errors
///
/// [`TooLarge`] as soon as the prefix is there and tells more than `bytes_max`, whatever of the message has come.
pub fn split(order: ByteOrder, bytes_max: usize, buffer: &[u8]) -> Result<Option<Range<usize>>, TooLarge> {
    let Some(prefix) = buffer.first_chunk() else { return Ok(None) };
    // Where a usize had 16 bits, the limit would still be judged right.
    let bytes = usize::try_from(order.read(*prefix)).unwrap_or(usize::MAX);
    if bytes > bytes_max {
        return Err(TooLarge { bytes, bytes_max });
    }
    let end = PREFIX_BYTES.saturating_add(bytes);
    Ok((buffer.len() >= end).then_some(PREFIX_BYTES..end))
}

#[cfg(test)]
mod tests;
