//! What a cluster is called, and where its servers are.

use toml::Value;

use super::{Given, Kind, LIST_MAX, Written};
use crate::config::NatsUrl;

/// What a cluster may be called: `[a-z0-9-]{1,32}`. It is part of subjects and of a stream's name.
pub(in crate::config) struct ClusterName;

impl ClusterName {
    const CHARS_MAX: usize = 32;
}

impl Kind for ClusterName {
    type Value = String;

    fn read(&self, given: Given<'_>) -> Option<String> {
        let text = given.text()?;
        let takes = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        ((1..=Self::CHARS_MAX).contains(&text.len()) && text.chars().all(takes)).then(|| text.to_owned())
    }

    fn write(&self, value: &String) -> Written {
        Written::Value(Value::String(value.clone()))
    }

    fn allowed(&self) -> String {
        format!("1 to {} of a-z 0-9 -", Self::CHARS_MAX)
    }
}

/// Addresses of NATS servers.
pub(in crate::config) struct NatsUrls;

impl Kind for NatsUrls {
    type Value = Vec<NatsUrl>;

    fn read(&self, given: Given<'_>) -> Option<Self::Value> {
        let urls = given.list()?;
        if urls.len() > LIST_MAX {
            return None;
        }
        urls.into_iter().map(|url| url.parse().ok()).collect()
    }

    fn write(&self, value: &Self::Value) -> Written {
        Written::Value(Value::Array(value.iter().map(|url| Value::String(url.to_string())).collect()))
    }

    fn allowed(&self) -> String {
        format!(
            "a list of up to {LIST_MAX} \"nats://HOST:PORT\" or \"tls://HOST:PORT\", without user and password, which have \
             cluster.user and cluster.password_file or cluster.credentials"
        )
    }

    /// Where there is an `@`, a password may stand before it.
    fn is_secret(&self, given: Given<'_>) -> bool {
        given.shown().contains('@')
    }
}
