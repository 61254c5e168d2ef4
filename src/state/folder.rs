//! The data folder: small files, replaced as a whole.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The longest file, in bytes: a secret has at most 1,024, the mark 16 digits.
const FILE_BYTES_MAX: u64 = 4096;

/// The folder where state is kept.
#[derive(Debug, Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes it where it doesn't exist, for its owner alone.
    pub(super) fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    /// The file's text, without one newline at its end. None where there is no such file.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<String>> {
        let file = match File::open(self.path(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(Some(text))
    }

    /// Puts `text` in the place of the file: afterwards, and after a crash, it is there as a whole, or what was there before.
    /// Whoever may do this at the same time holds [`Folder::lock`].
    pub(super) fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let new = self.path(&format!("{name}.new"));
        // What a crash left there is of no use.
        write(OpenOptions::new().create(true).truncate(true), &new, text)?;
        fs::rename(&new, self.path(name))?;
        self.sync()
    }

    /// Makes the file where there is none, with `text` from its first moment on, and tells whether it did. `unique` tells
    /// this attempt from all others.
    pub(super) fn create(&self, name: &str, text: &str, unique: &str) -> io::Result<bool> {
        let new = self.path(&format!("{name}.{unique}"));
        let path = self.path(name);
        let linked = write(OpenOptions::new().create_new(true), &new, text).and_then(|()| {
            match fs::hard_link(&new, &path) {
                // A file system without links: whoever reads at this moment may find it empty, and is told so.
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    write(OpenOptions::new().create_new(true), &path, text)
                }
                linked => linked,
            }
        });
        // It may be left where it can't be removed: nothing reads it.
        let _ = fs::remove_file(&new);
        match linked {
            Ok(()) => self.sync().map(|()| true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until no other process holds it; it ends with the value. An error where the file system knows no locks.
    pub(super) fn lock(&self) -> io::Result<File> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(self.path("lock"))?;
        file.lock()?;
        Ok(file)
    }

    /// A rename or link outlives a loss of power only once its folder is written.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }
}

fn write(how: &mut OpenOptions, path: &Path, text: &str) -> io::Result<()> {
    let mut file = how.write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_who_make_a_file_the_first_one_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(temporary.path());
        folder.make().unwrap();
        assert!(folder.create("f", "first", "a").unwrap());
        assert!(!folder.create("f", "second", "b").unwrap());
        assert_eq!(folder.read("f").unwrap().as_deref(), Some("first"));
    }

    #[test]
    fn a_file_is_replaced_also_where_a_crash_left_half_of_a_new_one() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(temporary.path());
        fs::write(folder.path("f.new"), "a long half of a file").unwrap();
        folder.replace("f", "1").unwrap();
        folder.replace("f", "2").unwrap();
        assert_eq!(folder.read("f").unwrap().as_deref(), Some("2"));
        assert!(!folder.path("f.new").exists());
    }
}
