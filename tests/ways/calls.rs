//! PPTP and H.323, message by message: the connections that they announce, and the names that the kernel gives them.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType};

use super::payloads::{carried, connected, ready};
use crate::lab::dual::{CLIENT, DB, GATEWAY_INSIDE, VIRTUAL_DB, VIRTUAL_WEB, WEB, at};
use crate::lab::{Dual, Ns};
use crate::twin;

/// A control message of PPTP (RFC 2637, 2): its number, and what follows the reserved word, filled up to `length` bytes in all.
fn pptp(number: u8, length: u16, rest: &[u8]) -> Vec<u8> {
    let mut message = length.to_be_bytes().to_vec();
    message.extend([0, 1, 0x1a, 0x2b, 0x3c, 0x4d, 0, number, 0, 0]);
    message.extend(rest);
    message.resize(length.into(), 0);
    message
}

/// The number in two bytes of a message.
fn number(message: &[u8], place: usize) -> u16 {
    u16::from_be_bytes([message[place], message[place + 1]])
}

/// Sends a packet of a PPTP call (RFC 2637, 4.1) to the end that calls it `call`.
fn send_gre(from: &Ns, to: &str, call: u16) {
    let to = SocketAddrV4::new(to.parse().unwrap(), 0);
    let call = call.to_be_bytes();
    let gre = [0x30, 1, 0x88, 0x0b, 0, 4, call[0], call[1], 0, 0, 0, 1, 0xff, 3, 0xc0, 0x21];
    // The kernel fills in lengths, checksum and source.
    let ip = [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 47, 0, 0, 0, 0, 0, 0], &to.ip().octets()[..]].concat();
    from.enter(|| {
        let raw = socket::socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
        // Of UDP it has no more than the way to send: the protocol is in the header.
        assert_eq!(UdpSocket::from(raw).send_to(&[&ip[..], &gre].concat(), to).unwrap(), 36);
    });
}

/// What of a call arrives at a host when it is sent: the words that tcpdump has for it.
fn gre_at(ns: &Ns, send: impl Fn()) -> String {
    ns.watch("eth0", "ip proto 47 and inbound", || (0..2).for_each(|_| send()))
        .join("\n")
}

/// Sets a call up between the client and the machine behind `virtual_at`. Returns the numbers by which the client calls the machine's end and the machine the
/// client's, and the control connection.
fn pptp_call(dual: &Dual, virtual_at: &str, machine: &Ns) -> ([u16; 2], [std::net::TcpStream; 2]) {
    let [mut client, mut server] = connected(&dual.client, &at(virtual_at, 1723), machine, 1723);
    carried(&mut client, &mut server, &pptp(1, 156, &[1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 3]));
    carried(&mut server, &mut client, &pptp(2, 156, &[1, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0, 3]));
    let asked = carried(&mut client, &mut server, &pptp(7, 168, &[0x11, 0x11, 0, 1]));
    let peer = number(&asked, 12);
    let [high, low] = peer.to_be_bytes();
    let answered = carried(&mut server, &mut client, &pptp(8, 32, &[0x22, 0x22, high, low, 1, 0, 0, 0]));
    assert_eq!(number(&answered, 14), 0x1111, "the client's own number comes back to it");
    ([number(&answered, 12), peer], [client, server])
}

/// A message of H.323's call signalling: TPKT (RFC 1006), Q.931, and in it the H.225.0 message in PER.
fn q931(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = |more: usize| u16::try_from(body.len() + more).unwrap().to_be_bytes();
    let user = [&[0x7e], &length(1)[..], &[5], body].concat();
    let call = [&[8, 2, 0, 1, kind], &user[..]].concat();
    let total = u16::try_from(call.len() + 4).unwrap().to_be_bytes();
    [&[3, 0], &total[..], &call].concat()
}

/// H.225.0, version 4.
const VERSION: [u8; 7] = [6, 0, 8, 0x91, 0x4a, 0, 4];

fn place(address: &str, port: u16) -> Vec<u8> {
    [&address.parse::<Ipv4Addr>().unwrap().octets()[..], &port.to_be_bytes()].concat()
}

/// Setup (Q.931 type 5): somebody with no properties calls `address`.
fn setup(address: &str, port: u16) -> Vec<u8> {
    // The body's choice 0; of seven options the fourth, destCallSignalAddress.
    q931(
        5,
        &[&[0, 8], &VERSION[..], &[0, 0], &place(address, port), &[0], &[7; 16], &[0]].concat(),
    )
}

/// Call proceeding (Q.931 type 2): H.245 is spoken at `address`.
fn proceeding(address: &str, port: u16) -> Vec<u8> {
    // The body's choice 1; with its option, h245Address.
    q931(2, &[&[1, 0x40], &VERSION[..], &[0, 0], &place(address, port)].concat())
}

ways! {
    /// The call that a PPTP client agrees on gets through, both ways, and ends with its control connection; without the helper, and with other numbers, nothing does.
    fn pptp_calls_get_through(dual) {
        dual.network("", "", "allowedHelpers: [pptp]");
        dual.mapping("web", VIRTUAL_WEB[0], WEB[0], "ports: [{protocol: TCP, port: 1723}]\nhelpers: [{name: pptp, port: 1723}]");
        dual.mapping("db", VIRTUAL_DB[0], DB[0], "ports: [{protocol: TCP, port: 1723}]");
        if !ready(dual, "web") {
            return;
        }
        let ([call, _], _control) = pptp_call(dual, VIRTUAL_DB[0], &dual.db);
        assert_eq!(gre_at(&dual.db, || send_gre(&dual.client, VIRTUAL_DB[0], call)), "", "without the helper");

        assert_eq!(gre_at(&dual.web, || send_gre(&dual.client, VIRTUAL_WEB[0], 0x2222)), "", "before the call");
        let ([call, peer], control) = pptp_call(dual, VIRTUAL_WEB[0], &dual.web);
        let said = || format!("{}\n{}", dual.rules(), dual.gateway.sh("conntrack -L; cat /proc/net/nf_conntrack_expect"));
        let arrived = gre_at(&dual.web, || send_gre(&dual.client, VIRTUAL_WEB[0], call));
        assert!(arrived.contains(&format!("{} > {}", GATEWAY_INSIDE[0], WEB[0])) && arrived.contains("call 8738"), "in: {arrived}\n{}", said());
        let arrived = gre_at(&dual.client, || send_gre(&dual.web, GATEWAY_INSIDE[0], peer));
        assert!(arrived.contains(&format!("{} > {}", VIRTUAL_WEB[0], CLIENT[0])) && arrived.contains("call 4369"), "out: {arrived}\n{}", said());
        assert_eq!(gre_at(&dual.web, || send_gre(&dual.client, VIRTUAL_WEB[0], call + 1)), "", "a call that nobody agreed on");

        // The end of the mapping is the end of the call.
        dual.manifests.remove("web.yaml");
        dual.converge();
        assert_eq!(gre_at(&dual.web, || send_gre(&dual.client, VIRTUAL_WEB[0], call)), "", "after the mapping's end");
        assert_eq!(gre_at(&dual.client, || send_gre(&dual.web, GATEWAY_INSIDE[0], peer)), "", "out, after the mapping's end");
        drop(control);
    }

    /// Machines of two clones have the same address and give their calls the same number; each call reaches its own machine, and its own end of the client's.
    fn pptp_calls_of_clones_do_not_meet(dual) {
        let helped = "ports: [{protocol: TCP, port: 1723}]\nhelpers: [{name: pptp, port: 1723}]";
        let twin = twin::add(dual, "allowedHelpers: [pptp]");
        dual.mapping("web", VIRTUAL_WEB[0], WEB[0], helped);
        twin::map(dual, 0, helped);
        if !ready(dual, "web") {
            return;
        }
        let both = [(VIRTUAL_WEB[0], &dual.web), (twin::VIRTUAL[0], &twin)];
        let calls = both.map(|(virtual_at, machine)| pptp_call(dual, virtual_at, machine));
        for ((virtual_at, machine), ([call, peer], _)) in both.iter().zip(&calls) {
            let other = both.iter().find(|(_, other)| other != machine).unwrap().1;
            let arrived = gre_at(machine, || send_gre(&dual.client, virtual_at, *call));
            assert!(arrived.contains("call 8738"), "in at {virtual_at}: {arrived}");
            assert_eq!(gre_at(other, || send_gre(&dual.client, virtual_at, *call)), "", "in at {virtual_at}, seen by the other");
            let arrived = gre_at(&dual.client, || send_gre(machine, twin::GATEWAY[0], *peer));
            assert!(arrived.contains(&format!("{virtual_at} > ")) && arrived.contains("call 4369"), "out from {virtual_at}: {arrived}");
        }
    }

    /// Who calls by H.323 is understood to call the machine, and is told where to go on under the virtual address; that connection gets through.
    fn h323_calls_go_on_where_the_machine_says(dual) {
        let _control = [dual.web.serve(5001), dual.db.serve(5001)];
        dual.network("", "", "allowedHelpers: [h323]");
        dual.mapping("web", VIRTUAL_WEB[0], WEB[0], "ports: [{protocol: TCP, port: 1720}]\nhelpers: [{name: h323, port: 1720}]");
        dual.mapping("db", VIRTUAL_DB[0], DB[0], "ports: [{protocol: TCP, port: 1720}]");
        if !ready(dual, "web") {
            return;
        }
        for (virtual_at, own, machine, helped) in [(VIRTUAL_DB[0], DB[0], &dual.db, false), (VIRTUAL_WEB[0], WEB[0], &dual.web, true)] {
            let [mut caller, mut answering] = connected(&dual.client, &at(virtual_at, 1720), machine, 1720);
            let known = |outside, inside| if helped { outside } else { inside };
            let arrived = carried(&mut caller, &mut answering, &setup(virtual_at, 1720));
            assert_eq!(arrived, setup(known(own, virtual_at), 1720), "whom the caller calls, helper: {helped}\n{}", dual.rules());
            let to = at(virtual_at, 5001);
            assert!(dual.client.tcp_fails(&to), "nothing is announced yet");
            let arrived = carried(&mut answering, &mut caller, &proceeding(own, 5001));
            assert_eq!(arrived, proceeding(known(virtual_at, own), 5001), "where the call goes on, helper: {helped}");
            assert!(dual.router.tcp_fails(&to), "{to} is for the caller");
            let mut call = dual.client.tcp(&to);
            assert_eq!(call.as_ref().map(|c| c.server.as_str()), helped.then_some(machine.name()), "{}", dual.rules());
            assert!(call.as_mut().is_none_or(crate::lab::Conversation::works));
        }
    }
}
