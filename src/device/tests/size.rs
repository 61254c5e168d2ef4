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
    println!(
        "sizes {} {} {}",
        size_of::<rustls::server::UnbufferedServerConnection>(),
        size_of::<crate::hub::connection::Connection<TcpStream>>(),
        size_of::<crate::hub::connection::Connection<Tls<TcpStream>>>()
    );
    println!("state of TLS: {} bytes beside rustls' own boxes", size_of::<Tls<TcpStream>>() - size_of::<TcpStream>());
}
