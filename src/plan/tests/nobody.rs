//! Packets from inside under a source that is nobody's inside: the node must not answer them, since it would answer production.

use serde_json::json;

use super::super::isolation::PREFERENCE_NOBODY;
use super::super::testing::{network, node, plan};
use super::super::{HostOptions, HostPlan, Marks, RuleAction, World};
use crate::api::StagingNetworkStatus;
use crate::api::network::Isolation;
use crate::netfilter::{Family, Match, Rule, Table, Target};

/// A gateway of networks that share their inside prefix, as many as have an isolation, which none of them need have.
fn world(isolation: &[Option<(u32, u16)>]) -> World {
    let mut world = World {
        nodes: vec![node("vm02", None, &[("eth0", &["192.168.100.2/24"]), ("br1", &[]), ("br2", &[])])],
        ..World::default()
    };
    for (n, isolation) in isolation.iter().enumerate() {
        let change = json!({"inside": {"interface": format!("br{}", n + 1), "addresses": ["192.168.200.0/24"]}});
        let mut network = network(&format!("n{n}"), u32::try_from(n).unwrap(), change);
        network.status = isolation.map(|(identifier, zone)| StagingNetworkStatus {
            isolation: Some(Isolation { identifier, zone }),
            ..StagingNetworkStatus::default()
        });
        world.networks.push(network);
    }
    world
}

/// The rules of chains whose names begin so.
fn chains<'p>(plan: &'p HostPlan, family: Family, table: Table, name: &str) -> Vec<&'p Vec<Rule>> {
    let rules = plan.ruleset.tables.get(&(family, table)).into_iter().flat_map(|t| &t.chains);
    rules
        .filter(|(chain, _)| chain.as_str().starts_with(name))
        .map(|(_, rules)| rules)
        .collect()
}

fn routed_nowhere(plan: &HostPlan, family: Family) -> bool {
    let nobody = HostOptions::default().marks.nobody();
    plan.policy_rules.iter().any(|rule| {
        rule.family == family && rule.preference == PREFERENCE_NOBODY && rule.mark == Some(nobody) && rule.action == RuleAction::Blackhole
    })
}

#[test]
fn isolated_networks_have_nobody_answered_whose_source_is_not_theirs() {
    let (_, plan) = plan(&world(&[Some((1, 0)), Some((2, 2))]));
    assert!(routed_nowhere(&plan, Family::V4));
    let inside = chains(&plan, Family::V4, Table::Raw, "SNET-CI-");
    assert_eq!(inside.len(), 2);
    for chain in inside {
        assert!(matches!(chain.first().unwrap().matches[..], [Match::Source(_)]), "{chain:#?}");
        assert_eq!(chain.last().unwrap().target, Target::SetMark(HostOptions::default().marks.nobody()));
    }
}

#[test]
fn a_plain_network_needs_no_policy_rule_in_ipv4_and_says_of_no_way_to_those_inside_only() {
    let (_, plan) = plan(&world(&[None]));
    assert!(plan.policy_rules.is_empty(), "the reverse path filter does it");
    let [out] = chains(&plan, Family::V4, Table::Mangle, "SNET-OUT")[..] else {
        panic!()
    };
    assert!(out.iter().all(|rule| rule.matches.contains(&Match::NoRoute)));
    assert_eq!((out.last().unwrap().matches.len(), &out.last().unwrap().target), (1, &Target::Drop));
    assert!(chains(&plan, Family::V4, Table::Mangle, "SNET-PRE").is_empty());
}

#[test]
fn ipv6_has_no_reverse_path_filter_so_plain_networks_are_marked_too() {
    let mut world = world(&[None]);
    assert!(!routed_nowhere(&plan(&world).1, Family::V6), "this node has no IPv6");
    world.nodes[0].kernel.ipv6_forwarding = true;
    let (_, plan) = plan(&world);
    assert!(routed_nowhere(&plan, Family::V6));
    let [marks] = chains(&plan, Family::V6, Table::Mangle, "SNET-P-")[..] else {
        panic!()
    };
    assert_eq!(marks.last().unwrap().target, Target::SetMark(HostOptions::default().marks.nobody()));
}

#[test]
fn a_network_that_is_not_told_apart_yet_has_nobody_answered_at_all() {
    let (_, plan) = plan(&world(&[Some((1, 0)), None]));
    assert!(plan.networks["n1"].problem.is_some());
    let marks = chains(&plan, Family::V4, Table::Mangle, "SNET-P-");
    assert_eq!(marks.len(), 1);
    assert!(
        marks[0].iter().all(|rule| rule.matches.is_empty()),
        "no source is its own: {marks:#?}"
    );
    let to_node = chains(&plan, Family::V4, Table::Mangle, "SNET-N-");
    let silent = |chain: &&&Vec<Rule>| chain.iter().all(|rule| rule.target == Target::Drop);
    assert_eq!(
        to_node.iter().filter(silent).count(),
        1,
        "echo and known connections may be those of its twin"
    );
}

#[test]
fn no_network_gets_the_mark_of_nobody() {
    let marks = Marks::default();
    assert_eq!(marks.of(254).unwrap().value, 254);
    assert_eq!(marks.of(255), None);
    assert_eq!((Marks::new(0xff, 0xff), Marks::new(0x10, 0x10)), (None, None));
}
