//! The log: lines on stderr, as text or JSON.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogConfig, LogFormat};

/// Sends what this process logs to stderr. Only the first call counts, so a host program's own subscriber stays.
///
/// `log.level` is for the gateway itself; of the libraries below it only warnings are shown.
pub(crate) fn init(config: &LogConfig) {
    let level = LevelFilter::from(config.level);
    let filter = Targets::new().with_target("plex", level).with_default(level.min(LevelFilter::WARN));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            lines.with_ansi(std::io::stderr().is_terminal()).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}
