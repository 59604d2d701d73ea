//! Whether one claim stands by itself: against its network, the nodes and the other networks. Other claims are for [`super::conflicts`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::View;
use super::conflicts::{field, written};
use super::prefixes::{PrefixIndex, is_edge, meet};
use super::validate::{ValidMapping, ValidNetwork};
use super::verdict::{Claim, NetworkVerdict, Refusal};
use crate::api::mapping::Side;
use crate::api::{NatMapping, reasons};
use crate::netfilter::Family;

/// Addresses that no claim may have, whichever pool they are in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Interface addresses of nodes: which node, which interface.
    nodes: BTreeMap<IpAddr, (String, String)>,
    /// Addresses of the nodes' connected subnets that no host has, with their subnet, node and interface.
    edges: BTreeMap<IpAddr, (IpNet, String, String)>,
    /// `gatewayAddresses`: which network.
    gateway_addresses: BTreeMap<IpAddr, String>,
    /// Source addresses: which network.
    source_addresses: BTreeMap<IpAddr, String>,
    /// Addresses of the cluster's API server, as the networks' statuses have them.
    api_server: BTreeSet<IpAddr>,
    /// Inside prefixes: which network.
    inside: PrefixIndex<String>,
}

impl Taken {
    pub(super) fn new(world: View<'_>, networks: &BTreeMap<String, NetworkVerdict>) -> Self {
        let mut taken = Self::default();
        let mut nodes: Vec<_> = world.nodes.iter().collect();
        nodes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for node in nodes {
            for (interface, facts) in &node.interfaces {
                for address in &facts.addresses {
                    let owner = || (node.name.clone(), interface.clone());
                    taken.nodes.entry(address.addr()).or_insert_with(owner);
                    for edge in [address.network(), address.broadcast()] {
                        if is_edge(*address, edge) {
                            let at = || (address.trunc(), node.name.clone(), interface.clone());
                            taken.edges.entry(edge).or_insert_with(at);
                        }
                    }
                }
            }
        }
        let said = world.networks.iter().filter_map(|network| network.status.as_ref());
        taken.api_server = said
            .flat_map(|status| &status.api_server_addresses)
            .filter_map(|a| a.parse().ok())
            .collect();
        for (name, network) in networks.iter().filter_map(|(n, v)| v.accepted.as_ref().ok().map(|v| (n, v))) {
            for address in &network.gateway_addresses {
                taken.gateway_addresses.entry(*address).or_insert_with(|| name.clone());
            }
            for address in network.source_addresses.values() {
                taken.source_addresses.entry(*address).or_insert_with(|| name.clone());
            }
            for prefix in &network.inside {
                taken.inside.insert(*prefix, name.clone());
            }
        }
        taken
    }

    fn api_server_within(&self, prefix: IpNet) -> Option<&IpAddr> {
        self.api_server.range(prefix.network()..=prefix.broadcast()).next()
    }

    /// Why `prefix` cannot be virtual outside.
    fn virtual_problem(&self, prefix: IpNet) -> Option<Refusal> {
        let field = field(prefix);
        let owned = |message| Refusal {
            reason: reasons::ADDRESS_OWNED,
            message: format!("spec.virtual.{field} must be free of addresses that somebody has: {message}"),
        };
        if let Some((address, (node, interface))) = within(&self.nodes, prefix) {
            return Some(owned(format!("{address} is the address of {interface} on node {node}")));
        }
        if let Some(address) = self.api_server_within(prefix) {
            return Some(owned(format!("{address} is an address of the cluster's API server")));
        }
        if let Some((address, network)) = within(&self.gateway_addresses, prefix) {
            return Some(owned(format!("{address} is in gatewayAddresses of network {network}")));
        }
        if let Some((address, network)) = within(&self.source_addresses, prefix) {
            return Some(owned(format!("{address} is the source address of network {network}")));
        }
        if let Some((address, (subnet, node, interface))) = within(&self.edges, prefix) {
            return Some(owned(format!(
                "{address} is the network or broadcast address of {subnet} on {interface} of node {node}"
            )));
        }
        // A route to it would cut off the VM that has it inside.
        self.inside.overlapping(prefix).map(|(inside, network)| Refusal {
            reason: reasons::PROTECTED,
            message: format!(
                "spec.virtual.{field} must not lie in a closed network: {} meets {inside}, which is inside network {network}",
                written(prefix)
            ),
        })
    }
}

/// The first address of a map that lies in `prefix`.
fn within<T>(map: &BTreeMap<IpAddr, T>, prefix: IpNet) -> Option<(&IpAddr, &T)> {
    map.range(prefix.network()..=prefix.broadcast()).next()
}

#[derive(Default)]
struct Problems(Vec<Refusal>);

impl Problems {
    fn add(&mut self, reason: &'static str, message: String) {
        self.0.push(Refusal { reason, message });
    }
}

/// A claim that the network and the nodes allow.
pub(super) enum Claimed {
    /// It can be served.
    Complete(Claim),
    /// No address is known of the machine that it leads to, so its target means nothing.
    Waiting(Box<Claim>, Refusal),
}

impl Claimed {
    /// The same, to be served once `why` is no more.
    pub(super) fn waiting(self, why: Refusal) -> Self {
        match self {
            Self::Complete(claim) => Self::Waiting(Box::new(claim), why),
            Self::Waiting(claim, _) => Self::Waiting(claim, why),
        }
    }
}

/// The claim to addresses of network `name`, unless the network or the nodes forbid it. All problems are told; the first gives the reason.
pub(super) fn claim(
    raw: &NatMapping,
    name: Arc<str>,
    valid: ValidMapping,
    network: &ValidNetwork,
    taken: &Taken,
) -> Result<Claimed, Refusal> {
    let mut problems = Problems::default();
    let waiting = valid.target.is_none().then(|| waiting(&valid));
    match valid.side {
        Side::Outside => dialled_outside(&mut problems, &valid, network, taken),
        Side::Inside => dialled_inside(&mut problems, &valid, network, taken),
    }
    for helper in valid.helpers.iter().filter(|helper| !network.helpers.contains(&helper.name)) {
        let allowed: Vec<&str> = network.helpers.iter().map(|h| h.as_str()).collect();
        let allowed = if allowed.is_empty() {
            "none".to_owned()
        } else {
            allowed.join(", ")
        };
        problems.add(
            reasons::HELPER_NOT_ALLOWED,
            format!(
                "spec.helpers must be among allowedHelpers of network {}, {allowed}: got {}",
                network.name, helper.name
            ),
        );
    }
    let Some(first) = problems.0.first() else {
        let claim = Claim {
            created: raw.metadata.creation_timestamp.as_ref().map(|t| t.0),
            network: name,
            side: valid.side,
            virtual_prefix: valid.virtual_prefix,
            target: valid.target.unwrap_or_default(),
            ports: valid.ports,
            helpers: valid.helpers,
            source_translation: valid.source_translation.unwrap_or(network.source_translation),
        };
        return Ok(match waiting {
            None => Claimed::Complete(claim),
            Some(why) => Claimed::Waiting(Box::new(claim), why),
        });
    };
    Err(Refusal {
        reason: first.reason,
        message: problems.0.iter().map(|p| p.message.as_str()).collect::<Vec<_>>().join("; "),
    })
}

/// Why a claim without target is not served. The controller, which looks at the machine, knows more.
fn waiting(valid: &ValidMapping) -> Refusal {
    let (name, interface) = valid
        .machine
        .as_ref()
        .map_or(("", ""), |machine| (&machine.name, &machine.interface));
    Refusal {
        reason: reasons::WAITING_FOR_ADDRESS,
        message: format!(
            "No address is known of interface {interface} of virtual machine {name}; the mapping takes effect when there is one."
        ),
    }
}

/// Clients outside dial an address of the pool and reach a machine inside.
fn dialled_outside(problems: &mut Problems, valid: &ValidMapping, network: &ValidNetwork, taken: &Taken) {
    let (from, name) = (valid.virtual_prefix, &network.name);
    let field = field(from);
    if !network.pool.iter().any(|pool| pool.contains(&from)) {
        problems.add(
            reasons::POOL,
            format!(
                "spec.virtual.{field} must be in the pool of network {name}, {}: got {}",
                list(&network.pool),
                written(from)
            ),
        );
    }
    if let Some(prefix) = network.protected.iter().find(|p| meet(**p, from)) {
        problems.add(
            reasons::PROTECTED,
            format!(
                "spec.virtual.{field} must not be production: {} meets {prefix}, which network {name} protects",
                written(from)
            ),
        );
    }
    if let Some(problem) = taken.virtual_problem(from) {
        problems.0.push(problem);
    }
    if let Some(to) = valid.target
        && let Err(problem) = leads_inside(to, &format!("{}.{field}", valid.target_field()), network)
    {
        problems.0.push(problem);
    }
}

/// Whether a machine of the closed network may be at a target. `field`: who says so, for the message.
pub(super) fn leads_inside(to: IpNet, field: &str, network: &ValidNetwork) -> Result<(), Refusal> {
    let name = &network.name;
    let refuse = |reason, message| Err(Refusal { reason, message });
    if !network.covers_inside(&to) {
        let message = format!(
            "{field} must be in the inside prefixes of network {name}, {}: got {}",
            list(&network.inside),
            written(to)
        );
        return refuse(reasons::TARGET_OUTSIDE, message);
    }
    if to.prefix_len() < to.max_prefix_len() {
        return Ok(());
    }
    if let Some(prefix) = network.inside.iter().find(|p| is_edge(**p, to.addr())) {
        let message = format!(
            "{field} must be a VM's address: {} is the network or broadcast address of {prefix}",
            to.addr()
        );
        return refuse(reasons::TARGET_OUTSIDE, message);
    }
    if network.gateway_addresses.contains(&to.addr()) {
        let message = format!(
            "{field} must be a VM's address: {} is in gatewayAddresses of network {name}",
            to.addr()
        );
        return refuse(reasons::TARGET_IS_GATEWAY, message);
    }
    Ok(())
}

/// Machines inside dial an address that looks like production and reach a host outside.
fn dialled_inside(problems: &mut Problems, valid: &ValidMapping, network: &ValidNetwork, taken: &Taken) {
    // A machine by its name is never a target of this side.
    let (from, to, name) = (valid.virtual_prefix, valid.target.unwrap_or_default(), &network.name);
    let (field, family) = (field(from), Family::of_net(&from));
    if let Some(pool) = network.pool.iter().find(|pool| meet(**pool, from)) {
        problems.add(
            reasons::POOL,
            format!(
                "spec.virtual.{field} must not be in the pool of network {name} where spec.side is Inside: {} meets {pool}, whose addresses lead inside",
                written(from)
            ),
        );
    }
    if let Some(address) = network.gateway_addresses.iter().find(|address| from.contains(*address)) {
        problems.add(
            reasons::ADDRESS_OWNED,
            format!("spec.virtual.{field} must be free of addresses that somebody has: {address} is in gatewayAddresses of network {name}"),
        );
    }
    if let Some((address, prefix)) = network
        .inside
        .iter()
        .flat_map(|p| [p.network(), p.broadcast()].map(|edge| (edge, *p)))
        .find(|(edge, p)| is_edge(*p, *edge) && from.contains(edge))
    {
        problems.add(
            reasons::ADDRESS_OWNED,
            format!("spec.virtual.{field} must be hosts' addresses: {address} is the network or broadcast address of {prefix}"),
        );
    }
    if let Some(prefix) = network.protected.iter().find(|p| meet(**p, to)) {
        problems.add(
            reasons::PROTECTED,
            format!(
                "spec.target.{field} must not be production: {} meets {prefix}, which network {name} protects",
                written(to)
            ),
        );
    }
    if let Some(address) = taken.api_server_within(to) {
        problems.add(
            reasons::PROTECTED,
            format!("spec.target.{field} must not be the cluster's API server: {address} is an address of it"),
        );
    }
    if let Some((prefix, other)) = taken.inside.overlapping(to) {
        problems.add(
            reasons::TARGET_INSIDE,
            format!(
                "spec.target.{field} must be outside where spec.side is Inside: {} meets {prefix}, which is inside network {other}",
                written(to)
            ),
        );
    }
    if !network.source_addresses.contains_key(&family) {
        problems.add(
            reasons::SOURCE_ADDRESS_MISSING,
            format!(
                "network {name} must have an {family} address in spec.outside.sourceAddress for mappings of side Inside: machines without a virtual address of their own would have none to leave under"
            ),
        );
    }
}

fn list<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>) -> String {
    prefixes.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
