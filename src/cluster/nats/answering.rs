//! What others ask of this node, for one of its lives.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_nats::{Client, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use hashbrown::HashMap;
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::{
    Subjects,
    questions::{self, Question, Said},
};
use crate::{
    cluster::{
        bus::{AtOnce, Departure, Forwarded, Inbound, SentAndWaits},
        engine::Standing,
        fold::Incarnation,
        node::Node,
        wire::{PartHead, Write, encode_part},
    },
    model::{PushOutcome, PushStatus, Session},
};

/// The most bytes of one message of a snapshot's part: well below what the engine takes.
const CHUNK_BYTES: usize = 512 << 10;
/// What stands before them: of which node, which chunk, of how many.
const CHUNK_HEAD: usize = 8 + 2 + 2;
/// The longest message of this node beside a push: a page of sessions is shorter.
pub(super) const BYTES_MAX: usize = CHUNK_BYTES + CHUNK_HEAD;
/// Listings of sessions under way; over it the oldest ends.
const LISTINGS_MAX: usize = 64;
/// A listing that isn't asked for more ends after this time.
const LISTING_IDLE: Duration = Duration::from_secs(60);

/// Answers until it is dropped.
pub(super) struct Answering {
    /// What is asked of the node itself.
    own: [AbortHandle; 2],
    /// What may be asked of any that has the state.
    state: [AbortHandle; 2],
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.own.iter().chain(&self.state).for_each(AbortHandle::abort);
    }
}

#[derive(Clone)]
struct Desk {
    client: Client,
    node: Arc<Node>,
    incarnation: Incarnation,
    requests: mpsc::Sender<Inbound>,
    listings: Arc<Listings>,
}

#[derive(Default)]
struct Listings(Mutex<HashMap<u64, Listing>>);

struct Listing {
    pages: mpsc::Receiver<Vec<Session>>,
    asked: Instant,
}

impl Answering {
    /// Begins to answer for `incarnation`.
    pub(super) fn begin(
        client: &Client,
        subjects: &Subjects,
        node: &Arc<Node>,
        incarnation: Incarnation,
        requests: &mpsc::Sender<Inbound>,
    ) -> Self {
        let desk = Desk {
            client: client.clone(),
            node: node.clone(),
            incarnation,
            requests: requests.clone(),
            listings: Arc::default(),
        };
        let (all, own) = (subjects.snap(), subjects.snap_of(incarnation));
        Self {
            own: [
                tokio::spawn(desk.listings.clone().end_idle()).abort_handle(),
                tokio::spawn(desk.clone().answer(subjects.to(incarnation))).abort_handle(),
            ],
            state: [
                tokio::spawn(desk.clone().tell_state(all.clone(), Some(all))).abort_handle(),
                tokio::spawn(desk.tell_state(own, None)).abort_handle(),
            ],
        }
    }

    /// Only what is asked of the node itself is answered from now on.
    pub(super) fn without_state(self) -> Self {
        self.state.iter().for_each(AbortHandle::abort);
        self
    }
}

impl Listings {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Listing>> {
        self.0.lock().expect("nobody panics while holding the listings")
    }

    /// Ends those that nobody asks for more.
    async fn end_idle(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LISTING_IDLE / 4).await;
            let now = Instant::now();
            self.open().retain(|_, open| now < open.asked + LISTING_IDLE);
        }
    }
}

impl Desk {
    async fn answer(self, subject: String) {
        let Ok(mut messages) = self.client.subscribe(subject).await else { return };
        // Ended with this task.
        let mut under_way = JoinSet::new();
        while let Some(message) = messages.next().await {
            while under_way.try_join_next().is_some() {}
            let Some(reply) = message.reply.clone() else {
                self.note_unreadable(&message);
                continue;
            };
            match questions::read_question(&message.payload) {
                Ok(Question::Pushes(pushes)) => {
                    // Put into the queue here, so that they keep their order.
                    let answers: Vec<_> = pushes.into_iter().map(|(id, push)| (id, self.push(push))).collect();
                    under_way.spawn(self.clone().tell_pushes(answers, reply.to_string()));
                }
                Ok(question) => {
                    let desk = self.clone();
                    under_way.spawn(async move {
                        if let Some(answer) = desk.answer_one(question).await {
                            desk.publish(reply.to_string(), answer).await;
                        }
                    });
                }
                Err(_) => self.note_unreadable(&message),
            }
        }
    }

    /// From a newer node, or from nobody of ours: unanswered.
    fn note_unreadable(&self, message: &Message) {
        self.node.note_unreadable_question();
        tracing::debug!(subject = %message.subject, bytes = message.payload.len(), "a question that can't be read");
    }

    async fn publish(&self, subject: String, bytes: Vec<u8>) {
        _ = self.client.publish(subject, Bytes::from(bytes)).await;
    }

    fn push(&self, push: crate::cluster::bus::ForwardedPush) -> oneshot::Receiver<AtOnce> {
        let (answer, answered) = oneshot::channel();
        if let Err(full) = self.requests.try_send(Inbound::Push { push, departure: Departure::default(), answer })
            && let Inbound::Push { answer, .. } = full.into_inner()
        {
            _ = answer.send(AtOnce::Told(Forwarded::Unreachable));
        }
        answered
    }

    async fn tell_pushes(self, answers: Vec<(u64, oneshot::Receiver<AtOnce>)>, reply: String) {
        let later = reply.rsplit_once('.').map(|(inbox, _)| format!("{inbox}.0")).unwrap_or_default();
        let mut outcomes = Vec::with_capacity(answers.len());
        for (id, answer) in answers {
            let at_once = match answer.await {
                Ok(AtOnce::Told(Forwarded::Outcome(outcome))) => Said::Outcome(outcome),
                Ok(AtOnce::Told(Forwarded::NotHere)) => Said::NotHere,
                Ok(AtOnce::Told(Forwarded::Unreachable)) => Said::Outcome(PushOutcome::unsent(PushStatus::Unreachable)),
                Ok(AtOnce::Waits(SentAndWaits { sent, outcome })) => {
                    let (desk, later) = (self.clone(), later.clone());
                    tokio::spawn(async move {
                        if let Ok(outcome) = outcome.await {
                            desk.publish(later, questions::later(id, outcome)).await;
                        }
                    });
                    Said::Waits(sent)
                }
                Ok(AtOnce::Told(Forwarded::Unknown)) | Err(_) => {
                    Said::Outcome(PushOutcome::unsent(PushStatus::Unknown))
                }
            };
            outcomes.push(at_once);
        }
        self.publish(reply, questions::outcomes(&outcomes)).await;
    }

    async fn answer_one(&self, question: Question) -> Option<Vec<u8>> {
        match question {
            Question::Pushes(_) => None,
            Question::Holds(uids) => {
                let held = self.ask(|answer| Inbound::Holds { uids: uids.into(), answer }).await?;
                Some(questions::held(&held))
            }
            Question::Broadcast { uri, body } => {
                Some(questions::tally(self.ask(|answer| Inbound::Broadcast { uri, body, answer }).await?))
            }
            Question::Disconnect { uid, reason } => {
                Some(questions::count(self.ask(|answer| Inbound::Disconnect { uid, reason, answer }).await?))
            }
            Question::Sessions { listing, uid } => {
                let (answer, pages) = mpsc::channel(1);
                self.requests.send(Inbound::Sessions { uid, answer }).await.ok()?;
                self.page(listing, pages).await
            }
            Question::More { listing } => {
                let open = self.listings.open().remove(&listing)?;
                self.page(listing, open.pages).await
            }
        }
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Inbound) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(question(answer)).await.ok()?;
        answered.await.ok()
    }

    async fn page(&self, listing: u64, mut pages: mpsc::Receiver<Vec<Session>>) -> Option<Vec<u8>> {
        let page = pages.recv().await;
        let more = page.is_some();
        if more {
            let mut listings = self.listings.open();
            if listings.len() >= LISTINGS_MAX {
                let oldest = listings.iter().min_by_key(|(_, open)| open.asked).map(|(listing, _)| *listing);
                oldest.map(|oldest| listings.remove(&oldest));
            }
            listings.insert(listing, Listing { pages, asked: Instant::now() });
        }
        Some(questions::page(&page.unwrap_or_default(), more))
    }

    /// Tells parts of the state to who joins.
    async fn tell_state(self, subject: String, group: Option<String>) {
        let messages = match group {
            Some(group) => self.client.queue_subscribe(subject, group).await,
            None => self.client.subscribe(subject).await,
        };
        let Ok(mut messages) = messages else { return };
        while let Some(message) = messages.next().await {
            self.tell_part(&message).await;
        }
    }

    async fn tell_part(&self, message: &Message) {
        let (Some(reply), [part]) = (&message.reply, &message.payload[..]) else {
            self.note_unreadable(message);
            return;
        };
        let told = self.node.whole(|presence| {
            // Not while it has no state itself.
            if presence.standing == Standing::Joining || presence.state.is_partial() {
                return None;
            }
            let (sequence, at) = presence.folded;
            Some(encode_part(&presence.state, PartHead { part: *part, sequence, at }))
        });
        let Some(bytes) = told.await else { return };
        let count = bytes.len().div_ceil(CHUNK_BYTES).max(1);
        for (index, piece) in bytes.chunks(CHUNK_BYTES).enumerate() {
            let mut chunk = Vec::with_capacity(piece.len() + CHUNK_HEAD);
            chunk.u64(self.incarnation.0);
            chunk.u16(index as u16);
            chunk.u16(count as u16);
            chunk.extend(piece);
            self.publish(reply.to_string(), chunk).await;
        }
    }
}
