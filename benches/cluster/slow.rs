//! A node stands still while very much changes: how soon it is in step again, and what memory that takes.

use std::time::{Duration, Instant};

use plex::proto::IsOnlineRequest;

use crate::{
    Broken,
    crowd::{self, Crowd},
    ground::{Ground, eventually, known, ready_nodes, within},
    ms, seconds,
    support::{Arguments, Backend, resident_of, settled},
    table,
};

/// Who reads a change within this time is in step.
const CURRENT: Duration = Duration::from_millis(100);

/// How long the numbers of users may differ once nothing changes any more.
const EQUAL_WITHIN: Duration = Duration::from_secs(30);

pub(crate) async fn slow(arguments: &Arguments, broken: &mut Broken) {
    let stopped_for = Duration::from_secs(arguments.number("stopped", 20) as u64);
    let rate = u32::try_from(arguments.number("changes", 30_000)).expect("fewer than 2³²");
    let users = u32::try_from(arguments.number("users", 100_000)).expect("fewer than 2³²");
    let mut ground = Ground::start(&["a", "b"], &[]).await;
    let crowd = Crowd::join(&ground.nats.url).await;
    crowd.claim(users).await;
    ground.all_know(users.into()).await;
    let mut backends = [ground.nodes[0].backend().await, ground.nodes[1].backend().await];
    let begun = (Instant::now(), crowd.change(rate).await);
    // The history is full of changes before, too.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let pid = ground.nodes[1].pid();
    let before = resident_of(pid);

    ground.nodes[1].signal("STOP");
    tokio::time::sleep(stopped_for).await;
    let names = ready_nodes(&mut backends[0]).await;
    let was_dead = !names.iter().any(|name| name == "b");
    let continued = Instant::now();
    ground.nodes[1].signal("CONT");
    let mut peak = before;
    let mut marks = 0;
    let (mut caught_up, mut joined) = (None, None);
    loop {
        let asked = Instant::now();
        let mark = crowd::uid(users + marks);
        marks += 1;
        crowd.mark(&mark).await;
        eventually("it reads on", async || {
            peak = peak.max(resident_of(pid));
            is_online(&mut backends[1], &mark).await.then_some(())
        })
        .await;
        if asked.elapsed() < CURRENT {
            caught_up.get_or_insert(continued.elapsed());
        }
        if joined.is_none() && ready_nodes(&mut backends[0]).await.iter().any(|name| name == "b") {
            joined = Some(continued.elapsed());
        }
        if let (Some(_), Some(_)) = (caught_up, joined) {
            break;
        }
        assert!(continued.elapsed() < 3 * EQUAL_WITHIN, "in step again: {caught_up:?}, {joined:?}");
    }
    let changed = crowd.change(0).await - begun.1;
    let rate = changed as f64 / begun.0.elapsed().as_secs_f64();
    let [a, b] = &mut backends;
    let mut known_to = (0, 0);
    within(EQUAL_WITHIN, async || {
        known_to = (known(a).await, known(b).await);
        (known_to.0 == known_to.1).then_some(())
    })
    .await;
    broken.unless(known_to.0 == known_to.1, || {
        format!("a node that stood still comes to know as many users as another: {known_to:?}")
    });
    let after = settled(pid);
    let cut = ground.nodes[1].logged("can't be reached").len();

    let mib = |bytes: u64| format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20));
    let told = |time: Option<Duration>| time.map_or_else(String::new, seconds);
    table(
        &format!("A node stands still for {} s, {rate:.0} changes/s of {users} users", stopped_for.as_secs()),
        &["measured"],
        &[
            (
                "declared dead meanwhile; its connection to the NATS server was cut",
                vec![format!("{was_dead}; {cut} times")],
            ),
            (&format!("until it reads a change within {}", ms(CURRENT)), vec![told(caught_up)]),
            ("until another node knows that it is ready again", vec![told(joined)]),
            ("users that it knows, and another", vec![format!("{}, {}", known_to.1, known_to.0)]),
            ("its resident set before; at most; afterwards", {
                vec![format!("{}; {}; {}", mib(before), mib(peak), mib(after))]
            }),
        ],
    );
}

async fn is_online(backend: &mut Backend, uid: &str) -> bool {
    let request = IsOnlineRequest { uids: vec![uid.to_owned()] };
    backend.is_online(request).await.expect("an answer").into_inner().states[0].online
}
