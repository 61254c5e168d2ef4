//! A subscriber: what it knows, and whether it could.

use super::*;

/// What a subscriber knows, and whether it could.
pub(super) struct Follower {
    pub(super) watcher: Option<Watcher>,
    pub(super) online: BTreeMap<usize, u64>,
    pub(super) before_reset: BTreeMap<usize, u64>,
    pub(super) highest: BTreeMap<usize, u64>,
    pub(super) live: bool,
    /// All changes told since the last snapshot was whole, by epoch.
    pub(super) changes: Vec<(u64, usize)>,
    pub(super) resets: u64,
}

impl Follower {
    pub(super) fn new(watcher: Watcher) -> Self {
        Self {
            watcher: Some(watcher),
            online: BTreeMap::new(),
            before_reset: BTreeMap::new(),
            highest: BTreeMap::new(),
            live: false,
            changes: Vec::new(),
            resets: 0,
        }
    }

    /// Takes what there is to tell.
    pub(super) fn read(&mut self) -> Result<(), String> {
        let mut watcher = self.watcher.take().expect("it is put back");
        let mut result = Ok(());
        // With so few uids a watcher yields once or twice before it waits.
        while let Some(update) = (0..4).find_map(|_| watcher.next().now_or_never()) {
            if update.events.is_empty() {
                break;
            }
            for event in update.events {
                result = result.and_then(|()| self.take(event));
            }
        }
        self.watcher = Some(watcher);
        result
    }

    fn take(&mut self, event: PresenceEvent) -> Result<(), String> {
        match event {
            PresenceEvent::Change(change) => {
                let (uid, online) = (uid_index(&change.uid), change.offline.is_none());
                if self.highest.get(&uid).is_some_and(|highest| *highest >= change.epoch) {
                    return Err(format!("u{uid}: epoch {} after {}", change.epoch, self.highest[&uid]));
                }
                if online == self.online.contains_key(&uid) {
                    return Err(format!("u{uid}: {} twice", if online { "online" } else { "offline" }));
                }
                self.highest.insert(uid, change.epoch);
                self.changes.push((change.epoch, uid));
                if online {
                    self.online.insert(uid, change.epoch);
                } else {
                    self.online.remove(&uid);
                }
            }
            PresenceEvent::Snapshot { uid, epoch, .. } => {
                let uid = uid_index(&uid);
                if self.highest.get(&uid).is_some_and(|highest| *highest > epoch) {
                    return Err(format!("u{uid}: a snapshot of {epoch} after {}", self.highest[&uid]));
                }
                self.highest.insert(uid, epoch);
                self.online.insert(uid, epoch);
            }
            PresenceEvent::Reset { .. } => {
                self.before_reset = std::mem::take(&mut self.online);
                self.changes.clear();
                self.live = false;
                self.resets += 1;
            }
            PresenceEvent::Live { .. } => {
                // Only from here on does it know all.
                self.changes.clear();
                self.live = true;
            }
        }
        Ok(())
    }
}
