//! One node's plan: what its kernel must hold, as values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::links::Attracted;
use super::policy::PolicyRule;
use super::prefixes::meet;
use super::sites::{self, Site};
use super::verdict::Claim;
use super::{FlowPolicy, HostOptions, MappingKey, NodeFacts, Refusal, Verdicts, View, conflicts, egress, links, raw, rules, separation};
use crate::api::gatewaynode::Role;
use crate::api::helper::HelperName;
use crate::api::mapping::{Announcement, Side};
use crate::api::reasons;
use crate::netfilter::{Family, IfName, Mark, Ruleset, TableRules};

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
    /// Policy routing rules.
    pub policy_rules: BTreeSet<PolicyRule>,
    /// Proxy neighbour entries: addresses that the node answers ARP for.
    pub proxies: BTreeSet<ProxyNeighbour>,
    /// Netfilter rules.
    pub ruleset: Ruleset,
    /// Table mangle of IPv4, if it has to be another one until the reverse path filters are as in [`Self::links`]: it marks what is from nobody inside, on a node that
    /// drops it by that mark.
    pub meanwhile: Option<TableRules>,
    /// Which entries of the connection table agree with this plan.
    pub flows: Arc<FlowPolicy>,
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
    /// Identifier, zone and mark, if it is kept apart from others with the same inside here.
    pub isolated: Option<Isolated>,
    /// Why the network is not served here (`InterfaceMissing`, …). The fence stands all the same where the inside interface is known.
    pub problem: Option<Refusal>,
    /// What does not work of a network that is served: a source address that is not to be had (`AddressInUse`, `SourceAddressUnusable`).
    pub impaired: Option<Refusal>,
}

/// How a network is kept apart from others on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isolated {
    /// See [`crate::api::network::Isolation::identifier`].
    pub identifier: u32,
    /// Conntrack zone.
    pub zone: u16,
    /// Firewall mark of its packets.
    pub mark: Mark,
    /// Its routing table.
    pub table: u32,
}

/// What becomes of a mapping on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MappingState {
    /// In the plan.
    Planned {
        /// What is dialled.
        virtual_prefix: IpNet,
        /// How it is made known where it is dialled.
        announcement: Announcement,
        /// Helpers that it asks for and the kernel has not: it works as it would without them.
        missing_helpers: Vec<HelperName>,
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
    /// `net.ipv6.neigh.IF.proxy_delay`, milliseconds.
    pub proxy_delay_ipv6: Option<u64>,
}

impl LinkSettings {
    /// `rp_filter` that takes a packet only from where it would be answered to (Documentation/networking/ip-sysctl.rst).
    pub const STRICT: u8 = 1;
}

/// An address that the node answers for inside, as /32.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayAddress {
    /// Interface.
    pub interface: IfName,
    /// Address.
    pub address: IpAddr,
}

/// Routing table main (`RT_TABLE_MAIN` in linux/rtnetlink.h).
pub const TABLE_MAIN: u32 = 254;

/// A route of ours.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Routing table: [`TABLE_MAIN`], or one of ours.
    pub table: u32,
    /// Destination.
    pub destination: IpNet,
    /// Where to.
    pub via: Via,
}

impl Route {
    /// A route in table main.
    pub fn main(destination: IpNet, via: Via) -> Self {
        Self {
            table: TABLE_MAIN,
            destination,
            via,
        }
    }
}

/// As `ip route` takes it.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.via {
            Via::Blackhole => write!(f, "blackhole {}", self.destination)?,
            Via::Loopback if Family::of_net(&self.destination) == Family::V6 => write!(f, "blackhole {}", self.destination)?,
            via => write!(f, "{} {via}", self.destination)?,
        }
        match self.table {
            TABLE_MAIN => Ok(()),
            table => write!(f, " table {table}"),
        }
    }
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// Here it ends. IPv4: `dev lo`, which makes the kernel answer ARP for a virtual address (a proxy entry alone does not, if the route to it leads out of the same device).
    /// IPv6: a blackhole. Neighbour discovery asks for no route, and one to `lo` rejects: the kernel would say "no route" to whoever dials a port that no mapping has
    /// (`fib6_is_reject` in net/ipv6/route.c).
    Loopback,
    /// `dev IF scope link`
    Link(IfName),
    /// `via ADDRESS`
    Gateway(IpAddr),
    /// `blackhole`, with the worst metric there is: what is left when the interface of the real route goes.
    Blackhole,
}

impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("dev lo"),
            Self::Link(interface) => write!(f, "dev {interface} scope link"),
            Self::Gateway(address) => write!(f, "via {address}"),
            Self::Blackhole => f.write_str("blackhole"),
        }
    }
}

/// `ip neigh add proxy ADDRESS dev IF`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProxyNeighbour {
    /// Interface.
    pub interface: IfName,
    /// Address.
    pub address: IpAddr,
}

/// See [`super::host_plan`].
pub(super) fn host_plan(world: View<'_>, verdicts: &Verdicts, node: &str, options: &HostOptions) -> HostPlan {
    let mut plan = HostPlan::default();
    let Some(facts) = world.nodes.iter().find(|facts| facts.name == node) else {
        return plan;
    };
    let mut sites = sites::sites(world, verdicts, facts, options);
    plan.mappings = assign(&mut sites, verdicts, facts, options);
    let mut attracted = Attracted::default();
    for site in &sites {
        plan.networks.insert(
            site.name.to_owned(),
            NetworkPlan {
                role: site.role,
                generation: site.generation,
                outside: site.outside.clone(),
                inside: site.inside.clone(),
                isolated: site.separate,
                problem: site.problem.clone(),
                impaired: impaired(site),
            },
        );
        links::program(&mut plan, &mut attracted, site, facts);
    }
    attracted.enter(&mut plan);
    separation::program(&mut plan, &sites, &facts.kernel, options);
    links::route_clients(&mut plan, world, verdicts, facts);
    let elsewhere = claimed_elsewhere(&sites, verdicts);
    plan.ruleset = rules::ruleset(&sites, &elsewhere, &facts.kernel, options);
    plan.meanwhile = rules::meanwhile(&sites, &elsewhere, &facts.kernel, options);
    plan.flows = Arc::new(FlowPolicy::of(&sites));
    plan
}

/// What comes of source addresses that are not to be had.
fn impaired(site: &Site<'_>) -> Option<Refusal> {
    let first = site.source_problems.values().next()?;
    let told: Vec<&str> = site.source_problems.values().map(|why| why.message.as_str()).collect();
    Some(Refusal {
        reason: first.reason,
        message: format!(
            "{}. Until then machines inside without a virtual address of their own do not get out, and mappings of side Inside are not programmed; all else works",
            told.join("; ")
        ),
    })
}

/// Gives every accepted claim to the site of its network, or says why this node does not program it.
fn assign<'a>(
    sites: &mut [Site<'a>],
    verdicts: &'a Verdicts,
    facts: &NodeFacts,
    options: &HostOptions,
) -> BTreeMap<MappingKey, MappingState> {
    let positions: BTreeMap<&str, usize> = sites.iter().enumerate().map(|(n, site)| (site.name, n)).collect();
    let own: BTreeMap<IpAddr, &str> = facts
        .interfaces
        .iter()
        .flat_map(|(name, interface)| interface.addresses.iter().map(move |a| (a.addr(), name.as_str())))
        .collect();
    let mut states = Vec::with_capacity(verdicts.mappings.len());
    for (key, verdict) in verdicts.mappings.iter() {
        let (Ok(claim), Some(position)) = (&verdict.accepted, positions.get(&*verdict.network)) else {
            continue;
        };
        let Some(site) = sites.get_mut(*position) else { continue };
        let state = if let Some(refusal) = obstacle(key, claim, site, facts, &own, options) {
            MappingState::Failed(refusal)
        } else {
            site.claims.push((key, claim));
            MappingState::Planned {
                virtual_prefix: claim.virtual_prefix,
                announcement: links::announcement(claim, site.network),
                missing_helpers: missing(claim, facts),
            }
        };
        states.push((key.clone(), state));
    }
    states.into_iter().collect()
}

/// Helpers of the claim that the kernel has not.
fn missing(claim: &Claim, facts: &NodeFacts) -> Vec<HelperName> {
    let names = claim.helpers.iter().map(|helper| helper.name);
    let missing: BTreeSet<HelperName> = names.filter(|name| !raw::available(&facts.kernel, *name)).collect();
    missing.into_iter().collect()
}

/// Why this node cannot program an accepted claim.
fn obstacle(
    key: &MappingKey,
    claim: &Claim,
    site: &Site<'_>,
    facts: &NodeFacts,
    own: &BTreeMap<IpAddr, &str>,
    options: &HostOptions,
) -> Option<Refusal> {
    if let Some(problem) = &site.problem {
        return Some(problem.clone());
    }
    if let Some(said) = options.quarantined.get(key) {
        return Some(Refusal {
            reason: reasons::RESTORE_REJECTED,
            message: format!("the kernel refused the rules of this mapping, so they are left out: {said}"),
        });
    }
    if let Some((address, mac)) = in_use(claim, site, options) {
        return Some(Refusal {
            reason: reasons::ADDRESS_IN_USE,
            message: format!(
                "{mac} answers for {address}, so it is not taken: that host may be production; free the address or claim another"
            ),
        });
    }
    if let Some(problem) = site.source_problems.get(&claim.family()).filter(|_| claim.side == Side::Inside) {
        return Some(problem.clone());
    }
    if let Some(refusal) = ipv6_obstacle(claim, site, facts) {
        return Some(refusal);
    }
    let (_, interface) = own
        .get_key_value(&claim.target.addr())
        .filter(|_| conflicts::field(claim.target) == "address")?;
    Some(Refusal {
        reason: reasons::TARGET_IS_GATEWAY,
        message: format!(
            "{} is the address of {interface} on this gateway: spec.target.address must be another machine's",
            claim.target.addr()
        ),
    })
}

/// The first address of a claim that somebody has where it would be answered for, with the hardware address.
fn in_use<'o>(claim: &Claim, site: &Site<'_>, options: &'o HostOptions) -> Option<(IpAddr, &'o str)> {
    if options.in_use.is_empty() {
        return None;
    }
    let interface = links::answering(claim, site)?;
    let at = |address| ProxyNeighbour {
        interface: interface.clone(),
        address,
    };
    let (first, last) = (claim.virtual_prefix.network(), claim.virtual_prefix.broadcast());
    let (taken, mac) = options.in_use.range(at(first)..=at(last)).next()?;
    Some((taken.address, mac))
}

/// What IPv6 needs of the node, and the agent may not set.
fn ipv6_obstacle(claim: &Claim, site: &Site<'_>, facts: &NodeFacts) -> Option<Refusal> {
    if claim.family() == Family::V4 {
        return None;
    }
    let node = &facts.name;
    if !facts.kernel.ipv6_forwarding {
        return Some(Refusal {
            reason: reasons::IPV6_FORWARDING_OFF,
            message: format!("node {node} does not forward IPv6: set net.ipv6.conf.all.forwarding=1 on it; it is noticed by itself"),
        });
    }
    let interface = links::answering(claim, site)?;
    let answers = facts.interfaces.get(interface.as_str()).is_some_and(|i| i.proxy_ndp);
    (!answers).then(|| Refusal {
        reason: reasons::PROXY_NDP_OFF,
        message: format!(
            "node {node} does not answer neighbour discovery for others on {interface}: set net.ipv6.conf.{interface}.proxy_ndp=1 on it; it is noticed by itself"
        ),
    })
}

/// Virtual addresses that lead into closed networks by way of other nodes, as far as anything that leaves here may be on its way to them. It must not reach them: on their own
/// gateway it would look like any client of the outside.
fn claimed_elsewhere(sites: &[Site<'_>], verdicts: &Verdicts) -> BTreeSet<IpNet> {
    let leaving = || {
        let networks = sites
            .iter()
            .flat_map(|site| Family::ALL.map(|family| egress::leaving(site, family)));
        networks.flatten()
    };
    let open = leaving().any(|leaving| leaving.open);
    let to: BTreeSet<IpNet> = leaving().flat_map(|leaving| leaving.destinations()).collect();
    if !open && to.is_empty() {
        return BTreeSet::new();
    }
    let here: BTreeSet<&MappingKey> = sites.iter().flat_map(|site| site.claims.iter().map(|(key, _)| *key)).collect();
    verdicts
        .mappings
        .iter()
        .filter(|(key, _)| !here.contains(key))
        .filter_map(|(_, verdict)| verdict.accepted.as_ref().ok())
        .filter(|claim| claim.side == Side::Outside)
        .map(|claim| claim.virtual_prefix)
        .filter(|prefix| open || to.iter().any(|to| meet(*to, *prefix)))
        .collect()
}
