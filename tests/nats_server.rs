//! What the tests of the cluster stand on: real NATS servers that can be ended, frozen and started again, and a link to
//! them that can be cut or frozen. Spoken to by hand, so that no library's habits come between.

mod common;

use std::{future::Future, net::SocketAddr};

use common::{PATIENCE, eventually, link::Link, nats::Nats};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

/// Speaks NATS's text protocol.
struct Client {
    stream: BufReader<TcpStream>,
    info: Value,
}

impl Client {
    async fn connect(address: SocketAddr) -> Self {
        Self::greeted(TcpStream::connect(address).await.expect("the server listens")).await
    }

    async fn greeted(stream: TcpStream) -> Self {
        let mut client = Self::shown(stream, json!({})).await;
        client.pong().await;
        client
    }

    /// One that has shown who it is, and waits for the PONG.
    async fn shown(stream: TcpStream, who: Value) -> Self {
        let mut client = Self { stream: BufReader::new(stream), info: Value::Null };
        let line = client.line().await;
        client.info = serde_json::from_str(line.strip_prefix("INFO ").expect("it begins with INFO")).unwrap();
        let mut connect = json!({"verbose": false, "no_responders": true, "headers": true});
        connect.as_object_mut().unwrap().extend(who.as_object().unwrap().clone());
        client.say(&format!("CONNECT {connect}\r\nPING\r\n")).await;
        client
    }

    async fn say(&mut self, text: &str) {
        within(self.stream.write_all(text.as_bytes())).await.expect("it is connected");
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        assert_ne!(within(self.stream.read_line(&mut line)).await.expect("it is connected"), 0, "a line, not the end");
        line.trim_end().to_owned()
    }

    /// Expects a PONG next, but for what servers tell by the way.
    async fn pong(&mut self) {
        loop {
            let line = self.line().await;
            if !line.starts_with("INFO ") && line != "PING" {
                assert_eq!(line, "PONG");
                return;
            }
        }
    }

    /// Whether the server takes a command.
    async fn may(&mut self, command: &str) -> bool {
        self.say(&format!("{command}\r\nPING\r\n")).await;
        let mut may = true;
        loop {
            match &*self.line().await {
                "PONG" => return may,
                line => may &= !line.starts_with("-ERR 'Permissions Violation"),
            }
        }
    }

    /// Whether nothing has come.
    fn has_nothing(&self) -> bool {
        let nothing = self.stream.get_ref().try_read(&mut [0]);
        self.stream.buffer().is_empty() && nothing.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// The answer to a request, read as JSON; None where nobody is there to answer.
    async fn ask(&mut self, subject: &str, body: &str) -> Option<Value> {
        self.ask_at("inbox", subject, body).await
    }

    /// The same, answered to this subject.
    async fn ask_at(&mut self, inbox: &str, subject: &str, body: &str) -> Option<Value> {
        // The subscription ends with one message.
        let request = format!("SUB {inbox} 1\r\nUNSUB 1 1\r\nPUB {subject} {inbox} {}\r\n{body}\r\n", body.len());
        self.say(&request).await;
        loop {
            let line = self.line().await;
            let words: Vec<_> = line.split(' ').collect();
            match words[..] {
                ["MSG", _, "1", length] => return serde_json::from_slice(&self.payload(length).await).ok(),
                ["HMSG", _, "1", _, length] => {
                    self.payload(length).await;
                    return None;
                }
                ["INFO", ..] | ["PING"] => {}
                _ => panic!("an answer: {line}"),
            }
        }
    }

    async fn payload(&mut self, length: &str) -> Vec<u8> {
        let mut payload = vec![0; length.parse::<usize>().unwrap() + 2];
        within(self.stream.read_exact(&mut payload)).await.expect("it is connected");
        payload.truncate(payload.len() - 2);
        payload
    }

    /// Makes a stream of this name, for the subject of the same name.
    async fn make_stream(&mut self, name: &str, replicas: usize) {
        let config = json!({"name": name, "subjects": [name], "storage": "file", "num_replicas": replicas});
        let answer = self.ask(&format!("$JS.API.STREAM.CREATE.{name}"), &config.to_string()).await;
        let answer = answer.expect("JetStream is on");
        assert!(answer.get("error").is_none(), "{answer}");
    }

    /// How many messages a stream has; None: nobody can tell.
    async fn messages(&mut self, stream: &str) -> Option<u64> {
        self.ask(&format!("$JS.API.STREAM.INFO.{stream}"), "").await?["state"]["messages"].as_u64()
    }
}

/// The accounts of ops/nats, with this password.
fn accounts(password: &str) -> String {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/ops/nats/gateways.conf");
    let text = std::fs::read_to_string(file).expect("it is part of the repository");
    assert_eq!(text.matches("include secrets.conf").count(), 1, "{text}");
    text.replace("include secrets.conf", &format!("plex_password: \"{password}\""))
}

async fn within<T>(wait: impl Future<Output = T>) -> T {
    timeout(PATIENCE, wait).await.expect("in time")
}

#[tokio::test]
async fn a_killed_server_comes_back_at_its_port_with_what_it_stored() {
    let Some(mut nats) = Nats::one().await else { return };
    let mut client = Client::connect(nats.address(0)).await;
    assert_eq!((&client.info["server_name"], &client.info["jetstream"]), (&json!("n0"), &json!(true)));
    client.make_stream("kept", 1).await;
    let stored = client.ask("kept", "a message").await.expect("it is acknowledged");
    assert_eq!(stored["seq"], 1, "{stored}");

    nats.kill(0);
    let refused = TcpStream::connect(nats.address(0)).await;
    assert!(refused.is_err(), "nobody listens");
    nats.restart(0).await;
    assert_eq!(nats.urls(), [format!("nats://{}", nats.address(0))]);
    assert_eq!(Client::connect(nats.address(0)).await.messages("kept").await, Some(1));

    nats.terminate(0).await;
    assert!(nats.log_text(0).contains("Server Exiting"), "it said good-bye: {}", nats.log_text(0));
    nats.restart(0).await;
    assert_eq!(Client::connect(nats.address(0)).await.messages("kept").await, Some(1));
}

#[tokio::test]
async fn a_frozen_server_says_nothing_until_it_goes_on() {
    let Some(nats) = Nats::one().await else { return };
    let mut client = Client::connect(nats.address(0)).await;
    nats.freeze(0).await;
    client.say("PING\r\n").await;
    // Accepted by its kernel: the connection stands, and nobody greets.
    let unanswered = within(TcpStream::connect(nats.address(0))).await.expect("it still listens");
    assert!(client.has_nothing());
    nats.thaw(0);
    client.pong().await;
    Client::greeted(unanswered).await;
}

#[tokio::test]
async fn three_servers_keep_a_stream_when_its_leader_is_killed() {
    let Some(mut nats) = Nats::three().await else { return };
    let mut client = Client::connect(nats.address(0)).await;
    client.make_stream("kept", 3).await;
    let leader = eventually("the stream has a leader", || nats.leader("kept")).await;
    let stored = client.ask("kept", "a message").await.expect("it is acknowledged");
    assert_eq!(stored["seq"], 1, "{stored}");

    nats.kill(leader);
    let other = eventually("another leads", || async { nats.leader("kept").await.filter(|other| *other != leader) });
    let mut client = Client::connect(nats.address(other.await)).await;
    assert_eq!(client.messages("kept").await, Some(1));
    nats.restart(leader).await;
    assert_eq!(Client::connect(nats.address(leader)).await.messages("kept").await, Some(1));
}

#[tokio::test]
async fn a_frozen_link_passes_nothing_until_it_is_mended_and_a_cut_one_ends() {
    let Some(nats) = Nats::one().await else { return };
    let mut direct = Client::connect(nats.address(0)).await;
    let link = Link::to(nats.address(0)).await;
    let mut client = Client::connect(link.address).await;

    link.freeze();
    client.say("PING\r\n").await;
    let unanswered = within(TcpStream::connect(link.address)).await.expect("it is accepted");
    // Whatever the link let through, the server would have answered before this.
    for _ in 0..10 {
        direct.say("PING\r\n").await;
        direct.pong().await;
    }
    assert!(client.has_nothing());
    link.mend();
    client.pong().await;
    Client::greeted(unanswered).await;

    link.cut();
    let mut rest = Vec::new();
    let _ = within(client.stream.read_to_end(&mut rest)).await;
    link.mend();
    Client::connect(link.address).await;
}

#[tokio::test]
async fn the_accounts_of_ops_let_gateways_do_what_they_need_and_nothing_else() {
    let Some(nats) = Nats::with(1, |_| accounts("hush")).await else { return };
    for who in [json!({}), json!({"user": "plex", "pass": "other"}), json!({"user": "route", "pass": "hush"})] {
        let mut stranger = Client::shown(TcpStream::connect(nats.address(0)).await.unwrap(), who).await;
        assert_eq!(stranger.line().await, "-ERR 'Authorization Violation'");
    }
    let stream = TcpStream::connect(nats.address(0)).await.unwrap();
    let mut gateway = Client::shown(stream, json!({"user": "plex", "pass": "hush"})).await;
    gateway.pong().await;

    // The answers come to an inbox below the cluster's own subjects.
    let name = "plex_plex_presence";
    let config = json!({"name": name, "subjects": ["plex.plex.log"], "storage": "file", "max_bytes": 256 << 20,
        "discard": "old", "first_seq": 1_000});
    let consumer = json!({"stream_name": name, "config": {"name": "reader", "deliver_subject": "plex.plex.inbox.log",
        "ack_policy": "none", "flow_control": true, "idle_heartbeat": 500_000_000, "mem_storage": true,
        "deliver_policy": "by_start_sequence", "opt_start_seq": 1_000}});
    let mut nameless = consumer.clone();
    nameless["config"].as_object_mut().unwrap().remove("name");
    for (subject, body) in [
        (format!("STREAM.CREATE.{name}"), config.to_string()),
        (format!("STREAM.INFO.{name}"), String::new()),
        (format!("CONSUMER.CREATE.{name}.reader"), consumer.to_string()),
        (format!("CONSUMER.DELETE.{name}.reader"), String::new()),
        (format!("CONSUMER.CREATE.{name}"), nameless.to_string()),
        (format!("STREAM.DELETE.{name}"), String::new()),
    ] {
        let answer = gateway.ask_at("plex.plex.inbox.api", &format!("$JS.API.{subject}"), &body).await;
        let answer = answer.unwrap_or_else(|| panic!("{subject} is answered"));
        assert!(answer.get("error").is_none(), "{subject}: {answer}");
    }
    for subject in ["plex.plex.log", "plex.plex.to.5", "plex.plex.all", "$JS.FC.plex_plex_presence.reader.1"] {
        assert!(gateway.may(&format!("PUB {subject} 0\r\n")).await, "{subject}");
    }

    for subject in [
        "$JS.API.STREAM.CREATE.other",
        "$JS.API.STREAM.DELETE.other",
        "$JS.API.STREAM.UPDATE.plex_plex_presence",
        "$JS.API.STREAM.PURGE.plex_plex_presence",
        "$JS.API.STREAM.MSG.DELETE.plex_plex_presence",
        "$JS.API.STREAM.NAMES",
        "$JS.API.CONSUMER.CREATE.other",
        "$JS.API.INFO",
        "$SYS.REQ.SERVER.PING",
        "plex.other.log",
        "anything",
    ] {
        assert!(!gateway.may(&format!("PUB {subject} 0\r\n")).await, "{subject}");
    }
    assert!(gateway.may("SUB plex.plex.> 7").await);
    for subject in [">", "plex.>", "plex.other.>", "_INBOX.>", "$JS.>", "$SYS.>"] {
        assert!(!gateway.may(&format!("SUB {subject} 8")).await, "{subject}");
    }
}
