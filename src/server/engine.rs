//! What a node shows the servers of its cluster, and which of them it trusts: the files that a configuration names, read.

#[cfg(feature = "nats")]
mod nats;
#[cfg(not(feature = "nats"))]
#[path = "engine/none.rs"]
mod nats;

use std::path::Path;

use rustls::ClientConfig;

pub(super) use self::nats::Part;
use super::StartError;
use crate::{
    config::{ClusterConfig, Secret},
    files::{self, FileError},
    tls::{Trusted, client_config_of},
};

/// What was read of them.
#[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "a build without a cluster refuses them"))]
pub(super) struct EngineFiles {
    /// A user's JWT and the seed of its key, as the file has them: secret.
    pub(super) credentials: Option<String>,
    /// The password of `cluster.user`.
    pub(super) password: Option<Secret>,
    /// For the servers that are reached by TLS.
    pub(super) tls: ClientConfig,
}

impl EngineFiles {
    /// Reads the files of a configuration that holds together; none where no server is named.
    ///
    /// # Errors
    ///
    /// [`StartError::File`] with the key and what is wrong with its file.
    pub(super) fn read(config: &ClusterConfig) -> Result<Option<Self>, StartError> {
        if config.urls.is_empty() {
            return Ok(None);
        }
        let bad = |name: &str, error: FileError| StartError::File { key: format!("cluster.{name}"), error };
        let credentials = config.credentials.as_deref().map(credentials).transpose();
        let password = config.password_file.as_deref().map(password).transpose();
        let trusted = config.tls_ca.clone().map_or(Trusted::System, Trusted::Ca);
        let identity = config.tls_cert.as_deref().zip(config.tls_key.as_deref());
        let tls = client_config_of(&trusted, identity).map_err(|error| {
            let named = [("tls_ca", &config.tls_ca), ("tls_key", &config.tls_key)];
            let is = |file: &Option<_>| file.as_ref() == Some(&error.path);
            let name = named.iter().find(|(_, file)| is(file)).map_or("tls_cert", |(name, _)| name);
            bad(name, error)
        })?;
        Ok(Some(Self {
            credentials: credentials.map_err(|error| bad("credentials", error))?,
            password: password.map_err(|error| bad("password_file", error))?,
            tls,
        }))
    }
}

fn credentials(path: &Path) -> Result<String, FileError> {
    let wrong = || FileError::new(path, "holds no credentials of NATS, a user's JWT and the seed of its key");
    let text = String::from_utf8(files::read(path)?).map_err(|_| wrong())?;
    let holds = |what: &str| text.contains(&format!("-----BEGIN {what}-----"));
    if holds("NATS USER JWT") && holds("USER NKEY SEED") { Ok(text) } else { Err(wrong()) }
}

fn password(path: &Path) -> Result<Secret, FileError> {
    Secret::of_file(&files::read(path)?).map_err(|error| FileError::new(path, error))
}
