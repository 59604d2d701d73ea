//! What rtnetlink holds: interfaces with their settings, and addresses, routes and proxy neighbours with their protocol numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourMessage};
use netlink_packet_route::neighbour_table::NeighbourTableMessage;
use netlink_packet_route::route::{RouteHeader, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::{Answer, Netlink, attributes, text, u32_at};
use crate::host::PROTOCOL;
use crate::netfilter::IfName;
use crate::plan::{GatewayAddress, InterfaceFacts, LinkSettings, ProxyNeighbour, Route, Via};

// Sizes of fixed headers and numbers of attributes: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
pub(super) const RTMSG: usize = 12;
const NDMSG: usize = 12;
const NDTMSG: usize = 4;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_PROTO: u16 = 11;
const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const NDA_DST: u16 = 1;
const NDA_PROTOCOL: u16 = 12;
const NDTA_PARMS: u16 = 6;
const NDTPA_IFINDEX: u16 = 1;
const NDTPA_PROXY_DELAY: u16 = 13;
const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 0x1_0000;
const NTF_PROXY: u8 = 1 << 3;

/// `IPV4_DEVCONF_*` in linux/ip.h. They count from 1; a dump has them as an array.
pub(super) mod devconf {
    pub(in crate::host::linux) const FORWARDING: u16 = 1;
    pub(in crate::host::linux) const SEND_REDIRECTS: u16 = 6;
    pub(in crate::host::linux) const RP_FILTER: u16 = 8;
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) mac: Vec<u8>,
    /// Index of the bridge, bond or VRF that it is a port of.
    pub(super) master: Option<u32>,
    pub(super) settings: LinkSettings,
}

/// An object and whether it bears our protocol number.
pub(super) type Marked<T> = BTreeMap<T, bool>;

/// Those of ours.
pub(super) fn ours<T: Clone + Ord>(all: &Marked<T>) -> BTreeSet<T> {
    all.iter().filter(|(_, ours)| **ours).map(|(object, _)| object.clone()).collect()
}

fn ipv4(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from)
}

fn inet_settings(af_spec: &[u8]) -> LinkSettings {
    let inet = attributes(af_spec).find(|(family, _)| *family == u16::from(u8::from(AddressFamily::Inet)));
    let conf = inet
        .and_then(|(_, inet)| attributes(inet).find(|(kind, _)| *kind == IFLA_INET_CONF))
        .map(|(_, conf)| conf);
    let value = |number: u16| conf.and_then(|conf| u32_at(conf, 4 * (usize::from(number) - 1)));
    LinkSettings {
        forwarding: value(devconf::FORWARDING).map(|v| v != 0),
        send_redirects: value(devconf::SEND_REDIRECTS).map(|v| v != 0),
        rp_filter: value(devconf::RP_FILTER).and_then(|v| u8::try_from(v).ok()),
        proxy_delay: None,
    }
}

/// Name and facts of one `RTM_NEWLINK`.
fn link(answer: &Answer<'_>) -> Option<(String, Link)> {
    let flags = u32_at(answer.body, 8)?;
    let mut name = None;
    let mut link = Link {
        index: u32_at(answer.body, 4)?,
        up: flags & IFF_UP != 0 && flags & IFF_LOWER_UP != 0,
        ..Link::default()
    };
    for (kind, value) in answer.attributes(IFINFOMSG) {
        match kind {
            IFLA_IFNAME => name = Some(text(value)),
            IFLA_ADDRESS => link.mac = value.to_vec(),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_AF_SPEC => link.settings = inet_settings(value),
            _ => {}
        }
    }
    Some((name?, link))
}

/// Interfaces by name, with their settings.
pub(super) fn links(netlink: &mut Netlink) -> io::Result<BTreeMap<String, Link>> {
    let mut request = LinkMessage::default();
    // Without counters an answer is a third as long.
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let request = RouteNetlinkMessage::GetLink(request);
    let mut links: BTreeMap<_, _> = netlink.dump(&request, link)?.into_iter().collect();
    let delays = proxy_delays(netlink)?;
    for link in links.values_mut() {
        link.settings.proxy_delay = delays.get(&link.index).copied();
    }
    Ok(links)
}

/// Milliseconds by interface index, from the IPv4 neighbour table's parameters (include/net/neighbour.h).
fn proxy_delays(netlink: &mut Netlink) -> io::Result<BTreeMap<u32, u64>> {
    let mut request = NeighbourTableMessage::default();
    request.header.family = AddressFamily::Inet;
    let pick = |answer: &Answer<'_>| {
        let (_, parameters) = answer.attributes(NDTMSG).find(|(kind, _)| *kind == NDTA_PARMS)?;
        let (mut index, mut delay) = (None, None);
        for (kind, value) in attributes(parameters) {
            match kind {
                NDTPA_IFINDEX => index = u32_at(value, 0),
                NDTPA_PROXY_DELAY => delay = <[u8; 8]>::try_from(value).ok().map(u64::from_ne_bytes),
                _ => {}
            }
        }
        Some((index?, delay?))
    };
    Ok(netlink
        .dump(&RouteNetlinkMessage::GetNeighbourTable(request), pick)?
        .into_iter()
        .collect())
}

/// IPv4 addresses with their interface's index.
pub(super) fn addresses(netlink: &mut Netlink) -> io::Result<Marked<(u32, IpNet)>> {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    let pick = |answer: &Answer<'_>| {
        let (mut local, mut peer, mut marked) = (None, None, false);
        for (kind, value) in answer.attributes(IFADDRMSG) {
            match kind {
                IFA_LOCAL => local = ipv4(value),
                IFA_ADDRESS => peer = ipv4(value),
                IFA_PROTO => marked = value == [PROTOCOL],
                _ => {}
            }
        }
        let net = IpNet::new(local.or(peer)?, *answer.body.get(1)?).ok()?;
        Some(((u32_at(answer.body, 4)?, net), marked))
    };
    Ok(netlink.dump(&RouteNetlinkMessage::GetAddress(request), pick)?.into_iter().collect())
}

/// The route of one `RTM_NEWROUTE` or `RTM_DELROUTE`, if it is one of ours in table main.
pub(super) fn our_route(answer: &Answer<'_>, names: &BTreeMap<u32, IfName>) -> Option<Route> {
    let [family, prefix, _, _, header_table, protocol, ..] = *answer.body else {
        return None;
    };
    let (mut destination, mut out, mut gateway, mut table) =
        (IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), None, None, u32::from(header_table));
    for (kind, value) in answer.attributes(RTMSG) {
        match kind {
            RTA_DST => destination = ipv4(value)?,
            RTA_OIF => out = u32_at(value, 0),
            RTA_GATEWAY => gateway = ipv4(value),
            RTA_TABLE => table = u32_at(value, 0)?,
            _ => {}
        }
    }
    let main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    if family != u8::from(AddressFamily::Inet) || protocol != PROTOCOL || !main {
        return None;
    }
    let via = match (gateway, out) {
        (Some(gateway), _) => Via::Gateway(gateway),
        (None, Some(LOOPBACK)) => Via::Loopback,
        (None, out) => Via::Link(names.get(&out?)?.clone()),
    };
    Some(Route::main(IpNet::new(destination, prefix).ok()?, via))
}

/// Index of `lo`, the same in every network namespace (`LOOPBACK_IFINDEX` in include/net/flow.h).
pub(super) const LOOPBACK: u32 = 1;

/// Routes of ours in table main. The kernel filters the dump (`NETLINK_GET_STRICT_CHK`), so that others' routes cost nothing.
pub(super) fn routes(netlink: &mut Netlink, names: &BTreeMap<u32, IfName>) -> io::Result<BTreeSet<Route>> {
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    request.header.table = RouteHeader::RT_TABLE_MAIN;
    request.header.protocol = RouteProtocol::Other(PROTOCOL);
    request.header.kind = RouteType::Unicast;
    let found = netlink.dump(&RouteNetlinkMessage::GetRoute(request), |answer| our_route(answer, names))?;
    Ok(found.into_iter().collect())
}

/// The proxy neighbour entries of IPv4 with their interface's index.
pub(super) fn proxies(netlink: &mut Netlink) -> io::Result<Marked<(u32, IpAddr)>> {
    let mut request = NeighbourMessage::default();
    request.header.family = AddressFamily::Inet;
    request.header.flags = NeighbourFlags::Proxy;
    let pick = |answer: &Answer<'_>| {
        let proxy = answer.body.get(10)? & NTF_PROXY != 0;
        let (mut address, mut marked) = (None, false);
        for (kind, value) in answer.attributes(NDMSG) {
            match kind {
                NDA_DST => address = ipv4(value),
                NDA_PROTOCOL => marked = value == [PROTOCOL],
                _ => {}
            }
        }
        proxy.then_some(((u32_at(answer.body, 4)?, address?), marked))
    };
    Ok(netlink
        .dump(&RouteNetlinkMessage::GetNeighbour(request), pick)?
        .into_iter()
        .collect())
}

/// Everything that a change has to know first.
pub(super) struct Snapshot {
    pub(super) links: BTreeMap<String, Link>,
    pub(super) names: BTreeMap<u32, IfName>,
    pub(super) routes: BTreeSet<Route>,
    pub(super) proxies: Marked<ProxyNeighbour>,
    pub(super) addresses: Marked<(IfName, IpNet)>,
}

impl Snapshot {
    pub(super) fn take(netlink: &mut Netlink) -> io::Result<Self> {
        let links = links(netlink)?;
        let names: BTreeMap<_, _> = links
            .iter()
            .filter_map(|(name, link)| Some((link.index, IfName::new(name)?)))
            .collect();
        let routes = routes(netlink, &names)?;
        let interface_at = |index: u32| names.get(&index).cloned();
        let proxies = proxies(netlink)?
            .into_iter()
            .filter_map(|((index, address), ours)| Some((interface_at(index)?, address, ours)))
            .map(|(interface, address, ours)| (ProxyNeighbour { interface, address }, ours))
            .collect();
        let addresses = addresses(netlink)?
            .into_iter()
            .filter_map(|((index, net), ours)| Some(((interface_at(index)?, net), ours)))
            .collect();
        Ok(Self {
            links,
            names,
            routes,
            proxies,
            addresses,
        })
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

/// Interfaces as the plan wants to know them.
pub(super) fn interfaces(netlink: &mut Netlink) -> io::Result<BTreeMap<String, InterfaceFacts>> {
    let links = links(netlink)?;
    let addresses = addresses(netlink)?;
    let all = fs::read_to_string("/proc/sys/net/ipv4/conf/all/rp_filter").ok();
    let all = all.and_then(|v| v.trim().parse::<u8>().ok()).unwrap_or_default();
    let names: BTreeMap<u32, String> = links.iter().map(|(name, link)| (link.index, name.clone())).collect();
    let facts = |link: Link| InterfaceFacts {
        index: link.index,
        mtu: link.mtu,
        up: link.up,
        mac: mac(&link.mac),
        addresses: addresses
            .iter()
            .filter(|((index, _), ours)| *index == link.index && !**ours)
            .map(|((_, net), _)| *net)
            .collect(),
        rp_filter: link.settings.rp_filter.unwrap_or_default().max(all),
        proxy_ndp: false,
        master: link.master.and_then(|index| names.get(&index).cloned()),
    };
    Ok(links.into_iter().map(|(name, link)| (name, facts(link))).collect())
}

/// Colon notation; empty for none and for the all-zero address of `lo`.
pub(super) fn mac(bytes: &[u8]) -> String {
    if bytes.iter().all(|b| *b == 0) {
        return String::new();
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}
