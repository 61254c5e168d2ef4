//! What a page shows at a prompt is run, and prints what the page shows.

mod common;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use common::process::{Finished, Home, TestGateway, TestProcess, own_loopback};

/// A block of commands on a page: the page, and what none but this block has in it.
type Block = (&'static str, &'static str);

/// Those that are run here.
const START: Block = ("README.md", "$ cargo run --release -- serve");
const DEVICE: Block = ("README.md", "$ plex device --uid alice");
const PUSHES: Block = ("README.md", "$ plex push alice /greeting hello");
const BASH: Block = ("README.md", "/dev/tcp/");
const PYTHON: Block = ("README.md", "import json, socket, struct");
const TOKENS: Block = ("README.md", "$ openssl rand");
const TOKEN: Block = ("README.md", "plex token alice");
const BAD_VALUE: Block = ("README.md", "device.heartbeat=30");
const STREAM: Block = ("docs/commands.md", "plex push --stream");
const BENCH: Block = ("docs/measuring.md", "plex serve &");
const HERE: [Block; 10] = [START, DEVICE, PUSHES, BASH, PYTHON, TOKENS, TOKEN, BAD_VALUE, STREAM, BENCH];

/// All others, and why they aren't.
const ELSEWHERE: [(Block, &str); 19] = [
    (("README.md", "cargo run --release -- serve    #"), "cargo builds all that is tested; what it runs is START"),
    (("README.md", "cargo test"), "it is what runs this"),
    (("docs/getting-started.md", "cargo run -- serve"), "as that of the README"),
    (("docs/getting-started.md", "target/debug/plex device"), "tests/backends.rs"),
    (("docs/getting-started.md", "examples/backends/go"), "tests/backends.rs"),
    (("docs/getting-started.md", "examples/backends/python"), "tests/backends.rs"),
    (("docs/getting-started.md", "examples/backends/node"), "tests/backends.rs"),
    (("docs/getting-started.md", "examples/backends/java"), "tests/backends.rs"),
    (("docs/measuring.md", "plex bench --tls"), "tests/commands/bench.rs"),
    (("docs/measuring.md", "plex bench --connect"), "tests/commands/bench/nodes.rs"),
    (("docs/measuring.md", "plex bench --merge"), "tests/commands/bench/several.rs"),
    (
        ("docs/operations.md", "systemctl"),
        "takes root and systemd; tests/docs.rs checks the unit where there is systemd",
    ),
    (("docs/operations.md", "docker build"), "takes Docker, and images from elsewhere"),
    (("examples/backends/go/README.md", ""), "tests/backends.rs"),
    (("examples/backends/python/README.md", ""), "tests/backends.rs"),
    (("examples/backends/node/README.md", ""), "tests/backends.rs"),
    (("examples/backends/java/README.md", ""), "tests/backends.rs"),
    (("examples/devices/python/README.md", ""), "tests/device_examples.rs"),
    (("examples/devices/c/README.md", ""), "tests/device_examples.rs"),
];

/// A folder in which somebody types what a page shows.
struct Prompt {
    home: Home,
    host: String,
}

impl Prompt {
    /// One where `plex` is on the path, and plex.toml has all ports where no other test has them.
    fn new() -> Self {
        let (home, host) = (Home::new(), own_loopback().to_string());
        let listen = |section: &str, port: u16| format!("[{section}]\nlisten = \"{host}:{port}\"\n");
        let sections = [("device", 9578), ("http", 9579), ("control", 9580), ("metrics", 9581)];
        let listeners: String = sections.map(|(section, port)| listen(section, port)).concat();
        home.write("plex.toml", &format!("{listeners}[node]\nname = \"vm\"\n"));
        Self { home, host }
    }

    /// Somebody who types these lines, at this prompt's addresses.
    fn command(&self, lines: &str) -> Command {
        let binary = Path::new(env!("CARGO_BIN_EXE_plex")).parent().unwrap().to_owned();
        let path = env::join_paths([binary].into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap())));
        let mut bash = Command::new("bash");
        bash.args(["-euc", &lines.replace("127.0.0.1", &self.host)]).current_dir(self.home.path("")).env_clear();
        bash.env("HOME", self.home.path("")).env("PATH", path.unwrap());
        bash
    }

    fn spawn(&self, lines: &str) -> TestProcess {
        TestProcess::spawn(self.command(lines))
    }

    async fn run(&self, lines: &str) -> Finished {
        self.spawn(lines).finished().await
    }

    async fn serve(&self) -> TestGateway {
        TestGateway::of(self.spawn("exec plex serve")).await
    }

    /// Text as the page may have it: at the page's address, without what differs from one run to the next.
    fn as_shown(&self, text: &str) -> String {
        settled(&text.replace(&self.host, "127.0.0.1"))
    }
}

/// A text whose numbers, times and open files are all the same.
fn settled(text: &str) -> String {
    let mut settled = String::new();
    let mut number = String::new();
    for letter in text.chars().chain(['\n']) {
        // As 1795480045325479, 2026-11-24T00:27:25.316741Z, open_files=20000.
        if letter.is_ascii_digit() || !number.is_empty() && "-T:.Z".contains(letter) {
            number.push(letter);
            continue;
        }
        let varies = number.len() > 15 || settled.ends_with("open_files=");
        settled += if varies { "N" } else { &number };
        number.clear();
        settled.push(letter);
    }
    settled.trim_end().to_owned()
}

fn read(page: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The blocks of a page that somebody types: all of `sh`, and of `console` those with a prompt.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    for block in read(page).split("```").skip(1).step_by(2) {
        let (language, block) = block.split_once('\n').expect("a language");
        if ["sh", "bash"].contains(&language) || language == "console" && block.contains("$ ") {
            blocks.push(block.to_owned());
        }
    }
    blocks
}

/// The one block, as it is shown.
fn shown((page, text): Block) -> String {
    let found: Vec<_> = blocks(page).into_iter().filter(|block| block.contains(text)).collect();
    let [block] = <[String; 1]>::try_from(found).unwrap_or_else(|found| panic!("{page}: {text}: {found:?}"));
    block
}

/// What is typed at each prompt of a block, and what is printed then.
fn typed(block: Block) -> Vec<(String, String)> {
    let block = shown(block);
    let prompts = block.strip_prefix("$ ").expect("a prompt").split("\n$ ");
    let exchange = |exchange: &str| {
        // What is between quotes may have lines, too.
        let quoted = |text: &str| text.matches('\'').count() % 2 == 1;
        let ends = exchange.match_indices('\n').map(|(end, _)| end).find(|end| !quoted(&exchange[..*end]));
        let (line, printed) = exchange.split_at(ends.unwrap_or(exchange.len()));
        (line.to_owned(), printed.trim().to_owned())
    };
    prompts.map(exchange).collect()
}

/// All pages of the project.
fn pages(folder: &Path) -> Vec<PathBuf> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let made = ["target", "node_modules", "plex"].contains(&name) || name.starts_with('.');
        if path.is_dir() && !made {
            pages.extend(crate::pages(&path));
        } else if name.ends_with(".md") {
            pages.push(path);
        }
    }
    pages
}

#[test]
fn every_command_that_a_page_shows_is_run_or_is_listed_with_its_reason() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed: Vec<Block> = HERE.into_iter().chain(ELSEWHERE.map(|(block, _)| block)).collect();
    let mut seen = vec![0; listed.len()];
    for path in pages(root) {
        let page = path.strip_prefix(root).unwrap().to_str().unwrap();
        for block in blocks(page) {
            let of: Vec<_> =
                (0..listed.len()).filter(|i| listed[*i].0 == page && block.contains(listed[*i].1)).collect();
            assert_eq!(of.len(), 1, "{page}: run, or listed, once: {block}");
            seen[of[0]] += 1;
        }
    }
    for (block, seen) in listed.iter().zip(seen) {
        assert!(seen > 0, "no longer shown: {block:?}");
    }
}

#[tokio::test]
async fn the_first_push_of_the_readme_goes_as_it_is_shown() {
    let prompt = Prompt::new();
    let mut gateway = prompt.serve().await;
    let (_, start) = typed(START).remove(0);
    let logged = start.lines().filter(|line| line.starts_with("20")).collect::<Vec<_>>().join("\n");
    assert_eq!(prompt.as_shown(&gateway.process.stderr.seen.join("\n")), settled(&logged));

    let [(path, _), (device, connected)] = <[_; 2]>::try_from(typed(DEVICE)).unwrap();
    assert!(path.starts_with("export PATH="));
    let mut device = prompt.spawn(&format!("exec {device}"));
    assert_eq!(prompt.as_shown(&device.stdout.next().await), connected);
    for (line, printed) in typed(PUSHES) {
        let ended = if line == path { continue } else { prompt.run(&line).await };
        assert_eq!(prompt.as_shown(&ended.stdout), settled(&printed), "{line}: {ended:?}");
    }
    let page = read("README.md");
    let received = page.split("```console\npush ").nth(1).expect("what the device prints").split("```").next().unwrap();
    for line in format!("push {received}").lines() {
        assert_eq!(prompt.as_shown(&device.stdout.next().await), settled(line));
    }
    assert!(gateway.process.ended().is_none());
}

#[tokio::test]
async fn the_devices_without_a_library_get_what_is_shown() {
    let prompt = Prompt::new();
    let _gateway = prompt.serve().await;
    let push = async |uid: &str| {
        let pushed = prompt.run(&format!("plex push {uid} /greeting hello")).await;
        assert_eq!(pushed.code, 0, "{pushed:?}");
    };

    let lines = typed(BASH);
    let joined: Vec<_> = lines.iter().map(|(line, _)| line.as_str()).collect();
    let device = prompt.spawn(&joined.join("\n").replace("127.0.0.1/", &format!("{}/", prompt.host)));
    common::eventually("carol is online", async || (prompt.run("plex online carol").await.code == 0).then_some(()))
        .await;
    push("carol").await;
    // It prints no line until it is closed.
    prompt.run("plex kick carol").await;
    let page = read("README.md");
    let pushed = page.split("```console\n^@").nth(1).expect("what it prints of a push").split("\n```").next().unwrap();
    let expected = format!("{}^@{pushed}", lines.last().unwrap().1);
    assert_eq!(settled(&device.finished().await.stdout), settled(&expected));

    let (line, printed) = typed(PYTHON).remove(0);
    let mut device = prompt.spawn(&format!("exec {line}"));
    assert_eq!(device.stdout.next().await, printed);
    push("bob").await;
    let pushed = settled(&device.stdout.next().await);
    assert!(settled(&page).contains(&format!("after a push to `bob`, `{pushed}`")), "{pushed}");
}

#[tokio::test]
async fn a_token_lets_a_device_in_as_it_is_shown() {
    let prompt = Prompt::new();
    let [(key, _), (serve, _)] = <[_; 2]>::try_from(typed(TOKENS)).unwrap();
    let made = prompt.run(&key).await;
    assert_eq!(made.code, 0, "{made:?}");
    let _gateway = TestGateway::of(prompt.spawn(&format!("exec {serve}"))).await;
    let (device, connected) = typed(TOKEN).remove(0);
    assert_eq!(prompt.as_shown(&prompt.spawn(&device).stdout.next().await), connected);
}

#[tokio::test]
async fn a_bad_value_is_refused_as_it_is_shown() {
    let prompt = Prompt::new();
    let (line, printed) = typed(BAD_VALUE).remove(0);
    let ended = prompt.run(&line).await;
    assert_eq!((ended.code, ended.stderr.trim_end()), (2, &*printed));
}

#[tokio::test]
async fn pushes_from_standard_input_are_answered_as_it_is_shown() {
    let prompt = Prompt::new();
    let _gateway = prompt.serve().await;
    let mut device = prompt.spawn("exec plex device --uid alice");
    device.stdout.next().await;
    let (line, printed) = typed(STREAM).remove(0);
    let ended = prompt.run(&line).await;
    assert_eq!(prompt.as_shown(&ended.stdout), settled(&printed), "{ended:?}");
}

#[tokio::test]
async fn every_way_to_measure_that_is_shown_measures() {
    let prompt = Prompt::new();
    let gateway = prompt.serve().await;
    let block = shown(BENCH);
    // Before it cargo builds what is tested, behind it is a bench of cargo's.
    let benches = block.split_once("plex serve &\n").and_then(|(_, rest)| rest.split_once("kill $!\n"));
    for line in benches.expect("it is stopped").0.lines() {
        let line = line.split_once(" #").map_or(line, |(line, _)| line);
        // The same, smaller.
        let line = line.replace("10000", "20").replace("$!", &gateway.process.id().to_string());
        let ended = prompt.run(&format!("{line} --warm-up 100ms --duration 200ms")).await;
        assert_eq!(ended.code, 0, "{line}: {ended:?}");
    }
}
