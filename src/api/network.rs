//! `StagingNetwork`: one closed network, its gateway nodes and the pool of virtual addresses that may be claimed.

// The derived schemas live in private copies of the structs; doc comments are what `kubectl explain` prints, as it prints them; `printcolumn`s look alike.
#![allow(unreachable_pub, clippy::doc_markdown, clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::helper::HelperName;
use super::mapping::Protocol;
use super::schema;

/// What a closed network is made of: its gateway nodes, its two sides, and what may pass between them.
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
    doc = "A closed network with restored copies of production machines in it, and the gateway that makes chosen ones of them reachable from outside. \
           Nothing leaves or enters the network but what a NatMapping or `egress` lets through: as soon as the network exists, a fence stands around \
           it on every gateway node, and what the fence drops is counted. Deleting the network takes its mappings out of service and its fence down.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters long"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.outside.addresses"),
    printcolumn(name = "Inside", type_ = "string", json_path = ".spec.inside.addresses"),
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
#[x_kube(
    validation = Rule::new(
        "self.outside.addresses.all(p, !isCIDR(p) || self.inside.addresses.all(q, !isCIDR(q) || \
         (!cidr(p).containsCIDR(q) && !cidr(q).containsCIDR(p))))"
    ).message("outside.addresses must not overlap inside.addresses: a virtual address must not exist inside"),
    validation = Rule::new(
        "!has(self.protected) || self.outside.addresses.all(p, !isCIDR(p) || self.protected.all(q, !isCIDR(q) || !cidr(q).containsCIDR(p)))"
    ).message("outside.addresses must have no prefix that lies wholly in a protected one: nothing of it could ever be claimed"),
    validation = Rule::new(
        "self.inside.addresses.all(p, !isCIDR(p) || ((!has(self.outside.sourceAddress) || !isIP(self.outside.sourceAddress) || \
         !cidr(p).containsIP(self.outside.sourceAddress)) && (!has(self.outside.sourceAddressIPv6) || !isIP(self.outside.sourceAddressIPv6) || \
         !cidr(p).containsIP(self.outside.sourceAddressIPv6))))"
    ).message("outside.sourceAddress must not lie in inside.addresses: answers from outside could not find it"),
    validation = Rule::new(
        "!has(self.protected) || !has(self.egress) || !has(self.egress.allow) || self.egress.allow.all(r, !isCIDR(r.to) || \
         self.protected.all(q, !isCIDR(q) || !cidr(q).containsCIDR(r.to)))"
    ).message("egress.allow must have no prefix that lies wholly in a protected one: nothing of it could ever be reached"),
    validation = Rule::new(
        "!has(self.outside.interface) || !has(self.inside.interface) || self.outside.interface != self.inside.interface"
    ).message("inside.interface must differ from outside.interface: there would be no fence between the two sides")
)]
pub struct StagingNetworkSpec {
    /// Which nodes have one foot outside and one foot inside.
    pub gateway: Gateway,
    /// The side where clients are, and the virtual addresses that appear there.
    pub outside: Outside,
    /// The closed side, where the restored machines are.
    pub inside: Inside,
    /// What a restored machine sees as the source of a connection that reaches it by a virtual address. Masquerade: the gateway's own inside address, which
    /// works whatever routes the machine has, but its logs do not show who dialled. Preserve: the client's own address; the machine's route back must lead
    /// to the gateway, for which `inside.gatewayAddresses` is one way. Masquerade when omitted. A mapping can say otherwise for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::present::<SourceTranslation>")]
    pub source_translation: Option<SourceTranslation>,
    /// What may leave the closed network without having been asked for from outside. Nothing when omitted. Answers to connections that came in by a
    /// mapping always pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::present::<Egress>")]
    pub egress: Option<Egress>,
    /// Production prefixes, such as 10.0.0.0/8 or fd00::/8, without host bits, at most 256: never claimable as virtual addresses and never reachable from inside, whatever
    /// else is said. They may cover the inside prefixes, which are a copy of production after all. Nothing is protected when omitted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::any_prefixes")]
    pub protected: Vec<String>,
    /// Which namespaces' mappings may claim from this network. All when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::present::<AllowedNamespaces>")]
    pub allowed_namespaces: Option<AllowedNamespaces>,
    /// Helpers that mappings of this network may ask for: amanda, ftp, h323, irc, pptp, sip, snmp, tftp. None when omitted: a helper opens ports that the
    /// peers agree on between themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::helper_names")]
    pub allowed_helpers: Vec<HelperName>,
    /// Whether the gateway lowers the segment size (MSS) of new TCP connections to what the path's MTU takes. Useful where ICMP errors get lost between
    /// clients and the gateway; they are translated and passed in any case. False when omitted.
    #[serde(default, rename = "clampMSS", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::present::<bool>")]
    pub clamp_mss: Option<bool>,
}

impl StagingNetwork {
    /// Whether labels of namespaces decide who may claim.
    pub fn selects_namespaces(&self) -> bool {
        let from = self.spec.allowed_namespaces.as_ref().map(|allowed| allowed.from);
        from == Some(NamespacesFrom::Selector)
    }
}

/// Which namespaces may claim from a network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(
    validation = Rule::new("(self.from == 'Selector') == has(self.selector)")
        .message("selector must be given with from Selector, and only then")
)]
pub struct AllowedNamespaces {
    /// All: every namespace. Selector: those whose labels `selector` matches, at any time: mappings of a namespace that loses its labels lose what they claimed,
    /// with their open connections.
    pub from: NamespacesFrom,
    /// Labels of the namespaces that may claim. Every namespace has the label kubernetes.io/metadata.name, so it can be selected by its name. Whoever may label
    /// namespaces decides who may claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::namespace_selector")]
    pub selector: Option<LabelSelector>,
}

/// How the namespaces that may claim are named.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamespacesFrom {
    /// Every namespace.
    All,
    /// Those that a selector matches.
    Selector,
}

/// Which nodes serve a network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// Labels of the nodes that may serve this network. All matching nodes have everything ready, one of them attracts the traffic: see
    /// `status.activeGateway`. An empty selector, `{}`, selects every node.
    #[schemars(schema_with = "schema::label_selector")]
    pub node_selector: LabelSelector,
}

/// The outside of a network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.sourceAddressIPv6) || (has(self.sourceAddress) && (!isIP(self.sourceAddress) || ip(self.sourceAddress).family() == 4))"
    ).message("sourceAddressIPv6 must stand beside an IPv4 sourceAddress: without one, write it as sourceAddress")
)]
pub struct Outside {
    /// Name of the gateway's interface on the clients' segment, such as eth0, at most 15 characters. When omitted: the one interface whose connected
    /// subnet covers `addresses`, whatever its name on each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::interface")]
    pub interface: Option<String>,
    /// The pool: IPv4 and IPv6 prefixes from which virtual addresses may be claimed, and nowhere else, such as 192.168.100.0/24 or 2001:db8:100::/64.
    /// Without host bits, no wider than /8 (IPv4) or /32 (IPv6), at most 64. Addresses in it that hosts own or that nobody claims are left alone.
    #[schemars(schema_with = "schema::host_prefixes")]
    pub addresses: Vec<String>,
    /// Whether the active gateway answers ARP and neighbour discovery for claimed addresses, so that clients on its outside segment reach them without
    /// any route. A claimed prefix of more than 256 addresses is never announced so: its clients need a route, see `status.announcement` of the mapping.
    /// True when omitted. False where clients reach the pool by a route to the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::present::<bool>")]
    pub announce: Option<bool>,
    /// Nodes that get a route to the pool through the active gateway. None when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::present::<ClientRoutes>")]
    pub client_routes: Option<ClientRoutes>,
    /// The address, IPv4 or IPv6, under which machines without a mapping of all protocols leave the network, where `egress` or a mapping of side Inside
    /// lets them. It must not lie in `inside.addresses`. When omitted, such machines stay inside (condition EgressLimited says so where `egress` lets something out),
    /// and mappings of side Inside are not accepted (SourceAddressMissing).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::address")]
    pub source_address: Option<String>,
    /// The same for IPv6 in a network of both families, whose `sourceAddress` is an IPv4 address. When omitted, machines without a mapping of all
    /// protocols do not leave over IPv6.
    #[serde(default, rename = "sourceAddressIPv6", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ipv6_address")]
    pub source_address_ipv6: Option<String>,
}

/// Nodes that get a route to the pool.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ClientRoutes {
    /// Labels of these nodes. An empty selector, `{}`, selects every node. The gateway nodes themselves never get the route.
    #[schemars(schema_with = "schema::label_selector")]
    pub node_selector: LabelSelector,
}

/// The inside of a network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.gatewayAddresses) || self.gatewayAddresses.all(a, !isIP(a) || self.addresses.exists(p, isCIDR(p) && cidr(p).containsIP(a)))"
    ).message("gatewayAddresses must lie in inside.addresses")
)]
pub struct Inside {
    /// Name of the gateway's interface in the closed network, such as eth1, at most 15 characters. When omitted: the one interface whose connected
    /// subnet covers `addresses`. The fence stands around this interface, so it must lead nowhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::interface")]
    pub interface: Option<String>,
    /// The closed network's own IPv4 and IPv6 prefixes, such as 192.168.200.0/24 or 2001:db8:200::/64. Targets of mappings must lie in here, those of side
    /// Inside must not. Without host bits, no wider than /8 (IPv4) or /32 (IPv6), at most 64. Several networks can have the same ones: clones.
    #[schemars(schema_with = "schema::host_prefixes")]
    pub addresses: Vec<String>,
    /// Addresses that the active gateway answers for inside, usually that of production's own default gateway, such as 192.168.200.254, so that restored
    /// machines need no change of settings. They must lie in `addresses`, at most 16. The gateway sends no IPv6 router advertisements. None when omitted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::gateway_addresses")]
    pub gateway_addresses: Vec<String>,
    /// The NetworkAttachmentDefinitions that lead into the closed network, each as NAMESPACE/NAME, at most 64. Mappings that name a virtual machine lead to an
    /// interface only while it is attached to one of them. When omitted: to whatever an interface was attached to when its address was first taken, so that only a
    /// later change is noticed. Nothing else is made of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::network_attachments")]
    pub network_attachments: Vec<String>,
}

/// What a restored machine sees as the source of a translated connection.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceTranslation {
    /// The gateway's inside address: works whatever routes the machine has.
    Masquerade,
    /// The client's own address: the machine's route back must lead to the gateway.
    Preserve,
}

/// What may leave the closed network by itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.default == 'Deny' || !has(self.allow) || size(self.allow) == 0")
        .message("allow must be given with default Deny only: beside Allow it would restrict nothing")
)]
pub struct Egress {
    /// The answer to a new connection from inside to outside. Deny: it is dropped and counted, unless `allow` or a mapping of side Inside lets it through.
    /// Allow: it passes. Machines with a mapping of all protocols leave under their virtual address, the others under `outside.sourceAddress`; without one
    /// they stay inside, and the condition EgressLimited says so. Protected prefixes and other closed networks are out of reach in any case.
    pub default: EgressDefault,
    /// Whether denied packets are also sent to NFLOG group 5, at most 5 a second for each network and direction. They are always counted. False when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::present::<bool>")]
    pub log: Option<bool>,
    /// What may be reached from inside although `default` is Deny, at most 64 entries: only then can it be given. Nothing of `protected` is let through.
    /// Machines leave under the same addresses as with Allow: those without a mapping of all protocols need `outside.sourceAddress` of the family. Nothing when omitted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub allow: Vec<EgressRule>,
}

/// Something outside that may be reached from inside.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    /// A prefix outside, IPv4 or IPv6, such as 192.0.2.0/24, or 192.0.2.53/32 for one server. Without host bits.
    #[schemars(schema_with = "schema::any_prefix")]
    pub to: String,
    /// The ports there, at most 64. Every protocol and port when omitted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ports: Vec<EgressPort>,
}

/// A port or a range of ports outside.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.endPort) || self.endPort >= self.port").message("endPort must be at least port")
)]
pub struct EgressPort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port, or the first of a range. 1 to 65535.
    #[schemars(schema_with = "schema::port")]
    pub port: u16,
    /// The last port of a range, inclusive, 1 to 65535, at least `port`. Just `port` when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::port")]
    pub end_port: Option<u16>,
}

/// The answer to a new connection from inside that no mapping covers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EgressDefault {
    /// Dropped and counted.
    Deny,
    /// Passes under an address outside.
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
    /// What tells this network's flows from those of others on a gateway node. Present once it shared one with a network whose inside prefixes overlap its
    /// own, and kept for its life. Taking it away breaks the network's open connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
    /// Addresses of the cluster's API server that the controller knows of. No mapping may claim them or lead there from inside. One that the API server is no longer
    /// heard of under stays for an hour.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::plain_addresses")]
    pub api_server_addresses: Vec<String>,
    /// Accepted, Programmed and Ready are always there; EgressLimited, Reconciling or Stalled only while true. `docs/reasons.md` explains every reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What tells the flows of networks with overlapping inside prefixes apart.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isolation {
    /// Number of the network, no other has it: its firewall mark and its routing table are made of it. 1 to 16383.
    #[schemars(schema_with = "schema::isolation_identifier")]
    pub identifier: u32,
    /// Connection tracking zone: `identifier`, or 0 for the network that was there first, whose flows were not disturbed. 0 to 16383.
    #[schemars(schema_with = "schema::isolation_zone")]
    pub zone: u16,
}

/// The node that serves a network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct ActiveGateway {
    /// Name of the node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// The node's own IPv4 address on the outside segment: the next hop of client routes to the pool's IPv4 prefixes. Absent while its interface has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub address: Option<String>,
    /// The same in IPv6, for the pool's IPv6 prefixes. Never a link-local address.
    #[serde(default, rename = "addressIPv6", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub address_ipv6: Option<String>,
}
