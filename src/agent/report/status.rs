//! From the outcome of a pass to the status of the node's `GatewayNode`. Pure: the time is an argument.
//!
//! A pass that could not be completed says so in `Ready` and leaves the rest as it was: the last good state is what the kernel holds.

use std::collections::BTreeSet;

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

use super::budget;
use crate::agent::outcome::Outcome;
use crate::agent::runner::Report;
use crate::api::conditions::{self, NodeFinding};
use crate::api::gatewaynode::{FailureReport, GatewayNodeStatus, InterfaceStatus, NetworkReport, RefusedReport};
use crate::api::helper::HelperName;
use crate::api::reasons::{self, types};
use crate::netfilter::IfName;
use crate::plan::{MappingKey, MappingState, NetworkPlan, NodeFacts, Refusal};

/// `status.failures` holds at most this many.
const FAILURES_MAX: usize = 32;
/// `status.interfaces` holds at most this many.
const INTERFACES_MAX: usize = 64;
/// `status.interfaces[].addresses` holds at most this many.
const ADDRESSES_MAX: usize = 16;

/// The status that the node should have, of an object of that generation. Equal to `present` if nothing has changed in meaning.
pub fn node(report: &Report, generation: i64, present: Option<&GatewayNodeStatus>, now: Timestamp) -> GatewayNodeStatus {
    let outcome = &report.outcome;
    let empty = GatewayNodeStatus::default();
    let present = present.unwrap_or(&empty);
    let mut status = GatewayNodeStatus {
        observed_generation: Some(generation),
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        backend: outcome.backend.map(|b| match b {
            crate::host::Backend::Nft => "nft".to_owned(),
            crate::host::Backend::Legacy => "legacy".to_owned(),
        }),
        conditions: conditions::node(&findings(report), generation, &present.conditions, now),
        interfaces: interfaces(&outcome.facts),
        helpers: outcome.facts.kernel.helper_names().iter().map(ToString::to_string).collect(),
        ..GatewayNodeStatus::default()
    };
    if outcome.complete {
        status.networks = networks(outcome);
        let failures = failures(outcome);
        status.failure_count = u32::try_from(failures.len()).unwrap_or(u32::MAX);
        status.failures = failures.into_iter().take(FAILURES_MAX).collect();
        status.refused = outcome.refused.iter().map(refused).collect();
        status.refused_count = u32::try_from(outcome.refused_count).unwrap_or(u32::MAX);
    } else {
        status.networks = kept_networks(outcome, &present.networks);
        status.failures.clone_from(&present.failures);
        status.failure_count = present.failure_count;
        status.refused.clone_from(&present.refused);
        status.refused_count = present.refused_count;
    }
    budget::fit(&mut status);
    status
}

fn networks(outcome: &Outcome) -> Vec<NetworkReport> {
    let report = |(name, network): (&String, &NetworkPlan)| {
        let tally = outcome.tallies.get(name).cloned().unwrap_or_default();
        let why = network.problem.clone().or_else(|| link_down(network, &outcome.facts));
        let why = why.or_else(|| network.impaired.clone());
        let (reason, message) = why.map(|why| (why.reason, conditions::shorten(&why.message))).unwrap_or_default();
        NetworkReport {
            name: name.clone(),
            role: network.role,
            observed_generation: network.generation,
            fenced: outcome.fenced && network.inside.is_some(),
            programmed: tally.programmed,
            synced_resource_version: tally.synced,
            reason: reason.to_owned(),
            message,
        }
    };
    outcome.plan.networks.iter().map(report).collect()
}

/// Interfaces of a network that let no packet through. What the kernel holds is not changed for it.
fn link_down(network: &NetworkPlan, facts: &NodeFacts) -> Option<Refusal> {
    let down = |name: &&IfName| facts.interfaces.get(name.as_str()).is_some_and(|interface| !interface.up);
    let sides = [("outside", &network.outside), ("inside", &network.inside)];
    let names = sides.map(|(side, name)| name.as_ref().filter(down).map(|name| format!("the {side} interface {name}")));
    let names: Vec<String> = names.into_iter().flatten().collect();
    (!names.is_empty()).then(|| Refusal {
        reason: reasons::LINK_DOWN,
        message: format!(
            "{} is down or has no carrier: the kernel holds everything that is planned, but no packet gets through until it is up (`ip link show`; a bridge has a \
             carrier once one of its ports has)",
            names.join(" and ")
        ),
    })
}

/// After an incomplete pass: what was reported before, and for networks that are new why they are not served yet.
fn kept_networks(outcome: &Outcome, present: &[NetworkReport]) -> Vec<NetworkReport> {
    let Some(trouble) = outcome.troubles.first() else {
        return present.to_vec();
    };
    if outcome.plan.networks.is_empty() {
        return present.to_vec();
    }
    let report = |(name, network): (&String, &NetworkPlan)| match present.iter().find(|n| n.name == *name) {
        Some(before) => NetworkReport {
            fenced: before.fenced && outcome.fenced,
            ..before.clone()
        },
        None => NetworkReport {
            name: name.clone(),
            role: network.role,
            observed_generation: 0,
            fenced: outcome.fenced && network.inside.is_some(),
            programmed: 0,
            synced_resource_version: String::new(),
            reason: trouble.reason.to_owned(),
            message: conditions::shorten(&trouble.message),
        },
    };
    outcome.plan.networks.iter().map(report).collect()
}

fn refused((key, reason): &(MappingKey, &'static str)) -> RefusedReport {
    RefusedReport {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        reason: (*reason).to_owned(),
    }
}

fn failures(outcome: &Outcome) -> Vec<FailureReport> {
    let report = |key: &MappingKey, reason: &str, message: &str| FailureReport {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        reason: reason.to_owned(),
        message: conditions::shorten(message),
    };
    let failed = outcome.mappings.iter().filter_map(|(key, state)| match state {
        MappingState::Failed(why) => Some(report(key, why.reason, &why.message)),
        MappingState::Planned { missing_helpers, .. } if missing_helpers.is_empty() => None,
        MappingState::Planned { missing_helpers, .. } => Some(report(key, reasons::HELPER_MISSING, &without(missing_helpers))),
    });
    failed.collect()
}

/// What a mapping lacks whose helpers the kernel has not.
fn without(helpers: &[HelperName]) -> String {
    let names: Vec<&str> = helpers.iter().map(|name| name.as_str()).collect();
    let module = |name: &HelperName| match name {
        HelperName::Snmp => "nf_nat_snmp_basic".to_owned(),
        other => format!("nf_nat_{other}"),
    };
    let modules: Vec<String> = helpers.iter().map(module).collect();
    format!(
        "the kernel has no helper for {}: the mapping is programmed, and connections that clients open to it work; those that the protocol negotiates in band \
         do not (for ftp: transfers). Load the module ({}) on the node, or remove the helper from the mapping",
        names.join(", "),
        modules.join(", ")
    )
}

fn interfaces(facts: &NodeFacts) -> Vec<InterfaceStatus> {
    let one = |(name, facts): (&String, &crate::plan::InterfaceFacts)| InterfaceStatus {
        name: name.clone(),
        index: facts.index,
        mtu: facts.mtu,
        up: facts.up,
        mac: facts.mac.clone(),
        addresses: addresses(&facts.addresses),
    };
    // With more interfaces than fit, those with addresses are what others need to know.
    let mut found: Vec<_> = facts.interfaces.iter().collect();
    found.sort_by_key(|(name, facts)| (facts.addresses.is_empty(), *name));
    found.truncate(INTERFACES_MAX);
    found.sort_by_key(|(name, _)| *name);
    found.into_iter().map(one).collect()
}

/// Of more addresses than fit, one of each subnet comes first: where a client's own subnets meet a pool it takes routes to single claims, and which ones it reads from its report.
fn addresses(all: &BTreeSet<IpNet>) -> Vec<String> {
    let mut subnets = BTreeSet::new();
    let mut chosen: Vec<(bool, &IpNet)> = all.iter().map(|address| (!subnets.insert(address.trunc()), address)).collect();
    chosen.sort_unstable();
    chosen.truncate(ADDRESSES_MAX);
    chosen.sort_unstable_by_key(|(_, address)| *address);
    chosen.into_iter().map(|(_, address)| address.to_string()).collect()
}

/// What there is to say of the node, apart from single networks and mappings.
pub(super) fn findings(report: &Report) -> Vec<NodeFinding> {
    let outcome = &report.outcome;
    let mut all: Vec<NodeFinding> = outcome
        .findings
        .iter()
        .map(|f| NodeFinding {
            kind: f.condition,
            status: Some(f.ok),
            reason: f.reason,
            message: f.message.clone(),
        })
        .collect();
    if outcome.plan.networks.values().any(|n| n.inside.is_some()) {
        let (reason, message) = if outcome.fenced {
            (
                reasons::FENCE_RAISED,
                "The fence of every closed network was read back from the kernel.".to_owned(),
            )
        } else {
            (reasons::FENCE_MISSING, summary(outcome))
        };
        all.push(NodeFinding {
            kind: types::FENCE,
            status: Some(outcome.fenced),
            reason,
            message,
        });
    }
    let mut summary = ready(report);
    if let Some(drift) = drifted(report) {
        // One word for both: what is told to be wrong by a condition of its own is what the summary says.
        if summary.status == Some(true) {
            summary.reason = reasons::DRIFT_FOUND;
            summary.message = drift;
        } else {
            summary.message = format!("{drift}. {}", summary.message);
        }
        summary.status = Some(false);
        all.push(NodeFinding {
            kind: types::DRIFTED,
            status: Some(true),
            ..summary.clone()
        });
    }
    all.push(summary);
    all
}

/// What somebody else changed that is not put back yet, or not for long.
fn drifted(report: &Report) -> Option<String> {
    let outcome = &report.outcome;
    let unrepaired = !outcome.complete && !outcome.drift.is_empty();
    if !unrepaired && !report.contended {
        return None;
    }
    let what = outcome.drift.first().map_or("something of ours".to_owned(), |d| d.what.clone());
    let by = report.by.as_ref().map(|by| format!("; it was {by}")).unwrap_or_default();
    Some(if report.contended {
        format!("Another program keeps changing what stagenet holds; it is put back once a second at most: {what}{by}")
    } else {
        format!("Changed by another program and not put back yet: {what}{by}")
    })
}

fn ready(report: &Report) -> NodeFinding {
    let outcome = &report.outcome;
    // Standalone, what cannot be read is said of the objects themselves.
    let problem = report.snapshot.problems.first().filter(|_| report.snapshot.labels.is_some());
    let failed = outcome.mappings.values().filter(|s| matches!(s, MappingState::Failed(_))).count();
    let lacks = |s: &&MappingState| matches!(s, MappingState::Planned { missing_helpers, .. } if !missing_helpers.is_empty());
    let helpless = outcome.mappings.values().filter(lacks).count();
    let unserved = outcome.plan.networks.values().filter(|n| n.problem.is_some()).count();
    let impaired = outcome.plan.networks.values().filter(|n| n.impaired.is_some()).count();
    let (status, reason, message) = match outcome.troubles.first() {
        Some(trouble) => (false, trouble.reason, summary(outcome)),
        None if !outcome.complete => (
            false,
            reasons::APPLY_FAILED,
            "The pass did not come to its end; it is tried again.".to_owned(),
        ),
        None if !outcome.held.is_empty() => {
            let names: Vec<&str> = outcome.held.iter().map(IfName::as_str).collect();
            let message = format!(
                "Nothing passes {}: it was the inside interface of a closed network, and it is not certain that this network is gone. Mend what \
                 cannot be read, or the network that has no inside interface; if the network is to go, delete it.",
                names.join(", ")
            );
            (false, reasons::DEGRADED, message)
        }
        None if let Some(problem) = problem => {
            let more = report.snapshot.problems.len() - 1;
            let others = if more == 0 { String::new() } else { format!(" (and {more} more)") };
            (false, reasons::DEGRADED, format!("{problem}{others}"))
        }
        None if failed + unserved == 0 && helpless > 0 => {
            let message = format!("{helpless} mappings ask for a helper that the kernel has not; see failures below.");
            (false, reasons::DEGRADED, message)
        }
        None if failed + unserved == 0 && impaired > 0 => {
            let message = format!("{impaired} networks have a source address that cannot be used; see networks below.");
            (false, reasons::DEGRADED, message)
        }
        None if failed + unserved > 0 => {
            let message = format!("{failed} mappings and {unserved} networks could not be programmed; see failures and networks below.");
            (false, reasons::DEGRADED, message)
        }
        None if outcome.plan.networks.is_empty() => (true, reasons::NOTHING_TO_DO, "No network concerns this node.".to_owned()),
        None => (true, reasons::AS_PLANNED, "The kernel holds exactly what is planned.".to_owned()),
    };
    NodeFinding {
        kind: types::READY,
        status: Some(status),
        reason,
        message,
    }
}

fn summary(outcome: &Outcome) -> String {
    match outcome.troubles.as_slice() {
        [] => "The pass did not come to its end; it is tried again.".to_owned(),
        [one] => one.message.clone(),
        [first, rest @ ..] => format!("{} (and {} more)", first.message, rest.len()),
    }
}
