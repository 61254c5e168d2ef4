//! What the gateway tells its operators: the log, and the metrics.

mod log;

use std::sync::Arc;

use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

pub(crate) use self::log::init;
use crate::model::{EndReason, PushStatus};

/// The counters of one gateway. Cheap to clone; each is global, none is kept per connection. What each counts and pairs
/// with stands in `docs/metrics.md`, and a test holds the two together.
#[derive(Clone)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    /// Sockets accepted on the device ports.
    pub(crate) accepted: Counter,
    /// Of those, closed at once: over `device.max_connections`.
    pub(crate) over_limit: Counter,
    /// Of those, closed since no PROXY header came that is taken.
    pub(crate) proxy_header: Counter,
    /// Of those, closed without a handshake of TLS.
    pub(crate) handshake: Counter,
    /// Of those, closed before they had authenticated.
    pub(crate) unauthenticated: Counter,
    /// Connections that authenticated; pairs with `ended`.
    pub(crate) connections_opened: Counter,
    ended: Arc<[Counter; EndReason::ALL.len()]>,
    /// Answers to `/auth/server`, and to what stood in its place.
    pub(crate) auth_success: Counter,
    pub(crate) auth_refused: Counter,
    pub(crate) auth_unavailable: Counter,
    /// Logins that had to wait, since connections of their uid replace each other.
    pub(crate) logins_slowed: Counter,
    /// Whole frames from devices.
    pub(crate) frames: Counter,
    /// Of those, not understood.
    pub(crate) frames_malformed: Counter,
    /// Frames over the limit: never whole, so not in `frames`.
    pub(crate) frames_too_large: Counter,
    /// Of the whole ones, those with a uri that means nothing here.
    pub(crate) frames_ignored: Counter,
    /// Answers of devices for which no push waited (any longer).
    pub(crate) answers_late: Counter,
    pushes: Arc<[Counter; 9]>,
    /// Connections that a broadcast reached, and could not.
    pub(crate) broadcast_sent: Counter,
    pub(crate) broadcast_full: Counter,
    unauthorized: Arc<[Counter; Unauthorized::ALL.len()]>,
    handshakes_failed: Arc<[Counter; HandshakeEnd::ALL.len()]>,
    /// OnlineStatus and PushStream streams: opened, ended.
    streams_opened: Counter,
    streams_ended: Counter,
    /// Read when asked for.
    connections: Gauge,
    uids: Gauge,
    ack_waits: Gauge,
    in_step: Gauge,
    unreadable: Gauge,
    unreadable_questions: Gauge,
    server_errors: Gauge,
}

/// The live numbers, read when `/metrics` is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Live {
    pub(crate) connections: usize,
    pub(crate) uids: u64,
    pub(crate) ack_waits: usize,
    /// Whether what is known of presence is what is.
    pub(crate) in_step: bool,
    /// Messages of the presence log that couldn't be read.
    pub(crate) unreadable: u64,
    /// Messages of other nodes, beside the log, that couldn't be read.
    pub(crate) unreadable_questions: u64,
    /// Errors that the cluster's servers told.
    pub(crate) server_errors: u64,
}

/// Counts the end of a stream when it is dropped.
pub(crate) struct StreamOpen(Counter);

impl Drop for StreamOpen {
    fn drop(&mut self) {
        self.0.inc();
    }
}

/// Why a call of the control plane was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unauthorized {
    /// No secret, and no certificate that could stand in for one.
    Missing,
    /// A secret that isn't valid.
    Unknown,
    /// A certificate whose name isn't known, and no secret.
    Certificate,
    /// Known, and without the scope of the call.
    Scope,
}

impl Unauthorized {
    const ALL: [Self; 4] = [Self::Missing, Self::Unknown, Self::Certificate, Self::Scope];

    fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::Certificate => "certificate",
            Self::Scope => "scope",
        }
    }
}

/// How a TLS handshake of a backend failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeEnd {
    /// No certificate where one is needed, or one that isn't good.
    Certificate,
    /// It took too long.
    Timeout,
    /// Too many were under way.
    Cut,
    /// The client went, or speaks no TLS that fits.
    Broken,
}

impl HandshakeEnd {
    const ALL: [Self; 4] = [Self::Certificate, Self::Timeout, Self::Cut, Self::Broken];

    fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Timeout => "timeout",
            Self::Cut => "cut",
            Self::Broken => "broken",
        }
    }
}

const PUSH_STATUSES: [(PushStatus, &str); 9] = [
    (PushStatus::Sent, "sent"),
    (PushStatus::Offline, "offline"),
    (PushStatus::QueueFull, "queue_full"),
    (PushStatus::Acked, "acked"),
    (PushStatus::Nacked, "nacked"),
    (PushStatus::AckTimeout, "ack_timeout"),
    (PushStatus::ConnectionLost, "connection_lost"),
    (PushStatus::Unreachable, "unreachable"),
    (PushStatus::Unknown, "unknown"),
];

impl Metrics {
    /// The metrics of one gateway, all at zero.
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("plex");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Which plex this is", version);

        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let accepted = counter("device_sockets_accepted", "Sockets accepted on the device ports");
        let connections_opened = counter("connections_opened", "Connections that authenticated");
        let logins_slowed = counter("logins_slowed", "Logins held back, as connections of one uid replace each other");
        let frames = counter("device_frames", "Whole frames from devices");
        let answers_late = counter("device_answers_late", "Acks and nacks for which no push waited");
        let streams_opened = counter("control_streams_opened", "PushStream and OnlineStatus streams opened");
        let streams_ended = counter("control_streams_ended", "PushStream and OnlineStatus streams ended");

        // Every value of a label is there from the start, so that a rate has a zero to begin with.
        let mut labelled = |name: &str, help: &str, label: &'static str, values: &[&'static str]| -> Vec<Counter> {
            let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
            registry.register(name, help, family.clone());
            values.iter().map(|value| family.get_or_create(&[(label, *value)]).clone()).collect()
        };
        let dropped = labelled(
            "device_sockets_dropped",
            "Sockets closed before they authenticated",
            "reason",
            &["over_limit", "unauthenticated", "proxy_header", "handshake"],
        );
        let ended = labelled(
            "connections_ended",
            "Authenticated connections that ended",
            "reason",
            &EndReason::ALL.map(EndReason::name),
        );
        let auth = labelled(
            "auth_answers",
            "Answers to devices that authenticate",
            "answer",
            &["success", "refused", "unavailable"],
        );
        let bad = labelled(
            "device_frames_bad",
            "Frames from devices that could not be used",
            "reason",
            &["malformed", "too_large", "unknown_uri"],
        );
        let pushes = labelled(
            "pushes",
            "Outcomes of Push, PushStream and PushMany, one for each uid",
            "status",
            &PUSH_STATUSES.map(|(_, name)| name),
        );
        let broadcast = labelled(
            "broadcast_deliveries",
            "Connections that a Broadcast met at this node",
            "status",
            &["sent", "queue_full"],
        );

        let unauthorized = labelled(
            "control_unauthorized",
            "Calls refused for want of a valid secret, certificate or scope",
            "reason",
            &Unauthorized::ALL.map(Unauthorized::name),
        );
        let handshakes = labelled(
            "control_handshakes_failed",
            "TLS handshakes of backends that failed",
            "reason",
            &HandshakeEnd::ALL.map(HandshakeEnd::name),
        );

        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let connections = gauge("connections", "Authenticated connections of this node now");
        let uids = gauge("uids_online", "Uids online now, over the cluster");
        let ack_waits = gauge("ack_waits", "Pushes that wait for a device's answer now");
        let in_step = gauge("presence_in_step", "1 where what is known of presence is what is, else 0");
        let unreadable = gauge("presence_unreadable_messages", "Messages of the presence log that couldn't be read");
        let unreadable_questions =
            gauge("cluster_unreadable_messages", "Messages to this node from others that couldn't be read");
        let server_errors = gauge("cluster_server_errors", "Errors that the cluster's servers told this node");

        let fixed = |counters: Vec<Counter>| counters.try_into().expect("one counter for each name");
        let [auth_success, auth_refused, auth_unavailable] = auth.try_into().expect("three names");
        let [over_limit, unauthenticated, proxy_header, handshake] = dropped.try_into().expect("four names");
        let [frames_malformed, frames_too_large, frames_ignored] = bad.try_into().expect("three names");
        let [broadcast_sent, broadcast_full] = broadcast.try_into().expect("two names");
        Self {
            accepted,
            over_limit,
            proxy_header,
            handshake,
            unauthenticated,
            connections_opened,
            ended: Arc::new(ended.try_into().expect("one counter for each reason")),
            auth_success,
            auth_refused,
            auth_unavailable,
            logins_slowed,
            frames,
            frames_malformed,
            frames_too_large,
            frames_ignored,
            answers_late,
            pushes: Arc::new(fixed(pushes)),
            broadcast_sent,
            broadcast_full,
            unauthorized: Arc::new(unauthorized.try_into().expect("one counter for each reason")),
            handshakes_failed: Arc::new(handshakes.try_into().expect("one counter for each reason")),
            streams_opened,
            streams_ended,
            connections,
            uids,
            ack_waits,
            in_step,
            unreadable,
            unreadable_questions,
            server_errors,
            registry: Arc::new(registry),
        }
    }

    /// An authenticated connection ended.
    pub(crate) fn ended(&self, reason: EndReason) {
        self.ended[reason as usize].inc();
    }

    /// A stream of the control plane was opened; it ends with what this returns.
    pub(crate) fn stream_opened(&self) -> StreamOpen {
        self.streams_opened.inc();
        StreamOpen(self.streams_ended.clone())
    }

    /// A call of the control plane was refused.
    pub(crate) fn unauthorized(&self, reason: Unauthorized) {
        self.unauthorized[reason as usize].inc();
    }

    /// A TLS handshake of a backend failed.
    pub(crate) fn handshake_failed(&self, end: HandshakeEnd) {
        self.handshakes_failed[end as usize].inc();
    }

    /// A push has its outcome.
    pub(crate) fn pushed(&self, status: PushStatus) {
        self.pushes[status as usize].inc();
    }

    /// The page of `/metrics`, in the OpenMetrics text format.
    pub(crate) fn render(&self, live: Live) -> String {
        let gauge = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        gauge(&self.connections, live.connections as u64);
        gauge(&self.uids, live.uids);
        gauge(&self.ack_waits, live.ack_waits as u64);
        gauge(&self.in_step, live.in_step.into());
        gauge(&self.unreadable, live.unreadable);
        gauge(&self.unreadable_questions, live.unreadable_questions);
        gauge(&self.server_errors, live.server_errors);
        let mut page = String::new();
        encode(&mut page, &self.registry).expect("a String takes any text");
        page
    }
}
