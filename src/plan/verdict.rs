//! Verdicts: which networks and claims stand, and why the others do not.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use super::NodeFacts;
use super::interfaces::{self, Foot};
use super::validate::{ClaimedHelper, ValidNetwork};
use crate::api::mapping::Side;
use crate::api::network::{ActiveGateway, Isolation, SourceTranslation};
use crate::netfilter::{Family, IfName, PortRange, Transport};

/// `namespace/name` of a mapping. Cheap to clone, like all that is told of ten thousand mappings in several places.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MappingKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimedPorts {
    /// Protocol.
    pub transport: Transport,
    /// At the virtual address.
    pub ports: PortRange,
    /// First port at the target.
    pub target_first: u16,
}

impl fmt::Display for ClaimedPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.transport.as_str(), self.ports.first())?;
        if self.ports.span() > 0 {
            write!(f, "-{}", self.ports.last())?;
        }
        Ok(())
    }
}

/// A validated claim: nobody looks at the raw spec again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// `metadata.creationTimestamp`; None sorts as oldest.
    pub created: Option<Timestamp>,
    /// The network's name.
    pub network: Arc<str>,
    /// Who dials.
    pub side: Side,
    /// What is dialled: a single address is a prefix of full length.
    pub virtual_prefix: IpNet,
    /// Where it leads, as long as [`Self::virtual_prefix`].
    pub target: IpNet,
    /// Empty: every protocol. Sorted.
    pub ports: Vec<ClaimedPorts>,
    /// Sorted.
    pub helpers: Vec<ClaimedHelper>,
    /// The mapping's own setting, or else the network's.
    pub source_translation: SourceTranslation,
}

impl Claim {
    /// IPv4 or IPv6.
    pub fn family(&self) -> Family {
        Family::of_net(&self.virtual_prefix)
    }

    /// Whether this is a 1:1 mapping of a machine that clients dial: then it is also the address that the machine leaves under.
    pub fn mirrored(&self) -> bool {
        self.side == Side::Outside && self.ports.is_empty()
    }
}

/// What is decided about a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingVerdict {
    /// `metadata.generation` of the object judged.
    pub generation: i64,
    /// `metadata.resourceVersion` of the object judged.
    pub resource_version: String,
    /// The network that it names, whether or not there is one.
    pub network: Arc<str>,
    /// The claim if it stands.
    pub accepted: Result<Claim, Refusal>,
    /// Whether what it refers to exists (the network).
    pub resolved_refs: Result<(), Refusal>,
    /// The claim of a mapping that is not served only because no address of its machine is known, or no labels of its namespace (`NamespaceUnknown`): it holds its virtual address
    /// all the same, as what comes and goes must not make others come and go. `accepted` is an error then; the claim's target means nothing.
    pub waiting: Option<Box<Claim>>,
    /// Whether an older claim to the same thing won. Then `accepted` is an error too.
    pub conflicted: bool,
}

impl MappingVerdict {
    /// The claim that nobody else may have, whether or not it is served.
    pub fn standing(&self) -> Option<&Claim> {
        self.accepted.as_ref().ok().or(self.waiting.as_deref())
    }
}

/// What is decided about a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkVerdict {
    /// `metadata.generation` of the object judged.
    pub generation: i64,
    /// The validated network if it stands.
    pub accepted: Result<ValidNetwork, Refusal>,
    /// What tells it from networks with the same inside, as the object's status says.
    pub isolation: Option<Isolation>,
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
    /// By key. Shared with what is remembered of them: see [`super::Memory`].
    pub mappings: Arc<BTreeMap<MappingKey, Arc<MappingVerdict>>>,
}

/// Which node attracts a network's traffic: the present one while it is among the healthy `candidates`, else the first by name of those that have
/// both interfaces. None if there is no such node.
///
/// Sticky, because a move breaks connections that hide the client's address: a gateway that comes back does not take over.
pub fn elect(current: Option<&ActiveGateway>, candidates: &[NodeFacts], network: &ValidNetwork) -> Option<ActiveGateway> {
    let elected = |facts: &NodeFacts, outside: &IfName| {
        let address = |family| interfaces::outside_address(facts, outside, network, family).map(|a| a.to_string());
        ActiveGateway {
            node: facts.name.clone(),
            address: address(Family::V4),
            address_ipv6: address(Family::V6),
        }
    };
    let staying = current.and_then(|c| candidates.iter().find(|facts| facts.name == c.node).map(|facts| (c, facts)));
    if let Some((current, facts)) = staying {
        return Some(match interfaces::find(facts, network, Foot::Outside) {
            Ok(name) => elected(facts, &name),
            // Not to be seen just now: what was known of it stays.
            Err(_) => current.clone(),
        });
    }
    candidates
        .iter()
        .filter_map(|facts| {
            let outside = interfaces::find(facts, network, Foot::Outside).ok()?;
            let inside = interfaces::find(facts, network, Foot::Inside).ok()?;
            (outside != inside).then_some((facts, outside))
        })
        .min_by(|(a, _), (b, _)| a.name.cmp(&b.name))
        .map(|(facts, outside)| elected(facts, &outside))
}
