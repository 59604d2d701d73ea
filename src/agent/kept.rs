//! What the agent remembers of the kernel between passes, and what of it is in doubt.
//!
//! After a verified pass nothing is read until an event, a change or the slow timer gives reason to: reading a table of 10 000 rules takes longer
//! than changing it. The memory holds nothing that the kernel does not say again after a restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use ipnet::IpNet;

use super::counters::Counts;
use super::counting::Interest;
use super::outcome::Drift;
use crate::host::{Backend, Finding, Needs, ObservedLinks};
use crate::netfilter::diff::{self, TableChange};
use crate::netfilter::dump::{ObservedTable, RuleHash};
use crate::netfilter::{ChainName, Family, IfName, Owner, Rule, Table, TableRules, Target, render};
use crate::plan::{Claim, FlowPolicy, InterfaceFacts, KernelFacts, MappingKey, Memory, PolicyRule, ProxyNeighbour, Route, Via};

/// Where we may have rules: what is not there and not wanted is looked at once, when the agent starts.
pub(super) const TABLES: [(Family, Table); 8] = [
    (Family::V4, Table::Mangle),
    (Family::V6, Table::Mangle),
    (Family::V4, Table::Raw),
    (Family::V6, Table::Raw),
    (Family::V4, Table::Nat),
    (Family::V6, Table::Nat),
    (Family::V4, Table::Filter),
    (Family::V6, Table::Filter),
];

/// One table.
#[derive(Debug, Default)]
pub(super) struct KeptTable {
    /// As last read, brought up to date with what was read back since.
    pub(super) seen: ObservedTable,
    /// What was last found to be in it, rule by rule. None: never compared.
    pub(super) verified: Option<Arc<TableRules>>,
    /// Whether `seen` may be out of date.
    pub(super) doubted: bool,
}

impl KeptTable {
    /// Somebody may have touched it. One without anything of ours stays as unread as it is: reading it would take time, and nothing can be missing.
    fn doubt(&mut self) {
        self.doubted |= self.concerns();
    }

    /// Whether anything of ours is in it, or should be.
    pub(super) fn concerns(&self) -> bool {
        let wanted = self.verified.as_ref().is_some_and(|rules| **rules != TableRules::default());
        wanted || self.seen != ObservedTable::default()
    }
}

/// A mapping that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quarantine {
    /// The kernel's words.
    pub(super) said: String,
    /// The claim that was refused: another one is tried.
    pub(super) claim: Option<Claim>,
}

/// The memory.
#[derive(Debug, Default)]
pub struct Kept {
    pub(super) tables: BTreeMap<(Family, Table), KeptTable>,
    /// The variant of the tools that they were read with.
    pub(super) backend: Option<Backend>,
    pub(super) links: Option<Arc<ObservedLinks>>,
    pub(super) links_doubted: bool,
    pub(super) interfaces: Option<BTreeMap<String, InterfaceFacts>>,
    pub(super) kernel: Option<KernelFacts>,
    pub(super) findings: Option<Vec<Finding>>,
    /// What the findings are about, and what was known then.
    pub(super) preflighted: (Needs, KernelFacts, BTreeSet<IfName>),
    /// Addresses that somebody else answers for, on which interface, and that somebody's hardware address.
    pub(super) in_use: BTreeMap<ProxyNeighbour, String>,
    /// Whether those are to be asked for again.
    pub(super) ask_again: bool,
    /// Addresses that nobody answered for when asked.
    pub(super) asked: BTreeSet<ProxyNeighbour>,
    /// Interfaces, with their index, that were up when addresses were last asked for. None: never yet.
    pub(super) live: Option<BTreeSet<(IfName, u32)>>,
    pub(super) quarantined: BTreeMap<MappingKey, Quarantine>,
    /// What was judged of each mapping by itself.
    pub(super) judged: Memory,
    /// The policy that the connection table was last swept by.
    pub(super) swept: Option<Arc<FlowPolicy>>,
    /// Inside prefixes, with their conntrack zone, whose fence went up and whose older flows have not been deleted yet.
    pub(super) raised: BTreeSet<(u16, IpNet)>,
    /// What rules have counted.
    pub(super) counts: Counts,
    /// Whether anybody wants to know what mappings have counted.
    pub(super) interest: Interest,
    /// Whether anybody reads the metrics.
    pub(super) scraped: Interest,
    /// The tables that it was last found out for what is counted in them.
    pub(super) counted: BTreeMap<(Family, Table), Weak<TableRules>>,
    /// Whether there was a complete pass: before it, what differs is no drift.
    pub(super) settled: bool,
}

impl Kept {
    /// Somebody touched chains of `table`.
    pub fn doubt_table(&mut self, table: Table) {
        let doubted = self.tables.iter_mut().filter(|((_, name), _)| *name == table);
        doubted.for_each(|(_, kept)| kept.doubt());
    }

    /// Any table may have changed.
    pub fn doubt_tables(&mut self) {
        self.tables.values_mut().for_each(KeptTable::doubt);
    }

    /// From now on tables are read and written with this variant of the tools, which has tables of its own. Returns whether that is another one than before: nothing is
    /// known then of any table, also where nothing of ours was.
    pub(super) fn works_with(&mut self, backend: Option<Backend>) -> bool {
        let Some(backend) = backend else { return false };
        let another = self.backend.replace(backend).is_some_and(|before| before != backend);
        if another {
            self.tables.values_mut().for_each(|table| table.doubted = true);
        }
        another
    }

    /// Routes, neighbours, addresses or settings of ours may have changed.
    pub fn doubt_links(&mut self) {
        self.links_doubted = true;
    }

    /// Interfaces may have come, gone or changed.
    pub fn doubt_interfaces(&mut self) {
        self.interfaces = None;
        self.kernel = None;
        self.links_doubted = true;
    }

    /// All of it, also whether somebody else still has the addresses that somebody else had, and whether the kernel still refuses what it refused.
    pub fn doubt_all(&mut self) {
        self.doubt_tables();
        self.doubt_interfaces();
        self.findings = None;
        self.asked.clear();
        self.ask_again = true;
        self.quarantined.clear();
    }

    /// Whether a route to `destination` is thought to be in a table of the kernel.
    pub fn has_route(&self, table: u32, destination: &IpNet) -> bool {
        let Some(links) = &self.links else { return true };
        // Ways are ordered: a foreign flush of ten thousand routes asks this ten thousand times.
        let first = Route {
            table,
            destination: *destination,
            via: Via::Loopback,
        };
        let next = links.routes.range(first..).next();
        next.is_some_and(|route| route.table == table && route.destination == *destination)
    }

    /// Whether a policy routing rule is thought to be in the kernel.
    pub fn has_rule(&self, rule: &PolicyRule) -> bool {
        self.links.as_ref().is_none_or(|links| links.policy_rules.contains(rule))
    }

    /// Whether a proxy neighbour `address` is thought to be in the kernel.
    pub fn has_proxy(&self, address: IpAddr) -> bool {
        let Some(links) = &self.links else { return true };
        // One look for each interface that has proxies, and those are few.
        let mut from = Bound::Unbounded;
        while let Some(first) = links.proxies.range((from, Bound::Unbounded)).next() {
            let at = |address| ProxyNeighbour {
                interface: first.interface.clone(),
                address,
            };
            if links.proxies.contains(&at(address)) {
                return true;
            }
            from = Bound::Excluded(at(IpAddr::V6(Ipv6Addr::from_bits(u128::MAX))));
        }
        false
    }

    /// Takes in a whole table as read now. What changed since it was last verified is drift.
    pub(super) fn take_table(&mut self, at: (Family, Table), now: ObservedTable) -> Vec<Drift> {
        let kept = self.tables.entry(at).or_default();
        let mut drift = Vec::new();
        if kept.seen != now
            && let Some(verified) = kept.verified.take()
        {
            let family = if at.0 == Family::V6 { "IPv6 " } else { "" };
            let sentences = diff::diff(&verified, &now).drift;
            drift.extend(sentences.into_iter().map(|what| Drift {
                place: at.1.as_str(),
                what: format!("{family}table {}, {what}", at.1.as_str()),
            }));
        }
        kept.seen = now;
        kept.doubted = false;
        drift
    }

    /// What must change in a table. Chains that are just as they were verified are not compared again.
    pub(super) fn change(&self, at: (Family, Table), desired: &TableRules) -> TableChange {
        let Some(kept) = self.tables.get(&at) else {
            return diff::diff(desired, &ObservedTable::default());
        };
        let Some(verified) = &kept.verified else {
            return diff::diff(desired, &kept.seen);
        };
        let differing: BTreeSet<ChainName> = desired
            .chains
            .iter()
            .filter(|(name, rules)| verified.chains.get(*name) != Some(*rules))
            .map(|(name, _)| name.clone())
            .collect();
        diff::diff(&diff::narrow(desired, &differing), &part(&kept.seen, desired, &differing))
    }

    /// Whether a rule that says something of a packet (and does not only lead to such rules) is in a table and not in `desired`. Where nothing is known of
    /// what a rule says, because an earlier agent wrote it, every rule counts.
    pub(super) fn labels_go(&self, at: (Family, Table), desired: Option<&TableRules>) -> bool {
        let Some(kept) = self.tables.get(&at) else { return false };
        let hashes = |table: &TableRules| -> BTreeSet<RuleHash> {
            let leads = |rule: &&Rule| rule.owner == Owner::Base && matches!(rule.target, Target::Jump(_) | Target::Goto(_));
            let rules = table.chains.values().flatten().filter(|rule| !leads(rule));
            rules.filter_map(|rule| render::hash(rule).ok()).collect()
        };
        let wanted = desired.map(hashes).unwrap_or_default();
        if let Some(verified) = &kept.verified {
            return !hashes(verified).is_subset(&wanted);
        }
        let all = desired.into_iter().flat_map(|table| table.chains.values().flatten());
        let known: BTreeSet<RuleHash> = all.filter_map(|rule| render::hash(rule).ok()).collect();
        kept.seen.chains.values().flatten().flatten().any(|hash| !known.contains(hash))
    }

    /// Takes in what was read back after `change` was written, the `whole` table or just the chains of it that were written, and tells
    /// whether they are as desired.
    pub(super) fn take_back(
        &mut self,
        at: (Family, Table),
        desired: &Arc<TableRules>,
        change: &TableChange,
        whole: bool,
        now: ObservedTable,
    ) -> bool {
        let kept = self.tables.entry(at).or_default();
        for name in change.touched() {
            kept.seen.chains.remove(&name);
        }
        kept.seen.chains.extend(now.chains);
        if whole {
            kept.seen.hooks = now.hooks;
            kept.seen.dormant = now.dormant;
        }
        let names: BTreeSet<ChainName> = change.write.keys().cloned().collect();
        let stands = diff::diff(&diff::narrow(desired, &names), &part(&kept.seen, desired, &names)).is_empty();
        kept.verified = stands.then(|| desired.clone());
        kept.doubted = !stands;
        stands
    }

    /// A table was switched on.
    pub(super) fn woke(&mut self, at: (Family, Table)) {
        self.tables.entry(at).or_default().seen.dormant = false;
    }

    /// A table that needed no change is as desired.
    pub(super) fn confirm(&mut self, at: (Family, Table), desired: &Arc<TableRules>) {
        let kept = self.tables.entry(at).or_default();
        kept.verified = Some(desired.clone());
    }
}

/// `seen` without those chains of `desired` that are not in `names`.
fn part(seen: &ObservedTable, desired: &TableRules, names: &BTreeSet<ChainName>) -> ObservedTable {
    let passed_over: BTreeSet<&str> = desired
        .chains
        .keys()
        .filter(|name| !names.contains(*name))
        .map(ChainName::as_str)
        .collect();
    let wanted = seen.chains.iter().filter(|(name, _)| !passed_over.contains(name.as_str()));
    ObservedTable {
        hooks: seen.hooks.clone(),
        chains: wanted.map(|(name, rules)| (name.clone(), rules.clone())).collect(),
        referenced: seen.referenced.clone(),
        dormant: seen.dormant,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_kernel_is_found_by_its_place() {
        let interface = |name: &str| IfName::new(name).unwrap();
        let proxy = |name: &str, address: &str| ProxyNeighbour {
            interface: interface(name),
            address: address.parse().unwrap(),
        };
        let route = |table, destination: &str, via| Route {
            table,
            destination: destination.parse().unwrap(),
            via,
        };
        let known = ObservedLinks {
            routes: BTreeSet::from([
                route(254, "10.0.0.1/32", Via::Loopback),
                route(254, "10.1.0.0/16", Via::Blackhole),
                route(211_001, "10.2.0.0/16", Via::Link(interface("br1"))),
            ]),
            proxies: BTreeSet::from([proxy("br1", "10.0.0.3"), proxy("eth0", "10.0.0.1"), proxy("eth0", "fd00::1")]),
            ..ObservedLinks::default()
        };
        let kept = Kept {
            links: Some(Arc::new(known)),
            ..Kept::default()
        };
        let routed = |table, to: &str| kept.has_route(table, &to.parse().unwrap());
        assert!(routed(254, "10.0.0.1/32") && routed(254, "10.1.0.0/16") && routed(211_001, "10.2.0.0/16"));
        assert!(!routed(211_001, "10.0.0.1/32") && !routed(254, "10.1.0.0/15") && !routed(254, "10.2.0.0/16"));
        for (address, there) in [
            ("10.0.0.3", true),
            ("10.0.0.1", true),
            ("fd00::1", true),
            ("10.0.0.2", false),
            ("fd00::2", false),
        ] {
            assert_eq!(kept.has_proxy(address.parse().unwrap()), there, "{address}");
        }
    }
}
