//! First packets of flows, and whole connections: what a large set of mappings adds.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::libc::linger;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, setsockopt, sockopt};

use super::flow::{Sender, openers};
use super::rounds::{Lane, race, steady, timed};
use super::world::{Rules, Served, World, virtual_address};
use crate::lab::Backend;

/// Flows opened in one measurement.
const FLOWS: usize = 256;
/// Connections made in one measurement.
const CONNECTIONS: usize = 64;
const ROUNDS: usize = 300;
const SIZES: [usize; 2] = [1, 10_000];
/// Flows that are prepared: as many as the larger world has mappings.
const PREPARED: usize = 10_000;
/// Odd, and no divisor of what it walks over: neighbours in time are strangers in the tree.
const STRIDE: usize = 7919;

/// Prints the rows for one variant of the tools.
pub fn table(backend: Backend) {
    let worlds = SIZES.map(|mappings| World::new(&format!("m{mappings}"), backend, Rules::Served(Served::plain(1, mappings))));
    let listeners: Vec<TcpListener> = worlds
        .iter()
        .map(|world| world.server.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap()))
        .collect();
    steady();
    let mut lanes: Vec<Lane<'_>> = worlds
        .iter()
        .zip(SIZES)
        .zip(&listeners)
        .map(|((world, size), listener)| {
            let mut turn = 0;
            Lane::new(move || {
                let took = connections(world, size, &mut turn, listener);
                world.gateway.forget_flows();
                took
            })
        })
        .collect();
    race(&mut lanes, ROUNDS);
    let (each, more) = (lanes[0].median() / CONNECTIONS as f64, lanes[1].over(&lanes[0]));
    drop(lanes);

    println!("\n### Opening, {}\n", backend.name());
    println!("| what | at 1 mapping | at 10 000 | 10 000 ÷ 1 |");
    println!("|---|---:|---:|---:|");
    println!(
        "| new TCP connections a second | {:.0} | {:.0} | {:.3} |",
        1e9 / each,
        1e9 / each / more,
        1.0 / more
    );

    worlds.iter().for_each(World::close_doors);
    for (name, spread) in [("to one and the same address", false), ("to all addresses by turns", true)] {
        let mut senders: Vec<Sender> = worlds.iter().zip(SIZES).map(|(w, size)| first_packets(w, size, spread)).collect();
        let (each, more) = first(&worlds, &mut senders);
        println!(
            "| first packet of a flow, {name}, ns | {each:.0} | {:.0} | {more:.3} |",
            each * more
        );
    }
}

/// Nanoseconds of a first packet in the smaller world, and how many times that in the larger one.
fn first(worlds: &[World; 2], senders: &mut [Sender]) -> (f64, f64) {
    let before: Vec<u64> = worlds.iter().map(World::forwarded).collect();
    let mut lanes: Vec<Lane<'_>> = worlds
        .iter()
        .zip(senders)
        .map(|(world, sender)| {
            Lane::new(move || {
                let took = timed(|| sender.send(FLOWS));
                world.gateway.forget_flows();
                took
            })
        })
        .collect();
    race(&mut lanes, ROUNDS);
    for (world, before) in worlds.iter().zip(before) {
        let (sent, passed) = ((ROUNDS * FLOWS) as u64, world.forwarded() - before);
        assert!(
            passed >= sent && passed < sent + 100,
            "of {sent} first packets {passed} were forwarded"
        );
    }
    (lanes[0].median() / FLOWS as f64, lanes[1].over(&lanes[0]))
}

/// Mapping number of the `n`th thing to be done.
fn pick(n: usize, size: usize) -> usize {
    n * STRIDE % size
}

/// To the mapping in the middle, or to one after the other: then hardly anything of what a packet needs is in the processor's caches.
fn first_packets(world: &World, size: usize, spread: bool) -> Sender {
    let mapping = |n| if spread { pick(n, size) } else { size / 2 };
    let pairs = (0..PREPARED).map(|n| {
        let client = SocketAddrV4::new(*world.flow(0).client.ip(), 20_000 + u16::try_from(n).unwrap());
        (client, SocketAddrV4::new(virtual_address(0, mapping(n)), 80))
    });
    openers(&world.client, pairs)
}

/// Opens connections through the gateway, takes them at the server, and resets them.
fn connections(world: &World, size: usize, turn: &mut usize, listener: &TcpListener) -> Duration {
    let sockets = world.client.enter(|| (0..CONNECTIONS).map(|_| fresh()).collect::<Vec<_>>());
    let to = |n| SockaddrIn::from(SocketAddrV4::new(virtual_address(0, pick(n, size)), 80));
    let took = timed(|| {
        for (n, socket) in sockets.into_iter().enumerate() {
            socket::connect(socket.as_raw_fd(), &to(*turn + n)).unwrap();
            let _taken = listener.accept().unwrap();
            drop(socket);
        }
    });
    *turn += CONNECTIONS;
    took
}

/// A socket that resets its connection when it is dropped, so that nothing waits for its port.
fn fresh() -> OwnedFd {
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    let at_once = linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&socket, sockopt::Linger, &at_once).unwrap();
    socket
}
