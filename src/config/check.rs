//! What values mean together.

use std::{fmt, net::SocketAddr};

use super::{
    AuthMode, Config, ConfigError, ListenAddress, Origin,
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
        if let Written::Value(value) = (key.get)(config) {
            let given = Given::Typed(&value);
            (key.set)(&mut scratch, given).ok_or_else(|| refused(key, given, Origin::Code))?;
        }
    }
    check_heartbeat(config)?;
    check_control(config)?;
    check_auth(config)?;
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

fn check_control(config: &Config) -> Result<(), ConfigError> {
    let control = &config.control;
    if control.listen.is_loopback() {
        return Ok(());
    }
    if !control.insecure {
        return Err(ConfigError::Clash(format!(
            "control.listen = \"{}\": leaves loopback (127.0.0.0/8, ::1, localhost), which needs control.insecure = true",
            control.listen
        )));
    }
    if control.secrets.is_empty() {
        return Err(ConfigError::Clash(format!(
            "control.secrets: must be set, since control.listen = \"{}\" leaves loopback",
            control.listen
        )));
    }
    Ok(())
}

fn check_auth(config: &Config) -> Result<(), ConfigError> {
    let Some(place) = leaves_loopback(config).filter(|_| !config.auth.insecure) else { return Ok(()) };
    Err(ConfigError::Clash(match config.auth.mode {
        None => {
            format!("auth.mode: must be set, since {place} leaves loopback; \"trust\" there needs auth.insecure = true")
        }
        Some(AuthMode::Trust) => {
            format!("auth.mode = \"trust\": {place} leaves loopback, which needs auth.insecure = true")
        }
    }))
}

/// The first key with its value by which devices elsewhere could reach this node.
fn leaves_loopback(config: &Config) -> Option<String> {
    if let Some(listen) = config.device.listen.as_ref().filter(|listen| !listen.is_loopback()) {
        return Some(format!("device.listen = \"{listen}\""));
    }
    let host = config.hosts.advertise.iter().flatten().find(|host| !host.is_loopback())?;
    Some(format!("hosts.advertise = [\"{host}\"]"))
}

fn warnings(config: &Config) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |text: String| warnings.push(Warning(text));
    let leaves = |listen: Option<&ListenAddress>| listen.filter(|listen| !listen.is_loopback()).cloned();

    if let Some(listen) = leaves(config.device.listen.as_ref()) {
        warn(format!(
            "device.listen = \"{listen}\": leaves loopback without TLS, what devices send can be read on the way"
        ));
    }
    if let Some(listen) = leaves(Some(&config.control.listen)) {
        warn(format!("control.listen = \"{listen}\": leaves loopback without TLS, secrets can be read on the way"));
    }
    if let Some(listen) = leaves(Some(&config.http.listen)) {
        warn(format!("http.listen = \"{listen}\": leaves loopback without TLS, answers can be forged on the way"));
    }
    if let Some(listen) = leaves(config.metrics.listen.as_ref()) {
        warn(format!(
            "metrics.listen = \"{listen}\": leaves loopback without TLS, whoever reaches it can read the metrics"
        ));
    }
    match &config.hosts.advertise {
        None => {
            if let Some(listen) = config.device.listen.as_ref().filter(|listen| listen.is_wildcard()) {
                warn(format!(
                    "hosts.advertise: not set, and device.listen = \"{listen}\" is no address to send a device to, so no host can be told"
                ));
            }
        }
        Some(hosts) => {
            for host in hosts.iter().filter(|host| host.is_wildcard()) {
                warn(format!("hosts.advertise: \"{host}\" is no address to send a device to, it is left out"));
            }
        }
    }
    if config.device.listen.is_some() {
        warn(format!("{TRUST}: every device is taken at its word"));
    }
    warnings
}

/// What devices are sent to: `hosts.advertise` without wildcard addresses; where it isn't set, the host of `device.listen`
/// with the port that was really `bound`. Empty where no host can be told.
#[must_use]
pub fn advertised(config: &Config, bound: Option<SocketAddr>) -> Vec<String> {
    if let Some(hosts) = &config.hosts.advertise {
        return hosts.iter().filter(|host| !host.is_wildcard()).map(ToString::to_string).collect();
    }
    let Some(listen) = config.device.listen.as_ref().filter(|listen| !listen.is_wildcard()) else { return Vec::new() };
    match bound.map_or(listen.port(), |bound| bound.port()) {
        0 => Vec::new(),
        port => vec![format!("{}:{port}", listen.host())],
    }
}

#[cfg(test)]
mod tests;
