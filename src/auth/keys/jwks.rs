//! Sets of keys in JSON (RFC 7517).

use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;

use super::{KEYS_MAX, Key, P256, P384, RSA};

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Fields {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    meant_for: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    k: Option<String>,
    d: Option<Value>,
}

/// The keys of a JWKS that can be used, at least one. Others are skipped, with a line in the log: what an identity server
/// adds for somebody else must not turn devices away. `secrets`: whether it may hold symmetric keys, which a URL
/// would tell to whoever reads it.
pub(in crate::auth) fn key_set(bytes: &[u8], secrets: bool) -> Result<Vec<Key>, String> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let Set { keys: found } = serde_json::from_slice(text).map_err(|error| format!("is no JWKS: {error}"))?;
    if found.len() > KEYS_MAX {
        return Err(format!("is a JWKS of {} keys, and {KEYS_MAX} are allowed", found.len()));
    }
    let (mut keys, mut skipped) = (Vec::new(), Vec::new());
    for (place, value) in found.into_iter().enumerate() {
        match key(value, secrets) {
            Ok(key) => keys.push(key),
            Err(problem) => skipped.push((place, problem)),
        }
    }
    if keys.is_empty() {
        return Err(match skipped.first() {
            None => "is a JWKS without any key".to_owned(),
            Some((place, problem)) => {
                format!("is a JWKS without any key that can be used: key {place}: {problem}")
            }
        });
    }
    for (place, problem) in skipped {
        tracing::warn!(place, problem, "a key of a JWKS is skipped");
    }
    Ok(keys)
}

fn key(value: Value, secrets: bool) -> Result<Key, String> {
    // The error would quote what it found there, a secret maybe.
    let fields: Fields =
        serde_json::from_value(value).map_err(|_| "a field is missing or has the wrong type".to_owned())?;
    if fields.meant_for.as_ref().is_some_and(|meant| meant != "sig") {
        return Err("its \"use\" isn't \"sig\"".to_owned());
    }
    if fields.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
        return Err("its \"key_ops\" have no \"verify\"".to_owned());
    }
    if fields.d.is_some() {
        return Err("it is a private key, which signs tokens and doesn't belong here".to_owned());
    }
    let mut key = of_type(&fields, secrets)?;
    if let Some(name) = &fields.alg {
        let only = name.parse::<Algorithm>().ok().filter(|algorithm| key.algorithms.contains(algorithm));
        key.algorithms = vec![only.ok_or("its \"alg\" isn't one of its type")?];
    }
    key.id = fields.kid;
    Ok(key)
}

fn of_type(fields: &Fields, secrets: bool) -> Result<Key, String> {
    let unreadable = |_| "it isn't written in base64url".to_owned();
    match (&*fields.kty, fields.crv.as_deref()) {
        ("RSA", _) => {
            let (n, e) = (needed(&fields.n, "n")?, needed(&fields.e, "e")?);
            let decoding = DecodingKey::from_rsa_components(n, e).map_err(unreadable)?;
            if let DecodingKeyKind::RsaModulusExponent { n, .. } = decoding.kind() {
                Key::check_rsa(n)?;
            }
            Ok(Key::new(RSA, decoding))
        }
        ("EC", Some(curve @ ("P-256" | "P-384"))) => {
            let (x, y) = (needed(&fields.x, "x")?, needed(&fields.y, "y")?);
            let decoding = DecodingKey::from_ec_components(x, y).map_err(unreadable)?;
            Key::ec(if curve == "P-256" { P256 } else { P384 }, decoding.try_get_as_bytes().map_err(unreadable)?)
        }
        ("OKP", Some("Ed25519")) => {
            let decoding = DecodingKey::from_ed_components(needed(&fields.x, "x")?).map_err(unreadable)?;
            Key::ed25519(decoding.try_get_as_bytes().map_err(unreadable)?)
        }
        ("oct", _) if secrets => {
            let decoding = DecodingKey::from_ed_components(needed(&fields.k, "k")?).map_err(unreadable)?;
            Key::hmac(decoding.try_get_as_bytes().map_err(unreadable)?)
        }
        ("oct", _) => Err("it is a secret, and whoever reads the URL would know it".to_owned()),
        ("EC" | "OKP", _) => Err("its \"crv\" isn't P-256, P-384 or Ed25519".to_owned()),
        _ => Err("its \"kty\" isn't RSA, EC, OKP or oct".to_owned()),
    }
}

fn needed<'a>(field: &'a Option<String>, name: &str) -> Result<&'a str, String> {
    field.as_deref().ok_or_else(|| format!("it has no {name:?}"))
}
