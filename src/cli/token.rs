//! `plex token`: a token for trying it out.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde_json::json;

use super::{
    Exit, Failure, Output, gateway,
    output::{rfc3339, shown},
};
use crate::{auth::sign::Signer, config::Config, model::Uid};

/// The longest life of a token: ten years.
const TTL_MAX: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What the token says.
#[derive(Debug, Clone, Args)]
pub(super) struct TokenArgs {
    /// Whom it names
    uid: String,
    /// How long it lasts, from 1s to 3650d
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = ttl)]
    ttl: Duration,
    /// The file with the HMAC secret [default: the first of auth.keys that holds one]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_secs(1)..=TTL_MAX;
    if allowed.contains(&ttl) { Ok(ttl) } else { Err("from 1s to 3650d is allowed".to_owned()) }
}

/// Prints a token, with the issuer and the audience of the configuration.
pub(super) fn token(args: &TokenArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let config = gateway::load(config)?;
    Uid::new(&args.uid).map_err(|error| Failure::new(Exit::Usage, format!("UID: {error}")))?;
    let signer = match &args.key {
        Some(file) => named("--key", file)?,
        None => configured(&config)?,
    };
    let (issuer, audience) = (config.auth.issuer.as_deref(), config.auth.audience.as_deref());
    let (token, end) = signer.token(&args.uid, args.ttl, issuer, audience);
    Output::stdout(args.json).answer(&json!({ "token": token, "expires_at": rfc3339(end) }), || &token)?;
    Ok(Exit::Done)
}

/// The HMAC secret of a file that a flag names.
pub(super) fn named(flag: &str, file: &Path) -> Result<Signer, Failure> {
    let refused = |problem: String| Failure::new(Exit::Usage, format!("{flag} {}", shown(&problem)));
    let signer = Signer::read(file).map_err(|error| refused(error.to_string()))?;
    signer.ok_or_else(|| refused(format!("{}: holds keys that only check; an HMAC secret is needed", file.display())))
}

fn configured(config: &Config) -> Result<Signer, Failure> {
    for file in &config.auth.keys {
        let signer = Signer::read(file);
        if let Some(signer) = signer.map_err(|error| {
            let problem = format!("auth.keys = {:?}: {}", error.path.display().to_string(), error.problem);
            Failure::new(Exit::Usage, problem)
        })? {
            return Ok(signer);
        }
    }
    let message = "auth.keys: no file with an HMAC secret; --key FILE names one";
    Err(Failure::new(Exit::Usage, message))
}
