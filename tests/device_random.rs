//! Whatever a peer sends, the gateway lives, and others are served.

mod common;

use std::{
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use common::{TestDevice, TestServer, push};
use plex::proto::{GetInfoRequest, PushStatus};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use tokio::{io::AsyncReadExt, io::AsyncWriteExt, time::timeout};

/// One thing that a peer does.
#[derive(Debug, Clone)]
enum Act {
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// A length, and as many bytes or not.
    Lying(u32, Vec<u8>),
    /// A frame with these bytes.
    Frame(Vec<u8>),
    /// A message with a byte changed.
    Nearly(usize, u8),
    /// A credential.
    Auth { uid: u8, v: i8 },
    /// An honest message.
    Message { uri: usize, body: String, seq: i64 },
    /// Reads what is there.
    Read,
}

const URIS: [&str; 9] =
    ["/heartbeat", "/plex/ack", "/plex/nack", "/plex/kick", "/auth/server", "/auth/success", "/app", "", "/inner/x"];

const HONEST: &str = r#"{"seq":7,"uri":"/auth/server","body":"\ud83d\ude00","v":2}"#;

fn act() -> impl Strategy<Value = Act> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        bytes().prop_map(Act::Bytes),
        (prop_oneof![0..300u32, any::<u32>(), 65_530..65_545u32], bytes()).prop_map(|(n, bytes)| Act::Lying(n, bytes)),
        bytes().prop_map(Act::Frame),
        (0..HONEST.len(), any::<u8>()).prop_map(|(at, byte)| Act::Nearly(at, byte)),
        (0..4u8, any::<i8>()).prop_map(|(uid, v)| Act::Auth { uid, v }),
        (0..4u8, Just(2i8)).prop_map(|(uid, v)| Act::Auth { uid, v }),
        (0..URIS.len(), any::<String>(), any::<i64>()).prop_map(|(uri, body, seq)| Act::Message { uri, body, seq }),
        Just(Act::Read),
    ]
}

impl Act {
    fn bytes(&self, device: &TestDevice) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Lying(length, bytes) => [&length.to_be_bytes()[..], bytes].concat(),
            Self::Frame(bytes) => device.frame(bytes),
            Self::Nearly(at, byte) => {
                let mut message = HONEST.as_bytes().to_vec();
                message[*at] = *byte;
                device.frame(&message)
            }
            Self::Auth { uid, v } => {
                let text = format!(r#"{{"uri":"/auth/server","body":"device-{uid}","v":{v}}}"#);
                device.frame(text.as_bytes())
            }
            Self::Message { uri, body, seq } => {
                let text = serde_json::json!({"seq": seq, "uri": URIS[*uri], "body": body}).to_string();
                device.frame(text.as_bytes())
            }
            Self::Read => Vec::new(),
        }
    }
}

/// How it goes.
#[derive(Debug, Clone, Copy)]
enum Leave {
    Close,
    HalfClose,
    Reset,
}

async fn misbehave(server: &TestServer, acts: &[Act], piece: usize, leave: Leave) {
    let mut device = TestDevice::connect(server.device()).await;
    for act in acts {
        if let Act::Read = act {
            let mut buffer = [0; 1000];
            let _ = timeout(Duration::from_millis(5), device.stream.read(&mut buffer)).await;
        }
        for piece in act.bytes(&device).chunks(piece) {
            // It may have been thrown out long ago.
            if device.stream.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
    match leave {
        Leave::Close => {}
        Leave::HalfClose => {
            let _ = device.stream.shutdown().await;
            let mut rest = Vec::new();
            let end = timeout(common::PATIENCE, device.stream.read_to_end(&mut rest)).await;
            assert!(end.is_ok(), "the gateway closes, too");
        }
        Leave::Reset => socket2::SockRef::from(&device.stream).set_linger(Some(Duration::ZERO)).unwrap(),
    }
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// A panic of a connection's task hurts nobody else: so it is counted.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, SeqCst);
            before(info);
        }));
    });
}

#[test]
fn whatever_a_peer_sends_another_device_still_logs_in() {
    count_panics();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = runtime.block_on(TestServer::with(|config| config.device.replaces_per_minute = 0));
    let backend = runtime.block_on(server.backend());
    let strategy = (
        prop::collection::vec(act(), 1..20),
        prop_oneof![Just(1usize), Just(7), Just(100_000)],
        prop_oneof![Just(Leave::Close), Just(Leave::HalfClose), Just(Leave::Reset)],
    );
    let mut runner = TestRunner::new(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() });
    let done = runner.run(&strategy, |(acts, piece, leave)| {
        runtime.block_on(async {
            misbehave(&server, &acts, piece, leave).await;
            let mut other = server.login("other").await;
            let pushed = backend.clone().push(push("other", "/a", "")).await.unwrap().into_inner();
            assert_eq!(pushed.status(), PushStatus::Sent);
            assert_eq!(other.next().await.uri, "/a");
            other.expect_quiet().await;
        });
        Ok(())
    });
    done.unwrap();
    // And nothing of them is left.
    runtime.block_on(async {
        common::eventually("all have gone", || {
            let mut backend = backend.clone();
            async move {
                let info = backend.get_info(GetInfoRequest {}).await.unwrap().into_inner();
                ((info.connections, info.uids) == (0, 0)).then_some(())
            }
        })
        .await;
        let opened = server.metric("plex_connections_opened_total").await;
        let mut ended = 0;
        for reason in plex::model::EndReason::ALL {
            let name = reason.name();
            ended += server.metric(&format!("plex_connections_ended_total{{reason=\"{name}\"}}")).await;
        }
        assert_eq!(opened, ended, "each connection ends once");
        server.stopped().await;
        assert_eq!(PANICS.load(SeqCst), 0);
    });
}

#[test]
fn many_peers_misbehave_at_once() {
    count_panics();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = std::sync::Arc::new(TestServer::with(|config| config.device.replaces_per_minute = 0).await);
        let mut runner = TestRunner::deterministic();
        let strategy = prop::collection::vec(act(), 1..20);
        let mut peers = tokio::task::JoinSet::new();
        for number in 0..300 {
            let acts = strategy.new_tree(&mut runner).unwrap().current();
            let server = server.clone();
            let leave = [Leave::Close, Leave::HalfClose, Leave::Reset][number % 3];
            peers.spawn(async move { misbehave(&server, &acts, 50, leave).await });
        }
        while let Some(peer) = peers.join_next().await {
            peer.unwrap();
        }
        server.login("other").await.expect_quiet().await;
        assert_eq!(PANICS.load(SeqCst), 0);
    });
}
