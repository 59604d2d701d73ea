//! Facts → conditions, row by row.
#![allow(clippy::unwrap_used)]

mod machine;
mod mapping;
mod memory;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::*;
use crate::api::gatewaynode::{FailureReport, GatewayNodeStatus, InterfaceStatus, NetworkReport, Role};
use crate::api::mapping::Side;
use crate::api::network::{ActiveGateway, SourceTranslation};
use crate::api::{GatewayNode, NatMapping, StagingNetwork, reasons};
use crate::controller::gather;
use crate::controller::testing::{gateway, mapping, network, report};
use crate::netfilter::IfName;
use crate::plan::validate::ValidNetwork;
use crate::plan::{Borrowed, Claim, MappingVerdict, NetworkVerdict};

/// One network `segment-b`, one mapping `default/vm03`, and gateways that say what a test wants.
struct Scene {
    machines: Resolutions,
    network: StagingNetwork,
    mapping: NatMapping,
    network_verdict: NetworkVerdict,
    mapping_verdict: MappingVerdict,
    reports: Reports,
    isolation: BTreeMap<String, Isolation>,
    seen: Seen,
    second: i64,
}

fn valid() -> ValidNetwork {
    ValidNetwork {
        created: None,
        name: "segment-b".into(),
        outside_interface: IfName::new("eth0"),
        pool: BTreeSet::from(["192.168.100.0/24".parse().unwrap()]),
        source_addresses: BTreeMap::new(),
        announce: true,
        inside_interface: IfName::new("eth1"),
        inside: BTreeSet::from(["192.168.200.0/24".parse().unwrap()]),
        gateway_addresses: BTreeSet::new(),
        attachments: BTreeSet::new(),
        source_translation: SourceTranslation::Masquerade,
        egress_allowed: false,
        egress: vec![],
        allowed_namespaces: None,
        helpers: BTreeSet::new(),
        clamp_mss: false,
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
        status: Arc::new(GatewayNodeStatus {
            interfaces: vec![interface("eth0", "192.168.100.2/24"), interface("eth1", "192.168.200.2/24")],
            networks,
            ..GatewayNodeStatus::default()
        }),
        life: Life::Alive,
    }
}

impl Report {
    fn words(&mut self) -> &mut GatewayNodeStatus {
        Arc::make_mut(&mut self.status)
    }
}

fn on(node: &str) -> ActiveGateway {
    ActiveGateway {
        node: node.into(),
        address: Some("192.168.100.2".into()),
        address_ipv6: None,
    }
}

/// The objects that bear these reports.
fn gateways(reports: &Reports) -> Vec<Arc<GatewayNode>> {
    let one = |(name, report): (&String, &Report)| {
        let mut object = gateway(name);
        object.status = Some(GatewayNodeStatus::clone(&report.status));
        Arc::new(object)
    };
    reports.iter().map(one).collect()
}

impl Scene {
    /// Everything is as it should be: node-a serves, its kernel holds the mapping.
    fn well() -> Self {
        let mapping = mapping("default", "vm03");
        let mut seen = Seen::default();
        seen.observe(&[Arc::new(mapping.clone())]);
        Self {
            machines: Resolutions::new(),
            network: network("segment-b"),
            network_verdict: NetworkVerdict {
                generation: 1,
                accepted: Ok(valid()),
                isolation: None,
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
                    side: Side::Outside,
                    virtual_prefix: "192.168.100.3/32".parse().unwrap(),
                    target: "192.168.200.3/32".parse().unwrap(),
                    ports: vec![],
                    helpers: vec![],
                    source_translation: SourceTranslation::Masquerade,
                }),
                resolved_refs: Ok(()),
                waiting: None,
                conflicted: false,
            },
            reports: BTreeMap::from([("node-a".to_owned(), says(vec![report("segment-b", Role::Active, "5")]))]),
            seen,
            isolation: BTreeMap::new(),
            mapping,
            second: 1_700_000_000,
        }
    }

    /// The controller sees the mapping as it is now.
    fn observe(&mut self) {
        self.seen.observe(&[Arc::new(self.mapping.clone())]);
    }

    fn a(&mut self) -> &mut Report {
        self.reports.get_mut("node-a").unwrap()
    }

    fn told(&mut self) -> &mut NetworkReport {
        &mut self.a().words().networks[0]
    }

    fn add_node_b(&mut self, role: Role) -> &mut Report {
        self.network_verdict.gateways.push("node-b".into());
        self.reports
            .entry("node-b".into())
            .or_insert_with(|| says(vec![report("segment-b", role, "5")]))
    }

    fn statuses(&self) -> Statuses {
        let gateways = gateways(&self.reports);
        let labels = self.reports.keys().map(|name| (name.clone(), BTreeMap::new())).collect();
        let nodes = gather::Memory::default().nodes(&gateways, &labels);
        let world = View {
            networks: Borrowed::Owned(std::slice::from_ref(&self.network)),
            mappings: Borrowed::Owned(std::slice::from_ref(&self.mapping)),
            nodes: Borrowed::Shared(&nodes),
            namespaces: &Arc::default(),
        };
        let verdicts = Verdicts {
            networks: BTreeMap::from([("segment-b".into(), self.network_verdict.clone())]),
            mappings: BTreeMap::from([(key(&self.mapping), self.mapping_verdict.clone().into())]).into(),
        };
        aggregate(&Inputs {
            world,
            verdicts: &verdicts,
            isolation: &self.isolation,
            api_server: &BTreeSet::new(),
            reports: &self.reports,
            machines: &self.machines,
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

fn fail(scene: &mut Scene, namespace: &str, name: &str, count: u32) {
    scene.a().words().failures = vec![FailureReport {
        namespace: namespace.into(),
        name: name.into(),
        reason: reasons::ADDRESS_IN_USE.into(),
        message: "02:00:00:00:00:09 answers for 192.168.100.3".into(),
    }];
    scene.a().words().failure_count = count;
}
