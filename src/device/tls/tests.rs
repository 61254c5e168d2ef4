//! Records as a peer may cut, mix and break them, over a pipe.

use std::{
    io::{Read, Write},
    sync::LazyLock,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, ServerName},
    server::NoServerSessionStorage,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::device::tests::pipe::{Far, Near, pipe};

static CONFIGS: LazyLock<(Arc<ServerConfig>, RootCertStore)> = LazyLock::new(|| {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    (Arc::new(config), roots)
});

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// A device: TLS of its own, whose records are sent by hand.
pub(in crate::device) struct Client {
    pub(in crate::device) tls: ClientConnection,
    pub(in crate::device) far: Far,
}

impl Client {
    pub(in crate::device) fn new(far: Far, version: &'static rustls::SupportedProtocolVersion) -> Self {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
        let builder = builder.with_protocol_versions(&[version]).unwrap();
        let config = builder.with_root_certificates(CONFIGS.1.clone()).with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        Self { tls: ClientConnection::new(Arc::new(config), name).unwrap(), far }
    }

    /// What is to be sent.
    pub(in crate::device) fn records(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).unwrap();
        }
        records
    }

    /// A record with this text.
    pub(in crate::device) fn record(&mut self, text: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(text).unwrap();
        self.records()
    }

    /// Takes what comes next; how many bytes that was.
    pub(in crate::device) async fn receive(&mut self) -> usize {
        let mut buffer = vec![0; 64 * 1024];
        let count = self.far.read(&mut buffer).await.unwrap();
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest).unwrap();
            self.tls.process_new_packets().unwrap();
        }
        count
    }

    /// Text that has come.
    pub(in crate::device) fn text(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        // An error where nothing more is there.
        let _ = self.tls.reader().read_to_end(&mut text);
        text
    }

    pub(in crate::device) async fn handshake(&mut self) {
        while self.tls.is_handshaking() || self.tls.wants_write() {
            let records = self.records();
            self.far.write_all(&records).await.unwrap();
            if self.tls.is_handshaking() {
                assert!(self.receive().await > 0, "the other side goes on");
            }
        }
    }
}

pub(in crate::device) fn gateway(near: Near) -> Tls<Near> {
    Tls::new(near, CONFIGS.0.clone()).unwrap()
}

/// Both ends, after the handshake.
async fn connected(room: usize, version: &'static rustls::SupportedProtocolVersion) -> (Tls<Near>, Client) {
    let (near, far) = pipe(room);
    let (tls, mut client) = (gateway(near), Client::new(far, version));
    let (done, ()) = tokio::join!(tls.handshake(), client.handshake());
    done.unwrap();
    (tls, client)
}

async fn read(tls: &Tls<Near>, bytes: usize) -> Vec<u8> {
    let mut text = Vec::new();
    while text.len() < bytes {
        let mut buffer = [0; 1024];
        let count = poll_fn(|cx| tls.poll_read(cx, &mut buffer)).await.unwrap();
        assert!(count > 0, "{} of {bytes}", text.len());
        text.extend_from_slice(&buffer[..count]);
    }
    text
}

/// Reads nothing, but takes what is there.
async fn is_idle(tls: &Tls<Near>) -> bool {
    poll_fn(|cx| Poll::Ready(tls.poll_read(cx, &mut [0; 1024]).is_pending())).await
}

fn kept_bytes(tls: &Tls<Near>) -> usize {
    tls.core().kept_bytes()
}

#[tokio::test]
async fn records_arrive_cut_at_any_byte_and_nothing_is_kept_of_whole_ones() {
    for version in VERSIONS {
        let (tls, mut client) = connected(64 * 1024, version).await;
        assert_eq!(kept_bytes(&tls), 0);
        for cut in 1.. {
            let records = [client.record(b"one"), client.record(b"and two")].concat();
            let (front, back) = records.split_at(cut.min(records.len()));
            client.far.write_all(front).await.unwrap();
            let mut first = [0; 1024];
            let front = match poll_fn(|cx| Poll::Ready(tls.poll_read(cx, &mut first))).await {
                Poll::Ready(count) => first[..count.unwrap()].to_vec(),
                Poll::Pending => Vec::new(),
            };
            client.far.write_all(back).await.unwrap();
            let rest = read(&tls, 10 - front.len()).await;
            assert_eq!([front, rest].concat(), b"oneand two");
            assert_eq!(kept_bytes(&tls), 0, "cut at {cut}");
            if cut == records.len() {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_handshake_may_come_byte_by_byte() {
    for version in VERSIONS {
        let (near, far) = pipe(64 * 1024);
        let (tls, mut client) = (gateway(near), Client::new(far, version));
        let slow = async {
            while client.tls.is_handshaking() || client.tls.wants_write() {
                for byte in client.records() {
                    client.far.write_all(&[byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
                if client.tls.is_handshaking() {
                    client.receive().await;
                }
            }
        };
        let (done, ()) = tokio::join!(tls.handshake(), slow);
        done.unwrap();
        assert_eq!(kept_bytes(&tls), 0);
    }
}

#[tokio::test]
async fn the_largest_records_fit_whatever_room_the_reader_has() {
    let (tls, mut client) = connected(64 * 1024, &rustls::version::TLS13).await;
    let text: Vec<u8> = (0..TEXT_BYTES_MAX * 3).map(|number| number as u8).collect();
    let records = client.record(&text);
    client.far.write_all(&records).await.unwrap();
    assert_eq!(read(&tls, text.len()).await, text);
    assert_eq!(kept_bytes(&tls), 0);
}

#[tokio::test]
async fn many_frames_go_into_one_record() {
    let (tls, mut client) = connected(64 * 1024, &rustls::version::TLS13).await;
    let frames: Vec<_> = (0..32u8).map(|number| vec![number; 100]).collect();
    let pieces: Vec<_> = frames.iter().map(|frame| IoSlice::new(frame)).collect();
    assert_eq!(tls.try_write_vectored(&pieces).unwrap(), 3_200);
    let bytes = client.receive().await;
    assert_eq!(client.text(), frames.concat());
    assert!(bytes < 3_200 + 40, "one record's worth of frame: {bytes}");
    // More than a record takes: what is taken is told.
    let large = vec![7; TEXT_BYTES_MAX - 10];
    let taken = tls.try_write_vectored(&[IoSlice::new(&large), IoSlice::new(&large)]).unwrap();
    assert_eq!(taken, TEXT_BYTES_MAX);
}

#[tokio::test]
async fn what_the_socket_doesn_t_take_is_one_record_and_goes_out_first() {
    for version in VERSIONS {
        let (tls, mut client) = connected(3_000, version).await;
        let text: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
        let mut taken = tls.try_write(&text).unwrap();
        assert_eq!(taken, TEXT_BYTES_MAX);
        assert!(tls.holds_back());
        assert!(tls.try_write(&text[taken..]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock));
        assert!(kept_bytes(&tls) < TEXT_BYTES_MAX + 300, "{}", kept_bytes(&tls));
        let mut got = Vec::new();
        while got.len() < text.len() {
            client.receive().await;
            got.extend(client.text());
            match tls.try_write(&text[taken..]) {
                Ok(more) => taken += more,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert!(got == text);
        assert!(!tls.holds_back());
        assert_eq!(kept_bytes(&tls), 0);
    }
}

#[tokio::test]
async fn keys_are_updated_at_the_peer_s_wish() {
    let (tls, mut client) = connected(64 * 1024, &rustls::version::TLS13).await;
    for round in 0..10u8 {
        client.tls.refresh_traffic_keys().unwrap();
        let record = client.record(&[round; 10]);
        client.far.write_all(&record).await.unwrap();
        assert_eq!(read(&tls, 10).await, [round; 10]);
        tls.try_write(&[round; 20]).unwrap();
        client.receive().await;
        assert_eq!(client.text(), [round; 20]);
    }
}

#[tokio::test]
async fn each_end_is_told() {
    let (tls, mut client) = connected(64 * 1024, &rustls::version::TLS13).await;
    tls.say_end();
    client.receive().await;
    assert!(client.tls.reader().read(&mut [0]).is_ok_and(|count| count == 0), "close_notify");
    assert!(tls.try_write(b"more").is_err());

    let (tls, mut client) = connected(64 * 1024, &rustls::version::TLS13).await;
    let mut last = client.record(b"last");
    client.tls.send_close_notify();
    last.extend(client.records());
    client.far.write_all(&last).await.unwrap();
    // Noticed behind a frame that isn't read yet.
    tls.peer_closed().await;
    assert_eq!(read(&tls, 4).await, b"last");
    assert_eq!(poll_fn(|cx| tls.poll_read(cx, &mut [0; 10])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_peer_that_isn_t_read_is_opened_only_so_far() {
    let (tls, mut client) = connected(64 * 1024, &rustls::version::TLS13).await;
    let record = client.record(&[1; 10_000]);
    let more = client.record(&[2; 40_000]);
    client.far.write_all(&[record, more].concat()).await.unwrap();
    let looked = tokio::time::timeout(std::time::Duration::from_millis(50), tls.peer_closed()).await;
    assert!(looked.is_err(), "it hasn't closed");
    assert!(kept_bytes(&tls) < AHEAD_BYTES_MAX + 2 * TEXT_BYTES_MAX + READ_BYTES_MIN, "{}", kept_bytes(&tls));
    assert_eq!(read(&tls, 50_000).await.len(), 50_000);
}

#[tokio::test]
async fn rubbish_ends_it_and_neither_panics_nor_is_kept() {
    let mut random = StdRng::seed_from_u64(9);
    for round in 0..300 {
        let version = VERSIONS[round % 2];
        let (near, far) = pipe(64 * 1024);
        let (tls, mut client) = (gateway(near), Client::new(far, version));
        let mut bytes = if round % 3 == 0 {
            let (done, ()) = tokio::join!(tls.handshake(), client.handshake());
            done.unwrap();
            [client.record(&[1; 300]), client.record(&[2; 300])].concat()
        } else {
            client.records()
        };
        for _ in 0..random.random_range(1..4) {
            let place = random.random_range(0..bytes.len());
            match random.random_range(0..3) {
                0 => bytes[place] = random.random(),
                1 => bytes.truncate(place + 1),
                _ => bytes.insert(place, random.random()),
            }
        }
        client.far.write_all(&bytes).await.unwrap();
        client.far.write_all(&vec![random.random(); random.random_range(0..60_000)]).await.unwrap_or(());
        drop(client);
        if tls.core().is_handshaking() {
            let _ = tls.handshake().await;
        } else {
            for _ in 0..1_000 {
                let read = poll_fn(|cx| tls.poll_read(cx, &mut [0; 1024])).await;
                if matches!(read, Ok(0) | Err(_)) {
                    break;
                }
            }
        }
        let _ = tls.try_write(b"after it");
        tls.say_end();
        assert!(kept_bytes(&tls) < 150_000);
    }
}

#[tokio::test]
async fn a_message_of_the_handshake_that_never_ends_isn_t_kept() {
    let (near, mut far) = pipe(64 * 1024);
    let tls = gateway(near);
    // A ClientHello of 60,000 bytes, in records of 100.
    let mut first = vec![22, 3, 1, 0, 100, 1, 0, 0xea, 0x60];
    first.resize(105, 0);
    let mut next = vec![22, 3, 1, 0, 100];
    next.resize(105, 0);
    far.write_all(&[first, next.repeat(500)].concat()).await.unwrap();
    assert!(tls.handshake().await.is_err());
    assert!(kept_bytes(&tls) < 32 * 1024, "{}", kept_bytes(&tls));
    let _ = is_idle(&tls).await;
}
