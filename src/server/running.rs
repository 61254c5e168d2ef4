//! A gateway whose ports are bound: serves, then stops in order.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, runtime::Handle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{Addresses, OnPresence, engine::Part};
use crate::{
    cluster::{Card, Inbox, Standing},
    config::{self, Config, Secret},
    control::{self, Control, Door},
    device::{self, Devices},
    files::FileWatching,
    http,
    hub::Hub,
    proto::gateway_server::SERVICE_NAME,
    state::Numbers,
    telemetry::Metrics,
    tls::ServerTls,
    workers::Workers,
};

/// What is kept of `drain.timeout` for the devices to go once all were told.
const DRAIN_RESERVE: Duration = Duration::from_secs(2);

/// How long the control plane may take to end once its streams were told: what is left of `drain.timeout`, within these.
/// The least is enough for a last answer over any network; the most, for a caller that is slow to read.
const CONTROL_END: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(12));

/// How often a node of several tells the others how many devices it holds.
const CARD_INTERVAL: Duration = Duration::from_millis(500);

/// What the health service calls a node's part in its cluster.
const CLUSTER_HEALTH: &str = "plex.v1.Gateway.cluster";

/// Descriptors that are not for devices: part of a node's capacity otherwise.
const DESCRIPTORS_RESERVED: u64 = 1_000;

/// A gateway whose ports are bound.
pub struct Bound {
    pub(super) addresses: Addresses,
    pub(super) secret: Secret,
    pub(super) listeners: Listeners,
    pub(super) device_workers: Workers,
    pub(super) control_workers: Workers,
    pub(super) parts: Parts,
    pub(super) inbound: Inbox,
    /// Of a cluster; None: the node is alone.
    pub(super) part: Option<Part>,
    pub(super) on_presence: Option<OnPresence>,
    pub(super) watching: Option<FileWatching>,
    pub(super) stop: CancellationToken,
}

pub(super) struct Listeners {
    /// The same socket, once for each thread that accepts from it.
    pub(super) device: Vec<std::net::TcpListener>,
    pub(super) device_tls: Vec<std::net::TcpListener>,
    pub(super) control: Vec<std::net::TcpListener>,
    pub(super) http: std::net::TcpListener,
    pub(super) metrics: Option<std::net::TcpListener>,
}

pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) hub: Hub,
    pub(super) devices: Devices,
    pub(super) device_tls: Option<ServerTls>,
    pub(super) control: Control,
    pub(super) door: Door,
    pub(super) http_tls: Option<ServerTls>,
    pub(super) metrics: Metrics,
    pub(super) numbers: Numbers,
    /// Ends the streams of the control plane.
    pub(super) streams_end: CancellationToken,
}

/// Why a gateway has stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// Another process of its name has joined the cluster.
    Superseded,
    /// At its start the cluster didn't take it as it is: why.
    Refused(String),
    /// Its part in the cluster has broken down, by a fault of the program.
    Broken,
}

/// Tells a running gateway to stop. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stopper(CancellationToken);

impl Stopper {
    /// Begins the drain; [`Bound::run`] returns when it is done. More calls change nothing.
    pub fn shutdown(&self) {
        self.0.cancel();
    }
}

impl Bound {
    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// A secret of the control plane: the first that has all scopes, of the configuration or made up; the first where none
    /// has. As its file was when the gateway was bound.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// What stops it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    #[doc(hidden)]
    #[must_use]
    pub fn hub_for_tests(&self) -> crate::testing::TestHub {
        crate::testing::TestHub::new(self.parts.hub.clone())
    }

    /// Serves until [`Stopper::shutdown`], then drains: devices are told to go, the control plane answers meanwhile.
    /// Its own threads do the work and have the clock, so it runs inside any tokio runtime. Dropping it stops everything
    /// at once.
    pub async fn run(self) -> Ended {
        let Self {
            addresses,
            secret: _,
            listeners,
            device_workers,
            control_workers,
            parts,
            inbound,
            part,
            on_presence,
            watching,
            stop,
        } = self;
        let control_end = CancellationToken::new();
        let http_end = CancellationToken::new();
        let bound = CancellationToken::new();
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::Serving).await;

        let first = control_workers.first();
        first.spawn(parts.hub.clone().run(inbound));
        let by_itself = Arc::new(OnceLock::new());
        // Ends with this call, also where it is dropped.
        let _part = part.map(|part| {
            let (by_itself, stop) = (by_itself.clone(), stop.clone());
            AbortOnDrop(tokio::spawn(async move {
                if let Some(ended) = part.run().await {
                    if ended == Ended::Superseded {
                        tracing::error!("another process of this name has joined the cluster: stopping");
                    }
                    by_itself.get_or_init(|| ended);
                    stop.cancel();
                }
            }))
        });
        first.spawn(tell_standing(health.clone(), parts.hub.clone(), stop.clone()));
        first.spawn(announce(parts.card(&addresses), parts.hub.clone(), stop.clone()));
        let (routes, end) = (http::routes(parts.hub.clone(), bound.clone()), http_end.clone());
        let tls = parts.http_tls.clone();
        tokio::spawn(serve_on(first.clone(), listeners.http, |listener| http::serve(listener, tls, routes, end)));
        if let Some(listener) = listeners.metrics {
            let ack_waits = parts.config.control.ack_waits as usize;
            let routes = http::metrics_routes(parts.hub.clone(), parts.metrics.clone(), ack_waits);
            let end = http_end.clone();
            tokio::spawn(serve_on(first.clone(), listener, |listener| http::serve(listener, None, routes, end)));
        }
        let control_tasks = TaskTracker::new();
        for (handle, listener) in control_workers.handles().zip(listeners.control) {
            let (control, door, health) = (parts.control.clone(), parts.door.clone(), health_service.clone());
            let (config, end) = (parts.config.control.clone(), control_end.clone());
            control_tasks.spawn(serve_on(handle.clone(), listener, |listener| {
                control::serve(listener, control, door, health, config, end)
            }));
        }
        for (listeners, tls) in [(listeners.device, None), (listeners.device_tls, parts.device_tls.clone())] {
            for (handle, listener) in device_workers.handles().zip(listeners) {
                let (devices, tls) = (parts.devices.clone(), tls.clone());
                tokio::spawn(serve_on(handle.clone(), listener, |listener| device::serve(listener, devices, tls)));
            }
        }
        // Ends with this call, also where it is dropped.
        let telling = CancellationToken::new();
        let _telling = telling.clone().drop_guard();
        if let Some(told) = on_presence {
            tell_presence(parts.hub.clone(), told, telling);
        }
        bound.cancel();
        tracing::info!(
            node = %parts.hub.cluster().name(), device = addresses.device.map(tracing::field::display),
            device_tls = addresses.device_tls.map(tracing::field::display), control = %addresses.control,
            http = %addresses.http, metrics = addresses.metrics.map(tracing::field::display), "listening"
        );

        stop.cancelled().await;
        let stopped = first.spawn(async move {
            let begun = Instant::now();
            parts.drain(&health).await;

            parts.streams_end.cancel();
            control_end.cancel();
            control_tasks.close();
            let left = parts.config.drain.timeout.saturating_sub(begun.elapsed());
            let patience = left.clamp(CONTROL_END.0, CONTROL_END.1);
            if tokio::time::timeout(patience, control_tasks.wait()).await.is_err() {
                tracing::warn!("callers that didn't read are cut off");
            }
            http_end.cancel();
            parts.hub.cluster().leave().await;
            parts.numbers.close();
            drop(watching);
            tracing::info!("stopped");
        });
        // Its panic has been told by the hook; what follows ends the rest.
        let _ = stopped.await;
        // Joins the threads: not on a thread that others' tasks run on.
        let _ = tokio::task::spawn_blocking(move || drop((device_workers, control_workers))).await;
        by_itself.get().cloned().unwrap_or(Ended::Stopped)
    }
}

impl Parts {
    /// Tells the devices to go, and waits for them.
    async fn drain(&self, health: &HealthReporter) {
        let timeout = self.config.drain.timeout;
        tracing::info!(connections = self.hub.connections(), ?timeout, "draining");
        set_health(health, ServingStatus::NotServing).await;
        self.hub.start_draining();
        self.devices.stopping.cancel();
        self.devices.tasks.close();
        let gone = async {
            self.hub.drain(self.config.drain.rate, timeout.saturating_sub(DRAIN_RESERVE)).await;
            // Those that authenticated in the last moment.
            self.hub.drain(u32::MAX, Duration::ZERO).await;
            self.devices.tasks.wait().await;
        };
        if tokio::time::timeout(timeout, gone).await.is_err() {
            tracing::warn!(connections = self.devices.tasks.len(), "drain.timeout is over: devices are cut off");
            self.hub.drain(u32::MAX, Duration::ZERO).await;
        }
    }

    /// What this node tells of itself.
    fn card(&self, addresses: &Addresses) -> Card {
        let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX).saturating_sub(DESCRIPTORS_RESERVED);
        let capacity = match self.config.device.max_connections {
            0 => u32::try_from(limit).unwrap_or(u32::MAX),
            max => max,
        };
        Card {
            ready: true,
            draining: false,
            connections: 0,
            capacity,
            lag_ms: 0,
            addresses: config::advertised(&self.config, addresses.device),
            addresses_tls: config::advertised_tls(&self.config, addresses.device_tls),
        }
    }
}

/// Keeps the card of this node up to date: when it drains; among several nodes also how many devices it holds.
async fn announce(mut card: Card, hub: Hub, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let connections = u32::try_from(hub.connections()).unwrap_or(u32::MAX);
        if card.connections != connections && !hub.cluster().is_single() || card.connections == 0 {
            card.connections = connections;
            hub.cluster().announce(card.clone());
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(CARD_INTERVAL) => {}
        }
    }
    card.draining = true;
    hub.cluster().announce(card);
}

/// A task that ends with what holds it.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells by the health service how a node of a cluster stands to the presence log.
async fn tell_standing(health: HealthReporter, hub: Hub, stop: CancellationToken) {
    if !hub.cluster().reads_late() {
        return;
    }
    let mut watched = hub.cluster().watch_standing();
    let mut told = None;
    loop {
        let standing = *watched.borrow_and_update();
        let before = told.replace(standing);
        if before != Some(standing) {
            match standing {
                Standing::InStep => tracing::info!("in step with the cluster"),
                Standing::Still => tracing::warn!("the cluster's log stands still: presence is what was"),
                Standing::Joining if before.is_some() => tracing::warn!("out of step with the cluster: joining again"),
                Standing::Joining => {}
            }
            let status = match standing {
                Standing::InStep => ServingStatus::Serving,
                _ => ServingStatus::NotServing,
            };
            health.set_service_status(CLUSTER_HEALTH, status).await;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = watched.changed() => if changed.is_err() { break },
        }
    }
    health.set_service_status(CLUSTER_HEALTH, ServingStatus::NotServing).await;
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in ["", SERVICE_NAME] {
        health.set_service_status(service, status).await;
    }
}

/// Serves a listener on the runtime of `handle`; resolves when that has ended.
async fn serve_on<F>(
    handle: Handle,
    listener: std::net::TcpListener,
    serve: impl FnOnce(TcpListener) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let served = handle.spawn(async move {
        match TcpListener::from_std(listener) {
            Ok(listener) => serve(listener).await,
            Err(error) => tracing::error!(%error, "a listener can't be registered"),
        }
    });
    // Cut off with its thread.
    let _ = served.await;
}

/// Tells presence to the library's user, on a thread of its own.
fn tell_presence(hub: Hub, mut told: OnPresence, end: CancellationToken) {
    let tell = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let mut watcher = hub.cluster().watch(Vec::new(), false, "");
        let mut next = || runtime.block_on(end.run_until_cancelled(watcher.next()));
        // Told outside of the runtime, where tokio would let nothing block.
        while let Some(update) = next() {
            for event in update.events {
                if end.is_cancelled() {
                    break;
                }
                told(event);
            }
        }
        io::Result::Ok(())
    };
    let spawned =
        std::thread::Builder::new().name("on-presence".into()).spawn(move || {
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(tell)) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "on_presence has no runtime"),
                Err(_) => tracing::error!("on_presence panicked: it is told nothing more"),
            }
        });
    if let Err(error) = spawned {
        tracing::error!(%error, "on_presence has no thread");
    }
}
