//! `plex push --stream`: pushes from standard input, a JSON object to a line, results as they come.

use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncRead, sync::mpsc};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use crate::{
    cli::{Exit, Failure, Output},
    client::{CallError, Control, PushOutcome, PushRequest, PushSink, PushStatus},
};

/// Pushes without an outcome, and mistakes that nobody has printed yet: as many as the gateway itself keeps.
const WINDOW: usize = 10_000;

/// The longest line, in bytes: no larger message can be pushed, even where each of its characters is escaped.
const LINE_BYTES_MAX: usize = 32 << 20;

/// As `PushRequest` in protobuf's JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LineIn {
    uid: String,
    uri: String,
    #[serde(default)]
    body: String,
    #[serde(default)]
    ack_timeout: Option<String>,
    #[serde(default)]
    id: Option<Id>,
}

/// A 64-bit number as text, or as a number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Id {
    Number(u64),
    Text(String),
}

/// As `PushResponse` in protobuf's JSON.
#[derive(Debug, Serialize)]
struct LineOut<'a> {
    id: String,
    status: &'static str,
    seq: String,
    connections: u32,
    reply: &'a str,
    error: &'a str,
}

/// Pushes each line. No is the answer where one of them isn't SENT, or, with `ackTimeout`, isn't ACKED.
pub(super) async fn push_lines(
    control: &Control,
    input: impl AsyncRead + Unpin + Send + 'static,
    output: &mut Output,
) -> Result<Exit, Failure> {
    let (pushes, mut outcomes) = control.push_stream(WINDOW).await?;
    let (mistakes, mut mistaken) = mpsc::channel(WINDOW);
    let reading = tokio::spawn(read(input, pushes, mistakes));
    let (mut all_good, mut open) = (true, true);
    while !output.is_closed() {
        let outcome = tokio::select! {
            biased;
            Some(mistake) = mistaken.recv() => mistake,
            outcome = outcomes.next(), if open => match outcome {
                Some(outcome) => outcome?,
                None => {
                    open = false;
                    continue;
                }
            },
            // Both have ended: the sink and the mistakes belong to who reads.
            else => break,
        };
        all_good &= matches!(outcome.status, PushStatus::Sent | PushStatus::Acked);
        print(&outcome, output)?;
    }
    if output.is_closed() {
        return Ok(Exit::Done);
    }
    reading.await.expect("reading doesn't panic")?;
    Ok(if all_good { Exit::Done } else { Exit::No })
}

fn print(outcome: &PushOutcome, output: &mut Output) -> Result<(), Failure> {
    let PushOutcome { status, seq, connections, reply, id, error, .. } = outcome;
    let (id, seq) = (id.to_string(), seq.to_string());
    let line = LineOut { id, status: status.name(), seq, connections: *connections, reply, error };
    output.answer(&line, || "")
}

/// Reads lines and pushes them.
async fn read(
    input: impl AsyncRead + Unpin,
    pushes: PushSink,
    mistakes: mpsc::Sender<PushOutcome>,
) -> Result<(), Failure> {
    let mut lines = FramedRead::new(input, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
    let mut number = 0;
    while let Some(line) = lines.next().await {
        number += 1;
        let mistake = match line.map_err(LineError::from).and_then(|text| request(&text, number)) {
            Ok(None) => continue,
            Ok(Some(push)) => {
                let id = push.id;
                match pushes.send(push).await {
                    Ok(()) => continue,
                    Err(CallError::Invalid(why)) => mistake(id, why),
                    // The stream has ended: its end tells why.
                    Err(_) => return Ok(()),
                }
            }
            Err(LineError::Io(error)) => {
                return Err(Failure::new(Exit::Usage, format!("can't read standard input: {error}")));
            }
            Err(LineError::Text(why)) => mistake(number, format!("line {number}: {why}")),
        };
        if mistakes.send(mistake).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The outcome of what can't be pushed.
fn mistake(id: u64, error: String) -> PushOutcome {
    PushOutcome { status: PushStatus::Invalid, seq: 0, connections: 0, reply: String::new(), id, error }
}

enum LineError {
    /// What is wrong with one line.
    Text(String),
    /// Nothing can be read any more.
    Io(std::io::Error),
}

impl From<LinesCodecError> for LineError {
    fn from(error: LinesCodecError) -> Self {
        match error {
            LinesCodecError::MaxLineLengthExceeded => Self::Text("over 32 MiB".to_owned()),
            LinesCodecError::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                Self::Text("not UTF-8".to_owned())
            }
            LinesCodecError::Io(error) => Self::Io(error),
        }
    }
}

/// What a line asks for; nothing where it is empty.
fn request(line: &str, number: u64) -> Result<Option<PushRequest>, LineError> {
    if line.trim().is_empty() {
        return Ok(None);
    }
    let LineIn { uid, uri, body, ack_timeout, id } =
        serde_json::from_str(line).map_err(|error| LineError::Text(error.to_string()))?;
    let ack_timeout = match ack_timeout {
        None => None,
        Some(text) => {
            let wait = humantime::parse_duration(&text).map_err(|_| {
                LineError::Text(format!("ackTimeout {text:?}: a duration with its unit, as \"5s\" or \"500ms\""))
            })?;
            Some(wait)
        }
    };
    let id = match id {
        None => number,
        Some(Id::Number(id)) => id,
        Some(Id::Text(text)) => text
            .parse()
            .map_err(|_| LineError::Text(format!("id {text:?}: a whole number from 0 to 18446744073709551615")))?,
    };
    Ok(Some(PushRequest { uid, uri, body, ack_timeout, id }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_is_a_push_or_says_what_is_wrong_with_it() {
        let push = |line: &str| match request(line, 7) {
            Ok(Some(push)) => push,
            _ => panic!("{line}"),
        };
        let bare = push(r#"{"uid":"a","uri":"/x"}"#);
        assert_eq!((bare.id, &*bare.body, bare.ack_timeout), (7, "", None));
        let full = push(r#"{"uid":"a","uri":"/x","body":"b","ackTimeout":"1500ms","id":"18446744073709551615"}"#);
        assert_eq!((full.id, full.ack_timeout), (u64::MAX, Some(Duration::from_millis(1_500))));
        assert_eq!(push(r#"{"uid":"a","uri":"/x","id":5}"#).id, 5);
        assert!(matches!(request(" ", 1), Ok(None)));
        for (line, names) in [
            ("nonsense", "expected"),
            ("{}", "uid"),
            (r#"{"uid":"a","uri":"/x","nonsense":1}"#, "nonsense"),
            (r#"{"uid":"a","uri":"/x","ackTimeout":"5"}"#, "ackTimeout"),
            (r#"{"uid":"a","uri":"/x","id":"-1"}"#, "id"),
        ] {
            match request(line, 1) {
                Err(LineError::Text(why)) => assert!(why.contains(names), "{line}: {why}"),
                _ => panic!("{line}"),
            }
        }
    }
}
