//! ARP by hand: the probe before a claim (RFC 5227, section 2.1) and the announcement after it (section 2.3).
//!
//! One packet socket an interface, bound to ARP, so that no other traffic is copied to us. The kernel writes the Ethernet header, to
//! the broadcast address. Every wait is bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pnet_datalink::{Channel, ChannelType, Config, DataLinkReceiver, DataLinkSender, MacAddr, NetworkInterface, channel};
use pnet_packet::arp::{ArpHardwareTypes, ArpOperation, ArpOperations, ArpPacket, MutableArpPacket};
use pnet_packet::ethernet::EtherTypes;

/// Probes an address. RFC 5227 has 3 (`PROBE_NUM`), spread over seconds for hosts that boot; a claim must not take that long.
const PROBES: usize = 3;
/// Between two probes of an address, at least.
const PROBE_GAP: Duration = Duration::from_millis(20);
/// How long answers to the last probe are awaited: far more than a segment's round trip.
const PROBE_WAIT: Duration = Duration::from_millis(80);
/// Packets sent in one go; with [`PACE`] between them, 5000 packets a second, which is 2.5 Mbit/s.
const CHUNK: usize = 25;
const PACE: Duration = Duration::from_millis(5);
/// Granularity of waiting.
const TICK: Duration = Duration::from_millis(2);
/// Bytes of an ARP packet for IPv4 over Ethernet (RFC 826).
const ARP: usize = 28;

/// An Ethernet interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) index: u32,
    pub(super) mac: MacAddr,
}

struct Wire {
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
    mac: MacAddr,
}

impl Wire {
    fn open(port: Port) -> io::Result<Self> {
        let interface = NetworkInterface {
            name: String::new(),
            description: String::new(),
            index: port.index,
            // Where packets go: the library takes the destination of a cooked socket from here.
            mac: Some(MacAddr::broadcast()),
            ips: Vec::new(),
            flags: 0,
        };
        let config = Config {
            channel_type: ChannelType::Layer3(EtherTypes::Arp.0),
            read_timeout: Some(TICK),
            write_timeout: Some(PROBE_GAP),
            promiscuous: false,
            ..Config::default()
        };
        match channel(&interface, config)? {
            Channel::Ethernet(sender, receiver) => Ok(Self {
                sender,
                receiver,
                mac: port.mac,
            }),
            _ => Err(io::Error::other("the library gave another kind of channel")),
        }
    }

    fn send(&mut self, operation: ArpOperation, sender: Ipv4Addr, target: (MacAddr, Ipv4Addr)) -> io::Result<()> {
        let mut bytes = [0; ARP];
        let mut packet = MutableArpPacket::new(&mut bytes).ok_or_else(|| io::Error::other("an ARP packet is longer than thought"))?;
        packet.set_hardware_type(ArpHardwareTypes::Ethernet);
        packet.set_protocol_type(EtherTypes::Ipv4);
        packet.set_hw_addr_len(6);
        packet.set_proto_addr_len(4);
        packet.set_operation(operation);
        packet.set_sender_hw_addr(self.mac);
        packet.set_sender_proto_addr(sender);
        packet.set_target_hw_addr(target.0);
        packet.set_target_proto_addr(target.1);
        self.sender
            .send_to(&bytes, None)
            .unwrap_or_else(|| Err(io::Error::other("the packet was not taken")))
    }

    /// Listens until `end` and notes who says that one of `addresses` is his.
    fn listen(&mut self, end: Instant, addresses: &BTreeSet<Ipv4Addr>, own: &BTreeSet<MacAddr>, found: &mut BTreeMap<Ipv4Addr, MacAddr>) {
        while Instant::now() < end {
            let Ok(bytes) = self.receiver.next() else {
                // A timeout. After another error (the interface went down) the socket may answer at once for ever.
                sleep(TICK.min(end.saturating_duration_since(Instant::now())));
                continue;
            };
            if let Some((address, mac)) = claimed(bytes)
                && addresses.contains(&address)
                && !own.contains(&mac)
            {
                found.entry(address).or_insert(mac);
            }
        }
    }
}

/// The address that the sender of an ARP packet says is his: in answers, in requests and in announcements alike.
pub(super) fn claimed(bytes: &[u8]) -> Option<(Ipv4Addr, MacAddr)> {
    let packet = ArpPacket::new(bytes)?;
    let ours = packet.get_hardware_type() == ArpHardwareTypes::Ethernet && packet.get_protocol_type() == EtherTypes::Ipv4;
    ours.then(|| (packet.get_sender_proto_addr(), packet.get_sender_hw_addr()))
}

/// Asks on `port` who has `addresses`. Answers from `own` hardware addresses do not count.
///
/// A probe's sender address is 0.0.0.0, so that nobody's cache learns from it. Linux answers such a probe for addresses it owns, and not
/// for those it only proxies: another gateway of ours that still announces the address is no stranger.
pub(super) fn probe(port: Port, addresses: &BTreeSet<Ipv4Addr>, own: &BTreeSet<MacAddr>) -> io::Result<BTreeMap<Ipv4Addr, MacAddr>> {
    let mut wire = Wire::open(port)?;
    let mut found = BTreeMap::new();
    let all: Vec<_> = addresses.iter().copied().collect();
    for _ in 0..PROBES {
        let round = Instant::now() + PROBE_GAP;
        for chunk in all.chunks(CHUNK) {
            for address in chunk {
                wire.send(ArpOperations::Request, Ipv4Addr::UNSPECIFIED, (MacAddr::zero(), *address))?;
            }
            wire.listen(Instant::now() + PACE, addresses, own, &mut found);
        }
        wire.listen(round, addresses, own, &mut found);
    }
    wire.listen(Instant::now() + PROBE_WAIT, addresses, own, &mut found);
    Ok(found)
}

/// Says on `port` that `addresses` are here: once as a request and once as an answer, because some hosts learn from the one and some
/// from the other.
pub(super) fn announce(port: Port, addresses: &BTreeSet<Ipv4Addr>) -> io::Result<()> {
    let mut wire = Wire::open(port)?;
    let all: Vec<_> = addresses.iter().copied().collect();
    for (number, chunk) in all.chunks(CHUNK / 2).enumerate() {
        if number > 0 {
            sleep(PACE);
        }
        for address in chunk {
            wire.send(ArpOperations::Request, *address, (MacAddr::zero(), *address))?;
            wire.send(ArpOperations::Reply, *address, (MacAddr::broadcast(), *address))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_of_an_answer_is_read_and_other_packets_are_passed_over() {
        let answer = [
            0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 7, 192, 168, 100, 3, 2, 0, 0, 0, 0, 1, 192, 168, 100, 2,
        ];
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
