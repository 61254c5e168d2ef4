//! The whole gateway: binds the listeners, builds the parts, runs them, stops them in order.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, runtime::Handle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    auth::{self, Authenticator, Gate},
    cluster::{Card, Cluster, Inbox, LocalLog, Options},
    config::{self, Config, ConfigError, ControlSecret, ListenAddress, Secret},
    control::{self, Control, Door, Secrets},
    device::{self, Devices, frame},
    files::{FileError, FileWatch, FileWatching, Seen},
    http,
    hub::{self, Hub},
    model::{NodeName, PresenceEvent, Push},
    proto::gateway_server::SERVICE_NAME,
    state::{self, Numbers, StateError},
    telemetry::Metrics,
    tls::{ServerTls, TlsFiles},
    workers::{self, Workers},
};

/// What the kernel cuts to `net.core.somaxconn`: the default of 128 overflows when devices come in a herd, and each
/// one lost costs its device a second.
const BACKLOG: i32 = 65_535;

/// What is kept of `drain.timeout` for the devices to go once all were told.
const DRAIN_RESERVE: Duration = Duration::from_secs(2);

/// How long the control plane may take to end once its streams were told: what is left of `drain.timeout`, within these.
/// The least is enough for a last answer over any network; the most, for a caller that is slow to read.
const CONTROL_END: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(12));

/// How often a node of several tells the others how many devices it holds.
const CARD_INTERVAL: Duration = Duration::from_millis(500);

/// Descriptors that are not for devices: part of a node's capacity otherwise.
const DESCRIPTORS_RESERVED: u64 = 1_000;

type OnPresence = Box<dyn FnMut(PresenceEvent) + Send>;

/// A gateway that isn't bound yet.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let folder = std::env::temp_dir().join(format!("plex-doc-{}", std::process::id()));
/// let mut config = plex::Config::default();
/// config.data_dir = Some(folder.clone());
/// config.device.listen = Some("127.0.0.1:0".parse()?);
/// config.control.listen = "127.0.0.1:0".parse()?;
/// config.http.listen = "127.0.0.1:0".parse()?;
/// config.metrics.listen = None;
///
/// let gateway = plex::Server::builder(config).build()?.bind().await?;
/// println!("devices connect to {}", gateway.addresses().device.unwrap());
/// let stop = gateway.stopper();
/// let running = tokio::spawn(gateway.run());
/// stop.shutdown();
/// running.await?;
/// # std::fs::remove_dir_all(folder)?;
/// # Ok(())
/// # }
/// ```
pub struct Server {
    config: Config,
    authenticator: Option<Arc<dyn Authenticator>>,
    /// What `auth.mode` means, its files read; where no authenticator is given.
    auth: Option<auth::Setup>,
    on_presence: Option<OnPresence>,
    log: Option<LocalLog>,
}

/// Collects what a [`Server`] is made of.
pub struct ServerBuilder(Server);

/// Why a gateway can't start. One line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration doesn't hold together.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What must outlive a restart can't be read or made.
    #[error(transparent)]
    State(#[from] StateError),
    /// An address can't be listened on.
    #[error("{key} = \"{address}\": can't listen there: {error}")]
    Listen {
        /// The key of the configuration.
        key: &'static str,
        /// Its value.
        address: String,
        /// What the machine said.
        error: io::Error,
    },
    /// A file that the configuration names, of a certificate, a key or a secret, can't be used.
    #[error("{key} = {:?}: {}", .error.path.display().to_string(), .error.problem)]
    File {
        /// The key of the configuration.
        key: String,
        /// Which file, and what is wrong with it.
        error: FileError,
    },
    /// The machine gives no threads.
    #[error("can't start the worker threads: {0}")]
    Workers(io::Error),
}

/// Where a gateway listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Addresses {
    /// Devices, plain TCP. None: not configured.
    pub device: Option<SocketAddr>,
    /// Devices, TLS. None: not configured.
    pub device_tls: Option<SocketAddr>,
    /// The control plane.
    pub control: SocketAddr,
    /// Host and health.
    pub http: SocketAddr,
    /// Metrics. None: not configured.
    pub metrics: Option<SocketAddr>,
}

impl Server {
    /// Begins with a configuration.
    #[must_use]
    pub fn builder(config: Config) -> ServerBuilder {
        ServerBuilder(Self { config, authenticator: None, auth: None, on_presence: None, log: None })
    }

    /// Binds the listeners and builds the parts. Devices and backends can connect from then on; they are served once
    /// [`Bound::run`] is polled.
    ///
    /// # Errors
    ///
    /// [`StartError`] where an address is taken, a file of the configuration can't be used, or the control secret can't be
    /// read or made.
    pub async fn bind(self) -> Result<Bound, StartError> {
        let Self { config, authenticator, auth, on_presence, log } = self;
        let data_dir = config.data_dir();
        let mut watch = FileWatch::default();
        let ListenersTls { device: device_tls, control: control_tls, http: http_tls } =
            ListenersTls::load(&config, &mut watch)?;
        // The last of what a configuration can be wrong about: it makes a secret up.
        let (door, secret) = door(&config, control_tls, &mut watch)?;
        let start =
            |name: &str, configured: u32| Workers::start(name, workers::count(configured)).map_err(StartError::Workers);
        let device_workers = start("device", config.device.workers)?;
        let control_workers = start("control", config.control.workers)?;
        let gate = match (authenticator, auth) {
            (Some(authenticator), _) => {
                Gate::new(authenticator, config.auth.max_in_flight as usize, config.auth.timeout)
            }
            (None, Some(setup)) => setup.start(control_workers.first(), &mut watch)?,
            (None, None) => unreachable!("`build` has read what `auth.mode` means"),
        };

        let device_listener = match &config.device.listen {
            Some(address) => {
                let socket = listen("device.listen", address).await?;
                device::tune(&socket);
                Some(socket)
            }
            None => None,
        };
        let device_tls_listener = match &config.device.tls_listen {
            Some(address) => {
                let socket = listen("device.tls_listen", address).await?;
                device::tune(&socket);
                Some(socket)
            }
            None => None,
        };
        let control_listener = listen("control.listen", &config.control.listen).await?;
        let http_listener = listen("http.listen", &config.http.listen).await?;
        let metrics_listener = match &config.metrics.listen {
            Some(address) => Some(listen("metrics.listen", address).await?),
            None => None,
        };
        let address = |socket: &std::net::TcpListener| socket.local_addr().expect("a bound socket has an address");
        let addresses = Addresses {
            device: device_listener.as_ref().map(address),
            device_tls: device_tls_listener.as_ref().map(address),
            control: address(&control_listener),
            http: address(&http_listener),
            metrics: metrics_listener.as_ref().map(address),
        };

        let numbers = Numbers::open(Some(&data_dir));
        let log = log.unwrap_or_else(|| {
            let used = numbers.clone();
            LocalLog::new(numbers.first_sequence(), move |sequence| used.note_sequence(sequence))
        });
        let node = NodeName::new(&config.node.name);
        let options = Options {
            connections_per_uid: config.device.connections_per_uid,
            history: config.presence.history as usize,
            settle: config.presence.settle,
            keepalive: config.presence.keepalive,
        };
        let (cluster, inbound) = Cluster::join(&log, node.clone(), options);
        let metrics = Metrics::new();
        let settings = hub::Settings {
            encode: encoder(config.device.little_endian),
            connections_per_uid: config.device.connections_per_uid as usize,
            replaces_per_minute: config.device.replaces_per_minute as usize,
            queue_bytes_max: config.device.queue_bytes as usize,
            ack_waits_max: config.control.ack_waits as usize,
        };
        let hub = Hub::new(settings, cluster, numbers.clone(), metrics.clone());
        let delay = config.auth.unavailable_delay;
        let devices = Devices::new(config.device.clone(), delay, node, gate, hub.clone(), metrics.clone());
        let streams_end = CancellationToken::new();
        let frame_bytes: fn(Push<'_>) -> usize = |push| frame::message_bytes(16, push.uri, push.body);
        let max_frame = config.device.max_frame;
        let control =
            Control::new(hub.clone(), metrics.clone(), &config.control, max_frame, frame_bytes, streams_end.clone());

        let watching = watch.start().map_err(StartError::Workers)?;
        let listeners = Listeners {
            device: device_listener.map_or(Ok(Vec::new()), |socket| one_each(&socket, &device_workers))?,
            device_tls: device_tls_listener.map_or(Ok(Vec::new()), |socket| one_each(&socket, &device_workers))?,
            control: one_each(&control_listener, &control_workers)?,
            http: http_listener,
            metrics: metrics_listener,
        };
        Ok(Bound {
            addresses,
            secret,
            listeners,
            device_workers,
            control_workers,
            parts: Parts { config, hub, devices, device_tls, control, door, http_tls, metrics, numbers, streams_end },
            inbound,
            on_presence,
            watching,
            stop: CancellationToken::new(),
        })
    }
}

impl ServerBuilder {
    /// Who decides who a device is, instead of `auth.mode`. `auth.timeout` and `auth.max_in_flight` bound its calls.
    #[must_use]
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.0.authenticator = Some(Arc::new(authenticator));
        self
    }

    /// Is told presence: a snapshot, LIVE, then every change, as any subscriber; RESET where it fell behind. Runs on
    /// a thread of its own, outside of any runtime: it may block, also by tokio's `blocking_send` or `Handle::block_on`,
    /// and a panic ends only the telling, with a line in the log. It is told what the drain does, too, and nothing more
    /// once [`Bound::run`] has returned or was dropped, which don't wait for it.
    #[must_use]
    pub fn on_presence(mut self, told: impl FnMut(PresenceEvent) + Send + 'static) -> Self {
        self.0.on_presence = Some(Box::new(told));
        self
    }

    /// The presence log, shared with other nodes of this process. Without it the node is alone.
    #[doc(hidden)]
    #[must_use]
    pub fn log(mut self, log: &LocalLog) -> Self {
        self.0.log = Some(log.clone());
        self
    }

    /// Checks that the configuration holds together, and that the files which it names can be used.
    ///
    /// # Errors
    ///
    /// [`StartError::Config`] with the key, its value, and what is allowed, or what is wrong with its file.
    pub fn build(mut self) -> Result<Server, StartError> {
        let mut checked = self.0.config.clone();
        if self.0.authenticator.is_some() {
            // The mode isn't used, so nothing has to allow it.
            checked.auth.insecure = true;
            checked.auth.mode = None;
        }
        let warnings = config::validate(&checked)?;
        if self.0.authenticator.is_none() {
            self.0.auth = Some(auth::Setup::read(&checked.auth)?);
        }
        // Read once more where they are used, to be watched from then on.
        let mut unwatched = FileWatch::default();
        ListenersTls::load(&checked, &mut unwatched)?;
        if !checked.control.secrets.is_empty() {
            secrets(&checked.control.secrets, &mut unwatched)?;
        }
        for warning in warnings {
            if self.0.authenticator.is_none() || !warning.is_about_trust() {
                tracing::warn!("{warning}");
            }
        }
        Ok(self.0)
    }
}

/// Who may call the control plane, and the secret that the library's user gets.
fn door(config: &Config, tls: Option<ServerTls>, watch: &mut FileWatch) -> Result<(Door, Secret), StartError> {
    let control = &config.control;
    let made_up = if control.secrets.is_empty() {
        let data_dir = config.data_dir();
        let made_up = state::control_secret(&data_dir, true)?.ok_or(StateError::NoSecret { path: data_dir })?;
        Some([ControlSecret { name: "made-up".to_owned(), ..made_up.into() }])
    } else {
        None
    };
    let (secrets, own) = secrets(made_up.as_ref().map_or(&control.secrets[..], |made_up| made_up), watch)?;
    Ok((Door::new(secrets, tls, control), own))
}

fn secrets(configured: &[ControlSecret], watch: &mut FileWatch) -> Result<(Secrets, Secret), StartError> {
    Secrets::load(configured, watch).map_err(|error| StartError::File { key: "control.secrets".to_owned(), error })
}

/// What the listeners show, each where it has TLS.
struct ListenersTls {
    device: Option<ServerTls>,
    control: Option<ServerTls>,
    http: Option<ServerTls>,
}

impl ListenersTls {
    fn load(config: &Config, watch: &mut FileWatch) -> Result<Self, StartError> {
        let Config { device, control, http, .. } = config;
        let files = TlsFiles::of(device.tls_cert.as_ref(), device.tls_key.as_ref(), None);
        let device = listener_tls("device", files.filter(|_| device.tls_listen.is_some()), &[], watch)?;
        let files = TlsFiles::of(control.tls_cert.as_ref(), control.tls_key.as_ref(), control.tls_client_ca.as_ref());
        let control = listener_tls("control", files, &[b"h2"], watch)?;
        let files = TlsFiles::of(http.tls_cert.as_ref(), http.tls_key.as_ref(), None);
        let http = listener_tls("http", files, &[b"http/1.1"], watch)?;
        Ok(Self { device, control, http })
    }
}

/// What a listener shows, read again when its files change. `section` is that of their keys.
fn listener_tls(
    section: &str,
    files: Option<TlsFiles>,
    protocols: &'static [&'static [u8]],
    watch: &mut FileWatch,
) -> Result<Option<ServerTls>, StartError> {
    let Some(files) = files else { return Ok(None) };
    let seen = Seen::now(files.paths());
    let tls = ServerTls::load(files.clone(), protocols).map_err(|error| {
        let named = [("tls_key", Some(&files.key)), ("tls_client_ca", files.client_ca.as_ref())];
        let name = named.iter().find(|(_, file)| *file == Some(&error.path)).map_or("tls_cert", |(name, _)| name);
        StartError::File { key: format!("{section}.{name}"), error }
    })?;
    let again = tls.clone();
    watch.add(seen, move || again.reload());
    Ok(Some(tls))
}

fn encoder(little_endian: bool) -> hub::Encode {
    if little_endian {
        |seq, push, out| frame::encode(frame::ByteOrder::Little, seq, push.uri, push.body, out)
    } else {
        |seq, push, out| frame::encode(frame::ByteOrder::Big, seq, push.uri, push.body, out)
    }
}

/// Binds the first of a host's addresses that can be.
async fn listen(key: &'static str, address: &ListenAddress) -> Result<std::net::TcpListener, StartError> {
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
fn one_each(socket: &std::net::TcpListener, workers: &Workers) -> Result<Vec<std::net::TcpListener>, StartError> {
    workers.handles().map(|_| socket.try_clone()).collect::<io::Result<_>>().map_err(StartError::Workers)
}

fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A gateway whose ports are bound.
pub struct Bound {
    addresses: Addresses,
    secret: Secret,
    listeners: Listeners,
    device_workers: Workers,
    control_workers: Workers,
    parts: Parts,
    inbound: Inbox,
    on_presence: Option<OnPresence>,
    watching: Option<FileWatching>,
    stop: CancellationToken,
}

struct Listeners {
    /// The same socket, once for each thread that accepts from it.
    device: Vec<std::net::TcpListener>,
    device_tls: Vec<std::net::TcpListener>,
    control: Vec<std::net::TcpListener>,
    http: std::net::TcpListener,
    metrics: Option<std::net::TcpListener>,
}

struct Parts {
    config: Config,
    hub: Hub,
    devices: Devices,
    device_tls: Option<ServerTls>,
    control: Control,
    door: Door,
    http_tls: Option<ServerTls>,
    metrics: Metrics,
    numbers: Numbers,
    /// Ends the streams of the control plane.
    streams_end: CancellationToken,
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
    pub async fn run(self) {
        let Self {
            addresses,
            secret: _,
            listeners,
            device_workers,
            control_workers,
            parts,
            inbound,
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
            parts.hub.cluster().leave();
            parts.numbers.close();
            drop(watching);
            tracing::info!("stopped");
        });
        // Its panic has been told by the hook; what follows ends the rest.
        let _ = stopped.await;
        // Joins the threads: not on a thread that others' tasks run on.
        let _ = tokio::task::spawn_blocking(move || drop((device_workers, control_workers))).await;
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
