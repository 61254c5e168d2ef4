//! What a subscriber knows: the fold of its events, which holds each against the ones before.

use std::collections::{BTreeMap, BTreeSet};

use plex::proto::{OnlineStatusEvent, OnlineStatusKind};

/// Who is online, as the events tell.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// As of the last LIVE, and the changes since.
    online: BTreeSet<String>,
    /// What is being told anew, up to LIVE.
    draft: Option<BTreeSet<String>>,
    /// The highest epoch of each uid, over all streams.
    epochs: BTreeMap<String, i64>,
    live: bool,
    /// It was told no snapshot: of some, the first that it hears is that they have gone.
    knows_nobody: bool,
    /// How often it had to begin anew.
    pub resets: usize,
    /// How many changes it was told.
    pub changes: usize,
}

impl Known {
    /// Whether the last LIVE still counts.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// Whether a snapshot is being told.
    pub fn is_drafting(&self) -> bool {
        self.draft.is_some()
    }

    /// The highest epoch that was told of a uid; 0: none.
    pub fn epoch(&self, uid: &str) -> i64 {
        self.epochs.get(uid).copied().unwrap_or(0)
    }

    /// Who was online isn't known any more: a stream begins without a snapshot.
    pub fn forget(&mut self) {
        self.online.clear();
        self.knows_nobody = true;
    }

    /// Who is online, by name.
    pub fn online(&self) -> Vec<&str> {
        self.online.iter().map(String::as_str).collect()
    }

    /// A stream begins: with a cursor it goes on, without one it replaces what is known.
    pub fn begin(&mut self, resumed: bool) {
        self.live = false;
        self.draft = (!resumed).then(BTreeSet::new);
        self.knows_nobody &= resumed;
    }

    /// Takes an event; panics where it can't follow those before.
    pub fn fold(&mut self, event: &OnlineStatusEvent) {
        let OnlineStatusEvent { uid, online, epoch, .. } = event;
        let highest = self.epochs.get(uid).copied();
        match event.kind() {
            OnlineStatusKind::Reset => {
                self.resets += 1;
                self.begin(false);
            }
            OnlineStatusKind::Live => {
                if let Some(draft) = self.draft.take() {
                    self.online = draft;
                }
                self.live = true;
            }
            OnlineStatusKind::Snapshot => {
                let draft = self.draft.get_or_insert_default();
                assert!(draft.insert(uid.clone()), "told online twice: {event:?}");
                assert!(highest.is_none_or(|highest| *epoch >= highest), "{event:?} after {highest:?}");
                self.epochs.insert(uid.clone(), *epoch);
            }
            OnlineStatusKind::Change => {
                self.changes += 1;
                let state = self.draft.as_mut().unwrap_or(&mut self.online);
                let turns = if *online { state.insert(uid.clone()) } else { state.remove(uid) };
                assert!(turns || self.knows_nobody, "coming and going take turns: {event:?}");
                assert!(highest.is_none_or(|highest| *epoch > highest), "{event:?} after {highest:?}");
                self.epochs.insert(uid.clone(), *epoch);
            }
            OnlineStatusKind::Unspecified => panic!("never sent: {event:?}"),
        }
    }
}
