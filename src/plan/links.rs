//! What a site needs of interfaces, addresses, routes and neighbours, and the routes of client nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::host::{GatewayAddress, HostPlan, LinkSettings, NetworkPlan, ProxyNeighbour, Route, TABLE_MAIN, Via};
use super::prefixes::meet;
use super::sites::{Served, Site};
use super::validate::ValidNetwork;
use super::verdict::Claim;
use super::{InterfaceFacts, NodeFacts, Verdicts, View, selector, values};
use crate::api::gatewaynode::Role;
use crate::api::mapping::{Announcement, Side};
use crate::netfilter::{Family, IfName};

/// What makes packets come to the node, of all networks: a set that is made of ten thousand at once is made sooner, and is smaller.
#[derive(Default)]
pub(super) struct Attracted {
    routes: Vec<Route>,
    proxies: Vec<ProxyNeighbour>,
}

impl Attracted {
    /// Adds all of it to `plan`.
    pub(super) fn enter(self, plan: &mut HostPlan) {
        plan.routes = self.routes.into_iter().chain(std::mem::take(&mut plan.routes)).collect();
        plan.proxies = self.proxies.into_iter().chain(std::mem::take(&mut plan.proxies)).collect();
    }
}

/// Adds what `site` needs to `plan`, and to `attracted` what attracts. A network that is not served needs nothing but its fence: forwarding stays as it is.
pub(super) fn program(plan: &mut HostPlan, attracted: &mut Attracted, site: &Site<'_>, facts: &NodeFacts) {
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
    plan.links.insert(
        inside.clone(),
        LinkSettings {
            forwarding: Some(true),
            send_redirects: Some(false),
            // Loose is asked for also where it is loose already: that may be our own doing.
            rp_filter: Some(reverse_path_filter(site, interface)),
            ..LinkSettings::default()
        },
    );
    if site.separate.is_none() {
        plan.routes
            .extend(network.inside.iter().flat_map(|prefix| ways_in_main(*prefix, inside, interface)));
    }
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
        attract(attracted, site, claim);
    }
    for address in &site.answered {
        plan.routes.insert(Route::main(IpNet::from(*address), Via::Loopback));
        if attracts {
            let interface = outside.clone();
            plan.proxies.insert(ProxyNeighbour {
                interface,
                address: *address,
            });
        }
    }
}

/// The way of a network that is not isolated into its prefix. When its interface goes down, the kernel takes the connected route away, and what a known connection still translates would follow the
/// default route, to production perhaps, past the fence, by its connection mark: the blackhole stands behind that route. A connected subnet that is wider than the prefix is a less
/// specific route than the blackhole.
fn ways_in_main(prefix: IpNet, inside: &IfName, facts: &InterfaceFacts) -> impl Iterator<Item = Route> {
    let connected = facts.addresses.iter().any(|address| address.trunc() == prefix);
    let link = (!connected).then(|| Via::Link(inside.clone()));
    let ways = link.into_iter().chain([Via::Blackhole]);
    ways.map(move |via| Route::main(prefix, via))
}

/// Strict (1), so that the node does not answer packets which it cannot pass on (their hops are used up, say) whose source is nobody inside: it would answer before the
/// fence has seen them, and whoever has that address may be production. Loose (2) for an isolated network: ARP asks without a mark, and main knows no way back to its
/// machines, or that of another clone. Where no filter is set there, none is needed.
fn reverse_path_filter(site: &Site<'_>, interface: &InterfaceFacts) -> u8 {
    match (site.separate, interface.rp_filter) {
        (None, _) => LinkSettings::STRICT,
        (Some(_), 0) => 0,
        (Some(_), _) => 2,
    }
}

/// The most addresses of one claim that are answered for one by one.
const NEIGHBOURS_MAX: u32 = 256;

/// How what is claimed is made known. A machine inside sends what is beyond its own prefix to its gateway by itself.
pub(super) fn announcement(claim: &Claim, network: Option<&ValidNetwork>) -> Announcement {
    let bits = claim.virtual_prefix.max_prefix_len() - claim.virtual_prefix.prefix_len();
    let few = 1_u32.checked_shl(bits.into()).is_some_and(|count| count <= NEIGHBOURS_MAX);
    let near = network.is_some_and(|network| match claim.side {
        Side::Outside => network.announce,
        Side::Inside => network.inside.iter().any(|inside| meet(*inside, claim.virtual_prefix)),
    });
    if few && near {
        Announcement::Neighbour
    } else {
        Announcement::Route
    }
}

/// The interface on which the addresses of a claim are answered for one by one. None: they are not.
pub(super) fn answering<'s>(claim: &Claim, site: &'s Site<'_>) -> Option<&'s IfName> {
    let served = site.served()?;
    (announcement(claim, Some(served.network)) == Announcement::Neighbour).then_some(match claim.side {
        Side::Outside => served.outside,
        Side::Inside => served.inside,
    })
}

/// What makes packets to a claimed prefix come to this node, and end there if no port of it is mapped.
fn attract(attracted: &mut Attracted, site: &Site<'_>, claim: &Claim) {
    let destination = claim.virtual_prefix;
    let inside = || {
        site.network
            .is_some_and(|n| n.inside.iter().any(|inside| meet(*inside, destination)))
    };
    let table = match (claim.side, site.separate) {
        // Beyond the closed prefix the node itself must go on reaching the real one.
        (Side::Inside, _) if !inside() => return,
        (Side::Outside, _) | (Side::Inside, None) => TABLE_MAIN,
        (Side::Inside, Some(separate)) => separate.table,
    };
    let via = Via::Loopback;
    attracted.routes.push(Route { table, destination, via });
    if let Some(interface) = answering(claim, site) {
        attracted.proxies.extend(hosts(destination).map(|address| ProxyNeighbour {
            interface: interface.clone(),
            address,
        }));
    }
}

/// Every address of a prefix, also the first and last: they are no edges of a subnet here.
fn hosts(prefix: IpNet) -> impl Iterator<Item = IpAddr> {
    let (v4, v6) = match prefix {
        IpNet::V4(net) => (Some(net.network().to_bits()..=net.broadcast().to_bits()), None),
        IpNet::V6(net) => (None, Some(net.network().to_bits()..=net.broadcast().to_bits())),
    };
    let v4 = v4.into_iter().flatten().map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
    v4.chain(v6.into_iter().flatten().map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))))
}

/// Adds the routes to pools that this node takes as a client.
pub(super) fn route_clients(plan: &mut HostPlan, world: View<'_>, verdicts: &Verdicts, facts: &NodeFacts) {
    let clients = client_networks(world, verdicts, facts);
    for client in &clients {
        plan.networks.insert(
            client.network.name.clone(),
            NetworkPlan {
                role: Role::Client,
                generation: client.generation,
                outside: None,
                inside: None,
                isolated: None,
                problem: None,
                impaired: None,
            },
        );
    }
    let ways = ClientWays::of(&clients, facts);
    plan.routes.extend(
        ways.whole
            .iter()
            .map(|(prefix, gateway)| Route::main(*prefix, Via::Gateway(*gateway))),
    );
    if ways.by_claim.is_empty() {
        return;
    }
    for claim in verdicts.mappings.values().filter_map(|verdict| verdict.accepted.as_ref().ok()) {
        let prefixes = ways.by_claim.get(&*claim.network).filter(|_| claim.side == Side::Outside);
        let around = prefixes.and_then(|prefixes| prefixes.iter().find(|(prefix, _)| prefix.contains(&claim.virtual_prefix)));
        if let Some((_, gateway)) = around {
            plan.routes.insert(Route::main(claim.virtual_prefix, Via::Gateway(*gateway)));
        }
    }
}

/// Of the networks that this node is a client of those whose claims have a route each.
pub(super) fn routed_by_claim(world: View<'_>, verdicts: &Verdicts, facts: &NodeFacts) -> BTreeSet<String> {
    let clients = client_networks(world, verdicts, facts);
    let ways = ClientWays::of(&clients, facts);
    ways.by_claim.into_keys().map(str::to_owned).collect()
}

/// Networks that this node is a client of.
pub(super) fn clients_of(world: View<'_>, verdicts: &Verdicts, facts: &NodeFacts) -> BTreeSet<String> {
    let clients = client_networks(world, verdicts, facts);
    clients.into_iter().map(|client| client.network.name.clone()).collect()
}

/// By which routes a client reaches the pools.
///
/// A pool gets one route, but single claimed addresses get one each where the whole prefix would be wrong: where it meets a subnet of the node
/// itself (other hosts of that segment would be sent to the gateway), and where pools of networks with other gateways meet it.
struct ClientWays<'a> {
    whole: Vec<(IpNet, IpAddr)>,
    by_claim: BTreeMap<&'a str, Vec<(IpNet, IpAddr)>>,
}

impl<'a> ClientWays<'a> {
    fn of(clients: &[Client<'a>], facts: &NodeFacts) -> Self {
        let pools = |client: &Client<'a>| -> Vec<(IpNet, IpAddr)> {
            let prefixes = client.network.pool.iter();
            prefixes.filter_map(|prefix| Some((*prefix, client.next_hop(*prefix)?))).collect()
        };
        let all: Vec<(IpNet, IpAddr)> = clients.iter().flat_map(pools).collect();
        let whole = |prefix: IpNet, gateway: IpAddr| {
            let ours = all.iter().all(|(other, via)| *via == gateway || !meet(*other, prefix));
            let mut own = facts.interfaces.values().flat_map(|i| &i.addresses);
            ours && !own.any(|own| meet(own.trunc(), prefix))
        };
        let mut ways = Self {
            whole: Vec::new(),
            by_claim: BTreeMap::new(),
        };
        for client in clients {
            for (prefix, gateway) in pools(client) {
                if whole(prefix, gateway) {
                    ways.whole.push((prefix, gateway));
                } else {
                    ways.by_claim.entry(&client.network.name).or_default().push((prefix, gateway));
                }
            }
        }
        ways
    }
}

/// A network that a node is a client of.
struct Client<'a> {
    generation: i64,
    network: &'a ValidNetwork,
    /// The active gateway's addresses, once known.
    gateway: BTreeMap<Family, IpAddr>,
}

impl Client<'_> {
    /// Where packets to a prefix of the pool are sent.
    fn next_hop(&self, prefix: IpNet) -> Option<IpAddr> {
        self.gateway.get(&Family::of_net(&prefix)).copied()
    }
}

/// The accepted networks that this node is a client of.
fn client_networks<'a>(world: View<'_>, verdicts: &'a Verdicts, facts: &NodeFacts) -> Vec<Client<'a>> {
    // Without labels there is no cluster, and the one node is the gateway of everything.
    let Some(labels) = &facts.labels else {
        return Vec::new();
    };
    let mut found: BTreeMap<&str, Client<'_>> = BTreeMap::new();
    for raw in world.networks.iter() {
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
        let told = verdict.active.iter().flat_map(|active| [&active.address, &active.address_ipv6]);
        let usable = told.flatten().filter_map(|address| values::host_address(address).ok());
        let client = Client {
            generation: verdict.generation,
            network,
            gateway: usable.map(|address| (Family::of(address), address)).collect(),
        };
        found.insert(name, client);
    }
    found.into_values().collect()
}
