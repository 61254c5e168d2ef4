//! What the keys do, in a gateway that was started with them.

use std::{fs, net::SocketAddr, process::Command};

use tokio::io::AsyncReadExt;

use super::{
    common::{
        PATIENCE, TestDevice, backend, eventually, http,
        process::{ANY_PORTS, Finished, Home, TestGateway, TestProcess},
    },
    sets,
};
use plex::proto::{GetHostRequest, GetInfoRequest};

async fn serve(home: &Home, values: &[&str]) -> TestGateway {
    home.serve(&sets(values)).await
}

/// One number of the metrics.
async fn metric(gateway: &TestGateway, name: &str) -> f64 {
    let (status, _, page) = http(gateway.metrics.unwrap(), "GET", "/metrics").await;
    assert_eq!(status, 200);
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.unwrap_or_else(|| panic!("{name}: {page}")).parse().unwrap()
}

#[tokio::test]
async fn the_node_s_name_is_what_events_and_operators_and_devices_read() {
    let home = Home::new();
    let gateway = serve(&home, &["node.name=Node.1_x-y"]).await;
    let mut device = TestDevice::connect(gateway.device()).await;
    device.auth_v2("alice").await;
    assert_eq!(device.next().await.json()["node"], "Node.1_x-y");
    let mut backend = backend(gateway.control, &home.secret()).await;
    assert_eq!(backend.get_info(GetInfoRequest {}).await.unwrap().into_inner().node, "Node.1_x-y");
    let online = home.ask(&gateway, &["online", "alice", "--json"]).await;
    assert_eq!(online.json()[0]["node"], "Node.1_x-y");
}

#[tokio::test]
async fn without_a_name_the_node_is_called_as_its_host() {
    let home = Home::new();
    let gateway = serve(&home, &[]).await;
    let mut backend = backend(gateway.control, &home.secret()).await;
    let node = backend.get_info(GetInfoRequest {}).await.unwrap().into_inner().node;
    let host = Command::new("uname").arg("-n").output().unwrap().stdout;
    let host: String = String::from_utf8_lossy(&host).chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let plain: String = node.chars().filter(char::is_ascii_alphanumeric).collect();
    assert!(!node.is_empty() && host.starts_with(&plain), "{node} for {host}");
}

#[tokio::test]
async fn what_a_device_is_told_at_its_login_is_what_was_configured() {
    let home = Home::new();
    let values = ["device.heartbeat=1500ms", "device.heartbeat_timeout=3001ms", "device.max_frame=1MiB"];
    let gateway = serve(&home, &values).await;
    let mut device = TestDevice::connect(gateway.device()).await;
    device.auth_v2("alice").await;
    let welcome = device.next().await.json();
    // Whole seconds, rounded up.
    assert_eq!((&welcome["heartbeat_seconds"], &welcome["heartbeat_timeout_seconds"]), (&2.into(), &4.into()));
    assert_eq!(welcome["max_frame_bytes"], 1 << 20);
    let mut backend = backend(gateway.control, &home.secret()).await;
    assert_eq!(backend.get_info(GetInfoRequest {}).await.unwrap().into_inner().frame_bytes_max, 1 << 20);
}

#[tokio::test]
async fn an_empty_device_listener_is_none_and_no_host_is_told() {
    let home = Home::new();
    let gateway = serve(&home, &["device.listen="]).await;
    assert_eq!(gateway.device, None);
    assert_eq!(http(gateway.http, "GET", "/plex/v1/host").await.0, 503);
    let host = home.ask(&gateway, &["host"]).await;
    assert_eq!((host.code, &*host.stdout), (1, ""), "{host:?}");
    assert_eq!(http(gateway.http, "GET", "/readyz").await.0, 200);
}

#[tokio::test]
async fn metrics_have_an_address_of_their_own_with_nothing_else_there() {
    let home = Home::new();
    let gateway = serve(&home, &[]).await;
    let metrics = gateway.metrics.unwrap();
    assert_eq!(http(metrics, "GET", "/metrics").await.0, 200);
    for path in ["/", "/livez", "/readyz", "/plex/v1/host", "/metrics/"] {
        assert_eq!(http(metrics, "GET", path).await.0, 404, "{path}");
    }
    assert_eq!(http(gateway.http, "GET", "/metrics").await.0, 404);
}

#[tokio::test]
async fn an_empty_metrics_listener_is_none() {
    let home = Home::new();
    let gateway = serve(&home, &["metrics.listen="]).await;
    assert_eq!(gateway.metrics, None);
    assert_eq!(gateway.stopped().await.code, 0);
}

#[tokio::test]
async fn of_several_addresses_to_advertise_one_at_random_is_told() {
    let home = Home::new();
    let gateway = serve(&home, &["hosts.advertise=127.0.0.1:1,[::1]:2,localhost:3"]).await;
    let mut backend = backend(gateway.control, &home.secret()).await;
    let mut missing = vec!["127.0.0.1:1", "[::1]:2", "localhost:3"];
    let mut asked = 0;
    while !missing.is_empty() {
        let host = backend.get_host(GetHostRequest { transport: "tcp".into() }).await.unwrap().into_inner().host;
        assert!(["127.0.0.1:1", "[::1]:2", "localhost:3"].contains(&&*host), "{host}");
        missing.retain(|other| *other != host);
        asked += 1;
        // By chance once in 10^175.
        assert!(asked < 1_000, "never told: {missing:?}");
    }
}

#[tokio::test]
async fn what_is_listened_on_is_advertised_unless_it_is_said_to_be_none() {
    let home = Home::new();
    let gateway = serve(&home, &[]).await;
    let host = http(gateway.http, "GET", "/plex/v1/host").await.2;
    assert_eq!(host, format!("{{\"host\":\"{}\"}}", gateway.device()));
    for values in [&["hosts.advertise="][..], &["hosts.advertise=0.0.0.0:1", "auth.insecure=true"]] {
        let gateway = serve(&home, values).await;
        let (status, _, body) = http(gateway.http, "GET", "/plex/v1/host").await;
        assert!(status == 503 && body.starts_with("{\"error\":\""), "{status} {body}");
        assert_eq!(home.ask(&gateway, &["host"]).await.code, 1);
    }
}

#[tokio::test]
async fn over_max_connections_a_device_is_accepted_and_closed_at_once_and_counted() {
    let home = Home::new();
    let gateway = serve(&home, &["device.max_connections=1"]).await;
    let mut first = TestDevice::login(gateway.device(), "alice").await;
    let mut second = TestDevice::connect(gateway.device()).await;
    let mut byte = [0];
    let end = tokio::time::timeout(PATIENCE, second.stream.read(&mut byte)).await.expect("it is closed");
    assert!(matches!(end, Ok(0) | Err(_)), "nothing is said to it");
    assert_eq!(metric(&gateway, "plex_device_sockets_dropped_total{reason=\"over_limit\"}").await, 1.0);
    first.expect_quiet().await;
    drop(first);
    eventually("there is a place again", || async {
        let mut device = TestDevice::connect(gateway.device()).await;
        device.stream.set_nodelay(true).unwrap();
        let frame = device.frame(br#"{"uri":"/auth/server","body":"bob"}"#);
        tokio::io::AsyncWriteExt::write_all(&mut device.stream, &frame).await.ok()?;
        (device.stream.read(&mut [0]).await.ok()? == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn little_endian_is_how_lengths_are_written() {
    let home = Home::new();
    let gateway = serve(&home, &["device.little_endian=true"]).await;
    let mut device = TestDevice::connect(gateway.device()).await;
    device.little_endian = true;
    device.auth_v2("alice").await;
    assert_eq!(device.next().await.uri, "/auth/success");
    device.expect_quiet().await;
}

#[tokio::test]
async fn a_connection_as_old_as_it_may_be_is_told_to_go_and_its_streams_end() {
    let home = Home::new();
    let gateway = serve(&home, &["control.max_connection_age=100ms"]).await;
    let mut backend = backend(gateway.control, &home.secret()).await;
    let mut stream = backend.online_status(plex::proto::OnlineStatusRequest::default()).await.unwrap().into_inner();
    let end = loop {
        match tokio::time::timeout(PATIENCE, stream.message()).await.expect("the stream ends") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), tonic::Code::Unavailable, "{end}");
    backend.get_info(GetInfoRequest {}).await.expect("a new connection is made");
}

#[tokio::test]
async fn any_of_the_secrets_opens_and_no_other() {
    let home = Home::new();
    let gateway = serve(&home, &["control.secrets=first,second"]).await;
    for secret in ["first", "second"] {
        backend(gateway.control, secret).await.get_info(GetInfoRequest {}).await.unwrap();
    }
    for secret in ["third", "firs", "first,second", ""] {
        let refused = backend(gateway.control, secret).await.get_info(GetInfoRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{secret}");
    }
    assert!(!home.path(".local/state/plex/control.secret").exists(), "none is made up where some are set");
}

/// The limit of open files of a process: soft, hard.
fn open_files(id: u32) -> (String, String) {
    let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut words = line["Max open files".len()..].split_whitespace().map(str::to_owned);
    (words.next().unwrap(), words.next().unwrap())
}

async fn with_limits(home: &Home, limits: &str, values: &[&str]) -> TestGateway {
    let arguments = [&["serve"], &ANY_PORTS[..], &sets(values)].concat();
    TestGateway::of(TestProcess::spawn(home.shell(&format!("{limits} && exec \"$0\" \"$@\""), &arguments))).await
}

fn warned_of_files(ended: &Finished) -> usize {
    ended.stderr.lines().filter(|line| line.contains(" WARN ") && line.contains("open files")).count()
}

#[tokio::test]
async fn the_soft_limit_of_open_files_is_raised_to_the_hard_one_and_logged() {
    let home = Home::new();
    let gateway = with_limits(&home, "ulimit -Sn 100 && ulimit -Hn 300", &["device.max_connections=300"]).await;
    if cfg!(target_os = "linux") {
        assert_eq!(open_files(gateway.process.id()), ("300".to_owned(), "300".to_owned()));
    }
    let ended = gateway.stopped().await;
    assert_eq!(ended.stderr.lines().filter(|line| line.contains("open_files=300")).count(), 1, "{ended:?}");
    assert_eq!(warned_of_files(&ended), 0, "{ended:?}");
}

#[tokio::test]
async fn fewer_open_files_than_max_connections_are_warned_of() {
    let home = Home::new();
    let gateway = with_limits(&home, "ulimit -Sn 100 && ulimit -Hn 300", &["device.max_connections=301"]).await;
    let ended = gateway.stopped().await;
    assert_eq!(warned_of_files(&ended), 1, "{ended:?}");
    let line = ended.stderr.lines().find(|line| line.contains(" WARN ") && line.contains("open files")).unwrap();
    assert!(line.contains("open_files=300") && line.contains("max_connections=301"), "{line}");
}

#[tokio::test]
async fn while_presence_settles_nobody_is_told_live() {
    let home = Home::new();
    let gateway = serve(&home, &["presence.settle=1h", "presence.keepalive=20ms"]).await;
    let _alice = TestDevice::login(gateway.device(), "alice").await;
    let mut backend = backend(gateway.control, &home.secret()).await;
    let mut stream = backend.online_status(plex::proto::OnlineStatusRequest::default()).await.unwrap().into_inner();
    let (mut quiet, mut events) = (0, Vec::new());
    // A keepalive says that there is nothing more to tell.
    while quiet < 5 {
        let response = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(response.cursor, "", "nobody resumes in the middle of a snapshot");
        quiet += usize::from(response.events.is_empty());
        events.extend(response.events.into_iter().map(|event| (event.kind(), event.uid)));
    }
    assert_eq!(events, [(plex::proto::OnlineStatusKind::Snapshot, "alice".to_owned())]);
}

#[tokio::test]
async fn every_listener_can_be_a_name_or_an_address_of_the_sixth_version() {
    let home = Home::new();
    let v6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    let host = if v6 { "[::1]:0" } else { "localhost:0" };
    let values = ["device", "control", "http", "metrics"].map(|section| format!("{section}.listen={host}"));
    let gateway = serve(&home, &values.each_ref().map(String::as_str)).await;
    let all: [SocketAddr; 4] = [gateway.device(), gateway.control, gateway.http, gateway.metrics.unwrap()];
    assert!(all.iter().all(|address| address.ip().is_loopback() && (address.is_ipv6() || !v6)), "{all:?}");
    TestDevice::login(gateway.device(), "alice").await;
    assert_eq!(home.ask(&gateway, &["online", "alice"]).await.stderr, "");
}
