//! What the features promise to who depends on the library: `client` alone brings nothing of a gateway.

use std::{collections::BTreeMap, process::Command};

/// What only a gateway or the commands need.
const OF_THE_SERVER: &[&str] = &[
    "anstyle",
    "axum",
    "clap",
    "clap_complete",
    "clap_mangen",
    "hdrhistogram",
    "humantime",
    "indicatif",
    "ipnet",
    "jsonwebtoken",
    "ppp",
    "prometheus-client",
    "rlimit",
    "tikv-jemallocator",
    "toml",
    "tonic-health",
    "tonic-reflection",
    "tracing-subscriber",
    "x509-parser",
];

/// The crates that the library brings where only `features` are on, each with its own features. What builds or tests it
/// is left out.
fn crates(features: &str) -> BTreeMap<String, String> {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}|{f}"])
        .args(["--no-default-features", "--features", features])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be run");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let lines = String::from_utf8(tree.stdout).expect("names");
    let named = |line: &str| {
        let (package, features) = line.split_once('|').expect("the format");
        (package.split(' ').next().expect("a name").to_owned(), features.to_owned())
    };
    lines.lines().filter(|line| !line.is_empty()).map(named).collect()
}

#[test]
fn the_client_alone_brings_nothing_of_the_server() {
    let client = crates("client");
    for name in OF_THE_SERVER {
        assert!(!client.contains_key(*name), "{name}");
    }
    for (name, features) in client {
        assert!(!features.split([',', ' ']).any(|feature| feature.starts_with("server")), "{name}: {features}");
    }
}

#[test]
fn the_list_of_what_is_the_servers_is_no_dead_letter() {
    let all = crates("cli");
    for name in OF_THE_SERVER {
        assert!(all.contains_key(*name), "{name}");
    }
}

#[test]
fn the_server_alone_brings_nothing_of_the_commands() {
    let server = crates("server");
    for name in ["anstyle", "clap", "clap_complete", "clap_mangen", "hdrhistogram", "indicatif", "tikv-jemallocator"] {
        assert!(!server.contains_key(name), "{name}");
    }
}
