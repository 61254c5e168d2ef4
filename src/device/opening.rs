//! What stands before a connection's first frame: the PROXY header, then the handshake of TLS, where they are configured.
//!
//! Both are bounded together: by `device.handshake_timeout`, and by `device.handshakes_max` under way. Over it the one that
//! has taken longest is cut, so peers that are slow on purpose never keep another waiting.

use std::{
    collections::BTreeMap,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls::ServerConfig;
use tokio::{net::TcpStream, sync::oneshot, time::Instant};

use super::{Devices, close, proxy, tls::Tls};
use crate::config::ProxyProtocol;

/// Openings under way.
#[derive(Default)]
pub(crate) struct Openings(Mutex<UnderWay>);

#[derive(Default)]
struct UnderWay {
    next: u64,
    /// Oldest first; one that is dropped is cut.
    all: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Openings {
    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one, under a number; what it gets back resolves when it is cut.
    fn add(&self, max: usize) -> (u64, oneshot::Receiver<()>) {
        let (keep, cut) = oneshot::channel();
        let mut under_way = self.under_way();
        while under_way.all.len() >= max {
            under_way.all.pop_first();
        }
        under_way.next += 1;
        let number = under_way.next;
        under_way.all.insert(number, keep);
        (number, cut)
    }
}

/// One opening's bounds, while it is under way.
struct Bounds<'a> {
    devices: &'a Devices,
    number: u64,
    cut: oneshot::Receiver<()>,
    deadline: Instant,
}

/// Why an opening ended early.
#[derive(Debug, Clone, Copy)]
enum Early {
    /// It was the oldest of too many.
    Cut,
    /// Its time is over.
    Late,
    /// The node stops.
    Stopping,
}

impl<'a> Bounds<'a> {
    fn new(devices: &'a Devices) -> Self {
        let (number, cut) = devices.openings.add(devices.config.handshakes_max as usize);
        Self { devices, number, cut, deadline: Instant::now() + devices.config.handshake_timeout }
    }

    async fn keep<F: Future>(&mut self, step: F) -> Result<F::Output, Early> {
        tokio::select! {
            biased;
            () = self.devices.stopping.cancelled() => Err(Early::Stopping),
            _ = &mut self.cut => Err(Early::Cut),
            done = tokio::time::timeout_at(self.deadline, step) => done.map_err(|_| Early::Late),
        }
    }
}

impl Drop for Bounds<'_> {
    fn drop(&mut self) {
        self.devices.openings.under_way().all.remove(&self.number);
    }
}

/// A connection that frames can be read from.
pub(super) enum Opened {
    Plain(TcpStream, SocketAddr),
    Tls(Box<Tls<TcpStream>>, SocketAddr),
}

/// Goes through what stands before the first frame; the address of the device may be told by it. None: it is closed.
pub(super) async fn open(
    devices: &Devices,
    stream: TcpStream,
    mut remote: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
) -> Option<Opened> {
    let is_proxied = devices.config.proxy_protocol == ProxyProtocol::V2;
    if !is_proxied && tls.is_none() {
        return Some(Opened::Plain(stream, remote));
    }
    let mut bounds = Bounds::new(devices);
    if is_proxied {
        match bounds.keep(proxy::read(&stream)).await {
            Ok(Ok(told)) => remote = told.unwrap_or(remote),
            Ok(Err(error)) => {
                devices.metrics.proxy_header.inc();
                tracing::debug!(%remote, %error, "no PROXY header that is taken");
                return None;
            }
            Err(early) => {
                devices.metrics.proxy_header.inc();
                tracing::debug!(%remote, ?early, "no PROXY header");
                return None;
            }
        }
    }
    let Some(config) = tls else { return Some(Opened::Plain(stream, remote)) };
    let stream = match Tls::new(stream, config) {
        Ok(stream) => stream,
        Err(error) => {
            devices.metrics.handshake.inc();
            tracing::error!(%error, "TLS of a device can't begin");
            return None;
        }
    };
    match bounds.keep(stream.handshake()).await {
        Ok(Ok(())) => return Some(Opened::Tls(Box::new(stream), remote)),
        Ok(Err(error)) => tracing::debug!(%remote, %error, "no handshake"),
        Err(early) => {
            devices.metrics.handshake.inc();
            tracing::debug!(%remote, ?early, "no handshake");
            return None;
        }
    }
    devices.metrics.handshake.inc();
    drop(bounds);
    // The peer has been told why: that shall arrive.
    close::last(&stream, None).await;
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_the_bound_the_oldest_is_cut() {
        let openings = Openings::default();
        let (_, mut first) = openings.add(2);
        let (second_number, mut second) = openings.add(2);
        assert!(first.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        let (_, mut third) = openings.add(2);
        assert!(first.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        // Done: a place is free, so nobody is cut.
        openings.under_way().all.remove(&second_number);
        let (_, mut fourth) = openings.add(2);
        drop(second.try_recv());
        for open in [&mut third, &mut fourth] {
            assert!(open.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        }
    }
}
