//! The commands that speak with nobody: check, secret.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, Output, gateway, output};
use crate::{
    config::{self, Config, Sources},
    server::Server,
};

/// How a configuration is changed for one run.
#[derive(Debug, Clone, Args)]
pub(super) struct ConfigArgs {
    /// Set one key over the file and the environment, as device.heartbeat=30s; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    pub(super) fn load(self, file: Option<PathBuf>) -> Result<Config, Failure> {
        Ok(config::load(Sources::from_process(file, self.set))?)
    }
}

/// Prints the configuration as a file; warnings go to stderr. Reads the files that a start would read.
pub(super) fn check(config: &Config, output: &mut Output) -> Result<Exit, Failure> {
    Server::builder(config.clone()).build()?;
    for warning in config::validate(config)? {
        output::complain(&format!("warning: {warning}"));
    }
    output.line(&config::print(config).trim_end_matches('\n'))?;
    Ok(Exit::Done)
}

/// Prints the secret that the commands on this machine use.
pub(super) fn secret(config: &Config, output: &mut Output) -> Result<Exit, Failure> {
    let Some(secret) = gateway::local_secret(config)? else {
        let message = if config.control.secrets.is_empty() {
            "no secret yet: none is configured, and the gateway makes one up at its first start"
        } else {
            "no secret for the commands: none of control.secrets has all scopes"
        };
        return Err(Failure::new(Exit::No, message));
    };
    output.line(&secret)?;
    Ok(Exit::Done)
}
