//! IPv6 of a closed network stays inside, whatever its kind, and tells the gateway nothing that it would believe.

use std::net::Ipv6Addr;

use pnet_packet::ip::IpNextHeaderProtocol;
use pnet_packet::util::ipv6_checksum;

use crate::lab::dual::{CLIENT, DNS, PRODUCTION, VIRTUAL_DB, VIRTUAL_WEB, WEB, at};
use crate::lab::{Dual, Ns, Prober, Witness, fall_silent, seconds, wait_until};

/// The flow label of everything here. No translation changes it, and errors repeat it.
const LABEL: u32 = 0xb_eef1;
const INSIDE_MAC: &str = "02:00:00:00:01:02";
const NOBODY: &str = "fd00:100::77";
const ALL_HOSTS: &str = "ff02::1";

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMP: u8 = 58;

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// An IPv6 packet with the label.
fn packet(source: Ipv6Addr, destination: Ipv6Addr, hops: u8, next: u8, content: &[u8]) -> Vec<u8> {
    let mut packet = (0x6000_0000 | LABEL).to_be_bytes().to_vec();
    packet.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(content);
    packet
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

/// A router's word that it is the way to everywhere and that the segment is `2001:db8:dead::/64` (RFC 4861, 4.2 and 4.6.2).
fn advertisement(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
    let mut rest = vec![64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    rest.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
    rest.extend(address("2001:db8:dead::").octets());
    packet(source, destination, 255, ICMP, &message(source, destination, 134, &rest))
}

/// Everything that `source` could say to `destination`.
fn contents(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<Vec<u8>> {
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
    let whole = |next: u8, content: &[u8]| packet(source, destination, 64, next, content);
    let near = |content: &[u8]| packet(source, destination, 255, ICMP, content);
    let wanted = [&[0; 4][..], &address(NOBODY).octets()].concat();
    let quoted = [&[0; 4][..], &packet(destination, source, 64, TCP, &tcp(80, 777, 16))].concat();
    let group = [&[0; 4][..], &address("ff0e::77").octets()].concat();
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
        near(&icmp(137, &[&wanted[..], &address(NOBODY).octets()].concat())),
        advertisement(source, destination),
        packet(
            source,
            destination,
            1,
            HOP_BY_HOP,
            &[[ICMP, 0, 5, 2, 0, 0, 1, 0].as_slice(), &icmp(131, &group)].concat(),
        ),
        packet(
            source,
            destination,
            1,
            HOP_BY_HOP,
            &[[ICMP, 0, 5, 2, 0, 0, 1, 0].as_slice(), &icmp(143, &[0, 0, 0, 0])].concat(),
        ),
    ]
}

/// A host of the closed network that sends `packets` over and over.
fn rogue(dual: &Dual, name: &str, packets: &[Vec<u8>]) -> Prober {
    let ns = Ns::new(name);
    ns.set("ipv6/conf/default/disable_ipv6", "1");
    dual.plug(&ns);
    Prober::on(&ns, INSIDE_MAC, packets)
}

bridges! {
    /// True, borrowed, local and empty sources to hosts, nobody, groups and virtual addresses: a witness outside, who has seen them pass an open router, sees
    /// none of them while a fence stands.
    fn nothing_of_a_closed_network_appears_outside(dual) {
        dual.gateway.sh(&format!("ip link set eth1 address {INSIDE_MAC}"));
        for ns in [&dual.web, &dual.db, &dual.mail] {
            ns.sh("ip neigh flush all");
        }
        let sources = [WEB[1], "fd00:200::66", "fe80::66", CLIENT[1], "fd00:100::88", "2001:db8:113::88", "::"].map(address);
        let destinations = [
            CLIENT[1], "fd00:100::fe", NOBODY, DNS[1], PRODUCTION[1], VIRTUAL_DB[1], ALL_HOSTS, "ff02::2", "ff02::16", "ff05::2", "ff0e::77", "fe80::1",
        ]
        .map(address);
        let pairs = sources.iter().flat_map(|s| destinations.iter().map(move |d| (*s, *d))).filter(|(s, d)| s != d);
        let packets: Vec<_> = pairs.flat_map(|(s, d)| contents(s, d)).collect();
        let mark = format!("(ip6[0:4] & 0xfffff = {LABEL}) or (icmp6 and ip6[48:4] & 0xfffff = {LABEL})");
        // The gateway asks for nobody only on behalf of somebody.
        let asks = "icmp6 and ip6[40] = 135 and ip6[60:4] = 0x00000077";
        let mut witness = Witness::on(&dual.segment, "br0", &format!("ether src {} and ({mark} or ({asks}))", dual.mac()));
        let prober = rogue(dual, "rogue", &packets);
        wait_until(seconds(20), "the witness to see what gets through an open router", || {
            let seen = witness.seen().join("\n");
            [&format!("> {}", CLIENT[1]), &format!("> {}", DNS[1]), "UDP", "Flags [S]", "Flags [.]", "echo request", "neighbor solicitation"]
                .iter()
                .all(|word| seen.contains(*word))
        });
        for (n, settings) in ["", "sourceTranslation: Preserve"].iter().enumerate() {
            dual.network("", "", settings);
            dual.mappings("web", VIRTUAL_WEB, WEB, "");
            dual.converge();
            if n == 0 {
                // What was under way before the fence.
                dual.gateway.forget_flows();
                prober.full_round();
                fall_silent(&dual.gateway, &[&witness]);
                witness.forget();
            }
            prober.full_round();
            assert_eq!(dual.client.tcp(&at(VIRTUAL_WEB[1], 80)).expect("rightful traffic").server, "web");
            prober.full_round();
            witness.saw_nothing(&format!("out through the fence with {settings:?}"));
        }
        witness.end();
        assert!(witness.seen().is_empty());
    }

    /// Somebody inside says that he is the router: the gateway, which would listen, does not hear it once the fence stands, and neighbours are found as ever.
    fn advertisements_from_inside_do_not_change_the_gateway(dual) {
        dual.gateway.sh(&format!("ip link set eth1 address {INSIDE_MAC}"));
        for interface in ["all", "eth1"] {
            dual.gateway.set(&format!("ipv6/conf/{interface}/accept_ra"), "2");
        }
        let state = || dual.gateway.sh("ip -6 route; ip -6 -o addr").lines().map(|l| l.split(" expires ").next().unwrap().to_owned()).collect::<Vec<_>>();
        let before = state();
        let source = address("fe80::66");
        let prober = rogue(dual, "rogue", &[advertisement(source, address(ALL_HOSTS)), advertisement(source, address("fd00:200::2"))]);
        wait_until(seconds(20), "an unguarded gateway to believe it", || {
            let now = state().join("\n");
            now.contains("default via fe80::66 dev eth1") && now.contains("2001:db8:dead:")
        });
        dual.network("", "", "");
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.converge();
        dual.gateway.sh("ip -6 route flush proto ra; ip -6 addr flush dev eth1 dynamic; ip -6 neigh flush dev eth1");
        dual.gateway.sh("ip -6 route flush 2001:db8:dead::/64");
        std::thread::sleep(seconds(3));
        assert!(!state().join("\n").contains("dead"));
        for _ in 0..5 {
            prober.full_round();
        }
        let now = state().join("\n");
        assert!(!now.contains("fe80::66") && !now.contains("2001:db8:dead"), "{now}\nbefore:\n{before:#?}\n{}", dual.rules());
        assert_eq!(dual.client.tcp(&at(VIRTUAL_WEB[1], 80)).expect("neighbours inside are found").server, "web");
        assert!(dual.db.echoes("fd00:200::2"), "and find the gateway");
    }
}
