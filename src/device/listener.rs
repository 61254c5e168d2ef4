//! Accepts devices.

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use super::{
    Devices, close,
    handshake::{Failure, handshake},
    inbox::Inbox,
    opening::{self, Opened},
    session::Session,
    transport::Transport,
};
use crate::{config::ProxyProtocol, tls::ServerTls};

/// Pause after an accept that failed for want of descriptors or memory: there is nothing else to do about it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes that the kernel takes for a device beyond what the device has room for. By default that is megabytes, of which
/// it tells only once a third is free: a device that reads a little at a time would look as if it didn't read, and one
/// that doesn't read would hold the megabytes. With this a reader needs half of it within `device.write_timeout`.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 16 << 10;

/// Prepares a listening socket: those that it accepts inherit it.
#[cfg(target_os = "linux")]
pub(crate) fn tune(listener: &std::net::TcpListener) {
    if let Err(error) = socket2::SockRef::from(listener).set_tcp_notsent_lowat(UNSENT_BYTES) {
        tracing::warn!(%error, "the kernel's buffers for devices stay large: slow readers may be taken for none");
    }
}

/// Elsewhere the kernel's own bound counts.
#[cfg(not(target_os = "linux"))]
pub(crate) fn tune(_: &std::net::TcpListener) {}

/// Accepts devices on this thread until the node stops; with `tls` on the TLS port.
pub(crate) async fn serve(listener: TcpListener, devices: Devices, tls: Option<ServerTls>) {
    let stopping = devices.stopping.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stopping.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, remote)) => accept(stream, remote, &devices, tls.as_ref()),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(%error, "accepting devices");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

fn accept(stream: TcpStream, remote: SocketAddr, devices: &Devices, tls: Option<&ServerTls>) {
    devices.metrics.accepted.inc();
    if devices.is_full() {
        devices.metrics.over_limit.inc();
        return;
    }
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    if !may_connect(devices, remote) {
        devices.metrics.proxy_header.inc();
        tracing::debug!(%remote, "not from device.proxy_from");
        return;
    }
    // Frames are small and go out whole: nothing is gained by waiting for more. It fails only on a dead socket.
    let _ = stream.set_nodelay(true);
    let stranger = Stranger::new(devices);
    let tasks = &devices.tasks;
    let devices = devices.clone();
    let tls = tls.map(ServerTls::config);
    tasks.spawn(async move {
        let tasks = devices.tasks.clone();
        // A task of its own: a handshake's room is large, and a session that lasts for days shall not carry it.
        match opening::open(&devices, stream, remote, tls).await {
            Some(Opened::Plain(stream, remote)) => {
                if let Some(session) = arrival(devices, stream, remote, stranger).await {
                    tasks.spawn(session.run());
                }
            }
            Some(Opened::Tls(stream, remote)) => {
                if let Some(session) = arrival(devices, *stream, remote, stranger).await {
                    tasks.spawn(session.run());
                }
            }
            None => {}
        }
    });
}

/// Where a balancer tells addresses, whoever isn't one could tell any.
fn may_connect(devices: &Devices, remote: SocketAddr) -> bool {
    devices.config.proxy_protocol == ProxyProtocol::Off
        || devices.config.proxy_from.iter().any(|network| network.contains(remote.ip()))
}

/// One connection, from its first byte until it has authenticated; or to its last, where it doesn't.
pub(super) async fn arrival<T: Transport>(
    devices: Devices,
    transport: T,
    remote: SocketAddr,
    stranger: Stranger,
) -> Option<Session<T>> {
    let mut inbox = Inbox::default();
    let login = handshake(&devices, &transport, remote, &mut inbox).await;
    drop(stranger);
    match login {
        Ok(login) => Some(Session::begin(devices, transport, remote, inbox, login)),
        Err(failure) => {
            devices.metrics.unauthenticated.inc();
            tracing::debug!(%remote, ?failure, "not authenticated");
            if let Failure::Close(frame) = failure {
                close::last(&transport, frame.as_deref()).await;
            }
            None
        }
    }
}

/// Counts a connection that hasn't authenticated, while it lives.
pub(super) struct Stranger(Devices);

impl Stranger {
    pub(super) fn new(devices: &Devices) -> Self {
        devices.strangers.fetch_add(1, Relaxed);
        Self(devices.clone())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.0.strangers.fetch_sub(1, Relaxed);
    }
}
