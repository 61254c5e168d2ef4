//! Following presence over broken connections.

use std::{
    collections::VecDeque,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{Backoff, CallError, Control, Responses};
use crate::proto::{OfflineReason, OnlineStatusEvent, OnlineStatusKind, OnlineStatusRequest, OnlineStatusResponse};

/// What a [`Follower`] tells. Keep the highest `epoch` of each uid: an `Online` or `Offline` that isn't higher and a
/// `Snapshot` that is lower tell nothing new.
#[derive(Debug, Clone)]
pub enum Update {
    /// A stream has begun.
    Begun {
        /// True: it goes on where the last one broke, unless `Reset` comes first. False: as `Reset`, what follows
        /// replaces all that was known.
        resumed: bool,
    },
    /// What follows replaces all that was known, and voids every cursor. Keep the old until `Live`.
    Reset {
        /// Since when the gateway's log is kept.
        since: SystemTime,
    },
    /// A uid is online, told as part of a snapshot.
    Snapshot {
        /// Whose.
        uid: String,
        /// Its place in the log.
        epoch: i64,
        /// When it came online.
        since: SystemTime,
        /// The node of its newest connection.
        node: String,
    },
    /// A uid came online.
    Online {
        /// Whose.
        uid: String,
        /// Its place in the log.
        epoch: i64,
        /// When.
        at: SystemTime,
        /// Where its first connection came.
        node: String,
    },
    /// A uid went offline.
    Offline {
        /// Whose.
        uid: String,
        /// Its place in the log.
        epoch: i64,
        /// When.
        at: SystemTime,
        /// Where its last connection ended.
        node: String,
        /// How that ended; `Unspecified` for a reason that this program doesn't know yet.
        reason: OfflineReason,
    },
    /// From here on all is known: who hasn't been told online is offline.
    Live {
        /// Since when the gateway's log is kept.
        since: SystemTime,
    },
    /// The place behind all that has been told: keep it to go on from there in another process, as
    /// `OnlineStatusRequest::resume_after`. It moves on with the changes of others, too.
    Cursor(String),
    /// The stream broke, or could not be begun. The follower tries again by itself.
    Interrupted {
        /// Why.
        error: CallError,
        /// How long it waits first.
        retry_in: Duration,
    },
}

/// Follows presence: keeps the last cursor, comes back with it after a random wait (0.1 s, doubling to 10 s) when the
/// stream breaks, and so tells every change once. Begun by [`Control::follow`]. Dropping it ends the stream.
#[derive(Debug)]
pub struct Follower {
    control: Control,
    /// What the next stream is begun with.
    request: OnlineStatusRequest,
    /// None: there is none, and the next is begun at `retry_at`.
    stream: Option<Responses<OnlineStatusResponse>>,
    retry_at: Instant,
    /// What the last response told and nobody has taken yet: at most one response's events.
    pending: VecDeque<Update>,
    backoff: Backoff,
}

impl Follower {
    pub(super) fn new(control: Control, request: OnlineStatusRequest) -> Self {
        let retry_at = Instant::now();
        Self { control, request, stream: None, retry_at, pending: VecDeque::new(), backoff: Backoff::default() }
    }

    /// The next update. Never ends by itself, and waits as long as there is none. Cancel-safe: an update is told by
    /// the call that returns it, and the connection and the wait for it go on in the next call (only a connection
    /// being made is begun anew).
    ///
    /// # Errors
    ///
    /// [`CallError::Invalid`] and [`CallError::Refused`], which no other try would change. The next call tries again.
    pub async fn next(&mut self) -> Result<Update, CallError> {
        loop {
            if let Some(update) = self.pending.pop_front() {
                return Ok(update);
            }
            let error = match &mut self.stream {
                None => {
                    tokio::time::sleep_until(self.retry_at).await;
                    match self.control.online_status(self.request.clone()).await {
                        Ok(stream) => {
                            self.stream = Some(stream);
                            return Ok(Update::Begun { resumed: !self.request.resume_after.is_empty() });
                        }
                        Err(error) => error,
                    }
                }
                Some(stream) => match stream.message().await {
                    Ok(Some(response)) => {
                        self.backoff.worked();
                        take(&mut self.request, response, &mut self.pending);
                        continue;
                    }
                    Ok(None) => CallError::Unavailable("the gateway ended the stream".to_owned()),
                    Err(error) => error,
                },
            };
            let retry_in = self.backoff.failed();
            (self.stream, self.retry_at) = (None, Instant::now() + retry_in);
            return match error {
                CallError::Invalid(_) | CallError::Refused(_) => Err(error),
                error => Ok(Update::Interrupted { error, retry_in }),
            };
        }
    }
}

/// Turns one response into updates, and remembers in `request` how the next stream has to begin.
fn take(request: &mut OnlineStatusRequest, response: OnlineStatusResponse, updates: &mut VecDeque<Update>) {
    let OnlineStatusResponse { events, cursor } = response;
    for event in events {
        if event.kind() == OnlineStatusKind::Reset {
            request.resume_after.clear();
            // Without its snapshot, a stream begun anew before LIVE would leave the changes missed untold.
            request.skip_snapshot = false;
        }
        updates.extend(update(event));
    }
    if !cursor.is_empty() && cursor != request.resume_after {
        request.resume_after.clone_from(&cursor);
        updates.push_back(Update::Cursor(cursor));
    }
}

/// None: an event of a kind that this program doesn't know yet.
fn update(event: OnlineStatusEvent) -> Option<Update> {
    let (kind, reason) = (event.kind(), event.reason());
    let OnlineStatusEvent { uid, online, at, node, epoch, .. } = event;
    let at = at.and_then(|at| SystemTime::try_from(at).ok()).unwrap_or(SystemTime::UNIX_EPOCH);
    Some(match kind {
        OnlineStatusKind::Unspecified => return None,
        OnlineStatusKind::Snapshot => Update::Snapshot { uid, epoch, since: at, node },
        OnlineStatusKind::Change if online => Update::Online { uid, epoch, at, node },
        OnlineStatusKind::Change => Update::Offline { uid, epoch, at, node, reason },
        OnlineStatusKind::Live => Update::Live { since: at },
        OnlineStatusKind::Reset => Update::Reset { since: at },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(kinds: &[OnlineStatusKind], cursor: &str) -> OnlineStatusResponse {
        let events = kinds.iter().map(|&kind| OnlineStatusEvent { kind: kind.into(), ..Default::default() }).collect();
        OnlineStatusResponse { events, cursor: cursor.to_owned() }
    }

    fn taken(request: &mut OnlineStatusRequest, response: OnlineStatusResponse) -> Vec<Update> {
        let mut updates = VecDeque::new();
        take(request, response, &mut updates);
        updates.into()
    }

    #[test]
    fn the_last_cursor_that_is_not_empty_is_kept() {
        let mut request = OnlineStatusRequest::default();
        assert!(matches!(
            &taken(&mut request, response(&[OnlineStatusKind::Snapshot], ""))[..],
            [Update::Snapshot { .. }]
        ));
        let updates = taken(&mut request, response(&[OnlineStatusKind::Live], "a"));
        assert!(matches!(&updates[..], [Update::Live { .. }, Update::Cursor(a)] if a == "a"));
        assert!(taken(&mut request, response(&[], "")).is_empty());
        assert_eq!(request.resume_after, "a");
        // A keepalive tells a cursor only where it has moved.
        assert!(taken(&mut request, response(&[], "a")).is_empty());
        assert!(matches!(&taken(&mut request, response(&[], "b"))[..], [Update::Cursor(b)] if b == "b"));
        assert_eq!(request.resume_after, "b");
    }

    #[test]
    fn a_reset_voids_the_cursor_and_wants_the_snapshot() {
        let mut request =
            OnlineStatusRequest { skip_snapshot: true, resume_after: "a".to_owned(), ..Default::default() };
        assert!(matches!(&taken(&mut request, response(&[OnlineStatusKind::Reset], ""))[..], [Update::Reset { .. }]));
        assert_eq!(request, OnlineStatusRequest::default());
    }

    #[test]
    fn an_event_of_unknown_kind_is_skipped_and_its_cursor_kept() {
        let mut request = OnlineStatusRequest::default();
        let event = OnlineStatusEvent { kind: 77, ..Default::default() };
        let updates = taken(&mut request, OnlineStatusResponse { events: vec![event], cursor: "c".to_owned() });
        assert!(matches!(&updates[..], [Update::Cursor(_)]));
        assert_eq!(request.resume_after, "c");
    }

    #[test]
    fn an_unknown_reason_is_unspecified() {
        let event = OnlineStatusEvent { kind: OnlineStatusKind::Change.into(), reason: 77, ..Default::default() };
        assert!(matches!(update(event), Some(Update::Offline { reason: OfflineReason::Unspecified, .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_tries_again_where_nobody_is() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let control = Control::connect(&format!("http://{address}"), "").unwrap();
        let mut follower = control.follow(["alice"]);
        for _ in 0..3 {
            let update = follower.next().await.unwrap();
            assert!(matches!(update, Update::Interrupted { error: CallError::Unreachable(_), .. }), "{update:?}");
        }
    }
}
