//! One node's plan: what its kernel must hold, as values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{FlowPolicy, HostOptions, MappingKey, Refusal, Verdicts, World};
use crate::api::gatewaynode::Role;
use crate::netfilter::{IfName, Ruleset};

/// Everything that one node must hold, and for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// What the node does for each network that concerns it.
    pub networks: BTreeMap<String, NetworkPlan>,
    /// What becomes of each accepted mapping of those networks that this node is a gateway of.
    pub mappings: BTreeMap<MappingKey, MappingState>,
    /// Settings of interfaces. An interface that is absent is left alone.
    pub links: BTreeMap<IfName, LinkSettings>,
    /// Addresses on interfaces (the networks' `gatewayAddresses`), as /32.
    pub addresses: BTreeSet<GatewayAddress>,
    /// Routes.
    pub routes: BTreeSet<Route>,
    /// Proxy neighbour entries: addresses that the node answers ARP for.
    pub proxies: BTreeSet<ProxyNeighbour>,
    /// Netfilter rules.
    pub ruleset: Ruleset,
    /// Which entries of the connection table agree with this plan.
    pub flows: FlowPolicy,
}

/// What a node does for a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Its role.
    pub role: Role,
    /// `metadata.generation` of the network planned for.
    pub generation: i64,
    /// The outside interface, once found.
    pub outside: Option<IfName>,
    /// The inside interface, once found.
    pub inside: Option<IfName>,
    /// Why the network is not served here (`InterfaceMissing`, …). The fence stands all the same where the inside interface is known.
    pub problem: Option<Refusal>,
}

/// What becomes of a mapping on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MappingState {
    /// In the plan.
    Planned {
        /// The virtual address.
        virtual_address: Ipv4Addr,
        /// `metadata.resourceVersion` of the mapping.
        resource_version: String,
    },
    /// Left out, and why.
    Failed(Refusal),
}

/// Settings of one interface that are set over rtnetlink. None: left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkSettings {
    /// `net.ipv4.conf.IF.forwarding`
    pub forwarding: Option<bool>,
    /// `net.ipv4.conf.IF.send_redirects`
    pub send_redirects: Option<bool>,
    /// `net.ipv4.conf.IF.rp_filter`: 0, 1, 2.
    pub rp_filter: Option<u8>,
    /// `net.ipv4.neigh.IF.proxy_delay`, milliseconds.
    pub proxy_delay: Option<u64>,
}

/// An address that the node answers for inside, as /32.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayAddress {
    /// Interface.
    pub interface: IfName,
    /// Address.
    pub address: Ipv4Addr,
}

/// A route of ours in table main.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub destination: Ipv4Net,
    /// Where to.
    pub via: Via,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// `dev lo`: makes the kernel answer ARP for a virtual address (a proxy entry alone does not, if the route to it leads out of the same device).
    Loopback,
    /// `dev IF scope link`
    Link(IfName),
    /// `via ADDRESS`
    Gateway(Ipv4Addr),
}

/// `ip neigh add proxy ADDRESS dev IF`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProxyNeighbour {
    /// Interface.
    pub interface: IfName,
    /// Address.
    pub address: Ipv4Addr,
}

/// See [`super::host_plan`].
pub fn host_plan(_world: &World, _verdicts: &Verdicts, _node: &str, _options: &HostOptions) -> HostPlan {
    HostPlan::default()
}
