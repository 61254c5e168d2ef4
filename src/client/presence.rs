//! Following presence over broken connections.

mod online;

use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt, future::BoxFuture};
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

pub use self::online::{OnlineEvent, OnlineStatus};
use super::{Backoff, CallError, Control, answer};
use crate::{
    model::{Millis, NodeName, PresenceChange, PresenceEvent, Uid},
    proto::{OnlineStatusEvent, OnlineStatusKind, OnlineStatusRequest, OnlineStatusResponse},
};

/// What a [`Follower`] tells.
#[derive(Debug, Clone)]
pub enum Update {
    /// A stream has begun.
    Begun {
        /// True: it goes on where the last one broke, unless a RESET comes first. False: as with RESET, what follows
        /// replaces all that was known.
        resumed: bool,
    },
    /// What the gateway tells. Keep the highest `epoch` of each uid: a change that isn't higher and a snapshot that is
    /// lower tell nothing new. After RESET keep the old until LIVE.
    Event(PresenceEvent),
    /// The place behind all that has been told: keep it to go on from there in another process by
    /// [`Follower::resume_after`]. It moves on with the changes of others, too.
    Cursor(String),
    /// The stream broke, or could not be begun. The follower tries again by itself.
    Interrupted {
        /// Why.
        error: CallError,
        /// How long it waits first.
        retry_in: Duration,
    },
}

/// The events of presence as the gateway tells them, as a `Stream` of [`Update`]s that comes back by itself: it keeps the
/// last cursor, and begins anew with it after a random wait (0.1 s, doubling to 10 s), so that every change is told once
/// (but for the one exception of the protocol: some may be told again, with the same epoch, after the death of a node).
/// Begun by [`Control::follow`].
///
/// It ends after [`CallError::Invalid`] or [`CallError::Refused`], which no other try would change, and never else. It does
/// nothing while it isn't polled; it holds one response of the gateway at most, 1,000 events. Dropping it ends the call.
pub struct Follower {
    control: Control,
    /// What the next stream is begun with.
    request: OnlineStatusRequest,
    state: State,
    /// What the last response told and nobody has taken yet.
    pending: VecDeque<Update>,
    backoff: Backoff,
}

enum State {
    /// A call is being made, after a wait.
    Calling(BoxFuture<'static, Result<Streaming<OnlineStatusResponse>, CallError>>),
    Open(Box<Streaming<OnlineStatusResponse>>),
    /// To be called at once.
    New,
    Ended,
}

impl Follower {
    pub(super) fn new(control: Control, uids: Vec<String>) -> Self {
        let request = OnlineStatusRequest { uids, ..Default::default() };
        let backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        Self { control, request, state: State::New, pending: VecDeque::new(), backoff }
    }

    /// Goes on behind a kept [`Update::Cursor`] of the same uids: what was missed is told, or RESET where the gateway
    /// hasn't it any more. To be called before the first poll.
    #[must_use]
    pub fn resume_after(mut self, cursor: impl Into<String>) -> Self {
        self.request.resume_after = cursor.into();
        self
    }

    /// Leaves the first snapshot out: only changes are told, and LIVE first. To be called before the first poll.
    #[must_use]
    pub fn skip_snapshot(mut self) -> Self {
        self.request.skip_snapshot = true;
        self
    }

    fn call(&self, wait: Option<Duration>) -> State {
        let (mut client, request) = (self.control.raw(), self.request.clone());
        let at = wait.map(|wait| Instant::now() + wait);
        let calling = async move {
            if let Some(at) = at {
                sleep_until(at).await;
            }
            Ok(client.online_status(request).await?.into_inner())
        };
        State::Calling(calling.boxed())
    }

    /// The stream broke: tells it, and waits before the next.
    fn interrupted(&mut self, error: CallError) -> Result<Update, CallError> {
        if matches!(error, CallError::Invalid(_) | CallError::Refused(_)) {
            self.state = State::Ended;
            return Err(error);
        }
        let retry_in = self.backoff.failed();
        self.state = self.call(Some(retry_in));
        Ok(Update::Interrupted { error, retry_in })
    }
}

/// A gateway that was only restarted is found at once.
const FIRST_WAIT: Duration = Duration::from_millis(100);

/// One that came back is found within it.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

impl Stream for Follower {
    type Item = Result<Update, CallError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(update) = this.pending.pop_front() {
                return Poll::Ready(Some(Ok(update)));
            }
            let error = match &mut this.state {
                State::Ended => return Poll::Ready(None),
                State::New => {
                    this.state = this.call(None);
                    continue;
                }
                State::Calling(call) => match ready!(call.poll_unpin(cx)) {
                    Ok(stream) => {
                        this.state = State::Open(Box::new(stream));
                        let resumed = !this.request.resume_after.is_empty();
                        return Poll::Ready(Some(Ok(Update::Begun { resumed })));
                    }
                    Err(error) => error,
                },
                State::Open(stream) => match ready!(stream.poll_next_unpin(cx)) {
                    Some(Ok(response)) => {
                        this.backoff.worked();
                        take(&mut this.request, response, &mut this.pending);
                        continue;
                    }
                    None => CallError::Unavailable("the gateway ended the stream".to_owned()),
                    Some(Err(status)) => status.into(),
                },
            };
            return Poll::Ready(Some(this.interrupted(error)));
        }
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("request", &self.request).finish_non_exhaustive()
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
        updates.extend(typed(event).map(Update::Event));
    }
    if !cursor.is_empty() && cursor != request.resume_after {
        request.resume_after.clone_from(&cursor);
        updates.push_back(Update::Cursor(cursor));
    }
}

/// None: an event of a kind that this program doesn't know yet, or of what is no uid.
fn typed(event: OnlineStatusEvent) -> Option<PresenceEvent> {
    let (kind, reason) = (event.kind(), event.reason());
    let OnlineStatusEvent { uid, online, at, node, epoch, .. } = event;
    let (at, node) = (Millis::from(answer::time_or_epoch(at)), NodeName::new(&node));
    let epoch = epoch.try_into().unwrap_or_default();
    Some(match kind {
        OnlineStatusKind::Unspecified => return None,
        OnlineStatusKind::Snapshot => PresenceEvent::Snapshot { uid: Uid::new(&uid).ok()?, epoch, since: at, node },
        OnlineStatusKind::Change => {
            let offline = (!online).then(|| answer::offline_reason(reason));
            PresenceEvent::Change(PresenceChange { uid: Uid::new(&uid).ok()?, epoch, at, node, offline })
        }
        OnlineStatusKind::Live => PresenceEvent::Live { since: at },
        OnlineStatusKind::Reset => PresenceEvent::Reset { since: at },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::OfflineReason;

    fn event(kind: OnlineStatusKind) -> OnlineStatusEvent {
        OnlineStatusEvent { kind: kind.into(), uid: "alice".to_owned(), ..Default::default() }
    }

    fn response(kinds: &[OnlineStatusKind], cursor: &str) -> OnlineStatusResponse {
        OnlineStatusResponse { events: kinds.iter().map(|&kind| event(kind)).collect(), cursor: cursor.to_owned() }
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
            [Update::Event(PresenceEvent::Snapshot { .. })]
        ));
        let updates = taken(&mut request, response(&[OnlineStatusKind::Live], "a"));
        assert!(
            matches!(&updates[..], [Update::Event(PresenceEvent::Live { .. }), Update::Cursor(a)] if a == "a"),
            "{updates:?}"
        );
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
        let updates = taken(&mut request, response(&[OnlineStatusKind::Reset], ""));
        assert!(matches!(&updates[..], [Update::Event(PresenceEvent::Reset { .. })]), "{updates:?}");
        assert_eq!(request, OnlineStatusRequest::default());
    }

    #[test]
    fn an_event_of_unknown_kind_is_skipped_and_its_cursor_kept() {
        let mut request = OnlineStatusRequest::default();
        let event = OnlineStatusEvent { kind: 77, ..event(OnlineStatusKind::Live) };
        let updates = taken(&mut request, OnlineStatusResponse { events: vec![event], cursor: "c".to_owned() });
        assert!(matches!(&updates[..], [Update::Cursor(_)]));
        assert_eq!(request.resume_after, "c");
    }

    #[test]
    fn an_unknown_reason_is_unknown() {
        let event = OnlineStatusEvent { reason: 77, ..event(OnlineStatusKind::Change) };
        let Some(PresenceEvent::Change(change)) = typed(event) else { panic!("a change") };
        assert_eq!(change.offline, Some(OfflineReason::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_where_nobody_is() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let control = Control::connect(&format!("http://{address}"), "").unwrap();
        let mut follower = control.follow(["alice"]);
        for most in [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000].map(Duration::from_millis) {
            let started = Instant::now();
            let update = follower.next().await.expect("it never ends");
            let Ok(Update::Interrupted { error: CallError::Unreachable(_), retry_in }) = update else {
                panic!("{update:?}")
            };
            assert!((most / 2..=most).contains(&retry_in), "{retry_in:?} of {most:?}");
            // Nothing but the wait that was told passes on this clock.
            assert!(started.elapsed() <= most);
        }
    }
}
