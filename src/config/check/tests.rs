use std::time::Duration;

use super::*;
use crate::config::Secret;

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
