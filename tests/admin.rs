//! The rest of the control plane: Disconnect, ListSessions, ListNodes, GetInfo, GetHost.

mod common;

use common::{TestDevice, TestServer, call, eventually, expect_invalid, online, push, sessions};
use plex::proto::{self, NodeState, PushStatus};
use std::{collections::HashSet, time::Duration};
use tonic::Code;

const LONG: Duration = Duration::from_secs(60);

fn disconnect(uid: &str) -> proto::DisconnectRequest {
    proto::DisconnectRequest { uid: uid.into(), reason: "it was asked for".into() }
}

fn host(transport: &str) -> proto::GetHostRequest {
    proto::GetHostRequest { transport: transport.into() }
}

#[tokio::test]
async fn disconnect_ends_all_connections_of_a_uid_before_it_answers() {
    let server = TestServer::with(|config| config.device.connections_per_uid = 3).await;
    let mut backend = server.backend().await;
    let mut devices = [server.login("alice").await, server.login("alice").await, server.login("alice").await];
    let mut bob = server.login("bob").await;
    let mut waits = backend.clone();
    let waiting = tokio::spawn(async move { waits.push(call("alice", "/ask", "", LONG)).await.unwrap().into_inner() });
    for device in &mut devices {
        device.next().await;
    }
    assert_eq!(backend.disconnect(disconnect("alice")).await.unwrap().into_inner().connections, 3);
    // Ended for pushes, presence and every count, though the sockets may not be gone.
    let result = backend.push(push("alice", "/x", "")).await.unwrap().into_inner();
    assert_eq!(result.status(), PushStatus::Offline);
    assert!(!online(&mut backend, &["alice"]).await[0].online);
    assert!(sessions(&mut backend, "alice").await.is_empty());
    assert_eq!(backend.disconnect(disconnect("alice")).await.unwrap().into_inner().connections, 0);
    assert_eq!(waiting.await.unwrap().status(), PushStatus::ConnectionLost);
    for device in &mut devices {
        let kick = device.expect_kick("disconnected").await;
        assert_eq!(kick["reconnect"], false);
        assert!(!kick.to_string().contains("it was asked for"), "the device isn't told why: {kick}");
    }
    bob.expect_quiet().await;
}

#[tokio::test]
async fn disconnect_of_nobody_closes_nothing_and_an_old_client_is_just_closed() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    assert_eq!(backend.disconnect(disconnect("nobody")).await.unwrap().into_inner().connections, 0);
    let mut device = TestDevice::login_v1(server.device(), "alice").await;
    assert_eq!(backend.disconnect(disconnect("alice")).await.unwrap().into_inner().connections, 1);
    device.expect_close().await;
}

#[tokio::test]
async fn what_was_queued_goes_out_before_the_disconnected_device_is_told() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut device = server.login("alice").await;
    let body = "x".repeat(60_000);
    let mut sent = 0;
    while backend.push(push("alice", "/x", &body)).await.unwrap().into_inner().status() == PushStatus::Sent {
        sent += 1;
    }
    backend.disconnect(disconnect("alice")).await.unwrap();
    for _ in 0..sent {
        assert_eq!(device.next().await.uri, "/x");
    }
    device.expect_kick("disconnected").await;
}

#[tokio::test]
async fn a_session_is_listed_with_all_its_fields() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut alice = server.login("alice").await;
    let bob = TestDevice::login_v1(server.device(), "bob").await;
    let _stranger = TestDevice::connect(server.device()).await;
    for _ in 0..3 {
        backend.push(push("alice", "/x", "")).await.unwrap();
        alice.next().await;
    }
    let mut all = sessions(&mut backend, "").await;
    all.sort_by(|one, other| one.uid.cmp(&other.uid));
    let uids: Vec<_> = all.iter().map(|session| &*session.uid).collect();
    assert_eq!(uids, ["alice", "bob"], "who hasn't authenticated isn't listed");
    assert_eq!(all[0].remote_address, alice.stream.local_addr().unwrap().to_string());
    assert_eq!(all[1].remote_address, bob.stream.local_addr().unwrap().to_string());
    let figures = |session: &proto::Session| {
        (session.dialect, session.pushes_sent, session.pushes_dropped, session.queued_bytes, session.node.clone())
    };
    assert_eq!(figures(&all[0]), (2, 3, 0, 0, "node-1".into()));
    assert_eq!(figures(&all[1]), (1, 0, 0, 0, "node-1".into()));
    assert!(all[0].epoch > 0 && all[1].epoch > all[0].epoch);
    for session in &all {
        let (connected, seen) = (session.connected_at.unwrap(), session.last_seen.unwrap());
        assert!((connected.seconds, connected.nanos) <= (seen.seconds, seen.nanos));
    }
    // One of them alone.
    assert_eq!(sessions(&mut backend, "bob").await, [all[1].clone()]);
    assert!(sessions(&mut backend, "nobody").await.is_empty());
    expect_invalid(backend.list_sessions(proto::ListSessionsRequest { uid: "u".repeat(256) }).await, "uid");
}

#[tokio::test]
async fn a_session_was_last_seen_when_its_last_whole_frame_came() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let mut device = server.login("alice").await;
    let first = sessions(&mut backend, "alice").await.remove(0);
    assert_eq!(first.last_seen, first.connected_at);
    loop {
        device.expect_quiet().await;
        let seen = sessions(&mut backend, "alice").await.remove(0).last_seen;
        if seen != first.last_seen {
            break;
        }
    }
    // A part of a frame is no sign of life, and a push to it neither.
    let before = sessions(&mut backend, "alice").await.remove(0);
    device.send_bytes(&[0, 0, 0, 9, b'{']).await;
    backend.push(push("alice", "/x", "")).await.unwrap();
    device.next().await;
    let after = sessions(&mut backend, "alice").await.remove(0);
    assert_eq!((after.last_seen, after.epoch), (before.last_seen, before.epoch));
}

#[tokio::test]
async fn ipv6_addresses_are_told_in_brackets() {
    let listens = std::net::TcpListener::bind("[::1]:0").is_ok();
    if !listens {
        eprintln!("this machine has no IPv6");
        return;
    }
    let server = TestServer::with(|config| config.device.listen = Some("[::1]:0".parse().unwrap())).await;
    let mut backend = server.backend().await;
    let device = server.login("alice").await;
    let address = sessions(&mut backend, "alice").await.remove(0).remote_address;
    assert_eq!(address, format!("[::1]:{}", device.stream.local_addr().unwrap().port()));
}

#[tokio::test]
async fn all_sessions_come_in_batches_of_at_most_a_thousand() {
    let server = TestServer::start().await;
    let users: Vec<_> = (0..5_000).map(|number| server.hub.connect(&format!("user-{number}")).unwrap()).collect();
    let mut backend = server.backend().await;
    let uids: HashSet<_> = sessions(&mut backend, "").await.into_iter().map(|session| session.uid).collect();
    assert_eq!(uids.len(), 5_000);
    drop(users);
}

#[tokio::test]
async fn more_than_a_thousand_sessions_of_one_uid_come_in_batches_too() {
    let server = TestServer::with(|config| config.device.connections_per_uid = 1_000).await;
    let held: Vec<_> = (0..1_000).map(|_| server.hub.connect("alice").unwrap()).collect();
    let mut backend = server.backend().await;
    let epochs: HashSet<_> = sessions(&mut backend, "alice").await.into_iter().map(|session| session.epoch).collect();
    assert_eq!(epochs.len(), 1_000);
    assert_eq!(online(&mut backend, &["alice"]).await[0].connections, 1_000);
    drop(held);
}

#[tokio::test]
async fn info_tells_what_the_node_is_and_holds() {
    let server = TestServer::with(|config| {
        config.device.connections_per_uid = 2;
        config.device.max_frame = 2_000;
    })
    .await;
    let mut backend = server.backend().await;
    let _devices = [server.login("alice").await, server.login("alice").await, server.login("bob").await];
    let _stranger = TestDevice::connect(server.device()).await;
    let info = backend.get_info(proto::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((&*info.version, &*info.node), (env!("CARGO_PKG_VERSION"), "node-1"));
    assert_eq!(info.features, [""; 0]);
    assert_eq!((info.frame_bytes_max, info.uids, info.connections), (2_000, 2, 3));
    assert!(info.known_since.is_some());
}

#[tokio::test]
async fn a_single_node_lists_itself_with_all_its_fields() {
    // One device a second: the drain lasts until it is seen.
    let mut server = TestServer::with(|config| config.drain.rate = 1).await;
    let mut backend = server.backend().await;
    let _devices = [server.login("alice").await, server.login("bob").await];
    let listed = |mut backend: common::Backend| async move {
        let nodes = backend.list_nodes(proto::ListNodesRequest {}).await.expect("it answers").into_inner().nodes;
        let [node] = <[_; 1]>::try_from(nodes).expect("one node");
        node
    };
    // Ready as soon as it runs, which the first call may not wait for.
    let ready = || async { Some(listed(backend.clone()).await).filter(|node| node.state() == NodeState::Ready) };
    let node = eventually("it is ready", ready).await;
    let info = backend.get_info(proto::GetInfoRequest {}).await.unwrap().into_inner();
    let since = node.since.expect("it has joined");
    assert_eq!((&*node.name, &node.version, node.connections), ("node-1", &info.version, 2));
    assert_eq!((node.address, node.lag_ms), (server.device().to_string(), 0));
    let begun = info.known_since.unwrap();
    assert!((since.seconds, since.nanos) >= (begun.seconds, begun.nanos), "{since:?} after {begun:?}");

    let stopping = server.stopping();
    let draining = || async { Some(listed(backend.clone()).await).filter(|node| node.state() == NodeState::Draining) };
    eventually("it drains", draining).await;
    stopping.await;
}

#[tokio::test]
async fn host_tells_where_a_device_should_connect() {
    let server = TestServer::start().await;
    let mut backend = server.backend().await;
    let own = server.device().to_string();
    // The node is known to take devices as soon as it runs.
    for transport in ["", "tcp"] {
        let answer = eventually("a host", || {
            let mut backend = backend.clone();
            async move { backend.get_host(host(transport)).await.ok() }
        })
        .await
        .into_inner();
        assert_eq!((answer.host, &*answer.node), (own.clone(), "node-1"));
    }
    let none = backend.get_host(host("tls")).await.unwrap_err();
    assert_eq!(none.code(), Code::Unavailable, "none by that transport: {none}");
    for bad in ["udp", "TCP", "tls "] {
        expect_invalid(backend.get_host(host(bad)).await, "transport");
    }
}

#[tokio::test]
async fn of_several_advertised_hosts_one_is_told_at_random_and_without_any_none() {
    let all = ["gateway-1.example:9578", "gateway-2.example:9578", "[2001:db8::1]:9578"];
    let server = TestServer::with(|config| {
        config.hosts.advertise = Some(all.iter().map(|host| host.parse().unwrap()).collect());
        config.auth.insecure = true;
    })
    .await;
    let mut backend = server.backend().await;
    let mut told = HashSet::new();
    while told.len() < all.len() {
        if let Ok(answer) = backend.get_host(host("")).await {
            let host = answer.into_inner().host;
            assert!(all.contains(&&*host), "{host}");
            told.insert(host);
        }
    }
    let server = TestServer::with(|config| config.hosts.advertise = Some(Vec::new())).await;
    let none = server.backend().await.get_host(host("")).await.unwrap_err();
    assert_eq!(none.code(), Code::Unavailable, "{none}");
}

#[tokio::test]
async fn a_wildcard_address_is_no_host() {
    let server = TestServer::built(
        |config| {
            config.device.listen = Some("0.0.0.0:0".parse().unwrap());
            config.auth.insecure = true;
        },
        |builder| builder,
    )
    .await;
    let none = server.backend().await.get_host(host("")).await.unwrap_err();
    assert_eq!(none.code(), Code::Unavailable, "{none}");
}
