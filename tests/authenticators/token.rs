//! Which tokens let whom in.

use std::{path::PathBuf, time::SystemTime};

use jsonwebtoken::Algorithm;
use plex::{Config, config::AuthMode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Refused, Success, answer,
    common::TestServer,
    gateway, is_connected,
    signing::{ED_KEY, HMAC_KEY, P256_KEY, P384_KEY, RSA_KEY, Signing, alice, base64url, key_set, now},
    tried,
};

/// A gateway with these files of keys, audience "*".
async fn with_keys(files: &[&[u8]], change: impl FnOnce(&mut Config)) -> (TestServer, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let write = |(number, content): (usize, &&[u8])| -> PathBuf {
        let path = folder.path().join(format!("key-{number}"));
        std::fs::write(&path, content).unwrap();
        path
    };
    let keys = files.iter().enumerate().map(write).collect();
    let server = gateway(AuthMode::Token, |config| {
        config.auth.keys = keys;
        config.auth.audience = Some("*".into());
        change(config);
    })
    .await;
    (server, folder)
}

fn with(changes: Value) -> Value {
    let mut claims = alice();
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    claims
}

#[tokio::test]
async fn every_algorithm_of_a_keys_type_is_taken_from_files_of_any_kind() {
    let signing: [&Signing; 5] = [&HMAC_KEY, &RSA_KEY, &P256_KEY, &P384_KEY, &ED_KEY];
    let (server, _folder) = with_keys(&signing.map(|key| &*key.file), |_| ()).await;
    let mut tried = 0;
    for key in signing {
        for algorithm in key.algorithms {
            let uid = format!("dev-{algorithm:?}");
            let token = key.token_by(*algorithm, None, &with(json!({ "sub": uid })));
            assert_eq!(answer(&server, &token).await, Success, "{algorithm:?}");
            let token = key.token_by(*algorithm, Some("any"), &with(json!({ "sub": uid })));
            assert_eq!(answer(&server, &token).await, Success, "a PEM has no kid, and is tried for every token");
            tried += 1;
        }
    }
    assert_eq!(tried, 12);
}

#[tokio::test]
async fn a_key_set_is_taken_with_every_type_of_key() {
    let signing: [&Signing; 4] = [&RSA_KEY, &P256_KEY, &P384_KEY, &ED_KEY];
    let mut keys: Vec<_> = signing.iter().enumerate().map(|(place, key)| key.jwk(&format!("key-{place}"))).collect();
    keys.push(json!({ "kty": "a new one", "kid": "key-9" }));
    let (server, _folder) = with_keys(&[key_set(&keys).as_bytes()], |_| ()).await;
    for (place, key) in signing.iter().enumerate() {
        for algorithm in key.algorithms {
            for (kid, expected) in
                [(Some(place), Success), (None, Success), (Some(place + 1), Refused), (Some(9), Refused)]
            {
                let kid = kid.map(|kid| format!("key-{kid}"));
                let token = key.token_by(*algorithm, kid.as_deref(), &alice());
                assert_eq!(answer(&server, &token).await, expected, "{algorithm:?} as {kid:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_subject_is_the_uid() {
    let (server, _folder) = with_keys(&[&HMAC_KEY.file], |_| ()).await;
    let uid = "ü".repeat(127) + "x";
    let (answered, _device) = tried(server.device(), &HMAC_KEY.token(&with(json!({ "sub": uid })))).await;
    assert_eq!(answered, Success);
    assert!(is_connected(&server, &uid).await);
    assert!(!is_connected(&server, "alice").await);
}

#[tokio::test]
async fn what_a_token_may_say_besides_changes_nothing() {
    let (server, _folder) = with_keys(&[&HMAC_KEY.file, &RSA_KEY.file], |_| ()).await;
    for claims in [
        json!({ "exp": now() as f64 + 3600.5 }),
        json!({ "exp": 1.0e10 }),
        json!({ "exp": 9_000_000_000_000_000u64 }),
        json!({ "nbf": now() - 1 }),
        json!({ "nbf": 0 }),
        json!({ "nbf": -1 }),
        json!({ "nbf": null, "iss": null, "aud": null }),
        json!({ "iat": "yesterday", "aud": "any", "iss": "any", "more": [{}] }),
        json!({ "aud": ["a", "b"] }),
        json!({ "aud": [] }),
    ] {
        assert_eq!(answer(&server, &HMAC_KEY.token(&with(claims.clone()))).await, Success, "{claims}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_refused() {
    let (server, _folder) = with_keys(&[&HMAC_KEY.file, &RSA_KEY.file, &P256_KEY.file], |_| ()).await;
    for claims in [
        json!({ "exp": now() - 1 }),
        json!({ "exp": now() }),
        json!({ "exp": null }),
        json!({ "exp": (now() + 3600).to_string() }),
        json!({ "exp": true }),
        json!({ "exp": [now() + 3600] }),
        json!({ "exp": 0 }),
        json!({ "exp": -1 }),
        json!({ "exp": -1e300 }),
        json!({ "exp": 1e300 }),
        json!({ "exp": u64::MAX }),
        json!({ "nbf": now() + 60 }),
        json!({ "nbf": 1e300 }),
        json!({ "nbf": "0" }),
        json!({ "sub": null }),
        json!({ "sub": 7 }),
        json!({ "sub": "" }),
        json!({ "sub": "x".repeat(256) }),
        json!({ "sub": ["alice"] }),
    ] {
        assert_eq!(answer(&server, &HMAC_KEY.token(&with(claims.clone()))).await, Refused, "{claims}");
    }
    for claims in [json!({ "sub": "alice" }), json!({ "exp": now() + 60 }), json!([]), json!("alice"), json!(null)] {
        assert_eq!(answer(&server, &HMAC_KEY.token(&claims)).await, Refused, "{claims}");
    }
}

#[tokio::test]
async fn what_isnt_signed_by_a_key_is_refused() {
    let (server, _folder) = with_keys(&[&RSA_KEY.file, &P256_KEY.file, &ED_KEY.file], |_| ()).await;
    let claims = alice().to_string();
    let good = RSA_KEY.token(&alice());
    assert_eq!(answer(&server, &good).await, Success);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, body) = message.split_once('.').unwrap();
    let bob = base64url(with(json!({ "sub": "bob" })).to_string().as_bytes());
    let none = base64url(br#"{"alg":"none","typ":"JWT"}"#);
    let (other_rsa, other_p256) = (Signing::rsa(), Signing::p256());
    let mut bad = vec![
        String::new(),
        "alice".to_owned(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        "\u{0}.é.🦀".to_owned(),
        claims.clone(),
        format!("{none}.{body}."),
        format!("{none}.{body}.{signature}"),
        format!("{}.{body}.", base64url(br#"{"alg":"None"}"#)),
        format!("{}.{body}.{signature}", base64url(br#"{"typ":"JWT"}"#)),
        format!("{header}.{body}."),
        format!("{header}.{body}"),
        format!("{header}.{bob}.{signature}"),
        format!("{good}."),
        format!("{good}=="),
        format!(" {good}"),
        format!("{good}\n"),
        format!("Bearer {good}"),
        format!("{good}.{signature}.{signature}"),
        format!("{header}.{body}.{}", &signature[..signature.len() - 4]),
        other_rsa.token(&alice()),
        other_p256.token(&alice()),
        P384_KEY.token(&alice()),
        HMAC_KEY.token(&alice()),
        // Signed, and yet what must be understood isn't.
        RSA_KEY.raw_token(Algorithm::RS256, r#"{"alg":"RS256","crit":["exp"]}"#, &claims),
        RSA_KEY.raw_token(Algorithm::RS256, r#"{"alg":"RS256","kid":7}"#, &claims),
        // Said twice.
        RSA_KEY.raw_token(
            Algorithm::RS256,
            r#"{"alg":"RS256"}"#,
            &claims.replace("alice\"", "alice\",\"sub\":\"bob\""),
        ),
        RSA_KEY.raw_token(Algorithm::RS256, r#"{"alg":"RS256","alg":"none"}"#, &claims),
        RSA_KEY.raw_token(Algorithm::RS256, r#"{"alg":"RS256"}"#, &format!("{claims} {claims}")),
        // What the header says isn't how it is signed.
        RSA_KEY.raw_token(Algorithm::RS256, r#"{"alg":"RS384"}"#, &claims),
        RSA_KEY.raw_token(Algorithm::RS256, r#"{"alg":"PS256"}"#, &claims),
        RSA_KEY.raw_token(Algorithm::RS256, r#"{"alg":"HS256"}"#, &claims),
        "x".repeat(4_000),
        format!("{}.{}.{}", "e30", "e30".repeat(600), "e30"),
    ];
    // Signed with what anybody may know: the public keys, in each of their forms.
    for key in [&RSA_KEY, &P256_KEY, &ED_KEY] {
        let pem = String::from_utf8(key.file.clone()).unwrap();
        for secret in [&pem, pem.trim_end(), &pem.replace('\n', "\r\n")] {
            for algorithm in HMAC_KEY.algorithms {
                bad.push(Signing::hmac(secret.as_bytes()).token_by(*algorithm, None, &alice()));
            }
        }
    }
    bad.push(Signing::hmac(b"").token(&alice()));
    for token in bad {
        assert_eq!(answer(&server, &token).await, Refused, "{token:?}");
    }
    assert_eq!(answer(&server, &good).await, Success, "it goes on");
}

#[tokio::test]
async fn issuer_and_audience_are_checked_where_they_are_set() {
    let (server, _folder) = with_keys(&[&HMAC_KEY.file], |config| {
        config.auth.issuer = Some("https://issuer".into());
        config.auth.audience = Some("app".into());
    })
    .await;
    for (claims, expected) in [
        (json!({ "iss": "https://issuer", "aud": "app" }), Success),
        (json!({ "iss": "https://issuer", "aud": ["other", "app"] }), Success),
        (json!({ "iss": "https://issuer" }), Refused),
        (json!({ "aud": "app" }), Refused),
        (json!({ "iss": "https://issuer", "aud": "apps" }), Refused),
        (json!({ "iss": "https://issuer", "aud": "*" }), Refused),
        (json!({ "iss": "https://issuer", "aud": [] }), Refused),
        (json!({ "iss": "https://issuer", "aud": ["other"] }), Refused),
        (json!({ "iss": "https://issuer", "aud": 1 }), Refused),
        (json!({ "iss": "https://issuer/", "aud": "app" }), Refused),
        (json!({ "iss": ["https://issuer"], "aud": "app" }), Refused),
    ] {
        assert_eq!(answer(&server, &HMAC_KEY.token(&with(claims.clone()))).await, expected, "{claims}");
    }
}

#[tokio::test]
async fn a_secret_needs_no_audience() {
    let (server, _folder) = with_keys(&[&HMAC_KEY.file], |config| config.auth.audience = None).await;
    for claims in [json!({}), json!({ "aud": "any" })] {
        assert_eq!(answer(&server, &HMAC_KEY.token(&with(claims.clone()))).await, Success, "{claims}");
    }
}

#[tokio::test]
async fn the_algorithm_of_a_key_in_a_set_is_the_only_one() {
    let mut jwk = RSA_KEY.jwk("a");
    jwk["alg"] = json!("PS384");
    let (server, _folder) = with_keys(&[key_set(&[jwk]).as_bytes()], |_| ()).await;
    for algorithm in RSA_KEY.algorithms {
        let expected = if *algorithm == Algorithm::PS384 { Success } else { Refused };
        let token = RSA_KEY.token_by(*algorithm, None, &alice());
        assert_eq!(answer(&server, &token).await, expected, "{algorithm:?}");
    }
}

#[tokio::test]
async fn a_session_ends_exactly_when_its_token_does() {
    let (server, _folder) = with_keys(&[&HMAC_KEY.file], |_| ()).await;
    let end = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64() + 1.25;
    let token = HMAC_KEY.token(&json!({ "sub": "alice", "exp": end }));
    let (answered, mut device) = tried(server.device(), &token).await;
    assert_eq!(answered, Success);
    let kick = device.next().await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert_eq!((&*kick.uri, kick.json()["reason"].as_str()), ("/plex/kick", Some("expired")));
    assert!(now >= end - 0.002, "not before: {now} {end}");
    device.expect_close().await;
    assert_eq!(answer(&server, &token).await, Refused);
}

#[tokio::test]
async fn a_credential_over_4_kib_is_refused_on_a_session_too() {
    let (server, _folder) = with_keys(&[&HMAC_KEY.file], |_| ()).await;
    let (_, mut device) = tried(server.device(), &HMAC_KEY.token(&alice())).await;
    for (bytes, uri) in [(1_000, "/auth/success"), (4_000, "/auth/failed"), (40_000, "/auth/failed")] {
        device.auth_v2(&HMAC_KEY.token(&with(json!({ "more": "x".repeat(bytes) })))).await;
        assert_eq!(device.next().await.uri, uri, "{bytes}");
    }
}
