//! The PROXY header, version 2, by which a balancer tells a device's address.
//!
//! ```text
//! 0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a   signature
//! 21                                    version 2, PROXY (20: LOCAL, the balancer's own connection)
//! 11                                    TCP over IPv4 (21: over IPv6)
//! 00 0c                                 what follows, in bytes: addresses, then TLVs
//! c0 00 02 07  c6 33 64 01  c3 50  25 6a   192.0.2.7 to 198.51.100.1, from port 50000 to 9578
//! ```

use std::{future::poll_fn, io, net::SocketAddr};

use ppp::v2::{Addresses, Command, Header, ParseError, Protocol};

use super::transport::Transport;

/// The largest header in bytes, its TLVs included.
const HEADER_BYTES_MAX: usize = 4 * 1024;

/// Bytes before the addresses.
const FIXED_BYTES: usize = 16;

/// Why a header isn't taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("{0:?}")]
    Malformed(ParseError),
    #[error("it has {0} bytes, at most {HEADER_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("{0}")]
    Unusable(&'static str),
    #[error("the connection ended: {0}")]
    Ended(#[from] io::Error),
}

/// Reads the header and not a byte more. The address that it tells; none: the connection's own counts.
pub(super) async fn read<T: Transport>(transport: &T) -> Result<Option<SocketAddr>, HeaderError> {
    let mut header = Vec::new();
    let mut wanted = FIXED_BYTES;
    loop {
        let mut part = [0; 256];
        let room = part.len().min(wanted - header.len());
        let count = poll_fn(|cx| transport.poll_read(cx, &mut part[..room])).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        header.extend_from_slice(&part[..count]);
        match Header::try_from(header.as_slice()) {
            Ok(header) => return told(&header),
            Err(ParseError::Incomplete(_)) => {}
            Err(ParseError::Partial(_, rest)) if FIXED_BYTES + rest > HEADER_BYTES_MAX => {
                return Err(HeaderError::TooLong(FIXED_BYTES + rest));
            }
            Err(ParseError::Partial(_, rest)) => wanted = FIXED_BYTES + rest,
            Err(error) => return Err(HeaderError::Malformed(error)),
        }
    }
}

fn told(header: &Header<'_>) -> Result<Option<SocketAddr>, HeaderError> {
    if let Some(error) = header.tlvs().find_map(Result::err) {
        return Err(HeaderError::Malformed(error));
    }
    match (header.command, header.protocol, header.addresses) {
        (Command::Local, ..) | (_, Protocol::Unspecified, Addresses::Unspecified) => Ok(None),
        (Command::Proxy, Protocol::Stream, Addresses::IPv4(ip)) => {
            Ok(Some(SocketAddr::new(ip.source_address.into(), ip.source_port)))
        }
        (Command::Proxy, Protocol::Stream, Addresses::IPv6(ip)) => {
            Ok(Some(SocketAddr::new(ip.source_address.to_canonical(), ip.source_port)))
        }
        _ => Err(HeaderError::Unusable("it tells of something other than TCP")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::device::tests::pipe::pipe;

    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    const IPV4: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 0x25, 0x6a];

    /// A header of these parts.
    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family], &length, rest].concat()
    }

    /// What is made of these bytes, and what is left of them. At their end the stream ends.
    async fn taken(bytes: &[u8]) -> (Result<Option<SocketAddr>, HeaderError>, usize) {
        let (near, mut far) = pipe(1_000);
        far.write_all(bytes).await.unwrap();
        drop(far);
        let read = read(&near).await;
        let mut left = 0;
        loop {
            let mut buffer = [0; 1_000];
            match poll_fn(|cx| near.poll_read(cx, &mut buffer)).await {
                Ok(1..) if left > 100_000 => unreachable!(),
                Ok(0) | Err(_) => return (read, left),
                Ok(count) => left += count,
            }
        }
    }

    async fn told(bytes: &[u8]) -> Option<String> {
        let (read, left) = taken(&[bytes, b"frame"].concat()).await;
        assert_eq!(left, 5, "not a byte more is read than the header");
        read.unwrap().map(|address| address.to_string())
    }

    #[tokio::test]
    async fn the_address_of_the_device_is_told() {
        assert_eq!(told(&header(0x21, 0x11, IPV4)).await.unwrap(), "192.0.2.7:50000");
        let mut ipv6 = [0; 36];
        (ipv6[0], ipv6[1], ipv6[15], ipv6[33]) = (0x20, 0x01, 9, 80);
        assert_eq!(told(&header(0x21, 0x21, &ipv6)).await.unwrap(), "[2001::9]:80");
        // An IPv4 address in the form of the other.
        let mut mapped = [0; 36];
        mapped[10..16].copy_from_slice(&[255, 255, 192, 0, 2, 7]);
        assert_eq!(told(&header(0x21, 0x21, &mapped)).await.unwrap(), "192.0.2.7:0");
        // With what else the balancer tells.
        let more = [IPV4, &[1, 0, 2, b'h', b'2', 4, 0, 0]].concat();
        assert_eq!(told(&header(0x21, 0x11, &more)).await.unwrap(), "192.0.2.7:50000");
        let full = [IPV4, &[4, 0x0f, 0xe1], &[0; 4_065]].concat();
        assert_eq!(told(&header(0x21, 0x11, &full)).await.unwrap(), "192.0.2.7:50000");
    }

    #[tokio::test]
    async fn the_balancers_own_connections_keep_their_address() {
        assert_eq!(told(&header(0x20, 0x00, &[])).await, None);
        assert_eq!(told(&header(0x20, 0x11, IPV4)).await, None);
        assert_eq!(told(&header(0x21, 0x00, &[])).await, None);
    }

    #[tokio::test]
    async fn no_other_header_is_taken() {
        let large = [IPV4, &[4, 0x0f, 0xe2], &[0; 4_066]].concat();
        let bad: [(&str, Vec<u8>); 12] = [
            ("version 1", b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 9578\r\n".to_vec()),
            ("a frame", b"\0\0\0\x14{\"uri\":\"/heartbeat\"}".to_vec()),
            ("a ClientHello", [&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 40]].concat()),
            ("version 3", header(0x31, 0x11, IPV4)),
            ("a command that nobody knows", header(0x22, 0x11, IPV4)),
            ("UDP", header(0x21, 0x12, IPV4)),
            ("UNIX", header(0x21, 0x31, &[0; 216])),
            ("TCP over nothing", header(0x21, 0x01, &[])),
            ("addresses cut", header(0x21, 0x11, &IPV4[..11])),
            ("a TLV cut", header(0x21, 0x11, &[IPV4, &[1, 0, 9, 1]].concat())),
            ("a TLV without length", header(0x21, 0x11, &[IPV4, &[1]].concat())),
            ("one byte more than 4 KiB", header(0x21, 0x11, &large)),
        ];
        for (what, bytes) in bad {
            let (read, left) = taken(&bytes).await;
            let error = read.expect_err(what);
            assert!(!matches!(error, HeaderError::Ended(_)), "{what}: {error}");
            assert!(bytes.len() - left <= 256, "{what}: {} bytes are read", bytes.len() - left);
        }
        let good = header(0x21, 0x11, IPV4);
        for cut in 0..good.len() {
            let (read, _) = taken(&good[..cut]).await;
            assert!(matches!(read, Err(HeaderError::Ended(_))), "cut at {cut}");
        }
    }
}
