//! What flowed and what was denied, as `/counters` of the running agent tells it, with real packets.

#![allow(clippy::unwrap_used, clippy::panic)]

#[macro_use]
mod lab;

use std::collections::BTreeSet;
use std::net::UdpSocket;

use lab::dual::{CLIENT, DB, DNS, GATEWAY, GATEWAY_INSIDE, VIRTUAL_DB, VIRTUAL_WEB, WEB, at};
use lab::{Dual, Manifests, Ns, VIP_80, seconds, wait_until};
use serde_json::Value;

const ADDRESS: &str = "127.0.0.1:9470";

/// A page of the agent, not one that was made before: those are a second old at most.
fn page(gateway: &Ns, path: &str) -> String {
    std::thread::sleep(seconds(1) + seconds(1) / 5);
    gateway.sh(&format!("curl -sS --fail http://{ADDRESS}{path}"))
}

fn counters(gateway: &Ns) -> Value {
    serde_json::from_str(&page(gateway, "/counters")).unwrap()
}

fn mapping<'v>(page: &'v Value, name: &str) -> &'v Value {
    let all = page["mappings"].as_array().unwrap();
    all.iter()
        .find(|mapping| mapping["mapping"] == name)
        .unwrap_or_else(|| panic!("no {name} in {page}"))
}

fn dialled(page: &Value, name: &str) -> u64 {
    mapping(page, name)["dialled"]["packets"].as_u64().unwrap()
}

fn left(page: &Value, name: &str) -> u64 {
    mapping(page, name)["left"]["packets"].as_u64().unwrap()
}

/// Packets denied in a direction, of all networks: there is one.
fn denied(page: &Value, direction: &str) -> u64 {
    let all = page["denied"].as_array().unwrap().iter();
    all.filter(|entry| entry["direction"] == direction)
        .map(|entry| entry["packets"].as_u64().unwrap())
        .sum()
}

/// Sends so many datagrams that nobody answers.
fn send(from: &Ns, to: &str, count: u64) {
    let socket = from
        .enter(|| UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }))
        .unwrap();
    for _ in 0..count {
        socket.send_to(b"anybody?", to).unwrap();
    }
}

/// Both families: what is denied, each direction by itself, and connections of mappings both ways; and of the mappings as many in the metrics as were asked for.
fn both_families_are_counted(dual: &Dual) {
    let egress = format!(
        "egress: {{default: Deny, allow: [{{to: {}/32}}, {{to: \"{}/128\"}}]}}",
        CLIENT[0], CLIENT[1]
    );
    dual.network("", "", &egress);
    dual.mappings("web", VIRTUAL_WEB, WEB, "");
    dual.mappings("db", VIRTUAL_DB, DB, "ports: [{protocol: TCP, port: 80}]");
    dual.client
        .sh("ip route add 192.168.200.0/24 via 192.168.100.2 && ip route add fd00:200::/64 via fd00:100::2");
    let mut agent = dual.agent(&["--listen", ADDRESS, "--metrics-per-mapping", "3"]);
    let serves = |to: &[&str; 2], who: &str| to.iter().all(|a| dual.client.tcp(&at(a, 80)).is_some_and(|c| c.server == who));
    wait_until(seconds(20), "all mappings", || {
        serves(&VIRTUAL_WEB, "web") && serves(&VIRTUAL_DB, "db")
    });
    for (n, family) in [(0, "IPv4"), (1, "IPv6")] {
        // Who is asked for a hardware address first keeps but a few packets.
        assert!(dual.web.echoes(GATEWAY_INSIDE[n]) && dual.client.echoes(GATEWAY[n]), "neighbours");
        let name = |stem: &str| format!("default/{stem}{}", [4, 6][n]);
        let before = counters(&dual.gateway);
        send(&dual.web, &at(DNS[n], 80), 2);
        send(&dual.client, &at(DB[n], 80), 3);
        send(&dual.web, &at(GATEWAY_INSIDE[n], 81), 4);
        send(&dual.client, &at(VIRTUAL_DB[n], 81), 5);
        for _ in 0..6 {
            assert!(dual.client.tcp(&at(VIRTUAL_DB[n], 80)).is_some() && dual.web.tcp(&at(CLIENT[n], 80)).is_some());
        }
        let now = counters(&dual.gateway);
        for (direction, packets) in [("out", 2), ("in", 3), ("unmapped", 5)] {
            assert_eq!(
                denied(&now, direction) - denied(&before, direction),
                packets,
                "{family}, {direction}: {before} {now}"
            );
        }
        // Machines say other things to the node than these.
        assert!(
            denied(&now, "node") >= denied(&before, "node") + 4,
            "{family}, node: {before} {now}"
        );
        assert_eq!(dialled(&now, &name("db")) - dialled(&before, &name("db")), 6, "{family}: {now}");
        assert_eq!(left(&now, &name("web")) - left(&before, &name("web")), 6, "{family}: {now}");
        assert_eq!(mapping(&now, &name("db"))["left"], Value::Null, "without a whole address: {now}");
        assert_eq!(dialled(&now, &name("web")), dialled(&before, &name("web")), "{family}: {now}");
    }
    wait_until(seconds(40), "the metrics to tell it", || {
        let metrics = page(&dual.gateway, "/metrics");
        let named: BTreeSet<_> = metrics
            .lines()
            .filter_map(|l| l.split_once("mapping=\"")?.1.split('"').next())
            .collect();
        assert!(
            named.is_empty() || named == BTreeSet::from(["default/db4", "default/db6", "default/web4"]),
            "the first three by name: {named:?}"
        );
        let tells = |words: &str| metrics.lines().any(|l| l.starts_with(words) && !l.ends_with(" 0"));
        ["in", "out", "node", "unmapped"].iter().all(|direction| {
            tells(&format!(
                "stagenet_agent_denied_packets_total{{network=\"closed\",direction=\"{direction}\"}}"
            ))
        }) && tells("stagenet_agent_mapping_packets_total{mapping=\"default/db6\",way=\"dialled\"}")
            && metrics.contains("stagenet_agent_mappings_without_series 1\n")
    });
    agent.assert_alive();
}

mod both_families {
    use crate::lab::{Backend, Dual, Wiring, isolated};

    #[test]
    fn nft() {
        isolated("both_families::nft", || {
            super::both_families_are_counted(&Dual::new(Backend::Nft, Wiring::Filtered));
        });
    }

    #[test]
    fn legacy() {
        isolated("both_families::legacy", || {
            super::both_families_are_counted(&Dual::new(Backend::Legacy, Wiring::Cable));
        });
    }
}

labs! {
    fn connections_are_counted_once_each_and_go_on_when_rules_are_written_anew(seed) {
        let manifests = Manifests::empty("counted");
        manifests.network("");
        manifests.mapping("web", "192.168.100.3", "192.168.200.3", "");
        let mut agent = seed.agent(&manifests, &["--listen", ADDRESS]);
        seed.wait_serves("vm03");
        let first = counters(&seed.vm02);
        let before = dialled(&first, "default/web");
        for _ in 0..5 {
            assert_eq!(seed.vm01.tcp(VIP_80).unwrap().server, "vm03");
        }
        let now = counters(&seed.vm02);
        assert_eq!(dialled(&now, "default/web"), before + 5, "one each, however many packets: {now}");
        let web = &mapping(&now, "default/web")["dialled"];
        assert!(web["bytes"].as_u64().unwrap() >= 5 * 40 && web["lastHit"].is_string(), "{now}");

        // The chain that the rule is in is written anew, with another mapping beside it.
        assert_eq!(seed.vm01.tcp(VIP_80).unwrap().server, "vm03");
        manifests.mapping("web2", "192.168.100.4", "192.168.200.3", "");
        wait_until(seconds(10), "the second mapping", || seed.vm01.tcp("192.168.100.4:80").is_some());
        let now = counters(&seed.vm02);
        assert_eq!(dialled(&now, "default/web"), before + 6, "{now}");
        assert!(dialled(&now, "default/web2") >= 1, "{now}");
        manifests.remove("web2.yaml");
        wait_until(seconds(10), "its end", || !counters(&seed.vm02).to_string().contains("web2"));
        assert_eq!(dialled(&counters(&seed.vm02), "default/web"), before + 6);

        // The metrics have read all that, and name no mapping.
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"));
        wait_until(seconds(40), "the metrics to tell what was denied", || {
            let metrics = page(&seed.vm02, "/metrics");
            assert!(!metrics.contains("mapping=") && !metrics.contains("default/web"), "{metrics}");
            metrics.contains("stagenet_agent_denied_packets_total{network=\"segment-b\",direction=\"out\"}")
        });
        agent.assert_alive();
    }
}
