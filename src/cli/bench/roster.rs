//! Who the devices are, and what they authenticate with.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    time::Duration,
};

use super::BenchArgs;
use crate::{
    auth::sign::Signer,
    cli::{Exit, Failure, gateway, token},
};

/// Longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(7 * 86_400);

/// The uids and credentials of a run's devices, which have numbers from 0 on.
pub(super) enum Roster {
    /// A prefix and the number; the credential is the uid itself, or a token for it.
    Numbered { prefix: String, tokens: Option<Tokens> },
    /// Uid and credential of each.
    Listed(Vec<(String, String)>),
}

/// What makes tokens.
pub(super) struct Tokens {
    signer: Signer,
    issuer: Option<String>,
    audience: Option<String>,
}

impl Roster {
    /// As the arguments say. Reads the files.
    pub(super) fn of(args: &BenchArgs, config: Option<PathBuf>) -> Result<Self, Failure> {
        if let Some(file) = &args.credentials {
            return Self::listed(file, args.devices);
        }
        let prefix = args.prefix.clone().unwrap_or_else(|| format!("bench-{}-", std::process::id()));
        let tokens = args.token_key.as_deref().map(|file| Tokens::of(file, config)).transpose()?;
        Ok(Self::Numbered { prefix, tokens })
    }

    fn listed(file: &Path, devices: u32) -> Result<Self, Failure> {
        let failure =
            |problem: String| Failure::new(Exit::Usage, format!("--credentials {}: {problem}", file.display()));
        let opened = File::open(file).map_err(|error| failure(error.to_string()))?;
        let mut listed = Vec::new();
        for (line, number) in BufReader::new(opened).lines().zip(1..).take(devices as usize) {
            let line = line.map_err(|error| failure(format!("line {number}: {error}")))?;
            let (uid, credential) = line
                .split_once(char::is_whitespace)
                .map(|(uid, credential)| (uid, credential.trim()))
                .filter(|(uid, credential)| !uid.is_empty() && !credential.is_empty())
                .ok_or_else(|| failure(format!("line {number} isn't a uid, white space and a credential")))?;
            listed.push((uid.to_owned(), credential.to_owned()));
        }
        if listed.len() < devices as usize {
            return Err(failure(format!("has {} lines, for {devices} devices", listed.len())));
        }
        Ok(Self::Listed(listed))
    }

    /// The uid of a device.
    pub(super) fn uid(&self, number: u32) -> String {
        match self {
            Self::Numbered { prefix, .. } => format!("{prefix}{number:06}"),
            Self::Listed(listed) => listed[number as usize].0.clone(),
        }
    }

    /// What a device authenticates with.
    pub(super) fn credential(&self, number: u32) -> String {
        match self {
            Self::Numbered { tokens: None, .. } => self.uid(number),
            Self::Numbered { tokens: Some(tokens), .. } => tokens.sign(&self.uid(number)),
            Self::Listed(listed) => listed[number as usize].1.clone(),
        }
    }
}

impl Tokens {
    fn of(file: &Path, config: Option<PathBuf>) -> Result<Self, Failure> {
        let signer = token::named("--token-key", file)?;
        let auth = gateway::load(config)?.auth;
        Ok(Self { signer, issuer: auth.issuer, audience: auth.audience })
    }

    fn sign(&self, uid: &str) -> String {
        self.signer.token(uid, TOKEN_TTL, self.issuer.as_deref(), self.audience.as_deref()).0
    }
}
