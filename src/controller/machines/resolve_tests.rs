//! Odd machines: what a mapping to them comes to.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::{Value, json};

use super::super::kinds::Kind;
use super::*;
use crate::controller::testing::network;
use crate::plan::validate;

const UID: &str = "uid-of-vm03";

/// The seed's inside and a prefix of IPv6, with the address of production's gateway.
fn inside(attachments: &[&str]) -> ValidNetwork {
    let mut object = network("segment-b");
    object.spec.inside.addresses.push("2001:db8:200::/64".into());
    object.spec.inside.gateway_addresses = vec!["192.168.200.254".into()];
    object.spec.inside.network_attachments = attachments.iter().map(|&a| a.into()).collect();
    validate::network(&object).unwrap()
}

fn by_name() -> VirtualMachineRef {
    VirtualMachineRef {
        name: "vm03".into(),
        interface: "closed".into(),
    }
}

/// On pod network `default`, and on `shop/closed-b` under the name `closed`.
fn networks(attachment: &str) -> Value {
    json!([{"name": "default", "pod": {}}, {"name": "closed", "multus": {"networkName": attachment}}])
}

fn machine() -> Machine {
    Machine::read(
        &serde_json::from_value(json!({
            "metadata": {"name": "vm03", "namespace": "shop", "uid": UID},
            "spec": {"template": {"spec": {"networks": networks("closed-b")}}},
        }))
        .unwrap(),
    )
}

fn instance(attachment: &str, phase: &str, interfaces: &Value) -> Instance {
    Instance::read(
        &serde_json::from_value(json!({
            "metadata": {"name": "vm03", "namespace": "shop", "ownerReferences": [
                {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "vm03", "uid": UID, "controller": true},
            ]},
            "spec": {"networks": networks(attachment)},
            "status": {"phase": phase, "interfaces": interfaces},
        }))
        .unwrap(),
    )
}

fn running(interfaces: &Value) -> Instance {
    instance("closed-b", "Running", interfaces)
}

fn at(address: &str) -> Instance {
    running(&json!([{"name": "closed", "ipAddress": address, "ipAddresses": [address], "infoSource": "domain, guest-agent"}]))
}

struct Case {
    network: ValidNetwork,
    family: Family,
    before: Option<MachineTarget>,
}

impl Case {
    fn new(before: Option<&MachineTarget>) -> Self {
        Self {
            network: inside(&[]),
            family: Family::V4,
            before: before.cloned(),
        }
    }

    fn of(&self, known: Known<'_>) -> Resolved {
        let machine = &by_name();
        let wish = Wish {
            machine,
            family: self.family,
            network: &self.network,
            before: self.before.as_ref(),
        };
        resolve(&wish, known)
    }

    fn on(&self, instance: &Instance) -> Resolved {
        self.of(Known::Machine(&machine(), Some(instance)))
    }
}

fn taken() -> MachineTarget {
    Case::new(None).on(&at("192.168.200.3")).target.unwrap()
}

#[track_caller]
fn assert_nowhere(resolved: &Resolved, reason: &str, says: &str) {
    let Found::No(why) = &resolved.found else { panic!("{resolved:?}") };
    assert_eq!(why.reason, reason, "{}", why.message);
    assert!(why.message.contains(says), "got: {}\nwant: {says}", why.message);
    assert_eq!(resolved.target.as_ref().and_then(|t| t.address.as_ref()), None, "{resolved:?}");
}

#[track_caller]
fn assert_at(resolved: &Resolved, address: &str, state: AddressState) {
    let target = resolved.target.as_ref().unwrap();
    assert_eq!(
        (target.address.as_deref(), target.state),
        (Some(address), Some(state)),
        "{resolved:?}"
    );
    assert!(matches!(&resolved.found, Found::Yes(how) if how.contains(address)), "{resolved:?}");
}

#[test]
fn a_running_machine_is_where_it_says() {
    let resolved = Case::new(None).on(&at("192.168.200.3"));
    assert_at(&resolved, "192.168.200.3", AddressState::Reported);
    let target = resolved.target.unwrap();
    assert_eq!(target.source.as_deref(), Some("domain, guest-agent"));
    assert_eq!(target.attachment.as_deref(), Some("shop/closed-b"));
    assert!(target.is_of(&by_name()));
}

#[test]
fn odd_reports_come_to_the_right_address_or_to_none() {
    let guest =
        |addresses: Value| json!({"name": "closed", "ipAddress": addresses[0], "ipAddresses": addresses, "infoSource": "guest-agent"});
    let docker =
        json!({"interfaceName": "docker0", "ipAddress": "192.168.200.77", "ipAddresses": ["192.168.200.77"], "infoSource": "guest-agent"});
    let pod = json!({"name": "default", "ipAddress": "192.168.200.88", "infoSource": "domain"});
    for (interfaces, wanted) in [
        // Others than the one asked for, and those without a name, are nobody's concern.
        (json!([pod, docker, guest(json!(["192.168.200.3"]))]), "192.168.200.3"),
        // The primary one is taken if it is inside, else the lowest.
        (json!([guest(json!(["192.168.200.9", "192.168.200.3"]))]), "192.168.200.9"),
        (
            json!([guest(json!(["10.0.0.9", "192.168.200.9", "192.168.200.10"]))]),
            "192.168.200.9",
        ),
        (
            json!([guest(json!(["fe80::1", "2001:db8:200::3", "169.254.0.7", "192.168.200.3"]))]),
            "192.168.200.3",
        ),
        // Not the gateway's, nor one that no host has.
        (
            json!([guest(json!(["192.168.200.254", "192.168.200.0", "192.168.200.3"]))]),
            "192.168.200.3",
        ),
        (json!([guest(json!(["192.168.200.3/24"]))]), "192.168.200.3"),
        (json!([guest(json!([])), guest(json!(["192.168.200.3"]))]), "192.168.200.3"),
    ] {
        assert_at(&Case::new(None).on(&running(&interfaces)), wanted, AddressState::Reported);
    }
    let no_address = "no address of it is known";
    for (interfaces, reason, says) in [
        (json!([]), reasons::WAITING_FOR_ADDRESS, no_address),
        (json!("rubbish"), reasons::WAITING_FOR_ADDRESS, no_address),
        (
            json!([docker, pod]),
            reasons::WAITING_FOR_ADDRESS,
            "reports no IPv4 address at interface closed",
        ),
        (
            json!([guest(json!(["fe80::1", "169.254.3.4"]))]),
            reasons::WAITING_FOR_ADDRESS,
            no_address,
        ),
        (json!([guest(json!(["2001:db8:200::3"]))]), reasons::WAITING_FOR_ADDRESS, no_address),
        (
            json!([guest(json!(["not an address", ""]))]),
            reasons::WAITING_FOR_ADDRESS,
            no_address,
        ),
        (
            json!([guest(json!(["10.9.9.9", "172.17.0.1"]))]),
            reasons::TARGET_OUTSIDE,
            "reports 10.9.9.9, 172.17.0.1 at interface closed (guest-agent), must be a machine's address in the inside prefixes of network segment-b, 192.168.200.0/24",
        ),
        (
            json!([guest(json!(["192.168.200.255"]))]),
            reasons::TARGET_OUTSIDE,
            "192.168.200.255",
        ),
        (
            json!([guest(json!(["192.168.200.254"]))]),
            reasons::TARGET_IS_GATEWAY,
            "192.168.200.254",
        ),
    ] {
        assert_nowhere(&Case::new(None).on(&running(&interfaces)), reason, says);
    }
    let many: Vec<String> = (0..=255).map(|n| format!("10.0.0.{n}")).collect();
    assert_nowhere(
        &Case::new(None).on(&running(&json!([guest(json!(many))]))),
        reasons::TARGET_OUTSIDE,
        "and 248 more",
    );
}

#[test]
fn an_address_of_ipv6_is_no_link_local_one() {
    let reported =
        json!([{"name": "closed", "ipAddress": "fe80::5054", "ipAddresses": ["fe80::5054", "192.168.200.3", "2001:db8:200::3"]}]);
    let case = Case {
        family: Family::V6,
        ..Case::new(None)
    };
    assert_at(&case.on(&running(&reported)), "2001:db8:200::3", AddressState::Reported);
}

#[test]
fn the_address_stays_while_it_is_reported() {
    let reported = |addresses: Value| running(&json!([{"name": "closed", "ipAddress": addresses[0], "ipAddresses": addresses}]));
    let case = Case::new(Some(&taken()));
    assert_at(
        &case.on(&reported(json!(["192.168.200.2", "192.168.200.3"]))),
        "192.168.200.3",
        AddressState::Reported,
    );
    assert_at(
        &case.on(&reported(json!(["192.168.200.4"]))),
        "192.168.200.4",
        AddressState::Reported,
    );
}

#[test]
fn the_last_good_address_is_held_while_the_machine_reports_none() {
    let case = Case::new(Some(&taken()));
    let machine = machine();
    let another = Instance {
        machine: "another machine of the name".into(),
        ..at("192.168.200.66")
    };
    for instance in [
        None,
        Some(&running(&json!([]))),
        Some(&instance("closed-b", "Scheduling", &Value::Null)),
        Some(&instance(
            "closed-b",
            "Succeeded",
            &json!([{"name": "closed", "ipAddress": "192.168.200.66"}]),
        )),
        Some(&another),
        Some(&running(&json!([{"name": "closed", "ipAddress": "fe80::1"}]))),
    ] {
        let resolved = case.of(Known::Machine(&machine, instance));
        assert_at(&resolved, "192.168.200.3", AddressState::Held);
        assert_eq!(resolved.target.unwrap().attachment.as_deref(), Some("shop/closed-b"));
    }
    let Found::Yes(how) = case.of(Known::Machine(&machine, None)).found else {
        panic!()
    };
    assert_eq!(how, "Virtual machine vm03 is off; its last address 192.168.200.3 is held.");
    assert_nowhere(
        &Case::new(None).of(Known::Machine(&machine, None)),
        reasons::WAITING_FOR_ADDRESS,
        "vm03 is off, and no address",
    );
}

#[test]
fn what_is_held_must_be_good_still() {
    let machine = machine();
    for change in [
        (|case: &mut Case| case.family = Family::V6) as fn(&mut Case),
        |case| case.network.inside = ["10.1.0.0/16".parse().unwrap()].into(),
        |case| case.network.gateway_addresses = ["192.168.200.3".parse().unwrap()].into(),
        |case| case.before.as_mut().unwrap().address = Some("rubbish".into()),
    ] {
        let mut case = Case::new(Some(&taken()));
        change(&mut case);
        assert_nowhere(
            &case.of(Known::Machine(&machine, None)),
            reasons::WAITING_FOR_ADDRESS,
            "vm03 is off",
        );
        let unreadable = case.of(Known::Unreadable("The controller may not list x"));
        assert_nowhere(&unreadable, reasons::MACHINES_UNREADABLE, "The controller may not list x.");
    }
}

#[test]
fn a_machine_that_is_gone_leads_nowhere_and_leaves_nothing() {
    let case = Case::new(Some(&taken()));
    let resolved = case.of(Known::Nothing);
    assert_nowhere(&resolved, reasons::VIRTUAL_MACHINE_NOT_FOUND, "There is no VirtualMachine vm03");
    assert_eq!(resolved.target, None);
}

/// A guest that lies once is not led to where it was before either, and gets its way back when it tells the truth.
#[test]
fn a_lie_drops_the_address() {
    let lied = Case::new(Some(&taken())).on(&at("10.9.9.9"));
    assert_nowhere(&lied, reasons::TARGET_OUTSIDE, "10.9.9.9");
    let case = Case::new(lied.target.as_ref());
    assert_nowhere(&case.of(Known::Machine(&machine(), None)), reasons::WAITING_FOR_ADDRESS, "is off");
    assert_at(&case.on(&at("192.168.200.3")), "192.168.200.3", AddressState::Reported);
}

#[test]
fn what_cannot_be_read_is_held_and_what_cannot_be_is_not() {
    let case = Case::new(Some(&taken()));
    let resolved = case.of(Known::Unreadable(
        "The controller may not list and watch virtualmachines.kubevirt.io",
    ));
    let Found::No(why) = &resolved.found else { panic!("{resolved:?}") };
    assert_eq!(why.reason, reasons::MACHINES_UNREADABLE);
    assert!(why.message.contains("192.168.200.3, is held"), "{}", why.message);
    assert_eq!(resolved.target.unwrap().state, Some(AddressState::Held));
    let absent = case.of(Known::Absent("The cluster has no kind virtualmachines.kubevirt.io"));
    assert_nowhere(&absent, reasons::KUBEVIRT_MISSING, "so there is no virtual machine vm03");
    let not_yet = case.of(Known::NotYet);
    assert_eq!((not_yet.target, not_yet.found), (Some(taken()), Found::NotYet));
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let (mut without, mut unplugged) = (machine(), machine());
    without.networks.truncate(1);
    unplugged.networks[1].plugged = false;
    let case = Case::new(Some(&taken()));
    assert_nowhere(
        &case.of(Known::Machine(&without, None)),
        reasons::MACHINE_INTERFACE_MISSING,
        "must be the name of a network of virtual machine vm03, which has default: got closed",
    );
    assert_nowhere(
        &case.of(Known::Machine(&unplugged, None)),
        reasons::MACHINE_INTERFACE_MISSING,
        "is unplugged",
    );
    // What runs counts, not what the machine will have when it is started again.
    assert_at(
        &case.of(Known::Machine(&without, Some(&at("192.168.200.3")))),
        "192.168.200.3",
        AddressState::Reported,
    );
}

#[test]
fn an_interface_that_was_moved_to_another_network_leads_nowhere_until_it_is_back() {
    let moved = instance("production", "Running", &json!([{"name": "closed", "ipAddress": "192.168.200.3"}]));
    let swapped = Case::new(Some(&taken())).on(&moved);
    let says = "is attached to shop/production; it was shop/closed-b when its address was taken";
    assert_nowhere(&swapped, reasons::TARGET_ON_OTHER_NETWORK, says);
    let case = Case::new(swapped.target.as_ref());
    assert_nowhere(&case.on(&moved), reasons::TARGET_ON_OTHER_NETWORK, says);
    assert_at(&case.on(&at("192.168.200.3")), "192.168.200.3", AddressState::Reported);
    // Without anything to compare with, it is where it says.
    assert_at(&Case::new(None).on(&moved), "192.168.200.3", AddressState::Reported);
}

#[test]
fn the_administrator_says_which_attachments_lead_inside() {
    let taken = taken();
    let case = |attachments: &[&str], before| Case {
        network: inside(attachments),
        ..Case::new(before)
    };
    let instance = |attachment| instance(attachment, "Running", &json!([{"name": "closed", "ipAddress": "192.168.200.3"}]));
    let both = case(&["shop/closed-b", "infra/closed-b"], Some(&taken));
    assert_at(&both.on(&instance("infra/closed-b")), "192.168.200.3", AddressState::Reported);
    let infra = case(&["infra/closed-b"], None);
    let says = "is attached to shop/closed-b, must be one of inside.networkAttachments of network segment-b, infra/closed-b";
    assert_nowhere(&infra.on(&instance("closed-b")), reasons::TARGET_ON_OTHER_NETWORK, says);
    let pod = VirtualMachineRef {
        name: "vm03".into(),
        interface: "default".into(),
    };
    let on_pod = running(&json!([{"name": "default", "ipAddress": "192.168.200.3"}]));
    let wish = Wish {
        machine: &pod,
        family: Family::V4,
        network: &infra.network,
        before: None,
    };
    let resolved = resolve(&wish, Known::Machine(&machine(), Some(&on_pod)));
    assert_nowhere(&resolved, reasons::TARGET_ON_OTHER_NETWORK, "the cluster's own network (pod)");
}

/// Deciding again on what was decided changes nothing, or the controller would write for ever.
#[test]
fn deciding_twice_is_deciding_once() {
    let machine = machine();
    for instance in [None, Some(&at("192.168.200.3")), Some(&at("10.9.9.9")), Some(&running(&json!([])))] {
        for before in [None, Some(taken())] {
            let once = Case::new(before.as_ref()).of(Known::Machine(&machine, instance));
            let twice = Case::new(once.target.as_ref()).of(Known::Machine(&machine, instance));
            assert_eq!(once, twice);
        }
    }
}
