//! The sources, laid one over the other: file, environment, command line.

use std::{
    env,
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use super::{
    Config, ConfigError, Origin,
    error::{one_line, shown},
    kind::Given,
    sections::{Key, SECTIONS, keys},
};

/// The file that is taken from the folder where none is named.
const FILE_NAME: &str = "plex.toml";
/// The largest file, in bytes: a hundred times what all keys with their comments take.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file that was named; it must exist. None: `plex.toml` in `folder`, if it exists.
    pub file: Option<PathBuf>,
    /// Where `plex.toml` is looked for. Empty: where the process stands.
    pub folder: PathBuf,
    /// The environment; only names that begin with `PLEX_` are looked at. Of a name given twice the last one counts.
    pub environment: Vec<(String, String)>,
    /// `KEY=VALUE` each, from the command line. Of a key given twice the last one counts.
    pub set: Vec<String>,
}

impl Sources {
    /// Those of this process: the file that `--config` names, its environment, the values of `--set`.
    #[must_use]
    pub fn from_process(config: Option<PathBuf>, set: Vec<String>) -> Self {
        let environment = env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, _)| name.starts_with("PLEX_"))
            .collect();
        Self { file: config, folder: PathBuf::new(), environment, set }
    }
}

/// Reads the configuration: the defaults, over them the file, over it the environment, over it the command line. Each
/// value is checked where it stands, also one that another source overrides. What values mean together:
/// [`validate`](super::validate).
///
/// # Errors
///
/// A file that can't be read or is no TOML, an unknown key, a value that its key doesn't take.
pub fn load(sources: Sources) -> Result<Config, ConfigError> {
    let mut config = Config::default();
    if let Some((path, text)) = read(&sources)? {
        lay_file(&mut config, &path, &text)?;
    }
    for (name, value) in &sources.environment {
        lay_variable(&mut config, name, value)?;
    }
    for set in &sources.set {
        lay_flag(&mut config, set)?;
    }
    Ok(config)
}

/// The file's path and text, if there is one.
fn read(sources: &Sources) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let path = sources.file.clone().unwrap_or_else(|| sources.folder.join(FILE_NAME));
    let refused = |problem: String| ConfigError::File { file: one_line(&path.display().to_string()), problem };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound && sources.file.is_none() => return Ok(None),
        Err(error) => return Err(refused(format!("can't be read: {error}"))),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| refused(format!("can't be read: {error}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(refused("a configuration has at most 1MiB".to_owned()));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let line = 1 + error.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
            Err(refused(format!("line {line} isn't UTF-8")))
        }
    }
}

fn lay_file(config: &mut Config, path: &Path, text: &str) -> Result<(), ConfigError> {
    let table: Table = text.parse().map_err(|error| no_toml(path, text, &error))?;
    let origin = |section: &str, name: &str| Origin::File { path: path.to_owned(), line: line_of(text, section, name) };
    for (section, value) in &table {
        if let Some(key) = find("", section) {
            lay(config, key, Given::Typed(value), || origin("", section))?;
            continue;
        }
        if section.is_empty() || !SECTIONS.iter().any(|(known, _)| known == section) {
            return Err(unknown(section, "", origin("", section)));
        }
        let Value::Table(entries) = value else {
            return Err(ConfigError::Value {
                key: section.clone(),
                value: String::new(),
                allowed: format!("a section, [{section}], with {}", names(section)),
                origin: origin("", section),
            });
        };
        for (name, value) in entries {
            let Some(key) = find(section, name) else {
                return Err(unknown(&format!("{section}.{name}"), section, origin(section, name)));
            };
            lay(config, key, Given::Typed(value), || origin(section, name))?;
        }
    }
    Ok(())
}

fn lay_variable(config: &mut Config, name: &str, value: &str) -> Result<(), ConfigError> {
    if !name.starts_with("PLEX_") {
        return Ok(());
    }
    if let Some(key) = keys().find(|key| key.variable() == name) {
        return lay(config, key, Given::Text(value), || Origin::Variable(name.to_owned()));
    }
    // Others belong to somebody else: a service's address, a wrapper's own settings.
    let Some((section, _)) = name["PLEX_".len()..].split_once("__") else { return Ok(()) };
    Err(unknown(name, &section.to_ascii_lowercase(), Origin::Code))
}

fn lay_flag(config: &mut Config, set: &str) -> Result<(), ConfigError> {
    let Some((name, value)) = set.split_once('=') else {
        // No more of it than could be a key: it may be a secret.
        let end = set.find(|c: char| !(c.is_ascii_lowercase() || matches!(c, '.' | '_'))).unwrap_or(set.len());
        return Err(ConfigError::Value {
            key: format!("--set {}", shown(&set[..end])),
            value: String::new(),
            allowed: "KEY=VALUE is expected, as device.listen=127.0.0.1:9578".to_owned(),
            origin: Origin::Code,
        });
    };
    match keys().find(|key| key.full_name() == name) {
        Some(key) => lay(config, key, Given::Text(value), || Origin::Flag),
        None => Err(unknown(name, name.split_once('.').map_or("", |(section, _)| section), Origin::Flag)),
    }
}

fn find(section: &str, name: &str) -> Option<&'static Key> {
    keys().find(|key| key.section == section && key.name == name)
}

fn lay(
    config: &mut Config,
    key: &'static Key,
    given: Given<'_>,
    origin: impl FnOnce() -> Origin,
) -> Result<(), ConfigError> {
    (key.set)(config, given).ok_or_else(|| refused(key, given, origin()))
}

/// The error of a value that its key doesn't take.
pub(super) fn refused(key: &Key, given: Given<'_>, origin: Origin) -> ConfigError {
    let value = if (key.is_secret)(given) { String::new() } else { format!(" = {}", shown(&given.shown())) };
    ConfigError::Value { key: key.full_name(), value, allowed: (key.allowed)(), origin }
}

fn unknown(key: &str, section: &str, origin: Origin) -> ConfigError {
    let known = match section {
        "" => format!("there are {}", names("")),
        known if SECTIONS.iter().any(|(name, _)| *name == known) => format!("{section} has {}", names(section)),
        _ => format!("there are {}", names("")),
    };
    ConfigError::Unknown { key: shown(key), known, origin }
}

/// The keys of a section; those outside of the sections, and the sections, where it is empty.
fn names(section: &str) -> String {
    let keys = keys().filter(|key| key.section == section).map(|key| key.name.to_owned());
    let sections = SECTIONS.iter().filter(|(name, _)| section.is_empty() && !name.is_empty());
    keys.chain(sections.map(|(name, _)| format!("{name}.…"))).collect::<Vec<_>>().join(", ")
}

fn no_toml(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let mut file = one_line(&path.display().to_string());
    if let Some(span) = error.span() {
        let before = text.get(..span.start).unwrap_or(text);
        let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
        file = format!("{file}:{}:{column}", line_number(before));
    }
    ConfigError::File { file, problem: one_line(error.message()) }
}

fn line_number(before: &str) -> usize {
    1 + before.bytes().filter(|byte| *byte == b'\n').count()
}

/// The line where a key, or a section, is first named. Reads the file again: only an error asks.
fn line_of(text: &str, section: &str, name: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let of = |table: &DeTable<'_>, name: &str| {
        let (key, _) = table.iter().find(|(key, _)| key.get_ref().as_ref() == name)?;
        Some(line_number(text.get(..key.span().start)?))
    };
    if section.is_empty() {
        return of(root.get_ref(), name);
    }
    let (_, inner) = root.get_ref().iter().find(|(key, _)| key.get_ref().as_ref() == section)?;
    match inner.get_ref() {
        DeValue::Table(table) => of(table, name),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
