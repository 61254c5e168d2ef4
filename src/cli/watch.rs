//! `plex watch`: who comes and goes.

use std::path::PathBuf;

use clap::Args;
use futures_util::TryStreamExt;
use serde::Serialize;

use super::{
    Exit, Failure, Output,
    gateway::GatewayArgs,
    output::{complain, rfc3339, shown},
};
use crate::{
    client::Update,
    model::{Millis, NodeName, OfflineReason, PresenceChange, PresenceEvent, Uid},
};

#[derive(Debug, Clone, Args)]
pub(super) struct WatchArgs {
    /// Whom to follow, up to 10,000 [default: everyone]
    #[arg(value_name = "UID")]
    uids: Vec<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// As `OnlineStatusEvent` in protobuf's JSON; LIVE and RESET have only `kind` and `at`.
#[derive(Debug, Default, Serialize)]
struct WatchLine<'a> {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
}

/// Follows presence for ever. Only a gateway that can't be reached the first time ends it, or one that refuses.
pub(super) async fn watch(args: WatchArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let WatchArgs { uids, gateway } = args;
    let mut follower = gateway.connect(config)?.follow(uids);
    let mut output = Output::stdout(gateway.json);
    let mut has_begun = false;
    while !output.is_closed() {
        let Some(update) = follower.try_next().await? else { break };
        match &update {
            Update::Interrupted { error, .. } if !has_begun => return Err(error.clone().into()),
            Update::Interrupted { error, retry_in } => {
                complain(&format!("{error}; trying again in {:.1} s", retry_in.as_secs_f64()));
            }
            _ => {}
        }
        if let Some(line) = line(&update, has_begun) {
            output.answer(&line, || text(&line))?;
        }
        has_begun |= matches!(update, Update::Begun { .. });
    }
    Ok(Exit::Done)
}

/// What to print of `update`. A stream that begins anew after another is a reset for who reads the lines.
fn line(update: &Update, has_begun: bool) -> Option<WatchLine<'_>> {
    let event = |kind, uid, online, epoch: &u64, at: &Millis, node, reason| WatchLine {
        kind,
        uid: Some(Uid::as_str(uid)),
        online: Some(online),
        at: Some(rfc3339((*at).into())),
        node: Some(NodeName::as_str(node)),
        reason,
        epoch: Some(epoch.to_string()),
    };
    let mark = |kind, at: &Millis| WatchLine { kind, at: Some(rfc3339((*at).into())), ..WatchLine::default() };
    let told = match update {
        Update::Begun { resumed: false } if has_begun => {
            return Some(WatchLine { kind: "RESET", ..WatchLine::default() });
        }
        Update::Begun { .. } | Update::Cursor(_) | Update::Interrupted { .. } => return None,
        Update::Event(told) => told,
    };
    Some(match told {
        PresenceEvent::Reset { since } => mark("RESET", since),
        PresenceEvent::Live { since } => mark("LIVE", since),
        PresenceEvent::Snapshot { uid, epoch, since, node } => event("SNAPSHOT", uid, true, epoch, since, node, None),
        PresenceEvent::Change(PresenceChange { uid, epoch, at, node, offline }) => {
            event("CHANGE", uid, offline.is_none(), epoch, at, node, offline.map(reason_name))
        }
    })
}

fn text(line: &WatchLine<'_>) -> String {
    let at = line.at.as_deref().unwrap_or_default();
    let (Some(uid), Some(node)) = (line.uid, line.node) else {
        return match line.kind {
            "LIVE" => format!("live: who hasn't been named is offline; known since {at}"),
            _ => "reset: what follows replaces what was told".to_owned(),
        };
    };
    let (uid, node) = (shown(uid), shown(node));
    match (line.kind, line.reason) {
        ("SNAPSHOT", _) => format!("{at} is online {uid} at {node}"),
        (_, None) => format!("{at} online {uid} at {node}"),
        (_, Some(reason)) => format!("{at} offline {uid} at {node}, {reason}"),
    }
}

/// As in protobuf, without the prefix.
fn reason_name(reason: OfflineReason) -> &'static str {
    match reason {
        OfflineReason::Closed => "CLOSED",
        OfflineReason::Timeout => "TIMEOUT",
        OfflineReason::Disconnected => "DISCONNECTED",
        OfflineReason::Draining => "DRAINING",
        OfflineReason::Expired => "EXPIRED",
        OfflineReason::Slow => "SLOW",
        OfflineReason::NodeLost => "NODE_LOST",
        OfflineReason::Protocol => "PROTOCOL",
        OfflineReason::Unknown => "UNSPECIFIED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn prints(update: &Update, people: &str, scripts: &str) {
        let line = line(update, true).unwrap();
        assert_eq!(text(&line), people);
        assert_eq!(serde_json::to_string(&line).unwrap(), scripts);
    }

    #[test]
    fn updates_are_printed_for_people_and_for_scripts() {
        let at = Millis(1_500);
        let (uid, node) = (Uid::new("alice").unwrap(), NodeName::new("n1"));
        let change = |offline| {
            let (uid, node) = (uid.clone(), node.clone());
            Update::Event(PresenceEvent::Change(PresenceChange { uid, epoch: 7, at, node, offline }))
        };
        prints(
            &change(Some(OfflineReason::NodeLost)),
            "1970-01-01T00:00:01.500Z offline alice at n1, NODE_LOST",
            r#"{"kind":"CHANGE","uid":"alice","online":false,"at":"1970-01-01T00:00:01.500Z","node":"n1","reason":"NODE_LOST","epoch":"7"}"#,
        );
        prints(
            &change(None),
            "1970-01-01T00:00:01.500Z online alice at n1",
            r#"{"kind":"CHANGE","uid":"alice","online":true,"at":"1970-01-01T00:00:01.500Z","node":"n1","epoch":"7"}"#,
        );
        prints(
            &Update::Event(PresenceEvent::Snapshot { uid: uid.clone(), epoch: 7, since: at, node: node.clone() }),
            "1970-01-01T00:00:01.500Z is online alice at n1",
            r#"{"kind":"SNAPSHOT","uid":"alice","online":true,"at":"1970-01-01T00:00:01.500Z","node":"n1","epoch":"7"}"#,
        );
        prints(
            &Update::Event(PresenceEvent::Live { since: at }),
            "live: who hasn't been named is offline; known since 1970-01-01T00:00:01.500Z",
            r#"{"kind":"LIVE","at":"1970-01-01T00:00:01.500Z"}"#,
        );
        prints(
            &Update::Event(PresenceEvent::Reset { since: at }),
            "reset: what follows replaces what was told",
            r#"{"kind":"RESET","at":"1970-01-01T00:00:01.500Z"}"#,
        );
    }

    #[test]
    fn a_stream_begun_anew_is_a_reset_unless_it_is_the_first() {
        prints(&Update::Begun { resumed: false }, "reset: what follows replaces what was told", r#"{"kind":"RESET"}"#);
        assert!(line(&Update::Begun { resumed: false }, false).is_none());
        assert!(line(&Update::Begun { resumed: true }, true).is_none());
    }
}
