//! The `plex` command. What it does stands in `plex::cli`.

use std::process::ExitCode;

/// Of the three that were measured, the one that needs the least for each idle device, and gives a storm's peak back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    plex::cli::run(std::env::args_os())
}
