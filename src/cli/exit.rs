//! How a command ends.

use std::process::ExitCode;

use crate::{
    client::{CallError, ConnectError},
    config::ConfigError,
    files::FileError,
    state::StateError,
};

/// The exit codes that scripts can rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// Done, and the answer is yes.
    Done = 0,
    /// The answer is no.
    No = 1,
    /// Bad usage, configuration or request.
    Usage = 2,
    /// The secret or credential was refused.
    Refused = 3,
    /// The gateway can't be reached, or can't answer at this time.
    Unreachable = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An end with a word of why, for stderr.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let exit = match error {
            CallError::Invalid(_) => Exit::Usage,
            CallError::Refused(_) => Exit::Refused,
            CallError::Exhausted(_)
            | CallError::Unavailable(_)
            | CallError::Unreachable(_)
            | CallError::Other { .. } => Exit::Unreachable,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}
