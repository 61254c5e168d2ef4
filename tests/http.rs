//! The HTTP port: where a device should connect, and health for balancers.

mod common;

use std::collections::BTreeMap;

use common::{TestServer, http};
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
