//! What a file of `auth.keys` is taken for.

use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PublicKeyData,
};

use super::*;

fn problem(bytes: &[u8]) -> String {
    match parse(bytes) {
        Ok(keys) => panic!("{:?} is refused, and not taken as {:?}", bytes, keys[0].algorithms),
        Err(problem) => problem,
    }
}

fn pair(algorithm: &'static rcgen::SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

/// The lines of a PEM between its first and its last.
fn inside(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with("-----")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_secret_has_32_bytes_after_one_newline_is_cut_off() {
    for (content, taken) in [
        (vec![7; 32], true),
        ([&[7; 32][..], b"\n"].concat(), true),
        ([&[7; 31][..], b"\n"].concat(), false),
        ([&[7; 31][..], b"\n\n"].concat(), true),
        (vec![b'x'; 31], false),
        (Vec::new(), false),
        (b"\n".to_vec(), false),
    ] {
        assert_eq!(parse(&content).is_ok(), taken, "{content:?}");
    }
    assert_eq!(problem(b"short\n"), "an HMAC secret has at least 32 bytes, this has 5");
    assert_eq!(parse(&[7; 32]).unwrap()[0].algorithms, HMAC);
}

#[test]
fn a_public_key_is_known_by_its_kind() {
    for (kind, algorithms) in
        [(&PKCS_ECDSA_P256_SHA256, P256), (&PKCS_ECDSA_P384_SHA384, P384), (&PKCS_ED25519, ED25519)]
    {
        let keys = parse(pair(kind).public_key_pem().as_bytes()).unwrap();
        assert_eq!((keys.len(), &*keys[0].algorithms), (1, algorithms));
        assert!(keys[0].is_public());
    }
    let two = [pair(&PKCS_ED25519).public_key_pem(), pair(&PKCS_ECDSA_P256_SHA256).public_key_pem()].concat();
    assert_eq!(parse(two.as_bytes()).unwrap().len(), 2);
    assert!(problem(pair(&PKCS_ECDSA_P521_SHA512).public_key_pem().as_bytes()).contains("another kind"));
}

#[test]
fn what_anybody_may_know_is_never_taken_for_a_secret() {
    let pair = pair(&PKCS_ECDSA_P256_SHA256);
    let pem = pair.public_key_pem();
    let wide: Vec<u8> = [0xff, 0xfe].into_iter().chain(pem.bytes().flat_map(|byte| [byte, 0])).collect();
    let certificate = rcgen::CertificateParams::default().self_signed(&pair).unwrap();
    for content in [
        &pem.as_bytes()[..pem.len() / 2],
        pem.replace("-----BEGIN", "  -----BEGIN").as_bytes(),
        pem.replace('A', "*").as_bytes(),
        format!("{pem}  {pem}").as_bytes(),
        &wide,
        inside(&pem).as_bytes(),
        inside(&certificate.pem()).as_bytes(),
        format!(" {}\n\n", inside(&pem).replace('\n', "")).as_bytes(),
        &pair.subject_public_key_info(),
        &[&pair.subject_public_key_info()[..], b"\n"].concat(),
        certificate.der(),
        certificate.pem().as_bytes(),
        b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJx5m1Dsc7hrjUI6kcDBQa0n5HdVqTCdbSv0A5l0 a@b\n",
        b"  { \"keys\": [ { \"kty\": \"OKP\", \"crv\": \"Ed25519\", \"x\": ",
        b"\xef\xbb\xbf{ \"kty\": \"OKP\", \"crv\": \"Ed25519\" }",
        b"{\"keys\":[]}",
        b"{\"keys\":{}} and more than thirty-two bytes",
    ] {
        problem(content);
    }
    // As somebody would make it: openssl rand -base64 48.
    assert!(parse(b"q0Z4mNnXcQ2cG7n4pQb1i8cJm0B7n5yqv1Zr3o2mVt8kXw9sT6uR4e5yH7jK0lP1\n").is_ok());
}

#[test]
fn a_private_key_is_refused_clearly() {
    let pair = pair(&PKCS_ED25519);
    assert!(
        problem(pair.serialize_pem().as_bytes()).contains("private key"),
        "{}",
        problem(pair.serialize_pem().as_bytes())
    );
    let both = pair.public_key_pem() + &pair.serialize_pem();
    assert!(problem(both.as_bytes()).contains("private key"));
    let set = br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}]}"#;
    assert!(problem(set).contains("private key") && !problem(set).contains("nWGx"));
}

#[test]
fn a_set_keeps_what_can_be_used() {
    let good = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"good"}"#;
    for beside in [
        r#"{"kty":"new","kid":"a"}"#,
        r#"{"kid":"no type"}"#,
        r#""text""#,
        r#"{"kty":1}"#,
        r#"{"kty":"OKP","crv":"X25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
        r#"{"kty":"OKP","crv":"Ed25519","x":"short"}"#,
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","use":"enc"}"#,
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","key_ops":["sign"]}"#,
        r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","alg":"HS256"}"#,
        r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#,
        r#"{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}"#,
        r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#,
        r#"{"kty":"RSA","e":"AQAB"}"#,
        r#"{"kty":"oct","k":"AQAB"}"#,
    ] {
        let keys = key_set(format!(r#"{{"keys":[{beside},{good}],"more":1}}"#).as_bytes(), true).unwrap();
        assert_eq!((keys.len(), keys[0].id.as_deref()), (1, Some("good")), "{beside}");
        assert!(key_set(format!(r#"{{"keys":[{beside}]}}"#).as_bytes(), true).is_err(), "{beside}");
    }
    let many = vec![good; KEYS_MAX + 1].join(",");
    assert!(key_set(format!(r#"{{"keys":[{many}]}}"#).as_bytes(), true).is_err());
}

#[test]
fn a_secret_may_stand_in_a_file_and_not_at_a_url() {
    let set = br#"{"keys":[{"kty":"oct","k":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8","alg":"HS256"}]}"#;
    let keys = key_set(set, true).unwrap();
    assert_eq!(keys[0].algorithms, [Algorithm::HS256]);
    assert!(!keys[0].is_public());
    assert!(key_set(set, false).is_err());
}
