//! Which interfaces a network has on a node, and when it is not served for their sake.

use serde_json::{Value, json};

use super::{assert_problem, cluster, link, plan_of, planned, taken};
use crate::api::network::Isolation;
use crate::api::reasons;
use crate::plan::testing::{key, network, node, plan, seed};
use crate::plan::{HostOptions, HostPlan, InterfaceFacts, MappingState, Via, World, host_plan, judge};

fn found(interfaces: &[(&str, &[&str])]) -> HostPlan {
    let mut world = seed();
    world.networks = vec![network(
        "net",
        0,
        json!({"outside": {"interface": null}, "inside": {"interface": null}}),
    )];
    world.nodes = vec![node("vm02", None, interfaces)];
    plan(&world).1
}

#[test]
fn interfaces_are_found_by_subnet() {
    let plan = found(&[("a", &["192.168.200.9/24"]), ("b", &["10.0.0.1/8"])]);
    assert_eq!(
        plan.networks["net"].problem.as_ref().map(|p| p.reason),
        Some(reasons::INTERFACE_MISSING)
    );
    let plan = found(&[
        ("a", &["192.168.200.9/24"]),
        ("b", &["192.168.100.1/24"]),
        ("c", &["192.168.100.2/25"]),
    ]);
    assert_eq!(
        (plan.networks["net"].outside.clone(), plan.networks["net"].inside.clone()),
        (Some(link("b")), Some(link("a")))
    );
    assert!(planned(&plan, "vm03"));
    let plan = found(&[
        ("a", &["192.168.200.9/24"]),
        ("b", &["192.168.100.1/24"]),
        ("c", &["192.168.100.2/24"]),
    ]);
    assert_problem(
        &plan,
        "net",
        reasons::INTERFACE_AMBIGUOUS,
        "whose subnet covers 192.168.100.0/24: b, c; name one in spec.outside.interface",
    );
    assert!(
        !plan.ruleset.tables.is_empty(),
        "the inside interface is known, so the fence stands"
    );
    let plan = found(&[("a", &["192.168.0.1/16"])]);
    assert_problem(&plan, "net", reasons::SAME_INTERFACE, "are both a on node vm02");
    assert!(plan.ruleset.tables.is_empty(), "a fence would cut off the clients");
}

#[test]
fn a_network_with_a_problem_programs_no_mapping() {
    for (missing, says) in [
        ("eth1", "node vm02 has no interface eth1"),
        ("eth0", "node vm02 has no interface eth0"),
    ] {
        let mut world = seed();
        world.nodes[0].interfaces.remove(missing);
        let (_, plan) = plan(&world);
        assert_problem(&plan, "net", reasons::INTERFACE_MISSING, says);
        assert!(matches!(&plan.mappings[&key("vm03")], MappingState::Failed(r) if r.reason == reasons::INTERFACE_MISSING));
        assert!(plan.routes.iter().all(|r| r.via == Via::Blackhole) && plan.proxies.is_empty() && plan.links.is_empty());
    }
}

/// Two networks on one node, `b` younger.
fn pair(change: &Value, extra: &[(&str, &[&str])]) -> HostPlan {
    let mut b = network("b", 5, json!({"inside": {"interface": "eth2", "addresses": ["192.168.201.0/24"]}}));
    let mut raw = serde_json::to_value(&b.spec).unwrap();
    for (side, fields) in change.as_object().unwrap() {
        for (field, value) in fields.as_object().unwrap() {
            raw[side][field] = value.clone();
        }
    }
    b.spec = serde_json::from_value(raw).unwrap();
    let mut interfaces: Vec<(&str, &[&str])> = vec![("eth0", &["192.168.100.2/24"]), ("eth1", &["192.168.200.2/24"]), ("eth2", &[])];
    interfaces.extend(extra);
    let world = World {
        networks: vec![b, network("net", 0, json!({}))],
        nodes: vec![node("vm02", None, &interfaces)],
        ..seed()
    };
    let plan = plan(&world).1;
    assert!(planned(&plan, "vm03"), "the older network is served whatever the younger says");
    plan
}

#[test]
fn the_younger_of_two_networks_that_cannot_be_told_apart_is_not_served() {
    assert_eq!(pair(&json!({}), &[]).networks["b"].problem, None);
    let plan = pair(&json!({"inside": {"addresses": ["192.168.200.128/25"]}}), &[]);
    assert_problem(
        &plan,
        "b",
        reasons::ISOLATION_PENDING,
        "network b shares inside addresses with network net on node vm02 and has no status.isolation yet",
    );
    let plan = pair(&json!({"inside": {"interface": "eth1"}}), &[]);
    assert_problem(
        &plan,
        "b",
        reasons::INTERFACE_SHARED,
        "eth1 on node vm02 serves network net already",
    );
    let plan = pair(&json!({"inside": {"interface": "eth0"}, "outside": {"interface": "eth2"}}), &[]);
    assert_problem(
        &plan,
        "b",
        reasons::INTERFACE_SHARED,
        "eth0 on node vm02 is the outside interface of network net",
    );
    let plan = pair(&json!({"outside": {"interface": "eth1"}}), &[]);
    assert_problem(
        &plan,
        "b",
        reasons::INTERFACE_SHARED,
        "outside interface eth1 on node vm02 is the inside interface of network net",
    );
}

#[test]
fn targets_that_would_be_delivered_elsewhere_are_not_served() {
    let production: (&str, &[&str]) = ("eth7", &["192.168.201.77/26"]);
    let plan = pair(&json!({}), &[production]);
    assert_problem(
        &plan,
        "b",
        reasons::PREFIX_OVERLAP,
        "192.168.201.0/24 of network b shares addresses with 192.168.201.64/26, which is connected to eth7",
    );
    let own: (&str, &[&str]) = ("eth7", &["192.168.201.77/32"]);
    assert_eq!(
        pair(&json!({}), &[own]).networks["b"].problem,
        None,
        "a single address is no subnet"
    );
}

/// The clone is deleted, its bridge is still there with the address that the administrator has on every one: the network that was isolated stays so, and served.
#[test]
fn a_bridge_that_outlives_its_clone_takes_nothing_from_the_other() {
    let change = json!({"inside": {"interface": "br1", "addresses": ["10.0.0.0/24"]}});
    let mut world = seed();
    world.networks = vec![network("net", 0, change)];
    world.mappings.clear();
    let admin: &[&str] = &["10.0.0.250/24"];
    world.nodes = vec![node(
        "vm02",
        None,
        &[("eth0", &["192.168.100.2/24"]), ("br1", admin), ("br2", admin)],
    )];
    assert_problem(&plan(&world).1, "net", reasons::PREFIX_OVERLAP, "which is connected to br2");
    let isolation = Some(Isolation { identifier: 1, zone: 0 });
    world.networks[0].status.get_or_insert_default().isolation = isolation;
    let net = plan(&world).1.networks["net"].clone();
    assert_eq!((net.problem, net.isolated.map(|isolated| isolated.identifier)), (None, Some(1)));
    world.nodes[0].interfaces.remove("br2");
    let net = plan(&world).1.networks["net"].clone();
    assert_eq!((net.problem, net.isolated), (None, None));
}

#[test]
fn one_node_s_problem_is_not_another_s() {
    let mut world = cluster(json!({}));
    let mut other = network("other", 9, json!({"inside": {"interface": "eth2"}}));
    other.spec.gateway.node_selector.match_labels = Some([("client".to_string(), "true".to_string())].into());
    world.networks.push(other);
    world.nodes[0].interfaces.insert("eth2".into(), InterfaceFacts::default());
    world.nodes.push(node(
        "own",
        Some(&[("client", "true")]),
        &[("eth0", &["192.168.100.60/24"]), ("eth2", &["192.168.200.60/24"])],
    ));
    assert_eq!(
        plan_of(&world, "vm02").networks["other"].problem.as_ref().map(|p| p.reason),
        Some(reasons::ISOLATION_PENDING)
    );
    assert_eq!(plan_of(&world, "own").networks["other"].problem, None);
}

#[test]
fn a_source_address_that_somebody_has_is_said_of_the_network_which_is_served_all_the_same() {
    let mut world = seed();
    world.networks = vec![network("net", 0, json!({"outside": {"sourceAddress": "192.168.100.250"}}))];
    let verdicts = judge(&world);
    let mut options = HostOptions::default();
    assert_eq!(host_plan(&world, &verdicts, "vm02", &options).networks["net"].impaired, None);
    options
        .in_use
        .insert(taken("eth0", "192.168.100.250"), "02:00:00:00:00:77".to_owned());
    let plan = host_plan(&world, &verdicts, "vm02", &options);
    let net = &plan.networks["net"];
    let why = net.impaired.clone().unwrap();
    assert_eq!((net.problem.clone(), why.reason), (None, reasons::ADDRESS_IN_USE));
    for word in ["192.168.100.250", "02:00:00:00:00:77", "do not get out", "choose a free one"] {
        assert!(why.message.contains(word), "{}", why.message);
    }
    assert!(matches!(plan.mappings[&key("vm03")], MappingState::Planned { .. }));
}
