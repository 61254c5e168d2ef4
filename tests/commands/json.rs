//! What `--json` prints is documented in docs/commands.md and stays as it is: snapshots of every command.

use serde_json::Value;

use super::{Ground, TestDevice};

/// The lines with what differs from run to run replaced: numbers of the log and of pushes, times, ports.
fn stable(text: &str) -> String {
    fn replace(name: &str, value: &mut Value) {
        match value {
            Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| replace(name, value)),
            Value::Array(values) => values.iter_mut().for_each(|value| replace(name, value)),
            Value::String(text) => match name {
                "seq" | "epoch" if text.parse::<u64>().is_ok_and(|number| number > 1_000_000) => *text = "N".to_owned(),
                "since" | "at" | "connectedAt" | "lastSeen" | "knownSince" if text.ends_with('Z') => {
                    *text = "TIME".to_owned();
                }
                "host" | "remoteAddress" | "address" => *text = "ADDRESS".to_owned(),
                "version" => *text = "VERSION".to_owned(),
                _ => {}
            },
            _ => {}
        }
    }
    let lines = text.lines().map(|line| {
        // Fields are written in the order of their names, here only.
        let mut value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        replace("", &mut value);
        value.to_string()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn the_json_of_every_command_stays_as_it_is() {
    let ground = Ground::new().await;
    let mut alice = TestDevice::login(ground.server.device(), "alice").await;
    let run = async |arguments: &[&str]| stable(&ground.run(&[arguments, &["--json"]].concat()).await.stdout);

    insta::assert_snapshot!(run(&["push", "alice", "/x", "b"]).await, @r#"{"connections":1,"reply":"","seq":"N","status":"SENT"}"#);
    insta::assert_snapshot!(run(&["push", "bob", "/x", "b"]).await, @r#"{"connections":0,"reply":"","seq":"0","status":"OFFLINE"}"#);
    let fed = ground.feed(&["push", "--stream"], r#"{"uid":"bob","uri":"/x"}"#).await;
    insta::assert_snapshot!(stable(&fed.stdout), @r#"{"connections":0,"error":"","id":"1","reply":"","seq":"0","status":"OFFLINE"}"#);
    let fed = ground.feed(&["push", "--stream"], "{}").await;
    insta::assert_snapshot!(stable(&fed.stdout), @r#"{"connections":0,"error":"line 1: missing field `uid` at line 1 column 2","id":"1","reply":"","seq":"0","status":"INVALID"}"#);
    insta::assert_snapshot!(run(&["broadcast", "/x", "b"]).await, @r#"{"queueFull":"0","sent":"1","silentNodes":[]}"#);
    insta::assert_snapshot!(run(&["online", "alice", "bob"]).await, @r#"
    {"connections":1,"node":"node-1","online":true,"since":"TIME","uid":"alice"}
    {"connections":0,"node":"","online":false,"uid":"bob"}
    "#);
    insta::assert_snapshot!(run(&["sessions", "alice"]).await, @r#"{"connectedAt":"TIME","dialect":2,"epoch":"N","lastSeen":"TIME","node":"node-1","pushesDropped":"0","pushesSent":"2","queuedBytes":"0","remoteAddress":"ADDRESS","uid":"alice"}"#);
    insta::assert_snapshot!(run(&["nodes"]).await, @r#"{"address":"ADDRESS","connections":"1","lag_ms":0,"name":"node-1","since":"TIME","state":"ready","version":"VERSION"}"#);
    insta::assert_snapshot!(run(&["host"]).await, @r#"{"host":"ADDRESS","node":"node-1"}"#);
    insta::assert_snapshot!(run(&["info"]).await, @r#"{"connections":"1","features":[],"frameBytesMax":65536,"knownSince":"TIME","node":"node-1","uids":"1","version":"VERSION"}"#);

    let mut watch = ground.spawn(&["watch", "--json"]);
    let mut told = vec![watch.stdout.next().await, watch.stdout.next().await];
    insta::assert_snapshot!(run(&["kick", "alice"]).await, @r#"{"connections":1}"#);
    told.push(watch.stdout.next().await);
    insta::assert_snapshot!(stable(&told.join("\n")), @r#"
    {"at":"TIME","epoch":"N","kind":"SNAPSHOT","node":"node-1","online":true,"uid":"alice"}
    {"at":"TIME","kind":"LIVE"}
    {"at":"TIME","epoch":"N","kind":"CHANGE","node":"node-1","online":false,"reason":"DISCONNECTED","uid":"alice"}
    "#);
    while alice.maybe_next().await.is_some() {}

    let address = ground.server.device().to_string();
    let mut device = ground.home.spawn(&["device", "--uid", "carol", "--connect", &address, "--json"]);
    let mut told = vec![device.stdout.next().await];
    run(&["push", "carol", "/x", "b"]).await;
    told.push(device.stdout.next().await);
    run(&["kick", "carol"]).await;
    told.push(device.stdout.next().await);
    insta::assert_snapshot!(stable(&told.join("\n")), @r#"
    {"address":"ADDRESS","dialect":2,"event":"connected","node":"node-1"}
    {"body":"b","event":"push","seq":"N","uri":"/x"}
    {"afterMs":"0","event":"kick","reason":"disconnected","reconnect":false}
    "#);
}
