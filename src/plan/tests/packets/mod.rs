//! What happens to packets on a node that holds the plan.

mod fence;
mod leaving;

use serde_json::{Value, json};

use super::super::rules::network_hash;
use super::super::testing::{mapping, network, node, plan, seed};
use super::super::{HostPlan, NodeFacts, PolicyRule, RuleAction, TABLE_MAIN, Via, World};
use crate::netfilter::path::{Fate, Node, Trace};
use crate::netfilter::trace::{Packet, Payload};
use crate::netfilter::{Family, IfName, Ruleset, Table, Transport, render};

pub(super) const SSH: Payload = Payload::Transport(Transport::Tcp, 22);

fn link(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

/// The node as it is once the plan is in its kernel, with a default route outside.
fn kernel(facts: &NodeFacts, plan: &HostPlan) -> Node {
    let mut node = Node::default().with_route("0.0.0.0/0".parse().unwrap(), &link("eth0"));
    for (name, interface) in &facts.interfaces {
        for address in &interface.addresses {
            node = node.with_address(&link(name), *address);
        }
    }
    for address in &plan.addresses {
        node = node.with_address(&address.interface, address.address.into());
    }
    for route in &plan.routes {
        let to = match &route.via {
            Via::Loopback => &link("lo"),
            Via::Link(interface) => interface,
            Via::Gateway(_) | Via::Blackhole => continue,
        };
        if route.table == TABLE_MAIN {
            node = node.with_route(route.destination, to);
            continue;
        }
        let asks = |rule: &&PolicyRule| rule.action == RuleAction::Lookup(route.table);
        for mark in plan.policy_rules.iter().filter(asks).filter_map(|rule| rule.mark) {
            node.marked_routes.push((mark, route.destination, to.clone()));
        }
    }
    node.marked_routes
        .sort_by_key(|(_, prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
    node
}

pub(super) struct Lab {
    node: Node,
    rules: Ruleset,
}

impl Lab {
    pub(super) fn new(world: &World) -> Self {
        let (_, plan) = plan(world);
        Self {
            node: kernel(&world.nodes[0], &plan),
            rules: plan.ruleset,
        }
    }

    pub(super) fn send(&self, input: &str, from: &str, to: &str, payload: Payload) -> Trace {
        let packet = Packet::new(&link(input), from.parse().unwrap(), to.parse().unwrap(), payload);
        self.node.trace(&self.rules, packet)
    }
}

fn left(output: &str, from: &str, to: &str, port: u16) -> String {
    format!("forwarded to {output} as {from} → {to} port {port}")
}

#[track_caller]
fn assert_left(trace: &Trace, wanted: &str) {
    assert!(trace.to_string().ends_with(wanted), "{trace}\nwant: {wanted}");
}

/// Dropped in the chain of this kind, of this network.
#[track_caller]
fn assert_dropped(trace: &Trace, kind: &str, network: &str) {
    let wanted = format!("SNET-{kind}-{:08X}", network_hash(network));
    assert_eq!(trace.dropped_by().map(|step| step.chain.to_string()), Some(wanted), "{trace}");
}

fn seed_with(network_change: Value, mapping_change: Value) -> World {
    World {
        networks: vec![network("net", 0, network_change)],
        mappings: vec![mapping("vm03", 1, "192.168.100.3", "192.168.200.3", mapping_change)],
        ..seed()
    }
}

/// The seed and a second closed network, younger, on eth2, with a mapping 192.168.100.5 → 192.168.201.5.
fn two(change: &Value) -> World {
    let mut world = seed_with(change.clone(), json!({}));
    let mut other = network("other", 5, change.clone());
    other.spec.inside.interface = Some("eth2".into());
    other.spec.inside.addresses = vec!["192.168.201.0/24".into()];
    world.networks.push(other);
    world.mappings.push(mapping(
        "vm05",
        6,
        "192.168.100.5",
        "192.168.201.5",
        json!({"networkRef": {"name": "other"}}),
    ));
    world.nodes = vec![node(
        "vm02",
        None,
        &[
            ("eth0", &["192.168.100.2/24"]),
            ("eth1", &["192.168.200.2/24"]),
            ("eth2", &["192.168.201.2/24"]),
        ],
    )];
    world
}

#[test]
fn the_seed_experiment() {
    let lab = Lab::new(&seed());
    let there = lab.send("eth0", "192.168.100.1", "192.168.100.3", SSH);
    assert_left(&there, &left("eth1", "192.168.200.2", "192.168.200.3", 22));
    let back = lab.node.trace(&lab.rules, there.packet.answer());
    assert_left(&back, &left("eth0", "192.168.100.3", "192.168.100.1", 0));
    assert_left(
        &lab.send("eth0", "192.168.100.1", "192.168.100.3", Payload::EchoRequest),
        &left("eth1", "192.168.200.2", "192.168.200.3", 0),
    );
}

#[test]
fn what_is_not_mapped_is_dropped() {
    let lab = Lab::new(&seed());
    assert_dropped(&lab.send("eth1", "192.168.200.3", "192.168.100.1", SSH), "FO", "net");
    assert_dropped(&lab.send("eth1", "192.168.200.3", "8.8.8.8", Payload::Other(47)), "FO", "net");
    assert_dropped(&lab.send("eth0", "192.168.100.1", "192.168.200.3", SSH), "FI", "net");
    assert_dropped(&lab.send("eth1", "192.168.200.3", "192.168.200.2", SSH), "N", "net");
    assert_dropped(&lab.send("eth1", "192.168.200.3", "192.168.100.2", SSH), "N", "net");
    assert_eq!(
        lab.send("eth1", "192.168.200.3", "192.168.200.2", Payload::EchoRequest).fate,
        Fate::Local
    );
}

#[test]
fn others_are_left_alone() {
    let lab = Lab::new(&seed());
    assert_left(
        &lab.send("eth0", "192.168.100.1", "10.9.9.9", SSH),
        &left("eth0", "192.168.100.1", "10.9.9.9", 22),
    );
    assert_left(
        &lab.send("eth0", "192.168.100.1", "192.168.100.77", SSH),
        &left("eth0", "192.168.100.1", "192.168.100.77", 22),
    );
    assert_eq!(lab.send("eth0", "192.168.100.1", "192.168.100.2", SSH).fate, Fate::Local);
    assert_left(
        &lab.send("eth1", "192.168.200.3", "192.168.200.9", SSH),
        &left("eth1", "192.168.200.3", "192.168.200.9", 22),
    );
}

#[test]
fn ports_lead_where_they_are_mapped_and_the_others_nowhere() {
    let lab = Lab::new(&seed_with(
        json!({}),
        json!({"ports": [{"protocol": "TCP", "port": 8000, "endPort": 8009, "targetPort": 9000}, {"protocol": "UDP", "port": 53}]}),
    ));
    let to = |port, transport| lab.send("eth0", "192.168.100.1", "192.168.100.3", Payload::Transport(transport, port));
    assert_left(&to(8007, Transport::Tcp), &left("eth1", "192.168.200.2", "192.168.200.3", 9007));
    assert_left(&to(53, Transport::Udp), &left("eth1", "192.168.200.2", "192.168.200.3", 53));
    assert_dropped(&to(53, Transport::Tcp), "U", "net");
    assert_dropped(&to(8010, Transport::Tcp), "U", "net");
    assert_dropped(&lab.send("eth1", "192.168.200.9", "192.168.100.3", SSH), "U", "net");
}

/// In IPv6 the route ends what the fence of IPv4 drops, and the tables count it on the way.
#[test]
fn ipv6_ports_that_nobody_mapped_end_in_a_blackhole_and_are_counted_once() {
    let mut world = seed_with(
        json!({
            "outside": {"addresses": ["192.168.100.0/24", "fd00:100::/64"], "sourceAddress": "192.168.100.250", "sourceAddressIPv6": "fd00:100::fa"},
            "inside": {"addresses": ["192.168.200.0/24", "fd00:200::/64"]},
        }),
        json!({}),
    );
    let ports = json!({"ports": [{"protocol": "TCP", "port": 22}]});
    world.mappings.push(mapping("six", 2, "fd00:100::33", "fd00:200::3", ports.clone()));
    let mut around = ports.clone();
    around["ports"][0]["port"] = json!(80);
    around["virtual"] = json!({"prefix": "fd00:100::30/124", "address": null});
    around["target"] = json!({"prefix": "fd00:200::30/124", "address": null});
    world.mappings.push(mapping("wide", 3, "fd00:100::30", "fd00:200::30", around));
    let dns = json!({"side": "Inside", "ports": [{"protocol": "UDP", "port": 53}]});
    world.mappings.push(mapping("dns", 4, "fd00:200::53", "2001:db8::53", dns));
    world.nodes[0].kernel.ipv6_forwarding = true;
    for interface in world.nodes[0].interfaces.values_mut() {
        interface.proxy_ndp = true;
    }
    world.nodes[0]
        .interfaces
        .get_mut("eth1")
        .unwrap()
        .addresses
        .insert("fd00:200::2/64".parse().unwrap());
    let (verdicts, _) = plan(&world);
    assert!(verdicts.mappings.values().all(|verdict| verdict.accepted.is_ok()), "{verdicts:#?}");
    let lab = Lab::new(&world);
    let counted = |input: &str, from: &str, to: &str, port| {
        let trace = lab.send(input, from, to, Payload::Transport(Transport::Tcp, port));
        let name = format!("SNET-U-{:08X}", network_hash("net"));
        let count = trace
            .steps
            .iter()
            .filter(|step| step.table == Table::Nat && step.chain.as_str() == name)
            .count();
        (trace.fate, count)
    };
    for (to, port) in [("fd00:100::33", 23), ("fd00:100::37", 81), ("fd00:100::fa", 22)] {
        assert_eq!(counted("eth0", "fd00:100::9", to, port), (Fate::Unroutable, 1), "{to}");
        assert_eq!(counted("eth1", "fd00:200::9", to, port), (Fate::Unroutable, 1), "{to} from inside");
    }
    assert_eq!(
        counted("eth1", "fd00:200::9", "fd00:200::53", 53),
        (Fate::Unroutable, 1),
        "the other protocol"
    );
    assert_eq!(counted("eth0", "fd00:100::9", "fd00:100::33", 22), (Fate::Forwarded, 0));
    assert_eq!(
        counted("eth0", "fd00:100::9", "fd00:100::33", 80),
        (Fate::Forwarded, 0),
        "by the wider mapping"
    );
}

#[test]
fn sctp_is_mapped_like_tcp_and_apart_from_it() {
    let lab = Lab::new(&seed_with(
        json!({}),
        json!({"ports": [{"protocol": "SCTP", "port": 2905, "endPort": 2907, "targetPort": 3905}, {"protocol": "TCP", "port": 2905}]}),
    ));
    let to = |port, transport| lab.send("eth0", "192.168.100.1", "192.168.100.3", Payload::Transport(transport, port));
    assert_left(&to(2906, Transport::Sctp), &left("eth1", "192.168.200.2", "192.168.200.3", 3906));
    assert_left(&to(2905, Transport::Tcp), &left("eth1", "192.168.200.2", "192.168.200.3", 2905));
    assert_dropped(&to(2906, Transport::Tcp), "U", "net");
    assert_dropped(&to(2908, Transport::Sctp), "U", "net");
    assert_dropped(
        &lab.send("eth1", "192.168.200.3", "192.168.100.1", Payload::Transport(Transport::Sctp, 2905)),
        "FO",
        "net",
    );
    let dnat = &lab.rules.tables[&(Family::V4, Table::Nat)];
    let text = render::table(Family::V4, Table::Nat, dnat).unwrap().text;
    assert!(
        text.contains("-d 192.168.100.3/32 -p sctp -m sctp --dport 2905:2907")
            && text.contains("-j DNAT --to-destination 192.168.200.3:3905-3907/2905"),
        "{text}"
    );
}

#[test]
fn preserve_keeps_the_client_s_address_but_hides_a_vm_of_the_same_network() {
    let override_one = json!({"sourceTranslation": "Preserve"});
    for world in [seed_with(override_one.clone(), json!({})), seed_with(json!({}), override_one)] {
        let lab = Lab::new(&world);
        assert_left(
            &lab.send("eth0", "192.168.100.1", "192.168.100.3", SSH),
            &left("eth1", "192.168.100.1", "192.168.200.3", 22),
        );
        assert_left(
            &lab.send("eth1", "192.168.200.9", "192.168.100.3", SSH),
            &left("eth1", "192.168.200.2", "192.168.200.3", 22),
        );
    }
    let mut world = seed_with(json!({"sourceTranslation": "Preserve"}), json!({}));
    world.mappings.push(mapping(
        "hidden",
        2,
        "192.168.100.4",
        "192.168.200.3",
        json!({"sourceTranslation": "Masquerade", "ports": [{"protocol": "TCP", "port": 22, "targetPort": 2222}]}),
    ));
    let lab = Lab::new(&world);
    assert_left(
        &lab.send("eth0", "192.168.100.1", "192.168.100.3", SSH),
        &left("eth1", "192.168.100.1", "192.168.200.3", 22),
    );
    assert_left(
        &lab.send("eth0", "192.168.100.1", "192.168.100.4", SSH),
        &left("eth1", "192.168.200.2", "192.168.200.3", 2222),
    );
}
