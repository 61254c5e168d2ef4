//! Where a NATS server is.

use std::{fmt, str::FromStr};

use super::{AddressError, ListenAddress};

/// The port where none is written: NATS's own.
const PORT: u16 = 4222;

/// A NATS server: `nats` or `tls` (which insists on TLS), a host, and a port where it isn't 4222. No user and no password
/// stand in it, so that it can be printed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NatsUrl {
    tls: bool,
    address: ListenAddress,
}

impl NatsUrl {
    /// Whether it insists on TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host with its port.
    #[must_use]
    pub fn address(&self) -> &ListenAddress {
        &self.address
    }

    /// Whether only this machine reaches it: 127.0.0.0/8, `::1` or the name `localhost`.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.address.is_loopback()
    }
}

impl FromStr for NatsUrl {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (scheme, host) = text.split_once("://").ok_or(AddressError)?;
        let tls = match scheme {
            "nats" => false,
            "tls" => true,
            _ => return Err(AddressError),
        };
        // A zone of an IPv6 address has no place in a URL.
        if host.contains('%') {
            return Err(AddressError);
        }
        // A colon inside of brackets is no port's.
        let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
        let address: ListenAddress = if has_port { host.parse() } else { format!("{host}:{PORT}").parse() }?;
        if address.port() == 0 || address.is_wildcard() {
            return Err(AddressError);
        }
        Ok(Self { tls, address })
    }
}

impl fmt::Display for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "tls" } else { "nats" }, self.address)
    }
}

impl fmt::Debug for NatsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_nats_or_tls_with_a_host_and_its_port() {
        for (text, written, tls) in [
            ("nats://127.0.0.1", "nats://127.0.0.1:4222", false),
            ("tls://n1.example:4333", "tls://n1.example:4333", true),
            ("nats://[::1]", "nats://[::1]:4222", false),
            ("tls://[2001:db8::1]:1", "tls://[2001:db8::1]:1", true),
        ] {
            let url: NatsUrl = text.parse().unwrap_or_else(|_| panic!("{text} is a URL"));
            assert_eq!((&*url.to_string(), url.is_tls()), (written, tls));
        }
        for text in [
            "",
            "n1.example:4222",
            "nats://",
            "nats://:4222",
            "nats://n1:0",
            "nats://0.0.0.0:4222",
            "nats://[::]",
            "NATS://n1",
            "ws://n1",
            "http://n1",
            "nats://user:word@n1:4222",
            "nats://token@n1",
            "nats://n1:4222/",
            "nats://n1:4222/path",
            "nats://n1?a=b",
            "nats://[fe80::1%2]:4222",
            "nats://[::1",
            "nats://n1 n2",
            "nats://n\u{e4}",
        ] {
            assert_eq!(text.parse::<NatsUrl>(), Err(AddressError), "{text:?}");
        }
    }
}
