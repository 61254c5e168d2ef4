//! A backend that is asked by gRPC.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use plex::{
    Config,
    config::AuthMode,
    proto::{
        AuthenticateRequest, AuthenticateResponse,
        authenticator_server::{Authenticator, AuthenticatorServer},
    },
};
use prost_types::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::oneshot,
};
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataMap,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    Refused, Success, TestServer, Unavailable, answer, answers,
    backends::{Gauge, TlsFront, Web},
    common::{PATIENCE, eventually},
    gateway, is_connected, replace, tried,
};

/// A backend that does what the credential says. Ends when it is dropped.
pub struct Oracle {
    pub address: SocketAddr,
    pub asked: Arc<Asked>,
    /// A thread of its own, with which its connections end.
    running: Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
}

#[derive(Default)]
pub struct Asked {
    pub times: AtomicUsize,
    pub in_flight: Arc<Gauge>,
    last: Mutex<Option<(MetadataMap, AuthenticateRequest)>>,
}

struct Service(Arc<Asked>);

#[tonic::async_trait]
impl Authenticator for Service {
    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let _in = self.0.in_flight.enter();
        self.0.times.fetch_add(1, SeqCst);
        let (metadata, _, question) = request.into_parts();
        let credential = question.credential.clone();
        *self.0.last.lock().unwrap() = Some((metadata, question));
        let (verb, what) = credential.split_once(':').unwrap_or((&credential, ""));
        let end = |seconds: i64| Some(Timestamp { seconds, nanos: 0 });
        let answer = match verb {
            "hang" => std::future::pending().await,
            "code" => return Err(Status::new(Code::from_i32(what.parse().unwrap()), "no")),
            "until" => AuthenticateResponse { uid: "alice".into(), expires_at: end(what.parse().unwrap()) },
            "long" => AuthenticateResponse { uid: "x".repeat(what.parse().unwrap()), expires_at: None },
            _ => AuthenticateResponse { uid: what.into(), expires_at: None },
        };
        Ok(Response::new(answer))
    }
}

impl Oracle {
    pub async fn start() -> Self {
        Self::on("127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn on(address: SocketAddr) -> Self {
        let asked = Arc::<Asked>::default();
        let service = AuthenticatorServer::new(Service(Arc::clone(&asked)));
        let (bound, told) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let incoming = TcpIncoming::bind(address).unwrap();
                bound.send(incoming.local_addr().unwrap()).unwrap();
                let serving = Server::builder().add_service(service).serve_with_incoming(incoming);
                tokio::select! {
                    served = serving => served.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        let address = told.await.expect("it is bound");
        Self { address, asked, running: Some((stop, thread)) }
    }

    pub fn times(&self) -> usize {
        self.asked.times.load(SeqCst)
    }

    fn last(&self) -> (MetadataMap, AuthenticateRequest) {
        self.asked.last.lock().unwrap().clone().expect("it was asked")
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        let (stop, thread) = self.running.take().expect("it is dropped once");
        drop(stop);
        let _ = thread.join();
    }
}

pub async fn asking(address: SocketAddr, change: impl FnOnce(&mut Config)) -> TestServer {
    gateway(AuthMode::Grpc, |config| {
        config.auth.endpoint = Some(format!("http://{address}").parse().unwrap());
        change(config);
    })
    .await
}

#[tokio::test]
async fn the_backend_is_told_the_credential_and_the_address_and_tells_the_uid() {
    let oracle = Oracle::start().await;
    let server = asking(oracle.address, |_| ()).await;
    let (answered, device) = tried(server.device(), "uid:alice").await;
    assert_eq!(answered, Success);
    assert!(is_connected(&server, "alice").await);
    let (metadata, question) = oracle.last();
    assert_eq!(question.credential, "uid:alice");
    assert_eq!(question.remote_address, device.stream.local_addr().unwrap().to_string());
    assert!(metadata.contains_key("grpc-timeout"), "it knows how long it is waited for: {metadata:?}");
    assert!(!metadata.contains_key("authorization"));
}

#[tokio::test]
async fn whatever_a_backend_answers_is_refused_or_unavailable() {
    let oracle = Oracle::start().await;
    let server = asking(oracle.address, |config| config.auth.timeout = Duration::from_millis(400)).await;
    for (credential, expected) in [
        ("uid:", Refused),
        ("long:255", Success),
        ("long:256", Refused),
        ("long:60000", Refused),
        ("long:70000", Unavailable),
        ("long:3000000", Unavailable),
        ("until:4102444800", Success),
        ("until:9223372036854775807", Success),
        ("until:1", Refused),
        ("until:0", Refused),
        ("until:-1", Refused),
        ("until:-9223372036854775808", Refused),
        ("hang", Unavailable),
    ] {
        assert_eq!(answer(&server, credential).await, expected, "{credential}");
        assert_eq!(answer(&server, "uid:alice").await, Success, "{credential}");
    }
    for code in 1..=16 {
        let expected = if matches!(code, 7 | 16) { Refused } else { Unavailable };
        assert_eq!(answer(&server, &format!("code:{code}")).await, expected, "{:?}", Code::from_i32(code));
    }
}

#[tokio::test]
async fn a_refusal_is_kept_and_a_success_is_not() {
    let oracle = Oracle::start().await;
    let server = asking(oracle.address, |_| ()).await;
    for (credential, expected, asked) in [
        ("code:16", Refused, 1),
        ("uid:", Refused, 1),
        ("until:1", Refused, 1),
        ("code:14", Unavailable, 5),
        ("uid:a", Success, 5),
    ] {
        let before = oracle.times();
        for _ in 0..5 {
            assert_eq!(answer(&server, credential).await, expected);
        }
        assert_eq!(oracle.times() - before, asked, "{credential}");
    }
}

#[tokio::test]
async fn a_backend_comes_and_goes_and_comes_back() {
    let address = Oracle::start().await.address;
    let server = asking(address, |_| ()).await;
    for _ in 0..3 {
        answers(&server, "uid:alice", Unavailable).await;
        let oracle =
            eventually("the address is free", || async { std::net::TcpListener::bind(address).is_ok().then_some(()) });
        oracle.await;
        let oracle = Oracle::on(address).await;
        answers(&server, "uid:alice", Success).await;
        drop(oracle);
    }
}

#[tokio::test]
async fn what_speaks_no_grpc_is_unavailable() {
    let web = Web::start(|_| crate::backends::Reply::Told(200, "{}".into())).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (rude, endless) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let addresses =
        [web.address, silent.local_addr().unwrap(), rude.local_addr().unwrap(), endless.local_addr().unwrap()];
    let serving = tokio::spawn(async move {
        let rude = async {
            loop {
                let mut stream: TcpStream = rude.accept().await.unwrap().0;
                let _ = stream.read(&mut [0; 16]).await;
            }
        };
        let endless = async {
            loop {
                let (mut stream, _) = endless.accept().await.unwrap();
                while stream.write_all(&[0xff; 65_536]).await.is_ok() {}
            }
        };
        tokio::join!(rude, endless)
    });
    for address in addresses {
        let server = asking(address, |config| config.auth.timeout = Duration::from_millis(300)).await;
        for _ in 0..3 {
            assert_eq!(answer(&server, "uid:alice").await, Unavailable, "{address}");
        }
    }
    serving.abort();
}

#[tokio::test]
async fn the_gateway_shows_its_secret_which_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "one-secret\n").unwrap();
    let oracle = Oracle::start().await;
    let server = asking(oracle.address, |config| config.auth.secret_file = Some(path.clone())).await;
    let shown = || oracle.last().0.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(answer(&server, "uid:alice").await, Success);
    assert_eq!(shown().as_deref(), Some("Bearer one-secret"));
    replace(&path, "another-secret");
    eventually("the new one is shown", || async {
        assert_eq!(answer(&server, "uid:alice").await, Success);
        (shown().as_deref() == Some("Bearer another-secret")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn tls_is_checked_by_auth_ca_and_the_name() {
    let oracle = Oracle::start().await;
    let (front, other) =
        (TlsFront::start(oracle.address, &["h2"]).await, TlsFront::start(oracle.address, &["h2"]).await);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    std::fs::write(&ca, &front.ca).unwrap();
    let at = |url: String, ca: Option<std::path::PathBuf>| {
        gateway(AuthMode::Grpc, move |config| {
            config.auth.endpoint = Some(url.parse().unwrap());
            config.auth.ca = ca;
        })
    };
    let known = at(front.url(), Some(ca.clone())).await;
    assert_eq!(answer(&known, "uid:alice").await, Success);
    for (url, ca) in [(format!("https://{}", front.address), Some(ca.clone())), (front.url(), None)] {
        assert_eq!(answer(&at(url.clone(), ca).await, "uid:alice").await, Unavailable, "{url}");
    }
    let renewed = at(other.url(), Some(ca.clone())).await;
    assert_eq!(answer(&renewed, "uid:alice").await, Unavailable);
    replace(&ca, &other.ca);
    answers(&renewed, "uid:alice", Success).await;
}

#[tokio::test]
async fn a_stop_waits_for_no_backend() {
    let oracle = Oracle::start().await;
    let server = asking(oracle.address, |config| config.auth.timeout = PATIENCE).await;
    let mut device = crate::TestDevice::connect(server.device()).await;
    device.auth_v2("hang").await;
    eventually("it is asked", || async { (oracle.asked.in_flight.now() == 1).then_some(()) }).await;
    server.stopped().await;
    device.expect_close().await;
    eventually("the call ends", || async { (oracle.asked.in_flight.now() == 0).then_some(()) }).await;
}
