//! TLS of devices, as who runs `plex serve` and `plex device` meets it.

mod common;

use std::fs;

use common::{
    process::{Home, own_loopback},
    tls_device::Authority,
};

/// The arguments of a gateway with TLS for devices.
fn tls(authority: &Authority, address: &str) -> Vec<String> {
    let set = |key: &str, value: &str| ["--set".to_owned(), format!("device.{key}={value}")];
    [
        set("tls_listen", address),
        set("tls_cert", &authority.text("cert.pem")),
        set("tls_key", &authority.text("key.pem")),
    ]
    .concat()
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[tokio::test]
async fn a_device_finds_the_tls_port_of_the_configuration_and_comes_back() {
    let (home, authority) = (Home::new(), Authority::new());
    let host = own_loopback().to_string();
    authority.issue_for(&[&host]);
    let address = format!("{host}:9588");
    let file = home.write(
        "plex.toml",
        &format!(
            "[device]\nlisten = \"\"\ntls_listen = \"{address}\"\ntls_cert = {:?}\ntls_key = {:?}\n\
             [control]\nlisten = \"{host}:9580\"\n[http]\nlisten = \"{host}:9579\"\n[metrics]\nlisten = \"\"\n",
            authority.text("cert.pem"),
            authority.text("key.pem")
        ),
    );
    let start = || async {
        let mut gateway = home.spawn(&["serve", "--config", &file]);
        let line = gateway.stderr.until("listening").await;
        assert!(line.contains(&format!("device_tls={address}")) && !line.contains("device="), "{line}");
        gateway
    };
    let mut gateway = start().await;
    let ca = authority.text("ca.pem");
    let mut device = home.spawn(&["device", "--uid", "alice", "--tls", "--ca", &ca, "--config", &file]);
    let first = device.stdout.next().await;
    assert!(first.starts_with(&format!("connected to {address}")), "{first}");
    let pushed = home.run(&["push", "alice", "/news", "hello", "--config", &file]).await;
    assert_eq!(pushed.code, 0, "{pushed:?}");
    let line = device.stdout.next().await;
    assert!(line.ends_with("/news hello"), "{line}");

    gateway.kill();
    assert_eq!(device.stdout.next().await, "closed");
    let _gateway = start().await;
    assert_eq!(device.stdout.next().await, first);
}

#[tokio::test]
async fn a_gateway_that_isn_t_trusted_is_4_and_a_bad_file_of_certificates_is_2() {
    let (home, authority, other) = (Home::new(), Authority::new(), Authority::new());
    let mut gateway = home.spawn(
        &[
            &["serve", "--set", "device.listen=127.0.0.1:0", "--set", "control.listen=127.0.0.1:0"],
            &["--set", "http.listen=127.0.0.1:0", "--set", "metrics.listen="][..],
            &borrowed(&tls(&authority, "127.0.0.1:0")),
        ]
        .concat(),
    );
    let line = gateway.stderr.until("listening").await;
    let address = line.split(' ').find_map(|word| word.strip_prefix("device_tls=")).expect("it tells where").to_owned();
    let device = ["device", "--uid", "alice", "--connect", &address];
    for ca in [Some(other.text("ca.pem")), None] {
        let mut arguments = [&device[..], &["--tls"]].concat();
        arguments.extend(ca.iter().flat_map(|ca| ["--ca", ca.as_str()]));
        let ended = home.run(&arguments).await;
        assert_eq!(ended.code, 4, "{ended:?}");
        assert!(ended.complaint().contains("certificate"), "{ended:?}");
    }
    let bad = home.write("bad.pem", "nothing");
    let ended = home.run(&[&device[..], &["--tls", "--ca", &bad]].concat()).await;
    assert_eq!(ended.refusal(), format!("{bad}: holds no certificate in PEM"));
    let ended = home.run(&[&device[..], &["--ca", &bad]].concat()).await;
    assert_eq!(ended.code, 2, "--ca is of no use without --tls: {ended:?}");
    // Plain at the TLS port.
    let ended = home.run(&device).await;
    assert_eq!(ended.code, 2, "an alert is no frame: {ended:?}");
}

#[tokio::test]
async fn a_file_that_can_t_be_used_stops_the_start_with_one_line_that_names_its_key() {
    let (home, authority) = (Home::new(), Authority::new());
    let serve = async || {
        let arguments = tls(&authority, "127.0.0.1:0");
        home.run(&[&["serve", "--set", "log.level=error"], &borrowed(&arguments)[..]].concat()).await
    };
    let (cert, key) = (authority.path("cert.pem"), authority.path("key.pem"));
    let good = fs::read(&cert).unwrap();

    fs::remove_file(&cert).unwrap();
    let refusal = serve().await;
    let line = format!("device.tls_cert = {:?}: can't be read: ", authority.text("cert.pem"));
    assert!(refusal.refusal().starts_with(&line), "{refusal:?}");

    fs::write(&cert, "nothing").unwrap();
    let line = format!("device.tls_cert = {:?}: holds no certificate in PEM", authority.text("cert.pem"));
    assert_eq!(serve().await.refusal(), line);

    fs::write(&cert, good).unwrap();
    fs::write(&key, "nothing").unwrap();
    let refusal = serve().await;
    let line = format!("device.tls_key = {:?}: holds no private key in PEM", authority.text("key.pem"));
    assert!(refusal.refusal().starts_with(&line), "{refusal:?}");

    // A key of another certificate.
    fs::copy(Authority::new().path("key.pem"), &key).unwrap();
    let refusal = serve().await;
    let line = format!("device.tls_cert = {:?}: no certificate for ", authority.text("cert.pem"));
    assert!(refusal.refusal().starts_with(&line), "{refusal:?}");
}
