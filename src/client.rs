//! What a Rust user of a gateway needs, and what the commands and the tests use: [`Control`] is a backend, [`Device`] a
//! device. It runs inside a Tokio runtime, and spawns nothing that outlives it. Streams are those of the crate
//! `futures`, whose `StreamExt` has `next`.
//!
//! With `default-features = false, features = ["client"]` it builds without the gateway.
//!
//! # A backend
//!
//! [`Control`] has a method for each call. What became of a push is a [`PushStatus`], never an error; a [`CallError`] says
//! that the call itself could not be processed. [`Control::push_stream`] pushes many, [`Control::online_status`] tells who
//! is online, over broken connections and restarts of the gateway; [`Control::follow`] and [`Control::raw`] are the levels
//! below.
//!
//! ```
//! use futures_util::StreamExt;
//! use plex::client::{Control, OnlineEvent, PushRequest, PushStatus};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = std::env::temp_dir().join(format!("plex-backend-{}", std::process::id()));
//! # let mut config = plex::Config::default();
//! # config.data_dir = Some(folder.clone());
//! # config.device.listen = Some("127.0.0.1:0".parse()?);
//! # config.control.listen = "127.0.0.1:0".parse()?;
//! # config.http.listen = "127.0.0.1:0".parse()?;
//! # config.metrics.listen = None;
//! # let gateway = plex::Server::builder(config).build()?.bind().await?;
//! # let (url, secret) = (format!("http://{}", gateway.addresses().control), gateway.secret().expose().to_owned());
//! # let stop = gateway.stopper();
//! # let running = tokio::spawn(gateway.run());
//! let control = Control::connect(&url, &secret)?;
//! let outcome = control.push("alice", "/greeting", "hello").await?;
//! assert_eq!((outcome.status, outcome.connections), (PushStatus::Offline, 0));
//!
//! // Many pushes: outcomes are read while pushes are sent, at most 1,000 of them without one.
//! let (pushes, mut outcomes) = control.push_stream(1_000).await?;
//! let sending = tokio::spawn(async move {
//!     for id in 0..10 {
//!         pushes.send(PushRequest { id, ..PushRequest::new("alice", "/news", "") }).await?;
//!     }
//!     Ok::<_, plex::client::CallError>(())
//! });
//! while let Some(outcome) = outcomes.next().await {
//!     println!("{}", outcome?.status);
//! }
//! sending.await??;
//!
//! // Who is online, for as long as the program runs.
//! let mut presence = control.online_status(["alice", "bob"]);
//! while let Some(event) = presence.next().await {
//!     match event? {
//!         OnlineEvent::Online { uid, .. } => println!("{uid} is online"),
//!         OnlineEvent::Offline { uid, .. } => println!("{uid} is offline"),
//!         OnlineEvent::Live => break, // all is told up to now; this program has seen enough
//!         _ => {}
//!     }
//! }
//! # stop.shutdown();
//! # running.await?;
//! # std::fs::remove_dir_all(folder)?;
//! # Ok(())
//! # }
//! ```
//!
//! # A device
//!
//! [`Device::stream`] stays connected: it comes back after a random wait that grows, obeys kicks, and asks for a new
//! credential in time. [`Device::connect`] is one connection, for who wants to do all of that otherwise.
//!
//! ```
//! use futures_util::StreamExt;
//! use plex::client::{Credential, Device, DeviceEvent, DeviceOptions};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = std::env::temp_dir().join(format!("plex-device-{}", std::process::id()));
//! # let mut config = plex::Config::default();
//! # config.data_dir = Some(folder.clone());
//! # config.device.listen = Some("127.0.0.1:0".parse()?);
//! # config.control.listen = "127.0.0.1:0".parse()?;
//! # config.http.listen = "127.0.0.1:0".parse()?;
//! # config.metrics.listen = None;
//! # let gateway = plex::Server::builder(config).build()?.bind().await?;
//! # let (addresses, secret) = (gateway.addresses(), gateway.secret().expose().to_owned());
//! # let look_up = format!("http://{}", addresses.http);
//! # let control = plex::client::Control::connect(&format!("http://{}", addresses.control), &secret)?;
//! # let stop = gateway.stopper();
//! # let running = tokio::spawn(gateway.run());
//! /// Asks the business backend for a token.
//! async fn token() -> Result<String, std::io::Error> {
//!     Ok("alice".to_owned())
//! }
//!
//! // `look_up` is the gateway's HTTP port, http://…:9579; a device port, HOST:9578, would do as well.
//! let mut events = Device::stream(look_up, DeviceOptions::new(Credential::from_fn(token)));
//! while let Some(event) = events.next().await {
//!     match event? {
//!         DeviceEvent::Connected { address, .. } => {
//!             println!("connected to {address}");
//! #             let control = control.clone();
//! #             tokio::spawn(async move { control.push("alice", "/greeting", "hello").await });
//!         }
//!         DeviceEvent::Push(push) => {
//!             println!("{}: {}", push.uri, push.body);
//!             push.ack("thanks")?; // counts where the backend asked for it
//! #             break;
//!         }
//!         DeviceEvent::Kicked { reason, retry_in: None } => println!("not to come back: {reason}"),
//!         other => println!("{other:?}"),
//!     }
//! }
//! # stop.shutdown();
//! # running.await?;
//! # std::fs::remove_dir_all(folder)?;
//! # Ok(())
//! # }
//! ```
//!
//! # Giving up
//!
//! Every future here can be dropped: each says what then holds. A future of a stream's next item loses none, a push that
//! waits in [`PushSink::send`] was not sent, and a call that was given up may have done its work or not.

mod answer;
mod backoff;
mod control;
mod device;
mod error;
mod presence;

#[cfg(feature = "cli")]
pub(crate) use self::device::DeviceConnector;
pub use self::{
    answer::{BroadcastOutcome, Host, Info, Online, OnlineState, PushOutcome, PushRequest, PushStatus, Session},
    backoff::Backoff,
    control::{Control, ControlOptions, PushOutcomes, PushSink, RawClient, Sessions},
    device::{
        AckError, AuthAnswer, Credential, Device, DeviceEvent, DeviceOptions, DevicePush, DeviceSocket, DeviceStream,
        DeviceTls, Event, Heartbeats, LoginError, Welcome,
    },
    error::{CallError, ConnectError},
    presence::{Follower, OnlineEvent, OnlineStatus, Update},
};

// They need a gateway that says what it is told to.
#[cfg(all(test, feature = "server"))]
mod tests;
