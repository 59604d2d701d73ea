//! The seed experiment through Kubernetes: a real API server, the kinds and the rights of `crds/` and `deploy/`, agents and controller as
//! processes that have nothing but their service accounts' tokens.

#![allow(clippy::unwrap_used, clippy::panic, clippy::format_collect)]

mod claims;
mod clones;
mod handover;
#[path = "../lab/mod.rs"]
mod lab;
mod luck;
mod machines;
mod rights;
mod seen;
mod tenants;

use std::fs;
use std::path::Path;
use std::time::Duration;

use lab::{Agent, Api, Backend, Seed, Snapshot, VIP, VIP_80, isolated_with_api, seconds, wait_until};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The seed's hosts with vm02 as gateway node and vm01 as client node, agents and a controller at work.
struct Cluster {
    api: Api,
    seed: Seed,
    kubeconfigs: [String; 3],
    controller: Agent,
    gateway: Agent,
    client: Agent,
}

impl Cluster {
    fn start(bin: &Path, backend: Backend) -> Self {
        Self::start_with(bin, backend, &[])
    }

    /// The same with more flags for the API server.
    fn start_with(bin: &Path, backend: Backend, flags: &[&str]) -> Self {
        let seed = Seed::new(backend);
        let api = Api::start_with(bin, flags);
        let gateway = api.join(&seed.vm02, "10.99.0.2", "stagenet.dev/gateway: \"true\"");
        let client = api.join(&seed.vm01, "10.99.0.3", "role: client");
        let kubeconfigs = [api.controller(), gateway, client];
        Self {
            controller: controller(&api, &kubeconfigs[0]),
            gateway: agent(&seed.vm02, &kubeconfigs[1]),
            client: agent(&seed.vm01, &kubeconfigs[2]),
            api,
            seed,
            kubeconfigs,
        }
    }
}

fn controller(api: &Api, kubeconfig: &str) -> Agent {
    Agent::run(&api.host, "controller", kubeconfig, &[])
}

fn agent(node: &lab::Ns, kubeconfig: &str) -> Agent {
    let state = format!("/run/lab/state-{}", node.name());
    Agent::run(node, "agent", kubeconfig, &["--node", node.name(), "--state-dir", &state])
}

/// One claim from `kubectl apply` to `kubectl delete`.
#[test]
fn a_mapping_lives_and_dies_by_kubectl() {
    isolated_with_api("a_mapping_lives_and_dies_by_kubectl", |bin| {
        let mut c = Cluster::start(bin, Backend::Nft);
        c.api.kubectl(&format!("apply -f {ROOT}/examples/seed/network.yaml"));
        wait_until(seconds(30), "the fence", || c.seed.rules().contains("SNET-FO-"));
        wait_until(seconds(30), "a gateway", || {
            c.api.field("snet/segment-b", ".status.activeGateway.node") == "vm02"
        });
        wait_until(seconds(30), "the network to be Ready", || {
            c.api.field("snet/segment-b", ".status.conditions[?(@.type==\"Ready\")].status") == "True"
        });
        let without = Snapshot::of(&c.seed.vm02);

        c.api.kubectl(&format!("apply -f {ROOT}/examples/seed"));
        c.api.kubectl("wait --for=condition=Ready natmapping/vm03 --timeout=30s");
        let mut open = c.seed.vm01.tcp(VIP_80).expect("traffic flows once the mapping is Ready");
        assert_eq!(open.server, "vm03");
        assert!(c.seed.vm01.echoes(VIP));
        assert!(c.seed.vm03.tcp_is_dropped("192.168.100.1:80"));

        answers_what_people_ask(&c);
        c.seed.iptables("-t nat -F SNET-DNAT");
        let told = || {
            let of_the_node = "reason=DriftRepaired,involvedObject.kind=GatewayNode,involvedObject.name=vm02";
            c.api.kubectl(&format!(
                "get events --field-selector {of_the_node} -o jsonpath='{{.items[*].message}}'"
            ))
        };
        wait_until(seconds(20), "an Event about the repair", || told().contains("SNET-DNAT"));
        assert_eq!(told().matches("put back").count(), 1, "{}", told());
        for (kind, condition) in [
            ("natmapping/vm03", "Accepted"),
            ("natmapping/vm03", "ResolvedRefs"),
            ("natmapping/vm03", "Programmed"),
            ("gwnode/vm02", "Ready"),
        ] {
            let status = c.api.field(kind, &format!(".status.conditions[?(@.type==\"{condition}\")].status"));
            assert_eq!(status, "True", "{condition} of {kind}");
        }

        c.api
            .kubectl("patch natmapping/vm03 --type=merge -p '{\"spec\":{\"target\":{\"address\":\"192.168.200.4\"}}}'");
        c.api.wait_ready_mapping("vm03");
        assert_eq!(c.seed.vm01.tcp(VIP_80).expect("Ready means that traffic flows").server, "vm04");
        assert!(open.is_cut(), "the old target's connection has ended");

        c.api.apply(&lab::mapping("rival", "segment-b", VIP, "192.168.200.3", ""));
        wait_until(seconds(20), "the rival to be Conflicted", || {
            c.api
                .field("natmapping/rival", ".status.conditions[?(@.type==\"Conflicted\")].status")
                == "True"
        });
        assert_eq!(c.seed.vm01.tcp(VIP_80).unwrap().server, "vm04", "the older claim stands");
        wait_until(seconds(20), "an Event about the conflict", || {
            c.api.kubectl("get events").contains("natmapping/rival")
        });
        c.api.kubectl("delete natmapping/rival");

        let mut open = c.seed.vm01.tcp(VIP_80).unwrap();
        c.api.kubectl("delete natmapping/vm03");
        wait_until(seconds(20), "the rules to go", || Snapshot::of(&c.seed.vm02) == without);
        wait_until(seconds(20), "the flows to go", || c.seed.vm02.flows(VIP).is_empty());
        assert!(open.is_cut());
        assert!(c.seed.vm01.tcp(VIP_80).is_none());
        for process in [&mut c.controller, &mut c.gateway, &mut c.client] {
            process.assert_alive();
        }
    });
}

/// Columns, categories, selectors, `explain` and probes, with the seed's mapping in force.
fn answers_what_people_ask(c: &Cluster) {
    let table = c.api.kubectl("get natmap -o wide");
    for word in [
        "VIRTUAL",
        "TARGET",
        "NETWORK",
        "GATEWAY",
        "READY",
        "REASON",
        "AGE",
        VIP,
        "192.168.200.3",
        "segment-b",
        "vm02",
        "True",
    ] {
        assert!(table.contains(word), "{word} in\n{table}");
    }
    for (kind, columns) in [
        (
            "snet",
            [
                "POOL",
                "INSIDE",
                "GATEWAY",
                "READY",
                "192.168.100.0/24",
                "192.168.200.0/24",
                "vm02",
                "True",
            ],
        ),
        ("gwnode", ["BACKEND", "FAILURES", "READY", "AGE", "vm02", "nft", "0", "True"]),
    ] {
        let table = c.api.kubectl(&format!("get {kind}"));
        assert!(columns.iter().all(|word| table.contains(word)), "{columns:?} in\n{table}");
    }
    for kind in ["natmapping", "stagingnetwork", "gatewaynode"] {
        assert!(c.api.kubectl("get stagenet").contains(kind), "the category names all kinds");
    }
    let of = |network: &str| {
        c.api
            .kubectl(&format!("get natmap -o name --field-selector spec.networkRef.name={network}"))
    };
    assert_eq!(
        (of("segment-b").trim(), of("segment-c").trim()),
        ("natmapping.stagenet.dev/vm03", "")
    );
    for (host, port) in [(&c.api.host, 9470), (&c.seed.vm02, 9469), (&c.seed.vm01, 9469)] {
        for (page, word) in [("livez", "200 OK"), ("readyz", "200 OK"), ("metrics", "stagenet_build_info")] {
            let answer = host.http(port, page);
            assert!(answer.contains(word), "/{page} of the component on {}: {answer}", host.name());
        }
    }
    let explained = c
        .api
        .kubectl("explain natmapping.spec")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    for word in ["ports", "every protocol", "sourceTranslation", "networkRef"] {
        assert!(explained.contains(word), "{word} in\n{explained}");
    }
}

/// Whatever is killed, traffic goes on and everything converges again, without anything being written twice.
#[test]
fn traffic_survives_the_loss_of_every_component() {
    isolated_with_api("traffic_survives_the_loss_of_every_component", |bin| {
        let mut c = Cluster::start(bin, Backend::Nft);
        c.api.kubectl(&format!("apply -f {ROOT}/examples/seed"));
        c.api.kubectl("wait --for=condition=Ready natmapping/vm03 --timeout=40s");
        let mut open = c.seed.vm01.tcp(VIP_80).unwrap();
        assert!(c.seed.vm03.tcp_is_dropped("192.168.100.1:80"));
        let counted = c.seed.dropped("SNET-FO-");
        let standing = Snapshot::of(&c.seed.vm02);

        c.gateway.stop("KILL");
        c.controller.stop("KILL");
        assert!(open.works());
        standing.assert_same(&Snapshot::of(&c.seed.vm02));
        c.gateway = agent(&c.seed.vm02, &c.kubeconfigs[1]);
        c.controller = controller(&c.api, &c.kubeconfigs[0]);
        std::thread::sleep(seconds(3));
        assert!(open.works());
        standing.assert_same(&Snapshot::of(&c.seed.vm02));
        assert!(c.seed.dropped("SNET-FO-") >= counted, "a restart rewrites no chain");

        c.api.stop_server();
        assert!(open.works() && c.seed.vm01.tcp(VIP_80).is_some(), "traffic needs no API server");
        c.seed.iptables("-t nat -F SNET-DNAT");
        c.seed.vm02.sh("ip neigh del proxy 192.168.100.3 dev eth0");
        wait_until(seconds(10), "drift to be repaired without an API server", || {
            Snapshot::of(&c.seed.vm02) == standing
        });
        c.gateway.assert_alive();

        c.api.start_server();
        c.api.wait_ready();
        c.api
            .apply(&lab::mapping("late", "segment-b", "192.168.100.4", "192.168.200.4", ""));
        wait_until(seconds(90), "what was repaired meanwhile to be told", || {
            let events = c
                .api
                .kubectl("get events -o jsonpath='{.items[?(@.reason==\"DriftRepaired\")].message}'");
            events.contains("SNET-DNAT") && events.contains("proxy neighbour 192.168.100.3")
        });
        c.api.wait_ready_mapping("late");
        c.api.wait_ready_mapping("vm03");
        assert_eq!(c.seed.vm01.tcp("192.168.100.4:80").unwrap().server, "vm04");
        assert!(open.works());

        // At rest nothing is written: status moves with its meaning only.
        std::thread::sleep(seconds(2));
        let versions = |api: &Api| {
            api.kubectl(
                "get natmap,snet,gwnode -o jsonpath='{range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{\"\\n\"}{end}'",
            )
        };
        let before = versions(&c.api);
        std::thread::sleep(seconds(8));
        assert_eq!(before, versions(&c.api), "no write without a change");
        // This API server has counted since it came back: statuses of four objects, a few of them more than once while the picture became complete.
        let written = c.api.status_writes();
        assert!(
            (1..=40).contains(&written),
            "{written} status writes since the API server came back"
        );
        c.client.assert_alive();
    });
}

/// Nodes that the network selects as clients reach the pool through the active gateway; an agent writes its own report and no other;
/// a gateway that falls silent is not called Ready.
#[test]
fn nodes_have_their_roles_and_rights() {
    isolated_with_api("nodes_have_their_roles_and_rights", |bin| {
        let c = Cluster::start(bin, Backend::Nft);
        let network = lab::network("segment-b", "192.168.150.0/24", "192.168.200.0/24", "")
            .replace("nodeSelector: {}", "nodeSelector: {matchLabels: {stagenet.dev/gateway: \"true\"}}")
            .replace(
                "    interface: eth0\n",
                "    interface: eth0\n    announce: false\n    clientRoutes: {nodeSelector: {matchLabels: {role: client}}}\n",
            );
        c.api.apply(&network);
        c.api
            .apply(&lab::mapping("vm03", "segment-b", "192.168.150.3", "192.168.200.3", ""));
        c.api.wait_ready_mapping("vm03");
        wait_until(seconds(20), "the client's route", || {
            c.seed.vm01.sh("ip route").contains("192.168.150.0/24 via 192.168.100.2")
        });
        assert_eq!(c.seed.vm01.tcp("192.168.150.3:80").expect("through the route").server, "vm03");

        let other = c.api.kubectl_as(&c.kubeconfigs[2], "label gatewaynode/vm02 lie=true");
        assert!(other.code != 0 && other.stderr.contains("forbidden"), "{}", other.said());
        let spec = c.api.kubectl_as(&c.kubeconfigs[1], "delete natmapping/vm03");
        assert!(spec.code != 0 && spec.stderr.contains("forbidden"), "{}", spec.said());
        let spec = c.api.kubectl_as(
            &c.kubeconfigs[0],
            "patch natmapping/vm03 --type=merge -p '{\"metadata\":{\"labels\":{\"a\":\"b\"}}}'",
        );
        assert!(spec.code != 0 && spec.stderr.contains("forbidden"), "{}", spec.said());

        // A node that is selected no more loses the route, and gets it back with the label.
        let route = |seed: &Seed| seed.vm01.sh("ip route").contains("192.168.150.0/24");
        c.api.kubectl("label node vm01 role-");
        wait_until(seconds(20), "the client's route to go", || !route(&c.seed));
        c.api.kubectl("label node vm01 role=client");
        wait_until(seconds(20), "the client's route to come back", || route(&c.seed));

        c.gateway.stop("KILL");
        wait_until(seconds(120), "a silent gateway's mapping to be Unknown", || {
            c.api.field("natmapping/vm03", ".status.conditions[?(@.type==\"Ready\")].status") == "Unknown"
        });
        assert_eq!(c.seed.vm01.tcp("192.168.150.3:80").expect("its rules still serve").server, "vm03");

        c.api.kubectl("delete natmapping/vm03 snet/segment-b");
        wait_until(seconds(20), "the client's route to go with the network", || !route(&c.seed));
    });
}

/// The API server judges every fixture as its folder says.
#[test]
fn the_api_server_judges_as_the_fixtures_say() {
    isolated_with_api("the_api_server_judges_as_the_fixtures_say", |bin| {
        let api = Api::start(bin);
        wait_until(Duration::from_secs(20), "namespace default", || {
            api.try_kubectl("get namespace default").code == 0
        });
        let (mut valid, mut invalid) = (0, 0);
        let mut unclear = Vec::new();
        for (folder, wanted) in [("valid", true), ("invalid", false)] {
            for entry in fs::read_dir(Path::new(ROOT).join("tests/fixtures").join(folder)).unwrap() {
                let path = entry.unwrap().path();
                let ran = api.try_kubectl(&format!("create --dry-run=server --validate=strict -f {}", path.display()));
                assert_eq!(ran.code == 0, wanted, "{}: {}", path.display(), ran.said());
                let text = fs::read_to_string(&path).unwrap();
                if let Some(word) = text.lines().next().and_then(|l| l.strip_prefix("# must say: ")) {
                    unclear.extend(
                        (!ran.stderr.contains(word)).then(|| format!("{}: nothing of {word:?} in: {}", path.display(), ran.stderr)),
                    );
                }
                if wanted { valid += 1 } else { invalid += 1 }
            }
        }
        assert!(valid >= 10 && invalid >= 50, "{valid} valid and {invalid} invalid fixtures");
        assert!(unclear.is_empty(), "{}", unclear.join("\n"));
        for entry in fs::read_dir(Path::new(ROOT).join("examples")).unwrap() {
            let path = entry.unwrap().path();
            // What is in a namespace can be tried only once that is there.
            let namespaces = path.join("namespaces.yaml");
            if namespaces.exists() {
                api.kubectl(&format!("create -f {}", namespaces.display()));
            }
            api.kubectl(&format!("apply --dry-run=server --validate=strict -f {}", path.display()));
        }
        api.kubectl(&format!("create -f {ROOT}/tests/fixtures/valid/mapping-prefix-ipv6.yaml"));
        let table = api.kubectl("get natmap");
        for prefix in ["2001:db8:100::/64", "2001:db8:200::/64"] {
            assert!(table.contains(prefix), "{prefix} in\n{table}");
        }
    });
}
