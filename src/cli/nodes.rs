//! `plex nodes`: which nodes there are, and how it is with them.

use std::{path::PathBuf, time::SystemTime};

use clap::Args;
use serde::Serialize;

use super::{
    Exit, Failure, Output,
    gateway::GatewayArgs,
    output::{Tone, rfc3339, shown},
    table,
};
use crate::proto::{Node, NodeState};

#[derive(Debug, Clone, Args)]
pub(super) struct NodesArgs {
    #[command(flatten)]
    gateway: GatewayArgs,
}

#[derive(Debug, Serialize)]
struct NodeLine<'a> {
    name: &'a str,
    address: &'a str,
    version: &'a str,
    connections: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    lag_ms: u32,
}

/// The columns of the table, in the order of [`cells`].
const TITLES: [&str; 7] = ["NODE", "STATE", "ADDRESS", "CONNECTIONS", "SINCE", "LAG MS", "VERSION"];

/// Lists the nodes.
pub(super) async fn nodes(args: NodesArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let nodes = args.gateway.connect(config)?.nodes().await?;
    let mut output = Output::stdout(args.gateway.json);
    let lines: Vec<_> = nodes.iter().map(line).collect();
    let widths = output.is_terminal().then(|| table::fitting(&TITLES, lines.iter().map(cells)));
    if widths.is_some() {
        let titles = table::row(&TITLES.map(str::to_owned), widths.as_ref());
        output.line(&output.toned(&titles, Tone::Faint))?;
    }
    for line in &lines {
        output.answer(line, || table::row(&cells(line), widths.as_ref()))?;
    }
    Ok(Exit::Done)
}

fn line(node: &Node) -> NodeLine<'_> {
    NodeLine {
        name: &node.name,
        address: &node.address,
        version: &node.version,
        connections: node.connections.to_string(),
        state: state(node.state),
        since: node.since.and_then(|since| SystemTime::try_from(since).ok()).map(rfc3339),
        lag_ms: node.lag_ms,
    }
}

/// In one word; of a newer gateway's state its number.
fn state(state: i32) -> String {
    match NodeState::try_from(state) {
        Ok(state) => state.as_str_name().trim_start_matches("NODE_STATE_").to_lowercase(),
        Err(_) => state.to_string(),
    }
}

fn cells(line: &NodeLine<'_>) -> [String; 7] {
    let known = |text: &str| if text.is_empty() { "-".to_owned() } else { shown(text).into_owned() };
    [
        known(line.name),
        line.state.clone(),
        known(line.address),
        line.connections.clone(),
        known(line.since.as_deref().unwrap_or_default()),
        line.lag_ms.to_string(),
        known(line.version),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_printed_for_people_and_for_scripts() {
        let mut node = Node {
            name: "n1".to_owned(),
            address: "a.example:9578".to_owned(),
            version: "0.1.0".to_owned(),
            connections: 3,
            state: NodeState::Draining.into(),
            since: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            lag_ms: 4,
        };
        assert_eq!(
            table::row(&cells(&line(&node)), None),
            "n1 draining a.example:9578 3 1970-01-01T00:00:01.000Z 4 0.1.0"
        );
        assert_eq!(
            serde_json::to_string(&line(&node)).unwrap(),
            r#"{"name":"n1","address":"a.example:9578","version":"0.1.0","connections":"3","state":"draining","since":"1970-01-01T00:00:01.000Z","lag_ms":4}"#
        );
        (node.address, node.version, node.state, node.since) = (String::new(), String::new(), 99, None);
        assert_eq!(table::row(&cells(&line(&node)), None), "n1 99 - 3 - 4 -");
    }
}
