//! An authenticator that does what the credential says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use plex::{AuthError, AuthFuture, AuthRequest, Authenticator, Identity};
use tokio::sync::Semaphore;

/// `refuse`, `down` (unavailable), `hang`, `panic`; `wait:alice` is alice once [`Oracle::let_one_go`] was called;
/// `alice/1500` is alice for 1,500 ms, `alice/-1` was; any other is a uid.
#[derive(Clone)]
pub struct Oracle {
    asked: Arc<AtomicUsize>,
    go: Arc<Semaphore>,
}

impl Default for Oracle {
    fn default() -> Self {
        Self { asked: Arc::default(), go: Arc::new(Semaphore::new(0)) }
    }
}

impl Oracle {
    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    /// Lets one question with `wait:` be answered.
    pub fn let_one_go(&self) {
        self.go.add_permits(1);
    }

    /// Waits until it was asked this often.
    pub async fn until_asked(&self, times: usize) {
        super::eventually("the authenticator is asked", || async { (self.asked() >= times).then_some(()) }).await;
    }
}

impl Authenticator for Oracle {
    fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a> {
        self.asked.fetch_add(1, SeqCst);
        Box::pin(async move {
            let credential = match request.credential.strip_prefix("wait:") {
                Some(rest) => {
                    self.go.acquire().await.expect("never closed").forget();
                    rest
                }
                None => request.credential,
            };
            match credential {
                "refuse" => Err(AuthError::Refused),
                "down" => Err(AuthError::Unavailable("asked to be".into())),
                "hang" => std::future::pending().await,
                "panic" => panic!("asked to"),
                _ => Ok(match credential.split_once('/') {
                    None => Identity::new(credential),
                    Some((uid, lasts)) => {
                        let lasts: i64 = lasts.parse().expect("milliseconds");
                        let by = Duration::from_millis(lasts.unsigned_abs());
                        let now = SystemTime::now();
                        Identity::new(uid).expires_at(if lasts < 0 { now - by } else { now + by })
                    }
                }),
            }
        })
    }
}
