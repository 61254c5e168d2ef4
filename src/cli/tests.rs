use std::{fs, net::TcpListener, path::Path};

use tempfile::TempDir;

use super::*;

/// The exit code of a command, and its complaint.
fn ends(arguments: &[&str]) -> (u8, String) {
    let arguments = [&["plex"], arguments].concat();
    match Cli::try_parse_from(arguments) {
        Err(error) => (if error.use_stderr() { 2 } else { 0 }, error.to_string()),
        Ok(cli) => match execute(cli) {
            Ok(exit) => (exit as u8, String::new()),
            Err(Failure { exit, message }) => (exit as u8, message),
        },
    }
}

/// A configuration with `lines` and its own data folder.
fn configured(lines: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plex.toml");
    fs::write(&file, format!("data_dir = {:?}\n{lines}", folder.path())).unwrap();
    (folder, path(&file))
}

fn path(path: &Path) -> String {
    path.to_str().expect("the test's folder has a plain name").to_owned()
}

/// An address where nobody listens any more.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn the_arguments_hold_together() {
    Cli::command().debug_assert();
}

#[test]
fn bad_usage_is_2_and_help_is_0() {
    for usage in [
        &["nonsense"][..],
        &[],
        &["push", "alice"],
        &["push"],
        &["push", "alice", "/a"],
        &["push", "alice", "/a", "b", "--stream"],
        &["push", "--stream", "--ack", "5s"],
        &["push", "--ack", "5s"],
        &["kick"],
        &["broadcast", "/a"],
        &["sessions", "alice", "bob"],
        &["nodes", "alice"],
        &["completions"],
        &["bench", "--mode", "nonsense"],
        &["bench", "--devices", "0"],
        &["bench", "--body", "35"],
        &["completions", "nonsense"],
        &["push", "alice", "/a", "b", "--ack", "5"],
        &["push", "alice", "/a", "b", "--nonsense"],
        &["online"],
        &["host", "--transport", "udp"],
        &["device"],
        &["serve", "--set"],
    ] {
        assert_eq!(ends(usage).0, 2, "{usage:?}");
    }
    for help in [&["--help"][..], &["push", "--help"], &["--version"]] {
        assert_eq!(ends(help).0, 0, "{help:?}");
    }
}

#[test]
fn the_configuration_is_a_flag_of_every_command() {
    let missing = "/nonexistent/plex.toml";
    for command in [
        &["serve"][..],
        &["check"],
        &["secret"],
        &["push", "alice", "/a", "b"],
        &["push", "--stream"],
        &["broadcast", "/a", "b"],
        &["online", "alice"],
        &["watch"],
        &["kick", "alice"],
        &["sessions"],
        &["nodes"],
        &["bench"],
        &["host"],
        &["info"],
        &["device", "--uid", "alice"],
    ] {
        let (exit, message) = ends(&[command, &["--config", missing]].concat());
        assert_eq!(exit, 2, "{command:?}");
        assert!(message.contains(missing), "{command:?}: {message}");
        assert_eq!(ends(&[&["--config", missing], command].concat()).0, 2, "{command:?}");
    }
}

#[test]
fn a_gateway_that_cannot_be_reached_is_4() {
    let address = nobody();
    let (_folder, config) = configured(&format!("[control]\nlisten = \"{address}\"\n[device]\nlisten = \"{address}\""));
    for command in [
        &["push", "alice", "/a", "b"][..],
        &["push", "alice", "/a", "b", "--ack", "1s", "--json"],
        &["online", "alice"],
        &["watch"],
        &["watch", "alice", "--json"],
        &["broadcast", "/a", "b"],
        &["kick", "alice"],
        &["sessions"],
        &["nodes"],
        &["bench"],
        &["host"],
        &["info"],
        &["device", "--uid", "alice"],
        &["device", "--uid", "alice", "--connect", &address],
    ] {
        let (exit, message) = ends(&[command, &["--config", &config]].concat());
        assert_eq!(exit, 4, "{command:?}: {message}");
        assert!(message.to_lowercase().contains("refused"), "{command:?}: {message}");
    }
}

#[test]
fn another_gateway_is_named_without_a_configuration() {
    let (folder, _) = configured("");
    let secret = path(&folder.path().join("the-secret"));
    fs::write(&secret, "s\n").unwrap();
    let url = format!("http://{}", nobody());
    assert_eq!(ends(&["info", "--control", &url, "--secret-file", &secret]).0, 4);
    assert_eq!(ends(&["info", "--control", "https:/127.0.0.1:1", "--secret-file", &secret]).0, 2);
    assert_eq!(ends(&["info", "--control", &url, "--secret-file", "/nonexistent/secret"]).0, 2);
    fs::write(&secret, "two\nlines\n").unwrap();
    let (exit, message) = ends(&["info", "--control", &url, "--secret-file", &secret]);
    assert_eq!(exit, 2);
    assert!(!message.contains("lines"), "{message}");
}

#[test]
fn a_secret_that_does_not_exist_yet_is_a_no() {
    let (_folder, config) = configured("");
    assert_eq!(ends(&["secret", "--config", &config]).0, 1);
    let (_folder, config) = configured("[control]\nsecrets = [\"s\"]");
    assert_eq!(ends(&["secret", "--config", &config]).0, 0);
}

#[test]
fn a_checked_configuration_is_0_and_a_bad_one_2() {
    let (_folder, config) = configured("");
    assert_eq!(ends(&["check", "--config", &config]).0, 0);
    let (exit, message) = ends(&["check", "--config", &config, "--set", "device.nonsense=1"]);
    assert_eq!(exit, 2);
    assert!(message.contains("device.nonsense"), "{message}");
}

#[test]
fn no_device_port_needs_an_address() {
    let (_folder, config) = configured("[device]\nlisten = \"\"");
    let (exit, message) = ends(&["device", "--uid", "alice", "--config", &config]);
    assert_eq!(exit, 2);
    assert!(message.contains("--connect"), "{message}");
}
