//! `NatMapping`: one claim. This virtual address, or ports of it, leads to that target.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::network::SourceTranslation;

/// One claim: a virtual address outside leads to a target in a closed network.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "stagenet.dev",
    version = "v1alpha1",
    kind = "NatMapping",
    plural = "natmappings",
    shortname = "natmap",
    category = "stagenet",
    namespaced,
    status = "NatMappingStatus",
    derive = "PartialEq",
    selectable = ".spec.networkRef.name",
    cel,
    printcolumn(name = "Virtual", type_ = "string", json_path = ".spec.virtual.address"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target.address"),
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.networkRef.name"),
    printcolumn(name = "Gateway", type_ = "string", json_path = ".status.gateway"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NatMappingSpec {
    /// The network whose pool the virtual address comes from. Immutable.
    pub network_ref: NetworkRef,
    /// What appears outside.
    pub r#virtual: VirtualAddress,
    /// Where it leads.
    pub target: TargetAddress,
    /// The ports that lead to the target. When omitted, every protocol and port does, one to one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortMapping>,
    /// What the VM sees as the source. The network's setting when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_translation: Option<SourceTranslation>,
}

/// A reference to a `StagingNetwork`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct NetworkRef {
    /// Its name.
    pub name: String,
}

/// The address that appears outside.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct VirtualAddress {
    /// An IPv4 address of the network's pool that no host owns, such as 192.168.100.3.
    pub address: String,
}

/// The address that traffic is delivered to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TargetAddress {
    /// An IPv4 address in the network's inside prefixes, such as 192.168.200.3.
    pub address: String,
}

/// A port or a range of ports.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port at the virtual address, or the first of a range. 1 to 65535.
    pub port: u16,
    /// The last port of a range at the virtual address, inclusive. Just `port` when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_port: Option<u16>,
    /// The port at the target, or the first of a range of the same length. The same as `port` when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
}

/// A transport protocol with ports.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

/// What became of a claim. Written by the controller only.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NatMappingStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Name of the node that serves this mapping. Absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Accepted, `ResolvedRefs`, Programmed and Ready; Conflicted, Reconciling and Stalled only while true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}
