//! The gate before the authenticator: what bounds the asking, and judges the answers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures_util::FutureExt;
use tokio::sync::Semaphore;

use super::{AuthError, AuthRequest, Authenticator, Identity, Trust};
use crate::model::Uid;

/// The longest credential, in bytes: the largest frame of a device that hasn't authenticated. One that has may send
/// larger frames, and yet no larger credential.
const CREDENTIAL_BYTES_MAX: usize = 4 * 1024;

/// How often the log tells that credentials can't be checked.
const TROUBLE_INTERVAL: Duration = Duration::from_secs(10);

/// The authenticator behind its bounds. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gate(Arc<Inner>);

struct Inner {
    authenticator: Arc<dyn Authenticator>,
    bounds: Option<Bounds>,
    trouble: Mutex<Trouble>,
}

struct Bounds {
    places: Semaphore,
    timeout: Duration,
}

/// Credentials that couldn't be checked, for the log.
#[derive(Default)]
struct Trouble {
    told: Option<Instant>,
    since_told: u64,
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
    pub(super) fn trust() -> Self {
        Self::of(Arc::new(Trust), None)
    }

    pub(crate) fn new(authenticator: Arc<dyn Authenticator>, max_in_flight: usize, timeout: Duration) -> Self {
        Self::of(authenticator, Some(Bounds { places: Semaphore::new(max_in_flight), timeout }))
    }

    fn of(authenticator: Arc<dyn Authenticator>, bounds: Option<Bounds>) -> Self {
        Self(Arc::new(Inner { authenticator, bounds, trouble: Mutex::default() }))
    }

    /// Asks the authenticator, within the bounds. What it knows by itself waits for nobody.
    pub(crate) async fn admit(&self, credential: &str, remote_address: &str) -> Result<Admitted, AuthError> {
        if credential.len() > CREDENTIAL_BYTES_MAX {
            return Err(AuthError::Refused);
        }
        let request = AuthRequest { credential, remote_address };
        let answer = match self.known(request) {
            Some(answer) => answer,
            None => self.ask(request).await,
        };
        if let Err(AuthError::Unavailable(why)) = &answer {
            self.0.trouble(why);
        }
        judge(&answer?)
    }

    fn known(&self, request: AuthRequest<'_>) -> Option<Result<Identity, AuthError>> {
        catch_unwind(AssertUnwindSafe(|| self.0.authenticator.known(request))).unwrap_or_else(|_| Some(Err(panicked())))
    }

    async fn ask(&self, request: AuthRequest<'_>) -> Result<Identity, AuthError> {
        let asked = AssertUnwindSafe(async { self.0.authenticator.authenticate(request).await }).catch_unwind();
        let Some(Bounds { places, timeout }) = &self.0.bounds else {
            return asked.await.unwrap_or_else(|_| Err(panicked()));
        };
        let place = tokio::time::timeout(*timeout, places.acquire()).await;
        let Ok(Ok(_place)) = place else {
            return Err(AuthError::Unavailable("auth.max_in_flight calls are under way".into()));
        };
        // What others were told meanwhile.
        if let Some(answer) = self.known(request) {
            return answer;
        }
        match tokio::time::timeout(*timeout, asked).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(panicked())),
            Err(_) => Err(AuthError::Unavailable("no answer within auth.timeout".into())),
        }
    }
}

impl Inner {
    /// Says in the log, now and then, that credentials can't be checked.
    fn trouble(&self, why: &str) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.since_told += 1;
        let now = Instant::now();
        if trouble.told.is_none_or(|told| now.duration_since(told) >= TROUBLE_INTERVAL) {
            tracing::warn!(why, times = trouble.since_told, "credentials of devices can't be checked");
            *trouble = Trouble { told: Some(now), since_told: 0 };
        }
    }
}

fn panicked() -> AuthError {
    AuthError::Unavailable("the authenticator panicked".into())
}

/// Whom an answer lets in: nobody whose uid is none, or whose time is over.
pub(super) fn judge(identity: &Identity) -> Result<Admitted, AuthError> {
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
