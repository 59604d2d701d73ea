//! What active and standby gateways hold: routes, neighbours, addresses and settings.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde_json::json;

use super::{address, cluster, link, plan_of, planned, route, taken};
use crate::api::StagingNetworkStatus;
use crate::api::gatewaynode::Role;
use crate::api::network::Isolation;
use crate::api::reasons;
use crate::plan::testing::{key, mapping, network, node, plan, seed};
use crate::plan::{GatewayAddress, HostOptions, HostPlan, LinkSettings, MappingState, NodeFacts, ProxyNeighbour, Via, host_plan, judge};

#[test]
fn the_seed() {
    let (_, plan) = plan(&seed());
    assert!(planned(&plan, "vm03"));
    let vip = address("192.168.100.3");
    let behind = route("192.168.200.0/24", Via::Blackhole);
    assert_eq!(plan.routes, [route("192.168.100.3/32", Via::Loopback), behind].into());
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
        proxy_delay_ipv6: None,
    };
    let inside = LinkSettings {
        rp_filter: Some(1),
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
    assert_eq!((on.routes.len(), on.proxies.len()), (2, 1));
    assert_eq!((by.routes.len(), by.proxies.len(), by.addresses.len()), (1, 0, 0));
    assert!(by.routes.contains(&route("192.168.200.0/24", Via::Blackhole)));
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
    assert!(plan.routes.contains(&route("192.168.100.3/32", Via::Loopback)));
    assert_eq!(plan.links[&link("eth0")].proxy_delay, None);
}

/// What is connected less specifically is led, too: the blackhole behind would be more specific.
#[test]
fn an_inside_prefix_that_is_not_connected_gets_a_route() {
    let way = route("192.168.200.0/24", Via::Link(link("eth1")));
    for (connected, led) in [(&[][..], true), (&["192.168.200.2/16"], true), (&["192.168.200.2/24"], false)] {
        let mut world = seed();
        world.nodes = vec![node("vm02", None, &[("eth0", &["192.168.100.2/24"]), ("eth1", connected)])];
        let routes = plan(&world).1.routes;
        assert_eq!(routes.contains(&way), led, "{connected:?}");
        assert!(routes.contains(&route("192.168.200.0/24", Via::Blackhole)), "{connected:?}");
    }
}

#[test]
fn the_reverse_path_filter_is_strict_and_for_isolated_networks_no_stricter_than_loose() {
    for (found, isolated) in [(0, 0), (1, 2), (2, 2)] {
        let mut world = seed();
        world.nodes[0].interfaces.get_mut("eth1").unwrap().rp_filter = found;
        assert_eq!(plan(&world).1.links[&link("eth1")].rp_filter, Some(1), "found {found}");
        let isolation = Isolation { identifier: 3, zone: 3 };
        world.networks[0].status = Some(StagingNetworkStatus {
            isolation: Some(isolation),
            ..StagingNetworkStatus::default()
        });
        assert_eq!(plan(&world).1.links[&link("eth1")].rp_filter, Some(isolated), "found {found}");
    }
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

#[test]
fn mappings_that_this_node_cannot_program() {
    let mut world = seed();
    world.mappings.push(mapping("used", 2, "192.168.100.4", "192.168.200.4", json!({})));
    world
        .mappings
        .push(mapping("refused", 3, "192.168.100.5", "192.168.200.5", json!({})));
    world.mappings.push(mapping("self", 4, "192.168.100.6", "192.168.200.2", json!({})));
    let options = HostOptions {
        in_use: [
            (taken("eth0", "192.168.100.4"), "52:54:00:00:00:01".to_string()),
            (taken("eth1", "192.168.100.3"), "52:54:00:00:00:02".to_string()),
        ]
        .into(),
        quarantined: [(key("refused"), "line 7 failed".to_string())].into(),
        ..HostOptions::default()
    };
    let plan = host_plan(&world, &judge(&world), "vm02", &options);
    for (name, reason, says) in [
        (
            "used",
            reasons::ADDRESS_IN_USE,
            "52:54:00:00:00:01 answers for 192.168.100.4, so it is not taken",
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

#[test]
fn facts_of_a_node_are_found_by_name_only() {
    let mut world = seed();
    world.nodes.push(NodeFacts {
        kernel: crate::plan::KernelFacts::default(),
        name: "elsewhere".into(),
        labels: Some(BTreeMap::new()),
        interfaces: BTreeMap::new(),
    });
    assert_eq!(plan_of(&world, "elsewhere"), HostPlan::default());
    assert_eq!(IpNet::from(address("192.168.100.3")).prefix_len(), 32);
}
