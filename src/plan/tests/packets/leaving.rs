//! What machines inside start themselves.

use serde_json::json;

use super::{Lab, SSH, assert_dropped, assert_left, left, seed_with, two};
use crate::api::StagingNetworkStatus;
use crate::api::network::ActiveGateway;
use crate::api::reasons;
use crate::plan::egress_limited;
use crate::plan::testing::{mapping, plan};

#[test]
fn egress_leaves_under_the_virtual_address_and_only_with_one() {
    let allow = json!({"egress": {"default": "Allow", "log": true}, "protected": ["10.0.0.0/8"]});
    let lab = Lab::new(&seed_with(allow.clone(), json!({})));
    assert_left(
        &lab.send("eth1", "192.168.200.3", "8.8.8.8", SSH),
        &left("eth0", "192.168.100.3", "8.8.8.8", 22),
    );
    assert_dropped(&lab.send("eth1", "192.168.200.9", "8.8.8.8", SSH), "FO", "net");
    assert_dropped(&lab.send("eth1", "192.168.200.3", "10.1.2.3", SSH), "FO", "net");
    let lab = Lab::new(&seed_with(allow, json!({"ports": [{"protocol": "TCP", "port": 22}]})));
    assert_dropped(&lab.send("eth1", "192.168.200.3", "8.8.8.8", SSH), "FO", "net");
}

/// Denied with a reason: the network says which machines do not get out, and over what.
#[test]
fn machines_without_an_address_to_leave_under_are_told_of() {
    let said = |change: serde_json::Value| {
        let world = seed_with(change, json!({}));
        let (verdicts, _) = plan(&world);
        egress_limited(verdicts.networks["net"].accepted.as_ref().unwrap()).map(|why| (why.reason, why.message))
    };
    let four = json!({"default": "Deny", "allow": [{"to": "203.0.113.0/24"}]});
    let both = json!({"default": "Deny", "allow": [{"to": "203.0.113.0/24"}, {"to": "2001:db8:113::/48"}]});
    let inside = json!({"addresses": ["192.168.200.0/24", "fd00:200::/64"]});
    for nothing in [
        json!({}),
        json!({"egress": {"default": "Deny"}}),
        json!({"egress": four, "outside": {"sourceAddress": "192.168.100.250"}}),
        json!({"egress": both, "outside": {"sourceAddress": "192.168.100.250"}}),
        json!({"egress": four, "inside": inside, "outside": {"sourceAddress": "192.168.100.250"}}),
    ] {
        assert_eq!(said(nothing.clone()), None, "{nothing}");
    }
    for (limited, over, field) in [
        (
            json!({"egress": {"default": "Allow"}}),
            "over IPv4 only",
            "an IPv4 spec.outside.sourceAddress",
        ),
        (
            json!({"egress": four, "inside": inside}),
            "over IPv4 only",
            "an IPv4 spec.outside.sourceAddress",
        ),
        (
            json!({"egress": both, "inside": inside}),
            "over IPv4 and IPv6 only",
            "sourceAddress and sourceAddressIPv6",
        ),
        (
            json!({"egress": {"default": "Allow"}, "inside": inside, "outside": {"sourceAddress": "192.168.100.250"}}),
            "over IPv6 only",
            "spec.outside.sourceAddressIPv6",
        ),
        (
            json!({"egress": {"default": "Allow"}, "inside": {"addresses": ["fd00:200::/64"]}}),
            "over IPv6 only",
            "an IPv6 spec.outside.sourceAddress",
        ),
    ] {
        let (reason, message) = said(limited).unwrap();
        assert_eq!(reason, reasons::SOURCE_ADDRESS_MISSING);
        assert!(message.starts_with(over) && message.contains(field), "{message}");
    }
}

#[test]
fn of_two_whole_mappings_to_one_vm_it_leaves_under_the_older() {
    let mut world = seed_with(json!({"egress": {"default": "Allow"}}), json!({}));
    world.mappings.push(mapping("a", 2, "192.168.100.1", "192.168.200.3", json!({})));
    world.mappings.push(mapping("z", 0, "192.168.100.9", "192.168.200.3", json!({})));
    let lab = Lab::new(&world);
    assert_left(
        &lab.send("eth1", "192.168.200.3", "8.8.8.8", SSH),
        &left("eth0", "192.168.100.9", "8.8.8.8", 22),
    );
}

#[test]
fn closed_networks_do_not_reach_each_other() {
    for change in [json!({}), json!({"egress": {"default": "Allow"}})] {
        let lab = Lab::new(&two(&change));
        assert_left(
            &lab.send("eth0", "192.168.100.1", "192.168.100.5", SSH),
            &left("eth2", "192.168.201.2", "192.168.201.5", 22),
        );
        assert_dropped(&lab.send("eth1", "192.168.200.3", "192.168.100.5", SSH), "FO", "net");
        assert_dropped(&lab.send("eth2", "192.168.201.5", "192.168.100.3", SSH), "FO", "other");
        assert_dropped(&lab.send("eth1", "192.168.200.3", "192.168.201.5", SSH), "FO", "net");
    }
}

#[test]
fn nor_by_way_of_another_gateway() {
    let gateway = Some(&[("gateway", "true"), ("net", "yes")][..]);
    let mut world = two(&json!({"egress": {"default": "Allow"}}));
    world.nodes[0].labels = gateway.map(|l| l.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect());
    world.networks[1].spec.gateway.node_selector.match_labels = Some([("other".to_string(), "yes".to_string())].into());
    world.networks[0].status = Some(StagingNetworkStatus {
        active_gateway: Some(ActiveGateway {
            node: "vm02".into(),
            address: None,
            address_ipv6: None,
        }),
        ..StagingNetworkStatus::default()
    });
    let lab = Lab::new(&world);
    assert_left(
        &lab.send("eth1", "192.168.200.3", "192.168.100.77", SSH),
        &left("eth0", "192.168.100.3", "192.168.100.77", 22),
    );
    let trace = lab.send("eth1", "192.168.200.3", "192.168.100.5", SSH);
    assert_eq!(trace.dropped_by().map(|step| step.chain.as_str()), Some("SNET-V"), "{trace}");
}
