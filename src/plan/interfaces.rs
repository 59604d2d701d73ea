//! Which interface of a node serves a network: by name, or the one whose connected subnet covers the network's addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::validate::ValidNetwork;
use super::{InterfaceFacts, NodeFacts, Refusal};
use crate::api::reasons;
use crate::netfilter::{Family, IfName};

/// A side of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foot {
    /// Where the clients are.
    Outside,
    /// The closed network.
    Inside,
}

impl Foot {
    fn word(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Inside => "inside",
        }
    }

    fn wanted(self, network: &ValidNetwork) -> (Option<&IfName>, &BTreeSet<IpNet>) {
        match self {
            Self::Outside => (network.outside_interface.as_ref(), &network.pool),
            Self::Inside => (network.inside_interface.as_ref(), &network.inside),
        }
    }
}

/// The interface of `node` on one side of `network`: exactly one, or why there is none.
pub(super) fn find(node: &NodeFacts, network: &ValidNetwork, side: Foot) -> Result<IfName, Refusal> {
    let (named, prefixes) = side.wanted(network);
    let word = side.word();
    if let Some(name) = named {
        if node.interfaces.contains_key(name.as_str()) {
            return Ok(name.clone());
        }
        return Err(Refusal {
            reason: reasons::INTERFACE_MISSING,
            message: format!(
                "node {} has no interface {name}: create it or correct spec.{word}.interface of network {}; it is taken into use when it appears",
                node.name, network.name
            ),
        });
    }
    let mut found: Vec<IfName> = node
        .interfaces
        .iter()
        .filter(|(name, facts)| name.as_str() != "lo" && prefixes.iter().all(|prefix| connects(facts, *prefix)))
        .filter_map(|(name, _)| IfName::new(name))
        .collect();
    // A port that was left an address of its bridge's subnet is no second candidate.
    let ports: BTreeSet<IfName> = found
        .iter()
        .filter(|name| node.masters(name.as_str()).iter().any(|master| found.contains(master)))
        .cloned()
        .collect();
    found.retain(|name| !ports.contains(name));
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Refusal {
            reason: reasons::INTERFACE_MISSING,
            message: format!(
                "node {} has no interface whose subnet covers {}: give one such an address, or name it in spec.{word}.interface of network {}",
                node.name,
                list(prefixes),
                network.name
            ),
        }),
        several => Err(Refusal {
            reason: reasons::INTERFACE_AMBIGUOUS,
            message: format!(
                "node {} has several interfaces whose subnet covers {}: {}; name one in spec.{word}.interface of network {}",
                node.name,
                list(prefixes),
                list(several),
                network.name
            ),
        }),
    }
}

/// Why `interface` cannot serve a side of `network`: it is a port, and what is routed comes in by its topmost master.
/// `outside`: the interfaces that lead outside, each with the network that says so; no fence may stand around them.
pub(super) fn enslaved(
    node: &NodeFacts,
    network: &str,
    interface: &IfName,
    side: Foot,
    outside: &BTreeMap<IfName, &str>,
) -> Option<Refusal> {
    let masters = node.masters(interface.as_str());
    let (master, top) = (masters.first()?, masters.last()?);
    let word = side.word();
    let is = format!("the {word} interface {interface} on node {} is a port of {master}", node.name);
    let leads_out = masters.iter().find_map(|m| outside.get(m).map(|other| (m, other)));
    let message = match (side, leads_out) {
        (Foot::Inside, Some((m, other))) => format!(
            "{is}: routed packets carry the name {top}, and no fence can stand around {m}, which leads outside for network {other}; release {interface} from {master} at once"
        ),
        _ => format!(
            "{is}: routed packets carry the name {top}; name {top} as spec.{word}.interface of network {network}, or release {interface} from {master}"
        ),
    };
    Some(Refusal {
        reason: reasons::INTERFACE_ENSLAVED,
        message,
    })
}

/// Whether all of `prefix` is in a connected subnet of the interface.
pub(super) fn connects(facts: &InterfaceFacts, prefix: IpNet) -> bool {
    facts.addresses.iter().any(|address| address.contains(&prefix))
}

/// The node's own address outside in one family: of the connected subnet that covers some of the pool, else the first. A link-local one is none: it says nothing without an interface.
pub(super) fn outside_address(node: &NodeFacts, interface: &IfName, network: &ValidNetwork, family: Family) -> Option<IpAddr> {
    let addresses = &node.interfaces.get(interface.as_str())?.addresses;
    let reachable = || {
        addresses
            .iter()
            .filter(|address| Family::of_net(address) == family && !link_local(address.addr()))
    };
    reachable()
        .find(|address| network.pool_of(family).any(|prefix| address.contains(&prefix)))
        .or_else(|| reachable().next())
        .map(IpNet::addr)
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// At most four of `items`, for a message.
fn list<'a, T: ToString + 'a>(items: impl IntoIterator<Item = &'a T>) -> String {
    const SHOWN: usize = 4;
    let mut items: Vec<String> = items.into_iter().map(ToString::to_string).collect();
    if items.len() > SHOWN {
        let more = items.len() - SHOWN;
        items.truncate(SHOWN);
        return format!("{} and {more} more", items.join(", "));
    }
    items.join(", ")
}
