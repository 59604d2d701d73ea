//! What each network comes down to on one node: its interfaces, its role, and why it is not served here.
//!
//! Networks are looked at from the oldest to the youngest, each against what the older ones hold **on this node**. That is on purpose not part of
//! [`super::judge`]: whether two networks meet on a node depends on labels that only this node's agent and the controller both know, and a
//! network that is not served keeps its fence, which a refused one could not promise.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;

use super::host::{Isolated, LinkSettings};
use super::interfaces::{self, Foot};
use super::prefixes::PrefixIndex;
use super::rules::network_hash;
use super::sharing::{overlap, refusal, separate, shared, sources};
use super::validate::{self, ValidNetwork};
use super::verdict::{Claim, NetworkVerdict};
use super::{HostOptions, KernelFacts, MappingKey, NodeFacts, Refusal, Verdicts, View, values};
use crate::api::gatewaynode::Role;
use crate::api::network::Isolation;
use crate::api::reasons;
use crate::netfilter::{Family, IfName, Match, Owner};

/// One network on the node.
#[derive(Debug)]
pub(super) struct Site<'a> {
    /// The network's name.
    pub(super) name: &'a str,
    /// Generation of the network.
    pub(super) generation: i64,
    /// Part of its chains' names.
    pub(super) hash: u32,
    /// The network, unless it was refused: then there is nothing but its fence.
    pub(super) network: Option<&'a ValidNetwork>,
    /// Active or standby.
    pub(super) role: Role,
    /// The outside interface, once found.
    pub(super) outside: Option<IfName>,
    /// The inside interface, once found.
    pub(super) inside: Option<IfName>,
    /// What this network's fence stands around: the inside interface, and what that is a port of. A named one is fenced before it exists, so that it
    /// never appears without. Empty: no fence.
    pub(super) fence: Vec<IfName>,
    /// How it is told apart, if it shares inside addresses with another network of the node, or did.
    pub(super) separate: Option<Isolated>,
    /// Whether all of its inside prefixes are in subnets that are connected to its inside interface, or to what that is a port of.
    pub(super) connected: bool,
    /// Whether its inside interface has no strict reverse path filter, or not yet.
    pub(super) loose: bool,
    /// Under which addresses those inside leave that have no virtual address of their own.
    pub(super) sources: BTreeMap<Family, IpAddr>,
    /// Those of [`Self::sources`] that no interface of the node has: they are answered for like virtual addresses.
    pub(super) answered: Vec<IpAddr>,
    /// Why a source address that the network names is not in there.
    pub(super) source_problems: BTreeMap<Family, Refusal>,
    /// Why the network is not served here.
    pub(super) problem: Option<Refusal>,
    /// The claims that are programmed here.
    pub(super) claims: Vec<(&'a MappingKey, &'a Claim)>,
}

/// A network that is served: nothing is missing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served<'a> {
    /// The network.
    pub(super) network: &'a ValidNetwork,
    /// Its outside interface.
    pub(super) outside: &'a IfName,
    /// Its inside interface.
    pub(super) inside: &'a IfName,
}

impl Site<'_> {
    /// Asks for the network's mark where it has one: rules of an isolated network hold for its own packets only.
    pub(super) fn own(&self) -> Option<Match> {
        self.separate.map(|separate| Match::Mark(separate.mark))
    }

    /// Its conntrack zone, if another than 0.
    pub(super) fn zone(&self) -> Option<u16> {
        self.separate.map(|separate| separate.zone).filter(|zone| *zone != 0)
    }

    /// Whether the network has anything of this family inside or outside.
    pub(super) fn has(&self, family: Family) -> bool {
        let mut prefixes = self.network.into_iter().flat_map(|n| n.pool.iter().chain(&n.inside));
        prefixes.any(|prefix| Family::of_net(prefix) == family)
    }

    /// Whether table mangle tells which of its packets come from nobody inside. A node that does not forward IPv6 may have none. Table raw says the same of the packets of an isolated
    /// network in the families that it has; but when a network becomes isolated while other labels go, raw is written after mangle, and IPv6 has no reverse path filter for the time between.
    pub(super) fn marks_nobody(&self, family: Family, kernel: &KernelFacts) -> bool {
        let concerned = match family {
            Family::V4 => self.served().is_none() || (self.separate.is_some() && !self.has(family)),
            Family::V6 => kernel.ipv6_forwarding || self.has(family),
        };
        concerned && !self.fence.is_empty()
    }

    /// Whether the reverse path filter will do what that mark does, and does not do it yet.
    pub(super) fn marks_meanwhile(&self, family: Family) -> bool {
        family == Family::V4 && self.loose && self.served().is_some() && self.separate.is_none() && !self.fence.is_empty()
    }

    /// Whether what the node would say to its machines could be heard by others: it is not served, and shares addresses with another network, which nothing tells it from, or
    /// the node has no way inside.
    pub(super) fn mistakable(&self) -> bool {
        const ALIKE: [&str; 3] = [reasons::ISOLATION_PENDING, reasons::ISOLATION_EXHAUSTED, reasons::PREFIX_OVERLAP];
        let problem = self.problem.as_ref();
        problem.is_some_and(|problem| !self.connected || self.separate.is_some() || ALIKE.contains(&problem.reason))
    }

    /// Whether there is something to translate in this family.
    pub(super) fn translates(&self, family: Family) -> bool {
        self.served().is_some() && self.has(family)
    }

    /// Whom the network's rules name. What a refused network is called may not be fit for a rule's comment.
    pub(super) fn owner(&self) -> Owner {
        if values::subdomain(self.name) {
            Owner::Network(self.name.to_owned())
        } else {
            Owner::Base
        }
    }

    /// What is needed to serve the network, if it is served.
    pub(super) fn served(&self) -> Option<Served<'_>> {
        match (&self.problem, self.network, &self.outside, &self.inside) {
            (None, Some(network), Some(outside), Some(inside)) => Some(Served { network, outside, inside }),
            _ => None,
        }
    }
}

/// What older networks hold on the node.
#[derive(Default)]
pub(super) struct Held<'a> {
    pub(super) inside: BTreeMap<IfName, &'a str>,
    pub(super) outside: BTreeMap<IfName, &'a str>,
    pub(super) prefixes: PrefixIndex<&'a str>,
    pub(super) hashes: BTreeMap<u32, &'a str>,
    /// Source addresses that are answered for.
    pub(super) sources: BTreeMap<IpAddr, &'a str>,
    /// All accepted networks whose inside interface is there, with it.
    pub(super) present: Vec<Present<'a>>,
    /// What leads outside, for whichever network, with what it is a port of: a fence around one would cut off clients, and the node itself.
    pub(super) ways_out: BTreeMap<IfName, &'a str>,
}

/// An accepted network whose inside interface is there.
pub(super) struct Present<'a> {
    pub(super) network: &'a ValidNetwork,
    pub(super) inside: IfName,
    pub(super) isolation: Option<Isolation>,
}

impl Held<'_> {
    /// What the fence of a network stands around whose inside interface is, or will be, `inside`.
    fn fence(&self, node: &NodeFacts, inside: &IfName) -> Vec<IfName> {
        let free = |master: &IfName| !self.ways_out.contains_key(master) && !self.inside.contains_key(master);
        let masters = node.masters(inside.as_str()).into_iter().filter(free);
        std::iter::once(inside.clone()).chain(masters).collect()
    }
}

/// See [`Held::ways_out`]; of several networks the oldest counts.
fn ways_out<'a>(node: &NodeFacts, accepted: &[(Option<Timestamp>, &'a str, &NetworkVerdict, &ValidNetwork)]) -> BTreeMap<IfName, &'a str> {
    let mut ways = BTreeMap::new();
    for (_, name, _, network) in accepted {
        let Ok(outside) = interfaces::find(node, network, Foot::Outside) else {
            continue;
        };
        let masters = node.masters(outside.as_str());
        for way in std::iter::once(outside).chain(masters) {
            ways.entry(way).or_insert(*name);
        }
    }
    ways
}

/// The networks that `node` is a gateway of, by age, then those refused ones whose fence must stand.
pub(super) fn sites<'a>(world: View<'a>, verdicts: &'a Verdicts, node: &NodeFacts, options: &HostOptions) -> Vec<Site<'a>> {
    let mut accepted = Vec::new();
    let mut refused = Vec::new();
    for (name, verdict) in &verdicts.networks {
        if !verdict.gateways.contains(&node.name) {
            continue;
        }
        match &verdict.accepted {
            Ok(network) => accepted.push((network.created, name.as_str(), verdict, network)),
            Err(refusal) => refused.push((name.as_str(), verdict, refusal)),
        }
    }
    accepted.sort_unstable_by_key(|(created, name, ..)| (*created, *name));
    let present = accepted
        .iter()
        .filter_map(|(.., verdict, network)| {
            Some(Present {
                network,
                inside: interfaces::find(node, network, Foot::Inside).ok()?,
                isolation: verdict.isolation,
            })
        })
        .collect();
    let mut held = Held {
        ways_out: ways_out(node, &accepted),
        present,
        ..Held::default()
    };
    let at = At { world, node, options };
    let mut sites: Vec<Site<'a>> = accepted
        .into_iter()
        .map(|(_, name, verdict, network)| site(name, verdict, network, at, &mut held))
        .collect();
    let named = named_insides(world, &refused);
    for (name, verdict, refusal) in refused {
        let fence = named
            .get(name)
            .filter(|i| !held.inside.contains_key(*i) && !held.outside.contains_key(*i));
        let Some(fence) = fence else { continue };
        let hash = network_hash(name);
        if held.hashes.insert(hash, name).is_some() {
            continue;
        }
        let stands = held.fence(node, fence);
        held.inside.extend(stands.iter().map(|interface| (interface.clone(), name)));
        sites.push(Site {
            name,
            generation: verdict.generation,
            hash,
            network: None,
            role: role(verdict, node),
            outside: None,
            inside: node.interfaces.contains_key(fence.as_str()).then(|| fence.clone()),
            fence: stands,
            separate: None,
            connected: false,
            loose: true,
            sources: BTreeMap::new(),
            answered: Vec::new(),
            source_problems: BTreeMap::new(),
            problem: Some(refusal.clone()),
            claims: Vec::new(),
        });
    }
    sites
}

fn named_insides<'a>(world: View<'a>, refused: &[(&str, &NetworkVerdict, &Refusal)]) -> BTreeMap<&'a str, IfName> {
    let refused: BTreeSet<&str> = refused.iter().map(|(name, ..)| *name).collect();
    let mut found: BTreeMap<&str, IfName> = BTreeMap::new();
    for raw in world.networks.iter() {
        let name = raw.metadata.name.as_deref().unwrap_or_default();
        let Some(interface) = validate::named_inside(raw).filter(|_| refused.contains(name)) else {
            continue;
        };
        // Several objects of one name: the first interface by name, whatever the order of the objects.
        let first = found.get(name).is_none_or(|present| interface < *present);
        if first {
            found.insert(name, interface);
        }
    }
    found
}

fn role(verdict: &NetworkVerdict, node: &NodeFacts) -> Role {
    let active = node.labels.is_none() || verdict.active.as_ref().is_some_and(|active| active.node == node.name);
    if active { Role::Active } else { Role::Standby }
}

/// Where networks are looked at.
#[derive(Clone, Copy)]
pub(super) struct At<'w> {
    pub(super) world: View<'w>,
    pub(super) node: &'w NodeFacts,
    pub(super) options: &'w HostOptions,
}

fn site<'a>(name: &'a str, verdict: &'a NetworkVerdict, network: &'a ValidNetwork, at: At<'_>, held: &mut Held<'a>) -> Site<'a> {
    let node = at.node;
    let inside = interfaces::find(node, network, Foot::Inside);
    let outside = interfaces::find(node, network, Foot::Outside);
    let hash = network_hash(name);
    let wanted = inside.as_ref().ok().or(network.inside_interface.as_ref()).cloned();

    // Without a fence of its own: the interface is fenced by an older network, or a fence would cut off somebody's clients.
    let unfenced = match (&wanted, held.hashes.get(&hash)) {
        (_, Some(other)) => Some(refusal(
            reasons::INVALID,
            format!("metadata.name must have another hash than network {other}: name the network differently"),
        )),
        (Some(w), None) => shared(w, outside.as_ref().ok(), network, node, held),
        (None, None) => None,
    };
    let fence = match &wanted {
        Some(inside) if unfenced.is_none() => held.fence(node, inside),
        _ => Vec::new(),
    };
    let enslaved = |side, interface: &Result<IfName, Refusal>| {
        let interface = interface.as_ref().ok()?;
        interfaces::enslaved(node, name, interface, side, &held.ways_out)
    };
    let structural = unfenced.or_else(|| enslaved(Foot::Inside, &inside));
    let structural = structural.or_else(|| {
        let outside = outside.as_ref().ok()?;
        let older = held.inside.get(outside)?;
        Some(refusal(
            reasons::INTERFACE_SHARED,
            format!(
                "the outside interface {outside} on node {} is the inside interface of network {older}: give network {name} another outside interface",
                node.name
            ),
        ))
    });
    let structural = structural.or_else(|| enslaved(Foot::Outside, &outside));
    let (separate, unseparated) = match separate(verdict, network, inside.as_ref().ok(), at, held) {
        Ok(separate) => (separate, None),
        Err(refusal) => (None, Some(refusal)),
    };
    let structural = structural.or(unseparated.filter(|_| inside.is_ok()));
    let structural = structural.or_else(|| overlap(network, inside.as_ref().ok()?, separate, node, held));

    if !fence.is_empty() {
        held.inside.extend(fence.iter().map(|interface| (interface.clone(), name)));
        held.hashes.insert(hash, name);
    }
    if structural.is_none() && inside.is_ok() && separate.is_none() {
        for prefix in &network.inside {
            held.prefixes.insert(*prefix, name);
        }
    }
    let problem = structural
        .or_else(|| inside.as_ref().err().cloned())
        .or_else(|| outside.as_ref().err().cloned());
    if let (None, Ok(outside)) = (&problem, &outside) {
        held.outside.entry(outside.clone()).or_insert(name);
    }
    let (sources, source_problems) = match (&problem, &outside) {
        (None, Ok(outside)) => sources(network, outside, separate, at, held),
        _ => Default::default(),
    };
    let fenced = || fence.iter().filter_map(|name| node.interfaces.get(name.as_str()));
    let connected = network
        .inside
        .iter()
        .all(|prefix| fenced().any(|facts| interfaces::connects(facts, *prefix)));
    let own = |address: &IpAddr| {
        let mut all = node.interfaces.values().flat_map(|i| &i.addresses);
        all.any(|own| own.addr() == *address)
    };
    let answered = sources.values().filter(|address| !own(address)).copied().collect();
    let present = inside.as_ref().ok().and_then(|name| node.interfaces.get(name.as_str()));
    let loose = present.is_none_or(|facts| facts.rp_filter != LinkSettings::STRICT);
    Site {
        name,
        generation: verdict.generation,
        hash,
        network: Some(network),
        role: role(verdict, node),
        outside: outside.ok(),
        inside: inside.ok(),
        fence,
        separate,
        connected,
        loose,
        sources,
        answered,
        source_problems,
        problem,
        claims: Vec::new(),
    }
}
