//! `egress.allow`: what may leave, under which address, and that it ends when it is no longer allowed.

use crate::lab::dual::{CLIENT, DNS, GATEWAY, OTHER, PRODUCTION, SOURCE, VIRTUAL_WEB, WEB, at};
use crate::lab::{Dual, Ns};

/// Port 53 of one server, all of another, both families.
const ALLOW: &str = "egress:\n  default: Deny\n  allow:\n  - {to: 203.0.113.53/32, ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 50, endPort: 53}]}\n  \
                     - {to: 203.0.113.54/32}\n  - {to: \"2001:db8:113::53/128\", ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 50, endPort: 53}]}\n  \
                     - {to: \"2001:db8:113::54/128\"}";
const SOURCES: &str = ", sourceAddress: 192.168.100.250, sourceAddressIPv6: \"fd00:100::fa\"";

/// Whom `ns` reaches at `to` by TCP, and as whom.
fn call(ns: &Ns, to: &str, port: u16) -> Option<(String, String)> {
    let call = ns.tcp(&at(to, port))?;
    Some((call.server, call.seen_as.ip().to_string()))
}

fn is(server: &str, seen_as: &str) -> Option<(String, String)> {
    Some((server.to_owned(), seen_as.to_owned()))
}

fn denied(dual: &Dual, ns: &Ns, to: &str, port: u16) {
    dual.is_denied(1, &format!("{} to {to} port {port}", ns.name()), || {
        ns.tcp_is_dropped(&at(to, port))
    });
}

ways! {
    /// What is listed passes under the machine's virtual address or the network's own; all else is dropped and counted.
    fn what_is_allowed_leaves_under_the_right_address(dual) {
        dual.network(SOURCES, "", ALLOW);
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.converge();
        for n in [0, 1] {
            assert_eq!(call(&dual.web, DNS[n], 53), is("dns", VIRTUAL_WEB[n]), "{}", dual.rules());
            assert_eq!(call(&dual.db, DNS[n], 53), is("dns", SOURCE[n]));
            assert_eq!(dual.web.udp(&at(DNS[n], 53)).expect("UDP").1.ip().to_string(), VIRTUAL_WEB[n]);
            assert_eq!(dual.db.udp(&at(DNS[n], 53)).expect("UDP").1.ip().to_string(), SOURCE[n]);
            assert_eq!(call(&dual.db, OTHER[n], 80), is("other", SOURCE[n]), "any port");
            assert!(dual.web.echoes(OTHER[n]) && dual.db.echoes(OTHER[n]), "any protocol");
            for ns in [&dual.web, &dual.db] {
                denied(dual, ns, DNS[n], 80);
                denied(dual, ns, CLIENT[n], 80);
                denied(dual, ns, PRODUCTION[n], 53);
                dual.is_denied(1, "ping", || !ns.ping(DNS[n]));
                dual.is_denied(1, "the other protocol", || ns.udp(&at(DNS[n], 80)).is_none());
            }
            // Nobody comes back in by the address that they leave under.
            assert!(dual.client.tcp(&at(SOURCE[n], 80)).is_none() && dual.internet.tcp(&at(SOURCE[n], 80)).is_none());
        }
    }

    /// Open calls end when what let them out is taken away, and no others.
    fn a_change_ends_what_is_no_longer_allowed(dual) {
        dual.network(SOURCES, "", ALLOW);
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.converge();
        let to = |server: [&str; 2]| [0, 1].map(|n| [&dual.web, &dual.db].map(|ns| ns.tcp(&at(server[n], 53)).expect("allowed")));
        let (stay, go) = (to(DNS), to(OTHER));
        let fewer: Vec<_> = ALLOW.lines().filter(|l| !l.contains("54/128") && !l.contains(".54/32")).collect();
        dual.network(SOURCES, "", &fewer.join("\n"));
        dual.converge();
        assert!(stay.into_iter().flatten().all(|mut c| c.works()), "what is still allowed");
        assert!(go.into_iter().flatten().all(|mut c| c.is_cut()), "what is not");
        denied(dual, &dual.web, OTHER[0], 53);
        denied(dual, &dual.web, OTHER[1], 53);
    }

    /// Without an address to leave under, only mapped machines leave; the gateway's own address will do.
    fn unmapped_machines_need_a_source_address(dual) {
        dual.network("", "", ALLOW);
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        let [limited, reason, message] = dual.converge().condition("closed", "EgressLimited").map(str::to_owned);
        assert_eq!((limited.as_str(), reason.as_str()), ("True", "SourceAddressMissing"), "{message}");
        assert!(message.starts_with("over IPv4 and IPv6 only machines with a 1:1 mapping"), "{message}");
        for n in [0, 1] {
            assert_eq!(call(&dual.web, DNS[n], 53), is("dns", VIRTUAL_WEB[n]));
            denied(dual, &dual.db, DNS[n], 53);
        }
        dual.network(", sourceAddress: 192.168.100.2, sourceAddressIPv6: \"fd00:100::2\"", "", ALLOW);
        dual.converge();
        for n in [0, 1] {
            assert_eq!(call(&dual.web, DNS[n], 53), is("dns", VIRTUAL_WEB[n]));
            assert_eq!(call(&dual.db, DNS[n], 53), is("dns", GATEWAY[n]));
            assert!(dual.gateway.tcp(&at(DNS[n], 53)).is_some(), "the node itself goes on");
        }
        // What left under an address of the node's own is known by the mark only.
        let admitted = || dual.gateway.sh("conntrack -L -m 0x2000/0x2000 2>/dev/null; conntrack -L -f ipv6 -m 0x2000/0x2000 2>/dev/null");
        assert!(GATEWAY.iter().all(|own| admitted().contains(&format!("dst={own} "))), "{}", admitted());
        dual.cleanup();
        assert_eq!(admitted(), "", "what the fence let pass outlives it");
    }

    /// What is protected stays out of reach, however wide the door.
    fn protected_prefixes_are_never_allowed(dual) {
        let all = "egress: {default: Deny, allow: [{to: 0.0.0.0/0}, {to: \"::/0\"}]}\nprotected: [203.0.113.54/32, 10.0.0.0/8, \"2001:db8:113::54/128\", \"fd00:10::/64\"]";
        dual.network(SOURCES, "", all);
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.converge();
        for n in [0, 1] {
            for ns in [&dual.web, &dual.db] {
                assert_eq!(ns.tcp(&at(DNS[n], 80)).expect("allowed").server, "dns");
                assert_eq!(ns.tcp(&at(CLIENT[n], 80)).expect("allowed").server, "client");
                denied(dual, ns, OTHER[n], 80);
                denied(dual, ns, PRODUCTION[n], 80);
            }
        }
    }

    /// A source address that somebody outside has is not taken from them.
    fn a_source_address_in_use_is_not_taken(dual) {
        dual.router.sh("ip addr add 192.168.100.250/32 dev eth0 && ip addr add fd00:100::fa/128 dev eth0 nodad");
        let _owners = SOURCE.map(|a| dual.router.serve_as("owner", a, 8080));
        dual.network(SOURCES, "", ALLOW);
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        let (ran, _) = dual.once();
        let proxies = dual.gateway.sh("ip -4 neigh show proxy; ip -6 neigh show proxy");
        for n in [0, 1] {
            assert!(!proxies.contains(SOURCE[n]), "{proxies}\n{}", ran.said());
            assert_eq!(dual.client.tcp(&at(SOURCE[n], 8080)).expect("its owner").server, "owner");
            assert_eq!(dual.client.tcp(&at(VIRTUAL_WEB[n], 80)).expect("mappings").server, "web");
            assert!(call(&dual.db, DNS[n], 53).is_none(), "nobody leaves under an owner's address");
        }
        assert!(ran.said().contains("250") && ran.code == 2, "exit {}: {}", ran.code, ran.said());
    }
}
