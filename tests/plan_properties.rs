//! What must hold of every world, however odd: judged, planned, and tried with packets.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use stagenet::api::{NatMapping, StagingNetwork};
use stagenet::netfilter::path::{Fate, Node};
use stagenet::netfilter::trace::{Packet, Payload};
use stagenet::netfilter::{IfName, Owner, Target, Transport, render};
use stagenet::plan::verdict::Claim;
use stagenet::plan::{HostOptions, HostPlan, InterfaceFacts, MappingState, NodeFacts, Verdicts, Via, World, host_plan, judge};

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
        World { networks, mappings, nodes: vec![facts(missing)] }
    }
}

fn decide(world: &World) -> (Verdicts, HostPlan) {
    let verdicts = judge(world);
    let plan = host_plan(world, &verdicts, NODE, &HostOptions::default());
    (verdicts, plan)
}

/// The node with the plan in its kernel.
fn kernel(world: &World, plan: &HostPlan) -> Node {
    let mut node = Node::default().with_route("0.0.0.0/0".parse().unwrap(), &name("eth0"));
    for (interface, facts) in &world.nodes[0].interfaces {
        for address in &facts.addresses {
            node = node.with_address(&name(interface), *address);
        }
    }
    for address in &plan.addresses {
        node = node.with_address(&address.interface, address.address.into());
    }
    for route in &plan.routes {
        match &route.via {
            Via::Loopback => node = node.with_route(route.destination, &name("lo")),
            Via::Link(interface) => node = node.with_route(route.destination, interface),
            Via::Gateway(_) => {}
        }
    }
    node
}

fn planned<'a>(verdicts: &'a Verdicts, plan: &HostPlan) -> Vec<&'a Claim> {
    let of = |key| verdicts.mappings[key].accepted.as_ref().ok();
    plan.mappings
        .iter()
        .filter(|(_, state)| matches!(state, MappingState::Planned { .. }))
        .filter_map(|(key, _)| of(key))
        .collect()
}

fn addresses() -> Vec<Ipv4Addr> {
    let named = VIRTUALS.iter().chain(&TARGETS).filter_map(|a| a.parse().ok());
    let more = [
        "8.8.8.8",
        "192.168.100.1",
        "192.168.101.7",
        "192.168.200.2",
        "192.168.200.9",
        "192.168.201.9",
        "172.16.9.9",
    ];
    named.chain(more.iter().map(|a| a.parse().unwrap())).collect()
}

fn payloads() -> impl Strategy<Value = Payload> {
    prop_oneof![
        select(&[22_u16, 80, 81, 443, 9999][..]).prop_map(|p| Payload::Transport(Transport::Tcp, p)),
        select(&[22_u16, 53][..]).prop_map(|p| Payload::Transport(Transport::Udp, p)),
        Just(Payload::EchoRequest),
        Just(Payload::Other(47)),
    ]
}

/// Whether the world says that `source` may open a connection to `destination`, leaving by `output`.
fn may_leave(verdicts: &Verdicts, plan: &HostPlan, input: &str, source: Ipv4Addr, destination: Ipv4Addr, output: &str) -> bool {
    let claimed = verdicts
        .mappings
        .values()
        .filter_map(|v| v.accepted.as_ref().ok())
        .any(|c| c.virtual_address == destination);
    planned(verdicts, plan).into_iter().any(|claim| {
        let here = &plan.networks[&claim.network];
        let Ok(network) = &verdicts.networks[&claim.network].accepted else {
            return false;
        };
        claim.ports.is_empty()
            && claim.target == source
            && network.egress_allowed
            && here.inside.as_ref().is_some_and(|i| i.as_str() == input)
            && here.outside.as_ref().is_some_and(|o| o.as_str() == output)
            && !network.protected.iter().any(|p| p.contains(&destination))
            && !claimed
    })
}

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

    /// What is refused might as well not be there.
    #[test]
    fn refused_mappings_change_nothing(world in worlds()) {
        let (verdicts, plan) = decide(&world);
        let mut accepted = world.clone();
        accepted.mappings.retain(|m| {
            verdicts.mappings.iter().any(|(key, v)| {
                v.accepted.is_ok() && Some(&key.namespace) == m.metadata.namespace.as_ref() && Some(&key.name) == m.metadata.name.as_ref()
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
        with.mappings.retain(|key, verdict| key.name != "invalid" || verdict.accepted.is_ok());
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
        let claimed: BTreeSet<&str> = without.mappings.iter().map(|m| m.spec.r#virtual.address.as_str()).collect();
        if !claimed.contains(gone.spec.r#virtual.address.as_str()) && let Ok(address) = gone.spec.r#virtual.address.parse::<Ipv4Addr>() {
            prop_assert!(!plan.proxies.iter().any(|p| p.address == address));
            prop_assert!(!plan.routes.iter().any(|r| r.destination == Ipv4Net::from(address)));
            prop_assert!(!plan.flows.mappings.contains_key(&address));
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
            let named: BTreeSet<_> = rules.chains.values().flatten().filter_map(named).chain(rules.hooks.values().cloned()).collect();
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
            for b in claims.iter().skip(n + 1).filter(|b| b.virtual_address == a.virtual_address) {
                prop_assert_eq!(&a.network, &b.network);
                prop_assert!(!a.ports.is_empty() && !b.ports.is_empty());
                let meet = a.ports.iter().any(|p| b.ports.iter().any(|q| p.transport == q.transport && p.ports.overlaps(q.ports)));
                prop_assert!(!meet);
            }
        }
    }

    /// A new packet from a closed network stays in it, or leaves as egress says; the node itself answers pings only.
    #[test]
    fn nothing_else_leaves(
        world in worlds(), source in select(addresses()), destination in select(addresses()), payload in payloads(),
    ) {
        let (verdicts, plan) = decide(&world);
        let node = kernel(&world, &plan);
        for inside in plan.networks.values().filter(|n| !plan_unfenced(n)).filter_map(|n| n.inside.as_ref()) {
            let trace = node.trace(&plan.ruleset, Packet::new(inside, source, destination, payload));
            match &trace.fate {
                Fate::Local => prop_assert_eq!(payload, Payload::EchoRequest, "{}", trace),
                Fate::Forwarded => {
                    let output = trace.packet.output.as_ref().unwrap().as_str();
                    let allowed = output == inside.as_str()
                        || may_leave(&verdicts, &plan, inside.as_str(), source, destination, output);
                    prop_assert!(allowed, "{}", trace);
                }
                _ => {}
            }
        }
    }

    /// A new packet from outside gets inside by a mapping only, and then to that mapping's target.
    #[test]
    fn nothing_else_enters(world in worlds(), destination in select(addresses()), payload in payloads()) {
        let (verdicts, plan) = decide(&world);
        let node = kernel(&world, &plan);
        let outside = name("eth0");
        prop_assume!(!plan.networks.values().any(|n| n.inside.as_ref() == Some(&outside)));
        let source = "192.168.100.1".parse().unwrap();
        let trace = node.trace(&plan.ruleset, Packet::new(&outside, source, destination, payload));
        let inside: BTreeMap<&str, _> = plan.networks.iter().filter(|(_, n)| !plan_unfenced(n))
            .filter_map(|(name, n)| n.inside.as_ref().map(|i| (i.as_str(), name))).collect();
        let dialled = |claim: &&Claim| claim.virtual_address == destination && match payload {
            _ if claim.ports.is_empty() => true,
            Payload::Transport(transport, port) => claim.ports.iter().any(|p| p.transport == transport && p.ports.contains(port)),
            _ => false,
        };
        let claim = planned(&verdicts, &plan).into_iter().find(dialled);
        match (claim, &trace.fate) {
            (Some(claim), fate) => {
                prop_assert_eq!(fate, &Fate::Forwarded, "{}", trace);
                prop_assert_eq!(trace.packet.destination, claim.target);
                prop_assert_eq!(trace.packet.output.as_ref(), plan.networks[&claim.network].inside.as_ref());
            }
            (None, Fate::Forwarded) => {
                let output = trace.packet.output.as_ref().unwrap();
                prop_assert!(!inside.contains_key(output.as_str()), "{}", trace);
                prop_assert_eq!(trace.packet.destination, destination);
            }
            (None, _) => {}
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
        leave += u32::from(!plan.flows.egress.is_empty());
        refuse += u32::from(verdicts.mappings.values().any(|v| v.conflicted));
    }
    println!("of 500 worlds {serve} serve mappings, {several} of several networks, {leave} let VMs out, {refuse} have conflicts");
    assert!(
        serve > 150 && several > 15 && leave > 30 && refuse > 30,
        "{serve} {several} {leave} {refuse}"
    );
}

/// Whether no fence of its own stands around a network's inside interface: another network's does, or it is somebody's outside interface.
fn plan_unfenced(network: &stagenet::plan::NetworkPlan) -> bool {
    network
        .problem
        .as_ref()
        .is_some_and(|p| p.reason == "InterfaceShared" || p.reason == "SameInterface")
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
