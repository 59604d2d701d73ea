//! Changes over rtnetlink: routes, proxy neighbours, addresses, interface settings; all of one call in one pipeline.
//!
//! Never replaces or removes what does not bear our protocol number: adding uses `NLM_F_EXCL`, and what is to be removed is looked up
//! first. A wish that is already fulfilled is no error.

use std::io;

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol};
use netlink_packet_route::link::{AfSpecInet, AfSpecUnspec, LinkAttribute, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::neighbour_table::{NeighbourTableAttribute, NeighbourTableMessage, NeighbourTableParameter};
use netlink_packet_route::route::RouteProtocol;
use nix::libc;

use super::netlink::Netlink;
use super::observe::{self, NEIGHBOUR_TABLES, devconf, number};
use super::policy;
use super::routes::{self, LOOPBACK};
use super::snapshot::Snapshot;
use super::state::Found;
use crate::host::{HostError, LinkChange, ObservedLinks, PROTOCOL};
use crate::netfilter::{Family, IfName};
use crate::plan::{GatewayAddress, LinkSettings, ProxyNeighbour, Route, TABLE_MAIN, Via};

/// A new object, or an error if there is one.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// `IFLA_INET_CONF` in `linux/if_link.h`.
const IFLA_INET_CONF: u16 = 1;

/// Changes up to this many are made one by one: each asks the kernel a question or two, and reading all there is takes as long as some hundred of them.
const FEW: usize = 64;

type Request = (u16, RouteNetlinkMessage);

/// An error of the kernel as one of ours.
pub(super) fn failed(action: String, error: &io::Error) -> HostError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => HostError::Denied { action },
        _ => HostError::Netlink {
            action,
            said: error.to_string(),
        },
    }
}

/// What of ours there is.
pub(super) fn read(netlink: &mut Netlink, found: &mut Found) -> io::Result<ObservedLinks> {
    let now = Snapshot::take(netlink)?;
    found.follow(&now.names).map_err(io::Error::other)?;
    Ok(observed(now, found))
}

/// Whether of ours there is just what is `known`.
pub(super) fn stand(netlink: &mut Netlink, found: &mut Found, known: &ObservedLinks) -> io::Result<bool> {
    let now = Snapshot::without_mappings(netlink)?;
    found.follow(&now.names).map_err(io::Error::other)?;
    if !now.mappings_stand(netlink, &known.routes, &known.proxies)? {
        return Ok(false);
    }
    let ObservedLinks {
        routes: _,
        proxies: _,
        policy_rules,
        addresses,
        links,
        touched,
        inside,
        renamed,
    } = observed(now, found);
    Ok(policy_rules == known.policy_rules
        && addresses == known.addresses
        && links == known.links
        && touched == known.touched
        && inside == known.inside
        && renamed == known.renamed)
}

fn observed(now: Snapshot, found: &Found) -> ObservedLinks {
    let touched = || now.names.iter().filter(|(index, name)| found.get(name, **index).is_some());
    let inside = touched().filter(|(_, name)| found.is_inside(name));
    ObservedLinks {
        touched: touched().map(|(_, name)| name.clone()).collect(),
        inside: inside.map(|(_, name)| name.clone()).collect(),
        renamed: touched()
            .map(|(_, name)| name)
            .filter(|name| found.is_renamed(name))
            .cloned()
            .collect(),
        proxies: observe::ours(&now.proxies),
        addresses: now.our_addresses(),
        links: now.settings(),
        routes: now.routes,
        policy_rules: now.policy_rules,
    }
}

/// Makes the changes in order. Tries all, reports all errors.
pub(super) fn change(netlink: &mut Netlink, found: &mut Found, changes: &[LinkChange]) -> Vec<HostError> {
    if few(netlink, changes).unwrap_or(false) {
        return Vec::new();
    }
    let now = match Snapshot::take(netlink) {
        Ok(now) => now,
        Err(error) => return vec![failed("reading interfaces, routes and neighbours".to_owned(), &error)],
    };
    let mut errors = Vec::new();
    if let Err(error) = record(found, &now, changes) {
        return vec![error];
    }
    let (mut requests, mut of) = (Vec::new(), Vec::new());
    for (at, change) in changes.iter().enumerate() {
        match plan(&now, found, change) {
            Ok(wanted) => {
                of.extend(wanted.iter().map(|_| at));
                requests.extend(wanted);
            }
            Err(error) => errors.push(error),
        }
    }
    let outcomes = match netlink.batch(requests) {
        Ok(outcomes) => outcomes,
        Err(error) => return vec![failed("changing routes, neighbours and interfaces".to_owned(), &error)],
    };
    let mut broken = vec![false; changes.len()];
    for (at, outcome) in of.into_iter().zip(outcomes) {
        if let Some(error) = outcome.err().and_then(|error| judge(&changes[at], &error)) {
            broken[at] = true;
            errors.push(error);
        }
    }
    let put_back = changes.iter().zip(&broken).filter_map(|(change, broken)| match change {
        LinkChange::PutBack(name) if !broken => Some(name),
        _ => None,
    });
    errors.extend(found.forget(put_back).err());
    errors
}

/// Makes the changes that a few mappings bring, without reading what ten thousand others have. False: they are not of that kind, or one of them was refused. What
/// is made already is passed over by whoever makes the rest.
fn few(netlink: &mut Netlink, changes: &[LinkChange]) -> io::Result<bool> {
    if changes.len() > FEW {
        return Ok(false);
    }
    let mut requests = Vec::with_capacity(changes.len());
    for change in changes {
        requests.push(match change {
            LinkChange::AddRoute(route) if route.via == Via::Loopback => {
                (NEW, RouteNetlinkMessage::NewRoute(routes::message(route, Some(LOOPBACK))))
            }
            // Only one of our protocol number is found. Of IPv6 there may be another one of ours to the same destination.
            LinkChange::RemoveRoute(route) if route.via == Via::Loopback && Family::of_net(&route.destination) == Family::V4 => {
                (0, RouteNetlinkMessage::DelRoute(routes::message(route, Some(LOOPBACK))))
            }
            LinkChange::AddProxy(wanted) => {
                let message = proxy(wanted, observe::index(netlink, &wanted.interface)?);
                // The kernel would overwrite the mark of somebody else's.
                if observe::one_proxy(netlink, &message)?.is_some() {
                    return Ok(false);
                }
                (NEW, RouteNetlinkMessage::NewNeighbour(message))
            }
            LinkChange::RemoveProxy(wanted) => {
                let message = proxy(wanted, observe::index(netlink, &wanted.interface)?);
                if observe::one_proxy(netlink, &message)? != Some(true) {
                    return Ok(false);
                }
                (0, RouteNetlinkMessage::DelNeighbour(message))
            }
            _ => return Ok(false),
        });
    }
    Ok(netlink.batch(requests)?.iter().all(Result::is_ok))
}

/// Records what is found on every interface that is about to be changed.
fn record(found: &mut Found, now: &Snapshot, changes: &[LinkChange]) -> Result<(), HostError> {
    let about = changes.iter().filter_map(|change| match change {
        LinkChange::Inside(name) | LinkChange::Set(name, _) => now.links.get(name.as_str()).map(|link| (name, link.index, &link.settings)),
        _ => None,
    });
    let inside = changes.iter().filter_map(|change| match change {
        LinkChange::Inside(name) => Some(name.as_str()),
        _ => None,
    });
    found.record(about, &inside.collect())
}

/// The requests that make a change come true: none if it already is.
fn plan(now: &Snapshot, found: &Found, change: &LinkChange) -> Result<Vec<Request>, HostError> {
    let index = |name: &IfName| {
        now.links
            .get(name.as_str())
            .map(|link| link.index)
            .ok_or_else(|| HostError::Netlink {
                action: describe(change),
                said: "there is no such interface".to_owned(),
            })
    };
    let foreign = || HostError::Netlink {
        action: describe(change),
        said: "another program has the same; it was left alone".to_owned(),
    };
    Ok(match change {
        LinkChange::AddRoute(wanted) | LinkChange::RemoveRoute(wanted) => {
            let out = match &wanted.via {
                Via::Loopback => Some(LOOPBACK),
                Via::Link(name) => Some(index(name)?),
                Via::Gateway(_) | Via::Blackhole => None,
            };
            let add = matches!(change, LinkChange::AddRoute(_));
            match (add, now.routes.contains(wanted)) {
                (true, false) => vec![(NEW, RouteNetlinkMessage::NewRoute(routes::message(wanted, out)))],
                (false, true) => vec![(0, RouteNetlinkMessage::DelRoute(routes::message(wanted, out)))],
                _ => Vec::new(),
            }
        }
        LinkChange::AddProxy(wanted) => match now.proxies.get(wanted) {
            Some(true) => Vec::new(),
            Some(false) => return Err(foreign()),
            None => vec![(NEW, RouteNetlinkMessage::NewNeighbour(proxy(wanted, index(&wanted.interface)?)))],
        },
        LinkChange::RemoveProxy(wanted) if now.proxies.get(wanted) == Some(&true) => {
            vec![(0, RouteNetlinkMessage::DelNeighbour(proxy(wanted, index(&wanted.interface)?)))]
        }
        LinkChange::AddAddress(wanted) => match now.addresses.get(&host(wanted)) {
            Some(true) => Vec::new(),
            Some(false) => return Err(foreign()),
            None => vec![(NEW, RouteNetlinkMessage::NewAddress(address(wanted, index(&wanted.interface)?)))],
        },
        LinkChange::RemoveAddress(wanted) if now.addresses.get(&host(wanted)) == Some(&true) => {
            vec![(0, RouteNetlinkMessage::DelAddress(address(wanted, index(&wanted.interface)?)))]
        }
        LinkChange::AddRule(wanted) if !now.policy_rules.contains(wanted) => {
            vec![(NEW, RouteNetlinkMessage::NewRule(policy::message(wanted)))]
        }
        LinkChange::RemoveRule(wanted) if now.policy_rules.contains(wanted) => {
            vec![(0, RouteNetlinkMessage::DelRule(policy::message(wanted)))]
        }
        LinkChange::RemoveProxy(_) | LinkChange::RemoveAddress(_) | LinkChange::AddRule(_) | LinkChange::RemoveRule(_) => Vec::new(),
        LinkChange::Inside(name) => {
            index(name)?;
            Vec::new()
        }
        LinkChange::Set(name, wanted) => settings(index(name)?, wanted),
        // An interface that is gone took its settings along. Without a record the safe default is: no forwarding.
        LinkChange::PutBack(name) => index(name).map_or_else(
            |_| Vec::new(),
            |index| {
                let safe = LinkSettings {
                    forwarding: Some(false),
                    ..LinkSettings::default()
                };
                settings(index, &found.get(name, index).unwrap_or(safe))
            },
        ),
    })
}

/// What an error means: None if the wish is fulfilled all the same.
fn judge(change: &LinkChange, error: &io::Error) -> Option<HostError> {
    let removal = matches!(
        change,
        LinkChange::RemoveRoute(_) | LinkChange::RemoveProxy(_) | LinkChange::RemoveAddress(_) | LinkChange::RemoveRule(_)
    );
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL) if removal => None,
        Some(libc::ENODEV) if removal || matches!(change, LinkChange::PutBack(_)) => None,
        Some(libc::EEXIST) => Some(HostError::Netlink {
            action: describe(change),
            said: "another one to the same destination is there; it was left alone".to_owned(),
        }),
        _ => Some(failed(describe(change), error)),
    }
}

fn describe(change: &LinkChange) -> String {
    match change {
        LinkChange::RemoveProxy(p) => format!("removing proxy neighbour {} on {}", p.address, p.interface),
        LinkChange::AddProxy(p) => format!("adding proxy neighbour {} on {}", p.address, p.interface),
        LinkChange::RemoveRoute(r) => format!("removing the route to {}", place(r)),
        LinkChange::AddRoute(r) => format!("adding the route to {}", place(r)),
        LinkChange::RemoveAddress(a) => format!("removing address {} from {}", a.address, a.interface),
        LinkChange::AddAddress(a) => format!("adding address {} to {}", a.address, a.interface),
        LinkChange::RemoveRule(r) => format!("removing the {} policy routing rule {r}", r.family),
        LinkChange::AddRule(r) => format!("adding the {} policy routing rule {r}", r.family),
        LinkChange::Inside(name) => format!("recording {name} as an inside interface"),
        LinkChange::Set(name, _) => format!("changing settings of {name}"),
        LinkChange::PutBack(name) => format!("putting back settings of {name}"),
    }
}

/// Destination, and table if it is not main.
fn place(route: &Route) -> String {
    match route.table {
        TABLE_MAIN => route.destination.to_string(),
        table => format!("{} in table {table}", route.destination),
    }
}

fn host(address: &GatewayAddress) -> (IfName, IpNet) {
    (address.interface.clone(), IpNet::from(address.address))
}

fn proxy(wanted: &ProxyNeighbour, index: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = number(Family::of(wanted.address));
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Proxy;
    message.header.state = NeighbourState::Permanent;
    message
        .attributes
        .push(NeighbourAttribute::Destination(NeighbourAddress::from(wanted.address)));
    message
        .attributes
        .push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    message
}

fn address(wanted: &GatewayAddress, index: u32) -> AddressMessage {
    let mut message = AddressMessage::default();
    let family = Family::of(wanted.address);
    message.header.family = number(family);
    message.header.prefix_len = IpNet::from(wanted.address).prefix_len();
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(wanted.address));
    message.attributes.push(AddressAttribute::Address(wanted.address));
    message
        .attributes
        .push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
    if family == Family::V6 {
        // Usable at once: its holder was asked for by us before, where that is wanted. And no route to itself beside the local one.
        let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

/// `RTM_SETLINK` for what lives in `in_device`, `RTM_SETNEIGHTBL` for what lives in the neighbour table. Neither needs a writable /proc/sys.
fn settings(index: u32, wanted: &LinkSettings) -> Vec<Request> {
    let mut values: Vec<_> = [
        (devconf::FORWARDING, wanted.forwarding.map(u32::from)),
        (devconf::SEND_REDIRECTS, wanted.send_redirects.map(u32::from)),
        (devconf::RP_FILTER, wanted.rp_filter.map(u32::from)),
    ]
    .into_iter()
    .filter_map(|(number, value)| Some(DefaultNla::new(number, value?.to_ne_bytes().to_vec())))
    .collect();
    // The kernel takes them one by one, and packets pass in between: what is let in is filtered first.
    if wanted.forwarding == Some(true) {
        values.reverse();
    }
    let mut requests = Vec::new();
    if !values.is_empty() {
        let mut nested = vec![0; values.as_slice().buffer_len()];
        values.as_slice().emit(&mut nested);
        // The crate's own type leaves out zeros, so switching something off takes the raw attribute.
        let conf = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, nested));
        let mut message = LinkMessage::default();
        message.header.index = index;
        message
            .attributes
            .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![conf])]));
        requests.push((0, RouteNetlinkMessage::SetLink(message)));
    }
    for (family, table) in NEIGHBOUR_TABLES {
        let delay = match family {
            Family::V4 => wanted.proxy_delay,
            Family::V6 => wanted.proxy_delay_ipv6,
        };
        let Some(delay) = delay else { continue };
        let mut message = NeighbourTableMessage::default();
        message.header.family = number(family);
        message.attributes.push(NeighbourTableAttribute::Name(table.to_owned()));
        let parameters = vec![NeighbourTableParameter::Ifindex(index), NeighbourTableParameter::ProxyDelay(delay)];
        message.attributes.push(NeighbourTableAttribute::Parms(parameters));
        requests.push((0, RouteNetlinkMessage::SetNeighbourTable(message)));
    }
    requests
}
