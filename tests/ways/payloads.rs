//! Protocols that carry addresses and that nobody has a small program for: conversations made by hand, one message at a time, as their definitions have them.
//! What the kernel does with each of them, and in which direction only, is what `docs/helpers.md` says.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use crate::lab::dual::{CLIENT, DB, DNS, GATEWAY_INSIDE, PRODUCTION, SOURCE, VIRTUAL_DB, VIRTUAL_WEB, WEB, at};
use crate::lab::{Dual, Ns, seconds, skipped};

pub(crate) const SOURCES: &str = ", sourceAddress: 192.168.100.250, sourceAddressIPv6: \"fd00:100::fa\"";

/// Runs the agent with `--once`; whether the kernel has what the mapping asks for. If not, it is said that nothing was tested.
pub(crate) fn ready(dual: &Dual, mapping: &str) -> bool {
    let (ran, status) = dual.once();
    let [_, reason, message] = status.condition(mapping, "ResolvedRefs");
    if reason == "HelperMissing" {
        skipped(message);
        return false;
    }
    assert_eq!(ran.code, 0, "{}", ran.said());
    true
}

/// Both ends of a connection that `caller` makes to port `port` of `server`, as `to`.
pub(crate) fn connected(caller: &Ns, to: &str, server: &Ns, port: u16) -> [TcpStream; 2] {
    let listener = server.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
    let to = to.parse().unwrap();
    let near = caller.enter(|| TcpStream::connect_timeout(&to, seconds(5))).unwrap();
    let far = listener.accept().unwrap().0;
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(seconds(5))).unwrap();
    }
    [near, far]
}

/// What arrives of a message at the other end. Each fits into one segment.
pub(crate) fn carried(from: &mut TcpStream, to: &mut TcpStream, message: &[u8]) -> Vec<u8> {
    from.write_all(message).unwrap();
    let mut buffer = [0; 1500];
    let n = to.read(&mut buffer).expect("the message");
    buffer[..n].to_vec()
}

/// An offer of a chat by DCC, as an IRC client sends it to its server, and the address and port in one that arrived.
fn offer(address: &str, port: u16) -> String {
    let number = u32::from(address.parse::<Ipv4Addr>().unwrap());
    format!("PRIVMSG peer :\x01DCC CHAT chat {number} {port}\x01\r\n")
}

fn offered(arrived: &[u8]) -> String {
    let text = String::from_utf8_lossy(arrived);
    let words: Vec<_> = text.trim_end_matches(['\r', '\n', '\x01']).split(' ').collect();
    let [.., number, port] = words[..] else { panic!("{text}") };
    at(&Ipv4Addr::from(number.parse::<u32>().unwrap()).to_string(), port.parse().unwrap())
}

/// A datagram that `from` sends to `to`, as it arrives at a socket, and one that comes back.
fn exchanged(from: &Ns, to: &str, server: &UdpSocket, question: &[u8], answer: &[u8]) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let bind = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = from.enter(|| UdpSocket::bind(bind)).unwrap();
    let wait = Some(std::time::Duration::from_millis(800));
    socket.set_read_timeout(wait).unwrap();
    server.set_read_timeout(wait).unwrap();
    let mut buffer = [0; 1500];
    let mut got = |at: &UdpSocket| at.recv_from(&mut buffer).ok().map(|(n, peer)| (buffer[..n].to_vec(), peer));
    // Asked twice: a first datagram may be lost while ARP is under way.
    for _ in 0..2 {
        socket.send_to(question, to).unwrap();
        if let Some((arrived, peer)) = got(server) {
            server.send_to(answer, peer).unwrap();
            return (Some(arrived), got(&socket).map(|(bytes, _)| bytes));
        }
    }
    (None, None)
}

/// An element of BER (X.690, 8.1): a tag, a short length, and what is in it.
fn ber(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    [&[tag, u8::try_from(content.len()).unwrap()], &content[..]].concat()
}

/// What SNMP messages are called in BER (RFC 1157, 4.1; RFC 3416, 3).
const ANSWER: u8 = 0xa2;
const OLD_TRAP: u8 = 0xa4;
const TRAP: u8 = 0xa7;

/// A message of SNMP of a machine that gives `address` as its own. Versions count from 0.
fn snmp(version: u8, kind: u8, address: &str) -> Vec<u8> {
    let own = ber(0x40, &[&address.parse::<Ipv4Addr>().unwrap().octets()]);
    let name = ber(6, &[&[0x2b, 6, 1, 2, 1, 4, 20, 1, 1]]);
    let variables = ber(0x30, &[&ber(0x30, &[&name, &own])]);
    let number = |n: u8| ber(2, &[&[n]]);
    let content = if kind == OLD_TRAP {
        let ticks = ber(0x43, &[&[7]]);
        let enterprise = ber(6, &[&[0x2b, 6, 1, 4, 1, 99]]);
        ber(kind, &[&enterprise, &own, &number(6), &number(1), &ticks, &variables])
    } else {
        ber(kind, &[&number(9), &number(0), &number(0), &variables])
    };
    ber(0x30, &[&number(version), &ber(4, &[b"public"]), &content])
}

ways! {
    /// A machine's offer names the address that it is known by outside, and who takes it up gets through, once; without the helper the offer names an address
    /// inside, and nobody gets in.
    fn irc_offers_of_machines_are_taken_up(dual) {
        let _chat = dual.db.serve(5001);
        dual.network(SOURCES, "", "allowedHelpers: [irc]");
        dual.mapping("helped", PRODUCTION[0], DNS[0], "side: Inside\nports: [{protocol: TCP, port: 6667}]\nhelpers: [{name: irc, port: 6667}]");
        dual.mapping("plain", "10.0.0.54", DNS[0], "side: Inside\nports: [{protocol: TCP, port: 6668}]");
        if !ready(dual, "helped") {
            return;
        }
        let [mut machine, mut server] = connected(&dual.db, &at("10.0.0.54", 6668), &dual.internet, 6668);
        let named = offered(&carried(&mut machine, &mut server, offer(DB[0], 5001).as_bytes()));
        assert_eq!(named, at(DB[0], 5001), "without the helper");
        assert!(dual.client.tcp_fails(&at(SOURCE[0], 5001)), "nothing was announced");

        let [mut machine, mut server] = connected(&dual.db, &at(PRODUCTION[0], 6667), &dual.internet, 6667);
        let named = offered(&carried(&mut machine, &mut server, offer(DB[0], 5001).as_bytes()));
        assert!(named.starts_with(&format!("{}:", SOURCE[0])), "{named}");
        let mut chat = dual.client.tcp(&named).unwrap_or_else(|| panic!("{named}\n{}", dual.rules()));
        assert_eq!(chat.server, "db");
        assert!(dual.client.tcp_fails(&named), "one offer is one connection");
        assert!(chat.works());
        // What follows a message of another length still arrives.
        assert_eq!(carried(&mut machine, &mut server, b"PING 1\r\n"), b"PING 1\r\n");
        assert_eq!(carried(&mut server, &mut machine, b"PONG 1\r\n"), b"PONG 1\r\n");
        // The kernel reads what the one says who dialled.
        let named = offered(&carried(&mut server, &mut machine, offer(CLIENT[0], 5002).as_bytes()));
        assert_eq!(named, at(CLIENT[0], 5002), "offers to machines stay as they are");
        assert!(dual.db.tcp_is_dropped(&at(CLIENT[0], 80)), "and open nothing");
    }

    /// What a client offers through a server inside, machines take up, at the address by which they see the client.
    fn irc_offers_of_clients_are_taken_up(dual) {
        let _chat = dual.client.serve(5001);
        dual.mapping("helped", VIRTUAL_WEB[0], WEB[0], "ports: [{protocol: TCP, port: 6667}]\nhelpers: [{name: irc, port: 6667}]");
        for (source, known) in [("Masquerade", GATEWAY_INSIDE[0]), ("Preserve", CLIENT[0])] {
            dual.network("", "", &format!("allowedHelpers: [irc]\nsourceTranslation: {source}"));
            if !ready(dual, "helped") {
                return;
            }
            let [mut client, mut server] = connected(&dual.client, &at(VIRTUAL_WEB[0], 6667), &dual.web, 6667);
            assert!(dual.db.tcp_fails(&at(known, 5001)), "nothing is offered yet");
            let named = offered(&carried(&mut client, &mut server, offer(CLIENT[0], 5001).as_bytes()));
            assert!(named.starts_with(&format!("{known}:")), "{source}: {named}");
            let mut chat = dual.db.tcp(&named).unwrap_or_else(|| panic!("{source}: {named}\n{}", dual.rules()));
            assert!(chat.server == "client" && chat.works());
            assert!(dual.db.tcp_fails(&named), "one offer is one connection");
        }
    }

    /// A backup server asks at one port, and is told three others, which are open to it and to nobody else.
    fn amanda_opens_the_ports_that_it_names(dual) {
        let _streams = [5001, 5002, 5003].map(|port| dual.web.serve(port));
        dual.network("", "", "allowedHelpers: [amanda]");
        dual.mappings("web", VIRTUAL_WEB, WEB, "ports: [{protocol: UDP, port: 10080}]\nhelpers: [{name: amanda, port: 10080}]");
        dual.mappings("plain", VIRTUAL_DB, WEB, "ports: [{protocol: UDP, port: 10080}]");
        if !ready(dual, "web4") {
            return;
        }
        let answer = b"Amanda 2.5 REP HANDLE 00-00 SEQ 1\nCONNECT DATA 5001 MESG 5002 INDEX 5003\nOPTIONS features=f;\n";
        let server = dual.web.enter(|| UdpSocket::bind("[::]:10080")).unwrap();
        for n in [0, 1] {
            let ask = |to: &str| exchanged(&dual.client, &at(to, 10080), &server, b"Amanda 2.5 REQ HANDLE 00-00 SEQ 1\nSERVICE sendbackup\n", answer).1;
            let told = |to: &str| String::from_utf8(ask(to).expect("an answer")).unwrap();
            assert_eq!(told(VIRTUAL_DB[n]).as_bytes(), answer, "without the helper");
            assert!(dual.client.tcp_fails(&at(VIRTUAL_DB[n], 5001)), "without the helper");
            let text = told(VIRTUAL_WEB[n]);
            let line = text.lines().find_map(|l| l.strip_prefix("CONNECT ")).unwrap();
            let ports: Vec<u16> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
            assert_eq!(ports.len(), 3, "{text}");
            let mut open = Vec::new();
            for port in ports {
                let to = at(VIRTUAL_WEB[n], port);
                assert!(dual.router.tcp_fails(&to), "{to} is for whom it was told to");
                open.push(dual.client.tcp(&to).unwrap_or_else(|| panic!("{to}\n{}", dual.rules())));
                assert!(dual.client.tcp_fails(&to), "once");
            }
            assert!(open.iter_mut().all(|call| call.server == "web" && call.works()));
        }
    }

    /// A machine that tells its address in a trap of version 2 tells the one that it is known by outside. That is all that the kernel does for SNMP: addresses in
    /// answers stay as they are, and what it cannot read, such as traps of version 1, is lost.
    fn snmp_traps_give_the_address_outside(dual) {
        dual.network(SOURCES, "", "allowedHelpers: [snmp]");
        let traps = "side: Inside\nports: [{protocol: UDP, port: 162}]";
        dual.mapping("helped", PRODUCTION[0], DNS[0], &format!("{traps}\nhelpers: [{{name: snmp, port: 162}}]"));
        dual.mapping("plain", "10.0.0.54", DNS[0], traps);
        dual.mapping("asked", VIRTUAL_WEB[0], WEB[0], "ports: [{protocol: UDP, port: 161}]\nhelpers: [{name: snmp, port: 161}]");
        if !ready(dual, "helped") {
            return;
        }
        let station = dual.internet.enter(|| UdpSocket::bind((DNS[0], 162))).unwrap();
        let trap = |to: &str, (version, kind): (u8, u8)| exchanged(&dual.db, &at(to, 162), &station, &snmp(version, kind, DB[0]), b"").0;
        let told = |(version, kind), address| Some(snmp(version, kind, address));
        let (first, second, third) = ((0, OLD_TRAP), (1, TRAP), (3, TRAP));
        for kind in [first, second, third] {
            assert_eq!(trap("10.0.0.54", kind), told(kind, DB[0]), "without the helper");
        }
        assert_eq!(trap(PRODUCTION[0], second), told(second, SOURCE[0]), "{}", dual.rules());
        for kind in [first, third] {
            assert_eq!(trap(PRODUCTION[0], kind), None, "if {kind:?} passes now, the documentation is to be changed");
        }

        let agent = dual.web.enter(|| UdpSocket::bind("0.0.0.0:161")).unwrap();
        let answer = snmp(1, ANSWER, WEB[0]);
        let (asked, answered) = exchanged(&dual.client, &at(VIRTUAL_WEB[0], 161), &agent, &snmp(1, 0xa0, CLIENT[0]), &answer);
        assert!(asked.is_some(), "a question arrives");
        assert_eq!(answered, Some(answer), "an answer with the machine's own address in it");
    }
}
