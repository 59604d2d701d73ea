//! Worlds for tests, written as people write them.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{HostOptions, HostPlan, InterfaceFacts, KernelFacts, MappingKey, NodeFacts, Verdicts, World, host_plan, judge};
use crate::api::{NatMapping, StagingNetwork};

/// A network with the seed's addresses; `change` is merged over its spec.
pub(super) fn network(name: &str, created: u32, change: Value) -> StagingNetwork {
    let mut object = json!({
        "apiVersion": "stagenet.dev/v1alpha1",
        "kind": "StagingNetwork",
        "metadata": {"name": name, "creationTimestamp": stamp(created), "generation": 1, "resourceVersion": created.to_string()},
        "spec": {
            "gateway": {"nodeSelector": {"matchLabels": {"gateway": "true"}}},
            "outside": {"interface": "eth0", "addresses": ["192.168.100.0/24"]},
            "inside": {"interface": "eth1", "addresses": ["192.168.200.0/24"]},
        },
    });
    merge(&mut object["spec"], change);
    serde_json::from_value(object).unwrap()
}

/// A mapping in namespace `default` of network `net`; `change` is merged over its spec.
pub(super) fn mapping(name: &str, created: u32, address: &str, target: &str, change: Value) -> NatMapping {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let mut object = json!({
        "apiVersion": "stagenet.dev/v1alpha1",
        "kind": "NatMapping",
        "metadata": {
            "name": name, "namespace": namespace, "creationTimestamp": stamp(created), "generation": 1,
            "resourceVersion": created.to_string(),
        },
        "spec": {"networkRef": {"name": "net"}, "virtual": {"address": address}, "target": {"address": target}},
    });
    merge(&mut object["spec"], change);
    serde_json::from_value(object).unwrap()
}

fn stamp(minute: u32) -> String {
    format!("2026-01-{:02}T{:02}:{:02}:00Z", 1 + minute / 1440, minute / 60 % 24, minute % 60)
}

/// RFC 7386: null removes.
fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, change) => *into = change,
    }
}

/// A node with interfaces and their addresses; `labels` None: standalone.
pub(super) fn node(name: &str, labels: Option<&[(&str, &str)]>, interfaces: &[(&str, &[&str])]) -> NodeFacts {
    NodeFacts {
        name: name.to_owned(),
        labels: labels.map(|l| l.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()),
        interfaces: interfaces
            .iter()
            .zip(1..)
            .map(|((name, addresses), index)| {
                let facts = InterfaceFacts {
                    index,
                    mtu: 1500,
                    up: true,
                    mac: format!("02:00:00:00:00:{index:02x}"),
                    addresses: addresses.iter().map(|a| a.parse::<IpNet>().unwrap()).collect(),
                    ..InterfaceFacts::default()
                };
                (name.to_string(), facts)
            })
            .collect(),
        kernel: KernelFacts::default(),
    }
}

/// The seed's gateway, standalone.
pub(super) fn vm02() -> NodeFacts {
    node(
        "vm02",
        None,
        &[
            ("eth0", &["192.168.100.2/24"]),
            ("eth1", &["192.168.200.2/24"]),
            ("lo", &["127.0.0.1/8"]),
        ],
    )
}

pub(super) fn seed() -> World {
    World {
        networks: vec![network("net", 0, json!({}))],
        mappings: vec![mapping("vm03", 1, "192.168.100.3", "192.168.200.3", json!({}))],
        nodes: vec![vm02()],
        ..World::default()
    }
}

pub(super) fn plan(world: &World) -> (Verdicts, HostPlan) {
    let verdicts = judge(world);
    let plan = host_plan(world, &verdicts, "vm02", &HostOptions::default());
    (verdicts, plan)
}

pub(super) fn key(name: &str) -> MappingKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    MappingKey {
        namespace: namespace.into(),
        name: name.into(),
    }
}
