//! Which authenticator the configuration means.

use std::{path::PathBuf, sync::Arc};

use tokio::runtime::Handle;

use super::{
    Authenticator, Gate,
    fetch::KeysOfUrl,
    grpc::Grpc,
    http::Http,
    refusals::Kept,
    token::{KeysOfFile, Rules, Token},
    web::{SecretFile, Web},
};
use crate::{
    config::{AuthConfig, AuthMode, ConfigError, EndpointUrl},
    files::{FileError, FileWatch, Seen},
};

/// An authenticator whose files have been read, and which hasn't begun yet.
pub(crate) struct Setup {
    config: AuthConfig,
    mode: Mode,
}

enum Mode {
    Trust,
    Token { rules: Arc<Rules>, files: Vec<(Seen, Arc<KeysOfFile>)>, url: Option<(Seen, Arc<Web>)> },
    Grpc { endpoint: EndpointUrl, secret: Option<(Seen, SecretFile)>, ca: Seen },
    Http { web: Arc<Web>, secret: Option<(Seen, SecretFile)>, ca: Seen },
}

impl Setup {
    /// Reads the files of a configuration that holds together.
    ///
    /// # Errors
    ///
    /// A file that can't be used, by its key and path.
    pub(crate) fn read(config: &AuthConfig) -> Result<Self, ConfigError> {
        let ca = || Seen::now(config.ca.iter().cloned().collect());
        let endpoint = || {
            let missing = || ConfigError::Clash("auth.endpoint: must be set".to_owned());
            config.endpoint.clone().ok_or_else(missing)
        };
        let mode = match config.mode {
            None | Some(AuthMode::Trust) => Mode::Trust,
            Some(AuthMode::Token) => {
                let rules = Arc::new(Rules::new(config.issuer.clone(), config.audience.clone()));
                let file = |path: &PathBuf| {
                    let seen = Seen::now(vec![path.clone()]);
                    let keys = KeysOfFile::read(path.clone(), &rules).map_err(|error| bad("keys", error))?;
                    Ok((seen, Arc::new(keys)))
                };
                let files = config.keys.iter().map(file).collect::<Result<_, ConfigError>>()?;
                let url = match &config.jwks_url {
                    None => None,
                    // One that fetches, and room for one that is given up.
                    Some(url) => Some((ca(), web(config, url, None, 2)?)),
                };
                Mode::Token { rules, files, url }
            }
            Some(AuthMode::Grpc) => {
                let (endpoint, ca, secret) = (endpoint()?, ca(), secret(config)?);
                if endpoint.is_https()
                    && let Some(file) = &config.ca
                {
                    crate::tls::client_config(Some(file)).map_err(|error| bad("ca", error))?;
                }
                Mode::Grpc { endpoint, secret, ca }
            }
            Some(AuthMode::Http) => {
                let (endpoint, ca, secret) = (endpoint()?, ca(), secret(config)?);
                let shown = secret.as_ref().map(|(_, secret)| secret.clone());
                let web = web(config, &endpoint, shown, config.max_in_flight as usize)?;
                Mode::Http { web, secret, ca }
            }
        };
        Ok(Self { config: config.clone(), mode })
    }

    /// Begins: what it does by itself runs on the runtime of `handle`, and ends with the gate. Its files are watched.
    ///
    /// # Errors
    ///
    /// `auth.ca`, where it has become bad since it was read.
    pub(crate) fn start(self, handle: &Handle, watch: &mut FileWatch) -> Result<Gate, ConfigError> {
        let Self { config, mode } = self;
        let authenticator: Arc<dyn Authenticator> = match mode {
            Mode::Trust => return Ok(Gate::trust()),
            Mode::Token { rules, files, url } => {
                let mut kept = Vec::new();
                for (seen, file) in files {
                    let (again, rules) = (Arc::clone(&file), Arc::clone(&rules));
                    watch.add(seen, move || again.reload(&rules));
                    kept.push(file);
                }
                let url = url.map(|(ca, web)| {
                    let again = Arc::clone(&web);
                    watch.add(ca, move || again.reload_ca());
                    KeysOfUrl::start(web, config.jwks_refresh, config.timeout, handle)
                });
                Arc::new(Token::new(rules, kept, url))
            }
            Mode::Grpc { endpoint, secret, ca } => {
                let shown = watched(secret, watch);
                let grpc = Grpc::new(endpoint, config.ca.clone(), shown, config.timeout, handle.clone());
                let grpc = Arc::new(grpc.map_err(|error| bad("ca", error))?);
                let again = Arc::clone(&grpc);
                watch.add(ca, move || again.reload_ca());
                Arc::new(Kept::new(grpc))
            }
            Mode::Http { web, secret, ca } => {
                watched(secret, watch);
                let again = Arc::clone(&web);
                watch.add(ca, move || again.reload_ca());
                Arc::new(Kept::new(Arc::new(Http::new(web, handle.clone()))))
            }
        };
        Ok(Gate::new(authenticator, config.max_in_flight as usize, config.timeout))
    }
}

fn bad(key: &str, error: FileError) -> ConfigError {
    ConfigError::Clash(format!("auth.{key} = {:?}: {}", error.path.display().to_string(), error.problem))
}

fn secret(config: &AuthConfig) -> Result<Option<(Seen, SecretFile)>, ConfigError> {
    let Some(path) = &config.secret_file else { return Ok(None) };
    let seen = Seen::now(vec![path.clone()]);
    let secret = SecretFile::read(path.clone()).map_err(|error| bad("secret_file", error))?;
    Ok(Some((seen, secret)))
}

fn watched(secret: Option<(Seen, SecretFile)>, watch: &mut FileWatch) -> Option<SecretFile> {
    let (seen, secret) = secret?;
    let again = secret.clone();
    watch.add(seen, move || again.reload());
    Some(secret)
}

fn web(
    config: &AuthConfig,
    url: &EndpointUrl,
    secret: Option<SecretFile>,
    connections: usize,
) -> Result<Arc<Web>, ConfigError> {
    let web = Web::new(url, config.ca.clone(), secret, connections, config.timeout);
    Ok(Arc::new(web.map_err(|error| bad("ca", error))?))
}
