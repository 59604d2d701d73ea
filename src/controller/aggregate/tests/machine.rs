//! What a mapping's status says of the virtual machine that it names.

use super::{Scene, row};
use crate::api::NatMappingStatus;
use crate::api::conditions::{Finding, find};
use crate::api::mapping::{AddressState, MachineTarget};
use crate::api::reasons::{self, types};
use crate::controller::aggregate::{Seen, key};
use crate::controller::machines::{Found, Resolved};
use crate::controller::testing::condition;
use crate::plan::Refusal;

const WELL: &str = "Accepted=True/Accepted ResolvedRefs=True/Resolved Programmed=True/Programmed Ready=True/Ready";

fn at(address: Option<&str>) -> MachineTarget {
    MachineTarget {
        address: address.map(Into::into),
        state: address.map(|_| AddressState::Reported),
        ..MachineTarget::default()
    }
}

/// All is well, and the mapping names a machine: `stored` is what its status says of it, `now` what was found out.
fn scene(stored: Option<MachineTarget>, now: Option<MachineTarget>, found: Found) -> Scene {
    let mut scene = Scene::well();
    scene.mapping.spec.target.virtual_machine_ref = Some(Box::default());
    let status = |target: Option<MachineTarget>| NatMappingStatus {
        target: target.map(Box::new),
        ..NatMappingStatus::default()
    };
    scene.mapping.status = Some(status(stored));
    scene.seen = Seen::default();
    scene.observe();
    scene.mapping.status = Some(status(now.clone()));
    if now.as_ref().is_none_or(|now| now.address.is_none()) {
        let waits = || Refusal {
            reason: reasons::WAITING_FOR_ADDRESS,
            message: "No address is known.".into(),
        };
        let claim = scene.mapping_verdict.accepted.clone().unwrap();
        scene.mapping_verdict.waiting = Some(Box::new(claim));
        scene.mapping_verdict.accepted = Err(waits());
        scene.mapping_verdict.resolved_refs = Err(waits());
    }
    scene.machines.insert(key(&scene.mapping), Resolved { target: now, found });
    scene
}

fn lost(reason: &str) -> Found {
    Found::No(Finding::new(reason, "why"))
}

#[test]
fn a_machine_with_an_address_is_a_target_as_any_other() {
    let here = || Some(at(Some("192.168.200.3")));
    let status = scene(here(), here(), Found::Yes("how".into())).mapping_status();
    assert_eq!(row(&status.conditions), WELL);
    assert_eq!(status.target.as_deref(), here().as_ref());
    assert_eq!(find(&status.conditions, types::RESOLVED_REFS).unwrap().message, "how");
}

/// A gateway that has read of the old address alone has reported nothing of the new one.
#[test]
fn an_address_that_is_not_written_yet_is_not_programmed() {
    let there = at(Some("192.168.200.3"));
    let moved = scene(Some(at(Some("192.168.200.9"))), Some(there), Found::Yes("how".into())).mapping_status();
    assert_eq!(
        row(&moved.conditions),
        "Accepted=True/Accepted ResolvedRefs=True/Resolved Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending"
    );
}

#[test]
fn a_machine_without_an_address_keeps_the_claim() {
    for (reason, more) in [
        (reasons::KUBEVIRT_MISSING, "Reconciling"),
        (reasons::VIRTUAL_MACHINE_NOT_FOUND, "Reconciling"),
        (reasons::WAITING_FOR_ADDRESS, "Reconciling"),
        (reasons::TARGET_OUTSIDE, "Stalled"),
        (reasons::MACHINE_INTERFACE_MISSING, "Stalled"),
    ] {
        let status = scene(None, None, lost(reason)).mapping_status();
        let wanted = format!(
            "Accepted=True/Accepted ResolvedRefs=False/{reason} Programmed=False/{reason} Ready=False/{reason} {more}=True/{reason}"
        );
        assert_eq!(row(&status.conditions), wanted);
        assert_eq!((status.gateway, status.announcement), (None, None));
    }
    let status = scene(None, Some(at(None)), lost(reasons::TARGET_ON_OTHER_NETWORK)).mapping_status();
    let elsewhere = find(&status.conditions, types::TARGET_ON_OTHER_NETWORK).unwrap();
    assert_eq!((elsewhere.status.as_str(), elsewhere.message.as_str()), ("True", "why"));
    assert!(status.target.is_some(), "what it was attached to is remembered");
}

#[test]
fn an_address_that_is_held_without_anybody_knowing_is_programmed_and_not_ready() {
    let here = || Some(at(Some("192.168.200.3")));
    let status = scene(here(), here(), lost(reasons::MACHINES_UNREADABLE)).mapping_status();
    assert_eq!(
        row(&status.conditions),
        "Accepted=True/Accepted ResolvedRefs=False/MachinesUnreadable Programmed=True/Programmed Ready=False/MachinesUnreadable \
         Reconciling=True/MachinesUnreadable"
    );
}

/// A controller that has just started has not read yet what machines there are.
#[test]
fn what_was_said_stands_until_more_is_known() {
    let here = || Some(at(Some("192.168.200.3")));
    let told = |mut scene: Scene, status: &str, reason: &str| {
        let told = condition(types::RESOLVED_REFS, status, reason);
        scene.mapping.status.as_mut().unwrap().conditions.push(told);
        scene.mapping_status()
    };
    let well = told(scene(here(), here(), Found::NotYet), "True", reasons::RESOLVED);
    assert_eq!(row(&well.conditions), WELL);
    let lied = told(scene(None, Some(at(None)), Found::NotYet), "False", reasons::TARGET_OUTSIDE);
    assert!(row(&lied.conditions).contains("ResolvedRefs=False/TargetOutside"));
    assert_eq!(lied.target.as_deref(), Some(&at(None)));
    let new = scene(None, None, Found::NotYet).mapping_status();
    assert!(row(&new.conditions).contains("ResolvedRefs=False/WaitingForAddress"));
}

/// Until the network is corrected nothing can be found out, and the held address of a machine that is off would be gone for good.
#[test]
fn what_was_known_stays_while_nothing_can_be_found_out() {
    let here = || Some(at(Some("192.168.200.3")));
    let mut scene = scene(here(), here(), Found::Yes("how".into()));
    scene.machines.clear();
    assert_eq!(scene.mapping_status().target.as_deref(), here().as_ref());
    scene.mapping.spec.target.virtual_machine_ref.as_mut().unwrap().name = "another".into();
    assert_eq!(scene.mapping_status().target, None, "it was of another machine");
}
