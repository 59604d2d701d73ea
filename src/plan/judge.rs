//! The judgement: which networks and claims stand.
//!
//! Every check but the last looks at one claim and the networks and nodes, so its answer cannot depend on other claims. Only claims that pass all
//! of them compete for addresses, oldest first: what is refused for another reason blocks nobody.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::prefixes::{PrefixIndex, is_edge};
use super::validate::{self, ValidMapping, ValidNetwork};
use super::verdict::{Claim, ClaimedPorts, MappingKey, MappingVerdict, NetworkVerdict, Refusal, Verdicts};
use super::{View, selector};
use crate::api::{NatMapping, StagingNetwork, reasons};
use crate::netfilter::Transport;

/// See [`super::judge`].
pub(super) fn judge(world: View<'_>) -> Verdicts {
    let networks = networks(world);
    let taken = Taken::new(world, &networks);
    let mut mappings: BTreeMap<MappingKey, MappingVerdict> = by_key(world)
        .into_iter()
        .map(|(object, twice)| {
            let (namespace, name) = names(object);
            let key = MappingKey {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            };
            let verdict = mapping(&key, object, twice, &networks, &taken);
            (key, verdict)
        })
        .collect();
    let mut contenders: Vec<Contender<'_>> = mappings
        .iter()
        .filter_map(|(key, verdict)| verdict.accepted.as_ref().ok().map(|claim| (claim.created, key, claim)))
        .collect();
    contenders.sort_unstable_by_key(|(created, key, _)| (*created, *key));
    for (key, refusal) in losers(&contenders) {
        if let Some(verdict) = mappings.get_mut(&key) {
            verdict.conflicted = true;
            verdict.accepted = Err(refusal);
        }
    }
    Verdicts { networks, mappings }
}

fn networks(world: View<'_>) -> BTreeMap<String, NetworkVerdict> {
    let mut by_name: BTreeMap<&str, Vec<&StagingNetwork>> = BTreeMap::new();
    for network in world.networks {
        by_name
            .entry(network.metadata.name.as_deref().unwrap_or_default())
            .or_default()
            .push(network);
    }
    by_name
        .into_iter()
        .filter_map(|(name, mut objects)| {
            objects.sort_by_cached_key(|n| rank(&n.metadata, &n.spec));
            let twice = differ(&objects, |a, b| a.spec == b.spec);
            let raw = objects.first()?;
            let accepted = if twice {
                Err(declared_twice("StagingNetwork", name))
            } else {
                validate::network(raw)
            };
            let verdict = NetworkVerdict {
                generation: raw.metadata.generation.unwrap_or(0),
                accepted,
                gateways: gateways(raw, world),
                active: raw.status.as_ref().and_then(|s| s.active_gateway.clone()),
            };
            Some((name.to_owned(), verdict))
        })
        .collect()
}

/// Names of the nodes that the network's selector matches. A node whose labels nobody knows is the one node of standalone mode.
fn gateways(network: &StagingNetwork, world: View<'_>) -> Vec<String> {
    let selector = &network.spec.gateway.node_selector;
    let mut names: Vec<String> = world
        .nodes
        .iter()
        .filter(|node| node.labels.as_ref().is_none_or(|labels| selector::matches(selector, labels)))
        .map(|node| node.name.clone())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Namespace and name of a mapping, the way it is judged.
fn names(mapping: &NatMapping) -> (&str, &str) {
    let meta = &mapping.metadata;
    (
        meta.namespace.as_deref().unwrap_or("default"),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// The decisive object of each namespace and name, and whether others of that name say something else. The API server has one object a key; a
/// directory of files may have several.
fn by_key(world: View<'_>) -> Vec<(&NatMapping, bool)> {
    let mut all: Vec<&NatMapping> = world.mappings.iter().collect();
    all.sort_by_key(|mapping| names(mapping));
    all.chunk_by_mut(|a, b| names(a) == names(b))
        .filter_map(|objects| {
            if objects.len() > 1 {
                objects.sort_by_cached_key(|m| rank(&m.metadata, &m.spec));
            }
            Some((*objects.first()?, differ(objects, |a, b| a.spec == b.spec)))
        })
        .collect()
}

type Metadata = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// An order among objects of one name that does not depend on where they were found.
fn rank(meta: &Metadata, spec: &impl std::fmt::Debug) -> (Option<Timestamp>, std::cmp::Reverse<Option<i64>>, Option<String>, String) {
    (
        meta.creation_timestamp.as_ref().map(|t| t.0),
        std::cmp::Reverse(meta.generation),
        meta.resource_version.clone(),
        format!("{spec:?}"),
    )
}

fn differ<T>(objects: &[&T], same: impl Fn(&T, &T) -> bool) -> bool {
    objects.windows(2).any(|pair| matches!(pair, [a, b] if !same(a, b)))
}

fn declared_twice(kind: &str, name: &str) -> Refusal {
    Refusal {
        reason: reasons::INVALID,
        message: format!(
            "metadata.name must be unique: there are several objects {kind} {name:?} that say different things; keep one of them"
        ),
    }
}

/// Addresses that no claim may have, whichever pool they are in.
struct Taken {
    /// Interface addresses of nodes: which node, which interface.
    nodes: BTreeMap<IpAddr, (String, String)>,
    /// Connected subnets of nodes, for their network and broadcast addresses.
    subnets: PrefixIndex<(String, String)>,
    /// `gatewayAddresses`: which network.
    gateway_addresses: BTreeMap<IpAddr, String>,
    /// Inside prefixes: which network.
    inside: PrefixIndex<String>,
}

impl Taken {
    fn new(world: View<'_>, networks: &BTreeMap<String, NetworkVerdict>) -> Self {
        let mut taken = Self {
            nodes: BTreeMap::new(),
            subnets: PrefixIndex::default(),
            gateway_addresses: BTreeMap::new(),
            inside: PrefixIndex::default(),
        };
        let mut nodes: Vec<_> = world.nodes.iter().collect();
        nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for node in nodes {
            for (interface, facts) in &node.interfaces {
                for address in &facts.addresses {
                    let owner = (node.name.clone(), interface.clone());
                    taken.nodes.entry(address.addr()).or_insert_with(|| owner.clone());
                    taken.subnets.insert(*address, owner);
                }
            }
        }
        for (name, network) in networks.iter().filter_map(|(n, v)| v.accepted.as_ref().ok().map(|v| (n, v))) {
            for address in &network.gateway_addresses {
                taken.gateway_addresses.entry(*address).or_insert_with(|| name.clone());
            }
            for prefix in &network.inside {
                taken.inside.insert(*prefix, name.clone());
            }
        }
        taken
    }

    /// Why `address` cannot be a virtual address.
    fn virtual_problem(&self, address: IpAddr) -> Option<Refusal> {
        let owned = |message| Refusal {
            reason: reasons::ADDRESS_OWNED,
            message,
        };
        if let Some((node, interface)) = self.nodes.get(&address) {
            return Some(owned(format!(
                "spec.virtual.address must be one that no host owns: {address} is the address of {interface} on node {node}"
            )));
        }
        if let Some(network) = self.gateway_addresses.get(&address) {
            return Some(owned(format!(
                "spec.virtual.address must be one that no host owns: {address} is in gatewayAddresses of network {network}"
            )));
        }
        if let Some((subnet, (node, interface))) = self.subnets.covering(address).filter(|(subnet, _)| is_edge(*subnet, address)) {
            return Some(owned(format!(
                "spec.virtual.address must be a host's address: {address} is the network or broadcast address of {subnet} on {interface} of node {node}"
            )));
        }
        // A host route to it would cut off the VM that has it inside.
        self.inside.covering(address).map(|(prefix, network)| Refusal {
            reason: reasons::PROTECTED,
            message: format!(
                "spec.virtual.address must not lie in a closed network: {address} is in {prefix}, which is inside network {network}"
            ),
        })
    }
}

fn mapping(key: &MappingKey, raw: &NatMapping, twice: bool, networks: &BTreeMap<String, NetworkVerdict>, taken: &Taken) -> MappingVerdict {
    let name = raw.spec.network_ref.name.clone();
    let network = networks.get(&name);
    let not_found = || Refusal {
        reason: reasons::NETWORK_NOT_FOUND,
        message: format!(
            "spec.networkRef.name must be the name of a StagingNetwork: there is none named {:?}; the mapping takes effect when there is",
            name.chars().take(64).collect::<String>()
        ),
    };
    let valid = if twice {
        Err(declared_twice("NatMapping", &key.to_string()))
    } else {
        validate::mapping(raw)
    };
    let accepted = valid.and_then(|valid| match network.map(|n| &n.accepted) {
        None => Err(not_found()),
        Some(Err(refusal)) => Err(Refusal {
            reason: reasons::NETWORK_NOT_ACCEPTED,
            message: format!("network {name} is not accepted itself: {}: {}", refusal.reason, refusal.message),
        }),
        Some(Ok(network)) => claim(raw, valid, network, taken),
    });
    MappingVerdict {
        generation: raw.metadata.generation.unwrap_or(0),
        resource_version: raw.metadata.resource_version.clone().unwrap_or_default(),
        resolved_refs: network.map(|_| ()).ok_or_else(not_found),
        network: name,
        accepted,
        conflicted: false,
    }
}

/// The claim, unless the network or the nodes forbid it. All problems are told; the first gives the reason.
fn claim(raw: &NatMapping, valid: ValidMapping, network: &ValidNetwork, taken: &Taken) -> Result<Claim, Refusal> {
    let mut problems = Vec::new();
    let mut add = |reason, message| problems.push(Refusal { reason, message });
    let virtual_address = valid.virtual_address;
    let target = valid.target;
    let name = &network.name;
    if !covers(&network.pool, virtual_address) {
        add(
            reasons::POOL,
            format!(
                "spec.virtual.address must be in the pool of network {name}, {}: got {virtual_address}",
                list(&network.pool)
            ),
        );
    }
    if let Some(prefix) = network.protected.iter().find(|p| p.contains(&virtual_address)) {
        add(
            reasons::PROTECTED,
            format!("spec.virtual.address must not be production: {virtual_address} is in {prefix}, which network {name} protects"),
        );
    }
    if let Some(problem) = taken.virtual_problem(virtual_address) {
        add(problem.reason, problem.message);
    }
    if !covers(&network.inside, target) {
        add(
            reasons::TARGET_OUTSIDE,
            format!(
                "spec.target.address must be in the inside prefixes of network {name}, {}: got {target}",
                list(&network.inside)
            ),
        );
    } else if let Some(prefix) = network.inside.iter().find(|p| is_edge(**p, target)) {
        add(
            reasons::TARGET_OUTSIDE,
            format!("spec.target.address must be a VM's address: {target} is the network or broadcast address of {prefix}"),
        );
    }
    if network.gateway_addresses.contains(&target) {
        add(
            reasons::TARGET_IS_GATEWAY,
            format!("spec.target.address must be a VM's address: {target} is in gatewayAddresses of network {name}"),
        );
    }
    let Some(first) = problems.first() else {
        return Ok(Claim {
            created: raw.metadata.creation_timestamp.as_ref().map(|t| t.0),
            network: valid.network,
            virtual_address,
            target,
            ports: valid.ports,
            source_translation: valid.source_translation.unwrap_or(network.source_translation),
        });
    };
    Err(Refusal {
        reason: first.reason,
        message: problems.iter().map(|p| p.message.as_str()).collect::<Vec<_>>().join("; "),
    })
}

fn covers<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>, address: IpAddr) -> bool {
    prefixes.into_iter().any(|prefix| prefix.contains(&address))
}

fn list<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>) -> String {
    prefixes.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What older claims hold of one virtual address. Ranges of one transport are disjoint, since whoever came later was refused.
struct Held {
    /// Position of the first claim: its network has the address.
    first: usize,
    /// Whether that claim holds every port.
    whole: bool,
    /// First port → last port, and the claim's position.
    ranges: BTreeMap<(Transport, u16), (u16, usize)>,
}

impl Held {
    fn holder(&self, ports: ClaimedPorts) -> Option<usize> {
        let until = (ports.transport, ports.ports.last());
        let (&(transport, _), &(last, at)) = self.ranges.range(..=until).next_back()?;
        (transport == ports.transport && last >= ports.ports.first()).then_some(at)
    }
}

/// A claim that stands by itself: since when, whose, what.
type Contender<'a> = (Option<Timestamp>, &'a MappingKey, &'a Claim);

/// Claims that an older one rules out, given all claims from the oldest to the youngest.
///
/// An address belongs to the network of its oldest claim: ports of one address never lead into two closed networks, which would tie the two together
/// and could not be announced by two gateways at once.
fn losers(claims: &[Contender<'_>]) -> Vec<(MappingKey, Refusal)> {
    let mut held: BTreeMap<IpAddr, Held> = BTreeMap::new();
    let mut lost = Vec::new();
    for (at, (_, key, claim)) in claims.iter().enumerate() {
        let Some(holder) = held.get_mut(&claim.virtual_address) else {
            held.insert(
                claim.virtual_address,
                Held {
                    first: at,
                    whole: claim.ports.is_empty(),
                    ranges: ranges(claim, at).collect(),
                },
            );
            continue;
        };
        let elsewhere = claims.get(holder.first).is_none_or(|(_, _, first)| first.network != claim.network);
        let winner = if holder.whole || elsewhere || claim.ports.is_empty() {
            Some(holder.first)
        } else {
            claim.ports.iter().filter_map(|ports| holder.holder(*ports)).min()
        };
        match winner.and_then(|w| claims.get(w)) {
            None => holder.ranges.extend(ranges(claim, at)),
            Some(winner) => lost.push(((*key).clone(), conflict(key, claim, winner))),
        }
    }
    lost
}

fn ranges(claim: &Claim, at: usize) -> impl Iterator<Item = ((Transport, u16), (u16, usize))> {
    claim
        .ports
        .iter()
        .map(move |p| ((p.transport, p.ports.first()), (p.ports.last(), at)))
}

/// Names the winner only to its own namespace: what others claim is theirs to tell.
fn conflict(key: &MappingKey, claim: &Claim, (since, winner, won): &Contender<'_>) -> Refusal {
    let who = if winner.namespace == key.namespace {
        format!("NatMapping {}", winner.name)
    } else {
        "an older claim in another namespace".to_owned()
    };
    let since = since.map(|t| format!(" since {t}")).unwrap_or_default();
    let what = if won.network != claim.network {
        " for another network"
    } else if won.ports.is_empty() || claim.ports.is_empty() {
        ""
    } else {
        " with overlapping ports"
    };
    Refusal {
        reason: reasons::CONFLICT,
        message: format!(
            "spec.virtual.address must not be claimed already: {who} holds {}{what}{since}; choose another address or other ports, or delete one of the two",
            claim.virtual_address
        ),
    }
}
