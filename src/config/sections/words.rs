//! Keys whose value is one of a few words.

use tracing::level_filters::LevelFilter;

/// How important a line of the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// The server can't do what it should.
    Error,
    /// Somebody should look at it.
    Warn,
    /// Its life.
    Info,
    /// One connection's life.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    pub(super) const WORDS: &'static [(&'static str, Self)] = &[
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// What the log is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl LogFormat {
    pub(super) const WORDS: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

/// How it is found out who a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// By a signed token that it shows.
    Token,
    /// A backend is asked over gRPC.
    Grpc,
    /// A backend is asked over HTTP.
    Http,
    /// By its word.
    Trust,
}

impl AuthMode {
    pub(super) const WORDS: &'static [(&'static str, Self)] =
        &[("token", Self::Token), ("grpc", Self::Grpc), ("http", Self::Http), ("trust", Self::Trust)];
}

/// Whether connections begin with a balancer's PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// No.
    Off,
    /// Yes, of version 2.
    V2,
}

impl ProxyProtocol {
    pub(super) const WORDS: &'static [(&'static str, Self)] = &[("off", Self::Off), ("v2", Self::V2)];
}

/// Where the servers of a cluster keep its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStorage {
    /// On disk: it outlives their restart.
    File,
    /// In memory: all that were online are told anew after the restart of the last server that had it.
    Memory,
}

impl LogStorage {
    pub(super) const WORDS: &'static [(&'static str, Self)] = &[("file", Self::File), ("memory", Self::Memory)];
}
