//! What leaves loopback: which configurations start, which refuse and with which line, which warn.
//!
//! Where the machine lets a test have a network of its own (Linux, as root or with user namespaces), the program really
//! listens there; else only `plex check` is asked.

use std::fs;

use super::{
    common::{
        certs::Authority,
        process::{Finished, Home, TestGateway, TestProcess},
    },
    sets,
};

/// Starts in a network of its own, whose loopback is up.
const OWN_NETWORK: &str = r#"exec unshare -rn sh -c 'ip link set lo up && exec "$0" "$@"' "$0" "$@""#;

async fn checked(home: &Home, values: &[&str]) -> Finished {
    home.run(&[&["check"][..], &sets(values)].concat()).await
}

fn warnings(checked: &Finished) -> Vec<&str> {
    assert_eq!(checked.code, 0, "{checked:?}");
    let warning = |line: &'_ str| line.strip_prefix("plex: warning: ").is_some();
    assert!(checked.stderr.lines().all(warning), "{checked:?}");
    checked.stderr.lines().map(|line| &line["plex: warning: ".len()..]).collect()
}

async fn may_have_a_network() -> bool {
    let home = Home::new();
    let mut process = TestProcess::spawn(home.shell("exec unshare -rn ip link set lo up", &[]));
    let may = process.exit().await.success();
    if !may {
        eprintln!("skipped: no network of its own for this test");
    }
    may
}

/// The addresses on which anybody listens in the network of a process, in hex as the kernel tells them, with the port.
fn listening(id: u32) -> Vec<String> {
    let mut found = Vec::new();
    for family in ["tcp", "tcp6"] {
        let table = fs::read_to_string(format!("/proc/{id}/net/{family}")).unwrap();
        for line in table.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            // State 0A is LISTEN.
            if fields[3] == "0A" {
                let (address, port) = fields[1].split_once(':').unwrap();
                found.push(format!("{address}:{}", u16::from_str_radix(port, 16).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn nothing_configured_listens_on_loopback_only_at_the_four_ports() {
    if !may_have_a_network().await {
        return;
    }
    let home = Home::new();
    let gateway = TestGateway::of(TestProcess::spawn(home.shell(OWN_NETWORK, &["serve"]))).await;
    // 127.0.0.1 in the machine's byte order.
    let address = format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]));
    let expected: Vec<_> = (9578..=9581).map(|port| format!("{address}:{port}")).collect();
    assert_eq!(listening(gateway.process.id()), expected);
    assert_eq!(gateway.device().to_string(), "127.0.0.1:9578");
    assert_eq!(gateway.http.to_string(), "127.0.0.1:9579");
    assert_eq!(gateway.control.to_string(), "127.0.0.1:9580");
    assert_eq!(gateway.metrics.unwrap().to_string(), "127.0.0.1:9581");
    assert_eq!(gateway.stopped().await.code, 0);
}

#[tokio::test]
async fn loopback_is_127_and_the_v6_one_and_localhost() {
    let home = Home::new();
    for host in ["127.0.0.1", "127.255.0.9", "[::1]", "localhost", "LOCALHOST"] {
        let values = ["device", "control", "http", "metrics"].map(|section| format!("{section}.listen={host}:1"));
        let values = values.each_ref().map(String::as_str);
        let checked = checked(&home, &values).await;
        assert_eq!(warnings(&checked), ["auth.mode = \"trust\": every device is taken at its word"], "{host}");
    }
    for host in ["0.0.0.0", "[::]", "10.0.0.1", "128.0.0.1", "[::2]", "localhost.example.com", "gateway"] {
        let refused = checked(&home, &[&format!("control.listen={host}:1")]).await;
        assert!(refused.refusal().starts_with(&format!("control.listen = \"{host}:1\": leaves loopback")), "{host}");
    }
}

/// What happens to a configuration.
enum Outcome {
    /// Refused, by a line that begins so and asks for this.
    Refused(&'static str, &'static str),
    /// It starts; what each warning begins with, in order.
    Starts(&'static [&'static str]),
}
use Outcome::{Refused, Starts};

const TRUSTED: &str = "auth.mode = \"trust\": ";

/// Each listener, on loopback and off it, with each switch that has a say. CERT, KEY, CA and HMAC stand for files.
const MATRIX: &[(&str, Outcome)] = &[
    // Plain devices.
    ("device.listen=127.0.0.1:1", Starts(&[TRUSTED])),
    ("device.listen=127.0.0.1:1 auth.mode=trust", Starts(&[TRUSTED])),
    ("device.listen=0.0.0.0:1", Refused("auth.mode: must be set", "device.listen = \"0.0.0.0:1\"")),
    ("device.listen=[::]:1 auth.mode=trust", Refused("auth.mode = \"trust\": ", "auth.insecure = true")),
    (
        "device.listen=0.0.0.0:1 auth.insecure=true hosts.advertise=127.0.0.1:1",
        Starts(&["device.listen = \"0.0.0.0:1\": leaves loopback without TLS", TRUSTED]),
    ),
    (
        "device.listen=0.0.0.0:1 auth.mode=trust auth.insecure=true",
        Starts(&["device.listen = ", "hosts.advertise: not set", TRUSTED]),
    ),
    ("device.listen=0.0.0.0:1 auth.mode=token auth.keys=HMAC hosts.advertise=", Starts(&["device.listen = "])),
    // Devices over TLS.
    ("device.tls_listen=127.0.0.1:2", Refused("device.tls_listen = \"127.0.0.1:2\": needs ", "device.tls_cert")),
    ("device.tls_listen=127.0.0.1:2 device.tls_cert=CERT", Refused("device.tls_key: must be set", "device.tls_cert")),
    ("device.tls_listen=127.0.0.1:2 device.tls_cert=CERT device.tls_key=KEY", Starts(&[TRUSTED])),
    (
        "device.tls_listen=0.0.0.0:2 device.tls_cert=CERT device.tls_key=KEY",
        Refused("auth.mode: must be set", "device.tls_listen = \"0.0.0.0:2\""),
    ),
    (
        "device.tls_listen=0.0.0.0:2 device.tls_cert=CERT device.tls_key=KEY auth.mode=trust",
        Refused("auth.mode = \"trust\": ", "auth.insecure = true"),
    ),
    (
        "device.tls_listen=0.0.0.0:2 device.tls_cert=CERT device.tls_key=KEY auth.mode=token auth.keys=HMAC",
        Starts(&["hosts.advertise_tls: not set"]),
    ),
    // Where devices are sent.
    ("hosts.advertise=10.0.0.1:1", Refused("auth.mode: must be set", "hosts.advertise")),
    ("hosts.advertise=127.0.0.1:1,a.example.com:2 auth.mode=trust", Refused(TRUSTED, "a.example.com")),
    ("device.listen= hosts.advertise=10.0.0.1:1 auth.mode=trust", Refused(TRUSTED, "10.0.0.1:1")),
    ("hosts.advertise_tls=a.example.com:2", Refused("auth.mode: must be set", "hosts.advertise_tls")),
    ("hosts.advertise=127.0.0.1:1,0.0.0.0:2 auth.insecure=true", Starts(&["hosts.advertise: \"0.0.0.0:2\"", TRUSTED])),
    ("hosts.advertise=10.0.0.1:1 auth.insecure=true", Starts(&[TRUSTED])),
    ("hosts.advertise_tls=a.example.com:2 auth.mode=token auth.keys=HMAC", Starts(&[])),
    // Behind a balancer.
    ("device.proxy_protocol=v2", Refused("device.proxy_from: must be set", "device.proxy_protocol")),
    (
        "device.proxy_protocol=v2 device.proxy_from=127.0.0.0/8",
        Refused("auth.mode: must be set", "device.proxy_protocol = \"v2\""),
    ),
    ("device.proxy_protocol=v2 device.proxy_from=127.0.0.0/8 auth.insecure=true", Starts(&[TRUSTED])),
    ("device.proxy_protocol=v2 device.proxy_from=10.0.0.0/8 auth.mode=token auth.keys=HMAC", Starts(&[])),
    // The control plane. A made-up secret is for loopback only.
    ("control.listen=127.0.0.1:3 control.insecure=true", Starts(&[TRUSTED])),
    ("control.listen=10.0.0.1:3", Refused("control.listen = \"10.0.0.1:3\": ", "control.tls_cert and control.tls_key")),
    ("control.listen=0.0.0.0:3 control.secrets=s", Refused("control.listen = ", "control.insecure = true")),
    ("control.listen=0.0.0.0:3 control.insecure=true", Refused("control.secrets: must be set", "control.listen")),
    ("control.listen=0.0.0.0:3 control.insecure=true control.secrets=s", Starts(&["control.listen = ", TRUSTED])),
    ("control.listen=127.0.0.1:3 control.tls_cert=CERT control.tls_key=KEY", Starts(&[TRUSTED])),
    (
        "control.listen=0.0.0.0:3 control.tls_cert=CERT control.tls_key=KEY",
        Refused("control.secrets: must be set", "control.listen"),
    ),
    ("control.listen=0.0.0.0:3 control.tls_cert=CERT control.tls_key=KEY control.secrets=s", Starts(&[TRUSTED])),
    (
        "control.listen=0.0.0.0:3 control.tls_client_ca=CA control.secrets=s",
        Refused("control.tls_client_ca = ", "tls_cert"),
    ),
    (
        "control.listen=0.0.0.0:3 control.tls_cert=CERT control.tls_key=KEY control.client_names=a control.secrets=s",
        Refused("control.client_names: needs", "control.tls_client_ca"),
    ),
    (
        "control.listen=0.0.0.0:3 control.tls_cert=CERT control.tls_key=KEY control.tls_client_ca=CA \
         control.client_names=a control.secrets=s",
        Starts(&[TRUSTED]),
    ),
    // Host and health, metrics.
    ("http.listen=0.0.0.0:4", Starts(&["http.listen = \"0.0.0.0:4\": ", TRUSTED])),
    ("http.listen=0.0.0.0:4 http.tls_cert=CERT http.tls_key=KEY", Starts(&[TRUSTED])),
    ("http.listen=0.0.0.0:4 http.tls_key=KEY", Refused("http.tls_cert: must be set", "http.tls_key")),
    ("metrics.listen=[::]:5", Starts(&["metrics.listen = \"[::]:5\": ", TRUSTED])),
    (
        "device.listen=0.0.0.0:1 auth.insecure=true hosts.advertise= http.listen=0.0.0.0:4",
        Starts(&["device.listen = ", "http.listen = ", TRUSTED]),
    ),
    // Who is asked who a device is.
    ("auth.mode=http auth.endpoint=http://127.0.0.1:6/auth", Starts(&[])),
    ("auth.mode=http auth.endpoint=http://10.0.0.1:6", Refused("auth.endpoint = \"http://10.0.0.1:6\": ", "https")),
    (
        "auth.mode=http auth.endpoint=http://10.0.0.1:6 auth.insecure=true",
        Starts(&["auth.insecure = true: auth.endpoint = "]),
    ),
    ("auth.mode=grpc auth.endpoint=http://auth.example.com:6", Refused("auth.endpoint = ", "auth.insecure = true")),
    ("auth.mode=grpc auth.endpoint=https://auth.example.com:6", Starts(&[])),
    (
        "auth.mode=token auth.audience=a auth.jwks_url=http://auth.example.com/jwks",
        Refused("auth.jwks_url = ", "auth.insecure = true"),
    ),
    // The servers of a cluster: whoever can publish there can push to every device.
    ("cluster.urls=nats://127.0.0.1:7,nats://localhost:8 control.secrets=s auth.insecure=true", Starts(&[TRUSTED])),
    ("cluster.urls=nats://127.0.0.1:7 auth.insecure=true", Refused("control.secrets: must be set", "cluster.urls")),
    ("cluster.urls=nats://127.0.0.1:7 control.secrets=s", Refused("auth.mode: must be set", "cluster.urls")),
    ("cluster.urls=nats://127.0.0.1:7 control.secrets=s auth.mode=trust", Refused(TRUSTED, "auth.insecure = true")),
    ("cluster.urls=nats://127.0.0.1:7 control.secrets=s device.listen=", Starts(&[])),
    (
        "cluster.urls=nats://127.0.0.1:7,nats://n2.example:7 control.secrets=s auth.mode=token auth.keys=HMAC",
        Refused("cluster.urls = [\"nats://n2.example:7\"]: leaves loopback", "without TLS: it needs \"tls://\""),
    ),
    (
        "cluster.urls=tls://n1.example:7 control.secrets=s auth.mode=token auth.keys=HMAC",
        Refused("cluster.urls = [\"tls://n1.example:7\"]: leaves loopback", "cluster.credentials"),
    ),
    (
        "cluster.urls=nats://n1.example:7 cluster.user=u cluster.password_file=HMAC control.secrets=s auth.insecure=true",
        Refused("cluster.urls = [\"nats://n1.example:7\"]: leaves loopback", "cluster.insecure = true"),
    ),
    (
        "cluster.urls=tls://n1.example cluster.user=u cluster.password_file=HMAC control.secrets=s auth.insecure=true",
        Starts(&[TRUSTED]),
    ),
    (
        "cluster.urls=nats://n1.example cluster.tls_ca=CA cluster.tls_cert=CERT cluster.tls_key=KEY control.secrets=s \
         device.listen=",
        Starts(&[]),
    ),
    (
        "cluster.urls=nats://n1.example:7 cluster.insecure=true control.secrets=s device.listen=",
        Starts(&["cluster.insecure = true: cluster.urls = [\"nats://n1.example:7\"] leaves loopback without TLS, "]),
    ),
    (
        "cluster.urls=tls://n1.example:7 cluster.insecure=true control.secrets=s device.listen=",
        Starts(&[
            "cluster.insecure = true: cluster.urls = [\"tls://n1.example:7\"] leaves loopback without credentials, ",
        ]),
    ),
    ("cluster.insecure=true cluster.replicas=3 cluster.storage=memory", Starts(&[TRUSTED])),
    ("auth.mode=token auth.jwks_url=https://auth.example.com/jwks", Refused("auth.audience: must be set", "\"*\"")),
];

/// The rows of the matrix, with real files; the switches as `--set` takes them.
fn matrix(authority: &Authority) -> Vec<(Vec<String>, &'static Outcome)> {
    let pair = authority.server("server");
    let hmac = authority.folder().join("hmac");
    fs::write(&hmac, "0123456789abcdef0123456789abcdef").unwrap();
    let file = |value: &str| {
        let path = match value {
            "CERT" => &pair.cert,
            "KEY" => &pair.key,
            "CA" => &authority.ca(),
            "HMAC" => &hmac,
            _ => return value.to_owned(),
        };
        path.display().to_string()
    };
    let switch = |text: &str| {
        let (key, value) = text.split_once('=').unwrap();
        ["--set".to_owned(), format!("{key}={}", file(value))]
    };
    MATRIX.iter().map(|(row, outcome)| (row.split_whitespace().flat_map(switch).collect(), outcome)).collect()
}

fn arguments<'a>(command: &'a str, switches: &'a [String]) -> Vec<&'a str> {
    std::iter::once(command).chain(switches.iter().map(String::as_str)).collect()
}

#[tokio::test]
async fn what_leaves_loopback_without_its_protection_is_refused_and_the_rest_is_warned_of() {
    let (home, authority) = (Home::new(), Authority::new());
    for (switches, outcome) in matrix(&authority) {
        match outcome {
            Refused(begins, asks) => {
                for command in ["serve", "check"] {
                    let refused = home.run(&arguments(command, &switches)).await;
                    let line = refused.refusal();
                    assert!(line.starts_with(begins) && line.contains(asks), "{switches:?}: {line}");
                }
            }
            Starts(expected) => {
                let checked = home.run(&arguments("check", &switches)).await;
                let warnings = warnings(&checked);
                assert_eq!(warnings.len(), expected.len(), "{switches:?}: {warnings:?}");
                let fits = warnings.iter().zip(*expected).all(|(line, begins)| line.starts_with(begins));
                assert!(fits, "{switches:?}: {warnings:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_gateway_off_loopback_starts_and_logs_each_warning_once() {
    if !may_have_a_network().await {
        return;
    }
    let authority = Authority::new();
    for (switches, outcome) in matrix(&authority) {
        let Starts(expected) = outcome else { continue };
        let home = Home::new();
        let gateway =
            TestGateway::of(TestProcess::spawn(home.shell(OWN_NETWORK, &arguments("serve", &switches)))).await;
        let ended = gateway.stopped().await;
        let warnings: Vec<_> =
            ended.stderr.lines().filter(|line| line.contains(" WARN ") && line.contains(" plex::server: ")).collect();
        assert_eq!(warnings.len(), expected.len(), "{switches:?}: {ended:?}");
        for begins in *expected {
            let found = warnings.iter().filter(|line| line.contains(&format!(" plex::server: {begins}"))).count();
            assert_eq!(found, 1, "{begins}: {warnings:?}");
        }
        assert_eq!(ended.code, 0);
    }
}

#[tokio::test]
async fn without_a_device_listener_nobody_is_trusted_and_nothing_is_warned_of() {
    let home = Home::new();
    assert!(warnings(&checked(&home, &["device.listen="]).await).is_empty());
}
