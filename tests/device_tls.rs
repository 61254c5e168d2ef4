//! Devices that come by TLS have all that others have.

mod common;

use std::{fs, net::SocketAddr, time::Duration};

use common::{
    PATIENCE, TestDevice, TestServer, backend, call, eventually, http, push, sessions,
    tls_device::{Authority, shown},
};
use plex::{
    Config,
    client::{Device, DeviceOptions, DeviceTls, Event, LoginError},
    config::{ControlSecret, Scopes, SecretSource},
    proto::{BroadcastRequest, DisconnectRequest, GetHostRequest, GetInfoRequest, PushStatus},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A gateway with TLS, changed first.
async fn gateway(authority: &Authority, change: impl FnOnce(&mut Config)) -> (TestServer, SocketAddr) {
    let server = TestServer::with(|config| {
        authority.serve(config);
        change(config);
    })
    .await;
    let address = server.addresses.device_tls.expect("devices are listened for by TLS");
    (server, address)
}

#[tokio::test]
async fn a_session_over_tls_has_login_pushes_acks_heartbeats_and_a_kick_as_its_last_frame() {
    let authority = Authority::new();
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        let (server, address) = gateway(&authority, |_| {}).await;
        let mut backend = server.backend().await;
        let mut device = authority.over(TcpStream::connect(address).await.unwrap(), versions).await;
        device.auth_v2("alice").await;
        let welcome = device.next().await;
        assert_eq!((welcome.uri.as_str(), &welcome.json()["v"]), ("/auth/success", &2.into()));

        let outcome = backend.push(push("alice", "/a", "one")).await.unwrap().into_inner();
        assert_eq!(outcome.status(), PushStatus::Sent);
        assert_eq!(device.next().await.body, "one");
        let mut asks = backend.clone();
        let asked = tokio::spawn(async move { asks.push(call("alice", "/b", "two", PATIENCE)).await });
        let two = device.next().await;
        device.ack(two.seq, "done").await;
        let outcome = asked.await.unwrap().unwrap().into_inner();
        assert_eq!((outcome.status(), outcome.reply.as_str()), (PushStatus::Acked, "done"));
        device.expect_quiet().await;

        let ended = backend.disconnect(DisconnectRequest { uid: "alice".into(), reason: String::new() }).await.unwrap();
        assert_eq!(ended.into_inner().connections, 1);
        // An end without close_notify would be an error of the stream.
        device.expect_kick("disconnected").await;
    }
}

#[tokio::test]
async fn large_frames_go_both_ways_and_many_come_in_order() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |config| config.device.max_frame = 1 << 20).await;
    let mut backend = server.backend().await;
    let mut device = authority.login(address, "alice").await;
    let large = "x".repeat(1_000_000);
    let mut asks = backend.clone();
    let body = large.clone();
    let asked = tokio::spawn(async move { asks.push(call("alice", "/large", &body, PATIENCE)).await });
    let pushed = device.next().await;
    assert!(pushed.body == large);
    device.ack(pushed.seq, &large).await;
    assert!(asked.await.unwrap().unwrap().into_inner().reply == large);

    for number in 0..500 {
        backend.push(push("alice", "/n", &number.to_string())).await.unwrap();
    }
    for number in 0..500 {
        assert_eq!(device.next().await.body, number.to_string());
    }
}

#[tokio::test]
async fn a_device_that_doesn_t_read_gets_queue_full_then_is_closed_as_slow() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |config| {
        config.device.write_timeout = Duration::from_millis(500);
        config.device.queue_bytes = 16 << 10;
    })
    .await;
    let mut backend = server.backend().await;
    let mut device = authority.connect_narrow(address).await;
    device.auth_v2("alice").await;
    device.next().await;
    let body = "x".repeat(10_000);
    eventually("the queue is full", || async {
        let outcome = backend.clone().push(push("alice", "/x", &body)).await.unwrap().into_inner();
        (outcome.status() == PushStatus::QueueFull).then_some(())
    })
    .await;
    let session = sessions(&mut backend, "alice").await.remove(0);
    assert!(session.queued_bytes > 0 && session.pushes_dropped > 0, "{session:?}");
    server.metric_is(r#"plex_connections_ended_total{reason="slow"}"#, 1).await;
}

#[tokio::test]
async fn a_slow_device_that_reads_again_gets_all_that_was_sent() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |_| {}).await;
    let mut backend = server.backend().await;
    let mut device = authority.connect_narrow(address).await;
    device.auth_v2("alice").await;
    device.next().await;
    let mut sent = Vec::new();
    // Of many lengths, so that the socket fills anywhere within a record.
    for number in 0.. {
        let body = format!("{number}:{}", "x".repeat(number * 37 % 5_000));
        let outcome = backend.push(push("alice", "/x", &body)).await.unwrap().into_inner();
        match outcome.status() {
            PushStatus::Sent => sent.push(body),
            PushStatus::QueueFull => break,
            other => panic!("{other:?}"),
        }
    }
    for body in sent {
        assert!(device.next().await.body == body);
    }
    device.expect_quiet().await;
}

#[tokio::test]
async fn a_device_that_goes_with_or_without_a_word_is_offline() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |_| {}).await;
    let mut device = authority.login(address, "polite").await;
    device.stream.shutdown().await.unwrap();
    device.expect_close().await;
    server.metric_is(r#"plex_connections_ended_total{reason="closed"}"#, 1).await;
    drop(authority.login(address, "rude").await);
    server.metric_is(r#"plex_connections_ended_total{reason="closed"}"#, 2).await;
    assert_eq!(server.metric("plex_connections").await, 0);
}

#[tokio::test]
async fn what_is_no_tls_at_the_tls_port_gets_an_alert_and_the_end() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |_| {}).await;
    let mut device = TestDevice::connect(address).await;
    device.auth_v2("alice").await;
    let mut answer = Vec::new();
    timeout(PATIENCE, device.stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    // An alert of TLS, fatal.
    assert_eq!((answer[0], answer[5]), (21, 2), "{answer:?}");
    server.metric_is(r#"plex_device_sockets_dropped_total{reason="handshake"}"#, 1).await;

    // And rubbish later on ends the session.
    let mut device = authority.login(address, "bob").await;
    device.stream.get_mut().0.write_all(&[23, 3, 3, 0, 40]).await.unwrap();
    device.stream.get_mut().0.write_all(&[0; 40]).await.unwrap();
    server.metric_is(r#"plex_connections_ended_total{reason="closed"}"#, 1).await;
    assert!(timeout(PATIENCE, device.stream.read_to_end(&mut answer)).await.unwrap().is_err(), "told by an alert");
}

#[tokio::test]
async fn a_certificate_is_replaced_under_devices_that_stay() {
    let authority = Authority::new();
    // Looked at after the certificate.
    let (secret, one) = (authority.path("secret"), "one of the files");
    fs::write(&secret, one).unwrap();
    let named = ControlSecret { name: "file".into(), source: SecretSource::File(secret.clone()), scopes: Scopes::ALL };
    let (server, address) = gateway(&authority, |config| config.control.secrets.push(named)).await;
    let old = authority.certificate();
    // Both ends are in this process.
    rlimit::increase_nofile_limit(u64::MAX).expect("the limit can be read");
    let mut devices = Vec::new();
    for number in 0..1_000 {
        devices.push(authority.login(address, &format!("device-{number}")).await);
    }
    assert_eq!(shown(&devices[0]), old);

    let new = authority.issue();
    eventually("new connections are shown the new certificate", || async {
        (shown(&authority.connect(address).await) == new).then_some(())
    })
    .await;
    // A bad one keeps it. Once a file that was written later is read, it has been looked at.
    fs::write(authority.path("cert.pem"), "no certificate").unwrap();
    let other = "another of the files";
    fs::write(&secret, other).unwrap();
    eventually("the other file is read", || async {
        backend(server.addresses.control, other).await.get_info(GetInfoRequest {}).await.ok()
    })
    .await;
    assert_eq!(shown(&authority.login(address, "later").await), new);
    let third = authority.issue();
    eventually("a good one is taken again", || async {
        (shown(&authority.connect(address).await) == third).then_some(())
    })
    .await;

    let sent =
        server.backend().await.broadcast(BroadcastRequest { uri: "/all".into(), body: "still here".into() }).await;
    assert_eq!(sent.unwrap().into_inner().sent, 1_000);
    for device in &mut devices {
        assert_eq!(device.next().await.body, "still here");
        device.expect_quiet().await;
    }
}

#[tokio::test]
async fn slow_handshakes_over_the_bound_are_cut_and_keep_no_good_device_waiting() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |config| {
        config.device.handshakes_max = 5;
        config.device.handshake_timeout = Duration::from_secs(60 * 60);
    })
    .await;
    let mut slow = Vec::new();
    for number in 0..50 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The first bytes of a ClientHello.
        stream.write_all(&[22, 3, 1][..number % 4]).await.unwrap();
        slow.push(stream);
    }
    server.metric_is(r#"plex_device_sockets_dropped_total{reason="handshake"}"#, 45).await;
    let mut good = authority.login(address, "good").await;
    good.expect_quiet().await;
    // The oldest were cut, the newest wait on.
    assert_eq!(server.metric(r#"plex_device_sockets_dropped_total{reason="handshake"}"#).await, 46);
    let mut nothing = [0];
    assert_eq!(slow[0].read(&mut nothing).await.unwrap_or(0), 0);
    assert!(slow[49].try_read(&mut nothing).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
}

#[tokio::test]
async fn a_handshake_has_its_time_and_authentication_its_own() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |config| {
        config.device.handshake_timeout = Duration::from_millis(300);
        config.device.auth_timeout = Duration::from_millis(600);
    })
    .await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(timeout(PATIENCE, silent.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    server.metric_is(r#"plex_device_sockets_dropped_total{reason="handshake"}"#, 1).await;
    let mut shaken = authority.connect(address).await;
    shaken.expect_close().await;
    server.metric_is(r#"plex_device_sockets_dropped_total{reason="unauthenticated"}"#, 1).await;
    assert_eq!(server.metric(r#"plex_device_sockets_dropped_total{reason="handshake"}"#).await, 1);
}

#[tokio::test]
async fn strangers_in_their_handshake_count_as_connections() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |config| config.device.max_connections = 2).await;
    let _device = authority.login(address, "alice").await;
    let _silent = TcpStream::connect(address).await.unwrap();
    server.metric_is("plex_device_sockets_accepted_total", 2).await;
    let mut third = TcpStream::connect(server.device()).await.unwrap();
    assert_eq!(timeout(PATIENCE, third.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    server.metric_is(r#"plex_device_sockets_dropped_total{reason="over_limit"}"#, 1).await;
}

#[tokio::test]
async fn a_node_that_stops_tells_its_devices_and_ends_handshakes() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |_| {}).await;
    let mut device = authority.login(address, "alice").await;
    let _silent = TcpStream::connect(address).await.unwrap();
    server.metric_is("plex_device_sockets_accepted_total", 2).await;
    let stopped = tokio::spawn(server.stopped());
    assert_eq!(device.expect_kick("draining").await["reconnect"], true);
    stopped.await.unwrap();
}

#[tokio::test]
async fn a_host_is_told_by_transport() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |config| config.device.listen = None).await;
    let mut backend = server.backend().await;
    let told = backend.get_host(GetHostRequest { transport: "tls".into() }).await.unwrap().into_inner();
    assert_eq!((told.host, told.node), (address.to_string(), "node-1".to_owned()));
    assert_eq!(backend.get_host(GetHostRequest::default()).await.unwrap_err().code(), tonic::Code::Unavailable);
    let (status, _, body) = http(server.addresses.http, "GET", "/plex/v1/host?transport=tls").await;
    assert_eq!((status, body), (200, format!(r#"{{"host":"{address}"}}"#)));
    assert_eq!(http(server.addresses.http, "GET", "/plex/v1/host").await.0, 503);

    let (server, _) = gateway(&authority, |config| {
        config.hosts.advertise_tls = Some(vec!["push.example.com:443".parse().unwrap()]);
        config.auth.insecure = true;
    })
    .await;
    let (_, _, body) = http(server.addresses.http, "GET", "/plex/v1/host?transport=tls").await;
    assert_eq!(body, r#"{"host":"push.example.com:443"}"#);
    let (_, _, body) = http(server.addresses.http, "GET", "/plex/v1/host?transport=tcp").await;
    assert_eq!(body, format!(r#"{{"host":"{}"}}"#, server.device()));
}

#[tokio::test]
async fn the_client_speaks_tls_and_trusts_only_what_it_was_told_to() {
    let authority = Authority::new();
    let (server, address) = gateway(&authority, |_| {}).await;
    let options = |tls| DeviceOptions::new("alice").tls(tls);
    let ca = authority.path("ca.pem");
    let mut device = Device::connect(address, options(DeviceTls::new().ca(&ca))).await.unwrap();
    server.backend().await.push(push("alice", "/x", "hello")).await.unwrap();
    let event = timeout(PATIENCE, device.next()).await.unwrap().unwrap();
    assert!(matches!(event, Event::Push { body, .. } if body == "hello"));
    server.stop.shutdown();
    let event = timeout(PATIENCE, device.next()).await.unwrap().unwrap();
    assert!(matches!(event, Event::Kick { reason, .. } if reason == "draining"));
    assert!(matches!(timeout(PATIENCE, device.next()).await.unwrap().unwrap(), Event::Closed));

    let (_server, address) = gateway(&authority, |_| {}).await;
    for tls in [DeviceTls::new().server_name("other.example.com").ca(&ca), DeviceTls::new()] {
        let error = Device::connect(address, options(tls)).await.unwrap_err();
        assert!(matches!(&error, LoginError::Io(_)) && error.to_string().contains("certificate"), "{error}");
    }
    let error = Device::connect(address, options(DeviceTls::new().ca("/no/such.pem"))).await.unwrap_err();
    assert!(matches!(error, LoginError::File(_)), "{error}");
    let error = Device::connect(address, options(DeviceTls::new().server_name("not a name"))).await.unwrap_err();
    assert!(matches!(error, LoginError::ServerName(_)), "{error}");
}
