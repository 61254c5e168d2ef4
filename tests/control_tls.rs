//! TLS on the control plane and the HTTP port: who gets in, certificates that stand in for a secret, renewal.

mod common;

#[path = "control_tls/commands.rs"]
mod commands;

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use common::{
    PATIENCE, SECRET, TestServer,
    certs::{Authority, Pair, Time},
    eventually,
};
use futures_util::StreamExt;
use plex::{
    Config,
    client::{CallError, Control, ControlOptions, OnlineEvent, PushStatus},
    config::{ControlSecret, NamedScopes, Scopes, Secret, SecretSource},
    proto,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A control plane with TLS.
fn with_tls(config: &mut Config, server: &Pair) {
    config.control.tls_cert = Some(server.cert.clone());
    config.control.tls_key = Some(server.key.clone());
}

/// The same, where callers show certificates: `orders` may push, `everything` may all.
fn with_mutual_tls(config: &mut Config, server: &Pair, authority: &Authority) {
    with_tls(config, server);
    config.control.tls_client_ca = Some(authority.ca());
    let named = |name: &str, scopes| NamedScopes { name: name.to_owned(), scopes };
    config.control.client_names = vec![named("orders.example.com", Scopes::PUSH), named("everything", Scopes::ALL)];
}

fn url(address: SocketAddr) -> String {
    format!("https://localhost:{}", address.port())
}

/// A caller that trusts the authority, with this secret and certificate.
fn caller(address: SocketAddr, authority: &Authority, secret: &str, pair: Option<&Pair>) -> Control {
    let options = ControlOptions::new(secret).ca(authority.ca());
    let options = match pair {
        Some(pair) => options.certificate(&pair.cert, &pair.key),
        None => options,
    };
    Control::connect_with(&url(address), &options).unwrap()
}

/// A TLS connection by hand; also gives the certificate that the server showed.
async fn connect(address: SocketAddr, ca: &Path, alpn: &[u8]) -> std::io::Result<(TlsStream<TcpStream>, Vec<u8>)> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = timeout(PATIENCE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await.unwrap()?;
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    Ok((stream, shown))
}

fn der(pair: &Pair) -> Vec<u8> {
    CertificateDer::from_pem_file(&pair.cert).unwrap().to_vec()
}

#[tokio::test]
async fn every_kind_of_call_goes_over_tls() {
    let authority = Authority::new();
    let pair = authority.server("server");
    let server = TestServer::with(|config| with_tls(config, &pair)).await;
    let control = caller(server.addresses.control, &authority, SECRET, None);
    let mut device = server.login("alice").await;
    let mut presence = control.online_status(["alice"]);
    let event = timeout(PATIENCE, presence.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(&event, OnlineEvent::Online { uid, .. } if uid.as_str() == "alice"), "{event:?}");
    let body = "x".repeat(60_000);
    assert_eq!(control.push("alice", "/x", &body).await.unwrap().status, PushStatus::Sent);
    assert_eq!(device.next().await.body, body);
    assert_eq!(control.sessions("").await.unwrap().count().await, 1);
    let (_, shown) = connect(server.addresses.control, &authority.ca(), b"h2").await.unwrap();
    assert_eq!(shown, der(&pair));
    // A secret is needed as ever, and the stop waits for nobody.
    let refused = caller(server.addresses.control, &authority, "wrong", None).info().await.unwrap_err();
    assert!(matches!(refused, CallError::Refused(_)), "{refused}");
    server.stopped().await;
}

#[tokio::test]
async fn over_tls_streams_end_with_the_age_of_their_connection_too() {
    let authority = Authority::new();
    let pair = authority.server("server");
    let server = TestServer::with(|config| {
        with_tls(config, &pair);
        config.control.max_connection_age = Some(Duration::from_millis(200));
    })
    .await;
    let control = caller(server.addresses.control, &authority, SECRET, None);
    let mut stream = control.raw().online_status(proto::OnlineStatusRequest::default()).await.unwrap().into_inner();
    let end = loop {
        match timeout(PATIENCE, stream.message()).await.expect("the stream ends") {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ends with a status"),
            Err(status) => break CallError::from(status),
        }
    };
    assert!(matches!(end, CallError::Unavailable(_)), "{end}");
    eventually("a call over a new connection", || async { control.info().await.ok() }).await;
}

#[tokio::test]
async fn who_speaks_no_tls_or_trusts_another_authority_gets_nowhere() {
    let (authority, other) = (Authority::new(), Authority::new());
    let pair = authority.server("server");
    let server = TestServer::with(|config| with_tls(config, &pair)).await;
    let address = server.addresses.control;
    let plain = Control::connect(&format!("http://{address}"), SECRET).unwrap().info().await.unwrap_err();
    assert!(matches!(plain, CallError::Unreachable(_) | CallError::Unavailable(_)), "{plain}");
    let error = caller(address, &other, SECRET, None).info().await.unwrap_err();
    assert!(matches!(&error, CallError::Unreachable(why) if why.contains("certificate")), "{error}");
    // The system's roots don't know it, either.
    let error = Control::connect(&url(address), SECRET).unwrap().info().await.unwrap_err();
    assert!(matches!(&error, CallError::Unreachable(why) if why.contains("certificate")), "{error}");
    // Nor does its name fit any other.
    let named = format!("https://127.0.0.2:{}", address.port());
    let error = Control::connect_with(&named, &ControlOptions::new(SECRET).ca(authority.ca())).unwrap();
    assert!(matches!(error.info().await.unwrap_err(), CallError::Unreachable(_)));
    assert!(connect(address, &authority.ca(), b"http/1.1").await.is_err(), "only h2 is spoken");
}

#[tokio::test]
async fn only_who_has_the_server_s_own_file_may_do_without_name_and_authority() {
    let authority = Authority::new();
    let (pair, other) = (authority.server("server"), authority.server("other"));
    let server = TestServer::with(|config| with_tls(config, &pair)).await;
    // By a name that isn't in the certificate.
    let url = format!("https://127.0.0.1:{}", server.addresses.control.port());
    let with = |file: &Path| Control::connect_with(&url, &ControlOptions::new(SECRET).only(file)).unwrap();
    with(&pair.cert).info().await.unwrap();
    let error = with(&other.cert).info().await.unwrap_err();
    assert!(matches!(&error, CallError::Unreachable(why) if why.contains("another certificate")), "{error}");
}

#[tokio::test]
async fn without_a_good_certificate_nobody_gets_in_whatever_secret_is_sent() {
    let (authority, other) = (Authority::new(), Authority::new());
    let pair = authority.server("server");
    let server = TestServer::with(|config| with_mutual_tls(config, &pair, &authority)).await;
    let address = server.addresses.control;
    let wrong = other.client("wrong", &[], "everything", Time::Good);
    let expired = authority.client("expired", &[], "everything", Time::Over);
    let not_a_client = authority.server("server-2");
    for (bad, why) in [
        (None, "CertificateRequired"),
        (Some(&wrong), "alert"),
        (Some(&expired), "CertificateExpired"),
        (Some(&not_a_client), "alert"),
    ] {
        for secret in ["", SECRET] {
            let error = caller(address, &authority, secret, bad).info().await.unwrap_err();
            assert!(matches!(&error, CallError::Unreachable(text) if text.contains(why)), "{bad:?}: {error}");
        }
    }
    let failed = r#"plex_control_handshakes_failed_total{reason="certificate"}"#;
    server.metric_reaches(failed, 8).await;
    // Health and reflection are behind it as well, and a good certificate opens the door to the secret.
    let nobody = authority.client("nobody", &[], "nobody", Time::Good);
    caller(address, &authority, SECRET, Some(&nobody)).info().await.unwrap();
    let error = caller(address, &authority, "", Some(&nobody)).info().await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(why) if why.contains("control.client_names")), "{error}");
    assert_eq!(server.metric(r#"plex_control_unauthorized_total{reason="certificate"}"#).await, 1);
}

#[tokio::test]
async fn a_certificate_s_name_stands_in_for_a_secret_with_its_scopes() {
    let authority = Authority::new();
    let pair = authority.server("server");
    let server = TestServer::with(|config| with_mutual_tls(config, &pair, &authority)).await;
    let by = |pair: &Pair| caller(server.addresses.control, &authority, "", Some(pair));
    let orders = by(&authority.client("orders", &["x.example.com", "ORDERS.example.com"], "everything", Time::Good));
    orders.info().await.unwrap();
    assert_eq!(orders.push("alice", "/x", "").await.unwrap().status, PushStatus::Offline);
    for error in [
        orders.is_online(["alice"]).await.map(drop).unwrap_err(),
        orders.disconnect("a", "").await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(&error, CallError::Refused(why) if why.contains("the scope")), "{error}");
    }
    let everything = by(&authority.client("everything", &[], "everything", Time::Good));
    everything.is_online(["alice"]).await.unwrap();
    everything.disconnect("alice", "").await.unwrap();
    // Where there are DNS names the CN says nothing.
    let other = by(&authority.client("other", &["other.example.com"], "everything", Time::Good));
    assert!(matches!(other.info().await.unwrap_err(), CallError::Refused(_)));
}

#[tokio::test]
async fn a_secret_that_is_sent_as_well_counts_alone() {
    let authority = Authority::new();
    let pair = authority.server("server");
    let server = TestServer::with(|config| {
        with_mutual_tls(config, &pair, &authority);
        let secret =
            ControlSecret { name: "watcher".into(), scopes: Scopes::PRESENCE, ..Secret::new("watch").unwrap().into() };
        config.control.secrets.push(secret);
    })
    .await;
    let client = authority.client("everything", &[], "everything", Time::Good);
    let with = |secret: &str| caller(server.addresses.control, &authority, secret, Some(&client));
    with("watch").is_online(["alice"]).await.unwrap();
    let error = with("watch").push("alice", "/x", "").await.unwrap_err();
    assert!(matches!(&error, CallError::Refused(why) if why.contains("\"push\"")), "{error}");
    let error = with("wrong").info().await.unwrap_err();
    assert!(matches!(error, CallError::Refused(_)), "{error}");
    with(SECRET).push("alice", "/x", "").await.unwrap();
}

#[tokio::test]
async fn a_renewed_certificate_breaks_no_stream_and_new_connections_get_it() {
    let authority = Authority::new();
    let pair = authority.server("server");
    let old = der(&pair);
    // A secret's file that is looked at after the certificate: once it is read, so was what was written before it.
    let looked = authority.folder().join("looked");
    fs::write(&looked, "look-0").unwrap();
    let server = TestServer::with(|config| {
        with_tls(config, &pair);
        let source = SecretSource::File(looked.clone());
        config.control.secrets.push(ControlSecret { name: "looked".into(), source, scopes: Scopes::ALL });
    })
    .await;
    let address = server.addresses.control;
    let look = async |secret: &str| {
        fs::write(&looked, secret).unwrap();
        let control = caller(address, &authority, secret, None);
        eventually("the files are looked at", || async { control.info().await.ok() }).await;
    };
    let mut streams = Vec::new();
    for _ in 0..50 {
        let control = caller(address, &authority, SECRET, None);
        let mut stream = control.raw().online_status(proto::OnlineStatusRequest::default()).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        streams.push((control, stream));
    }

    let renewed = authority.server("server");
    assert_ne!(der(&renewed), old);
    let shown = || async { connect(address, &authority.ca(), b"h2").await.unwrap().1 };
    eventually("the new one is shown", || async { (shown().await == der(&renewed)).then_some(()) }).await;

    // A bad one, and a key that doesn't fit, change nothing.
    let good = der(&renewed);
    fs::write(&renewed.cert, "no certificate").unwrap();
    look("look-1").await;
    assert_eq!(shown().await, good);
    let other = authority.server("other");
    fs::copy(&other.cert, &renewed.cert).unwrap();
    look("look-2").await;
    assert_eq!(shown().await, good);
    fs::copy(&other.key, &renewed.key).unwrap();
    eventually("the whole pair is shown", || async { (shown().await == der(&other)).then_some(()) }).await;

    let _alice = server.login("alice").await;
    for (control, stream) in &mut streams {
        let response = timeout(PATIENCE, stream.message()).await.unwrap().expect("it goes on").unwrap();
        assert_eq!(response.events[0].uid, "alice");
        control.info().await.unwrap();
    }
}

/// Connections that begin a handshake and never end it.
async fn slow_handshakes(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut slow = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // The first bytes of a ClientHello.
        stream.write_all(&[0x16, 0x03, 0x01, 0x02]).await.unwrap();
        slow.push(stream);
    }
    slow
}

#[tokio::test]
async fn slow_handshakes_keep_no_good_caller_waiting() {
    let authority = Authority::new();
    let pair = authority.server("server");
    let server = TestServer::with(|config| {
        with_tls(config, &pair);
        config.control.workers = 1;
        config.http.tls_cert = Some(pair.cert.clone());
        config.http.tls_key = Some(pair.key.clone());
    })
    .await;
    // More than may be under way, on either port.
    let _control = slow_handshakes(server.addresses.control, 1_100).await;
    let _http = slow_handshakes(server.addresses.http, 1_100).await;
    caller(server.addresses.control, &authority, SECRET, None).info().await.unwrap();
    assert_eq!(https(server.addresses.http, &authority, "/livez").await.0, 200);
    let given_up = server.metric(r#"plex_control_handshakes_failed_total{reason="timeout"}"#).await;
    assert_eq!(given_up, 0, "the good ones didn't wait for the slow ones' time to be over");
    let cut = server.metric(r#"plex_control_handshakes_failed_total{reason="cut"}"#).await;
    assert!(cut >= 100, "{cut}");
}

/// One request over TLS; gives status and body.
async fn https(address: SocketAddr, authority: &Authority, path: &str) -> (u16, String) {
    let (mut stream, _) = connect(address, &authority.ca(), b"http/1.1").await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn the_http_port_speaks_tls_and_its_certificate_is_renewed() {
    let authority = Authority::new();
    let pair = authority.server("server");
    let old = der(&pair);
    let server = TestServer::with(|config| {
        config.http.tls_cert = Some(pair.cert.clone());
        config.http.tls_key = Some(pair.key.clone());
    })
    .await;
    let address = server.addresses.http;
    assert_eq!(https(address, &authority, "/livez").await, (200, "ok\n".to_owned()));
    let (status, body) = https(address, &authority, "/plex/v1/host").await;
    assert_eq!((status, body), (200, format!("{{\"host\":\"{}\"}}", server.device())));
    assert_eq!(https(address, &authority, "/nowhere").await.0, 404);
    // Several requests over one connection, one of them after the renewal.
    let (mut kept, shown) = connect(address, &authority.ca(), b"http/1.1").await.unwrap();
    assert_eq!(shown, old);
    let renewed = authority.server("server");
    eventually("the new one is shown", || async {
        (connect(address, &authority.ca(), b"http/1.1").await.unwrap().1 == der(&renewed)).then_some(())
    })
    .await;
    kept.write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    timeout(PATIENCE, kept.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // Plain HTTP gets no answer.
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    let _ = timeout(PATIENCE, plain.read_to_end(&mut bytes)).await.unwrap();
    assert!(!bytes.starts_with(b"HTTP"), "{bytes:?}");
    server.stopped().await;
}

#[tokio::test]
async fn a_key_is_needed_for_a_certificate_to_count() {
    let authority = Authority::new();
    let pair = authority.server("server");
    let server = TestServer::with(|config| with_mutual_tls(config, &pair, &authority)).await;
    let client = authority.client("everything", &[], "everything", Time::Good);
    let other = authority.client("other", &[], "other", Time::Good);
    // rustls itself refuses the pair; so would the gateway whoever only copied a certificate.
    let options = ControlOptions::new("").ca(authority.ca()).certificate(&client.cert, &other.key);
    let error = Control::connect_with(&url(server.addresses.control), &options).unwrap_err().to_string();
    assert!(error.contains("everything.pem: ") && error.lines().count() == 1, "{error}");
    PrivateKeyDer::from_pem_file(&client.key).unwrap();
}
