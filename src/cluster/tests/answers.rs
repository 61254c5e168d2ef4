//! What a member makes of the engine's answers, one after the other.

use super::*;
use crate::cluster::{
    fold::{Effects, Incarnation, Join, Message, Record, SPEAKS},
    member::{Bounds, Command, Member, Settings},
    node::{LogIdentity, Node},
    outgoing::Outgoing,
    rules::Rules,
    wire::{self, PartHead},
};

const LOG: LogIdentity = LogIdentity { id: 7, born: Millis(Clock::START) };

/// A member in step with a log that nobody else writes.
struct Alone {
    node: Arc<Node>,
    member: Member,
    outgoing: Arc<Outgoing>,
    /// The last message of the log, which the member has read.
    last: u64,
    now: u64,
    out: Vec<Command>,
}

impl Alone {
    fn new() -> Self {
        Self::gathering(Duration::from_millis(5))
    }

    fn gathering(gather: Duration) -> Self {
        let mut alone = Self::before(gather);
        alone.answer(0);
        assert_eq!(alone.out.pop(), Some(Command::Read { from: 1 }));
        // Its join, and what it says then.
        (0..5).for_each(|_| alone.write_and_read());
        assert!(alone.member.has_state());
        alone
    }

    /// One that has asked for the log's bounds.
    fn before(gather: Duration) -> Self {
        let (closes, ..) = Inbox::new();
        let node = Arc::new(Node::new(name("n"), Arc::new(Clock::default().log()), false, closes, options()));
        let settings = Settings { start: 1, dead_after: 7, gather, window: 4, first_floor: 1, rules: Rules::ALL };
        let outgoing = Arc::<Outgoing>::default();
        let member = Member::new(node.clone(), outgoing.clone(), Millis(Clock::START), 1, settings);
        let mut alone = Self { node, member, outgoing, last: 0, now: 0, out: Vec::new() };
        alone.member.link_up(alone.now, &mut alone.out);
        alone
    }

    /// The number of its last question for the log's bounds.
    fn asked(&mut self) -> u64 {
        let asked = self.out.drain(..).rev().find_map(|command| match command {
            Command::Bounds { ask } => Some(ask),
            _ => None,
        });
        asked.expect("it has asked")
    }

    /// The log's bounds, as they were when `last` was the last message.
    fn answer(&mut self, last: u64) {
        let asked = self.asked();
        let bounds = Bounds { log: LOG, made_from: 1, first: 1, last };
        self.member.bounds(self.now, asked, Ok(Some(bounds)), &mut self.out);
    }

    /// Reads the next message of the log.
    fn read(&mut self, bytes: &[u8]) {
        self.last += 1;
        let at = Millis(Clock::START + self.now / 1_000);
        self.member.message(self.now, self.last, at, bytes, &mut self.out);
    }

    /// Has a device log in; gives how many messages it writes then.
    fn log_in(&mut self, number: u32) -> usize {
        self.outgoing.claim(&Uid::new("u").unwrap(), ConnectionNumber(number), None, Millis(Clock::START));
        self.out.clear();
        self.member.tick(self.now, &mut self.out);
        self.out.iter().filter(|command| matches!(command, Command::Append(_))).count()
    }

    fn write_and_read(&mut self) {
        self.now += 600_000;
        self.write_and_read_now();
    }

    fn write_and_read_now(&mut self) {
        self.member.tick(self.now, &mut self.out);
        for command in std::mem::take(&mut self.out) {
            match command {
                Command::Append(bytes) => self.read(&bytes),
                other => self.out.push(other),
            }
        }
    }
}

#[test]
fn a_log_is_not_deleted_for_an_answer_that_is_a_moment_old() {
    let mut alone = Alone::new();
    alone.out.clear();
    alone.member.reading_ended(alone.now, &mut alone.out);
    let asked = alone.last;
    // While the answer is on its way a word of another comes.
    alone.read(&wire::encode(&Message::Hello { nonce: 2 }));
    alone.answer(asked);
    assert_eq!(alone.out, [Command::Read { from: alone.last }]);
}

#[test]
fn an_answer_counts_only_for_the_last_question_and_in_time() {
    let mut alone = Alone::new();
    alone.out.clear();
    alone.member.reading_ended(alone.now, &mut alone.out);
    let earlier = alone.asked();
    // The log that was there when it was asked for has gone since.
    let gone = LogIdentity { id: 6, ..LOG };
    let bounds = Bounds { log: gone, made_from: 1, first: 1, last: alone.last };
    alone.now += 800_000;
    alone.member.bounds(alone.now, earlier, Ok(Some(bounds)), &mut alone.out);
    assert_eq!(alone.out, [], "too late");
    alone.member.tick(alone.now, &mut alone.out);
    let asked = alone.asked();
    alone.member.bounds(alone.now, earlier, Ok(Some(bounds)), &mut alone.out);
    assert_eq!(alone.out, [], "it was asked again");
    let bounds = Bounds { log: LOG, ..bounds };
    alone.member.bounds(alone.now, asked, Ok(Some(bounds)), &mut alone.out);
    assert_eq!(alone.out, [Command::Read { from: alone.last }]);
}

#[test]
fn a_log_that_ends_before_what_was_known_when_it_was_asked_for_is_deleted() {
    let mut alone = Alone::new();
    alone.out.clear();
    alone.member.reading_ended(alone.now, &mut alone.out);
    alone.answer(alone.last - 1);
    assert_eq!(alone.out, [Command::Discard(LOG)]);
}

#[test]
fn a_member_sleeps_while_the_log_takes_nothing() {
    let mut alone = Alone::new();
    // As many messages as it may have under way, and one that has to wait.
    for number in 1..=5 {
        alone.now += 6_000;
        alone.log_in(number);
    }
    // Until it writes the same once more, with time for several heartbeats in between.
    for _ in 0..100 {
        alone.now += 6_000;
        alone.member.tick(alone.now, &mut alone.out);
        assert!(alone.member.deadline(alone.now) > alone.now, "{} µs", alone.now);
    }
}

#[test]
fn changes_are_gathered_unless_told_otherwise() {
    let (mut gathers, mut hurries) = (Alone::new(), Alone::gathering(Duration::ZERO));
    for member in [&mut gathers, &mut hurries] {
        member.now += 6_000;
    }
    assert_eq!([1, 2, 3, 4, 5].map(|number| gathers.log_in(number)), [1, 0, 0, 0, 0]);
    assert_eq!([1, 2, 3, 4, 5].map(|number| hurries.log_in(number)), [1, 1, 1, 1, 0]);
    assert!(hurries.member.deadline(hurries.now) > hurries.now, "it waits until one was read");
}

#[test]
fn a_node_that_holds_nothing_is_in_step_as_soon_as_its_words_are_read() {
    let mut alone = Alone::before(Duration::from_millis(5));
    alone.answer(0);
    for _ in 0..3 {
        assert_eq!(alone.node.presence().standing, Standing::Joining);
        alone.now += 1_000;
        alone.write_and_read_now();
    }
    assert_eq!(alone.node.presence().standing, Standing::InStep);
}

#[test]
fn a_gap_is_asked_about_once_until_the_answer_is_there() {
    let mut alone = Alone::new();
    alone.out.clear();
    let hello = wire::encode(&Message::Hello { nonce: 2 });
    for _ in 0..3 {
        // One is missing, and more come behind it.
        alone.last += 1;
        alone.read(&hello);
    }
    let asked = alone.out.iter().filter(|command| matches!(command, Command::Bounds { .. })).count();
    assert_eq!(asked, 1);
    alone.answer(alone.last);
    assert!(matches!(alone.out[..], [Command::Read { .. }]), "{:?}", alone.out);
}

#[test]
fn a_log_that_cannot_be_read_is_not_asked_for_again_at_once() {
    let mut alone = Alone::new();
    alone.out.clear();
    alone.member.reading_failed(alone.now);
    alone.member.tick(alone.now, &mut alone.out);
    assert_eq!(alone.out, []);
    alone.now = alone.member.deadline(alone.now);
    alone.member.tick(alone.now, &mut alone.out);
    alone.answer(alone.last);
    assert_eq!(alone.out, [Command::Read { from: alone.last }]);
}

#[test]
fn who_was_declared_dead_ends_where_another_of_its_name_has_joined_since() {
    let mut alone = Alone::new();
    let join = |of: &str, start| {
        let version = "0".into();
        let join = Join { name: name(of), start, attempt: 0, speaks: SPEAKS, connections_per_uid: 1, version };
        wire::encode(&Message::Join(join))
    };
    // An earlier process of its name, which comes late, is nothing to it.
    alone.out.clear();
    alone.read(&join("n", 0));
    let own = alone.node.incarnation();
    alone.read(&join("judge", 1));
    let judge = Incarnation(alone.last);
    let next = alone.node.presence().state.next_of(own).expect("it is live");
    let mut dead = Vec::new();
    wire::encode_record(&Record::Dead { incarnation: own, next }, &mut dead);
    alone.read(&wire::encode_batch(judge, 0, 0, &dead));
    assert_eq!(alone.node.incarnation(), Incarnation(0), "it has read its end");
    assert!(!alone.out.contains(&Command::Superseded));
    alone.read(&join("n", 2));
    assert!(alone.out.contains(&Command::Superseded));
}

#[test]
fn a_log_that_nobody_knows_any_more_is_told_to_nobody_as_empty() {
    let alone = Alone::new();
    assert_eq!(alone.node.presence().standing, Standing::InStep);
    let reset = Message::Reset { nonce: 2 };
    let mut effects = Effects::default();
    alone.node.fold(alone.last + 1, Millis(Clock::START), Some(&reset), &mut effects);
    assert_eq!(alone.node.presence().standing, Standing::Joining);
    assert_eq!(*alone.node.standing().borrow(), Standing::Joining);
}

/// Parts of the state that are asked for half a second later.
fn asks(joining: &mut Alone) -> Vec<(u64, u8, Option<Incarnation>)> {
    joining.now += 500_000;
    joining.out.clear();
    joining.member.tick(joining.now, &mut joining.out);
    let asks = joining.out.iter().filter_map(|command| match command {
        Command::Ask { snapshot, part, of } => Some((*snapshot, *part, *of)),
        _ => None,
    });
    asks.collect()
}

/// A part of a state in which nobody is online, as it is told by `of`.
fn part(part: u8, of: Incarnation) -> Option<(Incarnation, Vec<u8>)> {
    let head = PartHead { part, sequence: 10, at: Millis(Clock::START) };
    Some((of, wire::encode_part(&State::new(1), head)))
}

#[test]
fn what_is_not_told_to_an_earlier_try_costs_the_next_one_nothing() {
    let (gone, other) = (Incarnation(7), Incarnation(8));
    let mut joining = Alone::before(Duration::from_millis(5));
    let asked = joining.asked();
    let bounds = Bounds { log: LOG, made_from: 1, first: 5, last: 10 };
    joining.member.bounds(joining.now, asked, Ok(Some(bounds)), &mut joining.out);
    let [(earlier, 0, None)] = asks(&mut joining)[..] else { panic!("the first part of anybody") };
    joining.member.part(joining.now, earlier, 0, part(0, gone));
    let unanswered = asks(&mut joining);
    assert!(unanswered.len() > 1 && unanswered.iter().all(|(.., of)| *of == Some(gone)), "{unanswered:?}");
    joining.member.part(joining.now, earlier, 1, None);
    let [(later, 0, None)] = asks(&mut joining)[..] else { panic!("the first part of anybody, again") };
    joining.member.part(joining.now, later, 0, part(0, other));

    let mut waits = asks(&mut joining);
    for (earlier, late, _) in unanswered {
        joining.member.part(joining.now, earlier, late, None);
    }
    while !waits.is_empty() {
        for (snapshot, number, of) in waits {
            assert_eq!((snapshot, of), (later, Some(other)), "it goes on with the same: {number}");
            joining.member.part(joining.now, later, number, part(number, other));
        }
        waits = asks(&mut joining);
    }
    assert!(joining.out.iter().any(|command| matches!(command, Command::Bounds { .. })), "it has the state");
}
