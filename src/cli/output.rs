//! What a command prints: for people, or one JSON object to a line.

use std::{
    borrow::Cow,
    env,
    fmt::Display,
    io::{self, IsTerminal, Write},
    time::{Duration, SystemTime},
};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::{Exit, Failure};

/// The end of the year 9999, in seconds since 1970: later times can't be written.
const LATEST: Duration = Duration::from_secs(253_402_300_799);

/// Where answers go.
pub(super) struct Output {
    json: bool,
    to: Box<dyn Write>,
    closed: bool,
    terminal: bool,
}

/// How good a word is, which a terminal shows by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Faint,
}

impl Output {
    /// Writes to stdout, as JSON or for people.
    pub(super) fn stdout(json: bool) -> Self {
        let terminal = !json && io::stdout().is_terminal();
        Self { terminal, ..Self::new(json, Box::new(io::stdout())) }
    }

    pub(super) fn new(json: bool, to: Box<dyn Write>) -> Self {
        Self { json, to, closed: false, terminal: false }
    }

    /// Whether a person looks at it: only then there are tables.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// `text` in the colour of its tone, on a terminal that hasn't asked for none (`NO_COLOR`).
    pub(super) fn toned(&self, text: &str, tone: Tone) -> String {
        let plain = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if !self.terminal || plain {
            return text.to_owned();
        }
        let style = match tone {
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Bad => AnsiColor::Red.on_default(),
            Tone::Faint => Style::new().dimmed(),
        };
        format!("{style}{text}{style:#}")
    }

    /// Prints one answer: `object` as JSON, or else what `text` says.
    pub(super) fn answer<T: Display>(
        &mut self,
        object: &impl Serialize,
        text: impl FnOnce() -> T,
    ) -> Result<(), Failure> {
        if self.json {
            let line = serde_json::to_string(object).expect("an answer has only text, numbers and lists");
            self.line(&line)
        } else {
            self.line(&text())
        }
    }

    /// Prints one line. That nobody reads any more isn't an error: see [`Output::is_closed`].
    pub(super) fn line(&mut self, line: &dyn Display) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        match writeln!(self.to, "{line}").and_then(|()| self.to.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(Failure::new(Exit::No, format!("can't write: {error}"))),
        }
    }

    /// Whether the reader has gone, so that going on would be for nobody.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }
}

/// Says something to a person beside the answers. Where nobody listens, nothing is lost.
pub(super) fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "plex: {}", shown(message));
}

/// `text` from elsewhere, fit for a terminal: control characters are escaped.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escape).collect())
}

/// `time` as RFC 3339, to the millisecond.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().min(LATEST);
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + since).to_string()
}

/// `1 connection`, `2 connections`.
pub(super) fn connections(count: u32) -> String {
    format!("{count} connection{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Full(io::ErrorKind);

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_broken_pipe_ends_quietly_and_a_full_disk_does_not() {
        let mut output = Output::new(false, Box::new(Full(io::ErrorKind::BrokenPipe)));
        assert!(output.line(&"a").is_ok() && output.line(&"b").is_ok());
        assert!(output.is_closed());
        let mut output = Output::new(false, Box::new(Full(io::ErrorKind::StorageFull)));
        assert_eq!(output.line(&"a").unwrap_err().exit, Exit::No);
    }

    #[test]
    fn only_a_terminal_gets_colours() {
        let mut output = Output::new(false, Box::new(io::sink()));
        assert_eq!(output.toned("SENT", Tone::Good), "SENT");
        output.terminal = true;
        if env::var_os("NO_COLOR").is_none() {
            assert_eq!(output.toned("SENT", Tone::Good), "\u{1b}[32mSENT\u{1b}[0m");
        }
    }

    #[test]
    fn control_characters_never_reach_a_terminal() {
        assert_eq!(shown("plain ä🦀"), "plain ä🦀");
        assert_eq!(shown("a\x1b[2J\n\u{9b}"), "a\\u{1b}[2J\\n\\u{9b}");
    }

    #[test]
    fn any_time_can_be_printed() {
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500)), "1970-01-01T00:00:01.500Z");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(9)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + LATEST * 2), "9999-12-31T23:59:59.000Z");
    }
}
