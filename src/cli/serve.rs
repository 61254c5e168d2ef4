//! `plex serve`: the gateway itself, from the configuration to the end of its drain.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Exit, Failure};
use crate::{
    config::Config,
    server::{Ended, Server, StartError},
    telemetry,
};

/// Runs the gateway until SIGTERM or Ctrl-C, then drains. A second signal ends the process at once, with 128 and the
/// signal's number as its exit code.
pub(super) async fn serve(config: Config) -> Result<Exit, Failure> {
    telemetry::init(&config.log);
    let max_connections = config.device.max_connections;
    // Before anything is logged: a configuration that is refused ends with its one line.
    let server = Server::builder(config).build()?;
    raise_open_files(max_connections);
    let listen = |kind| signal(kind).map_err(|error| Failure::new(Exit::No, format!("can't await signals: {error}")));
    let mut signals =
        Signals { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? };

    let gateway = server.bind().await?;
    let stop = gateway.stopper();
    let mut running = std::pin::pin!(gateway.run());
    let first = tokio::select! {
        ended = &mut running => return exit_of(ended),
        number = signals.next() => number,
    };
    tracing::info!(signal = first, "stopping; a second signal ends at once");
    stop.shutdown();
    tokio::select! {
        ended = &mut running => exit_of(ended),
        number = signals.next() => std::process::exit(128 + number),
    }
}

fn exit_of(ended: Ended) -> Result<Exit, Failure> {
    match ended {
        Ended::Stopped => Ok(Exit::Done),
        Ended::Superseded => Ok(Exit::No),
        Ended::Broken => Err(Failure::new(Exit::No, "cluster: this node's part in it has broken down")),
        Ended::Refused(why) => Err(Failure::new(Exit::No, format!("cluster: {why}"))),
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// The number of the next one.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            _ = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
        }
    }
}

/// One descriptor is one device: the process takes all that it may have.
fn raise_open_files(max_connections: u32) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(open_files) if open_files < u64::from(max_connections) => {
            tracing::warn!(open_files, max_connections, "the limit of open files is below device.max_connections");
        }
        Ok(open_files) => tracing::info!(open_files, "limit of open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files can't be raised"),
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(error) => error.into(),
            error @ StartError::File { .. } => Self::new(Exit::Usage, error.to_string()),
            other => Self::new(Exit::No, other.to_string()),
        }
    }
}
