//! What flowed and what was denied, as `/counters` of the running agent tells it, with real packets.

#![allow(clippy::unwrap_used, clippy::panic)]

#[macro_use]
mod lab;

use lab::{Agent, Manifests, Seed, VIP_80, seconds, wait_until};
use serde_json::Value;

const ADDRESS: &str = "127.0.0.1:9470";

fn agent(seed: &Seed, manifests: &Manifests, more: &[&str]) -> Agent {
    seed.agent(manifests, &[&["--listen", ADDRESS], more].concat())
}

/// A page of the agent, not one that was made before: those are a second old at most.
fn page(seed: &Seed, path: &str) -> String {
    std::thread::sleep(seconds(1) + seconds(1) / 5);
    seed.vm02.sh(&format!("curl -sS --fail http://{ADDRESS}{path}"))
}

fn counters(seed: &Seed) -> Value {
    serde_json::from_str(&page(seed, "/counters")).unwrap()
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

fn denied(page: &Value, direction: &str) -> u64 {
    let all = page["denied"].as_array().unwrap().iter();
    all.filter(|entry| entry["network"] == "segment-b" && entry["direction"] == direction)
        .map(|entry| entry["packets"].as_u64().unwrap())
        .sum()
}

labs! {
    fn connections_are_counted_once_each_and_go_on_when_rules_are_written_anew(seed) {
        let manifests = Manifests::empty("counted");
        manifests.network("");
        manifests.mapping("web", "192.168.100.3", "192.168.200.3", "");
        let mut agent = agent(seed, &manifests, &[]);
        seed.wait_serves("vm03");
        let first = counters(seed);
        let before = dialled(&first, "default/web");
        for _ in 0..5 {
            assert_eq!(seed.vm01.tcp(VIP_80).unwrap().server, "vm03");
        }
        let now = counters(seed);
        assert_eq!(dialled(&now, "default/web"), before + 5, "one each, however many packets: {now}");
        let web = &mapping(&now, "default/web")["dialled"];
        assert!(web["bytes"].as_u64().unwrap() >= 5 * 40 && web["lastHit"].is_string(), "{now}");

        // The chain that the rule is in is written anew, with another mapping beside it.
        assert_eq!(seed.vm01.tcp(VIP_80).unwrap().server, "vm03");
        manifests.mapping("web2", "192.168.100.4", "192.168.200.3", "");
        wait_until(seconds(10), "the second mapping", || seed.vm01.tcp("192.168.100.4:80").is_some());
        let now = counters(seed);
        assert_eq!(dialled(&now, "default/web"), before + 6, "{now}");
        assert!(dialled(&now, "default/web2") >= 1, "{now}");
        manifests.remove("web2.yaml");
        wait_until(seconds(10), "its end", || !counters(seed).to_string().contains("web2"));
        assert_eq!(dialled(&counters(seed), "default/web"), before + 6);
        agent.assert_alive();
    }

    fn denied_packets_are_counted_by_direction(seed) {
        let manifests = Manifests::seed();
        let mut agent = agent(seed, &manifests, &["--metrics-per-mapping", "1"]);
        seed.wait_serves("vm03");
        let before = counters(seed);
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"));
        let now = counters(seed);
        assert!(denied(&now, "out") > denied(&before, "out"), "{now}");
        assert_eq!(denied(&now, "node"), denied(&before, "node"), "{now}");
        assert!(seed.vm03.tcp_is_dropped("192.168.200.2:81"), "the gateway itself");
        let now = counters(seed);
        assert!(denied(&now, "node") > denied(&before, "node"), "{now}");

        wait_until(seconds(40), "the metrics to tell it", || {
            let metrics = page(seed, "/metrics");
            metrics.contains("stagenet_agent_denied_packets_total{network=\"segment-b\",direction=\"out\"}")
                && metrics.contains("stagenet_agent_mapping_packets_total{mapping=")
        });
        agent.assert_alive();
    }
}
