use tokio::net::TcpStream;

use crate::device::{session::Session, tls::Tls};

/// 264 bytes as this is written: a device costs its task, so each more is one more for every device.
const TASK_BYTES_MAX: usize = 264;

#[test]
fn the_task_of_a_session_is_small_with_tls_too() {
    fn of<T, F>(_: fn(T) -> F) -> usize {
        size_of::<F>()
    }
    for bytes in [of(Session::<TcpStream>::run), of(Session::<Tls<TcpStream>>::run)] {
        assert!(bytes <= TASK_BYTES_MAX, "{bytes} bytes, {TASK_BYTES_MAX} are allowed");
    }
}

/// What TLS adds to a connection beside rustls' own state (1,088 bytes, and what that allocates).
const TLS_BYTES_MAX: usize = 96;

#[test]
fn the_state_of_tls_is_little_more_than_that_of_rustls() {
    let rustls = size_of::<rustls::server::UnbufferedServerConnection>();
    let bytes = size_of::<Tls<TcpStream>>() - size_of::<TcpStream>() - rustls;
    assert!(bytes <= TLS_BYTES_MAX, "{bytes} bytes, {TLS_BYTES_MAX} are allowed");
}
