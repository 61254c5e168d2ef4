//! Listening sockets.

use std::{io, net::SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;
use crate::{config::ListenAddress, workers::Workers};

/// What the kernel cuts to `net.core.somaxconn`: the default of 128 overflows when devices come in a herd, and each
/// one lost costs its device a second.
const BACKLOG: i32 = 65_535;

/// Binds the first of a host's addresses that can be.
pub(super) async fn listen(key: &'static str, address: &ListenAddress) -> Result<std::net::TcpListener, StartError> {
    let fail = |error| StartError::Listen { key, address: address.to_string(), error };
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in address.resolve().map_err(fail)? {
        match bind(address) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(fail(last))
}

/// The same socket, once for each thread.
pub(super) fn one_each(
    socket: &std::net::TcpListener,
    workers: &Workers,
) -> Result<Vec<std::net::TcpListener>, StartError> {
    workers.handles().map(|_| socket.try_clone()).collect::<io::Result<_>>().map_err(StartError::Workers)
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
