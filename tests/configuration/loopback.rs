//! What leaves loopback: which configurations start, which refuse and with which line, which warn.
//!
//! Where the machine lets a test have a network of its own (Linux, as root or with user namespaces), the program really
//! listens there; else only `plex check` is asked.

use std::fs;

use super::{
    common::process::{Finished, Home, TestGateway, TestProcess},
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

#[tokio::test]
async fn what_leaves_loopback_without_its_protection_is_refused() {
    let home = Home::new();
    for (values, begins, asks) in [
        (&["control.listen=10.0.0.1:1"][..], "control.listen = \"10.0.0.1:1\": ", "control.insecure = true"),
        (&["control.listen=0.0.0.0:1", "control.secrets=s"], "control.listen = ", "control.insecure = true"),
        // A made-up secret is for loopback only.
        (&["control.listen=0.0.0.0:1", "control.insecure=true"], "control.secrets: must be set", "control.listen"),
        (&["device.listen=0.0.0.0:1"], "auth.mode: must be set", "device.listen = \"0.0.0.0:1\""),
        (&["device.listen=[::]:1", "auth.mode=trust"], "auth.mode = \"trust\": ", "auth.insecure = true"),
        (&["hosts.advertise=10.0.0.1:1"], "auth.mode: must be set", "hosts.advertise"),
        (
            &["hosts.advertise=127.0.0.1:1,a.example.com:2", "auth.mode=trust"],
            "auth.mode = \"trust\": ",
            "a.example.com",
        ),
        (&["device.listen=", "hosts.advertise=10.0.0.1:1", "auth.mode=trust"], "auth.mode = \"trust\": ", "10.0.0.1:1"),
    ] {
        for command in ["serve", "check"] {
            let refused = home.run(&[&[command][..], &sets(values)].concat()).await;
            let line = refused.refusal();
            assert!(line.starts_with(begins) && line.contains(asks), "{values:?}: {line}");
        }
    }
}

/// What leaves loopback and starts, and what each warning begins with.
const WARNED: &[(&[&str], &[&str])] = &[
    (&["http.listen=0.0.0.0:1001"], &["http.listen = \"0.0.0.0:1001\": "]),
    (&["metrics.listen=[::]:1002"], &["metrics.listen = \"[::]:1002\": "]),
    (&["device.listen=0.0.0.0:1003", "auth.insecure=true", "hosts.advertise=127.0.0.1:1003"], &["device.listen = "]),
    (
        &["device.listen=0.0.0.0:1003", "auth.mode=trust", "auth.insecure=true"],
        &["device.listen = ", "hosts.advertise: "],
    ),
    (&["control.listen=0.0.0.0:1004", "control.insecure=true", "control.secrets=s"], &["control.listen = "]),
    (&["hosts.advertise=127.0.0.1:1,0.0.0.0:2", "auth.insecure=true"], &["hosts.advertise: \"0.0.0.0:2\""]),
    (&["hosts.advertise=10.0.0.1:1", "auth.insecure=true"], &[]),
    (
        &["device.listen=0.0.0.0:1003", "auth.insecure=true", "hosts.advertise=", "http.listen=0.0.0.0:1001"],
        &["device.listen = ", "http.listen = "],
    ),
];

#[tokio::test]
async fn each_plain_listener_off_loopback_gets_one_warning() {
    let home = Home::new();
    for (values, expected) in WARNED {
        let checked = checked(&home, values).await;
        let warnings = warnings(&checked);
        let (trust, others): (Vec<&str>, _) =
            warnings.iter().partition(|line| line.starts_with("auth.mode = \"trust\""));
        assert_eq!(trust.len(), 1, "{values:?}: {warnings:?}");
        assert_eq!(others.len(), expected.len(), "{values:?}: {warnings:?}");
        assert!(others.iter().zip(*expected).all(|(line, begins)| line.starts_with(begins)), "{warnings:?}");
    }
}

#[tokio::test]
async fn a_gateway_off_loopback_starts_and_logs_each_warning_once() {
    if !may_have_a_network().await {
        return;
    }
    for (values, expected) in WARNED {
        let home = Home::new();
        let arguments = [&["serve"][..], &sets(values)].concat();
        let gateway = TestGateway::of(TestProcess::spawn(home.shell(OWN_NETWORK, &arguments))).await;
        let ended = gateway.stopped().await;
        let warnings: Vec<_> = ended.stderr.lines().filter(|line| line.contains(" WARN ")).collect();
        assert_eq!(warnings.len(), expected.len() + 1, "{values:?}: {ended:?}");
        for begins in expected.iter().chain(&["auth.mode = \"trust\": "]) {
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
