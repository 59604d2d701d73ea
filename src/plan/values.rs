//! Single values of raw specs: accepted as written in one canonical form, or refused with a sentence that says what the value must be.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::verdict::ClaimedPorts;
use crate::api::helper::HelperName;
use crate::api::mapping::{PortMapping, Protocol};
use crate::api::schema::NAME_MAX;
use crate::netfilter::{Helper, IfName, PortRange, Transport};

/// Characters of a user's value that a message repeats.
const QUOTE_MAX: usize = 64;

/// Ranges that no host has an address from that it could be reached at (RFC 6890).
static UNUSABLE: [(IpNet, &str); 10] = [
    (v4([0, 0, 0, 0], 8), "this network"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([255; 4], 32), "broadcast"),
    (v6([0; 8], 128), "unspecified"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback"),
    (v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), "IPv4-mapped"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast"),
];

const fn v4(octets: [u8; 4], length: u8) -> IpNet {
    let [a, b, c, d] = octets;
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(segments: [u16; 8], length: u8) -> IpNet {
    let mut bits = 0_u128;
    let mut at = 0;
    while at < segments.len() {
        bits = bits << 16 | segments[at] as u128;
        at += 1;
    }
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), length))
}

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
    Ok(ClaimedPorts {
        transport: transport(port.protocol),
        ports,
        target_first,
    })
}

pub(super) fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    }
}

/// What the kernel has for a helper at a port of these transports, if any are named.
pub(super) fn kernel_helpers(name: HelperName) -> &'static [(Transport, Helper)] {
    use Transport::{Tcp, Udp};
    match name {
        HelperName::Amanda => &[(Udp, Helper::Amanda)],
        HelperName::Ftp => &[(Tcp, Helper::Ftp)],
        HelperName::H323 => &[(Tcp, Helper::H323Signalling), (Udp, Helper::H323Ras)],
        HelperName::Irc => &[(Tcp, Helper::Irc)],
        HelperName::Pptp => &[(Tcp, Helper::Pptp)],
        HelperName::Sip => &[(Tcp, Helper::Sip), (Udp, Helper::Sip)],
        HelperName::Snmp => &[(Udp, Helper::Snmp)],
        HelperName::Tftp => &[(Udp, Helper::Tftp)],
    }
}

/// `text` as a host's address, in the one spelling that is canonical: four decimal octets without leading zeros (RFC 6943, 3.1.1), or RFC 5952.
pub(super) fn host_address(text: &str) -> Result<IpAddr, String> {
    let found = text.parse::<IpAddr>().ok().filter(|a| a.to_string() == text).ok_or_else(|| {
        format!(
            "must be an IP address in canonical form, such as 192.168.100.3 or fd00:100::3: got {}",
            quote(text)
        )
    })?;
    match unusable(IpNet::from(found)) {
        Some((range, what)) => Err(format!("must not be in {range} ({what}): got {found}")),
        None => Ok(found),
    }
}

pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    let net = text.parse::<IpNet>().ok().filter(|n| n.to_string() == text).ok_or_else(|| {
        format!(
            "must be a prefix in canonical form, such as 192.168.100.0/24 or fd00:100::/64: got {}",
            quote(text)
        )
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

pub(super) fn unusable(net: IpNet) -> Option<(IpNet, &'static str)> {
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
