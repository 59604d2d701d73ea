//! Whole prefixes: each address leads to the one at the same place, both ways.

use crate::lab::dual::{CLIENT, MAIL, VIRTUAL_DB, VIRTUAL_MAIL, VIRTUAL_WEB, WEB, at, mapping};
use crate::lab::{Dual, Snapshot};

/// The virtual prefixes and those of the machines.
const BLOCK: [&str; 2] = ["192.168.100.64/27", "fd00:100::40/123"];
const MACHINES: [&str; 2] = ["192.168.200.32/27", "fd00:200::20/123"];

/// Who answers at `virtual_at` when the client dials port 80.
fn answers(dual: &Dual, virtual_at: &str) -> Option<String> {
    dual.client.tcp(&at(virtual_at, 80)).map(|c| c.server)
}

fn ip_of(seen: std::net::SocketAddr) -> String {
    seen.ip().to_string()
}

ways! {
    /// Every protocol, in and, where egress is allowed, out under the address at the same place; and it goes without a trace.
    fn a_prefix_leads_to_a_prefix_both_ways(dual) {
        let before = Snapshot::of(&dual.gateway);
        dual.network("", "", "egress: {default: Allow}");
        dual.mappings("block", BLOCK, MACHINES, "");
        let status = dual.converge();
        assert_eq!(status.announcement("block4"), Some("Neighbour"));
        assert_eq!(status.announcement("block6"), Some("Neighbour"));
        for n in [0, 1] {
            for (virtual_at, name) in [(VIRTUAL_WEB[n], "web"), (VIRTUAL_DB[n], "db"), (VIRTUAL_MAIL[n], "mail")] {
                assert_eq!(answers(dual, virtual_at).as_deref(), Some(name), "{virtual_at}\n{}", dual.rules());
                assert_eq!(dual.client.udp(&at(virtual_at, 80)).expect("UDP").0, name);
                assert!(dual.client.echoes(virtual_at), "ping {virtual_at}");
            }
            for (ns, virtual_at) in [(&dual.web, VIRTUAL_WEB[n]), (&dual.mail, VIRTUAL_MAIL[n])] {
                let call = ns.tcp(&at(CLIENT[n], 80)).expect("out");
                assert_eq!((call.server.as_str(), ip_of(call.seen_as).as_str()), ("client", virtual_at));
                assert_eq!(ip_of(ns.udp(&at(CLIENT[n], 80)).expect("out by UDP").1), virtual_at);
            }
        }
        // One rule a family and direction, whatever the size.
        let nat = dual.rules();
        let netmaps: Vec<_> = nat.lines().filter(|l| l.contains("-j NETMAP")).collect();
        assert_eq!(netmaps.len(), 4, "{nat}");
        for n in [0, 1] {
            for (what, to) in [(format!("-d {}", BLOCK[n]), MACHINES[n]), (format!("-s {}", MACHINES[n]), BLOCK[n])] {
                let rule = |l: &&&str| l.contains(&what) && l.contains(&format!("--to {to}"));
                assert_eq!(netmaps.iter().filter(rule).count(), 1, "{what} to {to}\n{nat}");
            }
        }
        dual.cleanup();
        before.assert_same(&Snapshot::of(&dual.gateway));
    }

    /// Ports on a prefix: the rest is dropped and counted, and the machines have no address of their own to leave under.
    fn ports_of_a_prefix_lead_and_the_rest_does_not(dual) {
        dual.network("", "", "egress: {default: Allow}");
        dual.mappings("block", BLOCK, MACHINES, "ports: [{protocol: TCP, port: 80}, {protocol: UDP, port: 5000, endPort: 5009}]");
        dual.converge();
        let _ranges = dual.db.serve(5005);
        for n in [0, 1] {
            assert_eq!(answers(dual, VIRTUAL_WEB[n]).as_deref(), Some("web"));
            assert_eq!(dual.client.udp(&at(VIRTUAL_DB[n], 5005)).expect("a port of the range").0, "db");
            dual.is_denied(1, "an unmapped port", || dual.client.tcp_is_dropped(&at(VIRTUAL_DB[n], 5005)));
            dual.is_denied(1, "the other protocol", || dual.client.udp(&at(VIRTUAL_WEB[n], 80)).is_none());
            dual.is_denied(1, "ping", || !dual.client.ping(VIRTUAL_WEB[n]));
            dual.is_denied(1, "out", || dual.web.tcp_is_dropped(&at(CLIENT[n], 80)));
        }
    }

    /// Up to 256 addresses the gateway answers for each; beyond, and with announce: false, clients need a route, and the status says which.
    fn large_prefixes_need_a_route(dual) {
        let proxies = || dual.gateway.sh("ip -4 neigh show proxy; ip -6 neigh show proxy").lines().count();
        let pool = "172.20.0.0/15, \"fd00:1000::/48\"";
        let inside = "192.168.200.0/22, \"fd00:200::/64\"";
        dual.network_of(pool, inside, "", "", "");
        dual.mapping("just", "172.21.0.0/24", "192.168.200.0/24", "");
        dual.client.sh("ip route add 172.21.0.0/24 dev eth0");
        let status = dual.converge();
        assert_eq!(status.announcement("just"), Some("Neighbour"));
        assert_eq!(proxies(), 256);
        assert_eq!(answers(dual, "172.21.0.33").as_deref(), Some("web"));
        dual.manifests.remove("just.yaml");

        dual.mapping("big4", "172.20.0.0/22", "192.168.200.0/22", "");
        dual.mapping("big6", "fd00:1000::/64", "fd00:200::/64", "");
        let status = dual.converge();
        let _ssh = dual.gateway.serve(22);
        for name in ["big4", "big6"] {
            assert_eq!(status.announcement(name), Some("Route"), "{name}");
        }
        assert_eq!(proxies(), 0);
        let big = ["172.20.0.33", "fd00:1000::21"];
        assert!(big.iter().all(|a| answers(dual, a).is_none()), "without a route");
        dual.client.sh("ip route add 172.20.0.0/22 via 192.168.100.2 && ip route add fd00:1000::/64 via fd00:100::2");
        for address in big {
            assert_eq!(answers(dual, address).as_deref(), Some("web"), "{address}\n{}", dual.rules());
        }
        // The gateway's own inside address has a place in the prefix as well; its services are not for clients.
        for address in ["172.20.0.2", "fd00:1000::2"] {
            assert!(dual.client.tcp(&at(address, 22)).is_none(), "{address} leads to the gateway itself\n{}", dual.rules());
        }

        for name in ["big4", "big6"] {
            dual.manifests.remove(&format!("{name}.yaml"));
        }
        dual.network_of(pool, inside, ", announce: false", "", "");
        dual.mapping("small", "172.21.0.32/27", "192.168.200.32/27", "");
        let status = dual.converge();
        assert_eq!((status.announcement("small"), proxies()), (Some("Route"), 0));
    }

    /// A more specific mapping of the same namespace stands in a prefix; one of another namespace does not.
    fn an_address_within_a_prefix_is_its_namespaces_own_affair(dual) {
        dual.network("", "", "");
        dual.mappings("block", BLOCK, MACHINES, "");
        dual.mappings("special", VIRTUAL_WEB, MAIL, "");
        for (n, address) in VIRTUAL_DB.iter().enumerate() {
            let name = format!("stranger{n}");
            dual.manifests.write(&format!("{name}.yaml"), &mapping("other", &name, "closed", address, MAIL[n], ""));
        }
        let status = dual.half();
        for n in [0, 1] {
            status.assert_refused(&format!("stranger{n}"), "Conflict", &[BLOCK[n]]);
        }
        for n in [0, 1] {
            assert_eq!(answers(dual, VIRTUAL_WEB[n]).as_deref(), Some("mail"), "the special one\n{}", dual.rules());
            assert_eq!(answers(dual, VIRTUAL_DB[n]).as_deref(), Some("db"), "the prefix's");
            assert!(status.is_ready(["special4", "special6"][n]) && status.is_ready(["block4", "block6"][n]));
        }
        for file in ["special4.yaml", "special6.yaml", "stranger0.yaml", "stranger1.yaml"] {
            dual.manifests.remove(file);
        }
        let mut calls: Vec<_> = VIRTUAL_WEB.iter().map(|a| dual.client.tcp(&at(a, 80)).unwrap()).collect();
        dual.converge();
        for (n, call) in calls.iter_mut().enumerate() {
            assert!(call.is_cut(), "what the special one let in");
            assert_eq!(answers(dual, VIRTUAL_WEB[n]).as_deref(), Some("web"));
        }
    }

    /// What a prefix may not be: outside the pool, production, over a node's addresses, beyond the closed network.
    fn a_prefix_is_refused_as_a_whole(dual) {
        dual.network("", "", "protected: [192.168.100.96/29, \"fd00:100::60/125\"]");
        for (name, virtual_at, target, more) in [
            ("pool", "192.168.101.64/27", MACHINES[0], ""),
            ("pool6", "fd00:101::40/123", MACHINES[1], ""),
            ("production", "192.168.100.96/27", MACHINES[0], ""),
            ("production6", "fd00:100::60/123", MACHINES[1], ""),
            ("node", "192.168.100.0/27", MACHINES[0], ""),
            ("node6", "fd00:100::/123", MACHINES[1], ""),
            ("beyond", "192.168.100.128/27", "192.168.201.32/27", ""),
            ("beyond6", "fd00:100::80/123", "fd00:201::20/123", ""),
        ] {
            dual.mapping(name, virtual_at, target, more);
        }
        dual.mappings("good", VIRTUAL_WEB, WEB, "");
        let status = dual.half();
        for (name, reason) in [("pool", "OutsidePool"), ("production", "Protected"), ("node", "AddressOwnedByNode"), ("beyond", "TargetOutside")] {
            status.assert_refused(name, reason, &["prefix"]);
            status.assert_refused(&format!("{name}6"), reason, &["prefix"]);
        }
        for n in [0, 1] {
            assert_eq!(answers(dual, VIRTUAL_WEB[n]).as_deref(), Some("web"), "others are not affected");
        }
        assert!(dual.client.echoes("192.168.100.254"), "nobody's address was taken");
    }
}
