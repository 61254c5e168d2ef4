//! `plex kick`, `sessions`, `nodes`, `broadcast`, and what is made for shells and readers.

use std::fs;

use super::{Ground, TestDevice, common::process::Home};

#[tokio::test]
async fn kick_closes_the_connections_of_a_uid_and_nobody_to_kick_is_1() {
    let ground = Ground::with(|config| config.device.connections_per_uid = 2).await;
    let mut devices = [ground.server.login("alice").await, ground.server.login("alice").await];
    let kicked = ground.run(&["kick", "alice", "--reason", "because"]).await;
    assert_eq!(kicked.lines(), ["2 connections closed"]);
    for device in &mut devices {
        device.expect_kick("disconnected").await;
    }
    let kicked = ground.run(&["kick", "alice"]).await;
    assert_eq!((kicked.code, &*kicked.stdout, &*kicked.stderr), (1, "0 connections closed\n", ""));
    let kicked = ground.run(&["kick", ""]).await;
    assert_eq!(kicked.code, 2);
    assert!(kicked.stderr.contains("uid"), "{kicked:?}");
}

#[tokio::test]
async fn sessions_lists_one_line_a_connection_for_cut_and_awk() {
    let ground = Ground::new().await;
    let alice = ground.server.login("alice").await;
    let _bob = TestDevice::login_v1(ground.server.device(), "bob").await;
    let listed = ground.run(&["sessions"]).await;
    let mut lines = listed.lines();
    lines.sort_unstable();
    let words: Vec<Vec<_>> = lines.iter().map(|line| line.split(' ').collect()).collect();
    let address = alice.stream.local_addr().unwrap().to_string();
    assert_eq!(words[0][..3], ["alice", "node-1", &address]);
    assert_eq!((words[0].len(), words[0][8], words[1][0], words[1][8]), (9, "2", "bob", "1"));
    assert!(words[0][3] <= words[0][4], "connected before it was last seen: {}", lines[0]);
    let one = ground.run(&["sessions", "bob"]).await;
    assert_eq!(one.lines().len(), 1);
    let nobody = ground.run(&["sessions", "nobody"]).await;
    assert_eq!((nobody.code, &*nobody.stdout, &*nobody.stderr), (1, "", ""));
}

#[tokio::test]
async fn nodes_lists_one_line_a_node_for_cut_and_awk() {
    let ground = Ground::new().await;
    let _alice = ground.server.login("alice").await;
    let listed = ground.run(&["nodes"]).await;
    let words: Vec<Vec<_>> = listed.lines().iter().map(|line| line.split(' ').collect()).collect();
    let address = ground.server.device().to_string();
    assert_eq!((words.len(), &words[0][..4]), (1, &["node-1", "ready", &address, "1"][..]));
    assert_eq!(words[0][5..], ["0", env!("CARGO_PKG_VERSION")]);
}

#[tokio::test]
async fn broadcast_reaches_everyone_and_says_how_many() {
    let ground = Ground::new().await;
    let empty = ground.run(&["broadcast", "/news", "hello"]).await;
    assert_eq!(empty.lines(), ["sent to 0 connections"]);
    let mut devices = [ground.server.login("alice").await, ground.server.login("bob").await];
    let told = ground.run(&["broadcast", "/news", "hello"]).await;
    assert_eq!(told.lines(), ["sent to 2 connections"]);
    for device in &mut devices {
        let message = device.next().await;
        assert_eq!((&*message.uri, &*message.body), ("/news", "hello"));
    }
    assert_eq!(ground.run(&["broadcast", "/plex/x", "hello"]).await.code, 2);
}

#[tokio::test]
async fn completions_and_manual_pages_know_every_command() {
    let home = Home::new();
    let help = home.run(&["--help"]).await.stdout;
    let begin = help.find("Commands:").unwrap();
    let commands: Vec<_> = help[begin..].lines().skip(1).take_while(|line| !line.is_empty()).collect();
    let commands: Vec<_> = commands.iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.contains(&"kick") && commands.contains(&"help"), "{commands:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.run(&["completions", shell]).await;
        script.lines();
        for command in &commands {
            assert!(script.stdout.contains(command), "{command} in {shell}");
        }
    }
    let page = home.run(&["man"]).await;
    assert!(page.lines().iter().any(|line| line.starts_with(".TH plex 1")), "{page:?}");
    assert_eq!(home.run(&["man", "--dir", "pages"]).await.code, 0);
    for command in commands.iter().filter(|command| **command != "help") {
        let page = fs::read_to_string(home.path(&format!("pages/plex-{command}.1"))).expect(command);
        assert!(page.contains("SYNOPSIS"), "{command}");
    }
}
