//! Decides everything: which claims stand, and what each node's kernel must hold.
//!
//! Pure and deterministic: the same objects and facts give the same answer whatever their order. No IO, no clock, no API client.
//! Controller, agent, command line and standalone mode all call this, so they cannot disagree.

mod claims;
mod concern;
mod conflicts;
mod egress;
mod fence;
mod fields;
pub mod flows;
mod gates;
pub mod host;
mod interfaces;
pub mod isolation;
mod judge;
mod links;
mod memory;
mod policy;
mod prefixes;
mod raw;
pub mod rules;
mod selector;
mod separation;
mod sharing;
mod sites;
mod tenancy;
mod translation;
pub mod validate;
mod values;
pub mod verdict;

pub use concern::{Concern, concern};
pub use conflicts::written;
pub use flows::{Dialled, FlowPolicy, FlowTuple, Reach, Sweep};
pub use host::{GatewayAddress, HostPlan, Isolated, LinkSettings, MappingState, NetworkPlan, ProxyNeighbour, Route, TABLE_MAIN, Via};
pub use memory::Memory;
pub use policy::{PolicyRule, RuleAction};
pub use selector::Selector;
pub use tenancy::{Namespaces, declared};
pub use verdict::{Claim, MappingKey, MappingVerdict, NetworkVerdict, Refusal, Verdicts};

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::api::helper::HelperName;
use crate::api::mapping::Announcement;
use crate::api::{NatMapping, StagingNetwork};
use crate::netfilter::{Family, Helper, IfName, Mark};

/// What is known of one node. Made by the agent from the kernel, or by the controller from a `GatewayNode`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Name of the node.
    pub name: String,
    /// The Node object's labels. None: unknown, or no cluster (standalone: the node is the gateway of every network).
    pub labels: Option<BTreeMap<String, String>>,
    /// Interfaces by name.
    pub interfaces: BTreeMap<String, InterfaceFacts>,
    /// What the kernel is set to. Not known of other nodes.
    pub kernel: KernelFacts,
}

/// What the kernel of a node has and is set to, which the agent can see and not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelFacts {
    /// `net.ipv6.conf.all.forwarding`: in IPv6 the one switch for all interfaces.
    pub ipv6_forwarding: bool,
    /// Families in which what the kernel itself answers bears the mark of what it answers (`net.ipv4.fwmark_reflect`, `net.ipv6.fwmark_reflect`).
    pub fwmark_reflect: BTreeSet<Family>,
    /// Conntrack helpers that the kernel has, with their part in NAT. None: it could not be found out.
    pub helpers: Option<BTreeSet<Helper>>,
}

impl KernelFacts {
    /// Helpers that the kernel has every part of, sorted. Empty if that could not be found out.
    pub fn helper_names(&self) -> Vec<HelperName> {
        let whole = |name: &HelperName| self.helpers.is_some() && self.lacks(*name).next().is_none();
        HelperName::ALL.into_iter().filter(whole).collect()
    }

    /// Parts of a helper that the kernel has not. None if that could not be found out.
    pub fn lacks(&self, name: HelperName) -> impl Iterator<Item = Helper> {
        let parts = values::kernel_helpers(name).iter().map(|(_, part)| *part);
        parts.filter(|part| self.helpers.as_ref().is_some_and(|known| !known.contains(part)))
    }
}

/// What is known of one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceFacts {
    /// The kernel's index.
    pub index: u32,
    /// Bytes.
    pub mtu: u32,
    /// Administratively up, with a carrier.
    pub up: bool,
    /// Hardware address in colon notation; empty if none.
    pub mac: String,
    /// Addresses with prefix length, ours (by protocol number) left out. Sorted.
    pub addresses: BTreeSet<IpNet>,
    /// Effective reverse path filter, the greater of `all` and the interface's: 0 off, 1 strict, 2 loose (Documentation/networking/ip-sysctl.rst).
    pub rp_filter: u8,
    /// Whether proxy neighbour entries of IPv6 are answered for: the greater of `net.ipv6.conf.all.proxy_ndp` and the interface's.
    pub proxy_ndp: bool,
    /// The bridge, bond or VRF that it is a port of (`IFLA_MASTER`). What is routed comes in by that name. Not known of other nodes.
    pub master: Option<String>,
}

impl NodeFacts {
    /// What `interface` is a port of, and what that is a port of, up to the one whose name routed packets carry. Empty for what is no port.
    pub fn masters(&self, interface: &str) -> Vec<IfName> {
        let master = |name: &str| IfName::new(self.interfaces.get(name)?.master.as_deref()?);
        // Bounded: the kernel allows no rings, facts that are read while they change may.
        std::iter::successors(master(interface), |above| master(above.as_str()))
            .take(self.interfaces.len())
            .collect()
    }
}

/// Everything that is decided upon.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// All networks.
    pub networks: Vec<StagingNetwork>,
    /// All mappings.
    pub mappings: Vec<NatMapping>,
    /// All nodes of which facts are known.
    pub nodes: Vec<NodeFacts>,
    /// Labels of the namespaces. One that is not in it has labels that nobody knows.
    pub namespaces: Arc<Namespaces>,
}

/// A [`World`] that belongs to others: planning 10 000 mappings should not begin with copying them.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// See [`World::networks`].
    pub networks: Borrowed<'a, StagingNetwork>,
    /// See [`World::mappings`].
    pub mappings: Borrowed<'a, NatMapping>,
    /// See [`World::nodes`].
    pub nodes: Borrowed<'a, NodeFacts>,
    /// See [`World::namespaces`].
    pub namespaces: &'a Arc<Namespaces>,
}

/// Objects that belong to others.
#[derive(Debug)]
pub enum Borrowed<'a, T> {
    /// One after the other.
    Owned(&'a [T]),
    /// Each by itself, as they are where thousands of them outlive the change of one.
    Shared(&'a [Arc<T>]),
}

// Not derived: that would ask the same of `T`.
impl<T> Clone for Borrowed<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Borrowed<'_, T> {}

impl<T> Default for Borrowed<'_, T> {
    fn default() -> Self {
        Self::Owned(&[])
    }
}

impl<'a, T> Borrowed<'a, T> {
    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = &'a T> {
        let (owned, shared): (&[T], &[_]) = match self {
            Self::Owned(objects) => (objects, &[]),
            Self::Shared(objects) => (&[], objects),
        };
        owned.iter().chain(shared.iter().map(AsRef::as_ref))
    }
}

impl<'a> From<&'a World> for View<'a> {
    fn from(world: &'a World) -> Self {
        Self {
            networks: Borrowed::Owned(&world.networks),
            mappings: Borrowed::Owned(&world.mappings),
            nodes: Borrowed::Owned(&world.nodes),
            namespaces: &world.namespaces,
        }
    }
}

/// Firewall marks of isolated networks: consecutive values of a run of bits, the first for identifier 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    base: u32,
    mask: u32,
}

impl Default for Marks {
    /// The low eight bits: clear of kube-proxy's (0xc000), Calico's (0xffff0000) and Cilium's (0x0f00, and the upper half), though not of Cilium's with `ClusterMesh`.
    fn default() -> Self {
        Self { base: 1, mask: 0xff }
    }
}

impl Marks {
    /// Marks from `base` on under `mask`. None unless the mask is one run of bits and the base a value of them other than 0 and the last, which is [`Marks::nobody`].
    pub fn new(base: u32, mask: u32) -> Option<Self> {
        let run = mask != 0 && (mask >> mask.trailing_zeros()).checked_add(1).is_none_or(u32::is_power_of_two);
        (run && base != 0 && base != mask && base & !mask == 0).then_some(Self { base, mask })
    }

    /// The mark of an identifier (from 1). None if there are no more.
    pub fn of(self, identifier: u32) -> Option<Mark> {
        let step = 1_u32.checked_shl(self.mask.trailing_zeros())?;
        let value = identifier.checked_sub(1)?.checked_mul(step)?.checked_add(self.base)?;
        (value & !self.mask == 0 && value != self.mask).then_some(Mark { value, mask: self.mask })
    }

    /// What packets from inside bear whose source is nobody inside: the node drops them where it would route them, and says nothing to whoever has that address.
    pub fn nobody(self) -> Mark {
        Mark {
            value: self.mask,
            mask: self.mask,
        }
    }

    /// What packets of no isolated network bear.
    pub fn none(self) -> Mark {
        Mark { value: 0, mask: self.mask }
    }

    /// All the bits.
    pub fn mask(self) -> u32 {
        self.mask
    }
}

/// How one node programs its host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostOptions {
    /// Bits of the connection mark that say "let in by a mapping". No one else may write them.
    pub connmark: u32,
    /// How isolated networks are told apart.
    pub marks: Marks,
    /// NFLOG group for denied packets.
    pub nflog_group: u16,
    /// Virtual addresses that somebody else answers for on the interface where they would be answered for, with that somebody's hardware address: not taken there. Clones
    /// may have the same addresses inside.
    pub in_use: BTreeMap<ProxyNeighbour, String>,
    /// Mappings whose rules the kernel refused, with its words: left out, so that they harm nobody else.
    pub quarantined: BTreeMap<MappingKey, String>,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            connmark: 0x2000,
            marks: Marks::default(),
            nflog_group: 5,
            in_use: BTreeMap::new(),
            quarantined: BTreeMap::new(),
        }
    }
}

/// Judges every object. The controller, the agents, the command line and the standalone mode call just this.
pub fn judge<'a>(world: impl Into<View<'a>>) -> Verdicts {
    judge::judge(world.into(), &mut Memory::default())
}

/// The same as [`judge`], sooner where little has changed since the memory was last used.
pub fn judge_again<'a>(world: impl Into<View<'a>>, memory: &mut Memory) -> Verdicts {
    judge::judge(world.into(), memory)
}

/// Whether a machine of the closed network may be at an address: whether a mapping may lead there. The refusal is for a message about `field`.
pub fn leads_inside(address: IpAddr, field: &str, network: &validate::ValidNetwork) -> Result<(), Refusal> {
    claims::leads_inside(IpNet::from(address), field, network)
}

/// Whether any host may be reached at an address: not if it is link-local or the like.
pub fn usable(address: IpAddr) -> bool {
    values::unusable(IpNet::from(address)).is_none()
}

/// How a claim that stands is made known where it is dialled.
pub fn announcement(claim: &Claim, network: &validate::ValidNetwork) -> Announcement {
    links::announcement(claim, Some(network))
}

/// What of a network's egress only machines with a 1:1 mapping can make use of, because it has no source address for the others. None: all can, or nothing may leave.
pub fn egress_limited(network: &validate::ValidNetwork) -> Option<Refusal> {
    egress::limited(network)
}

/// What node `node` must hold in its kernel, given the verdicts. A node that is in no network's selector gets an empty plan.
pub fn host_plan<'a>(world: impl Into<View<'a>>, verdicts: &Verdicts, node: &str, options: &HostOptions) -> HostPlan {
    host::host_plan(world.into(), verdicts, node, options)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod testing;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
