//! The commands of `plex`: the gateway itself, and small tools that speak with one as a backend or a device does.

mod bench;
mod broadcast;
mod device;
mod exit;
mod gateway;
mod kick;
mod local;
mod manual;
mod node;
mod nodes;
mod online;
mod output;
mod push;
mod serve;
mod sessions;
mod table;
mod token;
mod watch;

use std::{ffi::OsString, future::Future, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    exit::{Exit, Failure},
    output::Output,
};

/// Exit codes, for `--help`; the enum is `Exit`.
const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 the answer is no, 2 bad usage, configuration or request, 3 refused (secret or credential), \
4 the gateway can't be reached";

#[derive(Debug, Parser)]
#[command(name = "plex", version, about = "A push gateway for devices, controlled over gRPC", after_help = EXIT_CODES)]
struct Cli {
    /// The configuration [default: plex.toml in this folder, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    Serve(local::ConfigArgs),
    /// Check the configuration and print it as a file, secrets left out
    Check(local::ConfigArgs),
    /// Print the secret that the commands on this machine use
    Secret,
    /// Make a token for a device, signed with an HMAC secret, for trying it out
    Token(token::TokenArgs),
    /// Push one message to a device, or many from standard input
    Push(push::PushArgs),
    /// Push one message to everyone who is connected
    Broadcast(broadcast::BroadcastArgs),
    /// Tell who is online; exit code 1 unless all are
    Online(online::OnlineArgs),
    /// Follow who comes online and goes offline
    Watch(watch::WatchArgs),
    /// Close the connections of a device
    Kick(kick::KickArgs),
    /// List connections
    Sessions(sessions::SessionsArgs),
    /// List the nodes of the cluster
    Nodes(nodes::NodesArgs),
    /// Tell where a device should connect now
    Host(node::HostArgs),
    /// Tell what the gateway is and holds
    Info(node::InfoArgs),
    /// Be a device: show each push and acknowledge it
    Device(device::DeviceArgs),
    /// Measure a gateway: pushes a second, latency, lost and doubled, CPU and memory
    Bench(bench::BenchArgs),
    #[command(hide = true)]
    BenchFloor(bench::FloorArgs),
    /// Print what makes a shell complete these commands
    Completions(manual::CompletionsArgs),
    /// Print the manual page, or write that of every command to a folder
    Man(manual::ManArgs),
}

/// Runs the command that `arguments` tell, the program's name first, to its end.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads to its end is no failure.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    match execute(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::complain(&failure.message);
            failure.exit.into()
        }
    }
}

fn execute(cli: Cli) -> Result<Exit, Failure> {
    let Cli { config, command } = cli;
    match command {
        Command::Serve(args) => block_on(serve::serve(args.load(config)?)),
        Command::Check(args) => local::check(&args.load(config)?, &mut Output::stdout(false)),
        Command::Secret => local::secret(&gateway::load(config)?, &mut Output::stdout(false)),
        Command::Token(args) => token::token(&args, config),
        Command::Push(args) => block_on(push::push(args, config)),
        Command::Online(args) => block_on(online::online(args, config)),
        Command::Broadcast(args) => block_on(broadcast::broadcast(args, config)),
        Command::Kick(args) => block_on(kick::kick(args, config)),
        Command::Sessions(args) => block_on(sessions::sessions(args, config)),
        Command::Nodes(args) => block_on(nodes::nodes(args, config)),
        Command::Bench(args) => block_on(bench::bench(args, config)),
        Command::BenchFloor(args) => bench::floor(&args),
        Command::Completions(args) => manual::completions(&args, Cli::command()),
        Command::Man(args) => manual::man(args, Cli::command()),
        Command::Watch(args) => block_on(until_stopped(watch::watch(args, config))),
        Command::Host(args) => block_on(node::host(args, config)),
        Command::Info(args) => block_on(node::info(args, config)),
        Command::Device(args) => block_on(until_stopped(device::device(args, config))),
    }
}

fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::No, format!("can't start: {error}")))?;
    let result = runtime.block_on(command);
    // A resolver that hangs must not keep the command from ending.
    runtime.shutdown_background();
    result
}

/// Runs a command that has no end of its own, until Ctrl-C or a SIGTERM.
async fn until_stopped(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::new(Exit::No, format!("can't await signals: {error}")));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        result = command => result,
        _ = interrupt.recv() => Ok(Exit::Done),
        _ = terminate.recv() => Ok(Exit::Done),
    }
}

#[cfg(test)]
mod tests;
