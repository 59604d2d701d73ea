//! What people type: the commands, their flags and their exit codes.
//!
//! A command's own file turns flags into calls of the library and results into text. What it prints on standard output is the answer;
//! everything else goes to standard error.

mod agent;
pub mod apidoc;
mod cleanup;
mod controller;
pub mod crd;
mod guard;
mod marks;
mod objects;
mod plan;
mod plan_json;
mod plan_text;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use thiserror::Error;

use crate::host::linux::BackendChoice;

/// Everything is as asked for.
pub const EXIT_OK: u8 = 0;
/// The host could not be programmed, or the API server not be reached.
pub const EXIT_FAILED: u8 = 1;
/// A claim is not Ready, an input is wrong, or the command line is (as clap exits).
pub const EXIT_INPUT: u8 = 2;

/// Virtual addresses for VMs in closed networks, and a fence around everything else
#[derive(Debug, Parser)]
#[command(
    name = "stagenet",
    version,
    about,
    long_about = "Virtual addresses for VMs in closed networks, and a fence around everything else.\n\n\
        A closed network holds restored copies of production VMs that must reach nothing. stagenet makes chosen VMs in it \
        reachable at addresses that no host owns, by rules on a gateway node, and drops, counts and names all the rest.",
    after_help = "Start here:\n  \
        stagenet plan -f examples/seed --node vm02             what would be programmed; touches nothing\n  \
        stagenet agent --manifests examples/seed --node vm02   program this host and keep it so\n  \
        stagenet cleanup                                       remove everything of stagenet from this host\n\n\
        Exit status: 0 all is as asked for; 1 the host could not be programmed; 2 a claim is not Ready, or the input is wrong.",
    propagate_version = true,
    max_term_width = 110
)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
#[allow(
    missing_docs,
    reason = "the help is that of the arguments; a comment here would take the place of all of it but the first line"
)]
pub enum Command {
    Agent(agent::AgentArgs),
    Controller(controller::ControllerArgs),
    Plan(plan::PlanArgs),
    Cleanup(cleanup::CleanupArgs),
    /// Print the custom resource definitions
    Crd,
}

/// Which iptables tool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendArg {
    /// The one that the node's other programs use
    #[default]
    Auto,
    /// iptables-nft, which writes to nftables
    Nft,
    /// iptables-legacy, which writes to the kernel's own tables of iptables
    Legacy,
}

impl BackendArg {
    fn chosen(self) -> BackendChoice {
        match self {
            Self::Auto => BackendChoice::Auto,
            Self::Nft => BackendChoice::Nft,
            Self::Legacy => BackendChoice::Legacy,
        }
    }
}

/// A command that could not do its work: one sentence, with causes attached.
#[derive(Debug, Error)]
pub enum CliError {
    /// Manifests that cannot be read or used.
    #[error("{0}")]
    Input(String),
    /// The status file cannot be written.
    #[error("writing the status file {path}: {source}", path = path.display())]
    StatusFile {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The agent.
    #[error(transparent)]
    Agent(#[from] crate::agent::AgentError),
    /// The host.
    #[error(transparent)]
    Host(#[from] crate::host::HostError),
    /// Anything else that stopped the command.
    #[error("{action}: {source}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CliError {
    /// The process's exit status for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input(_) => EXIT_INPUT,
            Self::Agent(error) if error.is_usage() => EXIT_INPUT,
            _ => EXIT_FAILED,
        }
    }
}

/// Runs one command to its end.
pub async fn run(cli: Cli) -> Result<ExitCode, CliError> {
    match cli.command {
        Command::Agent(args) => agent::run(args).await,
        Command::Controller(args) => controller::run(args).await,
        Command::Plan(args) => plan::run(&args),
        Command::Cleanup(args) => cleanup::run(args).await,
        Command::Crd => {
            print!("{}", crd::crds_yaml());
            Ok(ExitCode::from(EXIT_OK))
        }
    }
}

/// Rows as aligned columns.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
