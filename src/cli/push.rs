//! `plex push`: one message to one uid, or many from standard input.

mod stream;

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;

use super::{
    Exit, Failure, Output,
    gateway::GatewayArgs,
    output::{Tone, connections, shown},
};
use crate::client::{PushOutcome, PushStatus};

#[derive(Debug, Clone, Args)]
pub(super) struct PushArgs {
    #[command(flatten)]
    one: Option<OnePush>,
    /// Push what comes on standard input, a JSON object to a line, and print a result for each likewise
    ///
    /// {"uid":"…","uri":"…","body":"…"}, with "ackTimeout":"5s" and "id":"7" where wanted. Without an id the number of the
    /// line is it. Results of pushes with an ackTimeout come when they are known, others in order.
    #[arg(long, conflicts_with = "OnePush", required_unless_present = "uid")]
    stream: bool,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// One message.
#[derive(Debug, Clone, Args)]
struct OnePush {
    /// Whose device: 1 to 255 bytes
    #[arg(required = false)]
    uid: String,
    /// What the message is; not one of the reserved /auth/…, /inner/…, /logic/send/msg, /heartbeat, /plex/…
    #[arg(required = false, requires = "body")]
    uri: String,
    /// Its content
    #[arg(required = false)]
    body: String,
    /// Wait so long for the device's answer and print it: 5s, 500ms, at most 5m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ack: Option<Duration>,
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
    let PushArgs { one, stream: _, gateway } = args;
    let control = gateway.connect(config)?;
    let Some(OnePush { uid, uri, body, ack }) = one else {
        return stream::push_lines(&control, tokio::io::stdin(), &mut Output::stdout(true)).await;
    };
    let mut output = Output::stdout(gateway.json);
    let outcome = match ack {
        Some(ack_timeout) => control.ask(&uid, &uri, &body, ack_timeout).await?,
        None => control.push(&uid, &uri, &body).await?,
    };
    let text = text(&outcome, |status| output.toned(status, tone(&outcome)));
    output.answer(&line(&outcome), || text)?;
    Ok(exit(&outcome, ack.is_some()))
}

fn exit(outcome: &PushOutcome, asked: bool) -> Exit {
    let wanted = if asked { PushStatus::Acked } else { PushStatus::Sent };
    if outcome.status == wanted { Exit::Done } else { Exit::No }
}

fn line(outcome: &PushOutcome) -> PushLine<'_> {
    let PushOutcome { status, seq, connections, reply, .. } = outcome;
    PushLine { status: status.name(), seq: seq.to_string(), connections: *connections, reply }
}

fn tone(outcome: &PushOutcome) -> Tone {
    let good = matches!(outcome.status, PushStatus::Sent | PushStatus::Acked);
    if good { Tone::Good } else { Tone::Bad }
}

fn text(outcome: &PushOutcome, toned: impl FnOnce(&'static str) -> String) -> String {
    let mut text = toned(outcome.status.name());
    if outcome.connections > 0 {
        text += &format!(", seq {}, {}", outcome.seq, connections(outcome.connections));
    }
    if !outcome.reply.is_empty() {
        text += &format!(": {}", shown(&outcome.reply));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    fn outcome(status: proto::PushStatus) -> PushOutcome {
        proto::PushResponse { status: status.into(), ..Default::default() }.into()
    }

    #[test]
    fn an_outcome_is_printed_for_people_and_for_scripts() {
        let mut outcome = outcome(proto::PushStatus::Acked);
        (outcome.seq, outcome.connections, outcome.reply) = (9_007_199_254_740_991, 2, "fine\n".to_owned());
        assert_eq!(text(&outcome, str::to_owned), "ACKED, seq 9007199254740991, 2 connections: fine\\n");
        assert_eq!(
            serde_json::to_string(&line(&outcome)).unwrap(),
            r#"{"status":"ACKED","seq":"9007199254740991","connections":2,"reply":"fine\n"}"#
        );
    }

    #[test]
    fn only_what_was_asked_for_is_a_yes() {
        assert_eq!(exit(&outcome(proto::PushStatus::Sent), false), Exit::Done);
        assert_eq!(exit(&outcome(proto::PushStatus::Acked), true), Exit::Done);
        for status in [
            proto::PushStatus::Sent,
            proto::PushStatus::Nacked,
            proto::PushStatus::AckTimeout,
            proto::PushStatus::Unknown,
        ] {
            assert_eq!(exit(&outcome(status), true), Exit::No);
        }
        for status in [proto::PushStatus::Offline, proto::PushStatus::QueueFull, proto::PushStatus::Unreachable] {
            assert_eq!(exit(&outcome(status), false), Exit::No);
        }
    }
}
