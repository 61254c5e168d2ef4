//! Who a device is: the [`Authenticator`] that is asked, and the gate that bounds the asking.

mod trust;

use std::{
    fmt,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use tokio::sync::Semaphore;

pub use self::trust::Trust;
use crate::model::Uid;

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
}

/// What a device showed.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct AuthRequest<'a> {
    /// The body of its `/auth/server` message.
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

/// The authenticator behind its bounds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Inner>);

struct Inner {
    authenticator: Arc<dyn Authenticator>,
    bounds: Option<Bounds>,
}

struct Bounds {
    places: Semaphore,
    timeout: Duration,
}

/// Who passed the gate.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) uid: Uid,
    /// How long the session lasts, from now on. None: without end.
    pub(crate) lasts: Option<Duration>,
}

impl Gate {
    /// `trust` needs no bounds: it asks nobody.
    pub(crate) fn trust() -> Self {
        Self(Arc::new(Inner { authenticator: Arc::new(Trust), bounds: None }))
    }

    pub(crate) fn new(authenticator: Arc<dyn Authenticator>, max_in_flight: usize, timeout: Duration) -> Self {
        let bounds = Bounds { places: Semaphore::new(max_in_flight), timeout };
        Self(Arc::new(Inner { authenticator, bounds: Some(bounds) }))
    }

    /// Asks the authenticator, within the bounds.
    pub(crate) async fn admit(&self, credential: &str, remote_address: &str) -> Result<Admitted, AuthError> {
        let request = AuthRequest { credential, remote_address };
        let asked = AssertUnwindSafe(async { self.0.authenticator.authenticate(request).await }).catch_unwind();
        let identity = match &self.0.bounds {
            None => asked.await,
            Some(Bounds { places, timeout }) => {
                let place = tokio::time::timeout(*timeout, places.acquire()).await;
                let Ok(Ok(_place)) = place else {
                    return Err(AuthError::Unavailable("auth.max_in_flight calls are under way".into()));
                };
                let answer = tokio::time::timeout(*timeout, asked).await;
                answer.map_err(|_| AuthError::Unavailable("no answer within auth.timeout".into()))?
            }
        };
        let identity = identity.map_err(|_| AuthError::Unavailable("the authenticator panicked".into()))??;
        let uid = Uid::new(&identity.uid).map_err(|_| AuthError::Refused)?;
        let lasts = match identity.expires_at {
            None => None,
            Some(end) => match end.duration_since(SystemTime::now()) {
                Ok(lasts) if !lasts.is_zero() => Some(lasts),
                _ => return Err(AuthError::Refused),
            },
        };
        Ok(Admitted { uid, lasts })
    }
}
