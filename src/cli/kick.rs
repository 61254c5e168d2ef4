//! `plex kick`: closes the connections of a uid.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Exit, Failure, Output, gateway::GatewayArgs, output::connections};

#[derive(Debug, Clone, Args)]
pub(super) struct KickArgs {
    /// Whose connections: 1 to 255 bytes
    uid: String,
    /// Why, for the gateway's log
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// As `DisconnectResponse` in protobuf's JSON.
#[derive(Debug, Serialize)]
struct KickLine {
    connections: u32,
}

/// Disconnects. No is the answer where there was nobody to kick.
pub(super) async fn kick(args: KickArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let KickArgs { uid, reason, gateway } = args;
    let closed = gateway.connect(config)?.disconnect(&uid, &reason).await?;
    let line = KickLine { connections: closed };
    Output::stdout(gateway.json).answer(&line, || format!("{} closed", connections(closed)))?;
    Ok(if closed > 0 { Exit::Done } else { Exit::No })
}
