//! `GatewayNode`: what one node found, did and failed to do. Written by that node's agent only.
//!
//! The object stays small however many mappings there are: counts and "synced up to" instead of one entry a mapping.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the agent of one node found and did. Created and written by the agent; nothing here is for users to set.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[kube(
    group = "stagenet.dev",
    version = "v1alpha1",
    kind = "GatewayNode",
    plural = "gatewaynodes",
    shortname = "gwnode",
    category = "stagenet",
    status = "GatewayNodeStatus",
    derive = "PartialEq",
    printcolumn(name = "Backend", type_ = "string", json_path = ".status.backend"),
    printcolumn(name = "Networks", type_ = "string", json_path = ".status.networks[*].name"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct GatewayNodeSpec {}

/// A node's report.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayNodeStatus {
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Which iptables tool is used: nft or legacy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Ready (summary), and preflight findings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub conditions: Vec<Condition>,
    /// The node's interfaces that carry IPv4 addresses or that a network names, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub interfaces: Vec<InterfaceStatus>,
    /// One entry a network that this node serves or routes to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub networks: Vec<NetworkReport>,
    /// What could not be done, at most 32 entries, oldest names first; `failureCount` counts all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub failures: Vec<FailureReport>,
    /// How many mappings could not be programmed.
    #[serde(default)]
    pub failure_count: u32,
}

/// One interface.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// The kernel's index, which changes when the interface is made anew.
    pub index: u32,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether it is administratively up and has a carrier.
    pub up: bool,
    /// Its hardware address, empty for interfaces without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its IPv4 addresses with prefix length, those that stagenet added left out, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addresses: Vec<String>,
}

/// What a node does for a network.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Everything stands, and the node attracts the traffic.
    Active,
    /// Everything stands but what attracts traffic.
    Standby,
    /// The node has a route to the pool.
    Client,
}

/// How far a node is with a network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct NetworkReport {
    /// Name of the network.
    pub name: String,
    /// What the node does for it.
    pub role: Role,
    /// Generation of the network that the kernel reflects. 0: none yet.
    pub observed_generation: i64,
    /// Whether the fence stands, as read back from the kernel.
    pub fenced: bool,
    /// How many mappings of it were read back from the kernel.
    pub programmed: u32,
    /// Every change to mappings of this network up to this resource version is in the kernel, or in `failures`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub synced_resource_version: String,
    /// Why the network is not served, when it is not: a fixed reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The same for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// A mapping that could not be programmed.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct FailureReport {
    /// Namespace of the mapping.
    pub namespace: String,
    /// Name of the mapping.
    pub name: String,
    /// A fixed reason, such as `AddressInUse`.
    pub reason: String,
    /// What happened and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}
