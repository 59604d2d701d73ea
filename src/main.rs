//! Wiring only: parses the command line, runs the command, prints an error as one sentence with its causes.

#![deny(clippy::disallowed_methods)]

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use mimalloc::MiMalloc;
use stagenet::cli::{Cli, CliError, EXIT_FAILED};
use stagenet::telemetry::chain;

/// Gives memory back that is no longer used. The agent needs ten times as much for a moment, when ten thousand mappings come at once, as it needs to keep them.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    match start() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", chain(error.as_ref()));
            ExitCode::from(error.downcast_ref::<CliError>().map_or(EXIT_FAILED, CliError::exit_code))
        }
    }
}

fn start() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    Ok(runtime.block_on(stagenet::cli::run(cli))?)
}
