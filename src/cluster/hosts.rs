//! Which node a new device is sent to.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::fold::{Incarnation, Live};
use crate::model::Transport;

/// How long a grant counts as a connection: by then the device has come, and its node has told.
const GRANT: Duration = Duration::from_secs(5);
/// How finely grants run out; what bounds their number, whatever the rate of questions.
const GRANT_STEP: Duration = Duration::from_millis(250);
/// Loads that are this close count as the same, so that a new node doesn't get every device.
const LOAD_CLOSE: f64 = 0.02;

/// What a node tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Card {
    /// It takes devices.
    pub(crate) ready: bool,
    /// It is stopping.
    pub(crate) draining: bool,
    /// How many connections it holds.
    pub(crate) connections: u32,
    /// How many it can hold; a node that says 0 gets no device.
    pub(crate) capacity: u32,
    /// How long its own last word took to come back to it through the log, in milliseconds.
    pub(crate) lag_ms: u32,
    /// Where devices connect, each "address:port".
    pub(crate) addresses: Vec<String>,
    /// The same, over TLS.
    pub(crate) addresses_tls: Vec<String>,
}

impl Card {
    /// One address for people to know the node by, plain ones before those over TLS.
    pub(crate) fn first_address(&self) -> Option<&str> {
        self.addresses.first().or(self.addresses_tls.first()).map(String::as_str)
    }

    /// One of its addresses for that transport, at random.
    pub(crate) fn address(&self, transport: Transport) -> Option<String> {
        let addresses = self.addresses(transport);
        addresses.get(random_index(addresses.len())?).cloned()
    }

    fn addresses(&self, transport: Transport) -> &[String] {
        match transport {
            Transport::Tcp => &self.addresses,
            Transport::Tls => &self.addresses_tls,
        }
    }
}

/// Where this node has sent devices lately, which their nodes don't know yet.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    /// Since when, and how many to which node; oldest first, at most one step old each.
    steps: VecDeque<(Instant, Vec<(Incarnation, u32)>)>,
}

impl Grants {
    fn expire(&mut self, now: Instant) {
        while self.steps.front().is_some_and(|(since, _)| *since + GRANT <= now) {
            self.steps.pop_front();
        }
    }

    fn of(&self, node: Incarnation) -> u32 {
        let counts = self.steps.iter().flat_map(|(_, counts)| counts);
        counts.filter(|(to, _)| *to == node).map(|(_, count)| count).sum()
    }

    fn add(&mut self, node: Incarnation, now: Instant) {
        if self.steps.back().is_none_or(|(since, _)| *since + GRANT_STEP <= now) {
            self.steps.push_back((now, Vec::new()));
        }
        let (_, counts) = self.steps.back_mut().expect("one was just added where there was none");
        match counts.iter_mut().find(|(to, _)| *to == node) {
            Some((_, count)) => *count = count.saturating_add(1),
            None => counts.push((node, 1)),
        }
    }

    /// The node with the lowest load of those that take devices by `transport`, one of them at random where several are close; counts it as a grant.
    pub(crate) fn choose<'a>(
        &mut self,
        nodes: impl Iterator<Item = &'a Live>,
        transport: Transport,
        now: Instant,
    ) -> Option<(String, &'a Live)> {
        self.expire(now);
        let takes =
            |card: &&Card| card.ready && !card.draining && card.capacity > 0 && !card.addresses(transport).is_empty();
        let loads = nodes.filter_map(|node| {
            let card = node.card.as_ref().filter(takes)?;
            let connections = f64::from(card.connections) + f64::from(self.of(node.incarnation));
            Some((connections / f64::from(card.capacity), node, card))
        });
        let mut loads: Vec<_> = loads.collect();
        let lowest = loads.iter().map(|(load, ..)| *load).fold(f64::INFINITY, f64::min);
        loads.retain(|(load, ..)| *load <= lowest + LOAD_CLOSE);
        let (_, node, card) = loads.get(random_index(loads.len())?)?;
        self.add(node.incarnation, now);
        Some((card.address(transport)?, node))
    }
}

fn random_index(count: usize) -> Option<usize> {
    (count > 0).then(|| rand::random_range(0..count))
}
