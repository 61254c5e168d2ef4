use std::time::Duration;

use super::*;
use crate::config::{NamedScopes, Scopes, Secret};

fn changed(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    change(&mut config);
    config
}

fn refusal(change: impl FnOnce(&mut Config)) -> String {
    let error = validate(&changed(change)).unwrap_err().to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

fn warned(change: impl FnOnce(&mut Config)) -> Vec<String> {
    validate(&changed(change)).unwrap().iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_configured_is_valid_and_only_trust_is_told_of() {
    assert_eq!(warned(|_| ()), ["auth.mode = \"trust\": every device is taken at its word"]);
}

#[test]
fn without_a_device_listener_nobody_is_trusted_and_nothing_is_told() {
    assert_eq!(warned(|config| config.device.listen = None), Vec::<String>::new());
}

#[test]
fn a_heartbeat_that_is_not_below_its_timeout_is_refused() {
    let error = refusal(|config| config.device.heartbeat = Duration::from_secs(120));
    assert_eq!(error, "device.heartbeat = \"2m\": must be below device.heartbeat_timeout = \"2m\"");
    validate(&changed(|config| config.device.heartbeat = Duration::from_millis(119_999))).unwrap();
}

#[test]
fn a_control_plane_off_loopback_needs_insecure_and_a_secret() {
    let listen = || "0.0.0.0:9580".parse().unwrap();
    let error = refusal(|config| config.control.listen = listen());
    assert!(error.starts_with("control.listen = \"0.0.0.0:9580\": ") && error.contains("control.insecure"), "{error}");
    let error = refusal(|config| {
        config.control.listen = listen();
        config.control.secrets = vec![Secret::new("s").unwrap().into()];
    });
    assert!(error.contains("control.insecure"), "{error}");
    let error = refusal(|config| {
        config.control.listen = listen();
        config.control.insecure = true;
    });
    assert!(error.starts_with("control.secrets: must be set"), "{error}");
    let warnings = warned(|config| {
        config.control.listen = listen();
        config.control.insecure = true;
        config.control.secrets = vec![Secret::new("s").unwrap().into()];
    });
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("control.listen = \"0.0.0.0:9580\""), "{warnings:?}");
}

#[test]
fn tls_off_loopback_needs_a_secret_and_nothing_else_and_is_not_warned_of() {
    let tls = |config: &mut Config| {
        config.control.listen = "0.0.0.0:9580".parse().unwrap();
        config.control.tls_cert = Some("cert.pem".into());
        config.control.tls_key = Some("key.pem".into());
    };
    let error = refusal(tls);
    assert!(error.starts_with("control.secrets: must be set"), "{error}");
    let warnings = warned(|config| {
        tls(config);
        config.control.secrets = vec![Secret::new("s").unwrap().into()];
        config.http.listen = "0.0.0.0:9579".parse().unwrap();
        config.http.tls_cert = Some("cert.pem".into());
        config.http.tls_key = Some("key.pem".into());
    });
    assert_eq!(warnings, ["auth.mode = \"trust\": every device is taken at its word"]);
}

#[test]
fn a_certificate_and_its_key_come_together() {
    type Files<'a> = (&'a mut Option<PathBuf>, &'a mut Option<PathBuf>);
    type FilesOf = fn(&mut Config) -> Files<'_>;
    let sections: [(&str, FilesOf); 3] = [
        ("device", |config| (&mut config.device.tls_cert, &mut config.device.tls_key)),
        ("control", |config| (&mut config.control.tls_cert, &mut config.control.tls_key)),
        ("http", |config| (&mut config.http.tls_cert, &mut config.http.tls_key)),
    ];
    for (section, files) in sections {
        let error = refusal(|config| *files(config).0 = Some("a \"b\".pem".into()));
        assert_eq!(error, format!(r#"{section}.tls_key: must be set, since {section}.tls_cert = "a \"b\".pem" is"#));
        let error = refusal(|config| *files(config).1 = Some("k.pem".into()));
        assert_eq!(error, format!(r#"{section}.tls_cert: must be set, since {section}.tls_key = "k.pem" is"#));
        validate(&changed(|config| {
            *files(config).0 = Some("c.pem".into());
            *files(config).1 = Some("k.pem".into());
        }))
        .unwrap();
    }
    let error = refusal(|config| config.device.tls_listen = Some("127.0.0.1:9588".parse().unwrap()));
    assert!(error.starts_with("device.tls_listen = \"127.0.0.1:9588\": needs device.tls_cert and"), "{error}");
}

#[test]
fn certificates_of_callers_need_tls_and_their_names_the_certificates() {
    let ca = |config: &mut Config| config.control.tls_client_ca = Some("ca.pem".into());
    let names = |config: &mut Config| {
        config.control.client_names = vec![NamedScopes { name: "a".into(), scopes: Scopes::ALL }];
    };
    let pair = |config: &mut Config| {
        config.control.tls_cert = Some("cert.pem".into());
        config.control.tls_key = Some("key.pem".into());
    };
    let error = refusal(ca);
    assert!(error.starts_with("control.tls_client_ca = \"ca.pem\": needs control.tls_cert and"), "{error}");
    let error = refusal(|config| (names(config), pair(config)).1);
    assert!(error.starts_with("control.client_names: needs control.tls_client_ca"), "{error}");
    validate(&changed(|config| (names(config), pair(config), ca(config)).2)).unwrap();
}

#[test]
fn a_proxy_header_needs_to_be_told_from_where_and_brings_devices_from_elsewhere() {
    let proxied = |config: &mut Config| config.device.proxy_protocol = ProxyProtocol::V2;
    let from = |config: &mut Config| config.device.proxy_from = vec!["10.0.0.0/8".parse().unwrap()];
    let error = refusal(proxied);
    assert!(error.starts_with("device.proxy_from: must be set, since device.proxy_protocol = \"v2\""), "{error}");
    let error = refusal(|config| (proxied(config), from(config)).1);
    assert!(error.starts_with("auth.mode: must be set, since device.proxy_protocol = \"v2\""), "{error}");
    let insecure = warned(|config| (proxied(config), from(config), config.auth.insecure = true).2);
    assert_eq!(insecure.len(), 1, "{insecure:?}");
    // Without the header the networks mean nothing; without devices nobody is trusted.
    validate(&changed(from)).unwrap();
    validate(&changed(|config| (proxied(config), from(config), config.device.listen = None).2)).unwrap();
}

#[test]
fn trust_is_refused_wherever_devices_come_from_elsewhere() {
    let pair = |config: &mut Config| {
        config.device.tls_cert = Some("cert.pem".into());
        config.device.tls_key = Some("key.pem".into());
    };
    let error = refusal(|config| {
        pair(config);
        config.device.tls_listen = Some("0.0.0.0:9588".parse().unwrap());
    });
    assert!(error.starts_with("auth.mode: must be set, since device.tls_listen = \"0.0.0.0:9588\""), "{error}");
    let error = refusal(|config| config.hosts.advertise_tls = Some(vec!["a.example.com:1".parse().unwrap()]));
    assert!(error.contains("hosts.advertise_tls = [\"a.example.com:1\"] leaves loopback"), "{error}");
    let warnings = warned(|config| {
        pair(config);
        config.device.tls_listen = Some("0.0.0.0:9588".parse().unwrap());
        config.auth.mode = Some(AuthMode::Token);
        config.auth.keys = vec!["k".into()];
    });
    assert_eq!(warnings.len(), 1, "TLS itself isn't warned of: {warnings:?}");
    assert!(warnings[0].starts_with("hosts.advertise_tls: not set"), "{warnings:?}");
}

#[test]
fn tokens_need_keys_and_public_ones_from_a_url_an_audience() {
    let token = |config: &mut Config| config.auth.mode = Some(AuthMode::Token);
    let url = |config: &mut Config| config.auth.jwks_url = Some("https://a.example.com/jwks".parse().unwrap());
    let error = refusal(token);
    assert!(error.starts_with("auth.keys: it or auth.jwks_url must be set"), "{error}");
    let error = refusal(|config| (token(config), url(config)).1);
    assert!(error.starts_with("auth.audience: must be set") && error.contains("\"*\""), "{error}");
    let warnings = warned(|config| (token(config), url(config), config.auth.audience = Some("*".into())).2);
    assert!(warnings.is_empty(), "{warnings:?}");
    validate(&changed(|config| (token(config), config.auth.keys = vec!["k".into()]).1)).unwrap();
}

#[test]
fn who_is_asked_must_be_set_and_off_loopback_be_https() {
    for (mode, word) in [(AuthMode::Grpc, "grpc"), (AuthMode::Http, "http")] {
        let with = |url: &'static str, insecure: bool| {
            move |config: &mut Config| {
                config.auth.mode = Some(mode);
                config.auth.endpoint = Some(url.parse().unwrap());
                config.auth.insecure = insecure;
            }
        };
        let error = refusal(|config| config.auth.mode = Some(mode));
        assert_eq!(error, format!("auth.endpoint: must be set, since auth.mode = \"{word}\" asks it"));
        let error = refusal(with("http://10.0.0.1:80", false));
        assert_eq!(
            error,
            "auth.endpoint = \"http://10.0.0.1:80\": leaves loopback without TLS, which needs https or auth.insecure = true"
        );
        let warnings = warned(with("http://10.0.0.1:80", true));
        assert!(warnings.len() == 1 && warnings[0].starts_with("auth.insecure = true: auth.endpoint"), "{warnings:?}");
        for url in ["https://10.0.0.1", "http://127.0.0.1:1", "http://localhost", "http://[::1]/"] {
            assert!(warned(with(url, false)).is_empty(), "{url}");
        }
    }
    let grpc = |config: &mut Config| {
        config.auth.mode = Some(AuthMode::Grpc);
        config.auth.endpoint = Some("https://a.example.com/path".parse().unwrap());
    };
    assert!(refusal(grpc).contains("without a path"));
    let jwks = |config: &mut Config| {
        config.auth.mode = Some(AuthMode::Token);
        config.auth.jwks_url = Some("http://a.example.com/jwks".parse().unwrap());
        config.auth.audience = Some("a".into());
    };
    assert!(refusal(jwks).starts_with("auth.jwks_url = \"http://a.example.com/jwks\": leaves loopback"));
    let warnings = warned(|config| (jwks(config), config.auth.insecure = true).1);
    assert!(warnings.len() == 1 && warnings[0].starts_with("auth.insecure = true: auth.jwks_url"), "{warnings:?}");
}

#[test]
fn insecure_on_loopback_is_not_worth_a_warning() {
    assert_eq!(warned(|config| config.control.insecure = true).len(), 1);
}

#[test]
fn devices_from_elsewhere_need_a_mode_and_trust_needs_insecure() {
    let listen = || Some("192.0.2.1:9578".parse().unwrap());
    let error = refusal(|config| config.device.listen = listen());
    assert!(error.starts_with("auth.mode: must be set, since device.listen = \"192.0.2.1:9578\""), "{error}");
    let error = refusal(|config| {
        config.device.listen = listen();
        config.auth.mode = Some(AuthMode::Trust);
    });
    assert!(error.starts_with("auth.mode = \"trust\": ") && error.contains("auth.insecure"), "{error}");
    let error = refusal(|config| {
        config.hosts.advertise = Some(vec!["127.0.0.1:1".parse().unwrap(), "a.example.com:1".parse().unwrap()]);
    });
    assert!(error.contains("hosts.advertise = [\"a.example.com:1\"]"), "{error}");
    let warnings = warned(|config| {
        config.device.listen = listen();
        config.auth.insecure = true;
    });
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

#[test]
fn each_plain_listener_off_loopback_gets_one_warning() {
    let warnings = warned(|config| {
        config.http.listen = "0.0.0.0:9579".parse().unwrap();
        config.metrics.listen = Some("[::]:9581".parse().unwrap());
    });
    let about = |key: &str| warnings.iter().filter(|warning| warning.starts_with(key)).count();
    assert_eq!((warnings.len(), about("http.listen"), about("metrics.listen")), (3, 1, 1), "{warnings:?}");
}

#[test]
fn a_wildcard_that_no_device_can_be_sent_to_is_told_of() {
    let wildcard = |config: &mut Config| {
        config.device.listen = Some("0.0.0.0:9578".parse().unwrap());
        config.auth.insecure = true;
    };
    let about_hosts =
        |warnings: Vec<String>| warnings.iter().filter(|line| line.starts_with("hosts.advertise")).count();
    assert_eq!(about_hosts(warned(wildcard)), 1);
    let advertise = |hosts: &'static [&str]| {
        about_hosts(warned(move |config| {
            wildcard(config);
            config.hosts.advertise = Some(hosts.iter().map(|host| host.parse().unwrap()).collect());
        }))
    };
    assert_eq!(advertise(&[]), 0);
    assert_eq!(advertise(&["a.example.com:9578"]), 0);
    assert_eq!(advertise(&["a.example.com:9578", "[::]:9578"]), 1);
}

#[test]
fn a_value_out_of_its_limits_is_refused_also_when_a_program_set_it() {
    let error = refusal(|config| config.device.max_frame = 10);
    assert!(error.starts_with("device.max_frame = \"10B\": a size with its unit"), "{error}");
    let error = refusal(|config| config.node.name = "a b".to_owned());
    assert!(error.starts_with("node.name = \"a b\": "), "{error}");
    let error = refusal(|config| config.drain.timeout = Duration::ZERO);
    assert!(error.starts_with("drain.timeout = \"0s\": "), "{error}");
}

#[test]
fn devices_are_sent_to_what_is_advertised_without_wildcards() {
    let config = changed(|config| {
        config.hosts.advertise = Some(vec!["0.0.0.0:1".parse().unwrap(), "[2001:db8::1]:2".parse().unwrap()]);
    });
    assert_eq!(advertised(&config, Some("127.0.0.1:9".parse().unwrap())), ["[2001:db8::1]:2"]);
    assert!(advertised(&changed(|config| config.hosts.advertise = Some(Vec::new())), None).is_empty());
}

#[test]
fn devices_are_sent_to_the_listener_where_nothing_is_advertised() {
    let at = |listen: &str, bound: Option<&str>| {
        let config = changed(|config| config.device.listen = Some(listen.parse().unwrap()));
        advertised(&config, bound.map(|bound| bound.parse().unwrap()))
    };
    assert_eq!(at("localhost:0", Some("127.0.0.1:4711")), ["localhost:4711"]);
    assert_eq!(at("[::1]:0", Some("[::1]:4711")), ["[::1]:4711"]);
    assert_eq!(at("127.0.0.1:9578", None), ["127.0.0.1:9578"]);
    assert!(at("127.0.0.1:0", None).is_empty());
    assert!(at("0.0.0.0:0", Some("0.0.0.0:4711")).is_empty());
    assert!(advertised(&changed(|config| config.device.listen = None), None).is_empty());
}

#[cfg(not(feature = "nats"))]
#[test]
fn a_build_without_nats_refuses_a_cluster_and_says_so() {
    let error = refusal(|config| {
        config.device.listen = None;
        config.control.secrets = vec![Secret::new("s").unwrap().into()];
        config.cluster.urls = vec!["nats://127.0.0.1:4222".parse().unwrap()];
    });
    assert!(error.starts_with("cluster.urls = [\"nats://127.0.0.1:4222\"]: this build has no nats"), "{error}");
}
