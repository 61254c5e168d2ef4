//! Files that are replaced while the gateway runs.

use plex::config::AuthMode;
use serde_json::json;

use crate::{
    Refused, Success, answer, answers,
    common::process::{ANY_PORTS, Home, TestGateway},
    gateway, replace,
    signing::{ED_KEY, HMAC_KEY, P256_KEY, RSA_KEY, Signing, alice, key_set},
    tried,
};

#[tokio::test]
async fn keys_that_are_replaced_count_from_then_on_and_sessions_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    let steps: Vec<(Vec<u8>, &Signing)> = vec![
        (HMAC_KEY.file.clone(), &HMAC_KEY),
        (RSA_KEY.file.clone(), &RSA_KEY),
        (key_set(&[P256_KEY.jwk("a"), json!({ "kty": "new" })]).into_bytes(), &P256_KEY),
        (HMAC_KEY.file.clone(), &HMAC_KEY),
    ];
    std::fs::write(&path, &steps[0].0).unwrap();
    let server = gateway(AuthMode::Token, |config| {
        config.auth.keys = vec![path.clone()];
        config.auth.audience = Some("*".into());
    })
    .await;
    let (answered, mut first) = tried(server.device(), &HMAC_KEY.token(&json!({ "sub": "first", "exp": 9e9 }))).await;
    assert_eq!(answered, Success);
    for pair in steps.windows(2) {
        let ([(_, before), (content, after)], token) = (pair, alice()) else { unreachable!() };
        replace(&path, content);
        answers(&server, &after.token(&token), Success).await;
        assert_eq!(answer(&server, &before.token(&token)).await, Refused);
    }
    first.expect_quiet().await;
}

#[tokio::test]
async fn a_bad_new_file_keeps_the_old_keys_and_says_so() {
    let home = Home::new();
    let path = home.path("keys");
    std::fs::write(&path, &HMAC_KEY.file).unwrap();
    let keys = format!("auth.keys={}", path.display());
    let arguments = [&["serve"], &ANY_PORTS[..], &["--set", "auth.mode=token", "--set", &keys]].concat();
    let mut gateway = TestGateway::of(home.spawn(&arguments)).await;
    for (content, said) in [
        (&b"short"[..], "at least 32 bytes"),
        (&ED_KEY.file, "auth.audience must be set"),
        (ED_KEY.private_pem.as_ref().unwrap().as_bytes(), "private key"),
        (b"{\"keys\":[", "is no JWKS"),
    ] {
        replace(&path, content);
        let line = gateway.process.stderr.until("the keys before go on").await;
        assert!(
            line.contains(said) && line.contains("auth.keys") && line.contains(home.path("keys").to_str().unwrap()),
            "{line}"
        );
        assert_eq!(tried(gateway.device(), &HMAC_KEY.token(&alice())).await.0, Success, "{said}");
        assert_eq!(tried(gateway.device(), &ED_KEY.token(&alice())).await.0, Refused, "{said}");
    }
    std::fs::remove_file(&path).unwrap();
    gateway.process.stderr.until("the keys before go on").await;
    assert_eq!(tried(gateway.device(), &HMAC_KEY.token(&alice())).await.0, Success);
    let other = Signing::hmac(&[b'y'; 32]);
    std::fs::write(&path, &other.file).unwrap();
    gateway.process.stderr.until("keys read again").await;
    assert_eq!(tried(gateway.device(), &other.token(&alice())).await.0, Success);
    assert_eq!(tried(gateway.device(), &HMAC_KEY.token(&alice())).await.0, Refused);
    assert_eq!(gateway.stopped().await.code, 0);
}
