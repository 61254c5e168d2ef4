//! Addresses as they are configured: a text that is known to be "host:port".

mod nats;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    str::FromStr,
};

use ipnet::IpNet;

pub use self::nats::NatsUrl;

/// The longest address, in bytes: a node's card has one byte for the length.
const ADDRESS_BYTES_MAX: usize = 255;

/// A text that is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an address is \"host:port\", as \"127.0.0.1:9578\", \"[::1]:9578\" or \"localhost:9578\"")]
pub struct AddressError;

/// Where a listener binds: an IP address or a host name, and a port (0: any free one).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ListenAddress {
    host: String,
    /// Where the host is no name.
    ip: Option<IpAddr>,
    port: u16,
}

impl ListenAddress {
    /// What stands before the port: a name, an IPv4 address, or an IPv6 address in its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The address, where the host isn't a name.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// The port; 0 means any free one.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether only this machine reaches it: 127.0.0.0/8, `::1` or the name `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.ip.map_or_else(|| self.host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback())
    }

    /// Whether it stands for every address of the machine: `0.0.0.0` or `::`.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.ip.is_some_and(|ip| ip.to_canonical().is_unspecified())
    }

    /// The socket addresses behind it. Asks the system's resolver where the host is a name, so it may block.
    ///
    /// # Errors
    ///
    /// The resolver's.
    pub fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        Ok(self.to_string().to_socket_addrs()?.collect())
    }
}

impl FromStr for ListenAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.len() > ADDRESS_BYTES_MAX {
            return Err(AddressError);
        }
        let (host, port) = text.rsplit_once(':').ok_or(AddressError)?;
        // `u16::from_str` would take "+80".
        if !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(AddressError);
        }
        let port = port.parse().map_err(|_| AddressError)?;
        let ip = text.parse::<SocketAddr>().ok().map(|address| address.ip());
        if ip.is_none() && !is_name(host) {
            return Err(AddressError);
        }
        Ok(Self { host: host.to_owned(), ip, port })
    }
}

/// A host name; its last label isn't a number, or the resolver would take "127.1" and "300.0.0.1" for addresses.
fn is_name(host: &str) -> bool {
    let labels = host.strip_suffix('.').unwrap_or(host);
    let valid = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let last = labels.rsplit('.').next().unwrap_or_default();
    labels.split('.').all(valid) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Where a device is sent: as [`ListenAddress`], but with a port from 1 to 65,535.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostAddress(ListenAddress);

impl HostAddress {
    /// Whether only this machine reaches it: 127.0.0.0/8, `::1` or the name `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.0.is_loopback()
    }

    /// Whether it is `0.0.0.0` or `::`, where no device can be sent.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        self.0.is_wildcard()
    }
}

impl FromStr for HostAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let address: ListenAddress = text.parse()?;
        if address.port == 0 { Err(AddressError) } else { Ok(Self(address)) }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Where another server is called: `http` or `https`, a host, a port where it isn't the scheme's, and a path.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EndpointUrl {
    text: String,
    https: bool,
    /// With a port, be it the scheme's.
    host: ListenAddress,
    path: String,
}

impl EndpointUrl {
    /// Whether it is `https`.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.https
    }

    /// Whether only this machine reaches it: 127.0.0.0/8, `::1` or the name `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host.is_loopback()
    }

    /// The host with its port.
    #[must_use]
    pub fn host(&self) -> &ListenAddress {
        &self.host
    }

    /// What stands after host and port: empty, or from its `/` on, with the query.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// The longest URL, in bytes: no server takes a longer request line.
const URL_BYTES_MAX: usize = 2_048;

impl FromStr for EndpointUrl {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        // What RFC 3986 allows, without a fragment; others are written with `%`.
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?[]@!$&'()*+,;=%".contains(&byte);
        if text.len() > URL_BYTES_MAX || !text.bytes().all(allowed) {
            return Err(AddressError);
        }
        let (scheme, rest) = text.split_once("://").ok_or(AddressError)?;
        let (https, port) = match scheme {
            "http" => (false, 80),
            "https" => (true, 443),
            _ => return Err(AddressError),
        };
        let (host, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        // A zone of an IPv6 address has no place in a URL.
        if path.starts_with('?') || path.contains(['[', ']']) || host.contains('%') {
            return Err(AddressError);
        }
        // A colon inside of brackets is no port's.
        let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
        let host = if has_port { host.parse() } else { format!("{host}:{port}").parse() }?;
        if ListenAddress::port(&host) == 0 {
            return Err(AddressError);
        }
        Ok(Self { text: text.to_owned(), https, host, path: path.to_owned() })
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

/// A network of addresses, or one address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network(IpNet);

impl Network {
    /// Whether `ip` belongs to it; an IPv4 address counts the same in its IPv6 form.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&ip.to_canonical())
    }
}

impl FromStr for Network {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network.map(Self).map_err(|_| AddressError)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> ListenAddress {
        text.parse().unwrap_or_else(|_| panic!("{text} is an address"))
    }

    #[test]
    fn addresses_and_names_with_a_port_are_taken_as_they_stand() {
        for text in
            ["127.0.0.1:9578", "[::1]:0", "localhost:65535", "a-b.example.com:1", "my_host:80", "[fe80::1%2]:80"]
        {
            assert_eq!(listen(text).to_string(), text);
        }
        assert_eq!((listen("[::1]:7").host(), listen("[::1]:7").port()), ("[::1]", 7));
        assert_eq!((listen("h:7").host(), listen("h:7").ip()), ("h", None));
    }

    #[test]
    fn what_is_no_host_and_port_is_refused() {
        for text in [
            "",
            ":",
            "9578",
            ":9578",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:65536",
            "127.0.0.1:+80",
            "127.0.0.1:-1",
            "::1:80",
            "[::1]",
            "[::1",
            "127.1:80",
            "300.0.0.1:80",
            "1.2.3.4.5:80",
            "a b:80",
            "a..b:80",
            "http://a:80",
            "a:80 ",
            " a:80",
            "a\n:80",
            "[a]:80",
            "ä:80",
            "0x7f.0.0.1:80",
        ] {
            assert_eq!(text.parse::<ListenAddress>(), Err(AddressError), "{text:?}");
        }
        assert!(format!("{}:80", ["a"; 200].join(".")).parse::<ListenAddress>().is_err());
    }

    #[test]
    fn loopback_is_127_and_the_v6_one_and_localhost() {
        for text in ["127.0.0.1:1", "127.255.1.2:1", "[::1]:1", "localhost:1", "LocalHost:1", "[0:0:0:0:0:0:0:1]:1"] {
            assert!(listen(text).is_loopback(), "{text}");
        }
        for text in ["128.0.0.1:1", "0.0.0.0:1", "[::]:1", "[::2]:1", "localhost.example.com:1", "10.0.0.1:1"] {
            assert!(!listen(text).is_loopback(), "{text}");
        }
    }

    #[test]
    fn wildcards_of_both_families_are_known() {
        for text in ["0.0.0.0:1", "[::]:1", "[::ffff:0.0.0.0]:1", "[0::0]:1"] {
            assert!(listen(text).is_wildcard(), "{text}");
        }
        assert!(!listen("0.0.0.1:1").is_wildcard() && !listen("host:1").is_wildcard());
    }

    #[test]
    fn an_address_for_devices_needs_a_port() {
        assert!("a.example.com:9578".parse::<HostAddress>().is_ok());
        assert!("a.example.com:0".parse::<HostAddress>().is_err());
    }

    #[test]
    fn a_url_is_http_or_https_with_a_host() {
        for (text, host, path) in [
            ("http://a.example", "a.example:80", ""),
            ("https://a.example/", "a.example:443", "/"),
            ("https://[::1]/keys?a=b&c=%20", "[::1]:443", "/keys?a=b&c=%20"),
            ("http://127.0.0.1:8080/a/-._~!$&'()*+,;=:@", "127.0.0.1:8080", "/a/-._~!$&'()*+,;=:@"),
        ] {
            let url: EndpointUrl = text.parse().unwrap_or_else(|_| panic!("{text} is a URL"));
            assert_eq!((&*url.host().to_string(), url.path(), url.as_str()), (host, path, text));
        }
        for text in [
            "",
            "a.example",
            "ftp://a.example",
            "HTTP://a.example",
            "http://",
            "http:///a",
            "http://:80",
            "http://a:0",
            "http://a?b",
            "http://a b",
            "http://a/b c",
            "http://a/#b",
            "http://a/<b>",
            "http://a/{b}",
            "http://a/[b]",
            "http://a/\\b",
            "http://a/\"b\"",
            "http://a/ä",
            "http://user@a.example",
            "http://user:word@a.example",
            "http://[fe80::1%2]:80/",
            "http://[::1",
        ] {
            assert_eq!(text.parse::<EndpointUrl>(), Err(AddressError), "{text:?}");
        }
        assert!(format!("http://a/{}", "b".repeat(URL_BYTES_MAX)).parse::<EndpointUrl>().is_err());
    }

    #[test]
    fn an_ip_address_resolves_to_itself() {
        assert_eq!(listen("[::1]:5").resolve().unwrap(), ["[::1]:5".parse().unwrap()]);
    }
}
