//! What of a network may be claimed, on a real API server and in a kernel: `examples/tenancy` as it is, and what becomes of claims when a permission is withdrawn.

use std::fs;

use serde_json::Value;

use crate::lab::{VIP, VIP_80, isolated_with_api, seconds, wait_until};
use crate::{Backend, Cluster, ROOT};

const CLAIM: &str = "natmapping/vm03 -n shop";

fn mapping(name: &str, virtual_address: &str, more: &str) -> String {
    crate::lab::mapping(name, "segment-b", virtual_address, "192.168.200.4", more).replace("namespace: default", "namespace: shop")
}

fn told(c: &Cluster, mapping: &str) -> String {
    let of = |field: &str| format!(".status.conditions[?(@.type==\"Accepted\")].{field}");
    c.api.field(mapping, &format!("{}}}: {{{}", of("reason"), of("message")))
}

fn patch(c: &Cluster, spec: &str) {
    c.api
        .kubectl(&format!("patch snet/segment-b --type=merge -p '{{\"spec\":{spec}}}'"));
}

/// The claim of the example works, from whatever it was before.
fn works(c: &Cluster) {
    wait_until(seconds(60), "the claim to be Ready", || {
        let of = |field: &str| c.api.field(CLAIM, field);
        of(".status.conditions[?(@.type==\"Ready\")].status") == "True" && of(".status.observedGeneration") == of(".metadata.generation")
    });
    assert_eq!(c.seed.vm01.tcp(VIP_80).expect("Ready means that traffic flows").server, "vm03");
}

/// Everything that a claim may be refused for by what others say, with its words; nothing of it is in a kernel. And each permission is withdrawn under a claim that has it.
#[test]
fn claims_are_refused_in_words_and_lose_their_rules_with_the_permission() {
    isolated_with_api(
        "claims::claims_are_refused_in_words_and_lose_their_rules_with_the_permission",
        |bin| {
            let mut c = Cluster::start_with(bin, Backend::Nft, &["--endpoint-reconciler-type=lease"]);
            c.api.kubectl(&format!("apply -f {ROOT}/examples/tenancy/namespaces.yaml"));
            // The pool of the example, and ranges in which the API server has addresses.
            let network = fs::read_to_string(format!("{ROOT}/examples/tenancy/network.yaml")).unwrap();
            let pool = "      - 192.168.100.0/24\n";
            assert!(network.contains(pool));
            c.api.kubectl(&format!("apply -f {ROOT}/examples/tenancy"));
            works(&c);
            c.api
                .apply(&network.replace(pool, &format!("{pool}      - 10.96.0.0/24\n      - 10.99.0.0/24\n")));

            let refused = [
                (
                    mapping("production", "192.168.100.200", ""),
                    "Protected: spec.virtual.address must not be production: 192.168.100.200 meets 192.168.100.128/25, which network segment-b protects",
                ),
                (
                    mapping("node", "192.168.100.2", ""),
                    "AddressOwnedByNode: spec.virtual.address must be free of addresses that somebody has: 192.168.100.2 is the address of eth0 on node vm02",
                ),
                (
                    mapping("service", "10.96.0.1", ""),
                    "AddressOwnedByNode: spec.virtual.address must be free of addresses that somebody has: 10.96.0.1 is an address of the cluster's API server",
                ),
                (
                    mapping("server", "10.99.0.1", ""),
                    "AddressOwnedByNode: spec.virtual.address must be free of addresses that somebody has: 10.99.0.1 is an address of the cluster's API server",
                ),
                (
                    mapping("helper", "192.168.100.4", "helpers: [{name: tftp, port: 69}]"),
                    "HelperNotAllowed: spec.helpers must be among allowedHelpers of network segment-b, ftp: got tftp",
                ),
                (
                    mapping("pool", "192.168.101.4", ""),
                    "OutsidePool: spec.virtual.address must be in the pool of network segment-b, 10.96.0.0/24, 10.99.0.0/24, 192.168.100.0/24: got 192.168.101.4",
                ),
                (
                    mapping("target", "192.168.100.5", "").replace("192.168.200.4", "192.168.201.4"),
                    "TargetOutside: spec.target.address must be in the inside prefixes of network segment-b, 192.168.200.0/24: got 192.168.201.4",
                ),
                (
                    mapping("namespace", "192.168.100.6", "").replace("namespace: shop", "namespace: lab"),
                    "NamespaceNotAllowed: metadata.namespace must be one that allowedNamespaces of network segment-b selects, those with labels team=staging: lab is not; ask \
                 an administrator of the cluster to label the namespace, or of the network to allow it",
                ),
            ];
            let all: Vec<&str> = refused.iter().map(|(yaml, _)| yaml.as_str()).collect();
            c.api.apply(&all.join("---\n"));
            for (yaml, wanted) in &refused {
                let of = |field: &str| yaml.split(field).nth(1).unwrap().lines().next().unwrap();
                let object = format!("natmapping/{} -n {}", of("\n  name: "), of("namespace: "));
                let mut last = String::new();
                wait_until(seconds(60), &format!("{object} to be told: {wanted}"), || {
                    last = told(&c, &object);
                    last == *wanted
                });
                let stalled = c.api.field(&object, ".status.conditions[?(@.type==\"Stalled\")].status");
                assert_eq!(stalled, "True", "{object}: {last}");
            }
            works(&c);
            for word in ["192.168.200.4", "192.168.201.4"] {
                assert!(!c.seed.rules().contains(word), "{word}");
            }
            withdrawn(&c);
            unreadable(&mut c);
            c.gateway.assert_alive();
        },
    );
}

/// What a claim has it loses with the permission, open connections too, and gets back with it.
fn withdrawn(c: &Cluster) {
    c.api
        .kubectl("patch natmapping/vm03 -n shop --type=merge -p '{\"spec\":{\"helpers\":[{\"name\":\"ftp\",\"port\":21}]}}'");
    wait_until(seconds(60), "the helper", || c.seed.rules().contains("--helper ftp"));
    for (withdrawn, given, reason, word) in [
        (
            "{\"allowedHelpers\":[\"tftp\"]}",
            "{\"allowedHelpers\":[\"ftp\"]}",
            "HelperNotAllowed",
            "--helper ftp",
        ),
        (
            "{\"protected\":[\"192.168.100.128/25\",\"192.168.100.3/32\"]}",
            "{\"protected\":[\"192.168.100.128/25\"]}",
            "Protected",
            "192.168.200.3",
        ),
        (
            "{\"allowedNamespaces\":{\"selector\":{\"matchLabels\":{\"team\":\"others\"}}}}",
            "{\"allowedNamespaces\":{\"selector\":{\"matchLabels\":{\"team\":\"staging\"}}}}",
            "NamespaceNotAllowed",
            "192.168.200.3",
        ),
    ] {
        wait_until(seconds(60), "the rules to be there", || c.seed.rules().contains(word));
        let mut open = c.seed.vm01.tcp(VIP_80).unwrap();
        patch(c, withdrawn);
        wait_until(seconds(60), &format!("the rules to go: {reason}"), || {
            let rules = c.seed.rules();
            !rules.contains(word) && !rules.contains("192.168.200.3")
        });
        wait_until(seconds(60), "the flows to go", || c.seed.vm02.flows(VIP).is_empty());
        assert!(open.is_cut(), "{reason}");
        wait_until(seconds(60), &format!("the claim to be told: {reason}"), || {
            told(c, CLAIM).starts_with(&format!("{reason}: "))
        });
        patch(c, given);
        wait_until(seconds(60), "the claim to stand again", || {
            c.seed.vm01.tcp(VIP_80).is_some_and(|call| call.server == "vm03")
        });
    }
}

/// The controller may not list namespaces any more, and starts anew: what depends on labels stays as it is and says so, all the rest is judged, and so does `/readyz` say it.
fn unreadable(c: &mut Cluster) {
    let mut role: Value = serde_json::from_str(&c.api.kubectl("get clusterrole stagenet-controller -o json")).unwrap();
    let rules = role["rules"].as_array_mut().unwrap();
    rules.retain(|rule| !rule["resources"].to_string().contains("namespaces"));
    fs::write("/run/lab/role.json", role.to_string()).unwrap();
    c.api.kubectl("replace -f /run/lab/role.json");
    works(c);
    c.controller.signal("TERM");
    wait_until(seconds(20), "the controller to end", || c.controller.has_ended());
    c.controller = crate::controller(&c.api, &c.kubeconfigs[0]);

    c.api
        .apply(&mapping("lost", "192.168.100.7", "").replace("name: segment-b", "name: segment-z"));
    wait_until(seconds(90), "what needs no labels to be judged", || {
        told(c, "natmapping/lost -n shop").starts_with("NetworkNotFound: ")
    });
    let of = |kind: &str| {
        let field = |name: &str| format!(".status.conditions[?(@.type==\"{kind}\")].{name}");
        c.api.field(CLAIM, &format!("{}}}/{{{}", field("status"), field("reason")))
    };
    wait_until(seconds(60), "the claim to say so", || of("Accepted") == "Unknown/NamespaceUnknown");
    assert_eq!([of("Programmed"), of("Ready")], ["True/Programmed", "Unknown/NamespaceUnknown"]);
    assert!(
        told(c, "natmapping/namespace -n lab").starts_with("NamespaceNotAllowed: "),
        "what was refused stays refused"
    );
    assert_eq!(c.seed.vm01.tcp(VIP_80).expect("it keeps what it has").server, "vm03");
    let ready = c.api.host.http(9470, "readyz");
    assert!(ready.contains("503") && ready.contains("labels of namespaces"), "{ready}");

    c.api.kubectl(&format!(
        "apply --force-conflicts --server-side -f {ROOT}/deploy/base/rbac-controller.yaml"
    ));
    works(c);
    wait_until(seconds(60), "the controller to be ready", || {
        c.api.host.http(9470, "readyz").contains("200 OK")
    });
}
