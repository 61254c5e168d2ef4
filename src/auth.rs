//! Who a device is: the [`Authenticator`] that is asked, and the gate that bounds the asking.
//!
//! | Part | What is there |
//! | --- | --- |
//! | `gate.rs` | the bounds of the asking, the judgement of the answers |
//! | `setup.rs` | which authenticator `auth.mode` means |
//! | `token.rs`, `keys.rs`, `fetch.rs` | signed tokens, the keys in files, the keys of a URL |
//! | `grpc.rs`, `http.rs`, `refusals.rs` | backends that are asked, and what they refused a moment ago |
//! | `web.rs` | connections to such servers |
//! | `sign.rs` | makes a token, for trying it out |

mod fetch;
mod gate;
mod grpc;
mod http;
mod keys;
mod refusals;
mod rfc3339;
mod setup;
pub(crate) mod sign;
mod token;
mod trust;
mod web;

use std::{fmt, pin::Pin, time::SystemTime};

pub use self::trust::Trust;
pub(crate) use self::{
    gate::{Admitted, Gate},
    setup::Setup,
};

/// What [`Authenticator::authenticate`] returns.
pub type AuthFuture<'a> = Pin<Box<dyn Future<Output = Result<Identity, AuthError>> + Send + 'a>>;

/// Decides who a device is.
///
/// The gateway bounds the calls: at most `auth.max_in_flight` at a time, each for at most `auth.timeout`; who waits
/// longer than that for a place, or for the answer, is answered `unavailable`, as where the call panics. A call may be
/// dropped at any await, when its time is over or its device has gone. Called on the threads that serve devices: it
/// must not block.
///
/// ```
/// use plex::{AuthError, AuthFuture, AuthRequest, Authenticator, Identity};
///
/// /// Devices whose credential is their uid, a colon and a word.
/// struct Word(&'static str);
///
/// impl Authenticator for Word {
///     fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a> {
///         Box::pin(async move {
///             match request.credential.split_once(':') {
///                 Some((uid, word)) if word == self.0 => Ok(Identity::new(uid)),
///                 _ => Err(AuthError::Refused),
///             }
///         })
///     }
/// }
/// ```
pub trait Authenticator: Send + Sync + 'static {
    /// Tells whose credential this is.
    ///
    /// # Errors
    ///
    /// [`AuthError::Refused`] where it is nobody's; [`AuthError::Unavailable`] where that can't be checked now, so the
    /// device is told to try again later.
    fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a>;

    /// The answer, where it is known without asking anybody: by a signature, or from a cache. It is called first, takes no
    /// place among `auth.max_in_flight`, and so isn't held up by calls that wait. None, the default:
    /// [`authenticate`](Self::authenticate) has to be called. It must not block.
    fn known(&self, request: AuthRequest<'_>) -> Option<Result<Identity, AuthError>> {
        let _ = request;
        None
    }
}

/// What a device showed.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct AuthRequest<'a> {
    /// The body of its `/auth/server` message, at most 4 KiB: a longer one is refused without a question.
    pub credential: &'a str,
    /// Where it connects from: "ip:port", IPv6 in brackets.
    pub remote_address: &'a str,
}

impl fmt::Debug for AuthRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthRequest").field("remote_address", &self.remote_address).finish_non_exhaustive()
    }
}

/// Who a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// 1 to 255 bytes; another is refused.
    pub uid: String,
    /// When the session ends. None: it doesn't end by itself. A time that isn't in the future is refused.
    pub expires_at: Option<SystemTime>,
}

impl Identity {
    /// The device of `uid`, whose session doesn't end by itself.
    pub fn new(uid: impl Into<String>) -> Self {
        Self { uid: uid.into(), expires_at: None }
    }

    /// The same with an end.
    #[must_use]
    pub fn expires_at(mut self, time: SystemTime) -> Self {
        self.expires_at = Some(time);
        self
    }
}

/// Why a device was not identified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The credential is nobody's.
    #[error("refused")]
    Refused,
    /// It can't be checked at this time; the text is for the log.
    #[error("unavailable: {0}")]
    Unavailable(String),
}
