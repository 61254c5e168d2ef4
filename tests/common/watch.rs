//! A subscriber of presence that holds each response against what a stream promises.

use std::{collections::VecDeque, time::Instant};

use plex::proto::{OfflineReason, OnlineStatusEvent, OnlineStatusKind, OnlineStatusRequest, OnlineStatusResponse};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::{Backend, PATIENCE};

/// Everyone, with a snapshot.
pub fn everyone() -> OnlineStatusRequest {
    OnlineStatusRequest::default()
}

/// Only these.
pub fn only(uids: &[&str]) -> OnlineStatusRequest {
    OnlineStatusRequest { uids: uids.iter().map(|uid| (*uid).to_owned()).collect(), ..everyone() }
}

/// `request`, after this cursor.
pub fn after(cursor: &str, request: OnlineStatusRequest) -> OnlineStatusRequest {
    OnlineStatusRequest { resume_after: cursor.to_owned(), ..request }
}

/// An open OnlineStatus stream.
pub struct Watch {
    stream: Streaming<OnlineStatusResponse>,
    waiting: VecDeque<OnlineStatusEvent>,
    /// The last cursor that wasn't empty: after every event of [`Watch::waiting`] too.
    pub cursor: String,
    /// Whether responses have to have a cursor; None until the first event tells.
    resumable: Option<bool>,
}

impl Watch {
    pub async fn open(backend: &mut Backend, request: OnlineStatusRequest) -> Self {
        let stream = backend.online_status(request).await.expect("the stream is opened").into_inner();
        Self { stream, waiting: VecDeque::new(), cursor: String::new(), resumable: None }
    }

    /// A stream that has told LIVE, and what it told before.
    pub async fn live(backend: &mut Backend, request: OnlineStatusRequest) -> (Self, Vec<OnlineStatusEvent>) {
        let mut watch = Self::open(backend, request).await;
        let told = watch.until_live().await;
        (watch, told)
    }

    /// The next response; none of its events is left for [`Watch::event`].
    pub async fn response(&mut self) -> Result<OnlineStatusResponse, Status> {
        let next = timeout(PATIENCE, self.stream.message()).await.expect("a response in time");
        let response = next?.expect("presence never ends by itself");
        self.check(&response);
        if !response.cursor.is_empty() {
            self.cursor.clone_from(&response.cursor);
        }
        Ok(response)
    }

    fn check(&mut self, response: &OnlineStatusResponse) {
        let OnlineStatusResponse { events, cursor } = response;
        assert!(events.len() <= 1_000, "{} events", events.len());
        assert!(cursor.len() <= 100, "{cursor:?}");
        for (place, event) in events.iter().enumerate() {
            let last = place + 1 == events.len();
            match event.kind() {
                OnlineStatusKind::Live => {
                    assert!(last, "LIVE is the last of its response");
                    self.resumable = Some(true);
                }
                OnlineStatusKind::Reset => {
                    assert!(last, "RESET is the last of its response");
                    self.resumable = Some(false);
                }
                OnlineStatusKind::Snapshot => {
                    assert_ne!(self.resumable, Some(true), "a snapshot only at the beginning, or after RESET");
                    self.resumable = Some(false);
                }
                OnlineStatusKind::Change => {}
                OnlineStatusKind::Unspecified => panic!("never sent: {event:?}"),
            }
            check_fields(event);
        }
        if let Some(resumable) = self.resumable {
            assert_eq!(!cursor.is_empty(), resumable, "{response:?}");
        }
    }

    /// The next event, past keepalives.
    pub async fn event(&mut self) -> OnlineStatusEvent {
        let begun = Instant::now();
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return event;
            }
            assert!(begun.elapsed() < PATIENCE, "an event in time, not only keepalives");
            self.waiting = self.response().await.expect("the stream goes on").events.into();
        }
    }

    /// All events before LIVE.
    pub async fn until_live(&mut self) -> Vec<OnlineStatusEvent> {
        let mut told = Vec::new();
        loop {
            let event = self.event().await;
            if event.kind() == OnlineStatusKind::Live {
                return told;
            }
            told.push(event);
        }
    }

    /// Waits for a keepalive whose cursor is another than this.
    pub async fn expect_moved_on(&mut self, from: &str) {
        while self.cursor == from {
            assert_eq!(words(&self.response().await.expect("the stream goes on").events), "");
        }
    }

    /// The next event, which says that `uid` came online.
    pub async fn expect_online(&mut self, uid: &str) -> OnlineStatusEvent {
        let event = self.event().await;
        assert_eq!(word(&event), format!("+{uid}"), "{event:?}");
        event
    }

    /// The next event, which says that `uid` went offline, and why.
    pub async fn expect_offline(&mut self, uid: &str, reason: OfflineReason) -> OnlineStatusEvent {
        let event = self.event().await;
        assert_eq!((&*word(&event), event.reason()), (&*format!("-{uid}"), reason), "{event:?}");
        event
    }

    /// The events up to the end of the stream, and how it ends.
    pub async fn rest(&mut self) -> (Vec<OnlineStatusEvent>, Status) {
        let mut told: Vec<_> = self.waiting.drain(..).collect();
        loop {
            match self.response().await {
                Ok(response) => told.extend(response.events),
                Err(status) => return (told, status),
            }
        }
    }

    /// Expects that nothing but keepalives comes before the stream ends as where the gateway ends it.
    pub async fn expect_unavailable(&mut self) {
        let (told, status) = self.rest().await;
        assert_eq!(words(&told), "");
        assert_eq!(status.code(), Code::Unavailable, "{status}");
    }
}

/// Which fields an event of its kind has.
fn check_fields(event: &OnlineStatusEvent) {
    assert!(event.at.is_some(), "{event:?}");
    match event.kind() {
        OnlineStatusKind::Live | OnlineStatusKind::Reset => {
            let bare = OnlineStatusEvent { kind: event.kind, at: event.at, ..Default::default() };
            assert_eq!(*event, bare, "it has only `kind` and `at`");
        }
        _ => {
            assert!(!event.uid.is_empty() && !event.node.is_empty() && event.epoch > 0, "{event:?}");
            let has_reason = event.reason() != OfflineReason::Unspecified;
            assert_eq!(has_reason, !event.online, "a reason only for offline: {event:?}");
            assert!(event.online || event.kind() == OnlineStatusKind::Change, "{event:?}");
        }
    }
}

/// An event in short: "+a", "-a", "=a" (snapshot), "live", "reset".
pub fn word(event: &OnlineStatusEvent) -> String {
    match event.kind() {
        OnlineStatusKind::Change if event.online => format!("+{}", event.uid),
        OnlineStatusKind::Change => format!("-{}", event.uid),
        OnlineStatusKind::Snapshot => format!("={}", event.uid),
        OnlineStatusKind::Live => "live".to_owned(),
        OnlineStatusKind::Reset => "reset".to_owned(),
        OnlineStatusKind::Unspecified => "?".to_owned(),
    }
}

/// Several, in their order.
pub fn words(events: &[OnlineStatusEvent]) -> String {
    events.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Several, sorted: of a snapshot, whose order says nothing.
pub fn sorted_words(events: &[OnlineStatusEvent]) -> String {
    let mut words: Vec<_> = events.iter().map(word).collect();
    words.sort();
    words.join(" ")
}
