//! Bad luck: objects that are older than a rule, a namespace that goes, definitions that go and come back, while everything runs.

use serde_json::{Value, json};

use crate::ROOT;
use crate::lab::{self, Agent, Api, Backend, Seed, VIP, VIP_80, isolated_with_api, seconds, wait_until};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const OURS: &str = "natmappings.stagenet.dev stagingnetworks.stagenet.dev gatewaynodes.stagenet.dev";

/// For how many seconds what nobody deleted stays in force.
const GUARD: u64 = 10;

fn controller(api: &Api, kubeconfig: &str) -> Agent {
    Agent::run(&api.host, "controller", kubeconfig, &["--mass-removal-guard", &GUARD.to_string()])
}

fn agent(node: &lab::Ns, kubeconfig: &str) -> Agent {
    let args = [
        "--node",
        node.name(),
        "--state-dir",
        "/run/lab/state",
        "--mass-removal-guard",
        &GUARD.to_string(),
    ];
    Agent::run(node, "agent", kubeconfig, &args)
}

/// The seed's hosts with vm02 as gateway, and a mapping that works and goes on to work.
struct Unlucky {
    api: Api,
    seed: Seed,
    controller: Option<Agent>,
    controller_kubeconfig: String,
    gateway: Agent,
}

impl Unlucky {
    fn start(bin: &std::path::Path) -> Self {
        let seed = Seed::new(Backend::Nft);
        let mut api = Api::start(bin);
        api.start_manager();
        let kubeconfig = api.join(&seed.vm02, "10.99.0.2", "stagenet.dev/gateway: \"true\"");
        let controller_kubeconfig = api.controller();
        let unlucky = Self {
            controller: Some(controller(&api, &controller_kubeconfig)),
            controller_kubeconfig,
            gateway: agent(&seed.vm02, &kubeconfig),
            api,
            seed,
        };
        unlucky.as_ever();
        unlucky
    }

    /// What people apply, and that it works.
    fn as_ever(&self) {
        self.api.kubectl(&format!("apply -f {ROOT}/examples/seed"));
        self.api.wait_ready_mapping("vm03");
        assert_eq!(self.seed.vm01.tcp(VIP_80).expect("Ready means that traffic flows").server, "vm03");
    }

    fn said(&self, object: &str, kind: &str) -> [String; 3] {
        ["status", "reason", "message"].map(|field| {
            let path = format!(".status.conditions[?(@.type==\"{kind}\")].{field}");
            self.api.field(object, &path)
        })
    }

    /// The mapping goes on to work for longer than anything is held that may be let go.
    fn stands(&self) {
        let begun = std::time::Instant::now();
        while begun.elapsed() < seconds(GUARD + 4) {
            assert_eq!(self.seed.vm01.tcp(VIP_80).expect("what was known stays in force").server, "vm03");
            std::thread::sleep(seconds(1));
        }
    }

    fn alive(&mut self) {
        self.gateway.assert_alive();
        self.controller.as_mut().unwrap().assert_alive();
    }
}

/// One after the other: they need the same, and each begins with what the one before has left.
#[test]
fn bad_luck_harms_nobody_else_and_passes() {
    isolated_with_api("luck::bad_luck_harms_nobody_else_and_passes", |bin| {
        let mut c = Unlucky::start(bin);
        older_than_a_rule(&mut c);
        namespace_goes(&mut c);
        network_goes(&mut c);
        definition_is_older(&mut c);
        definitions_go(&mut c);
    });
}

/// Takes every rule out of a schema and leaves the types.
fn lax(schema: &mut Value) {
    if let Value::Object(fields) = schema {
        for rule in [
            "x-kubernetes-validations",
            "pattern",
            "format",
            "enum",
            "minimum",
            "maximum",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "maxProperties",
        ] {
            // A field may bear such a name: that is a schema itself.
            if fields.get(rule).is_some_and(|value| !value.is_object()) {
                fields.remove(rule);
            }
        }
        fields.values_mut().for_each(lax);
    } else if let Value::Array(all) = schema {
        all.iter_mut().for_each(lax);
    }
}

/// Replaces what a definition says. Its status is written meanwhile, by the API server itself.
fn redefine(api: &Api, name: &str, change: impl Fn(&mut Value)) -> Value {
    let path = format!("{DEFINITIONS}/{name}");
    loop {
        let before: Value = serde_json::from_str(&api.call(None, &[], "GET", &path, "").1).unwrap();
        let mut after = before.clone();
        change(&mut after);
        let (code, answer) = api.call(None, &["Content-Type: application/json"], "PUT", &path, &after.to_string());
        match code {
            200 => return before,
            409 => {}
            _ => panic!("{name}: {code} {answer}"),
        }
    }
}

/// Mappings that no API server takes today: name, spec, and what they are told.
fn relics() -> [(&'static str, Value, &'static str); 7] {
    let lead = |address: &str, target: &str| json!({"networkRef": {"name": "segment-b"}, "virtual": {"address": address}, "target": {"address": target}});
    let with = |mut spec: Value, field: &str, value: Value| {
        spec[field] = value;
        spec
    };
    let ports = json!([{"protocol": "TCP", "port": 80, "endPort": 90}, {"protocol": "TCP", "port": 85}]);
    let both = json!({"address": "192.168.100.21", "prefix": "192.168.100.64/28"});
    [
        (
            "both-kinds",
            with(lead("", "192.168.200.4"), "virtual", both),
            "spec.virtual must have either address or prefix",
        ),
        (
            "itself",
            lead("192.168.100.22", "192.168.100.22"),
            "spec.target must differ from spec.virtual",
        ),
        (
            "families",
            lead("192.168.100.23", "fd00:200::3"),
            "spec.target must be of the same family as spec.virtual",
        ),
        (
            "ports",
            with(lead("192.168.100.24", "192.168.200.4"), "ports", ports),
            "spec.ports must not overlap",
        ),
        (
            "not-canonical",
            lead("192.168.100.025", "192.168.200.4"),
            "must be an IP address in canonical form",
        ),
        // Older than any claim to come, to the address that is served: being older is of no use to who claims nothing valid.
        ("thief", lead(VIP, "192.168.200.300"), "must be an IP address in canonical form"),
        (
            "lost",
            with(
                lead("192.168.100.26", "192.168.200.4"),
                "networkRef",
                json!({"name": "overlapping"}),
            ),
            "overlapping",
        ),
    ]
}

/// What was stored before a rule existed is refused with a reason, its status can be written under today's rules, and others are not affected.
fn older_than_a_rule(c: &mut Unlucky) {
    let mut open = c.seed.vm01.tcp(VIP_80).unwrap();
    // Nobody writes a status before the rules are back.
    assert_eq!(c.controller.take().unwrap().stop("TERM"), Some(0));
    let names = ["natmappings.stagenet.dev", "stagingnetworks.stagenet.dev"];
    let before = names.map(|name| redefine(&c.api, name, |definition| lax(&mut definition["spec"]["versions"])));
    let network = lab::network("overlapping", "192.168.77.0/24", "192.168.77.0/25", "").replace("eth1", "eth7");
    std::fs::write("/run/lab/overlapping.yaml", network).unwrap();
    wait_until(seconds(60), "a network that no rule allows", || {
        c.api.try_kubectl("apply -f /run/lab/overlapping.yaml").code == 0
    });
    for (name, spec, _) in relics() {
        let object = json!({"apiVersion": "stagenet.dev/v1alpha1", "kind": "NatMapping", "metadata": {"name": name, "namespace": "default"}, "spec": spec});
        std::fs::write("/run/lab/relic.json", object.to_string()).unwrap();
        wait_until(seconds(60), "the API server to take what no rule allows", || {
            c.api.try_kubectl("apply -f /run/lab/relic.json").code == 0
        });
    }
    for (name, before) in names.iter().zip(&before) {
        redefine(&c.api, name, |definition| definition["spec"] = before["spec"].clone());
    }
    let refused = |object: &str| {
        std::fs::write("/run/lab/fresh.json", object).unwrap();
        wait_until(seconds(60), "the rules to be back", || {
            c.api.try_kubectl("create --dry-run=server -f /run/lab/fresh.json").code != 0
        });
    };
    refused(&lab::network("fresh", "192.168.78.0/24", "192.168.78.0/25", "").replace("interface: eth1", "interface: eth0"));
    refused(&lab::mapping("fresh", "segment-b", "192.168.100.27", "192.168.100.27", ""));

    c.controller = Some(controller(&c.api, &c.controller_kubeconfig));
    for (name, _, words) in relics() {
        let object = format!("natmapping/{name}");
        wait_until(
            seconds(60),
            &format!("{object} to be told {words:?}: {:?}", c.said(&object, "Ready")),
            || {
                let [status, reason, message] = c.said(&object, "Stalled");
                let wanted = if name == "lost" { "NetworkNotAccepted" } else { "Invalid" };
                status == "True" && reason == wanted && message.contains(words)
            },
        );
        assert_eq!(c.said(&object, "Ready")[0], "False");
        assert_eq!(c.said(&object, "Programmed")[..2], ["False", "NotAccepted"]);
    }
    wait_until(seconds(60), "the network to be told", || {
        let [status, reason, message] = c.said("snet/overlapping", "Accepted");
        status == "False" && reason == "Invalid" && message.contains("192.168.77.0/24 and 192.168.77.0/25 share addresses")
    });
    assert!(open.works(), "who is valid is not affected");
    c.api.wait_ready_mapping("vm03");

    // Mended in place, it is served.
    let patch = "{\"spec\":{\"target\":{\"address\":\"192.168.200.4\"}}}";
    c.api.kubectl(&format!("patch natmapping/families --type=merge -p '{patch}'"));
    c.api.wait_ready_mapping("families");
    assert_eq!(c.seed.vm01.tcp("192.168.100.23:80").unwrap().server, "vm04");
    let all: Vec<&str> = relics().iter().map(|relic| relic.0).collect();
    c.api.kubectl(&format!("delete natmapping {}", all.join(" ")));
    c.api.kubectl("delete snet/overlapping");
    wait_until(seconds(60), "the mended one to go", || {
        c.seed.vm01.tcp("192.168.100.23:80").is_none()
    });
    assert!(open.works());
}

/// A namespace is deleted with a mapping in it: nothing holds it up, the rules and open connections go, and who waited for the address has it.
fn namespace_goes(c: &mut Unlucky) {
    let shared = "192.168.100.31";
    let mut bystander = c.seed.vm01.tcp(VIP_80).unwrap();
    // Of two claims of one second the first by name stands: this one sorts before the heir's namespace.
    c.api.kubectl("create namespace crew");
    c.api
        .apply(&lab::mapping("shop", "segment-b", shared, "192.168.200.4", "").replace("namespace: default", "namespace: crew"));
    c.api.kubectl("wait -n crew --for=condition=Ready natmapping/shop --timeout=60s");
    c.api.apply(&lab::mapping("heir", "segment-b", shared, "192.168.200.3", ""));
    wait_until(seconds(60), "the younger claim to lose", || {
        c.said("natmapping/heir", "Conflicted")[2].contains("an older claim in another namespace holds 192.168.100.31")
    });
    let mut open = c.seed.vm01.tcp(&format!("{shared}:80")).unwrap();
    assert_eq!(open.server, "vm04");

    c.api.kubectl("delete namespace crew --timeout=120s");
    assert!(c.api.try_kubectl("get namespace crew").stderr.contains("NotFound"));
    c.api.wait_ready_mapping("heir");
    let [_, _, message] = c.said("natmapping/heir", "Ready");
    assert!(message.contains("192.168.100.31 leads to 192.168.200.3 through vm02"), "{message}");
    assert_eq!(c.said("natmapping/heir", "Conflicted")[0], "");
    assert!(open.is_cut(), "the deleted mapping's connection has ended");
    assert_eq!(c.seed.vm01.tcp(&format!("{shared}:80")).unwrap().server, "vm03");
    assert!(!c.seed.rules().contains("192.168.200.4"), "{}", c.seed.rules());
    assert!(bystander.works());
    c.alive();
}

/// The network is deleted under its mapping, which says so and loses its rules, and works again when the network is back.
fn network_goes(c: &mut Unlucky) {
    c.api.kubectl("delete stagingnetwork segment-b --timeout=60s");
    wait_until(seconds(30), "the mapping to say that there is no network", || {
        c.said("natmap/vm03", "Accepted")[1] == "NetworkNotFound"
    });
    let [status, reason, message] = c.said("natmap/vm03", "Ready");
    assert_eq!((&*status, &*reason), ("False", "NetworkNotFound"));
    assert_eq!(
        message,
        "spec.networkRef.name must be the name of a StagingNetwork: there is none named \"segment-b\"; the mapping takes effect when there is"
    );
    wait_until(seconds(30), "rules and fence to go", || {
        let rules = c.seed.rules();
        !rules.contains("192.168.200.3") && !rules.contains("SNET-FO-") && c.seed.vm01.tcp(VIP_80).is_none()
    });
    c.alive();
    c.as_ever();
}

/// The definition of the reports is older than the agent: it reports all the same, without what the definition does not have.
fn definition_is_older(c: &mut Unlucky) {
    let name = "gatewaynodes.stagenet.dev";
    let observed = |c: &Unlucky| c.api.field("gwnode/vm02", ".status.observedGeneration");
    assert_ne!(observed(c), "");
    let before = redefine(&c.api, name, |definition| {
        let status = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
        status.as_object_mut().unwrap().remove("observedGeneration").unwrap();
    });
    wait_until(seconds(60), "the API server to know no such field", || observed(c).is_empty());
    c.api
        .apply(&lab::mapping("later", "segment-b", "192.168.100.41", "192.168.200.4", ""));
    c.api.wait_ready_mapping("later");
    c.gateway.wait_log(seconds(30), &["does not store the whole report"]);
    assert_eq!(observed(c), "");

    redefine(&c.api, name, |definition| definition["spec"] = before["spec"].clone());
    // Which report is the first to be stored as a whole, nobody can tell.
    let mut targets = ["192.168.200.3", "192.168.200.4"].into_iter().cycle();
    wait_until(seconds(60), "a whole report", || {
        let target = targets.next().unwrap();
        c.api.apply(&lab::mapping("later", "segment-b", "192.168.100.41", target, ""));
        c.api.wait_ready_mapping("later");
        !observed(c).is_empty()
    });
    c.api.kubectl("delete natmap later");
    c.alive();
}

/// The definitions are deleted, slowly, and every object with them. Nobody ends over it; what was known stays in force until an API server whose definitions are whole has said otherwise for a
/// while, and once the objects are back all works as ever.
fn definitions_go(c: &mut Unlucky) {
    let pids = [c.gateway.pid(), c.controller.as_ref().unwrap().pid()];
    // Somebody's finalizer keeps one mapping, and with it the definition, from going: for as long as that lasts it is there and is not whole.
    c.api.apply(
        "apiVersion: stagenet.dev/v1alpha1\nkind: NatMapping\nmetadata: {name: stuck, namespace: default, finalizers: [example.org/stuck]}\n\
         spec: {networkRef: {name: segment-b}, virtual: {address: 192.168.100.9}, target: {address: 192.168.200.9}}\n",
    );
    c.api.wait_ready_mapping("stuck");
    c.api.kubectl(&format!("delete crd {OURS} --wait=false"));
    wait_until(seconds(60), "the other mapping to be deleted", || {
        c.api.try_kubectl("get natmap vm03").code != 0
    });
    c.stands();
    c.api
        .kubectl("patch natmap stuck --type=merge -p '{\"metadata\": {\"finalizers\": null}}'");
    c.gateway
        .wait_log(seconds(60), &["StagingNetwork", "the last known state stays in force", "404"]);
    c.stands();
    for kind in ["StagingNetwork", "NatMapping"] {
        let controller = c.controller.as_mut().unwrap();
        controller.wait_log(seconds(90), &["watching failed", kind, "404"]);
    }
    let controller = c.controller.as_mut().unwrap();
    controller.wait_log(seconds(10), &["default/vm03", "went with the definition", "--mass-removal-guard"]);
    c.alive();

    c.api.kubectl(&format!("apply -f {ROOT}/crds"));
    c.api.wait_established(OURS);
    let uid = c.api.field("node/vm02", ".metadata.uid");
    wait_until(seconds(120), "the gateway's object to be made again", || {
        c.api.field("gwnode/vm02", ".metadata.ownerReferences[0].uid") == uid
    });
    // Nobody has applied the objects again: that is believed in time.
    wait_until(seconds(90), "the rules to go", || {
        !c.seed.rules().contains("192.168.200.3") && c.seed.vm01.tcp(VIP_80).is_none()
    });
    c.as_ever();
    wait_until(seconds(60), "the gateway to say that all is well", || {
        c.said("gwnode/vm02", "Ready")[..2] == ["True", "AsPlanned"]
    });
    c.alive();
    assert_eq!(
        pids,
        [c.gateway.pid(), c.controller.as_ref().unwrap().pid()],
        "nobody was started anew"
    );
}
