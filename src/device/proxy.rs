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
