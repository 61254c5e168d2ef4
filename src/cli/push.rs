//! `plex push`: one message to one uid.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;

use super::{
    Exit, Failure, Output,
    gateway::GatewayArgs,
    output::{connections, shown},
};
use crate::proto::{PushResponse, PushStatus};

#[derive(Debug, Clone, Args)]
pub(super) struct PushArgs {
    /// Whose device: 1 to 255 bytes
    uid: String,
    /// What the message is; not one of the reserved /auth/…, /inner/…, /logic/send/msg, /heartbeat, /plex/…
    uri: String,
    /// Its content
    body: String,
    /// Wait so long for the device's answer and print it: 5s, 500ms, at most 5m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ack: Option<Duration>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// As `PushResponse` in protobuf's JSON, without what a single push doesn't have.
#[derive(Debug, Serialize)]
struct PushLine<'a> {
    status: &'static str,
    seq: String,
    connections: u32,
    reply: &'a str,
}

/// Pushes. No is the answer where it isn't SENT; with `--ack`, where it isn't ACKED.
pub(super) async fn push(args: PushArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let PushArgs { uid, uri, body, ack, gateway } = args;
    let control = gateway.connect(config)?;
    let outcome = match ack {
        Some(ack_timeout) => control.ask(&uid, &uri, &body, ack_timeout).await?,
        None => control.push(&uid, &uri, &body).await?,
    };
    Output::stdout(gateway.json).answer(&line(&outcome), || text(&outcome))?;
    Ok(exit(&outcome, ack.is_some()))
}

fn exit(outcome: &PushResponse, asked: bool) -> Exit {
    let wanted = if asked { PushStatus::Acked } else { PushStatus::Sent };
    if outcome.status == i32::from(wanted) { Exit::Done } else { Exit::No }
}

fn line(outcome: &PushResponse) -> PushLine<'_> {
    let PushResponse { seq, connections, reply, .. } = outcome;
    PushLine { status: status(outcome), seq: seq.to_string(), connections: *connections, reply }
}

fn text(outcome: &PushResponse) -> String {
    let mut text = status(outcome).to_owned();
    if outcome.connections > 0 {
        text += &format!(", seq {}, {}", outcome.seq, connections(outcome.connections));
    }
    if !outcome.reply.is_empty() {
        text += &format!(": {}", shown(&outcome.reply));
    }
    text
}

/// The status without its prefix; one that this program doesn't know is unknown.
fn status(outcome: &PushResponse) -> &'static str {
    let status = PushStatus::try_from(outcome.status).unwrap_or(PushStatus::Unknown);
    let name = status.as_str_name();
    name.strip_prefix("PUSH_STATUS_").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: PushStatus) -> PushResponse {
        PushResponse { status: status.into(), ..Default::default() }
    }

    #[test]
    fn an_outcome_is_printed_for_people_and_for_scripts() {
        let outcome = PushResponse {
            seq: 9_007_199_254_740_991,
            connections: 2,
            reply: "fine\n".to_owned(),
            ..outcome(PushStatus::Acked)
        };
        assert_eq!(text(&outcome), "ACKED, seq 9007199254740991, 2 connections: fine\\n");
        assert_eq!(
            serde_json::to_string(&line(&outcome)).unwrap(),
            r#"{"status":"ACKED","seq":"9007199254740991","connections":2,"reply":"fine\n"}"#
        );
        assert_eq!(text(&PushResponse::default()), "UNSPECIFIED");
    }

    #[test]
    fn an_unknown_status_is_unknown() {
        assert_eq!(text(&PushResponse { status: 77, ..Default::default() }), "UNKNOWN");
    }

    #[test]
    fn only_what_was_asked_for_is_a_yes() {
        assert_eq!(exit(&outcome(PushStatus::Sent), false), Exit::Done);
        assert_eq!(exit(&outcome(PushStatus::Acked), true), Exit::Done);
        for status in [PushStatus::Sent, PushStatus::Nacked, PushStatus::AckTimeout, PushStatus::Unknown] {
            assert_eq!(exit(&outcome(status), true), Exit::No);
        }
        for status in [PushStatus::Offline, PushStatus::QueueFull, PushStatus::Unreachable] {
            assert_eq!(exit(&outcome(status), false), Exit::No);
        }
    }
}
