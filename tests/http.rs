//! The HTTP port: where a device should connect, health for balancers; and the page of metrics.

mod common;

use common::{SECRET, TestDevice, TestServer, call, http, push, pushing::Pushing, watch::Watch};
use plex::proto;
use std::{collections::BTreeMap, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn host_answers_with_the_address_for_devices() {
    let server = TestServer::start().await;
    let expected = format!(r#"{{"host":"{}"}}"#, server.device());
    for path in ["/plex/v1/host", "/plex/v1/host?transport=tcp", "/plex/v1/host?transport=", "/plex/v1/host?x=y"] {
        let (status, head, body) = http(server.addresses.http, "GET", path).await;
        assert_eq!((status, &body), (200, &expected), "{path}");
        assert!(head.contains("content-type: application/json"), "{head}");
    }
    let (status, head, body) = http(server.addresses.http, "HEAD", "/plex/v1/host").await;
    assert_eq!((status, &*body), (200, ""));
    assert!(head.contains(&format!("content-length: {}", expected.len())), "{head}");
}

#[tokio::test]
async fn host_needs_a_node_that_takes_devices_by_that_transport() {
    let server = TestServer::start().await;
    let (status, head, body) = http(server.addresses.http, "GET", "/plex/v1/host?transport=tls").await;
    assert_eq!(status, 503, "{body}");
    assert!(head.contains("content-type: application/json"), "{head}");
    let body: BTreeMap<String, String> = serde_json::from_str(&body).unwrap();
    assert_eq!(body.keys().collect::<Vec<_>>(), ["error"]);

    let server = TestServer::with(|config| config.hosts.advertise = Some(Vec::new())).await;
    assert_eq!(http(server.addresses.http, "GET", "/plex/v1/host").await.0, 503);
    let server = TestServer::with(|config| config.device.listen = None).await;
    assert_eq!(http(server.addresses.http, "GET", "/plex/v1/host").await.0, 503);
    assert_eq!(http(server.addresses.http, "GET", "/readyz").await.0, 200);
}

#[tokio::test]
async fn another_transport_is_a_bad_request() {
    let server = TestServer::start().await;
    for bad in ["udp", "TCP", "tcp%20", "tcp,tls"] {
        let (status, _, body) = http(server.addresses.http, "GET", &format!("/plex/v1/host?transport={bad}")).await;
        assert_eq!(status, 400, "{bad}: {body}");
    }
}

#[tokio::test]
async fn only_get_and_head_are_answered_and_only_known_paths() {
    let server = TestServer::start().await;
    let metrics = server.addresses.metrics.unwrap();
    let ports = [
        (server.addresses.http, "/plex/v1/host"),
        (server.addresses.http, "/livez"),
        (server.addresses.http, "/readyz"),
        (metrics, "/metrics"),
    ];
    for (address, path) in ports {
        for method in ["GET", "HEAD"] {
            assert_eq!(http(address, method, path).await.0, 200, "{method} {path}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "NONSENSE"] {
            assert_eq!(http(address, method, path).await.0, 405, "{method} {path}");
        }
    }
    for path in ["/", "/plex", "/plex/v1/host/", "/plex/v1/hosts", "/metrics", "/livez/x", "//livez"] {
        for method in ["GET", "POST"] {
            assert_eq!(http(server.addresses.http, method, path).await.0, 404, "{method} {path}");
        }
    }
    for path in ["/", "/livez", "/readyz", "/plex/v1/host", "/metrics/"] {
        assert_eq!(http(metrics, "GET", path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn a_connection_serves_several_requests_and_rubbish_ends_it() {
    let server = TestServer::start().await;
    let mut stream = TcpStream::connect(server.addresses.http).await.unwrap();
    for _ in 0..3 {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            answer.extend(byte);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
    }
    stream.write_all(b"no HTTP at all\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.starts_with(b"HTTP/1.1 400 "));
    assert_eq!(http(server.addresses.http, "GET", "/livez").await.0, 200);
}

#[tokio::test]
async fn host_answers_as_soon_as_the_node_is_ready() {
    for _ in 0..20 {
        let server = TestServer::start().await;
        // The first answer waits until the node serves.
        assert_eq!(http(server.addresses.http, "GET", "/plex/v1/host").await.0, 200);
        assert_eq!(http(server.addresses.http, "GET", "/readyz").await.0, 200);
    }
}

/// The page, its values by name and labels.
async fn page(server: &TestServer) -> BTreeMap<String, u64> {
    let (status, head, page) = http(server.addresses.metrics.unwrap(), "GET", "/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text"), "{head}");
    assert!(page.ends_with("# EOF\n"), "{page}");
    let values = page.lines().filter(|line| !line.starts_with('#'));
    values
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[tokio::test]
async fn every_metric_is_there_from_the_start_with_its_help() {
    let server = TestServer::start().await;
    let names: Vec<_> = page(&server).await.into_keys().collect();
    let (_, _, text) = http(server.addresses.metrics.unwrap(), "GET", "/metrics").await;
    for name in &names {
        let family = name.split('{').next().unwrap();
        let family = family.strip_suffix("_total").unwrap_or(family);
        assert!(family.starts_with("plex_"), "{name}");
        assert!(text.contains(&format!("# HELP {family} ")), "{name}");
        assert!(text.contains(&format!("# TYPE {family} ")), "{name}");
    }
    for (family, kinds) in [
        ("plex_connections_ended_total", 8),
        ("plex_auth_answers_total", 3),
        ("plex_pushes_total", 9),
        ("plex_broadcast_deliveries_total", 2),
    ] {
        assert_eq!(names.iter().filter(|name| name.starts_with(family)).count(), kinds, "{family}");
    }
}

#[tokio::test]
async fn the_metrics_tell_what_happens() {
    let server = TestServer::with(|config| {
        config.device.max_connections = 4;
        config.device.max_errors = 1;
    })
    .await;
    let mut backend = server.backend().await;
    let before = page(&server).await;
    let _watch = Watch::live(&mut backend, common::watch::everyone()).await;

    let (mut alice, mut bob) = (server.login("alice").await, server.login("bob").await);
    // Refused before it is told who it is, then gone.
    let mut stranger = TestDevice::connect(server.device()).await;
    stranger.send(r#"{"uri":"/x"}"#).await;
    assert_eq!(stranger.next().await.uri, "/auth/failed");
    drop(stranger);
    server.metric_is("plex_device_sockets_unauthenticated_total", 1).await;
    alice.send(r#"{"uri":"/ignored"}"#).await;
    alice.expect_quiet().await;

    let results = [
        (push("alice", "/x", ""), "sent"),
        (push("nobody", "/x", ""), "offline"),
        (call("bob", "/x", "", Duration::from_millis(1)), "ack_timeout"),
    ];
    for (request, _) in results.clone() {
        backend.push(request).await.unwrap();
    }
    let mut pushing = Pushing::open(&mut backend).await;
    for (request, _) in results.clone() {
        pushing.send(vec![request]).await;
        pushing.result().await;
    }
    let mut asks = backend.clone();
    let asking = tokio::spawn(async move { asks.push(call("alice", "/ask", "", Duration::from_secs(60))).await });
    alice.next().await;
    alice.next().await;
    let seq = alice.next().await.seq;
    server.metric_is("plex_ack_waits", 1).await;
    alice.nack(seq, "").await;
    asking.await.unwrap().unwrap();
    alice.ack(seq, "again").await;
    alice.expect_quiet().await;
    backend.broadcast(proto::BroadcastRequest { uri: "/all".into(), body: String::new() }).await.unwrap();

    let _alice = server.login("alice").await;
    for _ in 0..2 {
        bob.send("no JSON").await;
    }
    server.metric_is("plex_connections", 1).await;

    let after = page(&server).await;
    let grown: Vec<_> = after.iter().filter(|(name, value)| before[*name] != **value).collect();
    let grown: Vec<_> = grown.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let expected = [
        r#"plex_auth_answers_total{kind="refused"} 1"#,
        r#"plex_auth_answers_total{kind="success"} 3"#,
        r#"plex_broadcast_deliveries_total{kind="sent"} 2"#,
        "plex_connections 1",
        r#"plex_connections_ended_total{kind="protocol"} 1"#,
        r#"plex_connections_ended_total{kind="replaced"} 1"#,
        "plex_connections_opened_total 3",
        "plex_control_streams_opened_total 2",
        "plex_device_answers_late_total 1",
        "plex_device_frames_ignored_total 1",
        "plex_device_frames_malformed_total 2",
        // 3 logins, 1 stranger, 1 ignored, 2 heartbeats, 1 nack, 1 ack, 2 malformed.
        "plex_device_frames_total 11",
        "plex_device_sockets_accepted_total 4",
        "plex_device_sockets_unauthenticated_total 1",
        r#"plex_pushes_total{kind="ack_timeout"} 2"#,
        r#"plex_pushes_total{kind="nacked"} 1"#,
        r#"plex_pushes_total{kind="offline"} 2"#,
        r#"plex_pushes_total{kind="sent"} 2"#,
        "plex_uids_online 1",
    ];
    assert_eq!(grown, expected);
    drop(pushing);
    server.metric_is("plex_control_streams_ended_total", 1).await;
}

#[tokio::test]
async fn over_max_connections_a_socket_is_closed_at_once_and_counted() {
    let server = TestServer::with(|config| config.device.max_connections = 2).await;
    let (alice, mut stranger) = (server.login("alice").await, TestDevice::connect(server.device()).await);
    stranger.send(r#"{"uri":"/x"}"#).await;
    stranger.next().await;
    TestDevice::connect(server.device()).await.expect_close().await;
    server.metric_is("plex_device_sockets_over_limit_total", 1).await;
    drop(alice);
    server.metric_is("plex_connections", 0).await;
    server.login("alice").await;
}

#[tokio::test]
async fn the_page_holds_no_secret_and_nobody_s_name() {
    let server = TestServer::start().await;
    let _device = server.login("alice-and-nobody-else").await;
    let (_, _, page) = http(server.addresses.metrics.unwrap(), "GET", "/metrics").await;
    assert!(!page.contains(SECRET) && !page.contains("alice"), "{page}");
}
