use std::{
    io,
    sync::{Arc, Mutex},
};

use bytes::BytesMut;
use futures_util::StreamExt;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};
use tokio_util::codec::{Encoder, FramedRead};

use super::*;
use crate::codec::{FrameCodec, OwnedMessage};

const CODEC: FrameCodec = FrameCodec { order: ByteOrder::Big, bytes_max: 1 << 20 };

/// The gateway's end of a connection.
struct Gateway(FramedRead<TcpStream, FrameCodec>);

impl Gateway {
    async fn hear(&mut self) -> OwnedMessage {
        self.0.next().await.expect("a frame comes").expect("it can be read")
    }

    async fn say(&mut self, message: OwnedMessage) {
        let mut bytes = BytesMut::new();
        { CODEC }.encode(message, &mut bytes).unwrap();
        self.0.get_mut().write_all(&bytes).await.unwrap();
    }

    async fn push(&mut self, seq: i64, body: &str) -> OwnedMessage {
        self.say(OwnedMessage { seq, ..OwnedMessage::new("/news", body) }).await;
        self.hear().await
    }
}

async fn connected(welcome: &str) -> (Device, Gateway) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (device, gateway) = tokio::join!(Device::connect(address, DeviceOptions::new("alice")), async {
        let mut gateway = Gateway(FramedRead::new(listener.accept().await.unwrap().0, CODEC));
        gateway.hear().await;
        gateway.say(OwnedMessage::new("/auth/success", welcome)).await;
        gateway
    });
    (device.unwrap(), gateway)
}

/// What was printed, shared with who prints.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl io::Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Printed {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn each_push_is_printed_and_acknowledged() {
    let (mut device, mut gateway) = connected("").await;
    let printed = Printed::default();
    let mut output = Output::new(true, Box::new(printed.clone()));
    let (end, ack) =
        tokio::join!(
            live(&mut device, false, &mut output),
            async move { gateway.push(9_007_199_254_740_991, "a\n").await }
        );
    assert_eq!(ack, OwnedMessage { seq: 9_007_199_254_740_991, ..OwnedMessage::new("/plex/ack", "") });
    assert_eq!(end.unwrap(), End::Again(None));
    assert_eq!(
        printed.text(),
        "{\"event\":\"push\",\"seq\":\"9007199254740991\",\"uri\":\"/news\",\"body\":\"a\\n\"}\n{\"event\":\"closed\"}\n"
    );
}

#[tokio::test]
async fn an_echo_that_fits_no_frame_is_a_nack() {
    let (mut device, mut gateway) = connected(r#"{"max_frame_bytes":50}"#).await;
    let mut output = Output::new(false, Box::new(io::sink()));
    let (_, (echo, too_long)) = tokio::join!(live(&mut device, true, &mut output), async move {
        // `{"seq":1,"uri":"/plex/ack","body":"0123456789"}` has 47 bytes.
        (gateway.push(1, "0123456789").await, gateway.push(2, "0123456789abcd").await)
    });
    assert_eq!(echo, OwnedMessage { seq: 1, ..OwnedMessage::new("/plex/ack", "0123456789") });
    assert_eq!(too_long, OwnedMessage { seq: 2, ..OwnedMessage::new("/plex/nack", "the reply is too long") });
}

#[tokio::test]
async fn a_kick_says_whether_and_when_to_come_back() {
    for (kick, end) in [
        (r#"{"reason":"replaced","reconnect":false}"#, End::Expelled("replaced".to_owned())),
        (r#"{"reason":"draining","reconnect":true,"after_ms":1200}"#, End::Again(Some(Duration::from_millis(1200)))),
        (r#"{"reason":"slow","reconnect":true}"#, End::Again(None)),
    ] {
        let (mut device, mut gateway) = connected("").await;
        let mut output = Output::new(false, Box::new(io::sink()));
        gateway.say(OwnedMessage::new("/plex/kick", kick)).await;
        assert_eq!(live(&mut device, false, &mut output).await.unwrap(), end);
    }
}

#[test]
fn what_happens_is_printed_for_people() {
    let kick = |reconnect| DeviceLine::Kick { reason: "draining", reconnect, after_ms: "5".to_owned() };
    assert_eq!(text(&kick(true)), "kicked: draining, to come back after 5 ms");
    assert_eq!(text(&kick(false)), "kicked: draining");
    assert_eq!(text(&DeviceLine::Push { seq: "1".to_owned(), uri: "/a", body: "\x1b[0m" }), "push 1 /a \\u{1b}[0m");
    let json = serde_json::to_string(&kick(true)).unwrap();
    assert_eq!(json, r#"{"event":"kick","reason":"draining","reconnect":true,"afterMs":"5"}"#);
}
