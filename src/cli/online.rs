//! `plex online`: who is.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{
    Exit, Failure, Output,
    gateway::GatewayArgs,
    output::{Tone, connections, rfc3339, shown},
};
use crate::client::OnlineState;

#[derive(Debug, Clone, Args)]
pub(super) struct OnlineArgs {
    /// Whom to ask about, up to 10,000
    #[arg(required = true, value_name = "UID")]
    uids: Vec<String>,
    #[command(flatten)]
    gateway: GatewayArgs,
}

/// As `OnlineState` in protobuf's JSON; `since` is missing for who is offline.
#[derive(Debug, Serialize)]
struct OnlineLine<'a> {
    uid: &'a str,
    online: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    node: &'a str,
    connections: u32,
}

/// Asks. No is the answer where one of them isn't online.
pub(super) async fn online(args: OnlineArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let OnlineArgs { uids, gateway } = args;
    let states = gateway.connect(config)?.is_online(uids).await?;
    let mut output = Output::stdout(gateway.json);
    for state in &states {
        let line = line(state);
        let text = text(&line, |word, tone| output.toned(word, tone));
        output.answer(&line, || text)?;
    }
    Ok(if states.iter().all(|state| state.online.is_some()) { Exit::Done } else { Exit::No })
}

fn line(state: &OnlineState) -> OnlineLine<'_> {
    let OnlineState { uid, online, .. } = state;
    let offline = OnlineLine { uid, online: false, since: None, node: "", connections: 0 };
    online.as_ref().map_or(offline, |online| {
        let (node, connections) = (&*online.node, online.connections);
        OnlineLine { uid, online: true, since: Some(rfc3339(online.since)), node, connections }
    })
}

fn text(line: &OnlineLine<'_>, toned: impl FnOnce(&str, Tone) -> String) -> String {
    if !line.online {
        return format!("{} {}", shown(line.uid), toned("offline", Tone::Bad));
    }
    let since = line.since.as_deref().map_or_else(String::new, |since| format!(" since {since}"));
    let online = toned("online", Tone::Good);
    format!("{} {online}{since} at {}, {}", shown(line.uid), shown(line.node), connections(line.connections))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::client::Online;

    fn plain(word: &str, _: Tone) -> String {
        word.to_owned()
    }

    #[test]
    fn a_state_is_printed_for_people_and_for_scripts() {
        let since = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        let online = Some(Online { since, node: "n1".to_owned(), connections: 1 });
        let online = OnlineState { uid: "alice".to_owned(), online };
        assert_eq!(text(&line(&online), plain), "alice online since 1970-01-01T00:00:01.500Z at n1, 1 connection");
        assert_eq!(
            serde_json::to_string(&line(&online)).unwrap(),
            r#"{"uid":"alice","online":true,"since":"1970-01-01T00:00:01.500Z","node":"n1","connections":1}"#
        );
        let offline = OnlineState { uid: "bob".to_owned(), online: None };
        assert_eq!(text(&line(&offline), plain), "bob offline");
        assert_eq!(
            serde_json::to_string(&line(&offline)).unwrap(),
            r#"{"uid":"bob","online":false,"node":"","connections":0}"#
        );
    }
}
