//! What a user of another node costs: memory, and CPU to hear of it.

use std::time::Instant;

use crate::{
    Broken,
    crowd::Crowd,
    ground::{Ground, eventually, known},
    support::{cpu_of, settled},
    table,
};

/// The most bytes of resident memory that a node may take for each user of others.
const USER_BYTES_MAX: f64 = 120.0;

/// From few users to all. With the few the history of changes is full, which doesn't grow with users.
pub(crate) async fn users(ground: &Ground, crowd: &Crowd, users: u32, broken: &mut Broken) {
    let node = &ground.nodes[1];
    let mut backend = node.backend().await;
    let few = users / 10 * 3;
    crowd.claim(few).await;
    ground.all_know(few.into()).await;
    let before = settled(node.pid());

    let pids = [node.pid(), ground.nats.pid()];
    let (begun, cpu) = (Instant::now(), pids.map(cpu_of));
    crowd.claim(users).await;
    eventually("it has read all", async || (known(&mut backend).await == u64::from(users)).then_some(())).await;
    let (elapsed, spent) = (begun.elapsed(), pids.map(cpu_of));
    let after = settled(node.pid());

    let claims = f64::from(users - few);
    let bytes = after.saturating_sub(before) as f64 / claims;
    broken.unless(bytes <= USER_BYTES_MAX, || {
        format!("a user of another node takes at most {USER_BYTES_MAX} bytes: {bytes:.0}, from {few} to {users} users")
    });
    let cpu = |index: usize| vec![format!("{:.2} µs", (spent[index] - cpu[index]).as_secs_f64() * 1e6 / claims)];
    table(
        &format!("Users of another node, from {few} to {users}"),
        &["measured"],
        &[
            ("claims/s until a node has read them", vec![format!("{:.0}", claims / elapsed.as_secs_f64())]),
            ("its CPU a claim", cpu(0)),
            ("CPU a claim of the NATS server", cpu(1)),
            ("bytes of its memory a user", vec![format!("{bytes:.0}")]),
            ("its resident set with all", vec![format!("{:.0} MiB", after as f64 / f64::from(1 << 20))]),
        ],
    );
}
