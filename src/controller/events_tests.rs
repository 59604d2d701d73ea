#![allow(clippy::unwrap_used)]
use super::*;
use crate::api::network::{ActiveGateway, Isolation};
use crate::controller::testing::condition;

fn mapping(gateway: Option<&str>, conditions: &[(&str, &str, &str)]) -> NatMappingStatus {
    NatMappingStatus {
        gateway: gateway.map(Into::into),
        conditions: conditions
            .iter()
            .map(|(kind, status, reason)| condition(kind, status, reason))
            .collect(),
        ..NatMappingStatus::default()
    }
}

fn network(gateway: Option<&str>, conditions: &[(&str, &str, &str)]) -> StagingNetworkStatus {
    StagingNetworkStatus {
        active_gateway: gateway.map(|node| ActiveGateway {
            node: node.into(),
            address: None,
            address_ipv6: None,
        }),
        conditions: conditions
            .iter()
            .map(|(kind, status, reason)| condition(kind, status, reason))
            .collect(),
        ..StagingNetworkStatus::default()
    }
}

fn said(notices: &[Notice]) -> Vec<String> {
    let word = |n: &Notice| format!("{}{}", if n.warning { "!" } else { "" }, n.reason);
    notices.iter().map(word).collect()
}

const ACCEPTED: (&str, &str, &str) = (types::ACCEPTED, "True", reasons::ACCEPTED);
const PROGRAMMED: (&str, &str, &str) = (types::PROGRAMMED, "True", reasons::PROGRAMMED);

#[test]
fn a_mapping_says_what_happened_to_it_once() {
    let pending = mapping(Some("a"), &[ACCEPTED, (types::PROGRAMMED, "False", reasons::PENDING)]);
    let ready = mapping(Some("a"), &[ACCEPTED, PROGRAMMED]);
    let refused = mapping(
        None,
        &[
            (types::ACCEPTED, "False", reasons::CONFLICT),
            (types::PROGRAMMED, "False", reasons::NOT_ACCEPTED),
        ],
    );
    let in_use = mapping(Some("a"), &[ACCEPTED, (types::PROGRAMMED, "False", reasons::ADDRESS_IN_USE)]);
    let none = Vec::<String>::new();
    assert_eq!(said(&of_mapping(None, &pending)), none);
    assert_eq!(said(&of_mapping(Some(&pending), &ready)), ["Programmed"]);
    assert_eq!(said(&of_mapping(Some(&ready), &ready)), none);
    assert_eq!(said(&of_mapping(None, &refused)), ["!Conflict"]);
    let early = mapping(
        None,
        &[
            (types::ACCEPTED, "False", reasons::NETWORK_NOT_FOUND),
            (types::PROGRAMMED, "False", reasons::NOT_ACCEPTED),
        ],
    );
    assert_eq!(said(&of_mapping(None, &early)), none);
    assert_eq!(said(&of_mapping(Some(&refused), &refused)), none);
    assert_eq!(said(&of_mapping(Some(&pending), &in_use)), ["!AddressInUse"]);
    assert_eq!(said(&of_mapping(Some(&in_use), &ready)), ["Programmed"]);
}

#[test]
fn what_concerns_all_mappings_is_not_said_of_each() {
    let ready = mapping(Some("a"), &[ACCEPTED, PROGRAMMED]);
    let silent = mapping(Some("a"), &[ACCEPTED, (types::PROGRAMMED, "Unknown", reasons::GATEWAY_SILENT)]);
    let nobody = mapping(None, &[ACCEPTED, (types::PROGRAMMED, "False", reasons::NO_GATEWAY)]);
    let moving = mapping(Some("a"), &[ACCEPTED, (types::PROGRAMMED, "False", reasons::PENDING)]);
    let moved = mapping(Some("b"), &[ACCEPTED, PROGRAMMED]);
    for (before, after) in [
        (&ready, &silent),
        (&silent, &ready),
        (&ready, &nobody),
        (&nobody, &ready),
        (&moving, &moved),
    ] {
        assert_eq!(of_mapping(Some(before), after), []);
    }
}

#[test]
fn a_network_says_who_serves_it_and_what_it_lacks() {
    let fresh = network(Some("a"), &[ACCEPTED, (types::PROGRAMMED, "False", reasons::PENDING)]);
    let ready = network(Some("a"), &[ACCEPTED, PROGRAMMED]);
    let silent = network(Some("a"), &[ACCEPTED, (types::PROGRAMMED, "Unknown", reasons::GATEWAY_SILENT)]);
    let moved = network(Some("b"), &[ACCEPTED, PROGRAMMED]);
    let nobody = network(None, &[ACCEPTED, (types::PROGRAMMED, "False", reasons::NO_GATEWAY)]);
    assert_eq!(said(&of_network(None, &fresh)), ["GatewayElected"]);
    assert_eq!(said(&of_network(Some(&fresh), &ready)), ["Programmed"]);
    assert_eq!(said(&of_network(Some(&ready), &silent)), ["!GatewaySilent"]);
    assert_eq!(said(&of_network(Some(&silent), &moved)), ["GatewayMoved", "Programmed"]);
    assert_eq!(said(&of_network(Some(&ready), &nobody)), ["!NoGateway", "!NoGateway"]);
    assert_eq!(of_network(Some(&ready), &ready), []);
}

#[test]
fn a_network_says_that_it_is_isolated_and_that_a_link_is_down_or_up() {
    let ready = (types::READY, "True", reasons::READY);
    let down = (types::READY, "False", reasons::LINK_DOWN);
    let plain = network(Some("a"), &[ACCEPTED, PROGRAMMED, ready]);
    let mut isolated = plain.clone();
    isolated.isolation = Some(Isolation { identifier: 2, zone: 2 });
    assert_eq!(said(&of_network(Some(&plain), &isolated)), ["Isolated"]);
    assert_eq!(said(&of_network(Some(&isolated), &isolated)), Vec::<String>::new());
    let cut = network(Some("a"), &[ACCEPTED, PROGRAMMED, down]);
    assert_eq!(said(&of_network(Some(&plain), &cut)), ["!LinkDown"]);
    assert_eq!(said(&of_network(Some(&cut), &cut)), Vec::<String>::new());
    assert_eq!(said(&of_network(Some(&cut), &plain)), ["LinkUp"]);
}

#[test]
fn what_keeps_a_network_from_any_gateway_is_not_said_of_each_mapping() {
    let unserved = mapping(None, &[ACCEPTED, (types::PROGRAMMED, "False", reasons::INTERFACE_MISSING)]);
    let served = mapping(Some("a"), &[ACCEPTED, PROGRAMMED]);
    assert_eq!(said(&of_mapping(None, &unserved)), Vec::<String>::new());
    assert_eq!(said(&of_mapping(Some(&unserved), &served)), Vec::<String>::new());
    let helpless = mapping(
        Some("a"),
        &[ACCEPTED, (types::RESOLVED_REFS, "False", reasons::HELPER_MISSING), PROGRAMMED],
    );
    assert_eq!(said(&of_mapping(Some(&served), &helpless)), ["!HelperMissing"]);
}

#[test]
fn a_machine_that_went_elsewhere_is_warned_of_once_and_its_return_is_told() {
    let with = |reason: &str, gateway| {
        let status = if reason == reasons::RESOLVED { "True" } else { "False" };
        let programmed = if reason == reasons::RESOLVED { reasons::PROGRAMMED } else { reason };
        mapping(
            gateway,
            &[
                ACCEPTED,
                (types::RESOLVED_REFS, status, reason),
                (types::PROGRAMMED, status, programmed),
            ],
        )
    };
    let (well, away) = (with(reasons::RESOLVED, Some("a")), with(reasons::TARGET_ON_OTHER_NETWORK, None));
    assert_eq!(said(&of_mapping(Some(&well), &away)), ["!TargetOnOtherNetwork"]);
    assert!(of_mapping(Some(&away), &away).is_empty());
    assert_eq!(said(&of_mapping(Some(&away), &well)), ["Programmed"]);
    let waits = with(reasons::WAITING_FOR_ADDRESS, None);
    assert!(of_mapping(None, &waits).is_empty(), "it comes right by itself");
    assert_eq!(said(&of_mapping(Some(&waits), &well)), ["Programmed"]);
}
