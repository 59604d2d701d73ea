//! Packets by hand: a stream in one direction that never gets an answer, and one that goes both ways.
//!
//! They are sent with `sendmmsg` from sockets in the hosts' namespaces. Over veth the sender's own thread carries a packet through the gateway up to the
//! receiving host before the call returns, so the time of the call is the time of the whole way.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{self, AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn};

use crate::lab::Ns;

/// Packets of one system call.
const BATCH: usize = 64;
/// Bytes after the transport header.
const PAYLOAD: usize = 64;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// One direction of a stream: whole IPv4 packets, sent in turn.
pub struct Sender {
    socket: OwnedFd,
    packets: Vec<Vec<u8>>,
    to: Vec<Option<SockaddrIn>>,
    headers: MultiHeaders<SockaddrIn>,
    next: usize,
}

impl Sender {
    fn new(host: &Ns, packets: Vec<Vec<u8>>) -> Self {
        let raw = || socket::socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw);
        let destination = |p: &Vec<u8>| Some(SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::new(p[16], p[17], p[18], p[19]), 0)));
        Self {
            socket: host.enter(|| raw().unwrap()),
            to: packets.iter().map(destination).collect(),
            packets,
            headers: MultiHeaders::preallocate(BATCH, None),
            next: 0,
        }
    }

    /// Sends the next `count` packets.
    pub fn send(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let end = (self.next + left.min(BATCH)).min(self.packets.len());
            let burst = self.next..end;
            let slices: Vec<[IoSlice<'_>; 1]> = self.packets[burst.clone()].iter().map(|p| [IoSlice::new(p)]).collect();
            let sent = socket::sendmmsg(
                self.socket.as_raw_fd(),
                &mut self.headers,
                &slices,
                &self.to[burst],
                [],
                MsgFlags::empty(),
            );
            sent.unwrap();
            left -= end - self.next;
            self.next = end % self.packets.len();
        }
    }
}

/// The two ends of a flow, as packets name them where they are sent.
#[derive(Clone, Copy)]
pub struct Ends {
    pub client: SocketAddrV4,
    /// What the client dials.
    pub dialled: SocketAddrV4,
    /// What answers.
    pub server: SocketAddrV4,
    /// What the server sees as its client.
    pub seen: SocketAddrV4,
}

/// A stream of datagrams that nobody answers: the connection table keeps it as new.
pub fn unanswered(client: &Ns, ends: Ends) -> Vec<Sender> {
    vec![Sender::new(client, vec![udp(ends.client, ends.dialled); BATCH])]
}

/// One datagram for each pair of ends, to be sent once: each makes a flow.
pub fn openers(client: &Ns, pairs: impl Iterator<Item = (SocketAddrV4, SocketAddrV4)>) -> Sender {
    Sender::new(client, pairs.map(|(from, to)| udp(from, to)).collect())
}

/// An open TCP connection with data both ways, half of the packets each. The connection is opened here.
pub fn conversation(client: &Ns, server: &Ns, ends: Ends) -> Vec<Sender> {
    let there = |flags, seq, ack, payload| tcp(ends.client, ends.dialled, flags, seq, ack, payload);
    let back = |flags, seq, ack, payload| tcp(ends.server, ends.seen, flags, seq, ack, payload);
    Sender::new(client, vec![there(SYN, 1000, 0, 0)]).send(1);
    Sender::new(server, vec![back(SYN | ACK, 5000, 1001, 0)]).send(1);
    Sender::new(client, vec![there(ACK, 1001, 5001, 0)]).send(1);
    vec![
        Sender::new(client, vec![there(ACK, 1001, 5001, PAYLOAD); BATCH]),
        Sender::new(server, vec![back(ACK, 5001, 1001, PAYLOAD); BATCH]),
    ]
}

/// A datagram, as a whole packet.
pub fn udp(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let length = u16::try_from(8 + PAYLOAD).unwrap();
    let mut segment = [from.port(), to.port(), length, 0].map(u16::to_be_bytes).concat();
    segment.resize(8 + PAYLOAD, 0);
    // No checksum (RFC 768): a network card would have verified it, not the gateway's processor.
    packet(UDP, from, to, &segment)
}

fn tcp(from: SocketAddrV4, to: SocketAddrV4, flags: u8, seq: u32, ack: u32, payload: usize) -> Vec<u8> {
    let mut segment = [from.port(), to.port()].map(u16::to_be_bytes).concat();
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([5 << 4, flags, 0xFF, 0xFF, 0, 0, 0, 0]);
    segment.resize(20 + payload, 0);
    packet(TCP, from, to, &segment)
}

/// The kernel fills in length, identification and checksum of the header.
fn packet(protocol: u8, from: SocketAddrV4, to: SocketAddrV4, segment: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(segment);
    packet
}
