use std::{
    io,
    sync::{Arc, Mutex},
};

use bytes::BytesMut;
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

/// Is a device of a gateway that welcomes it so and then does what `scene` says: how the command ends, where it does
/// before the gateway has closed the connection, and what was printed behind the first line, in JSON.
async fn played<T>(
    welcome: &str,
    echo: bool,
    scene: impl AsyncFnOnce(&mut Gateway) -> T,
) -> (Option<Failure>, String, T) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut events = Device::stream(&address, DeviceOptions::new("alice"));
    let mut shown = Shown { address, dialect: 2, echo, connected: false, ever: false };
    let printed = Printed::default();
    let mut output = Output::new(true, Box::new(printed.clone()));
    let showing = async {
        while let Some(event) = events.next().await {
            let event = event.expect("the gateway lets it in");
            let is_last = matches!(event, DeviceEvent::Interrupted { .. } | DeviceEvent::Kicked { .. });
            match shown.show(event, &mut output) {
                Err(failure) => return Some(failure),
                Ok(()) if is_last => return None,
                Ok(()) => {}
            }
        }
        None
    };
    let (failure, played) = tokio::join!(showing, async {
        let mut gateway = Gateway(FramedRead::new(listener.accept().await.unwrap().0, CODEC));
        gateway.hear().await;
        gateway.say(OwnedMessage::new("/auth/success", welcome)).await;
        scene(&mut gateway).await
    });
    let printed = String::from_utf8(printed.0.lock().unwrap().clone()).unwrap();
    let (connected, rest) = printed.split_once('\n').expect("a first line");
    assert!(connected.contains(r#""event":"connected""#), "{connected}");
    (failure, rest.to_owned(), played)
}

#[tokio::test]
async fn each_push_is_printed_and_acknowledged() {
    let (failure, printed, ack) =
        played("", false, async |gateway| gateway.push(9_007_199_254_740_991, "a\n").await).await;
    assert_eq!(ack, OwnedMessage { seq: 9_007_199_254_740_991, ..OwnedMessage::new("/plex/ack", "") });
    assert!(failure.is_none(), "{failure:?}");
    assert_eq!(
        printed,
        "{\"event\":\"push\",\"seq\":\"9007199254740991\",\"uri\":\"/news\",\"body\":\"a\\n\"}\n{\"event\":\"closed\"}\n"
    );
}

#[tokio::test]
async fn an_echo_that_fits_no_frame_is_a_nack() {
    let (_, _, (echo, too_long)) = played(r#"{"max_frame_bytes":65}"#, true, async |gateway| {
        // `{"seq":1,"uri":"/plex/ack","body":"0123456789012345678901234567"}` has 65 bytes.
        let fits = "0123456789012345678901234567";
        (gateway.push(1, fits).await, gateway.push(2, &format!("{fits}8")).await)
    })
    .await;
    assert_eq!(echo, OwnedMessage { seq: 1, ..OwnedMessage::new("/plex/ack", "0123456789012345678901234567") });
    assert_eq!(too_long, OwnedMessage { seq: 2, ..OwnedMessage::new("/plex/nack", "the reply is too long") });
}

#[tokio::test]
async fn a_kick_says_whether_and_when_to_come_back() {
    for (kick, ends, printed) in [
        (r#"{"reason":"replaced","reconnect":false}"#, true, r#""reason":"replaced","reconnect":false"#),
        (r#"{"reason":"draining","reconnect":true,"after_ms":1200}"#, false, r#""reconnect":true,"afterMs":"1200""#),
        (r#"{"reason":"slow","reconnect":true}"#, false, r#""reason":"slow","reconnect":true"#),
    ] {
        let kicking = async |gateway: &mut Gateway| gateway.say(OwnedMessage::new("/plex/kick", kick)).await;
        let (failure, told, ()) = played("", false, kicking).await;
        assert_eq!(failure.map(|failure| failure.exit), ends.then_some(Exit::No), "{kick}");
        assert!(told.contains(printed), "{told}");
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
