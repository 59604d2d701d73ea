//! What the fence holds whatever else is missing: interfaces, networks that are not served, IPv6, a foreign DROP.

use serde_json::json;

use super::{Lab, SSH, assert_dropped, assert_left, kernel, left, link, seed_with, two};
use crate::netfilter::Ruleset;
use crate::netfilter::path::Fate;
use crate::netfilter::trace::{Packet, Payload};
use crate::plan::rules::close_interfaces;
use crate::plan::testing::{plan, seed};

#[test]
fn what_was_translated_never_leaves_by_another_interface() {
    let lab = Lab::new(&seed());
    // The inside interface went down, and with it its route: the way by default may lead to production's own 192.168.200.3.
    let mut node = lab.node.clone();
    node.addresses.remove(&link("eth1"));
    let packet = Packet::new(
        &link("eth0"),
        "192.168.100.1".parse().unwrap(),
        "192.168.100.3".parse().unwrap(),
        SSH,
    );
    assert_dropped(&node.trace(&lab.rules, packet), "U", "net");
}

#[test]
fn what_the_fence_admits_passes_a_foreign_drop() {
    let mut lab = Lab::new(&seed_with(json!({"egress": {"default": "Allow"}}), json!({})));
    lab.node.forward_drops = true;
    let there = lab.send("eth0", "192.168.100.1", "192.168.100.3", SSH);
    assert_eq!(there.fate, Fate::Forwarded, "{there}");
    assert_eq!(lab.node.trace(&lab.rules, there.packet.answer()).fate, Fate::Forwarded);
    assert_eq!(lab.send("eth1", "192.168.200.3", "8.8.8.8", SSH).fate, Fate::Forwarded);
    assert_eq!(
        lab.send("eth1", "192.168.200.9", "192.168.100.3", SSH).fate,
        Fate::Forwarded,
        "hairpin"
    );
    assert_eq!(lab.send("eth0", "192.168.100.1", "10.9.9.9", SSH).fate, Fate::DroppedByPolicy);
}

#[test]
fn a_network_that_is_not_served_keeps_its_fence() {
    for world in [
        seed_with(json!({"outside": {"interface": "eth9"}}), json!({})),
        seed_with(json!({"outside": {"addresses": ["junk"]}}), json!({})),
    ] {
        let lab = Lab::new(&world);
        assert_dropped(&lab.send("eth1", "192.168.200.3", "8.8.8.8", SSH), "FO", "net");
        assert_dropped(&lab.send("eth0", "192.168.100.1", "192.168.200.3", SSH), "FI", "net");
        assert_dropped(&lab.send("eth1", "192.168.200.3", "192.168.200.2", SSH), "N", "net");
        assert_left(
            &lab.send("eth0", "192.168.100.1", "192.168.100.3", SSH),
            &left("eth0", "192.168.100.1", "192.168.100.3", 22),
        );
    }
}

#[test]
fn an_inside_interface_is_fenced_before_it_exists() {
    let mut world = seed();
    let eth1 = world.nodes[0].interfaces.remove("eth1").unwrap();
    let (_, plan) = plan(&world);
    assert_eq!(plan.networks["net"].inside, None);
    world.nodes[0].interfaces.insert("eth1".into(), eth1);
    let trace = kernel(&world.nodes[0], &plan).trace(
        &plan.ruleset,
        Packet::new(&link("eth1"), "192.168.200.3".parse().unwrap(), "8.8.8.8".parse().unwrap(), SSH),
    );
    assert_dropped(&trace, "FO", "net");
}

#[test]
fn nothing_leaves_by_ipv6() {
    let mut lab = Lab::new(&two(&json!({})));
    lab.node = lab.node.with_address(&link("eth1"), "fd00:200::2/128".parse().unwrap());
    let message = |lab: &Lab, input: &str, to: &str, payload| lab.send(input, "fd00:200::3", to, payload).fate;
    assert_eq!(message(&lab, "eth1", "fd00:200::2", Payload::Icmp(135)), Fate::Local);
    assert!(matches!(message(&lab, "eth1", "fd00:200::2", SSH), Fate::Dropped(_)));
    assert_eq!(message(&lab, "eth0", "fd00:200::2", SSH), Fate::Local);
    for (output, input, passes) in [
        ("eth0", "eth1", false),
        ("eth1", "eth0", false),
        ("eth2", "eth1", false),
        ("eth1", "eth1", true),
        ("eth2", "eth2", true),
        ("eth3", "eth0", true),
    ] {
        lab.node = lab.node.with_route("::/0".parse().unwrap(), &link(output));
        assert_eq!(
            message(&lab, input, "2001:db8::1", SSH) == Fate::Forwarded,
            passes,
            "{input} to {output}"
        );
    }
}

#[test]
fn closing_an_interface_drops_even_what_is_established() {
    let (_, plan) = plan(&seed());
    let node = kernel(&seed().nodes[0], &plan);
    let there = node.trace(
        &plan.ruleset,
        Packet::new(
            &link("eth0"),
            "192.168.100.1".parse().unwrap(),
            "192.168.100.3".parse().unwrap(),
            SSH,
        ),
    );
    for mut rules in [plan.ruleset, Ruleset::default()] {
        close_interfaces(&mut rules.tables, &[link("eth1")].into());
        let back = node.trace(&rules, there.packet.answer());
        assert_eq!(
            back.dropped_by().map(|s| (s.chain.as_str(), s.position)),
            Some(("SNET-FWD", 1)),
            "{back}"
        );
    }
}
