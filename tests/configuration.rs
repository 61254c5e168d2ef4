//! What the configuration promises, through the program: where values come from, what stops the start and with which
//! line, and what the keys do.

mod common;

#[path = "configuration/cluster.rs"]
mod cluster;
#[path = "configuration/effects.rs"]
mod effects;
#[path = "configuration/loopback.rs"]
mod loopback;
#[path = "configuration/refusals.rs"]
mod refusals;

use std::fs;

use common::{
    certs::Authority,
    process::{Finished, Home},
};

/// The value that `plex check` prints for a key; None: a comment, or nothing.
#[track_caller]
fn value(checked: &Finished, section: &str, key: &str) -> Option<String> {
    assert_eq!(checked.code, 0, "{checked:?}");
    let table: toml::Table = checked.stdout.parse().expect("it is TOML");
    let table = if section.is_empty() { Some(&table) } else { table.get(section).and_then(|table| table.as_table()) };
    table.and_then(|table| table.get(key)).map(ToString::to_string)
}

/// `key=value` pairs as `--set` takes them.
fn sets<'a>(values: &[&'a str]) -> Vec<&'a str> {
    values.iter().flat_map(|value| ["--set", value]).collect()
}

#[tokio::test]
async fn nothing_configured_is_every_default_of_the_table() {
    let home = Home::new();
    let checked = home.run(&["check"]).await;
    let expected = "
        data_dir = HOME/.local/state/plex
        [log] level = info | format = text
        [device] listen = 127.0.0.1:9578 | little_endian = false | auth_timeout = 30s | auth_attempts = 3
        [device] heartbeat = 1m | heartbeat_timeout = 2m | connections_per_uid = 1 | replaces_per_minute = 10
        [device] max_connections = 0 | max_frame = 64KiB | max_frames_per_second = 100 | frames_burst = 200
        [device] max_errors = 8 | queue_bytes = 64KiB | write_timeout = 10s
        [device] tls_listen =  | handshake_timeout = 10s | handshakes_max = 1000 | proxy_protocol = off | proxy_from = []
        [control] listen = 127.0.0.1:9580 | insecure = false | ack_waits = 100000 | stream_window = 10000
        [control] max_streams = 1000 | client_names = []
        [http] listen = 127.0.0.1:9579
        [metrics] listen = 127.0.0.1:9581
        [auth] keys = [] | jwks_refresh = 5m
        [auth] mode = trust | insecure = false | timeout = 5s | max_in_flight = 200 | unavailable_delay = 1s
        [presence] history = 100000 | keepalive = 15s | settle = 0s
        [cluster] name = plex | urls = [] | insecure = false | replicas = 1 | storage = file | log_bytes = 256MiB
        [cluster] heartbeat = 500ms | dead_after = 7 | gather = 5ms | window = 4
        [cluster] forward_timeout = 2s | broadcast_timeout = 30s
        [drain] timeout = 20s | rate = 1000";
    for line in expected.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (section, pairs) = line.strip_prefix('[').and_then(|line| line.split_once("] ")).unwrap_or(("", line));
        for (key, expected) in pairs.split(" | ").map(|pair| pair.split_once(" = ").unwrap()) {
            let found = value(&checked, section, key).unwrap_or_else(|| panic!("{section}.{key}: {checked:?}"));
            let expected = expected.replace("HOME", &home.text(""));
            assert_eq!(found.trim_matches('"'), expected.replace("//", "/"), "{section}.{key}");
        }
    }
    for comment in [
        "# control.secrets: none; made up at the first start",
        "# control.max_connection_age: none",
        "# hosts.advertise: that of device.listen",
        "# hosts.advertise_tls: that of device.tls_listen",
        "# device.tls_cert: not set",
        "# control.tls_client_ca: not set",
        "# http.tls_key: not set",
        "# auth.endpoint: not set",
        "# cluster.credentials: not set",
        "# cluster.user: not set",
    ] {
        assert!(checked.stdout.lines().any(|line| line == comment), "{comment}: {checked:?}");
    }
    assert_eq!(checked.complaint(), "warning: auth.mode = \"trust\": every device is taken at its word");
}

#[tokio::test]
async fn the_environment_counts_over_the_file_and_set_over_both() {
    let home = Home::new();
    home.write("plex.toml", "[device]\nmax_errors = 1\nauth_attempts = 1\nheartbeat = \"1s\"\n");
    let arguments = ["check", "--set", "device.max_errors=3", "--set", "device.max_errors=4"];
    let mut command = home.command(&arguments);
    command.env("PLEX_DEVICE__MAX_ERRORS", "2").env("PLEX_DEVICE__AUTH_ATTEMPTS", "2");
    command.env("PLEX_DEVICE__HEARTBEAT_TIMEOUT", "5s");
    let checked = common::process::TestProcess::spawn(command).finished().await;
    for (key, expected) in
        [("max_errors", "4"), ("auth_attempts", "2"), ("heartbeat", "\"1s\""), ("heartbeat_timeout", "\"5s\"")]
    {
        assert_eq!(value(&checked, "device", key).as_deref(), Some(expected), "{key}");
    }
}

#[tokio::test]
async fn a_plex_toml_where_it_is_started_counts_unless_another_file_is_named() {
    let home = Home::new();
    home.write("plex.toml", "[node]\nname = \"found\"\n[device]\nmax_errors = 1\n");
    let named = home.write("named.toml", "[node]\nname = \"named\"\n");
    let found = home.run(&["check"]).await;
    assert_eq!(value(&found, "node", "name").as_deref(), Some("\"found\""));
    for arguments in [["check", "--config", &named], ["--config", "named.toml", "check"]] {
        let checked = home.run(&arguments).await;
        assert_eq!(value(&checked, "node", "name").as_deref(), Some("\"named\""));
        assert_eq!(value(&checked, "device", "max_errors").as_deref(), Some("8"), "one file counts, not both");
    }
    let missing = home.run(&["serve", "--config", "missing.toml"]).await;
    assert!(missing.refusal().starts_with("missing.toml: can't be read: "), "{missing:?}");
}

#[tokio::test]
async fn lists_have_commas_in_the_environment_and_in_set() {
    let home = Home::new();
    let mut command = home.command(&["check", "--set", "hosts.advertise=127.0.0.1:1, [::1]:2,localhost:3"]);
    command.env("PLEX_CONTROL__SECRETS", "one,two").env("PLEX_HOSTS__ADVERTISE", "127.0.0.1:9");
    let checked = common::process::TestProcess::spawn(command).finished().await;
    let hosts = value(&checked, "hosts", "advertise").unwrap();
    assert_eq!(hosts, r#"["127.0.0.1:1", "[::1]:2", "localhost:3"]"#);
    assert!(checked.stdout.contains("\n# control.secrets: 2 set\n"), "{checked:?}");
}

#[tokio::test]
async fn of_other_variables_only_the_data_folder_counts() {
    let home = Home::new();
    let mut command = home.command(&["check"]);
    command.env("PLEX_DATA_DIR", "/data").env("PLEX_LOG_LEVEL", "nonsense").env("PLEX_CONFIG", "/nonexistent");
    command.env("PLEX_SERVICE_HOST", "10.0.0.1").env("OTHER__KEY", "x");
    let checked = common::process::TestProcess::spawn(command).finished().await;
    assert_eq!(value(&checked, "", "data_dir").as_deref(), Some("\"/data\""));
    assert_eq!(value(&checked, "log", "level").as_deref(), Some("\"info\""));
}

#[tokio::test]
async fn the_data_folder_follows_the_state_home() {
    let home = Home::new();
    let mut command = home.command(&["check"]);
    command.env("XDG_STATE_HOME", "/state");
    let checked = common::process::TestProcess::spawn(command).finished().await;
    assert_eq!(value(&checked, "", "data_dir").as_deref(), Some("\"/state/plex\""));
}

#[tokio::test]
async fn durations_and_sizes_carry_their_unit_and_0_stands_where_it_says_so() {
    let home = Home::new();
    let taken = [
        ("device.heartbeat=1m 30s", "\"1m 30s\""),
        ("device.heartbeat=500ms", "\"500ms\""),
        ("drain.timeout=2h", "\"2h\""),
        ("device.max_frame=1MiB", "\"1MiB\""),
        ("device.queue_bytes=100KB", "\"100KB\""),
        ("device.max_frame=1025B", "\"1025B\""),
        ("presence.settle=0", "\"0s\""),
        ("auth.unavailable_delay=0", "\"0s\""),
        ("device.replaces_per_minute=0", "0"),
        ("device.max_connections=0", "0"),
        ("control.max_connection_age=1h", "\"1h\""),
    ];
    for (set, printed) in taken {
        let (section, key) = set.split_once('=').unwrap().0.split_once('.').unwrap();
        let checked = home.run(&["check", "--set", set]).await;
        assert_eq!(value(&checked, section, key).as_deref(), Some(printed), "{set}");
    }
}

#[tokio::test]
async fn what_check_prints_can_be_used_as_a_file() {
    let home = Home::new();
    home.write("s", "the-gateway-s-own");
    let authority = Authority::new();
    let pair = authority.server("server");
    for (name, file) in
        [("a \"b\".pem", &pair.cert), ("c.pem", &pair.cert), ("k.pem", &pair.key), ("ca.pem", &authority.ca())]
    {
        fs::copy(file, home.path(name)).unwrap();
    }
    let odd = sets(&[
        "data_dir=/a \"b\"\\c",
        "node.name=n-1.x_Y",
        "log.level=trace",
        "log.format=json",
        "device.listen=",
        "device.little_endian=true",
        "device.max_frame=1000001B",
        "device.heartbeat=1s 500ms 1us",
        "control.listen=[::1]:1",
        "control.max_connection_age=30days",
        "metrics.listen=",
        "hosts.advertise=127.0.0.1:1,[::1]:2",
        "auth.mode=trust",
        "presence.settle=0",
    ]);
    let protected = sets(&[
        "device.tls_listen=[::1]:9588",
        "device.tls_cert=a \"b\".pem",
        "device.tls_key=k.pem",
        "device.proxy_protocol=v2",
        "device.proxy_from=10.0.0.0/8,::1",
        "control.tls_cert=c.pem",
        "control.tls_key=k.pem",
        "control.tls_client_ca=ca.pem",
        "control.client_names=orders.example.com,Order Service",
        "http.tls_cert=c.pem",
        "http.tls_key=k.pem",
        "hosts.advertise_tls=a.example.com:443",
        "auth.mode=http",
        "auth.endpoint=https://auth.example.com/v1",
        "auth.secret_file=s",
    ]);
    for arguments in [vec![], odd, protected] {
        let first = home.run(&[&["check"][..], &arguments].concat()).await;
        home.write("printed.toml", &first.stdout);
        let second = home.run(&["check", "--config", "printed.toml"]).await;
        assert_eq!((second.code, &second.stdout, &second.stderr), (0, &first.stdout, &first.stderr));
    }
}

#[tokio::test]
async fn check_shows_no_secret_and_says_how_many_are_set() {
    let home = Home::new();
    home.write("hush-file", "hush-in-the-file");
    home.write("plex.toml", "[control]\nsecrets = [\"hush-1\", \"hush-2\"]\n");
    let checked = home.run(&["check"]).await;
    assert!(checked.stdout.contains("\n# control.secrets: 2 set\n"), "{checked:?}");
    assert!(!format!("{checked:?}").contains("hush"), "{checked:?}");
    home.write(
        "named.toml",
        "[control]\nsecrets = [\"hush-1\", { name = \"ops\", secret = \"hush-2\", scopes = [\"admin\"] }, \
         { name = \"file\", file = \"hush-file\" }]\n",
    );
    let checked = home.run(&["check", "--config", "named.toml"]).await;
    assert!(checked.stdout.contains("\n# control.secrets: 3 set\n"), "{checked:?}");
    assert!(!format!("{checked:?}").contains("hush"), "{checked:?}");
    let checked = home.run(&["check", "--set", "control.secrets=hush-3"]).await;
    assert!(checked.stdout.contains("\n# control.secrets: 1 set\n"), "{checked:?}");
    assert!(!format!("{checked:?}").contains("hush"), "{checked:?}");
}
