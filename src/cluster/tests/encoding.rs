//! The bytes of the log: what is written is read, and what nobody has written does no harm.

use std::borrow::Cow;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::cluster::{
    fold::{Effects, Join, Message, RECORDS_MAX, Record, State, fold},
    wire::{
        PartHead, RECORD_BYTES_MAX, Unreadable, decode, decode_live, decode_part, encode, encode_batch, encode_part,
        encode_record, part_head,
    },
};

/// What stands before the records of a batch.
const BATCH_HEAD: usize = 26;

fn number() -> impl Strategy<Value = ConnectionNumber> {
    prop_oneof![1..u32::MAX, Just(u32::MAX)].prop_map(ConnectionNumber)
}

fn any_uid() -> impl Strategy<Value = Uid> {
    prop_oneof![4 => "(?s).{1,60}", 1 => "[a-z]{255}"].prop_filter_map("too long", |text| Uid::new(&text).ok())
}

fn any_card() -> impl Strategy<Value = Card> {
    // With both, as many as a card tells.
    let addresses = || vec("[a-z0-9.:-]{0,30}|[a-z]{255}", 0..=32);
    (any::<[bool; 2]>(), any::<[u32; 3]>(), addresses(), addresses()).prop_map(
        |([ready, draining], [connections, capacity, lag_ms], addresses, addresses_tls)| Card {
            ready,
            draining,
            connections,
            capacity,
            lag_ms,
            addresses,
            addresses_tls,
        },
    )
}

fn any_record() -> impl Strategy<Value = Record> {
    let accepted = 0..=i64::MAX as u64;
    prop_oneof![
        4 => (any_uid(), number(), proptest::option::of(number()), accepted).prop_map(
            |(uid, number, replaces, accepted)| Record::Claim { uid, number, replaces, accepted: Millis(accepted) }
        ),
        4 => (any_uid(), number(), select(&EndReason::ALL[..]))
            .prop_map(|(uid, number, reason)| Record::Release { uid, number, reason }),
        1 => any::<[u64; 2]>()
            .prop_map(|[incarnation, next]| Record::Dead { incarnation: Incarnation(incarnation), next }),
        1 => any_card().prop_map(Record::Card),
        1 => Just(Record::Unknown),
    ]
}

fn any_batch() -> impl Strategy<Value = Message<'static>> {
    (any::<[u64; 3]>(), vec(any_record(), 0..12)).prop_map(|([incarnation, number, sent], records)| Message::Batch {
        incarnation: Incarnation(incarnation),
        number,
        sent,
        records: records.into(),
    })
}

fn any_message() -> impl Strategy<Value = Message<'static>> {
    let short = || "(?s).{0,60}|[a-z]{255}";
    let join = (any::<(u64, u32, u8, u16)>(), short(), short()).prop_map(
        |((start, attempt, speaks, connections_per_uid), name, version)| {
            let (name, version) = (NodeName::new(&name), version.as_str().into());
            Message::Join(Join { name, start, attempt, speaks, connections_per_uid, version })
        },
    );
    prop_oneof![
        2 => join,
        4 => any_batch(),
        1 => any::<u64>().prop_map(|nonce| Message::Reset { nonce }),
        1 => any::<u64>().prop_map(|nonce| Message::Hello { nonce }),
    ]
}

fn records_of(message: Message<'static>) -> Vec<Record> {
    match message {
        Message::Batch { records, .. } => records.into_owned(),
        other => panic!("{other:?}"),
    }
}

fn bytes_of(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_record(record, &mut bytes);
    bytes
}

/// A record's bytes with more behind what it says today.
fn with_more(record: &Record, more: &[u8]) -> Vec<u8> {
    let mut bytes = [&bytes_of(record), more].concat();
    let length = u16::try_from(bytes.len() - 3).unwrap();
    bytes[1..3].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Reads it twice, as two nodes do, and holds what was reserved against what is there.
fn read(bytes: &[u8]) -> Result<Message<'static>, Unreadable> {
    let message = decode(bytes);
    assert_eq!(message, decode(bytes), "all nodes read alike");
    if let Ok(Message::Batch { records, .. }) = &message {
        let Cow::Owned(records) = records else { panic!("they are read from bytes") };
        assert!(records.len() <= RECORDS_MAX && records.len() * 3 <= bytes.len());
        assert!(records.capacity() <= (2 * records.len()).max(8), "{} for {}", records.capacity(), records.len());
        for record in records {
            if let Record::Card(card) = record {
                for addresses in [&card.addresses, &card.addresses_tls] {
                    assert!(addresses.capacity() <= (2 * addresses.len()).max(8));
                }
            }
        }
    }
    message
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(message in any_message()) {
        prop_assert_eq!(read(&encode(&message)), Ok(message));
    }

    #[test]
    fn a_batch_of_encoded_records_is_the_batch_of_those_records(message in any_batch()) {
        let Message::Batch { incarnation, number, sent, records } = &message else { unreachable!() };
        let records = records.iter().flat_map(bytes_of).collect::<Vec<_>>();
        prop_assert_eq!(encode_batch(*incarnation, *number, *sent, &records), encode(&message));
    }

    #[test]
    fn what_ends_too_soon_is_not_read_but_for_whole_records(
        message in any_message(),
        cuts in vec(any::<prop::sample::Index>(), 20),
    ) {
        let bytes = encode(&message);
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        if let Message::Batch { records, .. } = &message {
            // Where records end, too.
            cuts.extend(records.iter().scan(BATCH_HEAD, |end, record| {
                let begin = *end;
                *end += bytes_of(record).len();
                Some(begin)
            }));
        }
        for cut in cuts {
            match (read(&bytes[..cut]), &message) {
                (Err(Unreadable), _) => {}
                (Ok(shorter), Message::Batch { records, .. }) => {
                    let rest = records_of(shorter);
                    prop_assert_eq!(&rest[..], &records[..rest.len()]);
                    let whole: usize = rest.iter().map(|record| bytes_of(record).len()).sum();
                    prop_assert_eq!(whole, cut - BATCH_HEAD);
                }
                (Ok(read), _) => panic!("{read:?} of {cut} bytes"),
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..200), kind in 1..5_u8) {
        _ = read(&bytes);
        // Past the first look.
        _ = read(&[&[1, kind], &bytes[..]].concat());
        _ = read(&[&[1, 2][..], &[0; 24], &[kind, bytes.len() as u8, 0], &bytes[..]].concat());
        let (head, mut state) = ([&[1, 0][..], &[0; 16], &bytes[..]].concat(), State::new(1));
        _ = (part_head(&bytes), decode_live(&bytes), decode_live(&head), decode_part(&head, &mut state));
    }

    #[test]
    fn flipped_bytes_make_another_message_or_none(
        message in any_message(),
        flips in vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
    ) {
        let mut bytes = encode(&message);
        flips.iter().for_each(|(at, by)| { let at = at.index(bytes.len()); bytes[at] ^= by; });
        _ = read(&bytes);
    }

    #[test]
    fn another_version_or_kind_of_message_is_not_read(
        message in any_message(),
        version in any::<u8>().prop_filter("known", |version| *version != 1),
        kind in any::<u8>().prop_filter("known", |kind| !(1..=4).contains(kind)),
    ) {
        let bytes = encode(&message);
        prop_assert_eq!(read(&[&[version], &bytes[1..]].concat()), Err(Unreadable));
        prop_assert_eq!(read(&[&[1, kind], &bytes[2..]].concat()), Err(Unreadable));
    }

    #[test]
    fn what_stands_behind_the_known_fields_is_ignored(
        message in any_message(),
        record in any_record(),
        more in vec(any::<u8>(), 1..40),
    ) {
        let (mut bytes, mut expected) = (encode(&message), message);
        match &mut expected {
            Message::Batch { records, .. } => {
                bytes.extend(with_more(&record, &more));
                records.to_mut().push(record);
            }
            _ => bytes.extend(more),
        }
        prop_assert_eq!(read(&bytes), Ok(expected));
    }

    #[test]
    fn a_record_that_cannot_be_read_keeps_its_place_and_loses_no_other(
        records in vec(any_record(), 1..8),
        at in any::<prop::sample::Index>(),
        kind in any::<u8>().prop_filter("known", |kind| !(1..=4).contains(kind)),
        content in vec(any::<u8>(), 0..300),
        cut in any::<prop::sample::Index>(),
    ) {
        let at = at.index(records.len());
        let length = (content.len() as u16).to_le_bytes();
        let unknown = [&[kind], &length[..], &content].concat();
        // Too short for what its kind has to say.
        let mut short = bytes_of(&records[at]);
        short.truncate(3 + cut.index(short.len() - 2));
        let length = (short.len() as u16 - 3).to_le_bytes();
        short[1..3].copy_from_slice(&length);
        let is_short = short.len() < bytes_of(&records[at]).len();
        for (bad, is_bad) in [(unknown, true), (short, is_short)] {
            let mut expected = records.clone();
            if is_bad {
                expected[at] = Record::Unknown;
            }
            let mut all: Vec<_> = records.iter().map(bytes_of).collect();
            all[at] = bad;
            let read = read(&encode_batch(Incarnation(7), 8, 9, &all.concat()));
            prop_assert_eq!(records_of(read.unwrap()), expected);
        }
    }
}

#[test]
fn a_batch_of_more_records_than_have_a_place_is_not_read() {
    let record = bytes_of(&Record::Unknown);
    let batch = |count| encode_batch(Incarnation(1), 2, 3, &record.repeat(count));
    assert_eq!(records_of(read(&batch(RECORDS_MAX)).unwrap()).len(), RECORDS_MAX);
    assert_eq!(read(&batch(RECORDS_MAX + 1)), Err(Unreadable));
}

#[test]
fn the_longest_record_goes_into_a_batch() {
    let addresses = vec!["a".repeat(300); 100];
    let card = Card { addresses: addresses.clone(), addresses_tls: addresses, ..Card::default() };
    assert!(bytes_of(&Record::Card(card)).len() < RECORD_BYTES_MAX);
}

/// What three nodes have made by what they said, mostly of a few uids.
fn any_state() -> impl Strategy<Value = State> {
    let says = (0..3_usize, any_record(), prop::option::weighted(0.8, 0..30_usize));
    (1..4_u16, vec(says, 0..60)).prop_map(|(connections_per_uid, says)| {
        let mut state = State::new(connections_per_uid);
        let mut sequence = 1_000;
        let mut say = |message: &Message<'_>| {
            fold(&mut state, sequence, Millis(1_000_000 + sequence), message, &mut Effects::default());
            sequence += 1;
        };
        for start in 0..3 {
            let (name, version) = (name(&format!("n{start}")), "1".into());
            say(&Message::Join(Join { name, start, attempt: 0, speaks: 1, connections_per_uid, version }));
        }
        let mut next = [0; 3];
        for (node, mut record, few) in says {
            match (&mut record, few) {
                (Record::Claim { uid: of, .. } | Record::Release { uid: of, .. }, Some(n)) => {
                    *of = uid(&format!("u{n}"))
                }
                (Record::Dead { .. }, _) => continue,
                _ => {}
            }
            let incarnation = Incarnation(1_000 + node as u64);
            say(&Message::Batch { incarnation, number: next[node], sent: 0, records: vec![record].into() });
            next[node] += 1;
        }
        state
    })
}

fn parts_of(state: &State) -> Vec<Vec<u8>> {
    (0..=u8::MAX).map(|part| encode_part(state, PartHead { part, sequence: 2_000, at: Millis(9) })).collect()
}

/// The uids of one part, and all that is known of each.
fn shown_part(state: &State, part: usize) -> Vec<String> {
    let mut shown: Vec<_> = state
        .directory
        .part(part)
        .map(|entry| {
            let held = entry.connections().iter().map(|held| (state.node(held.node).incarnation, held));
            let held = held.map(|(node, held)| (node, held.number, held.epoch, held.accepted));
            format!("{} {:?} {} {:?}", entry.uid(), entry.since(), entry.epoch(), held.collect::<Vec<_>>())
        })
        .collect();
    shown.sort();
    shown
}

fn shown(state: &State) -> String {
    let live: Vec<_> = state.live().collect();
    let parts: Vec<_> = (0..256).map(|part| shown_part(state, part)).collect();
    format!("{} {live:?} {} {parts:?}", state.connections_per_uid(), state.directory.uids())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn who_reads_all_parts_of_a_state_has_it(state in any_state()) {
        let parts = parts_of(&state);
        let mut read = decode_live(&parts[0]).unwrap();
        for (part, bytes) in (0..=u8::MAX).zip(&parts) {
            prop_assert!(read.is_partial());
            prop_assert_eq!(part_head(bytes), Ok(PartHead { part, sequence: 2_000, at: Millis(9) }));
            prop_assert_eq!(decode_part(bytes, &mut read), Ok(()));
            if part > 0 {
                prop_assert!(decode_live(bytes).is_err(), "only the first tells who is live");
            }
        }
        prop_assert!(!read.is_partial());
        prop_assert_eq!(shown(&read), shown(&state));
    }

    #[test]
    fn a_part_that_was_cut_or_flipped_does_no_harm(
        state in any_state(),
        pick in any::<prop::sample::Index>(),
        cuts in vec(any::<prop::sample::Index>(), 20),
        flip in any::<(prop::sample::Index, u8)>(),
    ) {
        let parts = parts_of(&state);
        let filled: Vec<_> = (0..256).filter(|part| state.directory.part(*part).len() > 0 || *part == 0).collect();
        let part = filled[pick.index(filled.len())];
        let bytes = &parts[part];
        let all = shown_part(&state, part);
        for cut in cuts.iter().map(|cut| cut.index(bytes.len())) {
            let mut read = decode_live(&parts[0]).unwrap();
            _ = decode_live(&bytes[..cut]);
            if decode_part(&bytes[..cut], &mut read).is_ok() {
                prop_assert!(shown_part(&read, part).iter().all(|entry| all.contains(entry)), "of {} bytes", cut);
            }
        }
        let mut bytes = bytes.clone();
        let at = flip.0.index(bytes.len());
        bytes[at] ^= flip.1;
        let mut read = decode_live(&bytes).or(decode_live(&parts[0])).unwrap();
        let is_read = decode_part(&bytes, &mut read);
        // Whatever was read of it can be told on.
        let told = shown(&read);
        let others = (0..256).filter(|other| *other != part).map(|other| read.directory.part(other).len());
        prop_assert!(is_read.is_err() || bytes[1] != part as u8 || others.sum::<usize>() == 0, "{}", told);
    }
}

#[test]
fn a_part_that_names_a_node_which_is_not_live_is_not_read() {
    let mut state = State::new(1);
    let (name, version) = (name("n"), "1".into());
    let join = Join { name, start: 1, attempt: 0, speaks: 1, connections_per_uid: 1, version };
    fold(&mut state, 1, Millis(1), &Message::Join(join), &mut Effects::default());
    let (uid, number) = (uid("a"), ConnectionNumber(1));
    let claims = vec![Record::Claim { uid, number, replaces: None, accepted: Millis(1) }];
    let batch = Message::Batch { incarnation: Incarnation(1), number: 0, sent: 0, records: claims.into() };
    fold(&mut state, 2, Millis(1), &batch, &mut Effects::default());
    let part = directory::part_of("a");
    let bytes = &parts_of(&state)[part];
    assert_eq!(decode_part(bytes, &mut state.clone()), Err(Unreadable), "it is there already");
    assert_eq!(decode_part(bytes, &mut State::new(1)), Err(Unreadable));
    // One of another part's.
    let mut other = bytes.clone();
    other[1] ^= 1;
    assert_eq!(decode_part(&other, &mut decode_live(&parts_of(&state)[0]).unwrap()), Err(Unreadable));
    assert_eq!(decode_part(bytes, &mut decode_live(&parts_of(&state)[0]).unwrap()), Ok(()));
}
