//! What a node is not told, because it does not concern it, makes no difference to its plan.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use stagenet::api::NatMapping;
use stagenet::plan::{Concern, HostOptions, HostPlan, NodeFacts, World, concern, host_plan, judge};

use crate::NODE;
use crate::wide::wide_worlds;
use crate::worlds;

fn planned(world: &World) -> HostPlan {
    host_plan(world, &judge(world), NODE, &HostOptions::default())
}

/// What an agent of `node` ends up with: it begins with networks and its own node, and asks for what is said to concern it until nothing new does.
fn told(world: &World, node: &NodeFacts, interfaces: bool) -> (World, Concern) {
    let mut own = node.clone();
    if !interfaces {
        own.interfaces = BTreeMap::new();
    }
    let mut told = World {
        networks: world.networks.clone(),
        mappings: Vec::new(),
        nodes: vec![node.clone()],
        ..World::default()
    };
    let mut asked = concern((&told).into(), &own);
    loop {
        let of_concern = |mapping: &&NatMapping| asked.mappings.contains(&mapping.spec.network_ref.name);
        told.mappings = world.mappings.iter().filter(of_concern).cloned().collect();
        let more = concern((&told).into(), &own);
        assert!(
            more.mappings.is_superset(&asked.mappings),
            "knowing more cannot make less matter: {asked:?}, {more:?}"
        );
        if more == asked {
            break;
        }
        asked = more;
    }
    if asked.nodes {
        told.nodes.clone_from(&world.nodes);
    }
    if asked.namespaces {
        told.namespaces = world.namespaces.clone();
    }
    (told, asked)
}

/// The node as it may be in a cluster: with labels that networks select or not, and other nodes beside it. An API server has one object a name.
fn in_a_cluster(mut world: World, labelled: bool, networks: u8, clients: u8) -> World {
    let mut names = BTreeSet::new();
    world.mappings.retain(|mapping| {
        names.insert((
            mapping.metadata.namespace.clone().unwrap_or("default".to_owned()),
            mapping.metadata.name.clone(),
        ))
    });
    let labels = |yes: bool| {
        if yes {
            BTreeMap::from([("role".to_owned(), "gateway".to_owned())])
        } else {
            BTreeMap::new()
        }
    };
    for node in &mut world.nodes {
        node.labels = Some(labels(labelled || node.name != NODE));
    }
    for (n, network) in world.networks.iter_mut().enumerate() {
        let bit = |bits: u8| bits >> (n % 8) & 1 == 1;
        let role = if bit(networks) { "gateway" } else { "other" };
        network.spec.gateway.node_selector.match_labels = Some(BTreeMap::from([("role".to_owned(), role.to_owned())]));
        if bit(clients) {
            network.spec.outside.client_routes = Some(serde_json::from_value(serde_json::json!({"nodeSelector": {}})).unwrap());
            let active = serde_json::json!({"conditions": [], "activeGateway": {"node": "other", "address": "192.168.100.9"}});
            network.status = Some(serde_json::from_value(active).unwrap());
        }
    }
    world
}

fn same(world: &World) -> Result<(), TestCaseError> {
    let node = world.nodes.iter().find(|n| n.name == NODE).unwrap();
    let whole = planned(world);
    for interfaces in [true, false] {
        let (told, _) = told(world, node, interfaces);
        prop_assert_eq!(&planned(&told), &whole);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_does_not_concern_a_node_changes_nothing(world in worlds(), labelled in prop::bool::weighted(0.8), networks in any::<u8>(), clients in any::<u8>()) {
        same(&in_a_cluster(world, labelled, networks, clients))?;
    }

    #[test]
    fn what_does_not_concern_a_node_changes_nothing_with_everything(world in wide_worlds(), labelled in prop::bool::weighted(0.8), networks in any::<u8>(), clients in any::<u8>()) {
        same(&in_a_cluster(world, labelled, networks, clients))?;
    }

    /// Who serves nothing and takes no routes is told nothing.
    #[test]
    fn nothing_concerns_a_bystander(world in worlds(), clients in Just(0_u8)) {
        let world = in_a_cluster(world, false, u8::MAX, clients);
        let node = world.nodes.iter().find(|n| n.name == NODE).unwrap();
        prop_assert_eq!(told(&world, node, true).1, Concern::default());
    }
}

/// Pools that share nothing, each with a gateway of its own: a gateway is told of its own network only, unless something may leave it.
#[test]
fn a_gateway_is_told_of_its_own_network() {
    let network = |name: &str, place: usize, more: serde_json::Value| {
        let mut spec = serde_json::json!({
            "gateway": {"nodeSelector": {"matchLabels": {"network": name}}},
            "outside": {"addresses": [format!("192.168.{place}.0/24")]},
            "inside": {"addresses": [format!("10.{place}.0.0/16")]},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "spec": spec})).unwrap()
    };
    let node = NodeFacts {
        name: NODE.to_owned(),
        labels: Some(BTreeMap::from([("network".to_owned(), "a".to_owned())])),
        ..NodeFacts::default()
    };
    let of = |egress: serde_json::Value| {
        let networks = vec![
            network("a", 1, serde_json::json!({ "egress": egress })),
            network("b", 2, serde_json::json!({})),
            network("c", 3, serde_json::json!({})),
        ];
        let world = World {
            networks,
            mappings: Vec::new(),
            ..World::default()
        };
        concern((&world).into(), &node).mappings
    };
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(of(serde_json::json!({"default": "Deny"})), names(&["a"]));
    assert_eq!(
        of(serde_json::json!({"default": "Deny", "allow": [{"to": "192.168.3.7/32"}]})),
        names(&["a", "c"])
    );
    assert_eq!(of(serde_json::json!({"default": "Allow"})), names(&["a", "b", "c"]));
}
