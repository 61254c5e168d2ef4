//! Between the messages of the control plane and the nouns of the gateway: checks with clear errors one way,
//! plain copies the other.

use std::time::Duration;

use prost_types::Timestamp;
use tonic::Status;

use crate::{
    cluster::{NodeState, NodeStatus},
    model::{
        Millis, OfflineReason, PresenceEvent, Push, PushOutcome, PushStatus, Session, Transport, Uid, is_reserved,
    },
    proto,
};

/// How many uids one call may name.
pub(super) const UIDS_MAX: usize = 10_000;

/// How long a push may wait for its answer.
const ACK_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// How large the message of a push is in a frame, its seq counted as 16 digits.
pub(crate) type FrameBytes = fn(Push<'_>) -> usize;

/// An escaped byte takes at most six: `\u00xx`.
const ESCAPED_BYTES_MAX: usize = 6;
/// What a message has beside its uri and body, at most.
const MESSAGE_OVERHEAD: usize = 64;

/// What a push is held against.
#[derive(Clone, Copy)]
pub(super) struct Checks {
    pub(super) frame_bytes_max: u32,
    pub(super) frame_bytes: FrameBytes,
}

/// What is wrong with a request: a text that names the field and the limit.
pub(super) struct Invalid(pub(super) String);

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        Self::invalid_argument(invalid.0)
    }
}

impl Checks {
    /// The uri and the body of a push.
    pub(super) fn push<'a>(&self, uri: &'a str, body: &'a str) -> Result<Push<'a>, Invalid> {
        if uri.is_empty() {
            return Err(Invalid("uri: must not be empty".into()));
        }
        if is_reserved(uri) {
            let reserved = "/auth/…, /inner/…, /logic/send/msg, /heartbeat and /plex/… are reserved";
            return Err(Invalid(format!("uri: {reserved}, this is {:?}", shortened(uri))));
        }
        let push = Push { uri, body };
        let bytes_max = self.frame_bytes_max as usize;
        if (uri.len() + body.len()) * ESCAPED_BYTES_MAX + MESSAGE_OVERHEAD > bytes_max {
            let bytes = (self.frame_bytes)(push);
            if bytes > bytes_max {
                return Err(Invalid(format!(
                    "body: makes a frame of {bytes} bytes, device.max_frame allows {bytes_max}"
                )));
            }
        }
        Ok(push)
    }
}

/// Enough of a text to recognize it.
fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}

/// One uid.
pub(super) fn uid(field: &str, text: &str) -> Result<(), Invalid> {
    Uid::check(text).map_err(|error| Invalid(format!("{field}: {error}")))
}

/// Several uids: `min` to 10,000.
pub(super) fn uids(uids: &[String], min: usize) -> Result<(), Invalid> {
    if uids.len() < min || uids.len() > UIDS_MAX {
        return Err(Invalid(format!("uids: {min} to {UIDS_MAX}, these are {}", uids.len())));
    }
    for (place, text) in uids.iter().enumerate() {
        Uid::check(text).map_err(|error| Invalid(format!("uids[{place}]: {error}")))?;
    }
    Ok(())
}

/// `ack_timeout`: over 0, at most 5 minutes.
pub(super) fn ack_timeout(timeout: Option<prost_types::Duration>) -> Result<Option<Duration>, Invalid> {
    let Some(timeout) = timeout else { return Ok(None) };
    // By hand: the library's conversion negates, and so overflows at what a caller may send.
    let nanos = u32::try_from(timeout.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    let duration = u64::try_from(timeout.seconds).ok().zip(nanos).map(|(seconds, nanos)| Duration::new(seconds, nanos));
    match duration {
        Some(duration) if !duration.is_zero() && duration <= ACK_TIMEOUT_MAX => Ok(Some(duration)),
        _ => Err(Invalid(format!(
            "ack_timeout: over 0 s and at most 300 s, this is {} s and {} ns",
            timeout.seconds, timeout.nanos
        ))),
    }
}

/// `transport`: empty, tcp or tls.
pub(super) fn transport(text: &str) -> Result<Transport, Invalid> {
    match text {
        "" | "tcp" => Ok(Transport::Tcp),
        "tls" => Ok(Transport::Tls),
        other => Err(Invalid(format!("transport: empty, \"tcp\" or \"tls\", this is {:?}", shortened(other)))),
    }
}

pub(super) fn timestamp(time: Millis) -> Timestamp {
    Timestamp { seconds: i64::try_from(time.0 / 1_000).unwrap_or(i64::MAX), nanos: (time.0 % 1_000) as i32 * 1_000_000 }
}

/// The result of the push with this `id`.
pub(super) fn push_response(outcome: PushOutcome, id: u64) -> proto::PushResponse {
    let status = match outcome.status {
        PushStatus::Sent => proto::PushStatus::Sent,
        PushStatus::Offline => proto::PushStatus::Offline,
        PushStatus::QueueFull => proto::PushStatus::QueueFull,
        PushStatus::Acked => proto::PushStatus::Acked,
        PushStatus::Nacked => proto::PushStatus::Nacked,
        PushStatus::AckTimeout => proto::PushStatus::AckTimeout,
        PushStatus::ConnectionLost => proto::PushStatus::ConnectionLost,
        PushStatus::Unreachable => proto::PushStatus::Unreachable,
        PushStatus::Unknown => proto::PushStatus::Unknown,
    };
    let PushOutcome { seq, connections, reply, .. } = outcome;
    proto::PushResponse { status: status.into(), seq, connections, reply, id, error: String::new() }
}

/// The result of a push in a stream that could not be processed.
pub(super) fn invalid_response(invalid: Invalid, id: u64) -> proto::PushResponse {
    proto::PushResponse { status: proto::PushStatus::Invalid.into(), error: invalid.0, id, ..Default::default() }
}

pub(super) fn event(event: PresenceEvent) -> proto::OnlineStatusEvent {
    let bare = |kind: proto::OnlineStatusKind, at: Millis| proto::OnlineStatusEvent {
        kind: kind.into(),
        at: Some(timestamp(at)),
        ..Default::default()
    };
    match event {
        PresenceEvent::Change(change) => proto::OnlineStatusEvent {
            uid: change.uid.as_str().to_owned(),
            online: change.offline.is_none(),
            node: change.node.as_str().to_owned(),
            reason: change.offline.map_or(proto::OfflineReason::Unspecified, offline_reason).into(),
            epoch: epoch(change.epoch),
            ..bare(proto::OnlineStatusKind::Change, change.at)
        },
        PresenceEvent::Snapshot { uid, epoch: place, since, node } => proto::OnlineStatusEvent {
            uid: uid.as_str().to_owned(),
            online: true,
            node: node.as_str().to_owned(),
            epoch: epoch(place),
            ..bare(proto::OnlineStatusKind::Snapshot, since)
        },
        PresenceEvent::Live { since } => bare(proto::OnlineStatusKind::Live, since),
        PresenceEvent::Reset { since } => bare(proto::OnlineStatusKind::Reset, since),
    }
}

fn offline_reason(reason: OfflineReason) -> proto::OfflineReason {
    match reason {
        OfflineReason::Closed => proto::OfflineReason::Closed,
        OfflineReason::Timeout => proto::OfflineReason::Timeout,
        OfflineReason::Disconnected => proto::OfflineReason::Disconnected,
        OfflineReason::Draining => proto::OfflineReason::Draining,
        OfflineReason::Expired => proto::OfflineReason::Expired,
        OfflineReason::Slow => proto::OfflineReason::Slow,
        OfflineReason::NodeLost => proto::OfflineReason::NodeLost,
        OfflineReason::Protocol => proto::OfflineReason::Protocol,
        OfflineReason::Unknown => proto::OfflineReason::Unspecified,
    }
}

pub(super) fn session(session: Session) -> proto::Session {
    proto::Session {
        uid: session.uid.as_str().to_owned(),
        epoch: epoch(session.epoch),
        node: session.node.as_str().to_owned(),
        remote_address: session.remote_address,
        connected_at: Some(timestamp(session.connected_at)),
        last_seen: Some(timestamp(session.last_seen)),
        queued_bytes: session.queued_bytes,
        pushes_sent: session.pushes_sent,
        pushes_dropped: session.pushes_dropped,
        dialect: session.dialect.into(),
    }
}

pub(super) fn node(node: NodeStatus) -> proto::Node {
    let state = match node.state {
        NodeState::Joining => proto::NodeState::Joining,
        NodeState::Ready => proto::NodeState::Ready,
        NodeState::Draining => proto::NodeState::Draining,
        NodeState::Silent => proto::NodeState::Silent,
    };
    proto::Node {
        name: node.name.as_str().to_owned(),
        address: node.address,
        version: node.version,
        connections: node.connections.into(),
        state: state.into(),
        since: Some(timestamp(node.since)),
        lag_ms: u32::try_from(node.lag.as_millis()).unwrap_or(u32::MAX),
    }
}

/// Unix microseconds × 1,024 fill 63 bits in the year 2255.
fn epoch(place: u64) -> i64 {
    i64::try_from(place).unwrap_or(i64::MAX)
}
