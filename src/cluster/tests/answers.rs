//! What a member makes of the engine's answers, one after the other.

use super::*;
use crate::cluster::{
    fold::Message,
    member::{Bounds, Command, Member, Settings},
    node::{LogIdentity, Node},
    outgoing::Outgoing,
    rules::Rules,
    wire,
};

const LOG: LogIdentity = LogIdentity { id: 7, born: Millis(Clock::START) };

/// A member in step with a log that nobody else writes.
struct Alone {
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
        let (closes, ..) = Inbox::new();
        let node = Node::new(name("n"), Arc::new(Clock::default().log()), false, closes, options());
        let settings = Settings {
            start: 1,
            heartbeat: Duration::from_millis(500),
            dead_after: 7,
            gather,
            window: 4,
            first_floor: 1,
            rules: Rules::ALL,
        };
        let outgoing = Arc::<Outgoing>::default();
        let member = Member::new(Arc::new(node), outgoing.clone(), Millis(Clock::START), 1, settings);
        let mut alone = Self { member, outgoing, last: 0, now: 0, out: Vec::new() };
        alone.member.link_up(alone.now, &mut alone.out);
        alone.answer(0);
        assert_eq!(alone.out.pop(), Some(Command::Read { from: 1 }));
        // Its join, and what it says then.
        (0..5).for_each(|_| alone.write_and_read());
        assert!(alone.member.has_state());
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
    assert_eq!([1, 2, 3, 4, 5].map(|number| gathers.log_in(number)), [1, 0, 0, 0, 0]);
    assert_eq!([1, 2, 3, 4, 5].map(|number| hurries.log_in(number)), [1, 1, 1, 1, 0]);
    assert!(hurries.member.deadline(hurries.now) > hurries.now, "it waits until one was read");
}
