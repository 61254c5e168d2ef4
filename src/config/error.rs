//! What is wrong with a configuration, in one line.

use std::{fmt, path::PathBuf};

/// The most characters that an error shows of a value or a key.
const SHOWN_CHARS_MAX: usize = 80;

/// Why there is no configuration to start with. One line: which key, which value, what is allowed, where it was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A file that can't be read, or is no TOML.
    #[error("{file}: {problem}")]
    File {
        /// Its path, with line and column where there are any.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// A key that doesn't exist.
    #[error("{key}: unknown key; {known}{origin}")]
    Unknown {
        /// As it was given.
        key: String,
        /// What there is instead.
        known: String,
        /// Where it was found.
        origin: Origin,
    },
    /// A value that its key doesn't take.
    #[error("{key}{value}: {allowed}{origin}")]
    Value {
        /// The key, "section.name".
        key: String,
        /// ` = ` and the value, shortened; empty where it may not be shown.
        value: String,
        /// What it takes.
        allowed: String,
        /// Where it was found.
        origin: Origin,
    },
    /// Values that can't be together.
    #[error("{0}")]
    Clash(String),
}

/// Where a key was found. Displays as what an error ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the configuration itself, as a program has put it together.
    Code,
    /// In a file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line of the key, from 1 on, if known.
        line: Option<usize>,
    },
    /// In the environment: the variable's name.
    Variable(String),
    /// On the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code => Ok(()),
            Self::File { path, line: None } => write!(f, " ({})", one_line(&path.display().to_string())),
            Self::File { path, line: Some(line) } => write!(f, " ({}:{line})", one_line(&path.display().to_string())),
            Self::Variable(name) => write!(f, " ({})", shown(name)),
            Self::Flag => f.write_str(" (--set)"),
        }
    }
}

/// `text` without anything that would break a line or drive a terminal.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') { ' ' } else { c }).collect()
}

/// [`one_line`], cut where it is long.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = one_line(text).chars().take(SHOWN_CHARS_MAX).collect();
    if text.chars().count() > SHOWN_CHARS_MAX {
        shown.push('…');
    }
    shown
}
