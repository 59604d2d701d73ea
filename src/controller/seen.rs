//! From which resource version on a gateway's report is about the mapping as it is now. Pure.
//!
//! A gateway reports "every change to mappings up to resource version S is in my kernel" (`syncedResourceVersion`). A mapping is
//! programmed when S has reached the version R that is remembered here. Why resource versions and not generations: the report stays of one
//! size however many mappings there are. Why this terminates and never says "programmed" too early:
//!
//! - **R is the version at which this process first saw the generation**, an upper bound of the version that introduced it: an
//!   agent that has seen R has seen that generation. After a restart of the controller R is the mapping's present version, which
//!   every agent reaches too, because its watch delivers the same object.
//! - **Writing status raises the mapping's own version but not R.** The agent follows with one report for a whole batch of
//!   such writes, the controller finds nothing to write, and it ends there. R never chases the controller's own writes.
//! - **A claim that stands only now, though its own spec is unchanged** (the older claim was deleted, the network was corrected): an
//!   agent may have reported R long ago, when it had refused the same claim. The controller's own write of `Accepted=True` settles this: the
//!   agent's watch delivers that write after the deletion that caused it, so R moves once, to the first version that does not say
//!   `Accepted=False` any more, and until then the mapping is not programmed.
//! - **The address of a virtual machine is in the status**, and it is the controller that writes it: a new one raises no generation. So R moves
//!   to the first version whose status has that address, and until it is written the mapping is not programmed with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::ResourceExt;

use super::watch::place;
use crate::api::NatMapping;
use crate::api::mapping::MachineTarget;
use crate::api::reasons::types;
use crate::plan::MappingKey;

/// What is remembered of every mapping.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    sightings: BTreeMap<MappingKey, Sighting>,
    /// The mappings as they were last observed.
    observed: Vec<Arc<NatMapping>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Sighting {
    uid: Option<String>,
    generation: Option<i64>,
    refused: bool,
    target: Option<MachineTarget>,
    version: String,
}

/// What a report must say for a mapping to count as programmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement<'a> {
    /// Any report will do: there are no resource versions (no cluster).
    None,
    /// A report that has reached this resource version.
    Version(&'a str),
    /// No report yet: the stored status still refuses the mapping.
    Rewritten,
}

impl Seen {
    /// Takes note of all mappings as they are now, by namespace and name, and forgets those that are gone. What is the very same piece of memory as last time is not
    /// looked at.
    pub fn observe(&mut self, mappings: &[Arc<NatMapping>]) {
        let observed = std::mem::replace(&mut self.observed, mappings.to_vec());
        let mut before = observed.iter().peekable();
        for mapping in mappings {
            while let Some(gone) = before.next_if(|old| place(&***old) < place(&**mapping)) {
                self.sightings.remove(&key(gone));
            }
            match before.next_if(|old| place(&***old) == place(&**mapping)) {
                Some(old) if Arc::ptr_eq(old, mapping) => {}
                _ => self.note(mapping),
            }
        }
        for gone in before {
            self.sightings.remove(&key(gone));
        }
    }

    fn note(&mut self, mapping: &NatMapping) {
        let key = key(mapping);
        let now = Sighting {
            uid: mapping.metadata.uid.clone(),
            generation: mapping.metadata.generation,
            refused: refused(mapping),
            target: target(mapping).cloned(),
            version: mapping.resource_version().unwrap_or_default(),
        };
        if !self.sightings.get(&key).is_some_and(|old| old.still_about(&now)) {
            self.sightings.insert(key, now);
        }
    }

    /// What a report must say about a mapping that leads to `machine`, or to an address of the spec if that is None.
    pub fn requirement(&self, key: &MappingKey, machine: Option<&MachineTarget>) -> Requirement<'_> {
        match self.sightings.get(key) {
            None => Requirement::None,
            Some(sighting) if sighting.version.is_empty() => Requirement::None,
            Some(sighting) if sighting.refused || !same_place(sighting.target.as_ref(), machine) => Requirement::Rewritten,
            Some(sighting) => Requirement::Version(&sighting.version),
        }
    }
}

impl Sighting {
    /// Whether what was remembered is still right, given what is seen now.
    fn still_about(&self, now: &Self) -> bool {
        self.uid == now.uid
            && self.generation == now.generation
            && self.refused == now.refused
            && same_place(self.target.as_ref(), now.target.as_ref())
    }
}

/// `namespace/name` of an object.
pub fn key(mapping: &NatMapping) -> MappingKey {
    MappingKey {
        namespace: mapping.namespace().unwrap_or_default().into(),
        name: mapping.name_any().into(),
    }
}

/// What the status says of the machine that the mapping names.
pub(super) fn target(mapping: &NatMapping) -> Option<&MachineTarget> {
    mapping.spec.target.virtual_machine_ref.as_ref()?;
    mapping.status.as_ref()?.target.as_deref()
}

/// Whether the gateways deliver to the same place for both.
fn same_place(a: Option<&MachineTarget>, b: Option<&MachineTarget>) -> bool {
    let place = |target: Option<&MachineTarget>| target.map(|t| (t.virtual_machine.clone(), t.interface.clone(), t.address.clone()));
    place(a) == place(b)
}

/// Whether the stored status refuses the mapping, whatever generation it is about.
fn refused(mapping: &NatMapping) -> bool {
    let conditions = mapping.status.as_ref().map_or(&[][..], |status| &status.conditions);
    conditions.iter().any(|c| c.type_ == types::ACCEPTED && c.status == "False")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::mapping::AddressState;
    use crate::controller::testing::{condition, mapping};

    fn at(version: &str, generation: i64, accepted: Option<&str>) -> NatMapping {
        let mut object = mapping("default", "vm03");
        object.metadata.resource_version = Some(version.into());
        object.metadata.generation = Some(generation);
        object.status = accepted.map(|status| crate::api::NatMappingStatus {
            conditions: vec![condition(types::ACCEPTED, status, "Any")],
            ..Default::default()
        });
        object
    }

    fn after(history: &[NatMapping]) -> Seen {
        let mut seen = Seen::default();
        for object in history {
            seen.observe(&[Arc::new(object.clone())]);
        }
        seen
    }

    #[test]
    fn own_status_writes_do_not_move_the_bar() {
        let seen = after(&[at("5", 1, None), at("7", 1, Some("True")), at("9", 1, Some("True"))]);
        assert_eq!(seen.requirement(&key(&mapping("default", "vm03")), None), Requirement::Version("5"));
    }

    #[test]
    fn a_new_generation_and_a_new_object_of_the_same_name_move_it() {
        let key = key(&mapping("default", "vm03"));
        assert_eq!(
            after(&[at("5", 1, None), at("8", 2, Some("True"))]).requirement(&key, None),
            Requirement::Version("8")
        );
        let mut again = at("9", 1, None);
        again.metadata.uid = Some("another".into());
        assert_eq!(after(&[at("5", 1, None), again]).requirement(&key, None), Requirement::Version("9"));
    }

    #[test]
    fn a_claim_that_was_refused_must_be_seen_anew() {
        let key = key(&mapping("default", "vm03"));
        let refused = after(&[at("5", 1, None), at("6", 1, Some("False"))]);
        assert_eq!(refused.requirement(&key, None), Requirement::Rewritten);
        let accepted = after(&[
            at("5", 1, None),
            at("6", 1, Some("False")),
            at("20", 1, Some("True")),
            at("21", 1, Some("True")),
        ]);
        assert_eq!(accepted.requirement(&key, None), Requirement::Version("20"));
        // A restart in between forgets nothing that matters: the stored status says it.
        assert_eq!(after(&[at("6", 1, Some("False"))]).requirement(&key, None), Requirement::Rewritten);
    }

    #[test]
    fn a_machine_that_moved_must_be_seen_where_it_is_now() {
        let key = key(&mapping("default", "vm03"));
        let place = |address: &str, state| MachineTarget {
            address: Some(address.into()),
            state: Some(state),
            ..MachineTarget::default()
        };
        let at = |version: &str, target: Option<&MachineTarget>| {
            let mut object = at(version, 1, Some("True"));
            object.spec.target.virtual_machine_ref = Some(Box::default());
            object.status.get_or_insert_default().target = target.cloned().map(Box::new);
            object
        };
        let (here, held, there) = (
            place("192.168.200.3", AddressState::Reported),
            place("192.168.200.3", AddressState::Held),
            place("192.168.200.4", AddressState::Reported),
        );
        let seen = after(&[at("5", None), at("7", Some(&here)), at("9", Some(&held))]);
        assert_eq!(seen.requirement(&key, Some(&held)), Requirement::Version("7"));
        assert_eq!(
            seen.requirement(&key, Some(&there)),
            Requirement::Rewritten,
            "no gateway can have read of it"
        );
        assert_eq!(seen.requirement(&key, None), Requirement::Rewritten);
        let moved = after(&[at("7", Some(&here)), at("12", Some(&there)), at("13", Some(&there))]);
        assert_eq!(moved.requirement(&key, Some(&there)), Requirement::Version("12"));
    }

    #[test]
    fn what_is_gone_is_forgotten_and_no_version_means_no_requirement() {
        let mut seen = after(&[at("5", 1, None)]);
        seen.observe(&[]);
        assert_eq!(seen, Seen::default());
        assert_eq!(
            after(&[at("", 1, None)]).requirement(&key(&mapping("default", "vm03")), None),
            Requirement::None
        );
    }
}
