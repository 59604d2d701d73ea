//! What people may do by the cluster's own roles, and what the optional policy refuses at once.

use crate::lab::{self, Api, isolated_with_api, seconds, wait_until};

const NETWORKS: &str = "/apis/stagenet.dev/v1alpha1/stagingnetworks";
const GATEWAYNODES: &str = "/apis/stagenet.dev/v1alpha1/gatewaynodes";

fn mappings(namespace: &str) -> String {
    format!("/apis/stagenet.dev/v1alpha1/namespaces/{namespace}/natmappings")
}

/// A list that goes on as a watch, for a second.
fn watched(list: &str) -> String {
    format!("{list}?watch=true&timeoutSeconds=1")
}

/// Tries `method` as `user`; nothing is changed. True if it was allowed.
fn may(api: &Api, user: &str, method: &str, path: &str, body: &str) -> bool {
    let kind = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let (kind, user) = (format!("Content-Type: {kind}"), format!("Impersonate-User: {user}"));
    let dry = if method == "GET" { "" } else { "?dryRun=All" };
    let (code, answer) = api.call(None, &[&kind, &user], method, &format!("{path}{dry}"), body);
    assert!([200, 201, 403].contains(&code), "{method} {path}: {code} {answer}");
    code != 403
}

/// Viewers see, editors and administrators of a namespace claim, in their own namespace; networks, reports and statuses are nobody's of them.
#[test]
fn tenants_have_the_rights_of_their_roles() {
    isolated_with_api("tenants::tenants_have_the_rights_of_their_roles", |bin| {
        let mut api = Api::start(bin);
        api.start_manager();
        api.kubectl("create namespace shop");
        for role in ["view", "edit", "admin"] {
            api.kubectl(&format!("create rolebinding {role} -n shop --clusterrole={role} --user={role}"));
        }
        api.kubectl("create clusterrolebinding networks --clusterrole=stagenet-networks-view --user=planner");
        api.apply(&lab::network("segment-b", "192.168.100.0/24", "192.168.200.0/24", ""));
        let shops = |name: &str| {
            lab::mapping(name, "segment-b", "192.168.100.3", "192.168.200.3", "").replace("namespace: default", "namespace: shop")
        };
        api.apply(&shops("vm03"));
        api.apply("apiVersion: stagenet.dev/v1alpha1\nkind: GatewayNode\nmetadata: {name: vm02}\nspec: {}\n");
        wait_until(seconds(120), "the roles to be aggregated", || {
            ["view", "edit", "admin"]
                .iter()
                .all(|role| api.kubectl(&format!("get clusterrole {role} -o yaml")).contains("natmappings"))
        });

        let new = "{\"apiVersion\":\"stagenet.dev/v1alpha1\",\"kind\":\"NatMapping\",\"metadata\":{\"name\":\"new\"},\"spec\":{\"networkRef\":{\"name\":\"segment-b\"},\
                   \"virtual\":{\"address\":\"192.168.100.4\"},\"target\":{\"address\":\"192.168.200.4\"}}}";
        let label = "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}";
        let own = mappings("shop");
        let one = format!("{own}/vm03");
        let whole = api.kubectl("get natmapping/vm03 -n shop -o json");
        let clusters = [(NETWORKS, "snet/segment-b"), (GATEWAYNODES, "gwnode/vm02")].map(|(kind, object)| {
            let name = object.split('/').nth(1).unwrap();
            (kind, format!("{kind}/{name}"), api.kubectl(&format!("get {object} -o json")))
        });
        let verbs = [
            ("GET", own.clone(), "", true),
            ("GET", watched(&own), "", true),
            ("GET", one.clone(), "", true),
            ("POST", own.clone(), new, false),
            ("PUT", one.clone(), whole.as_str(), false),
            ("PATCH", one.clone(), label, false),
            ("DELETE", one.clone(), "", false),
            ("DELETE", own.clone(), "", false),
        ];
        for user in ["view", "edit", "admin"] {
            for (method, path, body, reads) in &verbs {
                assert_eq!(
                    may(&api, user, method, path, body),
                    *reads || user != "view",
                    "{user}: {method} {path}"
                );
            }
            for (method, path, body) in [
                ("GET", mappings("default"), ""),
                ("GET", watched(&mappings("default")), ""),
                ("GET", watched("/apis/stagenet.dev/v1alpha1/natmappings"), ""),
                ("POST", mappings("default"), new),
                ("PUT", format!("{one}/status"), whole.as_str()),
                ("PATCH", format!("{one}/status"), "{\"status\":{}}"),
                ("PATCH", "/api/v1/namespaces/shop".to_owned(), label),
            ] {
                assert!(!may(&api, user, method, &path, body), "{user}: {method} {path}");
            }
            for (kind, object, whole) in &clusters {
                for (method, path, body) in [
                    ("GET", (*kind).to_owned(), ""),
                    ("GET", watched(kind), ""),
                    ("GET", object.clone(), ""),
                    ("GET", format!("{object}/status"), ""),
                    ("POST", (*kind).to_owned(), whole.as_str()),
                    ("PUT", object.clone(), whole),
                    ("PATCH", object.clone(), label),
                    ("PUT", format!("{object}/status"), whole),
                    ("PATCH", format!("{object}/status"), "{\"status\":{}}"),
                    ("DELETE", object.clone(), ""),
                    ("DELETE", (*kind).to_owned(), ""),
                ] {
                    assert!(!may(&api, user, method, &path, body), "{user}: {method} {path}");
                }
            }
        }
        assert!(may(&api, "planner", "GET", NETWORKS, "") && may(&api, "planner", "GET", &format!("{NETWORKS}/segment-b"), ""));
        assert!(may(&api, "planner", "GET", &watched(NETWORKS), ""));
        assert!(!may(&api, "planner", "PATCH", &format!("{NETWORKS}/segment-b"), label) && !may(&api, "planner", "GET", GATEWAYNODES, ""));
        at_once(&api, &shops("next"));
    });
}

/// With the optional policy a mapping of a namespace that may not claim is not even stored.
fn at_once(api: &Api, mapping: &str) {
    api.kubectl(&format!(
        "apply -f {}/deploy/optional/namespace-policy.yaml",
        env!("CARGO_MANIFEST_DIR")
    ));
    let set = |allowed: &str| {
        let patch = format!("{{\"spec\":{{\"allowedNamespaces\":{allowed}}}}}");
        api.kubectl(&format!("patch snet/segment-b --type=merge -p '{patch}'"));
    };
    std::fs::write("/run/lab/next.yaml", mapping).unwrap();
    let create = || api.try_kubectl("create --dry-run=server -f /run/lab/next.yaml");
    let refused = |says: &str| {
        let mut said = String::new();
        wait_until(seconds(60), &format!("{says} to be said"), || {
            said = create().stderr;
            said.contains(says)
        });
    };
    let accepted = || wait_until(seconds(60), "the mapping to be taken", || create().code == 0);
    accepted();
    set("{\"from\":\"Selector\",\"selector\":{\"matchLabels\":{\"team\":\"staging\"}}}");
    refused("must be one that allowedNamespaces of network segment-b selects: its labels must have team=staging");
    api.kubectl("label namespace shop team=staging");
    accepted();
    // What is stored is not refused for a label of its own, only for a new claim.
    api.kubectl("label namespace shop team-");
    refused("team=staging");
    api.kubectl("label natmapping/vm03 -n shop kept=true");
    for (expression, label, reason) in [
        (
            "{\"key\":\"tier\",\"operator\":\"In\",\"values\":[\"a\",\"b\"]}",
            "tier=b",
            "tier In (a,b)",
        ),
        (
            "{\"key\":\"tier\",\"operator\":\"NotIn\",\"values\":[\"b\"]}",
            "tier-",
            "tier NotIn (b)",
        ),
        ("{\"key\":\"open\",\"operator\":\"Exists\"}", "open=yes", "open Exists"),
        ("{\"key\":\"open\",\"operator\":\"DoesNotExist\"}", "open-", "open DoesNotExist"),
    ] {
        set(&format!(
            "{{\"from\":\"Selector\",\"selector\":{{\"matchLabels\":null,\"matchExpressions\":[{expression}]}}}}"
        ));
        refused(reason);
        api.kubectl(&format!("label namespace shop {label}"));
        accepted();
    }
    set("{\"from\":\"Selector\",\"selector\":{\"matchLabels\":null,\"matchExpressions\":null}}");
    accepted();
    set("null");
    accepted();
}
