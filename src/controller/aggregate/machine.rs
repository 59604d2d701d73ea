//! What a mapping's status says of the virtual machine that the mapping names.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::api::conditions::{self, Finding};
use crate::api::mapping::MachineTarget;
use crate::api::reasons::{self, types};
use crate::controller::machines::{Found, Resolved};

/// Reasons of `ResolvedRefs` that are a machine's.
const OF_A_MACHINE: &[&str] = &[
    reasons::KUBEVIRT_MISSING,
    reasons::MACHINES_UNREADABLE,
    reasons::VIRTUAL_MACHINE_NOT_FOUND,
    reasons::MACHINE_INTERFACE_MISSING,
    reasons::WAITING_FOR_ADDRESS,
    reasons::TARGET_ON_OTHER_NETWORK,
    reasons::TARGET_OUTSIDE,
    reasons::TARGET_IS_GATEWAY,
];

/// Whether a reason of `ResolvedRefs` or `Programmed` is about the machine.
pub(in crate::controller) fn is_of_a_machine(reason: &str) -> bool {
    OF_A_MACHINE.contains(&reason)
}

/// Whether the reference to a machine leads somewhere: a sentence that says how, or why not. None: the mapping names no machine.
pub(super) fn found(resolved: Option<&Resolved>, before: &[Condition]) -> Option<Result<String, Finding>> {
    Some(match &resolved?.found {
        Found::Yes(how) => Ok(how.clone()),
        Found::No(why) => Err(why.clone()),
        // A controller that has just started does not unsay what another one knew.
        Found::NotYet => match conditions::find(before, types::RESOLVED_REFS) {
            Some(told) if told.status == "False" && is_of_a_machine(&told.reason) => {
                Err(Finding::new(told.reason.as_str(), told.message.as_str()))
            }
            Some(told) if told.status == "True" && has_address(resolved) => Ok(told.message.clone()),
            _ if has_address(resolved) => Ok(String::new()),
            _ => Err(Finding::new(
                reasons::WAITING_FOR_ADDRESS,
                "The controller has not read yet what machines there are.",
            )),
        },
    })
}

fn has_address(resolved: Option<&Resolved>) -> bool {
    let target = |resolved: &Resolved| resolved.target.as_ref().and_then(|t: &MachineTarget| t.address.clone());
    resolved.and_then(target).is_some()
}
