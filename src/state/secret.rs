//! The control secret that is made up at the first start.

use std::{
    fmt::Write,
    io,
    path::{Path, PathBuf},
};

use rand::{TryRng, rngs::SysRng};

use super::folder::Folder;
use crate::config::Secret;

const FILE: &str = "control.secret";
/// As long as the keys of what protects it elsewhere: nobody guesses 256 bits.
const SECRET_BYTES: usize = 32;

/// Why there is no secret. One line, with the file's path.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file, or its folder, can't be read or made.
    #[error("{}: {doing}: {error}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What didn't work.
        doing: &'static str,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It holds no secret.
    #[error(
        "{}: holds no secret (1 to 1024 printable ASCII characters in one line); without the file the next start makes one up",
        .path.display()
    )]
    NoSecret {
        /// Which.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random bytes for a secret: {0}")]
    Random(String),
}

/// Reads the secret that was made up at an earlier start, `control.secret` in `data_dir`. Where there is none yet: makes one
/// up (32 random bytes in hex, mode 0600 in a folder of mode 0700) if `create`, else None. Of several processes that start at
/// once all get the same. Blocks for the disk.
///
/// # Errors
///
/// A file that can't be read or written, or holds no secret: one is never made in its place, since that would lock out
/// whoever knows the old one.
pub fn control_secret(data_dir: &Path, create: bool) -> Result<Option<Secret>, StateError> {
    let folder = Folder::new(data_dir);
    if let Some(secret) = read(&folder)? {
        return Ok(Some(secret));
    }
    if !create {
        return Ok(None);
    }
    folder.make().map_err(|error| StateError::Io { path: data_dir.to_owned(), doing: "can't be made", error })?;
    folder
        .create(FILE, &random_hex::<SECRET_BYTES>()?, &random_hex::<8>()?)
        .map_err(|error| failed(&folder, "can't be written", error))?;
    // Whoever was first: what stands there is the secret.
    read(&folder)
}

fn read(folder: &Folder) -> Result<Option<Secret>, StateError> {
    match folder.read(FILE) {
        Ok(None) => Ok(None),
        Ok(Some(text)) => Secret::new(text).map(Some).map_err(|_| StateError::NoSecret { path: folder.path(FILE) }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(StateError::NoSecret { path: folder.path(FILE) })
        }
        Err(error) => Err(failed(folder, "can't be read", error)),
    }
}

fn failed(folder: &Folder, doing: &'static str, error: io::Error) -> StateError {
    StateError::Io { path: folder.path(FILE), doing, error }
}

fn random_hex<const BYTES: usize>() -> Result<String, StateError> {
    let mut bytes = [0; BYTES];
    SysRng.try_fill_bytes(&mut bytes).map_err(|error| StateError::Random(error.to_string()))?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes what is written to it");
        text
    }))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, sync::Barrier, thread};

    use super::*;

    fn text(data_dir: &Path, create: bool) -> Option<String> {
        control_secret(data_dir, create).unwrap().map(|secret| secret.expose().to_owned())
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_secret_is_made_up_once_and_read_back_later() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("a/b");
        assert_eq!(text(&data_dir, false), None);
        assert!(!data_dir.exists());
        let made = text(&data_dir, true).unwrap();
        assert!(made.len() == 64 && made.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_eq!(text(&data_dir, true).as_ref(), Some(&made));
        assert_eq!(text(&data_dir, false).as_ref(), Some(&made));
        assert_eq!((mode(&data_dir), mode(&data_dir.join(FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&data_dir).unwrap().count(), 1, "nothing but the secret is left");
        let other = text(&folder.path().join("other"), true).unwrap();
        assert_ne!(made, other);
    }

    #[test]
    fn many_starts_at_once_agree_on_one_secret() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("state");
        let ready = Barrier::new(16);
        let secrets: Vec<_> = thread::scope(|scope| {
            let start = || {
                ready.wait();
                text(&data_dir, true).unwrap()
            };
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(secrets.iter().all(|secret| *secret == secrets[0]), "{secrets:?}");
        assert_eq!(fs::read_dir(&data_dir).unwrap().count(), 1);
    }

    #[test]
    fn a_file_without_a_secret_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        for content in [&b""[..], b"\n", b"two\nlines\n", b"\xff", "ä".as_bytes(), &[b'a'; 5000]] {
            fs::write(&file, content).unwrap();
            let error = control_secret(folder.path(), true).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}: holds no secret", file.display())), "{error}");
            assert_eq!(fs::read(&file).unwrap(), content, "it stays as it is");
        }
    }

    #[test]
    fn a_file_that_somebody_wrote_counts_with_one_newline_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "mine\n").unwrap();
        assert_eq!(text(folder.path(), true).as_deref(), Some("mine"));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let data_dir = folder.path().join("file/state");
        let error = control_secret(&data_dir, true).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}", data_dir.display())) && error.lines().count() == 1, "{error}");
    }
}
