//! The whole gateway: binds the listeners, builds the parts, runs them, stops them in order.

mod doors;
mod engine;
mod listen;
mod running;

use std::{io, net::SocketAddr, sync::Arc};

use tokio_util::sync::CancellationToken;

pub use self::running::{Bound, Ended, Stopper};
use self::{
    doors::{Files, ListenersTls},
    engine::Part,
    listen::{listen, one_each},
    running::{Listeners, Parts},
};
use crate::{
    auth::{self, Authenticator, Gate},
    cluster::{Cluster, LocalLog, Options},
    config::{self, Config, ConfigError},
    control::Control,
    device::{self, Devices},
    files::FileError,
    frame,
    hub::{self, Hub},
    model::{NodeName, PresenceEvent, Push},
    state::{Numbers, StateError},
    telemetry::Metrics,
    workers::{self, Workers},
};

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
    /// Read by `build`.
    files: Option<Files>,
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
    /// The addresses or the credentials of the cluster's servers can't be used.
    #[error("cluster: {0}")]
    Cluster(String),
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
        ServerBuilder(Self { config, authenticator: None, auth: None, files: None, on_presence: None, log: None })
    }

    /// Binds the listeners and builds the parts. Devices and backends can connect from then on; they are served once
    /// [`Bound::run`] is polled.
    ///
    /// # Errors
    ///
    /// [`StartError`] where an address is taken, a file of the configuration can't be used, or the control secret can't be
    /// read or made.
    pub async fn bind(self) -> Result<Bound, StartError> {
        let Self { config, authenticator, auth, files, on_presence, log } = self;
        let Files { tls, secrets, mut watch, engine } = files.expect("`build` has read them");
        let data_dir = config.data_dir();
        let ListenersTls { device: device_tls, control: control_tls, http: http_tls } = tls;
        // The last of what a configuration can be wrong about: it makes a secret up.
        let (door, secret) = doors::door(&config, control_tls, secrets, &mut watch)?;
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
        let node = NodeName::new(&config.node.name);
        let options = Options {
            connections_per_uid: u16::try_from(config.device.connections_per_uid).expect("at most 1,000"),
            history: config.presence.history as usize,
            settle: config.presence.settle,
            keepalive: config.presence.keepalive,
            heartbeat: config.cluster.heartbeat,
            forward_timeout: config.cluster.forward_timeout,
            broadcast_timeout: config.cluster.broadcast_timeout,
        };
        let (cluster, inbound, part) = match engine {
            Some(files) => {
                let (cluster, inbound, part) = Part::make(&config, files, options, &numbers).await?;
                (cluster, inbound, Some(part))
            }
            None => {
                let log = log.unwrap_or_else(|| {
                    let used = numbers.clone();
                    LocalLog::new(numbers.first_sequence(), move |sequence| used.note_sequence(sequence))
                });
                let (cluster, inbound) = Cluster::join(&log, node.clone(), options);
                (cluster, inbound, None)
            }
        };
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
            part,
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
        self.0.files = Some(Files::read(&checked)?);
        for warning in warnings {
            if self.0.authenticator.is_none() || !warning.is_about_trust() {
                tracing::warn!("{warning}");
            }
        }
        Ok(self.0)
    }
}
fn encoder(little_endian: bool) -> hub::Encode {
    if little_endian {
        |seq, push, out| frame::encode(frame::ByteOrder::Little, seq, push.uri, push.body, out)
    } else {
        |seq, push, out| frame::encode(frame::ByteOrder::Big, seq, push.uri, push.body, out)
    }
}
