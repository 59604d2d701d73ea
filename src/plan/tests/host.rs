//! Roles, interfaces, links, addresses and routes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::super::testing::{key, mapping, network, node, plan, seed};
use super::super::{
    GatewayAddress, HostOptions, HostPlan, InterfaceFacts, LinkSettings, MappingState, NodeFacts, ProxyNeighbour, Route, Via, World,
    host_plan, judge,
};
use crate::api::gatewaynode::Role;
use crate::api::network::ActiveGateway;
use crate::api::{StagingNetworkStatus, reasons};
use crate::netfilter::IfName;

fn link(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn route(destination: &str, via: Via) -> Route {
    Route {
        destination: destination.parse().unwrap(),
        via,
    }
}

fn planned(plan: &HostPlan, name: &str) -> bool {
    matches!(plan.mappings[&key(name)], MappingState::Planned { .. })
}

#[track_caller]
fn assert_problem(plan: &HostPlan, network: &str, reason: &str, says: &str) {
    let problem = plan.networks[network].problem.as_ref().unwrap();
    assert_eq!(problem.reason, reason, "{}", problem.message);
    assert!(problem.message.contains(says), "got: {}\nwant: {says}", problem.message);
}

fn active(world: &mut World, node: &str, address: Option<&str>) {
    for network in &mut world.networks {
        network.status = Some(StagingNetworkStatus {
            active_gateway: Some(ActiveGateway {
                node: node.into(),
                address: address.map(Into::into),
            }),
            ..StagingNetworkStatus::default()
        });
    }
}

/// The seed in a cluster: two gateways and two other nodes; vm02 is active.
fn cluster(change: Value) -> World {
    let gateway: &[(&str, &str)] = &[("gateway", "true"), ("client", "true")];
    let client: &[(&str, &str)] = &[("client", "true")];
    let mut world = World {
        networks: vec![network("net", 0, change)],
        nodes: vec![
            node(
                "vm02",
                Some(gateway),
                &[("eth0", &["192.168.100.2/24"]), ("eth1", &["192.168.200.2/24"])],
            ),
            node(
                "vm12",
                Some(gateway),
                &[("eth0", &["192.168.100.12/24"]), ("eth1", &["192.168.200.12/24"])],
            ),
            node("near", Some(client), &[("ens1", &["192.168.100.50/24"])]),
            node("far", Some(client), &[("ens1", &["10.0.0.50/24"])]),
        ],
        ..seed()
    };
    active(&mut world, "vm02", Some("192.168.100.2"));
    world
}

fn plan_of(world: &World, node: &str) -> HostPlan {
    host_plan(world, &judge(world), node, &HostOptions::default())
}

#[test]
fn the_seed() {
    let (_, plan) = plan(&seed());
    assert!(planned(&plan, "vm03"));
    let vip = address("192.168.100.3");
    assert_eq!(plan.routes, [route("192.168.100.3/32", Via::Loopback)].into());
    assert_eq!(
        plan.proxies,
        [ProxyNeighbour {
            interface: link("eth0"),
            address: vip
        }]
        .into()
    );
    assert!(plan.addresses.is_empty());
    let outside = LinkSettings {
        forwarding: Some(true),
        send_redirects: Some(false),
        rp_filter: None,
        proxy_delay: Some(0),
    };
    let inside = LinkSettings {
        proxy_delay: None,
        ..outside.clone()
    };
    assert_eq!(plan.links, BTreeMap::from([(link("eth0"), outside), (link("eth1"), inside)]));
}

#[test]
fn a_node_that_no_network_concerns_gets_nothing() {
    let mut world = seed();
    world.nodes[0].labels = Some(BTreeMap::new());
    assert_eq!(plan(&world).1, HostPlan::default());
    assert_eq!(plan_of(&seed(), "unknown"), HostPlan::default());
}

#[test]
fn a_standby_has_everything_but_what_attracts() {
    let world = cluster(json!({"inside": {"gatewayAddresses": ["192.168.200.254"]}}));
    let (on, by) = (plan_of(&world, "vm02"), plan_of(&world, "vm12"));
    assert_eq!((on.networks["net"].role, by.networks["net"].role), (Role::Active, Role::Standby));
    assert_eq!(on.ruleset, by.ruleset);
    assert_eq!(on.mappings, by.mappings);
    assert_eq!(
        on.addresses,
        [GatewayAddress {
            interface: link("eth1"),
            address: address("192.168.200.254")
        }]
        .into()
    );
    assert_eq!((on.routes.len(), on.proxies.len()), (1, 1));
    assert_eq!((by.routes.len(), by.proxies.len(), by.addresses.len()), (0, 0, 0));
    assert_eq!(by.links[&link("eth0")].proxy_delay, None);
    assert_eq!(by.links[&link("eth1")].forwarding, Some(true));
}

#[test]
fn an_active_gateway_that_lost_its_label_is_nothing() {
    let mut world = cluster(json!({}));
    world.nodes[0].labels = Some(BTreeMap::new());
    assert_eq!(plan_of(&world, "vm02"), HostPlan::default());
}

#[test]
fn without_announcement_there_is_no_proxy_but_the_route_that_catches_unmapped_ports() {
    let mut world = seed();
    world.networks = vec![network("net", 0, json!({"outside": {"announce": false}}))];
    let (_, plan) = plan(&world);
    assert!(plan.proxies.is_empty());
    assert_eq!(plan.routes, [route("192.168.100.3/32", Via::Loopback)].into());
    assert_eq!(plan.links[&link("eth0")].proxy_delay, None);
}

#[test]
fn an_inside_prefix_that_is_not_connected_gets_a_route_and_a_loose_filter() {
    let mut world = seed();
    world.nodes = vec![node("vm02", None, &[("eth0", &["192.168.100.2/24"]), ("eth1", &[])])];
    for (found, wanted) in [(0, None), (1, Some(2)), (2, Some(2))] {
        world.nodes[0].interfaces.get_mut("eth1").unwrap().rp_filter = found;
        let (_, plan) = plan(&world);
        assert!(plan.routes.contains(&route("192.168.200.0/24", Via::Link(link("eth1")))));
        assert_eq!(plan.links[&link("eth1")].rp_filter, wanted, "found {found}");
    }
    let mut world = seed();
    world.nodes[0].interfaces.get_mut("eth1").unwrap().rp_filter = 1;
    assert_eq!(
        plan(&world).1.links[&link("eth1")].rp_filter,
        None,
        "connected: strict does no harm"
    );
}

#[test]
fn a_gateway_address_that_the_node_has_already_is_not_added() {
    let mut world = seed();
    world.networks = vec![network(
        "net",
        0,
        json!({"inside": {"gatewayAddresses": ["192.168.200.2", "192.168.200.254"]}}),
    )];
    let (_, plan) = plan(&world);
    let addresses: Vec<_> = plan.addresses.iter().map(|a| a.address).collect();
    assert_eq!(addresses, [address("192.168.200.254")]);
}

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
        assert!(plan.routes.is_empty() && plan.proxies.is_empty() && plan.links.is_empty());
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
        reasons::PREFIX_OVERLAP,
        "192.168.200.128/25 of network b shares addresses with 192.168.200.0/24 of network net",
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
        Some(reasons::PREFIX_OVERLAP)
    );
    assert_eq!(plan_of(&world, "own").networks["other"].problem, None);
}

#[test]
fn mappings_that_this_node_cannot_program() {
    let mut world = seed();
    world.mappings.push(mapping("used", 2, "192.168.100.4", "192.168.200.4", json!({})));
    world
        .mappings
        .push(mapping("refused", 3, "192.168.100.5", "192.168.200.5", json!({})));
    world.mappings.push(mapping("self", 4, "192.168.100.6", "192.168.200.2", json!({})));
    let options = HostOptions {
        in_use: [(address("192.168.100.4"), "52:54:00:00:00:01".to_string())].into(),
        quarantined: [(key("refused"), "line 7 failed".to_string())].into(),
        ..HostOptions::default()
    };
    let plan = host_plan(&world, &judge(&world), "vm02", &options);
    for (name, reason, says) in [
        (
            "used",
            reasons::ADDRESS_IN_USE,
            "52:54:00:00:00:01 answers ARP for 192.168.100.4 outside",
        ),
        ("refused", reasons::RESTORE_REJECTED, "left out: line 7 failed"),
        (
            "self",
            reasons::TARGET_IS_GATEWAY,
            "192.168.200.2 is the address of eth1 on this gateway",
        ),
    ] {
        let MappingState::Failed(refusal) = &plan.mappings[&key(name)] else {
            panic!("{name} is planned");
        };
        assert_eq!(refusal.reason, reason);
        assert!(refusal.message.contains(says), "{}", refusal.message);
    }
    let mut only = seed();
    only.nodes.clone_from(&world.nodes);
    let alone = host_plan(&only, &judge(&only), "vm02", &HostOptions::default());
    assert_eq!(plan.ruleset, alone.ruleset, "nothing of them is in the kernel");
    assert_eq!((plan.routes, plan.proxies, plan.flows), (alone.routes, alone.proxies, alone.flows));
}

fn clients(change: Value) -> World {
    let mut world = cluster(json!({"outside": {"clientRoutes": {"nodeSelector": {"matchLabels": {"client": "true"}}}}}));
    let mut raw = serde_json::to_value(&world.networks[0].spec).unwrap();
    raw["outside"]["addresses"] = change;
    world.networks[0].spec = serde_json::from_value(raw).unwrap();
    world
}

fn via() -> Via {
    Via::Gateway(address("192.168.100.2"))
}

#[test]
fn clients_get_routes_and_nothing_else() {
    let world = clients(json!(["192.168.100.0/24"]));
    let far = plan_of(&world, "far");
    assert_eq!(far.networks["net"].role, Role::Client);
    assert_eq!(far.routes, [route("192.168.100.0/24", via())].into());
    let rest = HostPlan {
        routes: [].into(),
        networks: [].into(),
        ..far
    };
    assert_eq!(rest, HostPlan::default());
    let near = plan_of(&world, "near");
    assert_eq!(
        near.routes,
        [route("192.168.100.3/32", via())].into(),
        "its own segment stays where it is"
    );
    let gateway = plan_of(&world, "vm12");
    assert!(
        !gateway.routes.iter().any(|r| matches!(r.via, Via::Gateway(_))),
        "a gateway is no client"
    );
}

#[test]
fn clients_wait_for_a_usable_gateway_address() {
    let mut world = clients(json!(["192.168.100.0/24"]));
    for given in [None, Some("junk"), Some("0.0.0.0"), Some("fe80::1"), Some("224.0.0.1")] {
        active(&mut world, "vm02", given);
        let far = plan_of(&world, "far");
        assert!(far.routes.is_empty(), "{given:?}");
        assert_eq!(far.networks["net"].role, Role::Client);
    }
}

#[test]
fn pools_that_two_gateways_share_are_routed_address_by_address() {
    let mut world = clients(json!(["192.168.100.0/24"]));
    let mut other = world.networks[0].clone();
    other.metadata.name = Some("other".into());
    other.spec.outside.addresses = vec!["192.168.100.128/25".into(), "192.168.101.0/24".into()];
    other.spec.inside.addresses = vec!["192.168.201.0/24".into()];
    other.status.as_mut().unwrap().active_gateway = Some(ActiveGateway {
        node: "vm12".into(),
        address: Some("192.168.100.12".into()),
    });
    world.networks.push(other);
    world.mappings.push(mapping(
        "vm05",
        2,
        "192.168.100.130",
        "192.168.201.5",
        json!({"networkRef": {"name": "other"}}),
    ));
    let other_via = || Via::Gateway(address("192.168.100.12"));
    let wanted = [
        route("192.168.100.3/32", via()),
        route("192.168.100.130/32", other_via()),
        route("192.168.101.0/24", other_via()),
    ];
    assert_eq!(plan_of(&world, "far").routes, wanted.into());
}

#[test]
fn facts_of_a_node_are_found_by_name_only() {
    let mut world = seed();
    world.nodes.push(NodeFacts {
        name: "elsewhere".into(),
        labels: Some(BTreeMap::new()),
        interfaces: BTreeMap::new(),
    });
    assert_eq!(plan_of(&world, "elsewhere"), HostPlan::default());
    assert_eq!(Ipv4Net::from(address("192.168.100.3")).prefix_len(), 32);
}
