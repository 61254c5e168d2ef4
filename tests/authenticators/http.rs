//! A backend that is asked by HTTP.

use std::{sync::Mutex, time::Duration};

use plex::{Config, config::AuthMode};
use serde_json::{Value, json};

use crate::{
    Refused, Success, Unavailable, answer, answers,
    backends::{Asked, Reply, TlsFront, Web},
    common::{PATIENCE, TestServer},
    gateway, is_connected, replace, tried,
};

/// A gateway that asks this server.
pub async fn asking(web: &Web, change: impl FnOnce(&mut Config)) -> TestServer {
    gateway(AuthMode::Http, |config| {
        config.auth.endpoint = Some(web.url().parse().unwrap());
        change(config);
    })
    .await
}

pub fn credential(asked: &Asked) -> String {
    let body: Value = serde_json::from_str(&asked.body).expect("JSON");
    body["credential"].as_str().expect("a credential").to_owned()
}

/// A server that lets in whoever it is, by the credential as the uid.
async fn trusting() -> Web {
    Web::start(|asked| Reply::Told(200, json!({ "uid": credential(asked) }).to_string())).await
}

#[tokio::test]
async fn the_backend_is_told_the_credential_and_the_address_and_tells_the_uid() {
    let web = Web::start(|_| Reply::Told(200, json!({ "uid": "alice", "more": [1] }).to_string())).await;
    let server = asking(&web, |_| ()).await;
    let (answered, device) = tried(server.device(), "a \"credential\" 🦀").await;
    assert_eq!(answered, Success);
    assert!(is_connected(&server, "alice").await);
    let Asked { head, body } = web.last();
    let address = device.stream.local_addr().unwrap().to_string();
    let expected = json!({ "credential": "a \"credential\" 🦀", "remote_address": address });
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
    assert!(head.starts_with("post /auth http/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/json\r\n"), "{head}");
    assert!(!head.contains("authorization"), "{head}");
}

#[tokio::test]
async fn an_end_is_taken_over() {
    let ends = ["2999-01-01T00:00:00Z", "2999-01-01T00:00:00.5+02:00", "9999-12-31T23:59:59-12:00"];
    let web =
        Web::start(|asked| Reply::Told(200, json!({ "uid": "a", "expires_at": credential(asked) }).to_string())).await;
    let server = asking(&web, |_| ()).await;
    for end in ends {
        let mut device = crate::TestDevice::connect(server.device()).await;
        device.auth_v2(end).await;
        let body = device.next().await.json();
        assert!(
            body["expires_in_seconds"].as_u64().is_some_and(|seconds| seconds > 900 * 365 * 86_400),
            "{end}: {body}"
        );
    }
    for past in ["1969-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2020-01-01T00:00:00+14:00"] {
        assert_eq!(answer(&server, past).await, Refused, "{past}");
    }
    for wrong in ["", "tomorrow", "1700000000", "2999-01-01", "2999-13-01T00:00:00Z"] {
        assert_eq!(answer(&server, wrong).await, Unavailable, "{wrong}");
    }
}

#[tokio::test]
async fn whatever_a_backend_answers_is_refused_or_unavailable_and_it_may_come_back() {
    let reply = std::sync::Arc::new(Mutex::new(Reply::Hang));
    let shared = std::sync::Arc::clone(&reply);
    let web = Web::start(move |_| shared.lock().unwrap().clone()).await;
    let server = asking(&web, |config| config.auth.timeout = Duration::from_millis(400)).await;
    let told = |status: u16, body: &str| Reply::Told(status, body.to_owned());
    let good = r#"{"uid":"alice"}"#;
    let padded = |bytes: usize| format!("{}{good}", " ".repeat(bytes - good.len()));
    let cases = [
        (told(200, r#"{"uid":""}"#), Refused),
        (told(200, &json!({ "uid": "x".repeat(256) }).to_string()), Refused),
        (told(200, r#"{"uid":"alice","expires_at":"2001-01-01T00:00:00Z"}"#), Refused),
        (told(200, r#"{"uid":"alice","expires_at":null}"#), Success),
        (told(401, good), Refused),
        (told(403, good), Refused),
        (told(500, good), Unavailable),
        (told(503, ""), Unavailable),
        (told(429, ""), Unavailable),
        (told(400, good), Unavailable),
        (told(404, good), Unavailable),
        (told(201, good), Unavailable),
        (told(206, good), Unavailable),
        (told(301, good), Unavailable),
        (told(302, good), Unavailable),
        (told(307, good), Unavailable),
        (told(200, ""), Unavailable),
        (told(200, "{}"), Unavailable),
        (told(200, "null"), Unavailable),
        (told(200, "alice"), Unavailable),
        (told(200, r#""alice""#), Unavailable),
        (told(200, r#"[{"uid":"alice"}]"#), Unavailable),
        (told(200, r#"{"uid":7}"#), Unavailable),
        (told(200, r#"{"uid":null}"#), Unavailable),
        (told(200, r#"{"UID":"alice"}"#), Unavailable),
        (told(200, r#"{"uid":"alice","expires_at":4102444800}"#), Unavailable),
        (told(200, r#"{"uid":"alice"} and more"#), Unavailable),
        (told(200, &"[".repeat(60_000)), Unavailable),
        (told(200, &padded(64 * 1024)), Success),
        (told(200, &padded(64 * 1024 + 1)), Unavailable),
        (Reply::Gigabyte { told: true }, Unavailable),
        (Reply::Gigabyte { told: false }, Unavailable),
        (Reply::Bytes("HTTP/1.1 200 OK\r\n\r\n".to_owned() + good), Success),
        (Reply::Bytes(format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n{good}", "x".repeat(1 << 20))), Unavailable),
        (Reply::Bytes("SSH-2.0-OpenSSH\r\n".to_owned()), Unavailable),
        (Reply::Bytes("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".to_owned()), Unavailable),
        (Reply::Half, Unavailable),
        (Reply::Close, Unavailable),
        (Reply::Drip, Unavailable),
        (Reply::Hang, Unavailable),
    ];
    for (number, (next, expected)) in cases.into_iter().enumerate() {
        *reply.lock().unwrap() = next.clone();
        // Each another credential: refusals are kept.
        let text = format!("{next:?}");
        assert_eq!(answer(&server, &format!("bad {number}")).await, expected, "{}", &text[..text.len().min(200)]);
        *reply.lock().unwrap() = told(200, good);
        assert_eq!(answer(&server, &format!("good {number}")).await, Success, "it has come back");
    }
}

#[tokio::test]
async fn a_backend_that_is_down_is_unavailable_until_it_is_up() {
    let address = Web::start(|_| Reply::Close).await.address;
    let server = gateway(AuthMode::Http, |config| {
        config.auth.endpoint = Some(format!("http://{address}").parse().unwrap());
    })
    .await;
    assert_eq!(answer(&server, "a").await, Unavailable);
    let web = Web::on(address, |_| Reply::Told(200, r#"{"uid":"alice"}"#.into())).await;
    assert_eq!(answer(&server, "a").await, Success);
    assert!(web.last().head.starts_with("post / http/1.1\r\n"));
}

#[tokio::test]
async fn a_refusal_is_kept_and_a_success_is_not() {
    let web = Web::start(|asked| match &*credential(asked) {
        "good" => Reply::Told(200, r#"{"uid":"alice"}"#.into()),
        "empty" => Reply::Told(200, r#"{"uid":""}"#.into()),
        _ => Reply::Told(401, String::new()),
    })
    .await;
    let server = asking(&web, |_| ()).await;
    for (credential, expected, asked) in [("bad", Refused, 1), ("empty", Refused, 1), ("good", Success, 5)] {
        let before = web.asked();
        for _ in 0..5 {
            assert_eq!(answer(&server, credential).await, expected);
        }
        assert_eq!(web.asked() - before, asked, "{credential}");
    }
}

#[tokio::test]
async fn connections_are_kept() {
    let web = trusting().await;
    let server = asking(&web, |_| ()).await;
    for number in 0..20 {
        assert_eq!(answer(&server, &format!("dev-{number}")).await, Success);
    }
    assert_eq!(web.asked(), 20);
    assert_eq!(web.shared.connections.most(), 1);
}

#[tokio::test]
async fn the_gateway_shows_its_secret_which_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "one-secret\n").unwrap();
    let web = Web::start(|asked| {
        let known = asked.head.contains("authorization: bearer another-secret\r\n");
        Reply::Told(if known { 200 } else { 500 }, r#"{"uid":"alice"}"#.into())
    })
    .await;
    let server = asking(&web, |config| config.auth.secret_file = Some(path.clone())).await;
    assert_eq!(answer(&server, "a").await, Unavailable);
    assert!(web.last().head.contains("authorization: bearer one-secret\r\n"), "{}", web.last().head);
    replace(&path, "another-secret");
    answers(&server, "a", Success).await;
    replace(&path, "no\nsecret");
    assert_eq!(answer(&server, "a").await, Success);
}

#[tokio::test]
async fn tls_is_checked_by_auth_ca_and_the_name() {
    let web = trusting().await;
    let (front, other) = (TlsFront::start(web.address, &[]).await, TlsFront::start(web.address, &[]).await);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    std::fs::write(&ca, &front.ca).unwrap();
    let at = |url: String, ca: Option<std::path::PathBuf>| {
        gateway(AuthMode::Http, move |config| {
            config.auth.endpoint = Some(url.parse().unwrap());
            config.auth.ca = ca;
        })
    };
    let known = at(front.url(), Some(ca.clone())).await;
    assert_eq!(answer(&known, "a").await, Success);
    let name = at(format!("https://{}", front.address), Some(ca.clone())).await;
    assert_eq!(answer(&name, "a").await, Unavailable, "its certificate is for localhost");
    let system = at(front.url(), None).await;
    assert_eq!(answer(&system, "a").await, Unavailable, "the system doesn't know it");
    let renewed = at(other.url(), Some(ca.clone())).await;
    assert_eq!(answer(&renewed, "a").await, Unavailable);
    assert_eq!(web.asked(), 1);
    replace(&ca, &other.ca);
    answers(&renewed, "a", Success).await;
}

#[tokio::test]
async fn a_backend_that_never_speaks_tls_keeps_no_place() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let server = gateway(AuthMode::Http, |config| {
        config.auth.endpoint = Some(format!("https://localhost:{port}").parse().unwrap());
        config.auth.max_in_flight = 2;
        config.auth.timeout = Duration::from_millis(200);
    })
    .await;
    let mut silence = Vec::new();
    for number in 0..6 {
        let credential = format!("dev-{number}");
        let (answered, accepted) = tokio::join!(answer(&server, &credential), silent.accept());
        assert_eq!(answered, Unavailable);
        silence.push(accepted.unwrap().0);
    }
    for mut stream in silence {
        let mut hello = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut hello);
        let _ = tokio::time::timeout(PATIENCE, read).await.expect("the gateway closes it");
    }
}

#[tokio::test]
async fn a_stop_waits_for_no_backend() {
    let web = Web::start(|_| Reply::Hang).await;
    let server = asking(&web, |config| config.auth.timeout = PATIENCE).await;
    let mut device = crate::TestDevice::connect(server.device()).await;
    device.auth_v2("a").await;
    crate::common::eventually("it is asked", || async { (web.shared.in_flight.now() == 1).then_some(()) }).await;
    server.stopped().await;
    device.expect_close().await;
    crate::common::eventually("the call ends", || async { (web.shared.connections.now() == 0).then_some(()) }).await;
}
