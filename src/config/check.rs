//! What values mean together.

mod cluster;

use std::{fmt, net::SocketAddr, path::PathBuf};

use super::{
    AuthMode, Config, ConfigError, EndpointUrl, HostAddress, ListenAddress, Origin, ProxyProtocol,
    kind::{Given, Written, spelled},
    load::refused,
    sections::keys,
};

/// What starts, and yet somebody should know of. Displays as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning(String);

impl Warning {
    /// Whether it says that `trust` is in use: nothing to warn of where a program brings its own authenticator.
    #[must_use]
    pub fn is_about_trust(&self) -> bool {
        self.0.starts_with(TRUST)
    }
}

/// What a warning of `trust` begins with.
const TRUST: &str = "auth.mode = \"trust\"";

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks `config` as a whole: every value by itself (a program may have put it together without [`load`](super::load)),
/// then those that depend on each other. Tells what is allowed but should be known.
///
/// # Errors
///
/// A value that its key doesn't take, or values that can't be together.
pub fn validate(config: &Config) -> Result<Vec<Warning>, ConfigError> {
    let mut scratch = config.clone();
    for key in keys() {
        if let Written::Value(value) | Written::Secret { value, .. } = (key.get)(config) {
            let given = Given::Typed(&value);
            (key.set)(&mut scratch, given).ok_or_else(|| refused(key, given, Origin::Code))?;
        }
    }
    check_heartbeat(config)?;
    check_device(config)?;
    check_control(config)?;
    check_pair("http", config.http.tls_cert.as_ref(), config.http.tls_key.as_ref())?;
    check_auth(config)?;
    cluster::check(config)?;
    Ok(warnings(config))
}

fn check_heartbeat(config: &Config) -> Result<(), ConfigError> {
    let (told, enforced) = (config.device.heartbeat, config.device.heartbeat_timeout);
    if told < enforced {
        return Ok(());
    }
    Err(ConfigError::Clash(format!(
        "device.heartbeat = \"{}\": must be below device.heartbeat_timeout = \"{}\"",
        spelled(told),
        spelled(enforced)
    )))
}

fn clash(text: String) -> Result<(), ConfigError> {
    Err(ConfigError::Clash(text))
}

/// The files of one listener's TLS: both, or none.
fn check_pair(section: &str, cert: Option<&PathBuf>, key: Option<&PathBuf>) -> Result<(), ConfigError> {
    let (set, missing, file) = match (cert, key) {
        (Some(file), None) => ("tls_cert", "tls_key", file),
        (None, Some(file)) => ("tls_key", "tls_cert", file),
        _ => return Ok(()),
    };
    clash(format!("{section}.{missing}: must be set, since {section}.{set} = {:?} is", file.display().to_string()))
}

fn check_device(config: &Config) -> Result<(), ConfigError> {
    let device = &config.device;
    check_pair("device", device.tls_cert.as_ref(), device.tls_key.as_ref())?;
    if let Some(listen) = &device.tls_listen
        && device.tls_cert.is_none()
    {
        return clash(format!(
            "device.tls_listen = \"{listen}\": needs device.tls_cert and device.tls_key, the PEM files of its certificate"
        ));
    }
    if device.proxy_protocol == ProxyProtocol::V2 && device.proxy_from.is_empty() {
        return clash(
            "device.proxy_from: must be set, since device.proxy_protocol = \"v2\": the networks of the balancers, or anybody could tell any address"
                .to_owned(),
        );
    }
    Ok(())
}

fn check_control(config: &Config) -> Result<(), ConfigError> {
    let control = &config.control;
    check_pair("control", control.tls_cert.as_ref(), control.tls_key.as_ref())?;
    if let Some(file) = &control.tls_client_ca
        && control.tls_cert.is_none()
    {
        return clash(format!(
            "control.tls_client_ca = {:?}: needs control.tls_cert and control.tls_key, as callers show certificates only over TLS",
            file.display().to_string()
        ));
    }
    if !control.client_names.is_empty() && control.tls_client_ca.is_none() {
        return clash(
            "control.client_names: needs control.tls_client_ca, the certificates that sign those of callers".to_owned(),
        );
    }
    if control.listen.is_loopback() {
        return Ok(());
    }
    if control.tls_cert.is_none() && !control.insecure {
        return clash(format!(
            "control.listen = \"{}\": leaves loopback (127.0.0.0/8, ::1, localhost), which needs control.tls_cert and control.tls_key, or control.insecure = true",
            control.listen
        ));
    }
    if control.secrets.is_empty() {
        return clash(format!(
            "control.secrets: must be set, since control.listen = \"{}\" leaves loopback",
            control.listen
        ));
    }
    Ok(())
}

fn check_auth(config: &Config) -> Result<(), ConfigError> {
    let auth = &config.auth;
    match auth.mode {
        None | Some(AuthMode::Trust) => check_trust(config),
        Some(AuthMode::Token) => {
            if auth.keys.is_empty() && auth.jwks_url.is_none() {
                return clash(
                    "auth.keys: it or auth.jwks_url must be set, since auth.mode = \"token\" checks signatures"
                        .to_owned(),
                );
            }
            if let Some(url) = &auth.jwks_url
                && auth.audience.is_none()
            {
                return clash(format!(
                    "auth.audience: must be set, since auth.jwks_url = \"{url}\" has public keys, and a token for any other app would do; \"*\" says that any does"
                ));
            }
            check_endpoint("auth.jwks_url", auth.jwks_url.as_ref(), auth.insecure)
        }
        Some(mode @ (AuthMode::Grpc | AuthMode::Http)) => {
            let word = if mode == AuthMode::Grpc { "grpc" } else { "http" };
            let Some(endpoint) = &auth.endpoint else {
                return clash(format!("auth.endpoint: must be set, since auth.mode = \"{word}\" asks it"));
            };
            if mode == AuthMode::Grpc && !matches!(endpoint.path(), "" | "/") {
                return clash(format!(
                    "auth.endpoint = \"{endpoint}\": \"http://HOST:PORT\" or \"https://HOST:PORT\" without a path, since auth.mode = \"grpc\""
                ));
            }
            check_endpoint("auth.endpoint", Some(endpoint), auth.insecure)
        }
    }
}

/// What gets credentials, or decides what counts as one, can't be read or forged on the way.
fn check_endpoint(key: &str, url: Option<&EndpointUrl>, insecure: bool) -> Result<(), ConfigError> {
    match url {
        Some(url) if !url.is_https() && !url.is_loopback() && !insecure => {
            clash(format!("{key} = \"{url}\": leaves loopback without TLS, which needs https or auth.insecure = true"))
        }
        _ => Ok(()),
    }
}

fn check_trust(config: &Config) -> Result<(), ConfigError> {
    let Some(place) = reaches_others(config).filter(|_| !config.auth.insecure) else { return Ok(()) };
    clash(match config.auth.mode {
        None => format!("auth.mode: must be set, since {place}; \"trust\" there needs auth.insecure = true"),
        Some(_) => format!("auth.mode = \"trust\": {place}, which needs auth.insecure = true"),
    })
}

/// How devices elsewhere could reach this node, by the first key that lets them.
fn reaches_others(config: &Config) -> Option<String> {
    let device = &config.device;
    for (key, listen) in [("device.listen", &device.listen), ("device.tls_listen", &device.tls_listen)] {
        if let Some(listen) = listen.as_ref().filter(|listen| !listen.is_loopback()) {
            return Some(format!("{key} = \"{listen}\" leaves loopback"));
        }
    }
    let hosts = &config.hosts;
    for (key, told) in [("hosts.advertise", &hosts.advertise), ("hosts.advertise_tls", &hosts.advertise_tls)] {
        if let Some(host) = told.iter().flatten().find(|host| !host.is_loopback()) {
            return Some(format!("{key} = [\"{host}\"] leaves loopback"));
        }
    }
    if !takes_devices(config) {
        return None;
    }
    if device.proxy_protocol == ProxyProtocol::V2 {
        return Some("device.proxy_protocol = \"v2\" brings devices from elsewhere".to_owned());
    }
    let url = config.cluster.urls.first()?;
    Some(format!("cluster.urls = [\"{url}\"] makes it one of several nodes"))
}

fn takes_devices(config: &Config) -> bool {
    config.device.listen.is_some() || config.device.tls_listen.is_some()
}

fn warnings(config: &Config) -> Vec<Warning> {
    let Config { device, control, http, hosts, auth, .. } = config;
    let mut warnings = Vec::new();
    let mut warn = |text: String| warnings.push(Warning(text));
    let leaves = |listen: Option<&ListenAddress>| listen.filter(|listen| !listen.is_loopback()).cloned();

    if let Some(listen) = leaves(device.listen.as_ref()) {
        warn(format!(
            "device.listen = \"{listen}\": leaves loopback without TLS, what devices send can be read on the way"
        ));
    }
    if let Some(listen) = leaves(Some(&control.listen)).filter(|_| control.tls_cert.is_none()) {
        warn(format!("control.listen = \"{listen}\": leaves loopback without TLS, secrets can be read on the way"));
    }
    if let Some(listen) = leaves(Some(&http.listen)).filter(|_| http.tls_cert.is_none()) {
        warn(format!("http.listen = \"{listen}\": leaves loopback without TLS, answers can be forged on the way"));
    }
    if let Some(listen) = leaves(config.metrics.listen.as_ref()) {
        warn(format!(
            "metrics.listen = \"{listen}\": leaves loopback without TLS, whoever reaches it can read the metrics"
        ));
    }
    warn_of_hosts("hosts.advertise", hosts.advertise.as_ref(), "device.listen", device.listen.as_ref(), &mut warn);
    let (told, listen) = (hosts.advertise_tls.as_ref(), device.tls_listen.as_ref());
    warn_of_hosts("hosts.advertise_tls", told, "device.tls_listen", listen, &mut warn);
    for (key, url) in [("auth.endpoint", asked(config)), ("auth.jwks_url", fetched(config))] {
        if let Some(url) = url.filter(|url| !url.is_https() && !url.is_loopback()) {
            warn(format!(
                "auth.insecure = true: {key} = \"{url}\" leaves loopback without TLS, it can be read and forged on the way"
            ));
        }
    }
    if let Some(text) = cluster::warning(&config.cluster) {
        warn(text);
    }
    if matches!(auth.mode, None | Some(AuthMode::Trust)) && takes_devices(config) {
        warn(format!("{TRUST}: every device is taken at its word"));
    }
    warnings
}

/// The backend that is asked who a device is.
fn asked(config: &Config) -> Option<&EndpointUrl> {
    let asks = matches!(config.auth.mode, Some(AuthMode::Grpc | AuthMode::Http));
    config.auth.endpoint.as_ref().filter(|_| asks)
}

/// Where keys come from.
fn fetched(config: &Config) -> Option<&EndpointUrl> {
    config.auth.jwks_url.as_ref().filter(|_| config.auth.mode == Some(AuthMode::Token))
}

fn warn_of_hosts(
    key: &str,
    told: Option<&Vec<HostAddress>>,
    listen_key: &str,
    listen: Option<&ListenAddress>,
    warn: &mut impl FnMut(String),
) {
    match told {
        None => {
            if let Some(listen) = listen.filter(|listen| listen.is_wildcard()) {
                warn(format!(
                    "{key}: not set, and {listen_key} = \"{listen}\" is no address to send a device to, so no host can be told"
                ));
            }
        }
        Some(hosts) => {
            for host in hosts.iter().filter(|host| host.is_wildcard()) {
                warn(format!("{key}: \"{host}\" is no address to send a device to, it is left out"));
            }
        }
    }
}

/// What devices are sent to: `hosts.advertise` without wildcard addresses; where it isn't set, the host of `device.listen`
/// with the port that was really `bound`. Empty where no host can be told.
#[must_use]
pub fn advertised(config: &Config, bound: Option<SocketAddr>) -> Vec<String> {
    told(config.hosts.advertise.as_ref(), config.device.listen.as_ref(), bound)
}

/// As [`advertised`], for TLS: `hosts.advertise_tls` and `device.tls_listen`.
#[must_use]
pub fn advertised_tls(config: &Config, bound: Option<SocketAddr>) -> Vec<String> {
    told(config.hosts.advertise_tls.as_ref(), config.device.tls_listen.as_ref(), bound)
}

fn told(hosts: Option<&Vec<HostAddress>>, listen: Option<&ListenAddress>, bound: Option<SocketAddr>) -> Vec<String> {
    if let Some(hosts) = hosts {
        return hosts.iter().filter(|host| !host.is_wildcard()).map(ToString::to_string).collect();
    }
    let Some(listen) = listen.filter(|listen| !listen.is_wildcard()) else { return Vec::new() };
    match bound.map_or(listen.port(), |bound| bound.port()) {
        0 => Vec::new(),
        port => vec![format!("{}:{port}", listen.host())],
    }
}

#[cfg(test)]
mod tests;
