//! Pushes to other nodes: each node has its queue, from which they go in batches, two under way at a time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hashbrown::HashMap;
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::TryRecvError},
        oneshot,
    },
    time::timeout,
};

use super::{Answered, Asked, Bus};
use crate::{
    cluster::{
        bus::{AtOnce, Departure, Forwarded, ForwardedPush, QUEUE_MAX, SentAndWaits},
        fold::Incarnation,
        nats::questions::{self, Said},
    },
    model::PushOutcome,
};

/// The most bytes of pushes that wait for one node; over it, it takes no more.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// How long a queue is kept that nothing comes into: also of a node that has ended nothing stays.
const QUEUE_KEPT: Duration = Duration::from_secs(60);
/// How many batches of pushes for one node are under way: more only makes each wait longer.
const UNDER_WAY: usize = 2;
/// The most pushes, and about the most bytes, of a batch.
const BATCH_MAX: usize = 1_024;
const BATCH_BYTES_MAX: usize = 256 << 10;

/// Pushes that were sent, and wait for their device; who waits for one doesn't do so for ever. Bounded by twice those
/// that somebody waits for.
#[derive(Default)]
pub(super) struct Waiting {
    pushes: HashMap<u64, (Incarnation, oneshot::Sender<PushOutcome>)>,
    /// Above this many those are looked for that nobody waits for any more.
    swept_at: usize,
}

impl Waiting {
    /// Where the outcome of a push comes that a node is about to get.
    fn insert(&mut self, id: u64, to: Incarnation) -> oneshot::Receiver<PushOutcome> {
        if self.pushes.len() >= self.swept_at {
            self.pushes.retain(|_, (_, later)| !later.is_closed());
            self.swept_at = (self.pushes.len() * 2).max(64);
        }
        let (later, outcome) = oneshot::channel();
        self.pushes.insert(id, (to, later));
        outcome
    }

    /// Where the outcome of a push goes, if somebody may wait for it.
    pub(super) fn remove(&mut self, id: u64) -> Option<oneshot::Sender<PushOutcome>> {
        self.pushes.remove(&id).map(|(_, later)| later)
    }

    /// These have ended: nothing comes of what they were sent.
    pub(super) fn forget(&mut self, nodes: &[Incarnation]) {
        self.pushes.retain(|_, (node, _)| !nodes.contains(node));
    }
}

/// A node that is pushed to. Its queue is filled while [`Open`] is held.
pub(super) struct Destination {
    queue: mpsc::Sender<Item>,
    bytes: Arc<AtomicUsize>,
}

struct Item {
    id: u64,
    push: ForwardedPush,
    departure: Departure,
    answer: oneshot::Sender<AtOnce>,
    /// Where the device's answer comes, if one is waited for.
    later: Option<oneshot::Receiver<PushOutcome>>,
}

impl Bus {
    /// Puts a push into a node's queue; false where that takes no more.
    pub(super) fn queue(
        &self,
        to: Incarnation,
        push: ForwardedPush,
        departure: Departure,
        answer: oneshot::Sender<AtOnce>,
    ) -> bool {
        let size = questions::bytes_of(&push);
        let id = self.0.next.fetch_add(1, Relaxed);
        let mut open = self.open();
        let Destination { queue, bytes } = open.destinations.entry(to).or_insert_with(|| self.destination(to));
        if bytes.fetch_add(size, Relaxed) + size > QUEUE_BYTES_MAX && size <= QUEUE_BYTES_MAX {
            bytes.fetch_sub(size, Relaxed);
            return false;
        }
        let taken = queue.try_send(Item { id, push, departure, answer, later: None }).is_ok();
        if !taken {
            bytes.fetch_sub(size, Relaxed);
        }
        taken
    }

    fn destination(&self, to: Incarnation) -> Destination {
        let (queue, items) = mpsc::channel(QUEUE_MAX);
        let bytes = Arc::new(AtomicUsize::new(0));
        self.0.runtime.spawn(self.clone().forward(to, items, bytes.clone()));
        Destination { queue, bytes }
    }

    /// What waits next for a node; `None`: it has ended, or nothing has come for a while, and its queue is gone.
    async fn next(&self, to: Incarnation, items: &mut mpsc::Receiver<Item>) -> Option<Item> {
        if let Ok(item) = timeout(QUEUE_KEPT, items.recv()).await {
            return item;
        }
        let mut open = self.open();
        let item = items.try_recv();
        if matches!(item, Err(TryRecvError::Empty)) {
            open.destinations.remove(&to);
        }
        item.ok()
    }

    /// Sends what waits for a node, in order.
    async fn forward(self, to: Incarnation, mut items: mpsc::Receiver<Item>, bytes: Arc<AtomicUsize>) {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY));
        let mut next = None;
        while let Some(first) = if next.is_some() { next.take() } else { self.next(to, &mut items).await } {
            let permit = under_way.clone().acquire_owned().await.expect("it is never closed");
            let bytes_max = self.0.client.max_payload();
            let mut left = Left { batch: Vec::new(), size: 0, next: None };
            left.take(first, &mut items, &bytes, bytes_max);
            let (mut batch, size);
            Left { batch, size, next } = left;
            if batch.is_empty() {
                continue;
            }
            // Nothing is handed to a client that would send it late.
            if !self.is_up() || size > bytes_max {
                batch.into_iter().for_each(|item| _ = item.answer.send(AtOnce::Told(Forwarded::Unreachable)));
                continue;
            }
            // Before it is handed over: the device may be faster than the task that takes the answer.
            for item in batch.iter_mut().filter(|item| item.push.ack_timeout.is_some()) {
                item.later = Some(self.open().waiting.insert(item.id, to));
            }
            let pushes = questions::pushes(batch.iter().map(|item| (item.id, &item.push)));
            // Handed over here, so that the batches keep their order.
            let asked = self.ask(to, pushes, self.0.forward_timeout).hand_over().await;
            self.0.runtime.spawn(self.clone().take_answers(batch, asked, permit));
        }
    }

    async fn take_answers(self, batch: Vec<Item>, asked: Asked, permit: OwnedSemaphorePermit) {
        let answered = asked.await_answer().await;
        drop(permit);
        match answered {
            Answered::Message(message) => {
                let outcomes = questions::read_outcomes(&message.payload).unwrap_or_default();
                for (item, outcome) in batch.into_iter().zip(outcomes) {
                    let waits = item.later.is_some();
                    let forwarded = match (outcome, item.later) {
                        (Said::Outcome(outcome), _) => Forwarded::Outcome(outcome),
                        (Said::NotHere, _) => Forwarded::NotHere,
                        (Said::Waits(_), None) => Forwarded::Unknown,
                        (Said::Waits(sent), Some(outcome)) => {
                            _ = item.answer.send(AtOnce::Waits(SentAndWaits { sent, outcome }));
                            continue;
                        }
                    };
                    self.forget(item.id, waits);
                    _ = item.answer.send(AtOnce::Told(forwarded));
                }
            }
            // Dropped: nobody knows.
            Answered::Nothing => batch.iter().for_each(|item| self.forget(item.id, item.later.is_some())),
            Answered::NoResponders => {
                for item in batch {
                    self.forget(item.id, item.later.is_some());
                    _ = item.answer.send(AtOnce::Told(Forwarded::Unreachable));
                }
            }
        }
    }

    /// No device's answer comes to this push, if it `waits` for one.
    fn forget(&self, id: u64, waits: bool) {
        if waits {
            self.open().waiting.remove(id);
        }
    }
}

/// What has left a node's queue for one message, and how many bytes that has.
struct Left {
    batch: Vec<Item>,
    size: usize,
    /// Would have made the message too long.
    next: Option<Item>,
}

impl Left {
    /// Takes this item and what goes with it. Those whose time is up aren't sent.
    fn take(&mut self, first: Item, items: &mut mpsc::Receiver<Item>, waiting: &AtomicUsize, bytes_max: usize) {
        let mut item = Some(first);
        while let Some(next) = item.take() {
            let more = questions::bytes_of(&next.push);
            if !self.batch.is_empty() && self.size + more > bytes_max {
                self.next = Some(next);
                return;
            }
            waiting.fetch_sub(more, Relaxed);
            if next.departure.take() {
                self.size += more;
                self.batch.push(next);
            }
            if self.batch.len() < BATCH_MAX && self.size < BATCH_BYTES_MAX {
                item = items.try_recv().ok();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;

    use super::*;
    use crate::{
        cluster::{bus::Inbound, nats::Subjects},
        model::{PushStatus, Uid},
    };

    fn item(body: usize) -> Item {
        let (uid, text) = (Uid::new("a").unwrap(), "x".repeat(body).into());
        let push = ForwardedPush { uid, uri: "/x".into(), body: text, ack_timeout: None, many: 0, deadline: None };
        Item { id: body as u64, push, departure: Departure::shared(), answer: oneshot::channel().0, later: None }
    }

    /// What leaves the queue, by message.
    fn leave(waiting: impl IntoIterator<Item = Item>, bytes_max: usize) -> Vec<Vec<u64>> {
        let (queue, mut items) = mpsc::channel(10);
        let bytes = AtomicUsize::new(0);
        for item in waiting {
            bytes.fetch_add(questions::bytes_of(&item.push), Relaxed);
            queue.try_send(item).unwrap();
        }
        let (mut batches, mut next) = (Vec::new(), None);
        while let Some(first) = next.take().or_else(|| items.try_recv().ok()) {
            let mut left = Left { batch: Vec::new(), size: 0, next: None };
            left.take(first, &mut items, &bytes, bytes_max);
            let pushes = questions::pushes(left.batch.iter().map(|item| (item.id, &item.push)));
            assert!(left.batch.is_empty() || pushes.len() <= left.size && left.size <= bytes_max, "{}", left.size);
            batches.push(left.batch.iter().map(|item| item.id).collect());
            next = left.next;
        }
        assert_eq!(bytes.into_inner(), 0, "nothing waits any more");
        batches
    }

    #[test]
    fn what_would_make_a_message_too_long_for_the_server_goes_with_the_next() {
        let batches = leave([10, 990, 990, 20, 30].map(item), questions::bytes_max(1_000));
        assert_eq!(batches, [vec![10, 990], vec![990, 20, 30]], "each once, in order");
    }

    #[test]
    fn a_push_whose_outcome_nobody_waits_for_leaves_nothing_behind() {
        let mut waiting = Waiting::default();
        let mut last = None;
        for id in 0..100_000 {
            last = Some((id, waiting.insert(id, Incarnation(1))));
        }
        assert!(waiting.pushes.capacity() < 1_000, "{}", waiting.pushes.capacity());
        let (id, mut outcome) = last.unwrap();
        let told = PushOutcome::unsent(PushStatus::AckTimeout);
        waiting.remove(id).unwrap().send(told.clone()).unwrap();
        assert_eq!(outcome.try_recv(), Ok(told));
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_nothing_comes_into_goes() {
        // There is no server, and none is needed.
        let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
        let client = options.connect("nats://127.0.0.1:1").await.unwrap();
        let second = Duration::from_secs(1);
        let bus = Bus::new(client, Subjects::new("c"), Handle::current(), second, second);
        bus.set_up(true);
        for node in 1..=10 {
            let (answer, answered) = oneshot::channel();
            let Item { push, departure, .. } = item(1);
            assert!(bus.send(Incarnation(node), Inbound::Push { push, departure, answer }));
            // Nobody answers.
            assert!(answered.await.is_err());
        }
        assert_eq!(bus.open().destinations.len(), 10);
        tokio::time::sleep(2 * QUEUE_KEPT).await;
        assert_eq!(bus.open().destinations.len(), 0);
    }

    #[test]
    fn what_nobody_waits_for_any_more_does_not_leave() {
        let waiting = [1, 2, 3, 4].map(item);
        assert!([0, 2, 3].iter().all(|given_up| waiting[*given_up].departure.take()));
        let departure = waiting[1].departure.clone();
        assert_eq!(leave(waiting, questions::bytes_max(1_000)), [vec![2]]);
        assert!(!departure.take(), "it can't be taken back");
    }
}
