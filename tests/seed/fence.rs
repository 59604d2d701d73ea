//! Nothing passes but what is mapped or allowed, whatever else stands in the tables.

use crate::lab::{Manifests, Ns, Snapshot, VIP, VIP_80, bridge, mapping, network, seconds, wait_until};

labs! {
    /// What is not mapped does not pass, in any direction, although every route for it exists.
    fn the_fence_drops_and_counts_what_is_not_mapped(seed) {
        seed.converge(&Manifests::seed());
        seed.vm01.sh("ip route add 192.168.200.0/24 via 192.168.100.2");

        let counted = seed.dropped("SNET-FI-");
        assert!(seed.vm01.tcp_is_dropped("192.168.200.3:80"), "the target's own address, directly");
        assert!(seed.vm01.tcp_is_dropped("192.168.200.4:80"), "a VM that has no mapping");
        assert!(!seed.vm01.ping("192.168.200.3"));
        assert!(seed.dropped("SNET-FI-") >= counted + 3, "each was counted");

        let counted = seed.dropped("SNET-FO-");
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"), "a mapped VM calling out");
        assert!(seed.vm04.tcp_is_dropped("192.168.100.1:80"), "an unmapped VM calling out");
        assert!(!seed.vm03.ping("192.168.100.1"));
        assert_eq!(seed.vm03.udp("192.168.100.1:80"), None);
        assert!(seed.dropped("SNET-FO-") >= counted + 5, "each was counted");

        let _ssh = seed.vm02.serve(22);
        let counted = seed.dropped("SNET-N-");
        assert!(seed.vm03.tcp_is_dropped("192.168.200.2:22"), "the gateway's own services, from inside");
        assert!(seed.vm03.tcp_is_dropped("192.168.100.2:22"), "under its other address too");
        assert!(seed.dropped("SNET-N-") >= counted + 2, "each was counted");
        assert!(seed.vm03.echoes("192.168.200.2"), "echo is what the gateway offers inside");
        assert_eq!(seed.vm01.tcp("192.168.100.2:22").unwrap().server, "vm02", "outside, the gateway's services are its own affair");

        assert!(seed.vm03.tcp("192.168.200.4:80").is_some(), "inside, VMs talk as ever");
    }

    /// A foreign ACCEPT ahead of everything, and the flush of the usual tables, do not open the fence.
    fn the_fence_holds_against_foreign_accepts(seed) {
        seed.converge(&Manifests::seed());
        seed.iptables("-I FORWARD -j ACCEPT");
        seed.iptables("-I INPUT -j ACCEPT");
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"));
        seed.iptables("-F");
        seed.iptables("-t nat -F");
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"));
        seed.vm01.sh("ip route add 192.168.200.0/24 via 192.168.100.2");
        assert!(seed.vm01.tcp_is_dropped("192.168.200.3:80"));
    }

    /// Nothing of a closed network leaves by IPv6 either.
    fn ipv6_of_a_closed_network_stays_inside(seed) {
        seed.vm01.sh("ip addr add 2001:db8:a::1/64 dev eth0 nodad && ip route add 2001:db8:b::/64 via 2001:db8:a::2");
        seed.vm02.sh("ip addr add 2001:db8:a::2/64 dev eth0 nodad && ip addr add 2001:db8:b::2/64 dev eth1 nodad");
        seed.vm03.sh("ip addr add 2001:db8:b::3/64 dev eth0 nodad && ip route add 2001:db8:a::/64 via 2001:db8:b::2");
        seed.vm02.set("ipv6/conf/all/forwarding", "1");
        wait_until(seconds(10), "IPv6 routing", || seed.vm03.ping("2001:db8:a::1"));
        seed.converge(&Manifests::seed());
        assert!(!seed.vm03.ping("2001:db8:a::1"), "from inside");
        assert!(!seed.vm01.ping("2001:db8:b::3"), "to inside");
        seed.cleanup();
        assert!(seed.vm03.echoes("2001:db8:a::1"), "after cleanup");
    }

    /// What is denied is shown to who listens to the NFLOG group, with direction and network, if the network asks for it.
    fn denied_packets_are_logged_if_asked_for(seed) {
        let listen = |call: &dyn Fn()| {
            let heard = std::thread::scope(|scope| {
                let listener = scope.spawn(|| seed.vm02.try_sh("timeout 3 tcpdump -v -l -n -i nflog:5 -e 2>&1"));
                std::thread::sleep(seconds(1));
                call();
                listener.join().unwrap()
            });
            assert!(heard.stdout.contains("listening on nflog:5"), "{}", heard.said());
            heard.stdout.contains("192.168.200.3 > 192.168.100.1")
        };
        let call_out = || assert!(!seed.vm03.ping("192.168.100.1"));
        let manifests = Manifests::seed();
        seed.converge(&manifests);
        assert!(!listen(&call_out), "nobody asked");
        manifests.network("egress: {default: Deny, log: true}");
        seed.converge(&manifests);
        assert!(listen(&call_out), "the packet is shown");
        let counted = seed.dropped("SNET-FO-");
        call_out();
        assert!(seed.dropped("SNET-FO-") > counted, "and dropped and counted all the same");
        for direction in ["in", "out", "node", "unmapped"] {
            assert!(seed.rules().contains(&format!("--nflog-prefix stagenet:{direction}:segment-b")) || seed.rules().contains(&format!("--nflog-prefix \"stagenet:{direction}:segment-b\"")), "{}", seed.rules());
        }
    }

    /// Two closed networks behind one gateway: each is served, neither reaches the other, directly or by virtual addresses, and one goes without harm
    /// to the other.
    fn two_networks_share_a_gateway_and_nothing_else(seed) {
        let vm05 = Ns::new("vm05");
        let _segment_c = bridge("segment-c", &[(&seed.vm02, "eth2", "192.168.201.2/24"), (&vm05, "eth0", "192.168.201.5/24")]);
        vm05.sh("ip route add default via 192.168.201.2");
        seed.vm03.sh("ip route replace default via 192.168.200.2");
        let _server = vm05.serve(80);
        let manifests = Manifests::empty("two");
        let networks = |egress: &str| {
            manifests.write("b.yaml", &network("segment-b", "192.168.100.0/25", "192.168.200.0/24", egress));
            let c = network("segment-c", "192.168.100.128/26", "192.168.201.0/24", egress);
            manifests.write("c.yaml", &c.replace("eth1", "eth2"));
        };
        manifests.write("vm03.yaml", &mapping("vm03", "segment-b", VIP, "192.168.200.3", ""));
        manifests.write("vm05.yaml", &mapping("vm05", "segment-c", "192.168.100.130", "192.168.201.5", ""));
        let before = Snapshot::of(&seed.vm02);
        for egress in ["", "egress: {default: Allow}"] {
            networks(egress);
            seed.converge(&manifests);
            assert_eq!(seed.vm01.tcp(VIP_80).expect("the first network").server, "vm03");
            assert_eq!(seed.vm01.tcp("192.168.100.130:80").expect("the second network").server, "vm05");
            for (from, to) in [
                (&seed.vm03, "192.168.201.5:80"),
                (&seed.vm03, "192.168.100.130:80"),
                (&seed.vm03, "192.168.201.2:22"),
                (&vm05, "192.168.200.3:80"),
                (&vm05, VIP_80),
            ] {
                assert!(from.tcp_is_dropped(to), "{} to {to} with {egress:?}", from.name());
            }
            assert_eq!(seed.vm03.tcp("192.168.100.1:80").is_some(), !egress.is_empty());
            assert_eq!(vm05.tcp("192.168.100.1:80").is_some(), !egress.is_empty());
        }
        let mut open = seed.vm01.tcp(VIP_80).unwrap();
        let mut gone = seed.vm01.tcp("192.168.100.130:80").unwrap();
        for file in ["c.yaml", "vm05.yaml"] {
            manifests.remove(file);
        }
        seed.converge(&manifests);
        assert!(open.works() && gone.is_cut());
        seed.cleanup();
        before.assert_same(&Snapshot::of(&seed.vm02));
    }

    /// With egress Allow a mapped VM leaves under its virtual address; protected prefixes and unmapped VMs stay where they are.
    fn egress_allow_lets_mapped_vms_out_under_their_virtual_address(seed) {
        let manifests = Manifests::empty("egress");
        manifests.network("egress: {default: Allow}\nprotected: [192.168.100.254/32]");
        manifests.mapping("vm03", VIP, "192.168.200.3", "");
        seed.converge(&manifests);
        let _production = seed.gw_a.serve(80);
        let call = seed.vm03.tcp("192.168.100.1:80").expect("a mapped VM may call out");
        assert_eq!((call.server.as_str(), call.seen_as.ip().to_string().as_str()), ("vm01", VIP));
        assert_eq!(seed.vm03.udp("192.168.100.1:80").unwrap().1.ip().to_string(), VIP);
        assert!(seed.vm03.tcp_is_dropped("192.168.100.254:80"), "protected");
        assert!(seed.vm04.tcp_is_dropped("192.168.100.1:80"), "no mapping, no address outside");

        // Taken away again, the open call ends.
        let mut call = call;
        manifests.network("egress: {default: Deny}");
        seed.converge(&manifests);
        assert!(call.is_cut());
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"));
    }

    /// A host with FORWARD policy DROP, as container runtimes leave it, forwards what is mapped all the same.
    fn a_foreign_forward_policy_of_drop_does_not_stop_mapped_traffic(seed) {
        seed.iptables("-P FORWARD DROP");
        seed.iptables("-A FORWARD -j DROP");
        seed.converge(&Manifests::seed());
        assert!(seed.vm01.tcp(VIP_80).expect("through a closed FORWARD").works());
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"));
    }
}
