//! One node's plan: what its kernel must hold, as values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::sites::{self, Site};
use super::verdict::Claim;
use super::{FlowPolicy, HostOptions, MappingKey, NodeFacts, Refusal, Verdicts, View, links, rules};
use crate::api::gatewaynode::Role;
use crate::api::reasons;
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
pub(super) fn host_plan(world: View<'_>, verdicts: &Verdicts, node: &str, options: &HostOptions) -> HostPlan {
    let mut plan = HostPlan::default();
    let Some(facts) = world.nodes.iter().find(|facts| facts.name == node) else {
        return plan;
    };
    let mut sites = sites::sites(world, verdicts, facts);
    plan.mappings = assign(&mut sites, verdicts, facts, options);
    for site in &sites {
        plan.networks.insert(
            site.name.to_owned(),
            NetworkPlan {
                role: site.role,
                generation: site.generation,
                outside: site.outside.clone(),
                inside: site.inside.clone(),
                problem: site.problem.clone(),
            },
        );
        links::program(&mut plan, site, facts);
    }
    links::route_clients(&mut plan, world, verdicts, facts);
    plan.ruleset = rules::ruleset(&sites, &claimed_elsewhere(&sites, verdicts), options);
    plan.flows = FlowPolicy::of(&sites);
    plan
}

/// Gives every accepted claim to the site of its network, or says why this node does not program it.
fn assign<'a>(
    sites: &mut [Site<'a>],
    verdicts: &'a Verdicts,
    facts: &NodeFacts,
    options: &HostOptions,
) -> BTreeMap<MappingKey, MappingState> {
    let positions: BTreeMap<&str, usize> = sites.iter().enumerate().map(|(n, site)| (site.name, n)).collect();
    let own: BTreeMap<Ipv4Addr, &str> = facts
        .interfaces
        .iter()
        .flat_map(|(name, interface)| interface.addresses.iter().map(move |a| (a.addr(), name.as_str())))
        .collect();
    let mut states = BTreeMap::new();
    for (key, verdict) in &verdicts.mappings {
        let (Ok(claim), Some(position)) = (&verdict.accepted, positions.get(verdict.network.as_str())) else {
            continue;
        };
        let Some(site) = sites.get_mut(*position) else { continue };
        let state = if let Some(refusal) = obstacle(key, claim, site, &own, options) {
            MappingState::Failed(refusal)
        } else {
            site.claims.push((key, claim));
            MappingState::Planned {
                virtual_address: claim.virtual_address,
                resource_version: verdict.resource_version.clone(),
            }
        };
        states.insert(key.clone(), state);
    }
    states
}

/// Why this node cannot program an accepted claim.
fn obstacle(key: &MappingKey, claim: &Claim, site: &Site<'_>, own: &BTreeMap<Ipv4Addr, &str>, options: &HostOptions) -> Option<Refusal> {
    if let Some(problem) = &site.problem {
        return Some(problem.clone());
    }
    if let Some(said) = options.quarantined.get(key) {
        return Some(Refusal {
            reason: reasons::RESTORE_REJECTED,
            message: format!("the kernel refused the rules of this mapping, so they are left out: {said}"),
        });
    }
    if let Some(mac) = options.in_use.get(&claim.virtual_address) {
        return Some(Refusal {
            reason: reasons::ADDRESS_IN_USE,
            message: format!(
                "{mac} answers ARP for {} outside, so it is not taken: that host may be production; free the address or claim another",
                claim.virtual_address
            ),
        });
    }
    own.get(&claim.target).map(|interface| Refusal {
        reason: reasons::TARGET_IS_GATEWAY,
        message: format!(
            "{} is the address of {interface} on this gateway: spec.target.address must be a VM's address",
            claim.target
        ),
    })
}

/// Virtual addresses that lead into closed networks by way of other nodes. What leaves a closed network here must not reach them: on their own gateway
/// it would look like any client of the outside.
fn claimed_elsewhere(sites: &[Site<'_>], verdicts: &Verdicts) -> BTreeSet<Ipv4Addr> {
    if !sites.iter().any(|site| site.served().is_some_and(|s| s.network.egress_allowed)) {
        return BTreeSet::new();
    }
    let here: BTreeSet<Ipv4Addr> = sites
        .iter()
        .flat_map(|site| site.claims.iter().map(|(_, claim)| claim.virtual_address))
        .collect();
    verdicts
        .mappings
        .values()
        .filter_map(|verdict| verdict.accepted.as_ref().ok())
        .map(|claim| claim.virtual_address)
        .filter(|address| !here.contains(address))
        .collect()
}
