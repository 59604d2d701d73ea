//! Kubernetes Events: what a person should see, once, when it happens.
//!
//! [`of_mapping`] and [`of_network`] are pure and compare the status before and after a write that succeeded, so nothing is said
//! twice, not even after a restart; what happens again is counted ([`super::publish`]). What concerns all mappings of a network (a silent gateway, a move) is said of the network alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::aggregate::is_of_a_machine;
pub use super::publish::{Announcer, Notice};
use crate::api::conditions::{find, is_final};
use crate::api::reasons::{self, types};
use crate::api::{NatMappingStatus, StagingNetworkStatus};

/// Reporter of events and manager of fields.
pub const REPORTER: &str = "stagenet-controller";

/// What a change of a mapping's status says.
pub fn of_mapping(before: Option<&NatMappingStatus>, after: &NatMappingStatus) -> Vec<Notice> {
    let old = before.map_or(&[][..], |status| &status.conditions);
    let mut notices = Vec::from_iter(refusal(old, &after.conditions));
    let (was, is) = (find(old, types::PROGRAMMED), find(&after.conditions, types::PROGRAMMED));
    if let Some(is) = is.filter(|is| changed(was, is)) {
        // Without a gateway, the reason of what is accepted is the network's.
        let nowhere = before.is_some_and(|before| before.gateway.is_none());
        let waited_for_gateway = was.is_some_and(|was| {
            of_the_network(&was.reason) || (nowhere && was.reason != reasons::NOT_ACCEPTED && !is_of_a_machine(&was.reason))
        });
        let moved = before
            .and_then(|b| b.gateway.as_ref())
            .is_some_and(|node| Some(node) != after.gateway.as_ref());
        if is.status == "True" && !waited_for_gateway && !moved {
            notices.push(notice(false, "Program", is));
        } else if is.status == "False" && after.gateway.is_some() && !under_way(&is.reason) && !of_the_network(&is.reason) {
            notices.push(notice(true, "Program", is));
        }
    }
    let resolved = |conditions| find(conditions, types::RESOLVED_REFS);
    if let Some(is) = resolved(&after.conditions).filter(|is| is.status == "False" && changed(resolved(old), is)) {
        if is.reason == reasons::HELPER_MISSING {
            notices.push(notice(true, "Program", is));
        } else if is_of_a_machine(&is.reason) && is_final(&is.reason) {
            notices.push(notice(true, "Resolve", is));
        }
    }
    notices
}

/// What a change of a network's status says.
pub fn of_network(before: Option<&StagingNetworkStatus>, after: &StagingNetworkStatus) -> Vec<Notice> {
    let old = before.map_or(&[][..], |status| &status.conditions);
    let mut notices = Vec::from_iter(refusal(old, &after.conditions));
    let was = before.and_then(|b| b.active_gateway.as_ref()).map(|gateway| gateway.node.as_str());
    let is = after.active_gateway.as_ref().map(|gateway| gateway.node.as_str());
    let (reason, note) = match (was, is) {
        (None, Some(is)) => (reasons::GATEWAY_ELECTED, format!("{is} attracts the network's traffic.")),
        (Some(was), Some(is)) if was != is => (
            reasons::GATEWAY_MOVED,
            format!("{is} attracts the network's traffic instead of {was}."),
        ),
        (Some(was), None) => (
            reasons::NO_GATEWAY,
            format!("Nothing attracts the network's traffic any more; it was {was}."),
        ),
        _ => ("", String::new()),
    };
    if !reason.is_empty() {
        notices.push(Notice {
            warning: is.is_none(),
            reason: reason.to_owned(),
            action: "Elect",
            note,
        });
    }
    let (was, is) = (find(old, types::PROGRAMMED), find(&after.conditions, types::PROGRAMMED));
    if let Some(is) = is.filter(|is| changed(was, is) && !under_way(&is.reason)) {
        notices.push(notice(is.status != "True", "Program", is));
    }
    notices.extend(isolated(before, after));
    notices.extend(link(old, &after.conditions));
    notices
}

/// A network that is told apart from others from now on.
fn isolated(before: Option<&StagingNetworkStatus>, after: &StagingNetworkStatus) -> Option<Notice> {
    let isolation = after.isolation?;
    let was = before.and_then(|before| before.isolation);
    (was != Some(isolation)).then(|| Notice {
        warning: false,
        reason: reasons::ISOLATED.to_owned(),
        action: "Isolate",
        note: format!(
            "Another network on its gateways has the same inside addresses: packets bear the mark of identifier {}, connections are tracked in zone {}.",
            isolation.identifier, isolation.zone
        ),
    })
}

/// An interface of the gateway that went down, or is up again.
fn link(old: &[Condition], new: &[Condition]) -> Option<Notice> {
    let (was, is) = (find(old, types::READY), find(new, types::READY)?);
    let down = |condition: &Condition| condition.reason == reasons::LINK_DOWN;
    if down(is) {
        return changed(was, is).then(|| notice(true, "Forward", is));
    }
    (was.is_some_and(down) && is.status == "True").then(|| Notice {
        reason: reasons::LINK_UP.to_owned(),
        ..notice(false, "Forward", is)
    })
}

fn refusal(before: &[Condition], after: &[Condition]) -> Option<Notice> {
    let is = find(after, types::ACCEPTED)?;
    // What comes right by itself (a mapping applied a moment before its network) is left to the status.
    let stays = is.status == "False" && is_final(&is.reason);
    (stays && changed(find(before, types::ACCEPTED), is)).then(|| notice(true, "Accept", is))
}

fn changed(was: Option<&Condition>, is: &Condition) -> bool {
    was.is_none_or(|was| was.status != is.status || was.reason != is.reason)
}

/// Reasons that pass by themselves, or repeat another condition.
fn under_way(reason: &str) -> bool {
    [reasons::PENDING, reasons::NOT_ACCEPTED].contains(&reason)
}

/// Reasons that concern all mappings of a network.
fn of_the_network(reason: &str) -> bool {
    [reasons::GATEWAY_SILENT, reasons::NO_GATEWAY, reasons::WAITING_FOR_AGENT].contains(&reason)
}

fn notice(warning: bool, action: &'static str, condition: &Condition) -> Notice {
    Notice {
        warning,
        reason: condition.reason.clone(),
        action,
        note: condition.message.clone(),
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
