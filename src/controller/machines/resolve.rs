//! From what is known of a virtual machine to the address that a mapping leads to, or why there is none. Pure.
//!
//! - What a machine reports is its own word, so it is taken only if it lies in the network's inside prefixes and is nobody's there but a machine's; `plan` looks again.
//! - The last good address is held while the machine reports none: a mapping to a machine that is off is as good as one to the address of such a machine. It is dropped as soon as
//!   it is known to be wrong: the machine reports others, is gone, or is attached elsewhere.
//! - Of several addresses the present one stays while it is reported, then the primary one is taken, then the lowest.

use std::net::IpAddr;

use super::kinds::{Instance, Machine, Network, POD};
use crate::api::conditions::Finding;
use crate::api::mapping::{AddressState, MachineTarget, VirtualMachineRef};
use crate::api::reasons;
use crate::netfilter::Family;
use crate::plan::validate::ValidNetwork;
use crate::plan::{leads_inside, usable};

/// Addresses that a message repeats.
const SHOWN: usize = 8;

/// What a mapping asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    /// The machine and its interface.
    pub(super) machine: &'a VirtualMachineRef,
    /// Family of the virtual address.
    pub(super) family: Family,
    /// The network that the address must be inside.
    pub(super) network: &'a ValidNetwork,
    /// What is known already of this machine.
    pub(super) before: Option<&'a MachineTarget>,
}

/// What `KubeVirt` says of the machine.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known<'a> {
    /// Nothing yet: the first lists are not complete.
    NotYet,
    /// The cluster has not its kinds, and so no machine: which one is missing.
    Absent(&'a str),
    /// Its kinds cannot be read, whatever machines there are: why.
    Unreadable(&'a str),
    /// There is no such machine.
    Nothing,
    /// There is one, and it may be on.
    Machine(&'a Machine, Option<&'a Instance>),
}

/// Where a mapping leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// For `status.target`.
    pub target: Option<MachineTarget>,
    /// Whether the reference leads somewhere.
    pub found: Found,
}

/// Whether a reference leads somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It cannot be told yet: what was said before stands.
    NotYet,
    /// It does; a sentence that says how.
    Yes(String),
    /// It does not, or nobody can tell although an address is held.
    No(Finding),
}

/// Decides.
pub(super) fn resolve(wish: &Wish<'_>, known: Known<'_>) -> Resolved {
    let VirtualMachineRef { name, interface } = wish.machine;
    let (machine, instance) = match known {
        Known::NotYet => {
            return Resolved {
                target: wish.before.cloned(),
                found: Found::NotYet,
            };
        }
        Known::Absent(why) => {
            let message = format!("{why}, so there is no virtual machine {name}; the mapping takes effect when there is.");
            return no(None, reasons::KUBEVIRT_MISSING, message);
        }
        Known::Unreadable(why) => {
            let (target, held) = match wish.held() {
                Some((target, address)) => (target, format!("; the last address of virtual machine {name}, {address}, is held")),
                None => (wish.nowhere(), String::new()),
            };
            return no(target, reasons::MACHINES_UNREADABLE, format!("{why}{held}."));
        }
        Known::Nothing => {
            let message = format!("There is no VirtualMachine {name} in the mapping's namespace; the mapping takes effect when there is.");
            return no(None, reasons::VIRTUAL_MACHINE_NOT_FOUND, message);
        }
        Known::Machine(machine, instance) => (machine, instance.filter(|i| i.machine == machine.uid && !i.ended)),
    };
    let networks = instance.map_or(&machine.networks, |instance| &instance.networks);
    let attachment = match networks.iter().find(|network| network.name == *interface) {
        Some(network) if network.plugged => &network.attachment,
        other => {
            return no(
                wish.nowhere(),
                reasons::MACHINE_INTERFACE_MISSING,
                wish.no_interface(networks, other),
            );
        }
    };
    let Some(instance) = instance else {
        return wish.hold(&format!("Virtual machine {name} is off"));
    };
    if let Some(message) = wish.elsewhere(attachment) {
        return no(wish.nowhere(), reasons::TARGET_ON_OTHER_NETWORK, message);
    }
    wish.reported(instance, attachment)
}

fn no(target: Option<MachineTarget>, reason: &str, message: String) -> Resolved {
    Resolved {
        target,
        found: Found::No(Finding::new(reason, message)),
    }
}

impl Wish<'_> {
    /// What the running machine reports, if it may be used.
    fn reported(&self, instance: &Instance, attachment: &str) -> Resolved {
        let VirtualMachineRef { name, interface } = self.machine;
        let reports = || instance.reports.iter().filter(|report| report.interface == *interface);
        let of_family = |address: &IpAddr| Family::of(*address) == self.family && usable(*address);
        let reported: Vec<IpAddr> = reports().flat_map(|r| &r.addresses).copied().filter(of_family).collect();
        let refusal = |address: &IpAddr| leads_inside(*address, "it", self.network).err();
        let good = || reported.iter().copied().filter(|address| refusal(address).is_none());
        let present: Option<IpAddr> = self.before.and_then(|b| b.address.as_ref()?.parse().ok());
        let first = reported.first().copied();
        let stays = |wanted: Option<IpAddr>| good().find(|address| Some(*address) == wanted);
        let Some(address) = stays(present).or_else(|| stays(first)).or_else(|| good().min()) else {
            return match reported.iter().find_map(refusal) {
                None => self.hold(&format!(
                    "Virtual machine {name} reports no {} address at interface {interface}",
                    self.family
                )),
                Some(refusal) => no(
                    self.nowhere(),
                    refusal.reason,
                    format!(
                        "Virtual machine {name} reports {} at interface {interface}{}, must be a machine's address in the inside prefixes of network {}, {}: nothing leads there.",
                        list(reported.iter()),
                        told_by(reports().next().map_or("", |r| &r.source)),
                        self.network.name,
                        list(self.network.inside.iter())
                    ),
                ),
            };
        };
        let source = reports().find(|r| r.addresses.contains(&address)).map_or("", |r| &r.source);
        Resolved {
            target: Some(MachineTarget {
                virtual_machine: name.clone(),
                interface: interface.clone(),
                address: Some(address.to_string()),
                state: Some(AddressState::Reported),
                source: (!source.is_empty()).then(|| source.to_owned()),
                attachment: (!attachment.is_empty()).then(|| attachment.to_owned()),
            }),
            found: Found::Yes(format!(
                "Virtual machine {name} reports {address} at interface {interface}{}.",
                told_by(source)
            )),
        }
    }

    /// The last good address, while there is no other.
    fn hold(&self, why: &str) -> Resolved {
        match self.held() {
            Some((target, address)) => Resolved {
                target,
                found: Found::Yes(format!("{why}; its last address {address} is held.")),
            },
            None => no(
                self.nowhere(),
                reasons::WAITING_FOR_ADDRESS,
                format!("{why}, and no address of it is known; the mapping takes effect when there is one."),
            ),
        }
    }

    /// The last good address, if it is good still.
    fn held(&self) -> Option<(Option<MachineTarget>, IpAddr)> {
        let before = self.before?;
        let address: IpAddr = before.address.as_ref()?.parse().ok()?;
        let good = Family::of(address) == self.family && leads_inside(address, "it", self.network).is_ok();
        let held = || MachineTarget {
            state: Some(AddressState::Held),
            ..before.clone()
        };
        good.then(|| (Some(held()), address))
    }

    /// What is remembered of a machine that nothing leads to: what it was attached to when something did.
    fn nowhere(&self) -> Option<MachineTarget> {
        let attachment = self.before?.attachment.clone()?;
        Some(MachineTarget {
            virtual_machine: self.machine.name.clone(),
            interface: self.machine.interface.clone(),
            attachment: Some(attachment),
            ..MachineTarget::default()
        })
    }

    /// Why what a running machine's interface is attached to is not the closed network.
    fn elsewhere(&self, attachment: &str) -> Option<String> {
        let VirtualMachineRef { name, interface } = self.machine;
        let ValidNetwork {
            name: network,
            attachments,
            ..
        } = self.network;
        let is = match attachment {
            "" => "no network that is known here".to_owned(),
            POD => "the cluster's own network (pod)".to_owned(),
            named => named.to_owned(),
        };
        let is = format!("Interface {interface} of virtual machine {name} is attached to {is}");
        if !attachments.is_empty() {
            return (!attachments.contains(attachment)).then(|| {
                format!(
                    "{is}, must be one of inside.networkAttachments of network {network}, {}: nothing leads there.",
                    list(attachments.iter())
                )
            });
        }
        let was = self.before?.attachment.as_ref()?;
        (was != attachment).then(|| {
            format!("{is}; it was {was} when its address was taken: nothing leads there. If both lead into network {network}, name them in its inside.networkAttachments.")
        })
    }

    fn no_interface(&self, networks: &[Network], found: Option<&Network>) -> String {
        let VirtualMachineRef { name, interface } = self.machine;
        if found.is_some() {
            return format!(
                "Interface {interface} of virtual machine {name} is unplugged; the mapping takes effect when it is plugged in."
            );
        }
        let names = networks.iter().map(|network| &network.name);
        format!(
            "spec.target.virtualMachineRef.interface must be the name of a network of virtual machine {name}, which has {}: got {interface}.",
            if networks.is_empty() { "none".to_owned() } else { list(names) }
        )
    }
}

fn told_by(source: &str) -> String {
    if source.is_empty() { String::new() } else { format!(" ({source})") }
}

fn list<T: ToString>(values: impl Iterator<Item = T>) -> String {
    let all: Vec<String> = values.map(|value| value.to_string()).collect();
    let more = all.len().saturating_sub(SHOWN);
    let shown = all.into_iter().take(SHOWN).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
