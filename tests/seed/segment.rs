//! Interfaces and neighbours: what comes late, whose an address is, and who learns of it.

use crate::lab::{Manifests, VIP_80, network, seconds};

labs! {
    /// An interface that is not there yet is named; once it appears, everything works without a restart.
    fn an_interface_may_appear_later(seed) {
        seed.vm02.sh("ip link set eth1 name later0");
        let manifests = Manifests::seed();
        let mut agent = seed.agent(&manifests, &[]);
        agent.wait_status(seconds(20), &["InterfaceMissing", "eth1"]);
        assert!(seed.vm01.tcp(VIP_80).is_none());
        seed.vm02.sh("ip link set later0 down && ip link set later0 name eth1 && ip link set eth1 up");
        seed.wait_serves("vm03");
    }

    /// An address that somebody outside already answers for is not taken: that somebody may be production.
    fn an_address_in_use_is_not_taken(seed) {
        seed.gw_a.sh("ip addr add 192.168.100.3/32 dev eth0");
        let _owner = seed.gw_a.serve(80);
        let mac = seed.gw_a.sh("cat /sys/class/net/eth0/address 2>/dev/null || ip -o link show eth0");
        let manifests = Manifests::seed();
        manifests.mapping("free", "192.168.100.4", "192.168.200.4", "");
        let ran = seed.once(&manifests);
        assert_eq!(ran.code, 2, "{}", ran.said());
        assert!(ran.stdout.contains("AddressInUse"), "{}", ran.stdout);
        drop(mac);
        assert_eq!(seed.vm01.tcp(VIP_80).unwrap().server, "gw-a", "its owner still has it");
        assert_eq!(seed.vm01.tcp("192.168.100.4:80").expect("the other mapping works").server, "vm04");
    }

    /// Without announcing, the gateway answers no ARP, and clients that have a route get through.
    fn announce_false_needs_a_route_and_nothing_else(seed) {
        let manifests = Manifests::empty("silent");
        manifests.write(
            "network.yaml",
            &network("segment-b", "192.168.150.0/24", "192.168.200.0/24", "").replace("    interface: eth0\n", "    interface: eth0\n    announce: false\n"),
        );
        manifests.mapping("vm03", "192.168.150.3", "192.168.200.3", "");
        seed.converge(&manifests);
        assert_eq!(seed.vm02.sh("ip -4 neigh show proxy"), "");
        seed.vm01.sh("ip route add 192.168.150.0/24 via 192.168.100.2");
        assert_eq!(seed.vm01.tcp("192.168.150.3:80").expect("by the route").server, "vm03");
        seed.vm01.sh("ip route replace 192.168.150.0/24 dev eth0");
        assert!(seed.vm01.tcp("192.168.150.3:80").is_none(), "nobody answers ARP for it");
    }

    /// Clients that know another place for the address learn the new one from the announcement.
    fn taking_an_address_corrects_stale_neighbour_caches(seed) {
        seed.vm01.sh("ip neigh replace 192.168.100.3 lladdr 02:00:00:00:00:99 dev eth0 nud stale");
        seed.converge(&Manifests::seed());
        let mac = seed.vm02.sh("ip -o link show eth0");
        let mac = mac.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        let known = seed.vm01.sh("ip neigh show 192.168.100.3");
        assert!(known.contains(&mac), "{known} does not name {mac}");
    }
}
