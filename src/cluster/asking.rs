//! What this node asks others: to push, who holds a uid, to end connections, what sessions there are.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::join_all,
    stream::{self, BoxStream, FuturesUnordered},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{
    AtOnce, BroadcastTally, Cluster, Departure, Forwarded, ForwardedPush, Inbound, Incarnation, SentAndWaits,
    SessionPages, bus::sooner, life_of,
};
use crate::model::{NodeName, PushOutcome, PushStatus, Uid};

impl Cluster {
    /// Hands a push to a node that [`Cluster::lookup`] named: it is in that node's queue, or isn't, when this returns, so
    /// that pushes keep their order. What became of it comes within `cluster.forward_timeout` of this call, or by the
    /// push's deadline; one that is in the queue then isn't sent any more.
    pub(crate) fn forward(
        &self,
        node: Incarnation,
        push: ForwardedPush,
    ) -> impl Future<Output = AtOnce> + Send + use<> {
        let end = sooner(Instant::now() + self.0.options().forward_timeout, push.deadline);
        let (answer, answered) = oneshot::channel();
        let departure = Departure::shared();
        let queued = Inbound::Push { push, departure: departure.clone(), answer };
        let taken = self.0.engine().send(node, queued);
        async move {
            match timeout_at(end, answered).await {
                _ if !taken => AtOnce::Told(Forwarded::Unreachable),
                Ok(Ok(at_once)) => at_once,
                // It hasn't left, and won't any more.
                _ if departure.take() => AtOnce::Told(Forwarded::Unreachable),
                _ => AtOnce::Told(Forwarded::Unknown),
            }
        }
    }

    /// What becomes of a push that waits at another node, which has `cluster.forward_timeout` to tell beyond
    /// `ack_timeout`; by `deadline` the device hasn't answered in time.
    pub(crate) fn outcome_of(
        &self,
        waits: SentAndWaits,
        ack_timeout: Duration,
        deadline: Option<Instant>,
    ) -> impl Future<Output = PushOutcome> + Send + use<> {
        let end = Instant::now() + ack_timeout + self.0.options().forward_timeout;
        let SentAndWaits { sent, outcome } = waits;
        async move {
            let status = match timeout_at(sooner(end, deadline), outcome).await {
                Ok(Ok(outcome)) => return outcome,
                // Its node has ended, and with it the connections.
                Ok(Err(_)) => PushStatus::ConnectionLost,
                Err(_) if deadline.is_some_and(|deadline| deadline < end) => PushStatus::AckTimeout,
                Err(_) => PushStatus::Unknown,
            };
            PushOutcome { status, ..sent }
        }
    }

    /// Asks every *other* node which of `uids`, at most 2,000, it holds. Gives the answers as they come, each with those
    /// that are held; then once `None`, if all have answered in `cluster.forward_timeout`.
    pub(crate) fn who_holds(&self, uids: Arc<[Uid]>) -> BoxStream<'static, Option<(Incarnation, Vec<Uid>)>> {
        let asked: FuturesUnordered<_> = self
            .others()
            .into_iter()
            .map(|(node, _)| {
                let (answer, answered) = oneshot::channel();
                self.0.engine().send(node, Inbound::Holds { uids: uids.clone(), answer });
                let (wait, uids) = (self.0.options().forward_timeout, uids.clone());
                async move {
                    let held = timeout(wait, answered).await.ok()?.ok()?;
                    let held = uids.iter().zip(held).filter(|(_, held)| *held);
                    Some((node, held.map(|(uid, _)| uid.clone()).collect::<Vec<_>>()))
                }
            })
            .collect();
        // Told are those who answered; the end only if nobody is missing.
        let told = asked.scan(true, |all, answer| {
            *all &= answer.is_some();
            std::future::ready(Some((answer, *all)))
        });
        let all = Arc::new(AtomicBool::new(true));
        let complete = all.clone();
        told.filter_map(move |(answer, so_far)| {
            all.store(so_far, Ordering::Relaxed);
            std::future::ready(answer.map(Some))
        })
        .chain(
            stream::once(async move { complete.load(Ordering::Relaxed) })
                .filter_map(|complete| std::future::ready(complete.then_some(None))),
        )
        .boxed()
    }

    /// Asks every *other* node to push to all its devices; sums their answers, and names those that didn't answer in
    /// `cluster.broadcast_timeout`, or by `deadline`. All have been asked when this returns.
    pub(crate) fn broadcast(
        &self,
        uri: &Arc<str>,
        body: &Arc<str>,
        deadline: Option<Instant>,
    ) -> impl Future<Output = (BroadcastTally, Vec<NodeName>)> + Send + use<> {
        let asked = self.others().into_iter().map(|(node, name)| {
            let (uri, body) = (uri.clone(), body.clone());
            let answered = self.ask(node, deadline, |answer| Inbound::Broadcast { uri, body, answer });
            async move { (name, answered.await) }
        });
        // Collected: asked now, not when the answers are waited for.
        let asked: Vec<_> = asked.collect();
        async move {
            let mut all = (BroadcastTally::default(), Vec::new());
            for (name, answer) in join_all(asked).await {
                match answer {
                    Some(tally) => {
                        all.0.sent += tally.sent;
                        all.0.queue_full += tally.queue_full;
                    }
                    None => all.1.push(name),
                }
            }
            all
        }
    }

    /// Asks those of `nodes` that aren't this one to end the connections of `uid`; gives how many they have ended. One
    /// that doesn't answer in `cluster.broadcast_timeout`, or by `deadline`, counts none.
    pub(crate) fn disconnect(
        &self,
        nodes: &[Incarnation],
        uid: &Uid,
        reason: &str,
        deadline: Option<Instant>,
    ) -> impl Future<Output = u32> + Send + use<> {
        let reason: Arc<str> = reason.into();
        let others = nodes.iter().filter(|node| **node != self.incarnation());
        let asked = others.map(|node| {
            let (uid, reason) = (uid.clone(), reason.clone());
            self.ask(*node, deadline, |answer| Inbound::Disconnect { uid, reason, answer })
        });
        let asked: Vec<_> = asked.collect();
        async move { join_all(asked).await.into_iter().flatten().sum() }
    }

    /// The sessions of *other* nodes: those of one uid, of the nodes that hold it, or all of all. What a node doesn't tell
    /// in `cluster.broadcast_timeout` a page, or by `deadline`, is missing.
    #[must_use]
    pub(crate) fn sessions(&self, uid: Option<&Uid>, deadline: Option<Instant>) -> SessionPages {
        let (answer, pages) = mpsc::channel(1);
        let holders = uid.map(|uid| self.lookup(uid.as_str()).map_or_else(Vec::new, |holding| holding.nodes));
        for (node, _) in self.others() {
            if holders.as_ref().is_some_and(|holders| !holders.contains(&node)) {
                continue;
            }
            self.0.engine().send(node, Inbound::Sessions { uid: uid.cloned(), answer: answer.clone() });
        }
        SessionPages { pages, wait: self.0.options().broadcast_timeout, deadline }
    }

    /// The other nodes that are live, or were when the state was lost.
    fn others(&self) -> Vec<(Incarnation, NodeName)> {
        let presence = self.0.presence();
        let past = presence.past.iter().flat_map(|past| past.state.live());
        let mut others: Vec<_> = past
            .filter(|live| live.name != *self.name())
            .map(|live| (life_of(live, &presence), live.name.clone()))
            .collect();
        for live in presence.state.live().filter(|live| live.name != *self.name()) {
            if !others.iter().any(|(_, name)| *name == live.name) {
                others.push((live.incarnation, live.name.clone()));
            }
        }
        others
    }

    /// Puts a question now, and gives the answer, if one comes in time.
    fn ask<T: Send + 'static, Q: FnOnce(oneshot::Sender<T>) -> Inbound>(
        &self,
        node: Incarnation,
        deadline: Option<Instant>,
        question: Q,
    ) -> impl Future<Output = Option<T>> + Send + use<T, Q> {
        let (answer, answered) = oneshot::channel();
        let end = sooner(Instant::now() + self.0.options().broadcast_timeout, deadline);
        // Not taken: the answer's place is dropped with it.
        self.0.engine().send(node, question(answer));
        async move { timeout_at(end, answered).await.ok()?.ok() }
    }
}
