//! Verdicts: which networks and claims stand, and why the others do not.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use super::World;
use crate::api::network::{ActiveGateway, SourceTranslation};
use crate::netfilter::{PortRange, Transport};

/// `namespace/name` of a mapping.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MappingKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for MappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Why something is not accepted: a fixed reason of [`crate::api::reasons`] and a sentence that says what would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// A constant of [`crate::api::reasons`].
    pub reason: &'static str,
    /// What is, why, what next.
    pub message: String,
}

/// Ports of a claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimedPorts {
    /// Protocol.
    pub transport: Transport,
    /// At the virtual address.
    pub ports: PortRange,
    /// First port at the target.
    pub target_first: u16,
}

/// A validated claim: nobody looks at the raw spec again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The network's name.
    pub network: String,
    /// The address outside.
    pub virtual_address: Ipv4Addr,
    /// The address inside.
    pub target: Ipv4Addr,
    /// Empty: every protocol. Sorted.
    pub ports: Vec<ClaimedPorts>,
    /// The mapping's own setting, or else the network's.
    pub source_translation: SourceTranslation,
}

/// What is decided about a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingVerdict {
    /// `metadata.generation` of the object judged.
    pub generation: i64,
    /// `metadata.resourceVersion` of the object judged.
    pub resource_version: String,
    /// The network that it names, whether or not there is one.
    pub network: String,
    /// The claim if it stands.
    pub accepted: Result<Claim, Refusal>,
    /// Whether what it refers to exists (the network).
    pub resolved_refs: Result<(), Refusal>,
    /// Whether an older claim to the same thing won. Then `accepted` is an error too.
    pub conflicted: bool,
}

/// What is decided about a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkVerdict {
    /// `metadata.generation` of the object judged.
    pub generation: i64,
    /// The validated network if it stands.
    pub accepted: Result<super::validate::ValidNetwork, Refusal>,
    /// Nodes whose labels the selector matches, sorted. In standalone mode: the one node.
    pub gateways: Vec<String>,
    /// What the object's status says is active (kept as it is by the agent; chosen anew by the controller with [`elect`]).
    pub active: Option<ActiveGateway>,
}

/// All verdicts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// By name.
    pub networks: BTreeMap<String, NetworkVerdict>,
    /// By key.
    pub mappings: BTreeMap<MappingKey, MappingVerdict>,
}

/// Judges every object of `world`.
pub fn judge(_world: &World) -> Verdicts {
    Verdicts::default()
}

/// Which node attracts a network's traffic: the present one while it is among the healthy `candidates`, else the first of them by name.
pub fn elect(
    _current: Option<&ActiveGateway>,
    _candidates: &[super::NodeFacts],
    _network: &super::validate::ValidNetwork,
) -> Option<ActiveGateway> {
    None
}
