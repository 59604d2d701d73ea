//! `GatewayNode`: what one node found, did and failed to do. Written by that node's agent only.
//!
//! The object stays small however many mappings there are: counts and "synced up to" instead of one entry a mapping.

// The derived schemas live in private copies of the structs; doc comments are what `kubectl explain` prints, as it prints them; `printcolumn`s look alike.
#![allow(unreachable_pub, clippy::doc_markdown, clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Empty: there is nothing to ask of a node here.
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
    doc = "What the agent of one node found, did and failed to do, named as the node. Written by that agent only; nothing here is for people to set. \
           Made by the controller and owned by the Node, with which it goes. It can be deleted at any time: the controller makes it anew and the agent fills it, and the rules in the kernel do not depend on it.",
    printcolumn(name = "Backend", type_ = "string", json_path = ".status.backend"),
    printcolumn(name = "Failures", type_ = "integer", json_path = ".status.failureCount"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1
    ),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agentVersion", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct GatewayNodeSpec {}

/// A node's report.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayNodeStatus {
    /// Generation of the object that this status was written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub agent_version: Option<String>,
    /// Which variant of iptables is used on this node: nft or legacy. Absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub backend: Option<String>,
    /// Ready sums up; the others are preflight findings, made before the first rule is written: Permissions, Backend, Interfaces, ReversePathFilter and more.
    /// `docs/reasons.md` explains every type and reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The node's interfaces that carry addresses or that a network names, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub interfaces: Vec<InterfaceStatus>,
    /// Connection tracking helpers that the node's kernel has, such as ftp, sorted, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 16)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub helpers: Vec<String>,
    /// One entry a network that this node serves or routes to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub networks: Vec<NetworkReport>,
    /// What could not be done, or not wholly (`HelperMissing`), the first 32 by namespace and name; `failureCount` counts all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub failures: Vec<FailureReport>,
    /// How many mappings could not be programmed, or not wholly.
    #[serde(default)]
    #[schemars(schema_with = "count")]
    pub failure_count: u32,
    /// Mappings of networks that this node serves and that it refuses by what it knows, the first 32 by namespace and name; `refusedCount` counts all. The controller
    /// mostly refuses them too, and says why. One that it accepts is not Ready as long as it is in here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub refused: Vec<RefusedReport>,
    /// How many mappings this node refuses. 0 when absent.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "count")]
    pub refused_count: u32,
}

/// One interface.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    /// Its name.
    #[schemars(length(max = 15))]
    pub name: String,
    /// The kernel's index, which changes when the interface is made anew.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "count")]
    pub index: u32,
    /// Largest packet, in bytes.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "count")]
    pub mtu: u32,
    /// Whether it is administratively up and has a carrier.
    #[serde(default, skip_serializing_if = "is_false")]
    pub up: bool,
    /// Its hardware address, empty for interfaces without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub mac: String,
    /// Its IPv4 and IPv6 addresses with prefix length, link-local ones and those that stagenet added left out, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 49)))]
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
    #[schemars(length(max = 253))]
    pub name: String,
    /// What the node does for it.
    pub role: Role,
    /// `metadata.generation` of the network that the kernel reflects. Absent: none yet.
    #[serde(default, skip_serializing_if = "is_none_yet")]
    pub observed_generation: i64,
    /// Whether the fence stands, as read back from the kernel. False when absent.
    #[serde(default, skip_serializing_if = "is_false")]
    pub fenced: bool,
    /// How many mappings of it were read back from the kernel. 0 when absent.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "count")]
    pub programmed: u32,
    /// Every change to mappings of this network up to this resource version is in the kernel, or in `failures`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub synced_resource_version: String,
    /// Why the network is not served, when it is not, why no packet of it gets through (`LinkDown`), or why its source address is not used (`AddressInUse`, `SourceAddressUnusable`): a fixed reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub reason: String,
    /// The same for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// A mapping that a node refuses.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct RefusedReport {
    /// Namespace of the mapping.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the mapping.
    #[schemars(length(max = 253))]
    pub name: String,
    /// A fixed reason, such as `AddressOwnedByNode`.
    #[schemars(length(max = 64))]
    pub reason: String,
}

/// A mapping that could not be programmed, or not wholly.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct FailureReport {
    /// Namespace of the mapping.
    #[schemars(length(max = 63))]
    pub namespace: String,
    /// Name of the mapping.
    #[schemars(length(max = 253))]
    pub name: String,
    /// A fixed reason, such as `AddressInUse`.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What happened and what to do.
    #[schemars(length(max = 1024))]
    pub message: String,
}

fn count(_: &mut schemars::generate::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "integer", "format": "int64", "minimum": 0, "maximum": u32::MAX })
}

// serde calls these with a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_none_yet(value: &i64) -> bool {
    *value == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}
