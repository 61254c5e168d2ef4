//! The keys by which tokens are checked: what a file or a key set holds, and which algorithms count for each.

mod jwks;
mod pem;

use std::path::Path;

use jsonwebtoken::{Algorithm, DecodingKey};

pub(super) use self::jwks::key_set;
use crate::files::{self, FileError};

/// The shortest HMAC secret, in bytes: as long as the hash of HS256, or it could be guessed from one token.
const SECRET_BYTES_MIN: usize = 32;

/// The most keys of one file or URL: a token that names none tries them all, and each costs some 20 to 200 µs.
const KEYS_MAX: usize = 100;

/// The sizes of RSA keys, in bits: smaller ones are broken, larger ones cost too much to check.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=8_192;

const HMAC: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
const RSA: &[Algorithm] =
    &[Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];
const P256: &[Algorithm] = &[Algorithm::ES256];
const P384: &[Algorithm] = &[Algorithm::ES384];
const ED25519: &[Algorithm] = &[Algorithm::EdDSA];

/// One key. Its type says which algorithms count, whatever a token says.
pub(super) struct Key {
    /// Tokens that name a key are checked by those with this name, and by those without any.
    pub(super) id: Option<String>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) decoding: DecodingKey,
}

impl Key {
    fn new(algorithms: &[Algorithm], decoding: DecodingKey) -> Self {
        Self { id: None, algorithms: algorithms.to_vec(), decoding }
    }

    fn hmac(secret: &[u8]) -> Result<Self, String> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(format!("an HMAC secret has at least {SECRET_BYTES_MIN} bytes, this has {}", secret.len()));
        }
        Ok(Self::new(HMAC, DecodingKey::from_secret(secret)))
    }

    /// `modulus` is big-endian.
    fn check_rsa(modulus: &[u8]) -> Result<(), String> {
        let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
        let bits = modulus.get(zeros).map_or(0, |first| (modulus.len() - zeros) * 8 - first.leading_zeros() as usize);
        if RSA_BITS.contains(&bits) {
            return Ok(());
        }
        Err(format!("an RSA key has {} to {} bits, this has {bits}", RSA_BITS.start(), RSA_BITS.end()))
    }

    /// A point of P-256 or P-384 as it is written without compression, by the algorithms of its curve.
    fn ec(algorithms: &[Algorithm], point: &[u8]) -> Result<Self, String> {
        let bytes = if algorithms == P256 { 65 } else { 97 };
        if point.len() != bytes || point[0] != 4 {
            return Err("it isn't an uncompressed point of its curve".to_owned());
        }
        Ok(Self::new(algorithms, DecodingKey::from_ec_der(point)))
    }

    fn ed25519(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() != 32 {
            return Err(format!("an Ed25519 key has 32 bytes, this has {}", bytes.len()));
        }
        Ok(Self::new(ED25519, DecodingKey::from_ed_der(bytes)))
    }

    pub(super) fn is_public(&self) -> bool {
        self.algorithms.iter().all(|algorithm| !HMAC.contains(algorithm))
    }
}

/// What a file of `auth.keys` is, by its content.
enum Content<'a> {
    /// Of PEM, or what looks so.
    Pem,
    /// A JSON object.
    Jwks,
    /// All else, one newline at its end cut off.
    Hmac(&'a [u8]),
}

/// Tells what a file is. What anybody may know, a public key in whatever form, is never taken for a secret: anybody could
/// sign with it.
fn content(bytes: &[u8]) -> Result<Content<'_>, String> {
    // As an editor may have saved it: with a byte order mark, in two bytes to a character.
    let plain: Vec<u8> =
        bytes.iter().copied().filter(|byte| !matches!(byte, 0 | 0xef | 0xbb | 0xbf | 0xfe | 0xff)).collect();
    if contains(&plain, b"-----BEGIN") {
        return Ok(Content::Pem);
    }
    if plain.trim_ascii_start().starts_with(b"{") {
        return Ok(Content::Jwks);
    }
    if pem::is_der(bytes) || pem::is_bare_base64(&plain) {
        return Err("holds a public key or certificate that isn't in PEM".to_owned());
    }
    if [&b"ssh-"[..], b"ecdsa-sha2-", b"sk-"].iter().any(|start| plain.trim_ascii_start().starts_with(start))
        && contains(&plain, b"AAAA")
    {
        return Err("holds a public key of SSH; PEM is expected".to_owned());
    }
    Ok(Content::Hmac(bytes.strip_suffix(b"\n").unwrap_or(bytes)))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// The keys of a file: an HMAC secret, PEM public keys, or a JWKS. At least one.
pub(super) fn read(path: &Path) -> Result<Vec<Key>, FileError> {
    let bytes = files::read(path)?;
    parse(&bytes).map_err(|problem| FileError::new(path, problem))
}

fn parse(bytes: &[u8]) -> Result<Vec<Key>, String> {
    match content(bytes)? {
        Content::Pem => pem::keys(bytes),
        Content::Jwks => key_set(bytes, true),
        Content::Hmac(secret) => Ok(vec![Key::hmac(secret)?]),
    }
}

/// The HMAC secret of a file; None: it holds public keys.
pub(super) fn read_secret(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let bytes = files::read(path)?;
    let fail = |problem: String| FileError::new(path, problem);
    match content(&bytes).map_err(fail)? {
        Content::Hmac(secret) => {
            Key::hmac(secret).map_err(fail)?;
            Ok(Some(secret.to_vec()))
        }
        Content::Pem | Content::Jwks => Ok(None),
    }
}

#[cfg(test)]
mod tests;
