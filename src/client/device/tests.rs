use std::time::Duration;

use futures_util::StreamExt;
use tokio::{
    io::{AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    time::timeout,
};

use super::*;
use crate::frame;

/// The gateway's end of a connection.
pub(super) struct Gateway {
    input: FramedRead<ReadHalf<DuplexStream>, FrameCodec>,
    output: WriteHalf<DuplexStream>,
    order: ByteOrder,
}

impl Gateway {
    pub(super) fn new(stream: DuplexStream, order: ByteOrder) -> Self {
        let (input, output) = split(stream);
        Self { input: FramedRead::new(input, FrameCodec { order, bytes_max: 1 << 20 }), output, order }
    }

    pub(super) async fn expect(&mut self) -> OwnedMessage {
        self.input.next().await.expect("a frame comes").expect("it can be read")
    }

    pub(super) async fn say(&mut self, seq: i64, uri: &str, body: &str) {
        let mut frame = Vec::new();
        frame::encode(self.order, seq, uri, body, &mut frame);
        self.output.write_all(&frame).await.expect("the device is there");
    }
}

pub(super) fn options() -> DeviceOptions {
    DeviceOptions { timeout: Duration::from_secs(5), ..DeviceOptions::new("alice") }
}

/// A device and its gateway, which has answered with `welcome`. Eight bytes fit between them, so that every frame comes
/// in pieces.
async fn connected(options: DeviceOptions, welcome: &str) -> (Device<DuplexStream>, Gateway) {
    let (ours, theirs) = duplex(8);
    let mut gateway = Gateway::new(theirs, options.order);
    let (device, ()) = tokio::join!(Device::over(ours, options), async {
        let message = gateway.expect().await;
        assert_eq!((message.uri.as_str(), message.body.as_str()), ("/auth/server", "alice"));
        gateway.say(0, "/auth/success", welcome).await;
    });
    (device.unwrap(), gateway)
}

async fn refused(answers: &[(&str, &str)]) -> LoginError {
    let (ours, theirs) = duplex(1024);
    let mut gateway = Gateway::new(theirs, ByteOrder::Big);
    for (uri, body) in answers {
        gateway.say(0, uri, body).await;
    }
    gateway.output.shutdown().await.unwrap();
    Device::over(ours, options()).await.unwrap_err()
}

#[tokio::test]
async fn a_device_asks_for_the_second_dialect_unless_told_not_to() {
    for (v2, v) in [(true, Some(2)), (false, None)] {
        let (ours, theirs) = duplex(64);
        let mut gateway = Gateway::new(theirs, ByteOrder::Big);
        let (device, message) = tokio::join!(Device::over(ours, DeviceOptions { v2, ..options() }), async {
            let message = gateway.expect().await;
            gateway.say(0, "/auth/success", "").await;
            message
        });
        assert_eq!(message, OwnedMessage { v, ..OwnedMessage::new("/auth/server", "alice") });
        assert_eq!(device.unwrap().welcome(), None);
    }
}

#[tokio::test]
async fn the_gateways_settings_are_read_and_new_fields_ignored() {
    let body = r#"{"v":2,"node":"n","heartbeat_seconds":3,"heartbeat_timeout_seconds":9,"max_frame_bytes":5,"x":[]}"#;
    let (device, _gateway) = connected(options(), body).await;
    let welcome = Welcome {
        v: 2,
        node: "n".to_owned(),
        heartbeat_seconds: 3,
        heartbeat_timeout_seconds: 9,
        max_frame_bytes: 5,
        expires_in_seconds: None,
    };
    assert_eq!(device.welcome(), Some(&welcome));
}

#[tokio::test]
async fn each_way_to_be_turned_away_has_its_error() {
    assert!(matches!(refused(&[("/auth/failed", r#"{"reason":"refused"}"#)]).await, LoginError::Refused));
    assert!(matches!(refused(&[("/auth/failed", "")]).await, LoginError::Refused));
    assert!(matches!(refused(&[("/auth/failed", r#"{"reason":"unavailable"}"#)]).await, LoginError::Unavailable));
    assert!(matches!(refused(&[]).await, LoginError::Closed));
    let error = refused(&[("/plex/error", r#"{"reason":"too_large","detail":"5 bytes"}"#)]).await;
    assert!(error.to_string().contains("too_large: 5 bytes"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_an_error_of_the_socket() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(matches!(Device::connect(address, options()).await, Err(LoginError::Io(_))));
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_never_answers_is_left_in_time() {
    let (ours, _theirs) = duplex(1024);
    assert!(matches!(Device::over(ours, options()).await, Err(LoginError::TimedOut(_))));
}

#[tokio::test]
async fn what_the_gateway_says_comes_as_events_in_order() {
    let (mut device, mut gateway) = connected(DeviceOptions { order: ByteOrder::Little, ..options() }, "").await;
    let gateway = tokio::spawn(async move {
        gateway.say(7, "/news", "{\"a\":1}\n").await;
        gateway.say(0, "/heartbeat", "").await;
        gateway.say(0, "/plex/error", r#"{"reason":"malformed","detail":"not JSON"}"#).await;
        gateway.say(0, "/plex/unheard-of", "{}").await;
        gateway.say(0, "/auth/failed", r#"{"reason":"unavailable"}"#).await;
        gateway.say(0, "/plex/kick", r#"{"reason":"draining","reconnect":true,"after_ms":1200}"#).await;
    });
    let mut events = Vec::new();
    while events.last() != Some(&Event::Closed) {
        events.push(device.next().await.unwrap());
    }
    gateway.await.unwrap();
    let text = |text: &str| text.to_owned();
    assert_eq!(
        events,
        [
            Event::Push { seq: 7, uri: text("/news"), body: text("{\"a\":1}\n") },
            Event::Heartbeat,
            Event::Error { reason: text("malformed"), detail: text("not JSON") },
            Event::Auth(AuthAnswer::Unavailable),
            Event::Kick { reason: text("draining"), reconnect: true, after: Duration::from_millis(1200) },
            Event::Closed,
        ]
    );
    assert_eq!(device.next().await.unwrap(), Event::Closed);
}

#[tokio::test]
async fn acks_carry_the_number_of_the_push() {
    let (mut device, mut gateway) = connected(options(), "").await;
    let sending = async {
        device.ack(7, "yes").await.unwrap();
        device.nack(8, "no").await.unwrap();
        device.send_raw(b"\0\0\0\x02{}").await.unwrap();
        device.authenticate("new").await.unwrap();
    };
    let (_, [ack, nack, empty, auth]) = tokio::join!(sending, async {
        [gateway.expect().await, gateway.expect().await, gateway.expect().await, gateway.expect().await]
    });
    assert_eq!(ack, OwnedMessage { seq: 7, ..OwnedMessage::new("/plex/ack", "yes") });
    assert_eq!(nack, OwnedMessage { seq: 8, ..OwnedMessage::new("/plex/nack", "no") });
    assert_eq!(empty, OwnedMessage::default());
    assert_eq!(auth, OwnedMessage { v: Some(2), ..OwnedMessage::new("/auth/server", "new") });
}

#[tokio::test(start_paused = true)]
async fn heartbeats_go_out_at_the_interval_that_was_told() {
    let (mut device, mut gateway) =
        connected(options(), r#"{"heartbeat_seconds":60,"heartbeat_timeout_seconds":120}"#).await;
    let started = Instant::now();
    let listening = tokio::spawn(async move { device.next().await });
    for beat in 1..=3 {
        assert_eq!(gateway.expect().await, OwnedMessage::new("/heartbeat", ""));
        assert_eq!(started.elapsed().as_secs(), 60 * beat);
    }
    listening.abort();
}

#[tokio::test(start_paused = true)]
async fn a_device_of_its_own_mind_beats_as_it_likes() {
    let (mut device, mut gateway) =
        connected(DeviceOptions { heartbeats: Heartbeats::Off, ..options() }, r#"{"heartbeat_seconds":1}"#).await;
    let hour = Duration::from_secs(3600);
    assert!(timeout(hour, device.next()).await.is_err());
    assert!(timeout(hour, gateway.input.next()).await.is_err());
    // Under the least told, and the half of the time-out.
    let told = Welcome { heartbeat_seconds: 1, heartbeat_timeout_seconds: 1, ..Welcome::default() };
    assert_eq!(told.heartbeat(), Some(Duration::from_millis(500)));
    assert_eq!(Welcome::default().heartbeat(), None);
}

#[tokio::test]
async fn a_call_of_next_that_is_dropped_loses_nothing() {
    let (mut device, mut gateway) = connected(options(), "").await;
    let mut frames = Vec::new();
    for seq in 1..=50 {
        frame::encode(ByteOrder::Big, seq, "/a", "some content", &mut frames);
    }
    let writing = tokio::spawn(async move { gateway.output.write_all(&frames).await });
    let mut seqs = Vec::new();
    while seqs.len() < 50 {
        // Polled once and dropped, again and again.
        tokio::select! {
            biased;
            event = device.next() => match event.unwrap() {
                Event::Push { seq, .. } => seqs.push(seq),
                other => panic!("{other:?}"),
            },
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(seqs, (1..=50).collect::<Vec<_>>());
    writing.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_no_frame_ends_the_connection() {
    let (mut device, mut gateway) = connected(DeviceOptions { frame_bytes_max: 100, ..options() }, "").await;
    gateway.output.write_all(&[0xff; 4]).await.unwrap();
    assert!(matches!(device.next().await, Err(CodecError::TooLarge(_))));
    assert_eq!(device.next().await.unwrap(), Event::Closed);
}

#[tokio::test]
async fn a_login_that_is_dropped_closes_its_connection() {
    let (ours, theirs) = duplex(1024);
    let mut gateway = Gateway::new(theirs, ByteOrder::Big);
    tokio::select! {
        biased;
        device = Device::over(ours, options()) => panic!("nobody has answered: {device:?}"),
        message = gateway.expect() => assert_eq!(message.uri, "/auth/server"),
    }
    assert!(gateway.input.next().await.is_none());
}
