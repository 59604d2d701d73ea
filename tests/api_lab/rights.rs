//! What the programs may do: exactly what they do. Compared by the API server's own audit log, and tried with their own tokens.

mod forbidden;

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::lab::{self, Agent, Api, Backend, Seed, VIP, VIP_80, isolated_with_api, seconds, wait_until};
use crate::{agent, controller};

const AUDIT: &str = "/run/lab/audit.log";
const GATEWAYNODES: &str = "/apis/stagenet.dev/v1alpha1/gatewaynodes";
const MAPPINGS: &str = "/apis/stagenet.dev/v1alpha1/namespaces/default/natmappings";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/stagenet-system/leases";

/// Program, namespace (empty: any), API group, resource with subresource, name (empty: any), verb.
type Right = [String; 6];

/// The seed's hosts, an API server that writes down who does what, and what goes with it in a cluster.
struct Watched {
    api: Api,
    seed: Seed,
    gateway: Agent,
    /// Of the controller, and of the agents of vm02 and vm01.
    kubeconfigs: [String; 3],
}

impl Watched {
    fn start(bin: &std::path::Path) -> Self {
        fs::write(
            "/run/lab/audit.yaml",
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n",
        )
        .unwrap();
        let seed = Seed::new(Backend::Nft);
        let flags = [
            "--audit-policy-file=/run/lab/audit.yaml",
            "--audit-log-path=/run/lab/audit.log",
            "--endpoint-reconciler-type=lease",
        ];
        let mut api = Api::start_with(bin, &flags);
        api.start_manager();
        let gateway = api.join(&seed.vm02, "10.99.0.2", "stagenet.dev/gateway: \"true\"");
        let other = api.join(&seed.vm01, "10.99.0.3", "role: client");
        let kubeconfigs = [api.controller(), gateway, other];
        Self {
            gateway: agent(&seed.vm02, &kubeconfigs[1]),
            api,
            seed,
            kubeconfigs,
        }
    }

    fn reason(&self, mapping: &str) -> String {
        self.api.field(mapping, ".status.conditions[?(@.type==\"Accepted\")].reason")
    }
}

/// Every right is used, and nothing is asked for that is not granted: the whole life of a network whose claims depend on labels.
#[test]
fn every_right_is_used_and_no_other_is_missed() {
    let Some(definitions) = crate::machines::definitions() else {
        return eprintln!("SKIPPED every_right_is_used_and_no_other_is_missed: STAGENET_SKIP_API_LABS is set");
    };
    isolated_with_api("rights::every_right_is_used_and_no_other_is_missed", |bin| {
        let mut c = Watched::start(bin);
        let line = c.gateway.wait_log(seconds(60), &["GatewayNode vm02", "there is no such object"]);
        assert!(line.contains("until the controller has created it"), "{line}");
        wait_until(seconds(60), "the agent not to be ready for that", || {
            c.seed
                .vm02
                .http(9469, "readyz")
                .contains("GatewayNode vm02, which the controller creates")
        });
        let _controller = controller(&c.api, &c.kubeconfigs[0]);
        c.gateway.wait_log(seconds(60), &["GatewayNode vm02", "reporting"]);
        let uid = c.api.field("node/vm02", ".metadata.uid");
        assert_eq!(c.api.field("gwnode/vm02", ".metadata.ownerReferences[0].uid"), uid);

        labels_decide(&c);
        for n in 1..=2 {
            c.seed.iptables("-t nat -F SNET-DNAT");
            wait_until(seconds(60), "the drift to be repaired", || c.seed.vm01.tcp(VIP_80).is_some());
            let told = || c.api.kubectl("get events.events.k8s.io -o json");
            let count = |events: &str| {
                let all: Value = serde_json::from_str(events).unwrap();
                let of = |e: &&Value| e["reason"] == "DriftRepaired";
                let items = all["items"].as_array().unwrap().clone();
                items
                    .iter()
                    .filter(of)
                    .map(|e| e["series"]["count"].as_u64().unwrap_or(1))
                    .max()
                    .unwrap_or(0)
            };
            wait_until(seconds(60), "the repair to be told", || count(&told()) >= n);
        }
        nodes_come_and_go(&c);
        nobodys_objects_are_adopted(&c);
        wait_until(seconds(60), "the API server's addresses to be known", || {
            let known = c.api.field("snet/segment-b", ".status.apiServerAddresses");
            known.contains("10.96.0.1") && known.contains("10.99.0.1")
        });

        machines_and_definitions(&c, &definitions);
        let mut idle = Vec::new();
        wait_until(seconds(60), "every right to be used (/run/lab/audit.log)", || {
            let (used, refused) = used();
            assert!(refused.is_empty(), "asked for without the right: {refused:?}");
            idle = unused(&granted(&c.api), &used);
            idle.is_empty()
        });
        let granted = granted(&c.api);
        let by_nobody: Vec<Right> = used()
            .0
            .into_iter()
            .filter(|asked| !granted.iter().any(|right| covers(right, asked)))
            .collect();
        assert_eq!(by_nobody, Vec::<Right>::new(), "allowed by roles that are not ours");
        forbidden::to_an_agent(&c);
        forbidden::to_the_controller(&c);
    });
}

/// A namespace gets and loses its label; rules and open connections follow.
fn labels_decide(c: &Watched) {
    let network = lab::network("segment-b", "192.168.100.0/24", "192.168.200.0/24", "")
        .replace("nodeSelector: {}", "nodeSelector: {matchLabels: {stagenet.dev/gateway: \"true\"}}");
    let allowed = "  allowedNamespaces: {from: Selector, selector: {matchLabels: {team: staging}}}\n";
    c.api.apply(&format!("{}\n{allowed}", network.trim_end()));
    c.api.apply(&lab::mapping("vm03", "segment-b", VIP, "192.168.200.3", ""));
    wait_until(seconds(60), "the claim to be refused", || {
        c.reason("natmapping/vm03") == "NamespaceNotAllowed"
    });
    let said = c
        .api
        .field("natmapping/vm03", ".status.conditions[?(@.type==\"Accepted\")].message");
    assert!(said.contains("those with labels team=staging: default is not"), "{said}");
    assert!(c.seed.vm01.tcp(VIP_80).is_none());

    for round in 0..2 {
        c.api.kubectl("label namespace default team=staging");
        c.api.wait_ready_mapping("vm03");
        let mut open = c.seed.vm01.tcp(VIP_80).expect("Ready means that traffic flows");
        c.api.kubectl("label namespace default team-");
        wait_until(seconds(60), "the rules to go", || !c.seed.rules().contains("192.168.200.3"));
        wait_until(seconds(60), "the flows to go", || c.seed.vm02.flows(VIP).is_empty());
        assert!(open.is_cut(), "round {round}");
        wait_until(seconds(60), "the claim to be refused again", || {
            c.reason("natmapping/vm03") == "NamespaceNotAllowed"
        });
    }
    c.api.kubectl("label namespace default team=staging");
    c.api.wait_ready_mapping("vm03");

    // Of two namespaces' claims the younger one is told that it lost and since when, and nothing of the other.
    c.api.kubectl("create namespace rivals");
    c.api.kubectl("label namespace rivals team=staging");
    let rival = lab::mapping("late", "segment-b", VIP, "192.168.200.4", "").replace("namespace: default", "namespace: rivals");
    c.api.apply(&rival);
    wait_until(seconds(60), "the rival to lose", || {
        c.reason("natmapping/late -n rivals") == "Conflict"
    });
    wait_until(seconds(60), "the rival to be told", || {
        c.api.kubectl("get events -n rivals").contains("Conflict")
    });
    for told in [
        c.api.kubectl("get natmapping/late -n rivals -o jsonpath='{.status}'"),
        c.api.kubectl("get events -n rivals -o jsonpath='{.items[*].message}'"),
    ] {
        assert!(
            told.contains("an older claim in another namespace holds 192.168.100.3 since 2"),
            "{told}"
        );
        assert!(
            !told.contains("vm03") && !told.contains("192.168.200.3") && !told.contains("default"),
            "{told}"
        );
    }
    c.api.kubectl("delete namespace rivals --wait=false");
}

/// A mapping names a machine where `KubeVirt` is; and objects of each kind are told to be deleted, of which the definition is asked for.
fn machines_and_definitions(c: &Watched, definitions: &std::path::Path) {
    c.api.kubectl(&format!("apply --server-side -f {}", definitions.display()));
    c.api
        .wait_established("virtualmachines.kubevirt.io virtualmachineinstances.kubevirt.io");
    let by_name = lab::mapping("machine", "segment-b", "192.168.100.9", "X", "")
        .replace("address: X", "virtualMachineRef: {name: vm09, interface: closed}");
    c.api.apply(&by_name);
    wait_until(seconds(60), "the machine to be looked for", || {
        let reason = c
            .api
            .field("natmapping/machine", ".status.conditions[?(@.type==\"ResolvedRefs\")].reason");
        reason == "VirtualMachineNotFound"
    });
    let other = lab::network("other", "192.168.130.0/24", "192.168.230.0/24", "");
    c.api.apply(&other);
    wait_until(seconds(60), "the other network to be judged", || {
        !c.api
            .field("snet/other", ".status.conditions[?(@.type==\"Accepted\")].status")
            .is_empty()
    });
    c.api.kubectl("delete natmapping/machine snet/other");
}

/// A node that a network selects has an object, which goes with it and is another one when a node of the same name comes.
fn nodes_come_and_go(c: &Watched) {
    let spare = "apiVersion: v1\nkind: Node\nmetadata: {name: spare, labels: {stagenet.dev/gateway: \"true\"}}\n";
    let owner = || c.api.field("gwnode/spare", ".metadata.ownerReferences[0].uid");
    let mut before = String::new();
    for _ in 0..2 {
        c.api.apply(spare);
        let uid = c.api.field("node/spare", ".metadata.uid");
        wait_until(seconds(60), "a GatewayNode for the node", || owner() == uid);
        assert_ne!(uid, before);
        before = uid;
        c.api.kubectl("delete node spare");
        wait_until(seconds(120), "the GatewayNode to go with its node", || {
            c.api.try_kubectl("get gwnode/spare").stderr.contains("NotFound")
        });
    }
}

/// An object that an agent of an earlier version made, and one from a backup, go to the Node that has their name; one without a Node stays as it is.
fn nobodys_objects_are_adopted(c: &Watched) {
    let uid = c.api.field("node/vm02", ".metadata.uid");
    let owners = |node: &str| c.api.field(&format!("gwnode/{node}"), ".metadata.ownerReferences[*].uid");
    let node = |name: &str| format!("apiVersion: stagenet.dev/v1alpha1\nkind: GatewayNode\nmetadata: {{name: {name}}}\nspec: {{}}\n");
    c.api.apply(&node("nobody"));
    for owner in [
        "null".to_owned(),
        "[{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"name\":\"vm02\",\"uid\":\"of-another-cluster\"}]".to_owned(),
    ] {
        let patch = format!("{{\"metadata\":{{\"ownerReferences\":{owner}}}}}");
        c.api.kubectl(&format!("patch gwnode/vm02 --type=merge -p '{patch}'"));
        // The garbage collector may be first where the owner is nobody: then the object is made anew.
        wait_until(seconds(60), "the GatewayNode to belong to its Node", || owners("vm02") == uid);
    }
    assert_eq!(owners("nobody"), "", "it has no Node to belong to");
    c.api.kubectl("delete gwnode/nobody");
}

/// What roles say of our programs. A role of the cluster is about any namespace, a rule without names about any object.
fn granted(api: &Api) -> BTreeSet<Right> {
    let roles: Value = serde_json::from_str(&api.kubectl("get clusterroles,roles -A -l app.kubernetes.io/component -o json")).unwrap();
    let words = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut rights = BTreeSet::new();
    for role in roles["items"].as_array().unwrap() {
        let of = |field: &str| role["metadata"][field].as_str().unwrap_or_default().to_owned();
        for rule in role["rules"].as_array().unwrap() {
            let mut names = words(&rule["resourceNames"]);
            if names.is_empty() {
                names.push(String::new());
            }
            for group in words(&rule["apiGroups"]) {
                for resource in words(&rule["resources"]) {
                    for (name, verb) in names
                        .iter()
                        .flat_map(|name| words(&rule["verbs"]).into_iter().map(move |verb| (name, verb)))
                    {
                        rights.insert([of("name"), of("namespace"), group.clone(), resource.clone(), name.clone(), verb]);
                    }
                }
            }
        }
    }
    rights
}

/// What our programs have asked for, each as narrow as it was asked: `namespace` is that of the request and `name` that of the object, or the one that a list was narrowed to. And what
/// they were refused for want of a right.
fn used() -> (BTreeSet<Right>, Vec<String>) {
    let (mut rights, mut refused) = (BTreeSet::new(), Vec::new());
    for line in fs::read_to_string(AUDIT).unwrap().lines() {
        // The last line may not be complete yet.
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        let user = event["user"]["username"].as_str().unwrap_or_default();
        let Some(program) = user.strip_prefix("system:serviceaccount:stagenet-system:") else {
            continue;
        };
        let object = &event["objectRef"];
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let (Some(verb), Some(_)) = (event["verb"].as_str(), object["resource"].as_str()) else {
            continue;
        };
        if event["annotations"]["authorization.k8s.io/decision"] != "allow" {
            refused.push(line.to_owned());
            continue;
        }
        let resource = [text("resource"), text("subresource")].join("/");
        let right = |name: String, verb: &str| {
            let resource = resource.trim_end_matches('/').to_owned();
            [
                program.to_owned(),
                text("namespace"),
                text("apiGroup"),
                resource,
                name,
                verb.to_owned(),
            ]
        };
        let narrowed = event["requestURI"]
            .as_str()
            .and_then(|uri| uri.split("fieldSelector=metadata.name%3D").nth(1));
        let narrowed = narrowed.map(|rest| rest.split('&').next().unwrap_or_default().to_owned());
        rights.insert(right(narrowed.unwrap_or_else(|| text("name")), verb));
        // Server-side apply of what was not there asks for the right to create as well; that cannot be narrowed to a name.
        if verb == "patch" && event["responseStatus"]["code"] == 201 {
            rights.insert(right(String::new(), "create"));
        }
    }
    (rights, refused)
}

/// Whether `right` grants what was asked for.
fn covers(right: &Right, asked: &Right) -> bool {
    // A name that is asked to be created is in the object and counts for nothing.
    let any = |at: usize| right[at].is_empty() || right[at] == asked[at];
    [0, 2, 3, 5].iter().all(|at| right[*at] == asked[*at]) && any(1) && any(4)
}

/// Rights that nobody has used. Whether one of the whole cluster would do for one namespace is not looked for: where people's objects are nobody knows.
fn unused(granted: &BTreeSet<Right>, used: &BTreeSet<Right>) -> Vec<Right> {
    let idle = |right: &&Right| !used.iter().any(|asked| covers(right, asked));
    granted.iter().filter(idle).cloned().collect()
}
