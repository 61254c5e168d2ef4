//! What a node has to tell the log and hasn't told yet, and what it holds: written by whoever serves a device, read by
//! who writes the batches.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicI64, Ordering},
    },
};

use hashbrown::HashMap;
use tokio::sync::{Notify, oneshot};

use crate::model::{ConnectionNumber, EndReason, Millis, Uid};

use super::{
    fold::{RECORDS_MAX, Record},
    hosts::Card,
    wire::{RECORD_BYTES_MAX, encode_record},
};

/// How many claims of a node that gets in are put under one lock.
const CHUNK: usize = 1_024;
/// The longest record that waits here: a claim of the longest uid.
const RECORD_MAX: usize = 3 + 4 + 4 + 8 + 1 + 255;

/// What waits. Bounded by the connections that the node holds, and those that the log still has of it: a claim that
/// hasn't left is taken back by its release, and passes its place on to the claim that replaces it.
#[derive(Debug)]
pub(crate) struct Outgoing {
    queue: Mutex<Queue>,
    /// What the log's clock is ahead of the node's, in ms, as far as is known.
    skew: AtomicI64,
    /// Something waits that didn't.
    pub(crate) woken: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// The node is in the log; else nothing waits: it claims all it holds when it gets in.
    is_in: bool,
    held: HashMap<ConnectionNumber, Held>,
    /// By the place in which they came.
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
    /// Where the claims are that wait.
    claims: HashMap<ConnectionNumber, u64>,
    card: Option<Card>,
    /// For whom all that is written now has to be read.
    barriers: Vec<oneshot::Sender<bool>>,
    leaves: bool,
}

#[derive(Debug)]
struct Held {
    uid: Uid,
    /// On the node's own clock.
    accepted: Millis,
    /// The least that the log's clock was ahead of that when it was accepted or claimed: where the node's clock has stood
    /// still for a while, with the machine, its connections get no younger by it.
    skew: i64,
}

#[derive(Debug)]
enum Waiting {
    Claim { number: ConnectionNumber, replaces: Option<ConnectionNumber> },
    Release { uid: Uid, number: ConnectionNumber, reason: EndReason },
}

/// Before the log's clock is known.
const UNKNOWN: i64 = i64::MAX;

impl Default for Outgoing {
    fn default() -> Self {
        Self { queue: Mutex::default(), skew: AtomicI64::new(UNKNOWN), woken: Notify::new() }
    }
}

impl Outgoing {
    pub(crate) fn claim(
        &self,
        uid: &Uid,
        number: ConnectionNumber,
        replaces: Option<ConnectionNumber>,
        accepted: Millis,
    ) {
        let skew = self.skew.load(Ordering::Relaxed);
        let mut queue = self.queue();
        queue.held.insert(number, Held { uid: uid.clone(), accepted, skew });
        let replaced_was_held = replaces.is_some_and(|old| queue.held.remove(&old).is_some());
        if !queue.is_in {
            return;
        }
        let replaces = replaces.filter(|_| replaced_was_held);
        let place = replaces.and_then(|old| queue.claims.remove(&old));
        if let Some(place) = place {
            // The log has never heard of the one that is replaced.
            if let Some(Waiting::Claim { number: waits, .. }) = queue.waiting.get_mut(&place) {
                *waits = number;
            }
            queue.claims.insert(number, place);
            return;
        }
        let place = queue.push(Waiting::Claim { number, replaces });
        queue.claims.insert(number, place);
        drop(queue);
        self.woken.notify_one();
    }

    pub(crate) fn release(&self, uid: &Uid, number: ConnectionNumber, reason: EndReason) {
        let mut queue = self.queue();
        let was_held = queue.held.remove(&number).is_some();
        if !queue.is_in || !was_held {
            return;
        }
        let mut number = number;
        if let Some(place) = queue.claims.remove(&number) {
            match queue.waiting.remove(&place) {
                // The log still has the one whose place it would have taken.
                Some(Waiting::Claim { replaces: Some(old), .. }) => number = old,
                _ => return,
            }
        }
        queue.push(Waiting::Release { uid: uid.clone(), number, reason });
        drop(queue);
        self.woken.notify_one();
    }

    /// The log has displaced a connection of this node: nothing more is said of it.
    pub(crate) fn displaced(&self, number: ConnectionNumber) {
        self.queue().held.remove(&number);
    }

    /// The node is in the log, for the first time or again: all that it holds waits to be claimed.
    pub(crate) fn enter(&self) {
        let mut queue = self.queue();
        queue.clear();
        queue.is_in = true;
        let mut held: Vec<_> = queue.held.iter().map(|(number, held)| (held.accepted, *number)).collect();
        let places = queue.next..queue.next + held.len() as u64;
        queue.next = places.end;
        drop(queue);
        // Oldest first, so that the newest of a uid stays.
        held.sort_unstable();
        let held: Vec<_> = places.zip(held).collect();
        for some in held.chunks(CHUNK) {
            let mut queue = self.queue();
            for &(place, (_, number)) in some {
                // Unless it has gone meanwhile.
                if queue.held.contains_key(&number) {
                    queue.waiting.insert(place, Waiting::Claim { number, replaces: None });
                    queue.claims.insert(number, place);
                }
            }
        }
    }

    /// The node isn't in the log any more.
    pub(crate) fn exit(&self) {
        let mut queue = self.queue();
        queue.clear();
        queue.is_in = false;
        // Their askers are told that it can't be told.
        queue.barriers.clear();
    }

    pub(crate) fn announce(&self, card: Card) {
        self.queue().card = Some(card);
        self.woken.notify_one();
    }

    /// What the node told of itself last.
    pub(crate) fn card(&self) -> Option<Card> {
        self.queue().card.clone()
    }

    /// Resolves to true once a batch that is written after this call has been read back.
    pub(crate) fn barrier(&self) -> oneshot::Receiver<bool> {
        let (done, answer) = oneshot::channel();
        let mut queue = self.queue();
        if queue.is_in {
            if queue.barriers.len() == queue.barriers.capacity() {
                // Whoever has given up: in an outage nobody else takes them out.
                queue.barriers.retain(|barrier| !barrier.is_closed());
            }
            queue.barriers.push(done);
            drop(queue);
            self.woken.notify_one();
        }
        answer
    }

    /// Releases all that is held, as draining: the node is about to leave.
    pub(crate) fn leave(&self) {
        let held: Vec<_> = self.queue().held.iter().map(|(number, held)| (*number, held.uid.clone())).collect();
        for (number, uid) in held {
            self.release(&uid, number, EndReason::Draining);
        }
        self.queue().leaves = true;
        self.woken.notify_one();
    }

    pub(crate) fn leaves(&self) -> bool {
        self.queue().leaves
    }

    /// How many records wait.
    pub(crate) fn len(&self) -> usize {
        self.queue().waiting.len()
    }

    pub(crate) fn has_barriers(&self) -> bool {
        !self.queue().barriers.is_empty()
    }

    /// Those who wait for the batch that is written now.
    pub(crate) fn take_barriers(&self) -> Vec<oneshot::Sender<bool>> {
        std::mem::take(&mut self.queue().barriers)
    }

    /// Says what the log's clock is ahead of the node's, in ms.
    pub(crate) fn set_skew(&self, skew: i64) {
        self.skew.store(skew, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn skew(&self) -> i64 {
        self.skew.load(Ordering::Relaxed)
    }

    /// Appends what waits to a batch that has `count` records, as much as fits. The log's clock is known.
    pub(crate) fn take(&self, mut count: usize, out: &mut Vec<u8>) {
        let skew = self.skew.load(Ordering::Relaxed);
        let mut queue = self.queue();
        while count < RECORDS_MAX && out.len() + RECORD_MAX <= RECORD_BYTES_MAX {
            let Some((_, waiting)) = queue.waiting.pop_first() else { break };
            let record = match waiting {
                Waiting::Claim { number, replaces } => {
                    queue.claims.remove(&number);
                    // Displaced before it was claimed.
                    let Some(held) = queue.held.get_mut(&number) else { continue };
                    held.skew = held.skew.min(skew);
                    let accepted = Millis(held.accepted.0.saturating_add_signed(held.skew));
                    Record::Claim { uid: held.uid.clone(), number, replaces, accepted }
                }
                Waiting::Release { uid, number, reason } => Record::Release { uid, number, reason },
            };
            encode_record(&record, out);
            count += 1;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("nobody panics while holding the queue")
    }
}

impl Queue {
    fn push(&mut self, waiting: Waiting) -> u64 {
        let place = self.next;
        self.next += 1;
        self.waiting.insert(place, waiting);
        place
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.claims.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{
        fold::{Incarnation, Message},
        wire,
    };

    #[test]
    fn who_has_given_up_waiting_leaves_nothing_behind() {
        let outgoing = Outgoing::default();
        outgoing.enter();
        (0..100_000).for_each(|_| drop(outgoing.barrier()));
        assert!(outgoing.queue().barriers.capacity() < 100, "{}", outgoing.queue().barriers.capacity());
        let waits = outgoing.barrier();
        outgoing.take_barriers().into_iter().for_each(|barrier| _ = barrier.send(true));
        assert_eq!(waits.blocking_recv(), Ok(true));
    }

    #[test]
    fn a_claim_that_has_not_left_is_taken_back_by_its_release() {
        let outgoing = Outgoing::default();
        outgoing.enter();
        let uid = Uid::new("a").unwrap();
        let mut replaced = None;
        for number in (1..=1_000).map(ConnectionNumber) {
            outgoing.claim(&uid, number, replaced, Millis(1));
            replaced = Some(number);
        }
        assert_eq!(outgoing.len(), 1, "each passes its place on to the next");
        outgoing.release(&uid, ConnectionNumber(1_000), EndReason::Closed);
        assert_eq!(outgoing.len(), 0);
    }

    /// When those that are claimed were accepted, told with that skew.
    fn claimed(outgoing: &Outgoing, skew: i64) -> Vec<(u32, u64)> {
        let mut told = Vec::new();
        outgoing.set_skew(skew);
        outgoing.take(0, &mut told);
        let batch = wire::decode(&wire::encode_batch(Incarnation(1), 1, 0, &told));
        let Ok(Message::Batch { records, .. }) = batch else { panic!("{batch:?}") };
        let claims = records.iter().filter_map(|record| match record {
            Record::Claim { number, accepted, .. } => Some((number.0, accepted.0)),
            _ => None,
        });
        claims.collect()
    }

    #[test]
    fn a_connection_gets_no_younger_while_the_clock_of_its_node_stands_still() {
        let outgoing = Outgoing::default();
        outgoing.claim(&Uid::new("a").unwrap(), ConnectionNumber(1), None, Millis(100_000));
        for (skew, accepted) in [(5, 100_005), (60_000, 100_005), (-7, 99_993), (5, 99_993)] {
            outgoing.enter();
            assert_eq!(claimed(&outgoing, skew), [(1, accepted)], "{skew}");
        }
        // Accepted before, and told only afterwards.
        outgoing.claim(&Uid::new("b").unwrap(), ConnectionNumber(2), None, Millis(200_000));
        assert_eq!(claimed(&outgoing, 70_000), [(2, 200_005)]);
    }

    #[test]
    fn who_gets_in_claims_all_that_is_held_oldest_first() {
        let outgoing = Outgoing::default();
        for number in 1..=2_500 {
            let uid = Uid::new(&format!("u{number}")).unwrap();
            outgoing.claim(&uid, ConnectionNumber(number), None, Millis(10_000 - u64::from(number)));
        }
        outgoing.enter();
        outgoing.release(&Uid::new("u7").unwrap(), ConnectionNumber(7), EndReason::Closed);
        let mut told = Vec::new();
        while outgoing.len() > 0 {
            told.extend(claimed(&outgoing, 0));
        }
        let expected = (1..=2_500).rev().filter(|number| *number != 7);
        assert_eq!(told, expected.map(|number| (number, 10_000 - u64::from(number))).collect::<Vec<_>>());
    }
}
