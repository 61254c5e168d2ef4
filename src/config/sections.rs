//! Every key, once: its name, type, default and limits stand together, and all else (loading, checking, printing, the
//! names that errors list) is made from here.

mod words;

use std::{fs, path::PathBuf, time::Duration};

pub use self::words::{AuthMode, LogFormat, LogLevel, LogStorage, ProxyProtocol};
use super::{
    Config, ControlSecret, EndpointUrl, HostAddress, ListenAddress, NamedScopes, NatsUrl, Network,
    kind::{
        ClientNames, ClusterName, Count, Endpoint, Files, Given, Hosts, Kind, Listen, ListenOrNone, Name, NatsUrls,
        Networks, Optional, PathOf, Secrets, Size, Span, Switch, Text, Word, Written,
    },
};

/// One key: how it is reached within a [`Config`].
pub(super) struct Key {
    /// Empty for a key outside of the sections.
    pub(super) section: &'static str,
    pub(super) name: &'static str,
    /// Reads a value into its place; None where it isn't allowed.
    pub(super) set: fn(&mut Config, Given<'_>) -> Option<()>,
    pub(super) get: fn(&Config) -> Written,
    pub(super) allowed: fn() -> String,
    /// Whether an error must not show this value.
    pub(super) is_secret: fn(Given<'_>) -> bool,
}

impl Key {
    /// "section.name".
    pub(super) fn full_name(&self) -> String {
        if self.section.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.section, self.name) }
    }

    /// Its environment variable.
    pub(super) fn variable(&self) -> String {
        let section = if self.section.is_empty() { String::new() } else { format!("{}__", self.section) };
        format!("PLEX_{section}{}", self.name).to_ascii_uppercase()
    }
}

const DATA_DIR: Key = Key {
    section: "",
    name: "data_dir",
    set: |config, given| PathOf("folder").read(given).map(|folder| config.data_dir = folder),
    get: |config| PathOf("folder").write(&config.data_dir),
    allowed: || PathOf("folder").allowed(),
    is_secret: |_| false,
};

/// The sections with their keys, in the order in which they are printed; the first has what stands outside of them.
pub(super) const SECTIONS: [(&str, &[Key]); 12] = [
    ("", &[DATA_DIR]),
    ("node", NodeConfig::KEYS),
    ("log", LogConfig::KEYS),
    ("device", DeviceConfig::KEYS),
    ("control", ControlConfig::KEYS),
    ("http", HttpConfig::KEYS),
    ("metrics", MetricsConfig::KEYS),
    ("hosts", HostsConfig::KEYS),
    ("auth", AuthConfig::KEYS),
    ("presence", PresenceConfig::KEYS),
    ("cluster", ClusterConfig::KEYS),
    ("drain", DrainConfig::KEYS),
];

/// Every key.
pub(super) fn keys() -> impl Iterator<Item = &'static Key> {
    SECTIONS.into_iter().flat_map(|(_, keys)| keys)
}

/// A section: the struct, its default, and its keys. A line says: name, type, default; kind with its limits.
macro_rules! section {
    ($(#[$doc:meta])* $config:ident in $section:ident {
        $($(#[$key_doc:meta])* $key:ident: $type:ty = $default:expr; $kind:expr,)*
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $config {
            $($(#[$key_doc])* pub $key: $type,)*
        }

        impl Default for $config {
            fn default() -> Self {
                Self { $($key: $default,)* }
            }
        }

        impl $config {
            const KEYS: &'static [Key] = &[$(Key {
                section: stringify!($section),
                name: stringify!($key),
                set: |config, given| $kind.read(given).map(|value| config.$section.$key = value),
                get: |config| $kind.write(&config.$section.$key),
                allowed: || $kind.allowed(),
                is_secret: |given| $kind.is_secret(given),
            },)*];
        }
    };
}

/// The shortest duration where 0 means nothing.
const TICK: Duration = Duration::from_millis(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const WEEK: Duration = Duration::from_hours(7 * 24);

section! {
    /// The node itself.
    NodeConfig in node {
        /// What operators and events call it: `[A-Za-z0-9._-]{1,64}`. The host's name, without what isn't allowed; `plex`
        /// where nothing remains.
        name: String = host_name(); Name,
    }
}

section! {
    /// What is logged, and how.
    LogConfig in log {
        /// The least important that is logged: `info`, since one connection's life is `debug`.
        level: LogLevel = LogLevel::Info; Word(LogLevel::WORDS),
        /// `text`, for people; `json`, a line each, for collectors.
        format: LogFormat = LogFormat::Text; Word(LogFormat::WORDS),
    }
}

section! {
    /// Devices, and what one connection may do.
    DeviceConfig in device {
        /// Plain TCP for devices: `127.0.0.1:9578`, as nothing leaves loopback unasked. None (empty in a file): no listener.
        listen: Option<ListenAddress> = Some(loopback(9578)); ListenOrNone,
        /// TLS for devices, usually port 9588. None (empty in a file), the default: no listener. Needs `tls_cert` and
        /// `tls_key`.
        tls_listen: Option<ListenAddress> = None; ListenOrNone,
        /// A PEM file with the certificate of `tls_listen` and those that sign it, the own one first. Read again when it
        /// changes, as every certificate and key.
        tls_cert: Option<PathBuf> = None; PathOf("file"),
        /// A PEM file with its private key.
        tls_key: Option<PathBuf> = None; PathOf("file"),
        /// How long a TLS handshake or a PROXY header may take: 10 s, up to a day.
        handshake_timeout: Duration = Duration::from_secs(10); Span(TICK, DAY),
        /// TLS handshakes and PROXY headers under way: 1,000, up to a million. Over it the one that has taken longest is
        /// cut.
        handshakes_max: u32 = 1_000; Count(1, 1_000_000),
        /// Whether a balancer's PROXY header, version 2, stands before everything else and tells the device's address:
        /// `off`. With `v2` it is required, and taken only from `proxy_from`.
        proxy_protocol: ProxyProtocol = ProxyProtocol::Off; Word(ProxyProtocol::WORDS),
        /// The networks of the balancers, up to 100; none by default.
        proxy_from: Vec<Network> = Vec::new(); Networks,
        /// Whether a frame's length is written with its low byte first: `false`, network order.
        little_endian: bool = false; Switch,
        /// How long a device may take to authenticate, the authenticator's own time left out: 30 s, up to a day. It runs from
        /// being accepted; behind a TLS handshake or a PROXY header, which have `handshake_timeout`, from their end.
        auth_timeout: Duration = Duration::from_secs(30); Span(TICK, DAY),
        /// How often it may try on one connection: 3, up to 1,000.
        auth_attempts: u32 = 3; Count(1, 1_000),
        /// How often a device is told to send a sign of life: 60 s, below what routers forget; up to 7 days. It is told in
        /// whole seconds, rounded up.
        heartbeat: Duration = MINUTE; Span(TICK, WEEK),
        /// Without a frame for this long its connection is closed: 120 s, so one lost heartbeat is forgiven; up to 7 days,
        /// and more than `heartbeat`.
        heartbeat_timeout: Duration = Duration::from_secs(120); Span(TICK, WEEK),
        /// Connections that one uid may hold: 1, the newest; up to 1,000.
        connections_per_uid: u32 = 1; Count(1, 1_000),
        /// Connections of one uid that may be replaced in a minute before the next is slowed: 10, up to a million. 0: never
        /// slowed.
        replaces_per_minute: u32 = 10; Count(0, 1_000_000),
        /// Connections in all, up to a hundred million. 0, the default: only the machine's limit.
        max_connections: u32 = 0; Count(0, 100_000_000),
        /// The longest message after authentication, in bytes: 64 KiB, from 1 KiB to 16 MiB.
        max_frame: u32 = 64 << 10; Size(1 << 10, 16 << 20),
        /// Frames that a connection may send in a second on the average: 100, up to a million. More aren't read.
        max_frames_per_second: u32 = 100; Count(1, 1_000_000),
        /// Frames that it may send at once: 200, two seconds' worth; up to a million.
        frames_burst: u32 = 200; Count(1, 1_000_000),
        /// Bad frames in a row until it is closed: 8, up to a million.
        max_errors: u32 = 8; Count(1, 1_000_000),
        /// What may wait for one connection, in bytes: 64 KiB, from 1 KiB to 1 GiB. An empty queue takes any frame.
        queue_bytes: u32 = 64 << 10; Size(1 << 10, 1 << 30),
        /// A connection whose socket takes no byte for this long while something waits is closed: 10 s, up to a day.
        write_timeout: Duration = Duration::from_secs(10); Span(TICK, DAY),
        /// Threads that serve devices, up to 256. 0, the default: half of the cores, at least 1.
        workers: u32 = 0; Count(0, 256),
    }
}

section! {
    /// The control plane.
    ControlConfig in control {
        /// gRPC: `127.0.0.1:9580`. Off loopback it needs TLS or `insecure`, and a secret.
        listen: ListenAddress = loopback(9580); Listen,
        /// A PEM file with the certificate and those that sign it, the own one first. None, the default: no TLS.
        tls_cert: Option<PathBuf> = None; PathOf("file"),
        /// A PEM file with its private key.
        tls_key: Option<PathBuf> = None; PathOf("file"),
        /// A PEM file with the certificates that sign callers' certificates: nobody gets in without one. None, the default:
        /// callers show no certificate.
        tls_client_ca: Option<PathBuf> = None; PathOf("file"),
        /// Names of callers' certificates that stand in for a secret, each with its scopes; up to 100, none by default.
        client_names: Vec<NamedScopes> = Vec::new(); ClientNames,
        /// What callers show, each a text or a file, with a name and scopes; several for rotation, up to 100; the commands
        /// on this machine use the first that has all scopes. None, the default: one is made up at the first start and kept
        /// in `data_dir`, on loopback only. In the environment one can't have a comma.
        secrets: Vec<ControlSecret> = Vec::new(); Secrets,
        /// Whether it may leave loopback without TLS: `false`, since secrets would be readable on the way.
        insecure: bool = false; Switch,
        /// Pushes that may wait for an ack, in all: 100,000, up to ten million.
        ack_waits: u32 = 100_000; Count(1, 10_000_000),
        /// Pushes without a result that one stream may have: 10,000, up to a million. Then it isn't read on.
        stream_window: u32 = 10_000; Count(1, 1_000_000),
        /// Calls that one connection may have under way: 1,000, up to a million.
        max_streams: u32 = 1_000; Count(1, 1_000_000),
        /// After this long a connection is told to go, so that backends spread over new nodes; up to 30 days. None, the
        /// default: never, as one node has nowhere to send them.
        max_connection_age: Option<Duration> = None; Optional(Span(TICK, Duration::from_hours(30 * 24)), "none"),
        /// Threads that serve the control plane, up to 256. 0, the default: half of the cores, at least 1.
        workers: u32 = 0; Count(0, 256),
    }
}

section! {
    /// Host and health.
    HttpConfig in http {
        /// Where devices ask for a host and balancers for health: `127.0.0.1:9579`.
        listen: ListenAddress = loopback(9579); Listen,
        /// A PEM file with the certificate and those that sign it, the own one first. None, the default: no TLS.
        tls_cert: Option<PathBuf> = None; PathOf("file"),
        /// A PEM file with its private key.
        tls_key: Option<PathBuf> = None; PathOf("file"),
    }
}

section! {
    /// Metrics for Prometheus.
    MetricsConfig in metrics {
        /// `127.0.0.1:9581`, apart from what devices reach. None (empty in a file): no listener.
        listen: Option<ListenAddress> = Some(loopback(9581)); ListenOrNone,
    }
}

section! {
    /// Where devices are sent.
    HostsConfig in hosts {
        /// Addresses that devices reach this node by, up to 100; one of them at random is told. None, the default: that of
        /// `device.listen`. Empty: none is known, and whoever asks is told so.
        advertise: Option<Vec<HostAddress>> = None; Optional(Hosts, "that of device.listen"),
        /// The same for TLS. None, the default: that of `device.tls_listen`.
        advertise_tls: Option<Vec<HostAddress>> = None; Optional(Hosts, "that of device.tls_listen"),
    }
}

section! {
    /// Who a device is.
    AuthConfig in auth {
        /// How it is found out. None, the default: `trust` where that is allowed, on loopback or with `insecure`; else it
        /// must be set.
        mode: Option<AuthMode> = None; Optional(Word(AuthMode::WORDS), "\"trust\", where it is allowed"),
        /// Whether `trust` may leave loopback, where anybody could be any device, and a plain `endpoint` or `jwks_url` may,
        /// where credentials could be read on the way: `false`.
        insecure: bool = false; Switch,
        /// `token`: files with an HMAC secret, PEM public keys, or a JWKS; up to 100, none by default. Read again when they
        /// change.
        keys: Vec<PathBuf> = Vec::new(); Files,
        /// `token`: where a JWKS is fetched. None, the default: nowhere.
        jwks_url: Option<EndpointUrl> = None; Endpoint,
        /// How often it is fetched again: 5 min, from 1 s to a day.
        jwks_refresh: Duration = Duration::from_secs(300); Span(Duration::from_secs(1), DAY),
        /// `token`: the `iss` that a token must have. None, the default: any.
        issuer: Option<String> = None; Text,
        /// `token`: the `aud` that a token must have, or one of its `aud`; `"*"`: any. None, the default: any, for HMAC
        /// secrets only.
        audience: Option<String> = None; Text,
        /// `grpc` and `http`: the backend that is asked. None, the default.
        endpoint: Option<EndpointUrl> = None; Endpoint,
        /// A file with what the gateway shows `endpoint` as its bearer. None, the default: nothing.
        secret_file: Option<PathBuf> = None; PathOf("file"),
        /// A PEM file with the certificates that sign those of `endpoint` and of `jwks_url`. None, the default: the
        /// system's.
        ca: Option<PathBuf> = None; PathOf("file"),
        /// How long an authenticator may take: 5 s, up to an hour. Not for `trust`, which asks nobody.
        timeout: Duration = Duration::from_secs(5); Span(TICK, HOUR),
        /// Questions to an authenticator under way: 200, up to a million.
        max_in_flight: u32 = 200; Count(1, 1_000_000),
        /// How long a device waits for the answer that its authenticator can't be asked, so that a storm of retries is
        /// damped: 1 s, up to an hour. 0: no wait.
        unavailable_delay: Duration = Duration::from_secs(1); Span(Duration::ZERO, HOUR),
    }
}

section! {
    /// Presence.
    PresenceConfig in presence {
        /// Changes that are kept for subscribers who come back: 100,000, up to ten million.
        history: u32 = 100_000; Count(1, 10_000_000),
        /// After this long without an event a subscriber gets an empty response: 15 s, up to a day.
        keepalive: Duration = Duration::from_secs(15); Span(TICK, DAY),
        /// For this long after the start no subscriber is told that it knows all, since devices are still coming back; up
        /// to a day. 0, the default: at once.
        settle: Duration = Duration::ZERO; Span(Duration::ZERO, DAY),
    }
}

section! {
    /// Several nodes that act as one, over NATS with JetStream.
    ClusterConfig in cluster {
        /// What tells clusters on the same servers apart, the same on all nodes of one: `plex`; `[a-z0-9-]{1,32}`.
        name: String = "plex".to_owned(); ClusterName,
        /// The NATS servers, up to 100, of which one that answers is used. None, the default: the node is alone, and needs
        /// none. With it `control.secrets` must be set, and `auth.mode = "trust"` needs `auth.insecure`.
        urls: Vec<NatsUrl> = Vec::new(); NatsUrls,
        /// A file with NATS credentials (a user's JWT and the seed of its key), as `nsc` writes it. None, the default.
        credentials: Option<PathBuf> = None; PathOf("file"),
        /// The user, where the servers know it by a password. None, the default.
        user: Option<String> = None; Text,
        /// A file with that user's password; one newline at its end is cut off. None, the default.
        password_file: Option<PathBuf> = None; PathOf("file"),
        /// A PEM file with the certificates that sign those of the servers; with it every connection is TLS. None, the
        /// default: the system's, for `tls://`.
        tls_ca: Option<PathBuf> = None; PathOf("file"),
        /// A PEM file with the certificate that is shown to the servers, the own one first. None, the default: none.
        tls_cert: Option<PathBuf> = None; PathOf("file"),
        /// A PEM file with its private key.
        tls_key: Option<PathBuf> = None; PathOf("file"),
        /// Whether `urls` may leave loopback without TLS or without credentials: `false`, since who can publish there can
        /// push to every device.
        insecure: bool = false; Switch,
        /// Servers that keep the log: 1; 3 where there are three, so that one may fail; up to 5.
        replicas: u32 = 1; Count(1, 5),
        /// Where they keep it: `file`.
        storage: LogStorage = LogStorage::File; Word(LogStorage::WORDS),
        /// The log's size, in bytes: 256 MiB, an hour of a million devices, from 1 MiB to 2 GiB. It must hold what happens
        /// while a node joins, half a minute or so.
        log_bytes: u32 = 256 << 20; Size(1 << 20, 1 << 31),
        /// How often a node gives a sign of life: 500 ms, from 50 ms to a minute.
        heartbeat: Duration = Duration::from_millis(500); Span(Duration::from_millis(50), MINUTE),
        /// Without a word for so many heartbeats a node is declared dead, and whom it held is told offline: 7, from 2 to
        /// 1,000.
        dead_after: u32 = 7; Count(2, 1_000),
        /// For how long changes are gathered into one message when there are many: 5 ms, up to a second, and below
        /// `heartbeat`; 0: each goes at once where `window` lets it.
        gather: Duration = Duration::from_millis(5); Span(Duration::ZERO, Duration::from_secs(1)),
        /// Messages with changes that a node may have under way: 4, up to 64.
        window: u32 = 4; Count(1, 64),
        /// How long another node may take with a push, `ack_timeout` left out: 2 s, up to a minute. After it the outcome
        /// is unknown.
        forward_timeout: Duration = Duration::from_secs(2); Span(TICK, MINUTE),
        /// How long another node may take with a broadcast, a disconnect or a page of sessions: 30 s, up to an hour. After
        /// it its part is missing.
        broadcast_timeout: Duration = Duration::from_secs(30); Span(TICK, HOUR),
    }
}

section! {
    /// The end.
    DrainConfig in drain {
        /// How long a stop may take: 20 s, below the 30 s after which orchestrators kill; up to a day.
        timeout: Duration = Duration::from_secs(20); Span(TICK, DAY),
        /// Devices told to go in a second: 1,000, more where `timeout` less 2 s wouldn't do; up to a million.
        rate: u32 = 1_000; Count(1, 1_000_000),
    }
}

fn loopback(port: u16) -> ListenAddress {
    format!("127.0.0.1:{port}").parse().expect("an IPv4 address with a port is an address")
}

/// The machine's name: the kernel's where it shows it, else what was written down for it.
fn host_name() -> String {
    let known =
        ["/proc/sys/kernel/hostname", "/etc/hostname"].into_iter().find_map(|file| fs::read_to_string(file).ok());
    clean_name(&known.unwrap_or_default())
}

fn clean_name(name: &str) -> String {
    let name: String = name.chars().filter(|c| Name::takes(*c)).take(Name::CHARS_MAX).collect();
    if name.is_empty() { "plex".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_cleaned_to_what_a_node_may_be_called() {
        assert_eq!(clean_name("web-1.example_x\n"), "web-1.example_x");
        assert_eq!(clean_name("bär ÿ"), "br");
        assert_eq!(clean_name(" \n"), "plex");
        assert_eq!(clean_name(&"x".repeat(100)).len(), 64);
    }

    #[test]
    fn every_key_stands_in_its_section_once() {
        for (section, keys) in SECTIONS {
            for (index, key) in keys.iter().enumerate() {
                assert_eq!(key.section, section);
                assert!(keys[..index].iter().all(|other| other.name != key.name), "{}", key.name);
            }
        }
        assert_eq!(SECTIONS[3].1[0].full_name(), "device.listen");
        assert_eq!(SECTIONS[3].1[0].variable(), "PLEX_DEVICE__LISTEN");
        assert_eq!(DATA_DIR.variable(), "PLEX_DATA_DIR");
    }
}
