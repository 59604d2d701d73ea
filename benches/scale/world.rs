//! The objects of a bench: one network, and mappings over its pool.

use std::net::Ipv4Addr;
use std::sync::Arc;

use kube::core::ObjectMeta;
use serde_json::json;
use stagenet::agent::source::Snapshot;
use stagenet::api::{NatMapping, StagingNetwork};

/// The outside interface, its address, and its peer.
pub const OUTSIDE: (&str, &str) = ("out0", "10.64.255.1/16");
/// The inside interface and its address.
pub const INSIDE: (&str, &str) = ("in0", "10.128.255.1/16");

/// Objects with `size` mappings.
pub fn snapshot(size: usize) -> Snapshot {
    let network: StagingNetwork = serde_json::from_value(json!({
        "apiVersion": "stagenet.dev/v1alpha1", "kind": "StagingNetwork", "metadata": {"name": "bench", "generation": 1},
        "spec": {
            "gateway": {"nodeSelector": {}},
            "outside": {"interface": OUTSIDE.0, "addresses": ["10.64.0.0/16"]},
            "inside": {"interface": INSIDE.0, "addresses": ["10.128.0.0/16"]},
        }
    }))
    .unwrap();
    Snapshot {
        networks: vec![Arc::new(network)],
        mappings: (0..size).map(|i| Arc::new(mapping(i, 0))).collect(),
        ..Snapshot::default()
    }
}

/// Mapping number `i` in its `version`: an odd one leads to another VM.
pub fn mapping(i: usize, version: usize) -> NatMapping {
    let (high, low) = (u8::try_from(i / 250).unwrap(), u8::try_from(i % 250 + 1).unwrap());
    let other = if version % 2 == 1 { 100 } else { 0 };
    let mut mapping = NatMapping::new(
        &format!("vm{i:05}"),
        serde_json::from_value(json!({
            "networkRef": {"name": "bench"},
            "virtual": {"address": Ipv4Addr::new(10, 64, high, low)},
            "target": {"address": Ipv4Addr::new(10, 128, high + other, low)},
        }))
        .unwrap(),
    );
    mapping.metadata = ObjectMeta {
        namespace: Some("default".into()),
        generation: Some(1 + i64::try_from(version).unwrap()),
        resource_version: Some((i + 1).to_string()),
        ..mapping.metadata
    };
    mapping
}
