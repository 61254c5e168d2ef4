//! The files that a node of a cluster shows its servers, and what is said of them.

use std::fs;

use super::{
    common::{
        certs::Authority,
        process::{Finished, Home},
    },
    sets,
};

const CREDENTIALS: &str = "-----BEGIN NATS USER JWT-----\neyJ0.eyJq.hush\n------END NATS USER JWT------\n\n\
                           -----BEGIN USER NKEY SEED-----\nSUAhush\n------END USER NKEY SEED------\n";

/// `plex check` of a node of a cluster, whose servers are on loopback.
async fn checked(home: &Home, values: &[&str]) -> Finished {
    let values = [&["cluster.urls=nats://127.0.0.1:4222", "control.secrets=s", "device.listen="], values].concat();
    home.run(&[&["check"], &sets(&values)[..]].concat()).await
}

#[tokio::test]
async fn a_file_for_the_servers_that_cannot_be_used_stops_the_start_with_one_line() {
    let (home, authority) = (Home::new(), Authority::new());
    let (pair, other) = (authority.client("a", &[], "a", super::common::certs::Time::Good), authority.server("b"));
    let path = |path: &std::path::Path| path.display().to_string();
    let (cert, key, other) = (path(&pair.cert), path(&pair.key), path(&other.key));
    home.write("empty", "");
    home.write("secret", "a secret that is no PEM\n");
    home.write("lines", "hush\nhush\n");
    let set = |key: &str, value: &str| format!("cluster.{key}={value}");
    let rows = [
        ("credentials", "missing", vec![], "can't be read: "),
        ("credentials", "secret", vec![], "holds no credentials of NATS"),
        ("password_file", "missing", vec![set("user", "plex")], "can't be read: "),
        ("password_file", "empty", vec![set("user", "plex")], "a secret is 1 to 1024 printable ASCII characters"),
        ("password_file", "lines", vec![set("user", "plex")], "a secret is 1 to 1024 printable ASCII characters"),
        ("tls_ca", "missing", vec![], "can't be read: "),
        ("tls_ca", "secret", vec![], "holds no certificate in PEM"),
        ("tls_cert", "missing", vec![set("tls_key", &key)], "can't be read: "),
        ("tls_key", "secret", vec![set("tls_cert", &cert)], "holds no private key in PEM"),
        ("tls_cert", &cert, vec![set("tls_key", &other)], "no certificate for "),
    ];
    for (key, file, others, problem) in rows {
        let own = set(key, file);
        let values: Vec<&str> = others.iter().map(String::as_str).chain([&*own]).collect();
        let refused = checked(&home, &values).await;
        let begin = format!("cluster.{key} = {file:?}: {problem}");
        assert!(refused.refusal().starts_with(&begin) && !refused.stderr.contains("hush"), "{begin}: {refused:?}");
    }
    // Without servers they aren't read, as nobody is shown them.
    let alone = home.run(&["check", "--set", "cluster.tls_ca=missing"]).await;
    assert_eq!(alone.code, 0, "{alone:?}");
}

#[tokio::test]
async fn what_is_shown_to_the_servers_is_never_printed() {
    let home = Home::new();
    home.write("word", "hush\n");
    home.write("creds", CREDENTIALS);
    for values in [&["cluster.user=plex", "cluster.password_file=word"][..], &["cluster.credentials=creds"]] {
        let good = checked(&home, values).await;
        assert_eq!((good.code, &*good.stderr), (0, ""), "{good:?}");
        assert!(!good.stdout.contains("hush") && good.stdout.contains("nats://127.0.0.1:4222"), "{good:?}");
    }
    let both = checked(&home, &["cluster.user=u", "cluster.password_file=word", "cluster.credentials=creds"]).await;
    assert!(both.refusal().starts_with("cluster.user = \"u\": can't be set beside cluster.credentials"), "{both:?}");
    fs::remove_file(home.path("creds")).unwrap();

    // A password within a URL would be printed, so it is refused, and not shown by what refuses it.
    for url in ["nats://plex:hush@127.0.0.1:4222", "nats://127.0.0.1,tls://hush@n1.example"] {
        let refused = home.run(&["check", "--set", &format!("cluster.urls={url}")]).await;
        let line = refused.refusal();
        assert!(line.starts_with("cluster.urls: a list of") && !line.contains("hush"), "{line}");
        assert!(line.contains("without user and password") && line.contains("cluster.password_file"), "{line}");
    }
}
