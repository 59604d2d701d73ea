//! Takes everything of ours away from a node, in the reverse order of putting it there. Needs no API server and no memory: our marks tell what is ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::kept::TABLES;
use super::staging;
use crate::host::{Host, HostError, LinkChange, ObservedLinks};
use crate::netfilter::diff::{self, TableChange};
use crate::netfilter::{Family, HookRule, Table, TableRules, render};
use crate::plan::{FlowPolicy, Reach, Route, Sweep, Via};

/// What was there and is gone now, and what could not be removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// What was removed, in order.
    pub removed: Vec<String>,
    /// What went wrong. Everything else was done all the same.
    pub errors: Vec<String>,
}

impl fmt::Display for Cleaned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.removed.is_empty() && self.errors.is_empty() {
            return f.write_str("nothing of stagenet found\n");
        }
        self.removed.iter().try_for_each(|what| writeln!(f, "removed {what}"))
    }
}

/// Cleans up one node through `hosts`: the same host, with each backend that rules may be in. `lenient`: a missing tool is no error, because nobody can
/// have made rules with it. `connmark`: see [`HostOptions::connmark`](crate::plan::HostOptions::connmark); what the node's rules say counts more.
pub async fn run(hosts: &mut [&mut dyn Host], lenient: bool, connmark: u32) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let Some(first) = hosts.first_mut() else { return cleaned };
    let links = first.read_links().await.unwrap_or_else(|error| {
        cleaned.errors.push(error.to_string());
        ObservedLinks::default()
    });
    attracting(*first, &links, &mut cleaned).await;
    // The translations of every backend go while its fence stands, then what they made; what led it, then; the settings; the fence comes down last.
    let mut marks = BTreeSet::new();
    for host in hosts.iter_mut() {
        marks.extend(tables(*host, &[Table::Nat, Table::Filter], lenient, &mut cleaned).await);
    }
    // Somebody may have flushed the rule that says it.
    if marks.is_empty() && !links.touched.is_empty() {
        marks.insert(connmark);
    }
    if let Some(first) = hosts.first_mut() {
        flows(*first, &links, &marks, &mut cleaned).await;
        shut(*first, &links, &mut cleaned).await;
    }
    for host in hosts.iter_mut() {
        tables(*host, &[Table::Raw], lenient, &mut cleaned).await;
    }
    if let Some(first) = hosts.first_mut() {
        leading(*first, &links, &mut cleaned).await;
        put_back(*first, &links, &mut cleaned).await;
    }
    for host in hosts.iter_mut() {
        tables(*host, &[Table::Mangle], lenient, &mut cleaned).await;
    }
    cleaned
}

async fn attracting(host: &mut dyn Host, links: &ObservedLinks, cleaned: &mut Cleaned) {
    let mut changes: Vec<LinkChange> = links.proxies.iter().cloned().map(LinkChange::RemoveProxy).collect();
    let routes = links.routes.iter().filter(|route| attracts(route));
    changes.extend(routes.cloned().map(LinkChange::RemoveRoute));
    changes.extend(links.addresses.iter().cloned().map(LinkChange::RemoveAddress));
    change(host, &changes, cleaned).await;
}

fn attracts(route: &Route) -> bool {
    matches!(route.via, Via::Loopback | Via::Gateway(_))
}

/// Inside interfaces forward no more: the node would answer what it cannot pass on before it asks the fence, and the labels by which it does not are about to go.
async fn shut(host: &mut dyn Host, links: &ObservedLinks, cleaned: &mut Cleaned) {
    let changes = staging::shutting(&links.inside, links);
    let errors = host.change_links(&changes).await.err().unwrap_or_default();
    cleaned.errors.extend(errors.iter().map(HostError::to_string));
}

/// What led translated packets into their networks: with it gone earlier, table main might lead them into production. Blackholes go last.
async fn leading(host: &mut dyn Host, links: &ObservedLinks, cleaned: &mut Cleaned) {
    let mut changes: Vec<LinkChange> = links.policy_rules.iter().cloned().map(LinkChange::RemoveRule).collect();
    let (blackholes, led): (Vec<&Route>, Vec<&Route>) = links
        .routes
        .iter()
        .filter(|route| !attracts(route))
        .partition(|route| route.via == Via::Blackhole);
    changes.extend(led.into_iter().chain(blackholes).cloned().map(LinkChange::RemoveRoute));
    change(host, &changes, cleaned).await;
}

/// Ends the flows of every virtual address that the node attracted, and everything else that the fence admitted: without the translations they would go on by the
/// connection table alone. What left under an address of the node's own is known by nothing but the mark.
async fn flows(host: &mut dyn Host, links: &ObservedLinks, marks: &BTreeSet<u32>, cleaned: &mut Cleaned) {
    let routed = links.routes.iter().filter(|r| r.via == Via::Loopback).map(|r| r.destination);
    let pools: BTreeSet<IpNet> = routed.chain(links.proxies.iter().map(|p| IpNet::from(p.address))).collect();
    let mut sweeps: Vec<Sweep> = marks
        .iter()
        .map(|connmark| Sweep {
            connmark: *connmark,
            unfenced: true,
            ..Sweep::default()
        })
        .collect();
    if sweeps.is_empty() && !pools.is_empty() {
        sweeps.push(Sweep::default());
    }
    if let Some(first) = sweeps.first_mut() {
        first.earlier = Reach::anywhere(pools);
    }
    let mut ended = 0;
    for sweep in sweeps {
        match host.sweep_flows(&Arc::new(FlowPolicy::default()), sweep).await {
            Ok(count) => ended += count,
            Err(error) => cleaned.errors.push(error.to_string()),
        }
    }
    if ended > 0 {
        cleaned.removed.push(format!("{ended} open connections that were translated"));
    }
}

/// Puts back what was found. What is put back may switch forwarding on, so until then the interfaces are closed by the fence that still stands,
/// and from then on the node is as it was before us.
async fn put_back(host: &mut dyn Host, links: &ObservedLinks, cleaned: &mut Cleaned) {
    let changes: Vec<LinkChange> = links.touched.iter().cloned().map(LinkChange::PutBack).collect();
    change(host, &changes, cleaned).await;
}

async fn change(host: &mut dyn Host, changes: &[LinkChange], cleaned: &mut Cleaned) {
    if changes.is_empty() {
        return;
    }
    let errors = host.change_links(changes).await.err().unwrap_or_default();
    if errors.len() < changes.len() {
        cleaned.removed.extend(changes.iter().map(describe));
    }
    cleaned.errors.extend(errors.iter().map(HostError::to_string));
}

fn describe(change: &LinkChange) -> String {
    match change {
        LinkChange::RemoveProxy(p) | LinkChange::AddProxy(p) => format!("proxy neighbour {} on {}", p.address, p.interface),
        LinkChange::RemoveRoute(r) | LinkChange::AddRoute(r) => format!("route {r}"),
        LinkChange::RemoveAddress(a) | LinkChange::AddAddress(a) => format!("address {} on {}", a.address, a.interface),
        LinkChange::RemoveRule(r) | LinkChange::AddRule(r) => format!("policy routing rule {r}"),
        LinkChange::Inside(i) | LinkChange::Set(i, _) | LinkChange::PutBack(i) => format!("settings of {i} (what was found is put back)"),
    }
}

/// Takes our rules out of these tables. Returns the connection marks that they accepted.
async fn tables(host: &mut dyn Host, names: &[Table], lenient: bool, cleaned: &mut Cleaned) -> BTreeSet<u32> {
    let mut marks = BTreeSet::new();
    for (family, table) in TABLES.into_iter().filter(|(_, table)| names.contains(table)) {
        let seen = match host.read_table(family, table, None).await {
            Ok(seen) => seen,
            Err(HostError::ToolMissing { .. }) if lenient => continue,
            Err(error) => {
                cleaned.errors.push(error.to_string());
                continue;
            }
        };
        marks.extend(seen.hooks.values().flat_map(|hook| &hook.jumps).filter_map(|(_, rule)| match rule {
            HookRule::AcceptMarked(bits) => Some(*bits),
            HookRule::Jump(_) | HookRule::Bare(_) => None,
        }));
        let change = diff::diff(&TableRules::default(), &seen);
        if change.is_empty() {
            continue;
        }
        let what = summary(family, table, &change);
        let left: Vec<&str> = change.empty.iter().map(String::as_str).collect();
        if !left.is_empty() {
            let left = left.join(", ");
            cleaned.errors.push(format!(
                "table {}: a rule that is not ours leads to {left}: emptied, but it can go only after that rule",
                table.as_str()
            ));
        }
        let text = match render::changes(family, &BTreeMap::from([(table, change)])) {
            Ok(text) => text.text,
            Err(error) => {
                cleaned.errors.push(error.to_string());
                continue;
            }
        };
        match host.restore(family, &text).await {
            Ok(()) => cleaned.removed.push(what),
            Err(error) => cleaned.errors.push(error.to_string()),
        }
    }
    marks
}

fn summary(family: Family, table: Table, change: &TableChange) -> String {
    let tool = if family == Family::V6 { "ip6tables" } else { "iptables" };
    let names: BTreeSet<&str> = change.delete.iter().map(String::as_str).collect();
    let hooks = match change.unhook.len() {
        1 => "1 rule of a built-in chain".to_owned(),
        many => format!("{many} rules of built-in chains"),
    };
    let chains = match names.len() {
        0 => String::new(),
        1 => format!(" and chain {}", names.iter().copied().collect::<String>()),
        many => format!(" and {many} chains ({})", names.iter().copied().collect::<Vec<_>>().join(" ")),
    };
    format!("{tool} table {}: {hooks}{chains}", table.as_str())
}
