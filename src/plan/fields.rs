//! Parts of raw specs that are made of several values: the two ends of a mapping, ports, helpers, source addresses, egress rules.
//!
//! As [`super::validate`], whose list of problems is filled here: every problem is found, nothing is taken on trust.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::prefixes::is_edge;
use super::selector::Selector;
use super::validate::{ClaimedHelper, EgressTo, Problems};
use super::values::{claimed_ports, host_address, kernel_helpers, label, prefix, quote, transport, unusable};
use super::verdict::ClaimedPorts;
use crate::api::NatMapping;
use crate::api::helper::HelperUse;
use crate::api::mapping::{PortMapping, Side, VirtualMachineRef};
use crate::api::network::{AllowedNamespaces, EgressRule, NamespacesFrom, Outside};
use crate::api::schema::{EGRESS_MAX, HELPER_USES_MAX, MACHINE_INTERFACE_MAX, MACHINE_NAME_MAX, PORTS_MAX};
use crate::netfilter::{Family, PortRange};

impl Problems {
    /// Which namespaces may claim. None: all, or it cannot be said.
    pub(super) fn allowed_namespaces(&mut self, allowed: &AllowedNamespaces) -> Option<Selector> {
        const FIELD: &str = "spec.allowedNamespaces.selector";
        match (allowed.from, &allowed.selector) {
            (NamespacesFrom::All, None) => {}
            (NamespacesFrom::All, Some(_)) => self.add(format!("{FIELD} must be left out with from All: it would restrict nothing")),
            (NamespacesFrom::Selector, None) => self.add(format!("{FIELD} must be given with from Selector")),
            (NamespacesFrom::Selector, Some(selector)) => {
                self.selector(FIELD, selector);
                return Selector::new(selector);
            }
        }
        None
    }

    /// One end of a mapping, as a prefix: exactly one of address and prefix.
    pub(super) fn end(&mut self, field: &str, address: Option<&str>, net: Option<&str>) -> Option<IpNet> {
        let found = match (address, net) {
            (Some(text), None) => host_address(text)
                .map(IpNet::from)
                .map_err(|problem| format!("{field}.address {problem}")),
            (None, Some(text)) => whole(text).map_err(|problem| format!("{field}.prefix {problem}")),
            _ => Err(format!("{field} must have either address or prefix")),
        };
        found.map_err(|problem| self.add(problem)).ok()
    }

    /// Whether the two ends of a mapping belong together.
    pub(super) fn fit(&mut self, from: IpNet, to: IpNet, ports: &[ClaimedPorts]) -> bool {
        let before = self.count();
        if from == to {
            self.add("spec.target must differ from spec.virtual: a virtual address must not exist inside");
        } else if Family::of_net(&from) != Family::of_net(&to) {
            self.add(format!(
                "spec.target must be of the same family as spec.virtual: {from} is not translated to {to}"
            ));
        } else if from.prefix_len() != to.prefix_len() {
            self.add(format!("spec.target must be as long as spec.virtual: got {from} and {to}"));
        } else if from.prefix_len() < from.max_prefix_len() && ports.iter().any(|p| p.target_first != p.ports.first()) {
            self.add("spec.ports must not have targetPort where spec.virtual is a prefix: prefixes are translated with ports kept");
        }
        self.count() == before
    }

    /// A virtual machine as the target.
    pub(super) fn machine(&mut self, machine: &VirtualMachineRef, raw: &NatMapping) {
        const FIELD: &str = "spec.target.virtualMachineRef";
        let spec = &raw.spec;
        let (name, interface) = (&machine.name, &machine.interface);
        let known = (1..=MACHINE_NAME_MAX).contains(&name.len()) && name.split('.').all(label);
        self.name(
            &format!("{FIELD}.name"),
            name,
            known,
            "the name of a VirtualMachine: lower-case letters, digits, '-' and '.', the first and last a letter or digit",
        );
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let known = (1..=MACHINE_INTERFACE_MAX).contains(&interface.len()) && interface.bytes().all(plain);
        let wanted = "the name of a network of the VirtualMachine: letters, digits, '-' and '_'";
        self.name(&format!("{FIELD}.interface"), interface, known, wanted);
        if spec.target.address.is_some() || spec.target.prefix.is_some() {
            self.add("spec.target must have exactly one of address, prefix and virtualMachineRef");
        }
        if spec.r#virtual.prefix.is_some() {
            self.add(format!("{FIELD} must stand beside spec.virtual.address: it leads to one machine"));
        }
        if spec.side == Some(Side::Inside) {
            self.add(format!(
                "{FIELD} must not be given with spec.side Inside: such a mapping leads to a server outside"
            ));
        }
        if raw.metadata.resource_version.is_none() {
            self.add(format!(
                "{FIELD} must not be used without a cluster, where nobody knows what address machine {} has: write it in spec.target.address",
                quote(name)
            ));
        }
    }

    /// Helpers, each at a port that is mapped.
    pub(super) fn helpers(&mut self, list: &[HelperUse], ports: &[ClaimedPorts], virtual_prefix: Option<IpNet>) -> Vec<ClaimedHelper> {
        let mut found = BTreeSet::new();
        if !self.length("spec.helpers", list.len(), 0, HELPER_USES_MAX) {
            return Vec::new();
        }
        for (n, HelperUse { name, port }) in list.iter().enumerate() {
            let Some(port) = PortRange::new(*port, *port) else {
                self.add(format!("spec.helpers[{n}].port must be 1 to 65535: got 0"));
                continue;
            };
            let mut heard = kernel_helpers(*name).iter().map(|(transport, _)| *transport);
            let covered = heard.any(|t| ports.iter().any(|p| p.transport == t && p.ports.contains(port.first())));
            if !ports.is_empty() && !covered {
                self.add(format!(
                    "spec.helpers[{n}].port must be one of spec.ports: {name} would hear nothing at {}",
                    port.first()
                ));
            }
            if virtual_prefix.is_some_and(|p| Family::of_net(&p) == Family::V6) && !name.ipv6() {
                self.add(format!("spec.helpers[{n}].name must be a helper of IPv6: {name} knows IPv4 only"));
            }
            if !found.insert(ClaimedHelper { name: *name, port }) {
                self.add(format!(
                    "spec.helpers[{n}] must be listed once: {name} at {} is there already",
                    port.first()
                ));
            }
        }
        found.into_iter().collect()
    }

    /// At most one source address a family, none of them inside.
    pub(super) fn source_addresses(&mut self, outside: &Outside, inside: &BTreeSet<IpNet>) -> BTreeMap<Family, IpAddr> {
        let mut found = BTreeMap::new();
        let named = [
            ("spec.outside.sourceAddress", &outside.source_address, None),
            ("spec.outside.sourceAddressIPv6", &outside.source_address_ipv6, Some(Family::V6)),
        ];
        for (field, text, family) in named {
            let Some(text) = text else { continue };
            let address = match host_address(text) {
                Ok(address) => address,
                Err(problem) => {
                    self.add(format!("{field} {problem}"));
                    continue;
                }
            };
            if family.is_some_and(|f| f != Family::of(address)) {
                self.add(format!("{field} must be an IPv6 address: got {address}"));
            } else if let Some(net) = inside.iter().find(|net| net.contains(&address)) {
                self.add(format!("{field} must not lie inside: {address} is in {net}"));
            } else if found.insert(Family::of(address), address).is_some() {
                self.add(format!(
                    "{field} must be of another family than spec.outside.sourceAddress: got {address}"
                ));
            }
        }
        found
    }

    /// What may leave.
    pub(super) fn egress(&mut self, list: &[EgressRule]) -> Vec<EgressTo> {
        const FIELD: &str = "spec.egress.allow";
        let mut found = Vec::new();
        if !self.length(FIELD, list.len(), 0, EGRESS_MAX) {
            return found;
        }
        for (n, rule) in list.iter().enumerate() {
            let to = prefix(&rule.to)
                .map_err(|problem| self.add(format!("{FIELD}[{n}].to {problem}")))
                .ok();
            let mut ports = Vec::new();
            if self.length(&format!("{FIELD}[{n}].ports"), rule.ports.len(), 0, PORTS_MAX) {
                for (m, port) in rule.ports.iter().enumerate() {
                    match PortRange::new(port.port, port.end_port.unwrap_or(port.port)) {
                        Some(range) => ports.push((transport(port.protocol), range)),
                        None => self.add(format!(
                            "{FIELD}[{n}].ports[{m}].endPort must not be below port, and port must not be 0"
                        )),
                    }
                }
            }
            ports.sort_unstable();
            found.extend(to.map(|to| EgressTo { to, ports }));
        }
        found
    }

    /// Gateway addresses: hosts' addresses inside.
    pub(super) fn inside_edge(&mut self, field: &str, inside: &BTreeSet<IpNet>, address: IpAddr) {
        if let Some(net) = inside.iter().find(|net| is_edge(**net, address)) {
            self.add(format!("{field} must be a host's address: {address} is not one in {net}"));
        }
    }

    pub(super) fn ports(&mut self, list: &[PortMapping]) -> Vec<ClaimedPorts> {
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

/// The address that the controller found for the machine that the mapping names now. What was found for another machine counts for nothing, and what is no address of a host is none.
pub(super) fn machine_address(raw: &NatMapping, machine: &VirtualMachineRef) -> Option<IpNet> {
    let found = raw.status.as_ref()?.target.as_ref().filter(|found| found.is_of(machine))?;
    host_address(found.address.as_ref()?).map(IpNet::from).ok()
}

/// A prefix of more than one address, none of which is unusable.
fn whole(text: &str) -> Result<IpNet, String> {
    let net = prefix(text)?;
    if net.prefix_len() == net.max_prefix_len() {
        return Err(format!(
            "must be shorter than /{}: write {} as address",
            net.max_prefix_len(),
            net.addr()
        ));
    }
    match unusable(net) {
        Some((range, what)) => Err(format!("must not reach into {range} ({what}): got {net}")),
        None => Ok(net),
    }
}
