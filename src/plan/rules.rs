//! From networks and claims to typed netfilter rules: what all tables share.
//!
//! ```text
//! mangle FORWARD → SNET-FWD → SNET-FO-H, SNET-FI-H, SNET-U-H   the fence (modules fence and gates)
//! mangle INPUT   → SNET-IN  → SNET-N-H
//! mangle OUTPUT  → SNET-OUT                                     errors of the node itself towards isolated networks
//! raw PREROUTING → SNET-RAW → SNET-C-H, OUTPUT → SNET-RAWOUT    zones, marks and helpers (module raw)
//! nat PREROUTING → SNET-DNAT,  POSTROUTING → SNET-SNAT          the translations (module translation)
//! filter FORWARD                                                accepts what the fence admitted
//! ```
//! H is a hash of the network's name ([`network_hash`]).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::sites::Site;
use super::{HostOptions, KernelFacts, MappingKey, fence, raw, translation};
use crate::netfilter::{ChainName, Family, Hook, HookRule, IfName, Match, Owner, Rule, Ruleset, Table, TableRules, Target};

/// A rule on behalf of the network.
pub(super) fn rule(site: &Site<'_>, matches: impl IntoIterator<Item = Match>, target: Target) -> Rule {
    Rule::new(site.owner(), matches, target)
}

/// A rule on behalf of a mapping.
pub(super) fn rule_of(key: &MappingKey, matches: impl IntoIterator<Item = Match>, target: Target) -> Rule {
    Rule::new(Owner::Mapping([&*key.namespace, "/", &*key.name].concat()), matches, target)
}

/// Sources that lead nobody out of the closed network when they are answered: its own, and in IPv6 those of the link and none, which multicast listeners have at one hop.
pub(super) fn local_sources<'s>(site: &'s Site<'_>, family: Family) -> impl Iterator<Item = IpNet> + 's {
    let link = ["fe80::/10", "::/128"]
        .into_iter()
        .filter(move |_| family == Family::V6)
        .filter_map(|p| p.parse().ok());
    site.network
        .into_iter()
        .flat_map(move |network| network.inside_of(family))
        .chain(link)
}

pub(super) const FORWARD: &str = "FWD";
pub(super) const INPUT: &str = "IN";

/// The part of a network's chain names that tells it from other networks: eight hexadecimal digits in them.
pub fn network_hash(network: &str) -> u32 {
    let digest = Sha256::digest(network.as_bytes());
    digest.iter().take(4).fold(0, |hash, byte| hash << 8 | u32::from(*byte))
}

/// `SNET-KIND-HHHHHHHH`.
pub(super) fn network_chain(kind: &str, hash: u32) -> ChainName {
    ChainName::lossy(&format!("{kind}-{hash:08X}"))
}

/// All rules of the node. Empty if no network has a fence here: then no table is touched.
pub(super) fn ruleset(sites: &[Site<'_>], claimed_elsewhere: &BTreeSet<IpNet>, kernel: &KernelFacts, options: &HostOptions) -> Ruleset {
    let mut ruleset = Ruleset::default();
    if !sites.iter().any(|site| !site.fence.is_empty()) {
        return ruleset;
    }
    for family in Family::ALL {
        let mut add = |table, rules: TableRules| drop(ruleset.tables.insert((family, table), rules));
        add(
            Table::Mangle,
            fence::table(sites, family, claimed_elsewhere, kernel, options, false),
        );
        if let Some(rules) = raw::table(sites, family, kernel, options) {
            add(Table::Raw, rules);
        }
        if sites.iter().any(|site| site.translates(family)) {
            add(Table::Nat, translation::table(sites, family));
            add(Table::Filter, fence::accepts(options));
        }
    }
    ruleset
}

/// Table mangle of IPv4 as long as reverse path filters are not strict yet that are going to be. None: all are.
pub(super) fn meanwhile(
    sites: &[Site<'_>],
    claimed_elsewhere: &BTreeSet<IpNet>,
    kernel: &KernelFacts,
    options: &HostOptions,
) -> Option<TableRules> {
    let family = Family::V4;
    let waits = sites.iter().any(|site| site.marks_meanwhile(family));
    waits.then(|| fence::table(sites, family, claimed_elsewhere, kernel, options, true))
}

/// Drops everything forwarded from and to `interfaces`, ahead of all else: for interfaces that are no longer in the plan and must not open yet.
pub fn close_interfaces(tables: &mut BTreeMap<(Family, Table), TableRules>, interfaces: &BTreeSet<IfName>) {
    if interfaces.is_empty() {
        return;
    }
    for family in Family::ALL {
        let table = tables.entry((family, Table::Mangle)).or_default();
        let forward = hook(table, Hook::Forward, FORWARD);
        let drops = interfaces.iter().flat_map(|interface| {
            [Match::In(interface.clone()), Match::Out(interface.clone())].map(|m| Rule::new(Owner::Base, [m], Target::Drop))
        });
        table.chains.entry(forward).or_default().splice(0..0, drops);
    }
}

/// Makes `table` jump from `at` to our chain, which exists from then on.
pub(super) fn hook(table: &mut TableRules, at: Hook, chain: &str) -> ChainName {
    let name = ChainName::lossy(chain);
    table.hooks.insert(at, HookRule::to(at, name.clone()));
    table.chains.entry(name.clone()).or_default();
    name
}
