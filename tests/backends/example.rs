//! A program of `examples/backends`, made as its README says.

use std::{
    env, fs,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};

pub const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// What the program of one language is made from, and how it is called.
pub struct Example {
    pub language: String,
    /// What stands for the clone: a copy of `proto`, one of the example, and target/debug/plex.
    pub root: PathBuf,
    /// The copy of the example.
    pub folder: PathBuf,
    /// What its README makes it with.
    pub make: String,
    /// What its README writes before `push`.
    pub program: Vec<String>,
    /// What its README shows against a gateway.
    pub shown: String,
}

/// What an example is made and run with.
pub struct Tool {
    /// What is said to be missing.
    pub name: &'static str,
    /// Shell in the example's folder that tells its version, and fails where it is missing or too old.
    pub line: &'static str,
}

/// The block of a page in this language that has `text` in it.
pub fn block<'a>(page: &'a str, language: &str, text: &str) -> &'a str {
    let fence = format!("```{language}\n");
    let mut blocks = page.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.find(|block| block.contains(text)).unwrap_or_else(|| panic!("{text} in {page}"))
}

impl Example {
    /// Makes the program; None where a tool is missing.
    pub fn of(language: &str, tools: &[Tool]) -> Option<Self> {
        let original = Path::new(REPOSITORY).join("examples/backends").join(language);
        let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("backends").join(language);
        let folder = root.join("examples/backends").join(language);
        let mut versions = String::new();
        for tool in tools {
            let tried = shell(tool.line, &original);
            if !tried.status.success() {
                // Past the test's own capture, which is thrown away where a test passes.
                let line = format!("skipped: examples/backends/{language}: {} isn't on this machine\n", tool.name);
                io::stderr().write_all(line.as_bytes()).unwrap();
                assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "CI has all tools: {tried:?}");
                return None;
            }
            versions += &String::from_utf8_lossy(&tried.stdout);
        }
        let readme = fs::read_to_string(original.join("README.md")).unwrap();
        let shown = block(&readme, "sh", "PLEX_SECRET");
        let make = readme.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
        let made = ["backend", "plex", ".venv", "__pycache__", "node_modules", "target"];
        // What was made by the same tools from the same files is made already.
        let done = root.join("made-with");
        let before = fs::read_to_string(&done).ok();
        let _ = fs::remove_file(&done);
        if before.as_ref() != Some(&versions) {
            // Other tools may not get on with what is there.
            let _ = fs::remove_dir_all(&root);
        }
        let changed = copy(Path::new(REPOSITORY).join("proto"), &root.join("proto"), &[])
            | copy(original, &folder, &made)
            | (before.as_ref() != Some(&versions));
        if changed {
            let made = shell(make, &folder);
            assert!(made.status.success(), "{make}{}", String::from_utf8_lossy(&[made.stdout, made.stderr].concat()));
        }
        fs::write(&done, versions).unwrap();
        let plex = root.join("target/debug/plex");
        let _ = fs::remove_file(&plex);
        fs::create_dir_all(plex.parent().unwrap()).unwrap();
        symlink(env!("CARGO_BIN_EXE_plex"), plex).unwrap();
        let call = shown.lines().find_map(|line| line.split_once(" push ")).expect("a push").0;
        let program = call.split(' ').map(str::to_owned).collect();
        let (language, make, shown) = (language.to_owned(), make.to_owned(), shown.to_owned());
        Some(Self { language, root, folder, make, program, shown })
    }

    pub fn command(&self, control: SocketAddr, secret: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program[0]);
        command.args(&self.program[1..]).args(arguments).current_dir(&self.folder);
        command.env("PLEX_CONTROL", control.to_string()).env("PLEX_SECRET", secret).env_remove("PLEX_CA");
        command
    }
}

/// Runs these lines in this folder.
fn shell(lines: &str, folder: &Path) -> Output {
    Command::new("sh").args(["-euc", lines]).current_dir(folder).output().expect("a shell")
}

/// Copies a folder over what a former run has made from it, less what is made in it. Tells whether something is new.
fn copy(from: PathBuf, to: &Path, made: &[&str]) -> bool {
    fs::create_dir_all(to).unwrap();
    let mut changed = false;
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if made.iter().any(|made| name == *made) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            changed |= copy(entry.path(), &to.join(name), &[]);
            continue;
        }
        let text = fs::read(entry.path()).unwrap();
        if fs::read(to.join(&name)).ok().as_ref() != Some(&text) {
            changed = true;
            fs::write(to.join(&name), text).unwrap();
        }
    }
    changed
}
