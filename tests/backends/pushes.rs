//! Pushes and questions.

use std::{env, fs, io::Write, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    common::{TestDevice, process::TestProcess},
    example::{REPOSITORY, block},
    ground::{Ground, answers, feed},
    refusing::Refusing,
};

impl Ground {
    pub async fn what_its_readme_shows(&self) {
        let _alice = self.device("alice").await;
        let mut lines = self.example.shown.lines();
        let secret = lines.next().unwrap();
        assert_eq!(lines.next_back().unwrap(), format!("{} watch", self.example.program.join(" ")));
        let mut printed = Vec::new();
        for line in lines {
            printed.extend(answers(self.typed(&[secret, line], &self.example.folder).finished().await));
        }
        let lines = printed;
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

    /// From a clone, where its program is made already, to a push that is acknowledged.
    pub async fn what_getting_started_shows(&self) {
        let page = fs::read_to_string(Path::new(REPOSITORY).join("docs/getting-started.md")).unwrap();
        fs::copy(&self.config, self.example.root.join("plex.toml")).unwrap();
        let device = block(&page, "sh", "plex device").trim_end();
        let mut device = self.typed(&[&format!("exec {device}")], &self.example.root);
        assert!(device.stdout.next().await.starts_with("connected to "));

        let enter = format!("cd examples/backends/{}\n", self.example.language);
        let shown = block(&page, "sh", &enter).strip_prefix(&*enter).expect("it begins in the clone");
        let shown = shown.strip_prefix(&*self.example.make).expect("it is made as its README says");
        let ended = self.typed(&["cd ../../..", &enter, shown], &self.example.folder).finished().await;
        let promised: Value = serde_json::from_str(block(&page, "json", "ACKED")).unwrap();
        let mut result = answers(ended).remove(0);
        assert!(result["seq"].take().as_str().unwrap().parse::<i64>().unwrap() > 0);
        result["seq"] = promised["seq"].clone();
        assert_eq!(result, promised);
        assert!(device.stdout.next().await.ends_with(" /question are you there?"));
    }

    /// Lines of a page, typed on the gateway's machine.
    fn typed(&self, lines: &[&str], folder: &Path) -> TestProcess {
        let plex = Path::new(env!("CARGO_BIN_EXE_plex")).parent().unwrap();
        let path =
            env::join_paths([plex.to_owned()].into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap())));
        let mut shell = Command::new("sh");
        shell.args(["-euc", &lines.join("\n")]).current_dir(folder).env("PATH", path.unwrap());
        shell.env("PLEX_DATA_DIR", Path::new(&self.home.secret_file()).parent().unwrap());
        shell.env("PLEX_CONTROL", self.gateway.control.to_string()).env_remove("PLEX_CA");
        TestProcess::spawn(shell)
    }

    pub async fn single_pushes(&self) {
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

    pub async fn many_pushes(&self) {
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

    pub async fn a_stream_of_pushes_and_a_slow_device(&self) {
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

    pub async fn what_cannot_be_asked(&self) {
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
            (self.command(&["many", "/a"]), 2, "usage"),
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

    pub async fn retries_and_deadlines(&self) {
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
}
