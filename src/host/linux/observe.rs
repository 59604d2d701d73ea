//! What rtnetlink holds: interfaces with their settings, and addresses and proxy neighbours of both families with their protocol numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::NetlinkSerializable;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use netlink_packet_route::neighbour_table::NeighbourTableMessage;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::libc;

use super::netlink::{Answer, Netlink, attributes, text, u32_at};
use crate::host::PROTOCOL;
use crate::netfilter::{Family, IfName};
use crate::plan::{InterfaceFacts, LinkSettings};

// Sizes of fixed headers and numbers of attributes: linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h.
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const NDMSG: usize = 12;
const NDTMSG: usize = 4;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_CONF: u16 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_PROTO: u16 = 11;
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

/// `DEVCONF_PROXY_NDP` in linux/ipv6.h. Those of IPv6 count from 0.
const DEVCONF_PROXY_NDP: usize = 22;
/// `RT_SCOPE_LINK` in linux/rtnetlink.h; what is nearer has a greater number.
const RT_SCOPE_LINK: u8 = 253;
/// The neighbour tables, by name (net/ipv4/arp.c, net/ipv6/ndisc.c).
pub(super) const NEIGHBOUR_TABLES: [(Family, &str); 2] = [(Family::V4, "arp_cache"), (Family::V6, "ndisc_cache")];

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
    /// `net.ipv6.conf.IF.proxy_ndp`
    pub(super) proxy_ndp: bool,
}

/// An object and whether it bears our protocol number.
pub(super) type Marked<T> = BTreeMap<T, bool>;

/// Those of ours.
pub(super) fn ours<T: Clone + Ord>(all: &Marked<T>) -> BTreeSet<T> {
    all.iter().filter(|(_, ours)| **ours).map(|(object, _)| object.clone()).collect()
}

/// An address of either family, told by its length.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let ipv4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    ipv4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The family's number in requests.
pub(super) fn number(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

/// The family that the first byte of an answer names.
pub(super) fn family(answer: &Answer<'_>) -> Option<Family> {
    let first = *answer.body.first()?;
    Family::ALL.into_iter().find(|f| u8::from(number(*f)) == first)
}

/// Dumps of both families as one. A kernel without IPv6 has nothing to say of it, which is no error.
///
/// A kernel that has no handler for a family answers with those that it has: these answers are passed over.
pub(super) fn both<M: NetlinkSerializable + Clone, T: Ord>(
    netlink: &mut Netlink,
    request: impl Fn(Family) -> M,
    pick: impl FnMut(&Answer<'_>) -> Option<T>,
) -> io::Result<BTreeSet<T>> {
    Ok(all_of(netlink, request, pick)?.into_iter().collect())
}

/// The same in the kernel's order.
pub(super) fn all_of<M: NetlinkSerializable + Clone, T>(
    netlink: &mut Netlink,
    request: impl Fn(Family) -> M,
    mut pick: impl FnMut(&Answer<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut all = Vec::new();
    for wanted in Family::ALL {
        let of_family = |answer: &Answer<'_>| if family(answer) == Some(wanted) { pick(answer) } else { None };
        match netlink.dump(&request(wanted), of_family) {
            Ok(found) => all.extend(found),
            Err(error) if wanted == Family::V6 && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn proxy_ndp(af_spec: &[u8]) -> bool {
    let inet6 = attributes(af_spec).find(|(family, _)| *family == u16::from(u8::from(AddressFamily::Inet6)));
    inet6
        .and_then(|(_, inet6)| attributes(inet6).find(|(kind, _)| *kind == IFLA_INET6_CONF))
        .and_then(|(_, conf)| u32_at(conf, 4 * DEVCONF_PROXY_NDP))
        .is_some_and(|value| value != 0)
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
        ..LinkSettings::default()
    }
}

/// Name and facts of one `RTM_NEWLINK`.
pub(super) fn link(answer: &Answer<'_>) -> Option<(String, Link)> {
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
            IFLA_AF_SPEC => {
                link.settings = inet_settings(value);
                link.proxy_ndp = proxy_ndp(value);
            }
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
        link.settings.proxy_delay = delays.get(&(Family::V4, link.index)).copied();
        link.settings.proxy_delay_ipv6 = delays.get(&(Family::V6, link.index)).copied();
    }
    Ok(links)
}

/// Milliseconds by interface index, from the neighbour tables' parameters (include/net/neighbour.h).
fn proxy_delays(netlink: &mut Netlink) -> io::Result<BTreeMap<(Family, u32), u64>> {
    let request = |family| {
        let mut request = NeighbourTableMessage::default();
        request.header.family = number(family);
        RouteNetlinkMessage::GetNeighbourTable(request)
    };
    Ok(both(netlink, request, proxy_delay)?.into_iter().collect())
}

/// The delay that one `RTM_NEWNEIGHTBL` tells, if it is that of an interface.
pub(super) fn proxy_delay(answer: &Answer<'_>) -> Option<((Family, u32), u64)> {
    let (_, parameters) = answer.attributes(NDTMSG).find(|(kind, _)| *kind == NDTA_PARMS)?;
    let (mut index, mut delay) = (None, None);
    for (kind, value) in attributes(parameters) {
        match kind {
            NDTPA_IFINDEX => index = u32_at(value, 0),
            NDTPA_PROXY_DELAY => delay = <[u8; 8]>::try_from(value).ok().map(u64::from_ne_bytes),
            _ => {}
        }
    }
    Some(((family(answer)?, index?), delay?))
}

/// One address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) index: u32,
    pub(super) net: IpNet,
    /// Whether it bears our protocol number.
    pub(super) ours: bool,
    /// Whether others than this node and, for IPv6, its segments may know it (`ifa_scope`).
    wide: bool,
}

/// Addresses of both families.
pub(super) fn addresses(netlink: &mut Netlink) -> io::Result<BTreeSet<Address>> {
    let request = |family| {
        let mut request = AddressMessage::default();
        request.header.family = number(family);
        RouteNetlinkMessage::GetAddress(request)
    };
    both(netlink, request, one_address)
}

/// The address of one `RTM_NEWADDR`.
pub(super) fn one_address(answer: &Answer<'_>) -> Option<Address> {
    let [_, prefix, _, scope, ..] = *answer.body else { return None };
    let (mut local, mut peer, mut ours) = (None, None, false);
    for (kind, value) in answer.attributes(IFADDRMSG) {
        match kind {
            IFA_LOCAL => local = address(value),
            IFA_ADDRESS => peer = address(value),
            IFA_PROTO => ours = value == [PROTOCOL],
            _ => {}
        }
    }
    let net = IpNet::new(local.or(peer)?, prefix).ok()?;
    Some(Address {
        index: u32_at(answer.body, 4)?,
        net,
        ours,
        wide: family(answer)? == Family::V4 || scope < RT_SCOPE_LINK,
    })
}

fn proxy_request(family: Family) -> RouteNetlinkMessage {
    let mut request = NeighbourMessage::default();
    request.header.family = number(family);
    request.header.flags = NeighbourFlags::Proxy;
    RouteNetlinkMessage::GetNeighbour(request)
}

/// Proxy neighbour entries with their interface's index.
pub(super) fn proxies(netlink: &mut Netlink) -> io::Result<Marked<(u32, IpAddr)>> {
    Ok(both(netlink, proxy_request, proxy)?.into_iter().collect())
}

/// Those of ours, in the kernel's order, which stays the same while none comes or goes: what is looked at again and again need not be sorted for it.
pub(super) fn our_proxies(netlink: &mut Netlink) -> io::Result<Vec<(u32, IpAddr)>> {
    all_of(netlink, proxy_request, |answer| {
        proxy(answer).filter(|(_, ours)| *ours).map(|(at, _)| at)
    })
}

/// Whether one proxy neighbour is there, and is ours.
pub(super) fn one_proxy(netlink: &mut Netlink, wanted: &NeighbourMessage) -> io::Result<Option<bool>> {
    let mut request = NeighbourMessage::default();
    request.header.family = wanted.header.family;
    request.header.ifindex = wanted.header.ifindex;
    request.header.flags = NeighbourFlags::Proxy;
    let destination = wanted.attributes.iter().filter(|a| matches!(a, NeighbourAttribute::Destination(_)));
    request.attributes.extend(destination.cloned());
    match netlink.ask(RouteNetlinkMessage::GetNeighbour(request), proxy) {
        Ok((_, ours)) => Ok(Some(ours)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The index of one interface.
pub(super) fn index(netlink: &mut Netlink, name: &IfName) -> io::Result<u32> {
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::IfName(name.to_string()));
    let request = RouteNetlinkMessage::GetLink(request);
    Ok(netlink.ask(request, link)?.1.index)
}

/// The proxy neighbour entry of one `RTM_NEWNEIGH`, and whether it is one of ours.
pub(super) fn proxy(answer: &Answer<'_>) -> Option<((u32, IpAddr), bool)> {
    let proxy = answer.body.get(10)? & NTF_PROXY != 0;
    let (mut destination, mut marked) = (None, false);
    for (kind, value) in answer.attributes(NDMSG) {
        match kind {
            NDA_DST => destination = address(value),
            NDA_PROTOCOL => marked = value == [PROTOCOL],
            _ => {}
        }
    }
    proxy.then_some(((u32_at(answer.body, 4)?, destination?), marked))
}

/// Interfaces as the plan wants to know them.
pub(super) fn interfaces(netlink: &mut Netlink) -> io::Result<BTreeMap<String, InterfaceFacts>> {
    let links = links(netlink)?;
    let addresses = addresses(netlink)?;
    let all = |setting: &str| sysctl(setting).unwrap_or_default();
    let (rp_filter, proxy_ndp) = (all("ipv4/conf/all/rp_filter"), all("ipv6/conf/all/proxy_ndp") != 0);
    let names: BTreeMap<u32, String> = links.iter().map(|(name, link)| (link.index, name.clone())).collect();
    let facts = |link: Link| InterfaceFacts {
        index: link.index,
        mtu: link.mtu,
        up: link.up,
        mac: mac(&link.mac),
        addresses: addresses
            .iter()
            .filter(|address| address.index == link.index && address.wide && !address.ours)
            .map(|address| address.net)
            .collect(),
        rp_filter: link.settings.rp_filter.unwrap_or_default().max(rp_filter),
        proxy_ndp: proxy_ndp || link.proxy_ndp,
        master: link.master.and_then(|index| names.get(&index).cloned()),
    };
    Ok(links.into_iter().map(|(name, link)| (name, facts(link))).collect())
}

/// A small number under /proc/sys/net. None: the kernel has no such setting.
pub(super) fn sysctl(setting: &str) -> Option<u8> {
    fs::read_to_string(format!("/proc/sys/net/{setting}")).ok()?.trim().parse().ok()
}

/// Colon notation; empty for none and for the all-zero address of `lo`.
pub(super) fn mac(bytes: &[u8]) -> String {
    if bytes.iter().all(|b| *b == 0) {
        return String::new();
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":")
}
