//! `examples/devices/`: devices from scratch in Python and C, against the gateway, and against one that says anything.
//!
//! Where a language's tool is missing, its device is skipped with a line that says so; with `CI=true` that fails.

mod common;

use std::{
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
    time::{Duration, Instant},
};

use common::{
    TestServer,
    authenticator::Oracle,
    call,
    process::{Home, TestProcess},
    push,
    script::{Script, say},
    tls_device::Authority,
};
use plex::{
    config::Config,
    proto::{DisconnectRequest, PushManyRequest, PushRequest, PushStatus},
};
use serde_json::{Value, json};

/// One of the examples, ready to be run.
struct Example {
    name: &'static str,
    program: Vec<String>,
}

impl Example {
    fn run(&self, arguments: &[&str]) -> Running {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).args(arguments);
        Running { name: self.name, process: TestProcess::spawn(command) }
    }

    /// Runs it, and waits until it is connected.
    async fn connected(&self, arguments: &[&str]) -> Running {
        let mut running = self.run(arguments);
        running.event("connected").await;
        running
    }
}

struct Running {
    name: &'static str,
    process: TestProcess,
}

impl Running {
    /// The next line on stdout, which tells this event.
    async fn event(&mut self, event: &str) -> Value {
        let line = self.process.stdout.json().await;
        assert_eq!(line["event"], event, "{}: {line}", self.name);
        line
    }

    /// Its end by itself with this code and, on stderr, this line. The events that nobody has read are given back.
    async fn ends(self, code: i32, complaint: &str) -> Vec<Value> {
        let ended = self.process.finished().await;
        let line = format!("device: {complaint}\n");
        assert_eq!((ended.code, &*ended.stderr), (code, &*line), "{}: {ended:?}", self.name);
        ended.json()
    }
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/devices").join(name)
}

/// Whether a program is there.
fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        assert_ne!(env::var("CI").as_deref(), Ok("true"), "{program} is needed for the examples");
        // Past the capturing of a test that passes.
        let _ = writeln!(io::stderr(), "skipped: the device that needs {program}, which isn't on this machine");
    }
    found
}

/// The device in C, compiled with what finds mistakes in memory and arithmetic.
fn compiled() -> String {
    let program = format!("{}/device-in-c", env!("CARGO_TARGET_TMPDIR"));
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror", "-O1", "-g"]);
    compiler.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o", &program]);
    let compiled = compiler.arg(folder("c").join("device.c")).output().expect("there is a compiler");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    program
}

/// Those whose tools are there.
fn examples() -> &'static [Example] {
    static EXAMPLES: LazyLock<Vec<Example>> = LazyLock::new(|| {
        let mut examples = Vec::new();
        if is_there("python3") {
            let script = folder("python").join("device.py").to_str().expect("a plain path").to_owned();
            examples.push(Example { name: "python", program: vec!["python3".into(), script] });
        }
        if is_there("cc") {
            examples.push(Example { name: "c", program: vec![compiled()] });
        }
        examples
    });
    &EXAMPLES
}

/// A push that waits for the device's answer.
fn ask(uid: &str, body: &str) -> PushRequest {
    call(uid, "/question", body, Duration::from_secs(60))
}

#[tokio::test]
async fn it_authenticates_takes_pushes_and_answers_in_both_byte_orders() {
    let body = "\"quoted\" \\ / \u{8}\u{c}\n\r\t\u{0}\u{1f}\u{7f} äß \u{2028} 漢字 \u{1f600} {\"a\":[1]}";
    for little_endian in [false, true] {
        let server = TestServer::with(|config| config.device.little_endian = little_endian).await;
        let (mut backend, address) = (server.backend().await, server.device().to_string());
        for example in examples() {
            let mut arguments = vec!["--echo", &*address, "alice"];
            arguments.extend(little_endian.then_some("--little-endian"));
            let mut device = example.run(&arguments);
            let connected = device.event("connected").await;
            assert_eq!(connected, json!({"event": "connected", "address": address, "node": "node-1"}));
            for body in ["", "hello", body] {
                let outcome = backend.push(ask("alice", body)).await.unwrap().into_inner();
                assert_eq!((outcome.status(), &*outcome.reply), (PushStatus::Acked, body), "{}", example.name);
                let shown = device.event("push").await;
                assert_eq!(shown, json!({"event": "push", "seq": outcome.seq, "uri": "/question", "body": body}));
            }
            // Without the flag the answer is empty. (And the newer connection has taken the older one's place.)
            arguments.remove(0);
            let _newer = example.connected(&arguments).await;
            let outcome = backend.push(ask("alice", "hello")).await.unwrap().into_inner();
            assert_eq!((outcome.status(), &*outcome.reply), (PushStatus::Acked, ""), "{}", example.name);
        }
    }
}

#[tokio::test]
async fn it_takes_frames_as_large_as_the_gateway_s_and_never_answers_with_a_larger_one() {
    for bytes_max in [64 << 10, 4 << 20] {
        let server = TestServer::with(|config| {
            config.device.max_frame = bytes_max;
            config.device.queue_bytes = 16 << 20;
        })
        .await;
        let (mut backend, address) = (server.backend().await, server.device().to_string());
        for example in examples() {
            let mut device = example.connected(&["--echo", &address, "alice"]).await;
            // The gRPC message that carries it has a limit of 4 MiB, too.
            let frame = r#"{"seq":1234567890123456,"uri":"/question","body":""}"#.len();
            let longest = (bytes_max as usize).min((4 << 20) - 100) - frame;
            for body in ["x".repeat(longest), "ä".repeat(longest / 2), "\n".repeat(longest / 2)] {
                let outcome = backend.push(ask("alice", &body)).await.unwrap().into_inner();
                assert_eq!(outcome.status(), PushStatus::Acked, "{}: {}", example.name, outcome.reply);
                assert!(outcome.reply == body && device.event("push").await["body"] == body, "{}", example.name);
            }
            if bytes_max == 64 << 10 {
                // As a push with a uri of one letter it fits, as an ack it doesn't.
                let request = PushRequest { uri: "a".into(), ..ask("alice", &"x".repeat(longest + 8)) };
                let outcome = backend.push(request).await.unwrap().into_inner();
                assert_eq!(outcome.status(), PushStatus::Nacked, "{}: {outcome:?}", example.name);
                assert_eq!(outcome.reply, "the reply is too long");
            }
        }
    }
}

#[tokio::test]
async fn it_shows_every_push_of_many_in_order() {
    let server = TestServer::start().await;
    let (mut backend, address) = (server.backend().await, server.device().to_string());
    for example in examples() {
        let mut device = example.connected(&[&address, "alice"]).await;
        for body in 0..300 {
            let outcome = backend.push(push("alice", "/many", &body.to_string())).await.unwrap().into_inner();
            assert_eq!(outcome.status(), PushStatus::Sent);
        }
        for body in 0..300 {
            assert_eq!(device.event("push").await["body"], body.to_string(), "{}", example.name);
        }
    }
}

#[tokio::test]
async fn its_heartbeats_keep_it_connected() {
    let server = TestServer::with(|config| {
        config.device.heartbeat = Duration::from_secs(1);
        config.device.heartbeat_timeout = Duration::from_secs(4);
    })
    .await;
    let (mut backend, address) = (server.backend().await, server.device().to_string());
    let mut devices = Vec::new();
    for example in examples() {
        devices.push(example.connected(&[&address, example.name]).await);
    }
    // Whoever is silent goes, and the others, who came first, stay.
    server.login("silent").await.expect_kick("timeout").await;
    for device in &mut devices {
        assert_eq!(backend.push(ask(device.name, "")).await.unwrap().into_inner().status(), PushStatus::Acked);
        device.event("push").await;
    }
}

#[tokio::test]
async fn by_tls_it_trusts_whom_it_is_told_to_and_nobody_else() {
    let authority = Authority::new();
    let server = TestServer::with(|config| authority.serve(config)).await;
    let address = server.addresses.device_tls.expect("devices are listened for by TLS").to_string();
    let ca = authority.path("ca.pem").to_str().expect("a plain path").to_owned();
    // The one in C speaks plain TCP only.
    for example in examples().iter().filter(|example| example.name == "python") {
        let mut device = example.connected(&["--ca", &ca, "--echo", &address, "alice"]).await;
        let outcome = server.backend().await.push(ask("alice", "over TLS")).await.unwrap().into_inner();
        assert_eq!((outcome.status(), &*outcome.reply), (PushStatus::Acked, "over TLS"));
        device.event("push").await;
        // Its authority isn't among the system's.
        let mut untrusting = example.run(&["--tls", &address, "bob"]);
        let closed = untrusting.event("closed").await;
        assert!(closed["detail"].as_str().unwrap().contains("certificate verify failed"), "{closed}");
    }
}

#[tokio::test]
async fn it_asks_where_to_connect() {
    let server = TestServer::start().await;
    let url = format!("http://{}", server.addresses.http);
    for example in examples() {
        for url in [url.clone(), format!("{url}/")] {
            let connected = example.run(&[&url, "alice"]).event("connected").await;
            assert_eq!(connected["address"], server.device().to_string(), "{}", example.name);
        }
        let closed = example.run(&[&format!("{url}/elsewhere"), "alice"]).event("closed").await;
        assert!(closed["detail"].as_str().unwrap().contains("404"), "{}: {closed}", example.name);
    }
}

#[tokio::test]
async fn it_goes_for_good_when_it_is_told_not_to_come_back() {
    let server = TestServer::start().await;
    let (mut backend, address) = (server.backend().await, server.device().to_string());
    for example in examples() {
        let device = example.connected(&[&address, "alice"]).await;
        let _newer = server.login("alice").await;
        let kick = json!({"event": "kick", "reason": "replaced", "reconnect": false, "after_ms": 0});
        assert_eq!(device.ends(1, "told not to come back: replaced").await.last(), Some(&kick));

        let device = example.connected(&[&address, "bob"]).await;
        let request = DisconnectRequest { uid: "bob".into(), reason: "for the test".into() };
        assert_eq!(backend.disconnect(request).await.unwrap().into_inner().connections, 1);
        let kick = json!({"event": "kick", "reason": "disconnected", "reconnect": false, "after_ms": 0});
        assert_eq!(device.ends(1, "told not to come back: disconnected").await.last(), Some(&kick));
    }
}

#[tokio::test]
async fn a_credential_that_is_refused_ends_it_with_3_and_one_that_cannot_be_checked_is_shown_again() {
    let change = |config: &mut Config| config.auth.unavailable_delay = Duration::ZERO;
    let oracle = Oracle::default();
    let server = TestServer::built(change, |builder| builder.authenticator(oracle.clone())).await;
    let address = server.device().to_string();
    let home = Home::new();
    for example in examples() {
        example.run(&[&address, "refuse"]).ends(3, "the credential is refused").await;

        // A file is read at each login.
        let file = format!("@{}", home.write("credential", "down\n"));
        let mut device = example.run(&[&address, &file]);
        device.event("closed").await;
        home.write("credential", "alice/1500\n");
        while device.process.stdout.json().await["event"] != "connected" {}
        // And when the session ends, the next credential counts.
        home.write("credential", "refuse");
        assert_eq!(device.event("kick").await["reason"], "expired", "{}", example.name);
        device.event("closed").await;
        device.event("waiting").await;
        device.ends(3, "the credential is refused").await;
    }
}

#[tokio::test]
async fn it_comes_back_by_itself_when_the_gateway_was_killed() {
    for example in examples() {
        let home = Home::new();
        let mut gateway = home.serve(&[]).await;
        let address = gateway.device().to_string();
        let mut device = example.connected(&["--echo", &address, "alice"]).await;
        gateway.process.kill();
        device.event("closed").await;
        let ms = device.event("waiting").await["ms"].as_u64().expect("a number");
        assert!((500..=1000).contains(&ms), "{}: {ms}", example.name);

        let gateway = home.serve(&["--set", &format!("device.listen={address}")]).await;
        while device.process.stdout.json().await["event"] != "connected" {}
        let pushed = home.ask(&gateway, &["push", "alice", "/a", "again", "--ack", "1m", "--json"]).await;
        assert_eq!(pushed.json()[0]["reply"], "again", "{}", example.name);
        device.event("push").await;
    }
}

#[tokio::test]
async fn a_drain_brings_it_back_after_the_time_that_it_is_told() {
    for example in examples() {
        let home = Home::new();
        let gateway = home.serve(&[]).await;
        let address = gateway.device().to_string();
        let mut device = example.connected(&[&address, "alice"]).await;
        gateway.process.signal("TERM");
        let kick = device.event("kick").await;
        let told = Instant::now();
        assert_eq!((&kick["reason"], &kick["reconnect"]), (&"draining".into(), &true.into()), "{}", example.name);
        device.event("closed").await;
        assert_eq!(device.event("waiting").await["ms"], kick["after_ms"], "{}", example.name);
        assert_eq!(gateway.process.finished().await.code, 0);

        let _gateway = home.serve(&["--set", &format!("device.listen={address}")]).await;
        while device.process.stdout.json().await["event"] != "connected" {}
        let after = Duration::from_millis(kick["after_ms"].as_u64().expect("a number"));
        // A little less, as this clock began when the line was read.
        assert!(told.elapsed() + Duration::from_millis(50) >= after, "{}: {:?}", example.name, told.elapsed());
    }
}

#[tokio::test]
async fn one_that_reads_nothing_is_refused_pushes_and_ended_alone_and_comes_back() {
    let server = TestServer::with(|config| config.device.write_timeout = Duration::from_secs(5)).await;
    let (mut backend, address) = (server.backend().await, server.device().to_string());
    let mut other = server.login("other").await;
    for (ended, example) in (1..).zip(examples()) {
        let mut device = example.connected(&[&address, "alice"]).await;
        device.process.signal("STOP");
        loop {
            let large = push("alice", "/large", &"x".repeat(60_000));
            match backend.push(large).await.unwrap().into_inner().status() {
                PushStatus::Sent => {}
                PushStatus::QueueFull => break,
                status => panic!("{}: {status:?}", example.name),
            }
        }
        let to_other = backend.push(push("other", "/a", "")).await.unwrap().into_inner();
        assert_eq!((to_other.status(), other.next().await.seq), (PushStatus::Sent, to_other.seq));
        server.metric_is(r#"plex_connections_ended_total{reason="slow"}"#, ended).await;
        let outcome = backend.push(push("alice", "/a", "")).await.unwrap().into_inner();
        assert_eq!(outcome.status(), PushStatus::Offline, "{}", example.name);

        device.process.signal("CONT");
        while device.process.stdout.json().await["event"] != "connected" {}
        let outcome = backend.push(ask("alice", "")).await.unwrap().into_inner();
        assert_eq!(outcome.status(), PushStatus::Acked, "{}", example.name);
    }
}

#[tokio::test]
async fn of_ten_thousand_who_are_pushed_to_it_gets_its_own_once() {
    let server = TestServer::start().await;
    let (mut backend, address) = (server.backend().await, server.device().to_string());
    for example in examples() {
        let mut device = example.connected(&[&address, "user-7000"]).await;
        let uids = (0..10_000).map(|number| format!("user-{number}")).collect();
        let many = PushManyRequest { uids, uri: "/news".into(), body: "it rains".into() };
        let results = backend.push_many(many).await.unwrap().into_inner().results;
        let sent: Vec<_> = (0..10_000).filter(|i| results[*i].status() == PushStatus::Sent).collect();
        assert_eq!((results.len(), sent), (10_000, vec![7_000]), "{}", example.name);
        assert_eq!(device.event("push").await["seq"], results[7_000].seq, "{}", example.name);
        let next = backend.push(ask("user-7000", "")).await.unwrap().into_inner();
        assert_eq!(device.event("push").await["seq"], next.seq, "{}", example.name);
    }
}

#[tokio::test]
async fn it_shows_version_2_and_obeys_a_kick_s_time() {
    let script = Script::new().await;
    for example in examples() {
        let mut device = example.run(&[&script.address, "alice"]);
        let (mut end, auth) = script.accept().await;
        assert_eq!(auth, json!({"uri": "/auth/server", "body": "alice", "v": 2}), "{}", example.name);
        // A gateway that knows only version 1 says no more than this.
        end.send(r#"{"seq":1462346531,"uri":"/auth/success"}"#).await;
        device.event("connected").await;
        let told = Instant::now();
        say(&mut end, "/plex/kick", &json!({"reason": "draining", "reconnect": true, "after_ms": 1500, "new": {}}))
            .await;
        drop(end);
        let _end = script.welcome(&json!({"v": 2, "node": "other"})).await;
        assert!(told.elapsed() >= Duration::from_millis(1500), "{}: {:?}", example.name, told.elapsed());
        for event in ["kick", "closed", "waiting", "connected"] {
            device.event(event).await;
        }
    }
}

#[tokio::test]
async fn it_ignores_what_it_does_not_know_and_shows_errors() {
    let script = Script::new().await;
    for example in examples() {
        let mut device = example.run(&[&script.address, "alice"]);
        let mut end = script.welcome(&json!({"v": 2, "later": [[{"a": null}], -1.5e-3, true, "\u{e4}"]})).await;
        device.event("connected").await;
        say(&mut end, "/plex/error", &json!({"reason": "malformed", "detail": "not \u{1b} JSON"})).await;
        for harmless in ["", "null", "{}", r#"{"uri":"/plex/later"}"#, r#"{"uri":"/auth/later"}"#, r#"{"uri":null}"#] {
            end.send(harmless).await;
        }
        end.send(r#" { "later" : [ ] , "seq" : 7 , "uri" : "\/a" , "body" : "\u00e4\ud83d\ude00" } "#).await;
        let error = json!({"event": "error", "reason": "malformed", "detail": "not \u{1b} JSON"});
        assert_eq!(device.event("error").await, error, "{}", example.name);
        let push = json!({"event": "push", "seq": 7, "uri": "/a", "body": "ä\u{1f600}"});
        assert_eq!(device.event("push").await, push, "{}", example.name);
        let ack = end.next().await;
        assert_eq!((&*ack.uri, ack.seq, &*ack.body), ("/plex/ack", 7, ""), "{}", example.name);
    }
}

#[tokio::test]
async fn a_gateway_that_is_silent_is_left() {
    let script = Script::new().await;
    for example in examples() {
        let mut device = example.run(&[&script.address, "alice"]);
        let settings = json!({"v": 2, "heartbeat_seconds": 1, "heartbeat_timeout_seconds": 2});
        let mut end = script.welcome(&settings).await;
        device.event("connected").await;
        while let Some(message) = end.maybe_next().await {
            assert_eq!(message.uri, "/heartbeat", "{}", example.name);
        }
        assert_eq!(device.event("closed").await["detail"], "the gateway is silent", "{}", example.name);
    }
}

#[tokio::test]
async fn whatever_a_gateway_says_it_only_closes_and_comes_back() {
    let frame = |message: &[u8]| [&(message.len() as u32).to_be_bytes()[..], message].concat();
    let kick = |body: &str| frame(json!({"uri": "/plex/kick", "body": body}).to_string().as_bytes());
    let nonsense: Vec<Vec<u8>> = vec![
        b"\xff\xff\xff\xff".to_vec(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        frame(b"no JSON"),
        frame(b"[]"),
        frame(b"{} {}"),
        frame(br#"{"uri":1}"#),
        frame(br#"{"uri":"/a","seq":1.0}"#),
        frame(br#"{"uri":"/a","seq":9223372036854775808}"#),
        frame(br#"{"uri":"/a","body":"\ud800"}"#),
        frame(b"{\"uri\":\"/a\",\"body\":\"\xed\xa0\x80\"}"),
        frame(b"{\"uri\":\"/a\",\"body\":\"\xff\"}"),
        frame(b"{\"uri\":\"/a\",\"body\":\"\0\"}"),
        frame("[".repeat(60_000).as_bytes()),
        frame(format!(r#"{{"a":{}"#, "[{\"a\":".repeat(10_000)).as_bytes()),
        kick("no JSON"),
        kick(r#"{"reconnect":1}"#),
        kick(r#"{"after_ms":1e99}"#),
        kick(&format!(r#"{{"after_ms":1{}}}"#, "0".repeat(400))),
    ];
    let script = Script::new().await;
    for example in examples() {
        for bytes in &nonsense {
            let mut device = example.run(&[&script.address, "alice"]);
            let mut end = script.welcome(&json!({"v": 2})).await;
            end.send_bytes(bytes).await;
            end.expect_close().await;
            device.event("connected").await;
            device.event("closed").await;
            device.event("waiting").await;
            drop(end);
        }
        // In the middle of a frame, and before the answer.
        let mut device = example.run(&[&script.address, "alice"]);
        let mut end = script.welcome(&json!({"v": 2})).await;
        end.send_bytes(b"\0\0\0\x10{\"uri\"").await;
        drop(end);
        device.event("connected").await;
        device.event("closed").await;
        device.event("waiting").await;
        drop(script.accept().await);
        device.event("closed").await;
        device.event("waiting").await;
    }
}

#[tokio::test]
async fn bad_usage_is_2() {
    for example in examples() {
        for arguments in
            [&[][..], &["127.0.0.1:1"], &["nonsense", "alice"], &["127.0.0.1:", "alice"], &["--what", "a:1", "b"]]
        {
            let ended = example.run(arguments).process.finished().await;
            assert_eq!((ended.code, &*ended.stdout), (2, ""), "{}: {ended:?}", example.name);
        }
    }
}

#[tokio::test]
async fn the_commands_of_its_readme_do_what_they_show() {
    let server = TestServer::start().await;
    for (name, file, program) in [("python", "device.py", "python3"), ("c", "device.c", "cc")] {
        if !is_there(program) {
            continue;
        }
        let readme = fs::read_to_string(folder(name).join("README.md")).unwrap();
        let shown = readme.split_once("```sh\n").and_then(|(_, rest)| rest.split_once("```")).expect("commands").0;
        let home = Home::new();
        fs::copy(folder(name).join(file), home.path(file)).unwrap();
        let mut connected = 0;
        for line in shown.lines() {
            let line = line.split_once(" #").map_or(line, |(line, _)| line).trim_end();
            let line = line
                .replace("127.0.0.1:9578", &server.device().to_string())
                .replace("127.0.0.1:9579", &server.addresses.http.to_string());
            let mut command = Command::new("sh");
            command.args(["-c", &format!("exec {line}")]).current_dir(home.path(""));
            let mut process = TestProcess::spawn(command);
            if line.ends_with("alice") {
                assert_eq!(process.stdout.json().await["event"], "connected", "{line}");
                connected += 1;
            } else {
                let ended = process.finished().await;
                assert_eq!((ended.code, &*ended.stderr), (0, ""), "{line}: {ended:?}");
            }
        }
        assert_eq!(connected, 2, "{name}");
    }
}
