//! Calls that are refused: the more of them come from an address, the later they are answered.

use std::{
    collections::HashMap,
    mem,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};

/// Failures of an address that are answered at once: somebody tries a command, or a backend has a secret too old.
const FREE: u32 = 5;

/// How long the answer to the next one waits. It doubles with each, up to `DELAY_MAX`.
const DELAY_FIRST: Duration = Duration::from_millis(50);
const DELAY_MAX: Duration = Duration::from_secs(2);

/// After one to two times this long without a failure all is forgotten.
const MEMORY: Duration = Duration::from_secs(60);

/// Addresses that are remembered: twice as many, at some 64 bytes each. Where more come the oldest are forgotten.
const ADDRESSES_MAX: usize = 5_000;

/// Answers that wait: in all, and of one address. A call over it is answered at once, so that nobody's memory grows. It
/// costs its caller nothing more: what waits for an answer is no longer read.
const WAITING_MAX: usize = 10_000;
const WAITING_OF_ADDRESS_MAX: usize = 100;

/// What has failed of late. Cheap to clone.
#[derive(Clone)]
pub(super) struct Failures(Arc<Inner>);

struct Inner {
    addresses: Mutex<Addresses>,
    places: Arc<Semaphore>,
}

/// Two generations: what isn't seen during a whole one is forgotten with it, without a look at each.
struct Addresses {
    begun: Instant,
    current: HashMap<IpAddr, Entry>,
    previous: HashMap<IpAddr, Entry>,
}

struct Entry {
    failures: u32,
    /// One more than there are answers waiting.
    waiting: Arc<()>,
}

/// An answer that waits.
pub(super) struct Slowed {
    delay: Duration,
    _place: OwnedSemaphorePermit,
    _of_address: Arc<()>,
}

impl Slowed {
    pub(super) async fn over(self) {
        sleep(self.delay).await;
    }
}

impl Failures {
    pub(super) fn new() -> Self {
        let addresses = Addresses { begun: Instant::now(), current: HashMap::new(), previous: HashMap::new() };
        let places = Arc::new(Semaphore::new(WAITING_MAX));
        Self(Arc::new(Inner { addresses: Mutex::new(addresses), places }))
    }

    /// Notes a failed call of `address`. None: it is answered at once; so is everyone's on loopback, where one address is
    /// all callers of the machine.
    pub(super) fn note(&self, address: IpAddr) -> Option<Slowed> {
        let address = source(address)?;
        let (failures, waiting) = {
            let mut addresses = self.0.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = addresses.entry(address);
            entry.failures = entry.failures.saturating_add(1);
            if entry.failures <= FREE || Arc::strong_count(&entry.waiting) > WAITING_OF_ADDRESS_MAX {
                return None;
            }
            (entry.failures, Arc::clone(&entry.waiting))
        };
        let place = Arc::clone(&self.0.places).try_acquire_owned().ok()?;
        Some(Slowed { delay: delay(failures), _place: place, _of_address: waiting })
    }
}

impl Addresses {
    /// What is known of an address.
    fn entry(&mut self, address: IpAddr) -> &mut Entry {
        let now = Instant::now();
        if now - self.begun >= MEMORY || self.current.len() >= ADDRESSES_MAX {
            if now - self.begun >= 2 * MEMORY {
                self.current.clear();
            }
            self.previous = mem::take(&mut self.current);
            self.begun = now;
        }
        let known = self.previous.remove(&address);
        let new = || Entry { failures: 0, waiting: Arc::new(()) };
        self.current.entry(address).or_insert_with(|| known.unwrap_or_else(new))
    }
}

fn delay(failures: u32) -> Duration {
    let doublings = (failures - FREE - 1).min(16);
    (DELAY_FIRST * (1 << doublings)).min(DELAY_MAX)
}

/// What counts as one source: an IPv4 address; of IPv6 the network of 64 bits, any address of which one host may take.
fn source(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(address) => Some(IpAddr::V6((u128::from(address) & (u128::MAX << 64)).into())),
        address => Some(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// How long the answer of each of these failures waits; 0: not at all.
    fn delays(failures: &Failures, address: &str, count: usize) -> Vec<u128> {
        let note = |_| failures.note(ip(address)).map_or(0, |slowed| slowed.delay.as_millis());
        (0..count).map(note).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_of_an_address_are_answered_ever_later_up_to_a_bound() {
        let failures = Failures::new();
        let expected = [0, 0, 0, 0, 0, 50, 100, 200, 400, 800, 1_600, 2_000, 2_000];
        assert_eq!(delays(&failures, "192.0.2.1", 13), expected);
        assert_eq!(delays(&failures, "192.0.2.2", 6), expected[..6], "another isn't slowed with it");
        assert_eq!(delays(&failures, "::ffff:192.0.2.1", 1), [2_000], "the same in its IPv6 form");
        let begun = Instant::now();
        failures.note(ip("192.0.2.1")).unwrap().over().await;
        assert_eq!(begun.elapsed(), DELAY_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ipv6_network_is_one_source_and_loopback_is_none() {
        let failures = Failures::new();
        for host in 0..5 {
            assert_eq!(delays(&failures, &format!("2001:db8::{host}"), 1), [0]);
        }
        assert_eq!(delays(&failures, "2001:db8::5", 1), [50]);
        assert_eq!(delays(&failures, "2001:db8:0:1::5", 1), [0]);
        for loopback in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(delays(&failures, loopback, 20), [0; 20], "{loopback}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_failed_is_forgotten_after_a_while_and_not_before() {
        let failures = Failures::new();
        delays(&failures, "192.0.2.1", 5);
        tokio::time::advance(MEMORY).await;
        assert_eq!(delays(&failures, "192.0.2.1", 1), [50]);
        tokio::time::advance(2 * MEMORY).await;
        assert_eq!(delays(&failures, "192.0.2.1", 1), [0]);
    }

    #[tokio::test(start_paused = true)]
    async fn neither_addresses_nor_waiting_answers_grow_without_bound() {
        let failures = Failures::new();
        for host in 0..50_000_u32 {
            failures.note(IpAddr::V4((0x0a00_0000 + host).into()));
        }
        let kept = |failures: &Failures| {
            let addresses = failures.0.addresses.lock().unwrap();
            addresses.current.len() + addresses.previous.len()
        };
        assert!(kept(&failures) <= 2 * ADDRESSES_MAX);

        delays(&failures, "192.0.2.1", 5);
        let mut waiting: Vec<_> =
            (0..WAITING_OF_ADDRESS_MAX).map(|_| failures.note(ip("192.0.2.1")).unwrap()).collect();
        assert!(failures.note(ip("192.0.2.1")).is_none());
        waiting.pop();
        waiting.push(failures.note(ip("192.0.2.1")).expect("a place is free again"));
        for host in 1..=200 {
            let address = IpAddr::V4((0xc633_6400_u32 + host).into());
            for _ in 0..FREE {
                assert!(failures.note(address).is_none());
            }
            waiting.extend((0..WAITING_OF_ADDRESS_MAX).filter_map(|_| failures.note(address)));
        }
        assert_eq!(waiting.len(), WAITING_MAX);
    }
}
