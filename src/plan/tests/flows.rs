//! Which entries of the connection table may stay.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::flows::{Dialled, FlowPolicy, FlowTuple, Sweep};
use super::super::testing::{mapping, network, plan, seed};

const TCP: u8 = 6;
const CLIENT: &str = "192.168.100.1";
const VIP: &str = "192.168.100.3";
const VM: &str = "192.168.200.3";
const GATEWAY: &str = "192.168.200.2";

/// Who dialled what; who answers, to whom.
fn flow(protocol: u8, source: &str, dialled: (&str, u16), answers: (&str, u16), to: &str) -> FlowTuple {
    FlowTuple {
        zone: 0,
        protocol,
        source: source.parse().unwrap(),
        destination: dialled.0.parse().unwrap(),
        destination_port: dialled.1,
        reply_source: answers.0.parse().unwrap(),
        reply_source_port: answers.1,
        mark: 0,
        master: None,
        reply_destination: to.parse().unwrap(),
    }
}

/// A policy, and what a sweep goes by besides.
struct Policy(Arc<FlowPolicy>, Sweep);

impl Policy {
    fn agrees(&self, flow: &FlowTuple) -> bool {
        self.0.agrees(flow, &self.1)
    }
}

fn policy(network_change: Value, mapping_change: Value) -> Policy {
    let mut world = seed();
    world.networks = vec![network("net", 0, network_change)];
    world.mappings = vec![mapping("vm03", 1, VIP, VM, mapping_change)];
    Policy(plan(&world).1.flows, Sweep::default())
}

fn seed_policy() -> Policy {
    policy(json!({}), json!({}))
}

#[test]
fn what_the_mapping_makes_stays() {
    let p = seed_policy();
    assert!(p.agrees(&flow(TCP, CLIENT, (VIP, 22), (VM, 22), GATEWAY)));
    assert!(p.agrees(&flow(1, CLIENT, (VIP, 0), (VM, 0), GATEWAY)), "ping");
    assert!(p.agrees(&flow(TCP, VM, (VIP, 22), (VM, 22), GATEWAY)), "hairpin");
}

#[test]
fn what_it_does_not_make_goes() {
    let p = seed_policy();
    assert!(
        !p.agrees(&flow(TCP, CLIENT, (VIP, 22), ("192.168.200.4", 22), GATEWAY)),
        "an older target"
    );
    assert!(!p.agrees(&flow(TCP, CLIENT, (VIP, 22), (VM, 2222), GATEWAY)), "an older port");
    assert!(
        !p.agrees(&flow(TCP, CLIENT, (VIP, 22), (VM, 22), CLIENT)),
        "an older source translation"
    );
    assert!(
        !p.agrees(&flow(TCP, CLIENT, (VIP, 22), (VIP, 22), CLIENT)),
        "from before the mapping"
    );
    assert!(
        !p.agrees(&flow(TCP, CLIENT, ("192.168.100.4", 22), (VM, 22), GATEWAY)),
        "a mapping that is gone"
    );
}

#[test]
fn preserve_keeps_the_client_but_hides_a_hairpin() {
    for p in [
        policy(json!({"sourceTranslation": "Preserve"}), json!({})),
        policy(json!({}), json!({"sourceTranslation": "Preserve"})),
    ] {
        assert!(p.agrees(&flow(TCP, CLIENT, (VIP, 22), (VM, 22), CLIENT)));
        assert!(!p.agrees(&flow(TCP, CLIENT, (VIP, 22), (VM, 22), GATEWAY)));
        assert!(p.agrees(&flow(TCP, "192.168.200.9", (VIP, 22), (VM, 22), GATEWAY)));
        assert!(!p.agrees(&flow(TCP, "192.168.200.9", (VIP, 22), (VM, 22), "192.168.200.9")));
    }
}

#[test]
fn ports_move_together() {
    let p = policy(
        json!({}),
        json!({"ports": [{"protocol": "TCP", "port": 8000, "endPort": 8009, "targetPort": 9000}, {"protocol": "UDP", "port": 53}]}),
    );
    assert!(p.agrees(&flow(TCP, CLIENT, (VIP, 8003), (VM, 9003), GATEWAY)));
    assert!(!p.agrees(&flow(TCP, CLIENT, (VIP, 8003), (VM, 8003), GATEWAY)));
    assert!(p.agrees(&flow(17, CLIENT, (VIP, 53), (VM, 53), GATEWAY)));
    assert!(!p.agrees(&flow(TCP, CLIENT, (VIP, 53), (VM, 53), GATEWAY)), "not that protocol");
    assert!(!p.agrees(&flow(1, CLIENT, (VIP, 0), (VM, 0), GATEWAY)), "ping is not mapped");
}

#[test]
fn what_leaves_under_a_virtual_address_needs_egress() {
    let out = flow(TCP, VM, (CLIENT, 80), (CLIENT, 80), VIP);
    assert!(!seed_policy().agrees(&out));
    let allow = json!({"egress": {"default": "Allow"}, "protected": ["10.0.0.0/8"]});
    let p = policy(allow.clone(), json!({}));
    assert!(p.agrees(&out));
    assert!(
        !p.agrees(&flow(TCP, VM, (CLIENT, 80), (CLIENT, 80), "192.168.100.4")),
        "another address"
    );
    assert!(
        !p.agrees(&flow(TCP, "192.168.200.9", (CLIENT, 80), (CLIENT, 80), VIP)),
        "another VM"
    );
    assert!(!p.agrees(&flow(TCP, VM, ("10.1.1.1", 80), ("10.1.1.1", 80), VIP)), "protected");
    let p = policy(allow, json!({"ports": [{"protocol": "TCP", "port": 22}]}));
    assert!(!p.agrees(&out), "a mapping of ports gives no address to leave under");
}

#[test]
fn bystanders_stay() {
    let p = seed_policy();
    for bystander in [
        flow(TCP, CLIENT, ("192.168.100.2", 22), ("192.168.100.2", 22), CLIENT),
        flow(TCP, GATEWAY, (VM, 22), (VM, 22), GATEWAY),
        flow(TCP, CLIENT, ("192.168.100.2", 80), ("172.17.0.2", 80), CLIENT),
        flow(TCP, "172.17.0.2", ("8.8.8.8", 53), ("8.8.8.8", 53), "192.168.100.2"),
        flow(TCP, VM, ("192.168.200.9", 80), ("192.168.200.9", 80), VM),
    ] {
        assert!(p.agrees(&bystander), "{bystander:?}");
    }
}

#[test]
fn a_fence_that_goes_up_ends_what_is_older() {
    let mut p = seed_policy();
    p.1.raised = [(0, "192.168.200.0/24".parse().unwrap())].into();
    assert!(!p.agrees(&flow(TCP, VM, ("8.8.8.8", 443), ("8.8.8.8", 443), "192.168.100.2")));
    assert!(!p.agrees(&flow(TCP, CLIENT, (VM, 22), (VM, 22), CLIENT)));
    assert!(!p.agrees(&flow(TCP, VM, (GATEWAY, 22), (GATEWAY, 22), VM)), "to the node itself");
    assert!(p.agrees(&flow(TCP, CLIENT, (VIP, 22), (VM, 22), GATEWAY)), "made by a mapping");
    assert!(p.agrees(&flow(TCP, CLIENT, ("192.168.100.2", 22), ("192.168.100.2", 22), CLIENT)));
}

#[test]
fn flows_of_a_network_that_went_are_covered_by_the_earlier_policy() {
    let old = flow(TCP, CLIENT, (VIP, 22), (VM, 22), GATEWAY);
    let mut gone = Policy(Arc::default(), Sweep::default());
    assert!(gone.agrees(&old));
    gone.1.earlier = seed_policy().0.reach();
    assert!(!gone.agrees(&old));
}

#[test]
fn what_the_fence_admitted_ends_when_no_plan_knows_it() {
    let mut p = policy(
        json!({"outside": {"interface": "eth0", "addresses": ["192.168.100.128/25"]}}),
        json!({}),
    );
    let mut old = flow(TCP, CLIENT, (VIP, 22), (VM, 22), GATEWAY);
    old.mark = 0x2001;
    assert!(p.agrees(&old), "no fence stood here before");
    p.1.connmark = 0x2000;
    assert!(!p.agrees(&old));
    old.mark = 0x1000;
    assert!(p.agrees(&old), "somebody else's mark");
    let plain = FlowTuple {
        mark: 0x2000,
        ..flow(TCP, CLIENT, ("192.168.100.2", 22), ("192.168.100.2", 22), CLIENT)
    };
    assert!(p.agrees(&plain), "the fence admits nothing that is not translated");
}

/// `flow`, expected by a helper of a connection from `source` to a port 21.
fn expected(flow: &FlowTuple, source: &str, destination: &str) -> FlowTuple {
    FlowTuple {
        master: Some(Dialled {
            protocol: TCP,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            destination_port: 21,
        }),
        ..flow.clone()
    }
}

#[test]
fn a_transfer_that_a_helper_expected_is_judged_by_the_connection_that_agreed_upon_it() {
    let ftp = || policy(json!({}), json!({"ports": [{"protocol": "TCP", "port": 21}]}));
    let passive = flow(TCP, CLIENT, (VIP, 40_000), (VM, 40_000), GATEWAY);
    let active = flow(TCP, VM, (GATEWAY, 50_000), (CLIENT, 50_000), VIP);
    assert!(!ftp().agrees(&passive), "nobody mapped that port");
    for transfer in [passive, active] {
        let transfer = FlowTuple {
            mark: 0x2000,
            ..expected(&transfer, CLIENT, VIP)
        };
        let swept = |policy: Policy| {
            let sweep = Sweep {
                connmark: 0x2000,
                ..Sweep::default()
            };
            Policy(policy.0, sweep).agrees(&transfer)
        };
        assert!(swept(ftp()), "{transfer:?}");
        let ssh = json!({"ports": [{"protocol": "TCP", "port": 22}]});
        assert!(
            !swept(policy(json!({}), ssh)),
            "the mapping has lost the port of its control connection"
        );
        let elsewhere = json!({"target": {"address": "192.168.200.4"}, "ports": [{"protocol": "TCP", "port": 21}]});
        assert!(!swept(policy(json!({}), elsewhere)), "the mapping leads elsewhere now");
        let mut none = seed();
        none.mappings.clear();
        assert!(!swept(Policy(plan(&none).1.flows, Sweep::default())), "the mapping is gone");
    }
}

#[test]
fn a_transfer_of_a_machine_that_dialled_out_lasts_as_long_as_it_may_leave() {
    let server = "192.168.100.9";
    let transfer = expected(&flow(TCP, server, (VIP, 50_000), (VM, 50_000), server), VM, server);
    let ssh = json!({"ports": null});
    let allow = |to: &str| policy(json!({"egress": {"default": "Deny", "allow": [{"to": to}]}}), ssh.clone());
    assert!(allow("192.168.100.9/32").agrees(&transfer));
    let protected = json!({"egress": {"default": "Deny", "allow": [{"to": "192.168.100.9/32"}]}, "protected": ["192.168.100.9/32"]});
    let zone = policy(protected, json!({"ports": [{"protocol": "TCP", "port": 22}]}));
    assert!(!zone.agrees(&transfer));
    assert!(
        !policy(json!({}), json!({"ports": [{"protocol": "TCP", "port": 22}]})).agrees(&transfer),
        "nothing may leave"
    );
}
