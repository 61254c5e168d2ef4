//! How long a good device waits for its login by TLS while others drip their handshakes.
//!
//! ```text
//! cargo bench --bench handshakes                    5,000 that send a byte of theirs each second
//! cargo bench --bench handshakes -- --slow 8000 --good 500
//! ```
//!
//! The gateway is the `plex` binary with its defaults (`device.handshakes_max` of 1,000). A slow peer that is cut comes
//! again at once.

#[path = "support/mod.rs"]
mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use support::{Arguments, Gateway, devices, resident_of};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// The front of a ClientHello that says it has 500 bytes.
const HELLO: [u8; 11] = [22, 3, 1, 1, 0xf4, 1, 0, 1, 0xf0, 3, 3];

fn main() {
    let arguments = Arguments::read();
    let (slow, good) = (arguments.number("slow", 5_000), arguments.number("good", 300));
    let gateway = Gateway::start(&[]);
    support::runtime().block_on(async {
        let alone = logins(&gateway, 0, good).await;
        show("alone", alone);
        let before = resident_of(gateway.pid());
        let cut = Arc::new(AtomicU64::new(0));
        for number in 0..slow {
            tokio::spawn(drip(gateway.tls.address(), Arc::clone(&cut)));
            if number % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let beside = logins(&gateway, good, good).await;
        show(&format!("beside {slow} slow handshakes"), beside);
        println!("slow handshakes cut: {}", cut.load(Relaxed));
        println!("resident: {} KiB more", resident_of(gateway.pid()).saturating_sub(before) / 1024);
    });
}

/// Sends a byte a second, for ever.
async fn drip(address: SocketAddr, cut: Arc<AtomicU64>) {
    loop {
        if let Ok(mut stream) = TcpStream::connect(address).await {
            for byte in HELLO.into_iter().chain(std::iter::repeat(0)) {
                if stream.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            cut.fetch_add(1, Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Logs devices in, one after the other; how long each took, shortest first.
async fn logins(gateway: &Gateway, first: usize, count: usize) -> Vec<Duration> {
    let mut held = devices::Devices::default();
    let mut took = Vec::new();
    for number in first..first + count {
        let begun = Instant::now();
        held.connect(&gateway.tls, number..number + 1).await;
        took.push(begun.elapsed());
    }
    took.sort();
    took
}

fn show(what: &str, took: Vec<Duration>) {
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    println!("login by TLS {what}: median {median:.1?}, longest {longest:.1?} of {}", took.len());
}
