//! Properties of verdicts and plans: order means nothing, nobody harms another, and plans are whole.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::json;
use stagenet::netfilter::{Owner, Target, render};
use stagenet::plan::{MappingState, World, judge};

use crate::wide::wide_worlds;
use crate::{POOLS, decide, facts, object, planned, worlds};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// The order of objects means nothing.
    #[test]
    fn order_means_nothing(world in worlds(), seed in any::<u64>()) {
        let mut other = world.clone();
        let rotate = |len: usize| if len == 0 { 0 } else { usize::try_from(seed % 97).unwrap() % len };
        let (m, n) = (rotate(other.mappings.len()), rotate(other.networks.len()));
        other.mappings.rotate_left(m);
        other.networks.rotate_left(n);
        if seed % 2 == 0 {
            other.mappings.reverse();
            other.networks.reverse();
        }
        prop_assert_eq!(decide(&world), decide(&other));
    }

    /// The same with everything in the objects, clones among them.
    #[test]
    fn order_means_nothing_with_everything(world in wide_worlds(), mappings in any::<prop::sample::Index>(), reverse in any::<bool>()) {
        let mut other = world.clone();
        if !other.mappings.is_empty() {
            let by = mappings.index(other.mappings.len());
            other.mappings.rotate_left(by);
        }
        if reverse {
            other.networks.reverse();
        }
        prop_assert_eq!(decide(&world), decide(&other));
    }

    /// What is refused might as well not be there.
    #[test]
    fn refused_mappings_change_nothing(world in worlds()) {
        let (verdicts, plan) = decide(&world);
        let mut accepted = world.clone();
        accepted.mappings.retain(|m| {
            verdicts.mappings.iter().any(|(key, v)| {
                v.accepted.is_ok() && Some(&*key.namespace) == m.metadata.namespace.as_deref() && Some(&*key.name) == m.metadata.name.as_deref()
            })
        });
        let (again, same) = decide(&accepted);
        prop_assert!(again.mappings.values().all(|v| v.accepted.is_ok()));
        prop_assert_eq!(plan, same);
    }

    /// An object that is invalid by itself changes no other verdict and no plan.
    #[test]
    fn an_invalid_object_harms_nobody(world in worlds(), junk in ".{0,40}") {
        let (verdicts, plan) = decide(&world);
        let mut more = world.clone();
        let metadata = json!({"namespace": "a", "name": "invalid"});
        let spec = json!({"networkRef": {"name": "alpha"}, "virtual": {"address": format!("x{junk}")}, "target": {"address": junk}});
        more.mappings.insert(0, object("NatMapping", metadata, None, &spec));
        let spec = json!({
            "gateway": {"nodeSelector": {}}, "outside": {"addresses": [format!("x{junk}")]}, "inside": {"interface": "eth+", "addresses": [junk]},
        });
        more.networks.insert(0, object("StagingNetwork", json!({"name": "invalid"}), None, &spec));
        let (mut with, same) = decide(&more);
        Arc::make_mut(&mut with.mappings).retain(|key, verdict| &*key.name != "invalid" || verdict.accepted.is_ok());
        with.networks.retain(|name, verdict| name != "invalid" || verdict.accepted.is_ok());
        prop_assert_eq!(verdicts, with);
        prop_assert_eq!(plan, same);
    }

    /// A mapping that goes leaves no rule, route or neighbour, and its return makes the plan what it was.
    #[test]
    fn a_mapping_leaves_no_trace(world in worlds(), which in any::<prop::sample::Index>()) {
        prop_assume!(!world.mappings.is_empty());
        let (_, before) = decide(&world);
        let mut without = world.clone();
        let gone = without.mappings.remove(which.index(world.mappings.len()));
        let meta = gone.metadata.clone();
        without.mappings.retain(|m| m.metadata.name != meta.name || m.metadata.namespace != meta.namespace);
        let owner = Owner::Mapping(format!("{}/{}", meta.namespace.unwrap(), meta.name.unwrap()));
        let (_, plan) = decide(&without);
        let rules = plan.ruleset.tables.values().flat_map(|t| t.chains.values().flatten());
        prop_assert!(!rules.into_iter().any(|rule| rule.owner == owner));
        let claimed: BTreeSet<&str> = without.mappings.iter().map(|m| m.spec.r#virtual.text()).collect();
        if !claimed.contains(gone.spec.r#virtual.text()) && let Ok(address) = gone.spec.r#virtual.text().parse::<IpAddr>() {
            prop_assert!(!plan.proxies.iter().any(|p| p.address == address));
            prop_assert!(!plan.routes.iter().any(|r| r.destination == IpNet::from(address)));
        }
        prop_assert_eq!(before, decide(&world).1);
    }

    /// Every chain that is named exists and is reached, every rule can be rendered, and owners are planned mappings.
    #[test]
    fn rule_sets_are_whole(world in worlds()) {
        let (_, plan) = decide(&world);
        for ((family, table), rules) in &plan.ruleset.tables {
            let named = |rule: &stagenet::netfilter::Rule| match &rule.target {
                Target::Jump(chain) | Target::Goto(chain) => Some(chain.clone()),
                _ => None,
            };
            let named: BTreeSet<_> = rules.chains.values().flatten().filter_map(named).chain(rules.hooks.values().filter_map(|hook| hook.chain().cloned())).collect();
            let present: BTreeSet<_> = rules.chains.keys().cloned().collect();
            let unserved: Vec<_> = present.difference(&named).filter(|c| !c.as_str().starts_with("SNET-U-")).collect();
            prop_assert_eq!(named.difference(&present).count(), 0);
            prop_assert!(unserved.is_empty(), "{:?} are reached by nothing", unserved);
            prop_assert!(render::table(*family, *table, rules).is_ok());
            for rule in rules.chains.values().flatten() {
                if let Owner::Mapping(owner) = &rule.owner {
                    let known = plan.mappings.iter().any(|(key, s)| key.to_string() == *owner && matches!(s, MappingState::Planned { .. }));
                    prop_assert!(known, "{owner} has a rule");
                }
            }
        }
    }

    /// No port of an address is claimed twice, and no address leads into two networks.
    #[test]
    fn accepted_claims_do_not_overlap(world in worlds()) {
        let verdicts = judge(&world);
        let claims: Vec<_> = verdicts.mappings.values().filter_map(|v| v.accepted.as_ref().ok()).collect();
        for (n, a) in claims.iter().enumerate() {
            for b in claims.iter().skip(n + 1).filter(|b| b.virtual_prefix == a.virtual_prefix) {
                prop_assert_eq!(&a.network, &b.network);
                prop_assert!(!a.ports.is_empty() && !b.ports.is_empty());
                let meet = a.ports.iter().any(|p| b.ports.iter().any(|q| p.transport == q.transport && p.ports.overlaps(q.ports)));
                prop_assert!(!meet);
            }
        }
    }

    /// Objects that never saw the API server's validation: no panic, and whatever is accepted can be programmed.
    #[test]
    fn garbage_is_refused_not_believed(
        texts in prop::collection::vec(prop_oneof![".{0,300}", "[0-9.:/]{0,20}", select(&POOLS[..]).prop_map(str::to_owned)], 14),
        numbers in any::<[u16; 4]>(),
        many in 0_usize..3000,
    ) {
        let t = |n: usize| texts[n].clone();
        let spec = json!({
            "gateway": {"nodeSelector": {"matchExpressions": [{"key": t(0), "operator": t(1), "values": [t(2)]}], "matchLabels": {t(3): t(4)}}},
            "outside": {"interface": t(5), "addresses": [t(6), t(7)], "clientRoutes": {"nodeSelector": {}}},
            "inside": {"interface": t(8), "addresses": vec![t(9); many.min(70)], "gatewayAddresses": [t(10)]},
            "protected": vec![t(11); many],
        });
        let ports = json!({"protocol": "TCP", "port": numbers[0], "endPort": numbers[1], "targetPort": numbers[2]});
        let claim = json!({
            "networkRef": {"name": t(12)}, "virtual": {"address": t(6)}, "target": {"address": t(9)}, "ports": vec![ports; usize::from(numbers[3] % 300)],
        });
        let world = World {
            networks: vec![object("StagingNetwork", json!({"name": t(12)}), None, &spec)],
            mappings: vec![object("NatMapping", json!({"name": t(13), "namespace": t(0)}), None, &claim)],
            nodes: vec![facts(99)],
            ..World::default()
        };
        let (verdicts, plan) = decide(&world);
        for ((family, table), rules) in &plan.ruleset.tables {
            prop_assert!(render::table(*family, *table, rules).is_ok());
        }
        for verdict in verdicts.mappings.values() {
            if let Err(refusal) = &verdict.accepted {
                prop_assert!(!refusal.message.is_empty() && refusal.message.len() < 16_384);
            }
        }
    }
}

/// The properties above say nothing if worlds are all noise: enough of them serve mappings, several networks, and let something leave.
#[test]
fn worlds_are_worth_trying() {
    let mut runner = TestRunner::deterministic();
    let (mut serve, mut several, mut leave, mut refuse) = (0, 0, 0, 0);
    for _ in 0..500 {
        let world = worlds().new_tree(&mut runner).unwrap().current();
        let (verdicts, plan) = decide(&world);
        let claims = planned(&verdicts, &plan);
        let networks: BTreeSet<_> = claims.iter().map(|claim| &claim.network).collect();
        serve += u32::from(!claims.is_empty());
        several += u32::from(networks.len() > 1);
        let mirror = |name: &stagenet::netfilter::ChainName| name.as_str().starts_with("SNET-M-");
        leave += u32::from(plan.ruleset.tables.values().any(|table| table.chains.keys().any(mirror)));
        refuse += u32::from(verdicts.mappings.values().any(|v| v.conflicted));
    }
    println!("of 500 worlds {serve} serve mappings, {several} of several networks, {leave} let VMs out, {refuse} have conflicts");
    assert!(
        serve > 150 && several > 15 && leave > 30 && refuse > 30,
        "{serve} {several} {leave} {refuse}"
    );
}

/// Judging and planning take time in proportion to the number of mappings: ten times as many must not take a hundred times as long.
#[test]
fn ten_thousand_mappings_are_no_different_from_a_thousand() {
    let world = |count: u32| {
        let spec = json!({
            "gateway": {"nodeSelector": {}}, "outside": {"interface": "eth0", "addresses": ["172.16.0.0/16"]},
            "inside": {"interface": "eth3", "addresses": ["10.0.0.0/8"]}, "egress": {"default": "Allow"},
        });
        let mapping = |n: u32| {
            let (address, target) = (Ipv4Addr::from_bits(0xac10_0100 + n), Ipv4Addr::from_bits(0x0a00_0100 + n));
            let spec = json!({"networkRef": {"name": "alpha"}, "virtual": {"address": address}, "target": {"address": target}});
            object("NatMapping", json!({"namespace": "a", "name": format!("m{n}")}), None, &spec)
        };
        World {
            networks: vec![object("StagingNetwork", json!({"name": "alpha"}), None, &spec)],
            mappings: (0..count).map(mapping).collect(),
            nodes: vec![facts(99)],
            ..World::default()
        }
    };
    let time = |count: u32| {
        let world = world(count);
        (0..3)
            .map(|_| {
                let start = std::time::Instant::now();
                let (_, plan) = decide(&world);
                assert_eq!(plan.proxies.len(), usize::try_from(count).unwrap());
                start.elapsed()
            })
            .min()
            .unwrap()
    };
    let (few, many) = (time(1000), time(10_000));
    println!("judge and plan: 1000 mappings {few:?}, 10 000 mappings {many:?}");
    assert!(many < few * 50, "1000 mappings {few:?}, 10 000 mappings {many:?}");
}
