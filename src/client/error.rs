//! What a call can end with instead of an answer.

use std::error::Error;

use tonic::{Code, Status};

use crate::files::FileError;

/// An address, a secret or a file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address isn't of the form `http://HOST:PORT` or `https://HOST:PORT`.
    #[error("the gateway's address must be http://HOST:PORT or https://HOST:PORT, this is {0:?}")]
    Address(String),
    /// Certificates were given for an address without TLS.
    #[error("certificates are for https://HOST:PORT, this is {0:?}")]
    Plain(String),
    /// A file of certificates or of a key can't be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The secret can't stand in a header. It isn't shown.
    #[error("a secret has printable ASCII characters only")]
    Secret,
}

/// Why a call has no answer. What became of a push is never one of these.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// The request is wrong; the text names the field and its limit.
    #[error("{0}")]
    Invalid(String),
    /// The secret is missing, wrong, or has no scope for this call.
    #[error("refused: {0}")]
    Refused(String),
    /// Over a limit at this time. Of a push that isn't part of a stream: nothing was sent.
    #[error("over a limit: {0}")]
    Exhausted(String),
    /// The gateway itself says that it can't. Of a push that isn't part of a stream: nothing was sent.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// No connection, or it broke. What became of a push in flight is unknown.
    #[error("can't reach the gateway: {0}")]
    Unreachable(String),
    /// Anything else.
    #[error("{message} ({code:?})")]
    Other {
        /// The code that the gateway gave.
        code: Code,
        /// Its text.
        message: String,
    },
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        // Only what this side of the connection made has a source. The innermost tells most: "Connection refused".
        if let Some(mut source) = status.source() {
            while let Some(inner) = source.source() {
                source = inner;
            }
            return Self::Unreachable(source.to_string());
        }
        let message = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument => Self::Invalid(message),
            Code::Unauthenticated | Code::PermissionDenied => Self::Refused(message),
            Code::ResourceExhausted => Self::Exhausted(message),
            Code::Unavailable => Self::Unavailable(message),
            code => Self::Other { code, message },
        }
    }
}
