//! The kinds of values: how each is read from a file or a text, written, and described in an error.

mod callers;
mod cluster;

use std::{path::PathBuf, time::Duration};

use toml::Value;

pub(super) use self::{
    callers::{ClientNames, Secrets},
    cluster::{ClusterName, NatsUrls},
};
use super::{EndpointUrl, HostAddress, ListenAddress, Network};

/// The most entries of a list: a node's card counts its addresses in one byte, and each secret is compared with each call's.
const LIST_MAX: usize = 100;

/// A value as it was found.
#[derive(Debug, Clone, Copy)]
pub(super) enum Given<'a> {
    /// In a file, with its type.
    Typed(&'a Value),
    /// In the environment or on the command line.
    Text(&'a str),
}

impl<'a> Given<'a> {
    fn text(self) -> Option<&'a str> {
        match self {
            Self::Typed(value) => value.as_str(),
            Self::Text(text) => Some(text),
        }
    }

    fn integer(self) -> Option<i64> {
        match self {
            Self::Typed(value) => value.as_integer(),
            // `i64::from_str` would take "+1".
            Self::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Self::Text(_) => None,
        }
    }

    fn list(self) -> Option<Vec<&'a str>> {
        match self {
            Self::Typed(value) => value.as_array()?.iter().map(Value::as_str).collect(),
            Self::Text("") => Some(Vec::new()),
            Self::Text(text) => Some(text.split(',').map(str::trim).collect()),
        }
    }

    /// For an error.
    pub(super) fn shown(self) -> String {
        match self {
            Self::Typed(Value::String(text)) => format!("{text:?}"),
            Self::Typed(value) => value.to_string(),
            Self::Text(text) => format!("{text:?}"),
        }
    }
}

/// A value as it is printed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Written {
    /// As it would stand in a file.
    Value(Value),
    /// Not set: what a comment says instead.
    Comment(String),
    /// Not to be shown: a comment tells how many are set.
    Secret {
        /// As it would stand in a file.
        value: Value,
        set: usize,
    },
}

/// One kind of values.
pub(super) trait Kind {
    /// What it is read into.
    type Value;
    /// The value, or None where it isn't allowed.
    fn read(&self, given: Given<'_>) -> Option<Self::Value>;
    /// The value as [`Kind::read`] takes it from a file.
    fn write(&self, value: &Self::Value) -> Written;
    /// What an error says is allowed.
    fn allowed(&self) -> String;
    /// Whether an error must not show what was given.
    fn is_secret(&self, _given: Given<'_>) -> bool {
        false
    }
}

/// `true` or `false`.
pub(super) struct Switch;

impl Kind for Switch {
    type Value = bool;

    fn read(&self, given: Given<'_>) -> Option<bool> {
        match given {
            Given::Typed(value) => value.as_bool(),
            Given::Text(text) => text.parse().ok(),
        }
    }

    fn write(&self, value: &bool) -> Written {
        Written::Value(Value::Boolean(*value))
    }

    fn allowed(&self) -> String {
        "true or false".to_owned()
    }
}

/// A whole number within its limits, both included.
pub(super) struct Count(pub(super) u32, pub(super) u32);

impl Kind for Count {
    type Value = u32;

    fn read(&self, given: Given<'_>) -> Option<u32> {
        u32::try_from(given.integer()?).ok().filter(|count| (self.0..=self.1).contains(count))
    }

    fn write(&self, value: &u32) -> Written {
        Written::Value(Value::Integer(i64::from(*value)))
    }

    fn allowed(&self) -> String {
        format!("a whole number from {} to {}", self.0, self.1)
    }
}

/// A duration within its limits, both included. A bare number isn't one, save 0 where 0 is within the limits.
pub(super) struct Span(pub(super) Duration, pub(super) Duration);

impl Kind for Span {
    type Value = Duration;

    fn read(&self, given: Given<'_>) -> Option<Duration> {
        let duration = match given.integer() {
            Some(0) => Duration::ZERO,
            Some(_) => return None,
            None => match given.text()? {
                "0" => Duration::ZERO,
                text => humantime::parse_duration(text).ok()?,
            },
        };
        (self.0..=self.1).contains(&duration).then_some(duration)
    }

    fn write(&self, value: &Duration) -> Written {
        Written::Value(Value::String(spelled(*value)))
    }

    fn allowed(&self) -> String {
        let from = if self.0.is_zero() { "0".to_owned() } else { spelled(self.0) };
        format!("a duration with its unit, as \"30s\" or \"5m\", from {from} to {}", spelled(self.1))
    }
}

/// `duration` with its units, as a file has it.
pub(super) fn spelled(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// The units of a size, the largest first: what is written takes the first that it is a multiple of.
const SIZE_UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// A size in bytes, within its limits, both included. A bare number isn't one.
pub(super) struct Size(pub(super) u32, pub(super) u32);

impl Kind for Size {
    type Value = u32;

    fn read(&self, given: Given<'_>) -> Option<u32> {
        let text = given.text()?;
        let unit = text.find(|c: char| !c.is_ascii_digit())?;
        let (count, unit) = (text[..unit].parse::<u64>().ok()?, text[unit..].trim_start());
        let (_, bytes) = SIZE_UNITS.into_iter().find(|(name, _)| *name == unit)?;
        u32::try_from(count.checked_mul(bytes)?).ok().filter(|bytes| (self.0..=self.1).contains(bytes))
    }

    fn write(&self, value: &u32) -> Written {
        Written::Value(Value::String(sized(*value)))
    }

    fn allowed(&self) -> String {
        format!("a size with its unit, as \"64KiB\" or \"1MB\", from {} to {}", sized(self.0), sized(self.1))
    }
}

fn sized(bytes: u32) -> String {
    let bytes = u64::from(bytes);
    let (unit, each) =
        SIZE_UNITS.into_iter().find(|(_, each)| bytes >= *each && bytes.is_multiple_of(*each)).unwrap_or(("B", 1));
    format!("{}{unit}", bytes / each)
}

/// One of a few words, each with what it means.
pub(super) struct Word<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy + PartialEq> Kind for Word<T> {
    type Value = T;

    fn read(&self, given: Given<'_>) -> Option<T> {
        let text = given.text()?;
        self.0.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
    }

    fn write(&self, value: &T) -> Written {
        let word = self.0.iter().find(|(_, known)| known == value).map_or("", |(word, _)| word);
        Written::Value(Value::String(word.to_owned()))
    }

    fn allowed(&self) -> String {
        let words = self.0.iter().map(|(word, _)| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        if self.0.len() == 1 { format!("only {words} yet") } else { format!("one of {words}") }
    }
}

/// What a node may be called: `[A-Za-z0-9._-]{1,64}`.
pub(super) struct Name;

impl Name {
    /// The most characters.
    pub(super) const CHARS_MAX: usize = 64;

    /// Whether a name may have it.
    pub(super) fn takes(c: char) -> bool {
        c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
    }
}

impl Kind for Name {
    type Value = String;

    fn read(&self, given: Given<'_>) -> Option<String> {
        let text = given.text()?;
        ((1..=Self::CHARS_MAX).contains(&text.len()) && text.chars().all(Self::takes)).then(|| text.to_owned())
    }

    fn write(&self, value: &String) -> Written {
        Written::Value(Value::String(value.clone()))
    }

    fn allowed(&self) -> String {
        format!("1 to {} of A-Z a-z 0-9 . _ -", Self::CHARS_MAX)
    }
}

/// A path of a folder or a file, as the text calls it; empty: not configured.
pub(super) struct PathOf(pub(super) &'static str);

impl PathOf {
    fn path(text: &str) -> Option<PathBuf> {
        // The replacement character is what is left of a variable that isn't UTF-8.
        (!text.is_empty() && !text.contains(['\0', char::REPLACEMENT_CHARACTER])).then(|| PathBuf::from(text))
    }
}

impl Kind for PathOf {
    type Value = Option<PathBuf>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        match given.text()? {
            "" => Some(None),
            text => Self::path(text).map(Some),
        }
    }

    fn write(&self, value: &Self::Value) -> Written {
        match value {
            Some(path) => Written::Value(Value::String(path.to_string_lossy().into_owned())),
            None => Written::Comment("not set".to_owned()),
        }
    }

    fn allowed(&self) -> String {
        format!("a {}'s path in UTF-8", self.0)
    }
}

/// Paths of files.
pub(super) struct Files;

impl Kind for Files {
    type Value = Vec<PathBuf>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        let files = given.list()?;
        if files.len() > LIST_MAX {
            return None;
        }
        files.into_iter().map(PathOf::path).collect()
    }

    fn write(&self, value: &Self::Value) -> Written {
        Written::Value(Value::Array(
            value.iter().map(|path| Value::String(path.to_string_lossy().into_owned())).collect(),
        ))
    }

    fn allowed(&self) -> String {
        format!("a list of up to {LIST_MAX} files' paths in UTF-8")
    }
}

/// A text of 1 to 1,024 characters; empty: not configured.
pub(super) struct Text;

impl Kind for Text {
    type Value = Option<String>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        match given.text()? {
            "" => Some(None),
            text if text.len() > 1_024
                || text.contains(|c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER) =>
            {
                None
            }
            text => Some(Some(text.to_owned())),
        }
    }

    fn write(&self, value: &Self::Value) -> Written {
        match value {
            Some(text) => Written::Value(Value::String(text.clone())),
            None => Written::Comment("not set".to_owned()),
        }
    }

    fn allowed(&self) -> String {
        "a text of up to 1024 bytes".to_owned()
    }
}

/// Where another server is called; empty: nowhere.
pub(super) struct Endpoint;

impl Kind for Endpoint {
    type Value = Option<EndpointUrl>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        match given.text()? {
            "" => Some(None),
            text => text.parse().ok().map(Some),
        }
    }

    fn write(&self, value: &Self::Value) -> Written {
        match value {
            Some(url) => Written::Value(Value::String(url.to_string())),
            None => Written::Comment("not set".to_owned()),
        }
    }

    fn allowed(&self) -> String {
        "\"http://HOST:PORT/PATH\" or \"https://HOST:PORT/PATH\"".to_owned()
    }
}

/// Networks of addresses.
pub(super) struct Networks;

impl Kind for Networks {
    type Value = Vec<Network>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        let networks = given.list()?;
        if networks.len() > LIST_MAX {
            return None;
        }
        networks.into_iter().map(|network| network.parse().ok()).collect()
    }

    fn write(&self, value: &Self::Value) -> Written {
        Written::Value(Value::Array(value.iter().map(|network| Value::String(network.to_string())).collect()))
    }

    fn allowed(&self) -> String {
        format!("a list of up to {LIST_MAX} networks, as \"10.0.0.0/8\", \"fd00::/8\" or \"192.0.2.7\"")
    }
}

/// Where to listen.
pub(super) struct Listen;

impl Kind for Listen {
    type Value = ListenAddress;

    fn read(&self, given: Given<'_>) -> Option<ListenAddress> {
        given.text()?.parse().ok()
    }

    fn write(&self, value: &ListenAddress) -> Written {
        Written::Value(Value::String(value.to_string()))
    }

    fn allowed(&self) -> String {
        "\"host:port\", as \"127.0.0.1:9578\", \"[::1]:9578\" or \"localhost:9578\"".to_owned()
    }
}

/// Where to listen; empty: nowhere.
pub(super) struct ListenOrNone;

impl Kind for ListenOrNone {
    type Value = Option<ListenAddress>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        if given.text()?.is_empty() { Some(None) } else { Listen.read(given).map(Some) }
    }

    fn write(&self, value: &Self::Value) -> Written {
        value.as_ref().map_or_else(|| Written::Value(Value::String(String::new())), |address| Listen.write(address))
    }

    fn allowed(&self) -> String {
        format!("{}; empty: none", Listen.allowed())
    }
}

/// Where devices are sent.
pub(super) struct Hosts;

impl Kind for Hosts {
    type Value = Vec<HostAddress>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        let hosts = given.list()?;
        if hosts.len() > LIST_MAX {
            return None;
        }
        hosts.into_iter().map(|host| host.parse().ok()).collect()
    }

    fn write(&self, value: &Self::Value) -> Written {
        Written::Value(Value::Array(value.iter().map(|host| Value::String(host.to_string())).collect()))
    }

    fn allowed(&self) -> String {
        format!("a list of up to {LIST_MAX} \"address:port\", each with a port from 1 to 65535")
    }
}

/// What may be left out; the text says what that means.
pub(super) struct Optional<K>(pub(super) K, pub(super) &'static str);

impl<K: Kind> Kind for Optional<K> {
    type Value = Option<K::Value>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        self.0.read(given).map(Some)
    }

    fn write(&self, value: &Self::Value) -> Written {
        value.as_ref().map_or_else(|| Written::Comment(self.1.to_owned()), |value| self.0.write(value))
    }

    fn allowed(&self) -> String {
        self.0.allowed()
    }

    fn is_secret(&self, given: Given<'_>) -> bool {
        self.0.is_secret(given)
    }
}
