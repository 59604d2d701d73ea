//! Interfaces that are ports of bridges, bonds and VRFs: what is routed carries another name.

use serde_json::json;

use super::super::testing::{network, plan, seed};
use super::super::{HostPlan, InterfaceFacts, NodeFacts, Via, World};
use super::packets::{Lab, SSH};
use crate::api::reasons;
use crate::netfilter::{Family, IfName, Match, Table, Target};

fn facts(master: Option<&str>, addresses: &[&str]) -> InterfaceFacts {
    InterfaceFacts {
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        master: master.map(str::to_owned),
        ..InterfaceFacts::default()
    }
}

fn put(node: &mut NodeFacts, name: &str, facts: InterfaceFacts) {
    node.interfaces.insert(name.to_owned(), facts);
}

/// The seed after `ip link set eth1 master br1`, the gateway's address being on br1.
fn enslaved() -> World {
    let mut world = seed();
    put(&mut world.nodes[0], "eth1", facts(Some("br1"), &[]));
    put(&mut world.nodes[0], "br1", facts(None, &["192.168.200.2/24"]));
    world
}

fn problem<'p>(plan: &'p HostPlan, network: &str) -> &'p str {
    let problem = plan.networks[network].problem.as_ref().unwrap();
    assert_eq!(problem.reason, reasons::INTERFACE_ENSLAVED, "{}", problem.message);
    &problem.message
}

/// Whether the fence of both families looks at what comes in by and what goes out of `interface`, and at what comes from it to the node.
fn is_fenced(plan: &HostPlan, interface: &str) -> bool {
    let name = IfName::new(interface).unwrap();
    let (from, to) = (Match::In(name.clone()), Match::Out(name));
    let found: Vec<bool> = [Family::V4, Family::V6]
        .iter()
        .flat_map(|family| {
            let table = plan.ruleset.tables.get(&(*family, Table::Mangle));
            let has = |chain: &str, matches: &Match| {
                table.is_some_and(|t| {
                    let mut rules = t
                        .chains
                        .iter()
                        .filter(|(name, _)| name.as_str().starts_with(chain))
                        .flat_map(|(_, rules)| rules);
                    rules.any(|rule| rule.matches == [matches.clone()] && matches!(rule.target, Target::Goto(_)))
                })
            };
            [has("SNET-F", &from), has("SNET-F", &to), has("SNET-IN", &from)]
        })
        .collect();
    assert!(found.iter().all(|f| *f == found[0]), "half a fence around {interface}: {found:?}");
    found[0]
}

#[test]
fn a_port_inside_is_not_served_and_fenced_with_its_bridge() {
    let world = enslaved();
    let (_, plan) = plan(&world);
    assert_eq!(
        problem(&plan, "net"),
        "the inside interface eth1 on node vm02 is a port of br1: routed packets carry the name br1; \
         name br1 as spec.inside.interface of network net, or release eth1 from br1"
    );
    assert!(is_fenced(&plan, "eth1") && is_fenced(&plan, "br1") && !is_fenced(&plan, "eth0"));
    assert!(plan.routes.iter().all(|r| r.via == Via::Blackhole) && plan.proxies.is_empty() && plan.links.is_empty());
    let lab = Lab::new(&world);
    for from in ["br1", "eth1"] {
        for to in ["192.168.100.1", "8.8.8.8", "192.168.200.2", "192.168.100.2"] {
            let trace = lab.send(from, "192.168.200.3", to, SSH);
            assert!(trace.dropped_by().is_some(), "from {from}: {trace}");
        }
    }
    for to in ["192.168.200.3", "192.168.200.4"] {
        let trace = lab.send("eth0", "192.168.100.1", to, SSH);
        assert!(trace.dropped_by().is_some(), "{trace}");
    }
    // What stays in the closed network is its own.
    let trace = lab.send("br1", "192.168.200.3", "192.168.200.4", SSH);
    assert!(trace.dropped_by().is_none(), "{trace}");
}

#[test]
fn the_fence_follows_up_to_the_topmost_master_and_no_ring_of_facts_holds_it_up() {
    let mut world = enslaved();
    put(&mut world.nodes[0], "eth1", facts(Some("bond0"), &[]));
    put(&mut world.nodes[0], "bond0", facts(Some("br1"), &[]));
    let (_, above) = plan(&world);
    assert!(problem(&above, "net").contains("is a port of bond0: routed packets carry the name br1; name br1"));
    assert!(["eth1", "bond0", "br1"].iter().all(|name| is_fenced(&above, name)));
    put(&mut world.nodes[0], "br1", facts(Some("eth1"), &[]));
    let (_, ring) = plan(&world);
    problem(&ring, "net");
    assert!(is_fenced(&ring, "eth1") && is_fenced(&ring, "br1"));
}

#[test]
fn naming_the_bridge_serves() {
    let mut world = enslaved();
    world.networks = vec![network("net", 0, json!({"inside": {"interface": "br1"}}))];
    let (_, named) = plan(&world);
    assert_eq!(named.networks["net"].problem, None);
    assert!(is_fenced(&named, "br1") && !is_fenced(&named, "eth1"));
    // Found by its subnet, also with an address left on the port: the bridge is the one, and that address keeps it from being served.
    world.networks = vec![network("net", 0, json!({"inside": {"interface": null}}))];
    assert_eq!(plan(&world).1.networks["net"].problem, None);
    put(&mut world.nodes[0], "eth1", facts(Some("br1"), &["192.168.200.9/24"]));
    let (_, left) = plan(&world);
    assert_eq!(left.networks["net"].problem.as_ref().unwrap().reason, reasons::PREFIX_OVERLAP);
    assert!(is_fenced(&left, "br1"));
}

#[test]
fn what_leads_outside_is_never_fenced() {
    // The port's own network calls the bridge its outside; another, younger one does; the outside interface is a port of the same bridge.
    let own = {
        let mut world = enslaved();
        world.networks = vec![network("net", 0, json!({"outside": {"interface": "br1"}}))];
        world
    };
    let other = {
        let mut world = enslaved();
        let change = json!({"outside": {"interface": "br1"}, "inside": {"interface": "eth2", "addresses": ["192.168.201.0/24"]}});
        world.networks.push(network("other", 5, change));
        world
    };
    let both = {
        let mut world = enslaved();
        put(&mut world.nodes[0], "eth0", facts(Some("br1"), &[]));
        world
    };
    for (world, leads) in [(own, "net"), (other, "other"), (both, "net")] {
        let (_, plan) = plan(&world);
        let says = format!("no fence can stand around br1, which leads outside for network {leads}; release eth1 from br1 at once");
        assert!(problem(&plan, "net").ends_with(&says), "{}", problem(&plan, "net"));
        assert!(is_fenced(&plan, "eth1") && !is_fenced(&plan, "br1"));
    }
}

#[test]
fn a_port_outside_is_not_served_and_the_fence_inside_stands() {
    let mut world = seed();
    put(&mut world.nodes[0], "eth0", facts(Some("br0"), &[]));
    put(&mut world.nodes[0], "br0", facts(None, &["192.168.100.2/24"]));
    let (_, plan) = plan(&world);
    assert!(problem(&plan, "net").contains("the outside interface eth0 on node vm02 is a port of br0"));
    assert!(problem(&plan, "net").contains("name br0 as spec.outside.interface of network net"));
    assert!(is_fenced(&plan, "eth1") && !is_fenced(&plan, "br0") && !is_fenced(&plan, "eth0"));
}

#[test]
fn the_fence_of_a_refused_network_follows_too() {
    let mut world = enslaved();
    world.networks = vec![network("net", 0, json!({"inside": {"addresses": ["nonsense"]}}))];
    let (verdicts, plan) = plan(&world);
    assert!(verdicts.networks["net"].accepted.is_err());
    assert!(is_fenced(&plan, "eth1") && is_fenced(&plan, "br1"));
}
