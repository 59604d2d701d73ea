//! Mappings of side Inside: machines dial the addresses of their old world and reach servers outside that somebody chose.

use crate::lab::dual::{CLIENT, DNS, OTHER, PRODUCTION, SOURCE, VIRTUAL_WEB, WEB, address, at, mapping, network};
use crate::lab::{Ns, bridge};

const SOURCES: &str = ", sourceAddress: 192.168.100.250, sourceAddressIPv6: \"fd00:100::fa\"";
/// Production is protected, and so is what it calls its name server.
const PROTECTED: &str = "protected: [10.0.0.0/8, \"fd00:10::/64\"]";
/// A name server within the closed network's prefixes.
const NEAR: [&str; 2] = ["192.168.200.53", "fd00:200::53"];
const NAME_SERVICE: &str = "side: Inside\nports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]";

bridges! {
    /// Within the closed prefix the gateway answers for the address, beyond it is the way there; both lead to the chosen server, and nothing else does.
    fn machines_dial_old_addresses_and_reach_chosen_servers(dual) {
        dual.network(SOURCES, "", PROTECTED);
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.mappings("near", NEAR, DNS, NAME_SERVICE);
        dual.mappings("far", PRODUCTION, OTHER, NAME_SERVICE);
        dual.converge();
        let mut open = Vec::new();
        for n in [0, 1] {
            for (virtual_at, server) in [(NEAR[n], "dns"), (PRODUCTION[n], "other")] {
                for (ns, seen_as) in [(&dual.web, VIRTUAL_WEB[n]), (&dual.db, SOURCE[n])] {
                    let what = format!("{} to {virtual_at}", ns.name());
                    let call = ns.tcp(&at(virtual_at, 53)).unwrap_or_else(|| panic!("{what}\n{}", dual.rules()));
                    assert_eq!((call.server.as_str(), call.seen_as.ip().to_string().as_str()), (server, seen_as), "{what}");
                    let (name, seen) = ns.udp(&at(virtual_at, 53)).unwrap_or_else(|| panic!("UDP of {what}"));
                    assert_eq!((name.as_str(), seen.ip().to_string().as_str()), (server, seen_as), "UDP of {what}");
                    open.push((server, call));
                    dual.is_denied(1, &format!("another port, {what}"), || ns.tcp_is_dropped(&at(virtual_at, 80)));
                    dual.is_denied(1, &format!("ping, {what}"), || !ns.ping(virtual_at));
                }
            }
            dual.is_denied(1, "the server itself, untranslated", || dual.web.tcp_is_dropped(&at(DNS[n], 53)));
            dual.is_denied(1, "anybody else", || dual.db.tcp_is_dropped(&at(CLIENT[n], 80)));
        }
        // For clients outside the virtual address leads nowhere.
        dual.client.sh("ip route add 192.168.200.53 via 192.168.100.2 && ip route add fd00:200::53 via fd00:100::2");
        assert!(NEAR.iter().all(|a| dual.client.tcp(&at(a, 53)).is_none()), "from outside");

        for file in ["far4.yaml", "far6.yaml"] {
            dual.manifests.remove(file);
        }
        dual.converge();
        for (server, call) in &mut open {
            assert_eq!(call.works(), *server == "dns", "{server} after the removal of the other");
        }
        for n in [0, 1] {
            dual.is_denied(1, "the real one", || dual.web.tcp_is_dropped(&at(PRODUCTION[n], 53)));
        }
    }
}

ways! {
    /// A whole address, without ports: every protocol goes to the chosen server.
    fn without_ports_everything_leads_there(dual) {
        dual.network(SOURCES, "", "");
        dual.mappings("near", NEAR, DNS, "side: Inside");
        dual.converge();
        for n in [0, 1] {
            assert_eq!(dual.db.tcp(&at(NEAR[n], 80)).expect("any port").server, "dns");
            assert!(dual.db.echoes(NEAR[n]), "ping");
        }
    }

    /// What such a mapping may not lead to, and what it needs.
    fn what_is_refused_says_why(dual) {
        dual.network(SOURCES, "", PROTECTED);
        dual.mappings("production", NEAR, PRODUCTION, NAME_SERVICE);
        dual.mappings("loop", ["10.9.9.9", "fd00:10::99"], WEB, NAME_SERVICE);
        let status = dual.half();
        for n in [4, 6] {
            status.assert_refused(&format!("production{n}"), "Protected", &["target"]);
            status.assert_not_ready(&format!("loop{n}"), &["inside"]);
        }
        for (n, near) in NEAR.iter().enumerate() {
            assert!(dual.web.tcp(&at(near, 53)).is_none() && dual.web.tcp(&at(PRODUCTION[n], 53)).is_none());
        }
        for file in ["production4", "production6", "loop4", "loop6"] {
            dual.manifests.remove(&format!("{file}.yaml"));
        }
        dual.network(", sourceAddress: 192.168.100.250", "", PROTECTED);
        dual.mappings("near", NEAR, DNS, NAME_SERVICE);
        let status = dual.half();
        assert!(status.is_ready("near4"));
        status.assert_not_ready("near6", &["sourceAddress"]);
        assert_eq!(dual.web.tcp(&at(NEAR[0], 53)).expect("IPv4").server, "dns");
        assert!(dual.web.tcp(&at(NEAR[1], 53)).is_none());
        dual.network("", "", PROTECTED);
        let status = dual.half();
        for name in ["near4", "near6"] {
            status.assert_not_ready(name, &["sourceAddress"]);
        }
    }

    /// Two closed networks may each have their own idea of one address.
    fn two_networks_have_the_same_virtual_address(dual) {
        let lab = Ns::new("lab");
        bridge::add(&dual.gateway, "eth2");
        bridge::attach(&dual.gateway, "eth2", "to-lab", &lab, "eth0");
        for (ns, interface, at) in [(&dual.gateway, "eth2", ["192.168.201.2", "fd00:201::2"]), (&lab, "eth0", ["192.168.201.33", "fd00:201::21"])] {
            address(ns, interface, at);
        }
        lab.sh("ip route add default via 192.168.201.2 && ip route add default via fd00:201::2");
        dual.gateway.set("ipv6/conf/eth2/proxy_ndp", "1");
        dual.network_of("192.168.100.0/25, \"fd00:100::/112\"", "192.168.200.0/24, \"fd00:200::/64\"", ", sourceAddress: 192.168.100.100, sourceAddressIPv6: \"fd00:100::fa\"", "", "");
        let outside = ["eth0", "192.168.100.128/25, \"fd00:100::1:0/112\"", ", sourceAddress: 192.168.100.250, sourceAddressIPv6: \"fd00:100::1:fa\""];
        let inside = ["eth2", "192.168.201.0/24, \"fd00:201::/64\"", ""];
        dual.manifests.write("second.yaml", &network("second", outside, inside, ""));
        dual.mappings("first", PRODUCTION, DNS, NAME_SERVICE);
        for (n, virtual_at) in PRODUCTION.iter().enumerate() {
            let name = format!("second-dns{n}");
            dual.manifests.write(&format!("{name}.yaml"), &mapping("default", &name, "second", virtual_at, OTHER[n], NAME_SERVICE));
        }
        dual.converge();
        let sources = [["192.168.100.100", "fd00:100::fa"], ["192.168.100.250", "fd00:100::1:fa"]];
        for n in [0, 1] {
            for (ns, server, source) in [(&dual.web, "dns", sources[0][n]), (&lab, "other", sources[1][n])] {
                let call = ns.tcp(&at(PRODUCTION[n], 53)).unwrap_or_else(|| panic!("{} to {}\n{}", ns.name(), PRODUCTION[n], dual.rules()));
                assert_eq!((call.server.as_str(), call.seen_as.ip().to_string().as_str()), (server, source));
            }
        }
    }
}
