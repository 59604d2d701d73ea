//! Who gets which identifier and zone, and what a node makes of two that are the same.

use std::collections::BTreeMap;

use serde_json::json;

use super::super::isolation::allocate;
use super::super::testing::{network, node, plan};
use super::super::{World, judge};
use crate::api::StagingNetworkStatus;
use crate::api::network::Isolation;
use crate::api::reasons;

/// A network behind `interface` on the nodes that bear label `on`, with its isolation, if any.
fn closed(n: u32, on: &str, inside: &str, isolation: Option<(u32, u16)>) -> crate::api::StagingNetwork {
    let change = json!({
        "gateway": {"nodeSelector": {"matchLabels": {"gateway": null, on: "true"}}},
        "outside": {"addresses": [format!("192.168.{}.0/24", 100 + n)]},
        "inside": {"interface": format!("br{n}"), "addresses": [inside]},
    });
    let mut network = network(&format!("n{n}"), n, change);
    network.status = isolation.map(|(identifier, zone)| StagingNetworkStatus {
        isolation: Some(Isolation { identifier, zone }),
        ..StagingNetworkStatus::default()
    });
    network
}

/// Four copies of one production, two and two on a gateway each; `east` says that the second gateway is one of the first pair's, too.
fn world(networks: Vec<crate::api::StagingNetwork>, east: bool) -> World {
    let links = [
        ("eth0", &["192.168.100.2/24"][..]),
        ("br0", &[]),
        ("br1", &[]),
        ("br2", &[]),
        ("br3", &[]),
    ];
    let labels = if east { &["east", "west"][..] } else { &["east"] };
    let labelled = |name, labels: &[&str]| {
        let mut node = node(name, None, &links);
        node.labels = Some(labels.iter().map(|label| ((*label).to_owned(), "true".to_owned())).collect());
        node
    };
    World {
        nodes: vec![labelled("vm01", &["west"]), labelled("vm02", labels)],
        networks,
        ..World::default()
    }
}

fn allocated(world: &World) -> BTreeMap<String, (u32, u16)> {
    let isolation = allocate(world, &judge(world));
    isolation.into_iter().map(|(name, i)| (name, (i.identifier, i.zone))).collect()
}

fn pairs(isolation: [(u32, u16); 4]) -> Vec<crate::api::StagingNetwork> {
    let on = ["west", "west", "east", "east"];
    let networks = (0..).zip(on).zip(isolation);
    networks
        .map(|((n, on), isolation)| closed(n, on, "10.0.0.0/24", Some(isolation)))
        .collect()
}

const APART: [(u32, u16); 4] = [(1, 0), (2, 2), (3, 0), (4, 4)];

#[test]
fn networks_that_never_meet_may_both_have_the_first_zone() {
    let fresh = (0..)
        .zip(["west", "west", "east", "east"])
        .map(|(n, on)| closed(n, on, "10.0.0.0/24", None));
    let given = allocated(&world(fresh.collect(), false));
    assert_eq!(given.into_values().collect::<Vec<_>>(), APART);
    assert_eq!(allocated(&world(pairs(APART), false)).into_values().collect::<Vec<_>>(), APART);
}

#[test]
fn of_two_that_come_to_meet_the_younger_leaves_the_first_zone() {
    let world = world(pairs(APART), true);
    let given: Vec<_> = allocated(&world).into_values().collect();
    assert_eq!(given, [(1, 0), (2, 2), (3, 3), (4, 4)]);
    // Until it has, the node does not serve it; the others are served.
    let (_, plan) = plan(&world);
    let reason = |name: &str| plan.networks[name].problem.as_ref().map(|problem| problem.reason);
    assert_eq!(reason("n2"), Some(reasons::ISOLATION_PENDING));
    assert_eq!([reason("n0"), reason("n1"), reason("n3")], [None; 3]);
}

#[test]
fn prefixes_that_grow_into_each_other_are_told_apart() {
    let networks = vec![
        closed(0, "east", "10.0.0.0/24", Some((1, 0))),
        closed(1, "east", "10.0.0.0/16", Some((2, 0))),
        closed(2, "east", "10.1.0.0/24", None),
    ];
    let given: Vec<_> = allocated(&world(networks, false)).into_values().collect();
    assert_eq!(given, [(1, 0), (2, 2)]);
}

#[test]
fn one_identifier_is_not_given_twice() {
    let world = world(pairs([(1, 0), (1, 1), (1, 1), (9, 4)]), true);
    let given: Vec<_> = allocated(&world).into_values().collect();
    assert_eq!(
        given,
        [(1, 0), (2, 2), (3, 3), (9, 9)],
        "the oldest keeps it, and a zone is the first or named as the identifier"
    );
    let (_, plan) = plan(&world);
    for name in ["n1", "n2"] {
        let problem = plan.networks[name].problem.as_ref().unwrap();
        assert_eq!(problem.reason, reasons::ISOLATION_PENDING);
        assert!(problem.message.contains("network n0"), "{}", problem.message);
    }
}
