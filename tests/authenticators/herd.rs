//! A thousand devices at once, before a backend that hangs for some of them.

use std::time::Duration;

use futures_util::future::join_all;
use plex::{AuthError, AuthFuture, AuthRequest, Authenticator, Config, Identity};
use serde_json::json;

use crate::{
    Refused, Success, TestDevice, TestServer, Unavailable, answer,
    backends::{Reply, Web},
    common::{PATIENCE, eventually},
    grpc::{self, Oracle},
    http::{self, credential},
    tried,
};

const BOUND: usize = 50;
const DEVICES: usize = 1_000;

/// Lets in "uid:…", refuses "code:16", hangs for "hang".
async fn web() -> Web {
    Web::start(|asked| match &*credential(asked) {
        hang if hang.starts_with("hang") => Reply::Hang,
        good if good.starts_with("uid:") => Reply::Told(200, json!({ "uid": &good[4..] }).to_string()),
        _ => Reply::Told(403, String::new()),
    })
    .await
}

/// A device whose question is under way.
async fn hanging(server: &TestServer, number: usize) -> TestDevice {
    let mut device = TestDevice::connect(server.device()).await;
    device.auth_v2(&format!("hang:{number}")).await;
    device
}

/// All of a thousand devices but those for which the backend hangs are answered, though it hangs on.
async fn nobody_waits_for_those_that_hang(server: &TestServer, in_flight: impl Fn() -> usize) {
    assert_eq!(answer(server, "code:16").await, Refused);
    let hangs = BOUND - 5;
    let waiting = join_all((0..hangs).map(|number| hanging(server, number))).await;
    eventually("they are asked about", || async { (in_flight() == hangs).then_some(()) }).await;
    let others = (hangs..DEVICES).map(|number| async move {
        let (credential, expected) =
            if number % 2 == 0 { ("code:16".to_owned(), Refused) } else { (format!("uid:dev-{number}"), Success) };
        let (answered, device) = tried(server.device(), &credential).await;
        assert_eq!(answered, expected, "{credential}");
        device
    });
    let answered = join_all(others).await;
    assert_eq!(answered.len() + waiting.len(), DEVICES);
    assert_eq!(in_flight(), hangs);
}

/// Where all places are taken, what was refused is still answered at once, and nobody waits for ever.
async fn what_is_known_needs_no_place(server: &TestServer, in_flight: impl Fn() -> usize) {
    assert_eq!(answer(server, "code:16").await, Refused);
    let waiting = join_all((0..BOUND * 4).map(|number| hanging(server, number))).await;
    eventually("all places are taken", || async { (in_flight() == BOUND).then_some(()) }).await;
    for (answered, _) in join_all((0..200).map(|_| tried(server.device(), "code:16"))).await {
        assert_eq!(answered, Refused);
    }
    // Those that wait longer for a place than for an answer are told so.
    let tries = waiting.into_iter().map(|mut device| async move { device.next().await.body });
    for body in join_all(tries).await {
        assert_eq!(body, r#"{"reason":"unavailable"}"#);
    }
}

#[tokio::test]
async fn http_quick_answers_wait_for_no_hanging_ones() {
    let web = web().await;
    let server = http::asking(&web, |config| {
        config.auth.max_in_flight = BOUND as u32;
        config.auth.timeout = PATIENCE * 10;
    })
    .await;
    nobody_waits_for_those_that_hang(&server, || web.shared.in_flight.now()).await;
    assert!(web.shared.in_flight.most() <= BOUND && web.shared.connections.most() <= BOUND);
}

#[tokio::test]
async fn grpc_quick_answers_wait_for_no_hanging_ones() {
    let oracle = Oracle::start().await;
    let server = grpc::asking(oracle.address, |config| {
        config.auth.max_in_flight = BOUND as u32;
        config.auth.timeout = PATIENCE * 10;
    })
    .await;
    nobody_waits_for_those_that_hang(&server, || oracle.asked.in_flight.now()).await;
    assert!(oracle.asked.in_flight.most() <= BOUND);
}

#[tokio::test]
async fn http_what_was_refused_needs_no_place() {
    let web = web().await;
    let server = http::asking(&web, |config| {
        config.auth.max_in_flight = BOUND as u32;
        config.auth.timeout = Duration::from_secs(2);
    })
    .await;
    what_is_known_needs_no_place(&server, || web.shared.in_flight.now()).await;
    assert_eq!(tried(server.device(), "uid:late").await.0, Success);
    eventually("calls that were given up end", || async { (web.shared.in_flight.now() == 0).then_some(()) }).await;
}

#[tokio::test]
async fn grpc_what_was_refused_needs_no_place() {
    let oracle = Oracle::start().await;
    let server = grpc::asking(oracle.address, |config| {
        config.auth.max_in_flight = BOUND as u32;
        config.auth.timeout = Duration::from_secs(2);
    })
    .await;
    what_is_known_needs_no_place(&server, || oracle.asked.in_flight.now()).await;
    assert_eq!(tried(server.device(), "uid:late").await.0, Success);
    eventually("calls that were given up end", || async { (oracle.asked.in_flight.now() == 0).then_some(()) }).await;
}

#[tokio::test]
async fn http_connections_stay_within_the_bound_while_calls_are_given_up() {
    let web = web().await;
    let server = http::asking(&web, |config| {
        config.auth.max_in_flight = 4;
        config.auth.timeout = Duration::from_millis(100);
    })
    .await;
    for round in 0..5 {
        let tries = (0..40).map(|number| tried(server.device(), if number % 2 == 0 { "hang" } else { "uid:a" }));
        for (answered, _) in join_all(tries).await {
            assert!(answered == Success || answered == Unavailable, "{round}");
        }
    }
    // One that was closed may not be seen as such before the next one is.
    assert!(web.shared.connections.most() <= 8, "{}", web.shared.connections.most());
}

/// A library's authenticator: "known" is known, any other is asked about for ever.
struct Cache;

impl Authenticator for Cache {
    fn authenticate<'a>(&'a self, _: AuthRequest<'a>) -> AuthFuture<'a> {
        Box::pin(std::future::pending())
    }

    fn known(&self, request: AuthRequest<'_>) -> Option<Result<Identity, AuthError>> {
        match request.credential {
            "panic" => panic!("asked to"),
            known => (known == "known").then(|| Ok(Identity::new(known))),
        }
    }
}

#[tokio::test]
async fn what_a_librarys_authenticator_knows_needs_no_place_either() {
    let change = |config: &mut Config| {
        config.auth.max_in_flight = 1;
        config.auth.timeout = PATIENCE * 10;
        config.auth.unavailable_delay = Duration::ZERO;
    };
    let server = TestServer::built(change, |builder| builder.authenticator(Cache)).await;
    let _waiting = join_all((0..10).map(|number| hanging(&server, number))).await;
    assert_eq!(answer(&server, "known").await, Success);
    assert_eq!(answer(&server, "panic").await, Unavailable);
    assert_eq!(answer(&server, "known").await, Success);
}
