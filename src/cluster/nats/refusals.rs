//! What the servers or the other nodes refuse: told to the operator once, and the end of a node that has only just
//! started.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Over, api::Failed, driver::Driver};
use crate::cluster::node::Node;

/// For so long a node has only just started: long enough to take a large state in, too short to have become somebody's
/// only node.
const START: Duration = Duration::from_secs(30);
/// How many are told: what repeats itself is told once, and what goes on changing fills no disk.
const TOLD_MAX: usize = 16;

/// What was refused, and what of it was told.
pub(super) struct Refusals {
    node: Arc<Node>,
    /// Until then the node has only just started.
    starting_until: Instant,
    /// The servers have been there since the first try to reach them.
    since_the_start: bool,
    told: BTreeSet<String>,
}

impl Refusals {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node, starting_until: Instant::now() + START, since_the_start: true, told: BTreeSet::new() }
    }

    /// The servers can't be reached.
    pub(super) fn servers_away(&mut self) {
        self.since_the_start = false;
    }

    /// The node is in the log: what is refused from now on is told again.
    pub(super) fn joined(&mut self) {
        self.told.clear();
    }

    /// Whether that has to be told.
    pub(super) fn is_new(&mut self, why: &str) -> bool {
        self.told.len() < TOLD_MAX && self.told.insert(why.to_owned())
    }

    /// Whether the node ends where it can't take part as it is. Later it stays up, for the devices that it has.
    pub(super) fn end_the_node(&self) -> bool {
        self.since_the_start && !self.node.was_in_step() && Instant::now() < self.starting_until
    }
}

impl Driver {
    /// Tells the operator once why the engine won't do.
    pub(super) fn note_failed<T>(&mut self, answer: Result<T, Failed>) -> Result<T, Failed> {
        match &answer {
            Err(Failed::Unfit(why)) => self.refuse(why, "the cluster's servers won't do"),
            Err(Failed::Refused(why)) if self.refusals.is_new(why) => {
                tracing::error!(%why, "the cluster's servers refuse it, it is tried again");
            }
            _ => {}
        }
        answer
    }

    /// As it is, this node can't take part: it ends, if it has only just started.
    pub(super) fn refuse(&mut self, why: &str, by: &'static str) {
        if self.refusals.is_new(why) {
            tracing::error!(%why, "{by}");
        }
        if self.refusals.end_the_node() {
            self.over = Some(Over::Refused(why.to_owned()));
        }
    }

    /// Whether the server takes the longest push. One that doesn't is bearable only for who has devices of others to push to
    /// already: what is longer is UNREACHABLE.
    pub(super) fn is_payload_taken(&mut self) -> bool {
        let (needed, taken) = (self.payload_needed, self.client.max_payload());
        if taken < needed {
            let why = format!(
                "max_payload: the server takes {taken} bytes, pushes of device.max_frame and the state need {needed}"
            );
            self.refuse(&why, "the cluster's servers won't do");
        }
        taken >= needed
    }

    /// The servers told an error: of something that may not be done, most of all.
    pub(super) fn note_server_error(&mut self, error: &str) {
        self.node.note_server_error();
        // Each word that may not be said is refused again.
        if self.refusals.is_new(error) {
            tracing::error!(%error, "the cluster's servers refuse what this node does");
        }
    }

    /// None of the servers could be connected to.
    pub(super) fn note_unreachable(&mut self, error: &str) {
        self.refusals.servers_away();
        if self.refusals.is_new(error) {
            tracing::warn!(%error, "the cluster's servers can't be connected to");
        }
    }
}
