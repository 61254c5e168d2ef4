//! The commands, as somebody at a terminal or a script uses them: what they print, and how they end.

mod common;

#[path = "commands/admin.rs"]
mod admin;
#[path = "commands/bench.rs"]
mod bench;
#[path = "commands/device.rs"]
mod device;
#[path = "commands/json.rs"]
mod json;
#[path = "commands/stream.rs"]
mod stream;
#[path = "commands/watch.rs"]
mod watch;

use std::net::TcpListener;

use common::{
    SECRET, TestDevice, TestServer,
    process::{Finished, Home, TestGateway, TestProcess, fixed_ports, own_loopback},
};
use serde_json::json;

/// A gateway in this process, and a home whose `secret` is a file with its secret.
struct Ground {
    home: Home,
    server: TestServer,
    url: String,
    secret: String,
}

impl Ground {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut plex::Config)) -> Self {
        let (home, server) = (Home::new(), TestServer::with(change).await);
        let url = format!("http://{}", server.addresses.control);
        let secret = home.write("secret", &format!("{SECRET}\n"));
        Self { home, server, url, secret }
    }

    /// A command with what names this gateway.
    fn spawn(&self, arguments: &[&str]) -> TestProcess {
        self.home.spawn(&[arguments, &["--control", &self.url, "--secret-file", &self.secret]].concat())
    }

    /// The same, which reads `input`.
    async fn feed(&self, arguments: &[&str], input: &str) -> Finished {
        let named = [arguments, &["--control", &self.url, "--secret-file", &self.secret]].concat();
        TestProcess::fed(self.home.command(&named), input).finished().await
    }

    async fn run(&self, arguments: &[&str]) -> Finished {
        self.spawn(arguments).finished().await
    }
}

/// Where nobody listens any more.
fn nobody() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test]
async fn a_push_that_is_sent_is_0_and_says_so() {
    let ground = Ground::new().await;
    let mut device = ground.server.login("alice").await;
    let pushed = ground.run(&["push", "alice", "/news", "hello"]).await;
    let message = device.next().await;
    assert_eq!((&*message.uri, &*message.body), ("/news", "hello"));
    assert_eq!(pushed.lines(), [format!("SENT, seq {}, 1 connection", message.seq)]);
    let pushed = ground.run(&["push", "alice", "/news", "", "--json"]).await;
    let message = device.next().await;
    assert_eq!((&*message.uri, &*message.body), ("/news", ""));
    let expected = json!({"status": "SENT", "seq": message.seq.to_string(), "connections": 1, "reply": ""});
    assert_eq!((pushed.code, pushed.json()), (0, vec![expected]));
}

#[tokio::test]
async fn a_push_to_nobody_is_1() {
    let ground = Ground::new().await;
    let pushed = ground.run(&["push", "bob", "/news", "hello"]).await;
    assert_eq!((pushed.code, &*pushed.stdout, &*pushed.stderr), (1, "OFFLINE\n", ""));
    let pushed = ground.run(&["push", "bob", "/news", "hello", "--ack", "5s", "--json"]).await;
    let expected = json!({"status": "OFFLINE", "seq": "0", "connections": 0, "reply": ""});
    assert_eq!((pushed.code, pushed.json()), (1, vec![expected]));
}

#[tokio::test]
async fn with_ack_the_reply_is_printed_and_only_acked_is_0() {
    let ground = Ground::new().await;
    let mut device = ground.server.login("alice").await;

    let pushing = ground.spawn(&["push", "alice", "/ask", "?", "--ack", "1m"]);
    let message = device.next().await;
    device.ack(message.seq, "fine \u{1b}[31m").await;
    let expected = format!("ACKED, seq {}, 1 connection: fine \\u{{1b}}[31m", message.seq);
    assert_eq!(pushing.finished().await.lines(), [expected]);

    let pushing = ground.spawn(&["push", "alice", "/ask", "?", "--ack", "1m", "--json"]);
    let message = device.next().await;
    device.nack(message.seq, "no \"way\"").await;
    let pushed = pushing.finished().await;
    let expected = json!({"status": "NACKED", "seq": message.seq.to_string(), "connections": 1, "reply": "no \"way\""});
    assert_eq!((pushed.code, pushed.json()), (1, vec![expected]));

    let pushed = ground.run(&["push", "alice", "/ask", "?", "--ack", "1ms"]).await;
    let message = device.next().await;
    let expected = format!("ACK_TIMEOUT, seq {}, 1 connection\n", message.seq);
    assert_eq!((pushed.code, pushed.stdout), (1, expected));

    let pushing = ground.spawn(&["push", "alice", "/ask", "?", "--ack", "1m"]);
    device.next().await;
    drop(device);
    let pushed = pushing.finished().await;
    assert_eq!(pushed.code, 1);
    assert!(pushed.stdout.starts_with("CONNECTION_LOST, seq "), "{pushed:?}");
}

#[tokio::test]
async fn a_bad_request_is_2_and_names_the_field() {
    let ground = Ground::new().await;
    let long = "u".repeat(256);
    let large = "x".repeat(70_000);
    for (arguments, names) in [
        (&["push", "", "/a", "b"][..], "uid"),
        (&["push", &long, "/a", "b"], "uid"),
        (&["push", "alice", "", "b"], "uri"),
        (&["push", "alice", "/plex/x", "b"], "uri"),
        (&["push", "alice", "/heartbeat", "b"], "uri"),
        (&["push", "alice", "/a", &large], "body"),
        (&["push", "alice", "/a", "b", "--ack", "0s"], "ack_timeout"),
        (&["push", "alice", "/a", "b", "--ack", "6m"], "ack_timeout"),
        (&["online", "alice", ""], "uids"),
    ] {
        let refused = ground.run(arguments).await;
        let line = refused.refusal();
        assert!(line.contains(names), "{names}: {line}");
    }
    for command in ["online", "watch"] {
        let many = [&[command][..], &vec!["uid"; 10_001]].concat();
        let refused = ground.run(&many).await;
        let line = refused.refusal();
        assert!(line.contains("uids") && line.replace(',', "").contains("10000"), "{command}: {line}");
    }
}

#[tokio::test]
async fn online_tells_each_in_order_and_is_0_only_where_all_are() {
    let ground = Ground::new().await;
    let _alice = ground.server.login("alice").await;
    let _carol = ground.server.login("carol").await;
    let asked = ground.run(&["online", "alice", "bob", "carol"]).await;
    let lines: Vec<_> = asked.stdout.lines().collect();
    assert_eq!((asked.code, lines.len(), &*asked.stderr), (1, 3, ""));
    assert!(
        lines[0].starts_with("alice online since 20") && lines[0].ends_with("Z at node-1, 1 connection"),
        "{lines:?}"
    );
    assert_eq!(lines[1], "bob offline");
    assert!(lines[2].starts_with("carol online"), "{lines:?}");
    assert_eq!(ground.run(&["online", "carol", "alice"]).await.lines().len(), 2);

    let asked = ground.run(&["online", "bob", "alice", "--json"]).await;
    let [bob, alice] = &asked.json()[..] else { panic!("a line each: {asked:?}") };
    assert_eq!(*bob, json!({"uid": "bob", "online": false, "node": "", "connections": 0}));
    assert_eq!((&alice["uid"], &alice["online"], &alice["node"]), (&"alice".into(), &true.into(), &"node-1".into()));
    assert!(alice["since"].as_str().unwrap().ends_with('Z'), "{alice}");
}

#[tokio::test]
async fn host_tells_where_to_connect_and_is_1_where_nobody_takes_devices() {
    let ground = Ground::new().await;
    let host = ground.server.device().to_string();
    assert_eq!(ground.run(&["host"]).await.lines(), [&*host]);
    assert_eq!(
        ground.run(&["host", "--transport", "tcp", "--json"]).await.json(),
        [json!({"host": host, "node": "node-1"})]
    );
    let none = ground.run(&["host", "--transport", "tls"]).await;
    assert_eq!((none.code, &*none.stdout), (1, ""));
    assert!(none.complaint().starts_with("unavailable: "), "{none:?}");
    assert_eq!(ground.run(&["host", "--transport", "udp"]).await.code, 2);
}

#[tokio::test]
async fn info_tells_what_the_node_is_and_holds() {
    let ground = Ground::new().await;
    let _alice = ground.server.login("alice").await;
    let _silent = TestDevice::connect(ground.server.device()).await;
    let info = ground.run(&["info"]).await;
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        &format!("version      {version}"),
        "node         node-1",
        "frame        at most 65536 bytes",
        "uids         1 online",
        "connections  1 at this node",
    ] {
        assert!(info.lines().contains(&line), "{line}: {info:?}");
    }
    let info = &ground.run(&["info", "--json"]).await.json()[0];
    assert_eq!((&info["version"], &info["node"], &info["features"]), (&version.into(), &"node-1".into(), &json!([])));
    assert_eq!(
        (&info["frameBytesMax"], &info["uids"], &info["connections"]),
        (&65536.into(), &"1".into(), &"1".into())
    );
    assert!(info["knownSince"].as_str().unwrap().ends_with('Z'), "{info}");
}

#[tokio::test]
async fn secret_prints_the_first_of_the_configuration_else_the_made_up_one() {
    let home = Home::new();
    let none = home.run(&["secret"]).await;
    assert_eq!((none.code, &*none.stdout), (1, ""));
    assert!(none.complaint().starts_with("no secret yet"), "{none:?}");
    assert!(!home.path(".local").exists(), "asking makes none");
    assert_eq!(home.serve(&[]).await.stopped().await.code, 0);
    assert_eq!(home.run(&["secret"]).await.lines(), [home.secret()]);
    home.write("plex.toml", "[control]\nsecrets = [\"first\", \"second\"]\n");
    assert_eq!(home.run(&["secret"]).await.lines(), ["first"]);
    let mut command = home.command(&["secret"]);
    command.env("PLEX_CONTROL__SECRETS", "from the environment,other");
    assert_eq!(TestProcess::spawn(command).finished().await.lines(), ["from the environment"]);
}

/// Every command that calls the control plane.
const CALLS: [&[&str]; 5] = [&["push", "alice", "/a", "b"], &["online", "alice"], &["watch"], &["host"], &["info"]];

#[tokio::test]
async fn a_secret_that_is_refused_is_3() {
    let ground = Ground::new().await;
    let wrong = ground.home.write("wrong", "not the secret\n");
    for call in CALLS {
        for json in [&[][..], &["--json"]] {
            let named = ["--control", &ground.url, "--secret-file", &wrong];
            let refused = ground.home.run(&[call, &named, json].concat()).await;
            assert_eq!((refused.code, &*refused.stdout), (3, ""), "{call:?}: {refused:?}");
            assert!(refused.complaint().starts_with("refused: "), "{refused:?}");
            assert!(!refused.stderr.contains("not the secret"), "{refused:?}");
        }
        // Where none was made up yet on this machine, it is asked without.
        let refused = ground.home.run(&[call, &["--control", &ground.url]].concat()).await;
        assert_eq!(refused.code, 3, "{call:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_gateway_that_cannot_be_reached_is_4() {
    let home = Home::new();
    let (url, secret) = (format!("http://{}", nobody()), home.write("secret", "s"));
    for call in CALLS {
        let failed = home.run(&[call, &["--control", &url, "--secret-file", &secret]].concat()).await;
        assert_eq!((failed.code, &*failed.stdout), (4, ""), "{call:?}: {failed:?}");
        assert!(failed.complaint().starts_with("can't reach the gateway: "), "{failed:?}");
    }
}

#[tokio::test]
async fn what_names_no_gateway_or_no_secret_is_2() {
    let home = Home::new();
    let secret = home.write("secret", "s\n");
    let (empty, two) = (home.write("empty", "\n"), home.write("two", "two\nlines\n"));
    let named = home.text("missing");
    for (url, file) in [
        ("127.0.0.1:9580", &secret),
        ("https://127.0.0.1:9580/path", &secret),
        ("ftp://127.0.0.1:9580", &secret),
        ("http://127.0.0.1:9580/path", &secret),
        ("", &secret),
        ("http://127.0.0.1:9580", &empty),
        ("http://127.0.0.1:9580", &two),
        ("http://127.0.0.1:9580", &named),
    ] {
        let refused = home.run(&["info", "--control", url, "--secret-file", file]).await;
        assert!(!refused.refusal().contains("lines"), "{refused:?}");
    }
}

#[tokio::test]
async fn bad_usage_is_2_and_help_is_0() {
    let home = Home::new();
    for usage in [&[][..], &["nonsense"], &["push", "alice"], &["online"], &["device"], &["watch", "--nonsense"]] {
        let refused = home.run(usage).await;
        assert_eq!((refused.code, &*refused.stdout), (2, ""), "{usage:?}: {refused:?}");
        assert!(!refused.stderr.is_empty());
    }
    for help in [&["--help"][..], &["help"], &["push", "--help"]] {
        assert!(home.run(help).await.lines().iter().any(|line| line.contains("Usage: plex")), "{help:?}");
    }
    assert_eq!(home.run(&["--version"]).await.lines(), [format!("plex {}", env!("CARGO_PKG_VERSION"))]);
}

#[tokio::test]
async fn by_one_configuration_the_gateway_and_the_commands_find_each_other() {
    let (home, elsewhere) = (Home::new(), Home::new());
    let listeners = fixed_ports(own_loopback());
    let config = home.write("gateway.toml", &format!("data_dir = {:?}\n{listeners}", home.text("state")));
    let arguments = ["serve", "--config", &config];
    let _gateway = TestGateway::of(home.spawn(&arguments)).await;
    // From another folder, with another home.
    let mut device = elsewhere.spawn(&["device", "--uid", "alice", "--config", &config, "--echo"]);
    device.stdout.until("connected to ").await;
    for call in [
        &["push", "alice", "/a", "b"][..],
        &["push", "alice", "/a", "b", "--ack", "1m"],
        &["online", "alice"],
        &["host"],
        &["info"],
        &["secret"],
    ] {
        let before = elsewhere.run(&[&["--config", &config], call].concat()).await;
        assert_eq!((before.code, &*before.stderr), (0, ""), "{call:?}: {before:?}");
        let behind = elsewhere.run(&[call, &["--config", &config]].concat()).await;
        assert_eq!((behind.code, &*behind.stderr), (0, ""), "{call:?}: {behind:?}");
    }
    // As plex.toml where they are started, without a flag.
    elsewhere.write("plex.toml", &std::fs::read_to_string(&config).unwrap());
    assert_eq!(elsewhere.run(&["online", "alice"]).await.lines().len(), 1);
}

#[tokio::test]
async fn a_configuration_with_a_port_that_only_the_gateway_knows_is_2() {
    let home = Home::new();
    home.write("plex.toml", "[control]\nlisten = \"127.0.0.1:0\"\n[device]\nlisten = \"127.0.0.1:0\"\n");
    for call in CALLS {
        assert!(home.run(call).await.refusal().starts_with("control.listen is 127.0.0.1:0"), "{call:?}");
    }
    assert!(home.run(&["device", "--uid", "alice"]).await.refusal().starts_with("device.listen is 127.0.0.1:0"));
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_ends_a_command_quietly() {
    let ground = Ground::new().await;
    let uids: Vec<_> = (0..9_000).map(|uid| format!("uid-{uid}")).collect();
    let arguments: Vec<_> = ["online"].into_iter().chain(uids.iter().map(String::as_str)).collect();
    let mut asking = ground.spawn(&arguments);
    asking.stdout.next().await;
    asking.stdout.close();
    // Nobody of them is online: that answer doesn't need to be read.
    assert_eq!(asking.exit().await.code(), Some(1));
    assert_eq!(asking.stderr.all().await, "");
}

#[tokio::test]
async fn a_gateway_that_is_away_for_a_while_is_reached_again_by_the_next_command() {
    let home = Home::new();
    home.write("plex.toml", &fixed_ports(own_loopback()));
    assert_eq!(home.run(&["info"]).await.code, 4);
    let gateway = TestGateway::of(home.spawn(&["serve"])).await;
    assert_eq!(home.run(&["info"]).await.code, 0);
    assert_eq!(gateway.stopped().await.code, 0);
    assert_eq!(home.run(&["info"]).await.code, 4);
    let _gateway = TestGateway::of(home.spawn(&["serve"])).await;
    assert_eq!(home.run(&["info"]).await.code, 0);
}
