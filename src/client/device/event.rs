//! What a device is told.

use std::time::Duration;

use serde::Deserialize;

use crate::codec::OwnedMessage;

/// What happens to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A backend's push.
    Push {
        /// Its number, for [`Device::ack`](super::Device::ack).
        seq: i64,
        /// What it is.
        uri: String,
        /// Its content.
        body: String,
    },
    /// The gateway is about to close the connection.
    Kick {
        /// Why, as the protocol names it: `draining`, `replaced`, …
        reason: String,
        /// Whether to connect again.
        reconnect: bool,
        /// How long to wait before.
        after: Duration,
    },
    /// The gateway didn't understand the last frame.
    Error {
        /// `malformed` or `too_large`.
        reason: String,
        /// More, for people.
        detail: String,
    },
    /// The answer to a heartbeat.
    Heartbeat,
    /// The answer to [`Device::authenticate`](super::Device::authenticate).
    Auth(AuthAnswer),
    /// The connection has ended.
    Closed,
}

/// What the gateway says to a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthAnswer {
    /// It is good. The gateway's settings, for a v 2 device.
    Success(Option<Welcome>),
    /// It is not. The gateway tells no reason to a device that isn't v 2.
    Refused,
    /// The gateway can't tell at this time.
    Unavailable,
}

/// The gateway's settings, as `/auth/success` tells them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Welcome {
    /// The dialect that the gateway speaks.
    pub v: u64,
    /// Its node.
    pub node: String,
    /// How often it wants a heartbeat, in seconds. 0: not told.
    pub heartbeat_seconds: u64,
    /// After how many silent seconds it closes the connection. 0: not told.
    pub heartbeat_timeout_seconds: u64,
    /// The longest message that it takes. 0: not told.
    pub max_frame_bytes: u64,
    /// After how many seconds the session ends by itself; none: never.
    pub expires_in_seconds: Option<u64>,
}

impl Welcome {
    /// How often to send a heartbeat: as told, and twice in the time-out at least, as both are told in whole seconds,
    /// rounded up. None: not told.
    pub(crate) fn heartbeat(&self) -> Option<Duration> {
        let told = (self.heartbeat_seconds > 0).then(|| Duration::from_secs(self.heartbeat_seconds));
        let half =
            (self.heartbeat_timeout_seconds > 0).then(|| Duration::from_secs(self.heartbeat_timeout_seconds) / 2);
        told.into_iter().chain(half).min()
    }
}

impl AuthAnswer {
    /// None: `message` is something else.
    pub(crate) fn from_message(message: &OwnedMessage) -> Option<Self> {
        match message.uri.as_str() {
            "/auth/success" => Some(Self::Success(serde_json::from_str(&message.body).ok())),
            "/auth/failed" => Some(match body(message).reason.as_str() {
                "unavailable" => Self::Unavailable,
                _ => Self::Refused,
            }),
            _ => None,
        }
    }
}

impl Event {
    /// None: a message of the gateway's own that this program doesn't know yet.
    pub(super) fn from_message(message: OwnedMessage) -> Option<Self> {
        if let Some(answer) = AuthAnswer::from_message(&message) {
            return Some(Self::Auth(answer));
        }
        match message.uri.as_str() {
            "/heartbeat" => Some(Self::Heartbeat),
            "/plex/kick" => {
                let Body { reason, reconnect, after_ms, .. } = body(&message);
                Some(Self::Kick { reason, reconnect, after: Duration::from_millis(after_ms) })
            }
            "/plex/error" => {
                let Body { reason, detail, .. } = body(&message);
                Some(Self::Error { reason, detail })
            }
            uri if uri.starts_with("/plex/") || uri.starts_with("/auth/") => None,
            _ => {
                let OwnedMessage { seq, uri, body, .. } = message;
                Some(Self::Push { seq, uri, body })
            }
        }
    }
}

/// The fields of all bodies that the gateway itself makes, but [`Welcome`]'s.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Body {
    pub(super) reason: String,
    pub(super) detail: String,
    reconnect: bool,
    after_ms: u64,
}

/// The body of one of the gateway's own messages; empty where it has none.
pub(super) fn body(message: &OwnedMessage) -> Body {
    serde_json::from_str(&message.body).unwrap_or_default()
}
