//! Servers that are asked: by HTTP, written on bare sockets so that they can misbehave, and TLS before any server.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

/// What a server does with a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// This status and this body.
    Told(u16, String),
    /// These bytes, then the end of the connection.
    Bytes(String),
    /// Nothing, for ever.
    Hang,
    /// A good answer, a byte a second.
    Drip,
    /// The end, without a word.
    Close,
    /// Half of a good answer.
    Half,
    /// A gigabyte: with its length in the head, or without.
    Gigabyte { told: bool },
}

/// What it was asked.
#[derive(Debug, Clone)]
pub struct Asked {
    /// In lower case.
    pub head: String,
    pub body: String,
}

/// How many there are, and how many there were at most.
#[derive(Default)]
pub struct Gauge {
    now: AtomicUsize,
    most: AtomicUsize,
}

pub struct In(Arc<Gauge>);

impl Gauge {
    pub fn enter(self: &Arc<Self>) -> In {
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        In(Arc::clone(self))
    }

    pub fn now(&self) -> usize {
        self.now.load(SeqCst)
    }

    pub fn most(&self) -> usize {
        self.most.load(SeqCst)
    }
}

impl Drop for In {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

/// An HTTP server that does what a function says. Ends when it is dropped.
pub struct Web {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

#[derive(Default)]
pub struct Shared {
    pub asked: Mutex<Vec<Asked>>,
    pub in_flight: Arc<Gauge>,
    pub connections: Arc<Gauge>,
    pub accepted: AtomicUsize,
}

impl Web {
    pub async fn start(reply: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::on("127.0.0.1:0".parse().unwrap(), reply).await
    }

    pub async fn on(address: SocketAddr, reply: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shared, reply) = (Arc::<Shared>::default(), Arc::new(reply));
        let serving = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                // Ends with this task.
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    shared.accepted.fetch_add(1, SeqCst);
                    let (shared, reply) = (Arc::clone(&shared), Arc::clone(&reply));
                    connections.spawn(async move {
                        let _in = shared.connections.enter();
                        serve(stream, &shared, &*reply).await
                    });
                    while connections.try_join_next().is_some() {}
                }
            }
        });
        Self { address, shared, serving }
    }

    pub fn url(&self) -> String {
        format!("http://{}/auth", self.address)
    }

    pub fn asked(&self) -> usize {
        self.shared.asked.lock().unwrap().len()
    }

    pub fn last(&self) -> Asked {
        self.shared.asked.lock().unwrap().last().expect("it was asked").clone()
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut stream: TcpStream, shared: &Shared, reply: &(dyn Fn(&Asked) -> Reply + Send + Sync)) -> Option<()> {
    loop {
        let asked = request(&mut stream).await?;
        let _in = shared.in_flight.enter();
        let reply = reply(&asked);
        shared.asked.lock().unwrap().push(asked);
        let good = told(200, r#"{"uid":"alice"}"#);
        match reply {
            Reply::Told(status, body) => stream.write_all(told(status, &body).as_bytes()).await.ok()?,
            Reply::Bytes(bytes) => return stream.write_all(bytes.as_bytes()).await.ok(),
            Reply::Close => return None,
            Reply::Half => return stream.write_all(&good.as_bytes()[..good.len() - 4]).await.ok(),
            Reply::Hang => return gone(&mut stream).await,
            Reply::Drip => {
                for byte in good.into_bytes() {
                    stream.write_all(&[byte]).await.ok()?;
                    if tokio::time::timeout(Duration::from_secs(1), gone(&mut stream)).await.is_ok() {
                        return None;
                    }
                }
            }
            Reply::Gigabyte { told } => {
                let length = if told { "content-length: 1073741824\r\n" } else { "" };
                stream.write_all(format!("HTTP/1.1 200 OK\r\n{length}\r\n{{\"uid\":\"").as_bytes()).await.ok()?;
                for _ in 0..16_384 {
                    stream.write_all(&[b'a'; 65_536]).await.ok()?;
                }
                return None;
            }
        }
    }
}

fn told(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} Any\r\nlocation: /elsewhere\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Waits for the end of the connection.
async fn gone(stream: &mut TcpStream) -> Option<()> {
    while stream.read(&mut [0; 64]).await.ok()? > 0 {}
    None
}

async fn request(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes.drain(..at + 4).collect()).unwrap().to_ascii_lowercase();
            let length =
                head.split("content-length: ").nth(1).map(|rest| rest.lines().next().unwrap().parse().unwrap());
            break (head, length.unwrap_or(0));
        }
    };
    while bytes.len() < length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(Asked { head, body: String::from_utf8(bytes).unwrap() })
}

/// TLS for `localhost` before another server. Ends when it is dropped.
pub struct TlsFront {
    pub address: SocketAddr,
    /// What signs it, in PEM.
    pub ca: String,
    serving: JoinHandle<()>,
}

impl TlsFront {
    pub async fn start(behind: SocketAddr, protocols: &[&str]) -> Self {
        let pair = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&pair).unwrap();
        let key = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let Ok(mut outside) = acceptor.accept(stream).await else { return };
                    let mut inside = TcpStream::connect(behind).await.unwrap();
                    let _ = copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
        Self { address, ca: certificate.pem(), serving }
    }

    /// By the name that its certificate has.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
