//! plex is a push gateway: devices (phones, PCs, IoT boxes) hold one TCP connection each, business backends push to
//! them and follow their presence over gRPC. It is one binary that needs nothing else; and this library, which runs the
//! same gateway inside your own program.
//!
//! ```
//! use plex::{Config, Server, client::{Control, Device, DeviceOptions, PushStatus}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = std::env::temp_dir().join(format!("plex-first-{}", std::process::id()));
//! # let mut config = Config::default();
//! # config.data_dir = Some(folder.clone());
//! # config.device.listen = Some("127.0.0.1:0".parse()?);
//! # config.control.listen = "127.0.0.1:0".parse()?;
//! # config.http.listen = "127.0.0.1:0".parse()?;
//! # config.metrics.listen = None;
//! // A gateway on loopback, which takes devices at their word.
//! let gateway = Server::builder(config).build()?.bind().await?;
//! let (addresses, secret) = (gateway.addresses(), gateway.secret().clone());
//! let stop = gateway.stopper();
//! let running = tokio::spawn(gateway.run());
//!
//! // A device …
//! let address = addresses.device.expect("device.listen is set");
//! let mut device = Device::connect(address, DeviceOptions::new("alice")).await?;
//!
//! // … and a backend that pushes to it.
//! let control = Control::connect(&format!("http://{}", addresses.control), secret.expose())?;
//! let outcome = control.push("alice", "/greeting", "hello").await?;
//! assert_eq!(outcome.status, PushStatus::Sent);
//! println!("{:?}", device.next().await?);
//!
//! stop.shutdown();
//! running.await?;
//! # std::fs::remove_dir_all(folder)?;
//! # Ok(())
//! # }
//! ```
//!
//! # The house
//!
//! | module | what it is |
//! | --- | --- |
//! | [`model`] | the nouns that all share: uid, push, outcome, presence event |
//! | [`config`] | one file, over it the environment, over it flags; checked before anything starts |
//! | `state` | what outlives a restart: the made-up secret, the mark above which numbers begin |
//! | [`frame`], [`codec`] | what goes over the wire between a device and the gateway, and the same for who speaks with `Framed` |
//! | `telemetry` | the log, the metrics |
//! | `files` | files that are read again when they change |
//! | `tls` | certificates and keys by files, handshakes and their bounds, whom the gateway and its clients trust |
//! | `workers` | the threads: each one current-thread runtime, some for devices, some for the control plane |
//! | `cluster` | who is online anywhere: an ordered log, in this process or over NATS; a pure fold of it; the changes that watchers follow; what nodes ask each other |
//! | `hub` | who is connected here, and push to them: the registry, a connection's outbox |
//! | `auth` | who a device is: the [`Authenticator`] and its bounds |
//! | `device` | the device protocol: listener, handshake, session |
//! | `control` | the gRPC service: each call decodes, asks the hub, encodes |
//! | `http` | host look-up, health for balancers, metrics |
//! | `server` | builds the parts, runs them, stops them in order |
//! | [`client`] | what a Rust user, the commands and the tests use: `Control`, `Device` |
//! | `cli` | the commands |
//!
//! # Features
//!
//! One crate, whose parts are chosen by features, rather than several: they share the protocol's files, the frames and the
//! nouns, and have one version between them.
//!
//! | feature | what it brings |
//! | --- | --- |
//! | `client` | [`client`], for a backend or a device: no HTTP server, no clap, no allocator, none of the gateway's keys and metrics |
//! | `server` | [`Server`], the gateway inside another program |
//! | `cli` | both, and the program `plex` |
//!
//! All are on by default; `default-features = false, features = ["client"]` is the client alone. [`proto`], [`model`],
//! [`frame`] and [`codec`] are always there.
//!
//! # Arrows, one way only
//!
//! ```text
//! main ──► cli ──► server ──► device ──► hub ──► cluster ──► model
//!           │         ├─────► control ─► hub                   ▲
//!           │         ├─────► http ────► hub                   │
//!           │         └─────► auth, state, config, telemetry everyone
//!           └────► client ──► tls ──► files (so do auth, device, control and http)
//! ```
//!
//! What each module may use stands in `tests/arrows.rs`, which fails on any other use. What is absent on purpose: `hub`
//! knows no socket, no JSON and no gRPC. `device` and `control` don't know each other. `cluster` doesn't know the hub:
//! it gives a stream of what others ask, which `Hub::run` takes. Only `control` contains the word Status. Only `server`
//! and `cli` read the whole [`Config`]; a part gets its own part of it.
//!
//! # Three paths
//!
//! **A push**: `control::callers` (who asks, and may it) → `control::push` (decode, check) → `Hub::push` (look up the connections, encode the frame) →
//! `Connection::push`, which writes to the device's socket from the thread that pushes. Only what the socket doesn't
//! take is queued, and left to the connection's own task. Held by another node: `Cluster::forward` ⇢ that node's
//! `Hub::run` → the same. The outcome goes back the same stairs.
//!
//! **A device's frame**: socket → (`device::opening`: a balancer's header, a TLS handshake; from then on `device::tls`
//! stands between) → `device::inbox` (the length is judged before anything is kept) → `handshake` until
//! it has authenticated, then `Session::on_frame`, which touches no socket → an answer in the outbox, or an end. The
//! connection's end: `Hub::end` takes it out of the registry, releases its presence, and fails its waits in one step;
//! then `close` writes the last frame.
//!
//! **A presence change**: `Hub::register` or `Hub::end` → `Cluster::claim` or `release` → a record in the log → the
//! fold, the same on every node → the ring of changes → each watcher reads it at its own pace → `control::presence`.
//! On one node the log is in this process, and folded before the call returns. In a cluster it is a stream of NATS:
//! `cluster::outgoing` gathers the records, `cluster::member` decides what is written, read, asked and given up, without
//! I/O and without a clock, and `cluster::nats` does it. A node acts on what it has read, never on what it has sent; the
//! simulator of the tests runs the very same member through losses, crashes and cuts.
//!
//! # What makes it light
//!
//! An idle connection is one task with one timer, an entry in the registry and one in the directory of presence; it
//! owns no buffer and no queue. Input is read into a buffer of the thread, an outbox is allocated when something waits,
//! the states of handshake and close are boxed. Pushes need no task switch. See `benches/` for the figures.
//!
//! Lock order: a shard of the registry, the presence log, an outbox. None is held across an await.

// Of the modules marked as this one is, the commands use a part, or the client one and the server another.
#[cfg(feature = "server")]
#[cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]
mod auth;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "server")]
#[cfg_attr(not(feature = "nats"), allow(dead_code, unused_imports))]
mod cluster;
pub mod codec;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
mod control;
#[cfg(feature = "server")]
mod device;
#[cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]
mod files;
pub mod frame;
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod hub;
pub mod model;
pub mod proto;
#[cfg(feature = "server")]
mod server;
#[cfg(feature = "server")]
pub mod state;
#[cfg(feature = "server")]
#[cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]
mod telemetry;
#[cfg(feature = "server")]
#[doc(hidden)]
pub mod testing;
#[cfg_attr(not(feature = "cli"), allow(dead_code, unused_imports))]
mod tls;
#[cfg(feature = "server")]
mod workers;

#[cfg(feature = "server")]
pub use self::{
    auth::{AuthError, AuthFuture, AuthRequest, Authenticator, Identity, Trust},
    config::Config,
    server::{Addresses, Bound, Ended, Server, ServerBuilder, StartError, Stopper},
};
pub use self::{
    files::FileError,
    model::{PresenceChange, PresenceEvent},
};

/// The examples of the README, so that they compile.
#[cfg(all(doctest, feature = "cli"))]
#[doc = include_str!("../README.md")]
struct Readme;
