//! The bytes of the log: messages, records, and the parts of a snapshot. Little-endian; a text is its length and its
//! bytes.
//!
//! ```text
//! message  version u8 = 1, kind u8, …
//!   1 join    start u64 (µs since 1970), attempt u32, speaks u8, connections_per_uid u16, name u8+text, version u8+text
//!   2 batch   incarnation u64, number u64, sent u64 (µs, the sender's clock), then records to the end
//!   3 reset   nonce u64
//!   4 hello   nonce u64
//! record   kind u8, length u16 of what follows, …
//!   1 claim   n u32, replaces u32 (0: none), accepted i64 (ms, the log's clock), uid u8+text
//!   2 release n u32, reason u8, uid u8+text
//!   3 dead    incarnation u64, next u64
//!   4 card    flags u8 (1 ready, 2 draining), connections u32, capacity u32, lag u32 (ms), addresses u8 ×
//!             (transport u8 (0 tcp, 1 tls), u8+text)
//! part     version u8 = 1, part u8, sequence u64, time u64, then in part 0: connections_per_uid u16, nodes u16 ×
//!          (incarnation u64, start u64, attempt u32, speaks u8, next u64, since u64, heard u64, name u8+text,
//!          version u8+text, card u16+record's bytes, 0: none); then entries to the end:
//!          uid u8+text, since u64 (ms), connections u16 (32,768: another epoch than the newest's follows, u64) ×
//!          (epoch u64, incarnation u64, n u32, accepted u32 (s))
//! ```
//!
//! A message of unknown version or kind is skipped, a record of unknown kind or content keeps its place, and what stands
//! behind the known fields is ignored: new fields are appended. All nodes read alike.

use std::{borrow::Cow, sync::Arc};

use crate::model::{ConnectionNumber, EndReason, Millis, NodeName, Uid};

use super::{
    directory::{Connection, Entry, part_of},
    fold::{Incarnation, Join, Live, Message, RECORDS_MAX, Record, State},
    hosts::Card,
};

const VERSION: u8 = 1;

/// The most bytes of records in one batch: a message stays well below what the engine takes (1 MiB).
pub(crate) const RECORD_BYTES_MAX: usize = 60 * 1024;

/// What stands before a batch's records.
const BATCH_HEAD: usize = 2 + 3 * 8;

/// A message that can't be read. It is counted, and changes nothing, on any node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

/// Reads little-endian fields from the front.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Unreadable> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(Unreadable)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        Ok(self.bytes(N)?.try_into().expect("as many as were asked for"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Unreadable> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Unreadable> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Unreadable> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Unreadable> {
        self.array().map(u64::from_le_bytes)
    }

    /// A text of at most 255 bytes.
    pub(crate) fn short(&mut self) -> Result<&'a str, Unreadable> {
        let length = self.u8()?;
        self.text(usize::from(length))
    }

    pub(crate) fn text(&mut self, length: usize) -> Result<&'a str, Unreadable> {
        str::from_utf8(self.bytes(length)?).map_err(|_| Unreadable)
    }

    pub(crate) fn uid(&mut self) -> Result<Uid, Unreadable> {
        Uid::new(self.short()?).map_err(|_| Unreadable)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Appends little-endian fields.
pub(crate) trait Write {
    fn u8(&mut self, value: u8);
    fn u16(&mut self, value: u16);
    fn u32(&mut self, value: u32);
    fn u64(&mut self, value: u64);
    /// At most its first 255 bytes, cut at a character.
    fn short(&mut self, text: &str);
}

impl Write for Vec<u8> {
    fn u8(&mut self, value: u8) {
        self.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.extend(value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.extend(value.to_le_bytes());
    }

    fn short(&mut self, text: &str) {
        let text = &text[..text.floor_char_boundary(u8::MAX.into())];
        self.push(text.len() as u8);
        self.extend(text.as_bytes());
    }
}

/// The bytes of a message.
pub(crate) fn encode(message: &Message<'_>) -> Vec<u8> {
    let mut out = vec![VERSION];
    match message {
        Message::Join(join) => {
            out.u8(1);
            out.u64(join.start);
            out.u32(join.attempt);
            out.u8(join.speaks);
            out.u16(join.connections_per_uid);
            out.short(join.name.as_str());
            out.short(&join.version);
        }
        Message::Batch { incarnation, number, sent, records } => {
            out.u8(2);
            out.u64(incarnation.0);
            out.u64(*number);
            out.u64(*sent);
            records.iter().for_each(|record| encode_record(record, &mut out));
        }
        Message::Reset { nonce } => {
            out.u8(3);
            out.u64(*nonce);
        }
        Message::Hello { nonce } => {
            out.u8(4);
            out.u64(*nonce);
        }
    }
    out
}

/// A batch whose records are encoded already, in `records`.
pub(crate) fn encode_batch(incarnation: Incarnation, number: u64, sent: u64, records: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(BATCH_HEAD + records.len());
    out.extend([VERSION, 2]);
    out.u64(incarnation.0);
    out.u64(number);
    out.u64(sent);
    out.extend(records);
    out
}

/// Appends the bytes of a record; at most 2 KiB, but for a card with many addresses.
pub(crate) fn encode_record(record: &Record, out: &mut Vec<u8>) {
    let begin = out.len();
    out.extend([0; 3]);
    let kind = match record {
        Record::Claim { uid, number, replaces, accepted } => {
            out.u32(number.0);
            out.u32(replaces.map_or(0, |replaced| replaced.0));
            out.u64(accepted.0);
            out.short(uid.as_str());
            1
        }
        Record::Release { uid, number, reason } => {
            out.u32(number.0);
            out.u8(code_of(*reason));
            out.short(uid.as_str());
            2
        }
        Record::Dead { incarnation, next } => {
            out.u64(incarnation.0);
            out.u64(*next);
            3
        }
        Record::Card(card) => {
            encode_card(card, out);
            4
        }
        Record::Unknown => 0,
    };
    out[begin] = kind;
    let length = u16::try_from(out.len() - begin - 3).expect("a card names at most 64 addresses");
    out[begin + 1..begin + 3].copy_from_slice(&length.to_le_bytes());
}

/// How many addresses a card tells: more are left out.
const ADDRESSES_MAX: usize = 64;

fn encode_card(card: &Card, out: &mut Vec<u8>) {
    out.u8(u8::from(card.ready) | u8::from(card.draining) << 1);
    out.u32(card.connections);
    out.u32(card.capacity);
    out.u32(card.lag_ms);
    let plain = card.addresses.iter().map(|address| (0, address));
    let tls = card.addresses_tls.iter().map(|address| (1, address));
    let addresses: Vec<_> = plain.chain(tls).take(ADDRESSES_MAX).collect();
    out.u8(addresses.len() as u8);
    for (transport, address) in addresses {
        out.u8(transport);
        out.short(address);
    }
}

/// Reads a message.
///
/// # Errors
///
/// [`Unreadable`] for another version or kind, and where it ends too soon.
pub(crate) fn decode(bytes: &[u8]) -> Result<Message<'static>, Unreadable> {
    let mut reader = Reader(bytes);
    if reader.u8()? != VERSION {
        return Err(Unreadable);
    }
    Ok(match reader.u8()? {
        1 => Message::Join(Join {
            start: reader.u64()?,
            attempt: reader.u32()?,
            speaks: reader.u8()?,
            connections_per_uid: reader.u16()?,
            name: NodeName::new(reader.short()?),
            version: reader.short()?.into(),
        }),
        2 => Message::Batch {
            incarnation: Incarnation(reader.u64()?),
            number: reader.u64()?,
            sent: reader.u64()?,
            records: Cow::Owned(decode_records(reader)?),
        },
        3 => Message::Reset { nonce: reader.u64()? },
        4 => Message::Hello { nonce: reader.u64()? },
        _ => return Err(Unreadable),
    })
}

fn decode_records(mut reader: Reader<'_>) -> Result<Vec<Record>, Unreadable> {
    let mut records = Vec::new();
    while !reader.is_empty() {
        let kind = reader.u8()?;
        let length = reader.u16()?;
        let content = Reader(reader.bytes(length.into())?);
        records.push(decode_record(kind, content).unwrap_or(Record::Unknown));
        if records.len() > RECORDS_MAX {
            return Err(Unreadable);
        }
    }
    Ok(records)
}

fn decode_record(kind: u8, mut reader: Reader<'_>) -> Result<Record, Unreadable> {
    Ok(match kind {
        1 => {
            let (number, replaces, accepted) = (reader.u32()?, reader.u32()?, reader.u64()?);
            let replaces = (replaces != 0).then_some(ConnectionNumber(replaces));
            // A time before 1970 is as old as can be.
            let accepted = Millis(if accepted > i64::MAX as u64 { 0 } else { accepted });
            Record::Claim { uid: reader.uid()?, number: ConnectionNumber(number), replaces, accepted }
        }
        2 => {
            let (number, reason) = (reader.u32()?, reader.u8()?);
            let reason = EndReason::ALL.into_iter().find(|known| code_of(*known) == reason);
            // A reason that came later: it has simply gone.
            let reason = reason.unwrap_or(EndReason::Closed);
            Record::Release { uid: reader.uid()?, number: ConnectionNumber(number), reason }
        }
        3 => Record::Dead { incarnation: Incarnation(reader.u64()?), next: reader.u64()? },
        4 => Record::Card(decode_card(&mut reader)?),
        _ => return Err(Unreadable),
    })
}

fn decode_card(reader: &mut Reader<'_>) -> Result<Card, Unreadable> {
    let flags = reader.u8()?;
    let mut card = Card {
        ready: flags & 1 != 0,
        draining: flags & 2 != 0,
        connections: reader.u32()?,
        capacity: reader.u32()?,
        lag_ms: reader.u32()?,
        ..Card::default()
    };
    for _ in 0..reader.u8()? {
        let transport = reader.u8()?;
        let address = reader.short()?.to_owned();
        match transport {
            0 => card.addresses.push(address),
            1 => card.addresses_tls.push(address),
            _ => {}
        }
    }
    Ok(card)
}

fn code_of(reason: EndReason) -> u8 {
    match reason {
        EndReason::Closed => 1,
        EndReason::Timeout => 2,
        EndReason::Disconnected => 3,
        EndReason::Draining => 4,
        EndReason::Expired => 5,
        EndReason::Slow => 6,
        EndReason::Protocol => 8,
        EndReason::Replaced => 9,
    }
}

/// Where a snapshot's part is exact, and what it begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartHead {
    pub(crate) part: u8,
    /// Folded up to this message …
    pub(crate) sequence: u64,
    /// … which the log took then.
    pub(crate) at: Millis,
}

const OTHER_EPOCH: u16 = 1 << 15;

/// The bytes of one part of the directory, as it is now; of part 0 also the live nodes.
pub(crate) fn encode_part(state: &State, head: PartHead) -> Vec<u8> {
    let mut out = vec![VERSION, head.part];
    out.u64(head.sequence);
    out.u64(head.at.0);
    if head.part == 0 {
        out.u16(state.connections_per_uid());
        out.u16(state.live().count() as u16);
        state.live().for_each(|live| encode_live(live, &mut out));
    }
    for entry in state.directory.part(head.part.into()) {
        encode_entry(state, entry, &mut out);
    }
    out
}

fn encode_live(live: &Live, out: &mut Vec<u8>) {
    out.u64(live.incarnation.0);
    out.u64(live.start);
    out.u32(live.attempt);
    out.u8(live.speaks);
    out.u64(live.next);
    out.u64(live.since.0);
    out.u64(live.heard.0);
    out.short(live.name.as_str());
    out.short(&live.version);
    let mut card = Vec::new();
    if let Some(known) = &live.card {
        encode_card(known, &mut card);
    }
    out.u16(u16::try_from(card.len()).expect("a card names at most 64 addresses"));
    out.extend(card);
}

fn encode_entry(state: &State, entry: &Entry, out: &mut Vec<u8>) {
    out.short(entry.uid().as_str());
    out.u64(entry.since().0);
    let connections = entry.connections();
    let other = entry.epoch() != entry.newest().epoch;
    out.u16(connections.len() as u16 | if other { OTHER_EPOCH } else { 0 });
    if other {
        out.u64(entry.epoch());
    }
    for connection in connections {
        out.u64(connection.epoch);
        out.u64(state.node(connection.node).incarnation.0);
        out.u32(connection.number.0);
        out.u32(connection.accepted);
    }
}

/// Reads what a part begins with.
///
/// # Errors
///
/// [`Unreadable`] where it isn't one.
pub(crate) fn part_head(bytes: &[u8]) -> Result<PartHead, Unreadable> {
    read_head(&mut Reader(bytes))
}

fn read_head(reader: &mut Reader<'_>) -> Result<PartHead, Unreadable> {
    if reader.u8()? != VERSION {
        return Err(Unreadable);
    }
    Ok(PartHead { part: reader.u8()?, sequence: reader.u64()?, at: Millis(reader.u64()?) })
}

/// Reads how many connections a uid may have and the live nodes, from part 0.
///
/// # Errors
///
/// [`Unreadable`] where that isn't it.
pub(crate) fn decode_live(part: &[u8]) -> Result<State, Unreadable> {
    let mut reader = Reader(part);
    if read_head(&mut reader)?.part != 0 {
        return Err(Unreadable);
    }
    let (connections_per_uid, live) = read_live(&mut reader)?;
    Ok(State::of_snapshot(connections_per_uid, live))
}

fn read_live(reader: &mut Reader<'_>) -> Result<(u16, Vec<Live>), Unreadable> {
    let connections_per_uid = reader.u16()?;
    let mut live = Vec::new();
    for _ in 0..reader.u16()? {
        let (incarnation, start, attempt) = (Incarnation(reader.u64()?), reader.u64()?, reader.u32()?);
        let (speaks, next) = (reader.u8()?, reader.u64()?);
        let (since, heard) = (Millis(reader.u64()?), Millis(reader.u64()?));
        let (name, version) = (NodeName::new(reader.short()?), Arc::from(reader.short()?));
        let length = reader.u16()?;
        let mut card = Reader(reader.bytes(length.into())?);
        let card = if length == 0 { None } else { Some(decode_card(&mut card)?) };
        live.push(Live { incarnation, name, card, since, heard, version, start, attempt, speaks, next });
    }
    Ok((connections_per_uid, live))
}

/// Puts a part into the directory of `state`, which is folded up to that part's sequence.
///
/// # Errors
///
/// [`Unreadable`] where it names a node that isn't live or a uid of another part, or ends too soon; the state is useless
/// then.
pub(crate) fn decode_part(part: &[u8], state: &mut State) -> Result<(), Unreadable> {
    let mut reader = Reader(part);
    let head = read_head(&mut reader)?;
    if head.part == 0 {
        read_live(&mut reader)?;
    }
    while !reader.is_empty() {
        let (uid, since, count) = (reader.uid()?, Millis(reader.u64()?), reader.u16()?);
        let epoch = if count & OTHER_EPOCH != 0 { Some(reader.u64()?) } else { None };
        let mut connections = Vec::with_capacity(1);
        for _ in 0..count & !OTHER_EPOCH {
            let (epoch, incarnation) = (reader.u64()?, Incarnation(reader.u64()?));
            let (number, accepted) = (ConnectionNumber(reader.u32()?), reader.u32()?);
            let node = state.index_of(incarnation).ok_or(Unreadable)?;
            connections.push(Connection::new(epoch, node, number, Millis(u64::from(accepted) * 1_000)));
        }
        let newest = connections.last().ok_or(Unreadable)?.epoch;
        if part_of(uid.as_str()) != usize::from(head.part) || state.directory.get(uid.as_str()).is_some() {
            return Err(Unreadable);
        }
        state.directory.put(uid, since, epoch.unwrap_or(newest), connections);
    }
    state.part_came(head.part.into());
    Ok(())
}
