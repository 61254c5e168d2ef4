//! `plex device`: a device in the terminal.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use super::{
    Exit, Failure, Output, gateway,
    output::{complain, shown},
};
use crate::{
    client::{Backoff, Device, DeviceOptions, DeviceTls, Event, LoginError},
    device::frame::{self, ByteOrder},
};

/// The most that a gateway takes which doesn't tell its own limit: the default of `device.max_frame`.
const FRAME_BYTES_MAX: u64 = 64 << 10;

/// A connection that lasted so long was a good one: the next wait is a short one again.
const LASTED: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Args)]
pub(super) struct DeviceArgs {
    /// Who it is; the credential where none is given
    #[arg(long, required_unless_present = "credential")]
    uid: Option<String>,
    /// What it authenticates with
    #[arg(long)]
    credential: Option<String>,
    /// The gateway's address for devices, HOST:PORT [default: device.listen of the configuration; with --tls
    /// device.tls_listen]
    #[arg(long, value_name = "ADDRESS")]
    connect: Option<String>,
    /// Connect by TLS
    #[arg(long)]
    tls: bool,
    /// A PEM file with the certificates that sign the gateway's [default: the system's]
    #[arg(long, value_name = "FILE", requires = "tls")]
    ca: Option<PathBuf>,
    /// Answer each push with its own body
    #[arg(long)]
    echo: bool,
    /// Speak the old dialect: no kicks, no errors
    #[arg(long)]
    v1: bool,
    /// Write lengths in little-endian, as where device.little_endian is set
    #[arg(long)]
    little_endian: bool,
    /// Print one JSON object to a line
    #[arg(long)]
    json: bool,
}

/// What happens to the device. 64-bit numbers are strings, as in protobuf's JSON.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum DeviceLine<'a> {
    Connected { address: &'a str, node: Option<&'a str>, dialect: u8 },
    Push { seq: String, uri: &'a str, body: &'a str },
    Kick { reason: &'a str, reconnect: bool, after_ms: String },
    Error { reason: &'a str, detail: &'a str },
    Closed,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Nobody reads what is printed.
    Unread,
    /// The gateway doesn't want it back.
    Expelled(String),
    /// To be tried again; after this time where the gateway said one.
    Again(Option<Duration>),
}

/// Is a device until it is told not to come back. The first connection must succeed.
pub(super) async fn device(args: DeviceArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let (address, order) = args.address(config)?;
    let mut options = DeviceOptions::new(args.credential.or(args.uid).expect("one of both is required"));
    (options.v2, options.order) = (!args.v1, order);
    if args.tls {
        options.tls = Some(DeviceTls { server_name: host_of(&address).to_owned(), ca: args.ca });
    }
    let mut output = Output::stdout(args.json);
    let mut backoff = Backoff::default();
    let mut was_connected = false;
    loop {
        let mut wait = None;
        match Device::connect(address.as_str(), options.clone()).await {
            Ok(mut connected) => {
                was_connected = true;
                let since = Instant::now();
                let node = connected.welcome().map(|welcome| welcome.node.as_str());
                print(&mut output, &DeviceLine::Connected { address: &address, node, dialect: 2 - u8::from(args.v1) })?;
                match live(&mut connected, args.echo, &mut output).await? {
                    End::Unread => return Ok(Exit::Done),
                    End::Expelled(reason) => {
                        return Err(Failure::new(Exit::No, format!("told not to come back: {reason}")));
                    }
                    End::Again(told) => wait = told,
                }
                if since.elapsed() >= LASTED {
                    backoff.worked();
                }
            }
            Err(error) => match exit(&error) {
                Some(exit) => return Err(Failure::new(exit, error.to_string())),
                None if was_connected || matches!(error, LoginError::Unavailable) => {
                    complain(&format!("{address}: {error}; trying again"));
                }
                None => return Err(Failure::new(Exit::Unreachable, format!("{address}: {error}"))),
            },
        }
        tokio::time::sleep(wait.unwrap_or_else(|| backoff.failed())).await;
    }
}

impl DeviceArgs {
    /// Where to connect, and how lengths are written there.
    fn address(&self, config: Option<PathBuf>) -> Result<(String, ByteOrder), Failure> {
        let order = |little_endian| {
            if self.little_endian || little_endian { ByteOrder::Little } else { ByteOrder::Big }
        };
        // The configuration of this machine's gateway says nothing about another, unless it is named for it.
        if let (Some(address), None) = (&self.connect, &config) {
            return Ok((address.clone(), order(false)));
        }
        let config = gateway::load(config)?.device;
        let (key, listen) = match self.tls {
            false => ("device.listen", &config.listen),
            true => ("device.tls_listen", &config.tls_listen),
        };
        let address = match (&self.connect, listen) {
            (Some(address), _) => address.clone(),
            (None, Some(listen)) => gateway::reachable(key, listen)?,
            (None, None) => {
                return Err(Failure::new(Exit::Usage, format!("{key} is empty: name an address by --connect")));
            }
        };
        Ok((address, order(config.little_endian)))
    }
}

/// The host of an address: what the gateway's certificate must be for.
pub(super) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// What ends the command at once; none: another try may help.
fn exit(error: &LoginError) -> Option<Exit> {
    match error {
        LoginError::Refused => Some(Exit::Refused),
        LoginError::Protocol(_) | LoginError::File(_) | LoginError::ServerName(_) => Some(Exit::Usage),
        LoginError::Unavailable | LoginError::Closed | LoginError::TimedOut(_) | LoginError::Io(_) => None,
    }
}

/// One connection, from its first event to its last.
async fn live(device: &mut Device, echo: bool, output: &mut Output) -> Result<End, Failure> {
    let told = device.welcome().map(|welcome| welcome.max_frame_bytes);
    let bytes_max = told.filter(|&bytes| bytes > 0).unwrap_or(FRAME_BYTES_MAX);
    while !output.is_closed() {
        let event = match device.next().await {
            Ok(event) => event,
            Err(error) => {
                complain(&error.to_string());
                Event::Closed
            }
        };
        match event {
            Event::Push { seq, uri, body } => {
                print(output, &DeviceLine::Push { seq: seq.to_string(), uri: &uri, body: &body })?;
                // A failure is told by the next event.
                let _ = match reply(seq, if echo { &body } else { "" }, bytes_max) {
                    Some(reply) => device.ack(seq, reply).await,
                    None => device.nack(seq, "the reply is too long").await,
                };
            }
            Event::Kick { reason, reconnect, after } => {
                let after_ms = after.as_millis().to_string();
                print(output, &DeviceLine::Kick { reason: &reason, reconnect, after_ms })?;
                return Ok(if reconnect {
                    End::Again((!after.is_zero()).then_some(after))
                } else {
                    End::Expelled(reason)
                });
            }
            Event::Error { reason, detail } => print(output, &DeviceLine::Error { reason: &reason, detail: &detail })?,
            Event::Heartbeat | Event::Auth(_) => {}
            Event::Closed => {
                print(output, &DeviceLine::Closed)?;
                return Ok(End::Again(None));
            }
        }
    }
    Ok(End::Unread)
}

/// `body`, if an ack with it fits into a frame: one that doesn't would end the connection.
fn reply(seq: i64, body: &str, bytes_max: u64) -> Option<&str> {
    let bytes = frame::message_bytes(seq.to_string().len(), "/plex/ack", body);
    (bytes as u64 <= bytes_max).then_some(body)
}

fn print(output: &mut Output, line: &DeviceLine<'_>) -> Result<(), Failure> {
    output.answer(line, || text(line))
}

fn text(line: &DeviceLine<'_>) -> String {
    match line {
        DeviceLine::Connected { address, node: Some(node), .. } => {
            format!("connected to {address}, node {}", shown(node))
        }
        DeviceLine::Connected { address, node: None, .. } => format!("connected to {address}"),
        DeviceLine::Push { seq, uri, body } => format!("push {seq} {} {}", shown(uri), shown(body)),
        DeviceLine::Kick { reason, reconnect: false, .. } => format!("kicked: {}", shown(reason)),
        DeviceLine::Kick { reason, after_ms, .. } => {
            format!("kicked: {}, to come back after {} ms", shown(reason), after_ms)
        }
        DeviceLine::Error { reason, detail } => format!("error {}: {}", shown(reason), shown(detail)),
        DeviceLine::Closed => "closed".to_owned(),
    }
}

#[cfg(test)]
mod tests;
