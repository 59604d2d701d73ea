//! From strings to values: the only place that looks at a raw spec. All problems of an object are found, not just the first.
//!
//! Nothing is taken on trust: an object may have been stored while the API server's validation was off, and a file never went through it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::fields::machine_address;
use super::selector::{self, Selector};
use super::values::{host_address, interface, label, prefix, quote, subdomain, unusable};
use super::verdict::{ClaimedPorts, Refusal};
use crate::api::helper::HelperName;
use crate::api::mapping::{Side, VirtualMachineRef};
use crate::api::network::{EgressDefault, SourceTranslation};
use crate::api::schema::{ATTACHMENTS_MAX, GATEWAY_ADDRESSES_MAX, PREFIXES_MAX, PROTECTED_MAX};
use crate::api::{NatMapping, StagingNetwork, reasons};
use crate::netfilter::{Family, IfName, PortRange, Transport};

/// What [`subdomain`] wants.
const NAME: &str = "1 to 63 lower-case letters, digits, '-' and '.', the first and last a letter or digit";
/// Problems that are spelled out in one message; the rest is counted.
const PROBLEMS_SHOWN: usize = 8;

/// The widest pool or inside prefix, by family.
fn widest(net: IpNet) -> u8 {
    match net {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 32,
    }
}

/// A network that passed validation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // each is a switch that people set
pub struct ValidNetwork {
    /// Its name.
    pub name: String,
    /// `metadata.creationTimestamp`; None sorts as oldest.
    pub created: Option<Timestamp>,
    /// The outside interface as named; None: found by subnet.
    pub outside_interface: Option<IfName>,
    /// The pool. Sorted.
    pub pool: BTreeSet<IpNet>,
    /// Under which addresses those inside leave that have no virtual address of their own. At most one a family.
    pub source_addresses: BTreeMap<Family, IpAddr>,
    /// Whether claimed addresses are announced.
    pub announce: bool,
    /// The inside interface as named; None: found by subnet.
    pub inside_interface: Option<IfName>,
    /// Inside prefixes. Sorted.
    pub inside: BTreeSet<IpNet>,
    /// Addresses that the active gateway answers for inside. Sorted.
    pub gateway_addresses: BTreeSet<IpAddr>,
    /// Network attachments that lead inside, as NAMESPACE/NAME. Empty: not said.
    pub attachments: BTreeSet<String>,
    /// Default for mappings.
    pub source_translation: SourceTranslation,
    /// Whether everything may leave that has an address to leave under.
    pub egress_allowed: bool,
    /// What may leave all the same.
    pub egress: Vec<EgressTo>,
    /// Which namespaces may claim, by their labels. None: all.
    pub allowed_namespaces: Option<Selector>,
    /// Helpers that mappings may ask for.
    pub helpers: BTreeSet<HelperName>,
    /// Whether TCP segments are clamped to the path's MTU.
    pub clamp_mss: bool,
    /// Whether denied packets go to NFLOG.
    pub log: bool,
    /// Production prefixes. Sorted.
    pub protected: BTreeSet<IpNet>,
}

impl ValidNetwork {
    /// The pool's prefixes of one family.
    pub fn pool_of(&self, family: Family) -> impl Iterator<Item = IpNet> + '_ {
        of_family(&self.pool, family)
    }

    /// The inside prefixes of one family.
    pub fn inside_of(&self, family: Family) -> impl Iterator<Item = IpNet> + '_ {
        of_family(&self.inside, family)
    }

    /// Whether an address inside may be met under `address` by the rules: whether a prefix covers it.
    pub fn covers_inside(&self, prefix: &IpNet) -> bool {
        self.inside.iter().any(|inside| inside.contains(prefix))
    }
}

fn of_family(prefixes: &BTreeSet<IpNet>, family: Family) -> impl Iterator<Item = IpNet> + '_ {
    prefixes.iter().copied().filter(move |prefix| Family::of_net(prefix) == family)
}

/// Something that may leave a network untranslated in its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressTo {
    /// Where to.
    pub to: IpNet,
    /// Empty: every protocol. Sorted.
    pub ports: Vec<(Transport, PortRange)>,
}

/// A helper at a port of a virtual address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClaimedHelper {
    /// The protocol.
    pub name: HelperName,
    /// The port at the virtual address.
    pub port: PortRange,
}

/// A mapping that is well-formed by itself; whether its claim stands is for [`super::judge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidMapping {
    /// Who dials.
    pub side: Side,
    /// What is dialled: a single address is a prefix of full length.
    pub virtual_prefix: IpNet,
    /// Where it leads, as long as [`Self::virtual_prefix`]. None: to a virtual machine of which no address is known.
    pub target: Option<IpNet>,
    /// The virtual machine that it names.
    pub machine: Option<VirtualMachineRef>,
    /// Empty: every protocol. Sorted, disjoint.
    pub ports: Vec<ClaimedPorts>,
    /// Sorted.
    pub helpers: Vec<ClaimedHelper>,
    /// The mapping's own setting.
    pub source_translation: Option<SourceTranslation>,
}

impl ValidMapping {
    /// The field that says where it leads.
    pub(super) fn target_field(&self) -> &'static str {
        if self.machine.is_some() { "status.target" } else { "spec.target" }
    }
}

/// Checks everything that can be said of a network by itself.
pub fn network(raw: &StagingNetwork) -> Result<ValidNetwork, Refusal> {
    let mut p = Problems::default();
    let spec = &raw.spec;
    let name = raw.metadata.name.clone().unwrap_or_default();
    p.name("metadata.name", &name, subdomain(&name), NAME);
    p.selector("spec.gateway.nodeSelector", &spec.gateway.node_selector);
    if let Some(routes) = &spec.outside.client_routes {
        p.selector("spec.outside.clientRoutes.nodeSelector", &routes.node_selector);
    }
    let outside_interface = p.interface("spec.outside.interface", spec.outside.interface.as_deref());
    let inside_interface = p.interface("spec.inside.interface", spec.inside.interface.as_deref());
    if outside_interface.is_some() && outside_interface == inside_interface {
        p.add("spec.inside.interface must not be the outside interface: there would be no fence between the two");
    }
    let pool = p.prefixes("spec.outside.addresses", &spec.outside.addresses, Use::Routed);
    let inside = p.prefixes("spec.inside.addresses", &spec.inside.addresses, Use::Routed);
    let protected = p.prefixes("spec.protected", &spec.protected, Use::Protected);
    if let Some((a, b)) = pool
        .iter()
        .flat_map(|a| inside.iter().map(move |b| (a, b)))
        .find(|(a, b)| a.contains(*b) || b.contains(*a))
    {
        p.add(format!(
            "spec.outside.addresses must not overlap spec.inside.addresses: {a} and {b} share addresses"
        ));
    }
    if let Some((a, b)) = pool.iter().find_map(|a| protected.iter().find(|b| b.contains(a)).map(|b| (a, b))) {
        p.add(format!(
            "spec.outside.addresses must have no prefix that is wholly protected, nothing of it could be claimed: {a} lies in {b}"
        ));
    }
    let gateway_addresses = p.gateway_addresses(&spec.inside.gateway_addresses, &inside);
    let source_addresses = p.source_addresses(&spec.outside, &inside);
    p.length(
        "spec.inside.networkAttachments",
        spec.inside.network_attachments.len(),
        0,
        ATTACHMENTS_MAX,
    );
    let (egress_allowed, log, egress) = match &spec.egress {
        Some(egress) => (
            egress.default == EgressDefault::Allow,
            egress.log.unwrap_or(false),
            p.egress(&egress.allow),
        ),
        None => (false, false, Vec::new()),
    };
    let allowed_namespaces = spec.allowed_namespaces.as_ref().and_then(|allowed| p.allowed_namespaces(allowed));
    p.finish(ValidNetwork {
        name,
        created: raw.metadata.creation_timestamp.as_ref().map(|t| t.0),
        outside_interface,
        pool,
        source_addresses,
        announce: spec.outside.announce.unwrap_or(true),
        inside_interface,
        inside,
        gateway_addresses,
        attachments: spec.inside.network_attachments.iter().cloned().collect(),
        source_translation: spec.source_translation.unwrap_or(SourceTranslation::Masquerade),
        egress_allowed,
        egress,
        allowed_namespaces,
        helpers: spec.allowed_helpers.iter().copied().collect(),
        clamp_mss: spec.clamp_mss.unwrap_or(false),
        log,
        protected,
    })
}

/// Checks everything that can be said of a mapping by itself.
pub fn mapping(raw: &NatMapping) -> Result<ValidMapping, Refusal> {
    let mut p = Problems::default();
    let spec = &raw.spec;
    let name = raw.metadata.name.as_deref().unwrap_or_default();
    p.name("metadata.name", name, subdomain(name), NAME);
    let namespace = raw.metadata.namespace.as_deref().unwrap_or("default");
    p.name(
        "metadata.namespace",
        namespace,
        label(namespace),
        "a DNS label (RFC 1123) of at most 63 characters",
    );
    let network = &spec.network_ref.name;
    p.name("spec.networkRef.name", network, subdomain(network), NAME);
    let virtual_prefix = p.end("spec.virtual", spec.r#virtual.address.as_deref(), spec.r#virtual.prefix.as_deref());
    let machine = spec.target.virtual_machine_ref.as_deref();
    let ports = p.ports(&spec.ports);
    let target = if let Some(machine) = machine {
        p.machine(machine, raw);
        virtual_prefix.and_then(|from| machine_address(raw, machine).filter(|to| Problems::default().fit(from, *to, &ports)))
    } else {
        let target = p.end("spec.target", spec.target.address.as_deref(), spec.target.prefix.as_deref());
        virtual_prefix
            .zip(target)
            .filter(|(from, to)| p.fit(*from, *to, &ports))
            .map(|(_, to)| to)
    };
    let helpers = p.helpers(&spec.helpers, &ports, virtual_prefix);
    p.finish(ValidMapping {
        side: spec.side.unwrap_or_default(),
        virtual_prefix: virtual_prefix.unwrap_or_default(),
        target,
        machine: machine.cloned(),
        ports,
        helpers,
        source_translation: spec.source_translation,
    })
}

/// The inside interface that a network names, whatever else is wrong with the network: a refused network keeps its fence.
pub(super) fn named_inside(raw: &StagingNetwork) -> Option<IfName> {
    raw.spec.inside.interface.as_deref().and_then(interface)
}

/// What a prefix is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Packets are delivered there: needed, and in a usable range.
    Routed,
    /// Packets are kept from there: any prefix will do, or none.
    Protected,
}

#[derive(Default)]
pub(super) struct Problems(Vec<String>);

impl Problems {
    pub(super) fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// How many there are so far.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    fn finish<T>(self, value: T) -> Result<T, Refusal> {
        if self.0.is_empty() {
            return Ok(value);
        }
        let mut message = self.0.iter().take(PROBLEMS_SHOWN).cloned().collect::<Vec<_>>().join("; ");
        if self.0.len() > PROBLEMS_SHOWN {
            let _ = write!(message, "; and {} more", self.0.len() - PROBLEMS_SHOWN);
        }
        Err(Refusal {
            reason: reasons::INVALID,
            message,
        })
    }

    pub(super) fn name(&mut self, field: &str, value: &str, valid: bool, wanted: &str) {
        if !valid {
            self.add(format!("{field} must be {wanted}: got {}", quote(value)));
        }
    }

    fn interface(&mut self, field: &str, value: Option<&str>) -> Option<IfName> {
        let value = value?;
        let name = interface(value);
        if name.is_none() {
            self.add(format!(
                "{field} must be the name of an interface other than lo, 1 to 15 letters, digits, '.', '_', '-' or '@': got {}",
                quote(value)
            ));
        }
        name
    }

    pub(super) fn selector(&mut self, field: &str, selector: &LabelSelector) {
        for (n, requirement) in selector.match_expressions.iter().flatten().enumerate() {
            if let Some(problem) = selector::problem(requirement) {
                self.add(format!("{field}.matchExpressions[{n}]: {problem}"));
            }
        }
    }

    /// True if a list of `length` may be read at all.
    pub(super) fn length(&mut self, field: &str, length: usize, least: usize, most: usize) -> bool {
        let fits = (least..=most).contains(&length);
        if !fits {
            let bounds = if least == 0 {
                format!("at most {most}")
            } else {
                format!("{least} to {most}")
            };
            self.add(format!("{field} must have {bounds} entries: it has {length}"));
        }
        fits
    }

    fn prefixes(&mut self, field: &str, list: &[String], used: Use) -> BTreeSet<IpNet> {
        let mut found = BTreeSet::new();
        let (least, most) = match used {
            Use::Routed => (1, PREFIXES_MAX),
            Use::Protected => (0, PROTECTED_MAX),
        };
        if !self.length(field, list.len(), least, most) {
            return found;
        }
        for (n, text) in list.iter().enumerate() {
            match prefix(text) {
                Err(problem) => self.add(format!("{field}[{n}] {problem}")),
                Ok(net) if used == Use::Routed && net.prefix_len() < widest(net) => {
                    self.add(format!("{field}[{n}] must be no wider than /{}: got {net}", widest(net)));
                }
                Ok(net) if used == Use::Routed && unusable(net).is_some() => {
                    let (range, what) = unusable(net).unwrap_or_default();
                    self.add(format!("{field}[{n}] must not reach into {range} ({what}): got {net}"));
                }
                Ok(net) => {
                    if !found.insert(net) {
                        self.add(format!("{field}[{n}] must be listed once: {net} is there already"));
                    }
                }
            }
        }
        found
    }

    fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        host_address(text).map_err(|problem| self.add(format!("{field} {problem}"))).ok()
    }

    fn gateway_addresses(&mut self, list: &[String], inside: &BTreeSet<IpNet>) -> BTreeSet<IpAddr> {
        const FIELD: &str = "spec.inside.gatewayAddresses";
        let mut found = BTreeSet::new();
        if !self.length(FIELD, list.len(), 0, GATEWAY_ADDRESSES_MAX) {
            return found;
        }
        for (n, text) in list.iter().enumerate() {
            let Some(address) = self.address(&format!("{FIELD}[{n}]"), text) else {
                continue;
            };
            if inside.iter().any(|net| net.contains(&address)) {
                self.inside_edge(&format!("{FIELD}[{n}]"), inside, address);
            } else {
                self.add(format!("{FIELD}[{n}] must lie in spec.inside.addresses: got {address}"));
            }
            if !found.insert(address) {
                self.add(format!("{FIELD}[{n}] must be listed once: {address} is there already"));
            }
        }
        found
    }
}
