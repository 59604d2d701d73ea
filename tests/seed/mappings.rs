//! What a mapping lets through, how it changes, and that it goes without a trace.

use crate::lab::{Manifests, Snapshot, VIP, VIP_80, network, seconds, stagenet, wait_until};

labs! {
    /// What the experiment began with: nobody answers for the address, and the segments do not reach each other.
    fn before_anything_the_virtual_address_is_silent(seed) {
        assert!(seed.vm01.echoes("192.168.100.2"), "neighbours in segment A");
        assert_eq!(seed.vm02.tcp("192.168.200.3:80").unwrap().server, "vm03");
        assert!(!seed.vm01.ping(VIP));
        assert!(!seed.vm01.ping("192.168.200.3"));
        seed.add_foreign_rules();
        let before = Snapshot::of(&seed.vm02);
        before.assert_same(&Snapshot::of(&seed.vm02));
        seed.vm02.sh("ip route add 203.0.113.0/24 dev eth0");
        assert_ne!(before, Snapshot::of(&seed.vm02), "snapshots can differ");
    }

    /// The experiment itself, on a node that has rules of its own, and what is left of it after `cleanup`: nothing.
    fn a_mapping_lets_every_protocol_through_and_goes_without_a_trace(seed) {
        seed.add_foreign_rules();
        let before = Snapshot::of(&seed.vm02);
        seed.converge(&Manifests::seed());

        assert!(seed.vm01.echoes(VIP));
        let mut open = seed.vm01.tcp(VIP_80).expect("tcp through the virtual address");
        assert_eq!((open.server.as_str(), open.seen_as.ip().to_string().as_str()), ("vm03", "192.168.200.2"));
        assert_eq!(seed.vm01.udp(VIP_80).expect("udp through the virtual address").0, "vm03");
        assert!(seed.gw_a.echoes(VIP), "any host of the segment is a client");
        assert!(!seed.vm02.sh("ip -4 -o addr").contains(VIP), "no host owns the address");

        seed.cleanup();
        before.assert_same(&Snapshot::of(&seed.vm02));
        assert!(open.is_cut(), "an open connection does not outlive the mapping");
        assert!(seed.vm01.tcp_is_dropped(VIP_80) || seed.vm01.tcp(VIP_80).is_none());
        assert_eq!(seed.vm02.flows(VIP), Vec::<String>::new());
    }

    /// The same on a node whose tables nobody ever used.
    fn cleanup_of_a_fresh_node_leaves_nothing(seed) {
        let before = Snapshot::of(&seed.vm02);
        seed.converge(&Manifests::seed());
        assert!(seed.vm01.echoes(VIP));
        seed.cleanup();
        before.assert_same(&Snapshot::of(&seed.vm02));
        let ran = stagenet(&seed.vm02, &["cleanup"]);
        assert_eq!(ran.code, 0, "cleanup of a clean node succeeds: {}", ran.said());
    }

    /// Only the mapped ports lead to the target; the rest of the address is silent.
    fn ports_lead_where_they_are_mapped(seed) {
        let manifests = Manifests::empty("ports");
        manifests.network("");
        manifests.mapping(
            "web",
            VIP,
            "192.168.200.3",
            "ports:\n- {protocol: TCP, port: 443, targetPort: 80}\n- {protocol: UDP, port: 80}\n- {protocol: TCP, port: 8000, endPort: 8002, targetPort: 9000}",
        );
        manifests.mapping("other", VIP, "192.168.200.4", "ports:\n- {protocol: TCP, port: 80}");
        seed.converge(&manifests);
        let _shifted = [9000, 9001, 9002, 9003].map(|port| seed.vm03.serve(port));

        assert_eq!(seed.vm01.tcp("192.168.100.3:443").expect("a port of its own").server, "vm03");
        assert_eq!(seed.vm01.tcp("192.168.100.3:80").expect("the other mapping of the address").server, "vm04");
        assert_eq!(seed.vm01.udp("192.168.100.3:80").expect("udp").0, "vm03");
        for port in 8000..=8002 {
            let _open = seed.vm01.tcp(&format!("192.168.100.3:{port}")).expect("a port of the range");
            // The answers come from the port that is as far into the target's range.
            let (dialled, answering) = (format!(" dport={port} "), format!(" src=192.168.200.3 dst=192.168.200.2 sport={} ", port + 1000));
            let flows = seed.vm02.flows(VIP);
            assert!(flows.iter().any(|f| f.contains(&dialled) && f.contains(&answering)), "{flows:#?}");
        }
        let counted = seed.dropped("SNET-U-");
        assert!(seed.vm01.tcp_is_dropped("192.168.100.3:8003"), "beyond the range");
        assert!(seed.vm01.tcp_is_dropped("192.168.100.3:22"), "a port that nobody mapped");
        assert_eq!(seed.vm01.udp("192.168.100.3:443"), None, "the other protocol");
        assert!(!seed.vm01.ping(VIP), "ping has no port");
        assert!(seed.dropped("SNET-U-") >= counted + 4, "each was counted");
    }

    /// SCTP, too, by the packet that opens an association.
    fn sctp_ports_lead_where_they_are_mapped(seed) {
        let manifests = Manifests::empty("sctp");
        manifests.network("");
        manifests.mapping("signalling", VIP, "192.168.200.3", "ports:\n- {protocol: SCTP, port: 2905, endPort: 2907, targetPort: 3905}");
        seed.converge(&manifests);
        let counted = seed.dropped("SNET-U-");
        let arrived = std::thread::scope(|scope| {
            let watch = scope.spawn(|| seed.vm03.try_sh("timeout 3 tcpdump -l -n -i eth0 sctp 2>&1"));
            std::thread::sleep(seconds(1));
            for port in [2904, 2906] {
                seed.vm01.sctp_init(40_000, format!("{VIP}:{port}").parse().unwrap());
            }
            watch.join().unwrap().stdout
        });
        let arrived: Vec<_> = arrived.lines().filter(|l| l.contains("[INIT]")).collect();
        assert!(arrived.len() == 1 && arrived[0].contains("192.168.200.2.40000 > 192.168.200.3.3906:"), "{arrived:#?}");
        assert_eq!(seed.dropped("SNET-U-"), counted + 1, "the port before the range");
        assert!(seed.vm01.tcp_is_dropped("192.168.100.3:2906"), "the same port of another protocol");
    }

    /// Editing a file moves the traffic, stops what went to the old target, and leaves other mappings alone.
    fn editing_the_target_moves_traffic_and_stops_old_flows(seed) {
        let manifests = Manifests::seed();
        manifests.mapping("steady", "192.168.100.4", "192.168.200.4", "");
        let agent = seed.agent(&manifests, &["--log-format", "json"]);
        seed.wait_serves("vm03");
        let mut old = seed.vm01.tcp(VIP_80).unwrap();
        let mut steady = seed.vm01.tcp("192.168.100.4:80").expect("the other mapping");
        assert!(old.works() && steady.works());

        edit_mapping(&manifests, "192.168.200.3", "192.168.200.4");
        seed.wait_serves("vm04");
        assert!(old.is_cut(), "a connection to the old target has ended");
        assert!(steady.works(), "another mapping's connection has not");

        edit_mapping(&manifests, "192.168.200.4", "192.168.200.3");
        seed.wait_serves("vm03");
        assert!(steady.works());
        let log = agent.log();
        let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok_and(|l| l["level"].is_string() && l["message"].is_string());
        assert!(!log.is_empty() && log.lines().all(is_json), "one JSON object a line:\n{log}");
    }

    /// Deleting a file stops new and open flows at once and leaves no rule, neighbour, route or conntrack entry.
    fn deleting_a_mapping_leaves_nothing_of_it(seed) {
        let manifests = Manifests::empty("deleted");
        manifests.network("");
        manifests.mapping("steady", "192.168.100.4", "192.168.200.4", "");
        let mut agent = seed.agent(&manifests, &[]);
        wait_until(seconds(20), "the first mapping", || seed.vm01.tcp("192.168.100.4:80").is_some());
        let before = Snapshot::of(&seed.vm02);

        manifests.mapping("gone", VIP, "192.168.200.3", "");
        seed.wait_serves("vm03");
        let mut open = seed.vm01.tcp(VIP_80).unwrap();
        let mut steady = seed.vm01.tcp("192.168.100.4:80").unwrap();
        manifests.remove("gone.yaml");
        wait_until(seconds(20), "the mapping to go", || !seed.vm02.sh("ip -4 neigh show proxy").contains("192.168.100.3 "));
        wait_until(seconds(20), "its flows to go", || seed.vm02.flows(VIP).is_empty());
        assert!(open.is_cut());
        assert!(seed.vm01.tcp(VIP_80).is_none());
        assert!(steady.works(), "the other mapping's connection goes on");
        before.assert_same(&Snapshot::of(&seed.vm02));
        agent.assert_alive();
    }

    /// Exit status of `--once`: 0 if every claim is Ready, 2 if one is not; a line a claim either way.
    fn once_tells_by_its_exit_status(seed) {
        let manifests = Manifests::seed();
        let ran = seed.once(&manifests);
        assert_eq!(ran.code, 0, "{}", ran.said());
        for word in ["segment-b", VIP, "192.168.200.3"] {
            assert!(ran.stdout.contains(word), "{word} in {}", ran.stdout);
        }
        manifests.mapping("zz-rival", VIP, "192.168.200.4", "");
        let ran = seed.once(&manifests);
        assert_eq!(ran.code, 2, "{}", ran.said());
        assert!(ran.stdout.contains("zz-rival") && ran.stdout.contains("192.168.200.4"), "{}", ran.stdout);
        assert_eq!(seed.vm01.tcp(VIP_80).expect("the first claim still stands").server, "vm03");
    }

    /// An agent that stops, however it stops, leaves its rules; one that starts again writes nothing.
    fn rules_outlive_the_agent_and_a_restart_writes_nothing(seed) {
        let manifests = Manifests::seed();
        let agent = seed.agent(&manifests, &[]);
        seed.wait_serves("vm03");
        let mut open = seed.vm01.tcp(VIP_80).unwrap();
        let standing = Snapshot::of(&seed.vm02);

        assert_eq!(agent.stop("TERM"), Some(0), "SIGTERM is a clean end");
        assert!(open.works());
        standing.assert_same(&Snapshot::of(&seed.vm02));
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"), "the fence stands without an agent");

        let counted = seed.dropped("SNET-FO-");
        assert!(counted > 0);
        let mut agent = seed.agent(&manifests, &[]);
        agent.wait_status(seconds(20), &[VIP]);
        std::thread::sleep(seconds(1));
        assert!(seed.dropped("SNET-FO-") >= counted, "rewriting a chain would reset its counters");
        standing.assert_same(&Snapshot::of(&seed.vm02));
        assert!(open.works(), "nor is a flow lost");

        agent.stop("KILL");
        assert!(open.works());
        standing.assert_same(&Snapshot::of(&seed.vm02));
        let _agent = seed.agent(&manifests, &[]);
        std::thread::sleep(seconds(1));
        assert!(open.works());
        assert_eq!(seed.vm01.tcp(VIP_80).unwrap().server, "vm03");
        standing.assert_same(&Snapshot::of(&seed.vm02));
        assert!(seed.dropped("SNET-FO-") >= counted);
    }

    /// With Preserve the VM sees the client's own address; production's gateway address, answered by the gateway, is its way back.
    fn preserve_shows_the_client_and_gateway_addresses_bring_answers_home(seed) {
        seed.gw_b.sh("ip link set eth0 down");
        let manifests = Manifests::empty("preserve");
        manifests.write(
            "network.yaml",
            &network("segment-b", "192.168.100.0/24", "192.168.200.0/24", "sourceTranslation: Preserve")
                .replace("    interface: eth1\n", "    interface: eth1\n    gatewayAddresses: [192.168.200.254]\n"),
        );
        manifests.mapping("vm03", VIP, "192.168.200.3", "");
        manifests.mapping("vm04", "192.168.100.4", "192.168.200.4", "sourceTranslation: Masquerade");
        let before = Snapshot::of(&seed.vm02);
        seed.converge(&manifests);
        let seen = seed.vm01.tcp(VIP_80).expect("tcp with the client's own address").seen_as.ip().to_string();
        assert_eq!(seen, "192.168.100.1");
        let seen = seed.vm01.tcp("192.168.100.4:80").expect("the mapping with its own setting").seen_as.ip().to_string();
        assert!(seen == "192.168.200.2" || seen == "192.168.200.254", "{seen} is the gateway's");
        assert_eq!(seed.vm01.udp(VIP_80).unwrap().1.ip().to_string(), "192.168.100.1");
        assert!(seed.vm03.echoes("192.168.200.254"));
        seed.cleanup();
        before.assert_same(&Snapshot::of(&seed.vm02));
    }

    /// VMs inside may use each other's virtual addresses, and their own.
    fn hairpin_works(seed) {
        seed.converge(&Manifests::seed());
        assert_eq!(seed.vm04.tcp(VIP_80).expect("another VM").server, "vm03");
        assert_eq!(seed.vm03.tcp(VIP_80).expect("itself").server, "vm03");
    }
}

/// Replaces an address in the seed's mapping file.
fn edit_mapping(manifests: &Manifests, old: &str, new: &str) {
    let file = format!("{}/mapping.yaml", manifests.path());
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(old));
    manifests.write("mapping.yaml", &text.replace(old, new));
}
