//! Reading messages: what an old client's JSON library would read, and no more tolerant than that.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What stands in a frame. A field that is missing there is 0, empty or none here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message<'a> {
    /// The message's number.
    pub seq: i64,
    /// What the message is.
    pub uri: Cow<'a, str>,
    /// Its content.
    pub body: Cow<'a, str>,
    /// The dialect that a device asks for. None: it doesn't, or not with an integer of 64 bits.
    pub v: Option<i64>,
}

/// Why a message could not be read. Its text is the `detail` of `/plex/error`: short, and without a word of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It isn't UTF-8.
    #[error("not JSON: invalid UTF-8 at byte {0}")]
    Utf8(usize),
    /// Half of a pair of `\u` escapes stands alone.
    #[error("not JSON: a lone surrogate at byte {0}")]
    Surrogate(usize),
    /// It isn't JSON.
    #[error("not JSON: line {line}, column {column}")]
    Syntax {
        /// From 1 on; 0 at an early end.
        line: usize,
        /// In bytes.
        column: usize,
    },
    /// It is something else than an object.
    #[error("not a JSON object")]
    NotObject,
    /// A field has the wrong type.
    #[error("{field} is not {expected}")]
    Type {
        /// The field's name.
        field: &'static str,
        /// What it has to be, with its article.
        expected: &'static str,
    },
}

/// Reads a message. `None` stands for one without content, the empty one and `null`: a sign of life.
///
/// Field names count in any case, of a field given twice the last one counts, `null` leaves what was there, unknown
/// fields are ignored at any depth. A message without escapes is read without allocating.
///
/// # Errors
///
/// [`Malformed`] where it isn't JSON (also invalid UTF-8 or a lone surrogate, wherever it stands), isn't an object,
/// or a known field has the wrong type. Only a `v` that is no integer of 64 bits is as if it weren't there.
pub fn parse(message: &[u8]) -> Result<Option<Message<'_>>, Malformed> {
    if message.is_empty() {
        return Ok(None);
    }
    let text = str::from_utf8(message).map_err(|error| Malformed::Utf8(error.valid_up_to()))?;
    check_surrogates(text)?;
    match text.trim_matches([' ', '\t', '\n', '\r']) {
        "null" => return Ok(None),
        other if other.starts_with('{') => {}
        _ => return Err(Malformed::NotObject),
    }
    let fields: Fields<'_> =
        serde_json::from_str(text).map_err(|error| Malformed::Syntax { line: error.line(), column: error.column() })?;
    match fields.wrong {
        Some(wrong) => Err(wrong),
        None => Ok(Some(fields.message)),
    }
}

/// Refuses a lone surrogate anywhere: serde_json looks only at the strings that it decodes. Only strings have
/// backslashes; what has them elsewhere is found to be no JSON afterwards.
fn check_surrogates(text: &str) -> Result<(), Malformed> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(run) = bytes[at..].iter().position(|&byte| byte == b'\\') {
        at += run;
        match unicode_escape(&bytes[at..]) {
            Some(0xd800..=0xdbff) => match unicode_escape(&bytes[at + 6..]) {
                Some(0xdc00..=0xdfff) => at += 12,
                _ => return Err(Malformed::Surrogate(at)),
            },
            Some(0xdc00..=0xdfff) => return Err(Malformed::Surrogate(at)),
            Some(_) => at += 6,
            // The backslash and what it escapes, another backslash perhaps.
            None => at = (at + 2).min(bytes.len()),
        }
    }
    Ok(())
}

/// The code unit of a `\uXXXX` at the start of `bytes`.
fn unicode_escape(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.strip_prefix(br"\u")?.first_chunk::<4>()?;
    digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)?))
}

/// The fields read so far, and the first that had the wrong type: syntax errors behind it still count first.
#[derive(Default)]
struct Fields<'a> {
    message: Message<'a>,
    wrong: Option<Malformed>,
}

impl<'a> Fields<'a> {
    fn set(&mut self, name: Name, value: &'a str) {
        if value == "null" {
            return;
        }
        let wrong = match name {
            Name::Seq => match value.parse() {
                Ok(seq) => return self.message.seq = seq,
                Err(_) => Malformed::Type { field: "seq", expected: "an integer of 64 bits" },
            },
            Name::Uri => match string(value) {
                Some(uri) => return self.message.uri = uri,
                None => Malformed::Type { field: "uri", expected: "a string" },
            },
            Name::Body => match string(value) {
                Some(body) => return self.message.body = body,
                None => Malformed::Type { field: "body", expected: "a string" },
            },
            Name::V => return self.message.v = value.parse().ok().or(self.message.v),
            Name::Other => return,
        };
        self.wrong.get_or_insert(wrong);
    }
}

/// The string that the JSON text `value` is; none where it is something else.
fn string(value: &str) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') { serde_json::from_str(value).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(inner)) }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Fields::default();
        while let Some(name) = map.next_key()? {
            // Both skip values without recursion, so their depth is bounded by the frame alone.
            match name {
                Name::Other => drop(map.next_value::<IgnoredAny>()?),
                name => fields.set(name, map.next_value::<&RawValue>()?.get()),
            }
        }
        Ok(fields)
    }
}

/// Which field a name means.
#[derive(Clone, Copy)]
enum Name {
    Seq,
    Uri,
    Body,
    V,
    Other,
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        // Go folds by Unicode: of the letters here only the s has a partner outside ASCII.
        let is_seq =
            |name: &str| name.strip_prefix(['s', 'S', 'ſ']).is_some_and(|rest| rest.eq_ignore_ascii_case("eq"));
        Ok(match name {
            name if name.eq_ignore_ascii_case("uri") => Name::Uri,
            name if name.eq_ignore_ascii_case("body") => Name::Body,
            name if name.eq_ignore_ascii_case("v") => Name::V,
            name if is_seq(name) => Name::Seq,
            _ => Name::Other,
        })
    }
}
