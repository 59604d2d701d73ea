//! The same for IPv6: hand-made packets of every kind, neighbours' talk included.

use std::net::Ipv6Addr;

use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::util::ipv6_checksum;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMP: u8 = 58;
/// Whom neighbour solicitations ask for.
const NOBODY: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0x77);

/// What bears `tag`, the traffic class (bits 20 to 27) and the flow label (the rest), which no translation changes and errors repeat.
#[derive(Clone, Copy, Debug)]
pub struct Frames6(pub u32);

impl Frames6 {
    /// Every source to every destination with every content.
    pub fn packets(self, sources: &[&str], destinations: &[&str]) -> Vec<Vec<u8>> {
        let address = |text: &&str| text.parse::<Ipv6Addr>().unwrap();
        let mut all = Vec::new();
        for source in sources.iter().map(address) {
            for destination in destinations.iter().map(address).filter(|d| *d != source) {
                all.extend(self.contents(source, destination));
            }
        }
        all
    }

    /// A router's word that it is the way to everywhere and that the segment is `2001:db8:dead::/64` (RFC 4861, 4.2 and 4.6.2).
    pub fn advertisement(self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut rest = vec![64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        rest.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
        rest.extend(Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 0).octets());
        self.packet(source, destination, 255, ICMP, &message(source, destination, 134, &rest))
    }

    fn packet(self, source: Ipv6Addr, destination: Ipv6Addr, hops: u8, next: u8, content: &[u8]) -> Vec<u8> {
        let mut packet = (0x6000_0000 | self.0).to_be_bytes().to_vec();
        packet.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        packet.extend([next, hops]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(content);
        packet
    }

    /// Everything that `source` could say to `destination`.
    fn contents(self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<Vec<u8>> {
        let udp = |port: u16| {
            let content = [&777_u16.to_be_bytes()[..], &port.to_be_bytes(), &[0, 12, 0, 0], b"leak"].concat();
            summed(source, destination, UDP, 6, &content)
        };
        let tcp = |from: u16, to: u16, flags: u8| {
            let content = [
                &from.to_be_bytes()[..],
                &to.to_be_bytes(),
                &[0, 0, 0, 7, 0, 0, 0, 0, 0x50, flags, 4, 0, 0, 0, 0, 0],
            ]
            .concat();
            summed(source, destination, TCP, 16, &content)
        };
        let icmp = |kind: u8, rest: &[u8]| message(source, destination, kind, rest);
        let whole = |next: u8, content: &[u8]| self.packet(source, destination, 64, next, content);
        let near = |content: &[u8]| self.packet(source, destination, 255, ICMP, content);
        let report = |content: &[u8]| {
            let options = [[ICMP, 0, 5, 2, 0, 0, 1, 0].as_slice(), content].concat();
            self.packet(source, destination, 1, HOP_BY_HOP, &options)
        };
        let wanted = [&[0; 4][..], &NOBODY.octets()].concat();
        let quoted = [&[0; 4][..], &self.packet(destination, source, 64, TCP, &tcp(80, 777, 16))].concat();
        let group = [&[0; 4][..], &Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 0x77).octets()].concat();
        vec![
            whole(UDP, &udp(53)),
            whole(UDP, &udp(80)),
            whole(TCP, &tcp(777, 80, 2)),
            whole(TCP, &tcp(80, 777, 18)),
            whole(TCP, &tcp(777, 443, 16)),
            whole(ICMP, &icmp(128, &[0, 7, 0, 1, 1, 2, 3, 4])),
            // Errors about packets that nobody sent: unreachable, and too big.
            whole(ICMP, &icmp(1, &quoted)),
            whole(ICMP, &icmp(2, &quoted)),
            // The middle of something, and something with options.
            whole(FRAGMENT, &[[UDP, 0, 0, 41, 0, 0, 0, 9].as_slice(), &[7; 16]].concat()),
            whole(HOP_BY_HOP, &[[UDP, 0, 1, 4, 0, 0, 0, 0].as_slice(), &udp(53)].concat()),
            // Neighbours' talk: solicitations, advertisements, redirects, routers, listeners.
            near(&icmp(135, &wanted)),
            near(&icmp(136, &wanted)),
            near(&icmp(137, &[&wanted[..], &NOBODY.octets()].concat())),
            self.advertisement(source, destination),
            report(&icmp(131, &group)),
            report(&icmp(143, &[0, 0, 0, 0])),
        ]
    }
}

/// Content of a protocol whose checksum is at `place`.
fn summed(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, place: usize, content: &[u8]) -> Vec<u8> {
    let mut content = content.to_vec();
    let sum = ipv6_checksum(&content, place / 2, &[], &source, &destination, IpNextHeaderProtocol(protocol));
    content[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    content
}

/// An `ICMPv6` message of a kind.
fn message(source: Ipv6Addr, destination: Ipv6Addr, kind: u8, rest: &[u8]) -> Vec<u8> {
    summed(source, destination, ICMP, 2, &[&[kind, 0, 0, 0], rest].concat())
}
