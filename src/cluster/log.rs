//! The log in this process: one node alone, or several in one process.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::model::{ConnectionNumber, EndReason, Millis, NodeName, Uid};

use super::{
    bus::{Bus, Inbound},
    engine::Engine,
    fold::{Effects, Incarnation, Join, Message, RECORDS_MAX, Record, SPEAKS, State},
    hosts::Card,
    node::{LogIdentity, Node},
};

/// A log that lives as long as this process. Every node on it folds a message before the call that wrote it returns,
/// so nothing is kept of it but what the nodes have made of it. Cheap to clone.
#[derive(Clone)]
pub struct LocalLog(Arc<Shared>);

struct Shared {
    identity: u64,
    born: Millis,
    clock: Box<dyn Fn() -> Millis + Send + Sync>,
    on_sequence: Box<dyn Fn(u64) + Send + Sync>,
    /// The latest time that was told.
    latest: AtomicU64,
    /// What makes one order: whoever writes holds it until every node has folded.
    tail: Mutex<Tail>,
    bus: Bus,
}

struct Tail {
    next: u64,
    members: Vec<Weak<Node>>,
    /// Kept for its room.
    effects: Effects,
}

impl fmt::Debug for LocalLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalLog").field("identity", &self.0.identity).finish_non_exhaustive()
    }
}

impl LocalLog {
    /// A new log, whose messages are numbered from `first_sequence` on, on the machine's clock. Let it be larger than
    /// every number used before (unix time in µs will do), or epochs fall; below 2⁵³. `on_sequence` is told each number
    /// before anybody folds it, in order; it may not call the cluster.
    #[must_use]
    pub fn new(first_sequence: u64, on_sequence: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self::with_clock(first_sequence, on_sequence, Millis::now)
    }

    /// As [`LocalLog::new`], on another clock. Where it goes back, the log's time stands still.
    #[must_use]
    pub fn with_clock(
        first_sequence: u64,
        on_sequence: impl Fn(u64) + Send + Sync + 'static,
        clock: impl Fn() -> Millis + Send + Sync + 'static,
    ) -> Self {
        let born = clock();
        Self(Arc::new(Shared {
            identity: rand::random(),
            born,
            clock: Box::new(clock),
            on_sequence: Box::new(on_sequence),
            latest: AtomicU64::new(born.0),
            tail: Mutex::new(Tail { next: first_sequence.max(1), members: Vec::new(), effects: Effects::default() }),
            bus: Bus::default(),
        }))
    }

    /// Since when it is kept.
    #[must_use]
    pub fn born(&self) -> Millis {
        self.0.born
    }

    /// The log's time now; never goes back.
    #[must_use]
    pub fn now(&self) -> Millis {
        let now = (self.0.clock)().0;
        Millis(self.0.latest.fetch_max(now, Ordering::Relaxed).max(now))
    }

    /// Ends the life of the live node of that name, as others do when it has died without a word. False where there is
    /// none.
    pub fn end(&self, name: &NodeName) -> bool {
        let mut tail = self.tail();
        let lives = tail.members.iter().filter_map(Weak::upgrade).find_map(|member| {
            let presence = member.presence();
            let mut live = presence.state.live();
            let dead = live.find(|live| live.name == *name)?.incarnation;
            // Whoever writes it: the first that is live.
            let writer = presence.state.live().next()?.incarnation;
            Some((dead, presence.state.next_of(dead)?, writer, presence.state.next_of(writer)?))
        });
        let Some((dead, next, writer, number)) = lives else { return false };
        // A node that writes its own end has written one more by then.
        let next = next + u64::from(dead == writer);
        let records = [Record::Dead { incarnation: dead, next }];
        tail.append(&self.0, self.now(), &batch(writer, number, &records));
        true
    }

    pub(crate) fn identity(&self) -> LogIdentity {
        LogIdentity { id: self.0.identity, born: self.0.born }
    }

    pub(crate) fn bus(&self) -> &Bus {
        &self.0.bus
    }

    /// Has a node join: `make` gets its incarnation, the message up to which it has folded, and the state there, if
    /// another node has one. The join is folded everywhere when it returns.
    pub(crate) fn join(
        &self,
        name: NodeName,
        connections_per_uid: u16,
        make: impl FnOnce(Incarnation, u64, Option<State>) -> Arc<Node>,
    ) -> Arc<Node> {
        let mut tail = self.tail();
        let sequence = tail.next;
        let state = tail.members.iter().find_map(Weak::upgrade).map(|member| member.presence().state.clone());
        let connections_per_uid = state.as_ref().map_or(connections_per_uid, State::connections_per_uid);
        let node = make(Incarnation(sequence), sequence - 1, state);
        tail.members.push(Arc::downgrade(&node));
        let version = env!("CARGO_PKG_VERSION").into();
        // The sequence stands for the start: the later join has the later one, in whatever millisecond.
        let join = Join { name, start: sequence, attempt: 0, speaks: SPEAKS, connections_per_uid, version };
        tail.append(&self.0, self.now(), &Message::Join(join));
        node
    }

    /// Writes the next batch of a node, which every node has folded when it returns. Nothing is written for a node
    /// that has ended.
    fn write(&self, own: &Node, record: Record) {
        let mut tail = self.tail();
        let next = own.presence().state.next_of(own.incarnation());
        if let Some(number) = next {
            tail.append(&self.0, self.now(), &batch(own.incarnation(), number, &[record]));
        }
    }

    /// Ends the life of a node by its own word, after releases of all that it holds. Nobody writes in between.
    fn end_life(&self, own: &Node) {
        let incarnation = own.incarnation();
        let mut tail = self.tail();
        let (next, mut records) = {
            let presence = own.presence();
            let Some(index) = presence.state.index_of(incarnation) else { return };
            let held = presence.state.directory.held_by(index);
            let release = |uid: &Uid, number| Record::Release { uid: uid.clone(), number, reason: EndReason::Draining };
            let records: Vec<_> = held.map(|(uid, number)| release(uid, number)).collect();
            (presence.state.node(index).next, records)
        };
        let batches = records.len().div_ceil(RECORDS_MAX) as u64;
        // Its end stands in one more batch, and counts it.
        let end = Record::Dead { incarnation, next: next + batches + 1 };
        let last = next + batches;
        for (number, records) in (next..).zip(records.chunks(RECORDS_MAX)) {
            tail.append(&self.0, self.now(), &batch(incarnation, number, records));
        }
        records.clear();
        records.push(end);
        tail.append(&self.0, self.now(), &batch(incarnation, last, &records));
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.0.tail.lock().expect("nobody panics while holding the log")
    }
}

fn batch(incarnation: Incarnation, number: u64, records: &[Record]) -> Message<'_> {
    Message::Batch { incarnation, number, sent: 0, records: records.into() }
}

impl Engine for LocalLog {
    fn claim(
        &self,
        node: &Node,
        uid: &Uid,
        number: ConnectionNumber,
        replaces: Option<ConnectionNumber>,
        accepted: Millis,
    ) {
        self.write(node, Record::Claim { uid: uid.clone(), number, replaces, accepted });
    }

    fn release(&self, node: &Node, uid: &Uid, number: ConnectionNumber, reason: EndReason) {
        self.write(node, Record::Release { uid: uid.clone(), number, reason });
    }

    fn announce(&self, node: &Node, card: Card) {
        self.write(node, Record::Card(card));
    }

    fn now(&self) -> Millis {
        self.now()
    }

    fn send(&self, to: Incarnation, question: Inbound) -> bool {
        self.0.bus.send(to, question)
    }

    fn barrier(&self) -> Option<BoxFuture<'static, bool>> {
        None
    }

    fn is_bus_up(&self) -> bool {
        true
    }

    fn leave(&self, node: &Node) -> BoxFuture<'static, ()> {
        self.end_life(node);
        async {}.boxed()
    }
}

impl Tail {
    fn append(&mut self, shared: &Shared, at: Millis, message: &Message<'_>) {
        let sequence = self.next;
        self.next += 1;
        (shared.on_sequence)(sequence);
        let Self { members, effects, .. } = self;
        members.retain(|member| match member.upgrade() {
            Some(member) => {
                effects.clear();
                member.fold(sequence, at, Some(message), effects);
                if effects.ended.contains(&member.incarnation()) {
                    shared.bus.leave(member.incarnation());
                    member.end();
                }
                true
            }
            None => false,
        });
        // Not kept: a death's list belongs to one node's history only.
        effects.clear();
    }
}
