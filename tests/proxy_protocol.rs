//! Behind a balancer a device has its own address, and nobody else can tell one.

mod common;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{PATIENCE, TestDevice, TestServer, sessions, tls_device::Authority};
use plex::{
    AuthFuture, AuthRequest, Authenticator, Config, Identity,
    config::{Network, ProxyProtocol},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// Takes every device at its word, and keeps the addresses that it was told.
#[derive(Clone, Default)]
struct Witness(Arc<Mutex<Vec<String>>>);

impl Authenticator for Witness {
    fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a> {
        self.0.lock().unwrap().push(request.remote_address.to_owned());
        Box::pin(async move { Ok(Identity::new(request.credential)) })
    }
}

fn behind(networks: &[&str]) -> impl FnOnce(&mut Config) {
    let networks: Vec<Network> = networks.iter().map(|network| network.parse().unwrap()).collect();
    move |config| {
        config.device.proxy_protocol = ProxyProtocol::V2;
        config.device.proxy_from = networks;
        config.device.handshake_timeout = Duration::from_secs(60);
        config.auth.insecure = true;
    }
}

fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

/// Of a device at 192.0.2.7, port 50000.
fn ipv4() -> Vec<u8> {
    header(0x21, 0x11, &[192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 0x25, 0x6a])
}

/// Of a device at 2001:db8::9, port 50000.
fn ipv6() -> Vec<u8> {
    let mut addresses = [0; 36];
    addresses[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    (addresses[15], addresses[32], addresses[33]) = (9, 0xc3, 0x50);
    header(0x21, 0x21, &addresses)
}

async fn ends_without_a_byte(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    // Closed with unread input it may be a reset.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it is closed");
    assert!(bytes.is_empty(), "{bytes:?}");
}

async fn connect(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

const DROPPED: &str = r#"plex_device_sockets_dropped_total{reason="proxy_header"}"#;

#[tokio::test]
async fn the_address_is_what_the_authenticator_and_the_sessions_see_with_tls_too() {
    let (authority, witness) = (Authority::new(), Witness::default());
    let server = TestServer::built(
        |config| {
            behind(&["127.0.0.1/32"])(config);
            authority.serve(config);
        },
        |builder| builder.authenticator(witness.clone()),
    )
    .await;
    let mut backend = server.backend().await;
    let heads = [(ipv4(), "192.0.2.7:50000"), (ipv6(), "[2001:db8::9]:50000")];
    for (number, (head, address)) in heads.into_iter().enumerate() {
        let (uid, tls_uid) = (format!("plain-{number}"), format!("tls-{number}"));
        let mut device = TestDevice { stream: connect(server.device(), &head).await, little_endian: false };
        device.auth_v2(&uid).await;
        assert_eq!(device.next().await.uri, "/auth/success");
        assert_eq!(sessions(&mut backend, &uid).await[0].remote_address, address);

        let stream = connect(server.addresses.device_tls.unwrap(), &head).await;
        let mut device = authority.over(stream, rustls::ALL_VERSIONS).await;
        device.auth_v2(&tls_uid).await;
        assert_eq!(device.next().await.uri, "/auth/success");
        assert_eq!(sessions(&mut backend, &tls_uid).await[0].remote_address, address);
        device.expect_quiet().await;
        assert_eq!(std::mem::take(&mut *witness.0.lock().unwrap()), [address, address]);
    }
    // The balancer itself.
    let stream = connect(server.device(), &header(0x20, 0, &[])).await;
    let own = stream.local_addr().unwrap();
    let mut device = TestDevice { stream, little_endian: false };
    device.auth_v2("local").await;
    device.next().await;
    assert_eq!(sessions(&mut backend, "local").await[0].remote_address, own.to_string());
}

#[tokio::test]
async fn header_and_frames_may_come_in_any_pieces() {
    let server = TestServer::with(behind(&["127.0.0.0/8"])).await;
    let auth = br#"{"uri":"/auth/server","body":"alice"}"#;
    let all = [ipv4(), (auth.len() as u32).to_be_bytes().to_vec(), auth.to_vec()].concat();
    let mut device = TestDevice { stream: connect(server.device(), &all).await, little_endian: false };
    assert_eq!(device.next().await.uri, "/auth/success");
    let mut device = TestDevice::connect(server.device()).await;
    for byte in all {
        device.send_bytes(&[byte]).await;
    }
    assert_eq!(device.next().await.uri, "/auth/success");
}

#[tokio::test]
async fn what_is_no_header_that_is_taken_is_closed_without_a_frame_and_counted() {
    let authority = Authority::new();
    let server = TestServer::with(|config| {
        behind(&["127.0.0.0/8", "::1/128"])(config);
        authority.serve(config);
    })
    .await;
    let auth = b"\0\0\0\x25{\"uri\":\"/auth/server\",\"body\":\"alice\"}".to_vec();
    let bad = [
        ("missing", auth.clone()),
        ("version 1", [&b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 9578\r\n"[..], &auth].concat()),
        ("60 KB long", header(0x21, 0x11, &[0; 60_000])),
        ("addresses cut", [header(0x21, 0x11, &[192, 0, 2, 7]), auth.clone()].concat()),
        ("a TLV cut", [header(0x21, 0x11, &[&ipv4()[16..], &[1, 0, 9]].concat()), auth.clone()].concat()),
    ];
    let mut dropped = 0;
    for (what, bytes) in bad {
        for address in [server.device(), server.addresses.device_tls.unwrap()] {
            println!("{what}");
            let mut stream = TcpStream::connect(address).await.unwrap();
            // It may be closed before all is written.
            let _ = stream.write_all(&bytes).await;
            ends_without_a_byte(stream).await;
            dropped += 1;
            server.metric_is(DROPPED, dropped).await;
        }
    }
    // Ended within the header.
    drop(connect(server.device(), &ipv4()[..20]).await);
    server.metric_is(DROPPED, dropped + 1).await;
}

#[tokio::test]
async fn a_header_from_elsewhere_is_forged() {
    let server = TestServer::with(behind(&["127.0.0.9/32", "10.0.0.0/8"])).await;
    ends_without_a_byte(connect(server.device(), &ipv4()).await).await;
    server.metric_is(DROPPED, 1).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let mut device = TestDevice { stream: socket.connect(server.device()).await.unwrap(), little_endian: false };
    device.send_bytes(&ipv4()).await;
    device.auth_v2("alice").await;
    assert_eq!(device.next().await.uri, "/auth/success");
    assert_eq!(server.metric(DROPPED).await, 1);
}

#[tokio::test]
async fn a_header_has_its_time_and_over_the_bound_the_slowest_are_cut() {
    let server = TestServer::with(|config| {
        behind(&["127.0.0.0/8"])(config);
        config.device.handshake_timeout = Duration::from_millis(300);
    })
    .await;
    ends_without_a_byte(connect(server.device(), &ipv4()[..27]).await).await;
    server.metric_is(DROPPED, 1).await;

    let server = TestServer::with(|config| {
        behind(&["127.0.0.0/8"])(config);
        config.device.handshakes_max = 3;
    })
    .await;
    let mut slow = Vec::new();
    for _ in 0..30 {
        slow.push(connect(server.device(), b"\r").await);
    }
    server.metric_is(DROPPED, 27).await;
    let mut device = TestDevice { stream: connect(server.device(), &ipv4()).await, little_endian: false };
    device.auth_v2("good").await;
    assert_eq!(device.next().await.uri, "/auth/success");
    server.metric_is(DROPPED, 28).await;
}

#[tokio::test]
async fn without_the_setting_a_header_is_no_frame() {
    let server = TestServer::start().await;
    ends_without_a_byte(connect(server.device(), &ipv4()).await).await;
    server.metric_is(r#"plex_device_sockets_dropped_total{reason="unauthenticated"}"#, 1).await;
}
