//! Keys that are fetched.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use plex::{Config, config::AuthMode};
use serde_json::json;

use crate::{
    Answer, Refused, Success, TestServer, Unavailable, answer, answers,
    backends::{Reply, TlsFront, Web},
    common::{PATIENCE, eventually},
    gateway,
    signing::{ED_KEY, HMAC_KEY, P256_KEY, RSA_KEY, Signing, alice, key_set},
    tried,
};

/// A server of keys whose answer can be changed.
struct Keys {
    web: Web,
    reply: Arc<Mutex<Reply>>,
}

impl Keys {
    async fn start(reply: Reply) -> Self {
        let reply = Arc::new(Mutex::new(reply));
        let shared = Arc::clone(&reply);
        Self { web: Web::start(move |_| shared.lock().unwrap().clone()).await, reply }
    }

    fn set(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    async fn until_asked(&self, times: usize) {
        eventually("it is asked", || async { (self.web.asked() >= times).then_some(()) }).await;
    }
}

fn of(keys: &[(&Signing, &str)]) -> Reply {
    Reply::Told(200, key_set(&keys.iter().map(|(key, kid)| key.jwk(kid)).collect::<Vec<_>>()))
}

async fn fetching(keys: &Keys, change: impl FnOnce(&mut Config)) -> TestServer {
    gateway(AuthMode::Token, |config| {
        config.auth.jwks_url = Some(keys.web.url().parse().unwrap());
        config.auth.audience = Some("*".into());
        change(config);
    })
    .await
}

#[tokio::test]
async fn keys_are_fetched_at_the_start_and_the_first_devices_wait_for_them() {
    let keys = Keys::start(of(&[(&RSA_KEY, "a"), (&ED_KEY, "b")])).await;
    let server = fetching(&keys, |_| ()).await;
    for token in [RSA_KEY.token_of("a", &alice()), ED_KEY.token_of("b", &alice()), ED_KEY.token(&alice())] {
        assert_eq!(answer(&server, &token).await, Success);
    }
    for token in [RSA_KEY.token_of("b", &alice()), HMAC_KEY.token(&alice()), P256_KEY.token(&alice()), "no".into()] {
        assert_eq!(answer(&server, &token).await, Refused);
    }
    assert_eq!(keys.web.asked(), 1);
    let head = keys.web.last().head;
    assert!(head.starts_with("get /auth http/1.1\r\n") && !head.contains("authorization"), "{head}");
}

#[tokio::test]
async fn a_key_never_seen_asks_at_once_and_then_not_for_ten_seconds() {
    let keys = Keys::start(of(&[(&RSA_KEY, "a")])).await;
    let server = fetching(&keys, |_| ()).await;
    assert_eq!(answer(&server, &RSA_KEY.token_of("a", &alice())).await, Success);
    keys.set(of(&[(&ED_KEY, "b")]));
    // Many come at once with the new key, and it is asked for once.
    let token = ED_KEY.token_of("b", &alice());
    let tries = (0..20).map(|_| tried(server.device(), &token));
    for (answered, _) in futures_util::future::join_all(tries).await {
        assert_eq!(answered, Success);
    }
    assert_eq!(keys.web.asked(), 2);
    assert_eq!(answer(&server, &RSA_KEY.token_of("a", &alice())).await, Refused, "it is no key any more");
    for number in 0..50 {
        let token = P256_KEY.token_of(&format!("made up {number}"), &alice());
        assert_eq!(answer(&server, &token).await, Refused);
    }
    assert_eq!(keys.web.asked(), 2, "strangers can't make it ask");
}

#[tokio::test]
async fn what_is_wrong_with_a_token_whatever_its_key_asks_for_none() {
    let keys = Keys::start(of(&[(&RSA_KEY, "a")])).await;
    let server = fetching(&keys, |config| config.auth.issuer = Some("me".into())).await;
    let mine = json!({ "sub": "alice", "exp": 9_000_000_000u64, "iss": "me" });
    assert_eq!(answer(&server, &RSA_KEY.token_of("a", &mine)).await, Success);
    for claims in [alice(), json!({ "sub": "alice", "exp": 1, "iss": "me" })] {
        assert_eq!(answer(&server, &ED_KEY.token_of("b", &claims)).await, Refused);
    }
    // No name, or one that is known: the keys that are there decide.
    assert_eq!(answer(&server, &ED_KEY.token(&mine)).await, Refused);
    assert_eq!(answer(&server, &ED_KEY.token_of("a", &mine)).await, Refused);
    assert_eq!(keys.web.asked(), 1);
}

#[tokio::test]
async fn keys_are_fetched_again_every_refresh_and_a_failure_keeps_the_old() {
    let keys = Keys::start(of(&[(&RSA_KEY, "a")])).await;
    let server = fetching(&keys, |config| config.auth.jwks_refresh = Duration::from_secs(1)).await;
    let (old, new) = (RSA_KEY.token_of("a", &alice()), ED_KEY.token(&alice()));
    assert_eq!(answer(&server, &old).await, Success);
    for bad in [
        Reply::Told(500, String::new()),
        Reply::Told(302, key_set(&[ED_KEY.jwk("b")])),
        Reply::Told(200, r#"{"keys":[]}"#.into()),
        Reply::Told(200, format!("{}{}", " ".repeat(64 * 1024), key_set(&[ED_KEY.jwk("b")]))),
        Reply::Gigabyte { told: false },
        Reply::Close,
        Reply::Told(
            200,
            r#"{"keys":[{"kty":"oct","k":"YSBzZWNyZXQgb2YgZm9ydHkgYnl0ZXMsIG5vdCBvbmUgZmV3ZXIhIQ"}]}"#.into(),
        ),
    ] {
        keys.set(bad);
        keys.until_asked(keys.web.asked() + 2).await;
        assert_eq!(answer(&server, &old).await, Success);
        assert_eq!(answer(&server, &new).await, Refused);
        assert_eq!(answer(&server, &HMAC_KEY.token(&alice())).await, Refused);
    }
    keys.set(of(&[(&ED_KEY, "b")]));
    answers(&server, &new, Success).await;
    assert_eq!(answer(&server, &old).await, Refused);
}

#[tokio::test]
async fn as_long_as_no_key_could_be_had_it_is_unavailable_and_comes_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, &HMAC_KEY.file).unwrap();
    let keys = Keys::start(Reply::Told(503, String::new())).await;
    let server = fetching(&keys, |config| config.auth.keys = vec![path]).await;
    let token = RSA_KEY.token_of("a", &alice());
    assert_eq!(answer(&server, &token).await, Unavailable);
    assert_eq!(answer(&server, &RSA_KEY.token(&alice())).await, Unavailable);
    assert_eq!(answer(&server, &HMAC_KEY.token(&alice())).await, Success, "a file's key needs no URL");
    assert_eq!(answer(&server, "no token").await, Refused);
    keys.set(of(&[(&RSA_KEY, "a")]));
    answers(&server, &token, Success).await;
}

#[tokio::test]
async fn a_url_that_hangs_holds_up_nobody_whose_key_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, &HMAC_KEY.file).unwrap();
    let keys = Keys::start(Reply::Hang).await;
    let server = fetching(&keys, |config| {
        config.auth.keys = vec![path];
        config.auth.max_in_flight = 1;
        config.auth.timeout = PATIENCE * 10;
    })
    .await;
    let mut waiting = Vec::new();
    for number in 0..20 {
        let mut device = crate::TestDevice::connect(server.device()).await;
        device.auth_v2(&RSA_KEY.token_of(&number.to_string(), &alice())).await;
        waiting.push(device);
    }
    for _ in 0..20 {
        assert_eq!(answer(&server, &HMAC_KEY.token(&alice())).await, Success);
    }
    assert_eq!(keys.web.asked(), 1);
    let (mut first, url) = (waiting.remove(0), &keys.web);
    server.stopped().await;
    first.expect_close().await;
    eventually("the fetch ends", || async { (url.shared.connections.now() == 0).then_some(()) }).await;
}

#[tokio::test]
async fn a_url_that_hangs_is_given_up_after_auth_timeout() {
    let keys = Keys::start(Reply::Drip).await;
    let server = fetching(&keys, |config| config.auth.timeout = Duration::from_millis(300)).await;
    let token = RSA_KEY.token_of("a", &alice());
    assert_eq!(answer(&server, &token).await, Unavailable);
    keys.set(of(&[(&RSA_KEY, "a")]));
    answers(&server, &token, Success).await;
}

#[tokio::test]
async fn tls_is_checked_by_auth_ca() {
    let keys = Keys::start(of(&[(&RSA_KEY, "a")])).await;
    let front = TlsFront::start(keys.web.address, &["http/1.1"]).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    std::fs::write(&ca, &front.ca).unwrap();
    let cases: [(_, Answer); 2] = [(Some(ca), Success), (None, Unavailable)];
    for (ca, expected) in cases {
        let server = fetching(&keys, |config| {
            config.auth.jwks_url = Some(format!("{}/keys?a=b", front.url()).parse().unwrap());
            config.auth.ca = ca;
        })
        .await;
        assert_eq!(answer(&server, &RSA_KEY.token_of("a", &alice())).await, expected);
    }
    assert!(keys.web.last().head.starts_with("get /keys?a=b http/1.1\r\n"));
}
