//! When a packet to an address gets through to where it should.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType};

use crate::packet::flow::udp;
use crate::packet::world::{World, target, virtual_address};

/// The port of all Services.
pub const PORT: u16 = 7;
/// Between two packets.
const PACE: Duration = Duration::from_micros(500);
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(900);

/// A client that sends, and the server behind the gateway.
pub struct Probe {
    out: UdpSocket,
    listening: UdpSocket,
    client: Ipv4Addr,
    port: u16,
}

impl Probe {
    pub fn new(world: &World) -> Self {
        let raw = || socket::socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
        let listening = world.server.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap());
        listening.set_nonblocking(true).unwrap();
        Self {
            // Of UDP it has no more than the way to send: the protocol is in the packets.
            out: UdpSocket::from(world.client.enter(raw)),
            listening,
            client: *world.flow(0).client.ip(),
            port: 1024,
        }
    }

    /// How long after `since` a packet to address number `i` arrives for the first time. Every packet is a flow of its own: the
    /// gateway may remember one that came too early.
    pub async fn arrival(&mut self, i: usize, since: Instant) -> Duration {
        let to = SocketAddrV4::new(virtual_address(0, i), PORT);
        let mut buffer = [0; 256];
        while self.listening.recv(&mut buffer).is_ok() {}
        loop {
            self.port = self.port.checked_add(1).unwrap_or(1024);
            let packet = udp(SocketAddrV4::new(self.client, self.port), to);
            self.out.send_to(&packet, to).unwrap();
            if self.listening.recv(&mut buffer).is_ok() {
                return since.elapsed();
            }
            assert!(
                since.elapsed() < PATIENCE,
                "no packet for {to} came to {} within {PATIENCE:?}",
                target(128, i)
            );
            tokio::time::sleep(PACE).await;
        }
    }
}
