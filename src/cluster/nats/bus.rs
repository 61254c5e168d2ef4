//! Questions to other nodes, and their answers.

mod forwarding;

use std::{
    future::{Future, IntoFuture},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{Client, Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use hashbrown::HashMap;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::timeout,
};

use self::forwarding::{Destination, Waiting};
use super::{Subjects, questions};
use crate::{
    cluster::{bus::Inbound, fold::Incarnation},
    model::{Session, Uid},
};

/// The questions of this node. Cheap to clone.
#[derive(Clone)]
pub(super) struct Bus(Arc<Inner>);

struct Inner {
    client: Client,
    subjects: Subjects,
    runtime: Handle,
    /// Where answers come: this, a dot, and the question's number.
    inbox: String,
    forward_timeout: Duration,
    broadcast_timeout: Duration,
    up: AtomicBool,
    next: AtomicU64,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    destinations: HashMap<Incarnation, Destination>,
    /// Who waits for an answer, and of which node.
    asked: HashMap<u64, (Incarnation, oneshot::Sender<Message>)>,
    waiting: Waiting,
}

/// What came of a question.
enum Answered {
    Message(Message),
    /// Nobody is there to hear it.
    NoResponders,
    /// Nobody knows.
    Nothing,
}

impl Bus {
    pub(super) fn new(
        client: Client,
        subjects: Subjects,
        runtime: Handle,
        forward_timeout: Duration,
        broadcast_timeout: Duration,
    ) -> Self {
        let inbox = client.new_inbox();
        Self(Arc::new(Inner {
            client,
            subjects,
            runtime,
            inbox,
            forward_timeout,
            broadcast_timeout,
            up: AtomicBool::new(false),
            next: AtomicU64::new(1),
            open: Mutex::default(),
        }))
    }

    pub(super) fn is_up(&self) -> bool {
        self.0.up.load(Relaxed)
    }

    pub(super) fn set_up(&self, up: bool) {
        self.0.up.store(up, Relaxed);
    }

    /// These have ended: what they were asked stays unanswered.
    pub(super) fn ended(&self, nodes: &[Incarnation]) {
        let mut open = self.open();
        open.destinations.retain(|node, _| !nodes.contains(node));
        open.asked.retain(|_, (node, _)| !nodes.contains(node));
        open.waiting.forget(nodes);
    }

    /// Puts a question into a node's queue; false where it isn't taken.
    pub(super) fn send(&self, to: Incarnation, question: Inbound) -> bool {
        if !self.is_up() {
            return false;
        }
        match question {
            Inbound::Push { push, departure, answer } => self.queue(to, push, departure, answer),
            Inbound::Close { .. } => false,
            Inbound::Holds { uids, answer } => {
                let asked = self.ask(to, questions::holds(&uids), self.0.forward_timeout);
                self.answer(asked, answer, |bytes| questions::read_held(bytes).ok());
                true
            }
            Inbound::Broadcast { uri, body, answer } => {
                let asked = self.ask(to, questions::broadcast(&uri, &body), self.0.broadcast_timeout);
                self.answer(asked, answer, |bytes| questions::read_tally(bytes).ok());
                true
            }
            Inbound::Disconnect { uid, reason, answer } => {
                let asked = self.ask(to, questions::disconnect(&uid, &reason), self.0.broadcast_timeout);
                self.answer(asked, answer, |bytes| questions::read_count(bytes).ok());
                true
            }
            Inbound::Sessions { uid, answer } => {
                self.0.runtime.spawn(self.clone().list(to, uid, answer));
                true
            }
        }
    }

    fn answer<T: Send + 'static>(&self, asked: Ask, mut answer: oneshot::Sender<T>, read: fn(&[u8]) -> Option<T>) {
        self.0.runtime.spawn(async move {
            let asked = asked.hand_over().await;
            let answered = tokio::select! {
                answered = asked.await_answer() => answered,
                // Nobody waits any more.
                () = answer.closed() => return,
            };
            if let Answered::Message(message) = answered
                && let Some(read) = read(&message.payload)
            {
                _ = answer.send(read);
            }
        });
    }

    /// Asks page after page, as they are taken.
    async fn list(self, to: Incarnation, uid: Option<Uid>, pages: mpsc::Sender<Vec<Session>>) {
        let listing = rand::random();
        let mut question = questions::sessions(listing, uid.as_ref());
        loop {
            let asked = self.ask(to, question, self.0.broadcast_timeout).hand_over().await;
            let answered = tokio::select! {
                answered = asked.await_answer() => answered,
                () = pages.closed() => return,
            };
            let Answered::Message(message) = answered else { return };
            let Ok((page, more)) = questions::read_page(&message.payload) else { return };
            if pages.send(page).await.is_err() || !more {
                return;
            }
            question = questions::more(listing);
        }
    }

    fn ask(&self, to: Incarnation, question: Vec<u8>, wait: Duration) -> Ask {
        let number = self.0.next.fetch_add(1, Relaxed);
        let (sender, answer) = oneshot::channel();
        self.open().asked.insert(number, (to, sender));
        Ask { subject: self.0.subjects.to(to), question, asked: Asked { bus: self.clone(), number, answer, wait } }
    }

    /// Takes the answers as they come, for as long as there is a client.
    pub(super) async fn take_messages(self) {
        loop {
            if let Ok(mut messages) = self.0.client.subscribe(format!("{}.*", self.0.inbox)).await {
                while let Some(message) = messages.next().await {
                    self.take(message);
                }
            }
            // Only where the client has ended.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn take(&self, message: Message) {
        let number = message.subject.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
        match number {
            // What comes without having been asked for: how pushes ended that waited.
            Some(0) => {
                if let Ok((id, outcome)) = questions::read_later(&message.payload)
                    && let Some(later) = self.open().waiting.remove(id)
                {
                    _ = later.send(outcome);
                }
            }
            Some(number) => {
                let asked = self.open().asked.remove(&number);
                if let Some((_, asked)) = asked {
                    _ = asked.send(message);
                }
            }
            None => {}
        }
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().expect("nobody panics while holding the questions")
    }
}

/// A question that wasn't handed over yet.
struct Ask {
    subject: String,
    question: Vec<u8>,
    asked: Asked,
}

/// A question that was.
struct Asked {
    bus: Bus,
    number: u64,
    answer: oneshot::Receiver<Message>,
    wait: Duration,
}

impl Ask {
    async fn hand_over(self) -> Asked {
        let Self { subject, question, asked } = self;
        let reply = format!("{}.{}", asked.bus.0.inbox, asked.number);
        // Where that fails the client has ended, and no answer comes.
        _ = asked.bus.0.client.publish_with_reply(subject, reply, Bytes::from(question)).await;
        asked
    }
}

impl IntoFuture for Ask {
    type Output = Answered;
    type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Answered> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.hand_over().await.await_answer().await })
    }
}

impl Asked {
    async fn await_answer(mut self) -> Answered {
        match timeout(self.wait, &mut self.answer).await {
            Ok(Ok(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => Answered::NoResponders,
            Ok(Ok(message)) => Answered::Message(message),
            _ => Answered::Nothing,
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.bus.open().asked.remove(&self.number);
    }
}
