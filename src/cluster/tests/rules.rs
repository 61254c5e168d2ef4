//! Each rule of the fold, by itself.

use crate::{
    cluster::fold::{Effects, Incarnation, Join, Message, RECORDS_MAX, Record, SPEAKS, State, Told, fold},
    model::{ConnectionNumber, EndReason, Millis, NodeName, OfflineReason, Uid},
};

const SECOND: u64 = 1_000;

/// A log under test: the next sequence, and the time.
struct Log {
    state: State,
    sequence: u64,
    time: u64,
    numbers: std::collections::HashMap<Incarnation, u64>,
}

impl Log {
    fn new(connections_per_uid: u16) -> Self {
        Self { state: State::new(connections_per_uid), sequence: 0, time: 100 * SECOND, numbers: Default::default() }
    }

    fn fold(&mut self, message: &Message<'_>) -> Effects {
        let mut effects = Effects::default();
        self.sequence += 1;
        fold(&mut self.state, self.sequence, Millis(self.time), message, &mut effects);
        effects
    }

    fn join(&mut self, name: &str, start: u64, attempt: u32) -> (Incarnation, Effects) {
        let effects = self.fold(&join(name, start, attempt, self.state.connections_per_uid()));
        (Incarnation(self.sequence), effects)
    }

    fn node(&mut self, name: &str) -> Incarnation {
        self.join(name, self.sequence, 0).0
    }

    fn batch(&mut self, incarnation: Incarnation, records: &[Record]) -> Effects {
        let next = self.numbers.entry(incarnation).or_default();
        *next += 1;
        let number = *next - 1;
        self.fold(&batch(incarnation, number, records))
    }

    fn claim(&mut self, node: Incarnation, uid: &str, number: u32) -> Effects {
        let record = claim(uid, number, None, self.time);
        self.batch(node, &[record])
    }

    fn online(&self, uid: &str) -> bool {
        self.state.directory.get(uid).is_some()
    }

    /// (incarnation, number), oldest first.
    fn held(&self, uid: &str) -> Vec<(Incarnation, u32)> {
        let entry = self.state.directory.get(uid);
        let held = entry.into_iter().flat_map(|entry| entry.connections());
        held.map(|held| (self.state.node(held.node).incarnation, held.number.0)).collect()
    }
}

fn join(name: &str, start: u64, attempt: u32, connections_per_uid: u16) -> Message<'static> {
    let (name, version) = (NodeName::new(name), "1".into());
    Message::Join(Join { name, start, attempt, speaks: SPEAKS, connections_per_uid, version })
}

fn batch(incarnation: Incarnation, number: u64, records: &[Record]) -> Message<'_> {
    Message::Batch { incarnation, number, sent: 0, records: records.into() }
}

fn claim(uid: &str, number: u32, replaces: Option<u32>, accepted: u64) -> Record {
    Record::Claim {
        uid: Uid::new(uid).unwrap(),
        number: ConnectionNumber(number),
        replaces: replaces.map(ConnectionNumber),
        accepted: Millis(accepted),
    }
}

fn release(uid: &str, number: u32) -> Record {
    let uid = Uid::new(uid).unwrap();
    Record::Release { uid, number: ConnectionNumber(number), reason: EndReason::Timeout }
}

/// (uid, epoch, why offline) of every change.
fn changes(effects: &Effects) -> Vec<(String, u64, Option<OfflineReason>)> {
    let all = effects.changes.iter().flat_map(|told| (0..told.uids().len()).map(|n| told.change(n)));
    all.map(|change| (change.uid.to_string(), change.epoch, change.offline)).collect()
}

#[test]
fn an_epoch_is_the_sequence_and_the_index_of_the_record() {
    let mut log = Log::new(1);
    let a = log.node("a");
    let time = log.time;
    let effects = log.batch(a, &[claim("x", 1, None, time), claim("y", 2, None, time), release("x", 1)]);
    let expected = [("x", 2049, None), ("y", 2050, None), ("x", 2051, Some(OfflineReason::Timeout))];
    assert_eq!(changes(&effects), expected.map(|(uid, epoch, why)| (uid.to_string(), epoch, why)));
}

#[test]
fn a_record_beyond_the_1023rd_does_not_count() {
    let mut log = Log::new(1);
    let a = log.node("a");
    let records: Vec<_> = (1..=1_024).map(|n| claim(&format!("u{n}"), n, None, log.time)).collect();
    assert_eq!(log.batch(a, &records).changes.len(), RECORDS_MAX);
}

#[test]
fn a_later_join_of_a_name_ends_the_earlier_with_all_it_held() {
    let mut log = Log::new(1);
    let (a, _) = log.join("a", 5, 0);
    log.claim(a, "x", 1);
    let (newer, effects) = log.join("a", 5, 1);
    assert_eq!(effects.ended, [a]);
    assert_eq!(changes(&effects), [("x".to_string(), newer.0 * 1024, Some(OfflineReason::NodeLost))]);
    assert!(log.claim(a, "y", 2).changes.is_empty());
    assert_eq!(log.claim(newer, "y", 1).changes.len(), 1);
}

#[test]
fn a_join_that_is_not_newer_is_ignored() {
    let mut log = Log::new(1);
    let (a, _) = log.join("a", 5, 1);
    for (start, attempt) in [(5, 1), (5, 0), (4, 9)] {
        let (ignored, effects) = log.join("a", start, attempt);
        assert!(effects.ended.is_empty());
        assert!(log.claim(ignored, "x", 1).changes.is_empty());
    }
    assert_eq!(log.claim(a, "x", 1).changes.len(), 1);
}

#[test]
fn records_of_who_is_not_live_do_not_count() {
    let mut log = Log::new(1);
    let [a, b] = ["a", "b"].map(|name| log.node(name));
    log.claim(a, "x", 1);
    log.batch(b, &[Record::Dead { incarnation: a, next: 1 }]);
    let time = log.time;
    assert!(log.batch(a, &[claim("x", 2, None, time), Record::Dead { incarnation: b, next: 1 }]).changes.is_empty());
    assert!(!log.online("x"));
    assert!(log.state.index_of(b).is_some());
}

#[test]
fn a_batch_counts_once_and_in_order() {
    let mut log = Log::new(1);
    let incarnation = log.node("a");
    let (x, y) = ([claim("x", 1, None, log.time)], [claim("y", 2, None, log.time)]);
    assert!(log.fold(&batch(incarnation, 1, &y)).changes.is_empty());
    assert_eq!(log.fold(&batch(incarnation, 0, &x)).changes.len(), 1);
    log.fold(&batch(incarnation, 1, &[release("x", 1)]));
    assert!(log.fold(&batch(incarnation, 0, &x)).changes.is_empty());
    assert!(!log.online("x"));
}

#[test]
fn the_first_accepted_goes_beyond_the_limit_and_nobody_is_told() {
    let mut log = Log::new(2);
    let [a, b] = ["a", "b"].map(|name| log.node(name));
    assert_eq!(log.claim(a, "x", 1).changes.len(), 1);
    assert!(log.claim(b, "x", 1).changes.is_empty());
    let effects = log.claim(b, "x", 2);
    assert!(effects.changes.is_empty());
    assert_eq!(effects.displaced, [(a, Uid::new("x").unwrap(), ConnectionNumber(1))]);
    assert_eq!(log.held("x"), [(b, 1), (b, 2)]);
}

#[test]
fn a_claim_takes_the_place_of_the_own_connection_that_it_replaces() {
    let mut log = Log::new(2);
    let [a, b] = ["a", "b"].map(|name| log.node(name));
    log.claim(b, "x", 2);
    log.claim(a, "x", 2);
    let record = claim("x", 3, Some(2), log.time);
    let effects = log.batch(a, &[record]);
    assert!(effects.displaced.is_empty(), "its own node has ended it");
    assert_eq!(log.held("x"), [(b, 2), (a, 3)]);
}

#[test]
fn an_aged_claim_takes_nothing_from_a_newer_connection() {
    let mut log = Log::new(1);
    let [a, b] = ["a", "b"].map(|name| log.node(name));
    log.claim(a, "x", 1);
    let accepted = log.time - 10 * SECOND;
    log.time += 5 * SECOND;
    let effects = log.batch(b, &[claim("x", 7, None, accepted)]);
    assert_eq!(effects.displaced, [(b, Uid::new("x").unwrap(), ConnectionNumber(7))]);
    assert_eq!(log.held("x"), [(a, 1)]);
    // Nor does it come online by its late release.
    assert!(log.batch(b, &[release("x", 7)]).changes.is_empty());
    assert!(log.online("x"));
}

#[test]
fn an_aged_claim_takes_the_place_of_an_older_connection() {
    let mut log = Log::new(1);
    let [a, b] = ["a", "b"].map(|name| log.node(name));
    log.claim(a, "x", 1);
    let accepted = log.time + 3 * SECOND;
    log.time += 10 * SECOND;
    let effects = log.batch(b, &[claim("x", 7, None, accepted)]);
    assert_eq!(effects.displaced, [(a, Uid::new("x").unwrap(), ConnectionNumber(1))]);
}

#[test]
fn a_claim_of_a_second_or_less_counts_as_the_newest() {
    let mut log = Log::new(1);
    let [a, b] = ["a", "b"].map(|name| log.node(name));
    log.claim(a, "x", 1);
    // Accepted before the other, but the log had it later; a clock that is ahead wins nothing for the time to come.
    for (number, accepted) in [(2, log.time - SECOND), (3, log.time + 100 * SECOND), (4, log.time)] {
        let node = if number % 2 == 0 { b } else { a };
        log.batch(node, &[claim("x", number, None, accepted)]);
        assert_eq!(log.held("x"), [(node, number)]);
    }
    log.time += 5 * SECOND;
    let record = claim("x", 5, None, log.time - 2 * SECOND);
    log.batch(a, &[record]);
    assert_eq!(log.held("x"), [(a, 5)]);
}

#[test]
fn a_late_release_cannot_hit_a_newer_login() {
    let mut log = Log::new(1);
    let [a, b] = ["a", "b"].map(|name| log.node(name));
    log.claim(a, "x", 1);
    log.claim(b, "x", 1);
    assert!(log.batch(a, &[release("x", 1)]).changes.is_empty());
    assert_eq!(log.held("x"), [(b, 1)]);
    assert_eq!(log.batch(b, &[release("x", 1)]).changes.len(), 1);
    assert!(log.batch(b, &[release("x", 1)]).changes.is_empty());
}

#[test]
fn a_number_claimed_twice_is_one_connection() {
    let mut log = Log::new(2);
    let a = log.node("a");
    log.claim(a, "x", 1);
    assert!(log.claim(a, "x", 1).displaced.is_empty());
    assert_eq!(log.held("x"), [(a, 1)]);
    assert_eq!(log.batch(a, &[release("x", 1)]).changes.len(), 1);
}

#[test]
fn a_death_counts_only_if_the_node_has_written_nothing_since() {
    let mut log = Log::new(2);
    let [a, b] = ["a", "b"].map(|name| log.node(name));
    log.claim(a, "x", 1);
    log.claim(a, "y", 2);
    log.claim(b, "y", 1);
    assert!(log.batch(b, &[Record::Dead { incarnation: a, next: 1 }]).ended.is_empty());
    let effects = log.batch(b, &[Record::Dead { incarnation: a, next: 2 }]);
    assert_eq!(effects.ended, [a]);
    // One place for all of them, and who has another connection stays.
    assert_eq!(changes(&effects), [("x".to_string(), log.sequence * 1024 + 1, Some(OfflineReason::NodeLost))]);
    assert!(matches!(&effects.changes[..], [Told::Death(_)]));
    assert_eq!(log.held("y"), [(b, 1)]);
}

#[test]
fn nothing_of_a_batch_counts_behind_the_own_death() {
    let mut log = Log::new(1);
    let a = log.node("a");
    let records = [Record::Dead { incarnation: a, next: 1 }, claim("x", 1, None, log.time)];
    assert_eq!(log.batch(a, &records).ended, [a]);
    assert!(!log.online("x"));
}

#[test]
fn the_epoch_of_who_is_online_never_falls() {
    let mut log = Log::new(2);
    let a = log.node("a");
    log.claim(a, "x", 1);
    log.claim(a, "x", 2);
    let epoch = log.sequence * 1024 + 1;
    log.batch(a, &[release("x", 2)]);
    let entry = log.state.directory.get("x").unwrap();
    assert_eq!(entry.epoch(), epoch);
    assert!(entry.newest().epoch < epoch, "the connection keeps its own");
    log.claim(a, "x", 3);
    log.batch(a, &[release("x", 1)]);
    assert_eq!(log.state.directory.get("x").unwrap().epoch(), (log.sequence - 1) * 1024 + 1);
}

#[test]
fn a_text_is_kept_once_and_that_of_the_newest() {
    let mut log = Log::new(1);
    let a = log.node("a");
    let uid = Uid::new("x").unwrap();
    for number in 1..3 {
        let accepted = Millis(log.time);
        let record = Record::Claim { uid: uid.clone(), number: ConnectionNumber(number), replaces: None, accepted };
        log.batch(a, &[claim("x", 9 + number, None, accepted.0)]);
        log.batch(a, &[record]);
        assert_eq!(log.state.directory.get("x").unwrap().uid().as_str().as_ptr(), uid.as_str().as_ptr());
    }
}

#[test]
fn a_place_in_the_history_costs_56_bytes() {
    assert_eq!(size_of::<Told>(), 56);
}
