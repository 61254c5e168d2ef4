//! Devices that stay connected, with a real gateway.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::StreamExt;
use plex::client::{
    Backoff, Credential, Device, DeviceEvent, DeviceOptions, DevicePush, DeviceStream, LoginError, PushStatus,
};
use tokio::time::timeout;

use crate::{
    at_one_place,
    common::{PATIENCE, TestServer, authenticator::Oracle},
    control,
};

fn options(credential: impl Into<Credential>) -> DeviceOptions {
    DeviceOptions {
        backoff: Backoff::new(Duration::from_millis(50), Duration::from_secs(1)),
        ..DeviceOptions::new(credential)
    }
}

async fn next(events: &mut DeviceStream) -> Option<Result<DeviceEvent, LoginError>> {
    timeout(PATIENCE, events.next()).await.expect("an event in time")
}

/// The address that it connects to next, whatever breaks first.
async fn connected(events: &mut DeviceStream) -> String {
    loop {
        match next(events).await {
            Some(Ok(DeviceEvent::Connected { address, .. })) => return address,
            Some(Ok(DeviceEvent::Interrupted { .. })) => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn push(events: &mut DeviceStream) -> DevicePush {
    match next(events).await {
        Some(Ok(DeviceEvent::Push(push))) => push,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_device_comes_back_after_a_drain_and_a_restart() {
    let (mut config, _folder) = at_one_place();
    config.drain.timeout = Duration::from_secs(5);
    let mut server = TestServer::of(config.clone(), None, |builder| builder).await;
    let mut events = Device::stream(server.device(), options("alice"));
    assert_eq!(connected(&mut events).await, server.device().to_string());
    let stopped = server.stopping();
    match next(&mut events).await {
        Some(Ok(DeviceEvent::Kicked { reason, retry_in: Some(wait) })) => {
            assert_eq!(reason, "draining");
            assert!(wait <= Duration::from_secs(5), "{wait:?}");
        }
        other => panic!("{other:?}"),
    }
    stopped.await;
    let coming = tokio::spawn(async move {
        connected(&mut events).await;
        events
    });
    let server = TestServer::of(config, None, |builder| builder).await;
    let mut events = timeout(PATIENCE, coming).await.expect("it comes back").unwrap();
    let pushed = control(&server).push("alice", "/a", "again").await.unwrap();
    assert_eq!(pushed.status, PushStatus::Sent);
    assert_eq!(push(&mut events).await.seq, pushed.seq);
}

#[tokio::test]
async fn a_device_that_is_replaced_does_not_come_back() {
    let server = TestServer::start().await;
    let mut older = Device::stream(server.device(), options("alice"));
    connected(&mut older).await;
    let mut newer = Device::stream(server.device(), options("alice"));
    connected(&mut newer).await;
    let kick = next(&mut older).await;
    assert!(
        matches!(&kick, Some(Ok(DeviceEvent::Kicked { reason, retry_in: None })) if reason == "replaced"),
        "{kick:?}"
    );
    assert!(next(&mut older).await.is_none());
    // And the newer keeps its place.
    assert_eq!(control(&server).push("alice", "/a", "b").await.unwrap().status, PushStatus::Sent);
    assert_eq!(push(&mut newer).await.body, "b");
}

#[tokio::test]
async fn a_push_is_answered_from_another_task() {
    let server = TestServer::start().await;
    let mut events = Device::stream(server.device(), options("alice"));
    connected(&mut events).await;
    let device = tokio::spawn(async move {
        while let Some(Ok(event)) = events.next().await {
            if let DeviceEvent::Push(push) = event {
                tokio::spawn(async move {
                    let answer = if push.uri == "/no" { push.nack("never") } else { push.ack(&push.body) };
                    answer.expect("it is connected");
                });
            }
        }
    });
    let control = control(&server);
    let acked = control.ask("alice", "/yes", "echo", PATIENCE).await.unwrap();
    assert_eq!((acked.status, &*acked.reply), (PushStatus::Acked, "echo"));
    let nacked = control.ask("alice", "/no", "", PATIENCE).await.unwrap();
    assert_eq!((nacked.status, &*nacked.reply), (PushStatus::Nacked, "never"));
    device.abort();
}

/// Credentials of alice for so long each, and how many were made.
fn lasting(millis: u64) -> (Credential, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let credential = Credential::from_fn(move || {
        count.fetch_add(1, SeqCst);
        async move { Ok::<_, LoginError>(format!("alice/{millis}")) }
    });
    (credential, made)
}

#[tokio::test]
async fn a_session_is_renewed_before_it_expires() {
    let server = TestServer::built(|_| {}, |builder| builder.authenticator(Oracle::default())).await;
    let (credential, made) = lasting(5_000);
    let mut events = Device::stream(server.device(), options(credential));
    connected(&mut events).await;
    let epoch = async || control(&server).sessions("alice").await.unwrap().next().await.unwrap().unwrap().epoch;
    let before = epoch().await;
    // Longer than one credential lasts, and nothing happens.
    let quiet = async {
        while made.load(SeqCst) < 3 {
            assert!(timeout(Duration::from_millis(50), events.next()).await.is_err());
        }
    };
    timeout(PATIENCE, quiet).await.expect("it is renewed");
    assert_eq!(epoch().await, before, "the same connection");
}

#[tokio::test]
async fn a_session_that_has_expired_is_followed_by_another() {
    let server = TestServer::built(|_| {}, |builder| builder.authenticator(Oracle::default())).await;
    // Too short to be renewed before its end.
    let (credential, made) = lasting(300);
    let mut events = Device::stream(server.device(), options(credential));
    connected(&mut events).await;
    let kick = next(&mut events).await;
    assert!(
        matches!(&kick, Some(Ok(DeviceEvent::Kicked { reason, retry_in: Some(_) })) if reason == "expired"),
        "{kick:?}"
    );
    connected(&mut events).await;
    assert_eq!(made.load(SeqCst), 2);
    // A credential that is always the same ends with its time.
    let mut events = Device::stream(server.device(), options("alice/-1"));
    assert!(matches!(next(&mut events).await, Some(Err(LoginError::Refused))));
    assert!(next(&mut events).await.is_none());
}

#[tokio::test]
async fn a_device_asks_where_to_connect() {
    let server = TestServer::start().await;
    let mut events = Device::stream(format!("http://{}", server.addresses.http), options("alice"));
    assert_eq!(connected(&mut events).await, server.device().to_string());
    // By TLS no node of this gateway takes devices.
    let tls = options("alice").tls(plex::client::DeviceTls::new());
    let mut events = Device::stream(format!("http://{}/", server.addresses.http), tls);
    match next(&mut events).await {
        Some(Ok(DeviceEvent::Interrupted { error: LoginError::NoHost(why), .. })) => {
            assert!(why.contains("transport"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    for wrong in ["nonsense", "ftp://a:1"] {
        let mut events = Device::stream(wrong, options("alice"));
        assert!(matches!(next(&mut events).await, Some(Err(LoginError::Address(_)))), "{wrong}");
    }
}
