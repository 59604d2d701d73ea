//! One node's plan: what its kernel must hold, as values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::sites::{self, Site};
use super::verdict::Claim;
use super::{FlowPolicy, HostOptions, MappingKey, NodeFacts, Refusal, Verdicts, View, links, rules};
use crate::api::gatewaynode::Role;
use crate::api::reasons;
use crate::netfilter::{Family, IfName, Mark, Ruleset};

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
        virtual_address: IpAddr,
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
    /// `net.ipv6.neigh.IF.proxy_delay`, milliseconds.
    pub proxy_delay_ipv6: Option<u64>,
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
            via => write!(f, "{} {via}", self.destination)?,
        }
        match self.table {
            TABLE_MAIN => Ok(()),
            table => write!(f, " table {table}"),
        }
    }
}

/// A policy routing rule of ours (`ip rule`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Its place: rules are asked in ascending order (`FRA_PRIORITY`). No two of ours have the same in one family.
    pub preference: u32,
    /// The firewall mark that it asks for; None: any.
    pub mark: Option<Mark>,
    /// The interface that a packet has come in by; None: any, and the node's own packets too.
    pub input: Option<IfName>,
    /// What happens then.
    pub action: RuleAction,
}

/// As `ip rule` takes it.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {}", self.preference)?;
        if let Some(mark) = self.mark {
            write!(f, " fwmark {mark}")?;
        }
        if let Some(input) = &self.input {
            write!(f, " iif {input}")?;
        }
        match self.action {
            RuleAction::Lookup(table) => write!(f, " lookup {table}"),
            RuleAction::Goto(preference) => write!(f, " goto {preference}"),
            RuleAction::Nop => f.write_str(" nop"),
        }
    }
}

/// What a policy routing rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    /// Asks this routing table; without a route there, the next rule is asked.
    Lookup(u32),
    /// Goes on with the rule of this preference (`FR_ACT_GOTO`).
    Goto(u32),
    /// Nothing: a place to go to (`FR_ACT_NOP`).
    Nop,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// `dev lo`: makes the kernel answer ARP for a virtual address (a proxy entry alone does not, if the route to it leads out of the same device).
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
    let own: BTreeMap<IpAddr, &str> = facts
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
fn obstacle(key: &MappingKey, claim: &Claim, site: &Site<'_>, own: &BTreeMap<IpAddr, &str>, options: &HostOptions) -> Option<Refusal> {
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
fn claimed_elsewhere(sites: &[Site<'_>], verdicts: &Verdicts) -> BTreeSet<IpAddr> {
    if !sites.iter().any(|site| site.served().is_some_and(|s| s.network.egress_allowed)) {
        return BTreeSet::new();
    }
    let here: BTreeSet<IpAddr> = sites
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
