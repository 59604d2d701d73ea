//! What a site needs of interfaces, addresses, routes and neighbours, and the routes of client nodes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::host::{GatewayAddress, HostPlan, LinkSettings, NetworkPlan, ProxyNeighbour, Route, Via};
use super::interfaces::connects;
use super::sites::{Served, Site};
use super::validate::ValidNetwork;
use super::{NodeFacts, Verdicts, View, selector, values};
use crate::api::gatewaynode::Role;
use crate::netfilter::{Family, IfName};

/// Adds what `site` needs to `plan`. A network that is not served needs nothing but its fence: forwarding stays as it is.
pub(super) fn program(plan: &mut HostPlan, site: &Site<'_>, facts: &NodeFacts) {
    let Some(Served { network, outside, inside }) = site.served() else {
        return;
    };
    let active = site.role == Role::Active;
    let attracts = active && network.announce;

    let link = plan.links.entry(outside.clone()).or_default();
    link.forwarding = Some(true);
    // Client and virtual address are in one segment: the kernel would tell clients to go there directly.
    link.send_redirects = Some(false);
    if attracts {
        // The default of 80 jiffies delays the first answer by a random time of up to 0.8 s (net/ipv4/arp.c, arp_process).
        link.proxy_delay = Some(0);
        // The same in ndisc_recv_ns (net/ipv6/ndisc.c).
        if network.pool.iter().any(|prefix| Family::of_net(prefix) == Family::V6) {
            link.proxy_delay_ipv6 = Some(0);
        }
    }

    let Some(interface) = facts.interfaces.get(inside.as_str()) else {
        return;
    };
    let unconnected: Vec<IpNet> = network.inside.iter().filter(|p| !connects(interface, **p)).copied().collect();
    plan.links.insert(
        inside.clone(),
        LinkSettings {
            forwarding: Some(true),
            send_redirects: Some(false),
            // Loose is asked for also where it is loose already: that may be our own doing.
            rp_filter: (interface.rp_filter > 0 && !unconnected.is_empty()).then_some(2),
            ..LinkSettings::default()
        },
    );
    plan.routes.extend(
        unconnected
            .into_iter()
            .map(|destination| Route::main(destination, Via::Link(inside.clone()))),
    );
    if !active {
        return;
    }
    let owned = |address: &IpAddr| interface.addresses.iter().any(|own| own.addr() == *address);
    plan.addresses.extend(
        network
            .gateway_addresses
            .iter()
            .filter(|a| !owned(a))
            .map(|address| GatewayAddress {
                interface: inside.clone(),
                address: *address,
            }),
    );
    for (_, claim) in &site.claims {
        let address = claim.virtual_address;
        plan.routes.insert(Route::main(IpNet::from(address), Via::Loopback));
        if attracts {
            plan.proxies.insert(ProxyNeighbour {
                interface: IfName::clone(outside),
                address,
            });
        }
    }
}

/// Adds the routes to pools that this node takes as a client.
///
/// A pool gets one route, but single claimed addresses get one each where the whole prefix would be wrong: where it meets a subnet of the node
/// itself (other hosts of that segment would be sent to the gateway), and where pools of networks with other gateways meet it.
pub(super) fn route_clients(plan: &mut HostPlan, world: View<'_>, verdicts: &Verdicts, facts: &NodeFacts) {
    let clients = client_networks(world, verdicts, facts);
    if clients.is_empty() {
        return;
    }
    let pools: Vec<(IpNet, IpAddr)> = clients
        .iter()
        .filter_map(|(_, network, gateway)| gateway.map(|g| (network, g)))
        .flat_map(|(network, gateway)| network.pool.iter().map(move |prefix| (*prefix, gateway)))
        .collect();
    let whole = |prefix: IpNet, gateway: IpAddr| {
        let ours = pools.iter().all(|(other, via)| *via == gateway || !meet(*other, prefix));
        ours && !facts
            .interfaces
            .values()
            .flat_map(|i| &i.addresses)
            .any(|own| meet(own.trunc(), prefix))
    };
    let mut by_claim: BTreeMap<&str, (IpAddr, Vec<IpNet>)> = BTreeMap::new();
    for (generation, network, gateway) in &clients {
        plan.networks.insert(
            network.name.clone(),
            NetworkPlan {
                role: Role::Client,
                generation: *generation,
                outside: None,
                inside: None,
                problem: None,
            },
        );
        let Some(gateway) = *gateway else { continue };
        for prefix in &network.pool {
            if whole(*prefix, gateway) {
                plan.routes.insert(Route::main(*prefix, Via::Gateway(gateway)));
            } else {
                by_claim.entry(&network.name).or_insert((gateway, Vec::new())).1.push(*prefix);
            }
        }
    }
    if by_claim.is_empty() {
        return;
    }
    for claim in verdicts.mappings.values().filter_map(|verdict| verdict.accepted.as_ref().ok()) {
        if let Some((gateway, prefixes)) = by_claim.get(claim.network.as_str())
            && prefixes.iter().any(|prefix| prefix.contains(&claim.virtual_address))
        {
            plan.routes
                .insert(Route::main(IpNet::from(claim.virtual_address), Via::Gateway(*gateway)));
        }
    }
}

/// The accepted networks that this node is a client of, each with its generation and the next hop, once known.
fn client_networks<'a>(world: View<'_>, verdicts: &'a Verdicts, facts: &NodeFacts) -> Vec<(i64, &'a ValidNetwork, Option<IpAddr>)> {
    // Without labels there is no cluster, and the one node is the gateway of everything.
    let Some(labels) = &facts.labels else {
        return Vec::new();
    };
    let mut found: BTreeMap<&str, (i64, &ValidNetwork, Option<IpAddr>)> = BTreeMap::new();
    for raw in world.networks {
        let Some((name, verdict)) = raw.metadata.name.as_ref().and_then(|name| verdicts.networks.get_key_value(name)) else {
            continue;
        };
        let Ok(network) = &verdict.accepted else { continue };
        let selected = raw
            .spec
            .outside
            .client_routes
            .as_ref()
            .is_some_and(|routes| selector::matches(&routes.node_selector, labels));
        if !selected || verdict.gateways.contains(&facts.name) {
            continue;
        }
        let next_hop = verdict
            .active
            .as_ref()
            .and_then(|active| active.address.as_deref())
            .and_then(|address| values::host_address(address).ok());
        found.insert(name, (verdict.generation, network, next_hop));
    }
    found.into_values().collect()
}

fn meet(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}
