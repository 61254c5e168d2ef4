//! The floor: a bare write() loop, in a process of its own, which writes the same frames to as many sockets with
//! nothing around it. What a gateway costs beside it is its own.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tokio::io::AsyncReadExt;

use super::{
    FloorArgs,
    login::{dial, source},
    process::Process,
};
use crate::{
    cli::{Exit, Failure},
    frame::{self, ByteOrder},
};

/// What the write() loop costs and does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Floor {
    /// CPU of one write, in microseconds.
    pub(super) cpu_us: f64,
    pub(super) writes_per_second: f64,
}

/// How long it writes before it is measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// Sockets that are connected at a time.
const CONNECTS_MAX: usize = 200;

/// The process that writes; ended with this.
struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `plex bench-floor`: tells its address, takes the sockets, and writes for ever, to one after the other.
pub(in crate::cli) fn serve(args: &FloorArgs) -> Result<Exit, Failure> {
    let failure = |error: io::Error| Failure::new(Exit::No, format!("floor: {error}"));
    let listener = TcpListener::bind("127.0.0.1:0").map_err(failure)?;
    // As deep a backlog as the gateway's.
    socket2::SockRef::from(&listener).listen(65_535).map_err(failure)?;
    println!("{}", listener.local_addr().map_err(failure)?);
    io::stdout().flush().map_err(failure)?;
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let mut sockets = (0..args.devices).map(|_| Ok(listener.accept()?.0)).collect::<io::Result<Vec<_>>>();
    for socket in sockets.iter_mut().flatten() {
        socket.set_nodelay(true).map_err(failure)?;
    }
    let mut sockets = sockets.map_err(failure)?;
    let frame = frame_of(args.body);
    loop {
        for socket in &mut sockets {
            // Blocks where the devices don't keep up: nothing is lost, and waiting costs no CPU.
            if socket.write_all(&frame).is_err() {
                return Ok(Exit::Done);
            }
        }
    }
}

/// A frame as long as those of the gateway.
fn frame_of(body: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    frame::encode(ByteOrder::Big, 1_790_000_000_000_000, "/bench", &"x".repeat(body as usize), &mut frame);
    frame
}

/// Runs it, reads all that it writes, and tells what it costs.
pub(super) async fn measure(devices: u32, body: u32, duration: Duration, sources: &[IpAddr]) -> Result<Floor, Failure> {
    let failure = |error: io::Error| Failure::new(Exit::No, format!("floor: {error}"));
    let child = Command::new(std::env::current_exe().map_err(failure)?)
        .args(["bench-floor", "--devices", &devices.to_string(), "--body", &body.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failure)?;
    let mut writer = Writer(child);
    let mut line = String::new();
    BufReader::new(writer.0.stdout.take().expect("it is piped")).read_line(&mut line).map_err(failure)?;
    let address: SocketAddr = line.trim().parse().map_err(|_| failure(io::ErrorKind::InvalidData.into()))?;
    let process = Process::of(writer.0.id())?;

    let (bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, stopped, sources) = (Arc::clone(&bytes), Arc::clone(&stop), sources.to_vec());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failure)?;
    // The devices have a thread of their own, as against a gateway.
    let reading =
        std::thread::spawn(move || runtime.block_on(read_all(address, devices, &sources, &counted, &stopped)));
    while bytes.load(Relaxed) == 0 && !reading.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    tokio::time::sleep(WARM_UP).await;
    let (begun, cpu, read) = (Instant::now(), process.cpu()?, bytes.load(Relaxed));
    tokio::time::sleep(duration).await;
    let (elapsed, cpu) = (begun.elapsed(), process.cpu()?.saturating_sub(cpu));
    // Counted where it arrives: every byte does.
    let writes = (bytes.load(Relaxed) - read) as f64 / frame_of(body).len() as f64;
    stop.store(true, Relaxed);
    drop(writer);
    let read = tokio::task::spawn_blocking(|| reading.join().expect("reading doesn't panic")).await;
    read.expect("it isn't cancelled").map_err(failure)?;
    Ok(Floor { cpu_us: cpu.as_secs_f64() * 1e6 / writes, writes_per_second: writes / elapsed.as_secs_f64() })
}

async fn read_all(
    address: SocketAddr,
    devices: u32,
    sources: &[IpAddr],
    bytes: &AtomicU64,
    stop: &AtomicBool,
) -> io::Result<()> {
    let dialing = stream::iter(0..devices).map(|number| dial(address, source(sources, address, number)));
    let sockets: Vec<_> = dialing.buffer_unordered(CONNECTS_MAX).collect().await;
    let sockets = sockets.into_iter().collect::<io::Result<Vec<_>>>()?;
    let reads = sockets.into_iter().map(|mut socket| async move {
        let mut buffer = [0; 4 << 10];
        // Ends with the writer.
        while let Ok(count @ 1..) = socket.read(&mut buffer).await {
            bytes.fetch_add(count as u64, Relaxed);
            if stop.load(Relaxed) {
                return;
            }
        }
    });
    futures_util::future::join_all(reads).await;
    Ok(())
}
