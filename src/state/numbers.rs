//! Numbers that are never given twice, also across restarts and when the clock goes back.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use super::folder::Folder;

const FILE: &str = "mark";
/// How many numbers are reserved ahead: at a million a second the disk is written once a second, and a crash skips no more
/// than a second of the clock.
const RESERVE: u64 = 1 << 20;
/// A mark from here on is rubbish: so near to 2⁵³ that what remains could run out.
const MARK_LIMIT: u64 = (1 << 53) - (1 << 40);
/// A clock beyond this (the year 2112, in microseconds) counts as this: one that is set wildly must not use up all numbers.
const CLOCK_MAX: u64 = 1 << 52;

/// Gives the numbers of pushes, and the first one of the presence log: each above all that were given before, across
/// restarts, crashes and clocks that go back, and below 2⁵³. Cheap to clone, all clones give from one line.
///
/// They begin at the unix time in microseconds, or at the mark where that is higher. The mark is a file in the data folder
/// with one number, above all that were given: it is raised by 2²⁰ at a time, and is on the disk before the numbers below it
/// are used. Half of them before they are used up a thread of its own raises it; only if that is too slow does whoever asks
/// for a number wait for the disk. A process that ends without [`Numbers::close`] loses what was reserved, nothing else.
#[derive(Debug, Clone)]
pub struct Numbers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What both lines began with.
    start: u64,
    /// The next push's number.
    next: AtomicU64,
    /// One above the highest sequence of the log that was noted.
    sequences_end: AtomicU64,
    /// Numbers below this may be used; written under the lock of `mark` only. `u64::MAX` where nothing is kept.
    reserved: AtomicU64,
    /// Whether a thread is raising the mark.
    raising: AtomicBool,
    /// None: nothing is kept.
    mark: Option<Mutex<Mark>>,
}

impl Numbers {
    /// Opens the mark in `data_dir`, which is made where it doesn't exist. Never fails: where the mark can't be read or
    /// written one warning is logged, and the clock alone decides. None: the clock alone, without a warning. Blocks for the
    /// disk.
    #[must_use]
    pub fn open(data_dir: Option<&Path>) -> Self {
        let micros = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        Self::open_at(data_dir, u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// [`Numbers::open`] at this unix time, in microseconds.
    fn open_at(data_dir: Option<&Path>, now: u64) -> Self {
        // 0 would say that nothing was sent.
        let mut start = now.clamp(1, CLOCK_MAX);
        let mark = data_dir.map(|data_dir| {
            Mark::open(data_dir, |mark| {
                start = start.max(mark);
                start + RESERVE
            })
        });
        let reserved = if mark.is_some() { start + RESERVE } else { u64::MAX };
        Self(Arc::new(Inner {
            start,
            next: AtomicU64::new(start),
            sequences_end: AtomicU64::new(start),
            reserved: AtomicU64::new(reserved),
            raising: AtomicBool::new(false),
            mark: mark.map(Mutex::new),
        }))
    }

    /// The next push's number: above every one before. Lock-free, unless the reserve is used up.
    #[must_use]
    pub fn next_seq(&self) -> i64 {
        let number = self.0.next.fetch_add(1, SeqCst);
        self.used(number);
        i64::try_from(number).expect("numbers begin below 2^53 and 2^63 are never asked for")
    }

    /// What the presence log begins with: above every sequence that was noted before.
    #[must_use]
    pub fn first_sequence(&self) -> u64 {
        self.0.start.max(self.0.sequences_end.load(SeqCst))
    }

    /// Tells of a sequence of the presence log, before anybody learns of it. As cheap as [`Numbers::next_seq`].
    pub fn note_sequence(&self, sequence: u64) {
        self.0.sequences_end.fetch_max(sequence.saturating_add(1), SeqCst);
        self.used(sequence);
    }

    /// Writes the exact end of what was given, so that the next start goes on there. Numbers may be asked for afterwards:
    /// the first one reserves anew. Blocks for the disk.
    pub fn close(&self) {
        let Some(mut mark) = self.0.lock() else { return };
        // First this, then the end is read: whoever takes a number later finds nothing reserved, and waits for the lock.
        self.0.reserved.store(0, SeqCst);
        let end = self.0.end();
        mark.set(end);
        self.0.reserved.store(end, SeqCst);
    }

    /// Sees to it that the mark is above `number` before it is used.
    fn used(&self, number: u64) {
        let reserved = self.0.reserved.load(SeqCst);
        if number >= reserved {
            self.0.reserve(|reserved| number >= reserved);
        } else if reserved - number <= RESERVE / 2 && !self.0.raising.load(SeqCst) {
            self.reserve_ahead(reserved);
        }
    }

    #[cold]
    fn reserve_ahead(&self, seen: u64) {
        if self.0.raising.swap(true, SeqCst) {
            return;
        }
        let inner = Arc::clone(&self.0);
        let spawned = thread::Builder::new().name("plex-mark".to_owned()).spawn(move || {
            inner.reserve(|reserved| reserved == seen);
            inner.raising.store(false, SeqCst);
        });
        if spawned.is_err() {
            // The next number tries again; the last one that is reserved is followed by one that writes by itself.
            self.0.raising.store(false, SeqCst);
        }
    }
}

impl Inner {
    /// One above everything given.
    fn end(&self) -> u64 {
        self.next.load(SeqCst).max(self.sequences_end.load(SeqCst))
    }

    /// None where nothing is kept.
    fn lock(&self) -> Option<MutexGuard<'_, Mark>> {
        // What a panic left is still what was last written.
        self.mark.as_ref().map(|mark| mark.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reserves more, if that is `needed` once nobody else writes.
    #[cold]
    fn reserve(&self, needed: impl FnOnce(u64) -> bool) {
        let Some(mut mark) = self.lock() else { return };
        let reserved = self.reserved.load(SeqCst);
        if !needed(reserved) {
            return;
        }
        let target = self.end().max(reserved).saturating_add(RESERVE);
        mark.set(target);
        // Also where it couldn't be written: the clock alone has to do then, and the next step tries again.
        self.reserved.store(target, SeqCst);
    }
}

/// The file.
#[derive(Debug)]
struct Mark {
    folder: Folder,
    /// What was last written.
    own: u64,
    /// What others need it to be at least: an earlier start, or another process with this folder.
    floor: u64,
    /// Whether somebody was told that it can't be read or written.
    warned: bool,
}

impl Mark {
    /// Reads the file, tells `choose` what it holds (0: nothing), and writes what that makes of it.
    fn open(data_dir: &Path, choose: impl FnOnce(u64) -> u64) -> Self {
        let mut mark = Self { folder: Folder::new(data_dir), own: 0, floor: 0, warned: false };
        let made = mark.folder.make();
        // Without locks two processes with one folder could lower each other's mark; no reason not to start.
        let lock = mark.folder.lock();
        match made.and_then(|()| mark.read()) {
            Ok(found) => mark.floor = found,
            Err(error) => mark.warn(&error),
        }
        mark.write(choose(mark.floor));
        drop(lock);
        mark
    }

    /// Writes `value`, or more where others need it.
    fn set(&mut self, value: u64) {
        let lock = self.folder.lock();
        // What can't be read is replaced.
        let found = self.read().unwrap_or(0);
        if found > self.floor && found != self.own {
            // One more than another process wrote: so it sees, too, that it isn't alone, and doesn't lower what this one needs.
            self.floor = found + 1;
        }
        self.write(value.max(self.floor));
        drop(lock);
    }

    /// What the file holds; 0 where there is none.
    fn read(&self) -> io::Result<u64> {
        let Some(text) = self.folder.read(FILE)? else { return Ok(0) };
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(mark) if digits && mark < MARK_LIMIT => Ok(mark),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it holds no number that could be a mark")),
        }
    }

    fn write(&mut self, value: u64) {
        match self.folder.replace(FILE, &value.to_string()) {
            Ok(()) => self.own = value,
            Err(error) => self.warn(&error),
        }
    }

    fn warn(&mut self, error: &io::Error) {
        if self.warned {
            return;
        }
        self.warned = true;
        let file = self.folder.path(FILE);
        tracing::warn!(
            file = %file.display(),
            %error,
            "the mark can't be kept: after a restart the clock alone sees to it that no number comes twice"
        );
    }
}

#[cfg(test)]
mod tests;
