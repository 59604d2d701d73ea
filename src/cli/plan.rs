//! `stagenet plan`: what a node would be programmed with, from files alone.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use kube::ResourceExt;

use super::agent::node_name;
use super::marks::MarkArgs;
use super::{CliError, EXIT_INPUT, EXIT_OK, objects, plan_json, plan_text};
use crate::api::decode::Manifests;
use crate::netfilter::{Family, IfName, Ruleset, render};
use crate::plan::{self, HostOptions, HostPlan, InterfaceFacts, KernelFacts, MappingState, NodeFacts, Verdicts, World};

/// Print what a node would be programmed with; reads and touches no kernel
#[derive(Debug, Args)]
#[command(
    long_about = "Print what a node would be programmed with, if it were the gateway of every network in the manifests. Reads no kernel and touches nothing, so it \
        runs anywhere, without privileges.\n\n\
        Interfaces that are not given with --interface are taken on trust by the names in the manifests; networks that name none need --interface. \
        What only an administrator can set on a node is taken as set: IPv6 forwarding, proxy_ndp, kernel modules of helpers.",
    after_help = "Examples:\n  \
        stagenet plan -f examples/seed --node vm02                     for people\n  \
        stagenet plan -f examples/seed --node vm02 -o restore          exact input of iptables-restore --noflush\n  \
        stagenet plan -f examples/seed --node vm02 -o restore --family ipv6\n  \
        stagenet plan -f net.yaml -f vm.yaml --node gw --interface eth0=192.168.100.2/24 --interface eth1=192.168.200.2/24 -o json\n  \
        kubectl get stagingnetworks,natmappings -A -o yaml | stagenet plan -f - --node vm02\n\n\
        Exit status: 0 every claim would be programmed; 2 one would not, or a manifest is wrong."
)]
pub struct PlanArgs {
    /// A manifest, a directory of *.yaml and *.yml files, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "FILE|DIR|-", required = true)]
    files: Vec<PathBuf>,

    /// Name of the node
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = node_name)]
    node: String,

    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,

    /// Whose rules `-o restore` prints: one input is for one tool
    #[arg(long, value_enum, default_value_t)]
    family: FamilyArg,

    /// An interface of the node and one of its addresses; may be repeated
    #[arg(long, value_name = "NAME=ADDRESS/LEN", value_parser = interface)]
    interface: Vec<(IfName, IpNet)>,

    #[command(flatten)]
    marks: MarkArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// Exact iptables-restore input
    Restore,
    /// Everything, for programs
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FamilyArg {
    /// iptables-restore
    #[default]
    Ipv4,
    /// ip6tables-restore
    Ipv6,
}

fn interface(text: &str) -> Result<(IfName, IpNet), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(name, address)| Some((IfName::new(name)?, address.parse().ok()?)));
    parsed.ok_or_else(|| "must be NAME=ADDRESS/LEN, such as eth0=192.168.100.2/24".to_owned())
}

/// What was planned from files.
pub(super) struct Planned {
    pub(super) node: String,
    pub(super) manifests: Manifests,
    pub(super) verdicts: Verdicts,
    pub(super) plan: HostPlan,
    /// Interfaces that nobody said to exist.
    pub(super) trusted: BTreeSet<String>,
}

/// Prints the plan.
pub(super) fn run(args: &PlanArgs) -> Result<ExitCode, CliError> {
    let planned = planned(args)?;
    match args.output {
        Output::Text => print!("{}", plan_text::text(&planned)),
        Output::Json => println!("{:#}", plan_json::json(&planned)),
        Output::Restore => {
            let family = match args.family {
                FamilyArg::Ipv4 => Family::V4,
                FamilyArg::Ipv6 => Family::V6,
            };
            print!("{}", restore(&planned.plan.ruleset, family)?);
        }
    }
    for problem in &planned.manifests.problems {
        eprintln!("error: {problem}");
    }
    if planned.manifests.more_problems > 0 {
        eprintln!("error: {} more problems", planned.manifests.more_problems);
    }
    let refused =
        planned.verdicts.mappings.values().any(|v| v.accepted.is_err()) || planned.verdicts.networks.values().any(|v| v.accepted.is_err());
    let failed = planned.plan.mappings.values().any(|s| matches!(s, MappingState::Failed(_)));
    let wrong = refused || failed || !planned.manifests.problems.is_empty();
    Ok(ExitCode::from(if wrong { EXIT_INPUT } else { EXIT_OK }))
}

fn planned(args: &PlanArgs) -> Result<Planned, CliError> {
    let manifests = objects::read(&args.files)?;
    let mut node = NodeFacts {
        name: args.node.clone(),
        kernel: KernelFacts {
            ipv6_forwarding: true,
            ..KernelFacts::default()
        },
        ..NodeFacts::default()
    };
    for (name, address) in &args.interface {
        interface_of(&mut node, name.as_str()).addresses.insert(*address);
    }
    let mut trusted = BTreeSet::new();
    for network in &manifests.networks {
        for name in [&network.spec.outside.interface, &network.spec.inside.interface]
            .into_iter()
            .flatten()
        {
            if IfName::new(name).is_some() && !node.interfaces.contains_key(name) {
                interface_of(&mut node, name);
                trusted.insert(name.clone());
            }
        }
    }
    let mut world = World {
        networks: manifests.networks.clone(),
        mappings: manifests.mappings.clone(),
        nodes: vec![node],
        namespaces: plan::declared(manifests.namespaces.clone(), &manifests.mappings),
    };
    // What a cluster or the agent would have given them.
    let allocated = plan::isolation::allocate(&world, &plan::judge(&world));
    for network in &mut world.networks {
        if let Some(isolation) = allocated.get(&network.name_any()) {
            network.status.get_or_insert_default().isolation = Some(*isolation);
        }
    }
    let verdicts = plan::judge(&world);
    let options = HostOptions {
        marks: args.marks.marks()?,
        ..HostOptions::default()
    };
    let plan = plan::host_plan(&world, &verdicts, &args.node, &options);
    Ok(Planned {
        node: args.node.clone(),
        manifests,
        verdicts,
        plan,
        trusted,
    })
}

fn interface_of<'n>(node: &'n mut NodeFacts, name: &str) -> &'n mut InterfaceFacts {
    let index = u32::try_from(node.interfaces.len()).unwrap_or_default() + 1;
    node.interfaces.entry(name.to_owned()).or_insert_with(|| InterfaceFacts {
        index,
        mtu: 1500,
        up: true,
        proxy_ndp: true,
        ..InterfaceFacts::default()
    })
}

/// The input that programs a node without anything of ours: all tables of one family, in the order in which they are applied.
pub(super) fn restore(ruleset: &Ruleset, family: Family) -> Result<String, CliError> {
    let mut text = String::new();
    for ((_, table), rules) in ruleset.tables.iter().filter(|((f, _), _)| *f == family) {
        let rendered = render::table(family, *table, rules).map_err(|error| CliError::Failed {
            action: "rendering the rules",
            source: Box::new(error),
        })?;
        text.push_str(&rendered.text);
    }
    Ok(text)
}
