//! `plex completions` and `plex man`: what a shell and a reader know of the commands, made from their arguments.

use std::{fs, io, path::PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::{Exit, Failure};

#[derive(Debug, Clone, Args)]
pub(super) struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

#[derive(Debug, Clone, Args)]
pub(super) struct ManArgs {
    /// Where to write plex.1, plex-push.1 and so on [default: plex.1 to standard output]
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Prints the script; where it goes is the shell's affair.
pub(super) fn completions(args: &CompletionsArgs, mut plex: Command) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut plex, "plex", &mut script);
    print(&script)
}

/// Prints one manual page, or writes all.
pub(super) fn man(args: ManArgs, plex: Command) -> Result<Exit, Failure> {
    let Some(folder) = args.dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(plex).render(&mut page).map_err(failure)?;
        return print(&page);
    };
    let failure = |error: io::Error| Failure::new(Exit::No, format!("{}: {error}", folder.display()));
    fs::create_dir_all(&folder).map_err(failure)?;
    clap_mangen::generate_to(plex, &folder).map_err(failure)?;
    Ok(Exit::Done)
}

fn print(text: &[u8]) -> Result<Exit, Failure> {
    use io::Write;
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(failure(error)),
        _ => Ok(Exit::Done),
    }
}

fn failure(error: io::Error) -> Failure {
    Failure::new(Exit::No, format!("can't write: {error}"))
}
