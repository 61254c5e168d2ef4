//! The gateway's own frames: `/auth/…`, `/heartbeat`, `/plex/…`. They carry no seq; their bodies are JSON objects,
//! and only for a device of dialect 2.

use std::time::Duration;

use rand::RngExt;
use serde::Serialize;

use super::Devices;
use crate::{
    frame::{self, ByteOrder},
    model::EndReason,
};

/// The first dialect that knows bodies in the gateway's answers, and `/plex/…`.
pub(super) const DIALECT_2: u8 = 2;

/// A node that stops sends its devices away for a random time up to this, so that no herd comes back.
const DRAINING_AFTER_MS_MAX: u64 = 5_000;

/// The longest `detail` of an error, in bytes.
const DETAIL_BYTES_MAX: usize = 200;

/// Why a device is answered `/auth/failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    Refused,
    Unavailable,
}

// The bodies, with their fields in the order in which the protocol tells them.

#[derive(Serialize)]
struct Success<'a> {
    v: u8,
    node: &'a str,
    heartbeat_seconds: u64,
    heartbeat_timeout_seconds: u64,
    max_frame_bytes: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_seconds: Option<u64>,
}

#[derive(Serialize)]
struct Error<'a> {
    reason: &'a str,
    detail: &'a str,
}

#[derive(Serialize)]
struct Kick<'a> {
    reason: &'a str,
    reconnect: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    after_ms: Option<u64>,
}

impl Devices {
    /// `/auth/success`, for a session that ends by itself after `lasts`.
    pub(super) fn success(&self, dialect: u8, lasts: Option<Duration>) -> Vec<u8> {
        if dialect < DIALECT_2 {
            return own(self.order(), "/auth/success", "");
        }
        let body = Success {
            v: DIALECT_2,
            node: self.node.as_str(),
            heartbeat_seconds: seconds(self.config.heartbeat),
            heartbeat_timeout_seconds: seconds(self.config.heartbeat_timeout),
            max_frame_bytes: self.config.max_frame,
            expires_in_seconds: lasts.map(seconds),
        };
        own(self.order(), "/auth/success", &text(&body))
    }

    /// `/auth/failed`.
    pub(super) fn failed(&self, dialect: u8, why: Failed) -> Vec<u8> {
        let body = match (dialect, why) {
            (..DIALECT_2, _) => "",
            (_, Failed::Refused) => r#"{"reason":"refused"}"#,
            (_, Failed::Unavailable) => r#"{"reason":"unavailable"}"#,
        };
        own(self.order(), "/auth/failed", body)
    }

    pub(super) fn heartbeat(&self) -> Vec<u8> {
        own(self.order(), "/heartbeat", "")
    }

    /// `/plex/error` for a device of dialect 2.
    pub(super) fn error(&self, dialect: u8, reason: &str, detail: &str) -> Option<Vec<u8>> {
        let end = detail.floor_char_boundary(DETAIL_BYTES_MAX);
        let body = Error { reason, detail: &detail[..end] };
        (dialect >= DIALECT_2).then(|| own(self.order(), "/plex/error", &text(&body)))
    }

    /// `/plex/kick` for a device of dialect 2. None where the peer has gone by itself.
    pub(super) fn kick(&self, dialect: u8, reason: EndReason) -> Option<Vec<u8>> {
        let reconnect = match reason {
            EndReason::Closed => return None,
            EndReason::Replaced | EndReason::Disconnected | EndReason::Protocol => false,
            EndReason::Draining | EndReason::Expired | EndReason::Slow | EndReason::Timeout => true,
        };
        if dialect < DIALECT_2 {
            return None;
        }
        let after_ms = (reason == EndReason::Draining).then(|| rand::rng().random_range(0..=DRAINING_AFTER_MS_MAX));
        let body = Kick { reason: reason.name(), reconnect, after_ms };
        Some(own(self.order(), "/plex/kick", &text(&body)))
    }
}

fn text(body: &impl Serialize) -> String {
    serde_json::to_string(body).expect("names, numbers and strings are JSON")
}

fn own(order: ByteOrder, uri: &str, body: &str) -> Vec<u8> {
    let mut frame = Vec::with_capacity(64 + body.len());
    frame::encode(order, 0, uri, body, &mut frame);
    frame
}

/// Whole seconds, rounded up: a device that waits as long as it is told is never early.
fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}
