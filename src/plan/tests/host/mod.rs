//! Roles, interfaces, links, addresses and routes.

mod clients;
mod interfaces;
mod roles;

use std::net::IpAddr;

use serde_json::Value;

use super::super::testing::{key, network, node, seed};
use super::super::{HostOptions, HostPlan, MappingState, ProxyNeighbour, Route, Via, World, host_plan, judge};
use crate::api::StagingNetworkStatus;
use crate::api::network::ActiveGateway;
use crate::netfilter::IfName;

fn link(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn route(destination: &str, via: Via) -> Route {
    Route {
        table: 254,
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
                address_ipv6: None,
            }),
            ..StagingNetworkStatus::default()
        });
    }
}

fn taken(interface: &str, at: &str) -> ProxyNeighbour {
    ProxyNeighbour {
        interface: IfName::new(interface).unwrap(),
        address: address(at),
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
