//! `StagingNetwork`: one closed network, its gateway nodes and the pool of virtual addresses that may be claimed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A closed network and the gateway that makes chosen addresses in it reachable from outside.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "stagenet.dev",
    version = "v1alpha1",
    kind = "StagingNetwork",
    plural = "stagingnetworks",
    shortname = "snet",
    category = "stagenet",
    status = "StagingNetworkStatus",
    derive = "PartialEq",
    cel,
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.outside.addresses[*]"),
    printcolumn(name = "Inside", type_ = "string", json_path = ".spec.inside.addresses[*]"),
    printcolumn(name = "Gateway", type_ = "string", json_path = ".status.activeGateway.node"),
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
pub struct StagingNetworkSpec {
    /// Which nodes have one foot outside and one foot inside.
    pub gateway: Gateway,
    /// The side where clients are, and the virtual addresses that appear there.
    pub outside: Outside,
    /// The closed side, where the restored VMs are.
    pub inside: Inside,
    /// What a VM sees as the source of a connection that reaches it by a virtual address.
    /// Masquerade when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_translation: Option<SourceTranslation>,
    /// What may leave the closed network without having been asked for from outside. Nothing when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Production prefixes, such as 10.0.0.0/8: never claimable as virtual addresses and never reachable from inside, whatever else is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub protected: Vec<String>,
}

/// Which nodes serve a network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// Labels of the nodes that may serve this network. An empty selector selects every node.
    pub node_selector: LabelSelector,
}

/// The outside of a network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Outside {
    /// Name of the gateway's interface on the clients' segment, such as eth0. When omitted: the interface
    /// whose connected subnet covers `addresses` (names may differ between nodes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The pool: prefixes from which virtual addresses may be claimed, and nowhere else.
    pub addresses: Vec<String>,
    /// Whether the gateway answers ARP for claimed addresses. True when omitted; false where
    /// clients reach the pool by a route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<bool>,
    /// Nodes that get a route to the pool through the active gateway. None when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_routes: Option<ClientRoutes>,
}

/// Nodes that get a route to the pool.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientRoutes {
    /// Labels of these nodes. An empty selector selects every node. The gateway nodes themselves never get the route.
    pub node_selector: LabelSelector,
}

/// The inside of a network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Inside {
    /// Name of the gateway's interface in the closed network, such as eth1. When omitted: the interface
    /// whose connected subnet covers `addresses`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The closed network's own prefixes. Targets of mappings must lie in here.
    pub addresses: Vec<String>,
    /// Addresses that the active gateway answers for inside, usually production's own default gateway, so that
    /// restored VMs need no change of settings. They must lie in `addresses`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateway_addresses: Vec<String>,
}

/// What a VM sees as the source of a translated connection.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceTranslation {
    /// The gateway's inside address: works whatever routes the VM has.
    Masquerade,
    /// The client's own address: the VM's route back must lead to the gateway.
    Preserve,
}

/// What may leave the closed network by itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Egress {
    /// Deny: no new connection leaves. Allow: VMs with a mapping of all protocols may open connections and leave under their
    /// virtual address; protected prefixes and other closed networks stay out of reach, and VMs without such a mapping
    /// have no address outside and stay inside.
    pub default: EgressDefault,
    /// Whether denied packets are also sent to NFLOG group 5 (at most 5 a second). They are always counted. False when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<bool>,
}

/// The answer to a new connection from inside that no mapping covers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EgressDefault {
    /// Dropped and counted.
    Deny,
    /// Passes under the VM's virtual address.
    Allow,
}

/// What the operator found and did for a network. Written by the controller only.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StagingNetworkStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The node that attracts this network's traffic. Absent while there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_gateway: Option<ActiveGateway>,
    /// Accepted, Programmed, Ready, and Reconciling or Stalled while true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// The node that serves a network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct ActiveGateway {
    /// Name of the node.
    pub node: String,
    /// The node's own address on the outside segment: the next hop of client routes. Absent while its interface has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}
