//! What stops the start: one line on stderr, which key, which value, what is allowed; exit code 2.

use super::{
    common::process::{Finished, Home, TestProcess},
    sets,
};

/// Each of these is refused with a line that begins with the key and its value, and then says what is allowed.
const REFUSED: &[(&str, &str, &str)] = &[
    ("node.name=", "node.name = \"\": ", "1 to 64 of A-Z a-z 0-9 . _ -"),
    ("node.name=a b", "node.name = \"a b\": ", "1 to 64"),
    ("log.level=verbose", "log.level = \"verbose\": ", "\"error\", \"warn\", \"info\", \"debug\", \"trace\""),
    ("log.format=xml", "log.format = \"xml\": ", "\"text\", \"json\""),
    ("device.listen=9578", "device.listen = \"9578\": ", "host:port"),
    ("device.listen=127.0.0.1:65536", "device.listen = \"127.0.0.1:65536\": ", "host:port"),
    ("device.little_endian=yes", "device.little_endian = \"yes\": ", "true or false"),
    ("device.auth_timeout=30", "device.auth_timeout = \"30\": ", "a duration with its unit"),
    ("device.auth_timeout=0", "device.auth_timeout = \"0\": ", "a duration with its unit"),
    ("device.auth_attempts=0", "device.auth_attempts = \"0\": ", "a whole number from 1 to"),
    ("device.auth_attempts=three", "device.auth_attempts = \"three\": ", "a whole number from 1 to"),
    ("device.heartbeat=60", "device.heartbeat = \"60\": ", "a duration with its unit"),
    ("device.heartbeat_timeout=-1s", "device.heartbeat_timeout = \"-1s\": ", "a duration with its unit"),
    ("device.connections_per_uid=0", "device.connections_per_uid = \"0\": ", "a whole number from 1 to"),
    ("device.replaces_per_minute=-1", "device.replaces_per_minute = \"-1\": ", "a whole number from 0 to"),
    ("device.max_connections=1.5", "device.max_connections = \"1.5\": ", "a whole number from 0 to"),
    ("device.max_frame=65536", "device.max_frame = \"65536\": ", "a size with its unit"),
    ("device.max_frame=1TiB", "device.max_frame = \"1TiB\": ", "a size with its unit"),
    ("device.max_frames_per_second=0", "device.max_frames_per_second = \"0\": ", "a whole number from 1 to"),
    ("device.frames_burst=0", "device.frames_burst = \"0\": ", "a whole number from 1 to"),
    ("device.max_errors=0", "device.max_errors = \"0\": ", "a whole number from 1 to"),
    ("device.queue_bytes=0", "device.queue_bytes = \"0\": ", "a size with its unit"),
    ("device.write_timeout=0s", "device.write_timeout = \"0s\": ", "a duration with its unit"),
    ("control.listen=", "control.listen = \"\": ", "host:port"),
    ("control.insecure=1", "control.insecure = \"1\": ", "true or false"),
    ("control.ack_waits=0", "control.ack_waits = \"0\": ", "a whole number from 1 to"),
    ("control.stream_window=0", "control.stream_window = \"0\": ", "a whole number from 1 to"),
    ("control.max_streams=0", "control.max_streams = \"0\": ", "a whole number from 1 to"),
    ("control.max_connection_age=0", "control.max_connection_age = \"0\": ", "a duration with its unit"),
    ("http.listen=", "http.listen = \"\": ", "host:port"),
    ("metrics.listen=localhost", "metrics.listen = \"localhost\": ", "host:port"),
    ("hosts.advertise=a", "hosts.advertise = \"a\": ", "a list of"),
    ("hosts.advertise=127.0.0.1:0", "hosts.advertise = \"127.0.0.1:0\": ", "port from 1 to 65535"),
    ("auth.mode=tokens", "auth.mode = \"tokens\": ", "\"token\", \"grpc\", \"http\", \"trust\""),
    ("auth.mode=token", "auth.keys: ", "auth.jwks_url must be set"),
    ("auth.mode=grpc", "auth.endpoint: must be set", "auth.mode = \"grpc\""),
    ("auth.mode=http", "auth.endpoint: must be set", "auth.mode = \"http\""),
    ("auth.endpoint=a.example.com", "auth.endpoint = \"a.example.com\": ", "https://HOST:PORT/PATH"),
    ("auth.jwks_url=https://", "auth.jwks_url = \"https://\": ", "https://HOST:PORT/PATH"),
    ("auth.jwks_refresh=0", "auth.jwks_refresh = \"0\": ", "a duration with its unit"),
    ("auth.keys=a,,b", "auth.keys = \"a,,b\": ", "a list of"),
    ("device.handshake_timeout=0", "device.handshake_timeout = \"0\": ", "a duration with its unit"),
    ("device.handshakes_max=0", "device.handshakes_max = \"0\": ", "a whole number from 1 to"),
    ("device.proxy_protocol=v1", "device.proxy_protocol = \"v1\": ", "\"off\", \"v2\""),
    ("device.proxy_protocol=v2", "device.proxy_from: must be set", "device.proxy_protocol = \"v2\""),
    ("device.proxy_from=10.0.0.0/33", "device.proxy_from = \"10.0.0.0/33\": ", "networks"),
    ("device.tls_listen=127.0.0.1:1", "device.tls_listen = \"127.0.0.1:1\": ", "device.tls_cert and device.tls_key"),
    ("device.tls_cert=a.pem", "device.tls_key: must be set", "device.tls_cert = \"a.pem\""),
    ("control.tls_key=a.pem", "control.tls_cert: must be set", "control.tls_key = \"a.pem\""),
    ("control.tls_client_ca=a.pem", "control.tls_client_ca = \"a.pem\": ", "needs control.tls_cert"),
    ("control.client_names=a", "control.client_names: ", "needs control.tls_client_ca"),
    ("control.client_names=a,A", "control.client_names = \"a,A\": ", "different"),
    ("http.tls_cert=a.pem", "http.tls_key: must be set", "http.tls_cert = \"a.pem\""),
    ("hosts.advertise_tls=a", "hosts.advertise_tls = \"a\": ", "a list of"),
    ("auth.insecure=TRUE", "auth.insecure = \"TRUE\": ", "true or false"),
    ("auth.timeout=5", "auth.timeout = \"5\": ", "a duration with its unit"),
    ("auth.max_in_flight=0", "auth.max_in_flight = \"0\": ", "a whole number from 1 to"),
    ("auth.unavailable_delay=1", "auth.unavailable_delay = \"1\": ", "a duration with its unit"),
    ("presence.history=0", "presence.history = \"0\": ", "a whole number from 1 to"),
    ("presence.keepalive=0", "presence.keepalive = \"0\": ", "a duration with its unit"),
    ("presence.settle=15", "presence.settle = \"15\": ", "a duration with its unit"),
    ("drain.timeout=0", "drain.timeout = \"0\": ", "a duration with its unit"),
    ("drain.rate=0", "drain.rate = \"0\": ", "a whole number from 1 to"),
    ("cluster.name=Plex", "cluster.name = \"Plex\": ", "1 to 32 of a-z 0-9 -"),
    ("cluster.name=", "cluster.name = \"\": ", "1 to 32 of a-z 0-9 -"),
    (
        "cluster.urls=127.0.0.1:4222",
        "cluster.urls = \"127.0.0.1:4222\": ",
        "\"nats://HOST:PORT\" or \"tls://HOST:PORT\"",
    ),
    ("cluster.urls=nats://a,", "cluster.urls = \"nats://a,\": ", "a list of up to 100"),
    ("cluster.urls=nats://0.0.0.0:4222", "cluster.urls = \"nats://0.0.0.0:4222\": ", "nats://HOST:PORT"),
    ("cluster.user=plex", "cluster.password_file: must be set", "cluster.user = \"plex\""),
    ("cluster.password_file=a", "cluster.user: must be set", "cluster.password_file = \"a\""),
    ("cluster.tls_cert=a.pem", "cluster.tls_key: must be set", "cluster.tls_cert = \"a.pem\""),
    ("cluster.tls_key=a.pem", "cluster.tls_cert: must be set", "cluster.tls_key = \"a.pem\""),
    ("cluster.insecure=yes", "cluster.insecure = \"yes\": ", "true or false"),
    ("cluster.replicas=0", "cluster.replicas = \"0\": ", "a whole number from 1 to 5"),
    ("cluster.replicas=6", "cluster.replicas = \"6\": ", "a whole number from 1 to 5"),
    ("cluster.storage=disk", "cluster.storage = \"disk\": ", "\"file\", \"memory\""),
    ("cluster.log_bytes=1000KiB", "cluster.log_bytes = \"1000KiB\": ", "from 1MiB to 2GiB"),
    ("cluster.heartbeat=49ms", "cluster.heartbeat = \"49ms\": ", "from 50ms to 1m"),
    ("cluster.heartbeat=0", "cluster.heartbeat = \"0\": ", "from 50ms to 1m"),
    ("cluster.dead_after=1", "cluster.dead_after = \"1\": ", "a whole number from 2 to 1000"),
    ("cluster.gather=2s", "cluster.gather = \"2s\": ", "from 0 to 1s"),
    ("cluster.gather=500ms", "cluster.gather = \"500ms\": ", "below cluster.heartbeat = \"500ms\""),
    ("cluster.window=0", "cluster.window = \"0\": ", "a whole number from 1 to 64"),
    ("cluster.forward_timeout=0", "cluster.forward_timeout = \"0\": ", "from 1ms to 1m"),
    ("cluster.broadcast_timeout=61m", "cluster.broadcast_timeout = \"61m\": ", "from 1ms to 1h"),
    ("device.heartbeat=2m", "device.heartbeat = \"2m\": ", "below device.heartbeat_timeout"),
    ("device.heartbeat_timeout=1m", "device.heartbeat = \"1m\": ", "below device.heartbeat_timeout"),
];

/// Keys that never were.
const UNKNOWN: &[&str] =
    &["cluster.nodes", "cluster.url", "device.haertbeat", "device", "devices.listen", "listen", "Device.listen"];

async fn served(home: &Home, set: &str) -> Finished {
    home.run(&["serve", "--set", set]).await
}

#[tokio::test]
async fn a_bad_value_stops_the_start_with_one_line_of_key_value_and_what_is_allowed() {
    let home = Home::new();
    for (set, begins, allowed) in REFUSED {
        let refused = served(&home, set).await;
        let line = refused.refusal();
        assert!(line.starts_with(begins) && line.contains(allowed), "{set}: {line}");
        let checked = home.run(&["check", "--set", set]).await;
        assert_eq!(checked.refusal(), line, "check says the same");
    }
    assert!(!home.path(".local").exists(), "nothing was made before the configuration was known to be good");
}

#[tokio::test]
async fn an_unknown_key_stops_the_start_with_one_line_that_names_it() {
    let home = Home::new();
    for key in UNKNOWN {
        let refused = served(&home, &format!("{key}=x")).await;
        let line = refused.refusal();
        assert!(line.starts_with(&format!("{key}: unknown key; ")), "{line}");
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let text = if section.is_empty() { format!("{name} = 1") } else { format!("[{section}]\n{name} = \"x\"") };
        let file = home.write("unknown.toml", &text);
        let refused = home.run(&["serve", "--config", &file]).await;
        let line = refused.refusal();
        if *key == "device" {
            assert!(line.starts_with("device: a section, [device]"), "{line}");
        } else {
            // A section that doesn't exist is what is unknown.
            assert!(line.starts_with(section) && line.contains(": unknown key; "), "{line}");
        }
        assert!(line.contains("unknown.toml:"), "it says where: {line}");
    }
}

#[tokio::test]
async fn a_variable_of_the_environment_that_names_no_key_stops_the_start() {
    let home = Home::new();
    for name in ["PLEX_DEVICE__HAERTBEAT", "PLEX_DEVCIE__LISTEN", "PLEX_CLUSTER__NODES", "PLEX_DATA__DIR"] {
        let mut command = home.command(&["serve"]);
        command.env(name, "x");
        let refused = TestProcess::spawn(command).finished().await;
        assert!(refused.refusal().starts_with(&format!("{name}: unknown key; ")), "{refused:?}");
    }
    let mut command = home.command(&["serve"]);
    command.env("PLEX_DEVICE__HEARTBEAT", "5");
    let refused = TestProcess::spawn(command).finished().await;
    let line = refused.refusal();
    assert!(line.starts_with("device.heartbeat = \"5\": a duration") && line.contains("PLEX_DEVICE__HEARTBEAT"));
}

#[tokio::test]
async fn a_bad_file_stops_the_start_with_one_line_that_says_where() {
    let home = Home::new();
    for (text, line) in [
        ("[device]\nlisten = \"\" x\n", "plex.toml:2:13: "),
        ("[device\n", "plex.toml:1:"),
        ("[device]\nlisten = \"\"\nlisten = \"\"\n", "plex.toml:3:1: "),
        ("[device]\nheartbeat = 30\n", "device.heartbeat = 30: a duration with its unit"),
        ("[device]\nmax_frame = 65536\n", "device.max_frame = 65536: a size with its unit"),
        ("[device]\nauth_attempts = \"3\"\n", "device.auth_attempts = \"3\": a whole number"),
        ("[device]\nlittle_endian = \"true\"\n", "device.little_endian = \"true\": true or false"),
        ("[hosts]\nadvertise = \"127.0.0.1:1\"\n", "hosts.advertise = \"127.0.0.1:1\": a list"),
        ("device = 1\n", "device: a section"),
    ] {
        home.write("plex.toml", text);
        let refused = home.run(&["serve"]).await;
        assert!(refused.refusal().starts_with(line), "{text}: {refused:?}");
    }
}

#[tokio::test]
async fn a_secret_is_never_shown_by_what_refuses_it() {
    let home = Home::new();
    for set in ["control.secrets=hush,", "control.secrets=hüsh", "control.secrets=hush\u{7f}", "control.secrets:hush"]
    {
        let refused = served(&home, set).await;
        let line = refused.refusal();
        assert!(line.contains("control.secrets") && !line.contains("hush") && !line.contains("hüsh"), "{line}");
    }
    for text in ["secrets = \"hush\"", "secrets = [{ name = \"a b\", secret = \"hush\" }]", "secrets = [\"\"]"] {
        home.write("plex.toml", &format!("[control]\n{text}\n"));
        let refused = home.run(&["serve"]).await;
        let line = refused.refusal();
        assert!(line.starts_with("control.secrets: a list of") && !line.contains("hush"), "{line}");
    }
}

#[tokio::test]
async fn a_refusal_is_one_line_also_where_the_log_tells_everything() {
    let home = Home::new();
    for format in ["log.format=text", "log.format=json"] {
        for bad in ["device.heartbeat=3m", "control.listen=192.0.2.1:1", "device.listen=192.0.2.1:1"] {
            let refused = home.run(&[&["serve"][..], &sets(&["log.level=trace", format, bad])].concat()).await;
            refused.refusal();
        }
    }
}

#[tokio::test]
async fn every_command_refuses_a_bad_configuration() {
    let home = Home::new();
    home.write("plex.toml", "[device]\nheartbeat = 1\n");
    for command in [
        &["serve"][..],
        &["check"],
        &["secret"],
        &["push", "alice", "/a", "b"],
        &["online", "alice"],
        &["watch"],
        &["host"],
        &["info"],
        &["device", "--uid", "alice"],
    ] {
        let refused = home.run(command).await;
        assert!(refused.refusal().starts_with("device.heartbeat = 1: "), "{command:?}: {refused:?}");
    }
}
