//! `stagenet controller`.

use std::process::ExitCode;

use clap::Args;

use super::agent::{Listen, listen};
use super::guard::GuardArg;
use super::{CliError, EXIT_OK};
use crate::controller::{self, ControllerOptions, leader::Timing};
use crate::telemetry::{LogOptions, logs};

/// Judge all objects, elect gateways and write status; run it in the cluster
#[derive(Debug, Args)]
#[command(
    long_about = "Judge all objects, elect gateways and write status.\n\n\
        Several replicas may run; the one that holds the Lease stagenet-controller works. Agents go on without a controller: \
        what stands stays in force, only status and gateway changes wait.",
    after_help = "Examples:\n  \
        stagenet controller                             run in a pod, or with KUBECONFIG\n  \
        stagenet controller --listen [::]:9470          let Prometheus reach it"
)]
pub struct ControllerArgs {
    /// The operator's namespace: the Leases are there
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "stagenet-system")]
    namespace: String,

    /// Name of this replica, different from all others; the host's name when omitted, which in a pod is the pod's
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    identity: Option<String>,

    /// Address for /livez, /readyz and /metrics, or "none"
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9470", value_parser = listen, help_heading = "Telemetry")]
    listen: Listen,

    #[command(flatten)]
    guard: GuardArg,

    #[command(flatten)]
    log: LogOptions,
}

/// Runs the controller.
pub(super) async fn run(args: ControllerArgs) -> Result<ExitCode, CliError> {
    logs::init(&args.log);
    let identity = args.identity.unwrap_or_else(own_name);
    let options = ControllerOptions {
        namespace: args.namespace,
        identity,
        listen: args.listen.0,
        timing: Timing::default(),
        guard: args.guard.duration(),
    };
    controller::run(options).await.map_err(|error| CliError::Failed {
        action: "running the controller",
        source: Box::new(error),
    })?;
    Ok(ExitCode::from(EXIT_OK))
}

/// The host's name and the process's number: different for every replica, also where two run on one host.
fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}
