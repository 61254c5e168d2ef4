//! What `docs/` and `ops/` say is what is there: links, keys, metrics, alerts, bytes.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::Path,
    process::Command,
};

use common::{PATIENCE, TestDevice, TestServer, call, certs::Authority, process::Home};
use plex::{Config, config};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PAGES: [&str; 15] = [
    "docs/cluster.md",
    "docs/device-protocol.md",
    "docs/getting-started.md",
    "docs/metrics.md",
    "docs/migration.md",
    "docs/operations.md",
    "docs/presence.md",
    "examples/backends/README.md",
    "examples/backends/go/README.md",
    "examples/backends/java/README.md",
    "examples/backends/node/README.md",
    "examples/backends/python/README.md",
    "examples/devices/c/README.md",
    "examples/devices/python/README.md",
    "README.md",
];

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands between backticks on the lines of a page that aren't code.
fn quoted(page: &str) -> Vec<&str> {
    let text = page.split("```").step_by(2);
    text.flat_map(|text| text.lines()).flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The metrics that docs/metrics.md lists.
fn metrics() -> BTreeSet<String> {
    let page = read("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `plex_"));
    rows.map(|row| format!("plex_{}", row.split_once('`').expect("the name's end").0)).collect()
}

/// The names of metrics in a text: they begin with `plex_`. (A stream's name has CLUSTER in it.)
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("plex_") && !word.contains("CLUSTER")).collect()
}

/// Runs a checker where it is there, as it has to be in CI.
fn checked(program: &str, arguments: &[&str], good: impl Fn(&str) -> bool) {
    match Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            assert!(good(&text), "{program} {arguments:?}: {text}");
        }
        Err(error) if std::env::var("CI").as_deref() == Ok("true") => panic!("{program} is needed in CI: {error}"),
        // Past the capturing of a test that passes.
        Err(error) => drop(writeln!(io::stderr(), "skipped: what {program} checks, which can't be run: {error}")),
    }
}

#[test]
fn every_link_leads_somewhere() {
    for name in PAGES {
        let page = read(name);
        for link in page.split("](").skip(1).map(|rest| rest.split_once(')').expect("a whole link").0) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let there = if file.is_empty() { name.into() } else { Path::new(name).with_file_name(file) };
            let there = Path::new(env!("CARGO_MANIFEST_DIR")).join(there);
            assert!(there.exists(), "{name}: {link}");
            if !anchor.is_empty() {
                let linked = fs::read_to_string(&there).unwrap();
                let headings = linked.lines().filter(|line| line.starts_with('#'));
                let mut anchors = headings
                    .map(|line| line.trim_matches(['#', ' ']).to_lowercase().replace(' ', "-").replace(',', ""));
                assert!(anchors.any(|there| there == anchor), "{name}: {link}");
            }
        }
    }
}

#[test]
fn every_key_that_a_page_names_is_one() {
    let mut keys = BTreeSet::new();
    let mut section = String::new();
    for line in config::print(&Config::default()).lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some(key) = line.strip_prefix("# ").and_then(|line| line.split_once(':')) {
            keys.insert(key.0.to_owned());
        } else if let Some((name, _)) = line.split_once(" = ") {
            keys.insert(format!("{section}{name}"));
        }
    }
    let sections: BTreeSet<_> = keys.iter().filter_map(|key| Some(key.split_once('.')?.0)).collect();
    let files = ["device.c", "device.py", "control.secret", "presence.*", "presence.go", "presence.js", "presence.py"];
    for name in PAGES {
        let page = read(name);
        for word in quoted(&page) {
            let key = word.split([' ', '=']).next().expect("the first part");
            let named = key.split_once('.').is_some_and(|(section, _)| sections.contains(section));
            assert!(!named || files.contains(&key) || keys.contains(key), "{name}: {word}");
        }
    }
}

#[test]
fn every_metric_that_is_named_is_listed() {
    let listed = metrics();
    for name in PAGES.into_iter().chain(["ops/prometheus-alerts.yml"]) {
        for metric in names(&read(name)) {
            assert!(listed.contains(metric), "{name}: {metric}");
        }
    }
}

#[test]
fn every_alert_is_explained_and_no_other() {
    let (rules, page) = (read("ops/prometheus-alerts.yml"), read("docs/operations.md"));
    let alerts: BTreeSet<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let explained =
        page.lines().filter_map(|line| line.strip_prefix("| `Plex")).map(|row| row.split_once('`').unwrap().0);
    assert_eq!(alerts, explained.map(|name| format!("Plex{name}")).collect::<Vec<_>>().iter().map(|s| &**s).collect());
    checked("promtool", &["check", "rules", "ops/prometheus-alerts.yml"], |said| said.contains("SUCCESS"));
}

#[test]
fn the_unit_is_one() {
    // The binary isn't installed here, and nothing else may be said.
    checked("systemd-analyze", &["verify", "ops/plex.service"], |said| {
        let mut of_the_unit = said.lines().filter(|line| line.contains("plex.service"));
        of_the_unit.all(|line| line.contains("/usr/local/bin/plex is not executable"))
    });
}

#[tokio::test]
async fn a_configuration_that_a_page_shows_is_valid() {
    let home = Home::new();
    let page = read("docs/operations.md");
    let blocks: Vec<_> = page.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert_eq!(blocks.len(), 2);
    // The files that it names, in this home.
    home.write("orders-new.secret", "new");
    home.write("orders-old.secret", "old");
    for block in blocks {
        let file = home.write("plex.toml", &block.replace("\n   ", "\n").replace("/etc/plex/", ""));
        let checked = home.run(&["check", "--config", &file]).await;
        assert_eq!(checked.code, 0, "{checked:?}");
        assert!(checked.stdout.lines().any(|line| line == "# control.secrets: 2 set"), "{checked:?}");
    }
}

#[tokio::test]
async fn the_configurations_of_a_cluster_are_valid() {
    let (home, authority) = (Home::new(), Authority::new());
    fs::copy(authority.ca(), home.path("ca.pem")).unwrap();
    for name in ["orders.secret", "control.secret", "nats.password", "devices.key"] {
        home.write(name, "0123456789abcdef0123456789abcdef\n");
    }
    let page = read("docs/cluster.md");
    let shown = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a configuration");
    for text in [shown, &read("ops/nats/plex.toml")] {
        let file = home.write("plex.toml", &text.replace("\n   ", "\n").replace("/etc/plex/", ""));
        let checked = home.run(&["check", "--config", &file]).await;
        assert_eq!(checked.code, 0, "{checked:?}");
        assert!(checked.stdout.contains("urls = [\"tls://nats-1:4222\", \"tls://nats-2:4222\", "), "{checked:?}");
    }
}

/// The frames of the page, each with who sends it.
fn frames(page: &str) -> Vec<(bool, Vec<u8>)> {
    let block = page.split("```text\n").find(|block| block.starts_with("device →")).expect("the frames");
    let block = block.split_once("```").expect("their end").0;
    let bytes = |line: &str| {
        let hex = line.chars().skip(19).take(47).collect::<String>();
        let bytes = hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).expect("a byte"));
        bytes.collect::<Vec<u8>>()
    };
    let frames = block.split("\n\n");
    frames.map(|frame| (frame.starts_with("device"), frame.lines().flat_map(bytes).collect())).collect()
}

/// A frame without its length, and its push's number as 0.
fn told(frame: &[u8]) -> String {
    assert_eq!(frame[..4], u32::try_from(frame.len() - 4).unwrap().to_be_bytes());
    let message = String::from_utf8(frame[4..].to_vec()).unwrap();
    let seq = serde_json::from_str::<Value>(&message).unwrap()["seq"].as_i64();
    seq.map_or(message.clone(), |seq| message.replace(&seq.to_string(), "0"))
}

#[tokio::test]
async fn the_frames_of_the_page_are_those_of_the_gateway() {
    let server = TestServer::with(|config| config.node.name = "a".into()).await;
    let backend = server.backend().await;
    let mut device = TestDevice::connect(server.device()).await;
    let mut seq = 0;
    let mut asking = None;
    let mut newer = None;
    for (from_device, frame) in frames(&read("docs/device-protocol.md")) {
        if from_device {
            let message = told(&frame);
            let message = if seq == 0 { message } else { message.replace("\"seq\":0", &format!("\"seq\":{seq}")) };
            device.send(&message).await;
            continue;
        }
        // What makes the gateway send this.
        let text = told(&frame);
        if text.contains("/greeting") {
            let mut backend = backend.clone();
            let greeting = call("dave", "/greeting", "hello", PATIENCE);
            asking = Some(tokio::spawn(async move { backend.push(greeting).await.unwrap().into_inner().reply }));
        }
        if text.contains("replaced") {
            let mut other = TestDevice::connect(server.device()).await;
            other.auth_v2("dave").await;
            newer = Some(other);
        }
        let mut sent = vec![0; frame.len()];
        tokio::time::timeout(PATIENCE, device.stream.read_exact(&mut sent)).await.expect("a frame in time").unwrap();
        assert_eq!(told(&sent), text);
        if let Some(number) = serde_json::from_slice::<Value>(&sent[4..]).unwrap()["seq"].as_i64() {
            seq = number;
        }
    }
    assert_eq!(asking.expect("a push").await.unwrap(), "thanks");
    assert!(newer.is_some());
    device.expect_close().await;
    device.stream.shutdown().await.unwrap();
}
