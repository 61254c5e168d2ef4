//! Who is known: the secrets that are valid now, and the names of certificates that stand in for one.

use std::{
    fmt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use aws_lc_rs::digest::{SHA256, digest};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use crate::{
    config::{ControlSecret, NamedScopes, Scopes, Secret, SecretSource},
    files::{self, FileError, FileWatch, Seen},
};

/// The SHA-256 of a secret: all have the same length, and whoever tries to learn one from the time of a comparison can't
/// choose what is compared. In words, as a hundred may be compared for each call.
type Digest = [u64; 4];

/// Somebody who may call, under the name that the configuration gives. Cheap to clone.
#[derive(Clone)]
pub(super) struct Caller(Arc<Known>);

struct Known {
    name: String,
    proof: Proof,
    scopes: Scopes,
}

/// What somebody is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Secret,
    Certificate,
}

impl Caller {
    fn new(name: &str, proof: Proof, scopes: Scopes) -> Self {
        Self(Arc::new(Known { name: name.to_owned(), proof, scopes }))
    }

    pub(super) fn scopes(&self) -> Scopes {
        self.0.scopes
    }
}

/// For the log: what it is known by, and its name.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proof = match self.0.proof {
            Proof::Secret => "secret",
            Proof::Certificate => "certificate",
        };
        write!(f, "{proof}:{}", self.0.name)
    }
}

/// The secrets that are valid now. Cheap to clone; all clones change together. The texts themselves aren't kept.
#[derive(Clone)]
pub(crate) struct Secrets(Arc<Inner>);

struct Inner {
    callers: Box<[Caller]>,
    /// One for each.
    digests: RwLock<Box<[Digest]>>,
}

impl Secrets {
    /// Reads those that are configured, at least one; from then on `watch` reads those in files again. Also gives the text
    /// of the first that has all scopes, of the first where none has.
    ///
    /// # Errors
    ///
    /// A file that can't be read, or holds no secret.
    pub(crate) fn load(configured: &[ControlSecret], watch: &mut FileWatch) -> Result<(Self, Secret), FileError> {
        let mut texts = Vec::with_capacity(configured.len());
        let mut seen = Vec::new();
        for (place, secret) in configured.iter().enumerate() {
            texts.push(match &secret.source {
                SecretSource::Text(text) => text.clone(),
                SecretSource::File(file) => {
                    seen.push((place, file.clone(), Seen::now(vec![file.clone()])));
                    read(file)?
                }
            });
        }
        let known = |secret: &ControlSecret| Caller::new(&secret.name, Proof::Secret, secret.scopes);
        let secrets = Self(Arc::new(Inner {
            callers: configured.iter().map(known).collect(),
            digests: RwLock::new(texts.iter().map(|text| digest_of(text.expose().as_bytes())).collect()),
        }));
        for (place, file, seen) in seen {
            let secrets = secrets.clone();
            watch.add(seen, move || secrets.reload(place, &file));
        }
        let whole = configured.iter().position(|secret| secret.scopes.allow(Scopes::ALL)).unwrap_or(0);
        Ok((secrets, texts.swap_remove(whole)))
    }

    /// Reads a secret's file again. A bad one leaves the secret as it was. Logs either.
    fn reload(&self, place: usize, file: &Path) {
        let secret = &self.0.callers[place].0.name;
        match read(file) {
            Ok(text) => {
                let digest = digest_of(text.expose().as_bytes());
                self.0.digests.write().unwrap_or_else(PoisonError::into_inner)[place] = digest;
                tracing::info!(%secret, file = %file.display(), "secret read again");
            }
            Err(error) => tracing::error!(%secret, %error, "the secret before goes on"),
        }
    }

    /// Whose secret this is; the first where several have the same. Each is compared, in constant time.
    pub(super) fn find(&self, shown: &[u8]) -> Option<&Caller> {
        const NOBODY: u32 = u32::MAX;
        let shown = digest_of(shown);
        let mut found = NOBODY;
        let digests = self.0.digests.read().unwrap_or_else(PoisonError::into_inner);
        for (place, digest) in (0..).zip(&*digests) {
            let differs = digest.iter().zip(&shown).fold(0, |differs, (a, b)| differs | (a ^ b));
            found.conditional_assign(&place, found.ct_eq(&NOBODY) & differs.ct_eq(&0));
        }
        drop(digests);
        self.0.callers.get(found as usize)
    }
}

/// The secret in a file of its own.
fn read(file: &Path) -> Result<Secret, FileError> {
    Secret::of_file(&files::read(file)?).map_err(|error| FileError::new(file, format_args!("holds no secret: {error}")))
}

fn digest_of(secret: &[u8]) -> Digest {
    let digest = digest(&SHA256, secret);
    let mut words = digest.as_ref().chunks_exact(8).map(|word| word.try_into().expect("a chunk has 8 bytes"));
    std::array::from_fn(|_| u64::from_ne_bytes(words.next().expect("a SHA-256 has 32 bytes")))
}

/// The names of certificates that stand in for a secret. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ClientNames(Arc<[Caller]>);

impl ClientNames {
    pub(super) fn new(configured: &[NamedScopes]) -> Self {
        Self(configured.iter().map(|named| Caller::new(&named.name, Proof::Certificate, named.scopes)).collect())
    }

    /// The first of these names that a certificate has: one of the DNS names of its SAN; its CN, where it has none of
    /// them. In any case of letters.
    pub(super) fn of_certificate(&self, certificate: &[u8]) -> Option<Caller> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let general_names = certificate.subject_alternative_name().ok()?.map(|names| &names.value.general_names);
        let dns_name = |name: &_| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => Some(*name),
            _ => None,
        };
        let mut names: Vec<&str> = general_names.into_iter().flatten().filter_map(dns_name).collect();
        if names.is_empty() {
            // Several CNs would leave it to the reader which counts.
            let mut common = certificate.subject().iter_common_name();
            match (common.next(), common.next()) {
                (Some(name), None) => names.extend(name.as_str().ok()),
                _ => return None,
            }
        }
        let has = |caller: &&Caller| names.iter().any(|name| name.eq_ignore_ascii_case(&caller.0.name));
        self.0.iter().find(has).cloned()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn named(name: &str, source: SecretSource) -> ControlSecret {
        ControlSecret { name: name.to_owned(), source, scopes: Scopes::PUSH }
    }

    fn text(text: &str) -> SecretSource {
        SecretSource::Text(Secret::new(text).unwrap())
    }

    #[test]
    fn each_secret_is_found_under_its_name_and_nothing_else_is() {
        let mut watch = FileWatch::default();
        let whole = ControlSecret { scopes: Scopes::ALL, ..named("c", text("three")) };
        let configured = [named("a", text("one")), named("b", text("two")), whole, named("d", text("one"))];
        let (secrets, own) = Secrets::load(&configured, &mut watch).unwrap();
        let found = |shown: &str| secrets.find(shown.as_bytes()).map(ToString::to_string);
        assert_eq!(found("one").as_deref(), Some("secret:a"), "the first");
        assert_eq!(found("two").as_deref(), Some("secret:b"));
        assert_eq!(found("three").as_deref(), Some("secret:c"));
        for shown in ["", "on", "onee", "One", "a", "two\n"] {
            assert_eq!(found(shown), None, "{shown:?}");
        }
        assert_eq!(own.expose(), "three", "the first with all scopes");
    }

    #[test]
    fn a_file_without_a_secret_stops_the_start_and_later_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let configured = [named("a", SecretSource::File(file.clone()))];
        let load = || Secrets::load(&configured, &mut FileWatch::default());
        for content in [&b""[..], b"\n", b"two\nlines", b"\xff"] {
            fs::write(&file, content).unwrap();
            let error = load().err().expect("no secret").to_string();
            assert!(error.starts_with(&format!("{}: holds no secret: ", file.display())), "{error}");
        }
        fs::write(&file, "one\n").unwrap();
        let (secrets, _) = load().unwrap();
        let reread = |content: &str| {
            fs::write(&file, content).unwrap();
            secrets.reload(0, &file);
        };
        reread("");
        assert!(secrets.find(b"one").is_some());
        reread("two\n");
        assert!(secrets.find(b"one").is_none() && secrets.find(b"two").is_some());
        fs::remove_file(&file).unwrap();
        secrets.reload(0, &file);
        assert!(secrets.find(b"two").is_some());
    }

    /// A certificate with these DNS names and this CN.
    fn certificate(dns: &[&str], common: &str) -> Vec<u8> {
        let mut params =
            rcgen::CertificateParams::new(dns.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, common);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_name_is_a_dns_name_of_the_certificate_else_its_cn() {
        let names = ["Orders.example.com", "billing", "*.example.org"];
        let names = ClientNames::new(&names.map(|name| NamedScopes { name: name.to_owned(), scopes: Scopes::PUSH }));
        let found =
            |dns: &[&str], common| names.of_certificate(&certificate(dns, common)).map(|caller| caller.to_string());
        assert_eq!(
            found(&["x.example.com", "orders.EXAMPLE.com"], "-").as_deref(),
            Some("certificate:Orders.example.com")
        );
        assert_eq!(found(&[], "billing").as_deref(), Some("certificate:billing"));
        assert_eq!(found(&["x.example.com"], "billing"), None, "the CN counts only without DNS names");
        assert_eq!(found(&["a.example.org"], "-"), None, "a star is a name as any other");
        assert_eq!(found(&["billing.example.com"], "-"), None);
        assert!(names.of_certificate(b"no certificate").is_none());
        // An address isn't a name.
        assert_eq!(found(&["127.0.0.1"], "billing").as_deref(), Some("certificate:billing"));
    }
}
