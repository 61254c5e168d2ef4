//! The commands over TLS: by the configuration of this machine, and by what they are told.

use super::common::{
    certs::{Authority, Pair, Time},
    process::{ANY_PORTS, Finished, Home, TestGateway, own_loopback},
};

fn shown(pair: &Pair) -> [&str; 4] {
    ["--cert", pair.cert.to_str().unwrap(), "--key", pair.key.to_str().unwrap()]
}

/// A configuration with TLS at a fixed port of an address of its own, which no certificate names.
fn configured(home: &Home, pair: &Pair, more: &str) -> String {
    let host = own_loopback();
    home.write(
        "plex.toml",
        &format!(
            "[device]\nlisten = \"{host}:0\"\n[http]\nlisten = \"{host}:0\"\n[metrics]\nlisten = \"\"\n\
             [control]\nlisten = \"{host}:9580\"\ntls_cert = {:?}\ntls_key = {:?}\n{more}\n",
            pair.cert, pair.key
        ),
    );
    format!("https://{host}:9580")
}

async fn served(home: &Home) -> TestGateway {
    TestGateway::of(home.spawn(&["serve"])).await
}

async fn asked(home: &Home, arguments: &[&[&str]]) -> Finished {
    home.run(&arguments.concat()).await
}

#[tokio::test]
async fn the_commands_on_the_machine_find_a_gateway_with_tls_by_its_configuration() {
    let (home, authority) = (Home::new(), Authority::new());
    let pair = authority.server("server");
    let url = configured(&home, &pair, "");
    let _gateway = served(&home).await;
    assert!(home.run(&["info"]).await.lines()[0].contains("version"));
    assert_eq!(home.run(&["online", "alice"]).await.code, 1);
    assert_eq!(home.run(&["push", "alice", "/x", ""]).await.code, 1);

    // The name isn't in the certificate: whoever goes by the authority doesn't take it.
    let ca = authority.ca();
    let ca = ["--ca", ca.to_str().unwrap()];
    let failed = asked(&home, &[&["info"], &ca]).await;
    assert_eq!(failed.code, 4, "{failed:?}");
    assert!(failed.complaint().contains("certificate"), "{failed:?}");
    // Nor do the system's roots know it.
    let failed = asked(&home, &[&["info", "--control", &url]]).await;
    assert_eq!(failed.code, 4, "{failed:?}");
    // Another certificate than that of the file isn't taken, either.
    let other = authority.server("other");
    std::fs::copy(&other.cert, home.path("only.pem")).unwrap();
    let text = std::fs::read_to_string(home.path("plex.toml")).unwrap();
    home.write("changed.toml", &text.replace(&format!("{:?}", pair.cert), "\"only.pem\""));
    let failed = asked(&home, &[&["info", "--config", "changed.toml"]]).await;
    assert_eq!(failed.code, 4, "{failed:?}");
    assert!(failed.complaint().contains("another certificate than only.pem holds"), "{failed:?}");
}

#[tokio::test]
async fn elsewhere_the_commands_are_told_whom_to_trust() {
    let (home, authority) = (Home::new(), Authority::new());
    let pair = authority.server("server");
    let tls = [format!("control.tls_cert={}", pair.cert.display()), format!("control.tls_key={}", pair.key.display())];
    let gateway = home.serve(&["--set", &tls[0], "--set", &tls[1]]).await;
    let url = format!("https://localhost:{}", gateway.control.port());
    let secret = home.secret_file();
    let elsewhere = Home::new();
    let ca = authority.ca();
    let ca = ["--ca", ca.to_str().unwrap()];
    let named = ["--control", &url, "--secret-file", &secret];
    assert!(asked(&elsewhere, &[&["info"], &named, &ca]).await.lines()[0].contains("version"));
    let failed = asked(&elsewhere, &[&["info"], &named]).await;
    assert_eq!(failed.code, 4, "{failed:?}");
    assert!(failed.complaint().starts_with("can't reach the gateway: ") && failed.stderr.contains("certificate"));
    let wrong = elsewhere.write("wrong", "wrong");
    let refused = asked(&elsewhere, &[&["info", "--control", &url, "--secret-file", &wrong], &ca]).await;
    assert_eq!(refused.code, 3, "{refused:?}");
    // What can't be used is 2, with one line.
    let bad = elsewhere.write("bad.pem", "no certificate");
    for arguments in [
        &["--ca", &bad][..],
        &["--ca", "missing.pem"],
        &["--cert", &bad, "--key", &bad],
        &["--cert", pair.cert.to_str().unwrap(), "--key", &bad],
    ] {
        let refused = asked(&elsewhere, &[&["info"], &named, arguments]).await;
        assert!(refused.refusal().contains(".pem: "), "{refused:?}");
    }
    let plain = ["--control", "http://localhost:1", "--secret-file", &secret];
    let refused = asked(&elsewhere, &[&["info"], &plain, &ca]).await;
    assert!(refused.refusal().starts_with("certificates are for https"), "{refused:?}");
    assert_eq!(asked(&elsewhere, &[&["info", "--cert", "a.pem"]]).await.code, 2, "a key belongs to it");
}

#[tokio::test]
async fn the_commands_show_a_certificate_where_the_gateway_wants_one() {
    let (home, authority) = (Home::new(), Authority::new());
    let pair = authority.server("server");
    let more =
        format!("tls_client_ca = {:?}\nclient_names = [{{ name = \"pusher\", scopes = [\"push\"] }}]", authority.ca());
    configured(&home, &pair, &more);
    let mut gateway = served(&home).await;
    let missing = home.run(&["info"]).await;
    assert!(missing.refusal().contains("--cert FILE --key FILE"), "{missing:?}");

    // On this machine with its secret, which counts alone; elsewhere the certificate is all that is shown.
    let pusher = authority.client("pusher", &[], "pusher", Time::Good);
    assert_eq!(asked(&home, &[&["online", "alice"], &shown(&pusher)]).await.code, 1);
    let expired = authority.client("expired", &[], "pusher", Time::Over);
    let failed = asked(&home, &[&["info"], &shown(&expired)]).await;
    assert_eq!(failed.code, 4, "{failed:?}");
    assert!(failed.complaint().contains("CertificateExpired"), "{failed:?}");
    gateway.process.kill();

    // Reached by a name of its certificate.
    let sets = [
        format!("control.tls_cert={}", pair.cert.display()),
        format!("control.tls_key={}", pair.key.display()),
        format!("control.tls_client_ca={}", authority.ca().display()),
        "control.client_names=pusher".to_owned(),
    ];
    let sets: Vec<_> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let other = Home::new();
    let mut gateway = TestGateway::of(other.spawn(&[&["serve"], &ANY_PORTS[..], &sets].concat())).await;
    let (url, ca) = (format!("https://localhost:{}", gateway.control.port()), authority.ca());
    let named = ["--control", &url, "--ca", ca.to_str().unwrap()];
    let kicked = asked(&Home::new(), &[&["online", "alice"], &named, &shown(&pusher)]).await;
    assert_eq!(kicked.code, 1, "{kicked:?}");
    let nobody = authority.client("nobody", &[], "nobody", Time::Good);
    let refused = asked(&Home::new(), &[&["info"], &named, &shown(&nobody)]).await;
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(gateway.process.ended().is_none());
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_stops_the_start_with_one_line() {
    let (home, authority) = (Home::new(), Authority::new());
    let (pair, other) = (authority.server("server"), authority.server("other"));
    let bad = home.write("bad.pem", "no certificate");
    let garbage = home.write("garbage.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let (cert, key, ca) = (pair.cert.display(), pair.key.display(), authority.ca());
    for (cert, key, ca, begins) in [
        ("missing.pem", &*key.to_string(), None, "missing.pem\": can't be read: "),
        (&bad, &key.to_string(), None, "bad.pem\": holds no certificate in PEM"),
        (&garbage, &key.to_string(), None, "garbage.pem\": no certificate for "),
        (&key.to_string(), &key.to_string(), None, "server.key\": holds no certificate in PEM"),
        (&cert.to_string(), &cert.to_string(), None, "server.pem\": holds no private key in PEM"),
        (&cert.to_string(), &other.key.display().to_string(), None, "server.pem\": no certificate for "),
        (&cert.to_string(), &key.to_string(), Some("missing.pem"), "missing.pem\": can't be read: "),
        (&cert.to_string(), &key.to_string(), Some(&*bad), "bad.pem\": holds no certificate in PEM"),
        (&cert.to_string(), &key.to_string(), Some(&*key.to_string()), "server.key\": holds no certificate in PEM"),
    ] {
        let sections: &[&str] = if ca.is_some() { &["control"] } else { &["control", "http"] };
        for section in sections {
            let pairs = [("tls_cert", Some(cert)), ("tls_key", Some(key)), ("tls_client_ca", ca)];
            let sets: Vec<_> =
                pairs.iter().filter_map(|(name, file)| Some(format!("{section}.{name}={}", (*file)?))).collect();
            let sets: Vec<_> = sets.iter().flat_map(|set| ["--set", set]).collect();
            for command in ["serve", "check"] {
                let refused =
                    home.run(&[&[command], &ANY_PORTS[..], &["--set", "log.level=error"], &sets].concat()).await;
                assert!(refused.refusal().contains(begins), "{command}, {section}: {begins}: {refused:?}");
            }
        }
    }
    assert!(ca.exists() && !home.path(".local").exists(), "nothing was made");
}
