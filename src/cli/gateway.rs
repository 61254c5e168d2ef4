//! Which gateway a command speaks with, and by what secret.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{Exit, Failure};
use crate::{
    client::Control,
    config::{self, Config, ListenAddress, Sources},
    state,
};

/// The longest secret file, in bytes: no header that is longer would be taken.
const SECRET_BYTES_MAX: u64 = 8 << 10;

/// Names a gateway other than the one of the configuration.
#[derive(Debug, Clone, Args)]
pub(super) struct GatewayArgs {
    /// The gateway's control plane, http://HOST:PORT [default: control.listen of the configuration]
    #[arg(long, value_name = "URL")]
    control: Option<String>,
    /// The file with its secret [default: the secret of the gateway on this machine]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Print one JSON object to a line
    #[arg(long)]
    pub(super) json: bool,
}

impl GatewayArgs {
    /// The control plane that the arguments name, the configuration filling in what they don't. To be called inside a
    /// Tokio runtime.
    pub(super) fn connect(&self, config: Option<PathBuf>) -> Result<Control, Failure> {
        let (url, secret) = match (&self.control, &self.secret_file) {
            // The configuration isn't looked at: this machine may have none, or that of something else.
            (Some(url), Some(file)) => (url.clone(), read_secret(file)?),
            (url, file) => {
                let config = load(config)?;
                let secret = match file {
                    Some(file) => read_secret(file)?,
                    // Where no secret was made up yet, the gateway is asked without: it says what is missing.
                    None => local_secret(&config)?.unwrap_or_default(),
                };
                let url = match url {
                    Some(url) => url.clone(),
                    None => format!("http://{}", reachable("control.listen", &config.control.listen)?),
                };
                (url, secret)
            }
        };
        Ok(Control::connect(&url, &secret)?)
    }
}

/// The configuration of a command that takes no `--set`.
pub(super) fn load(file: Option<PathBuf>) -> Result<Config, Failure> {
    Ok(config::load(Sources::from_process(file, Vec::new()))?)
}

/// The secret that the commands on this machine use: the first of the configuration, else the made-up one. None: there
/// is none yet.
pub(super) fn local_secret(config: &Config) -> Result<Option<String>, Failure> {
    if let Some(config::SecretSource::Text(secret)) = config.control.secrets.first().map(|secret| &secret.source) {
        return Ok(Some(secret.expose().to_owned()));
    }
    let made_up = state::control_secret(&config.data_dir(), false)?;
    Ok(made_up.map(|secret| secret.expose().to_owned()))
}

/// Where a gateway of this machine that listens on `address`, the value of `key`, can be reached: a wildcard is reached
/// by the loopback of its family.
pub(super) fn reachable(key: &str, address: &ListenAddress) -> Result<String, Failure> {
    let port = address.port();
    if port == 0 {
        let message = format!("{key} is {address}, whose port is known only to the gateway: name its address");
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(match address.host() {
        host if !address.is_wildcard() => format!("{host}:{port}"),
        host if host.starts_with('[') => format!("[::1]:{port}"),
        _ => format!("127.0.0.1:{port}"),
    })
}

/// The content of a secret file, one newline at its end cut off.
fn read_secret(file: &Path) -> Result<String, Failure> {
    let failure = |problem: String| Failure::new(Exit::Usage, format!("--secret-file {}: {problem}", file.display()));
    let mut text = String::new();
    let bytes = File::open(file)
        .and_then(|opened| opened.take(SECRET_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|error| failure(error.to_string()))?;
    if bytes as u64 > SECRET_BYTES_MAX {
        return Err(failure(format!("is longer than {SECRET_BYTES_MAX} bytes")));
    }
    let secret = text.strip_suffix('\n').unwrap_or(&text);
    if secret.is_empty() {
        return Err(failure("is empty".to_owned()));
    }
    Ok(secret.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Secret;

    #[test]
    fn a_wildcard_is_reached_by_the_loopback_of_its_family() {
        for (listen, reached) in [
            ("0.0.0.0:9580", "127.0.0.1:9580"),
            ("[::]:9580", "[::1]:9580"),
            ("127.0.0.7:1", "127.0.0.7:1"),
            ("[::1]:1", "[::1]:1"),
            ("gateway.example:1", "gateway.example:1"),
        ] {
            assert_eq!(reachable("control.listen", &listen.parse().unwrap()).unwrap(), reached);
        }
        let failure = reachable("control.listen", &"127.0.0.1:0".parse().unwrap()).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("control.listen"), "{}", failure.message);
    }

    #[test]
    fn one_newline_at_the_end_of_a_secret_file_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        for (content, secret) in [("s", "s"), ("s\n", "s"), ("s\n\n", "s\n"), (" s \n", " s ")] {
            fs::write(&file, content).unwrap();
            assert_eq!(read_secret(&file).unwrap(), secret, "{content:?}");
        }
        for content in ["", "\n", &"x".repeat(9000)] {
            fs::write(&file, content).unwrap();
            assert_eq!(read_secret(&file).unwrap_err().exit, Exit::Usage);
        }
        let failure = read_secret(&folder.path().join("missing")).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("missing"), "{}", failure.message);
    }

    #[test]
    fn a_secret_of_the_configuration_comes_before_the_made_up_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: Some(folder.path().to_owned()), ..Config::default() };
        assert_eq!(local_secret(&config).unwrap(), None);
        let made_up = state::control_secret(folder.path(), true).unwrap().unwrap();
        assert_eq!(local_secret(&config).unwrap().as_deref(), Some(made_up.expose()));
        config.control.secrets = [Secret::new("first").unwrap().into()].into();
        assert_eq!(local_secret(&config).unwrap().as_deref(), Some("first"));
    }
}
