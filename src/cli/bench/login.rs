//! From an address to a device that is logged in.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, lookup_host},
};
use tokio_util::codec::Encoder;

use super::{BenchArgs, roster::Roster};
use crate::{
    cli::{Exit, Failure},
    client::{AuthAnswer, DeviceConnector, DeviceSocket, DeviceTls},
    codec::{FrameCodec, OwnedMessage},
    frame::{self, ByteOrder},
};

/// Devices to a source address of loopback: below the number of ephemeral ports (28,232).
const DEVICES_PER_SOURCE: u32 = 20_000;

/// Below the gateway's default time-out of 120 s, with room for one that is lost.
const HEARTBEAT: Duration = Duration::from_secs(50);

/// The longest answer to a login that is read, and credential that is sent.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// How devices get in.
pub(super) struct Logins {
    nodes: Vec<Node>,
    sources: Vec<IpAddr>,
    order: ByteOrder,
    roster: Arc<Roster>,
}

/// Where devices connect to one node.
struct Node {
    name: String,
    address: SocketAddr,
    tls: Option<DeviceConnector>,
}

/// A connection that has not authenticated yet.
pub(super) struct Dialled(DeviceSocket);

/// One that has.
pub(super) struct LoggedIn {
    pub(super) stream: DeviceSocket,
    /// Where it is; empty for a gateway that doesn't tell.
    pub(super) node: String,
    pub(super) heartbeat: Duration,
}

impl Logins {
    /// At these addresses, HOST:PORT. Looks names up, once: of several addresses of a name the first that listens counts.
    pub(super) async fn at(addresses: &[String], args: &BenchArgs, roster: Arc<Roster>) -> Result<Self, Failure> {
        let mut nodes = Vec::new();
        for name in addresses {
            let tls = args.tls.then(|| DeviceTls { server_name: None, ca: args.access.ca.clone() });
            let connector = tls.map(|tls| tls.connector(name)).transpose();
            let tls = connector.map_err(|error| Failure::new(Exit::Usage, format!("--tls: {error}")))?;
            let unreachable = |error: io::Error| Failure::new(Exit::Unreachable, format!("{name}: {error}"));
            let address = listening(name, &args.sources).await.map_err(unreachable)?;
            nodes.push(Node { name: name.clone(), address, tls });
        }
        let order = if args.little_endian { ByteOrder::Little } else { ByteOrder::Big };
        Ok(Self { nodes, sources: args.sources.clone(), order, roster })
    }

    pub(super) fn order(&self) -> ByteOrder {
        self.order
    }

    /// Connects a device: to one node after the other.
    pub(super) async fn dial(&self, number: u32) -> Result<Dialled, Failure> {
        let node = self.node(number);
        let failure = |error| self.failure(number, &error);
        let stream = dial(node.address, source(&self.sources, node.address, number)).await.map_err(failure)?;
        Ok(Dialled(match &node.tls {
            None => DeviceSocket::Plain(stream),
            Some(tls) => tls.connect(stream).await.map_err(failure)?,
        }))
    }

    /// Authenticates it.
    pub(super) async fn authenticate(&self, number: u32, dialled: Dialled) -> Result<LoggedIn, Failure> {
        let failure = |error| self.failure(number, &error);
        let Dialled(mut stream) = dialled;
        let login = OwnedMessage { v: Some(2), ..OwnedMessage::new("/auth/server", &self.roster.credential(number)) };
        let mut frame = BytesMut::new();
        FrameCodec { order: self.order, bytes_max: MESSAGE_BYTES_MAX }
            .encode(login, &mut frame)
            .map_err(|error| Failure::new(Exit::Usage, format!("device {number}'s credential: {error}")))?;
        stream.write_all(&frame).await.map_err(failure)?;
        stream.flush().await.map_err(failure)?;
        let mut length = [0; frame::PREFIX_BYTES];
        stream.read_exact(&mut length).await.map_err(failure)?;
        let length = match self.order {
            ByteOrder::Big => u32::from_be_bytes(length),
            ByteOrder::Little => u32::from_le_bytes(length),
        };
        let mut answer = vec![0; (length as usize).min(MESSAGE_BYTES_MAX)];
        stream.read_exact(&mut answer).await.map_err(failure)?;
        let message = frame::parse(&answer).ok().flatten().map(OwnedMessage::from);
        let exit = match message.as_ref().and_then(AuthAnswer::from_message) {
            Some(AuthAnswer::Success(welcome)) => {
                let welcome = welcome.unwrap_or_default();
                let heartbeat = welcome.heartbeat().map_or(HEARTBEAT, |told| told.min(HEARTBEAT));
                return Ok(LoggedIn { stream, node: welcome.node, heartbeat });
            }
            Some(AuthAnswer::Refused) => Exit::Refused,
            Some(AuthAnswer::Unavailable) | None => Exit::Unreachable,
        };
        Err(Failure::new(exit, format!("{} isn't let in at {}", self.roster.uid(number), self.node(number).name)))
    }

    fn node(&self, number: u32) -> &Node {
        &self.nodes[number as usize % self.nodes.len()]
    }

    fn failure(&self, number: u32, error: &io::Error) -> Failure {
        Failure::new(Exit::Unreachable, format!("device {number} of {}: {error}", self.node(number).name))
    }
}

/// The first address of a name that takes a connection.
async fn listening(name: &str, sources: &[IpAddr]) -> io::Result<SocketAddr> {
    let addresses: Vec<_> = lookup_host(name).await?.collect();
    if let [only] = addresses[..] {
        return Ok(only);
    }
    let mut failed = io::Error::other("no such host");
    for address in addresses {
        match dial(address, source(sources, address, 0)).await {
            Ok(_) => return Ok(address),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Where a device connects from; none: the system chooses.
pub(super) fn source(sources: &[IpAddr], to: SocketAddr, number: u32) -> Option<IpAddr> {
    if !sources.is_empty() {
        return Some(sources[number as usize % sources.len()]);
    }
    let place = number / DEVICES_PER_SOURCE;
    let is_loopback = matches!(to.ip(), IpAddr::V4(ip) if ip.is_loopback());
    (is_loopback && place > 0).then(|| Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + place).into())
}

pub(super) async fn dial(to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
