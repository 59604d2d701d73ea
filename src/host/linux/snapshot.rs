//! Everything that rtnetlink holds and a change has to know first, as of one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use super::netlink::Netlink;
use super::observe::{Link, Marked, addresses, all_of, links, our_proxies, proxies};
use super::{policy, routes};
use crate::netfilter::IfName;
use crate::plan::{GatewayAddress, LinkSettings, PolicyRule, ProxyNeighbour, Route};

/// Everything that a change has to know first.
pub(super) struct Snapshot {
    pub(super) links: BTreeMap<String, Link>,
    pub(super) names: BTreeMap<u32, IfName>,
    pub(super) routes: BTreeSet<Route>,
    pub(super) policy_rules: BTreeSet<PolicyRule>,
    pub(super) proxies: Marked<ProxyNeighbour>,
    pub(super) addresses: Marked<(IfName, IpNet)>,
}

impl Snapshot {
    pub(super) fn take(netlink: &mut Netlink) -> io::Result<Self> {
        let mut now = Self::without_mappings(netlink)?;
        now.routes = routes::read(netlink, &now.names)?;
        let proxies = proxies(netlink)?.into_iter();
        let named = proxies.filter_map(|((index, address), ours)| Some((now.proxy_at(index, address)?, ours)));
        now.proxies = named.collect();
        Ok(now)
    }

    /// All of it but what grows with the number of mappings: routes and proxies.
    pub(super) fn without_mappings(netlink: &mut Netlink) -> io::Result<Self> {
        let links = links(netlink)?;
        let names: BTreeMap<_, _> = links
            .iter()
            .filter_map(|(name, link)| Some((link.index, IfName::new(name)?)))
            .collect();
        let policy_rules = policy::read(netlink)?;
        let interface_at = |index: u32| names.get(&index).cloned();
        let addresses = addresses(netlink)?
            .into_iter()
            .filter_map(|address| Some(((interface_at(address.index)?, address.net), address.ours)))
            .collect();
        Ok(Self {
            links,
            names,
            routes: BTreeSet::new(),
            policy_rules,
            proxies: Marked::new(),
            addresses,
        })
    }

    /// A proxy neighbour by the name of its interface.
    fn proxy_at(&self, index: u32, address: IpAddr) -> Option<ProxyNeighbour> {
        let interface = self.names.get(&index)?.clone();
        Some(ProxyNeighbour { interface, address })
    }

    /// Whether the routes and proxies of ours are just these. Nothing is put in order or kept for it.
    pub(super) fn mappings_stand(
        &self,
        netlink: &mut Netlink,
        known_routes: &BTreeSet<Route>,
        known: &BTreeSet<ProxyNeighbour>,
    ) -> io::Result<bool> {
        let stands = |route: Route| known_routes.contains(&route);
        let found = all_of(netlink, routes::request, |answer| routes::parse(answer, &self.names).map(stands))?;
        if found.len() != known_routes.len() || found.contains(&false) {
            return Ok(false);
        }
        let stands = |(index, address)| self.proxy_at(index, address).is_some_and(|proxy| known.contains(&proxy));
        let found = our_proxies(netlink)?;
        Ok(found.len() == known.len() && found.into_iter().all(stands))
    }

    /// Addresses of ours.
    pub(super) fn our_addresses(&self) -> BTreeSet<GatewayAddress> {
        let ours = self.addresses.iter().filter(|(_, ours)| **ours);
        ours.map(|((interface, net), _)| GatewayAddress {
            interface: interface.clone(),
            address: net.addr(),
        })
        .collect()
    }

    /// Present settings of every interface.
    pub(super) fn settings(&self) -> BTreeMap<IfName, LinkSettings> {
        self.names
            .values()
            .filter_map(|name| Some((name.clone(), self.links.get(name.as_str())?.settings.clone())))
            .collect()
    }
}
