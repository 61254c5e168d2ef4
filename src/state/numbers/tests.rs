use std::{
    collections::HashSet,
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tempfile::TempDir;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    registry,
};

use super::*;

const NOW: u64 = 1_700_000_000_000_000;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(folder: &TempDir, now: u64) -> Numbers {
    Numbers::open_at(Some(folder.path()), now)
}

fn mark(folder: &TempDir) -> u64 {
    fs::read_to_string(folder.path().join(FILE)).unwrap().trim_end().parse().unwrap()
}

fn seq(numbers: &Numbers) -> u64 {
    u64::try_from(numbers.next_seq()).unwrap()
}

/// Waits for the thread that raises the mark.
fn settled(numbers: &Numbers) {
    while numbers.0.raising.load(SeqCst) {
        thread::yield_now();
    }
}

/// How many events `what` logs on this thread.
fn warnings(what: impl FnOnce()) -> u64 {
    struct Count(Arc<AtomicU64>);
    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            assert_eq!(*event.metadata().level(), tracing::Level::WARN);
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let count = Arc::new(AtomicU64::new(0));
    tracing::subscriber::with_default(registry().with(Count(count.clone())), what);
    count.load(Ordering::SeqCst)
}

#[test]
fn numbers_begin_at_the_clock_and_grow_by_one() {
    let folder = folder();
    let numbers = open(&folder, NOW);
    assert_eq!((numbers.first_sequence(), seq(&numbers), seq(&numbers)), (NOW, NOW, NOW + 1));
    assert_eq!(mark(&folder), NOW + RESERVE);
}

#[test]
fn the_real_clock_is_in_microseconds_and_far_below_2_to_the_53() {
    let number = seq(&Numbers::open(None));
    assert!((NOW..CLOCK_MAX).contains(&number), "{number}");
}

#[test]
fn after_a_clean_stop_a_clock_that_went_back_goes_on_exactly_there() {
    let folder = folder();
    let numbers = open(&folder, NOW);
    let last = (0..10).map(|_| seq(&numbers)).max().unwrap();
    numbers.close();
    assert_eq!(mark(&folder), last + 1);
    let numbers = open(&folder, NOW - 3_600_000_000);
    assert_eq!((numbers.first_sequence(), seq(&numbers)), (last + 1, last + 1));
}

#[test]
fn a_clean_stop_counts_what_the_log_used() {
    let folder = folder();
    let numbers = open(&folder, NOW);
    numbers.note_sequence(NOW + 500);
    numbers.note_sequence(NOW + 499);
    assert_eq!(numbers.first_sequence(), NOW + 501);
    numbers.close();
    assert_eq!(mark(&folder), NOW + 501);
}

#[test]
fn after_a_crash_and_with_a_clock_that_went_back_no_number_comes_twice() {
    let folder = folder();
    let mut highest = 0;
    for restart in 0..5 {
        let numbers = open(&folder, NOW - restart * 1_000_000);
        assert!(numbers.first_sequence() > highest);
        for _ in 0..1_000 {
            let number = seq(&numbers);
            assert!(number > highest);
            highest = number;
        }
        numbers.note_sequence(highest + 77);
        highest += 77;
        assert!(mark(&folder) > highest);
    }
}

#[test]
fn a_clock_that_went_on_counts_again() {
    let folder = folder();
    open(&folder, NOW).close();
    assert_eq!(seq(&open(&folder, NOW + 60_000_000)), NOW + 60_000_000);
}

#[test]
fn the_mark_is_always_above_what_was_given_and_is_raised_ahead() {
    let folder = folder();
    let numbers = open(&folder, NOW);
    for _ in 0..RESERVE / 2 {
        seq(&numbers);
    }
    assert_eq!(mark(&folder), NOW + RESERVE, "half of it is still there");
    seq(&numbers);
    settled(&numbers);
    assert_eq!(mark(&folder), NOW + 2 * RESERVE);
    // The log may run ahead of the pushes; beyond the reserve whoever tells waits for the disk.
    numbers.note_sequence(NOW + 5 * RESERVE);
    assert_eq!(mark(&folder), NOW + 6 * RESERVE + 1);
}

#[test]
fn numbers_of_many_threads_are_unique_and_grow_for_each() {
    const EACH: usize = 400_000;
    let folder = folder();
    let numbers = open(&folder, NOW);
    let given: Vec<Vec<u64>> = thread::scope(|scope| {
        let take = || (0..EACH).map(|_| seq(&numbers)).collect();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(given.iter().all(|numbers| numbers.is_sorted_by(|a, b| a < b)));
    assert_eq!(given.iter().flatten().collect::<HashSet<_>>().len(), 4 * EACH);
    settled(&numbers);
    assert!(mark(&folder) > *given.iter().flatten().max().unwrap());
    numbers.close();
    assert_eq!(mark(&folder), NOW + 4 * EACH as u64);
}

#[test]
fn a_number_after_a_clean_stop_is_reserved_anew() {
    let folder = folder();
    let numbers = open(&folder, NOW);
    numbers.close();
    let number = seq(&numbers);
    assert!(mark(&folder) > number);
}

#[test]
fn closing_while_numbers_are_taken_leaves_a_mark_above_them() {
    let folder = folder();
    let numbers = open(&folder, NOW);
    for _ in 0..20 {
        let highest = thread::scope(|scope| {
            let takers: Vec<_> =
                (0..3).map(|_| scope.spawn(|| (0..1_000).map(|_| seq(&numbers)).max().unwrap())).collect();
            numbers.close();
            takers.into_iter().map(|taker| taker.join().unwrap()).max().unwrap()
        });
        settled(&numbers);
        assert!(mark(&folder) > highest);
    }
}

#[test]
fn a_folder_that_cannot_be_written_costs_one_warning_and_leaves_the_clock() {
    let folder = folder();
    fs::write(folder.path().join("file"), "").unwrap();
    let count = warnings(|| {
        let numbers = Numbers::open_at(Some(&folder.path().join("file/state")), NOW);
        assert_eq!((seq(&numbers), numbers.first_sequence()), (NOW, NOW));
        // Beyond the reserve it tries again, and tells nobody again.
        numbers.note_sequence(NOW + 3 * RESERVE);
        numbers.close();
        assert_eq!(seq(&numbers), NOW + 1);
    });
    assert_eq!(count, 1);
}

#[test]
fn without_a_folder_the_clock_decides_and_nothing_is_told() {
    let count = warnings(|| {
        let numbers = Numbers::open_at(None, NOW);
        numbers.note_sequence(NOW + 10 * RESERVE);
        numbers.close();
        assert_eq!(seq(&numbers), NOW);
    });
    assert_eq!(count, 0);
}

#[test]
fn a_mark_that_is_rubbish_is_told_of_and_replaced() {
    for rubbish in ["", "x", "-1", "+5", "1 2", "9007199254740992", "18446744073709551616", "9006099743113216"] {
        let folder = folder();
        fs::write(folder.path().join(FILE), rubbish).unwrap();
        let count = warnings(|| assert_eq!(seq(&open(&folder, NOW)), NOW));
        assert_eq!((count, mark(&folder)), (1, NOW + RESERVE), "{rubbish:?}");
    }
}

#[test]
fn the_highest_mark_that_counts_leaves_numbers_below_2_to_the_53() {
    let folder = folder();
    fs::write(folder.path().join(FILE), (MARK_LIMIT - 1).to_string()).unwrap();
    let numbers = open(&folder, NOW);
    assert_eq!(seq(&numbers), MARK_LIMIT - 1);
    assert!(seq(&open(&self::folder(), u64::MAX)) < 1 << 53);
    assert_eq!(seq(&open(&self::folder(), 0)), 1);
}

#[test]
fn two_with_one_folder_never_lower_each_others_mark() {
    let folder = folder();
    let (first, second) = (open(&folder, NOW), open(&folder, NOW));
    assert_eq!(seq(&second), NOW + RESERVE, "above what the first reserved");
    second.note_sequence(NOW + 10 * RESERVE);
    let needed = mark(&folder);
    first.close();
    assert!(mark(&folder) >= needed);
    // Now the first takes more, below the mark of the second, which ends after it.
    first.note_sequence(NOW + 20 * RESERVE);
    second.close();
    assert!(mark(&folder) > NOW + 20 * RESERVE);
    first.close();
    assert!(mark(&folder) > NOW + 20 * RESERVE);
}

#[test]
fn one_that_ends_sees_that_another_reserved_below_its_mark() {
    let folder = folder();
    let (first, second) = (open(&folder, NOW), open(&folder, NOW));
    assert_eq!(mark(&folder), NOW + 2 * RESERVE);
    // Raised ahead to just what the second has written, and used beyond what the second has given.
    first.note_sequence(NOW + RESERVE / 2);
    settled(&first);
    first.note_sequence(NOW + RESERVE + RESERVE / 4);
    second.close();
    assert!(mark(&folder) > NOW + RESERVE + RESERVE / 4);
}

#[test]
fn nothing_but_mark_and_lock_is_left_in_the_folder() {
    let folder = folder();
    open(&folder, NOW).close();
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["lock", "mark"]);
}
