//! Many devices in one process, each a socket and nothing else.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
};

use futures_util::{StreamExt, stream};
use plex::client::DeviceSocket;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::TlsConnector;

/// Devices that log in at a time.
const AT_A_TIME: usize = 200;

/// Sockets from one source address: fewer than there are ephemeral ports, those that wait to be given back included.
const PER_SOURCE: usize = 10_000;

/// Sockets made so far.
static MADE: AtomicU64 = AtomicU64::new(0);

pub fn uid(number: usize) -> String {
    format!("device-{number:06}")
}

/// Where devices connect, and how.
#[derive(Clone)]
pub struct Route {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

impl Route {
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }

    pub fn tls(address: SocketAddr, trust: Arc<ClientConfig>) -> Self {
        Self { address, tls: Some(trust.into()) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What devices say at the start.
#[derive(Clone, Copy)]
pub enum Speak {
    /// They authenticate.
    Plex,
    /// They only read.
    Nothing,
}

/// Idle devices.
#[derive(Default)]
pub struct Devices(Vec<DeviceSocket>);

impl Devices {
    pub async fn connect(&mut self, route: &Route, numbers: Range<usize>) {
        let logins = stream::iter(numbers).map(|number| login(route, number, Speak::Plex));
        let mut logins = logins.buffer_unordered(AT_A_TIME);
        while let Some(device) = logins.next().await {
            self.0.push(device);
        }
    }

    pub fn close_all(&mut self) {
        self.0.clear();
    }
}

async fn login(route: &Route, number: usize, speak: Speak) -> DeviceSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    let made = MADE.fetch_add(1, Relaxed) as usize;
    let source = Ipv4Addr::new(127, 0, 0, 1 + u8::try_from(made / PER_SOURCE).expect("few sources"));
    socket.bind(SocketAddr::new(IpAddr::V4(source), 0)).expect("a port");
    let stream = socket.connect(route.address).await.expect("it takes devices");
    stream.set_nodelay(true).expect("a live socket");
    let mut stream = match &route.tls {
        None => DeviceSocket::Plain(stream),
        Some(connector) => {
            let name = ServerName::try_from("localhost").expect("a name");
            DeviceSocket::Tls(Box::new(connector.connect(name, stream).await.expect("a handshake")))
        }
    };
    if let Speak::Plex = speak {
        let message = format!(r#"{{"uri":"/auth/server","body":"{}"}}"#, uid(number));
        let length = u32::try_from(message.len()).expect("it is short");
        stream.write_all(&[&length.to_be_bytes()[..], message.as_bytes()].concat()).await.expect("it reads");
        stream.flush().await.expect("it reads");
        let length = stream.read_u32().await.expect("an answer") as usize;
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(answer, br#"{"uri":"/auth/success"}"#);
    }
    stream
}

/// Devices that read all that comes, on a thread of their own.
pub struct Reader {
    bytes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Returns once all have logged in.
    pub fn start(route: Route, count: usize, speak: Speak) -> Self {
        let (bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (ready, wait) = mpsc::channel();
        let (counted, stopped) = (Arc::clone(&bytes), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            super::runtime().block_on(async {
                read_into(&route, count, speak, &counted).await;
                ready.send(()).expect("somebody waits");
                while !stopped.load(Relaxed) {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            });
        });
        wait.recv().expect("all have logged in");
        Self { bytes, stop, thread: Some(thread) }
    }

    /// What has come to all of them.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Devices that read all that comes, on this thread; gives how much.
pub async fn read_all(route: &Route, count: usize, speak: Speak) -> Arc<AtomicU64> {
    let counted = Arc::new(AtomicU64::new(0));
    read_into(route, count, speak, &counted).await;
    counted
}

async fn read_into(route: &Route, count: usize, speak: Speak, counted: &Arc<AtomicU64>) {
    let logins = stream::iter(0..count).map(|number| login(route, number, speak));
    let devices: Vec<_> = logins.buffer_unordered(AT_A_TIME).collect().await;
    for device in devices {
        match device {
            DeviceSocket::Plain(stream) => tokio::spawn(read(stream, Arc::clone(counted))),
            tls => tokio::spawn(read_tls(tls, Arc::clone(counted))),
        };
    }
}

async fn read_tls(mut stream: DeviceSocket, counted: Arc<AtomicU64>) {
    let mut buffer = [0; 512];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        counted.fetch_add(count as u64, Relaxed);
    }
}

async fn read(stream: TcpStream, counted: Arc<AtomicU64>) {
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        let mut buffer = [0; 4096];
        loop {
            match stream.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    counted.fetch_add(count as u64, Relaxed);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => return,
            }
        }
    }
}
