//! Presence folded: who is online, and what changed, whatever happened to the connection meanwhile.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use futures_util::{Stream, StreamExt};

use super::{Follower, Update};
use crate::{
    client::CallError,
    model::{NodeName, OfflineReason, PresenceChange, PresenceEvent, Uid},
};

/// What an [`OnlineStatus`] tells.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum OnlineEvent {
    /// A uid is online: it was when the stream began, or came since. Told of one that was told online before, it went and
    /// came back while the stream could not see it.
    Online {
        /// Whose.
        uid: Uid,
        /// Grows with every change of this uid, over nodes and restarts.
        epoch: u64,
        /// When it came online.
        since: SystemTime,
        /// Where: the node of its first connection, or of its newest where it was told as part of a snapshot.
        node: NodeName,
    },
    /// A uid that was told online has gone offline.
    Offline {
        /// Whose.
        uid: Uid,
        /// That of the change; where the stream could not see it, that of the last it saw.
        epoch: u64,
        /// When, and how its last connection ended. None: while the stream could not see it, and the gateway doesn't
        /// know it any more.
        ended: Option<(SystemTime, OfflineReason)>,
    },
    /// All is told up to now: of the uids that are followed, those that have been told online, and not offline since, are
    /// online, and no other. Comes after the beginning, and again after each interruption.
    Live,
    /// The connection broke, or could not be made. What has been told is kept, and may be out of date until the next
    /// [`OnlineEvent::Live`]; the stream comes back by itself.
    Interrupted {
        /// Why.
        error: CallError,
        /// How long it waits first.
        retry_in: Duration,
    },
}

/// Who is online, as a `Stream` of [`OnlineEvent`]s. Begun by [`Control::online_status`](crate::client::Control::online_status).
///
/// It comes back by itself after a random wait (0.1 s, doubling to 10 s) where its connection breaks, the gateway drains or
/// is restarted, and goes on by cursor where it was. For each uid, changes come in the order in which they happened. None
/// is lost and none told twice, but where the gateway itself has forgotten them (a restart, or too long an absence): then
/// the new state is told by its difference to the old, at [`OnlineEvent::Live`] for those who went meanwhile. Until then
/// the old counts.
///
/// It ends after [`CallError::Invalid`] or [`CallError::Refused`], which no other try would change, and never else. It does
/// nothing while it isn't polled, and has to be polled at the pace of the changes: where it falls behind, the gateway tells
/// a new snapshot, and of what is folded into it only the last. It remembers each uid that is online, and no other.
/// Dropping it ends the call; a future of its next item can be dropped at any time without losing one.
#[derive(Debug)]
pub struct OnlineStatus {
    follower: Follower,
    fold: Fold,
    /// What one update has told and nobody has taken yet.
    pending: VecDeque<OnlineEvent>,
}

impl OnlineStatus {
    pub(in crate::client) fn new(follower: Follower) -> Self {
        Self { follower, fold: Fold::default(), pending: VecDeque::new() }
    }
}

impl Stream for OnlineStatus {
    type Item = Result<OnlineEvent, CallError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.pending.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            match ready!(this.follower.poll_next_unpin(cx)) {
                Some(Ok(update)) => this.fold.take(update, &mut this.pending),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// Who is known to be online.
#[derive(Debug, Default)]
struct Fold {
    online: HashMap<Uid, Known>,
    /// Grows with each snapshot.
    snapshot: u64,
}

#[derive(Debug)]
struct Known {
    epoch: u64,
    /// The last snapshot in or after which it was told.
    snapshot: u64,
}

impl Fold {
    fn take(&mut self, update: Update, events: &mut VecDeque<OnlineEvent>) {
        match update {
            Update::Begun { resumed: false } | Update::Event(PresenceEvent::Reset { .. }) => self.snapshot += 1,
            Update::Begun { resumed: true } | Update::Cursor(_) => {}
            Update::Event(PresenceEvent::Snapshot { uid, epoch, since, node }) => {
                events.extend(self.is_online(uid, epoch, since.into(), node));
            }
            Update::Event(PresenceEvent::Change(PresenceChange { uid, epoch, at, node, offline: None })) => {
                events.extend(self.is_online(uid, epoch, at.into(), node));
            }
            Update::Event(PresenceEvent::Change(PresenceChange { uid, epoch, at, offline: Some(reason), .. })) => {
                events.extend(self.went(uid, epoch, (at.into(), reason)));
            }
            Update::Event(PresenceEvent::Live { .. }) => {
                // Whoever the snapshot left out has gone.
                let gone = self.online.extract_if(|_, known| known.snapshot < self.snapshot);
                events.extend(gone.map(|(uid, known)| OnlineEvent::Offline { uid, epoch: known.epoch, ended: None }));
                events.push_back(OnlineEvent::Live);
            }
            Update::Interrupted { error, retry_in } => events.push_back(OnlineEvent::Interrupted { error, retry_in }),
        }
    }

    /// None: that is nothing new.
    fn is_online(&mut self, uid: Uid, epoch: u64, since: SystemTime, node: NodeName) -> Option<OnlineEvent> {
        let known = Known { epoch, snapshot: self.snapshot };
        match self.online.entry(uid.clone()) {
            Entry::Vacant(place) => drop(place.insert(known)),
            Entry::Occupied(mut place) if place.get().epoch < epoch => drop(place.insert(known)),
            Entry::Occupied(mut place) => {
                place.get_mut().snapshot = self.snapshot;
                return None;
            }
        }
        Some(OnlineEvent::Online { uid, epoch, since, node })
    }

    /// None: that is nothing new.
    fn went(&mut self, uid: Uid, epoch: u64, ended: (SystemTime, OfflineReason)) -> Option<OnlineEvent> {
        self.online.get(&uid).filter(|known| known.epoch < epoch)?;
        self.online.remove(&uid);
        Some(OnlineEvent::Offline { uid, epoch, ended: Some(ended) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Millis;

    const BEGUN: Update = Update::Begun { resumed: false };
    const RESUMED: Update = Update::Begun { resumed: true };
    const RESET: Update = Update::Event(PresenceEvent::Reset { since: Millis(0) });
    const LIVE: Update = Update::Event(PresenceEvent::Live { since: Millis(0) });

    fn is(uid: &str, epoch: u64) -> Update {
        let (uid, node) = (Uid::new(uid).unwrap(), NodeName::new("n"));
        Update::Event(PresenceEvent::Snapshot { uid, epoch, since: Millis(0), node })
    }

    fn change(uid: &str, epoch: u64, offline: Option<OfflineReason>) -> Update {
        let (uid, node) = (Uid::new(uid).unwrap(), NodeName::new("n"));
        Update::Event(PresenceEvent::Change(PresenceChange { uid, epoch, at: Millis(0), node, offline }))
    }

    fn came(uid: &str, epoch: u64) -> Update {
        change(uid, epoch, None)
    }

    fn went(uid: &str, epoch: u64) -> Update {
        change(uid, epoch, Some(OfflineReason::Closed))
    }

    /// What is told of these updates, in a word each: `+alice 1`, `-alice 2`, `-alice 1?` where nobody knows when.
    fn told(updates: impl IntoIterator<Item = Update>) -> Vec<String> {
        let (mut fold, mut events) = (Fold::default(), VecDeque::new());
        updates.into_iter().for_each(|update| fold.take(update, &mut events));
        let word = |event| match event {
            OnlineEvent::Online { uid, epoch, .. } => format!("+{uid} {epoch}"),
            OnlineEvent::Offline { uid, epoch, ended } => {
                format!("-{uid} {epoch}{}", if ended.is_some() { "" } else { "?" })
            }
            OnlineEvent::Live => "live".to_owned(),
            OnlineEvent::Interrupted { .. } => "interrupted".to_owned(),
        };
        events.into_iter().map(word).collect()
    }

    #[test]
    fn what_was_told_is_not_told_again() {
        let doubles = [BEGUN, is("a", 1), came("b", 2), LIVE, went("b", 3), RESUMED, went("b", 3), came("a", 1), LIVE];
        assert_eq!(told(doubles), ["+a 1", "+b 2", "live", "-b 3", "live"]);
        // An old offline of who has come back since.
        assert_eq!(told([BEGUN, LIVE, came("a", 5), went("a", 4)]), ["live", "+a 5"]);
        // Of whom nothing was told.
        assert_eq!(told([BEGUN, went("a", 4), LIVE]), ["live"]);
    }

    #[test]
    fn a_reset_keeps_what_is_known_until_live_and_tells_the_difference() {
        let before = [BEGUN, is("stays", 1), is("goes", 2), is("comes-back", 3), LIVE];
        let after = [RESET, is("stays", 1), is("comes-back", 9), is("new", 8), LIVE, came("later", 10)];
        let all = ["+stays 1", "+goes 2", "+comes-back 3", "live"];
        assert_eq!(told(before.into_iter().chain(after)), {
            [&all[..], &["+comes-back 9", "+new 8", "-goes 2?", "live", "+later 10"]].concat()
        });
    }

    #[test]
    fn a_snapshot_that_breaks_off_tells_nobody_offline() {
        let updates = [BEGUN, is("a", 1), is("b", 2), LIVE, BEGUN, is("b", 2), BEGUN, is("a", 1), is("b", 2), LIVE];
        assert_eq!(told(updates), ["+a 1", "+b 2", "live", "live"]);
    }

    #[test]
    fn a_change_within_a_snapshot_counts_as_told_in_it() {
        let updates = [BEGUN, is("a", 1), LIVE, RESET, is("a", 1), went("a", 5), came("a", 6), LIVE];
        assert_eq!(told(updates), ["+a 1", "live", "-a 5", "+a 6", "live"]);
    }

    #[test]
    fn only_who_is_online_is_remembered() {
        let mut fold = Fold::default();
        let mut events = VecDeque::new();
        for epoch in 0..1_000 {
            fold.take(came("a", 2 * epoch + 1), &mut events);
            fold.take(went("a", 2 * epoch + 2), &mut events);
        }
        assert_eq!((fold.online.len(), events.len()), (0, 2_000));
    }
}
