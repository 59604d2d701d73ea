//! IPv6 as IPv4: what a mapping lets through, whom clients ask for the address, who may not lose it, and what the node has to be set to.

use crate::lab::dual::{CLIENT, DB, GATEWAY_INSIDE, VIRTUAL_DB, VIRTUAL_WEB, WEB, at};
use crate::lab::{Conversation, Snapshot, seconds, wait_until};

const VIP: &str = VIRTUAL_WEB[1];

ways! {
    /// All protocols, as whom the machine sees the client, and no trace afterwards.
    fn a_mapping_lets_every_protocol_through_and_goes_without_a_trace(dual) {
        let before = Snapshot::of(&dual.gateway);
        dual.network("", "", "");
        dual.mapping("web", VIP, WEB[1], "");
        dual.mapping("db", VIRTUAL_DB[1], DB[1], "sourceTranslation: Preserve");
        let status = dual.converge();
        assert_eq!(status.announcement("web"), Some("Neighbour"));
        assert!(dual.client.echoes(VIP) && dual.router.echoes(VIP), "any host of the segment is a client");
        let mut open = dual.client.tcp(&at(VIP, 80)).unwrap_or_else(|| panic!("{}", dual.rules()));
        assert_eq!((open.server.as_str(), open.seen_as.ip().to_string().as_str()), ("web", GATEWAY_INSIDE[1]));
        assert_eq!(dual.client.udp(&at(VIP, 80)).expect("UDP").0, "web");
        let preserved = dual.client.tcp(&at(VIRTUAL_DB[1], 80)).expect("with the client's own address");
        assert_eq!(preserved.seen_as.ip().to_string(), CLIENT[1]);
        assert_eq!(dual.internet.tcp(&at(VIP, 80)).expect("from beyond the router").server, "web");
        assert!(!dual.gateway.sh("ip -6 -o addr").contains(VIP), "no host owns the address");
        for (n, target) in WEB.iter().enumerate() {
            dual.is_denied(1, "out", || dual.web.tcp_is_dropped(&at(CLIENT[n], 80)));
            dual.client.sh(&format!("ip route add {target} via {}", crate::lab::dual::GATEWAY[n]));
            dual.is_denied(1, "in, directly", || dual.client.tcp_is_dropped(&at(target, 80)));
        }
        dual.cleanup();
        assert!(open.is_cut(), "an open connection does not outlive the mapping");
        assert!(!dual.client.ping(VIP));
        before.assert_same(&Snapshot::of(&dual.gateway));
    }

    /// Ports, with a shift; the rest of the address is dropped and counted.
    fn ports_lead_where_they_are_mapped(dual) {
        dual.network("", "", "");
        dual.mapping("web", VIP, WEB[1], "ports:\n- {protocol: TCP, port: 443, targetPort: 80}\n- {protocol: UDP, port: 80}\n- {protocol: TCP, port: 8000, endPort: 8002, targetPort: 9000}");
        dual.mapping("db", VIP, DB[1], "ports: [{protocol: TCP, port: 80}]");
        dual.converge();
        let _shifted = dual.web.serve(9001);
        assert_eq!(dual.client.tcp(&at(VIP, 443)).expect("a port of its own").server, "web");
        assert_eq!(dual.client.tcp(&at(VIP, 8001)).expect("a port of the range").server, "web");
        assert_eq!(dual.client.tcp(&at(VIP, 80)).expect("the other mapping").server, "db");
        assert_eq!(dual.client.udp(&at(VIP, 80)).expect("UDP").0, "web");
        let told = dual.client.watch("eth0", "icmp6 and ip6[40] = 1", || {
            dual.is_denied(1, "beyond the range", || dual.client.tcp_is_dropped(&at(VIP, 8003)));
            dual.is_denied(1, "the other protocol", || dual.client.udp(&at(VIP, 443)).is_none());
            dual.is_denied(1, "ping", || !dual.client.ping(VIP));
            dual.is_denied(1, "from inside", || dual.db.tcp_is_dropped(&at(VIP, 8003)));
        });
        assert!(told.is_empty(), "in silence: {told:#?}");
        assert_eq!(dual.client.tcp(&at(VIP, 443)).expect("neighbours still find it").server, "web");
    }

    /// Clients that know another place for the address learn the new one from the announcement; one that somebody has is not taken from them.
    fn an_address_is_announced_and_never_taken_from_its_owner(dual) {
        dual.router.sh(&format!("ip addr add {}/128 dev eth0 nodad", VIRTUAL_DB[1]));
        let _owner = dual.router.serve_as("owner", VIRTUAL_DB[1], 8080);
        let owner = dual.router.sh("ip -o link show eth0");
        let owner = owner.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        dual.client.sh(&format!("ip neigh replace {VIP} lladdr 02:00:00:00:00:99 dev eth0 nud stale"));
        dual.network("", "", "");
        dual.mapping("web", VIP, WEB[1], "");
        dual.mapping("db", VIRTUAL_DB[1], DB[1], "");
        let status = dual.half();
        status.assert_refused("db", "AddressInUse", &[owner, VIRTUAL_DB[1]]);
        assert!(status.is_ready("web"));
        let known = dual.client.sh(&format!("ip -6 neigh show {VIP}"));
        assert!(known.contains(&dual.mac()), "{known} does not name {}", dual.mac());
        assert_eq!(dual.client.tcp(&at(VIP, 80)).expect("the free one").server, "web");
        assert_eq!(dual.client.tcp(&at(VIRTUAL_DB[1], 8080)).expect("still its owner's").server, "owner");
    }

    /// Production's own gateway address, answered by the gateway in both families, is the machines' way back.
    fn gateway_addresses_bring_answers_home(dual) {
        for ns in [&dual.web, &dual.db] {
            ns.sh("ip route replace default via 192.168.200.254 && ip route replace default via fd00:200::fe");
        }
        let before = Snapshot::of(&dual.gateway);
        dual.network("", ", gatewayAddresses: [192.168.200.254, \"fd00:200::fe\"]", "sourceTranslation: Preserve\negress: {default: Allow}");
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.converge();
        for (n, gateway) in ["192.168.200.254", "fd00:200::fe"].iter().enumerate() {
            assert_eq!(dual.client.tcp(&at(VIRTUAL_WEB[n], 80)).expect("in").seen_as.ip().to_string(), CLIENT[n]);
            assert_eq!(dual.web.tcp(&at(CLIENT[n], 80)).expect("out").seen_as.ip().to_string(), VIRTUAL_WEB[n]);
            assert!(dual.db.echoes(gateway), "{gateway}");
        }
        dual.cleanup();
        before.assert_same(&Snapshot::of(&dual.gateway));
    }

    /// What the agent may not set itself it asks for by name, and only what needs it waits.
    fn a_node_without_ipv6_forwarding_or_proxying_says_so(dual) {
        dual.network("", "", "");
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        for (file, word) in [("ipv6/conf/all/forwarding", "forwarding"), ("ipv6/conf/eth0/proxy_ndp", "proxy_ndp")] {
            dual.gateway.set(file, "0");
            let status = dual.half();
            status.assert_not_ready("web6", &[word]);
            assert!(status.is_ready("web4"), "{word}: IPv4 is not affected: {:?}", status.condition("web4", "Ready"));
            assert_eq!(dual.client.tcp(&at(VIRTUAL_WEB[0], 80)).expect("IPv4").server, "web");
            dual.gateway.set(file, "1");
            dual.converge();
            wait_until(seconds(10), "IPv6", || dual.client.tcp(&at(VIP, 80)).is_some_and(|c| c.server == "web"));
        }
    }

    /// An agent that runs follows changes of IPv6 mappings; connections of others, of either family, stay.
    fn a_running_agent_follows_changes(dual) {
        dual.network("", "", "");
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        let agent = dual.agent(&[]);
        let serves = |virtual_at: &str, name: Option<&str>| {
            wait_until(seconds(20), &format!("{virtual_at} to lead to {name:?}\n{}", agent.log()), || {
                dual.client.tcp(&at(virtual_at, 80)).map(|c| c.server).as_deref() == name
            });
        };
        serves(VIP, Some("web"));
        serves(VIRTUAL_WEB[0], Some("web"));
        let mut stay: Vec<_> = VIRTUAL_WEB.iter().map(|a| dual.client.tcp(&at(a, 80)).unwrap()).collect();
        dual.mapping("db", VIRTUAL_DB[1], DB[1], "");
        serves(VIRTUAL_DB[1], Some("db"));
        let mut open = dual.client.tcp(&at(VIRTUAL_DB[1], 80)).unwrap();
        dual.mapping("db", VIRTUAL_DB[1], WEB[1], "");
        serves(VIRTUAL_DB[1], Some("web"));
        wait_until(seconds(10), "the old connection to end", || open.is_cut());
        dual.manifests.remove("db.yaml");
        serves(VIRTUAL_DB[1], None);
        assert!(stay.iter_mut().all(Conversation::works));
    }
}
