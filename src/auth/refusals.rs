//! What a backend refused a moment ago isn't asked again: devices with a bad credential come back at once, and in herds.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{AuthError, AuthFuture, AuthRequest, Authenticator, Identity, gate::judge};

/// How long a refusal is kept.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// How many are kept; the oldest goes first. Half a megabyte.
const KEPT_MAX: usize = 10_000;

/// An authenticator whose refusals are kept for 5 s.
pub(super) struct Kept {
    inner: Arc<dyn Authenticator>,
    refusals: Refusals,
}

impl Kept {
    pub(super) fn new(inner: Arc<dyn Authenticator>) -> Self {
        Self { inner, refusals: Refusals::default() }
    }
}

impl Authenticator for Kept {
    fn known(&self, request: AuthRequest<'_>) -> Option<Result<Identity, AuthError>> {
        self.refusals.has(request.credential, Instant::now()).then_some(Err(AuthError::Refused))
    }

    fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a> {
        Box::pin(async move {
            let answer = self.inner.authenticate(request).await.and_then(|identity| {
                judge(&identity)?;
                Ok(identity)
            });
            if answer == Err(AuthError::Refused) {
                self.refusals.keep(request.credential, Instant::now());
            }
            answer
        })
    }
}

/// By a hash of the credential with a key of this process: no credential is kept, and nobody can make up one that collides.
#[derive(Default)]
struct Refusals {
    hasher: RandomState,
    kept: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    until: HashMap<u64, Instant>,
    /// The same, the oldest first.
    order: VecDeque<(u64, Instant)>,
}

impl Refusals {
    fn has(&self, credential: &str, now: Instant) -> bool {
        self.lock().until.get(&self.hasher.hash_one(credential)).is_some_and(|until| now < *until)
    }

    fn keep(&self, credential: &str, now: Instant) {
        let (hash, until) = (self.hasher.hash_one(credential), now + KEPT_FOR);
        let mut kept = self.lock();
        // Once it is over, so is its entry: one hash has at most one.
        kept.forget(|_, oldest| oldest <= now);
        if kept.until.contains_key(&hash) {
            return;
        }
        kept.forget(|count, _| count >= KEPT_MAX);
        kept.until.insert(hash, until);
        kept.order.push_back((hash, until));
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// Takes out the oldest for as long as `which` says so of how many there are, and its end.
    fn forget(&mut self, which: impl Fn(usize, Instant) -> bool) {
        while let Some((hash, until)) = self.order.front().copied()
            && which(self.order.len(), until)
        {
            self.order.pop_front();
            self.until.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_kept_for_five_seconds() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.keep("bad", now);
        assert!(refusals.has("bad", now) && !refusals.has("good", now));
        refusals.keep("bad", now + KEPT_FOR / 2);
        assert!(refusals.has("bad", now + KEPT_FOR - Duration::from_millis(1)));
        assert!(!refusals.has("bad", now + KEPT_FOR), "being refused again from memory doesn't prolong it");
        refusals.keep("bad", now + KEPT_FOR);
        assert!(refusals.has("bad", now + KEPT_FOR));
    }

    #[test]
    fn ten_thousand_are_kept_and_the_oldest_goes() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        for number in 0..KEPT_MAX + 5 {
            refusals.keep(&number.to_string(), now);
        }
        assert!(!refusals.has("4", now) && refusals.has("5", now));
        let kept = refusals.lock();
        assert_eq!((kept.until.len(), kept.order.len()), (KEPT_MAX, KEPT_MAX));
    }
}
