//! The arrows of `src/lib.rs`: which module may use which, and what is absent on purpose. Reads the sources.

#[path = "arrows/paths.rs"]
mod paths;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use paths::{Use, modules_of, uses};

/// What each module may use, itself aside. `auth::sign` allows that part alone.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("proto", &[]),
    ("workers", &[]),
    ("config", &[]),
    ("files", &[]),
    ("tls", &["files"]),
    ("telemetry", &["model", "config"]),
    ("state", &["config"]),
    ("auth", &["model", "proto", "config", "files", "tls"]),
    ("cluster", &["model", "config", "telemetry"]),
    ("hub", &["cluster", "model", "state", "telemetry"]),
    ("frame", &[]),
    ("codec", &["frame"]),
    ("device", &["hub", "auth", "frame", "model", "config", "telemetry", "tls"]),
    ("control", &["hub", "cluster", "model", "config", "telemetry", "proto", "files", "tls"]),
    ("http", &["hub", "cluster", "model", "config", "telemetry", "tls"]),
    ("client", &["model", "proto", "frame", "codec", "files", "tls"]),
    (
        "server",
        &[
            "auth",
            "cluster",
            "config",
            "control",
            "device",
            "files",
            "frame",
            "http",
            "hub",
            "model",
            "proto",
            "state",
            "telemetry",
            "testing",
            "tls",
            "workers",
        ],
    ),
    (
        "cli",
        &[
            "server",
            "client",
            "config",
            "files",
            "state",
            "model",
            "proto",
            "telemetry",
            "frame",
            "codec",
            "auth::sign",
        ],
    ),
    ("testing", &["hub", "cluster", "model"]),
];

/// What only some modules may name, of this crate or of others: the path, and who may.
const ABSENCES: &[(&str, &[&str])] = &[
    // The hub pushes bytes into whatever takes them, and presence is kept by a log, whatever carries it.
    ("async_nats", &["cluster"]),
    ("tokio::net", &["cli", "client", "control", "device", "http", "server"]),
    ("serde_json", &["auth", "cli", "client", "cluster", "config", "device", "frame", "http"]),
    ("tonic", &["auth", "client", "control", "proto", "server"]),
    // Only the control plane answers with a status; the client gets one, and the authenticator its code.
    ("tonic::Status", &["client", "control"]),
    ("tonic::Code", &["auth", "client", "control"]),
    // A part gets its own part of the configuration.
    ("crate::config::Config", &["config", "server", "cli"]),
];

/// A file of `src`: its module's path, and its text.
struct Source {
    file: String,
    module: Vec<String>,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut sources, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_stem().is_some_and(|stem| stem == "tests") {
                // A unit test builds what is around its module, whichever way the arrows go.
            } else if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push(source(&root, &path));
            }
        }
    }
    sources.sort_by(|a, b| a.file.cmp(&b.file));
    sources
}

fn source(root: &Path, path: &Path) -> Source {
    let relative: PathBuf = path.strip_prefix(root).unwrap().with_extension("");
    let mut module: Vec<_> = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
        module.pop();
    }
    Source { file: format!("src/{}.rs", relative.display()), module, text: fs::read_to_string(path).unwrap() }
}

/// What is wrong with a file, a line each.
fn violations(source: &Source, modules: &BTreeSet<String>) -> Vec<String> {
    // The crate's root declares and re-exports; `main` calls the commands.
    let Some(from) = source.module.first() else { return Vec::new() };
    let mut wrong = Vec::new();
    for Use { line, path } in uses(&source.text, &source.module) {
        let mut complain = |why: &str| wrong.push(format!("{}:{line}: `{}`: {why}", source.file, path.join("::")));
        if path[0] == "crate" && from == "main" {
            complain("main has no module of its own");
        } else if path[0] == "plex" {
            if from != "main" || path.get(1).is_none_or(|module| module != "cli") {
                complain("only main uses the library by its name, and of it the commands");
            }
        } else if path[0] == "crate" && path.get(1).is_some_and(|module| module != from) {
            let allowed = allowed(from).iter().any(|allowed| begins(&path[1..], allowed));
            if !modules.contains(&path[1]) {
                complain("name the module, not what the crate's root makes of it");
            } else if !allowed {
                complain(&format!("there is no arrow from {from} to it"));
            }
        }
        for (absent, present) in ABSENCES {
            if begins(&path, absent) && !present.contains(&from.as_str()) {
                complain(&format!("{absent} is absent from {from} on purpose"));
            } else if path.last().is_some_and(|last| last == "*")
                && begins(&absent.split("::").collect::<Vec<_>>(), &path[..path.len() - 1].join("::"))
                && !present.contains(&from.as_str())
            {
                complain(&format!("the star may hide {absent}"));
            }
        }
    }
    wrong
}

fn allowed(module: &str) -> &'static [&'static str] {
    ARROWS.iter().find(|(from, _)| *from == module).map_or(&[], |(_, to)| to)
}

/// Whether `path` is `prefix` or inside of it.
fn begins<T: AsRef<str>>(path: &[T], prefix: &str) -> bool {
    let prefix: Vec<_> = prefix.split("::").collect();
    path.len() >= prefix.len() && prefix.iter().zip(path).all(|(a, b)| *a == b.as_ref())
}

fn modules() -> BTreeSet<String> {
    let root = sources().into_iter().find(|source| source.file == "src/lib.rs").unwrap();
    modules_of(&root.text).into_iter().collect()
}

#[test]
fn no_module_uses_another_against_the_arrows() {
    let modules = modules();
    let wrong: Vec<_> = sources().iter().flat_map(|source| violations(source, &modules)).collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_table_names_every_module_and_no_other() {
    let named: BTreeSet<_> = ARROWS.iter().map(|(from, _)| (*from).to_owned()).collect();
    assert_eq!(named, modules());
    for (from, to) in ARROWS {
        for to in *to {
            assert!(named.contains(to.split("::").next().unwrap()), "{from} → {to}");
        }
    }
}

#[test]
fn the_arrows_have_no_circle() {
    let mut left: Vec<_> = ARROWS.to_vec();
    let open = |to: &str, left: &[(&str, &[&str])]| left.iter().any(|(from, _)| to.split("::").next() == Some(from));
    while !left.is_empty() {
        let before = left.len();
        let now = left.clone();
        left.retain(|(_, to)| to.iter().any(|to| open(to, &now)));
        assert!(left.len() < before, "each of these leads back to itself: {left:?}");
    }
}

#[test]
fn there_is_no_unsafe_code() {
    for source in sources() {
        assert!(!paths::words(&source.text).contains(&"unsafe".to_owned()), "{}", source.file);
    }
}

/// A file of this module with this text, and what is found in it.
fn planted(module: &str, text: &str) -> Vec<String> {
    let module = module.split("::").map(str::to_owned).collect();
    violations(&Source { file: "planted.rs".into(), module, text: text.into() }, &modules())
}

#[test]
fn a_planted_use_against_the_arrows_is_found() {
    for (module, text) in [
        ("hub", "use crate::frame;"),
        ("hub", "use crate::{model::Uid, control::Control};"),
        ("hub::registry", "fn f() { let _ = crate::http::routes; }"),
        ("hub::registry", "use super::super::device;"),
        ("hub", "use super::{cluster::Cluster, server::Server};"),
        ("hub", "mod tests { use super::super::device::Devices; }"),
        ("hub", "use crate::{\n    // Why not.\n    auth as model,\n};"),
        ("hub", "pub(in crate::device) struct X;"),
        ("hub", "macro_rules! m { () => { $crate::control::serve() } }"),
        ("hub", "use r#crate::x; use crate::r#server::Server;"),
        ("device", "use crate::control::Control;"),
        ("device", "use crate::Trust;"),
        ("device", "use crate::*;"),
        ("control", "use crate::frame;"),
        ("control", "use crate::config::Config;"),
        ("cluster", "use crate::hub::Hub;"),
        ("client", "use crate::{codec, device::session::run};"),
        ("model", "use plex::model;"),
        ("hub::wait", "use tokio::{sync::Notify, net::TcpStream};"),
        ("hub", "fn f() -> Result<(), tonic::Status> {}"),
        ("hub", "use ::serde_json::json;"),
        ("hub", "use tokio::*;"),
        ("server", "use tonic::{Request, Status};"),
        ("http", "use tonic::Code;"),
    ] {
        assert!(!planted(module, text).is_empty(), "{module}: {text}");
    }
}

#[test]
fn what_is_allowed_and_what_only_looks_like_a_use_pass() {
    for (module, text) in [
        ("hub", "use crate::{cluster::{Cluster, Log}, model::*, telemetry::Metrics};"),
        ("hub::registry", "use super::{connection::Connection, super::model::Uid}; use self::shard::Shard;"),
        ("hub", "mod tests { use super::*; use super::super::model::Uid; }"),
        ("hub", "//! `crate::frame`\n/* use crate::control; /* nested */ use tonic::Status; */"),
        ("hub", r##"const X: &str = "crate::device"; const Y: &str = r#"tonic::"Status"#; const C: char = '"';"##),
        ("hub", "fn f<'a>(x: &'a str) -> &'a str { x } // crate::device\n"),
        ("client::device", "use crate::codec::Codec; use super::device::x; use super::CallError;"),
        ("control", "use tonic::Status; use crate::config::{ControlConfig, Secret};"),
        ("cli", "use crate::{config::Config, frame::ByteOrder};"),
        ("main", "fn main() { plex::cli::run() }"),
    ] {
        assert_eq!(planted(module, text), [""; 0], "{module}: {text}");
    }
}
