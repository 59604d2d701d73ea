//! The status of a network: which gateway attracts its traffic, and whether its fence stands on all of them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

use super::gateway::{self, GatewayState};
use super::{Inputs, Life, finding};
use crate::api::conditions::{self, Finding, NetworkFacts, Programmed};
use crate::api::gatewaynode::Role;
use crate::api::network::{ActiveGateway, StagingNetwork, StagingNetworkStatus};
use crate::api::reasons::{self, types};
use crate::plan::validate::ValidNetwork;
use crate::plan::verdict::elect;
use crate::plan::{self, NetworkVerdict, NodeFacts};

/// Reasons for which a gateway is no candidate: it has no foot in one of the segments. Other troubles (a held lock, a refused rule) pass or
/// leave the last good state serving; moving the gateway for them would break connections for nothing.
const UNFIT: &[&str] = &[
    reasons::INTERFACE_MISSING,
    reasons::INTERFACE_AMBIGUOUS,
    reasons::SAME_INTERFACE,
    reasons::INTERFACE_SHARED,
    reasons::INTERFACE_ENSLAVED,
];

pub(super) fn status(inputs: &Inputs<'_>, object: &StagingNetwork, verdict: &NetworkVerdict) -> StagingNetworkStatus {
    let before = object.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let (active, programmed, impaired) = match &verdict.accepted {
        Ok(network) => {
            let active = active_gateway(inputs, network, verdict);
            let (programmed, impaired) = programmed(inputs, network, verdict, active.as_ref(), before);
            (active, programmed, impaired)
        }
        Err(_) => (None, Programmed::Yes(String::new()), None),
    };
    let facts = NetworkFacts {
        generation: verdict.generation,
        accepted: verdict.accepted.as_ref().map(|_| ()).map_err(finding),
        programmed,
        impaired,
        limited: verdict.accepted.as_ref().ok().and_then(plan::egress_limited).as_ref().map(finding),
    };
    StagingNetworkStatus {
        observed_generation: Some(verdict.generation),
        active_gateway: active,
        isolation: inputs.isolation.get(&object.name_any()).copied(),
        api_server_addresses: inputs.api_server.iter().map(ToString::to_string).collect(),
        conditions: conditions::network(&facts, before, inputs.now),
    }
}

/// Elects among the fit gateways. With none, the present one stays as long as it is selected at all: its kernel may well go on serving, and
/// taking the traffic from it would help nobody.
fn active_gateway(inputs: &Inputs<'_>, network: &ValidNetwork, verdict: &NetworkVerdict) -> Option<ActiveGateway> {
    let current = verdict.active.as_ref();
    let candidates: Vec<NodeFacts> = inputs
        .world
        .nodes
        .iter()
        .filter(|node| fit(inputs, network, verdict, node))
        .cloned()
        .collect();
    let elected = elect(current, &candidates, network);
    elected.or_else(|| current.filter(|active| verdict.gateways.contains(&active.node)).cloned())
}

fn fit(inputs: &Inputs<'_>, network: &ValidNetwork, verdict: &NetworkVerdict, node: &NodeFacts) -> bool {
    let Some(report) = inputs.reports.get(&node.name) else {
        return false;
    };
    let lives = match report.life {
        Life::Alive => true,
        Life::Silent => false,
        // Right after a start nobody is proven: the present one stays, and only a network without any gets one.
        Life::Unproven => verdict.active.as_ref().is_none_or(|active| active.node == node.name),
    };
    let told = report.status.networks.iter().find(|told| told.name == network.name);
    lives && verdict.gateways.contains(&node.name) && told.is_none_or(|told| !UNFIT.contains(&told.reason.as_str()))
}

/// Counts the gateways on which the network stands, and says what the others lack. Trouble that somebody must look at comes before what is
/// still under way, and that before silence, which cannot be judged. The second answer is what keeps packets from getting through the one that attracts them.
fn programmed(
    inputs: &Inputs<'_>,
    network: &ValidNetwork,
    verdict: &NetworkVerdict,
    active: Option<&ActiveGateway>,
    before: &[Condition],
) -> (Programmed, Option<Finding>) {
    let total = verdict.gateways.len();
    if total == 0 {
        let why = Finding::new(
            reasons::NO_GATEWAY,
            "No node carries the labels of spec.gateway.nodeSelector. Label a node, or correct the selector.",
        );
        return (Programmed::No(why), None);
    }
    let (mut impaired, mut late) = (None, None);
    let (mut up, mut troubles, mut silent) = (0, Vec::new(), Vec::new());
    for node in &verdict.gateways {
        let report = inputs.reports.get(node);
        match gateway::state(node, report, &network.name, verdict.generation, before) {
            GatewayState::Silent(why) => silent.push(why),
            GatewayState::Not(why) => troubles.push(why),
            GatewayState::Stands(report, told) => {
                up += 1;
                let elected = active.is_some_and(|active| active.node == *node);
                if elected {
                    impaired = gateway::lacking(node, told);
                }
                if elected && told.role != Role::Active {
                    late = Some(gateway::behind(node, report, "has not reported yet that it attracts the traffic"));
                }
            }
        }
    }
    // Who takes over from a silent one is not in trouble for that, as long as nobody knows whether the silent one serves.
    let served = conditions::find(before, types::PROGRAMMED).is_some_and(|told| told.status != "False");
    match late {
        Some(why) if why.reason == reasons::PENDING && served && !silent.is_empty() => silent.push(why),
        late => troubles.extend(late),
    }
    // Stable, so nodes stay in order within a rank.
    troubles.sort_by_key(|why| [reasons::PENDING, reasons::WAITING_FOR_AGENT].contains(&why.reason.as_str()));
    let first = troubles.first().or(silent.first()).map(|why| why.reason.clone());
    let programmed = match (first, active) {
        (None, Some(active)) => Programmed::Yes(format!(
            "{up}/{total} gateways have the fence up; {} attracts the traffic.",
            active.node
        )),
        (None, None) => Programmed::No(Finding::new(
            reasons::NO_GATEWAY,
            format!("{up}/{total} gateways have the fence up, but none has an interface in both segments."),
        )),
        (Some(reason), _) => {
            let unknown = troubles.is_empty();
            let details: Vec<String> = troubles.into_iter().chain(silent).map(|why| why.message).collect();
            let why = Finding::new(reason, format!("{up}/{total} gateways have the fence up. {}", details.join(" ")));
            if unknown { Programmed::Unknown(why) } else { Programmed::No(why) }
        }
    };
    (programmed, impaired)
}
