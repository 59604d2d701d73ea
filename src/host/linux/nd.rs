//! Neighbour discovery (RFC 4861): the solicitation before a claim, as duplicate address detection sends it (RFC 4862, section 5.4.2), and the
//! unsolicited advertisement after it (RFC 4861, section 7.2.6). Pure.

use std::net::Ipv6Addr;

use pnet_datalink::MacAddr;
use pnet_packet::ethernet::{EtherType, EtherTypes};
use pnet_packet::icmpv6::{Icmpv6Packet, checksum};
use socket2::SockFilter;

use super::wire::{HEADER, Protocol};
use crate::netfilter::rules::icmp::{NEIGHBOUR_ADVERTISEMENT, NEIGHBOUR_SOLICITATION};

/// Protocol number of `ICMPv6`.
const ICMPV6: u8 = 58;
/// Bytes of an IPv6 header (RFC 8200, section 3).
const IPV6: usize = 40;
/// Bytes of a solicitation or an advertisement without options.
const MESSAGE: usize = 24;
/// The only hop limit that receivers take: whoever sends with it is on the segment.
const HOP_LIMIT: u8 = 255;
/// Override: what is in caches already is replaced.
const OVERRIDE: u8 = 0x20;
/// Router: the address is one of the gateway's own, which forwards.
const ROUTER: u8 = 0x80;
/// Type of the option that says the target's link-layer address.
const TARGET_LINK_LAYER: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Neighbour discovery over Ethernet.
pub(super) struct Nd;

/// The group in which everybody listens who has `address` (RFC 4291, section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let low = u16::from_be_bytes([b, c]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low)
}

/// Where a group is on Ethernet (RFC 2464, section 7).
fn ethernet(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr::new(0x33, 0x33, a, b, c, d)
}

/// A message of `ICMPv6` to a group, with its IPv6 header.
fn packet(source: Ipv6Addr, group: Ipv6Addr, mut message: Vec<u8>) -> (MacAddr, Vec<u8>) {
    if let Some(sum) = Icmpv6Packet::new(&message).map(|packet| checksum(&packet, &source, &group)) {
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let length = u16::try_from(message.len()).unwrap_or_default();
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([ICMPV6, HOP_LIMIT]);
    bytes.extend(source.octets());
    bytes.extend(group.octets());
    bytes.extend(message);
    (ethernet(group), bytes)
}

fn message(kind: u8, flags: u8, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message
}

impl Protocol for Nd {
    type Address = (Ipv6Addr, Role);
    const TYPE: EtherType = EtherTypes::Ipv6;

    /// Advertisements and solicitations (`linux/filter.h`, `linux/bpf_common.h`); without it, all IPv6 traffic of the interface would come our way.
    fn filter() -> Vec<SockFilter> {
        const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
        const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
        const RETURN: u16 = 0x06; // BPF_RET | BPF_K
        let at = |offset: usize| u32::try_from(HEADER + offset).unwrap_or(u32::MAX);
        vec![
            SockFilter::new(LOAD_BYTE, 0, 0, at(6)),
            SockFilter::new(JUMP_EQUAL, 0, 3, u32::from(ICMPV6)),
            SockFilter::new(LOAD_BYTE, 0, 0, at(IPV6)),
            SockFilter::new(JUMP_EQUAL, 2, 0, u32::from(NEIGHBOUR_ADVERTISEMENT)),
            SockFilter::new(JUMP_EQUAL, 1, 0, u32::from(NEIGHBOUR_SOLICITATION)),
            SockFilter::new(RETURN, 0, 0, 0),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
        ]
    }

    /// From the unspecified address, so that nobody's cache learns from it, and the answer goes to all nodes, so that it reaches us. Linux answers
    /// also for addresses that it only proxies (`ndisc_recv_ns` in `net/ipv6/ndisc.c`): who asks has to know the other gateways.
    fn question(_: MacAddr, (address, _): Self::Address) -> (MacAddr, Vec<u8>) {
        let message = message(NEIGHBOUR_SOLICITATION, 0, address);
        packet(Ipv6Addr::UNSPECIFIED, solicited_node(address), message)
    }

    fn announcement(mac: MacAddr, (address, role): Self::Address) -> Vec<(MacAddr, Vec<u8>)> {
        let router = if role == Role::Own { ROUTER } else { 0 };
        let mut message = message(NEIGHBOUR_ADVERTISEMENT, OVERRIDE | router, address);
        message.extend([TARGET_LINK_LAYER, 1]);
        message.extend(mac.octets());
        vec![packet(address, ALL_NODES, message)]
    }

    /// The target of an advertisement, and of a solicitation of somebody who is about to take the address himself.
    fn claimed(source: MacAddr, payload: &[u8]) -> Option<(Self::Address, MacAddr)> {
        let body = payload.get(IPV6..)?;
        let [kind, ..] = *body else { return None };
        let target = Ipv6Addr::from(<[u8; 16]>::try_from(body.get(8..MESSAGE)?).ok()?);
        if payload.get(6..8)? != [ICMPV6, HOP_LIMIT] {
            return None;
        }
        let mac = match kind {
            NEIGHBOUR_ADVERTISEMENT => link_layer(body.get(MESSAGE..)?).unwrap_or(source),
            NEIGHBOUR_SOLICITATION if payload.get(8..24)? == Ipv6Addr::UNSPECIFIED.octets() => source,
            _ => return None,
        };
        Some(((target, Role::Proxied), mac))
    }
}

/// What the option in `options` says of the target's link-layer address. Lengths count eight bytes.
fn link_layer(mut options: &[u8]) -> Option<MacAddr> {
    while let [kind, length, ..] = *options {
        let length = 8 * usize::from(length.max(1));
        if kind == TARGET_LINK_LAYER {
            return <[u8; 6]>::try_from(options.get(2..8)?).ok().map(MacAddr::from);
        }
        options = options.get(length..)?;
    }
    None
}

/// What an address is to the gateway. It answers as the kernel does: its own addresses are a router's, those that it proxies are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// Answered for on behalf of somebody else.
    Proxied,
    /// On one of its interfaces.
    Own,
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIRTUAL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0x12, 0x3456);
    const MAC: MacAddr = MacAddr(2, 0, 0, 0, 0, 7);

    #[test]
    fn groups_are_those_of_the_standards() {
        assert_eq!(solicited_node(VIRTUAL).to_string(), "ff02::1:ff12:3456");
        assert_eq!(ethernet(solicited_node(VIRTUAL)).to_string(), "33:33:ff:12:34:56");
        assert_eq!(ethernet(ALL_NODES).to_string(), "33:33:00:00:00:01");
    }

    #[test]
    fn an_advertisement_tells_its_target_and_where_it_is() {
        let (to, payload) = Nd::announcement(MAC, (VIRTUAL, Role::Own)).swap_remove(0);
        assert_eq!((to, payload.len()), (ethernet(ALL_NODES), IPV6 + MESSAGE + 8));
        assert_eq!(payload[IPV6 + 4], ROUTER | OVERRIDE);
        let other = MacAddr::new(2, 0, 0, 0, 0, 9);
        assert_eq!(Nd::claimed(other, &payload), Some(((VIRTUAL, Role::Proxied), MAC)));
        assert_eq!(
            Nd::claimed(other, &payload[..IPV6 + MESSAGE]),
            Some(((VIRTUAL, Role::Proxied), other)),
            "without the option"
        );
        assert_eq!(Nd::claimed(other, &payload[..IPV6 + MESSAGE - 1]), None);
        let mut routed = payload;
        routed[7] = 254;
        assert_eq!(Nd::claimed(other, &routed), None, "from beyond the segment");
    }

    #[test]
    fn a_question_says_nothing_about_the_asker_and_one_of_others_is_a_claim() {
        let (to, payload) = Nd::question(MAC, (VIRTUAL, Role::Proxied));
        assert_eq!((to, payload.len()), (ethernet(solicited_node(VIRTUAL)), IPV6 + MESSAGE));
        assert!(!payload.windows(6).any(|bytes| bytes == MAC.octets()));
        let other = MacAddr::new(2, 0, 0, 0, 0, 9);
        assert_eq!(Nd::claimed(other, &payload), Some(((VIRTUAL, Role::Proxied), other)));
        let mut ordinary = payload;
        ordinary[8] = 0xfe;
        assert_eq!(
            Nd::claimed(other, &ordinary),
            None,
            "who asks for its address in order to talk to it has it not"
        );
    }

    #[test]
    fn options_that_make_no_sense_end_the_search() {
        assert_eq!(link_layer(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 0, 0, 0, 0, 7]), Some(MAC));
        assert_eq!(link_layer(&[1, 9, 0, 0]), None);
        assert_eq!(link_layer(&[2]), None);
        assert_eq!(link_layer(&[2, 1, 0]), None);
    }
}
