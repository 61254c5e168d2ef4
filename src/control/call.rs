//! What a call brings beside its message: its deadline, and the end of its streams.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Extensions, metadata::MetadataMap};

use super::{Control, incoming::ConnectionInfo};

/// What is kept of a call's deadline for the way back of its answer: a tenth, at most this.
const WAY_BACK_MAX: Duration = Duration::from_millis(200);

/// How long a stream that the gateway ends goes on with what it has to tell.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(10);

/// Until when a call may wait: its own deadline less the way back. None: it has no deadline.
pub(super) fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let timeout = timeout(metadata.get("grpc-timeout")?.to_str().ok()?)?;
    Instant::now().checked_add(timeout - (timeout / 10).min(WAY_BACK_MAX))
}

/// `grpc-timeout`: up to eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// When a stream has to end by itself: the node has drained, or its connection's time is over.
pub(super) struct StreamEnd {
    stopping: CancellationToken,
    over: Option<CancellationToken>,
}

impl StreamEnd {
    /// `extensions` are those of the call.
    pub(super) fn of(control: &Control, extensions: &Extensions) -> Self {
        let over = extensions.get::<ConnectionInfo>().map(|connection| connection.over().clone());
        Self { stopping: control.0.stopping.clone(), over }
    }

    pub(super) fn is_reached(&self) -> bool {
        self.stopping.is_cancelled() || self.over.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    pub(super) async fn reached(&self) {
        match &self.over {
            Some(over) => tokio::select! {
                () = self.stopping.cancelled() => {}
                () = over.cancelled() => {}
            },
            None => self.stopping.cancelled().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_in_all_units() {
        assert_eq!(timeout("2H"), Some(Duration::from_secs(7_200)));
        assert_eq!(timeout("3M"), Some(Duration::from_secs(180)));
        assert_eq!(timeout("4S"), Some(Duration::from_secs(4)));
        assert_eq!(timeout("5m"), Some(Duration::from_millis(5)));
        assert_eq!(timeout("6u"), Some(Duration::from_micros(6)));
        assert_eq!(timeout("7n"), Some(Duration::from_nanos(7)));
        for bad in ["", "S", "5", "5x", "-5S", "123456789S"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }
}
