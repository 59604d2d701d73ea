//! From verdicts and gateways' reports to the status of every object. Pure: the time is an argument, nothing is read or written.
//!
//! The controller calls this with every gateway's report. The standalone agent calls it with its own alone: one [`Report`] that is
//! [`Life::Alive`], and `Seen::default()`, because files have no resource versions:
//!
//! ```ignore
//! let reports = BTreeMap::from([(node.to_owned(), Report { status: own_status, life: Life::Alive })]);
//! let statuses = aggregate(&Inputs { world: (&world).into(), verdicts: &verdicts, reports: &reports, isolation: &isolation, machines: &Resolutions::new(), seen: &Seen::default(), now });
//! ```
//!
//! A status that says what the stored one says is equal to it, transition times included, so "write if it differs" never loops.

mod gateway;
mod machine;
mod mapping;
pub mod memory;
mod network;
#[cfg(test)]
mod tests;
pub mod unreadable;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

pub(super) use machine::is_of_a_machine;

pub use super::gather::{Report, Reports};
pub use super::heartbeat::Life;
pub use super::machines::Resolutions;
pub use super::seen::{Requirement, Seen, key};
use crate::api::conditions::Finding;
use crate::api::network::Isolation;
use crate::api::{NatMapping, NatMappingStatus, StagingNetworkStatus};
use crate::plan::{MappingKey, Refusal, Verdicts, View};

/// Everything that a status depends on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The objects as stored, their present status included.
    pub world: View<'a>,
    /// What [`crate::plan::judge`] says of them.
    pub verdicts: &'a Verdicts,
    /// What the gateways say.
    pub reports: &'a Reports,
    /// What networks with the same inside are told apart by, of every network that has it or needs it.
    pub isolation: &'a BTreeMap<String, Isolation>,
    /// Where mappings lead that name a virtual machine; empty where there is no cluster.
    pub machines: &'a Resolutions,
    /// Addresses of the cluster's API server. None without a cluster.
    pub api_server: &'a BTreeSet<IpAddr>,
    /// From which resource version on a report counts.
    pub seen: &'a Seen,
    /// Transition time of conditions that change.
    pub now: Timestamp,
}

/// The status that every object should have. An object without verdict is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statuses {
    /// By name.
    pub networks: BTreeMap<String, StagingNetworkStatus>,
    /// By key.
    pub mappings: BTreeMap<MappingKey, NatMappingStatus>,
}

/// Computes all of them. Networks first: which gateway serves a mapping is what was just decided, not what is stored.
pub fn aggregate(inputs: &Inputs<'_>) -> Statuses {
    let networks = networks(inputs);
    let mappings = inputs
        .world
        .mappings
        .iter()
        .filter_map(|object| mapping(inputs, &networks, object))
        .collect();
    Statuses { networks, mappings }
}

/// The statuses of all networks. What they say is part of what their mappings say.
pub fn networks(inputs: &Inputs<'_>) -> BTreeMap<String, StagingNetworkStatus> {
    let mut statuses = BTreeMap::new();
    for object in inputs.world.networks.iter() {
        let name = object.name_any();
        if let Some(verdict) = inputs.verdicts.networks.get(&name) {
            let status = network::status(inputs, object, verdict);
            statuses.insert(name, status);
        }
    }
    statuses
}

/// The status of one mapping, which need not be among those of [`Inputs::world`]. None without a verdict.
pub fn mapping(
    inputs: &Inputs<'_>,
    networks: &BTreeMap<String, StagingNetworkStatus>,
    object: &NatMapping,
) -> Option<(MappingKey, NatMappingStatus)> {
    let key = key(object);
    let verdict = inputs.verdicts.mappings.get(&key)?;
    let status = mapping::status(inputs, &key, object, verdict, networks.get(&*verdict.network));
    Some((key, status))
}

fn finding(refusal: &Refusal) -> Finding {
    Finding::new(refusal.reason, refusal.message.as_str())
}
