//! `plex host` and `plex info`: where to connect, and what is there.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{
    Exit, Failure, Output,
    gateway::GatewayArgs,
    output::{rfc3339, shown},
};
use crate::{
    client::{CallError, Host, Info},
    model::Transport,
};

#[derive(Debug, Clone, Args)]
pub(super) struct HostArgs {
    /// By which transport the device will connect
    #[arg(long, value_name = "TRANSPORT", value_parser = ["tcp", "tls"], default_value = "tcp")]
    transport: String,
    #[command(flatten)]
    gateway: GatewayArgs,
}

#[derive(Debug, Clone, Args)]
pub(super) struct InfoArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// As `GetHostResponse` in protobuf's JSON.
#[derive(Debug, Serialize)]
struct HostLine<'a> {
    host: &'a str,
    node: &'a str,
}

/// As `GetInfoResponse` in protobuf's JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InfoLine<'a> {
    version: &'a str,
    node: &'a str,
    features: &'a [String],
    frame_bytes_max: u32,
    uids: String,
    connections: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    known_since: Option<String>,
}

/// Asks for a host. No is the answer where no node takes devices.
pub(super) async fn host(args: HostArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let HostArgs { transport, gateway } = args;
    let transport = if transport == "tls" { Transport::Tls } else { Transport::Tcp };
    let Host { address, node, .. } = match gateway.connect(config)?.host(transport).await {
        Ok(answer) => answer,
        Err(error @ CallError::Unavailable(_)) => return Err(Failure::new(Exit::No, error.to_string())),
        Err(error) => return Err(error.into()),
    };
    Output::stdout(gateway.json).answer(&HostLine { host: &address, node: &node }, || shown(&address))?;
    Ok(Exit::Done)
}

/// Asks what the node is.
pub(super) async fn info(args: InfoArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let answer = args.gateway.connect(config)?.info().await?;
    let line = line(&answer);
    Output::stdout(args.gateway.json).answer(&line, || text(&line))?;
    Ok(Exit::Done)
}

fn line(answer: &Info) -> InfoLine<'_> {
    let Info { version, node, features, frame_bytes_max, uids, connections, known_since } = answer;
    InfoLine {
        version,
        node,
        features,
        frame_bytes_max: *frame_bytes_max,
        uids: uids.to_string(),
        connections: connections.to_string(),
        known_since: known_since.map(rfc3339),
    }
}

fn text(line: &InfoLine<'_>) -> String {
    let features = if line.features.is_empty() { "none".to_owned() } else { line.features.join(", ") };
    let known_since = line.known_since.as_deref().unwrap_or("not yet");
    [
        format!("version      {}", shown(line.version)),
        format!("node         {}", shown(line.node)),
        format!("features     {}", shown(&features)),
        format!("frame        at most {} bytes", line.frame_bytes_max),
        format!("uids         {} online", line.uids),
        format!("connections  {} at this node", line.connections),
        format!("known since  {known_since}"),
    ]
    .join("\n")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn info_is_printed_for_people_and_for_scripts() {
        let mut answer = Info {
            version: "0.1.0".to_owned(),
            node: "n1".to_owned(),
            frame_bytes_max: 65_536,
            uids: 3,
            connections: 4,
            ..Default::default()
        };
        assert_eq!(
            serde_json::to_string(&line(&answer)).unwrap(),
            r#"{"version":"0.1.0","node":"n1","features":[],"frameBytesMax":65536,"uids":"3","connections":"4"}"#
        );
        answer.known_since = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        let text = text(&line(&answer));
        assert!(text.contains("uids         3 online\n"), "{text}");
        assert!(text.ends_with("known since  1970-01-01T00:00:01.000Z"), "{text}");
    }
}
