//! `NatMapping`: one claim. This virtual address, or ports of it, leads to that target.

// The derived schemas live in private copies of the structs; doc comments are what `kubectl explain` prints, as it prints them; `printcolumn`s look alike.
#![allow(unreachable_pub, clippy::doc_markdown, clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use super::helper::{HelperName, HelperUse};
use super::network::SourceTranslation;
use super::schema;

/// What is claimed, and where it leads.
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
    doc = "One claim: a virtual address outside, or ports of it, or a whole prefix, leads to a machine in a closed network, or to several. With side \
           Inside it is the other way round: a virtual address inside leads to a server outside. The address exists nowhere else: the network's \
           gateway answers for it and translates. Of two claims to the same address and port the older one stands. Deleting the mapping stops new and \
           open connections. `kubectl wait --for=condition=Ready natmapping/NAME` returns once the gateway that serves it has it in its kernel.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must be at most 63 characters long"),
    printcolumn(name = "Virtual", type_ = "string", json_path = ".spec.virtual.*"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.target..['address','prefix','name']"),
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
#[x_kube(
    validation = Rule::new(
        "has(self.virtual.address) == has(self.virtual.prefix) || has(self.target.address) == has(self.target.prefix) \
         || has(self.virtual.prefix) == has(self.target.prefix)"
    ).message("target must have what virtual has: both an address, or both a prefix"),
    validation = Rule::new("!has(self.virtual.address) || !has(self.target.address) || self.virtual.address != self.target.address")
        .message("target.address must differ from virtual.address: an address has one place"),
    validation = Rule::new("!has(self.virtual.prefix) || !has(self.target.prefix) || self.virtual.prefix != self.target.prefix")
        .message("target.prefix must differ from virtual.prefix: an address has one place"),
    validation = Rule::new(
        "!has(self.virtual.address) || !has(self.target.address) || !isIP(self.virtual.address) || !isIP(self.target.address) \
         || ip(self.virtual.address).family() == ip(self.target.address).family()"
    ).message("target.address must be of the family of virtual.address: IPv4 and IPv6 are not translated into each other"),
    validation = Rule::new(
        "!has(self.virtual.prefix) || !has(self.target.prefix) || !isCIDR(self.virtual.prefix) || !isCIDR(self.target.prefix) \
         || (cidr(self.virtual.prefix).ip().family() == cidr(self.target.prefix).ip().family() \
         && cidr(self.virtual.prefix).prefixLength() == cidr(self.target.prefix).prefixLength())"
    ).message("target.prefix must be of the family and length of virtual.prefix"),
    validation = Rule::new("!has(self.target.virtualMachineRef) || has(self.virtual.address) || !has(self.virtual.prefix)")
        .message("target.virtualMachineRef must stand beside virtual.address: it leads to one machine"),
    validation = Rule::new("!has(self.target.virtualMachineRef) || !has(self.side) || self.side != 'Inside'")
        .message("target.virtualMachineRef must not be given with side Inside: such a mapping leads to a server outside"),
    validation = Rule::new("!has(self.ports) || !has(self.virtual.prefix) || self.ports.all(p, !has(p.targetPort))")
        .message("ports must have no targetPort with virtual.prefix: a prefix keeps ports as they are"),
    validation = Rule::new(
        "!has(self.helpers) || !has(self.ports) || size(self.ports) == 0 || self.helpers.all(h, self.ports.exists(p, \
         p.port <= h.port && h.port <= (has(p.endPort) ? p.endPort : p.port) && (p.protocol == 'TCP' ? \
         h.name in ['ftp', 'h323', 'irc', 'pptp', 'sip'] : p.protocol == 'UDP' && h.name in ['amanda', 'h323', 'sip', 'snmp', 'tftp'])))"
    ).message("helpers must be at ports that the mapping has, in the protocol of the helper: TCP for ftp, irc and pptp, UDP for amanda, snmp and \
               tftp, either for h323 and sip"),
    validation = Rule::new(
        "!has(self.helpers) || self.helpers.all(h, h.name in ['amanda', 'ftp', 'sip', 'tftp']) \
         || (has(self.virtual.address) ? !isIP(self.virtual.address) || ip(self.virtual.address).family() == 4 \
         : !has(self.virtual.prefix) || !isCIDR(self.virtual.prefix) || cidr(self.virtual.prefix).ip().family() == 4)"
    ).message("helpers of an IPv6 mapping must be amanda, ftp, sip or tftp: the kernel has the others for IPv4 only"),
    validation = Rule::new("!has(self.side) || self.side != 'Inside' || !has(self.sourceTranslation)")
        .message("sourceTranslation must not be given with side Inside: machines always leave under an address outside")
)]
pub struct NatMappingSpec {
    /// The network whose pool the virtual address comes from and whose inside the target is in, or with side Inside the network that dials. Immutable: delete the mapping and create it anew to move it.
    #[x_kube(validation = Rule::new("self == oldSelf").message("is immutable: delete the mapping and create it anew"))]
    pub network_ref: NetworkRef,
    /// What is dialled: an address or a prefix.
    pub r#virtual: VirtualAddress,
    /// Where it leads: an address or a prefix, as in `virtual`, or a virtual machine by its name.
    pub target: TargetAddress,
    /// The ports that lead to the target, at most 64 entries; packets to other ports of the virtual address are dropped and counted. When omitted, every
    /// protocol and port leads there, ICMP too, one to one, and the machine's own connections leave under the virtual address where the network's `egress`
    /// lets them. Different mappings can claim different ports of one virtual address. A prefix keeps ports: no `targetPort` then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["protocol".into(), "port".into()]),
        validation = Rule::new(
            "self.all(p, size(self.filter(q, q.protocol == p.protocol && q.port <= (has(p.endPort) ? p.endPort : p.port) \
             && p.port <= (has(q.endPort) ? q.endPort : q.port))) <= 1)"
        ).message("must not overlap: each port of a protocol can lead to one place only")
    )]
    pub ports: Vec<PortMapping>,
    /// Who dials the virtual address. Outside: clients outside, to reach a machine in the closed network. Inside: the machines in the closed network, to
    /// reach a chosen server outside, such as a name server; they leave under the virtual address of their own mapping of all protocols or under the
    /// network's `outside.sourceAddress`, which must be set for this family. Outside when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::present::<Side>")]
    pub side: Option<Side>,
    /// Protocols whose further connections the kernel must follow, such as FTP at port 21, at most 16. Each must be among the network's
    /// `allowedHelpers`. If the gateway's kernel lacks one, the mapping works without it, and ResolvedRefs is False with reason HelperMissing.
    /// None when omitted. What TLS hides cannot be followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["name".into(), "port".into()]),
        validation = Rule::new("self.all(h, size(self.filter(q, q.port == h.port)) <= 1)")
            .message("must have one helper at a port: the kernel runs the first one only")
    )]
    pub helpers: Vec<HelperUse>,
    /// What the machine sees as the source of a connection. Masquerade: the gateway's own inside address. Preserve: the client's; the machine's route back
    /// must lead to the gateway. The network's `sourceTranslation` when omitted. Not with side Inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::present::<SourceTranslation>")]
    pub source_translation: Option<SourceTranslation>,
}

/// A reference to a `StagingNetwork`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct NetworkRef {
    /// Name of a StagingNetwork, at most 63 characters. It may be created later than the mapping.
    #[schemars(schema_with = "schema::network_name")]
    pub name: String,
}

/// What appears to those who dial: exactly one of `address` and `prefix`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("has(self.address) != has(self.prefix)").message("must have either address or prefix"))]
pub struct VirtualAddress {
    /// An IPv4 or IPv6 address that no host owns, such as 192.168.100.3 or 2001:db8:100::3. With side Outside it must lie in the network's pool, and the
    /// outside segment is asked whether somebody has it before it is taken; if so, it is not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::address")]
    pub address: Option<String>,
    /// A whole prefix, such as 192.168.100.0/26 or 2001:db8:100::/64: each of its addresses leads to the one at the same place in `target.prefix`. Two
    /// addresses or more, no wider than /8 (IPv4) or /32 (IPv6). Up to 256 addresses are announced one by one; a larger prefix needs a route to the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::claimed_prefix")]
    pub prefix: Option<String>,
}

impl VirtualAddress {
    /// The address or the prefix as it was written; empty if neither was.
    #[must_use]
    pub fn text(&self) -> &str {
        self.address.as_deref().or(self.prefix.as_deref()).unwrap_or_default()
    }
}

/// What traffic is delivered to: exactly one of `address`, `prefix` and `virtualMachineRef`. The first two as in `virtual`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.address), has(self.prefix), has(self.virtualMachineRef)].exists_one(given, given)")
    .message("must have exactly one of address, prefix and virtualMachineRef"))]
pub struct TargetAddress {
    /// The machine's own address, of the family of `virtual.address`, such as 192.168.200.3. With side Outside it must lie in the network's
    /// `inside.addresses`; with side Inside it must lie neither in these, nor in those of another network, nor in `protected`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::address")]
    pub address: Option<String>,
    /// A prefix of the family and length of `virtual.prefix`, such as 192.168.200.0/26.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::claimed_prefix")]
    pub prefix: Option<String>,
    /// A KubeVirt VirtualMachine in the mapping's own namespace. Traffic is delivered to the address that it reports, of the family of `virtual.address`,
    /// as long as that lies in the network's `inside.addresses`; see `status.target`. Not with `virtual.prefix`, nor with side Inside, nor without a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::present::<VirtualMachineRef>")]
    pub virtual_machine_ref: Option<Box<VirtualMachineRef>>,
}

impl TargetAddress {
    /// The address, the prefix or the machine's name as it was written; empty if none was.
    #[must_use]
    pub fn text(&self) -> &str {
        let machine = || self.virtual_machine_ref.as_ref().map(|machine| machine.name.as_str());
        self.address
            .as_deref()
            .or(self.prefix.as_deref())
            .or_else(machine)
            .unwrap_or_default()
    }
}

/// An interface of a KubeVirt VirtualMachine.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualMachineRef {
    /// Name of a VirtualMachine (kubevirt.io) in the mapping's namespace. It may be created later than the mapping.
    #[schemars(schema_with = "schema::machine_name")]
    pub name: String,
    /// Which of its interfaces: the name of the network in `spec.template.spec.networks` of the VirtualMachine, such as default.
    #[schemars(schema_with = "schema::machine_interface")]
    pub interface: String,
}

/// Who dials the virtual address.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Clients outside, to reach a machine in the closed network.
    #[default]
    Outside,
    /// Machines in the closed network, to reach a chosen server outside.
    Inside,
}

/// How clients find a claimed virtual address.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Announcement {
    /// The gateway answers ARP or neighbour discovery for each address.
    Neighbour,
    /// Clients need a route to the gateway.
    Route,
}

/// A port or a range of ports.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.endPort) || self.endPort >= self.port").message("endPort must be at least port"),
    validation = Rule::new("!has(self.targetPort) || self.targetPort + (has(self.endPort) ? self.endPort - self.port : 0) <= 65535")
        .message("targetPort must leave room for the whole range: its last port must be at most 65535")
)]
pub struct PortMapping {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port at the virtual address, or the first of a range. 1 to 65535.
    #[schemars(schema_with = "schema::port")]
    pub port: u16,
    /// The last port of a range at the virtual address, inclusive, 1 to 65535, at least `port`. Just `port` when omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::port")]
    pub end_port: Option<u16>,
    /// The port at the target, or the first of a range of the same length. 1 to 65535. The same as `port` when omitted. Not with `virtual.prefix`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::port")]
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
    #[schemars(length(max = 253))]
    pub gateway: Option<String>,
    /// How clients find the virtual address. Neighbour: the gateway answers ARP or neighbour discovery for each address. Route: it does not, because
    /// `virtual.prefix` has more than 256 addresses or the network's `outside.announce` is false; clients need a route to the gateway.
    /// Absent while the mapping is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announcement: Option<Announcement>,
    /// What was found out about `spec.target.virtualMachineRef`. Absent where the target is an address or a prefix, and while nothing was found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Box<MachineTarget>>,
    /// Accepted, ResolvedRefs, Programmed and Ready are always there; Conflicted, TargetOnOtherNetwork, Reconciling and Stalled only while true. `docs/reasons.md` explains
    /// every reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What is known of the virtual machine that a mapping leads to.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MachineTarget {
    /// Name of the VirtualMachine that this is about.
    #[schemars(length(max = 253))]
    pub virtual_machine: String,
    /// Name of its network that this is about.
    #[schemars(length(max = 63))]
    pub interface: String,
    /// The address that traffic is delivered to. Absent while there is none that may be used; ResolvedRefs says why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 45))]
    pub address: Option<String>,
    /// Reported: the running machine has this address now. Held: it has reported it last, and reports none now, because it is off or starting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<AddressState>,
    /// Who told KubeVirt of the address, as the VirtualMachineInstance says in `status.interfaces[].infoSource`: domain, guest-agent, multus-status, or
    /// several of them. What comes from the guest-agent is the machine's own word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub source: Option<String>,
    /// What the interface was attached to when the address was taken: NAMESPACE/NAME of a NetworkAttachmentDefinition, or `pod` for the cluster's own
    /// network. Where the network does not name its `inside.networkAttachments`, an interface that is attached to another one later has left the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 320))]
    pub attachment: Option<String>,
}

impl MachineTarget {
    /// Whether this is about what `machine` names.
    #[must_use]
    pub fn is_of(&self, machine: &VirtualMachineRef) -> bool {
        self.virtual_machine == machine.name && self.interface == machine.interface
    }
}

/// How fresh a machine's address is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressState {
    /// The running machine has it now.
    Reported,
    /// It was the last one; none is reported now.
    Held,
}
