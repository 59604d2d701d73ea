//! Facts → conditions, row by row.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::*;
use crate::api::conditions::find;
use crate::api::gatewaynode::{FailureReport, GatewayNodeStatus, InterfaceStatus, NetworkReport, Role};
use crate::api::network::{ActiveGateway, SourceTranslation};
use crate::api::reasons::{self, types};
use crate::api::{NatMapping, StagingNetwork};
use crate::controller::gather;
use crate::controller::testing::{condition, gateway, mapping, network, report};
use crate::netfilter::IfName;
use crate::plan::validate::ValidNetwork;
use crate::plan::{Claim, MappingVerdict, NetworkVerdict};

/// One network `segment-b`, one mapping `default/vm03`, and gateways that say what a test wants.
struct Scene {
    network: StagingNetwork,
    mapping: NatMapping,
    network_verdict: NetworkVerdict,
    mapping_verdict: MappingVerdict,
    reports: Reports,
    seen: Seen,
    second: i64,
}

fn valid() -> ValidNetwork {
    ValidNetwork {
        created: None,
        name: "segment-b".into(),
        outside_interface: IfName::new("eth0"),
        pool: BTreeSet::from(["192.168.100.0/24".parse().unwrap()]),
        announce: true,
        inside_interface: IfName::new("eth1"),
        inside: BTreeSet::from(["192.168.200.0/24".parse().unwrap()]),
        gateway_addresses: BTreeSet::new(),
        source_translation: SourceTranslation::Masquerade,
        egress_allowed: false,
        log: false,
        protected: BTreeSet::new(),
    }
}

fn interface(name: &str, address: &str) -> InterfaceStatus {
    InterfaceStatus {
        name: name.into(),
        index: 1,
        mtu: 1500,
        up: true,
        mac: String::new(),
        addresses: vec![address.into()],
    }
}

fn says(networks: Vec<NetworkReport>) -> Report {
    Report {
        status: GatewayNodeStatus {
            interfaces: vec![interface("eth0", "192.168.100.2/24"), interface("eth1", "192.168.200.2/24")],
            networks,
            ..GatewayNodeStatus::default()
        },
        life: Life::Alive,
    }
}

fn on(node: &str) -> ActiveGateway {
    ActiveGateway {
        node: node.into(),
        address: Some("192.168.100.2".into()),
    }
}

impl Scene {
    /// Everything is as it should be: node-a serves, its kernel holds the mapping.
    fn well() -> Self {
        let mapping = mapping("default", "vm03");
        let mut seen = Seen::default();
        seen.observe([&mapping]);
        Self {
            network: network("segment-b"),
            network_verdict: NetworkVerdict {
                generation: 1,
                accepted: Ok(valid()),
                gateways: vec!["node-a".into()],
                active: Some(on("node-a")),
            },
            mapping_verdict: MappingVerdict {
                generation: 1,
                resource_version: "5".into(),
                network: "segment-b".into(),
                accepted: Ok(Claim {
                    created: None,
                    network: "segment-b".into(),
                    virtual_address: "192.168.100.3".parse().unwrap(),
                    target: "192.168.200.3".parse().unwrap(),
                    ports: vec![],
                    source_translation: SourceTranslation::Masquerade,
                }),
                resolved_refs: Ok(()),
                conflicted: false,
            },
            reports: BTreeMap::from([("node-a".to_owned(), says(vec![report("segment-b", Role::Active, "5")]))]),
            seen,
            mapping,
            second: 1_700_000_000,
        }
    }

    fn a(&mut self) -> &mut Report {
        self.reports.get_mut("node-a").unwrap()
    }

    fn told(&mut self) -> &mut NetworkReport {
        &mut self.a().status.networks[0]
    }

    fn add_node_b(&mut self, role: Role) -> &mut Report {
        self.network_verdict.gateways.push("node-b".into());
        self.reports
            .entry("node-b".into())
            .or_insert_with(|| says(vec![report("segment-b", role, "5")]))
    }

    fn statuses(&self) -> Statuses {
        let gateways: Vec<_> = self
            .reports
            .iter()
            .map(|(name, report)| {
                let mut object = gateway(name);
                object.status = Some(report.status.clone());
                object
            })
            .collect();
        let labels = self.reports.keys().map(|name| (name.clone(), BTreeMap::new())).collect();
        let world = gather::world(vec![self.network.clone()], vec![self.mapping.clone()], &gateways, labels);
        let verdicts = Verdicts {
            networks: BTreeMap::from([("segment-b".into(), self.network_verdict.clone())]),
            mappings: BTreeMap::from([(key(&self.mapping), self.mapping_verdict.clone())]),
        };
        aggregate(&Inputs {
            world: &world,
            verdicts: &verdicts,
            reports: &self.reports,
            seen: &self.seen,
            now: Timestamp::from_second(self.second).unwrap(),
        })
    }

    fn mapping_status(&self) -> crate::api::NatMappingStatus {
        self.statuses().mappings.remove(&key(&self.mapping)).unwrap()
    }

    fn network_status(&self) -> StagingNetworkStatus {
        self.statuses().networks.remove("segment-b").unwrap()
    }
}

/// `Type=Status/Reason` of every condition, in order.
fn row(conditions: &[Condition]) -> String {
    let words: Vec<String> = conditions
        .iter()
        .map(|c| format!("{}={}/{}", c.type_, c.status, c.reason))
        .collect();
    words.join(" ")
}

/// The part of the row that differs between the tests: Programmed and what follows.
fn outcome(conditions: &[Condition]) -> String {
    let row = row(conditions);
    row[row.find("Programmed").unwrap()..].to_owned()
}

fn refuse(reason: &'static str) -> Refusal {
    Refusal {
        reason,
        message: "must be otherwise".into(),
    }
}

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
            |s| s.a().status.networks.clear(),
            "Programmed=False/Pending Ready=False/Pending Reconciling=True/Pending",
        ),
        (
            "the agent says why the network is not served",
            |s| s.told().reason = reasons::INTERFACE_MISSING.into(),
            "Programmed=False/InterfaceMissing Ready=False/InterfaceMissing Reconciling=True/InterfaceMissing",
        ),
        (
            "the agent is behind because it has no tool",
            |s| {
                s.told().synced_resource_version = "4".into();
                s.a().status.conditions = vec![condition(types::READY, "False", reasons::TOOL_MISSING)];
            },
            "Programmed=False/ToolMissing Ready=False/ToolMissing Stalled=True/ToolMissing",
        ),
        (
            "the agent is behind and has trouble with other mappings",
            |s| {
                s.told().synced_resource_version = "4".into();
                s.a().status.conditions = vec![condition(types::READY, "False", reasons::DEGRADED)];
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
                s.seen.observe([&s.mapping]);
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

fn fail(scene: &mut Scene, namespace: &str, name: &str, count: u32) {
    scene.a().status.failures = vec![FailureReport {
        namespace: namespace.into(),
        name: name.into(),
        reason: reasons::ADDRESS_IN_USE.into(),
        message: "02:00:00:00:00:09 answers for 192.168.100.3".into(),
    }];
    scene.a().status.failure_count = count;
}

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
                let told = &mut s.add_node_b(Role::Standby).status.networks[0];
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
                c.status.networks[0].reason = reasons::INTERFACE_AMBIGUOUS.into();
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
    scene.seen.observe([&scene.mapping]);
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
