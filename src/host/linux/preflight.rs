//! What the node lacks or has that an operator should know, found without changing anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::tables::{self, lock_holder};
use super::tools::{self, Tools};
use super::{privileges, settings};
use crate::api::reasons::{self, types};
use crate::host::{Backend, Connections, Finding, HostError, Needs};
use crate::netfilter::{Family, IfName, Table};
use crate::plan::{InterfaceFacts, KernelFacts};

/// Everything that is looked at.
pub(super) struct Look<'a> {
    pub(super) tools: &'a Result<(Tools, String), HostError>,
    pub(super) listed: &'a Listed,
    pub(super) interfaces: &'a BTreeMap<String, InterfaceFacts>,
    pub(super) kernel: &'a KernelFacts,
    pub(super) needs: &'a Needs,
}

/// What only listing a table tells.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    foreign: Option<Finding>,
    ipv6: Finding,
}

impl Listed {
    /// Whether it holds as long as no table and no tool changes: nothing failed.
    pub(super) fn lasts(&self) -> bool {
        let checked = |finding: &Finding| finding.reason != reasons::NOT_CHECKED;
        self.ipv6.ok && self.foreign.as_ref().is_some_and(checked)
    }
}

/// Lists what has to be listed.
pub(super) async fn list(tools: Option<Tools>) -> Listed {
    let foreign = match tools {
        Some(tools) => Some(foreign_drop(tools).await),
        None => None,
    };
    Listed {
        foreign,
        ipv6: ipv6(tools).await,
    }
}

pub(super) fn finding(condition: &'static str, ok: bool, reason: &'static str, message: impl Into<String>) -> Finding {
    Finding {
        condition,
        ok,
        reason,
        message: message.into(),
    }
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// All findings, in a fixed order.
pub(super) async fn findings(look: Look<'_>) -> Vec<Finding> {
    let mut all = vec![permissions(), backend(look.tools).await, lock(look.tools), interfaces(&look)];
    all.push(reverse_path(&look));
    all.extend(look.listed.foreign.clone());
    all.push(bridge());
    all.push(conntrack());
    all.push(look.listed.ipv6.clone());
    all.extend(settings::findings(look.needs, look.kernel, look.interfaces));
    all
}

fn permissions() -> Finding {
    let missing = privileges::missing();
    if missing.is_empty() {
        return finding(types::PERMISSIONS, true, reasons::AS_NEEDED, "The agent has NET_ADMIN and NET_RAW.");
    }
    let message = format!(
        "The agent lacks {}. Give it these capabilities in the node's network namespace.",
        missing.join(" and ")
    );
    finding(types::PERMISSIONS, false, reasons::NOT_PERMITTED, message)
}

async fn backend(chosen: &Result<(Tools, String), HostError>) -> Finding {
    let (tools, why) = match chosen {
        Ok(chosen) => chosen,
        Err(error) => return finding(types::BACKEND, false, reasons::TOOL_MISSING, format!("{error}.")),
    };
    let other = match tools.backend {
        Backend::Nft => Backend::Legacy,
        Backend::Legacy => Backend::Nft,
    };
    let message = format!("Using {why}.");
    if let Some((other, _)) = tools::find(other).await
        && tools::has_rules(other).await
        && tools::has_rules(*tools).await
    {
        let name = other.command(Family::V4);
        let message = format!("{message} There are rules of {name} too, and packets pass both; see `{name}-save`.");
        return finding(types::BACKEND, true, reasons::BOTH_BACKENDS, message);
    }
    finding(types::BACKEND, true, reasons::AS_NEEDED, message)
}

/// A program that holds the lock at this moment matters to the legacy tools only.
fn lock(chosen: &Result<(Tools, String), HostError>) -> Finding {
    let legacy = chosen.as_ref().is_ok_and(|(tools, _)| tools.backend == Backend::Legacy);
    match lock_holder() {
        Some(holder) => finding(
            types::LOCK,
            !legacy,
            reasons::LOCK_HELD,
            format!("The xtables lock is held by {holder}."),
        ),
        None => finding(types::LOCK, true, reasons::AS_NEEDED, "Nobody holds the xtables lock."),
    }
}

fn interfaces(look: &Look<'_>) -> Finding {
    let named = look.needs.outside.union(&look.needs.inside);
    let missing: Vec<_> = named
        .filter(|n| !look.interfaces.contains_key(n.as_str()))
        .map(IfName::as_str)
        .collect();
    if missing.is_empty() {
        return finding(
            types::INTERFACES,
            true,
            reasons::AS_NEEDED,
            "Every interface that a network names is there.",
        );
    }
    let message = format!(
        "There is no interface {}. It is taken into use by itself when it appears.",
        missing.join(", ")
    );
    finding(types::INTERFACES, false, reasons::INTERFACE_MISSING, message)
}

/// Strict filtering drops a packet whose source is routed elsewhere: answers of VMs whose network the node reaches by another interface.
/// `max(all, interface)` counts, so an interface's own 2 (loose) outweighs a strict `all`, and a 0 does not.
fn reverse_path(look: &Look<'_>) -> Finding {
    let used = look.needs.outside.union(&look.needs.inside);
    let strict: Vec<_> = used
        .filter(|n| look.interfaces.get(n.as_str()).is_some_and(|i| i.rp_filter == 1))
        .map(IfName::as_str)
        .collect();
    if strict.is_empty() {
        return finding(
            types::REVERSE_PATH_FILTER,
            true,
            reasons::AS_NEEDED,
            "The reverse path filter is off or loose where it matters.",
        );
    }
    let message = format!(
        "The reverse path filter is strict on {}: packets from prefixes that are routed elsewhere are dropped. Harmless where every inside \
         prefix is connected to its interface; else set net.ipv4.conf.INTERFACE.rp_filter=2.",
        strict.join(", ")
    );
    finding(types::REVERSE_PATH_FILTER, true, reasons::STRICT_REVERSE_PATH, message)
}

/// Whether filter FORWARD, as `-S` lists it or as it is saved with others, drops by policy or has a rule that drops everything.
fn drops_all(listing: &str) -> Option<&'static str> {
    let mut lines = listing.lines();
    if lines.clone().any(|l| l == "-P FORWARD DROP" || l.starts_with(":FORWARD DROP ")) {
        return Some("its policy is DROP");
    }
    lines
        .any(|l| matches!(l, "-A FORWARD -j DROP" | "-A FORWARD -j REJECT --reject-with icmp-port-unreachable"))
        .then_some("a rule in it drops all")
}

async fn foreign_drop(tools: Tools) -> Finding {
    match tables::chain(tools, Family::V4, Table::Filter, "FORWARD").await {
        Err(error) => finding(types::FOREIGN_FORWARD, false, reasons::NOT_CHECKED, format!("{error}.")),
        Ok(listing) => match drops_all(&listing) {
            Some(how) => {
                let message =
                    format!("Another program drops forwarded packets in filter FORWARD ({how}); stagenet's accepts stand ahead of it.");
                finding(types::FOREIGN_FORWARD, true, reasons::FOREIGN_DROP, message)
            }
            None => finding(
                types::FOREIGN_FORWARD,
                false,
                reasons::NO_FOREIGN_DROP,
                "No other program drops all forwarded packets.",
            ),
        },
    }
}

fn bridge() -> Finding {
    match number("/proc/sys/net/bridge/bridge-nf-call-iptables") {
        Some(1) => finding(
            types::BRIDGE_NETFILTER,
            true,
            reasons::BRIDGED_FILTERED,
            "net.bridge.bridge-nf-call-iptables is 1.",
        ),
        Some(_) => finding(
            types::BRIDGE_NETFILTER,
            false,
            reasons::BRIDGED_NOT_FILTERED,
            "net.bridge.bridge-nf-call-iptables is 0.",
        ),
        None => finding(
            types::BRIDGE_NETFILTER,
            false,
            reasons::BRIDGED_NOT_FILTERED,
            "The br_netfilter module is not loaded.",
        ),
    }
}

fn conntrack() -> Finding {
    let Some(Connections {
        entries: count,
        limit: max,
    }) = super::conntrack::connections()
    else {
        return finding(
            types::CONNTRACK_ROOM,
            true,
            reasons::NOT_CHECKED,
            "Connection tracking is not in use yet.",
        );
    };
    let full = count.saturating_mul(10) > max.saturating_mul(9);
    // A number that is another one with every look would be a status that changes for ever.
    let mut message = if full {
        format!("{count} of {max} entries of the connection table are in use.")
    } else {
        format!("Less than nine tenths of the {max} entries of the connection table are in use.")
    };
    if number("/proc/sys/net/netfilter/nf_conntrack_tcp_loose") == Some(0) {
        message.push_str(" net.netfilter.nf_conntrack_tcp_loose is 0: connections do not survive a move to another gateway.");
    }
    if full {
        return finding(types::CONNTRACK_ROOM, false, reasons::CONNTRACK_FULL, message);
    }
    finding(types::CONNTRACK_ROOM, true, reasons::AS_NEEDED, message)
}

/// Whether the kernel has IPv6.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/net/if_inet6").exists()
}

async fn ipv6(tools: Option<Tools>) -> Finding {
    if !has_ipv6() {
        return finding(types::IPV6_FENCE, true, reasons::AS_NEEDED, "The kernel has no IPv6.");
    }
    let failed = |why: String| {
        finding(
            types::IPV6_FENCE,
            false,
            reasons::IPV6_UNFENCED,
            format!("IPv6 cannot be fenced off: {why}."),
        )
    };
    let Some(tools) = tools else {
        return failed("there are no iptables tools".to_owned());
    };
    match tables::save(tools, Family::V6, Table::Mangle, false).await {
        Ok(_) => finding(
            types::IPV6_FENCE,
            true,
            reasons::AS_NEEDED,
            format!("{} can be used.", tools.command(Family::V6)),
        ),
        Err(error) => failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_drop_is_seen_by_policy_and_by_rule() {
        assert!(drops_all("-P FORWARD DROP\n").is_some());
        assert!(drops_all("-P FORWARD ACCEPT\n-A FORWARD -i eth0 -j DROP\n-A FORWARD -j DROP\n").is_some());
        assert!(drops_all("-P FORWARD ACCEPT\n-A FORWARD -i eth0 -j DROP\n").is_none());
    }
}
