//! `plex sessions`: who is connected, and how it is with them.

use std::path::PathBuf;

use clap::Args;
use futures_util::StreamExt;
use serde::Serialize;

use super::{
    Exit, Failure, Output,
    gateway::GatewayArgs,
    output::{Tone, rfc3339, shown},
    table::{fitting, row},
};
use crate::client::Session;

#[derive(Debug, Clone, Args)]
pub(super) struct SessionsArgs {
    /// Whose [default: everyone's]
    uid: Option<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// As `Session` in protobuf's JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionLine<'a> {
    uid: &'a str,
    epoch: String,
    node: &'a str,
    remote_address: &'a str,
    connected_at: String,
    last_seen: String,
    queued_bytes: String,
    pushes_sent: String,
    pushes_dropped: String,
    dialect: u32,
}

/// The columns of the table, in the order of [`cells`].
const TITLES: [&str; 9] =
    ["UID", "NODE", "ADDRESS", "CONNECTED", "LAST SEEN", "QUEUED BYTES", "SENT", "DROPPED", "DIALECT"];

/// Sessions at a time: as many as the gateway puts into a message.
const PAGE: usize = 1_000;

/// Lists connections. No is the answer where a uid was named that has none.
pub(super) async fn sessions(args: SessionsArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let SessionsArgs { uid, gateway } = args;
    let sessions = gateway.connect(config)?.sessions(uid.as_deref().unwrap_or_default()).await?;
    // What has come together is shown together.
    let mut pages = sessions.ready_chunks(PAGE);
    let mut output = Output::stdout(gateway.json);
    // Of the first page: those of the others are seldom wider, and nobody waits for the last.
    let mut widths = None;
    let mut any = false;
    while let Some(page) = pages.next().await {
        let page = page.into_iter().collect::<Result<Vec<_>, _>>()?;
        let lines: Vec<_> = page.iter().map(line).collect();
        any |= !lines.is_empty();
        if output.is_terminal() && widths.is_none() && any {
            widths = Some(fitting(&TITLES, lines.iter().map(cells)));
            let titles = row(&TITLES.map(str::to_owned), widths.as_ref());
            output.line(&output.toned(&titles, Tone::Faint))?;
        }
        for line in &lines {
            output.answer(line, || row(&cells(line), widths.as_ref()))?;
        }
        if output.is_closed() {
            break;
        }
    }
    Ok(if any || uid.is_none() { Exit::Done } else { Exit::No })
}

fn line(session: &Session) -> SessionLine<'_> {
    SessionLine {
        uid: &session.uid,
        epoch: session.epoch.to_string(),
        node: &session.node,
        remote_address: &session.remote_address,
        connected_at: rfc3339(session.connected_at),
        last_seen: rfc3339(session.last_seen),
        queued_bytes: session.queued_bytes.to_string(),
        pushes_sent: session.pushes_sent.to_string(),
        pushes_dropped: session.pushes_dropped.to_string(),
        dialect: session.dialect,
    }
}

fn cells(line: &SessionLine<'_>) -> [String; 9] {
    [
        shown(line.uid).into_owned(),
        shown(line.node).into_owned(),
        shown(line.remote_address).into_owned(),
        line.connected_at.clone(),
        line.last_seen.clone(),
        line.queued_bytes.clone(),
        line.pushes_sent.clone(),
        line.pushes_dropped.clone(),
        line.dialect.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn a_session_is_printed_for_people_and_for_scripts() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let session = Session {
            uid: "alice".to_owned(),
            epoch: 7,
            node: "n1".to_owned(),
            remote_address: "[::1]:5".to_owned(),
            connected_at: at(1),
            last_seen: at(2),
            queued_bytes: 3,
            pushes_sent: 4,
            pushes_dropped: 5,
            dialect: 2,
        };
        let line = line(&session);
        assert_eq!(
            row(&cells(&line), None),
            "alice n1 [::1]:5 1970-01-01T00:00:01.000Z 1970-01-01T00:00:02.000Z 3 4 5 2"
        );
        assert_eq!(
            serde_json::to_string(&line).unwrap(),
            r#"{"uid":"alice","epoch":"7","node":"n1","remoteAddress":"[::1]:5","connectedAt":"1970-01-01T00:00:01.000Z","lastSeen":"1970-01-01T00:00:02.000Z","queuedBytes":"3","pushesSent":"4","pushesDropped":"5","dialect":2}"#
        );
        let widths = fitting(&TITLES, [cells(&line)]);
        let (titles, cells) = (row(&TITLES.map(str::to_owned), Some(&widths)), row(&cells(&line), Some(&widths)));
        assert_eq!(titles.find("ADDRESS"), cells.find("[::1]:5"), "{titles}\n{cells}");
    }
}
