//! Which gateway a command speaks with, and by what secret.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{Exit, Failure};
use crate::{
    client::{Control, ControlOptions},
    config::{self, Config, ListenAddress, Scopes, Secret, SecretSource, Sources},
    files, state,
};

/// The longest secret file, in bytes: no header that is longer would be taken.
const SECRET_BYTES_MAX: u64 = 8 << 10;

/// Names a gateway other than the one of the configuration.
#[derive(Debug, Clone, Args)]
pub(super) struct GatewayArgs {
    /// The gateway's control plane, http://HOST:PORT or https://HOST:PORT [default: control.listen of the configuration]
    #[arg(long, value_name = "URL")]
    control: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
    /// Print one JSON object to a line
    #[arg(long)]
    pub(super) json: bool,
}

/// How a gateway is trusted, and what it is shown.
#[derive(Debug, Clone, Args)]
pub(super) struct AccessArgs {
    /// The file with its secret [default: the secret of the gateway on this machine]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// A PEM file with the certificates that sign the gateway's [default: the system's; without --control the certificate
    /// of control.tls_cert itself]
    #[arg(long, value_name = "FILE")]
    pub(super) ca: Option<PathBuf>,
    /// A PEM file with the certificate that is shown to the gateway. With --control and without --secret-file it is all that
    /// is shown
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// A PEM file with its private key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl GatewayArgs {
    /// The control plane that the arguments name, the configuration filling in what they don't. To be called inside a
    /// Tokio runtime.
    pub(super) fn connect(&self, config: Option<PathBuf>) -> Result<Control, Failure> {
        self.access.connect(self.control.as_deref(), config)
    }
}

impl AccessArgs {
    /// The control plane at `url`, else that of the configuration. To be called inside a Tokio runtime.
    pub(super) fn connect(&self, url: Option<&str>, config: Option<PathBuf>) -> Result<Control, Failure> {
        let given = self.secret_file.as_deref().map(read_secret).transpose()?;
        let (url, mut options) = match (url, given) {
            // The configuration isn't looked at: this machine may have none, or that of something else.
            (Some(url), Some(secret)) => (url.to_owned(), ControlOptions::new(&secret)),
            (Some(url), None) if self.cert.is_some() => (url.to_owned(), ControlOptions::new("")),
            (Some(url), None) => (url.to_owned(), ControlOptions::new(&any_local_secret(&load(config)?)?)),
            (None, given) => self.local(&load(config)?, given)?,
        };
        if let Some(ca) = &self.ca {
            options = options.ca(ca);
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            options = options.certificate(cert, key);
        }
        Ok(Control::connect_with(&url, &options)?)
    }

    /// The gateway that a configuration describes. Over TLS it has to show the very certificate of its file: the name in
    /// that needn't be the one by which the gateway is reached from its own machine.
    fn local(&self, config: &Config, secret: Option<String>) -> Result<(String, ControlOptions), Failure> {
        let control = &config.control;
        if control.tls_client_ca.is_some() && self.cert.is_none() {
            let message = "control.tls_client_ca is set, so the gateway needs a certificate: --cert FILE --key FILE";
            return Err(Failure::new(Exit::Usage, message));
        }
        let address = reachable("control.listen", &control.listen)?;
        let options = ControlOptions::new(&secret.map_or_else(|| any_local_secret(config), Ok)?);
        Ok(match &control.tls_cert {
            None => (format!("http://{address}"), options),
            Some(file) => (format!("https://{address}"), options.only(file)),
        })
    }
}

/// The secret of the gateway on this machine. Empty where there is none: the gateway, asked without, says what is missing.
fn any_local_secret(config: &Config) -> Result<String, Failure> {
    Ok(local_secret(config)?.unwrap_or_default())
}

/// The configuration of a command that takes no `--set`.
pub(super) fn load(file: Option<PathBuf>) -> Result<Config, Failure> {
    Ok(config::load(Sources::from_process(file, Vec::new()))?)
}

/// The secret that the commands on this machine use: the first of the configuration that has all scopes; where none is
/// configured, the made-up one. None: there is none.
pub(super) fn local_secret(config: &Config) -> Result<Option<String>, Failure> {
    let secrets = &config.control.secrets;
    let secret = if secrets.is_empty() {
        state::control_secret(&config.data_dir(), false)?
    } else {
        let whole = secrets.iter().find(|secret| secret.scopes.allow(Scopes::ALL));
        whole.map(|secret| configured(&secret.source)).transpose()?
    };
    Ok(secret.map(|secret| secret.expose().to_owned()))
}

fn configured(source: &SecretSource) -> Result<Secret, Failure> {
    match source {
        SecretSource::Text(secret) => Ok(secret.clone()),
        SecretSource::File(file) => Secret::of_file(&files::read(file)?)
            .map_err(|error| Failure::new(Exit::Usage, format!("{}: holds no secret: {error}", file.display()))),
    }
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
    use crate::config::ControlSecret;

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
    fn the_first_secret_of_the_configuration_with_all_scopes_comes_before_the_made_up_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: Some(folder.path().to_owned()), ..Config::default() };
        assert_eq!(local_secret(&config).unwrap(), None);
        let made_up = state::control_secret(folder.path(), true).unwrap().unwrap();
        assert_eq!(local_secret(&config).unwrap().as_deref(), Some(made_up.expose()));
        let whole: ControlSecret = Secret::new("whole").unwrap().into();
        let part = ControlSecret { scopes: Scopes::PUSH, ..Secret::new("part").unwrap().into() };
        config.control.secrets = vec![part.clone(), whole.clone()];
        assert_eq!(local_secret(&config).unwrap().as_deref(), Some("whole"));
        config.control.secrets = vec![part];
        assert_eq!(local_secret(&config).unwrap(), None, "the made-up one isn't valid any more");

        let file = folder.path().join("secret");
        config.control.secrets = vec![ControlSecret { source: SecretSource::File(file.clone()), ..whole }];
        let failure = local_secret(&config).unwrap_err();
        assert!(failure.exit == Exit::Usage && failure.message.starts_with(&file.display().to_string()));
        fs::write(&file, "of-the-file\n").unwrap();
        assert_eq!(local_secret(&config).unwrap().as_deref(), Some("of-the-file"));
    }
}
