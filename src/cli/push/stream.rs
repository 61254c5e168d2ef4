//! `plex push --stream`: pushes from standard input, a JSON object to a line, results as they come.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncRead, sync::mpsc};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use super::status;
use crate::{
    cli::{Exit, Failure, Output},
    client::Control,
    proto::{PushRequest, PushResponse, PushStatus, PushStreamRequest},
};

/// Most pushes to a message.
const BATCH_MAX: usize = 1_000;

/// The longest line, in bytes: no larger message can be pushed, even where each of its characters is escaped.
const LINE_BYTES_MAX: usize = 32 << 20;

/// Messages that are read ahead.
const BATCHES_AHEAD: usize = 4;

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
    let (batches, requests) = mpsc::channel(BATCHES_AHEAD);
    let (mistakes, mut mistaken) = mpsc::channel(BATCH_MAX);
    let reading = tokio::spawn(read(input, batches, mistakes));
    let requests =
        stream::unfold(requests, |mut requests| async { requests.recv().await.map(|next| (next, requests)) });
    let mut results = control.push_stream(requests).await?;
    let (mut all_good, mut open) = (true, true);
    while open && !output.is_closed() {
        let told = tokio::select! {
            biased;
            Some(mistake) = mistaken.recv() => vec![mistake],
            batch = results.message() => match batch? {
                Some(batch) => batch.results,
                None => {
                    open = false;
                    // Told before their reader's end closed the stream.
                    std::iter::from_fn(|| mistaken.try_recv().ok()).collect()
                }
            },
        };
        for result in &told {
            all_good &= matches!(result.status(), PushStatus::Sent | PushStatus::Acked);
            print(result, output)?;
        }
    }
    if output.is_closed() {
        return Ok(Exit::Done);
    }
    reading.await.expect("reading doesn't panic")?;
    Ok(if all_good { Exit::Done } else { Exit::No })
}

fn print(result: &PushResponse, output: &mut Output) -> Result<(), Failure> {
    let PushResponse { seq, connections, reply, id, error, .. } = result;
    let (id, seq) = (id.to_string(), seq.to_string());
    let line = LineOut { id, status: status(result), seq, connections: *connections, reply, error };
    output.answer(&line, || "")
}

/// Reads lines into messages: each takes what is there, up to its limit, and waits for no more.
async fn read(
    input: impl AsyncRead + Unpin,
    batches: mpsc::Sender<PushStreamRequest>,
    mistakes: mpsc::Sender<PushResponse>,
) -> Result<(), Failure> {
    let mut lines = FramedRead::new(input, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
    let mut number = 0;
    let mut next = lines.next().await;
    while let Some(line) = next {
        let mut pushes = Vec::new();
        let mut line = Some(line);
        while let Some(text) = line.take() {
            number += 1;
            match text.map_err(LineError::from).and_then(|text| request(&text, number)) {
                Ok(Some(push)) => pushes.push(push),
                Ok(None) => {}
                Err(LineError::Io(error)) => {
                    return Err(Failure::new(Exit::Usage, format!("can't read standard input: {error}")));
                }
                Err(LineError::Text(why)) => {
                    let error = format!("line {number}: {why}");
                    let mistake =
                        PushResponse { status: PushStatus::Invalid.into(), id: number, error, ..Default::default() };
                    if mistakes.send(mistake).await.is_err() {
                        return Ok(());
                    }
                }
            }
            if pushes.len() < BATCH_MAX {
                line = lines.next().now_or_never().flatten();
            }
        }
        if !pushes.is_empty() && batches.send(PushStreamRequest { pushes }).await.is_err() {
            // The stream has ended: its end tells why.
            return Ok(());
        }
        next = lines.next().await;
    }
    Ok(())
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
            Some(protobuf(wait))
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

/// What is too long for a protobuf duration is too long for the gateway: it tells the limit.
fn protobuf(wait: Duration) -> prost_types::Duration {
    wait.try_into().unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 })
}

#[cfg(test)]
mod tests {
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
        assert_eq!(
            (full.id, full.ack_timeout),
            (u64::MAX, Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }))
        );
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
