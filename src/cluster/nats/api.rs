//! The engine's log: asking for its bounds, making and deleting it, and reading it. JSON over the core client.

use std::time::Duration;

use async_nats::{Client, Message as NatsMessage, Subscriber, client::RequestErrorKind};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::Subjects;
use crate::{
    cluster::{
        directory::{FNV_SEED, fnv},
        member::Bounds,
        node::LogIdentity,
    },
    model::Millis,
};

/// How long an answer of the engine may take: a leader that is there answers in a few ms.
const ANSWER: Duration = Duration::from_millis(400);
/// How long it may take to make a log: its servers have to agree.
const CREATE: Duration = Duration::from_millis(1_500);
/// How often a consumer says that it is there.
const IDLE_HEARTBEAT: Duration = Duration::from_millis(500);
/// A consumer that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_millis(1_500);

const NO_SUCH_STREAM: u64 = 10_059;
const NAME_IN_USE: u64 = 10_058;

/// How the log is kept.
#[derive(Debug, Clone)]
pub(crate) struct LogSettings {
    pub(crate) replicas: u32,
    pub(crate) memory: bool,
    pub(crate) bytes_max: u64,
}

#[derive(Debug, Deserialize)]
struct Answer {
    error: Option<ApiError>,
    created: Option<String>,
    config: Option<Config>,
    state: Option<StreamState>,
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ApiError {
    err_code: Option<u64>,
    description: Option<String>,
}

impl ApiError {
    fn refused(self, what: &str) -> Failed {
        let code = self.err_code.unwrap_or_default();
        let why = self.description.unwrap_or_default();
        Failed::Refused(format!("{what}: {why} ({code})"))
    }
}

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    first_seq: u64,
}

#[derive(Debug, Deserialize)]
struct StreamState {
    first_seq: u64,
    last_seq: u64,
}

/// Why the engine can't do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failed {
    /// It didn't answer, or can't at this time.
    Away,
    /// It says why not. That may pass: the servers of a cluster don't start all at once.
    Refused(String),
    /// It never will, as it is.
    Unfit(String),
}

/// The engine's API for one log.
#[derive(Clone)]
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) subjects: Subjects,
    pub(super) log: LogSettings,
}

impl Api {
    async fn ask(&self, subject: String, request: Option<Value>, wait: Duration) -> Result<Answer, Failed> {
        let payload = request.map_or_else(Bytes::new, |request| request.to_string().into());
        let request = async_nats::Request::new().payload(payload).timeout(Some(wait));
        match self.client.send_request(subject, request).await {
            Ok(message) => serde_json::from_slice(&message.payload).map_err(|_| Failed::Away),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => {
                let why = "nobody answers for JetStream: the servers have none, this user has no part in it, or it is starting";
                Err(Failed::Refused(why.to_owned()))
            }
            Err(_) => Err(Failed::Away),
        }
    }

    /// Where the log begins and ends; `None`: there is none.
    pub(super) async fn bounds(&self) -> Result<Option<Bounds>, Failed> {
        let answer = self.ask(format!("$JS.API.STREAM.INFO.{}", self.subjects.stream), None, ANSWER).await?;
        bounds_of(answer)
    }

    /// Makes the log, to begin with that sequence. Somebody else may have been faster.
    pub(super) async fn create(&self, first: u64) -> Result<(), Failed> {
        let Subjects { stream, log, .. } = &self.subjects;
        let request = json!({
            "name": stream,
            "subjects": [log],
            "retention": "limits",
            "discard": "old",
            "max_bytes": self.log.bytes_max,
            "max_msgs": -1,
            "num_replicas": self.log.replicas,
            "storage": if self.log.memory { "memory" } else { "file" },
            "first_seq": first,
        });
        let answer = self.ask(format!("$JS.API.STREAM.CREATE.{stream}"), Some(request), CREATE).await?;
        match answer.error {
            None => Ok(()),
            Some(error) if error.err_code == Some(NAME_IN_USE) => Ok(()),
            Some(error) => Err(error.refused(&format!("the stream {stream} can't be made"))),
        }
    }

    /// Deletes the log, if it is still that one.
    pub(super) async fn discard(&self, log: LogIdentity) -> Result<(), Failed> {
        if self.bounds().await?.is_some_and(|bounds| bounds.log == log) {
            let stream = &self.subjects.stream;
            let answer = self.ask(format!("$JS.API.STREAM.DELETE.{stream}"), None, ANSWER).await?;
            if let Some(error) = answer.error.filter(|error| error.err_code != Some(NO_SUCH_STREAM)) {
                return Err(error.refused(&format!("the stream {stream} can't be deleted")));
            }
        }
        Ok(())
    }

    /// Reads from that sequence on, until there is a gap, or nothing comes any more. Each message goes to `each`, in order;
    /// false from it ends the reading.
    pub(super) async fn read<F: Future<Output = bool>>(
        &self,
        from: u64,
        each: impl FnMut(Read) -> F,
    ) -> Result<(), Failed> {
        let inbox = self.client.new_inbox();
        let mut messages = self.client.subscribe(inbox.clone()).await.map_err(|_| Failed::Away)?;
        let stream = &self.subjects.stream;
        let request = json!({
            "stream_name": stream,
            "config": {
                "deliver_subject": inbox,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": from,
                "ack_policy": "none",
                "max_deliver": 1,
                "flow_control": true,
                "idle_heartbeat": IDLE_HEARTBEAT.as_nanos() as u64,
                "mem_storage": true,
                "num_replicas": 1,
                "inactive_threshold": 5_000_000_000_u64,
            }
        });
        let made = self.ask(format!("$JS.API.CONSUMER.CREATE.{stream}"), Some(request), ANSWER).await?;
        let name = match made {
            Answer { error: None, name: Some(name), .. } => name,
            // It has gone since it was asked for.
            Answer { error: Some(error), .. } if error.err_code == Some(NO_SUCH_STREAM) => return Ok(()),
            Answer { error: Some(error), .. } => {
                return Err(error.refused(&format!("the stream {stream} can't be read")));
            }
            Answer { .. } => return Err(Failed::Away),
        };
        self.read_messages(&mut messages, from, each).await;
        let subject = format!("$JS.API.CONSUMER.DELETE.{stream}.{name}");
        // Else the engine ends it by itself in a while.
        _ = self.ask(subject, None, ANSWER).await;
        Ok(())
    }

    async fn read_messages<F: Future<Output = bool>>(
        &self,
        messages: &mut Subscriber,
        from: u64,
        mut each: impl FnMut(Read) -> F,
    ) {
        let mut next = from;
        while let Ok(Some(message)) = timeout(SILENCE, messages.next()).await {
            if message.status.is_some() {
                if !self.obey(&message, next).await {
                    return;
                }
                continue;
            }
            let Some((sequence, at)) = message.reply.as_deref().and_then(place_of) else { return };
            // The first may come later than asked for: who asked sees that.
            if sequence != next && next != from {
                return;
            }
            next = sequence + 1;
            if !each(Read { sequence, at, bytes: message.payload }).await {
                return;
            }
        }
    }

    /// A word of the consumer itself: asks for an answer, or says what it has sent. False where that isn't what was read.
    async fn obey(&self, message: &NatsMessage, next: u64) -> bool {
        let header = |name: &str| message.headers.as_ref()?.get(name).map(|value| value.as_str().to_owned());
        // A request of flow control, or the same in a heartbeat.
        let asks = message.reply.as_ref().map(|reply| reply.to_string());
        if let Some(subject) = asks.or_else(|| header("Nats-Consumer-Stalled")) {
            _ = self.client.publish(subject, Bytes::new()).await;
        }
        let sent = header("Nats-Last-Stream").and_then(|last| last.parse::<u64>().ok());
        sent.is_none_or(|sent| sent < next)
    }
}

/// What the engine tells of the log; `None`: there is none.
fn bounds_of(answer: Answer) -> Result<Option<Bounds>, Failed> {
    if let Some(error) = answer.error {
        let is_missing = error.err_code == Some(NO_SUCH_STREAM);
        return if is_missing { Ok(None) } else { Err(error.refused("the stream can't be asked for")) };
    }
    let (Some(created), Some(config), Some(state)) = (answer.created, answer.config, answer.state) else {
        return Err(Failed::Away);
    };
    if config.first_seq == 0 {
        let why = "the stream has no first_seq: the server is older than 2.10, or somebody else made the stream";
        return Err(Failed::Unfit(why.to_owned()));
    }
    let born = humantime::parse_rfc3339(&created).map_or(Millis(0), Millis::from);
    Ok(Some(Bounds {
        log: LogIdentity { id: fnv(FNV_SEED, created.as_bytes()), born },
        made_from: config.first_seq,
        first: state.first_seq.max(config.first_seq),
        last: state.last_seq.max(config.first_seq - 1),
    }))
}

/// A message of the log.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) sequence: u64,
    pub(super) at: Millis,
    pub(super) bytes: Bytes,
}

/// The sequence and time of a message, from its reply subject: `$JS.ACK.[domain.account.]stream.consumer.delivered.
/// sequence.consumer-sequence.time-in-ns.pending[.token]` (NATS ADR-15).
fn place_of(reply: &str) -> Option<(u64, Millis)> {
    let tokens: Vec<_> = reply.split('.').collect();
    let at = match tokens.len() {
        9 => 5,
        11.. => 7,
        _ => return None,
    };
    let sequence = tokens.get(at)?.parse().ok()?;
    let nanos: u64 = tokens.get(at + 2)?.parse().ok()?;
    Some((sequence, Millis(nanos / 1_000_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answer: Value) -> Result<Option<Bounds>, Failed> {
        bounds_of(serde_json::from_value(answer).unwrap())
    }

    #[test]
    fn a_server_that_does_not_tell_where_the_log_was_made_to_begin_is_unfit() {
        let state = json!({"first_seq": 7, "last_seq": 9});
        let answer = |config: Value| json!({"created": "2026-01-02T03:04:05Z", "config": config, "state": state});
        // 2.9 takes no notice of first_seq.
        for old in [json!({}), json!({"first_seq": 0})] {
            let Err(Failed::Unfit(why)) = told(answer(old.clone())) else { panic!("{old}") };
            assert!(why.contains("first_seq") && why.contains("2.10"), "{why}");
        }
        let bounds = told(answer(json!({"first_seq": 5}))).unwrap().expect("there is a log");
        assert_eq!((bounds.made_from, bounds.first, bounds.last), (5, 7, 9));
        // Whatever else it says, it may say something else later.
        assert_eq!(told(json!({"error": {"err_code": 10_059}})), Ok(None));
        let why = "JetStream system temporarily unavailable";
        let refused = told(json!({"error": {"err_code": 10_008, "description": why}}));
        assert_eq!(refused, Err(Failed::Refused(format!("the stream can't be asked for: {why} (10008)"))));
        assert_eq!(told(json!({})), Err(Failed::Away));
    }

    #[test]
    fn the_place_of_a_message_is_read_from_its_reply_subject() {
        let at = Millis(1_700_000_000_123);
        assert_eq!(place_of("$JS.ACK.plex_a_presence.c1.1.77.5.1700000000123456789.0"), Some((77, at)));
        assert_eq!(place_of("$JS.ACK._.hash.plex_a_presence.c1.1.77.5.1700000000123456789.0"), Some((77, at)));
        assert_eq!(place_of("$JS.ACK._.hash.plex_a_presence.c1.1.77.5.1700000000123456789.0.tok"), Some((77, at)));
        for bad in ["", "$JS.ACK.a.b", "$JS.ACK.s.c.1.x.5.1.0", "$JS.FC.a.b"] {
            assert_eq!(place_of(bad), None, "{bad}");
        }
    }
}
