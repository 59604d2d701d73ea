//! What a mapping's status says.

use super::{Scene, fail, outcome, refuse, row};
use crate::api::conditions::find;
use crate::api::gatewaynode::{RefusedReport, Role};
use crate::api::mapping::Announcement;
use crate::api::reasons::{self, types};
use crate::controller::aggregate::Life;
use crate::controller::testing::condition;

#[test]
fn a_mapping_in_the_kernel_of_its_gateway_is_ready() {
    let status = Scene::well().mapping_status();
    assert_eq!(
        row(&status.conditions),
        "Accepted=True/Accepted ResolvedRefs=True/Resolved Programmed=True/Programmed Ready=True/Ready"
    );
    assert_eq!((status.observed_generation, status.gateway.as_deref()), (Some(1), Some("node-a")));
    let ready = find(&status.conditions, types::READY).unwrap();
    assert_eq!(ready.message, "192.168.100.3 leads to 192.168.200.3 through node-a.");
    let network = Scene::well().network_status();
    assert_eq!(
        row(&network.conditions),
        "Accepted=True/Accepted Programmed=True/Programmed Ready=True/Ready"
    );
    let ready = find(&network.conditions, types::READY).unwrap();
    assert_eq!(ready.message, "1/1 gateways have the fence up; node-a attracts the traffic.");
    assert_eq!(network.active_gateway.unwrap().node, "node-a");
}

/// Every row: what is changed in a scene in which all is well, and what the mapping's status says then.
#[test]
#[allow(clippy::too_many_lines)] // one row a case
fn mapping_rows() {
    type Change = fn(&mut Scene);
    let rows: &[(&str, Change, &str)] = &[
        (
            "the agent has not seen this version",
            |s| s.told().synced_resource_version = "4".into(),
            "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending",
        ),
        (
            "the agent is ahead, by a digit",
            |s| s.told().synced_resource_version = "10".into(),
            "Programmed=True/Programmed Ready=True/Ready",
        ),
        (
            "the agent has an older generation of the network",
            |s| s.network_verdict.generation = 2,
            "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending",
        ),
        (
            "the fence does not stand",
            |s| s.told().fenced = false,
            "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending",
        ),
        (
            "the elected node does not attract the traffic yet",
            |s| s.told().role = Role::Standby,
            "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending",
        ),
        (
            "the agent does not know the network",
            |s| s.a().words().networks.clear(),
            "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending",
        ),
        (
            "the agent says why the network is not served",
            |s| s.told().reason = reasons::INTERFACE_MISSING.into(),
            "Programmed=False/InterfaceMissing Ready=False/InterfaceMissing Reconciling=True/InterfaceMissing",
        ),
        (
            "an interface is down",
            |s| s.told().reason = reasons::LINK_DOWN.into(),
            "Programmed=True/Programmed Ready=False/LinkDown Reconciling=True/LinkDown",
        ),
        (
            "the kernel has no such helper",
            |s| {
                fail(s, "default", "vm03", 1);
                s.a().words().failures[0].reason = reasons::HELPER_MISSING.into();
            },
            "Programmed=True/Programmed Ready=False/HelperMissing Stalled=True/HelperMissing",
        ),
        (
            "no node serves the network, and the network says why",
            |s| {
                s.network_verdict.active = None;
                s.told().reason = reasons::INTERFACE_SHARED.into();
            },
            "Programmed=False/InterfaceShared Ready=False/InterfaceShared Stalled=True/InterfaceShared",
        ),
        (
            "the agent is behind because it has no tool",
            |s| {
                s.told().synced_resource_version = "4".into();
                s.a().words().conditions = vec![condition(types::READY, "False", reasons::TOOL_MISSING)];
            },
            "Programmed=False/ToolMissing Ready=False/ToolMissing Stalled=True/ToolMissing",
        ),
        (
            "the agent is behind and has trouble with other mappings",
            |s| {
                s.told().synced_resource_version = "4".into();
                s.a().words().conditions = vec![condition(types::READY, "False", reasons::DEGRADED)];
            },
            "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending",
        ),
        (
            "the agent lists this mapping as failed",
            |s| fail(s, "default", "vm03", 1),
            "Programmed=False/AddressInUse Ready=False/AddressInUse Reconciling=True/AddressInUse",
        ),
        (
            "the agent lists an older state of this mapping as failed",
            |s| {
                fail(s, "default", "vm03", 1);
                s.told().synced_resource_version = "4".into();
            },
            "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending",
        ),
        (
            "the agent lists others as failed",
            |s| fail(s, "default", "vm04", 1),
            "Programmed=True/Programmed Ready=True/Ready",
        ),
        (
            "the list of failures is cut behind this mapping",
            |s| fail(s, "default", "vm04", 99),
            "Programmed=True/Programmed Ready=True/Ready",
        ),
        (
            "the list of failures is cut before this mapping",
            |s| fail(s, "default", "vm02", 99),
            "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending",
        ),
        (
            "the gateway is silent",
            |s| s.a().life = Life::Silent,
            "Programmed=Unknown/GatewaySilent Ready=Unknown/GatewaySilent",
        ),
        (
            "the controller has just started",
            |s| s.a().life = Life::Unproven,
            "Programmed=True/Programmed Ready=True/Ready",
        ),
        (
            "the controller has just started, and the gateway was silent before",
            |s| {
                s.a().life = Life::Unproven;
                s.mapping.status = Some(crate::api::NatMappingStatus {
                    conditions: vec![condition(types::PROGRAMMED, "Unknown", reasons::GATEWAY_SILENT)],
                    ..Default::default()
                });
            },
            "Programmed=Unknown/GatewaySilent Ready=Unknown/GatewaySilent",
        ),
        (
            "no node is selected",
            |s| s.network_verdict.gateways.clear(),
            "Programmed=False/NoGateway Ready=False/NoGateway Reconciling=True/NoGateway",
        ),
        (
            "the elected node never reported",
            |s| s.reports.clear(),
            "Programmed=False/WaitingForAgent Ready=False/WaitingForAgent Reconciling=True/WaitingForAgent",
        ),
        (
            "the pool does not have the address",
            |s| s.mapping_verdict.accepted = Err(refuse(reasons::POOL)),
            "Programmed=False/NotAccepted Ready=False/OutsidePool Stalled=True/OutsidePool",
        ),
        (
            "an older claim won",
            |s| {
                s.mapping_verdict.accepted = Err(refuse(reasons::CONFLICT));
                s.mapping_verdict.conflicted = true;
            },
            "Programmed=False/NotAccepted Ready=False/Conflict Conflicted=True/Conflict Stalled=True/Conflict",
        ),
        (
            "the network is not there yet",
            |s| {
                s.mapping_verdict.accepted = Err(refuse(reasons::NETWORK_NOT_FOUND));
                s.mapping_verdict.resolved_refs = Err(refuse(reasons::NETWORK_NOT_FOUND));
            },
            "Programmed=False/NotAccepted Ready=False/NetworkNotFound Reconciling=True/NetworkNotFound",
        ),
        (
            "the stored status refuses what stands now, and the agent reported long ago",
            |s| {
                s.mapping.status = Some(crate::api::NatMappingStatus {
                    conditions: vec![condition(types::ACCEPTED, "False", reasons::CONFLICT)],
                    ..Default::default()
                });
                s.observe();
            },
            "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending",
        ),
    ];
    for (name, change, expected) in rows {
        let mut scene = Scene::well();
        change(&mut scene);
        assert_eq!(outcome(&scene.mapping_status().conditions), *expected, "{name}");
    }
}

#[test]
fn a_missing_helper_is_an_unresolved_reference() {
    let mut scene = Scene::well();
    fail(&mut scene, "default", "vm03", 1);
    scene.a().words().failures[0].reason = reasons::HELPER_MISSING.into();
    let status = scene.mapping_status();
    let refs = find(&status.conditions, types::RESOLVED_REFS).unwrap();
    assert_eq!((refs.status.as_str(), refs.reason.as_str()), ("False", reasons::HELPER_MISSING));
    scene.told().reason = reasons::LINK_DOWN.into();
    let status = scene.mapping_status();
    let words = |kind| find(&status.conditions, kind).unwrap().reason.clone();
    assert_eq!(
        (words(types::RESOLVED_REFS), words(types::READY)),
        (reasons::HELPER_MISSING.into(), reasons::LINK_DOWN.into()),
        "what nobody gets through counts more"
    );
}

#[test]
fn how_clients_find_an_address_is_said_while_it_is_served() {
    let mut scene = Scene::well();
    assert_eq!(scene.mapping_status().announcement, Some(Announcement::Neighbour));
    let network = scene.network_verdict.accepted.as_mut().unwrap();
    network.announce = false;
    assert_eq!(scene.mapping_status().announcement, Some(Announcement::Route));
    scene.mapping_verdict.accepted = Err(refuse(reasons::CONFLICT));
    assert_eq!(scene.mapping_status().announcement, None);
}

/// A gateway may know of addresses that it does not report, or hear of a label later than the controller: its kernel has nothing for the mapping then.
#[test]
fn what_the_gateway_refuses_is_not_programmed() {
    let refuse = |name: &str| {
        let mut scene = Scene::well();
        scene.a().words().refused = vec![RefusedReport {
            namespace: "default".into(),
            name: name.into(),
            reason: reasons::ADDRESS_OWNED.into(),
        }];
        scene.mapping_status()
    };
    let status = refuse("vm03");
    assert_eq!(
        row(&status.conditions),
        "Accepted=True/Accepted ResolvedRefs=True/Resolved Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending"
    );
    let message = &find(&status.conditions, types::PROGRAMMED).unwrap().message;
    assert!(message.contains("node-a") && message.contains(reasons::ADDRESS_OWNED), "{message}");
    assert_eq!(row(&refuse("another").conditions), row(&Scene::well().mapping_status().conditions));
}

/// Ready=True of a gateway that dies, nobody knows, Ready=True of the next one; no word of work under way that nobody does. Each step begins with the statuses of the one before.
#[test]
fn from_a_silent_gateway_to_the_next_a_mapping_is_unknown_and_nothing_else() {
    const UNKNOWN: &str = "Programmed=Unknown/GatewaySilent Ready=Unknown/GatewaySilent";
    const READY: &str = "Programmed=True/Programmed Ready=True/Ready";
    let mut scene = Scene::well();
    scene.mapping.metadata.generation = Some(1);
    scene.add_node_b(Role::Standby);
    let step = |scene: &mut Scene| {
        let statuses = scene.statuses();
        let (mapping, network) = (statuses.mappings.into_values().next(), statuses.networks.into_values().next());
        (scene.mapping.status, scene.network.status) = (mapping, network.clone());
        scene.network_verdict.active = network.and_then(|network| network.active_gateway);
        let status = scene.mapping.status.as_ref().unwrap();
        let network = scene.network.status.as_ref().unwrap();
        (
            status.gateway.clone().unwrap(),
            outcome(&status.conditions),
            outcome(&network.conditions),
        )
    };
    let expect = |node: &str, mapping: &str, network: &str| (node.to_owned(), mapping.to_owned(), network.to_owned());
    assert_eq!(step(&mut scene), expect("node-a", READY, READY));
    scene.a().life = Life::Silent;
    for _ in 0..2 {
        assert_eq!(
            step(&mut scene),
            expect("node-b", UNKNOWN, UNKNOWN),
            "node-b is elected and has not heard of it"
        );
    }
    let said = find(&scene.mapping.status.as_ref().unwrap().conditions, types::READY)
        .unwrap()
        .message
        .clone();
    assert!(said.contains("node-a has stopped reporting. Node node-b takes over"), "{said}");
    scene.add_node_b(Role::Active).words().networks[0].role = Role::Active;
    assert_eq!(step(&mut scene), expect("node-b", READY, UNKNOWN), "it serves");
    scene.a().life = Life::Alive;
    assert_eq!(
        step(&mut scene),
        expect("node-b", READY, READY),
        "who comes back does not take over"
    );
}

#[test]
fn silence_hides_neither_trouble_of_the_next_gateway_nor_what_was_never_programmed() {
    let handed_over = |change: fn(&mut Scene)| {
        let mut scene = Scene::well();
        scene.mapping.metadata.generation = Some(1);
        scene.add_node_b(Role::Standby);
        scene.mapping.status = Some(scene.mapping_status());
        scene.a().life = Life::Silent;
        change(&mut scene);
        outcome(&scene.mapping_status().conditions)
    };
    assert_eq!(
        handed_over(|s| s.add_node_b(Role::Standby).words().networks[0].reason = reasons::LOCK_HELD.into()),
        "Programmed=False/LockHeld Ready=False/LockHeld Reconciling=True/LockHeld"
    );
    let pending = "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending";
    assert_eq!(handed_over(|s| s.mapping.status = None), pending, "a new mapping");
    assert_eq!(handed_over(|s| s.mapping.metadata.generation = Some(2)), pending, "a new spec");
}

/// Labels of namespaces cannot be read: nobody knows whether the claim stands, and nothing else is unsaid.
#[test]
fn a_claim_that_depends_on_unread_labels_says_so_and_keeps_the_rest() {
    let mut scene = Scene::well();
    let well = scene.mapping_status();
    scene.mapping_verdict.waiting = scene.mapping_verdict.accepted.clone().ok().map(Box::new);
    scene.mapping_verdict.accepted = Err(refuse(reasons::NAMESPACE_UNKNOWN));
    let said = |scene: &Scene| row(&scene.mapping_status().conditions);
    let unknown = "Accepted=Unknown/NamespaceUnknown ResolvedRefs=Unknown/NamespaceUnknown Programmed=Unknown/NamespaceUnknown Ready=Unknown/NamespaceUnknown";
    assert_eq!(said(&scene), unknown, "a new mapping");
    scene.mapping.status = Some(well.clone());
    let kept = scene.mapping_status();
    assert_eq!(
        row(&kept.conditions),
        "Accepted=Unknown/NamespaceUnknown ResolvedRefs=True/Resolved Programmed=True/Programmed Ready=Unknown/NamespaceUnknown"
    );
    assert_eq!((&kept.gateway, &kept.announcement), (&well.gateway, &well.announcement));
    scene.mapping_verdict.generation = 2;
    assert_eq!(said(&scene), unknown, "of a new spec nothing is known");
    scene.mapping_verdict.generation = 1;
    scene.mapping.status = Some(kept.clone());
    scene.second += 60;
    assert_eq!(scene.mapping_status(), kept, "it is said once");
    let mut refused = well;
    refused.conditions = vec![condition(types::ACCEPTED, "False", reasons::NAMESPACE_NOT_ALLOWED)];
    scene.mapping.status = Some(refused.clone());
    assert_eq!(scene.mapping_status(), refused, "what was refused stays refused");
}
