//! IPv6 of a closed network stays inside, whatever its kind, and tells the gateway nothing that it would believe.

use std::net::Ipv6Addr;

use crate::lab::dual::{CLIENT, DNS, PRODUCTION, VIRTUAL_DB, VIRTUAL_WEB, WEB, at};
use crate::lab::{Dual, Frames6, Ns, Prober, Witness, fall_silent, seconds, wait_until};

/// The flow label of everything here. No translation changes it, and errors repeat it.
const LABEL: u32 = 0xb_eef1;
const FRAMES: Frames6 = Frames6(LABEL);
const INSIDE_MAC: &str = "02:00:00:00:01:02";
const NOBODY: &str = "fd00:100::77";
const ALL_HOSTS: &str = "ff02::1";

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
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
        let sources = [WEB[1], "fd00:200::66", "fe80::66", CLIENT[1], "fd00:100::88", "2001:db8:113::88", "::"];
        let destinations = [
            CLIENT[1], "fd00:100::fe", NOBODY, DNS[1], PRODUCTION[1], VIRTUAL_DB[1], ALL_HOSTS, "ff02::2", "ff02::16", "ff05::2", "ff0e::77", "fe80::1",
        ];
        let packets = FRAMES.packets(&sources, &destinations);
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
        let prober = rogue(dual, "rogue", &[ALL_HOSTS, "fd00:200::2"].map(|to| FRAMES.advertisement(source, address(to))));
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
