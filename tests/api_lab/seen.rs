//! What people see: Events (each happening once, with a count), metrics with the right values, and logs in which every line is JSON and names its object.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::ROOT;
use crate::lab::{self, Agent, Api, Backend, Ns, Seed, VIP, VIP_80, bridge::attach, isolated_with_api, seconds, wait_until};

/// An address that a host outside has, whom nobody knows.
const TAKEN: &str = "192.168.100.66";
const JSON: &[(&str, &str)] = &[("STAGENET_LOG_FORMAT", "json"), ("STAGENET_LOG_LEVEL", "info,stagenet=debug")];

/// The seed with a second gateway, vm05, which nobody has chosen yet.
struct Scene {
    api: Api,
    seed: Seed,
    vm05: Ns,
    controller: Agent,
    agents: Vec<Agent>,
}

impl Scene {
    fn new(bin: &std::path::Path) -> Self {
        let seed = Seed::new(Backend::Nft);
        let vm05 = Ns::new("vm05");
        attach(&seed.segment_a, "br0", "p-vm05", &vm05, "eth0");
        attach(&seed.segment_b, "br0", "p-vm05", &vm05, "eth1");
        vm05.sh("ip addr add 192.168.100.5/24 dev eth0 && ip addr add 192.168.200.5/24 dev eth1");
        seed.gw_a.sh(&format!("ip addr add {TAKEN}/24 dev eth0"));
        let api = Api::start(bin);
        let first = api.join(&seed.vm02, "10.99.0.2", "stagenet.dev/gateway: \"true\"");
        let second = api.join(&vm05, "10.99.0.5", "role: spare");
        let agent = |node: &Ns, kubeconfig: &str| {
            let state = format!("/run/lab/state-{}", node.name());
            let args = ["--node", node.name(), "--state-dir", &state, "--resync", "5"];
            Agent::run_in(node, "agent", kubeconfig, &args, JSON)
        };
        let controller = Agent::run_in(&api.host, "controller", &api.controller(), &[], JSON);
        let agents = vec![agent(&seed.vm02, &first), agent(&vm05, &second)];
        Self {
            api,
            seed,
            vm05,
            controller,
            agents,
        }
    }

    fn events(&self) -> Vec<Value> {
        let list = self.api.kubectl("get events.events.k8s.io -A -o json");
        let list: Value = serde_json::from_str(&list).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Waits for one Event of `reason` about an object that has all of `words` in its note and has happened `count` times, and checks that there is no second one.
    fn told(&self, (kind, name): (&str, &str), warning: bool, reason: &str, words: &[&str], count: u64) {
        let about = |event: &Value| event["regarding"]["kind"] == kind && event["regarding"]["name"] == name && event["reason"] == reason;
        let says = |event: &Value| words.iter().all(|word| event["note"].as_str().unwrap().contains(word));
        let mut found = Vec::new();
        let what = format!("{kind} {name}: {reason} with {words:?}, {count} times");
        wait_until(seconds(60), &what, || {
            found = self.events();
            found.retain(|event| about(event) && says(event));
            found.iter().any(|event| event["series"]["count"].as_u64().unwrap_or(1) >= count)
        });
        assert_eq!(found.len(), 1, "{what}: {found:#?}");
        let event = &found[0];
        assert_eq!(event["series"]["count"].as_u64().unwrap_or(1), count, "{what}");
        assert_eq!(event["type"], if warning { "Warning" } else { "Normal" }, "{what}");
        let plural = match kind {
            "NatMapping" => "natmapping",
            "StagingNetwork" => "stagingnetwork",
            _ => "gatewaynode",
        };
        let uid = self.api.field(&format!("{plural}/{name}"), ".metadata.uid");
        assert_eq!(event["regarding"]["uid"], uid.as_str(), "{what}: kubectl describe asks for it");
    }

    fn claim(&self, name: &str, address: &str) {
        self.api.kubectl(&format!(
            "patch natmapping/{name} --type=merge -p '{{\"spec\":{{\"virtual\":{{\"address\":\"{address}\"}}}}}}'"
        ));
    }

    /// Chooses the nodes that serve.
    fn serve(&self, on: &str, off: &str) {
        self.api.kubectl(&format!("label node {on} stagenet.dev/gateway=true --overwrite"));
        wait_until(seconds(60), &format!("{on} to stand by"), || {
            self.api
                .field(&format!("gwnode/{on}"), ".status.networks[?(@.name==\"segment-b\")].fenced")
                == "true"
        });
        self.api.kubectl(&format!("label node {off} stagenet.dev/gateway-"));
        wait_until(seconds(60), &format!("{on} to serve"), || {
            self.api.field("snet/segment-b", ".status.activeGateway.node") == on
        });
        self.api.wait_ready_mapping("vm03");
    }
}

#[test]
fn what_happens_is_told_counted_and_logged() {
    isolated_with_api("seen::what_happens_is_told_counted_and_logged", |bin| {
        let mut scene = Scene::new(bin);
        claims_are_told(&scene);
        strangers_and_drift_are_told(&scene);
        metrics_have_the_right_values(&scene);
        moves_are_told(&scene);
        nothing_is_told_twice(&scene);
        every_line_is_json_and_names_its_object(&mut scene);
    });
}

fn claims_are_told(scene: &Scene) {
    let api = &scene.api;
    api.kubectl(&format!("apply -f {ROOT}/examples/seed/network.yaml"));
    wait_until(seconds(60), "the network to be Ready", || {
        api.field("snet/segment-b", ".status.conditions[?(@.type==\"Ready\")].status") == "True"
    });
    scene.told(("StagingNetwork", "segment-b"), false, "GatewayElected", &["vm02 attracts"], 1);
    scene.told(("StagingNetwork", "segment-b"), false, "Programmed", &["fence"], 1);

    api.kubectl(&format!("apply -f {ROOT}/examples/seed"));
    api.wait_ready_mapping("vm03");
    scene.told(("NatMapping", "vm03"), false, "Programmed", &["192.168.200.3 through vm02"], 1);

    api.apply(&lab::mapping("elsewhere", "segment-b", "203.0.113.1", "192.168.200.4", ""));
    scene.told(
        ("NatMapping", "elsewhere"),
        true,
        "OutsidePool",
        &["pool of network segment-b", "203.0.113.1"],
        1,
    );

    api.apply(&lab::mapping("rival", "segment-b", VIP, "192.168.200.4", ""));
    scene.told(
        ("NatMapping", "rival"),
        true,
        "Conflict",
        &["NatMapping vm03 holds 192.168.100.3"],
        1,
    );
    scene.claim("rival", "192.168.100.7");
    api.wait_ready_mapping("rival");
    scene.told(("NatMapping", "rival"), false, "Programmed", &["192.168.100.7 leads to"], 1);
    scene.claim("rival", VIP);
    scene.told(
        ("NatMapping", "rival"),
        true,
        "Conflict",
        &["NatMapping vm03 holds 192.168.100.3"],
        2,
    );
}

fn strangers_and_drift_are_told(scene: &Scene) {
    let link = scene.seed.gw_a.sh("ip -o link show eth0");
    let mac = link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    scene.api.apply(&lab::mapping("taken", "segment-b", TAKEN, "192.168.200.4", ""));
    scene.told(("NatMapping", "taken"), true, "AddressInUse", &[mac, TAKEN], 1);
    scene.told(("GatewayNode", "vm02"), true, "AddressInUse", &["default/taken", mac, TAKEN], 1);

    let flush = || {
        // A rule is there to be taken away, also after the repair before.
        wait_until(seconds(30), "the translation", || scene.seed.vm01.tcp(VIP_80).is_some());
        scene.seed.iptables("-t nat -F SNET-DNAT");
    };
    for count in 1..=3 {
        flush();
        scene.told(("GatewayNode", "vm02"), true, "DriftRepaired", &["SNET-DNAT", "put back"], count);
    }
    for (object, reason) in [
        ("gatewaynode vm02", "DriftRepaired"),
        ("natmapping rival", "Conflict"),
        ("natmapping taken", "AddressInUse"),
    ] {
        let described = scene.api.kubectl(&format!("describe {object}"));
        let events = described.split("Events:").nth(1).unwrap_or_default();
        assert!(events.contains(reason), "{reason} in what is said of {object}:\n{described}");
    }
}

fn moves_are_told(scene: &Scene) {
    // A gateway of which a controller that has just started has heard no second time takes over from nobody.
    let heartbeat = || scene.api.field("-n stagenet-system lease/stagenet-agent-vm05", ".spec.renewTime");
    let before = heartbeat();
    wait_until(seconds(60), "the spare's next heartbeat", || heartbeat() != before);
    for count in 1..=2 {
        scene.serve("vm05", "vm02");
        scene.told(
            ("StagingNetwork", "segment-b"),
            false,
            "GatewayMoved",
            &["vm05", "instead of vm02"],
            count,
        );
        scene.serve("vm02", "vm05");
    }
    scene.told(
        ("StagingNetwork", "segment-b"),
        false,
        "GatewayMoved",
        &["vm02", "instead of vm05"],
        2,
    );
    assert!(scene.vm05.sh("ip route show proto 211").is_empty(), "the spare serves nothing");
}

/// Of all that was said there is one Event each: no two about one object have the same words from the same program.
fn nothing_is_told_twice(scene: &Scene) {
    let mut seen = BTreeSet::new();
    for event in scene.events() {
        let field = |path: &str| event.pointer(path).map(ToString::to_string).unwrap_or_default();
        let words = ["/regarding/uid", "/reason", "/note", "/reportingController", "/reportingInstance"].map(field);
        assert!(seen.insert(words.clone()), "said in two Events: {words:?}");
        let program = event["reportingController"].as_str().unwrap();
        assert!(["stagenet-agent", "stagenet-controller"].contains(&program), "{event}");
    }
    assert!(seen.len() >= 10, "{seen:#?}");
}

/// The samples of a page by name and labels.
fn samples(host: &Ns, port: u16) -> BTreeMap<String, f64> {
    let page = host.http(port, "metrics");
    let body = page.split("\r\n\r\n").nth(1).unwrap_or_default();
    let lines = body.lines().filter(|line| line.starts_with("stagenet_"));
    let sample = |line: &str| Some((line.rsplit_once(' ')?.0.to_owned(), line.rsplit_once(' ')?.1.parse().ok()?));
    lines.filter_map(sample).collect()
}

fn metrics_have_the_right_values(scene: &Scene) {
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.unwrap().as_secs_f64()
    };
    // Of the two refused claims the gateway knows as well as the controller.
    let wanted = [
        ("stagenet_agent_mappings{state=\"programmed\"}", 1.0),
        ("stagenet_agent_mappings{state=\"failed\"}", 1.0),
        ("stagenet_agent_mappings{state=\"refused\"}", 2.0),
        ("stagenet_agent_networks{role=\"active\"}", 1.0),
        ("stagenet_agent_fenced_networks", 1.0),
        ("stagenet_agent_drift_repairs_total{table=\"nat\"}", 3.0),
        ("stagenet_agent_condition{condition=\"Permissions\",status=\"true\"}", 1.0),
        ("stagenet_agent_condition{condition=\"Permissions\",status=\"false\"}", 0.0),
        ("stagenet_agent_condition{condition=\"Fence\",status=\"true\"}", 1.0),
        ("stagenet_agent_condition{condition=\"Ready\",status=\"false\"}", 1.0),
        ("stagenet_agent_condition{condition=\"Drifted\",status=\"true\"}", 0.0),
    ];
    let objects = |kind: &str, ready: &str, reason: &str| {
        format!("stagenet_controller_objects{{kind=\"{kind}\",ready=\"{ready}\",reason=\"{reason}\"}}")
    };
    let counted = [
        (objects("NatMapping", "True", "Ready"), 1.0),
        (objects("NatMapping", "False", "Conflict"), 1.0),
        (objects("NatMapping", "False", "OutsidePool"), 1.0),
        (objects("NatMapping", "False", "AddressInUse"), 1.0),
        (objects("StagingNetwork", "True", "Ready"), 1.0),
        (objects("GatewayNode", "False", "Degraded"), 1.0),
        (objects("GatewayNode", "True", "NothingToDo"), 1.0),
        ("stagenet_controller_leader".to_owned(), 1.0),
    ];
    let (mut gateway, mut controller) = (BTreeMap::new(), BTreeMap::new());
    wait_until(seconds(60), "the metrics to say what is", || {
        (gateway, controller) = (samples(&scene.seed.vm02, 9469), samples(&scene.api.host, 9470));
        let of_gateway = wanted.iter().all(|(name, value)| gateway.get(*name) == Some(value));
        let differ = counted.iter().filter(|(name, value)| controller.get(name) != Some(value));
        if !of_gateway || differ.clone().count() > 0 {
            let wrong: Vec<_> = wanted.iter().filter(|(name, value)| gateway.get(*name) != Some(value)).collect();
            eprintln!("not yet: {wrong:?} {:?}", differ.collect::<Vec<_>>());
            std::thread::sleep(seconds(1));
            return false;
        }
        true
    });
    for (page, name) in [
        (&gateway, "stagenet_agent_last_success_timestamp_seconds"),
        (&gateway, "stagenet_agent_api_last_success_timestamp_seconds"),
        (&controller, "stagenet_controller_last_success_timestamp_seconds"),
    ] {
        let age = now() - page[name];
        assert!((-1.0..120.0).contains(&age), "{name}: {age} s ago");
    }
    let passes = gateway["stagenet_agent_apply_duration_seconds_count"];
    let results: f64 = gateway
        .iter()
        .filter(|(name, _)| name.starts_with("stagenet_agent_applies_total"))
        .map(|(_, n)| n)
        .sum();
    assert!(passes >= 4.0 && (passes - results).abs() < 0.5, "{passes} {results}");
    assert!(gateway["stagenet_agent_apply_duration_seconds_sum"] > 0.0);

    let (_open, limit) = (
        scene.seed.vm01.tcp(VIP_80).unwrap(),
        scene.seed.vm02.sh("cat /proc/sys/net/netfilter/nf_conntrack_max"),
    );
    wait_until(seconds(60), "the connection to be counted", || {
        gateway = samples(&scene.seed.vm02, 9469);
        gateway["stagenet_agent_conntrack_entries"] >= 1.0
    });
    let told = gateway["stagenet_agent_conntrack_entries_limit"];
    assert!((told - limit.trim().parse::<f64>().unwrap()).abs() < 0.5, "{told}");
    assert!(
        !gateway.keys().any(|name| name.contains("mapping=")),
        "no series names a mapping unless it is asked for"
    );
}

fn every_line_is_json_and_names_its_object(scene: &mut Scene) {
    for process in scene.agents.iter_mut().chain([&mut scene.controller]) {
        process.assert_alive();
    }
    let mut about = BTreeSet::new();
    let logs = scene.agents.iter().chain([&scene.controller]).map(Agent::log);
    for (n, log) in logs.enumerate() {
        assert!(log.lines().count() > 5, "{log}");
        for line in log.lines() {
            let said: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            for field in ["timestamp", "level", "target", "message"] {
                assert!(said[field].is_string(), "no {field}: {line}");
            }
            if let Some(object) = said["object"].as_str() {
                let well = object.split_once(' ').is_some_and(|(kind, name)| {
                    kind.starts_with(|c: char| c.is_ascii_uppercase()) && !name.is_empty() && !name.contains(' ')
                });
                assert!(well, "{line}");
                about.insert((n, object.to_owned(), said["reason"].as_str().unwrap_or_default().to_owned()));
            } else {
                let message = said["message"].as_str().unwrap();
                for name in ["default/vm03", "default/rival", "default/taken", "default/elsewhere"] {
                    assert!(!message.contains(name), "about an object that it does not name: {line}");
                }
            }
        }
    }
    for (n, object, reason) in [
        (0, "NatMapping default/taken", "AddressInUse"),
        (0, "GatewayNode vm02", ""),
        (2, "NatMapping default/taken", "AddressInUse"),
        (2, "NatMapping default/rival", "Conflict"),
        (2, "NatMapping default/vm03", "Programmed"),
        (2, "StagingNetwork segment-b", "GatewayMoved"),
        (2, "Lease stagenet-system/stagenet-controller", ""),
    ] {
        let wanted = (n, object.to_owned(), reason.to_owned());
        assert!(about.contains(&wanted), "{wanted:?} in {about:#?}");
    }
}
