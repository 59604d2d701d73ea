//! ARP (RFC 826): the probe before a claim (RFC 5227, section 2.1) and the announcement after it (section 2.3). Pure.

use std::net::Ipv4Addr;

use pnet_datalink::MacAddr;
use pnet_packet::arp::{ArpHardwareTypes, ArpOperation, ArpOperations, ArpPacket, MutableArpPacket};
use pnet_packet::ethernet::{EtherType, EtherTypes};
use socket2::SockFilter;

use super::wire::Protocol;

/// Bytes of an ARP packet for IPv4 over Ethernet (RFC 826).
const LENGTH: usize = 28;

/// ARP for IPv4 over Ethernet.
pub(super) struct Arp;

/// A packet to everybody.
fn packet(operation: ArpOperation, sender: (MacAddr, Ipv4Addr), target: (MacAddr, Ipv4Addr)) -> (MacAddr, Vec<u8>) {
    let mut bytes = vec![0; LENGTH];
    if let Some(mut packet) = MutableArpPacket::new(&mut bytes) {
        packet.set_hardware_type(ArpHardwareTypes::Ethernet);
        packet.set_protocol_type(EtherTypes::Ipv4);
        packet.set_hw_addr_len(6);
        packet.set_proto_addr_len(4);
        packet.set_operation(operation);
        packet.set_sender_hw_addr(sender.0);
        packet.set_sender_proto_addr(sender.1);
        packet.set_target_hw_addr(target.0);
        packet.set_target_proto_addr(target.1);
    }
    (MacAddr::broadcast(), bytes)
}

impl Protocol for Arp {
    type Address = Ipv4Addr;
    const TYPE: EtherType = EtherTypes::Arp;

    fn filter() -> Vec<SockFilter> {
        Vec::new()
    }

    /// The sender address is 0.0.0.0, so that nobody's cache learns from it. Linux answers such a probe for addresses it owns, and not for
    /// those it only proxies: another gateway of ours that still announces the address is no stranger.
    fn question(mac: MacAddr, address: Ipv4Addr) -> (MacAddr, Vec<u8>) {
        packet(ArpOperations::Request, (mac, Ipv4Addr::UNSPECIFIED), (MacAddr::zero(), address))
    }

    /// Once as a request and once as an answer, because some hosts learn from the one and some from the other.
    fn announcement(mac: MacAddr, address: Ipv4Addr) -> Vec<(MacAddr, Vec<u8>)> {
        vec![
            packet(ArpOperations::Request, (mac, address), (MacAddr::zero(), address)),
            packet(ArpOperations::Reply, (mac, address), (MacAddr::broadcast(), address)),
        ]
    }

    /// The sender's address: in answers, in requests and in announcements alike.
    fn claimed(_: MacAddr, payload: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
        let packet = ArpPacket::new(payload)?;
        let ours = packet.get_hardware_type() == ArpHardwareTypes::Ethernet && packet.get_protocol_type() == EtherTypes::Ipv4;
        ours.then(|| (packet.get_sender_proto_addr(), packet.get_sender_hw_addr()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_of_an_answer_is_read_and_other_packets_are_passed_over() {
        let answer = [
            0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 7, 192, 168, 100, 3, 2, 0, 0, 0, 0, 1, 192, 168, 100, 2,
        ];
        let claimed = |payload: &[u8]| Arp::claimed(MacAddr::zero(), payload);
        assert_eq!(
            claimed(&answer),
            Some((Ipv4Addr::new(192, 168, 100, 3), MacAddr::new(2, 0, 0, 0, 0, 7)))
        );
        assert_eq!(claimed(&answer[..27]), None);
        let mut other = answer;
        other[1] = 6;
        assert_eq!(claimed(&other), None);
    }
}
