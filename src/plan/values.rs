//! Single values of raw specs: accepted as written in one canonical form, or refused with a sentence that says what the value must be.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::verdict::ClaimedPorts;
use crate::api::mapping::{PortMapping, Protocol};
use crate::api::schema::NAME_MAX;
use crate::netfilter::{IfName, PortRange, Transport};

/// Characters of a user's value that a message repeats.
const QUOTE_MAX: usize = 64;

/// Ranges that no host has an address from (RFC 6890).
const UNUSABLE: [(Ipv4Net, &str); 5] = [
    (Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8), "this network"),
    (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback"),
    (Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16), "link-local"),
    (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast"),
    (Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32), "broadcast"),
];

/// An interface that a network can have.
pub(super) fn interface(name: &str) -> Option<IfName> {
    IfName::new(name).filter(|name| name.as_str() != "lo")
}

pub(super) fn claimed_ports(port: &PortMapping) -> Result<ClaimedPorts, String> {
    let first = port.port;
    let last = port.end_port.unwrap_or(first);
    if first == 0 {
        return Err("port must be 1 to 65535: got 0".into());
    }
    let ports = PortRange::new(first, last).ok_or_else(|| format!("endPort must not be below port: got {first} to {last}"))?;
    let target_first = port.target_port.unwrap_or(first);
    if target_first == 0 {
        return Err("targetPort must be 1 to 65535: got 0".into());
    }
    if target_first.checked_add(ports.span()).is_none() {
        let most = u16::MAX - ports.span();
        return Err(format!(
            "targetPort must be at most {most}, so that the range of {} ports ends by 65535: got {target_first}",
            u32::from(ports.span()) + 1
        ));
    }
    let transport = match port.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    };
    Ok(ClaimedPorts {
        transport,
        ports,
        target_first,
    })
}

/// `text` as a host's address. The parser takes one spelling of an address only: four decimal octets without leading zeros (RFC 6943, 3.1.1).
pub(super) fn host_address(text: &str) -> Result<Ipv4Addr, String> {
    let found = text.parse::<Ipv4Addr>().map_err(|_| {
        let but = if text.contains(':') {
            "an IPv4 address, IPv6 is not served"
        } else {
            "an IPv4 address such as 192.168.100.3"
        };
        format!("must be {but}: got {}", quote(text))
    })?;
    match unusable(Ipv4Net::from(found)) {
        Some((range, what)) => Err(format!("must not be in {range} ({what}): got {found}")),
        None => Ok(found),
    }
}

pub(super) fn prefix(text: &str) -> Result<Ipv4Net, String> {
    let net = text.parse::<Ipv4Net>().ok().filter(|n| n.to_string() == text).ok_or_else(|| {
        let but = if text.contains(':') {
            "an IPv4 prefix, IPv6 is not served"
        } else {
            "an IPv4 prefix such as 192.168.100.0/24"
        };
        format!("must be {but}: got {}", quote(text))
    })?;
    if net.addr() == net.network() {
        Ok(net)
    } else {
        Err(format!(
            "must have no bits set behind the prefix length: {net} would be {}",
            net.trunc()
        ))
    }
}

pub(super) fn unusable(net: Ipv4Net) -> Option<(Ipv4Net, &'static str)> {
    UNUSABLE.into_iter().find(|(range, _)| range.contains(&net) || net.contains(range))
}

/// A user's value for a message: escaped, and cut.
pub(super) fn quote(value: &str) -> String {
    if value.chars().count() <= QUOTE_MAX {
        return format!("{value:?}");
    }
    let head: String = value.chars().take(QUOTE_MAX).collect();
    format!("{head:?}… ({} characters)", value.chars().count())
}

pub(super) fn label(value: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&value.len()) && value.bytes().all(inner) && !value.starts_with('-') && !value.ends_with('-')
}

/// RFC 1123 as Kubernetes reads it (`IsDNS1123Subdomain`), shortened to [`NAME_MAX`].
pub(super) fn subdomain(value: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !p.starts_with('-')
            && !p.ends_with('-')
    };
    (1..=NAME_MAX).contains(&value.len()) && value.split('.').all(part)
}
