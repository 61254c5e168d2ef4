//! Calls that concern a node which stands still, and isn't declared dead yet.

use std::time::Duration;

use plex::proto::{
    BroadcastRequest, DisconnectRequest, ListSessionsRequest, PushManyRequest, PushRequest, PushResponse, PushStatus,
};
use tonic::{Request, Response, Status};

use super::common::{Backend, TestDevice, call, eventually, node_processes::Gateways, push, sessions};

/// Three nodes, each with a device, of which the third stands still for as long as it likes.
async fn one_frozen(sets: &[&str]) -> Option<(Gateways, [TestDevice; 3])> {
    let sets: Vec<_> = sets.iter().copied().chain(["cluster.dead_after=1000"]).map(str::to_owned).collect();
    let nodes = Gateways::each(|_| sets.clone()).await?;
    let devices =
        [nodes.login(0, "device-1").await, nodes.login(1, "device-2").await, nodes.login(2, "device-3").await];
    for (uid, node) in [("device-2", "node-2"), ("device-3", "node-3")] {
        nodes.knows(0, uid, Some(node)).await;
    }
    nodes.node(2).process.signal("STOP");
    Some((nodes, devices))
}

/// A request that has to be answered long before the cluster's time-outs.
fn hurried<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(2));
    request
}

fn many(uid: &str, count: usize) -> PushManyRequest {
    PushManyRequest { uids: vec![uid.to_owned(); count], uri: "/x".into(), body: String::new() }
}

fn count(results: &[PushResponse], status: PushStatus) -> usize {
    results.iter().filter(|result| result.status() == status).count()
}

async fn pushed(backend: &mut Backend, request: PushRequest) -> Result<PushStatus, Status> {
    backend.push(hurried(request)).await.map(|outcome| outcome.into_inner().status())
}

#[tokio::test]
async fn a_call_with_a_deadline_gets_its_outcome_whatever_another_node_does() {
    let patient = ["cluster.forward_timeout=1m", "cluster.broadcast_timeout=1h"];
    let Some((mut nodes, _devices)) = one_frozen(&patient).await else { return };
    let backend = &mut nodes.backends[0];

    let ended = backend.disconnect(hurried(DisconnectRequest { uid: "device-3".into(), reason: String::new() })).await;
    assert_eq!(ended.map(|ended| ended.into_inner().connections).map_err(|status| status.code()), Ok(0));
    let all = BroadcastRequest { uri: "/all".into(), body: String::new() };
    let told = backend.broadcast(hurried(all)).await.map(Response::into_inner).expect("an outcome");
    assert_eq!((told.sent, &*told.silent_nodes), (2, &["node-3".to_owned()][..]));
    let mut listed = Vec::new();
    let mut pages = backend.list_sessions(hurried(ListSessionsRequest::default())).await.unwrap().into_inner();
    while let Some(page) = pages.message().await.expect("an end") {
        listed.extend(page.sessions.into_iter().map(|session| session.uid));
    }
    listed.sort();
    assert_eq!(listed, ["device-1", "device-2"]);

    assert_eq!(pushed(backend, push("device-3", "/x", "")).await.unwrap(), PushStatus::Unknown);
    let asked = call("device-3", "/x", "", Duration::from_secs(60));
    assert!(matches!(pushed(backend, asked).await.unwrap(), PushStatus::Unknown | PushStatus::Unreachable));
    let results = backend.push_many(hurried(many("device-3", 1_000))).await.map(Response::into_inner);
    let results = results.expect("an outcome").results;
    assert_eq!(count(&results, PushStatus::Unknown) + count(&results, PushStatus::Unreachable), 1_000);
    // The others are as ever.
    assert_eq!(pushed(backend, push("nobody", "/x", "")).await.unwrap(), PushStatus::Offline);
    assert_eq!(pushed(backend, push("device-2", "/x", "")).await.unwrap(), PushStatus::Sent);
}

#[tokio::test]
async fn a_push_that_has_not_left_when_its_time_is_up_is_told_unreachable_and_never_sent() {
    let sets = ["cluster.forward_timeout=1s", "device.queue_bytes=16MiB"];
    let Some((mut nodes, [.., mut device])) = one_frozen(&sets).await else { return };
    let results = nodes.backends[0].push_many(many("device-3", 10_000)).await.unwrap().into_inner().results;
    let (unknown, unreachable) = (count(&results, PushStatus::Unknown), count(&results, PushStatus::Unreachable));
    assert_eq!(unknown + unreachable, 10_000);
    assert!(unknown > 0 && unreachable > 0, "{unknown} left");
    // What comes behind waits for its own time only.
    let behind = nodes.backends[0].push_many(many("device-3", 10)).await.unwrap().into_inner().results;
    assert_eq!(count(&behind, PushStatus::Unknown) + count(&behind, PushStatus::Unreachable), 10);

    nodes.node(2).process.signal("CONT");
    eventually("it answers again", || async {
        let outcome = nodes.backends[0].clone().push(push("device-3", "/last", "")).await.unwrap().into_inner();
        (outcome.status() == PushStatus::Sent).then_some(())
    })
    .await;
    let (mut late, left) = (0, unknown + count(&behind, PushStatus::Unknown));
    while device.next().await.uri != "/last" {
        late += 1;
        assert!(late <= left, "only {left} left");
    }
}

#[tokio::test]
async fn the_list_of_all_sessions_waits_for_a_node_as_long_as_a_broadcast_does() {
    let Some((mut nodes, _devices)) = one_frozen(&["cluster.broadcast_timeout=500ms"]).await else { return };
    let listed = tokio::time::timeout(Duration::from_secs(20), sessions(&mut nodes.backends[0], ""));
    let listed = listed.await.expect("it doesn't take half a minute");
    assert_eq!(listed.len(), 2);
}
