//! How soon a node that starts is ready where there are many users.

use std::time::Duration;

use crate::{
    Broken, LONG_LOG,
    crowd::Crowd,
    ground::{Ground, Node, known, within},
    ms,
    support::cpu_of,
    table,
};

/// How long the numbers of users may differ once nothing changes any more.
const EQUAL_WITHIN: Duration = Duration::from_secs(10);

pub(crate) struct Joined {
    name: String,
    from_start: Duration,
    from_connect: Duration,
    cpu: Duration,
    users: (u64, u64),
}

/// A node joins while nothing changes, and another one while the crowd's users come and go.
pub(crate) async fn joins(ground: &Ground, crowd: &Crowd, rate: u32, log: &str, broken: &mut Broken) -> Vec<Joined> {
    let mut joined = Vec::new();
    for (name, rate) in [("c", 0), ("d", rate)] {
        let (made_from, first) = ground.nats.log_begins().await;
        let has_beginning = made_from == first;
        assert_eq!(has_beginning, log == LONG_LOG, "the log begins with {first} of {made_from}");
        crowd.change(rate).await;
        // The changes are under way.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut node = Node::start(&ground.nats, name, &[log]);
        let ready = node.ready().await;
        let cpu = cpu_of(node.pid());
        let connected = node.logged("connected to the cluster's servers")[0];
        crowd.change(0).await;

        let (mut own, mut peer) = (node.backend().await, ground.nodes[0].backend().await);
        let mut users = (0, 0);
        within(EQUAL_WITHIN, async || {
            users = (known(&mut own).await, known(&mut peer).await);
            (users.0 == users.1).then_some(())
        })
        .await;
        let how = if has_beginning { "from the log's beginning" } else { "from another node" };
        let name = if rate == 0 { how.to_owned() } else { format!("{how}, {rate} changes/s") };
        broken.unless(users.0 == users.1, || format!("who joins {name} knows as many users as the others: {users:?}"));
        joined.push(Joined { name, from_start: ready - node.started, from_connect: ready - connected, cpu, users });
    }
    joined
}

/// Prints them, side by side.
pub(crate) fn show(joined: &[Joined]) {
    let columns: Vec<_> = joined.iter().map(|joined| joined.name.as_str()).collect();
    let row = |cell: &dyn Fn(&Joined) -> String| joined.iter().map(cell).collect::<Vec<_>>();
    table(
        "A node joins: where it takes the users from",
        &columns,
        &[
            ("from its start until it is ready", row(&|joined| ms(joined.from_start))),
            ("from its connecting to the NATS server", row(&|joined| ms(joined.from_connect))),
            ("CPU of its start", row(&|joined| ms(joined.cpu))),
            ("users that it knows, and another", row(&|joined| format!("{}, {}", joined.users.0, joined.users.1))),
        ],
    );
}
