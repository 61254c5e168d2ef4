//! The effective configuration, as a file.

use std::fmt::Write;

use super::{AuthMode, Config, kind::Written, sections::SECTIONS};

/// `config` as TOML that can be used as a file again, every key with the value that counts. Secrets are left out, and keys
/// that aren't set have no value to print: of both a comment tells, `# control.secrets: 2 set`.
#[must_use]
pub fn print(config: &Config) -> String {
    let mut resolved = Config { data_dir: Some(config.data_dir()), ..config.clone() };
    // What isn't set is this where it is allowed; elsewhere there is no start, and so nothing effective.
    resolved.auth.mode.get_or_insert(AuthMode::Trust);
    let mut text = String::new();
    for (section, keys) in SECTIONS {
        if !section.is_empty() {
            push(&mut text, format_args!("\n[{section}]"));
        }
        for key in keys {
            match (key.get)(&resolved) {
                Written::Value(value) => push(&mut text, format_args!("{} = {value}", key.name)),
                Written::Secret { set: 0, .. } => {
                    push(&mut text, format_args!("# {}: none; made up at the first start", key.full_name()));
                }
                Written::Secret { set, .. } => push(&mut text, format_args!("# {}: {set} set", key.full_name())),
                Written::Comment(comment) => push(&mut text, format_args!("# {}: {comment}", key.full_name())),
            }
        }
    }
    text
}

fn push(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes what is written to it");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AuthMode, LogLevel, LogStorage, NamedScopes, ProxyProtocol, Scopes, Secret, Sources, load};

    /// What a file of `text` is read into.
    fn reload(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("printed.toml");
        std::fs::write(&file, text).unwrap();
        load(Sources { file: Some(file), ..Sources::default() }).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    #[test]
    fn the_default_configuration_can_be_used_as_a_file() {
        let text = print(&Config::default());
        let mut expected = Config { data_dir: Some(Config::default().data_dir()), ..Config::default() };
        expected.auth.mode = Some(AuthMode::Trust);
        assert_eq!(reload(&text), expected);
        assert!(text.contains("\n[device]\nlisten = \"127.0.0.1:9578\"\n"), "{text}");
        assert!(text.contains("\nheartbeat = \"1m\"\n") && text.contains("\nmax_frame = \"64KiB\"\n"), "{text}");
        assert!(text.contains("\n# control.secrets: none; made up at the first start\n"), "{text}");
        assert!(text.contains("\n# control.max_connection_age: none\n"), "{text}");
        assert!(text.contains("\n# hosts.advertise: that of device.listen\n"), "{text}");
    }

    #[test]
    fn what_was_set_survives_printing_and_secrets_are_left_out() {
        let mut config = Config { data_dir: Some("/a \"b\"\n\\c".into()), ..Config::default() };
        config.node.name = "n-1".to_owned();
        config.log.level = LogLevel::Trace;
        config.device.listen = None;
        config.device.max_frame = 1_000_000;
        config.device.queue_bytes = 1_025;
        config.device.heartbeat = std::time::Duration::from_micros(1_500_001);
        config.control.max_connection_age = Some(std::time::Duration::from_hours(720));
        config.hosts.advertise = Some(vec!["a.example.com:1".parse().unwrap(), "[::]:2".parse().unwrap()]);
        config.auth.mode = Some(AuthMode::Trust);
        let printed = print(&config);
        assert_eq!(reload(&printed), config, "{printed}");

        config.control.secrets = vec![Secret::new("hush").unwrap().into(), Secret::new("hush2").unwrap().into()];
        let printed = print(&config);
        assert!(printed.contains("\n# control.secrets: 2 set\n") && !printed.contains("hush"), "{printed}");
    }

    #[test]
    fn certificates_names_networks_and_urls_survive_printing() {
        let mut config = Config { data_dir: Some("/d".into()), ..Config::default() };
        config.device.tls_listen = Some("[::]:9588".parse().unwrap());
        config.device.tls_cert = Some("a \"b\".pem".into());
        config.device.tls_key = Some("/k.pem".into());
        config.device.proxy_protocol = ProxyProtocol::V2;
        config.device.proxy_from = vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        config.control.tls_client_ca = Some("ca.pem".into());
        let named = |name: &str, scopes| NamedScopes { name: name.to_owned(), scopes };
        let some = Scopes::ADMIN.with(Scopes::PRESENCE);
        config.control.client_names = vec![named("a \"b\"", some), named("c.example.com", Scopes::ALL)];
        config.hosts.advertise_tls = Some(vec!["a.example.com:443".parse().unwrap()]);
        config.auth.mode = Some(AuthMode::Http);
        config.auth.endpoint = Some("https://a.example.com/x?y=%20".parse().unwrap());
        config.auth.keys = vec!["k".into()];
        config.auth.issuer = Some("i \\ \"".to_owned());
        let printed = print(&config);
        assert_eq!(reload(&printed), config, "{printed}");
    }

    #[test]
    fn a_cluster_survives_printing() {
        let mut config = Config { data_dir: Some("/d".into()), ..Config::default() };
        config.auth.mode = Some(AuthMode::Trust);
        config.cluster.name = "blue-1".to_owned();
        config.cluster.urls = vec!["nats://127.0.0.1".parse().unwrap(), "tls://[::1]:5".parse().unwrap()];
        config.cluster.credentials = Some("a.creds".into());
        config.cluster.storage = LogStorage::Memory;
        config.cluster.gather = std::time::Duration::from_millis(20);
        let printed = print(&config);
        assert!(printed.contains("urls = [\"nats://127.0.0.1:4222\", \"tls://[::1]:5\"]\n"), "{printed}");
        assert_eq!(reload(&printed), config, "{printed}");
    }

    #[test]
    fn no_listener_and_no_hosts_are_printed_as_such() {
        let mut config = Config { data_dir: Some("/d".into()), ..Config::default() };
        config.auth.mode = Some(AuthMode::Trust);
        config.metrics.listen = None;
        config.hosts.advertise = Some(Vec::new());
        let printed = print(&config);
        assert!(printed.contains("[metrics]\nlisten = \"\"\n") && printed.contains("advertise = []\n"), "{printed}");
        assert_eq!(reload(&printed), config);
    }
}
