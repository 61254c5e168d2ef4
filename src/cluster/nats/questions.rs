//! What nodes ask each other, in bytes. Little-endian, as the log's messages.
//!
//! ```text
//! question  version u8 = 1, kind u8, …
//!   1 pushes      per push: id u64, many u64 (0: alone), ack_timeout u32 (ms, 0: none), uid u8+text, uri u32+text, body u32+text
//!   2 holds       uid u8+text, …
//!   3 broadcast   uri u32+text, body u32+text
//!   4 disconnect  uid u8+text, reason u32+text
//!   5 sessions    listing u64, uid u8+text (empty: all)
//!   6 more        listing u64
//! answer    version u8 = 1, then
//!   1 pushes      per push: outcome
//!   2 holds       per uid: 0 or 1
//!   3 broadcast   sent u64, queue_full u64
//!   4 disconnect  connections u32
//!   5, 6          1 if there is more, else 0; sessions
//! outcome   status u8 (101: not here, 102: sent, and it waits for the device), seq u64, connections u32, reply u32+text
//! later     version u8 = 1, id u64, outcome: what became of a push that waited
//! session   uid u8+text, number u32, epoch u64, node u8+text, remote u8+text, connected_at u64, last_seen u64,
//!           queued u64, sent u64, dropped u64, dialect u8
//! ```

use std::{sync::Arc, time::Duration};

use crate::{
    cluster::{
        bus::{BroadcastTally, ForwardedPush},
        wire::{Reader, Unreadable, Write},
    },
    model::{ConnectionNumber, Millis, NodeName, PushOutcome, PushStatus, Session, UID_BYTES_MAX, Uid},
};

const VERSION: u8 = 1;

/// A question that came.
#[derive(Debug, Clone)]
pub(super) enum Question {
    Pushes(Vec<(u64, ForwardedPush)>),
    Holds(Vec<Uid>),
    Broadcast { uri: Arc<str>, body: Arc<str> },
    Disconnect { uid: Uid, reason: Arc<str> },
    Sessions { listing: u64, uid: Option<Uid> },
    More { listing: u64 },
}

/// What a node says of a push at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    Outcome(PushOutcome),
    NotHere,
    /// It was sent, as this says; the outcome comes later.
    Waits(PushOutcome),
}

const NOT_HERE: u8 = 101;
const WAITS: u8 = 102;

const STATUSES: [(PushStatus, u8); 9] = [
    (PushStatus::Sent, 1),
    (PushStatus::Offline, 2),
    (PushStatus::QueueFull, 3),
    (PushStatus::Acked, 4),
    (PushStatus::Nacked, 5),
    (PushStatus::AckTimeout, 6),
    (PushStatus::ConnectionLost, 7),
    (PushStatus::Unreachable, 9),
    (PushStatus::Unknown, 10),
];

fn long(out: &mut Vec<u8>, text: &str) {
    out.u32(text.len() as u32);
    out.extend(text.as_bytes());
}

fn read_long(reader: &mut Reader<'_>) -> Result<Arc<str>, Unreadable> {
    let length = reader.u32()?;
    Ok(reader.text(length as usize)?.into())
}

/// What stands around the texts of a push in a question: the question's head, the fields, and the texts' lengths.
const PUSH_HEAD: usize = 2 + 8 + 8 + 4 + 1 + 4 + 4;

/// How many bytes a question with a push alone takes at the most, whose frame has so many.
pub(super) fn bytes_max(frame: usize) -> usize {
    PUSH_HEAD + UID_BYTES_MAX + frame
}

/// How many bytes a push takes in a question, at the most.
pub(super) fn bytes_of(push: &ForwardedPush) -> usize {
    PUSH_HEAD + push.uid.as_str().len() + push.uri.len() + push.body.len()
}

pub(super) fn pushes<'a>(items: impl Iterator<Item = (u64, &'a ForwardedPush)>) -> Vec<u8> {
    let mut out = vec![VERSION, 1];
    for (id, push) in items {
        out.u64(id);
        out.u64(push.many);
        let ack = push.ack_timeout.map_or(0, |ack| u32::try_from(ack.as_millis()).unwrap_or(u32::MAX).max(1));
        out.u32(ack);
        out.short(push.uid.as_str());
        long(&mut out, &push.uri);
        long(&mut out, &push.body);
    }
    out
}

pub(super) fn holds(uids: &[Uid]) -> Vec<u8> {
    let mut out = vec![VERSION, 2];
    uids.iter().for_each(|uid| out.short(uid.as_str()));
    out
}

pub(super) fn broadcast(uri: &str, body: &str) -> Vec<u8> {
    let mut out = vec![VERSION, 3];
    long(&mut out, uri);
    long(&mut out, body);
    out
}

pub(super) fn disconnect(uid: &Uid, reason: &str) -> Vec<u8> {
    let mut out = vec![VERSION, 4];
    out.short(uid.as_str());
    long(&mut out, reason);
    out
}

pub(super) fn sessions(listing: u64, uid: Option<&Uid>) -> Vec<u8> {
    let mut out = vec![VERSION, 5];
    out.u64(listing);
    out.short(uid.map_or("", Uid::as_str));
    out
}

pub(super) fn more(listing: u64) -> Vec<u8> {
    let mut out = vec![VERSION, 6];
    out.u64(listing);
    out
}

pub(super) fn read_question(bytes: &[u8]) -> Result<Question, Unreadable> {
    let mut reader = versioned(bytes)?;
    let reader = &mut reader;
    Ok(match reader.u8()? {
        1 => {
            let mut pushes = Vec::new();
            while !reader.is_empty() {
                let (id, many, ack) = (reader.u64()?, reader.u64()?, reader.u32()?);
                let ack_timeout = (ack != 0).then(|| Duration::from_millis(ack.into()));
                let uid = reader.uid()?;
                let (uri, body) = (read_long(reader)?, read_long(reader)?);
                pushes.push((id, ForwardedPush { uid, uri, body, ack_timeout, many, deadline: None }));
            }
            Question::Pushes(pushes)
        }
        2 => {
            let mut uids = Vec::new();
            while !reader.is_empty() {
                uids.push(reader.uid()?);
            }
            Question::Holds(uids)
        }
        3 => Question::Broadcast { uri: read_long(reader)?, body: read_long(reader)? },
        4 => Question::Disconnect { uid: reader.uid()?, reason: read_long(reader)? },
        5 => {
            let listing = reader.u64()?;
            let uid = reader.short()?;
            let uid = if uid.is_empty() { None } else { Some(Uid::new(uid).map_err(|_| Unreadable)?) };
            Question::Sessions { listing, uid }
        }
        6 => Question::More { listing: reader.u64()? },
        _ => return Err(Unreadable),
    })
}

fn versioned(bytes: &[u8]) -> Result<Reader<'_>, Unreadable> {
    let mut reader = Reader(bytes);
    if reader.u8()? == VERSION { Ok(reader) } else { Err(Unreadable) }
}

fn write_outcome(out: &mut Vec<u8>, said: &Said) {
    let (code, seq, connections, reply) = match said {
        Said::Outcome(PushOutcome { status, seq, connections, reply }) => {
            let code = STATUSES.iter().find(|(known, _)| known == status).expect("every status has one");
            (code.1, *seq, *connections, &**reply)
        }
        Said::NotHere => (NOT_HERE, 0, 0, ""),
        Said::Waits(sent) => (WAITS, sent.seq, sent.connections, ""),
    };
    out.u8(code);
    out.u64(seq as u64);
    out.u32(connections);
    long(out, reply);
}

fn read_outcome(reader: &mut Reader<'_>) -> Result<Said, Unreadable> {
    let (code, seq, connections) = (reader.u8()?, reader.u64()? as i64, reader.u32()?);
    let reply = read_long(reader)?.to_string();
    Ok(match code {
        NOT_HERE => Said::NotHere,
        WAITS => Said::Waits(PushOutcome { status: PushStatus::Sent, seq, connections, reply }),
        code => {
            let known = STATUSES.iter().find(|(_, known)| *known == code);
            // One that came later: nobody here knows.
            let status = known.map_or(PushStatus::Unknown, |(status, _)| *status);
            Said::Outcome(PushOutcome { status, seq, connections, reply })
        }
    })
}

pub(super) fn outcomes(outcomes: &[Said]) -> Vec<u8> {
    let mut out = vec![VERSION];
    outcomes.iter().for_each(|outcome| write_outcome(&mut out, outcome));
    out
}

pub(super) fn read_outcomes(bytes: &[u8]) -> Result<Vec<Said>, Unreadable> {
    let mut reader = versioned(bytes)?;
    let mut outcomes = Vec::new();
    while !reader.is_empty() {
        outcomes.push(read_outcome(&mut reader)?);
    }
    Ok(outcomes)
}

pub(super) fn later(id: u64, outcome: PushOutcome) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.u64(id);
    write_outcome(&mut out, &Said::Outcome(outcome));
    out
}

pub(super) fn read_later(bytes: &[u8]) -> Result<(u64, PushOutcome), Unreadable> {
    let mut reader = versioned(bytes)?;
    let id = reader.u64()?;
    match read_outcome(&mut reader)? {
        Said::Outcome(outcome) => Ok((id, outcome)),
        _ => Err(Unreadable),
    }
}

pub(super) fn held(holds: &[bool]) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.extend(holds.iter().map(|holds| u8::from(*holds)));
    out
}

pub(super) fn read_held(bytes: &[u8]) -> Result<Vec<bool>, Unreadable> {
    Ok(versioned(bytes)?.0.iter().map(|holds| *holds != 0).collect())
}

pub(super) fn tally(tally: BroadcastTally) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.u64(tally.sent);
    out.u64(tally.queue_full);
    out
}

pub(super) fn read_tally(bytes: &[u8]) -> Result<BroadcastTally, Unreadable> {
    let mut reader = versioned(bytes)?;
    Ok(BroadcastTally { sent: reader.u64()?, queue_full: reader.u64()? })
}

pub(super) fn count(connections: u32) -> Vec<u8> {
    let mut out = vec![VERSION];
    out.u32(connections);
    out
}

pub(super) fn read_count(bytes: &[u8]) -> Result<u32, Unreadable> {
    versioned(bytes)?.u32()
}

pub(super) fn page(sessions: &[Session], more: bool) -> Vec<u8> {
    let mut out = vec![VERSION, u8::from(more)];
    for session in sessions {
        out.short(session.uid.as_str());
        out.u32(session.number.0);
        out.u64(session.epoch);
        out.short(session.node.as_str());
        out.short(&session.remote_address);
        out.u64(session.connected_at.0);
        out.u64(session.last_seen.0);
        out.u64(session.queued_bytes);
        out.u64(session.pushes_sent);
        out.u64(session.pushes_dropped);
        out.u8(session.dialect);
    }
    out
}

pub(super) fn read_page(bytes: &[u8]) -> Result<(Vec<Session>, bool), Unreadable> {
    let mut reader = versioned(bytes)?;
    let more = reader.u8()? != 0;
    let mut sessions = Vec::new();
    while !reader.is_empty() {
        sessions.push(Session {
            uid: reader.uid()?,
            number: ConnectionNumber(reader.u32()?),
            epoch: reader.u64()?,
            node: NodeName::new(reader.short()?),
            remote_address: reader.short()?.to_owned(),
            connected_at: Millis(reader.u64()?),
            last_seen: Millis(reader.u64()?),
            queued_bytes: reader.u64()?,
            pushes_sent: reader.u64()?,
            pushes_dropped: reader.u64()?,
            dialect: reader.u8()?,
        });
    }
    Ok((sessions, more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_and_answered_comes_back_as_it_was() {
        let uid = Uid::new("ä").unwrap();
        let push = |ack_timeout| ForwardedPush {
            uid: uid.clone(),
            uri: "/x".into(),
            body: "{}".into(),
            ack_timeout,
            many: 3,
            deadline: None,
        };
        let asked = [push(None), push(Some(Duration::from_millis(7)))];
        let Ok(Question::Pushes(read)) = read_question(&pushes((5..).zip(&asked))) else { panic!("pushes") };
        assert_eq!(
            read.iter().map(|(id, push)| (*id, push.ack_timeout)).collect::<Vec<_>>(),
            [(5, None), (6, Some(Duration::from_millis(7)))]
        );
        let sent = PushOutcome { status: PushStatus::Acked, seq: 9, connections: 2, reply: "ok".into() };
        let waits = PushOutcome { status: PushStatus::Sent, seq: 7, connections: 3, reply: String::new() };
        let told = [Said::Outcome(sent.clone()), Said::NotHere, Said::Waits(waits)];
        assert_eq!(read_outcomes(&outcomes(&told)), Ok(told.to_vec()));
        assert_eq!(read_later(&later(3, sent.clone())), Ok((3, sent)));
        assert_eq!(read_held(&held(&[true, false])), Ok(vec![true, false]));
        assert_eq!(read_count(&count(7)), Ok(7));
        let summed = BroadcastTally { sent: 1, queue_full: 2 };
        assert_eq!(read_tally(&tally(summed)), Ok(summed));
    }

    #[test]
    fn no_text_is_too_long_to_come_whole() {
        let (uid, text) = (Uid::new(&"a".repeat(UID_BYTES_MAX)).unwrap(), "/x".repeat(50_000));
        let (uri, body): (Arc<str>, Arc<str>) = (text.as_str().into(), text.as_str().into());
        let push = ForwardedPush { uid: uid.clone(), uri, body, ack_timeout: None, many: 0, deadline: None };
        let bytes = pushes([(1, &push)].into_iter());
        let Ok(Question::Pushes(read)) = read_question(&bytes) else { panic!("pushes") };
        assert_eq!((&*read[0].1.uri, &*read[0].1.body), (&*text, &*text));
        assert!(bytes.len() <= 2 + bytes_of(&push), "{} bytes", bytes.len());
        let Ok(Question::Broadcast { uri, .. }) = read_question(&broadcast(&text, "")) else { panic!("broadcast") };
        let Ok(Question::Disconnect { reason, .. }) = read_question(&disconnect(&uid, &text)) else { panic!("kick") };
        assert!(*uri == *text && *reason == *text);
    }

    #[test]
    fn what_is_cut_off_or_of_another_version_is_unreadable() {
        let uid = Uid::new("a").unwrap();
        let push = ForwardedPush {
            uid: uid.clone(),
            uri: "/x".into(),
            body: "{}".into(),
            ack_timeout: None,
            many: 0,
            deadline: None,
        };
        for whole in
            [pushes([(1, &push)].into_iter()), disconnect(&uid, "why"), broadcast("/x", "b"), sessions(1, None)]
        {
            assert!(read_question(&whole).is_ok());
            // Without any of its content a list is an empty one.
            for end in (0..2).chain(3..whole.len()) {
                assert!(read_question(&whole[..end]).is_err(), "{whole:?} up to {end}");
            }
            let other = [&[9], &whole[1..]].concat();
            assert!(read_question(&other).is_err());
        }
    }
}
