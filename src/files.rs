//! Files that are read again while the gateway runs: certificates, keys, secrets.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

/// The largest file, in bytes: a hundred certificates take less.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How often files are looked at. They are few and small, and their content is compared: a time stamp may stay the same,
/// and a link further up may be changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A file that can't be used. One line, with its path.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", .path.display())]
pub struct FileError {
    /// Which.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

impl FileError {
    pub(crate) fn new(path: &Path, problem: impl ToString) -> Self {
        Self { path: path.to_owned(), problem: problem.to_string() }
    }
}

/// The content of a file, at most 1 MiB.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    read_io(path).map_err(|error| FileError::new(path, format_args!("can't be read: {error}")))
}

fn read_io(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MiB"));
    }
    Ok(bytes)
}

/// Loads what is made of some files anew; says in the log what became of it.
type Reload = Box<dyn FnMut() + Send>;

/// Files that are looked at by a thread of their own, until the [`FileWatching`] is dropped.
#[derive(Default)]
pub(crate) struct FileWatch {
    groups: Vec<Group>,
}

/// The content of some files at one moment, as keyed hashes: nobody learns a secret from it.
pub(crate) struct Seen {
    paths: Vec<PathBuf>,
    hasher: RandomState,
    hashes: Vec<u64>,
}

impl Seen {
    /// Looks at the files; one that can't be read is seen as such.
    pub(crate) fn now(paths: Vec<PathBuf>) -> Self {
        let mut seen = Self { paths, hasher: RandomState::new(), hashes: Vec::new() };
        seen.hashes = seen.look();
        seen
    }

    fn look(&self) -> Vec<u64> {
        self.paths.iter().map(|path| read_io(path).map_or(0, |bytes| self.hasher.hash_one(bytes))).collect()
    }
}

struct Group {
    /// What was last loaded.
    loaded: Seen,
    /// What was found at the last look.
    last: Vec<u64>,
    reload: Reload,
}

/// Ends the thread.
pub(crate) struct FileWatching(Arc<(Mutex<()>, Condvar, AtomicBool)>);

impl FileWatch {
    /// Calls `reload` after the content of any of the files has become another than was `seen`, once it is the same at two
    /// looks: a certificate and its key are replaced one after the other. `seen` is taken before the files are read for the
    /// first time, so that nothing is missed.
    pub(crate) fn add(&mut self, seen: Seen, reload: impl FnMut() + Send + 'static) {
        if !seen.paths.is_empty() {
            self.groups.push(Group { last: seen.hashes.clone(), loaded: seen, reload: Box::new(reload) });
        }
    }

    /// Begins to look. None where there is no file.
    pub(crate) fn start(mut self) -> io::Result<Option<FileWatching>> {
        if self.groups.is_empty() {
            return Ok(None);
        }
        let end = Arc::new((Mutex::new(()), Condvar::new(), AtomicBool::new(false)));
        let shared = Arc::clone(&end);
        thread::Builder::new().name("files".into()).spawn(move || {
            let (lock, bell, ended) = &*shared;
            while !ended.load(Relaxed) {
                self.groups.iter_mut().for_each(Group::look);
                let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
                drop(bell.wait_timeout(guard, LOOK_INTERVAL));
            }
        })?;
        Ok(Some(FileWatching(end)))
    }
}

impl Group {
    fn look(&mut self) {
        let now = self.loaded.look();
        if now == self.last && now != self.loaded.hashes {
            (self.reload)();
            self.loaded.hashes.clone_from(&now);
        }
        self.last = now;
    }
}

impl Drop for FileWatching {
    fn drop(&mut self) {
        self.0.2.store(true, Relaxed);
        self.0.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc};

    use super::*;

    #[test]
    fn a_file_that_changes_is_loaded_again_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "one").unwrap();
        let (told, loads) = mpsc::channel();
        let mut watch = FileWatch::default();
        let loaded = path.clone();
        watch.add(Seen::now(vec![path.clone()]), move || told.send(fs::read_to_string(&loaded)).unwrap());
        let _watching = watch.start().unwrap().unwrap();
        fs::write(&path, "two").unwrap();
        assert_eq!(loads.recv_timeout(Duration::from_secs(20)).unwrap().unwrap(), "two");
        fs::remove_file(&path).unwrap();
        assert!(loads.recv_timeout(Duration::from_secs(20)).unwrap().is_err());
        fs::write(&path, "three").unwrap();
        assert_eq!(loads.recv_timeout(Duration::from_secs(20)).unwrap().unwrap(), "three");
        assert!(loads.try_recv().is_err());
    }

    #[test]
    fn a_file_that_is_too_large_or_missing_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("large: can't be read: ") && error.contains("1 MiB"), "{error}");
        assert!(read(&folder.path().join("missing")).unwrap_err().to_string().contains("missing: can't be read: "));
    }
}
