//! From strings to values: the only place that looks at a raw spec. All problems of an object are found, not just the first.
//!
//! Nothing is taken on trust: an object may have been stored while the API server's validation was off, and a file never went through it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::prefixes::is_edge;
use super::selector;
use super::verdict::{ClaimedPorts, Refusal};
use crate::api::mapping::{PortMapping, Protocol};
use crate::api::network::{EgressDefault, SourceTranslation};
use crate::api::{NatMapping, StagingNetwork, reasons};
use crate::netfilter::{IfName, PortRange, Transport};

/// The most prefixes or addresses in one list.
pub const LIST_MAX: usize = 32;
/// The most port entries of one mapping.
pub const PORTS_MAX: usize = 64;
/// Problems that are spelled out in one message; the rest is counted.
const PROBLEMS_SHOWN: usize = 8;
/// Characters of a user's value that a message repeats.
const QUOTE_MAX: usize = 64;

/// A network that passed validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidNetwork {
    /// Its name.
    pub name: String,
    /// `metadata.creationTimestamp`; None sorts as oldest.
    pub created: Option<Timestamp>,
    /// The outside interface as named; None: found by subnet.
    pub outside_interface: Option<IfName>,
    /// The pool. Sorted.
    pub pool: BTreeSet<Ipv4Net>,
    /// Whether claimed addresses are announced.
    pub announce: bool,
    /// The inside interface as named; None: found by subnet.
    pub inside_interface: Option<IfName>,
    /// Inside prefixes. Sorted.
    pub inside: BTreeSet<Ipv4Net>,
    /// Addresses that the active gateway answers for inside. Sorted.
    pub gateway_addresses: BTreeSet<Ipv4Addr>,
    /// Default for mappings.
    pub source_translation: SourceTranslation,
    /// Whether mapped VMs may open connections to the outside.
    pub egress_allowed: bool,
    /// Whether denied packets go to NFLOG.
    pub log: bool,
    /// Production prefixes. Sorted.
    pub protected: BTreeSet<Ipv4Net>,
}

/// A mapping that is well-formed by itself; whether its claim stands is for [`super::judge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidMapping {
    /// The network's name.
    pub network: String,
    /// The address outside.
    pub virtual_address: Ipv4Addr,
    /// The address inside.
    pub target: Ipv4Addr,
    /// Empty: every protocol. Sorted, disjoint.
    pub ports: Vec<ClaimedPorts>,
    /// The mapping's own setting.
    pub source_translation: Option<SourceTranslation>,
}

/// Ranges that no virtual and no inside address may come from (RFC 6890, and 240.0.0.0/4 with the limited broadcast address).
const UNUSABLE: [(Ipv4Net, &str); 5] = [
    (Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8), "this network"),
    (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback"),
    (Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16), "link-local"),
    (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast"),
    (Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4), "reserved and broadcast"),
];

/// Checks everything that can be said of a network by itself.
pub fn network(raw: &StagingNetwork) -> Result<ValidNetwork, Refusal> {
    let mut p = Problems::default();
    let spec = &raw.spec;
    let name = raw.metadata.name.clone().unwrap_or_default();
    p.name(
        "metadata.name",
        &name,
        subdomain(&name),
        "a DNS name (RFC 1123) of at most 253 characters",
    );
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
    let gateway_addresses = p.gateway_addresses(&spec.inside.gateway_addresses, &inside);
    p.finish(ValidNetwork {
        name,
        created: raw.metadata.creation_timestamp.as_ref().map(|t| t.0),
        outside_interface,
        pool,
        announce: spec.outside.announce.unwrap_or(true),
        inside_interface,
        inside,
        gateway_addresses,
        source_translation: spec.source_translation.unwrap_or(SourceTranslation::Masquerade),
        egress_allowed: spec.egress.as_ref().is_some_and(|e| e.default == EgressDefault::Allow),
        log: spec.egress.as_ref().and_then(|e| e.log).unwrap_or(false),
        protected,
    })
}

/// Checks everything that can be said of a mapping by itself.
pub fn mapping(raw: &NatMapping) -> Result<ValidMapping, Refusal> {
    let mut p = Problems::default();
    let spec = &raw.spec;
    let name = raw.metadata.name.as_deref().unwrap_or_default();
    p.name(
        "metadata.name",
        name,
        subdomain(name),
        "a DNS name (RFC 1123) of at most 253 characters",
    );
    let namespace = raw.metadata.namespace.as_deref().unwrap_or("default");
    p.name(
        "metadata.namespace",
        namespace,
        label(namespace),
        "a DNS label (RFC 1123) of at most 63 characters",
    );
    let network = &spec.network_ref.name;
    p.name("spec.networkRef.name", network, subdomain(network), "the name of a StagingNetwork");
    let virtual_address = p.address("spec.virtual.address", &spec.r#virtual.address);
    let target = p.address("spec.target.address", &spec.target.address);
    let ports = p.ports(&spec.ports);
    p.finish(ValidMapping {
        network: network.clone(),
        virtual_address: virtual_address.unwrap_or(Ipv4Addr::UNSPECIFIED),
        target: target.unwrap_or(Ipv4Addr::UNSPECIFIED),
        ports,
        source_translation: spec.source_translation,
    })
}

/// The inside interface that a network names, whatever else is wrong with the network: a refused network keeps its fence.
pub(super) fn named_inside(raw: &StagingNetwork) -> Option<IfName> {
    raw.spec.inside.interface.as_deref().and_then(IfName::new)
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
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
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

    fn name(&mut self, field: &str, value: &str, valid: bool, wanted: &str) {
        if !valid {
            self.add(format!("{field} must be {wanted}: got {}", quote(value)));
        }
    }

    fn interface(&mut self, field: &str, value: Option<&str>) -> Option<IfName> {
        let value = value?;
        let name = IfName::new(value);
        if name.is_none() {
            self.add(format!(
                "{field} must be the name of an interface, 1 to 15 letters, digits, '.', '_', '-' or '@': got {}",
                quote(value)
            ));
        }
        name
    }

    fn selector(&mut self, field: &str, selector: &LabelSelector) {
        for (n, requirement) in selector.match_expressions.iter().flatten().enumerate() {
            if let Some(problem) = selector::problem(requirement) {
                self.add(format!("{field}.matchExpressions[{n}]: {problem}"));
            }
        }
    }

    /// True if a list of `length` may be read at all.
    fn length(&mut self, field: &str, length: usize, least: usize, most: usize) -> bool {
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

    fn prefixes(&mut self, field: &str, list: &[String], used: Use) -> BTreeSet<Ipv4Net> {
        let mut found = BTreeSet::new();
        let least = usize::from(used == Use::Routed);
        if !self.length(field, list.len(), least, LIST_MAX) {
            return found;
        }
        for (n, text) in list.iter().enumerate() {
            match prefix(text) {
                Err(problem) => self.add(format!("{field}[{n}] {problem}")),
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

    fn address(&mut self, field: &str, text: &str) -> Option<Ipv4Addr> {
        host_address(text).map_err(|problem| self.add(format!("{field} {problem}"))).ok()
    }

    fn gateway_addresses(&mut self, list: &[String], inside: &BTreeSet<Ipv4Net>) -> BTreeSet<Ipv4Addr> {
        const FIELD: &str = "spec.inside.gatewayAddresses";
        let mut found = BTreeSet::new();
        if !self.length(FIELD, list.len(), 0, LIST_MAX) {
            return found;
        }
        for (n, text) in list.iter().enumerate() {
            let Some(address) = self.address(&format!("{FIELD}[{n}]"), text) else {
                continue;
            };
            if !inside.iter().any(|net| net.contains(&address)) {
                self.add(format!("{FIELD}[{n}] must lie in spec.inside.addresses: got {address}"));
            } else if let Some(net) = inside.iter().find(|net| is_edge(**net, address)) {
                self.add(format!(
                    "{FIELD}[{n}] must be a host's address: {address} is the network or broadcast address of {net}"
                ));
            }
            if !found.insert(address) {
                self.add(format!("{FIELD}[{n}] must be listed once: {address} is there already"));
            }
        }
        found
    }

    fn ports(&mut self, list: &[PortMapping]) -> Vec<ClaimedPorts> {
        let mut found = Vec::new();
        if !self.length("spec.ports", list.len(), 0, PORTS_MAX) {
            return found;
        }
        for (n, port) in list.iter().enumerate() {
            match claimed_ports(port) {
                Ok(ports) => found.push(ports),
                Err(problem) => self.add(format!("spec.ports[{n}] {problem}")),
            }
        }
        found.sort_unstable();
        for pair in found.windows(2) {
            if let [a, b] = pair
                && a.transport == b.transport
                && a.ports.overlaps(b.ports)
            {
                self.add(format!("spec.ports must not overlap: {a} and {b} share ports"));
            }
        }
        found
    }
}

fn claimed_ports(port: &PortMapping) -> Result<ClaimedPorts, String> {
    let first = port.port;
    let last = port.end_port.unwrap_or(first);
    if first == 0 {
        return Err("port must be 1 to 65535: got 0".into());
    }
    let ports = PortRange::new(first, last).ok_or_else(|| format!("endPort must not be below port: got {first} to {last}"))?;
    let target_first = port.target_port.unwrap_or(first);
    if target_first == 0 {
        return Err("targetPort must be 1 to 65535: got 0".into());
    }
    if target_first.checked_add(ports.span()).is_none() {
        let most = u16::MAX - ports.span();
        return Err(format!(
            "targetPort must be at most {most}, so that the range of {} ports ends by 65535: got {target_first}",
            u32::from(ports.span()) + 1
        ));
    }
    let transport = match port.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    };
    Ok(ClaimedPorts {
        transport,
        ports,
        target_first,
    })
}

/// `text` as a host's address, if it is written just as the address is printed.
pub(super) fn host_address(text: &str) -> Result<Ipv4Addr, String> {
    let found = text.parse::<Ipv4Addr>().ok().filter(|a| a.to_string() == text).ok_or_else(|| {
        let but = if text.contains(':') {
            "an IPv4 address, IPv6 is not served"
        } else {
            "an IPv4 address such as 192.168.100.3"
        };
        format!("must be {but}: got {}", quote(text))
    })?;
    match unusable(Ipv4Net::from(found)) {
        Some((range, what)) => Err(format!("must not be in {range} ({what}): got {found}")),
        None => Ok(found),
    }
}

fn prefix(text: &str) -> Result<Ipv4Net, String> {
    let net = text.parse::<Ipv4Net>().ok().filter(|n| n.to_string() == text).ok_or_else(|| {
        let but = if text.contains(':') {
            "an IPv4 prefix, IPv6 is not served"
        } else {
            "an IPv4 prefix such as 192.168.100.0/24"
        };
        format!("must be {but}: got {}", quote(text))
    })?;
    if net.addr() == net.network() {
        Ok(net)
    } else {
        Err(format!(
            "must have no bits set behind the prefix length: {net} would be {}",
            net.trunc()
        ))
    }
}

fn unusable(net: Ipv4Net) -> Option<(Ipv4Net, &'static str)> {
    UNUSABLE.into_iter().find(|(range, _)| range.contains(&net) || net.contains(range))
}

/// A user's value for a message: escaped, and cut.
fn quote(value: &str) -> String {
    if value.chars().count() <= QUOTE_MAX {
        return format!("{value:?}");
    }
    let head: String = value.chars().take(QUOTE_MAX).collect();
    format!("{head:?}… ({} characters)", value.chars().count())
}

fn label(value: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&value.len()) && value.bytes().all(inner) && !value.starts_with('-') && !value.ends_with('-')
}

/// RFC 1123 as Kubernetes reads it (`IsDNS1123Subdomain`): labels of a subdomain have no length limit of their own.
fn subdomain(value: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && p.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !p.starts_with('-')
            && !p.ends_with('-')
    };
    (1..=253).contains(&value.len()) && value.split('.').all(part)
}
