//! `plex broadcast`: one message to everyone.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Exit, Failure, Output, gateway::GatewayArgs, output::shown};
use crate::client::BroadcastOutcome;

#[derive(Debug, Clone, Args)]
pub(super) struct BroadcastArgs {
    /// What the message is; not one of the reserved /auth/…, /inner/…, /logic/send/msg, /heartbeat, /plex/…
    uri: String,
    /// Its content
    body: String,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// As `BroadcastResponse` in protobuf's JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BroadcastLine<'a> {
    sent: String,
    queue_full: String,
    silent_nodes: &'a [String],
}

/// Pushes to all. Done, whoever was there.
pub(super) async fn broadcast(args: BroadcastArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let BroadcastArgs { uri, body, gateway } = args;
    let told = gateway.connect(config)?.broadcast(&uri, &body).await?;
    Output::stdout(gateway.json).answer(&line(&told), || text(&told))?;
    Ok(Exit::Done)
}

fn line(told: &BroadcastOutcome) -> BroadcastLine<'_> {
    let BroadcastOutcome { sent, queue_full, silent_nodes, .. } = told;
    BroadcastLine { sent: sent.to_string(), queue_full: queue_full.to_string(), silent_nodes }
}

fn text(told: &BroadcastOutcome) -> String {
    let BroadcastOutcome { sent, queue_full, silent_nodes, .. } = told;
    let mut text = format!("sent to {sent} connection{}", if *sent == 1 { "" } else { "s" });
    if *queue_full > 0 {
        text += &format!(", {queue_full} had a full queue");
    }
    if !silent_nodes.is_empty() {
        text += &format!("; no word from {}", shown(&silent_nodes.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_broadcast_did_is_printed_for_people_and_for_scripts() {
        let told = BroadcastOutcome { sent: 1, ..Default::default() };
        assert_eq!(text(&told), "sent to 1 connection");
        let told = BroadcastOutcome { sent: 2, queue_full: 3, silent_nodes: vec!["n2".into(), "n3".into()] };
        assert_eq!(text(&told), "sent to 2 connections, 3 had a full queue; no word from n2, n3");
        assert_eq!(
            serde_json::to_string(&line(&told)).unwrap(),
            r#"{"sent":"2","queueFull":"3","silentNodes":["n2","n3"]}"#
        );
    }
}
