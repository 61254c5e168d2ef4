//! A hub among nodes whose answers the tests give, on a log in this process.

use std::{
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{connection::Wire, *};
use crate::{
    cluster::{AtOnce, Forwarded, Inbound, Inbox, LocalLog, Options},
    model::{NodeName, PushOutcome},
};

const PUSH: Push<'_> = Push { uri: "/x", body: "" };

/// A wire that takes nothing: what is pushed is counted, not sent.
struct Stuck;

impl Wire for Stuck {
    fn try_write(&self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn try_write_vectored(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

fn uid(text: &str) -> Uid {
    Uid::new(text).unwrap()
}

fn options(connections_per_uid: u16) -> Options {
    Options { connections_per_uid, ..Options::of_tests() }
}

/// The hub, and another node for each name.
fn nodes<const N: usize>(connections_per_uid: u16, names: [&str; N]) -> (Hub, [Other; N]) {
    let log = LocalLog::new(1_000, |_| {});
    let (cluster, inbox) = Cluster::join(&log, NodeName::new("own"), options(connections_per_uid));
    let settings = Settings {
        encode: |_, push, out| out.extend(push.uri.as_bytes()),
        connections_per_uid: connections_per_uid.into(),
        replaces_per_minute: 2,
        queue_bytes_max: 1_000,
        ack_waits_max: 10,
    };
    let hub = Hub::new(settings, cluster, Numbers::open(None), Metrics::new());
    tokio::spawn(hub.clone().run(inbox));
    let others = names.map(|name| {
        let (cluster, inbox) = Cluster::join(&log, NodeName::new(name), options(connections_per_uid));
        Other { cluster, inbox }
    });
    (hub, others)
}

impl Hub {
    fn login(&self, text: &str) -> Registered<Stuck> {
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        self.register(uid(text), remote, 2, "success".into(), Stuck)
    }

    /// Begins a push; what becomes of it.
    fn begin(&self, text: &str, ack: Option<Duration>) -> tokio::task::JoinHandle<PushOutcome> {
        let ack = ack.map(|ack| Ack { deadline: Instant::now() + ack, permit: None });
        let Pushed::Elsewhere(elsewhere) = self.push(text, PUSH, ack, None) else { panic!("others are asked") };
        tokio::spawn(elsewhere.outcome())
    }

    fn begin_many(&self, uids: &[&str]) -> tokio::task::JoinHandle<Vec<PushOutcome>> {
        let (hub, uids) = (self.clone(), uids.iter().map(|uid| (*uid).to_owned()).collect::<Vec<_>>());
        tokio::spawn(async move { hub.push_many(&uids, PUSH, None).await })
    }
}

/// Another node, which holds what the test says, and answers as it says.
struct Other {
    cluster: Cluster,
    inbox: Inbox,
}

impl Other {
    fn come(&self, text: &str) {
        self.cluster.claim(&uid(text), ConnectionNumber(1), None, self.cluster.now());
    }

    fn go(&self, text: &str) {
        self.cluster.release(&uid(text), ConnectionNumber(1), EndReason::Closed);
    }

    /// The next push that it gets: whose, and where its answer goes.
    async fn pushed(&mut self) -> (String, oneshot::Sender<AtOnce>) {
        let next = timeout(Duration::from_secs(60), async {
            loop {
                if let Inbound::Push { push, answer, departure } = self.inbox.recv().await.expect("it lives") {
                    assert!(departure.take());
                    return (push.uid.as_str().to_owned(), answer);
                }
            }
        });
        next.await.expect("a push in time")
    }

    /// Answers the next push.
    async fn tells(&mut self, forwarded: Forwarded) {
        self.pushed().await.1.send(AtOnce::Told(forwarded)).expect("somebody waits");
    }

    async fn sends(&mut self, seq: i64) {
        self.tells(Forwarded::Outcome(sent(seq, 1))).await;
    }

    /// It gets no more pushes.
    async fn expect_quiet(&mut self) {
        let next = timeout(Duration::from_secs(1), self.pushed()).await;
        assert!(next.is_err(), "{next:?}");
    }
}

fn sent(seq: i64, connections: u32) -> PushOutcome {
    PushOutcome { status: PushStatus::Sent, seq, connections, reply: String::new() }
}

#[tokio::test(start_paused = true)]
async fn who_has_one_connection_here_and_had_one_elsewhere_gets_a_push_once() {
    let (hub, [mut other]) = nodes(2, ["other"]);
    let here = hub.login("a");
    other.come("a");
    let pushed = hub.begin("a", None);
    other.tells(Forwarded::NotHere).await;
    let outcome = pushed.await.unwrap();
    assert_eq!((outcome.status, outcome.connections), (PushStatus::Sent, 1));
    assert_eq!(here.connection.pushes_sent(), 1);

    let pushed = hub.begin_many(&["a"]);
    other.tells(Forwarded::NotHere).await;
    let outcome = pushed.await.unwrap().remove(0);
    assert_eq!((outcome.status, outcome.connections), (PushStatus::Sent, 1));
    assert_eq!(here.connection.pushes_sent(), 2);

    let pushed = hub.begin("a", Some(Duration::from_secs(5)));
    other.tells(Forwarded::NotHere).await;
    let outcome = pushed.await.unwrap();
    assert_eq!((outcome.status, outcome.connections), (PushStatus::AckTimeout, 1));
    assert_eq!(here.connection.pushes_sent(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_has_left_one_of_two_other_nodes_gets_a_push_at_the_other_once() {
    let (hub, [mut left, mut holds]) = nodes(2, ["left", "holds"]);
    left.come("a");
    holds.come("a");
    let pushed = hub.begin("a", None);
    left.tells(Forwarded::NotHere).await;
    holds.sends(7).await;
    assert_eq!(pushed.await.unwrap(), sent(7, 1));
    holds.expect_quiet().await;
    left.expect_quiet().await;
}

#[tokio::test(start_paused = true)]
async fn a_push_that_nobody_asked_holds_any_more_goes_to_all_nodes_that_do() {
    let (hub, [mut before, mut one, mut two]) = nodes(3, ["before", "one", "two"]);
    before.come("a");
    let pushed = hub.begin("a", None);
    let (_, answer) = before.pushed().await;
    before.go("a");
    let here = hub.login("a");
    one.come("a");
    two.come("a");
    answer.send(AtOnce::Told(Forwarded::NotHere)).unwrap();
    one.sends(1).await;
    two.sends(2).await;
    assert_eq!(pushed.await.unwrap(), sent(2, 3), "the number of the newest, the sum of all");
    assert_eq!(here.connection.pushes_sent(), 1);
    for other in [&mut before, &mut one, &mut two] {
        other.expect_quiet().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_left_all_nodes_is_offline() {
    let (hub, [mut one, mut two]) = nodes(2, ["one", "two"]);
    for ack in [None, Some(Duration::from_secs(5))] {
        one.come("a");
        two.come("a");
        let pushed = hub.begin("a", ack);
        one.go("a");
        two.go("a");
        one.tells(Forwarded::NotHere).await;
        two.tells(Forwarded::NotHere).await;
        assert_eq!(pushed.await.unwrap().status, PushStatus::Offline);
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_to_many_waits_once_for_all_that_have_moved() {
    const UIDS: [&str; 3] = ["a", "b", "c"];
    let (hub, [mut before, mut after]) = nodes(1, ["before", "after"]);
    UIDS.iter().for_each(|uid| before.come(uid));
    let pushed = hub.begin_many(&UIDS);
    for uid in UIDS {
        let (to, answer) = before.pushed().await;
        assert_eq!(to, uid);
        before.go(uid);
        after.come(uid);
        answer.send(AtOnce::Told(Forwarded::NotHere)).unwrap();
    }
    let mut answers = Vec::new();
    for _ in UIDS {
        let next = timeout(Duration::from_secs(1), after.pushed()).await;
        answers.push(next.expect("before it has answered the first"));
    }
    for (seq, (_, answer)) in (1..).zip(answers) {
        answer.send(AtOnce::Told(Forwarded::Outcome(sent(seq, 1)))).unwrap();
    }
    let outcomes = pushed.await.unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.status == PushStatus::Sent), "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn devices_that_replace_each_other_over_nodes_are_slowed() {
    let (hub, [other]) = nodes(1, ["other"]);
    for _ in 0..=2 {
        assert_eq!(hub.replace_delay(&uid("a")), None);
        let here = hub.login("a");
        other.come("a");
        // The log has displaced it; the hub reads that.
        while !here.connection.has_ended() {
            tokio::task::yield_now().await;
        }
    }
    assert!(hub.replace_delay(&uid("a")).is_some());
    assert_eq!(hub.replace_delay(&uid("b")), None);
    other.go("a");
    assert_eq!(hub.replace_delay(&uid("a")), None, "it would replace nobody");
}
