//! What a network's status says, which gateway attracts its traffic, and when nothing is written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Scene, on, outcome, refuse, says};
use crate::api::conditions::find;
use crate::api::gatewaynode::Role;
use crate::api::network::Isolation;
use crate::api::reasons::{self, types};
use crate::controller::aggregate::{Life, Seen};
use crate::controller::testing::report;

#[test]
fn network_rows() {
    type Change = fn(&mut Scene);
    let rows: &[(&str, Change, &str, &str)] = &[
        (
            "both gateways stand",
            |s| {
                s.add_node_b(Role::Standby);
            },
            "Programmed=True/Programmed Ready=True/Ready",
            "2/2 gateways have the fence up; node-a attracts the traffic.",
        ),
        (
            "the standby has no inside interface",
            |s| {
                let told = &mut s.add_node_b(Role::Standby).words().networks[0];
                told.reason = reasons::INTERFACE_MISSING.into();
                told.message = "no interface eth1".into();
            },
            "Programmed=False/InterfaceMissing Ready=False/InterfaceMissing Reconciling=True/InterfaceMissing",
            "1/2 gateways have the fence up. Node node-b: no interface eth1",
        ),
        (
            "trouble comes before waiting, waiting before silence",
            |s| {
                s.told().fenced = false;
                s.add_node_b(Role::Standby).life = Life::Silent;
                s.network_verdict.gateways.push("node-c".into());
                let mut c = says(vec![report("segment-b", Role::Standby, "5")]);
                c.words().networks[0].reason = reasons::INTERFACE_AMBIGUOUS.into();
                s.reports.insert("node-c".into(), c);
            },
            "Programmed=False/InterfaceAmbiguous Ready=False/InterfaceAmbiguous Stalled=True/InterfaceAmbiguous",
            "0/3 gateways have the fence up.",
        ),
        (
            "a standby is silent",
            |s| s.add_node_b(Role::Standby).life = Life::Silent,
            "Programmed=Unknown/GatewaySilent Ready=Unknown/GatewaySilent",
            "1/2 gateways have the fence up. The agent on node node-b has stopped reporting.",
        ),
        (
            "a selected node has no agent",
            |s| {
                s.add_node_b(Role::Standby);
                s.reports.remove("node-b");
            },
            "Programmed=False/WaitingForAgent Ready=False/WaitingForAgent Reconciling=True/WaitingForAgent",
            "1/2 gateways have the fence up. The agent on node node-b has never reported",
        ),
        (
            "nobody is selected",
            |s| s.network_verdict.gateways.clear(),
            "Programmed=False/NoGateway Ready=False/NoGateway Reconciling=True/NoGateway",
            "No node carries the labels of spec.gateway.nodeSelector.",
        ),
        (
            "the network is invalid",
            |s| s.network_verdict.accepted = Err(refuse(reasons::INVALID)),
            "Programmed=False/NotAccepted Ready=False/Invalid Stalled=True/Invalid",
            "must be otherwise",
        ),
    ];
    for (name, change, expected, message) in rows {
        let mut scene = Scene::well();
        change(&mut scene);
        let status = scene.network_status();
        assert_eq!(outcome(&status.conditions), *expected, "{name}");
        let ready = find(&status.conditions, types::READY).unwrap();
        assert!(ready.message.starts_with(message), "{name}: {}", ready.message);
    }
}

#[test]
fn a_network_whose_egress_is_limited_is_ready_and_says_so() {
    let mut scene = Scene::well();
    scene.network_verdict.accepted.as_mut().unwrap().egress_allowed = true;
    let status = scene.network_status();
    let limited = find(&status.conditions, types::EGRESS_LIMITED).unwrap();
    assert_eq!(
        (limited.status.as_str(), limited.reason.as_str()),
        ("True", reasons::SOURCE_ADDRESS_MISSING)
    );
    assert!(limited.message.contains("only machines with a 1:1 mapping"), "{}", limited.message);
    assert_eq!(find(&status.conditions, types::READY).unwrap().status, "True");
}

#[test]
fn a_silent_gateway_keeps_the_traffic_while_there_is_no_other() {
    let mut scene = Scene::well();
    scene.a().life = Life::Silent;
    assert_eq!(scene.network_status().active_gateway, Some(on("node-a")));
    assert_eq!(scene.mapping_status().gateway.as_deref(), Some("node-a"));
}

#[test]
fn a_node_that_is_selected_no_more_loses_the_traffic() {
    let mut scene = Scene::well();
    scene.network_verdict.gateways = vec!["node-z".into()];
    assert_eq!(scene.network_status().active_gateway, None);
    assert_eq!(scene.mapping_status().gateway, None);
}

#[test]
fn a_refused_network_has_no_gateway() {
    let mut scene = Scene::well();
    scene.network_verdict.accepted = Err(refuse(reasons::INVALID));
    assert_eq!(scene.network_status().active_gateway, None);
}

#[test]
fn nothing_changes_when_nothing_changed() {
    let mut scene = Scene::well();
    let first = scene.statuses();
    scene.mapping.status = first.mappings.values().next().cloned();
    scene.network.status = first.networks.values().next().cloned();
    // Later, and the agent reports what the controller's own writes made of the resource version.
    scene.second += 3600;
    scene.mapping.metadata.resource_version = Some("6".into());
    scene.observe();
    assert_eq!(scene.statuses(), first);
    scene.told().synced_resource_version = "6".into();
    assert_eq!(scene.statuses(), first);
}

#[test]
fn only_conditions_that_change_get_a_new_time() {
    let mut scene = Scene::well();
    let first = scene.mapping_status();
    scene.mapping.status = Some(first.clone());
    scene.second += 60;
    scene.a().life = Life::Silent;
    let second = scene.mapping_status();
    let time = |conditions: &[Condition], kind: &str| find(conditions, kind).unwrap().last_transition_time.0.as_second();
    assert_eq!(time(&second.conditions, types::ACCEPTED), time(&first.conditions, types::ACCEPTED));
    assert_eq!(time(&second.conditions, types::READY), time(&first.conditions, types::READY) + 60);
}

#[test]
fn without_resource_versions_one_local_report_is_enough() {
    let mut scene = Scene::well();
    scene.seen = Seen::default();
    scene.mapping.metadata.resource_version = None;
    scene.told().synced_resource_version = String::new();
    assert_eq!(
        outcome(&scene.mapping_status().conditions),
        "Programmed=True/Programmed Ready=True/Ready"
    );
}

#[test]
fn a_link_that_is_down_counts_on_the_gateway_that_attracts_the_traffic() {
    let mut scene = Scene::well();
    scene.add_node_b(Role::Standby).words().networks[0].reason = reasons::LINK_DOWN.into();
    assert_eq!(
        outcome(&scene.network_status().conditions),
        "Programmed=True/Programmed Ready=True/Ready"
    );
    scene.told().reason = reasons::LINK_DOWN.into();
    let status = scene.network_status();
    assert_eq!(
        outcome(&status.conditions),
        "Programmed=True/Programmed Ready=False/LinkDown Reconciling=True/LinkDown"
    );
    assert_eq!(status.active_gateway.unwrap().node, "node-a", "a cable is no reason to move");
}

#[test]
fn a_source_address_that_is_not_to_be_had_is_said_of_the_network_and_not_of_its_mappings() {
    for (reason, kind) in [
        (reasons::ADDRESS_IN_USE, "Reconciling"),
        (reasons::SOURCE_ADDRESS_UNUSABLE, "Stalled"),
    ] {
        let mut scene = Scene::well();
        scene.told().reason = reason.into();
        let said = outcome(&scene.network_status().conditions);
        assert_eq!(
            said,
            format!("Programmed=True/Programmed Ready=False/{reason} {kind}=True/{reason}")
        );
        let said = outcome(&scene.mapping_status().conditions);
        assert_eq!(said, "Programmed=True/Programmed Ready=True/Ready");
    }
}

#[test]
fn identifiers_are_written_as_given() {
    let mut scene = Scene::well();
    let isolation = Isolation { identifier: 7, zone: 7 };
    scene.isolation.insert("segment-b".into(), isolation);
    assert_eq!(scene.network_status().isolation, Some(isolation));
    scene.network_verdict.accepted = Err(refuse(reasons::INVALID));
    assert_eq!(
        scene.network_status().isolation,
        Some(isolation),
        "kept while the network is refused"
    );
}
