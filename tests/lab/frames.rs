//! Hand-made IPv4 packets of every kind that a packet filter might treat in its own way.

use std::net::Ipv4Addr;

use pnet_packet::util::{checksum, ipv4_checksum};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const GRE: u8 = 47;
const DO_NOT_FRAGMENT: u16 = 0x4000;
const SYN: u8 = 2;
const ACK: u8 = 16;

/// Every source to every destination with every content, with `mark` as type of service.
pub fn packets(mark: u8, sources: &[&str], destinations: &[&str]) -> Vec<Vec<u8>> {
    let address = |text: &&str| text.parse::<Ipv4Addr>().unwrap();
    let mut all = Vec::new();
    for source in sources.iter().map(address) {
        for destination in destinations.iter().map(address).filter(|d| *d != source) {
            all.extend(contents(mark, source, destination));
        }
    }
    all
}

/// Packets that a gateway cannot pass on, and says so to their sources: at the end of their hops, and too long where the way out is narrow.
pub fn hopeless(mark: u8, sources: &[&str], destinations: &[&str]) -> Vec<Vec<u8>> {
    let address = |text: &&str| text.parse::<Ipv4Addr>().unwrap();
    let mut all = Vec::new();
    for source in sources.iter().map(address) {
        for destination in destinations.iter().map(address).filter(|d| *d != source) {
            let port = [&777u16.to_be_bytes()[..], &33434u16.to_be_bytes(), &[0, 12, 0, 0], b"hops"].concat();
            all.push(ipv4([mark, 1], source, destination, UDP, 0, &port));
            all.push(ipv4([mark, 32], source, destination, UDP, DO_NOT_FRAGMENT, &[7; 1480]));
        }
    }
    all
}

fn contents(mark: u8, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<Vec<u8>> {
    let between = |source, destination, protocol, content: &[u8]| ipv4([mark, 32], source, destination, protocol, 0, content);
    let packet = |protocol, content: &[u8]| between(source, destination, protocol, content);
    let udp = |port: u16| [&777u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 12, 0, 0], b"leak"].concat();
    let quoted = between(destination, source, TCP, &tcp(destination, source, 80, 777, ACK)[..8]);
    let mut all = vec![
        packet(UDP, &udp(80)),
        packet(UDP, &udp(53)),
        packet(TCP, &tcp(source, destination, 777, 80, SYN)),
        packet(TCP, &tcp(source, destination, 80, 777, SYN | ACK)),
        packet(TCP, &tcp(source, destination, 777, 443, ACK)),
        packet(ICMP, &icmp(8, &[0, 7, 0, 1, 1, 2, 3, 4])),
        // Destination unreachable, about a packet that nobody sent.
        packet(ICMP, &icmp(3, &[&[0; 4], &quoted[..]].concat())),
        packet(GRE, &[0, 0, 8, 0, 1, 2, 3, 4]),
        // The middle of something.
        ipv4([mark, 32], source, destination, UDP, 0x2005, &[7; 16]),
    ];
    if matches!(source.octets(), [192, 168, 200, _] | [10, 0, 0, _]) {
        // Ends at the gateway, which says so.
        all.push(ipv4([mark, 1], source, destination, UDP, 0, &udp(33434)));
    }
    all
}

/// An IPv4 packet. `fragment`: flags and offset.
fn ipv4([service, hops]: [u8; 2], source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, fragment: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + content.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, service, length[0], length[1], 0, 9];
    packet.extend(fragment.to_be_bytes());
    packet.extend([hops, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet, 5).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend(content);
    packet
}

fn tcp(source: Ipv4Addr, destination: Ipv4Addr, from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut segment = [&from.to_be_bytes()[..], &to.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 7, 0, 0, 0, 0, 0x50, flags, 4, 0, 0, 0, 0, 0]);
    let sum = ipv4_checksum(&segment, 8, &[], &source, &destination, pnet_packet::ip::IpNextHeaderProtocols::Tcp);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

fn icmp(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 0, 0, 0], rest].concat();
    let sum = checksum(&message, 1).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}
