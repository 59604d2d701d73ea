//! What must hold of every world, however odd: judged, planned, and tried with packets.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod concern;
mod kernel;
#[path = "../lab/mod.rs"]
mod lab;
mod lines;
mod memory;
#[allow(dead_code, reason = "the tools of the netfilter labs alone are needed")]
#[path = "../netfilter/mod.rs"]
mod netfilter;
mod objects;
mod packets;
mod wide;

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use stagenet::api::{NatMapping, StagingNetwork};
use stagenet::netfilter::IfName;
use stagenet::plan::verdict::Claim;
use stagenet::plan::{HostOptions, HostPlan, InterfaceFacts, KernelFacts, MappingState, NodeFacts, Verdicts, World, host_plan, judge};

const NODE: &str = "vm02";

/// Few values, so that objects meet.
const NETWORKS: [&str; 4] = ["alpha", "beta", "gamma", "absent"];

const POOLS: [&str; 5] = [
    "192.168.100.0/24",
    "192.168.100.128/25",
    "172.16.0.0/16",
    "192.168.100.1/24",
    "0.0.0.0/0",
];

const INSIDES: [&str; 5] = [
    "192.168.200.0/24",
    "192.168.201.0/24",
    "192.168.200.128/25",
    "10.0.0.0/8",
    "192.168.100.64/26",
];

/// An inside interface (or none: found by subnet) and a prefix that fit together on the node.
const FITTING: [(&str, &str); 5] = [
    ("eth1", "192.168.200.0/24"),
    ("eth2", "192.168.201.0/24"),
    ("eth3", "10.0.0.0/8"),
    ("", "192.168.200.0/24"),
    ("", "192.168.201.0/24"),
];

const VIRTUALS: [&str; 9] = [
    "192.168.100.2",
    "192.168.100.3",
    "192.168.100.4",
    "192.168.100.65",
    "192.168.100.130",
    "192.168.100.255",
    "172.16.3.4",
    "172.16.3.5",
    "300.1.1.1",
];

const TARGETS: [&str; 7] = [
    "192.168.200.3",
    "192.168.200.130",
    "192.168.201.3",
    "192.168.201.4",
    "192.168.200.2",
    "10.1.2.3",
    "fe80::1",
];

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

fn stamp(minute: u8) -> String {
    format!("2026-01-01T00:{minute:02}:00Z")
}

fn optional(field: &str, values: &'static [&'static str]) -> impl Strategy<Value = Value> + use<> {
    let field = field.to_owned();
    prop::option::of(select(values)).prop_map(move |v| v.map_or_else(|| json!({}), |v| json!({ field.clone(): v })))
}

fn merged(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

fn pools() -> impl Strategy<Value = &'static str> {
    prop_oneof![16 => Just(POOLS[0]), 4 => select(&POOLS[1..3]), 1 => select(&POOLS[3..])]
}

/// None: what fits the network's position.
fn insides() -> impl Strategy<Value = Option<(&'static str, &'static str)>> {
    prop_oneof![
        6 => Just(None),
        2 => select(&FITTING[..]).prop_map(Some),
        1 => (select(&["eth0", "eth1", "eth2", "eth3", "eth9", ""][..]), select(&INSIDES[..])).prop_map(Some),
    ]
}

/// A network and a target, mostly one of its own.
fn leads() -> impl Strategy<Value = (&'static str, &'static str)> {
    let fitting = [
        (NETWORKS[0], "192.168.200.3"),
        (NETWORKS[0], "192.168.200.130"),
        (NETWORKS[1], "192.168.201.3"),
        (NETWORKS[1], "192.168.201.4"),
        (NETWORKS[2], "10.1.2.3"),
    ];
    prop_oneof![4 => select(fitting.to_vec()), 1 => (select(&NETWORKS[..]), select(&TARGETS[..]))]
}

prop_compose! {
    fn networks()(list in prop::collection::vec((
        prop::bool::weighted(0.07), prop::option::of(0_u8..4), prop_oneof![9 => Just(json!({"interface": "eth0"})), 1 => optional("interface", &["eth1", "eth9"])],
        prop::collection::vec(pools(), 1..3), insides(), any::<[bool; 4]>(), select(&["", "172.16.0.0/17", "192.168.101.0/24"][..]),
    ), 1..4)) -> Vec<StagingNetwork> {
        list.into_iter().zip(NETWORKS.into_iter().zip(FITTING)).map(|((twice, created, outside, mut pool, inside, [allow, log, preserve, gateway], protected), (name, fitting))| {
            let (inside, prefix) = inside.unwrap_or(fitting);
            let name = if twice { NETWORKS[0] } else { name };
            pool.dedup();
            let mut spec = json!({
                "gateway": {"nodeSelector": {"matchLabels": {"gateway": "true"}}},
                "outside": {"addresses": pool},
                "inside": {"addresses": [prefix]},
                "egress": {"default": if allow { "Allow" } else { "Deny" }, "log": log},
                "sourceTranslation": if preserve { "Preserve" } else { "Masquerade" },
                "protected": if protected.is_empty() { vec![] } else { vec![protected] },
            });
            merged(&mut spec["outside"], outside);
            if !inside.is_empty() {
                spec["inside"]["interface"] = json!(inside);
            }
            if gateway && prefix == INSIDES[0] {
                spec["inside"]["gatewayAddresses"] = json!(["192.168.200.254"]);
            }
            object("StagingNetwork", json!({"name": name}), created, &spec)
        }).collect()
    }
}

prop_compose! {
    fn mappings()(list in prop::collection::vec((
        select(&["a", "b"][..]), 0_u8..20, prop::option::of(0_u8..5), leads(), prop_oneof![4 => select(&VIRTUALS[1..5]), 1 => select(&VIRTUALS[..])],
        prop::collection::vec((select(&["TCP", "UDP"][..]), prop_oneof![19 => select(&[22_u16, 80, 443][..]), 1 => Just(0)], prop_oneof![3 => Just(None), 2 => Just(Some(500_u16)), 1 => select(&[Some(79_u16), Some(81)][..])],
            prop::option::of(prop_oneof![19 => Just(2222_u16), 1 => select(&[0_u16, 65_400][..])])), 0..3),
        optional("sourceTranslation", &["Preserve", "Masquerade"]),
    ), 0..14)) -> Vec<NatMapping> {
        list.into_iter().map(|(namespace, n, created, (network, target), address, ports, translation)| {
            let ports: Vec<Value> = ports.into_iter().map(|(protocol, port, end, to)| {
                let mut entry = json!({"protocol": protocol, "port": port});
                merged(&mut entry, end.map_or_else(|| json!({}), |end| json!({"endPort": end})));
                merged(&mut entry, to.map_or_else(|| json!({}), |to| json!({"targetPort": to})));
                entry
            }).collect();
            let mut spec = json!({
                "networkRef": {"name": network}, "virtual": {"address": address}, "target": {"address": target}, "ports": ports,
            });
            merged(&mut spec, translation);
            object("NatMapping", json!({"namespace": namespace, "name": format!("m{n}")}), created, &spec)
        }).collect()
    }
}

fn object<T: serde::de::DeserializeOwned>(kind: &str, mut metadata: Value, created: Option<u8>, spec: &Value) -> T {
    if let Some(created) = created {
        metadata["creationTimestamp"] = json!(stamp(created));
    }
    serde_json::from_value(json!({"apiVersion": "stagenet.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec})).unwrap()
}

fn facts(missing: u8) -> NodeFacts {
    let interfaces = [
        ("eth0", &["192.168.100.2/24", "172.16.0.2/16"][..]),
        ("eth1", &["192.168.200.2/24"]),
        ("eth2", &["192.168.201.2/24"]),
        ("eth3", &["10.250.0.1/32"]),
        ("lo", &["127.0.0.1/8"]),
    ];
    let of = |addresses: &[&str]| InterfaceFacts {
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        ..InterfaceFacts::default()
    };
    NodeFacts {
        kernel: KernelFacts::default(),
        name: NODE.into(),
        labels: None,
        interfaces: interfaces
            .iter()
            .zip(0_u8..)
            .filter(|(_, n)| *n != missing)
            .map(|((name, addresses), _)| ((*name).to_owned(), of(addresses)))
            .collect(),
    }
}

prop_compose! {
    fn worlds()(networks in networks(), mappings in mappings(), missing in 0_u8..40) -> World {
        World { networks, mappings, nodes: vec![facts(missing)], ..World::default() }
    }
}

fn decide(world: &World) -> (Verdicts, HostPlan) {
    let verdicts = judge(world);
    let plan = host_plan(world, &verdicts, NODE, &HostOptions::default());
    (verdicts, plan)
}

fn planned<'a>(verdicts: &'a Verdicts, plan: &HostPlan) -> Vec<&'a Claim> {
    let of = |key| verdicts.mappings[key].accepted.as_ref().ok();
    plan.mappings
        .iter()
        .filter(|(_, state)| matches!(state, MappingState::Planned { .. }))
        .filter_map(|(key, _)| of(key))
        .collect()
}
