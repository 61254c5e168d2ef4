//! `token`: a signed token (JWT) tells who a device is, and until when.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use jsonwebtoken::{Header, crypto, dangerous::insecure_decode_claims, decode_header};
use serde::Deserialize;
use serde_json::Number;

use super::{
    AuthError, AuthFuture, AuthRequest, Authenticator, Identity,
    fetch::KeysOfUrl,
    keys::{self, Key},
};
use crate::files::FileError;

/// Checks tokens by keys of files and of a URL.
pub(super) struct Token {
    rules: Arc<Rules>,
    files: Vec<Arc<KeysOfFile>>,
    url: Option<KeysOfUrl>,
}

/// What a token must be meant for.
pub(super) struct Rules {
    issuer: Option<String>,
    audience: Audience,
}

enum Audience {
    /// Nothing is said: any, and for that no public key is allowed.
    Unsaid,
    Any,
    Only(String),
}

/// The keys of one file, as it last said.
pub(super) struct KeysOfFile {
    path: PathBuf,
    keys: RwLock<Arc<[Key]>>,
}

/// Why a token can't be checked at once.
enum Missing {
    /// No key of the URL could be had so far.
    Any,
    /// The one that the token names.
    Named,
}

/// The claims that count. Others are nobody's business; one that is there twice is refused.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: Number,
    nbf: Option<Number>,
    iss: Option<String>,
    aud: Option<Audiences>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Rules {
    pub(super) fn new(issuer: Option<String>, audience: Option<String>) -> Self {
        let audience = match audience {
            None => Audience::Unsaid,
            Some(any) if any == "*" => Audience::Any,
            Some(only) => Audience::Only(only),
        };
        Self { issuer, audience }
    }

    /// Refuses public keys where no audience is said: who has them signed tokens for other apps, too.
    pub(super) fn allow(&self, keys: &[Key]) -> Result<(), String> {
        if matches!(self.audience, Audience::Unsaid) && keys.iter().any(Key::is_public) {
            return Err(
                "holds a public key, so auth.audience must be set, as a token for any other app would do; \"*\" says that any does"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Whom the claims name, where they count at `now`.
    fn judge(&self, claims: Claims, now: SystemTime) -> Option<Identity> {
        let end = time(&claims.exp)?;
        let begun = claims.nbf.is_none_or(|nbf| time(&nbf).is_some_and(|begin| begin <= now));
        let issued = self.issuer.is_none() || self.issuer == claims.iss;
        let meant = match &self.audience {
            Audience::Unsaid | Audience::Any => true,
            Audience::Only(audience) => match claims.aud {
                None => false,
                Some(Audiences::One(one)) => one == *audience,
                Some(Audiences::Many(many)) => many.contains(audience),
            },
        };
        (end > now && begun && issued && meant).then(|| Identity::new(claims.sub).expires_at(end))
    }
}

/// Seconds since 1970, with a fraction maybe. A time before that is 1970. None: beyond any clock.
fn time(number: &Number) -> Option<SystemTime> {
    let since = if let Some(seconds) = number.as_u64() {
        Duration::from_secs(seconds)
    } else {
        Duration::try_from_secs_f64(number.as_f64()?.max(0.0)).ok()?
    };
    SystemTime::UNIX_EPOCH.checked_add(since)
}

impl KeysOfFile {
    /// Reads the file for the first time.
    pub(super) fn read(path: PathBuf, rules: &Rules) -> Result<Self, FileError> {
        let keys = RwLock::new(Self::load(&path, rules)?);
        Ok(Self { path, keys })
    }

    fn load(path: &Path, rules: &Rules) -> Result<Arc<[Key]>, FileError> {
        let keys = keys::read(path)?;
        rules.allow(&keys).map_err(|problem| FileError::new(path, problem))?;
        Ok(keys.into())
    }

    /// Reads it again; one that can't be used leaves the keys as they were. Logs either.
    pub(super) fn reload(&self, rules: &Rules) {
        match Self::load(&self.path, rules) {
            Ok(keys) => {
                let count = keys.len();
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
                tracing::info!(file = %self.path.display(), keys = count, "keys read again");
            }
            Err(error) => tracing::error!(%error, "auth.keys: the keys before go on"),
        }
    }

    fn keys(&self) -> Arc<[Key]> {
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Token {
    pub(super) fn new(rules: Arc<Rules>, files: Vec<Arc<KeysOfFile>>, url: Option<KeysOfUrl>) -> Self {
        Self { rules, files, url }
    }

    /// Checks a token by the keys that are there.
    fn check(&self, token: &str) -> Result<Result<Identity, AuthError>, Missing> {
        let Some((identity, header)) = self.read(token) else { return Ok(Err(AuthError::Refused)) };
        let mut named = false;
        let mut signed = |keys: &[Key]| {
            named |= keys.iter().any(|key| key.id.is_some() && key.id == header.kid);
            keys.iter().any(|key| signed_by(token, &header, key))
        };
        if self.files.iter().any(|file| signed(&file.keys())) {
            return Ok(Ok(identity));
        }
        let Some(url) = &self.url else { return Ok(Err(AuthError::Refused)) };
        match url.keys() {
            None => Err(Missing::Any),
            Some(keys) if signed(&keys) => Ok(Ok(identity)),
            Some(_) if header.kid.is_some() && !named => Err(Missing::Named),
            Some(_) => Ok(Err(AuthError::Refused)),
        }
    }

    /// Whom a token names, if it is signed. What is wrong with it whatever its signature asks for no keys.
    fn read(&self, token: &str) -> Option<(Identity, Header)> {
        let header = decode_header(token).ok()?;
        // What must be understood, and isn't.
        if header.crit.is_some() {
            return None;
        }
        let claims = insecure_decode_claims::<Claims>(token).ok()?;
        Some((self.rules.judge(claims, SystemTime::now())?, header))
    }
}

/// Whether `key` counts for this token, and has signed it.
fn signed_by(token: &str, header: &Header, key: &Key) -> bool {
    let meant = key.id.is_none() || header.kid.is_none() || key.id == header.kid;
    if !meant || !key.algorithms.contains(&header.alg) {
        return false;
    }
    let Some((message, signature)) = token.rsplit_once('.') else { return false };
    crypto::verify(signature, message.as_bytes(), &key.decoding, header.alg).unwrap_or(false)
}

impl Authenticator for Token {
    fn known(&self, request: AuthRequest<'_>) -> Option<Result<Identity, AuthError>> {
        match self.check(request.credential) {
            Ok(answer) => Some(answer),
            Err(missing) => {
                let settled = self.url.as_ref()?.settled()?;
                Some(Err(match missing {
                    // It would have been told: the URL was asked a moment ago.
                    Missing::Named if settled.worked => AuthError::Refused,
                    _ => AuthError::Unavailable("auth.jwks_url gives no keys".into()),
                }))
            }
        }
    }

    fn authenticate<'a>(&'a self, request: AuthRequest<'a>) -> AuthFuture<'a> {
        Box::pin(async move {
            loop {
                if let Some(answer) = self.known(request) {
                    return answer;
                }
                let Some(url) = &self.url else { return Err(AuthError::Refused) };
                url.asked().await;
            }
        })
    }
}
