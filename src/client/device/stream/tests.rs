//! The life of a device on a paused clock, with a gateway at the other end of a pipe.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use tokio::{io::DuplexStream, sync::mpsc};

use super::*;
use crate::client::{
    AckError, Credential,
    device::tests::{Gateway, options},
};

/// What the gateway answers to a login; none: it can't be reached.
type Answer = Option<(&'static str, &'static str)>;

const WELCOME: Answer = Some(("/auth/success", "{}"));
const REFUSED: Answer = Some(("/auth/failed", r#"{"reason":"refused"}"#));

/// A device whose logins are answered so, the last answer again and again. Each connection's other end comes out, with
/// the credential that it got.
fn living(
    options: DeviceOptions,
    answers: impl IntoIterator<Item = Answer>,
) -> (DeviceStream, mpsc::UnboundedReceiver<(Gateway, String)>) {
    let mut answers: VecDeque<_> = answers.into_iter().collect();
    let (ends, connected) = mpsc::unbounded_channel();
    let with = options.clone();
    let connect = move || {
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() }.flatten();
        let (options, ends) = (with.clone(), ends.clone());
        async move {
            let (uri, body) = answer.ok_or(LoginError::Closed)?;
            let (ours, theirs) = tokio::io::duplex(1024);
            let mut gateway = Gateway::new(theirs, options.order);
            let (device, credential) = tokio::join!(Device::over(ours, options), async {
                let credential = gateway.expect().await.body;
                gateway.say(0, uri, body).await;
                credential
            });
            let device: Device<DuplexStream> = device?;
            let _ = ends.send((gateway, credential));
            Ok(("gateway:1".to_owned(), device))
        }
        .boxed()
    };
    (DeviceStream::of(options, connect), connected)
}

/// What the stream tells next, in a word or two.
async fn told(events: &mut DeviceStream) -> String {
    // On the paused clock this takes no time.
    let event = tokio::time::timeout(Duration::from_hours(24 * 7), events.next()).await.expect("an event");
    match event {
        None => "end".to_owned(),
        Some(Err(error)) => format!("error {error}"),
        Some(Ok(DeviceEvent::Connected { address, .. })) => format!("connected {address}"),
        Some(Ok(DeviceEvent::Push(push))) => format!("push {}", push.seq),
        Some(Ok(DeviceEvent::Error { reason, .. })) => format!("not understood {reason}"),
        Some(Ok(DeviceEvent::Kicked { reason, retry_in })) => format!("kicked {reason} {retry_in:?}"),
        Some(Ok(DeviceEvent::Interrupted { .. })) => "interrupted".to_owned(),
    }
}

async fn wait(events: &mut DeviceStream) -> Duration {
    match events.next().await {
        Some(Ok(DeviceEvent::Interrupted { retry_in, .. })) => retry_in,
        other => panic!("{other:?}"),
    }
}

/// Credentials that are numbered.
fn numbered() -> (Credential, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let credential = Credential::from_fn(move || {
        let number = count.fetch_add(1, SeqCst) + 1;
        async move { Ok::<_, LoginError>(format!("token-{number}")) }
    });
    (credential, made)
}

#[tokio::test(start_paused = true)]
async fn waits_grow_while_nobody_is_there_and_begin_anew_after_a_connection_that_lasted() {
    let answers = [vec![None; 8], vec![WELCOME, None, WELCOME, None]].concat();
    let (mut events, mut connected) = living(options(), answers);
    let within = |wait: Duration, most: u64| assert!((most * 500..=most * 1_000).contains(&(wait.as_millis() as u64)));
    for most in [1, 2, 4, 8, 16, 32, 60, 60] {
        let before = Instant::now();
        within(wait(&mut events).await, most);
        // Only the wait that was told before has passed.
        assert!(before.elapsed() <= Duration::from_secs(60));
    }
    assert_eq!(told(&mut events).await, "connected gateway:1");
    // One that ends at once is none that lasted.
    drop(connected.recv().await);
    within(wait(&mut events).await, 60);
    within(wait(&mut events).await, 60);
    assert_eq!(told(&mut events).await, "connected gateway:1");
    let gateway = connected.recv().await;
    assert!(tokio::time::timeout(LASTED, events.next()).await.is_err());
    drop(gateway);
    within(wait(&mut events).await, 1);
    within(wait(&mut events).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_kick_is_obeyed() {
    let (mut events, mut connected) = living(options(), [WELCOME]);
    told(&mut events).await;
    let (mut gateway, _) = connected.recv().await.unwrap();
    gateway.say(0, "/plex/kick", r#"{"reason":"draining","reconnect":true,"after_ms":4321}"#).await;
    assert_eq!(told(&mut events).await, "kicked draining Some(4.321s)");
    let before = Instant::now();
    assert_eq!(told(&mut events).await, "connected gateway:1");
    assert_eq!(before.elapsed(), Duration::from_millis(4_321));
    let (mut gateway, _) = connected.recv().await.unwrap();
    gateway.say(0, "/plex/kick", r#"{"reason":"replaced"}"#).await;
    assert_eq!(told(&mut events).await, "kicked replaced None");
    assert_eq!(told(&mut events).await, "end");
    assert_eq!(told(&mut events).await, "end");
    assert!(connected.try_recv().is_err(), "it doesn't come back");
}

#[tokio::test(start_paused = true)]
async fn a_refused_credential_that_stays_the_same_is_the_end() {
    let (mut events, _connected) = living(options(), [None, REFUSED]);
    assert_eq!(told(&mut events).await, "interrupted");
    assert_eq!(told(&mut events).await, "error the credential was refused");
    assert_eq!(told(&mut events).await, "end");
}

#[tokio::test(start_paused = true)]
async fn a_refused_credential_is_followed_by_another_where_one_can_be_made() {
    let (credential, made) = numbered();
    let (mut events, mut connected) = living(DeviceOptions { credential, ..options() }, [REFUSED, REFUSED, WELCOME]);
    assert_eq!([told(&mut events).await, told(&mut events).await], ["interrupted", "interrupted"]);
    assert_eq!(told(&mut events).await, "connected gateway:1");
    assert_eq!(connected.recv().await.unwrap().1, "token-3");
    assert_eq!(made.load(SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_renewed_before_its_end_on_the_same_connection() {
    let welcome = r#"{"v":2,"expires_in_seconds":100}"#;
    let (credential, _) = numbered();
    let with = DeviceOptions { credential, heartbeats: super::super::Heartbeats::Off, ..options() };
    let (mut events, mut connected) = living(with, [Some(("/auth/success", welcome))]);
    told(&mut events).await;
    let (mut gateway, first) = connected.recv().await.unwrap();
    assert_eq!(first, "token-1");
    let gateway = tokio::spawn(async move {
        let started = Instant::now();
        // In time; a refusal leaves time for another; a success counts from itself on.
        for (renewal, at, answer, body) in [
            ("token-2", 75_000, "/auth/failed", r#"{"reason":"refused"}"#),
            ("token-3", 93_750, "/auth/success", welcome),
            ("token-4", 168_750, "/auth/success", r#"{"v":2}"#),
        ] {
            let message = gateway.expect().await;
            assert_eq!((&*message.uri, &*message.body, message.v), ("/auth/server", renewal, Some(2)));
            assert_eq!(started.elapsed().as_millis(), at);
            gateway.say(0, answer, body).await;
        }
        // Its session doesn't end any more.
        gateway.say(7, "/a", "").await;
        assert!(tokio::time::timeout(Duration::from_secs(86_400), gateway.expect()).await.is_err());
    });
    assert_eq!(told(&mut events).await, "push 7");
    assert_eq!(told(&mut events).await, "interrupted", "not before the gateway went");
    gateway.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn answers_go_out_while_the_stream_waits_and_not_to_another_connection() {
    let (mut events, mut connected) = living(options(), [Some(("/auth/success", r#"{"max_frame_bytes":60}"#))]);
    told(&mut events).await;
    let (mut gateway, _) = connected.recv().await.unwrap();
    gateway.say(7, "/a", "x").await;
    let Some(Ok(DeviceEvent::Push(push))) = events.next().await else { panic!("a push") };
    let polled = tokio::spawn(async move {
        let next = told(&mut events).await;
        (events, next)
    });
    // From another task, while the stream waits.
    tokio::spawn({
        let push = push.clone();
        async move {
            tokio::task::yield_now().await;
            assert!(matches!(push.ack(&"x".repeat(60)), Err(AckError::TooLarge { bytes_max: 60, .. })));
            push.ack("yes").unwrap();
            push.nack("no").unwrap();
        }
    });
    for (uri, body) in [("/plex/ack", "yes"), ("/plex/nack", "no")] {
        let answer = gateway.expect().await;
        assert_eq!((answer.seq, &*answer.uri, &*answer.body), (7, uri, body));
    }
    drop(gateway);
    let (mut events, next) = polled.await.unwrap();
    assert_eq!(next, "interrupted");
    assert_eq!(told(&mut events).await, "connected gateway:1");
    assert_eq!(push.ack("late"), Err(AckError::Closed));
}

#[tokio::test(start_paused = true)]
async fn answers_that_nobody_writes_are_bounded() {
    let (mut events, mut connected) = living(options(), [WELCOME]);
    told(&mut events).await;
    let (mut gateway, _) = connected.recv().await.unwrap();
    gateway.say(7, "/a", "x").await;
    let Some(Ok(DeviceEvent::Push(push))) = events.next().await else { panic!("a push") };
    let body = "x".repeat(10_000);
    let taken = (0..5_000).take_while(|_| push.ack(&body).is_ok()).count();
    assert_eq!(push.ack(&body), Err(AckError::Full));
    // All that were taken are written, though the pipe holds less than one of them.
    let polled = tokio::spawn(async move { told(&mut events).await });
    for _ in 0..taken {
        assert_eq!(gateway.expect().await.body.len(), body.len());
    }
    drop(gateway);
    assert_eq!(polled.await.unwrap(), "interrupted");
}

#[tokio::test]
async fn a_future_of_the_next_event_that_is_dropped_loses_nothing() {
    let (mut events, mut connected) = living(options(), [WELCOME]);
    let mut seqs = Vec::new();
    let mut writing = None;
    while seqs.len() < 50 {
        tokio::select! {
            biased;
            event = events.next() => match event {
                Some(Ok(DeviceEvent::Connected { .. })) => {
                    let (mut gateway, _) = connected.recv().await.unwrap();
                    writing = Some(tokio::spawn(async move {
                        for seq in 1..=50 {
                            gateway.say(seq, "/a", "some content").await;
                        }
                        gateway
                    }));
                }
                Some(Ok(DeviceEvent::Push(push))) => seqs.push(push.seq),
                other => panic!("{other:?}"),
            },
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(seqs, (1..=50).collect::<Vec<_>>());
    assert!(connected.try_recv().is_err(), "by one connection");
    drop(writing);
}

#[test]
fn a_credential_is_never_printed() {
    let options = DeviceOptions::new("very-secret");
    assert!(!format!("{options:?}").contains("very-secret"));
}
