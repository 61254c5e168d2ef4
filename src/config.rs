//! What the gateway can be told: one file, over it the environment, over it `--set`.
//!
//! | Part | What is there |
//! | --- | --- |
//! | [`Config`] and its sections | every key once: name, type, default, limits (`sections.rs`) |
//! | [`load`] | the sources, laid one over the other (`load.rs`) |
//! | [`validate`], [`advertised`] | what keys mean together (`check.rs`) |
//! | [`print()`] | the effective configuration, as a file (`print.rs`) |
//!
//! A key's values are in `kind.rs`: how each is read, written and described in an error.

mod address;
mod check;
mod error;
mod kind;
mod load;
mod print;
mod secret;
mod sections;

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

pub use self::{
    address::{AddressError, EndpointUrl, HostAddress, ListenAddress, NatsUrl, Network},
    check::{Warning, advertised, advertised_tls, validate},
    error::{ConfigError, Origin},
    load::{Sources, load},
    print::print,
    secret::{ControlSecret, NamedScopes, Scopes, Secret, SecretError, SecretSource},
    sections::{
        AuthConfig, AuthMode, ClusterConfig, ControlConfig, DeviceConfig, DrainConfig, HostsConfig, HttpConfig,
        LogConfig, LogFormat, LogLevel, LogStorage, MetricsConfig, NodeConfig, PresenceConfig, ProxyProtocol,
    },
};

/// All that can be configured. The default is what nothing configured means: everything on loopback, devices trusted by
/// their word, a control secret made up at the first start. Its `Debug` masks secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Where what outlives a restart is kept; relative to where the process was started. None: see [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// The node itself.
    pub node: NodeConfig,
    /// What is logged.
    pub log: LogConfig,
    /// Devices and their connections.
    pub device: DeviceConfig,
    /// The control plane.
    pub control: ControlConfig,
    /// Host and health.
    pub http: HttpConfig,
    /// Metrics.
    pub metrics: MetricsConfig,
    /// Where devices are sent.
    pub hosts: HostsConfig,
    /// Who a device is.
    pub auth: AuthConfig,
    /// Presence.
    pub presence: PresenceConfig,
    /// Several nodes that act as one.
    pub cluster: ClusterConfig,
    /// The end.
    pub drain: DrainConfig,
}

impl Config {
    /// Where what outlives a restart is kept: as configured, else `$XDG_STATE_HOME/plex`, else `~/.local/state/plex`. Where
    /// neither variable holds an absolute path (the XDG specification lets others not count): `plex-state` in the folder
    /// where the process was started, as a service without a home has nothing better.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        match &self.data_dir {
            Some(folder) => folder.clone(),
            None => default_data_dir(env::var_os("XDG_STATE_HOME"), env::var_os("HOME")),
        }
    }
}

fn default_data_dir(state_home: Option<OsString>, home: Option<OsString>) -> PathBuf {
    let absolute = |path: Option<OsString>| path.map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(state_home)
        .or_else(|| absolute(home).map(|home| home.join(".local/state")))
        .map_or_else(|| Path::new("plex-state").to_owned(), |state| state.join("plex"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_folder_follows_the_state_home_then_the_home() {
        let folder = |state: Option<&str>, home: Option<&str>| {
            default_data_dir(state.map(OsString::from), home.map(OsString::from)).display().to_string()
        };
        assert_eq!(folder(Some("/s"), Some("/h")), "/s/plex");
        assert_eq!(folder(None, Some("/h")), "/h/.local/state/plex");
        assert_eq!(folder(Some(""), Some("/h")), "/h/.local/state/plex");
        assert_eq!(folder(Some("relative"), Some("/h")), "/h/.local/state/plex");
        assert_eq!(folder(None, None), "plex-state");
        assert_eq!(folder(None, Some("")), "plex-state");
    }

    #[test]
    fn a_configured_data_folder_is_taken_as_it_stands() {
        let config = Config { data_dir: Some("/d".into()), ..Config::default() };
        assert_eq!(config.data_dir(), Path::new("/d"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut config = Config::default();
        config.control.secrets = vec![Secret::new("hush-hush").unwrap().into()];
        let shown = format!("{config:?}");
        assert!(shown.contains("MASKED") && !shown.contains("hush"), "{shown}");
    }
}
