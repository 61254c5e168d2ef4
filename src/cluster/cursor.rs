//! A place in the log that a watcher keeps: opaque text, checked when it comes back.

use crate::model::Uid;

use super::directory::{FNV_SEED, fnv};

/// What a cursor's text begins with; another form gets another letter.
const FORM: &str = "a";
const WORD: usize = 16;
/// How long the text is.
const TEXT_BYTES: usize = FORM.len() + 4 * WORD;

/// Where a watcher is, in which log, and for whom it asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor {
    /// The log's identity.
    pub(crate) log: u64,
    /// Everything at or below this place has been told.
    pub(crate) place: u64,
    /// See [`hash_of`].
    pub(crate) filter: u64,
}

impl Cursor {
    fn check(self) -> u64 {
        [self.log, self.place, self.filter].iter().fold(FNV_SEED, |hash, word| fnv(hash, &word.to_le_bytes()))
    }

    /// Its text.
    pub(crate) fn text(self) -> String {
        let Self { log, place, filter } = self;
        format!("{FORM}{log:016x}{place:016x}{filter:016x}{:016x}", self.check())
    }

    /// Reads what [`Cursor::text`] wrote; `None` for anything else.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let hex = text.strip_prefix(FORM)?;
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != TEXT_BYTES || !hex.bytes().all(lower) {
            return None;
        }
        let word = |n: usize| u64::from_str_radix(&hex[n * WORD..(n + 1) * WORD], 16).ok();
        let cursor = Self { log: word(0)?, place: word(1)?, filter: word(2)? };
        (word(3)? == cursor.check()).then_some(cursor)
    }
}

/// The hash of a set of uids, which come sorted and each once; of nobody: everyone.
pub(crate) fn hash_of(uids: &[Uid]) -> u64 {
    uids.iter().fold(FNV_SEED, |hash, uid| fnv(fnv(hash, &uid.as_str().len().to_le_bytes()), uid.as_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURSOR: Cursor = Cursor { log: 7, place: u64::MAX, filter: 1 << 63 };

    #[test]
    fn a_cursor_comes_back_as_it_was_and_is_at_most_100_bytes() {
        let text = CURSOR.text();
        assert!(text.len() <= 100, "{text}");
        assert_eq!(Cursor::read(&text), Some(CURSOR));
    }

    #[test]
    fn a_text_that_is_no_cursor_is_refused() {
        let text = CURSOR.text();
        for at in 0..text.len() {
            let mut bad = text.clone().into_bytes();
            bad[at] = if bad[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(Cursor::read(str::from_utf8(&bad).unwrap()), None, "byte {at}");
        }
        let long = format!("{text}0");
        for bad in ["", "a", "ä", "cursor", &text[1..], &text[..64], &long, &text.to_uppercase(), &"ä".repeat(32)] {
            assert_eq!(Cursor::read(bad), None, "{bad}");
        }
    }
}
