//! Which claims stand, and what the others are told.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::testing::{key, mapping, network, node, seed};
use super::super::{MappingVerdict, Verdicts, World, judge};
use crate::api::reasons;

/// The seed and one more mapping.
fn with(address: &str, target: &str, change: Value) -> Arc<MappingVerdict> {
    let mut world = seed();
    world.mappings.push(mapping("new", 9, address, target, change));
    judge(&world).mappings[&key("new")].clone()
}

#[track_caller]
fn assert_refused(verdict: &MappingVerdict, reason: &str, says: &str) {
    let refusal = verdict.accepted.as_ref().unwrap_err();
    assert_eq!(refusal.reason, reason, "{}", refusal.message);
    assert!(refusal.message.contains(says), "got: {}\nwant: {says}", refusal.message);
}

#[test]
fn reasons_by_one_mapping() {
    for (address, target, change, reason, says) in [
        (
            "192.168.101.3",
            "192.168.200.3",
            json!({}),
            reasons::POOL,
            "must be in the pool of network net, 192.168.100.0/24: got 192.168.101.3",
        ),
        (
            "192.168.100.4",
            "192.168.201.3",
            json!({}),
            reasons::TARGET_OUTSIDE,
            "must be in the inside prefixes of network net, 192.168.200.0/24: got 192.168.201.3",
        ),
        (
            "192.168.100.4",
            "192.168.200.255",
            json!({}),
            reasons::TARGET_OUTSIDE,
            "192.168.200.255 is the network or broadcast address",
        ),
        (
            "192.168.100.2",
            "192.168.200.3",
            json!({}),
            reasons::ADDRESS_OWNED,
            "192.168.100.2 is the address of eth0 on node vm02",
        ),
        (
            "192.168.100.0",
            "192.168.200.3",
            json!({}),
            reasons::ADDRESS_OWNED,
            "192.168.100.0 is the network or broadcast address of 192.168.100.0/24 on eth0 of node vm02",
        ),
        (
            "192.168.100.255",
            "192.168.200.3",
            json!({}),
            reasons::ADDRESS_OWNED,
            "192.168.100.255 is the network or broadcast address",
        ),
        (
            "192.168.100.4",
            "192.168.200.3",
            json!({"networkRef": {"name": "gone"}}),
            reasons::NETWORK_NOT_FOUND,
            "there is none named \"gone\"",
        ),
        (
            "192.168.100.3",
            "192.168.200.4",
            json!({}),
            reasons::CONFLICT,
            "NatMapping vm03 holds 192.168.100.3 since 2026-01-01T00:01:00Z",
        ),
        (
            "192.168.100.x",
            "192.168.200.4",
            json!({}),
            reasons::INVALID,
            "spec.virtual.address must be an IP address in canonical form",
        ),
    ] {
        assert_refused(&with(address, target, change), reason, says);
    }
}

#[test]
fn only_a_missing_network_is_an_unresolved_reference() {
    assert_eq!(
        with("192.168.100.4", "192.168.200.4", json!({"networkRef": {"name": "gone"}}))
            .resolved_refs
            .clone()
            .unwrap_err()
            .reason,
        reasons::NETWORK_NOT_FOUND
    );
    // Also of a mapping that is wrong in itself.
    assert!(with("junk", "junk", json!({"networkRef": {"name": "gone"}})).resolved_refs.is_err());
    assert!(with("junk", "junk", json!({})).resolved_refs.is_ok());
}

#[test]
fn several_problems_are_told_in_one_message() {
    let verdict = with("10.0.0.1", "10.0.0.2", json!({}));
    assert_refused(&verdict, reasons::POOL, "spec.target.address must be in the inside prefixes");
}

#[test]
fn what_the_network_protects_or_answers_for_cannot_be_claimed() {
    let mut world = seed();
    world.networks = vec![network(
        "net",
        0,
        json!({"protected": ["192.168.100.64/26"], "inside": {"gatewayAddresses": ["192.168.200.254"]}}),
    )];
    world.mappings = vec![
        mapping("prod", 1, "192.168.100.65", "192.168.200.3", json!({})),
        mapping("gw", 2, "192.168.100.4", "192.168.200.254", json!({})),
    ];
    let verdicts = judge(&world);
    assert_refused(
        &verdicts.mappings[&key("prod")],
        reasons::PROTECTED,
        "192.168.100.65 meets 192.168.100.64/26, which network net protects",
    );
    assert_refused(
        &verdicts.mappings[&key("gw")],
        reasons::TARGET_IS_GATEWAY,
        "192.168.200.254 is in gatewayAddresses of network net",
    );
}

#[test]
fn an_address_inside_another_closed_network_cannot_be_claimed() {
    let mut world = seed();
    world.networks.push(network(
        "other",
        1,
        json!({"outside": {"interface": "eth2", "addresses": ["10.0.0.0/24"]},
               "inside": {"interface": "eth3", "addresses": ["192.168.100.64/26"], "gatewayAddresses": ["192.168.100.65"]}}),
    ));
    world.mappings = vec![
        mapping("a", 1, "192.168.100.70", "192.168.200.3", json!({})),
        mapping("b", 1, "192.168.100.65", "192.168.200.3", json!({})),
        mapping("c", 1, "192.168.100.7", "192.168.200.3", json!({})),
    ];
    let verdicts = judge(&world);
    assert_refused(
        &verdicts.mappings[&key("a")],
        reasons::PROTECTED,
        "192.168.100.70 meets 192.168.100.64/26, which is inside network other",
    );
    assert_refused(
        &verdicts.mappings[&key("b")],
        reasons::ADDRESS_OWNED,
        "192.168.100.65 is in gatewayAddresses of network other",
    );
    assert!(verdicts.mappings[&key("c")].accepted.is_ok());
}

#[test]
fn addresses_of_any_node_are_taken() {
    let mut world = seed();
    world.nodes.push(node("vm09", Some(&[]), &[("ens3", &["192.168.100.9/24"])]));
    world.mappings.push(mapping("new", 9, "192.168.100.9", "192.168.200.4", json!({})));
    let verdicts = judge(&world);
    assert_refused(
        &verdicts.mappings[&key("new")],
        reasons::ADDRESS_OWNED,
        "192.168.100.9 is the address of ens3 on node vm09",
    );
}

#[test]
fn mappings_of_a_refused_network_say_so() {
    let mut world = seed();
    world.networks = vec![network("net", 0, json!({"outside": {"addresses": []}}))];
    let verdict = judge(&world).mappings[&key("vm03")].clone();
    assert_refused(
        &verdict,
        reasons::NETWORK_NOT_ACCEPTED,
        "network net is not accepted itself: Invalid: spec.outside.addresses must have 1 to 64 entries",
    );
    assert!(verdict.resolved_refs.is_ok());
}

fn ports(list: &[(&str, u16, u16)]) -> Value {
    json!({"ports": list.iter().map(|(protocol, first, last)| json!({"protocol": protocol, "port": first, "endPort": last})).collect::<Vec<_>>()})
}

fn world_of(claims: &[(&str, u32, Value)]) -> Verdicts {
    let mut world = seed();
    world.mappings = claims
        .iter()
        .map(|(name, created, change)| mapping(name, *created, "192.168.100.3", "192.168.200.3", change.clone()))
        .collect();
    let verdicts = judge(&world);
    world.mappings.reverse();
    assert_eq!(verdicts, judge(&world));
    verdicts
}

fn standing(verdicts: &Verdicts) -> Vec<String> {
    verdicts
        .mappings
        .iter()
        .filter(|(_, v)| v.accepted.is_ok())
        .map(|(k, _)| k.name.to_string())
        .collect()
}

#[test]
fn the_oldest_claim_wins_then_namespace_and_name() {
    assert_eq!(standing(&world_of(&[("a", 2, json!({})), ("b", 1, json!({}))])), ["b"]);
    assert_eq!(standing(&world_of(&[("z/a", 1, json!({})), ("y/b", 1, json!({}))])), ["b"]);
    let mut world = seed();
    world.mappings.push(mapping("new", 0, "192.168.100.3", "192.168.200.3", json!({})));
    for m in &mut world.mappings {
        m.metadata.creation_timestamp = m
            .metadata
            .creation_timestamp
            .take()
            .filter(|_| m.metadata.name.as_deref() == Some("new"));
    }
    assert_eq!(standing(&judge(&world)), ["vm03"], "no time stamp counts as oldest");
}

#[test]
fn ports_of_one_address_can_be_shared_if_they_do_not_overlap() {
    let verdicts = world_of(&[
        ("web", 1, ports(&[("TCP", 80, 80), ("TCP", 443, 443)])),
        ("dns", 2, ports(&[("UDP", 53, 53), ("TCP", 53, 53)])),
        ("quic", 3, ports(&[("UDP", 443, 443)])),
        ("range", 4, ports(&[("TCP", 81, 442)])),
        ("late", 5, ports(&[("TCP", 8000, 8001), ("TCP", 400, 8000)])),
        ("cover", 6, ports(&[("TCP", 1, 65535)])),
        ("whole", 7, json!({})),
    ]);
    assert_eq!(standing(&verdicts), ["dns", "quic", "range", "web"]);
    assert_refused(
        &verdicts.mappings[&key("cover")],
        reasons::CONFLICT,
        "NatMapping web holds 192.168.100.3 with overlapping ports since",
    );
    assert!(verdicts.mappings[&key("whole")].conflicted);
}

#[test]
fn a_loser_blocks_nobody() {
    let verdicts = world_of(&[
        ("first", 1, ports(&[("TCP", 80, 80)])),
        ("loser", 2, ports(&[("TCP", 80, 90)])),
        ("third", 3, ports(&[("TCP", 90, 90)])),
    ]);
    assert_eq!(standing(&verdicts), ["first", "third"]);
    let verdicts = world_of(&[("bad", 1, json!({"target": {"address": "10.0.0.1"}})), ("good", 2, json!({}))]);
    assert_eq!(standing(&verdicts), ["good"]);
}

#[test]
fn one_address_leads_into_one_network() {
    let mut world = seed();
    world.networks.push(network(
        "other",
        5,
        json!({"inside": {"interface": "eth2", "addresses": ["192.168.201.0/24"]}}),
    ));
    world.mappings = vec![
        mapping("one", 1, "192.168.100.3", "192.168.200.3", ports(&[("TCP", 80, 80)])),
        mapping(
            "team/two",
            2,
            "192.168.100.3",
            "192.168.201.3",
            json!({"networkRef": {"name": "other"}, "ports": [{"protocol": "TCP", "port": 81}]}),
        ),
    ];
    let verdict = judge(&world).mappings[&key("team/two")].clone();
    assert_refused(
        &verdict,
        reasons::CONFLICT,
        "an older claim in another namespace holds 192.168.100.3 for another network since",
    );
    let message = verdict.accepted.clone().unwrap_err().message;
    assert!(
        !message.contains("default") && !message.contains("one holds"),
        "names nothing of another namespace: {message}"
    );
}

#[test]
fn one_name_with_two_meanings_is_refused_and_twice_the_same_is_one() {
    let mut world = seed();
    world.mappings.push(mapping("vm03", 1, "192.168.100.3", "192.168.200.3", json!({})));
    world.networks.push(network("net", 0, json!({})));
    assert_eq!(standing(&judge(&world)), ["vm03"]);
    world.mappings.push(mapping("vm03", 1, "192.168.100.4", "192.168.200.3", json!({})));
    let verdict = judge(&world).mappings[&key("vm03")].clone();
    assert_refused(&verdict, reasons::INVALID, "metadata.name must be unique");
    world.networks.push(network("net", 0, json!({"egress": {"default": "Allow"}})));
    assert_eq!(
        judge(&world).networks["net"].accepted.as_ref().unwrap_err().reason,
        reasons::INVALID
    );
}

#[test]
fn gateways_are_chosen_by_labels() {
    let world = World {
        nodes: vec![
            node("c", Some(&[("gateway", "true")]), &[]),
            node("b", Some(&[("gateway", "false")]), &[]),
            node("a", Some(&[("gateway", "true")]), &[]),
        ],
        ..seed()
    };
    assert_eq!(judge(&world).networks["net"].gateways, ["a", "c"]);
    assert_eq!(judge(&seed()).networks["net"].gateways, ["vm02"], "standalone");
}
