//! What README.md says of the configuration is what the code does.

use std::collections::BTreeMap;

use plex::{Config, config};

const README: &str = include_str!("../README.md");

/// The rows of the table of keys: key, default.
fn rows() -> BTreeMap<&'static str, &'static str> {
    let begin = README.find("| key | default | meaning |").expect("the table of keys");
    let rows = README[begin..].lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split(" | ").map(|cell| cell.trim());
        (cells.next().unwrap().trim_matches('`'), cells.next().expect("a default"))
    })
    .collect()
}

/// Each key with what `plex check` prints for it, as it would be typed; none where it isn't set.
fn printed() -> BTreeMap<String, Option<String>> {
    let mut section = String::new();
    let mut keys = BTreeMap::new();
    for line in config::print(&Config::default()).lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some(comment) = line.strip_prefix("# ") {
            keys.insert(comment.split_once(':').unwrap().0.to_owned(), None);
        } else if let Some((name, value)) = line.split_once(" = ") {
            keys.insert(format!("{section}{name}"), Some(value.trim_matches('"').to_owned()));
        }
    }
    keys
}

#[test]
fn every_key_is_documented_and_no_other() {
    let documented: Vec<_> = rows().into_keys().map(str::to_owned).collect();
    let there: Vec<_> = printed().into_keys().collect();
    assert_eq!(documented, there);
}

#[test]
fn every_default_is_documented() {
    let rows = rows();
    for (key, value) in printed() {
        let Some(value) = value else { continue };
        // These depend on the machine.
        if !["data_dir", "node.name"].contains(&key.as_str()) {
            let written = if value.is_empty() { "none".to_owned() } else { format!("`{value}`") };
            assert_eq!(rows[key.as_str()], written, "{key}");
        }
    }
}

#[test]
fn every_link_within_the_page_has_its_heading() {
    let anchors: Vec<_> = README
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .map(|line| format!("(#{})", line.trim_matches(['#', ' ']).to_lowercase().replace(' ', "-")))
        .collect();
    for link in README.split("](#").skip(1).map(|rest| rest.split_once(')').expect("a whole link").0) {
        assert!(anchors.contains(&format!("(#{link})")), "#{link}: {anchors:?}");
    }
}
