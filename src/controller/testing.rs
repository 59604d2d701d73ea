//! Objects for the controller's unit tests.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;

use crate::api::gatewaynode::{GatewayNodeStatus, NetworkReport, Role};
use crate::api::mapping::{NetworkRef, TargetAddress, VirtualAddress};
use crate::api::network::{Gateway, Inside, Outside};
use crate::api::{GatewayNode, GatewayNodeSpec, NatMapping, NatMappingSpec, StagingNetwork, StagingNetworkSpec};

pub(crate) fn metadata(namespace: Option<&str>, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: namespace.map(Into::into),
        uid: Some(format!("uid-of-{name}")),
        generation: Some(1),
        resource_version: Some("5".into()),
        ..ObjectMeta::default()
    }
}

pub(crate) fn mapping(namespace: &str, name: &str) -> NatMapping {
    let spec = NatMappingSpec {
        network_ref: NetworkRef { name: "segment-b".into() },
        r#virtual: VirtualAddress {
            address: Some("192.168.100.3".into()),
            prefix: None,
        },
        target: TargetAddress {
            address: Some("192.168.200.3".into()),
            ..TargetAddress::default()
        },
        ports: vec![],
        side: None,
        helpers: vec![],
        source_translation: None,
    };
    NatMapping {
        metadata: metadata(Some(namespace), name),
        spec,
        status: None,
    }
}

pub(crate) fn network(name: &str) -> StagingNetwork {
    let spec = StagingNetworkSpec {
        gateway: Gateway {
            node_selector: LabelSelector::default(),
        },
        outside: Outside {
            interface: Some("eth0".into()),
            addresses: vec!["192.168.100.0/24".into()],
            announce: None,
            client_routes: None,
            source_address: None,
            source_address_ipv6: None,
        },
        inside: Inside {
            interface: Some("eth1".into()),
            addresses: vec!["192.168.200.0/24".into()],
            gateway_addresses: vec![],
            network_attachments: vec![],
        },
        source_translation: None,
        egress: None,
        protected: vec![],
        allowed_namespaces: None,
        allowed_helpers: vec![],
        clamp_mss: None,
    };
    StagingNetwork {
        metadata: metadata(None, name),
        spec,
        status: None,
    }
}

pub(crate) fn gateway(name: &str) -> GatewayNode {
    GatewayNode {
        metadata: metadata(None, name),
        spec: GatewayNodeSpec {},
        status: Some(GatewayNodeStatus::default()),
    }
}

pub(crate) fn report(network: &str, role: Role, synced: &str) -> NetworkReport {
    NetworkReport {
        name: network.into(),
        role,
        observed_generation: 1,
        fenced: true,
        programmed: 1,
        synced_resource_version: synced.into(),
        reason: String::new(),
        message: String::new(),
    }
}

pub(crate) fn condition(kind: &str, status: &str, reason: &str) -> Condition {
    Condition {
        type_: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message: String::new(),
        observed_generation: Some(1),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    }
}
