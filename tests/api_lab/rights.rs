//! What the programs may do: exactly what they do. Compared by the API server's own audit log, and tried with their own tokens.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::lab::{self, Agent, Api, Backend, Seed, VIP, VIP_80, isolated_with_api, seconds, wait_until};
use crate::{agent, controller};

const AUDIT: &str = "/run/lab/audit.log";
const GATEWAYNODES: &str = "/apis/stagenet.dev/v1alpha1/gatewaynodes";
const MAPPINGS: &str = "/apis/stagenet.dev/v1alpha1/namespaces/default/natmappings";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/stagenet-system/leases";

/// Program, API group, resource with subresource, verb.
type Right = (String, String, String, String);

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

        wait_until(seconds(60), "every right to be used", || {
            let (used, refused) = used();
            assert!(refused.is_empty(), "asked for without the right: {refused:?}");
            granted(&c.api).is_subset(&used)
        });
        let (used, _) = used();
        assert_eq!(granted(&c.api), used, "left: granted, right: used");
        forbidden(&c);
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

/// What `KubeVirt` is looked at with, where it is: `machines.rs` has it.
const MACHINES: [&str; 2] = ["kubevirt.io", "apiextensions.k8s.io"];

/// What roles say of our programs.
fn granted(api: &Api) -> BTreeSet<Right> {
    let roles: Value = serde_json::from_str(&api.kubectl("get clusterroles,roles -A -l app.kubernetes.io/component -o json")).unwrap();
    let words = |value: &Value| -> Vec<String> { value.as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned()).collect() };
    let mut rights = BTreeSet::new();
    for role in roles["items"].as_array().unwrap() {
        for rule in role["rules"].as_array().unwrap() {
            for group in words(&rule["apiGroups"])
                .into_iter()
                .filter(|group| !MACHINES.contains(&group.as_str()))
            {
                for resource in words(&rule["resources"]) {
                    for verb in words(&rule["verbs"]) {
                        let program = role["metadata"]["name"].as_str().unwrap().to_owned();
                        rights.insert((program, group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
    }
    rights
}

/// What our programs have done, and what they were refused for want of a right.
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
        if MACHINES.contains(&text("apiGroup").as_str()) {
            continue;
        }
        if event["annotations"]["authorization.k8s.io/decision"] != "allow" {
            refused.push(line.to_owned());
            continue;
        }
        let resource = [text("resource"), text("subresource")].join("/");
        let right = |verb: &str| {
            let resource = resource.trim_end_matches('/').to_owned();
            (program.to_owned(), text("apiGroup"), resource, verb.to_owned())
        };
        rights.insert(right(verb));
        // Server-side apply of what was not there asks for the right to create as well.
        if verb == "patch" && event["responseStatus"]["code"] == 201 {
            rights.insert(right("create"));
        }
    }
    (rights, refused)
}

/// One thing that must not be possible: the method, where, what is sent, and a word of the answer.
type Attempt<'a> = (&'a str, String, String, &'a str);

/// Everything that an agent's token must not do, tried with the token of vm02's agent.
#[allow(clippy::too_many_lines)] // it is a table
fn forbidden(c: &Watched) {
    let apply = "Content-Type: application/apply-patch+yaml";
    let merge = "Content-Type: application/merge-patch+json";
    let json = "Content-Type: application/json";
    let node = |name: &str| {
        format!("{{\"apiVersion\":\"stagenet.dev/v1alpha1\",\"kind\":\"GatewayNode\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{{}}}}")
    };
    let lease = |name: &str| {
        format!(
            "{{\"apiVersion\":\"coordination.k8s.io/v1\",\"kind\":\"Lease\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{{\"holderIdentity\":\"x\"}}}}"
        )
    };
    let ssa = "?fieldManager=lie&force=true";
    let own = c.api.call(
        Some(&c.kubeconfigs[1]),
        &[apply],
        "PATCH",
        &format!("{GATEWAYNODES}/vm02/status?fieldManager=stagenet-agent&force=true&dryRun=All"),
        &node("vm02"),
    );
    assert_eq!(own.0, 200, "the status of its own: {}", own.1);

    let role = "is forbidden: User";
    let policy = "the agent of node vm02 may write";
    let unbound = c.api.unbound_agent();
    let attempts: Vec<Attempt<'_>> = vec![
        ("GET", "/api/v1/secrets".into(), String::new(), role),
        ("GET", "/api/v1/namespaces/stagenet-system/secrets/any".into(), String::new(), role),
        (
            "PATCH",
            "/api/v1/nodes/vm02".into(),
            "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}".into(),
            role,
        ),
        ("PATCH", "/api/v1/nodes/vm02/status".into(), "{\"status\":{}}".into(), role),
        ("DELETE", "/api/v1/nodes/vm01".into(), String::new(), role),
        (
            "PATCH",
            "/api/v1/namespaces/default".into(),
            "{\"metadata\":{\"labels\":{\"team\":\"lie\"}}}".into(),
            role,
        ),
        (
            "PATCH",
            format!("{MAPPINGS}/vm03"),
            "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}".into(),
            role,
        ),
        ("PATCH", format!("{MAPPINGS}/vm03/status"), "{\"status\":{}}".into(), role),
        ("DELETE", format!("{MAPPINGS}/vm03"), String::new(), role),
        ("POST", MAPPINGS.into(), "{}".into(), role),
        (
            "PATCH",
            "/apis/stagenet.dev/v1alpha1/stagingnetworks/segment-b".into(),
            "{\"spec\":{}}".into(),
            role,
        ),
        (
            "PATCH",
            "/apis/stagenet.dev/v1alpha1/stagingnetworks/segment-b/status".into(),
            "{\"status\":{}}".into(),
            role,
        ),
        (
            "DELETE",
            "/apis/stagenet.dev/v1alpha1/stagingnetworks/segment-b".into(),
            String::new(),
            role,
        ),
        ("POST", GATEWAYNODES.into(), node("lie"), role),
        (
            "PATCH",
            format!("{GATEWAYNODES}/vm02"),
            "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}".into(),
            role,
        ),
        ("DELETE", format!("{GATEWAYNODES}/vm02"), String::new(), role),
        ("PATCH", format!("{GATEWAYNODES}/vm01/status{ssa}"), node("vm01"), policy),
        ("DELETE", format!("{LEASES}/stagenet-agent-vm01"), String::new(), role),
        ("POST", LEASES.into(), lease("stagenet-agent-vm01"), policy),
        (
            "PATCH",
            format!("{LEASES}/stagenet-agent-vm01{ssa}"),
            lease("stagenet-agent-vm01"),
            policy,
        ),
        (
            "PATCH",
            format!("{LEASES}/stagenet-controller{ssa}"),
            lease("stagenet-controller"),
            policy,
        ),
    ];
    // The other node needs an object for the attempt to be about it.
    let _other = agent(&c.seed.vm01, &c.kubeconfigs[2]);
    wait_until(seconds(60), "a GatewayNode of vm01", || {
        c.api.try_kubectl("get gwnode/vm01").code == 0
    });
    for (method, path, body, says) in attempts {
        let kind = match method {
            "PATCH" if path.contains("fieldManager") => apply,
            "PATCH" => merge,
            _ => json,
        };
        let (code, answer) = c.api.call(Some(&c.kubeconfigs[1]), &[kind], method, &path, &body);
        assert!(code == 403 && answer.contains(says), "{method} {path}: {code} {answer}");
    }
    let (code, answer) = c.api.call(
        Some(&unbound),
        &[apply],
        "PATCH",
        &format!("{GATEWAYNODES}/vm02/status{ssa}"),
        &node("vm02"),
    );
    assert!(code == 403 && answer.contains("must be bound to a node"), "{code} {answer}");
    // The controller writes statuses and no spec, and no report.
    for (path, body) in [
        (format!("{MAPPINGS}/vm03"), "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}"),
        (format!("{GATEWAYNODES}/vm02/status"), "{\"status\":{}}"),
        ("/apis/stagenet.dev/v1alpha1/stagingnetworks/segment-b".to_owned(), "{\"spec\":{}}"),
    ] {
        let (code, answer) = c.api.call(Some(&c.kubeconfigs[0]), &[merge], "PATCH", &path, body);
        assert!(code == 403 && answer.contains(role), "{path}: {code} {answer}");
    }
}
