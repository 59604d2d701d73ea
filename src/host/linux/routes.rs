//! Routes of ours: read back by protocol number from every table, and asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType};

use super::netlink::{Answer, Netlink, u32_at};
use super::observe::{address, both, family, number};
use crate::host::PROTOCOL;
use crate::netfilter::{Family, IfName};
use crate::plan::{Route, Via};

// linux/rtnetlink.h
pub(super) const RTMSG: usize = 12;
const RTA_DST: u16 = 1;
pub(super) const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
const RTN_UNICAST: u8 = 1;
const RTN_BLACKHOLE: u8 = 6;

/// Index of `lo`, the same in every network namespace (`LOOPBACK_IFINDEX` in include/net/flow.h).
pub(super) const LOOPBACK: u32 = 1;
/// The metric of [`Via::Blackhole`]: any other route to the same destination is taken before it.
const WORST_METRIC: u32 = u32::MAX;

/// The route of one `RTM_NEWROUTE` or `RTM_DELROUTE`, if it is one of ours.
pub(super) fn parse(answer: &Answer<'_>, names: &BTreeMap<u32, IfName>) -> Option<Route> {
    let [_, prefix, _, _, header_table, protocol, _, kind, ..] = *answer.body else {
        return None;
    };
    if protocol != PROTOCOL {
        return None;
    }
    // A default route has no destination in the answer.
    let mut destination = match family(answer)? {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (mut out, mut gateway, mut metric, mut table) = (None, None, 0, u32::from(header_table));
    for (kind, value) in answer.attributes(RTMSG) {
        match kind {
            RTA_DST => destination = address(value)?,
            RTA_OIF => out = u32_at(value, 0),
            RTA_GATEWAY => gateway = address(value),
            RTA_PRIORITY => metric = u32_at(value, 0)?,
            RTA_TABLE => table = u32_at(value, 0)?,
            _ => {}
        }
    }
    let via = match (kind, gateway, out) {
        // In IPv6 such a route is said to lead to lo.
        (RTN_BLACKHOLE, _, _) if metric == WORST_METRIC => Via::Blackhole,
        (RTN_BLACKHOLE, _, _) if destination.is_ipv6() => Via::Loopback,
        // Of an agent that did not know better: the kernel answers what such a route takes.
        (RTN_UNICAST, None, Some(LOOPBACK)) if destination.is_ipv6() => Via::Link(IfName::new("lo")?),
        (RTN_UNICAST, Some(gateway), _) => Via::Gateway(gateway),
        (RTN_UNICAST, None, Some(LOOPBACK)) => Via::Loopback,
        (RTN_UNICAST, None, Some(out)) => Via::Link(names.get(&out)?.clone()),
        _ => return None,
    };
    let destination = IpNet::new(destination, prefix).ok()?;
    Some(Route { table, destination, via })
}

/// Asks for routes of ours in every table.
pub(super) fn request(family: Family) -> RouteNetlinkMessage {
    let mut request = RouteMessage::default();
    request.header.address_family = number(family);
    request.header.protocol = RouteProtocol::Other(PROTOCOL);
    RouteNetlinkMessage::GetRoute(request)
}

/// Routes of ours in every table. The kernel filters the dump (`NETLINK_GET_STRICT_CHK`), so that others' routes cost little.
pub(super) fn read(netlink: &mut Netlink, names: &BTreeMap<u32, IfName>) -> io::Result<BTreeSet<Route>> {
    both(netlink, request, |answer| parse(answer, names))
}

/// The message that adds or removes `wanted`; `out` is the index of the interface that it leads to, if it names one.
pub(super) fn message(wanted: &Route, out: Option<u32>) -> RouteMessage {
    let family = Family::of_net(&wanted.destination);
    let silent = wanted.via == Via::Loopback && family == Family::V6;
    let out = out.filter(|_| !silent);
    let mut message = RouteMessage::default();
    message.header.address_family = number(family);
    message.header.destination_prefix_length = wanted.destination.prefix_len();
    message.header.table = u8::try_from(wanted.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = if out.is_some() { RouteScope::Link } else { RouteScope::Universe };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(RouteAddress::from(wanted.destination.network())));
    attributes.push(RouteAttribute::Table(wanted.table));
    attributes.extend(out.map(RouteAttribute::Oif));
    match wanted.via {
        Via::Gateway(gateway) => attributes.push(RouteAttribute::Gateway(RouteAddress::from(gateway))),
        Via::Blackhole => {
            message.header.kind = RouteType::BlackHole;
            attributes.push(RouteAttribute::Priority(WORST_METRIC));
        }
        Via::Loopback if silent => message.header.kind = RouteType::BlackHole,
        Via::Loopback | Via::Link(_) => {}
    }
    message
}
