//! `stagenet cleanup`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::marks::mark;
use super::{BackendArg, CliError, EXIT_FAILED, EXIT_OK};
use crate::agent::cleanup;
use crate::agent::source::directory;
use crate::host::Host;
use crate::host::linux::{BackendChoice, LinuxHost, LinuxOptions};

/// Remove everything of stagenet from this node
#[derive(Debug, Args)]
#[command(
    long_about = "Remove everything of stagenet from this node: jumps and chains in every table, routes, proxy neighbours, addresses; and put back the interface \
        settings that were found. Whatever bears no mark of stagenet is left as it is. Needs no API server.\n\n\
        Stop the agent first, or it puts everything back.",
    after_help = "Examples:\n  \
        stagenet cleanup                    rules of both iptables variants, routes, neighbours, settings\n  \
        stagenet cleanup --backend legacy   only the legacy tables' rules, besides the rest\n\n\
        Exit status: 0 nothing is left; 1 something could not be removed (what and why is on standard error)."
)]
pub struct CleanupArgs {
    /// Remove the rules of this variant of iptables only, nft or legacy; of both when auto
    #[arg(long, value_enum, default_value_t, hide_possible_values = true)]
    backend: BackendArg,

    /// Where what was found before interface settings were changed and the last good version of each manifest are kept
    #[arg(long, value_name = "DIR", default_value = "/run/stagenet")]
    state_dir: PathBuf,

    /// Bits of the connection mark that the agent was given, should the node's rules not say it any more
    #[arg(long, value_name = "BITS", default_value = "0x2000", value_parser = mark)]
    connmark: u32,
}

/// Cleans up.
pub(super) async fn run(args: CleanupArgs) -> Result<ExitCode, CliError> {
    let variants = match args.backend {
        BackendArg::Auto => vec![BackendChoice::Nft, BackendChoice::Legacy],
        one => vec![one.chosen()],
    };
    let mut hosts: Vec<_> = variants
        .into_iter()
        .map(|backend| {
            LinuxHost::new(LinuxOptions {
                backend,
                state_dir: args.state_dir.clone(),
            })
        })
        .collect();
    let mut hosts: Vec<&mut dyn Host> = hosts.iter_mut().map(|host| -> &mut dyn Host { host }).collect();
    let mut all = cleanup::run(&mut hosts, args.backend == BackendArg::Auto, args.connmark).await;
    match directory::clear(&args.state_dir) {
        Ok(0) => {}
        Ok(count) => all.removed.push(format!("the recorded last good version of {count} manifests")),
        Err(error) => all.errors.push(format!(
            "removing the records of manifests in {}: {error}",
            args.state_dir.display()
        )),
    }
    match directory::clear_identifiers(&args.state_dir) {
        Ok(0) => {}
        Ok(count) => all.removed.push(format!("the recorded identifiers of {count} networks")),
        Err(error) => all.errors.push(format!(
            "removing the record of identifiers in {}: {error}",
            args.state_dir.display()
        )),
    }
    print!("{all}");
    all.errors.dedup();
    for error in &all.errors {
        eprintln!("error: {error}");
    }
    Ok(ExitCode::from(if all.errors.is_empty() { EXIT_OK } else { EXIT_FAILED }))
}
