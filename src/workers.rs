//! The threads: each runs one current-thread runtime, some for devices, some for the control plane.
//!
//! A connection stays on the thread that accepted it; no task is stolen. A push is written by the thread that serves
//! its caller, straight to the device's socket.

use std::{io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// Some threads with a runtime each. Dropping it stops their runtimes, tasks and all.
pub(crate) struct Workers {
    threads: Vec<Worker>,
}

struct Worker {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

/// As many as were asked for; 0: half of the cores, at least one.
pub(crate) fn count(configured: u32) -> usize {
    match configured {
        0 => thread::available_parallelism().map_or(1, |cores| cores.get() / 2).max(1),
        some => some as usize,
    }
}

impl Workers {
    /// Starts `count` threads called `name`-0, `name`-1, …
    ///
    /// # Errors
    ///
    /// Where the machine gives no thread, or no descriptor for its runtime.
    pub(crate) fn start(name: &str, count: usize) -> io::Result<Self> {
        let threads = (0..count).map(|place| Worker::start(format!("{name}-{place}"))).collect::<io::Result<_>>()?;
        Ok(Self { threads })
    }

    /// The runtimes, one for each thread.
    pub(crate) fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.threads.iter().map(|worker| &worker.handle)
    }

    /// The first runtime, for what is there once.
    pub(crate) fn first(&self) -> &Handle {
        &self.threads[0].handle
    }
}

impl Worker {
    fn start(name: String) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name(name).spawn(move || {
            // Ends by the word, or with the `Workers` that hold the other end.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.threads {
            worker.stop.take();
        }
        for worker in &mut self.threads {
            if let Some(thread) = worker.thread.take()
                && thread.thread().id() != thread::current().id()
            {
                let _ = thread.join();
            }
        }
    }
}
