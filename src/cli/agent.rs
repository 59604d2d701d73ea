//! `stagenet agent`.

use std::fmt::Write as _;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, ResourceExt};
use tokio::task::JoinSet;

use super::guard::GuardArg;
use super::marks::{MarkArgs, mark};
use super::{BackendArg, CliError, EXIT_FAILED, EXIT_INPUT, EXIT_OK};
use crate::agent::pass::Settings;
use crate::agent::report::file::{Memory, Standing};
use crate::agent::report::{cluster, file, lease};
use crate::agent::runner::{Report, Runner, RunnerOptions, stop_signal};
use crate::agent::source::{self, Snapshots};
use crate::agent::{AgentError, schedule};
use crate::api::conditions;
use crate::api::reasons::types;
use crate::controller::aggregate;
use crate::host::linux::{LinuxHost, LinuxOptions};
use crate::telemetry::{Health, LogOptions, Metrics, Program, logs, serve};

/// How long the runner may be silent: an ARP probe, a held lock and a cold start with 10 000 mappings together stay below half of it.
const PATIENCE: Duration = Duration::from_mins(1);

/// Keep this node as planned: from a cluster, or standalone from a directory of manifests
#[derive(Debug, Args)]
#[command(
    long_about = "Keep this node as planned: translations, fence, routes, proxy neighbours, interface settings.\n\n\
        In a cluster the agent watches the API server and reports to the GatewayNode of its own name. With --manifests it reads the same YAML from a \
        directory, needs no cluster, and this node is the gateway of every network in it.\n\n\
        When the agent stops, everything stays in force; `stagenet cleanup` removes it.",
    after_help = "Examples:\n  \
        stagenet agent --manifests /etc/stagenet --node vm02           run standalone, follow changes of the directory\n  \
        stagenet agent --manifests examples/seed --node vm02 --once    converge, print one line per claim, exit\n  \
        stagenet agent --node \"$(hostname)\"                            run in a cluster (the DaemonSet does this)\n\n\
        Exit status of --once: 0 all claims are Ready; 2 a claim is not, or a manifest is wrong; 1 the host could not be programmed."
)]
pub struct AgentArgs {
    /// Read objects from the *.yaml and *.yml files of this directory instead of a cluster
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,

    /// Name of this node; in a cluster, as `kubectl get nodes` shows it
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = node_name)]
    node: String,

    /// Converge once, print one line per claim, and exit
    #[arg(long, requires = "manifests")]
    once: bool,

    /// Keep the status of all objects in this file, as a List in JSON (in YAML if it ends in .yaml or .yml)
    #[arg(long, value_name = "FILE", requires = "manifests")]
    status_file: Option<PathBuf>,

    /// Which iptables tools to use
    #[arg(long, value_enum, default_value_t, env = "STAGENET_BACKEND", help_heading = "Host")]
    backend: BackendArg,

    /// Where to keep what was found before interface settings were changed, and the last good version of each manifest; should not outlive a boot
    #[arg(long, value_name = "DIR", default_value = "/run/stagenet", help_heading = "Host")]
    state_dir: PathBuf,

    /// Bits of the connection mark that say "admitted"; nobody else on the node may write them
    #[arg(long, value_name = "BITS", default_value = "0x2000", value_parser = mark, help_heading = "Host")]
    connmark: u32,

    #[command(flatten)]
    marks: MarkArgs,

    /// NFLOG group for denied packets of networks that ask for logging
    #[arg(long, value_name = "GROUP", default_value_t = 5, help_heading = "Host")]
    nflog_group: u16,

    /// Seconds between looks at the kernel for what no event told of (up to four times that with many mappings); events are followed at once
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86400), help_heading = "Host")]
    resync: u64,

    /// Least milliseconds between two passes
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=60000), help_heading = "Host")]
    min_interval: u64,

    /// Address for /livez, /readyz, /metrics and /counters, or "none"
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9469", value_parser = listen, help_heading = "Telemetry")]
    listen: Listen,

    /// How many mappings have metrics of their own, the first by name; /counters has all of them
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Telemetry")]
    metrics_per_mapping: usize,

    /// The operator's namespace: the heartbeat Lease is there
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAMESPACE",
        default_value = "stagenet-system",
        help_heading = "Cluster"
    )]
    namespace: String,

    /// After how many seconds without its heartbeat this node counts as silent; it is renewed four times as often
    #[arg(long, value_name = "SECONDS", default_value_t = 40, value_parser = clap::value_parser!(u16).range(4..=600), help_heading = "Cluster")]
    lease_duration: u16,

    #[command(flatten)]
    guard: GuardArg,

    #[command(flatten)]
    log: LogOptions,
}

/// Where probes and metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listen(pub(super) Option<SocketAddr>);

pub(super) fn listen(text: &str) -> Result<Listen, String> {
    if text == "none" {
        return Ok(Listen(None));
    }
    let address = text
        .parse()
        .map_err(|_| "must be ADDRESS:PORT, such as 127.0.0.1:9469 or [::]:9469, or \"none\"".to_owned())?;
    Ok(Listen(Some(address)))
}

/// A node's name is part of the names of objects: a DNS subdomain (RFC 1123).
pub(super) fn node_name(text: &str) -> Result<String, String> {
    let label = |l: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(l.chars().next()) && edge(l.chars().next_back()) && l.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    // 239: the Lease is called stagenet-agent-NAME.
    if text.len() <= 239 && text.split('.').all(label) {
        return Ok(text.to_owned());
    }
    Err("must be lower-case letters, digits, '-' and '.', at most 239 characters, beginning and ending with a letter or digit".to_owned())
}

/// Runs the agent.
pub(super) async fn run(args: AgentArgs) -> Result<ExitCode, CliError> {
    logs::init(&args.log);
    let host = LinuxHost::new(LinuxOptions {
        backend: args.backend.chosen(),
        state_dir: args.state_dir.clone(),
    });
    let metrics = Arc::new(Metrics::new(Program::Agent));
    let health = Arc::new(Health::new("the first complete pass", PATIENCE));
    let options = RunnerOptions {
        settings: Settings {
            node: args.node.clone(),
            connmark: args.connmark,
            marks: args.marks.marks()?,
            nflog_group: args.nflog_group,
        },
        resync: Duration::from_secs(args.resync),
        min_interval: Duration::from_millis(args.min_interval),
        mapping_series: args.metrics_per_mapping,
    };
    let mut runner = Runner::new(host, options, metrics.clone(), health.clone());
    if args.once {
        return once(&args, runner).await;
    }
    let mut tasks = JoinSet::new();
    if let Some(address) = args.listen.0 {
        let (health, metrics, desk) = (health.clone(), metrics.clone(), runner.desk());
        tasks.spawn(async move {
            serve(address, health, metrics, Some(desk))
                .await
                .map_err(AgentError::from)
                .and(died("serving probes and metrics"))
        });
    }
    let (snapshots, watcher) = source(&args, &mut runner, &mut tasks, &metrics, &health).await?;
    tasks.spawn(async move {
        watcher
            .await
            .map_err(|e| AgentError::Died(format!("watching objects: {e}")))
            .and(died("watching objects"))
    });
    let stop = stop_signal()?;
    let mut work = tokio::spawn(runner.run(snapshots, stop));
    let died = tokio::select! {
        biased;
        ended = &mut work => return finished(ended),
        Some(died) = tasks.join_next() => died,
    };
    // The tasks that the runner feeds end when it does: then it is the one that knows why.
    if let Ok(ended) = tokio::time::timeout(LAST_WORDS, work).await {
        return finished(ended);
    }
    let error = match died {
        Ok(Err(error)) => error,
        Ok(Ok(())) => AgentError::Died("a background task".to_owned()),
        Err(error) => AgentError::Died(format!("a background task ({error})")),
    };
    Err(error.into())
}

/// How long a task's end may come before the runner's own.
const LAST_WORDS: Duration = Duration::from_millis(200);

fn finished(runner: Result<Result<(), String>, tokio::task::JoinError>) -> Result<ExitCode, CliError> {
    match runner {
        Ok(Ok(())) => Ok(ExitCode::from(EXIT_OK)),
        Ok(Err(what)) => Err(AgentError::Died(what).into()),
        Err(error) => Err(AgentError::Died(format!("the runner ({error})")).into()),
    }
}

/// A background task that ends ends the agent: half an agent is worse than one that is started anew.
fn died(what: &str) -> Result<(), AgentError> {
    Err(AgentError::Died(what.to_owned()))
}

async fn source(
    args: &AgentArgs,
    runner: &mut Runner<LinuxHost>,
    tasks: &mut JoinSet<Result<(), AgentError>>,
    metrics: &Arc<Metrics>,
    health: &Arc<Health>,
) -> Result<(Snapshots, tokio::task::JoinHandle<()>), AgentError> {
    if let Some(directory) = &args.manifests {
        if let Some(path) = args.status_file.clone() {
            spawn(
                tasks,
                "writing the status file",
                file::keep(path, runner.reports(), metrics.clone()),
            );
        }
        return source::directory::watch(directory, &args.state_dir, runner.reports());
    }
    let client = Client::try_default()
        .await
        .map_err(|error| AgentError::NoCluster(Box::new(error)))?;
    spawn(
        tasks,
        "reporting",
        cluster::keep(
            client.clone(),
            args.node.clone(),
            (runner.reports(), runner.news()),
            metrics.clone(),
            health.clone(),
        ),
    );
    spawn(
        tasks,
        "the heartbeat",
        lease::keep(
            client.clone(),
            args.namespace.clone(),
            args.node.clone(),
            args.lease_duration,
            (metrics.clone(), health.clone()),
        ),
    );
    Ok(source::api::watch(&client, &args.node, args.guard.duration()))
}

fn spawn(tasks: &mut JoinSet<Result<(), AgentError>>, what: &'static str, work: impl Future<Output = ()> + Send + 'static) {
    tasks.spawn(async move {
        work.await;
        died(what)
    });
}

/// How often `--once` tries before it says that the host cannot be programmed: a lock that is held for a moment is no failure.
const TRIES: u32 = 3;

async fn once(args: &AgentArgs, mut runner: Runner<LinuxHost>) -> Result<ExitCode, CliError> {
    let directory = args.manifests.as_deref().unwrap_or_else(|| std::path::Path::new("."));
    let mut directory = source::directory::read(directory, &args.state_dir)?;
    let snapshot = Arc::new(directory.snapshot());
    let mut report = runner.once(&snapshot).await;
    for _ in 1..TRIES {
        if !report.outcome.failed() {
            break;
        }
        tokio::time::sleep(schedule::FIRST_BACKOFF).await;
        report = runner.once(&snapshot).await;
    }
    directory.done(&report);
    let standing = file::standing(&report, &Standing::default(), Timestamp::now());
    if let Some(path) = &args.status_file {
        let written = Memory::default().write(path, &report, Timestamp::now());
        written.map_err(|source| CliError::StatusFile {
            path: path.clone(),
            source,
        })?;
    }
    print!("{}", lines(&report, &standing));
    Ok(ExitCode::from(verdict(&report, &standing)))
}

/// One line a claim: mapping, network, virtual address, target, Ready, reason.
fn lines(report: &Report, standing: &Standing) -> String {
    let mut rows = vec![["MAPPING", "NETWORK", "VIRTUAL", "TARGET", "READY", "REASON"].map(str::to_owned)];
    for mapping in &report.snapshot.mappings {
        let status = standing.statuses.mappings.get(&aggregate::key(mapping));
        let ready = status.and_then(|s| conditions::find(&s.conditions, types::READY));
        rows.push([
            format!("{}/{}", mapping.namespace().unwrap_or_default(), mapping.name_any()),
            mapping.spec.network_ref.name.clone(),
            mapping.spec.r#virtual.text().to_owned(),
            mapping.spec.target.text().to_owned(),
            ready.map_or("Unknown", |c| c.status.as_str()).to_owned(),
            ready.map_or("Unknown", |c| c.reason.as_str()).to_owned(),
        ]);
    }
    let mut out = super::table(&rows);
    for (name, status) in &standing.statuses.networks {
        if let Some(why) = conditions::find(&status.conditions, types::READY).filter(|c| c.status != "True") {
            let _ = writeln!(out, "network {name}: {}: {}", why.reason, why.message);
        }
    }
    for mapping in &report.snapshot.mappings {
        let key = aggregate::key(mapping);
        let ready = standing
            .statuses
            .mappings
            .get(&key)
            .and_then(|s| conditions::find(&s.conditions, types::READY));
        if let Some(why) = ready.filter(|c| c.status != "True") {
            let _ = writeln!(out, "{key}: {}", why.message);
        }
    }
    out
}

fn verdict(report: &Report, standing: &Standing) -> u8 {
    if report.outcome.failed() {
        return EXIT_FAILED;
    }
    let ready = |conditions: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition]| conditions::is_true(conditions, types::READY);
    let all = standing.statuses.mappings.values().all(|s| ready(&s.conditions))
        && standing.statuses.networks.values().all(|s| ready(&s.conditions));
    if all && report.snapshot.problems.is_empty() {
        EXIT_OK
    } else {
        EXIT_INPUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_checked() {
        for good in ["vm02", "node-1.example.org", "a"] {
            assert!(node_name(good).is_ok(), "{good}");
        }
        for bad in ["", "VM02", "a_b", "-a", "a-", "a..b", &"a".repeat(240), "a/b"] {
            assert!(node_name(bad).is_err(), "{bad}");
        }
        assert_eq!(listen("none"), Ok(Listen(None)));
        assert!(listen("[::]:9469").is_ok());
        assert!(listen("9469").is_err());
    }
}
