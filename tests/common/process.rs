//! The `plex` program itself, run in a home folder that has nothing in it, and ended by its own handle.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    thread,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    sync::mpsc::{UnboundedReceiver, unbounded_channel},
    time::timeout,
};

use super::{PATIENCE, eventually, http};

/// Somebody's home: where the program is started, and what it knows of the world.
pub struct Home {
    folder: TempDir,
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A program that runs. Killed when it is dropped.
pub struct TestProcess {
    child: Child,
    pub stdout: Lines,
    pub stderr: Lines,
}

/// What a program writes, line by line.
pub struct Lines {
    /// None: nobody reads any more.
    coming: Option<UnboundedReceiver<String>>,
    /// All that was read so far.
    pub seen: Vec<String>,
}

/// A gateway in a process of its own.
pub struct TestGateway {
    pub process: TestProcess,
    pub device: Option<SocketAddr>,
    pub control: SocketAddr,
    pub http: SocketAddr,
    pub metrics: Option<SocketAddr>,
}

/// Port 0 of loopback for all listeners.
pub const ANY_PORTS: [&str; 8] = [
    "--set",
    "device.listen=127.0.0.1:0",
    "--set",
    "control.listen=127.0.0.1:0",
    "--set",
    "http.listen=127.0.0.1:0",
    "--set",
    "metrics.listen=127.0.0.1:0",
];

impl Home {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder for the test") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A path as an argument.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("the test's folder has a plain name").to_owned()
    }

    /// Writes a file; gives its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).expect("the test's folder can be written");
        self.text(name)
    }

    /// The file of the made-up secret, where nothing else is configured.
    pub fn secret_file(&self) -> String {
        self.text(".local/state/plex/control.secret")
    }

    /// The made-up secret.
    pub fn secret(&self) -> String {
        fs::read_to_string(self.secret_file()).expect("a gateway has made up a secret").trim_end().to_owned()
    }

    /// The program with its arguments, started in this folder, with nothing but it in the environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.in_home(Command::new(env!("CARGO_BIN_EXE_plex")), arguments)
    }

    /// The program, started by a line of shell that ends with `exec "$0" "$@"`.
    pub fn shell(&self, line: &str, arguments: &[&str]) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", line, env!("CARGO_BIN_EXE_plex")]);
        self.in_home(shell, arguments)
    }

    fn in_home(&self, mut command: Command, arguments: &[&str]) -> Command {
        command.args(arguments).current_dir(self.folder.path()).env_clear().env("HOME", self.folder.path());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command
    }

    pub fn spawn(&self, arguments: &[&str]) -> TestProcess {
        TestProcess::spawn(self.command(arguments))
    }

    /// Runs it to its end.
    pub async fn run(&self, arguments: &[&str]) -> Finished {
        self.spawn(arguments).finished().await
    }

    /// A gateway on port 0, whose arguments are given behind that.
    pub async fn serve(&self, arguments: &[&str]) -> TestGateway {
        let arguments = [&["serve"], &ANY_PORTS[..], arguments].concat();
        TestGateway::of(self.spawn(&arguments)).await
    }

    /// Runs a command to its end, against this gateway, with the made-up secret.
    pub async fn ask(&self, gateway: &TestGateway, arguments: &[&str]) -> Finished {
        let (url, file) = (gateway.url(), self.secret_file());
        self.run(&[arguments, &["--control", &url, "--secret-file", &file]].concat()).await
    }
}

impl Finished {
    /// The only line on stderr of a program that refused, without its name: code 2, and nothing on stdout.
    #[track_caller]
    pub fn refusal(&self) -> &str {
        assert_eq!((self.code, &*self.stdout), (2, ""), "{self:?}");
        self.complaint()
    }

    /// The only line on stderr, without the program's name.
    #[track_caller]
    pub fn complaint(&self) -> &str {
        assert_eq!(self.stderr.lines().count(), 1, "{self:?}");
        self.stderr.trim_end().strip_prefix("plex: ").unwrap_or_else(|| panic!("it says who complains: {self:?}"))
    }

    /// The lines on stdout, of a program that has done what it should and complained of nothing.
    #[track_caller]
    pub fn lines(&self) -> Vec<&str> {
        assert_eq!((self.code, &*self.stderr), (0, ""), "{self:?}");
        self.stdout.lines().collect()
    }

    /// The lines on stdout, each read as JSON.
    #[track_caller]
    pub fn json(&self) -> Vec<Value> {
        let read = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        self.stdout.lines().map(read).collect()
    }
}

impl TestProcess {
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self::start(command)
    }

    /// One that reads `input`, which is then closed.
    pub fn fed(command: Command, input: impl Into<Vec<u8>>) -> Self {
        let (process, mut stdin) = Self::piped(command);
        let input = input.into();
        // It may end before it has read all.
        thread::spawn(move || stdin.write_all(&input));
        process
    }

    /// One that reads what the test writes.
    pub fn piped(mut command: Command) -> (Self, ChildStdin) {
        command.stdin(Stdio::piped());
        let mut process = Self::start(command);
        let input = process.child.stdin.take().expect("it is piped");
        (process, input)
    }

    fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program can be started");
        let stdout = Lines::of(child.stdout.take().expect("it is piped"));
        let stderr = Lines::of(child.stderr.take().expect("it is piped"));
        Self { child, stdout, stderr }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name: `TERM`, `INT`.
    pub fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &line]).status().expect("there is a shell").success());
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it was this process's child");
    }

    /// How it ended; None: it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is this process's child")
    }

    pub async fn exit(&mut self) -> ExitStatus {
        eventually("the program ends", || std::future::ready(self.ended())).await
    }

    /// Its end by itself, with all that it wrote.
    pub async fn finished(mut self) -> Finished {
        let status = self.exit().await;
        let code = status.code().unwrap_or_else(|| panic!("ended by a signal: {status}: {:?}", self.stderr.seen));
        Finished { code, stdout: self.stdout.all().await, stderr: self.stderr.all().await }
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lines {
    fn of(source: impl Read + Send + 'static) -> Self {
        let (send, coming) = unbounded_channel();
        thread::spawn(move || {
            for line in BufReader::new(source).lines().map_while(Result::ok) {
                // Dropped with the receiver: the program then writes to nobody.
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { coming: Some(coming), seen: Vec::new() }
    }

    /// The next line; panics at the end.
    pub async fn next(&mut self) -> String {
        let coming = self.coming.as_mut().expect("somebody reads");
        let line = timeout(PATIENCE, coming.recv()).await;
        let line = line.unwrap_or_else(|_| panic!("another line in time, after {:#?}", self.seen));
        let line = line.unwrap_or_else(|| panic!("another line before the end, after {:#?}", self.seen));
        self.seen.push(line.clone());
        line
    }

    /// The next line, read as JSON.
    pub async fn json(&mut self) -> Value {
        let line = self.next().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// The next line with `text` in it.
    pub async fn until(&mut self, text: &str) -> String {
        loop {
            let line = self.next().await;
            if line.contains(text) {
                return line;
            }
        }
    }

    /// All lines up to the end.
    pub async fn all(&mut self) -> String {
        let coming = self.coming.as_mut().expect("somebody reads");
        while let Some(line) = timeout(PATIENCE, coming.recv()).await.expect("the end in time") {
            self.seen.push(line);
        }
        self.seen.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Reads no more: after at most one line the program writes to a broken pipe.
    pub fn close(&mut self) {
        self.coming = None;
    }
}

impl TestGateway {
    /// One that is starting: waits for the line that tells where it listens.
    pub async fn of(mut process: TestProcess) -> Self {
        let line = process.stderr.until("listening").await;
        let json: Option<Value> = serde_json::from_str(&line).ok();
        let address = |name: &str| {
            let text = match &json {
                Some(json) => json[name].as_str().map(str::to_owned),
                None => line.split(' ').find_map(|word| word.strip_prefix(&format!("{name}="))).map(str::to_owned),
            };
            text.map(|text| text.parse().unwrap_or_else(|_| panic!("{name} has an address: {line}")))
        };
        let [device, control, http, metrics] = ["device", "control", "http", "metrics"].map(address);
        let needed = |address: Option<SocketAddr>| address.unwrap_or_else(|| panic!("an address: {line}"));
        Self { process, device, control: needed(control), http: needed(http), metrics }
    }

    /// What `/readyz` answers.
    pub async fn readyz(&self) -> u16 {
        http(self.http, "GET", "/readyz").await.0
    }

    /// Waits until it takes devices.
    pub async fn is_ready(&self) {
        eventually("it is ready", || async { (self.readyz().await == 200).then_some(()) }).await;
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.control)
    }

    /// Where devices connect.
    pub fn device(&self) -> SocketAddr {
        self.device.expect("devices are listened for")
    }

    /// Ends it by SIGTERM; its exit code and all that it wrote.
    pub async fn stopped(self) -> Finished {
        self.process.signal("TERM");
        self.process.finished().await
    }
}

/// An address of loopback that no other test has, so that fixed ports are free there.
pub fn own_loopback() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(next < 255, "addresses enough for one file of tests");
    Ipv4Addr::new(127, 64 + high % 64, low, next)
}

/// A configuration with all listeners at fixed ports of `host`, and what else is said for their sections.
pub fn fixed_ports(host: Ipv4Addr) -> String {
    format!(
        "[device]\nlisten = \"{host}:9578\"\n[http]\nlisten = \"{host}:9579\"\n\
         [control]\nlisten = \"{host}:9580\"\n[metrics]\nlisten = \"{host}:9581\"\n"
    )
}

/// The permission bits of a file.
pub fn mode(path: impl AsRef<Path>) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).expect("it exists").permissions().mode() & 0o777
}
