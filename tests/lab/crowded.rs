//! A connection table with very many entries, and how long a flow lasts.

use std::io::IoSlice;
use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn};

use super::{Ns, seconds};

const UDP: u8 = 17;
/// Packets of one system call.
const BATCH: usize = 64;
/// A flow has ended when nothing of it has passed for so long.
const SILENCE: Duration = Duration::from_secs(1);
/// Between two datagrams of a flow.
const PACE: Duration = Duration::from_micros(500);

/// Sends a datagram between each pair of ends, as whole packets by hand: each makes a flow, and no socket is needed.
pub fn crowd(client: &Ns, pairs: impl Iterator<Item = (SocketAddrV4, SocketAddrV4)>) {
    let socket = client.enter(|| socket::socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap());
    let (packets, to): (Vec<_>, Vec<_>) = pairs.map(|(from, to)| (udp(from, to), Some(SockaddrIn::from(to)))).unzip();
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    for (packets, to) in packets.chunks(BATCH).zip(to.chunks(BATCH)) {
        let slices: Vec<[IoSlice<'_>; 1]> = packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
        socket::sendmmsg(socket.as_raw_fd(), &mut headers, &slices, to, [], MsgFlags::empty()).unwrap();
    }
}

/// An IPv4 packet; the kernel fills in length, identification and checksum of its header. The datagram has no checksum (RFC 768).
fn udp(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, UDP, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend([from.port(), to.port(), 12, 0].map(u16::to_be_bytes).concat());
    packet.extend(b"many");
    packet
}

/// Datagrams from `client` to `to` that `listening` hears: how long after now the last one of them got through. Fails if they still do after 20 s.
pub fn last_heard(client: &UdpSocket, to: SocketAddrV4, listening: &UdpSocket) -> Duration {
    listening.set_nonblocking(true).unwrap();
    let start = Instant::now();
    let mut last = start;
    while last.elapsed() < SILENCE {
        if heard(client, to, listening) {
            last = Instant::now();
        }
        assert!(start.elapsed() < seconds(20), "the flow to {to} goes on");
        std::thread::sleep(PACE);
    }
    last - start
}

/// Whether `listening`, which does not block, has heard something once `client` has sent to `to`.
pub fn heard(client: &UdpSocket, to: SocketAddrV4, listening: &UdpSocket) -> bool {
    // Refusals of earlier datagrams are reported by the next call.
    let _ = client.send_to(b"?", to);
    listening.recv(&mut [0; 64]).is_ok()
}
