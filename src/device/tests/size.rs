use tokio::net::TcpStream;

use crate::device::session::Session;

/// 264 bytes as this is written: a device costs its task, so each more is one more for every device.
const TASK_BYTES_MAX: usize = 264;

#[test]
fn the_task_of_a_session_is_small() {
    fn of<F>(_: fn(Session<TcpStream>) -> F) -> usize {
        size_of::<F>()
    }
    let bytes = of(Session::run);
    assert!(bytes <= TASK_BYTES_MAX, "{bytes} bytes, {TASK_BYTES_MAX} are allowed");
}
