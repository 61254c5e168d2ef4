//! The nouns that every module shares. No behaviour beyond what makes a value valid.

use std::{
    borrow::Borrow,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The longest uid, in bytes of UTF-8.
pub const UID_BYTES_MAX: usize = 255;

/// What a device connects by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Plain TCP.
    Tcp,
    /// TLS.
    Tls,
}

/// Whose device it is: 1 to 255 bytes of UTF-8, compared byte by byte. Cheap to clone: one text for all who hold it.
// Without the standard `Arc`'s second counter, which is 8 bytes of each uid, or 16 where an allocator has no size between.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(triomphe::Arc<str>);

/// A text that is no uid: empty, or longer than 255 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a uid is 1 to 255 bytes, this has {0}")]
pub struct UidError(usize);

impl Uid {
    /// Takes `text` as a uid.
    ///
    /// # Errors
    ///
    /// [`UidError`] where it is empty or over 255 bytes.
    pub fn new(text: &str) -> Result<Self, UidError> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }

    /// Tells whether `text` could be a uid, without making one.
    ///
    /// # Errors
    ///
    /// As [`Uid::new`].
    pub fn check(text: &str) -> Result<(), UidError> {
        match text.len() {
            1..=UID_BYTES_MAX => Ok(()),
            other => Err(UidError(other)),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Uid {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What operators and events call a node. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// Takes `name`, which the configuration has checked.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Tells the connections of one node apart: from 1 on, and anew after 2³² logins, which are 50 days at 1,000 a second. A
/// connection that is still there then shares its number with a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionNumber(pub u32);

/// A time on the presence log's clock: milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// The machine's clock now.
    #[must_use]
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// What has passed since `earlier`; nothing where that is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl From<SystemTime> for Millis {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl From<Millis> for SystemTime {
    fn from(time: Millis) -> Self {
        UNIX_EPOCH + Duration::from_millis(time.0)
    }
}

/// What is pushed: the two fields that a backend chooses.
#[derive(Debug, Clone, Copy)]
pub struct Push<'a> {
    /// What the message is.
    pub uri: &'a str,
    /// Its content.
    pub body: &'a str,
}

/// Why a connection ended. A closed list: each is a metric's label, and most are an [`OfflineReason`] or a kick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// The device closed it, or it broke.
    Closed,
    /// No sign of life in time.
    Timeout,
    /// A backend called Disconnect.
    Disconnected,
    /// The node is stopping.
    Draining,
    /// The credential's time is over.
    Expired,
    /// It didn't read its queue.
    Slow,
    /// Too many errors, or an oversized frame.
    Protocol,
    /// A newer connection of the uid took its place.
    Replaced,
}

impl EndReason {
    /// Every reason, in the order of [`EndReason`] itself.
    pub const ALL: [Self; 8] = [
        Self::Closed,
        Self::Timeout,
        Self::Disconnected,
        Self::Draining,
        Self::Expired,
        Self::Slow,
        Self::Protocol,
        Self::Replaced,
    ];

    /// Its name in kicks, logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Draining => "draining",
            Self::Expired => "expired",
            Self::Slow => "slow",
            Self::Protocol => "protocol",
            Self::Replaced => "replaced",
        }
    }
}

/// Why a uid went offline: how its last connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OfflineReason {
    /// The device closed it, or it broke.
    Closed,
    /// No sign of life in time.
    Timeout,
    /// A backend called Disconnect.
    Disconnected,
    /// Its node stopped.
    Draining,
    /// The credential's time was over.
    Expired,
    /// It didn't read its queue.
    Slow,
    /// Its node was lost.
    NodeLost,
    /// Too many errors, or an oversized frame.
    Protocol,
    /// One that this program doesn't know yet: only a client of a newer gateway is told so.
    Unknown,
}

impl From<EndReason> for OfflineReason {
    /// A displaced connection is followed by its successor, so `Replaced` is never the last to end; if the successor
    /// ended first, the device has simply gone.
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::Closed | EndReason::Replaced => Self::Closed,
            EndReason::Timeout => Self::Timeout,
            EndReason::Disconnected => Self::Disconnected,
            EndReason::Draining => Self::Draining,
            EndReason::Expired => Self::Expired,
            EndReason::Slow => Self::Slow,
            EndReason::Protocol => Self::Protocol,
        }
    }
}

/// One event of presence, as a watcher gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceEvent {
    /// A uid came online or went offline.
    Change(PresenceChange),
    /// A uid is online, told while a snapshot is told.
    Snapshot {
        /// Whose.
        uid: Uid,
        /// That of its newest connection: at least that of its last change.
        epoch: u64,
        /// When it came online.
        since: Millis,
        /// The node of its newest connection.
        node: NodeName,
    },
    /// From here on the watcher knows all of it.
    Live {
        /// Since when this log is kept.
        since: Millis,
    },
    /// What follows replaces what the watcher knows, and voids its cursor; it keeps the old until `Live`.
    Reset {
        /// Since when this log is kept.
        since: Millis,
    },
}

/// A change of one uid's presence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceChange {
    /// Whose.
    pub uid: Uid,
    /// Its place in the log: grows with every change.
    pub epoch: u64,
    /// The log's time of the change.
    pub at: Millis,
    /// Where the first connection came, or the last one ended.
    pub node: NodeName,
    /// None: it came online. Some: it went offline, and why.
    pub offline: Option<OfflineReason>,
}

/// One authenticated connection, as ListSessions shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Whose.
    pub uid: Uid,
    /// Its number at its node.
    pub number: ConnectionNumber,
    /// Its place in the presence log; 0 where it isn't there yet.
    pub epoch: u64,
    /// The node that holds it.
    pub node: NodeName,
    /// Where the device connects from, "ip:port".
    pub remote_address: String,
    /// When it authenticated.
    pub connected_at: Millis,
    /// When its last whole frame came.
    pub last_seen: Millis,
    /// Bytes that wait in its outbound queue.
    pub queued_bytes: u64,
    /// Pushes that it took.
    pub pushes_sent: u64,
    /// Pushes that its full queue refused.
    pub pushes_dropped: u64,
    /// 1 or 2.
    pub dialect: u8,
}

/// What became of one push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOutcome {
    /// What the gateway knows.
    pub status: PushStatus,
    /// The number in the frame; 0 where nothing was sent.
    pub seq: i64,
    /// How many connections took it; 0 where nothing was sent.
    pub connections: u32,
    /// The body of the device's answer.
    pub reply: String,
}

impl PushOutcome {
    /// An outcome of a push that was not sent.
    #[must_use]
    pub fn unsent(status: PushStatus) -> Self {
        Self { status, seq: 0, connections: 0, reply: String::new() }
    }
}

/// What the gateway knows about a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PushStatus {
    /// Written to, or queued for, at least one connection.
    Sent,
    /// The uid held no connection.
    Offline,
    /// Every connection's queue was full.
    QueueFull,
    /// The device answered with an ack.
    Acked,
    /// The device answered with a nack.
    Nacked,
    /// No answer in time, though it is still connected.
    AckTimeout,
    /// The last connection that took it ended before an answer.
    ConnectionLost,
    /// The node that holds the uid can't be reached; nothing was sent.
    Unreachable,
    /// It was handed to another node, which didn't answer in time.
    Unknown,
}

/// Whether a uri belongs to the protocol: no backend may push with it.
#[must_use]
pub fn is_reserved(uri: &str) -> bool {
    ["/auth/", "/inner/", "/plex/"].iter().any(|prefix| uri.starts_with(prefix))
        || matches!(uri, "/heartbeat" | "/logic/send/msg")
}
