//! Every rule about single objects, each with the sentence that a user reads.

use serde_json::{Value, json};

use super::super::testing::{mapping, network};
use super::super::validate;
use crate::api::reasons;

fn network_problem(change: Value) -> String {
    let refusal = validate::network(&network("net", 0, change)).unwrap_err();
    assert_eq!(refusal.reason, reasons::INVALID);
    refusal.message
}

fn mapping_problem(change: Value) -> String {
    let refusal = validate::mapping(&mapping("vm", 0, "192.168.100.3", "192.168.200.3", change)).unwrap_err();
    assert_eq!(refusal.reason, reasons::INVALID);
    refusal.message
}

#[test]
fn networks() {
    for (change, wanted) in [
        (
            json!({"outside": {"addresses": []}}),
            "spec.outside.addresses must have 1 to 64 entries: it has 0",
        ),
        (
            json!({"outside": {"addresses": ["192.168.100.1/24"]}}),
            "spec.outside.addresses[0] must have no bits set behind the prefix length: 192.168.100.1/24 would be 192.168.100.0/24",
        ),
        (
            json!({"outside": {"addresses": ["0.0.0.0/0"]}}),
            "must be no wider than /8: got 0.0.0.0/0",
        ),
        (
            json!({"outside": {"addresses": ["127.0.0.0/8"]}}),
            "must not reach into 127.0.0.0/8 (loopback)",
        ),
        (
            json!({"outside": {"addresses": ["224.1.0.0/16"]}}),
            "must not reach into 224.0.0.0/4 (multicast)",
        ),
        (
            json!({"outside": {"addresses": ["169.254.1.0/24"]}}),
            "must not reach into 169.254.0.0/16 (link-local)",
        ),
        (
            json!({"outside": {"addresses": ["0.1.0.0/16"]}}),
            "must not reach into 0.0.0.0/8 (this network)",
        ),
        (
            json!({"outside": {"addresses": ["255.0.0.0/8"]}}),
            "must not reach into 255.255.255.255/32 (broadcast)",
        ),
        (
            json!({"outside": {"addresses": ["FD00::/64"]}}),
            "must be a prefix in canonical form",
        ),
        (
            json!({"outside": {"addresses": ["10.0.0.0/08"]}}),
            "must be a prefix in canonical form, such as 192.168.100.0/24",
        ),
        (
            json!({"outside": {"addresses": ["010.0.0.0/8"]}}),
            "must be a prefix in canonical form",
        ),
        (
            json!({"outside": {"addresses": ["10.0.0.1"]}}),
            "must be a prefix in canonical form",
        ),
        (
            json!({"outside": {"addresses": ["10.0.0.0/24", "10.0.0.0/24"]}}),
            "spec.outside.addresses[1] must be listed once",
        ),
        (
            json!({"outside": {"addresses": ["192.168.200.128/25"]}}),
            "must not overlap spec.inside.addresses: 192.168.200.128/25 and 192.168.200.0/24",
        ),
        (
            json!({"protected": ["192.168.0.0/16"]}),
            "no prefix that is wholly protected, nothing of it could be claimed: 192.168.100.0/24 lies in 192.168.0.0/16",
        ),
        (
            json!({"outside": {"interface": "eth+"}}),
            "spec.outside.interface must be the name of an interface other than lo",
        ),
        (json!({"outside": {"interface": "eth 0"}}), "spec.outside.interface must be"),
        (
            json!({"inside": {"interface": "lo"}}),
            "spec.inside.interface must be the name of an interface other than lo",
        ),
        (
            json!({"inside": {"interface": "a234567890123456"}}),
            "spec.inside.interface must be",
        ),
        (json!({"inside": {"interface": "eth0"}}), "must not be the outside interface"),
        (
            json!({"inside": {"gatewayAddresses": ["192.168.201.254"]}}),
            "must lie in spec.inside.addresses: got 192.168.201.254",
        ),
        (
            json!({"inside": {"gatewayAddresses": ["192.168.200.255"]}}),
            "must be a host's address: 192.168.200.255 is not one in 192.168.200.0/24",
        ),
        (
            json!({"gateway": {"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}}),
            "spec.gateway.nodeSelector.matchExpressions[0]: operator must be In, NotIn, Exists or DoesNotExist",
        ),
        (
            json!({"outside": {"clientRoutes": {"nodeSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}}}),
            "spec.outside.clientRoutes.nodeSelector.matchExpressions[0]: values must be given",
        ),
    ] {
        let message = network_problem(change.clone());
        assert!(message.contains(wanted), "{change}\n got: {message}\nwant: {wanted}");
    }
}

#[test]
fn mappings() {
    for (change, wanted) in [
        (
            json!({"virtual": {"address": "192.168.100.03"}}),
            "spec.virtual.address must be an IP address in canonical form, such as 192.168.100.3 or fd00:100::3: got \"192.168.100.03\"",
        ),
        (
            json!({"virtual": {"address": "fd00:0::3"}}),
            "spec.virtual.address must be an IP address in canonical form",
        ),
        (json!({"virtual": {"address": "0.0.0.0"}}), "must not be in 0.0.0.0/8"),
        (
            json!({"virtual": {"address": "255.255.255.255"}}),
            "must not be in 255.255.255.255/32 (broadcast)",
        ),
        (
            json!({"target": {"address": "224.0.0.1"}}),
            "spec.target.address must not be in 224.0.0.0/4 (multicast): got 224.0.0.1",
        ),
        (
            json!({"target": {"address": "192.168.100.3"}}),
            "spec.target must differ from spec.virtual",
        ),
        (
            json!({"networkRef": {"name": "Net Work"}}),
            "spec.networkRef.name must be 1 to 63 lower-case letters",
        ),
        (
            json!({"ports": [{"protocol": "TCP", "port": 0}]}),
            "spec.ports[0] port must be 1 to 65535: got 0",
        ),
        (
            json!({"ports": [{"protocol": "TCP", "port": 9, "endPort": 8}]}),
            "spec.ports[0] endPort must not be below port: got 9 to 8",
        ),
        (
            json!({"ports": [{"protocol": "TCP", "port": 9, "targetPort": 0}]}),
            "spec.ports[0] targetPort must be 1 to 65535: got 0",
        ),
        (
            json!({"ports": [{"protocol": "UDP", "port": 1, "endPort": 1000, "targetPort": 65000}]}),
            "targetPort must be at most 64536, so that the range of 1000 ports ends by 65535: got 65000",
        ),
        (
            json!({"ports": [{"protocol": "TCP", "port": 80}, {"protocol": "UDP", "port": 80}, {"protocol": "TCP", "port": 1, "endPort": 100}]}),
            "spec.ports must not overlap: tcp/1-100 and tcp/80 share ports",
        ),
    ] {
        let message = mapping_problem(change.clone());
        assert!(message.contains(wanted), "{change}\n got: {message}\nwant: {wanted}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let message = mapping_problem(json!({
        "virtual": {"address": "x"}, "target": {"address": "y"}, "ports": [{"protocol": "TCP", "port": 0}],
    }));
    assert_eq!(message.matches("must be").count(), 3, "{message}");
}

#[test]
fn long_names_and_lists_are_cut_in_the_message() {
    let long = "x".repeat(300);
    let message = validate::network(&network(&long, 0, json!({}))).unwrap_err().message;
    assert!(message.starts_with("metadata.name must be 1 to 63"), "{message}");
    assert!(message.contains("(300 characters)") && message.len() < 300, "{message}");

    let prefixes: Vec<_> = (0..5000).map(|n| format!("junk{n}")).collect();
    let message = network_problem(json!({"protected": prefixes}));
    assert_eq!(message, "spec.protected must have at most 256 entries: it has 5000");
    let message = network_problem(json!({"protected": prefixes[..100]}));
    assert!(message.ends_with("; and 92 more"), "{message}");
}

#[test]
fn defaults() {
    let net = validate::network(&network("net", 0, json!({}))).unwrap();
    assert!(net.announce && !net.egress_allowed && !net.log);
    assert_eq!(net.source_translation, crate::api::network::SourceTranslation::Masquerade);
    let map = validate::mapping(&mapping("vm", 0, "192.168.100.3", "192.168.200.3", json!({}))).unwrap();
    assert!(map.ports.is_empty() && map.source_translation.is_none());
}
