//! What is refused at the start, and the command that makes tokens.

use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::{
    Success,
    common::process::Home,
    signing::{ED_KEY, HMAC_KEY, RSA_KEY, key_set},
    tried,
};

#[tokio::test]
async fn keys_that_cant_be_used_stop_the_start_with_one_line() {
    let home = Home::new();
    let write = |name: &str, content: &[u8]| std::fs::write(home.path(name), content).unwrap();
    write("short", b"too short");
    write("public", &RSA_KEY.file);
    write("private", RSA_KEY.private_pem.as_ref().unwrap().as_bytes());
    write("set", key_set(&[ED_KEY.jwk("a")]).as_bytes());
    write("unknown", key_set(&[json!({ "kty": "new" })]).as_bytes());
    write("large", &vec![b'x'; (1 << 20) + 1]);
    write("secret", b"two\nlines");
    write("hmac", &HMAC_KEY.file);
    let token = "auth.mode=token";
    let http = ["auth.mode=http", "auth.endpoint=https://127.0.0.1:1"];
    let grpc = ["auth.mode=grpc", "auth.endpoint=https://127.0.0.1:1"];
    let cases: Vec<(Vec<&str>, [&str; 2])> = vec![
        (vec![token, "auth.keys=missing"], ["auth.keys = \"missing\": can't be read", ""]),
        (vec![token, "auth.keys=hmac,missing"], ["auth.keys = \"missing\": can't be read", ""]),
        (vec![token, "auth.keys=."], ["auth.keys = \".\": can't be read", ""]),
        (vec![token, "auth.keys=large"], ["auth.keys = \"large\": ", "1 MiB"]),
        (vec![token, "auth.keys=short"], ["auth.keys = \"short\": ", "at least 32 bytes"]),
        (vec![token, "auth.keys=private", "auth.audience=*"], ["auth.keys = \"private\": ", "private key"]),
        (vec![token, "auth.keys=unknown", "auth.audience=*"], ["auth.keys = \"unknown\": ", "kty"]),
        (vec![token, "auth.keys=public"], ["auth.keys = \"public\": ", "auth.audience must be set"]),
        (vec![token, "auth.keys=hmac,set"], ["auth.keys = \"set\": ", "auth.audience must be set"]),
        (vec![token, "auth.jwks_url=http://127.0.0.1:1"], ["auth.audience: must be set", "auth.jwks_url"]),
        (
            vec![token, "auth.jwks_url=https://127.0.0.1:1", "auth.audience=a", "auth.ca=missing"],
            ["auth.ca = \"missing\": can't be read", ""],
        ),
        ([&http[..], &["auth.ca=hmac"]].concat(), ["auth.ca = \"hmac\": ", "certificate"]),
        ([&grpc[..], &["auth.ca=hmac"]].concat(), ["auth.ca = \"hmac\": ", "certificate"]),
        ([&http[..], &["auth.secret_file=missing"]].concat(), ["auth.secret_file = \"missing\": can't be read", ""]),
        ([&grpc[..], &["auth.secret_file=secret"]].concat(), ["auth.secret_file = \"secret\": ", "printable ASCII"]),
    ];
    for (set, [begins, says]) in cases {
        let set: Vec<_> = set.iter().flat_map(|set| ["--set", set]).collect();
        for command in ["serve", "check"] {
            let finished = home.run(&[&[command], &set[..]].concat()).await;
            let line = finished.refusal();
            assert!(line.starts_with(begins) && line.contains(says), "{command} {set:?}: {line}");
        }
    }
    let good = ["check", "--set", token, "--set", "auth.keys=public,hmac,set", "--set", "auth.audience=*"];
    assert!(!home.run(&good).await.lines().is_empty());
}

#[tokio::test]
async fn a_token_of_the_command_lets_its_device_in() {
    let home = Home::new();
    std::fs::write(home.path("public"), &RSA_KEY.file).unwrap();
    std::fs::write(home.path("hmac"), &HMAC_KEY.file).unwrap();
    std::fs::write(home.path("other"), [b'z'; 32]).unwrap();
    let config = "[auth]\nmode = \"token\"\nkeys = [\"public\", \"hmac\", \"other\"]\nissuer = \"me\"\naudience = ";
    home.write("plex.toml", &format!("{config}\"app\""));
    let gateway = home.serve(&[]).await;

    let finished = home.run(&["token", "alice"]).await;
    let [token] = finished.lines()[..] else { panic!("one line: {finished:?}") };
    assert_eq!(tried(gateway.device(), token).await.0, Success);

    let before = SystemTime::now();
    let finished = home.run(&["token", "bob", "--ttl", "90s", "--key", "other", "--json"]).await;
    let [line] = &finished.json()[..] else { panic!("one line: {finished:?}") };
    let (answered, _device) = tried(gateway.device(), line["token"].as_str().unwrap()).await;
    assert_eq!(answered, Success);
    let end = humantime::parse_rfc3339(line["expires_at"].as_str().unwrap()).unwrap();
    assert!(end >= before + Duration::from_secs(90), "{line}");

    // "*" is no audience.
    home.write("plex.toml", &format!("{config}\"*\""));
    let finished = home.run(&["token", "alice"]).await;
    let body = finished.lines()[0].split('.').nth(1).unwrap().to_owned();
    assert_eq!(
        body.len(),
        crate::signing::base64url(br#"{"sub":"alice","exp":1700000000,"iss":"me"}"#).len(),
        "no aud"
    );
    assert_eq!(gateway.stopped().await.code, 0);
}

#[tokio::test]
async fn a_token_that_cant_be_made_is_told_in_one_line() {
    let home = Home::new();
    std::fs::write(home.path("public"), &RSA_KEY.file).unwrap();
    std::fs::write(home.path("set"), key_set(&[ED_KEY.jwk("a")])).unwrap();
    std::fs::write(home.path("hmac"), &HMAC_KEY.file).unwrap();
    std::fs::write(home.path("short"), "short").unwrap();
    for (arguments, says) in [
        (&["alice"][..], ["auth.keys", "--key FILE"]),
        (&["alice", "--key", "public"], ["--key public", "HMAC"]),
        (&["alice", "--key", "set"], ["--key set", "HMAC"]),
        (&["alice", "--key", "missing"], ["--key missing", "can't be read"]),
        (&["alice", "--key", "short"], ["--key short", "32 bytes"]),
        (&["", "--key", "hmac"], ["UID", "255"]),
        (&[&"x".repeat(256), "--key", "hmac"], ["UID", "255"]),
    ] {
        let finished = home.run(&[&["token"], arguments].concat()).await;
        let line = finished.refusal();
        assert!(says.iter().all(|says| line.contains(says)), "{arguments:?}: {line}");
    }
    for ttl in ["0s", "1", "-1s", "4000d", "soon"] {
        let finished = home.run(&["token", "alice", "--key", "hmac", &format!("--ttl={ttl}")]).await;
        assert_eq!((finished.code, &*finished.stdout), (2, ""), "{ttl}: {finished:?}");
    }
    home.write("plex.toml", "[auth]\nmode = \"token\"\nkeys = [\"set\", \"public\"]\naudience = \"*\"");
    assert!(home.run(&["token", "alice"]).await.refusal().contains("auth.keys"));
}
