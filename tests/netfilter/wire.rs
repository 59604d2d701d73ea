//! Hand-made IPv4 packets, and what is read from those that arrive.

use std::net::Ipv4Addr;

use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::util::{checksum, ipv4_checksum};
use stagenet::netfilter::Transport;

const ETHER_IPV4: [u8; 2] = [8, 0];
const ETHER_HEADER: usize = 14;
const IP_HEADER: usize = 20;
const ICMP: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
/// Few: a packet that a rule set sends in circles ends soon.
const HOPS: u8 = 6;

/// What is in a packet, with a token by which it is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Content {
    Echo {
        id: u16,
        reply: bool,
    },
    Udp {
        from: u16,
        to: u16,
    },
    /// Sequence numbers carry the token; `acknowledged` is the other side's next one.
    Tcp {
        from: u16,
        to: u16,
        syn: bool,
        acknowledged: Option<u32>,
    },
    /// A reset out of nowhere: conntrack makes nothing of it.
    Reset {
        from: u16,
        to: u16,
    },
}

impl Content {
    /// Source and destination port.
    pub fn ports(self) -> (u16, u16) {
        match self {
            Self::Echo { .. } => (0, 0),
            Self::Udp { from, to } | Self::Tcp { from, to, .. } | Self::Reset { from, to } => (from, to),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frame {
    pub token: u32,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub content: Content,
}

impl Frame {
    /// As an Ethernet frame.
    pub fn bytes(&self, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
        let token = self.token.to_be_bytes();
        let (ports_from, ports_to) = self.content.ports();
        let ports = [ports_from.to_be_bytes(), ports_to.to_be_bytes()].concat();
        let (protocol, mut payload, sum_at) = match self.content {
            Content::Echo { id, reply } => {
                let head = [if reply { 0 } else { 8 }, 0, 0, 0];
                (ICMP, [&head[..], &id.to_be_bytes(), &[0, 1], &token].concat(), 2)
            }
            Content::Udp { .. } => (Transport::Udp.number(), [&ports[..], &[0, 12, 0, 0], &token].concat(), 6),
            Content::Tcp { syn, acknowledged, .. } => {
                let flags = if syn { SYN } else { 0 } | if acknowledged.is_some() { ACK } else { 0 };
                (
                    Transport::Tcp.number(),
                    tcp(&ports, self.token, acknowledged.unwrap_or(0), flags),
                    16,
                )
            }
            Content::Reset { .. } => (Transport::Tcp.number(), tcp(&ports, self.token, 0, RST), 16),
        };
        let sum = if protocol == ICMP {
            checksum(&payload, sum_at / 2)
        } else {
            ipv4_checksum(
                &payload,
                sum_at / 2,
                &[],
                &self.source,
                &self.destination,
                IpNextHeaderProtocol(protocol),
            )
        };
        payload[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        let length = u16::try_from(IP_HEADER + payload.len()).unwrap().to_be_bytes();
        let mut ip = [
            &[0x45, 0],
            &length[..],
            &[0, 0, 0, 0, HOPS, protocol, 0, 0],
            &self.source.octets(),
            &self.destination.octets(),
        ]
        .concat();
        let sum = checksum(&ip, 5).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
        [&to[..], &from, &ETHER_IPV4, &ip, &payload].concat()
    }

    /// Reads a frame; None if it is none of ours.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let ip = bytes.get(ETHER_HEADER..)?;
        if bytes.get(12..14)? != ETHER_IPV4 || ip.first()? != &0x45 {
            return None;
        }
        let address = |at: usize| ip.get(at..at + 4).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3]));
        let payload = ip.get(IP_HEADER..)?;
        let short = |at: usize| payload.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        let long = |at: usize| payload.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
        let (from, to) = (short(0)?, short(2)?);
        let (token, content) = match *ip.get(9)? {
            ICMP => match payload.first()? {
                kind @ (0 | 8) => (
                    long(8)?,
                    Content::Echo {
                        id: short(4)?,
                        reply: *kind == 0,
                    },
                ),
                _ => return None,
            },
            17 => (long(8)?, Content::Udp { from, to }),
            6 => {
                let flags = *payload.get(13)?;
                let content = match flags & RST {
                    0 => Content::Tcp {
                        from,
                        to,
                        syn: flags & SYN != 0,
                        acknowledged: (flags & ACK != 0).then_some(long(8)?),
                    },
                    _ => Content::Reset { from, to },
                };
                (long(4)?, content)
            }
            _ => return None,
        };
        Some(Self {
            token,
            source: address(12)?,
            destination: address(16)?,
            content,
        })
    }
}

fn tcp(ports: &[u8], sequence: u32, acknowledged: u32, flags: u8) -> Vec<u8> {
    [
        ports,
        &sequence.to_be_bytes(),
        &acknowledged.to_be_bytes(),
        &[0x50, flags, 0xff, 0xff, 0, 0, 0, 0],
    ]
    .concat()
}
