//! The programs of `examples/backends`, made and called as their READMEs say, against a gateway.
//!
//! A language whose tools aren't on the machine is skipped, with a line that says so; where CI=true it fails.

mod common;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ChildStdin, Command},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use common::{
    Message, TestDevice,
    link::Link,
    process::{Finished, Home, TestGateway, TestProcess, fixed_ports, own_loopback},
};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    task::{AbortHandle, JoinHandle},
    time::timeout,
};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// What the program of one language is made from, and how it is called.
struct Example {
    /// A copy of the example, beside a copy of `proto`.
    folder: PathBuf,
    /// What its README writes before `push`.
    program: Vec<String>,
    /// What its README shows against a gateway.
    shown: String,
}

/// A gateway that can be started again, and an example that calls it.
struct Ground {
    example: Example,
    home: Home,
    config: String,
    gateway: TestGateway,
}

/// A device that notes each push, and answers those to `/question` and `/refused`.
struct Device {
    pushes: UnboundedReceiver<Message>,
    task: AbortHandle,
}

/// Somebody who watches: what was told, and who is online by that.
struct Watcher {
    process: TestProcess,
    online: BTreeMap<String, bool>,
    epochs: BTreeMap<String, u64>,
}

/// A server that leaves Push without an answer, PushStream once something was pushed, and refuses all else for now.
struct Refusing {
    address: SocketAddr,
    /// The methods called, in order.
    calls: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

#[tokio::test]
#[ignore = "takes the tools of four languages, their registries and a minute: .ci/run --long"]
async fn go() {
    scenario("go", &["go version", "protoc --version"]).await;
}

#[tokio::test]
#[ignore = "takes the tools of four languages, their registries and a minute: .ci/run --long"]
async fn python() {
    scenario("python", &["python3 -c 'import ensurepip, venv'"]).await;
}

#[tokio::test]
#[ignore = "takes the tools of four languages, their registries and a minute: .ci/run --long"]
async fn node() {
    scenario("node", &["node --version", "npm --version"]).await;
}

#[tokio::test]
#[ignore = "takes the tools of four languages, their registries and a minute: .ci/run --long"]
async fn java() {
    scenario("java", &["javac -version", "mvn --version"]).await;
}

#[test]
fn every_example_has_the_service_config_of_the_readme() {
    let readme = fs::read_to_string(Path::new(REPOSITORY).join("README.md")).unwrap();
    let shown = block(&readme, "json", "methodConfig");
    for file in ["go", "python", "node", "java/src/main/resources"] {
        let path = Path::new(REPOSITORY).join("examples/backends").join(file).join("service_config.json");
        assert_eq!(fs::read_to_string(&path).unwrap(), shown, "{path:?}");
    }
}

async fn scenario(language: &str, tools: &[&str]) {
    let Some(example) = Example::of(language, tools) else { return };
    let ground = Ground::new(example).await;
    ground.what_its_readme_shows().await;
    ground.single_pushes().await;
    ground.many_pushes().await;
    ground.a_stream_of_pushes().await;
    ground.ten_thousand_and_one_uids().await;
    ground.what_cannot_be_asked().await;
    ground.retries_and_deadlines().await;
    ground.a_broken_connection_is_resumed().await;
    ground.restarts_and_a_drain().await;
}

/// The block of a page in this language that has `text` in it.
fn block<'a>(page: &'a str, language: &str, text: &str) -> &'a str {
    let fence = format!("```{language}\n");
    let mut blocks = page.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.find(|block| block.contains(text)).unwrap_or_else(|| panic!("{text} in {page}"))
}

impl Example {
    /// Makes the program; None where a tool is missing, of those that these lines of shell try.
    fn of(language: &str, tools: &[&str]) -> Option<Self> {
        let there = |line: &&str| Command::new("sh").args(["-c", line]).output().expect("a shell").status.success();
        if let Some(missing) = tools.iter().find(|tool| !there(tool)) {
            // Past the test's own capture, which is thrown away where a test passes.
            let line = format!("skipped: examples/backends/{language}: `{missing}` doesn't work here\n");
            io::stderr().write_all(line.as_bytes()).unwrap();
            assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has all tools: {missing}");
            return None;
        }
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("backends").join(language);
        let folder = root.join("examples/backends").join(language);
        copy(Path::new(REPOSITORY).join("proto"), &root.join("proto"), &[]);
        let made = ["backend", "plex", ".venv", "__pycache__", "node_modules", "target"];
        copy(Path::new(REPOSITORY).join("examples/backends").join(language), &folder, &made);
        let readme = fs::read_to_string(folder.join("README.md")).unwrap();
        let shown = block(&readme, "sh", "PLEX_SECRET");
        let make = readme.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
        let made = Command::new("sh").args(["-euc", make]).current_dir(&folder).output().unwrap();
        assert!(made.status.success(), "{make}{}", String::from_utf8_lossy(&[made.stdout, made.stderr].concat()));
        let call = shown.lines().find_map(|line| line.split_once(" push ")).expect("a push").0;
        let program = call.split(' ').map(str::to_owned).collect();
        let shown = shown.to_owned();
        Some(Self { folder, program, shown })
    }

    fn command(&self, control: SocketAddr, secret: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).args(arguments).current_dir(&self.folder);
        command.env("PLEX_CONTROL", control.to_string()).env("PLEX_SECRET", secret).env_remove("PLEX_CA");
        command
    }
}

/// Copies a folder over what a former run has made from it, less what is made in it.
fn copy(from: PathBuf, to: &Path, made: &[&str]) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if made.iter().any(|made| name == *made) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy(entry.path(), &to.join(name), &[]);
        } else {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

impl Ground {
    async fn new(example: Example) -> Self {
        let home = Home::new();
        let config = home.write("backends.toml", &fixed_ports(own_loopback()));
        let gateway = serve(&home, &config).await;
        Self { example, home, config, gateway }
    }

    /// The example, called with these arguments.
    fn command(&self, arguments: &[&str]) -> Command {
        self.example.command(self.gateway.control, &self.home.secret(), arguments)
    }

    /// What it prints for these arguments.
    async fn ask(&self, arguments: &[&str]) -> Vec<Value> {
        answers(TestProcess::spawn(self.command(arguments)).finished().await)
    }

    /// What it prints for these arguments and this input.
    async fn ask_of(&self, arguments: &[&str], input: String) -> Vec<Value> {
        let (process, stdin) = TestProcess::piped(self.command(arguments));
        feed(stdin, input);
        answers(process.finished().await)
    }

    async fn device(&self, uid: &str) -> Device {
        Device::login(self.gateway.device(), uid).await
    }

    /// The gateway again, on the same ports and with what it kept.
    async fn again(self) -> Self {
        let Self { example, home, config, gateway } = self;
        drop(gateway);
        let gateway = serve(&home, &config).await;
        Self { example, home, config, gateway }
    }

    async fn what_its_readme_shows(&self) {
        let _alice = self.device("alice").await;
        let (block, watch) = self.example.shown.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(watch, format!("{} watch", self.example.program.join(" ")));
        let plex = Path::new(env!("CARGO_BIN_EXE_plex")).parent().unwrap();
        let path =
            env::join_paths([plex.to_owned()].into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap())));
        let mut shell = Command::new("sh");
        shell.args(["-euc", block]).current_dir(&self.example.folder).env("PATH", path.unwrap());
        shell.env("PLEX_DATA_DIR", Path::new(&self.home.secret_file()).parent().unwrap());
        shell.env("PLEX_CONTROL", self.gateway.control.to_string()).env_remove("PLEX_CA");
        let lines = answers(TestProcess::spawn(shell).finished().await);
        let told: Vec<_> =
            lines.iter().map(|line| (&line["uid"], line.get("status").unwrap_or(&line["online"]))).collect();
        let expected = json!([
            ["alice", "ACKED"],
            ["alice", "SENT"],
            ["alice", "SENT"],
            ["bob", "OFFLINE"],
            ["alice", true],
            ["bob", false]
        ]);
        assert_eq!(json!(told), expected);
        assert_eq!(lines[0]["reply"], "re: are you there?");
    }

    async fn single_pushes(&self) {
        let mut alice = self.device("alice").await;
        let body = "\"ж\" \\ <&> \u{1f642}\n";
        let sent = &self.ask(&["push", "alice", "/greeting", body]).await[0];
        let push = alice.next().await;
        assert_eq!((&*push.uri, &*push.body), ("/greeting", body));
        let expected = json!({
            "uid": "alice", "status": "SENT", "seq": push.seq.to_string(), "connections": 1, "reply": "", "error": ""
        });
        assert_eq!(*sent, expected);
        for (uid, uri, status, reply) in [
            ("alice", "/question", "ACKED", "re: ж"),
            ("alice", "/refused", "NACKED", "no"),
            ("alice", "/silence", "ACK_TIMEOUT", ""),
            ("nobody", "/question", "OFFLINE", ""),
        ] {
            let seconds = if uri == "/silence" { "0.2" } else { "10" };
            let answer = &self.ask(&["push", "--ack", seconds, uid, uri, "ж"]).await[0];
            assert_eq!((&answer["status"], &answer["reply"]), (&json!(status), &json!(reply)), "{answer}");
        }
    }

    async fn many_pushes(&self) {
        let (mut alice, mut bob) = (self.device("alice").await, self.device("bob").await);
        let results = self.ask(&["many", "/news", "it rains", "alice", "nobody", "bob"]).await;
        let told: Vec<_> = results.iter().map(|line| json!([line["uid"], line["status"]])).collect();
        assert_eq!(json!(told), json!([["alice", "SENT"], ["nobody", "OFFLINE"], ["bob", "SENT"]]));
        for (device, result) in [(&mut alice, &results[0]), (&mut bob, &results[2])] {
            let push = device.next().await;
            assert_eq!((push.uri, push.body), ("/news".into(), "it rains".into()));
            assert_eq!(result["seq"], push.seq.to_string());
        }
    }

    async fn a_stream_of_pushes(&self) {
        let mut alice = self.device("alice").await;
        let _bob = self.device("bob").await;
        let mut slow = TestDevice::connect_narrow(self.gateway.device()).await;
        slow.auth_v2("slow").await;
        assert_eq!(slow.next().await.uri, "/auth/success");

        let (mut process, mut input) = TestProcess::piped(self.command(&["stream"]));
        writeln!(input, "{}", json!({"uid": "alice", "uri": "/first", "body": ""})).unwrap();
        assert_eq!(process.stdout.json().await["status"], "SENT", "it is told while the stream goes on");
        assert_eq!(alice.next().await.uri, "/first");

        // More than goes into one message by number and by size, and more than the slow device's socket holds.
        let mut lines = Vec::new();
        let large = "x".repeat(60_000);
        for number in 0..2_500 {
            lines.push(json!({"uid": "alice", "uri": "/number", "body": number.to_string()}));
            match number % 100 {
                0 => lines.push(json!({"uid": "bob", "uri": "/question", "body": "ж", "ack_seconds": 10})),
                1 => lines.push(json!({"uid": "nobody", "uri": "/a"})),
                2 => lines.push(json!({"uid": "reserved", "uri": "/plex/a"})),
                3..8 => lines.push(json!({"uid": "slow", "uri": "/large", "body": large})),
                _ => {}
            }
        }
        let sent = lines.len();
        feed(input, lines.iter().map(|line| format!("{line}\n")).collect());
        let results = &answers(process.finished().await)[1..];
        assert_eq!(results.len(), sent);
        let of = |uid: &str| results.iter().filter(|result| result["uid"] == uid).cloned().collect::<Vec<_>>();
        let count = |uid: &str, status: &str| of(uid).iter().filter(|result| result["status"] == status).count();

        assert_eq!(count("alice", "SENT"), 2_500);
        for (number, result) in of("alice").iter().enumerate() {
            let push = alice.next().await;
            assert_eq!((push.body, json!(push.seq.to_string())), (number.to_string(), result["seq"].clone()));
        }
        assert_eq!(count("bob", "ACKED"), 25);
        assert!(of("bob").iter().all(|result| result["reply"] == "re: ж"));
        assert_eq!(count("nobody", "OFFLINE"), 25);
        assert_eq!(count("reserved", "INVALID"), 25);
        assert!(of("reserved").iter().all(|result| result["error"].as_str().unwrap().starts_with("uri: ")));
        let (taken, full) = (count("slow", "SENT"), count("slow", "QUEUE_FULL"));
        assert!(taken > 0 && full > 0 && taken + full == 125, "{taken} sent, {full} refused");
    }

    /// One more than a request may hold.
    async fn ten_thousand_and_one_uids(&self) {
        let _devices = (self.device("user-7").await, self.device("user-10000").await);
        let uids: String = (0..10_001).map(|number| format!("user-{number}\n")).collect();
        let states = self.ask_of(&["online"], uids).await;
        assert_eq!(states.len(), 10_001);
        for (number, state) in states.iter().enumerate() {
            let online = [7, 10_000].contains(&number);
            let expected = json!({"uid": format!("user-{number}"), "online": online, "connections": u32::from(online)});
            assert_eq!(*state, expected);
        }
    }

    async fn what_cannot_be_asked(&self) {
        let wrong_secret = self.example.command(self.gateway.control, "another", &["push", "alice", "/a", ""]);
        let mut no_secret = self.command(&["push", "alice", "/a", ""]);
        no_secret.env_remove("PLEX_SECRET");
        for (command, code, text) in [
            (wrong_secret, 1, "unauthenticated"),
            (self.example.command(self.gateway.control, "another", &["watch"]), 1, "unauthenticated"),
            (no_secret, 1, "plex_secret"),
            (self.command(&["push", "", "/a", ""]), 1, "uid: "),
            (self.command(&["push", "alice"]), 2, "usage"),
            (self.command(&["push", "--ack", "soon", "alice", "/a", ""]), 2, "usage"),
            (self.command(&["dance"]), 2, "usage"),
        ] {
            let ended = TestProcess::spawn(command).finished().await;
            assert_eq!((ended.code, &*ended.stdout), (code, ""), "{text}: {ended:?}");
            assert!(ended.stderr.to_lowercase().contains(text), "{text}: {ended:?}");
        }
        // What came before a bad line is pushed all the same.
        let (process, stdin) = TestProcess::piped(self.command(&["stream"]));
        feed(stdin, format!("{}\n{{\"uid\":", json!({"uid": "nobody", "uri": "/a"})));
        let ended = process.finished().await;
        assert_eq!((ended.code, &ended.json()[0]["status"]), (1, &json!("OFFLINE")), "{ended:?}");
        assert!(ended.stderr.contains("push 2"), "{ended:?}");
    }

    async fn retries_and_deadlines(&self) {
        let server = Refusing::start().await;
        let ask = |arguments: &[&str]| TestProcess::spawn(self.example.command(server.address, "any", arguments));
        for (arguments, codes) in [
            (&["online", "alice"][..], ["unavailable"; 2]),
            (&["many", "/a", "", "alice"], ["unavailable"; 2]),
            // The server ends it in the same moment, with a code of its own.
            (&["push", "alice", "/a", ""], ["deadline", "timeout"]),
        ] {
            let ended = ask(arguments).finished().await;
            assert_eq!((ended.code, &*ended.stdout), (1, ""), "{ended:?}");
            assert!(codes.iter().any(|code| ended.stderr.to_lowercase().contains(code)), "{ended:?}");
        }
        let expected = ["IsOnline", "IsOnline", "IsOnline", "IsOnline", "PushMany", "Push"];
        assert_eq!(*server.calls.lock().unwrap(), expected);

        // What is on the way when the stream breaks is told as unknown.
        let (mut process, mut input) = TestProcess::piped(self.example.command(server.address, "any", &["stream"]));
        writeln!(input, "{}", json!({"uid": "alice", "uri": "/a"})).unwrap();
        assert_eq!(process.stdout.json().await["status"], "UNKNOWN");
        let ended = process.finished().await;
        assert_eq!(ended.code, 1, "{ended:?}");
    }

    async fn a_broken_connection_is_resumed(&self) {
        let (_alice, bob) = (self.device("alice").await, self.device("bob").await);
        let link = Link::to(self.gateway.control).await;
        let watch = self.example.command(link.address, &self.home.secret(), &["watch"]);
        let mut watcher = Watcher::of(watch);
        assert_eq!(watcher.until_live().await, ["+alice", "+bob"]);
        link.cut();
        drop(bob);
        let _carol = self.device("carol").await;
        assert!(!self.online("bob").await);
        link.mend();
        // By a snapshot nobody would know why bob has gone.
        let news = watcher.until_live().await;
        assert_eq!(news, ["+carol", "-bob CLOSED"]);
        watcher.ends_as(self, &["alice", "bob", "carol"]).await;
    }

    async fn restarts_and_a_drain(mut self) {
        let uids = ["alice", "bob", "carol", "dave"];
        let (alice, _bob) = (self.device("alice").await, self.device("bob").await);
        let mut watcher = Watcher::of(self.command(&["watch", "alice", "bob", "carol", "dave"]));
        assert_eq!(watcher.until_live().await, ["+alice", "+bob"]);
        let before = watcher.epochs["alice"];

        // It dies without a word. Alice comes back before the log is told to be whole, so she hasn't been away for
        // who watches; bob doesn't.
        self.gateway.process.kill();
        drop(alice);
        self = self.again().await;
        let alice = self.device("alice").await;
        let _carol = self.device("carol").await;
        // One that doesn't hang up: the gateway's end waits for it a little, and the watcher is told of the others.
        let _idle = TestDevice::login(self.gateway.device(), "idle").await;
        assert_eq!(watcher.until_live().await, ["+carol", "-bob"]);
        watcher.ends_as(&self, &uids).await;
        drop(alice);
        assert_eq!(watcher.next().await, "-alice CLOSED");
        assert!(watcher.epochs["alice"] > before);
        let _alice = self.device("alice").await;
        let _dave = self.device("dave").await;
        assert_eq!([watcher.next().await, watcher.next().await], ["+alice", "+dave"]);
        watcher.ends_as(&self, &uids).await;

        self.gateway.process.signal("TERM");
        let mut gone = Vec::new();
        for _ in 0..3 {
            gone.push(watcher.next().await);
        }
        gone.sort();
        assert_eq!(gone, ["-alice DRAINING", "-carol DRAINING", "-dave DRAINING"]);
        let status = self.gateway.process.exit().await;
        assert!(status.success(), "{status}");

        self = self.again().await;
        assert_eq!(watcher.until_live().await, [""; 0]);
        let _bob = self.device("bob").await;
        assert_eq!(watcher.next().await, "+bob");
        watcher.ends_as(&self, &uids).await;
    }

    /// The gateway's own word for it.
    async fn online(&self, uid: &str) -> bool {
        self.home.ask(&self.gateway, &["online", uid]).await.code == 0
    }
}

async fn serve(home: &Home, config: &str) -> TestGateway {
    let more = ["--set", "presence.settle=3s", "--set", "device.write_timeout=1m", "--set", "drain.timeout=10s"];
    TestGateway::of(home.spawn(&[&["serve", "--config", config], &more[..]].concat())).await
}

/// What a call has printed that went well.
#[track_caller]
fn answers(ended: Finished) -> Vec<Value> {
    assert_eq!((ended.code, &*ended.stderr), (0, ""), "{ended:?}");
    ended.json()
}

/// Writes all of it while somebody else reads what comes of it.
fn feed(mut stdin: ChildStdin, text: String) {
    thread::spawn(move || stdin.write_all(text.as_bytes()).expect("it reads its input"));
}

impl Device {
    async fn login(address: SocketAddr, uid: &str) -> Self {
        let mut device = TestDevice::login(address, uid).await;
        let (send, pushes) = unbounded_channel();
        let task = tokio::spawn(async move {
            loop {
                // However long that takes; a frame has to be whole in time, though.
                device.stream.peek(&mut [0]).await.expect("no reset");
                let Some(message) = device.maybe_next().await else { return };
                match &*message.uri {
                    "/question" => device.ack(message.seq, &format!("re: {}", message.body)).await,
                    "/refused" => device.nack(message.seq, "no").await,
                    _ => {}
                }
                let _ = send.send(message);
            }
        });
        Self { pushes, task: task.abort_handle() }
    }

    async fn next(&mut self) -> Message {
        timeout(common::PATIENCE, self.pushes.recv()).await.expect("a push in time").expect("a push before the end")
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watcher {
    fn of(command: Command) -> Self {
        Self { process: TestProcess::spawn(command), online: BTreeMap::new(), epochs: BTreeMap::new() }
    }

    /// The next news, in short: `+uid`, `-uid REASON`, `live`.
    async fn next(&mut self) -> String {
        let line = self.process.stdout.json().await;
        if line["live"] == true {
            return "live".into();
        }
        let uid = line["uid"].as_str().expect("a uid").to_owned();
        let online = line["online"].as_bool().expect("whether it is online");
        let epoch = line["epoch"].as_str().expect("a text, since it has 64 bits").parse().expect("a number");
        let before = self.epochs.insert(uid.clone(), epoch).unwrap_or(0);
        let reason = line["reason"].as_str();
        // Who has gone unseen has the epoch that it had.
        assert!(epoch > before || epoch == before && !online && reason.is_none(), "{line} after {before}");
        assert_ne!(self.online.insert(uid.clone(), online).unwrap_or(false), online, "{line}");
        match (online, reason) {
            (true, None) => format!("+{uid}"),
            (false, None) => format!("-{uid}"),
            (false, Some(reason)) => format!("-{uid} {reason}"),
            (true, Some(_)) => panic!("{line}"),
        }
    }

    /// All news up to the next time that all is known, sorted.
    async fn until_live(&mut self) -> Vec<String> {
        let mut news = Vec::new();
        loop {
            match self.next().await {
                live if live == "live" => break,
                other => news.push(other),
            }
        }
        news.sort();
        news
    }

    /// Expects that these are online for it as for the gateway.
    async fn ends_as(&mut self, ground: &Ground, uids: &[&str]) {
        for state in ground.ask(&[&["online"], uids].concat()).await {
            let uid = state["uid"].as_str().unwrap();
            assert_eq!(self.online.get(uid).copied().unwrap_or(false), state["online"] == true, "{uid}");
        }
        assert!(self.process.ended().is_none());
    }
}

impl Refusing {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let noted = calls.clone();
        let router = axum::Router::new().fallback(move |uri: axum::http::Uri, body: axum::body::Body| {
            let method = uri.path().rsplit('/').next().unwrap_or_default().to_owned();
            noted.lock().unwrap().push(method.clone());
            async move {
                match &*method {
                    "Push" => tokio::time::sleep(Duration::from_secs(60)).await,
                    "PushStream" => drop(body.into_data_stream().next().await),
                    _ => {}
                }
                tonic::Status::unavailable("not now").into_http::<axum::body::Body>()
            }
        });
        let server = tonic::transport::Server::builder().add_routes(router.into());
        let task = tokio::spawn(async move {
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            server.serve_with_incoming(incoming).await.expect("it serves");
        });
        Self { address, calls, task }
    }
}

impl Drop for Refusing {
    fn drop(&mut self) {
        self.task.abort();
    }
}
