//! What calls answer, in plain Rust: what a newer gateway says beyond it has its word for "unknown".

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use crate::{
    model::OfflineReason,
    proto::{self, PushStatus as Wire},
};

/// One push, told in full.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PushRequest {
    /// Whose device: 1 to 255 bytes.
    pub uid: String,
    /// What the message is; not one of the reserved.
    pub uri: String,
    /// Its content.
    pub body: String,
    /// How long the device's answer is waited for: over 0, at most 5 minutes. None: it isn't waited for.
    pub ack_timeout: Option<Duration>,
    /// The caller's own number, which the outcome repeats.
    pub id: u64,
}

impl PushRequest {
    /// A push that waits for no answer and has no number.
    #[must_use]
    pub fn new(uid: impl Into<String>, uri: impl Into<String>, body: impl Into<String>) -> Self {
        Self { uid: uid.into(), uri: uri.into(), body: body.into(), ..Self::default() }
    }
}

impl From<PushRequest> for proto::PushRequest {
    fn from(push: PushRequest) -> Self {
        let PushRequest { uid, uri, body, ack_timeout, id } = push;
        // What is too long for a protobuf duration is too long for the gateway: it tells the limit.
        let too_long = prost_types::Duration { seconds: i64::MAX, nanos: 0 };
        let ack_timeout = ack_timeout.map(|wait| wait.try_into().unwrap_or(too_long));
        Self { uid, uri, body, ack_timeout, id }
    }
}

/// What the gateway knows about a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PushStatus {
    /// Written to, or queued for, at least one of the uid's connections. Nothing about the device.
    Sent,
    /// The uid held no connection; nothing was sent.
    Offline,
    /// Every connection's queue was full; nothing was sent.
    QueueFull,
    /// The device has taken it; [`PushOutcome::reply`] is what it answered.
    Acked,
    /// The device couldn't handle it; [`PushOutcome::reply`] is what it answered.
    Nacked,
    /// It was sent, and no answer came in time, though the device is still connected.
    AckTimeout,
    /// It was sent, and the last connection that took it ended before an answer.
    ConnectionLost,
    /// In a stream of pushes: this one could not be processed, [`PushOutcome::error`] says why; nothing was sent.
    Invalid,
    /// The node that holds the uid can't be reached, or takes no more at this time; nothing was sent.
    Unreachable,
    /// It may have been sent or not: another node didn't answer in time, or the gateway says what this client doesn't
    /// know yet.
    Unknown,
}

impl PushStatus {
    /// Its name as in `plex.v1`, without the prefix: `SENT`, `QUEUE_FULL`, …
    #[must_use]
    pub fn name(self) -> &'static str {
        let name = self.wire().as_str_name();
        name.strip_prefix("PUSH_STATUS_").unwrap_or(name)
    }

    fn wire(self) -> Wire {
        match self {
            Self::Sent => Wire::Sent,
            Self::Offline => Wire::Offline,
            Self::QueueFull => Wire::QueueFull,
            Self::Acked => Wire::Acked,
            Self::Nacked => Wire::Nacked,
            Self::AckTimeout => Wire::AckTimeout,
            Self::ConnectionLost => Wire::ConnectionLost,
            Self::Invalid => Wire::Invalid,
            Self::Unreachable => Wire::Unreachable,
            Self::Unknown => Wire::Unknown,
        }
    }

    fn of(number: i32) -> Self {
        match Wire::try_from(number) {
            Ok(Wire::Sent) => Self::Sent,
            Ok(Wire::Offline) => Self::Offline,
            Ok(Wire::QueueFull) => Self::QueueFull,
            Ok(Wire::Acked) => Self::Acked,
            Ok(Wire::Nacked) => Self::Nacked,
            Ok(Wire::AckTimeout) => Self::AckTimeout,
            Ok(Wire::ConnectionLost) => Self::ConnectionLost,
            Ok(Wire::Invalid) => Self::Invalid,
            Ok(Wire::Unreachable) => Self::Unreachable,
            Ok(Wire::Unknown | Wire::Unspecified) | Err(_) => Self::Unknown,
        }
    }
}

impl fmt::Display for PushStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What became of one push.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PushOutcome {
    /// What the gateway knows.
    pub status: PushStatus,
    /// The message's number, as the device sees it; 0 where nothing was sent.
    pub seq: i64,
    /// How many connections took it; 0 where nothing was sent.
    pub connections: u32,
    /// The body of the device's answer; empty where there is none.
    pub reply: String,
    /// [`PushRequest::id`].
    pub id: u64,
    /// Of [`PushStatus::Invalid`]: the field, and its limit. Else empty.
    pub error: String,
}

impl From<proto::PushResponse> for PushOutcome {
    fn from(response: proto::PushResponse) -> Self {
        let proto::PushResponse { status, seq, connections, reply, id, error } = response;
        Self { status: PushStatus::of(status), seq, connections, reply, id, error }
    }
}

/// What a broadcast did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BroadcastOutcome {
    /// Connections that took it.
    pub sent: u64,
    /// Connections whose queue was full.
    pub queue_full: u64,
    /// In a cluster: the nodes that didn't tell what they did.
    pub silent_nodes: Vec<String>,
}

impl From<proto::BroadcastResponse> for BroadcastOutcome {
    fn from(response: proto::BroadcastResponse) -> Self {
        let proto::BroadcastResponse { sent, queue_full, silent_nodes } = response;
        Self { sent, queue_full, silent_nodes }
    }
}

/// Whether a uid is online.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OnlineState {
    /// Whose.
    pub uid: String,
    /// None: it is offline.
    pub online: Option<Online>,
}

/// How a uid is online.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Online {
    /// When it came online; replacing a connection doesn't change it.
    pub since: SystemTime,
    /// The node of its newest connection.
    pub node: String,
    /// How many it holds.
    pub connections: u32,
}

impl From<proto::OnlineState> for OnlineState {
    fn from(state: proto::OnlineState) -> Self {
        let proto::OnlineState { uid, online, since, node, connections } = state;
        let online = online.then(|| Online { since: time_or_epoch(since), node, connections });
        Self { uid, online }
    }
}

/// Where a device should connect now.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Host {
    /// `HOST:PORT`.
    pub address: String,
    /// The node that listens there.
    pub node: String,
}

impl From<proto::GetHostResponse> for Host {
    fn from(response: proto::GetHostResponse) -> Self {
        let proto::GetHostResponse { host, node } = response;
        Self { address: host, node }
    }
}

/// What a node is and holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Info {
    /// The gateway's version.
    pub version: String,
    /// The node that answered.
    pub node: String,
    /// What it can beyond the first version; to be asked before relying on it.
    pub features: Vec<String>,
    /// The longest message to or from a device, in bytes.
    pub frame_bytes_max: u32,
    /// Uids that are online, over the cluster.
    pub uids: u64,
    /// Authenticated connections of this node.
    pub connections: u64,
    /// Since when the presence log is kept. None: it isn't known yet.
    pub known_since: Option<SystemTime>,
}

impl From<proto::GetInfoResponse> for Info {
    fn from(response: proto::GetInfoResponse) -> Self {
        let proto::GetInfoResponse { version, node, features, frame_bytes_max, uids, connections, known_since } =
            response;
        let known_since = time(known_since);
        Self { version, node, features, frame_bytes_max, uids, connections, known_since }
    }
}

/// One authenticated connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Session {
    /// Whose.
    pub uid: String,
    /// Its place in the presence log; 0 where it isn't there yet.
    pub epoch: u64,
    /// The node that holds it.
    pub node: String,
    /// Where the device connects from, `IP:PORT`.
    pub remote_address: String,
    /// When it authenticated.
    pub connected_at: SystemTime,
    /// When its last whole frame came.
    pub last_seen: SystemTime,
    /// Bytes that wait in its outbound queue.
    pub queued_bytes: u64,
    /// Pushes that it took.
    pub pushes_sent: u64,
    /// Pushes that its full queue refused.
    pub pushes_dropped: u64,
    /// 1 or 2.
    pub dialect: u32,
}

impl From<proto::Session> for Session {
    fn from(session: proto::Session) -> Self {
        Self {
            uid: session.uid,
            epoch: session.epoch.try_into().unwrap_or_default(),
            node: session.node,
            remote_address: session.remote_address,
            connected_at: time_or_epoch(session.connected_at),
            last_seen: time_or_epoch(session.last_seen),
            queued_bytes: session.queued_bytes,
            pushes_sent: session.pushes_sent,
            pushes_dropped: session.pushes_dropped,
            dialect: session.dialect,
        }
    }
}

/// None: a time that is missing, or out of any calendar.
pub(super) fn time(time: Option<prost_types::Timestamp>) -> Option<SystemTime> {
    SystemTime::try_from(time?).ok()
}

/// For times that a gateway always tells.
pub(super) fn time_or_epoch(told: Option<prost_types::Timestamp>) -> SystemTime {
    time(told).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Why somebody went offline.
pub(super) fn offline_reason(reason: proto::OfflineReason) -> OfflineReason {
    match reason {
        proto::OfflineReason::Unspecified => OfflineReason::Unknown,
        proto::OfflineReason::Closed => OfflineReason::Closed,
        proto::OfflineReason::Timeout => OfflineReason::Timeout,
        proto::OfflineReason::Disconnected => OfflineReason::Disconnected,
        proto::OfflineReason::Draining => OfflineReason::Draining,
        proto::OfflineReason::Expired => OfflineReason::Expired,
        proto::OfflineReason::Slow => OfflineReason::Slow,
        proto::OfflineReason::NodeLost => OfflineReason::NodeLost,
        proto::OfflineReason::Protocol => OfflineReason::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_own_and_an_unknown_one_is_unknown() {
        for number in 1..=10 {
            let wire = Wire::try_from(number).expect("a status");
            assert_eq!(PushStatus::of(number).wire(), wire);
        }
        assert_eq!(PushStatus::of(Wire::QueueFull.into()).to_string(), "QUEUE_FULL");
        for number in [0, 11, 77, -1] {
            assert_eq!(PushStatus::of(number), PushStatus::Unknown);
        }
    }

    #[test]
    fn a_wait_of_any_length_is_left_to_the_gateway_to_judge() {
        let push = PushRequest { ack_timeout: Some(Duration::MAX), ..PushRequest::new("a", "/x", "") };
        assert_eq!(proto::PushRequest::from(push).ack_timeout.map(|wait| wait.seconds), Some(i64::MAX));
    }

    #[test]
    fn who_is_offline_has_no_time_and_no_node() {
        let offline = proto::OnlineState { uid: "bob".into(), ..Default::default() };
        assert_eq!(OnlineState::from(offline), OnlineState { uid: "bob".into(), online: None });
    }
}
