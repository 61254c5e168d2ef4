//! A text that nobody sees by accident.

use std::fmt;

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
    fn what_a_header_would_change_is_refused() {
        for text in ["", " a", "a ", "a\n", "a\tb", "ä", "\u{7f}", &"a".repeat(1025)] {
            assert_eq!(Secret::new(text), Err(SecretError), "{text:?}");
        }
        assert!(Secret::new("a".repeat(1024)).is_ok());
    }
}
