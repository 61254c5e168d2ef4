//! A push, and the answer to it.

use tokio::sync::mpsc;

use super::Welcome;
use crate::{codec::OwnedMessage, frame};

/// The longest message that a gateway takes which doesn't tell: the default of `device.max_frame`.
const FRAME_BYTES_MAX: u64 = 64 << 10;

/// Answers that wait to be written. Who polls the stream now and then has never so many.
const ANSWERS_MAX: usize = 1_000;

/// A backend's push, which can be answered from wherever it is handled: another task, or later.
#[derive(Debug, Clone)]
pub struct DevicePush {
    /// Its number.
    pub seq: i64,
    /// What it is.
    pub uri: String,
    /// Its content.
    pub body: String,
    answers: Answers,
}

/// Why a push couldn't be answered. Its backend is told that no answer came, or that the connection was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AckError {
    /// The connection that it came by has ended.
    #[error("the connection has ended")]
    Closed,
    /// 1,000 answers wait to be written: the stream isn't polled.
    #[error("too many answers wait: the stream isn't polled")]
    Full,
    /// The gateway takes no message of this size, and would close the connection.
    #[error("an answer of {bytes} bytes, the gateway takes {bytes_max}")]
    TooLarge {
        /// The answer's length, as a message.
        bytes: u64,
        /// The most that the gateway takes.
        bytes_max: u64,
    },
}

impl DevicePush {
    /// Tells that it was taken; `reply` is for the backend, and may be empty. Waits for nothing: the stream writes it while
    /// it is polled. Only the first answer counts.
    ///
    /// # Errors
    ///
    /// [`AckError`]; nothing is written then.
    pub fn ack(&self, reply: &str) -> Result<(), AckError> {
        self.answer("/plex/ack", reply)
    }

    /// Tells that it could not be handled, and why. As [`DevicePush::ack`].
    ///
    /// # Errors
    ///
    /// [`AckError`]; nothing is written then.
    pub fn nack(&self, why: &str) -> Result<(), AckError> {
        self.answer("/plex/nack", why)
    }

    fn answer(&self, uri: &str, body: &str) -> Result<(), AckError> {
        let bytes = frame::message_bytes(self.seq.to_string().len(), uri, body) as u64;
        let bytes_max = self.answers.bytes_max;
        if bytes > bytes_max {
            return Err(AckError::TooLarge { bytes, bytes_max });
        }
        let answer = OwnedMessage { seq: self.seq, ..OwnedMessage::new(uri, body) };
        self.answers.to.try_send(answer).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AckError::Full,
            mpsc::error::TrySendError::Closed(_) => AckError::Closed,
        })
    }
}

/// Where the answers to one connection's pushes go.
#[derive(Debug, Clone)]
pub(super) struct Answers {
    to: mpsc::Sender<OwnedMessage>,
    bytes_max: u64,
}

impl Answers {
    /// For a connection that was welcomed so, of a device with this limit; and what they come out of.
    pub(super) fn new(welcome: Option<&Welcome>, frame_bytes_max: usize) -> (Self, mpsc::Receiver<OwnedMessage>) {
        let (to, answers) = mpsc::channel(ANSWERS_MAX);
        let told = welcome.map(|welcome| welcome.max_frame_bytes).filter(|&bytes| bytes > 0);
        let bytes_max = told.unwrap_or(FRAME_BYTES_MAX).min(frame_bytes_max as u64);
        (Self { to, bytes_max }, answers)
    }

    pub(super) fn push(&self, seq: i64, uri: String, body: String) -> DevicePush {
        DevicePush { seq, uri, body, answers: self.clone() }
    }
}
