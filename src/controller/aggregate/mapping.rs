//! The status of a mapping: whether the gateway that serves it holds it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::gateway::{self, GatewayState};
use super::{Inputs, Report, Requirement, finding};
use crate::api::conditions::{self, Finding, MappingFacts, Programmed};
use crate::api::gatewaynode::{NetworkReport, Role};
use crate::api::mapping::{NatMapping, NatMappingStatus};
use crate::api::reasons;
use crate::controller::version;
use crate::plan::{Claim, MappingKey, MappingVerdict, written};

pub(super) fn status(
    inputs: &Inputs<'_>,
    key: &MappingKey,
    object: &NatMapping,
    verdict: &MappingVerdict,
    active: Option<&str>,
) -> NatMappingStatus {
    let before = object.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let (gateway, programmed) = match &verdict.accepted {
        Ok(claim) => (active, programmed(inputs, key, claim, active, before)),
        Err(_) => (None, Programmed::Yes(String::new())),
    };
    let facts = MappingFacts {
        generation: verdict.generation,
        accepted: verdict.accepted.as_ref().map(|_| ()).map_err(finding),
        resolved_refs: verdict.resolved_refs.as_ref().copied().map_err(finding),
        conflicted: verdict.conflicted,
        programmed,
    };
    NatMappingStatus {
        observed_generation: Some(verdict.generation),
        gateway: gateway.map(str::to_owned),
        announcement: None,
        conditions: conditions::mapping(&facts, before, inputs.now),
    }
}

fn programmed(inputs: &Inputs<'_>, key: &MappingKey, claim: &Claim, active: Option<&str>, before: &[Condition]) -> Programmed {
    let Some(node) = active else {
        return Programmed::No(Finding::new(
            reasons::NO_GATEWAY,
            format!(
                "No node serves network {0}. See `kubectl describe stagingnetwork {0}`.",
                claim.network
            ),
        ));
    };
    let generation = inputs.verdicts.networks.get(&claim.network).map_or(0, |network| network.generation);
    match gateway::state(node, inputs.reports.get(node), &claim.network, generation, before) {
        GatewayState::Silent(why) => Programmed::Unknown(why),
        GatewayState::Not(why) => Programmed::No(why),
        GatewayState::Stands(report, told) => {
            let late = |what| Programmed::No(gateway::behind(node, report, what));
            if told.role != Role::Active {
                late("has not reported yet that it attracts the traffic")
            } else if !covers(told, inputs.seen.requirement(key)) {
                late("has not reported yet that its kernel holds this mapping")
            } else if let Some(why) = failure(node, report, key) {
                Programmed::No(why)
            } else {
                Programmed::Yes(format!(
                    "{} leads to {} through {node}.",
                    written(claim.virtual_prefix),
                    written(claim.target)
                ))
            }
        }
    }
}

/// Whether what the gateway says is about the mapping as it is now.
fn covers(told: &NetworkReport, requirement: Requirement<'_>) -> bool {
    match requirement {
        Requirement::None => true,
        Requirement::Version(wanted) => version::reached(&told.synced_resource_version, wanted),
        Requirement::Rewritten => false,
    }
}

/// What went wrong with the mapping, or may have: the list of failures is sorted and cut, so what sorts behind its end is unknown.
fn failure(node: &str, report: &Report, key: &MappingKey) -> Option<Finding> {
    let listed = &report.status.failures;
    if let Some(why) = listed.iter().find(|f| f.name == key.name && f.namespace == key.namespace) {
        return Some(Finding::new(why.reason.as_str(), format!("Node {node}: {}", why.message)));
    }
    let end = listed.iter().map(|f| (f.namespace.as_str(), f.name.as_str())).max();
    let cut = report.status.failure_count as usize > listed.len();
    (cut && end < Some((key.namespace.as_str(), key.name.as_str()))).then(|| {
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
