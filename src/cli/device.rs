//! `plex device`: a device in the terminal.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use futures_util::StreamExt;
use serde::Serialize;

use super::{
    Exit, Failure, Output, gateway,
    output::{complain, shown},
};
use crate::{
    client::{AckError, Backoff, Device, DeviceEvent, DeviceOptions, DeviceTls, LoginError},
    frame::ByteOrder,
};

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

/// Is a device until it is told not to come back. The first connection must succeed.
pub(super) async fn device(args: DeviceArgs, config: Option<PathBuf>) -> Result<Exit, Failure> {
    let (address, order) = args.address(config)?;
    let mut options = DeviceOptions::new(args.credential.or(args.uid).expect("one of both is required"));
    (options.v2, options.order) = (!args.v1, order);
    // Somebody looks on: sooner than a device in the field would.
    options.backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    if args.tls {
        options.tls = Some(DeviceTls { server_name: None, ca: args.ca });
    }
    let mut shown = Shown { address, dialect: 2 - u8::from(args.v1), echo: args.echo, connected: false, ever: false };
    let mut events = Device::stream(&shown.address, options);
    let mut output = Output::stdout(args.json);
    while !output.is_closed() {
        match events.next().await {
            Some(Ok(event)) => shown.show(event, &mut output)?,
            Some(Err(error)) => return Err(shown.failure(&error)),
            // What ends the stream was told.
            None => break,
        }
    }
    Ok(Exit::Done)
}

/// What is shown of a device's life.
struct Shown {
    address: String,
    dialect: u8,
    echo: bool,
    connected: bool,
    /// Whether it was connected before.
    ever: bool,
}

impl Shown {
    /// Prints an event, and answers a push. A failure is one that ends the command.
    fn show(&mut self, event: DeviceEvent, output: &mut Output) -> Result<(), Failure> {
        match event {
            DeviceEvent::Connected { welcome, .. } => {
                (self.connected, self.ever) = (true, true);
                let node = welcome.as_ref().map(|welcome| welcome.node.as_str());
                print(output, &DeviceLine::Connected { address: &self.address, node, dialect: self.dialect })
            }
            DeviceEvent::Push(push) => {
                print(output, &DeviceLine::Push { seq: push.seq.to_string(), uri: &push.uri, body: &push.body })?;
                // A connection that has ended is told by the next event.
                if let Err(AckError::TooLarge { .. }) = push.ack(if self.echo { &push.body } else { "" }) {
                    let _ = push.nack("the reply is too long");
                }
                Ok(())
            }
            DeviceEvent::Error { reason, detail } => {
                print(output, &DeviceLine::Error { reason: &reason, detail: &detail })
            }
            DeviceEvent::Kicked { reason, retry_in } => {
                self.connected = false;
                let (reconnect, after_ms) = (retry_in.is_some(), retry_in.unwrap_or_default().as_millis().to_string());
                print(output, &DeviceLine::Kick { reason: &reason, reconnect, after_ms })?;
                if reconnect { Ok(()) } else { Err(Failure::new(Exit::No, format!("told not to come back: {reason}"))) }
            }
            DeviceEvent::Interrupted { error, .. } if self.connected => {
                self.connected = false;
                if !matches!(error, LoginError::Closed) {
                    complain(&error.to_string());
                }
                print(output, &DeviceLine::Closed)
            }
            DeviceEvent::Interrupted { error, .. } => {
                let another_try = self.ever && exit(&error) == Exit::Unreachable;
                if !another_try && !matches!(error, LoginError::Unavailable) {
                    return Err(self.failure(&error));
                }
                complain(&format!("{}: {error}; trying again", self.address));
                Ok(())
            }
        }
    }

    fn failure(&self, error: &LoginError) -> Failure {
        let exit = exit(error);
        let message = match exit {
            Exit::Unreachable => format!("{}: {error}", self.address),
            _ => error.to_string(),
        };
        Failure::new(exit, message)
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

/// With what a login that failed ends the command.
fn exit(error: &LoginError) -> Exit {
    match error {
        LoginError::Refused => Exit::Refused,
        LoginError::Protocol(_) | LoginError::File(_) | LoginError::ServerName(_) | LoginError::Address(_) => {
            Exit::Usage
        }
        _ => Exit::Unreachable,
    }
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
