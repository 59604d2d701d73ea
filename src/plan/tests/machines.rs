//! Mappings that name a virtual machine: what is judged of the address that somebody else found for it.

use serde_json::{Value, json};

use super::super::testing::{key, mapping, network, plan, seed};
use super::super::{MappingVerdict, judge};
use crate::api::{NatMapping, reasons};

/// A mapping to interface `default` of machine vm03, with a status that says that `machine` is at `address`.
fn to_machine(name: &str, created: u32, machine: &str, address: &str) -> NatMapping {
    let by_name = json!({"target": {"address": null, "virtualMachineRef": {"name": "vm03", "interface": "default"}}});
    let mut object = mapping(name, created, "192.168.100.3", "", by_name);
    let found = json!({"target": {"virtualMachine": machine, "interface": "default", "address": address, "state": "Reported"}});
    object.status = (!address.is_empty()).then(|| serde_json::from_value(found).unwrap());
    object
}

fn verdict(object: NatMapping) -> MappingVerdict {
    let (mut world, key) = (seed(), key(object.metadata.name.as_deref().unwrap()));
    world.mappings = vec![object];
    MappingVerdict::clone(&judge(&world).mappings[&key])
}

#[test]
fn it_leads_to_the_address_that_was_found() {
    let claim = verdict(to_machine("m", 1, "vm03", "192.168.200.7")).accepted.unwrap();
    assert_eq!(claim.target, "192.168.200.7/32".parse().unwrap());
    let mut world = seed();
    world.mappings = vec![to_machine("m", 1, "vm03", "192.168.200.7")];
    let (by_name, explicit) = (plan(&world).1, {
        let mut world = seed();
        world.mappings = vec![mapping("m", 1, "192.168.100.3", "192.168.200.7", json!({}))];
        plan(&world).1
    });
    assert_eq!(by_name, explicit, "to the kernel it is a mapping as any other");
}

#[test]
fn whoever_writes_the_status_can_lead_nowhere_but_inside() {
    for (address, reason) in [
        ("10.9.9.9", reasons::TARGET_OUTSIDE),
        ("192.168.100.9", reasons::TARGET_OUTSIDE),
        ("192.168.200.255", reasons::TARGET_OUTSIDE),
        ("192.168.200.254", reasons::TARGET_IS_GATEWAY),
    ] {
        let mut world = seed();
        world.networks = vec![network("net", 0, json!({"inside": {"gatewayAddresses": ["192.168.200.254"]}}))];
        world.mappings = vec![to_machine("m", 1, "vm03", address)];
        let (verdicts, plan) = super::super::testing::plan(&world);
        let refusal = verdicts.mappings[&key("m")].accepted.as_ref().unwrap_err();
        assert_eq!(refusal.reason, reason, "{address}: {}", refusal.message);
        assert!(refusal.message.contains("status.target.address must be"), "{}", refusal.message);
        world.mappings.clear();
        let without = super::super::testing::plan(&world).1;
        assert_eq!((plan.ruleset, plan.proxies), (without.ruleset, without.proxies), "{address}");
    }
}

#[test]
fn what_is_not_known_is_waited_for() {
    let unknown = [
        ("vm03", ""),
        ("vm03", "no address"),
        ("vm03", "127.0.0.1"),
        ("vm03", "fe80::1"),
        ("vm03", "2001:db8:200::3"),
        ("vm03", "192.168.100.3"),
        ("another", "192.168.200.3"),
    ];
    for (machine, address) in unknown {
        let verdict = verdict(to_machine("m", 1, machine, address));
        let refusal = verdict.accepted.as_ref().unwrap_err();
        assert_eq!(refusal.reason, reasons::WAITING_FOR_ADDRESS, "{address} of {machine}");
        assert_eq!(verdict.resolved_refs.as_ref(), Err(refusal));
        assert!(verdict.standing().is_some() && !verdict.conflicted);
    }
}

/// A machine that is switched on and off does not take an address from others each time.
#[test]
fn a_claim_that_waits_keeps_its_virtual_address() {
    let mut world = seed();
    world.mappings = vec![
        to_machine("first", 1, "vm03", ""),
        mapping("second", 2, "192.168.100.3", "192.168.200.4", json!({})),
    ];
    let verdicts = judge(&world);
    let second = &verdicts.mappings[&key("second")];
    assert_eq!(second.accepted.as_ref().unwrap_err().reason, reasons::CONFLICT);
    world.mappings = vec![
        mapping("first", 1, "192.168.100.3", "192.168.200.4", json!({})),
        to_machine("second", 2, "vm03", ""),
    ];
    let verdicts = judge(&world);
    let second = &verdicts.mappings[&key("second")];
    assert!(second.conflicted && second.waiting.is_none());
    assert_eq!(second.accepted.as_ref().unwrap_err().reason, reasons::CONFLICT);
}

#[test]
fn what_is_wrong_with_the_claim_is_told_whatever_the_machine_does() {
    let refused = |change: fn(&mut Value)| {
        let mut object = serde_json::to_value(to_machine("m", 1, "vm03", "")).unwrap();
        change(&mut object);
        verdict(serde_json::from_value(object).unwrap()).accepted.unwrap_err()
    };
    for (change, reason, says) in [
        (
            (|o| o["spec"]["virtual"]["address"] = json!("10.0.0.1")) as fn(&mut Value),
            reasons::POOL,
            "must be in the pool",
        ),
        (
            |o| o["spec"]["target"]["address"] = json!("192.168.200.3"),
            reasons::INVALID,
            "exactly one of address, prefix and virtualMachineRef",
        ),
        (
            |o| o["spec"]["virtual"] = json!({"prefix": "192.168.100.64/28"}),
            reasons::INVALID,
            "must stand beside spec.virtual.address",
        ),
        (
            |o| o["spec"]["side"] = json!("Inside"),
            reasons::INVALID,
            "must not be given with spec.side Inside",
        ),
        (
            |o| o["spec"]["target"]["virtualMachineRef"]["name"] = json!("VM 03"),
            reasons::INVALID,
            "must be the name of a VirtualMachine",
        ),
        (
            |o| o["spec"]["target"]["virtualMachineRef"]["interface"] = json!("eth0.1"),
            reasons::INVALID,
            "must be the name of a network of the VirtualMachine",
        ),
        (
            |o| o["metadata"]["resourceVersion"] = Value::Null,
            reasons::INVALID,
            "must not be used without a cluster",
        ),
    ] {
        let refusal = refused(change);
        assert_eq!(refusal.reason, reason, "{}", refusal.message);
        assert!(refusal.message.contains(says), "{}", refusal.message);
    }
}
