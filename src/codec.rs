//! Frames over a socket, for who speaks with `Framed`: clients and tests. (The gateway's sessions don't: it would cost
//! every idle connection a buffer.)

use std::{borrow::Cow, io};

use bytes::{Buf, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::frame::{self, ByteOrder, Malformed, Message, TooLarge};

/// A message that owns its text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnedMessage {
    /// The message's number; 0 where it has none.
    pub seq: i64,
    /// What the message is.
    pub uri: String,
    /// Its content.
    pub body: String,
    /// The dialect that a device asks for in `/auth/server`.
    pub v: Option<i64>,
}

impl OwnedMessage {
    /// A message without number.
    #[must_use]
    pub fn new(uri: &str, body: &str) -> Self {
        Self { seq: 0, uri: uri.to_owned(), body: body.to_owned(), v: None }
    }
}

impl From<Message<'_>> for OwnedMessage {
    fn from(message: Message<'_>) -> Self {
        let Message { seq, uri, body, v } = message;
        Self { seq, uri: uri.into_owned(), body: body.into_owned(), v }
    }
}

/// Why no further message can be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The connection broke, or ended inside a frame.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A frame is longer than allowed. None of its bytes was waited for.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// A message can't be read.
    #[error("malformed message: {0}")]
    Malformed(#[from] Malformed),
}

/// Reads and writes [`OwnedMessage`]s as frames; skips those without content. It reserves nothing on the word of a
/// peer: the buffer grows with what has come.
#[derive(Debug, Clone, Copy)]
pub struct FrameCodec {
    /// How the length is written.
    pub order: ByteOrder,
    /// The longest message that is read or written, without its prefix.
    pub bytes_max: usize,
}

impl Decoder for FrameCodec {
    type Item = OwnedMessage;
    type Error = CodecError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<OwnedMessage>, CodecError> {
        while let Some(range) = frame::split(self.order, self.bytes_max, buffer)? {
            let end = range.end;
            let message = frame::parse(&buffer[range]).map(|message| message.map(OwnedMessage::from));
            buffer.advance(end);
            if let Some(message) = message? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }
}

impl Encoder<OwnedMessage> for FrameCodec {
    type Error = CodecError;

    fn encode(&mut self, message: OwnedMessage, buffer: &mut BytesMut) -> Result<(), CodecError> {
        let OwnedMessage { seq, uri, body, v } = message;
        let message = Message { seq, uri: Cow::Owned(uri), body: Cow::Owned(body), v };
        let mut bytes = Vec::new();
        frame::encode_message(self.order, &message, &mut bytes);
        let message_bytes = bytes.len() - frame::PREFIX_BYTES;
        if message_bytes > self.bytes_max {
            return Err(TooLarge { bytes: message_bytes, bytes_max: self.bytes_max }.into());
        }
        buffer.extend_from_slice(&bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CODEC: FrameCodec = FrameCodec { order: ByteOrder::Big, bytes_max: 1024 };

    fn frames(messages: &[OwnedMessage]) -> BytesMut {
        let mut buffer = BytesMut::new();
        for message in messages {
            let mut codec = CODEC;
            codec.encode(message.clone(), &mut buffer).unwrap();
        }
        buffer
    }

    #[test]
    fn frames_without_content_are_skipped() {
        // length 0 · length 4, `null` · a heartbeat
        let mut buffer = BytesMut::from(&b"\0\0\0\0\0\0\0\x04null"[..]);
        buffer.extend_from_slice(&frames(&[OwnedMessage::new("/heartbeat", "")]));
        let message = { CODEC }.decode(&mut buffer).unwrap().unwrap();
        assert_eq!(message, OwnedMessage::new("/heartbeat", ""));
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_malformed_message_is_told_once_and_the_next_is_read() {
        let mut buffer = BytesMut::from(&b"\0\0\0\x02[]"[..]);
        buffer.extend_from_slice(&frames(&[OwnedMessage::new("/a", "")]));
        assert!(matches!({ CODEC }.decode(&mut buffer), Err(CodecError::Malformed(Malformed::NotObject))));
        assert_eq!({ CODEC }.decode(&mut buffer).unwrap(), Some(OwnedMessage::new("/a", "")));
    }

    #[test]
    fn an_announced_length_reserves_nothing() {
        let mut codec = FrameCodec { order: ByteOrder::Little, bytes_max: usize::MAX };
        let mut buffer = BytesMut::from(&[0, 0, 0, 0xff, b'{'][..]);
        let capacity = buffer.capacity();
        assert_eq!(codec.decode(&mut buffer).unwrap(), None);
        assert_eq!(buffer.capacity(), capacity);
    }

    #[test]
    fn a_message_over_the_limit_is_neither_read_nor_written() {
        let message = OwnedMessage::new("/a", &"x".repeat(1024));
        let mut buffer = BytesMut::new();
        assert!(matches!({ CODEC }.encode(message, &mut buffer), Err(CodecError::TooLarge(_))));
        assert!(buffer.is_empty());
        buffer.extend_from_slice(&[0, 0, 4, 1]);
        assert!(matches!(
            { CODEC }.decode(&mut buffer),
            Err(CodecError::TooLarge(TooLarge { bytes: 1025, bytes_max: 1024 }))
        ));
    }

    proptest! {
        #[test]
        fn messages_arrive_whole_however_the_bytes_are_split(
            messages in prop::collection::vec(
                (any::<i64>(), ".{0,20}", "(?s).{0,40}", any::<Option<i64>>())
                    .prop_map(|(seq, uri, body, v)| OwnedMessage { seq, uri, body, v }),
                0..4,
            ),
        ) {
            let bytes = frames(&messages);
            for cut in 0..=bytes.len() {
                let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
                for part in [&bytes[..cut], &bytes[cut..]] {
                    buffer.extend_from_slice(part);
                    while let Some(message) = { CODEC }.decode(&mut buffer).unwrap() {
                        read.push(message);
                    }
                }
                prop_assert_eq!(&read, &messages);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) | Err(CodecError::Malformed(_)) = { CODEC }.decode(&mut buffer) {}
        }
    }
}
