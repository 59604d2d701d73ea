//! The status of a mapping: whether the gateway that serves it holds it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::gateway::{self, GatewayState};
use super::{Inputs, Report, Requirement, finding, machine};
use crate::api::conditions::{self, Finding, MappingFacts, Programmed};
use crate::api::gatewaynode::{NetworkReport, Role};
use crate::api::mapping::{MachineTarget, NatMapping, NatMappingStatus};
use crate::api::network::StagingNetworkStatus;
use crate::api::reasons::{self, types};
use crate::controller::machines::Resolved;
use crate::controller::{seen, version};
use crate::plan::{self, Claim, MappingKey, MappingVerdict, written};

pub(super) fn status(
    inputs: &Inputs<'_>,
    key: &MappingKey,
    object: &NatMapping,
    verdict: &MappingVerdict,
    network: Option<&StagingNetworkStatus>,
) -> NatMappingStatus {
    let before = object.status.as_ref().map_or(&[][..], |status| &status.conditions);
    if let Some(why) = verdict
        .accepted
        .as_ref()
        .err()
        .filter(|why| why.reason == reasons::NAMESPACE_UNKNOWN)
    {
        return undecided(inputs, object, verdict.generation, &finding(why));
    }
    let machine = inputs.machines.get(key);
    let found = machine::found(machine, before);
    let claim = verdict.accepted.as_ref().ok();
    let active = network
        .and_then(|network| network.active_gateway.as_ref())
        .filter(|_| claim.is_some());
    let served = match (claim, active) {
        (Some(claim), Some(active)) => served(inputs, (key, object), claim, &active.node, before),
        (Some(claim), None) => Served::from(Programmed::No(unserved(&claim.network, network))),
        (None, _) => Served::from(Programmed::Yes(String::new())),
    };
    // A claim that only waits for its machine stands, and what keeps it from being served the controller knows better than the verdict.
    let waiting = verdict.waiting.is_some();
    let network_found = if waiting {
        Ok(())
    } else {
        verdict.resolved_refs.as_ref().copied().map_err(finding)
    };
    let (how, lost) = match found {
        None => (None, waiting.then(|| verdict.resolved_refs.as_ref().err().map(finding)).flatten()),
        Some(Ok(how)) => (Some(how), None),
        Some(Err(why)) => (None, Some(why)),
    };
    let missing = served.missing.or_else(|| lost.clone()).map_or(Ok(()), Err);
    let stands = if waiting { Ok(()) } else { verdict.accepted.as_ref().map(|_| ()) };
    let facts = MappingFacts {
        generation: verdict.generation,
        accepted: stands.map_err(finding),
        resolved_refs: network_found.and(missing),
        found: how,
        conflicted: verdict.conflicted,
        programmed: served.programmed,
        // With an address that is held it goes on as it was.
        impaired: served.impaired.or_else(|| lost.filter(|_| claim.is_some())),
    };
    let announced = || {
        let valid = inputs.verdicts.networks.get(&*verdict.network)?.accepted.as_ref().ok()?;
        Some(plan::announcement(claim?, valid))
    };
    NatMappingStatus {
        observed_generation: Some(verdict.generation),
        gateway: active.map(|active| active.node.clone()),
        announcement: active.and_then(|_| announced()),
        target: target(object, machine),
        conditions: conditions::mapping(&facts, before, inputs.now),
    }
}

/// The status of a mapping of which nobody knows whether its namespace may claim. What was refused stays refused; else all that was said of it stays, but for what depends on that.
fn undecided(inputs: &Inputs<'_>, object: &NatMapping, generation: i64, why: &Finding) -> NatMappingStatus {
    let before = object.status.clone().unwrap_or_default();
    let said = before.observed_generation == Some(generation);
    let refused = conditions::find(&before.conditions, types::ACCEPTED).is_some_and(|told| told.status == "False");
    if said && refused {
        return before;
    }
    NatMappingStatus {
        observed_generation: Some(generation),
        conditions: conditions::undecided(generation, why, &before.conditions, inputs.now),
        ..before
    }
}

/// What is known of the machine that the mapping names. Where nothing can be found out, because the network or the mapping has to be corrected first, what was known stays.
fn target(object: &NatMapping, machine: Option<&Resolved>) -> Option<Box<MachineTarget>> {
    let named = object.spec.target.virtual_machine_ref.as_ref()?;
    match machine {
        Some(machine) => machine.target.clone().map(Box::new),
        None => object.status.as_ref()?.target.clone().filter(|known| known.is_of(named)),
    }
}

/// What the gateway does for a mapping.
struct Served {
    programmed: Programmed,
    /// A helper that its kernel lacks.
    missing: Option<Finding>,
    /// What keeps the mapping from being Ready although it is programmed.
    impaired: Option<Finding>,
}

impl From<Programmed> for Served {
    fn from(programmed: Programmed) -> Self {
        Self {
            programmed,
            missing: None,
            impaired: None,
        }
    }
}

/// Why no node serves a network: what the network's own status says.
fn unserved(name: &str, network: Option<&StagingNetworkStatus>) -> Finding {
    let told = network.and_then(|network| conditions::find(&network.conditions, types::PROGRAMMED));
    match told.filter(|told| told.status == "False") {
        Some(told) => Finding::new(told.reason.as_str(), format!("No node serves network {name}: {}", told.message)),
        None => Finding::new(
            reasons::NO_GATEWAY,
            format!("No node serves network {name}. See `kubectl describe stagingnetwork {name}`."),
        ),
    }
}

fn served(inputs: &Inputs<'_>, (key, object): (&MappingKey, &NatMapping), claim: &Claim, node: &str, before: &[Condition]) -> Served {
    let generation = inputs
        .verdicts
        .networks
        .get(&*claim.network)
        .map_or(0, |network| network.generation);
    let unserved = |why: Finding| match taken_over(inputs, object, &claim.network, node, &why) {
        Some(silent) => Programmed::Unknown(silent).into(),
        None => Programmed::No(why).into(),
    };
    let (report, told) = match gateway::state(node, inputs.reports.get(node), &claim.network, generation, before) {
        GatewayState::Silent(why) => return Programmed::Unknown(why).into(),
        GatewayState::Not(why) => return unserved(why),
        GatewayState::Stands(report, told) => (report, told),
    };
    let late = |what| unserved(gateway::behind(node, report, what));
    if told.role != Role::Active {
        return late("has not reported yet that it attracts the traffic");
    }
    if !covers(told, inputs.seen.requirement(key, seen::target(object))) {
        return late("has not reported yet that its kernel holds this mapping");
    }
    if let Some(reason) = refused(report, key) {
        return Programmed::No(Finding::new(
            reasons::PENDING,
            format!(
                "Node {node} refuses this mapping ({reason}): it has addresses that it does not report, or has not heard yet of what allows it. If that stays, its log and                  `stagenet plan` on it say more."
            ),
        ))
        .into();
    }
    let failure = failure(node, report, key);
    let (missing, failed): (Option<Finding>, Option<Finding>) = match failure {
        Some(why) if why.reason == reasons::HELPER_MISSING => (Some(why), None),
        other => (None, other),
    };
    if let Some(why) = failed {
        return Programmed::No(why).into();
    }
    Served {
        programmed: Programmed::Yes(format!(
            "{} leads to {} through {node}.",
            written(claim.virtual_prefix),
            written(claim.target)
        )),
        impaired: gateway::impaired(node, told).or_else(|| missing.clone()),
        missing,
    }
}

/// What there is to say while `node` takes over from a gateway that has fallen silent: that one's kernel may go on serving, and nobody can vouch for it until the next one has reported.
/// None: nobody is silent whom it could take over from, or it is kept from working by more than a little time (`late`).
fn taken_over(inputs: &Inputs<'_>, object: &NatMapping, network: &str, node: &str, late: &Finding) -> Option<Finding> {
    let status = object.status.as_ref()?;
    let told = conditions::find(&status.conditions, types::PROGRAMMED)?;
    // Of a newer spec the silent one may not even have heard.
    if late.reason != reasons::PENDING || told.observed_generation != object.metadata.generation {
        return None;
    }
    let silent = |other: &&String| *other != node && gateway::is_silent(inputs.reports.get(*other), &status.conditions);
    let mut others = inputs.verdicts.networks.get(network)?.gateways.iter().filter(silent);
    let from = match (told.status.as_str(), told.reason.as_str()) {
        (_, reasons::GATEWAY_SILENT) => others.next()?,
        ("True", _) => others.find(|other| status.gateway.as_ref() == Some(other))?,
        _ => return None,
    };
    Some(gateway::taking_over(from, node))
}

/// Whether what the gateway says is about the mapping as it is now.
fn covers(told: &NetworkReport, requirement: Requirement<'_>) -> bool {
    match requirement {
        Requirement::None => true,
        Requirement::Version(wanted) => version::reached(&told.synced_resource_version, wanted),
        Requirement::Rewritten => false,
    }
}

/// Why the gateway refuses a mapping that is accepted here, if it says so: the two do not always know the same at the same time.
fn refused<'a>(report: &'a Report, key: &MappingKey) -> Option<&'a str> {
    let mut listed = report.status.refused.iter();
    let of = listed.find(|refused| *refused.name == *key.name && *refused.namespace == *key.namespace)?;
    Some(&of.reason)
}

/// What went wrong with the mapping, or may have: the list of failures is sorted and cut, so what sorts behind its end is unknown.
fn failure(node: &str, report: &Report, key: &MappingKey) -> Option<Finding> {
    let listed = &report.status.failures;
    if let Some(why) = listed.iter().find(|f| *f.name == *key.name && *f.namespace == *key.namespace) {
        return Some(Finding::new(why.reason.as_str(), format!("Node {node}: {}", why.message)));
    }
    let end = listed.iter().map(|f| (f.namespace.as_str(), f.name.as_str())).max();
    let cut = report.status.failure_count as usize > listed.len();
    (cut && end < Some((&*key.namespace, &*key.name))).then(|| {
        Finding::new(
            reasons::PENDING,
            format!(
                "Node {node} could not program {} mappings and lists the first {} of them only; whether this is one shows once those are mended.",
                report.status.failure_count,
                listed.len()
            ),
        )
    })
}
