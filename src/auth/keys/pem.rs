//! Public keys in PEM.

use jsonwebtoken::DecodingKey;
use x509_parser::{
    asn1_rs::{Oid, oid},
    pem::Pem,
    prelude::FromDer,
    public_key::RSAPublicKey,
    x509::SubjectPublicKeyInfo,
};

use super::{KEYS_MAX, Key, P256, P384, RSA, contains};

const RSA_KEY: Oid<'_> = oid!(1.2.840.113549.1.1.1);
const EC_KEY: Oid<'_> = oid!(1.2.840.10045.2.1);
const CURVE_P256: Oid<'_> = oid!(1.2.840.10045.3.1.7);
const CURVE_P384: Oid<'_> = oid!(1.3.132.0.34);
const ED25519_KEY: Oid<'_> = oid!(1.3.101.112);

/// The keys of a file with PEM in it: all of them, or an error.
pub(super) fn keys(bytes: &[u8]) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for block in Pem::iter_from_buffer(bytes) {
        let block = block.map_err(|error| format!("is no PEM: {error}"))?;
        if keys.len() == KEYS_MAX {
            return Err(format!("holds more than {KEYS_MAX} keys"));
        }
        keys.push(key(&block)?);
    }
    // One that is indented, or in another encoding, isn't found.
    let begun = bytes.windows(10).filter(|window| window == b"-----BEGIN").count();
    if keys.is_empty() || begun != keys.len() {
        return Err("is no PEM: each \"-----BEGIN PUBLIC KEY-----\" begins a line of ASCII".to_owned());
    }
    Ok(keys)
}

fn key(block: &Pem) -> Result<Key, String> {
    match &*block.label {
        "PUBLIC KEY" => public_key(&block.contents),
        "RSA PUBLIC KEY" => rsa(&block.contents),
        label if contains(label.as_bytes(), b"PRIVATE KEY") => Err(
            "holds a private key, which signs tokens and doesn't belong here; its public key checks them (openssl pkey -in FILE -pubout)"
                .to_owned(),
        ),
        "CERTIFICATE" => {
            Err("holds a certificate; its public key is expected (openssl x509 -in FILE -pubkey -noout)".to_owned())
        }
        label => Err(format!("holds {label:?} in PEM; \"PUBLIC KEY\" is expected")),
    }
}

fn public_key(der: &[u8]) -> Result<Key, String> {
    let Ok(([], info)) = SubjectPublicKeyInfo::from_der(der) else {
        return Err("holds a public key that can't be read".to_owned());
    };
    let (algorithm, bytes) = (&info.algorithm, &*info.subject_public_key.data);
    let curve = || algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    if algorithm.algorithm == RSA_KEY {
        rsa(bytes)
    } else if algorithm.algorithm == EC_KEY && curve() == Some(CURVE_P256) {
        Key::ec(P256, bytes)
    } else if algorithm.algorithm == EC_KEY && curve() == Some(CURVE_P384) {
        Key::ec(P384, bytes)
    } else if algorithm.algorithm == ED25519_KEY {
        Key::ed25519(bytes)
    } else {
        Err("holds a public key of another kind than RSA, P-256, P-384 and Ed25519".to_owned())
    }
}

fn rsa(der: &[u8]) -> Result<Key, String> {
    let Ok(([], parsed)) = RSAPublicKey::from_der(der) else {
        return Err("holds an RSA key that can't be read".to_owned());
    };
    Key::check_rsa(parsed.modulus)?;
    Ok(Key::new(RSA, DecodingKey::from_rsa_der(der)))
}

/// Whether it is a public key or a certificate in its binary form.
pub(super) fn is_der(bytes: &[u8]) -> bool {
    // A newline may have been put behind it.
    [bytes, bytes.trim_ascii_end()].iter().any(|bytes| {
        SubjectPublicKeyInfo::from_der(bytes).is_ok()
            || x509_parser::parse_x509_certificate(bytes).is_ok()
            || RSAPublicKey::from_der(bytes).is_ok()
    })
}

/// Whether it is the inside of a PEM: some identity servers show their key so.
pub(super) fn is_bare_base64(bytes: &[u8]) -> bool {
    let mut wrapped = b"-----BEGIN BARE-----\n".to_vec();
    wrapped.extend(bytes.iter().filter(|byte| !byte.is_ascii_whitespace()));
    wrapped.extend(b"\n-----END BARE-----\n");
    Pem::iter_from_buffer(&wrapped).next().is_some_and(|block| block.is_ok_and(|block| is_der(&block.contents)))
}
