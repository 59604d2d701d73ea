//! What a network shares with others on one node: inside addresses, interfaces, source addresses; and whether it can be served all the same.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::host::{Isolated, ProxyNeighbour};
use super::isolation;
use super::prefixes::meet;
use super::sites::{At, Held, Present};
use super::validate::ValidNetwork;
use super::verdict::NetworkVerdict;
use super::{NodeFacts, Refusal};
use crate::api::reasons;
use crate::netfilter::{Family, IfName};

/// How the network is told apart here. None: it need not be.
pub(super) fn separate(
    verdict: &NetworkVerdict,
    network: &ValidNetwork,
    inside: Option<&IfName>,
    at: At<'_>,
    held: &Held<'_>,
) -> Result<Option<Isolated>, Refusal> {
    let others = || held.present.iter().filter(|other| other.network.name != network.name);
    let mut met = others().filter(|other| isolation::overlap(network, other.network));
    let age = |network: &ValidNetwork| (network.created, network.name.clone());
    let older = |other: &&Present<'_>| age(other.network) < age(network);
    let Some(isolation) = verdict.isolation else {
        let Some(older) = met.find(older) else {
            return Ok(None);
        };
        return Err(refusal(
            reasons::ISOLATION_PENDING,
            format!(
                "network {} shares inside addresses with network {} on node {} and has no status.isolation yet: the controller gives it one",
                network.name, older.network.name, at.node.name
            ),
        ));
    };
    let same = others().filter(older).find(|other| {
        let theirs = other.isolation.filter(|theirs| {
            theirs.identifier == isolation.identifier || theirs.zone == isolation.zone && isolation::overlap(network, other.network)
        });
        theirs.is_some()
    });
    if let Some(older) = same {
        return Err(refusal(
            reasons::ISOLATION_PENDING,
            format!(
                "network {} has the identifier or the zone of network {} (status.isolation), with which it is on node {}: the controller gives it another one",
                network.name, older.network.name, at.node.name
            ),
        ));
    }
    // A clone's bridge may outlive the clone.
    let alone = met.next().is_none() && inside.is_none_or(|inside| elsewhere(network, inside, at.node, held).is_none());
    if isolation.zone == 0 && alone {
        return Ok(None);
    }
    let mark = at
        .options
        .marks
        .of(isolation.identifier)
        .filter(|_| isolation.identifier <= isolation::IDENTIFIER_MAX);
    match mark {
        Some(mark) => Ok(Some(Isolated {
            identifier: isolation.identifier,
            zone: isolation.zone,
            mark,
            table: isolation::TABLE_BASE + isolation.identifier,
        })),
        None => Err(refusal(
            reasons::ISOLATION_EXHAUSTED,
            format!(
                "network {} has identifier {}, for which the mark bits {:#x} have no value: give the agents a wider --fwmark-mask, or delete clones",
                network.name,
                isolation.identifier,
                at.options.marks.mask()
            ),
        )),
    }
}

/// Which of the network's source addresses those inside can leave under here, and why not the others.
pub(super) fn sources<'a>(
    network: &'a ValidNetwork,
    outside: &IfName,
    separate: Option<Isolated>,
    at: At<'_>,
    held: &mut Held<'a>,
) -> (BTreeMap<Family, IpAddr>, BTreeMap<Family, Refusal>) {
    let (mut usable, mut problems) = (BTreeMap::new(), BTreeMap::new());
    let zoned = separate.is_some_and(|separate| separate.zone != 0);
    for (family, address) in &network.source_addresses {
        let named = |message: String| format!("spec.outside.sourceAddress {address} of network {}: {message}", network.name);
        let owner = at.world.nodes.iter().find(|node| {
            let mut addresses = node.interfaces.values().flat_map(|i| &i.addresses);
            addresses.any(|own| own.addr() == *address)
        });
        let facts = at.node.interfaces.get(outside.as_str());
        let own = facts.is_some_and(|facts| facts.addresses.iter().any(|own| own.addr() == *address));
        let answered = ProxyNeighbour {
            interface: outside.clone(),
            address: *address,
        };
        let problem = if let Some(mac) = at.options.in_use.get(&answered) {
            Some((
                reasons::ADDRESS_IN_USE,
                format!("{mac} answers for it outside, so it is not taken; choose a free one"),
            ))
        } else if own && zoned {
            let message =
                "it is the node's own, whose connections would be taken for those of this clone; choose one of the pool that nobody has";
            Some((reasons::SOURCE_ADDRESS_UNUSABLE, message.to_owned()))
        } else if own {
            None
        } else if let Some(owner) = owner {
            Some((
                reasons::SOURCE_ADDRESS_UNUSABLE,
                format!("node {} has it; choose one that nobody has", owner.name),
            ))
        } else if !network.pool.iter().any(|pool| pool.contains(address)) {
            let message = format!(
                "it must be in the pool, or node {}'s own on {outside}: answers to it would not come here",
                at.node.name
            );
            Some((reasons::SOURCE_ADDRESS_UNUSABLE, message))
        } else {
            let holder = held.sources.get(address).filter(|holder| **holder != network.name);
            holder.map(|other| {
                (
                    reasons::SOURCE_ADDRESS_UNUSABLE,
                    format!("it is network {other}'s; each network needs its own"),
                )
            })
        };
        if let Some((reason, message)) = problem {
            problems.insert(*family, refusal(reason, named(message)));
        } else {
            usable.insert(*family, *address);
            held.sources.entry(*address).or_insert(&network.name);
        }
    }
    (usable, problems)
}

pub(super) fn refusal(reason: &'static str, message: String) -> Refusal {
    Refusal { reason, message }
}

/// Why no fence of this network may stand around `wanted`.
pub(super) fn shared(
    wanted: &IfName,
    outside: Option<&IfName>,
    network: &ValidNetwork,
    node: &NodeFacts,
    held: &Held<'_>,
) -> Option<Refusal> {
    let (name, node) = (&network.name, &node.name);
    if outside == Some(wanted) {
        return Some(refusal(
            reasons::SAME_INTERFACE,
            format!(
                "outside and inside of network {name} are both {wanted} on node {node}: give the closed network an interface of its own"
            ),
        ));
    }
    if let Some(older) = held.inside.get(wanted) {
        return Some(refusal(
            reasons::INTERFACE_SHARED,
            format!(
                "the inside interface {wanted} on node {node} serves network {older} already: the two would not be closed to each other; give network {name} its own"
            ),
        ));
    }
    held.outside.get(wanted).map(|older| {
        refusal(
            reasons::INTERFACE_SHARED,
            format!("the inside interface {wanted} on node {node} is the outside interface of network {older}, which a fence would cut off; give network {name} its own"),
        )
    })
}

/// Whether packets for this network's VMs could be delivered elsewhere: to an older network with the same addresses, or, worst of all, to production. A separate network's own
/// routing table leads nowhere else.
pub(super) fn overlap(
    network: &ValidNetwork,
    inside: &IfName,
    separate: Option<Isolated>,
    node: &NodeFacts,
    held: &Held<'_>,
) -> Option<Refusal> {
    if separate.is_some() {
        return None;
    }
    let name = &network.name;
    let older = network
        .inside
        .iter()
        .find_map(|prefix| Some((prefix, held.prefixes.overlapping(*prefix)?)));
    if let Some((prefix, (other, older))) = older {
        return Some(refusal(
            reasons::PREFIX_OVERLAP,
            format!(
                "the inside prefix {prefix} of network {name} shares addresses with {other} of network {older}, which node {} serves already: use other gateway nodes for one of the two",
                node.name
            ),
        ));
    }
    elsewhere(network, inside, node, held).map(|(prefix, interface, subnet)| {
        refusal(
            reasons::PREFIX_OVERLAP,
            format!(
                "the inside prefix {prefix} of network {name} shares addresses with {subnet}, which is connected to {interface} on node {}: packets for VMs could be delivered there; use a gateway node that is not in that subnet",
                node.name
            ),
        )
    })
}

/// A subnet that shares addresses with an inside prefix and is connected to an interface that is no network's inside.
fn elsewhere<'n>(network: &ValidNetwork, inside: &IfName, node: &'n NodeFacts, held: &Held<'_>) -> Option<(IpNet, &'n str, IpNet)> {
    let fenced = |interface: &str| held.present.iter().any(|other| other.inside.as_str() == interface);
    network.inside.iter().find_map(|prefix| {
        node.interfaces
            .iter()
            .filter(|(interface, _)| interface.as_str() != inside.as_str() && !fenced(interface))
            .flat_map(|(interface, facts)| facts.addresses.iter().map(move |address| (interface.as_str(), address.trunc())))
            .find(|(_, subnet)| subnet.prefix_len() < subnet.max_prefix_len() && meet(*subnet, *prefix))
            .map(|(interface, subnet)| (*prefix, interface, subnet))
    })
}
