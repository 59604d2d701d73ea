//! Packets on a node that holds the plan: nothing enters or leaves but what the world says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::select;
use stagenet::netfilter::Transport;
use stagenet::netfilter::path::{Fate, Node};
use stagenet::netfilter::trace::{Packet, Payload};
use stagenet::plan::verdict::Claim;
use stagenet::plan::{HostPlan, Verdicts, Via, World};

use crate::{TARGETS, VIRTUALS, decide, name, planned, worlds};

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
            Via::Gateway(_) | Via::Blackhole => {}
        }
    }
    node
}

fn addresses() -> Vec<IpAddr> {
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
fn may_leave(verdicts: &Verdicts, plan: &HostPlan, input: &str, source: IpAddr, destination: IpAddr, output: &str) -> bool {
    let claimed = verdicts
        .mappings
        .values()
        .filter_map(|v| v.accepted.as_ref().ok())
        .any(|c| c.virtual_prefix.contains(&destination));
    planned(verdicts, plan).into_iter().any(|claim| {
        let here = &plan.networks[&*claim.network];
        let Ok(network) = &verdicts.networks[&*claim.network].accepted else {
            return false;
        };
        claim.ports.is_empty()
            && claim.target.contains(&source)
            && network.egress_allowed
            && here.inside.as_ref().is_some_and(|i| i.as_str() == input)
            && here.outside.as_ref().is_some_and(|o| o.as_str() == output)
            && !network.protected.iter().any(|p| p.contains(&destination))
            && !claimed
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

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
        let dialled = |claim: &&Claim| claim.virtual_prefix.contains(&destination) && match payload {
            _ if claim.ports.is_empty() => true,
            Payload::Transport(transport, port) => claim.ports.iter().any(|p| p.transport == transport && p.ports.contains(port)),
            _ => false,
        };
        let claim = planned(&verdicts, &plan).into_iter().find(dialled);
        match (claim, &trace.fate) {
            (Some(claim), fate) => {
                prop_assert_eq!(fate, &Fate::Forwarded, "{}", trace);
                prop_assert!(claim.target.contains(&trace.packet.destination));
                prop_assert_eq!(trace.packet.output.as_ref(), plan.networks[&*claim.network].inside.as_ref());
            }
            (None, Fate::Forwarded) => {
                let output = trace.packet.output.as_ref().unwrap();
                prop_assert!(!inside.contains_key(output.as_str()), "{}", trace);
                prop_assert_eq!(trace.packet.destination, destination);
            }
            (None, _) => {}
        }
    }
}

/// Whether no fence of its own stands around a network's inside interface: another network's does, or it is somebody's outside interface.
fn plan_unfenced(network: &stagenet::plan::NetworkPlan) -> bool {
    network
        .problem
        .as_ref()
        .is_some_and(|p| p.reason == "InterfaceShared" || p.reason == "SameInterface")
}
