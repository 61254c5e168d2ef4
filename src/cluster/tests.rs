//! Presence as the hub and its watchers see it.

mod answers;
mod encoding;
mod ending;
mod nodes;
mod random;
mod rules;
mod simulation;
mod watching;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;

use super::{fold::State, *};
use crate::model::PresenceEvent;

/// A clock that tests move, in milliseconds.
#[derive(Clone, Default)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    const START: u64 = 1_700_000_000_000;

    fn set(&self, past_start: u64) {
        self.0.store(Self::START + past_start, Ordering::Relaxed);
    }

    fn log(&self) -> LocalLog {
        self.set(0);
        let clock = self.clone();
        LocalLog::with_clock(1_000, |_| {}, move || Millis(clock.0.load(Ordering::Relaxed)))
    }
}

fn options() -> Options {
    Options::of_tests()
}

fn name(text: &str) -> NodeName {
    NodeName::new(text)
}

fn uid(text: &str) -> Uid {
    Uid::new(text).unwrap()
}

fn alone(options: Options) -> (Cluster, Inbox) {
    Cluster::join(&Clock::default().log(), name("n"), options)
}

impl Cluster {
    /// A young claim.
    fn come(&self, text: &str, number: u32) {
        self.claim(&uid(text), ConnectionNumber(number), None, self.now());
    }

    fn go(&self, text: &str, number: u32) {
        self.release(&uid(text), ConnectionNumber(number), EndReason::Closed);
    }

    fn everyone(&self) -> Watcher {
        self.watch(Vec::new(), false, "")
    }
}

/// What a watcher tells without waiting.
fn told_now(watcher: &mut Watcher) -> Option<Update> {
    // A call that yields is dropped and called again, which takes nothing.
    (0..600).find_map(|_| watcher.next().now_or_never())
}

/// All that it tells without waiting, in short: "+a", "-a", "=a" (snapshot), "live", "reset".
fn words(watcher: &mut Watcher) -> String {
    let updates = std::iter::from_fn(|| told_now(watcher));
    let words: Vec<_> = updates.flat_map(|update| update.events.iter().map(word).collect::<Vec<_>>()).collect();
    words.join(" ")
}

fn word(event: &PresenceEvent) -> String {
    match event {
        PresenceEvent::Change(change) if change.offline.is_some() => format!("-{}", change.uid),
        PresenceEvent::Change(change) => format!("+{}", change.uid),
        PresenceEvent::Snapshot { uid, .. } => format!("={uid}"),
        PresenceEvent::Live { .. } => "live".into(),
        PresenceEvent::Reset { .. } => "reset".into(),
    }
}
