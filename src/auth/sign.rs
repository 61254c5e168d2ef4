//! Makes tokens, for trying it out.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;

use super::keys;
use crate::files::FileError;

/// An HMAC secret, which makes and checks tokens.
pub(crate) struct Signer(EncodingKey);

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iss: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a str>,
}

impl Signer {
    /// Reads a file as `auth.keys` are read. None: it holds public keys, which sign nothing.
    pub(crate) fn read(file: &Path) -> Result<Option<Self>, FileError> {
        Ok(keys::read_secret(file)?.map(|secret| Self(EncodingKey::from_secret(&secret))))
    }

    /// A token (HS256) for the device of `uid`, with its end, a whole second. `issuer` and `audience` as they are configured.
    pub(crate) fn token(
        &self,
        uid: &str,
        lasts: Duration,
        issuer: Option<&str>,
        audience: Option<&str>,
    ) -> (String, SystemTime) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let end = now.saturating_add(lasts);
        let exp = end.as_secs() + u64::from(end.subsec_nanos() > 0);
        let claims = Claims { sub: uid, exp, iss: issuer, aud: audience.filter(|audience| *audience != "*") };
        let token = encode(&Header::new(Algorithm::HS256), &claims, &self.0).expect("texts and a number can be signed");
        (token, SystemTime::UNIX_EPOCH + Duration::from_secs(exp))
    }
}
