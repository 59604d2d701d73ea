//! What one gateway says of one network, in the order in which it matters.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Life, Report};
use crate::api::conditions::{self, Finding};
use crate::api::gatewaynode::NetworkReport;
use crate::api::reasons::{self, types};

/// Reasons of networks that stand all the same: one for which nothing gets through, and two that the source address is not to be had.
const STANDING: &[&str] = &[reasons::LINK_DOWN, reasons::ADDRESS_IN_USE, reasons::SOURCE_ADDRESS_UNUSABLE];

/// One gateway, seen from one network.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum GatewayState<'a> {
    /// Its agent has stopped reporting: what it said last may or may not still be so.
    Silent(Finding),
    /// It cannot serve, or does not yet: why.
    Not(Finding),
    /// The network as it is now stands in its kernel, behind its fence.
    Stands(&'a Report, &'a NetworkReport),
}

/// `before`: the conditions of the object that this is asked for. They say whether the gateway was silent already when a controller that
/// has just started cannot tell yet.
pub(super) fn state<'a>(node: &str, report: Option<&'a Report>, network: &str, generation: i64, before: &[Condition]) -> GatewayState<'a> {
    let Some(report) = report else {
        return GatewayState::Not(Finding::new(
            reasons::WAITING_FOR_AGENT,
            format!("The agent on node {node} has never reported; see whether its pod runs there."),
        ));
    };
    if is_silent(Some(report), before) {
        return GatewayState::Silent(Finding::new(
            reasons::GATEWAY_SILENT,
            format!("The agent on node {node} has stopped reporting. What its kernel holds goes on working, but nobody can vouch for it."),
        ));
    }
    let told = report.status.networks.iter().find(|told| told.name == network);
    match told {
        Some(told) if !told.reason.is_empty() && !STANDING.contains(&told.reason.as_str()) => {
            GatewayState::Not(Finding::new(told.reason.as_str(), format!("Node {node}: {}", told.message)))
        }
        Some(told) if told.fenced && told.observed_generation >= generation => GatewayState::Stands(report, told),
        _ => GatewayState::Not(behind(node, report, "has not reported yet that the network stands in its kernel")),
    }
}

/// Why a gateway is behind: what keeps it from working, if it says so, or else just that it is.
pub(super) fn behind(node: &str, report: &Report, what: &str) -> Finding {
    // Reasons of the node's summary that say nothing about why this very object is not there yet.
    const NO_ANSWER: &[&str] = &[reasons::DEGRADED, reasons::DRIFT_FOUND, reasons::NOTHING_TO_DO];
    match conditions::find(&report.status.conditions, types::READY) {
        Some(ready) if ready.status == "False" && !NO_ANSWER.contains(&ready.reason.as_str()) => {
            Finding::new(ready.reason.as_str(), format!("Node {node}: {}", ready.message))
        }
        _ => Finding::new(reasons::PENDING, format!("Node {node} {what}.")),
    }
}

/// What a network lacks that stands on a gateway.
pub(super) fn lacking(node: &str, told: &NetworkReport) -> Option<Finding> {
    STANDING
        .contains(&told.reason.as_str())
        .then(|| Finding::new(told.reason.as_str(), format!("Node {node}: {}", told.message)))
}

/// What keeps packets of a network that stands on a gateway from getting through, those of mappings too.
pub(super) fn impaired(node: &str, told: &NetworkReport) -> Option<Finding> {
    lacking(node, told).filter(|why| why.reason == reasons::LINK_DOWN)
}

/// What a person is told while `next` takes over from a gateway that has fallen silent.
pub(super) fn taking_over(silent: &str, next: &str) -> Finding {
    Finding::new(
        reasons::GATEWAY_SILENT,
        format!(
            "The agent on node {silent} has stopped reporting. Node {next} takes over and has not reported yet that it serves; until then nobody can vouch for what either kernel does."
        ),
    )
}

/// Whether a gateway that has reported says nothing any more.
pub(super) fn is_silent(report: Option<&Report>, before: &[Condition]) -> bool {
    match report.map(|report| report.life) {
        Some(Life::Silent) => true,
        Some(Life::Alive) | None => false,
        Some(Life::Unproven) => conditions::find(before, types::PROGRAMMED).is_some_and(|c| c.reason == reasons::GATEWAY_SILENT),
    }
}
