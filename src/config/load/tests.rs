use std::{fs, time::Duration};

use super::*;
use crate::config::{
    AuthMode, ControlSecret, LogFormat, LogLevel, LogStorage, NamedScopes, ProxyProtocol, Scopes, Secret, SecretSource,
};

fn from(file: Option<&str>, environment: &[(&str, &str)], set: &[&str]) -> Result<Config, String> {
    let folder = tempfile::tempdir().unwrap();
    if let Some(text) = file {
        fs::write(folder.path().join("plex.toml"), text).unwrap();
    }
    let result = load(Sources {
        file: None,
        folder: folder.path().to_owned(),
        environment: environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        set: set.iter().map(|text| (*text).to_owned()).collect(),
    });
    result.map_err(|error| {
        let error = error.to_string().replace(&format!("{}/", folder.path().display()), "");
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    })
}

fn from_file(text: &str) -> Result<Config, String> {
    from(Some(text), &[], &[])
}

fn set(text: &str) -> Result<Config, String> {
    from(None, &[], &[text])
}

/// The secrets that stand in a configuration.
fn texts(secrets: &[crate::config::ControlSecret]) -> Vec<String> {
    let text = |secret: &crate::config::ControlSecret| match &secret.source {
        crate::config::SecretSource::Text(text) => text.expose().to_owned(),
        crate::config::SecretSource::File(file) => panic!("{file:?} is no text"),
    };
    secrets.iter().map(text).collect()
}

#[test]
fn nothing_configured_is_what_the_documentation_says() {
    let config = from(None, &[], &[]).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.device.listen.unwrap().to_string(), "127.0.0.1:9578");
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:9579");
    assert_eq!(config.control.listen.to_string(), "127.0.0.1:9580");
    assert_eq!(config.metrics.listen.unwrap().to_string(), "127.0.0.1:9581");
    assert_eq!((config.device.auth_timeout, config.device.auth_attempts), (Duration::from_secs(30), 3));
    assert_eq!(config.device.heartbeat, Duration::from_secs(60));
    assert_eq!(config.device.heartbeat_timeout, Duration::from_secs(120));
    assert_eq!((config.device.connections_per_uid, config.device.replaces_per_minute), (1, 10));
    assert_eq!((config.device.max_connections, config.device.max_frame), (0, 65_536));
    assert_eq!((config.device.max_frames_per_second, config.device.frames_burst), (100, 200));
    assert_eq!((config.device.max_errors, config.device.queue_bytes), (8, 65_536));
    assert_eq!(config.device.write_timeout, Duration::from_secs(10));
    assert_eq!((config.control.ack_waits, config.control.stream_window), (100_000, 10_000));
    assert_eq!((config.control.max_streams, config.control.max_connection_age), (1_000, None));
    assert_eq!((config.auth.mode, config.auth.insecure), (None, false));
    assert_eq!((config.auth.timeout, config.auth.max_in_flight), (Duration::from_secs(5), 200));
    assert_eq!(config.auth.unavailable_delay, Duration::from_secs(1));
    assert_eq!(config.presence.history, 100_000);
    assert_eq!((config.presence.keepalive, config.presence.settle), (Duration::from_secs(15), Duration::ZERO));
    assert_eq!((config.drain.timeout, config.drain.rate), (Duration::from_secs(20), 1_000));
    assert_eq!((config.log.level, config.log.format), (LogLevel::Info, LogFormat::Text));
    let cluster = config.cluster;
    assert_eq!((&*cluster.name, cluster.urls.len(), cluster.insecure), ("plex", 0, false));
    assert_eq!((cluster.replicas, cluster.storage, cluster.log_bytes), (1, LogStorage::File, 256 << 20));
    assert_eq!((cluster.heartbeat, cluster.dead_after), (Duration::from_millis(500), 7));
    assert_eq!((cluster.gather, cluster.window), (Duration::from_millis(5), 4));
    assert_eq!(cluster.forward_timeout, Duration::from_secs(2));
    assert_eq!(cluster.broadcast_timeout, Duration::from_secs(30));
}

#[test]
fn every_kind_of_value_is_read_from_a_file() {
    let config = from_file(
        "data_dir = \"/d\"\n[node]\nname = \"n\"\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\
         [device]\nlisten = \"\"\nlittle_endian = true\nheartbeat = \"1m 30s\"\nmax_frame = \"1MiB\"\nqueue_bytes = \"100 KB\"\n\
         auth_attempts = 5\n[control]\nsecrets = [\"a,b\", \"c\"]\nmax_connection_age = \"1h\"\n\
         [hosts]\nadvertise = [\"127.0.0.1:1\"]\n[auth]\nmode = \"trust\"\nunavailable_delay = 0\n",
    )
    .unwrap();
    assert_eq!(config.data_dir.as_deref(), Some(Path::new("/d")));
    assert_eq!(
        (config.node.name.as_str(), config.log.level, config.log.format),
        ("n", LogLevel::Debug, LogFormat::Json)
    );
    assert_eq!((config.device.listen, config.device.little_endian), (None, true));
    assert_eq!(config.device.heartbeat, Duration::from_secs(90));
    assert_eq!((config.device.max_frame, config.device.queue_bytes), (1 << 20, 100_000));
    assert_eq!(config.device.auth_attempts, 5);
    assert_eq!(texts(&config.control.secrets), ["a,b", "c"]);
    assert_eq!(config.control.max_connection_age, Some(Duration::from_secs(3600)));
    assert_eq!(config.hosts.advertise.unwrap().len(), 1);
    assert_eq!((config.auth.mode, config.auth.unavailable_delay), (Some(AuthMode::Trust), Duration::ZERO));
}

#[test]
fn the_environment_overrides_the_file_and_the_command_line_both() {
    let file = "[device]\nheartbeat = \"1s\"\nauth_attempts = 1\nmax_errors = 1\n";
    let environment = [("PLEX_DEVICE__AUTH_ATTEMPTS", "2"), ("PLEX_DEVICE__MAX_ERRORS", "2")];
    let config = from(Some(file), &environment, &["device.max_errors=3", "device.max_errors=4"]).unwrap();
    assert_eq!(config.device.heartbeat, Duration::from_secs(1));
    assert_eq!((config.device.auth_attempts, config.device.max_errors), (2, 4));
}

#[test]
fn every_key_is_reached_from_the_environment_and_the_command_line() {
    // No key takes it: what is refused was found.
    const UNFIT: &str = "\0";
    for key in keys() {
        let (name, variable) = (key.full_name(), key.variable());
        let error = set(&format!("{name}={UNFIT}")).unwrap_err();
        assert!(error.starts_with(&name) && error.ends_with(" (--set)") && !error.contains("unknown"), "{error}");
        let error = from(None, &[(&variable, UNFIT)], &[]).unwrap_err();
        assert!(error.starts_with(&name) && error.ends_with(&format!(" ({variable})")), "{error}");
    }
}

#[test]
fn lists_have_commas_in_the_environment_and_on_the_command_line() {
    let config = from(None, &[("PLEX_CONTROL__SECRETS", "one, two")], &["hosts.advertise=a:1,[::1]:2"]).unwrap();
    assert_eq!(texts(&config.control.secrets), ["one", "two"]);
    let hosts = config.hosts.advertise.unwrap();
    assert_eq!(hosts.iter().map(ToString::to_string).collect::<Vec<_>>(), ["a:1", "[::1]:2"]);
    assert!(set("hosts.advertise=a:1,").unwrap_err().starts_with("hosts.advertise = \"a:1,\": a list"));
}

#[test]
fn an_empty_value_is_the_empty_text_or_list() {
    let environment = [("PLEX_DEVICE__LISTEN", ""), ("PLEX_HOSTS__ADVERTISE", ""), ("PLEX_DATA_DIR", "")];
    let config =
        from(Some("data_dir = \"/d\"\n[control]\nsecrets = [\"a\"]\n"), &environment, &["control.secrets="]).unwrap();
    assert_eq!((config.device.listen, config.hosts.advertise), (None, Some(Vec::new())));
    assert_eq!((config.control.secrets, config.data_dir), (Vec::new(), None));
    assert!(set("control.listen=").unwrap_err().starts_with("control.listen = \"\": \"host:port\""));
    assert!(set("device.auth_attempts=").unwrap_err().starts_with("device.auth_attempts = \"\": a whole number"));
}

#[test]
fn an_unknown_key_stops_the_start() {
    let error = from_file("[device]\nlisten = \"\"\n\nhaertbeat = \"1s\"\n").unwrap_err();
    assert!(
        error.starts_with("device.haertbeat: unknown key; device has listen, tls_listen, tls_cert, tls_key, "),
        "{error}"
    );
    assert!(error.ends_with(" (plex.toml:4)"), "{error}");
    let error = from_file("listen = 1").unwrap_err();
    assert!(error.starts_with("listen: unknown key; there are data_dir, node.…, log.…, device.…"), "{error}");
    assert!(from_file("[devices]\nlisten = 1").unwrap_err().starts_with("devices: unknown key; there are "));
    assert!(from_file("\"\" = 1").unwrap_err().starts_with(": unknown key; "));
    assert!(set("device.haertbeat=1s").unwrap_err().starts_with("device.haertbeat: unknown key; device has "));
    assert!(set("device=1s").unwrap_err().starts_with("device: unknown key; there are "));
    assert!(set(".data_dir=/d").unwrap_err().starts_with(".data_dir: unknown key; there are "));
    for section in ["device", "node"] {
        assert!(
            from_file(&format!("{section} = 1"))
                .unwrap_err()
                .starts_with(&format!("{section}: a section, [{section}]"))
        );
    }
}

#[test]
fn keys_of_what_there_is_not_are_unknown() {
    for key in ["cluster.url", "cluster.nodes", "node.address", "cluster"] {
        assert!(set(&format!("{key}=x")).unwrap_err().starts_with(&format!("{key}: unknown key; ")), "{key}");
    }
}

#[test]
fn a_variable_with_two_underscores_that_names_no_key_is_unknown() {
    let error = from(None, &[("PLEX_DEVICE__HAERTBEAT", "1s")], &[]).unwrap_err();
    assert!(error.starts_with("PLEX_DEVICE__HAERTBEAT: unknown key; device has "), "{error}");
    for name in ["PLEX_DEVCIE__LISTEN", "PLEX___X", "PLEX_device__listen", "PLEX_DATA__DIR", "PLEX___DATA_DIR"] {
        assert!(from(None, &[(name, "x")], &[]).unwrap_err().starts_with(&format!("{name}: unknown key; ")), "{name}");
    }
    for name in ["PLEX_SERVICE_HOST", "PLEX_", "PLEX_DEVICE", "OTHER__KEY", "plex_device__listen", "PLEX_DATA_DIRS"] {
        assert!(from(None, &[(name, "x")], &[]).is_ok(), "{name}");
    }
}

#[test]
fn a_file_keeps_to_its_types() {
    for (text, line) in [
        (
            "[device]\nheartbeat = \"30\"",
            "device.heartbeat = \"30\": a duration with its unit, as \"30s\" or \"5m\", from 1ms to 7days (plex.toml:2)",
        ),
        ("[device]\nheartbeat = 30", "device.heartbeat = 30: a duration"),
        ("[device]\nheartbeat = 30.0", "device.heartbeat = 30.0: a duration"),
        ("[device]\nheartbeat = \"\"", "device.heartbeat = \"\": a duration"),
        ("[device]\nheartbeat = \"-1s\"", "device.heartbeat = \"-1s\": a duration"),
        ("[device]\nheartbeat = \"8days\"", "device.heartbeat = \"8days\": a duration"),
        ("[device]\nheartbeat = 0", "device.heartbeat = 0: a duration"),
        (
            "[device]\nmax_frame = 65536",
            "device.max_frame = 65536: a size with its unit, as \"64KiB\" or \"1MB\", from 1KiB to 16MiB",
        ),
        ("[device]\nmax_frame = \"65536\"", "device.max_frame = \"65536\": a size"),
        ("[device]\nmax_frame = \"64kib\"", "device.max_frame = \"64kib\": a size"),
        ("[device]\nmax_frame = \"1023B\"", "device.max_frame = \"1023B\": a size"),
        ("[device]\nmax_frame = \"99999999999999999999GiB\"", "device.max_frame = \"99999999999999999999GiB\": a size"),
        (
            "[device]\nqueue_bytes = \"18446744073709551615GiB\"",
            "device.queue_bytes = \"18446744073709551615GiB\": a size",
        ),
        ("[device]\nauth_attempts = \"3\"", "device.auth_attempts = \"3\": a whole number from 1 to 1000"),
        ("[device]\nauth_attempts = 0", "device.auth_attempts = 0: a whole number"),
        ("[device]\nauth_attempts = -1", "device.auth_attempts = -1: a whole number"),
        ("[device]\nauth_attempts = 4294967297", "device.auth_attempts = 4294967297: a whole number"),
        ("[device]\nlittle_endian = \"true\"", "device.little_endian = \"true\": true or false"),
        ("[device]\nlittle_endian = 1", "device.little_endian = 1: true or false"),
        ("[device]\nlisten = 9578", "device.listen = 9578: \"host:port\""),
        ("[device.listen]\na = 1", "device.listen = "),
        ("[log]\nlevel = \"Info\"", "log.level = \"Info\": one of \"error\", \"warn\", \"info\", \"debug\", \"trace\""),
        (
            "[auth]\nmode = \"tokens\"",
            "auth.mode = \"tokens\": one of \"token\", \"grpc\", \"http\", \"trust\" (plex.toml:2)",
        ),
        ("[device]\nproxy_protocol = \"v1\"", "device.proxy_protocol = \"v1\": one of \"off\", \"v2\""),
        ("[device]\nproxy_from = \"10.0.0.0/8\"", "device.proxy_from = \"10.0.0.0/8\": a list of up to 100 networks"),
        (
            "[device]\nproxy_from = [\"10.0.0.0/33\"]",
            "device.proxy_from = [\"10.0.0.0/33\"]: a list of up to 100 networks",
        ),
        ("[device]\nproxy_from = [\"balancer\"]", "device.proxy_from = [\"balancer\"]: a list of up to 100 networks"),
        ("[device]\nhandshakes_max = 0", "device.handshakes_max = 0: a whole number from 1 to 1000000"),
        ("[control]\ntls_cert = 1", "control.tls_cert = 1: a file's path in UTF-8"),
        (
            "[control]\nclient_names = [\"a\", \"A\"]",
            "control.client_names = [\"a\", \"A\"]: a list of up to 100 different",
        ),
        ("[control]\nclient_names = [{ scopes = [\"push\"] }]", "control.client_names = "),
        ("[control]\nclient_names = [{ name = \"a\", scopes = [] }]", "control.client_names = "),
        ("[control]\nclient_names = [{ name = \"a\", scopes = [\"all\"] }]", "control.client_names = "),
        ("[control]\nclient_names = [{ name = \"a\", secret = \"b\" }]", "control.client_names = "),
        ("[auth]\nkeys = [\"\"]", "auth.keys = [\"\"]: a list of up to 100 files' paths"),
        ("[auth]\nissuer = [\"a\"]", "auth.issuer = [\"a\"]: a text of up to 1024 bytes"),
        ("[auth]\njwks_refresh = \"500ms\"", "auth.jwks_refresh = \"500ms\": a duration with its unit"),
        ("[auth]\nendpoint = \"ftp://a\"", "auth.endpoint = \"ftp://a\": \"http://HOST:PORT/PATH\" or"),
        ("[auth]\nendpoint = \"https://\"", "auth.endpoint = \"https://\": \"http://HOST:PORT/PATH\" or"),
        ("[auth]\nendpoint = \"https://u:p@a/\"", "auth.endpoint = "),
        ("[auth]\njwks_url = \"https://a:0/x\"", "auth.jwks_url = "),
        ("[node]\nname = \"a\\nb\"", "node.name = \"a\\nb\": 1 to 64 of A-Z a-z 0-9 . _ -"),
        ("[hosts]\nadvertise = \"a:1\"", "hosts.advertise = \"a:1\": a list"),
        ("[hosts]\nadvertise = [\"a:0\"]", "hosts.advertise = [\"a:0\"]: a list"),
    ] {
        let error = from_file(text).unwrap_err();
        assert!(error.starts_with(line), "{text}: {error}");
    }
}

#[test]
fn zero_is_taken_where_it_means_something_in_every_form() {
    for zero in ["0", "\"0\"", "\"0s\"", "\"0ms\""] {
        let text = format!("[auth]\nunavailable_delay = {zero}\n[presence]\nsettle = {zero}\n");
        let config = from_file(&text).unwrap();
        assert_eq!((config.auth.unavailable_delay, config.presence.settle), (Duration::ZERO, Duration::ZERO));
        for key in ["device.heartbeat", "drain.timeout", "auth.timeout", "control.max_connection_age"] {
            assert!(set(&format!("{key}={}", zero.trim_matches('"'))).is_err(), "{key}");
        }
    }
    assert_eq!(set("auth.unavailable_delay=0").unwrap().auth.unavailable_delay, Duration::ZERO);
    assert_eq!(set("device.replaces_per_minute=0").unwrap().device.replaces_per_minute, 0);
    assert_eq!(set("device.max_connections=0").unwrap().device.max_connections, 0);
}

#[test]
fn the_value_of_a_secret_is_never_told() {
    for error in [
        set("control.secrets=hush,").unwrap_err(),
        set("control.secrets:hush").unwrap_err(),
        set("control.secretz=hush").unwrap_err(),
        from(None, &[("PLEX_CONTROL__SECRETS", "hush\u{7f}")], &[]).unwrap_err(),
        from_file("[control]\nsecrets = \"hush\"").unwrap_err(),
        from_file("[control]\nsecrets = [\"hush\", 1]").unwrap_err(),
        from_file("[control]\nsecrets = [{ secret = \"hush\", file = \"f\" }]").unwrap_err(),
        from_file("[control]\nsecrets = [{ secret = \"hush\", scopes = [] }]").unwrap_err(),
        from_file("[control]\nsecrets = [{ secret = \"hush\", scopes = [\"all\"] }]").unwrap_err(),
        from_file("[control]\nsecrets = [{ secret = \"hush\", name = \"a b\" }]").unwrap_err(),
        from_file("[control]\nsecrets = [{ secret = \"hush\", scope = [\"push\"] }]").unwrap_err(),
        from_file("[control]\nsecrets = [\"hush\n").unwrap_err(),
    ] {
        assert!(!error.contains("hush"), "{error}");
    }
    let error = set("control.secrets=hush,").unwrap_err();
    assert!(error.starts_with("control.secrets: a list of up to 100, each 1 to 1024 printable"), "{error}");
}

#[test]
fn a_secret_is_a_text_or_a_table_with_a_name_and_scopes() {
    let config = from_file(
        "[control]\nsecrets = [\"plain\", { secret = \"s\" }, { name = \"ops\", file = \"/run/secret\", \
         scopes = [\"admin\", \"push\"] }]\n",
    )
    .unwrap();
    let text = |text| SecretSource::Text(Secret::new(text).unwrap());
    let expected = [
        ControlSecret { name: "secret-1".into(), source: text("plain"), scopes: Scopes::ALL },
        ControlSecret { name: "secret-2".into(), source: text("s"), scopes: Scopes::ALL },
        ControlSecret {
            name: "ops".into(),
            source: SecretSource::File("/run/secret".into()),
            scopes: Scopes::PUSH.with(Scopes::ADMIN),
        },
    ];
    assert_eq!(config.control.secrets, expected);
    // Tables stand in a file only.
    assert_eq!(texts(&set("control.secrets=a,b").unwrap().control.secrets), ["a", "b"]);
}

#[test]
fn secrets_have_different_names_also_those_that_are_named_by_their_place() {
    for list in [
        "{ name = \"a\", secret = \"x\" }, { name = \"a\", secret = \"y\" }",
        "{ name = \"secret-2\", secret = \"x\" }, \"y\"",
        "{ name = \"a\" }",
        "{ name = \"\", secret = \"x\" }",
        "{ name = \"a\", file = \"\" }",
        "{ name = \"a\", secret = \"\" }",
        "{}",
    ] {
        let error = from_file(&format!("[control]\nsecrets = [{list}]")).unwrap_err();
        assert!(
            error.starts_with("control.secrets: a list of up to 100") && error.contains("(plex.toml:2)"),
            "{error}"
        );
    }
    let many: Vec<_> = (0..101).map(|number| format!("\"s{number}\"")).collect();
    assert!(from_file(&format!("[control]\nsecrets = [{}]", many.join(","))).is_err());
    assert!(from_file(&format!("[control]\nsecrets = [{}]", many[1..].join(","))).is_ok());
}

#[test]
fn certificates_names_networks_and_urls_are_read_in_both_forms() {
    let config = from_file(
        "[device]\ntls_listen = \"[::1]:9588\"\ntls_cert = \"c.pem\"\ntls_key = \"k.pem\"\nproxy_protocol = \"v2\"\n\
         proxy_from = [\"10.0.0.0/8\", \"fd00::/8\", \"192.0.2.7\"]\n\
         [control]\ntls_client_ca = \"ca.pem\"\nclient_names = [\"a.example.com\", { name = \"Order Service\", \
         scopes = [\"push\", \"presence\"] }]\n[auth]\nmode = \"http\"\nkeys = [\"a\", \"b\"]\n\
         endpoint = \"https://auth.example.com/v1?x=y\"\njwks_url = \"http://[::1]:8080\"\n",
    )
    .unwrap();
    let device = &config.device;
    assert_eq!((device.tls_cert.as_deref(), device.proxy_protocol), (Some(Path::new("c.pem")), ProxyProtocol::V2));
    let contains = |ip: &str| device.proxy_from.iter().any(|network| network.contains(ip.parse().unwrap()));
    for (ip, inside) in [("10.255.0.1", true), ("::ffff:10.0.0.1", true), ("fdff::1", true), ("192.0.2.7", true)]
        .into_iter()
        .chain([("11.0.0.1", false), ("192.0.2.8", false), ("fe80::1", false), ("::1", false)])
    {
        assert_eq!(contains(ip), inside, "{ip}");
    }
    let scopes = |names: &[(&str, Scopes)]| -> Vec<_> {
        names.iter().map(|(name, scopes)| NamedScopes { name: (*name).into(), scopes: *scopes }).collect()
    };
    let some = Scopes::PUSH.with(Scopes::PRESENCE);
    assert_eq!(config.control.client_names, scopes(&[("a.example.com", Scopes::ALL), ("Order Service", some)]));
    let (endpoint, jwks) = (config.auth.endpoint.unwrap(), config.auth.jwks_url.unwrap());
    assert!(endpoint.is_https() && !endpoint.is_loopback() && !jwks.is_https() && jwks.is_loopback());
    assert_eq!((endpoint.host().to_string().as_str(), endpoint.path()), ("auth.example.com:443", "/v1?x=y"));
    assert_eq!((jwks.host().to_string().as_str(), jwks.path()), ("[::1]:8080", ""));

    let listed = from(None, &[("PLEX_CONTROL__CLIENT_NAMES", "a, b")], &["device.proxy_from=10.0.0.0/8, ::1"]).unwrap();
    assert_eq!(listed.control.client_names, scopes(&[("a", Scopes::ALL), ("b", Scopes::ALL)]));
    assert_eq!(listed.device.proxy_from.len(), 2);
    let emptied = from(
        Some("[control]\ntls_cert = \"a\"\n[auth]\nendpoint = \"http://a\"\nissuer = \"i\"\nkeys = [\"k\"]\n"),
        &[("PLEX_CONTROL__TLS_CERT", ""), ("PLEX_AUTH__KEYS", "")],
        &["auth.endpoint=", "auth.issuer="],
    );
    assert_eq!(emptied.unwrap(), Config::default());
}

#[test]
fn a_flag_without_a_value_is_refused() {
    assert!(set("device.listen").unwrap_err().starts_with("--set device.listen: KEY=VALUE is expected"));
}

#[test]
fn a_bad_value_is_refused_also_where_another_source_overrides_it() {
    assert!(from(Some("[device]\nheartbeat = 1"), &[], &["device.heartbeat=1s"]).is_err());
}

#[test]
fn a_file_that_was_named_must_exist_and_one_that_was_not_need_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("missing.toml");
    let error = load(Sources { file: Some(file.clone()), ..Sources::default() }).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: can't be read: ", file.display())), "{error}");
    let error = load(Sources { file: Some(folder.path().to_owned()), ..Sources::default() }).unwrap_err().to_string();
    assert!(error.contains("can't be read"), "{error}");
    assert!(load(Sources { folder: folder.path().to_owned(), ..Sources::default() }).is_ok());
}

#[test]
fn a_named_file_is_taken_instead_of_the_one_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("plex.toml"), "[device]\nmax_errors = 1\nauth_attempts = 1\n").unwrap();
    let named = folder.path().join("named.toml");
    fs::write(&named, "[device]\nmax_errors = 2\n").unwrap();
    let sources = Sources { file: Some(named), folder: folder.path().to_owned(), ..Sources::default() };
    let config = load(sources).unwrap();
    assert_eq!((config.device.max_errors, config.device.auth_attempts), (2, 3));
}

#[test]
fn a_syntax_error_tells_its_line_and_column() {
    let error = from_file("[device]\nlisten = \"ä\" x\n").unwrap_err();
    assert!(error.starts_with("plex.toml:2:14: "), "{error}");
    assert!(from_file("[device]\nlisten = \"\"\nlisten = \"\"\n").unwrap_err().starts_with("plex.toml:3:1: "));
    let error = from_file("[device\n").unwrap_err();
    assert!(error.starts_with("plex.toml:1:8: "), "{error}");
}

#[test]
fn a_file_that_is_too_large_or_no_text_is_refused() {
    assert!(from_file(&"#".repeat((1 << 20) + 1)).unwrap_err().ends_with("at most 1MiB"));
    assert!(from_file(&"#".repeat(1 << 20)).is_ok());
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("plex.toml"), b"# fine\n# \xff\n").unwrap();
    let error = load(Sources { folder: folder.path().to_owned(), ..Sources::default() }).unwrap_err().to_string();
    assert!(error.ends_with("line 2 isn't UTF-8"), "{error}");
}

#[test]
fn a_long_or_wild_value_is_shown_short_and_in_one_line() {
    let error = set(&format!("node.name={}\n\u{1b}[31m", "x".repeat(5_000))).unwrap_err();
    assert!(error.len() < 300 && !error.contains('\u{1b}'), "{error}");
    let error = from_file(&format!("[device]\n\"a\\n{}\" = 1", "x".repeat(5_000))).unwrap_err();
    assert!(error.len() < 1_000, "{error}");
}
