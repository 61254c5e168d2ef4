//! A text that nobody sees by accident.

use std::{fmt, path::PathBuf};

use subtle::ConstantTimeEq;

/// The longest secret, in bytes: with its scheme it stays far below what HTTP/2 servers take as headers (16 KiB).
const SECRET_BYTES_MAX: usize = 1024;

/// A text that is no secret. Doesn't tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret is 1 to 1024 printable ASCII characters, without a space at either end")]
pub struct SecretError;

/// What a caller of the control plane shows as a bearer: 1 to 1,024 printable ASCII characters, no space at either end,
/// since it must travel in an HTTP header. Prints as `MASKED`; compares in constant time, save for the length.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Takes `text` as a secret.
    ///
    /// # Errors
    ///
    /// [`SecretError`] where it couldn't travel in a header as it is.
    pub fn new(text: impl Into<String>) -> Result<Self, SecretError> {
        let text = text.into();
        let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let fits = (1..=SECRET_BYTES_MAX).contains(&text.len());
        if fits && printable && text.trim_matches(' ').len() == text.len() { Ok(Self(text)) } else { Err(SecretError) }
    }

    /// The secret in a file of its own, whose content this is: one newline at its end is cut off.
    ///
    /// # Errors
    ///
    /// [`SecretError`], as [`Secret::new`].
    pub fn of_file(content: &[u8]) -> Result<Self, SecretError> {
        let content = content.strip_suffix(b"\n").unwrap_or(content);
        Self::new(std::str::from_utf8(content).map_err(|_| SecretError)?)
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MASKED")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MASKED")
    }
}

/// What a text has to be, for an error.
pub(super) const SECRET_ALLOWED: &str = "1 to 1024 printable ASCII characters without a space at either end";

/// A secret of the control plane: what it is called in the log, and what its bearer may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlSecret {
    /// `[A-Za-z0-9._-]{1,64}`, another for each.
    pub name: String,
    /// Where it is.
    pub source: SecretSource,
    /// What its bearer may do.
    pub scopes: Scopes,
}

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In the configuration.
    Text(Secret),
    /// In a file of its own, which is read again when it changes; one newline at its end is cut off.
    File(PathBuf),
}

impl From<Secret> for ControlSecret {
    /// The first secret, with all scopes.
    fn from(secret: Secret) -> Self {
        Self { name: position_name(0), source: SecretSource::Text(secret), scopes: Scopes::ALL }
    }
}

/// What a secret without a name is called: by its place in the list, from 0 on.
pub(super) fn position_name(place: usize) -> String {
    format!("secret-{}", place + 1)
}

/// A name of a client certificate (a DNS name of its SAN, else its CN) that stands in for a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedScopes {
    /// 1 to 255 printable ASCII characters.
    pub name: String,
    /// What its owner may do.
    pub scopes: Scopes,
}

/// What a caller of the control plane may do; GetHost and GetInfo every one may.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Nothing but GetHost and GetInfo.
    pub const NONE: Self = Self(0);
    /// Push, PushStream, PushMany, Broadcast.
    pub const PUSH: Self = Self(1);
    /// IsOnline, OnlineStatus.
    pub const PRESENCE: Self = Self(2);
    /// Disconnect, ListSessions, ListNodes.
    pub const ADMIN: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    const NAMES: [(&'static str, Self); 3] =
        [("push", Self::PUSH), ("presence", Self::PRESENCE), ("admin", Self::ADMIN)];

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among these.
    #[must_use]
    pub const fn allow(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The scope of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(known, _)| *known == name).map(|(_, scope)| scope)
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(_, scope)| self.allow(*scope)).map(|(name, _)| name)
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_masked() {
        let secret = Secret::new("s e,c=r!t~").unwrap();
        assert_eq!(format!("{secret} {secret:?}"), "MASKED MASKED");
        assert_eq!(secret.expose(), "s e,c=r!t~");
    }

    #[test]
    fn one_newline_at_the_end_of_a_file_is_cut_off() {
        assert_eq!(Secret::of_file(b"s\n").unwrap().expose(), "s");
        assert_eq!(Secret::of_file(b"s").unwrap().expose(), "s");
        for content in [&b""[..], b"\n", b"s\n\n", b"s\r\n", b"\xff", b" s\n"] {
            assert_eq!(Secret::of_file(content), Err(SecretError), "{content:?}");
        }
    }

    #[test]
    fn what_a_header_would_change_is_refused() {
        for text in ["", " a", "a ", "a\n", "a\tb", "ä", "\u{7f}", &"a".repeat(1025)] {
            assert_eq!(Secret::new(text), Err(SecretError), "{text:?}");
        }
        assert!(Secret::new("a".repeat(1024)).is_ok());
    }
}
