//! Who a device is, as tokens, keys and backends tell: through real sockets.
#![allow(missing_docs, unreachable_pub)]

mod common;

#[path = "authenticators/backends.rs"]
mod backends;
#[path = "authenticators/commands.rs"]
mod commands;
#[path = "authenticators/grpc.rs"]
mod grpc;
#[path = "authenticators/herd.rs"]
mod herd;
#[path = "authenticators/http.rs"]
mod http;
#[path = "authenticators/rotation.rs"]
mod rotation;
#[path = "authenticators/signing.rs"]
mod signing;
#[path = "authenticators/token.rs"]
mod token;
#[path = "authenticators/url.rs"]
mod url;

use std::{net::SocketAddr, path::Path, time::Duration};

use common::{TestDevice, TestServer};
use plex::{Config, config::AuthMode, proto::ListSessionsRequest};

/// What a device is answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Success,
    Refused,
    Unavailable,
}

pub use Answer::{Refused, Success, Unavailable};

/// A gateway with this `auth.mode`, which answers `unavailable` at once.
pub async fn gateway(mode: AuthMode, change: impl FnOnce(&mut Config)) -> TestServer {
    TestServer::with(|config| {
        config.auth.mode = Some(mode);
        config.auth.unavailable_delay = Duration::ZERO;
        // One uid logs in often here.
        config.device.replaces_per_minute = 0;
        change(config);
    })
    .await
}

/// What one try is answered; the device.
pub async fn tried(address: SocketAddr, credential: &str) -> (Answer, TestDevice) {
    let mut device = TestDevice::connect(address).await;
    device.auth_v2(credential).await;
    let answer = device.next().await;
    let answer = match (&*answer.uri, &*answer.body) {
        ("/auth/success", _) => Success,
        ("/auth/failed", r#"{"reason":"refused"}"#) => Refused,
        ("/auth/failed", r#"{"reason":"unavailable"}"#) => Unavailable,
        _ => panic!("an answer of the protocol: {answer:?}"),
    };
    (answer, device)
}

pub async fn answer(server: &TestServer, credential: &str) -> Answer {
    tried(server.device(), credential).await.0
}

/// Waits until a credential is answered so.
pub async fn answers(server: &TestServer, credential: &str, expected: Answer) {
    let what = format!("the answer is {expected:?}");
    common::eventually(&what, || async { (answer(server, credential).await == expected).then_some(()) }).await;
}

/// Whether this uid is connected.
pub async fn is_connected(server: &TestServer, uid: &str) -> bool {
    let request = ListSessionsRequest { uid: uid.into() };
    let mut sessions = server.backend().await.list_sessions(request).await.expect("it lists").into_inner();
    sessions.message().await.expect("it lists").is_some_and(|listed| !listed.sessions.is_empty())
}

/// Writes a file as careful people do: beside it, then renamed over it.
pub fn replace(path: &Path, content: impl AsRef<[u8]>) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, content).expect("the test's folder can be written");
    std::fs::rename(beside, path).expect("a file can be renamed");
}
