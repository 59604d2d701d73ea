//! Netfilter tables in memory: takes our own restore text, all or nothing per table, and tells what of ours is in a table.
//!
//! Only the dialect that [`crate::netfilter::render`] writes is understood; every other line is refused, as a kernel would refuse
//! what it does not know. The rules about order are those of the stricter tool (legacy): a chain must exist before a rule names it,
//! and a chain that goes must be empty and unreferenced at that line.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use crate::host::HostError;
use crate::netfilter::dump::{self, ObservedTable, RuleCount};
use crate::netfilter::rules::CHAIN_PREFIX;
use crate::netfilter::{ChainName, Family, Table};

/// What the kernel is made to refuse.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// Part of a restore line.
    pub(super) part: String,
    pub(super) said: String,
    /// Whether the line is named, or only the COMMIT of its table.
    pub(super) named: bool,
}

/// Chains by name, rule texts in order (without `-A CHAIN `). Built-in chains are always there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FakeTable {
    pub(super) chains: BTreeMap<Arc<str>, Arc<Vec<String>>>,
    /// Whether somebody has switched it off.
    pub(super) dormant: bool,
    /// Packets and bytes of rules that were hit, by chain and text. A chain that is written anew starts anew, as in a kernel.
    pub(super) hits: BTreeMap<Arc<str>, BTreeMap<String, (u64, u64)>>,
}

/// Built-in chains of `table`, as Linux registers them.
fn builtin(table: Table) -> &'static [&'static str] {
    match table {
        Table::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
        Table::Raw => &["PREROUTING", "OUTPUT"],
        Table::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        Table::Filter => &["INPUT", "FORWARD", "OUTPUT"],
    }
}

/// The value that follows `flag` in a rule's text, quotes taken off.
fn value<'a>(rule: &'a str, flag: &str) -> Option<&'a str> {
    let mut words = rule.split_ascii_whitespace();
    words.find(|w| *w == flag)?;
    words.next().map(|w| w.trim_matches('"'))
}

/// The chain of ours that a rule leads to.
fn leads_to(rule: &str) -> Option<&str> {
    value(rule, "-j")
        .or_else(|| value(rule, "-g"))
        .filter(|c| c.starts_with(CHAIN_PREFIX))
}

impl FakeTable {
    pub(super) fn new(table: Table) -> Self {
        Self {
            chains: builtin(table).iter().map(|c| ((*c).into(), Arc::default())).collect(),
            dormant: false,
            hits: BTreeMap::new(),
        }
    }

    /// As the tools save it, with counters: `wanted` chains, or all of them.
    fn saved(&self, wanted: Option<&BTreeSet<ChainName>>) -> String {
        let mut text = String::new();
        let some = wanted
            .into_iter()
            .flatten()
            .filter_map(|chain| self.chains.get_key_value(chain.as_str()));
        let all = self.chains.iter();
        for (chain, rules) in some.chain(all.filter(|_| wanted.is_none())) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, ":{chain} - [0:0]");
            for rule in rules.iter() {
                let (packets, bytes) = self.hits.get(chain).and_then(|hits| hits.get(rule)).copied().unwrap_or_default();
                let _ = writeln!(text, "[{packets}:{bytes}] -A {chain} {rule}");
            }
        }
        text
    }

    /// What of ours is in here, in `chains` or everywhere, read by the same parser as a kernel's.
    pub(super) fn observe(&self, chains: Option<&BTreeSet<ChainName>>) -> ObservedTable {
        ObservedTable {
            dormant: self.dormant,
            ..dump::parse(&self.saved(chains))
        }
    }

    /// What rules of ours have counted, read by the same parser as a kernel's.
    pub(super) fn counters(&self, chains: &BTreeSet<ChainName>) -> BTreeMap<String, Vec<RuleCount>> {
        dump::counters(&self.saved(Some(chains)))
    }

    /// Packets hit every rule that has `part` in its text.
    pub(super) fn hit(&mut self, part: &str, packets: u64, bytes: u64) {
        for (chain, rules) in &self.chains {
            for rule in rules.iter().filter(|rule| rule.contains(part)) {
                let count = self.hits.entry(chain.clone()).or_default().entry(rule.clone()).or_default();
                *count = (count.0 + packets, count.1 + bytes);
            }
        }
    }

    fn referenced(&self, chain: &str) -> bool {
        self.chains
            .values()
            .flat_map(|rules| rules.iter())
            .any(|rule| leads_to(rule) == Some(chain))
    }

    /// Applies one line. The error is what the tool would say.
    fn apply(&mut self, line: &str) -> Result<(), String> {
        let bad = || "Bad argument".to_owned();
        let missing = || "No chain/target/match by that name".to_owned();
        if let Some(rest) = line.strip_prefix(':') {
            let name = rest.split(' ').next().filter(|n| n.starts_with(CHAIN_PREFIX)).ok_or_else(bad)?;
            self.chains.insert(name.into(), Arc::default());
            self.hits.remove(name);
            return Ok(());
        }
        let (verb, rest) = line.split_once(' ').ok_or_else(bad)?;
        let (name, spec) = rest.split_once(' ').unwrap_or((rest, ""));
        if matches!(verb, "-A" | "-I") && leads_to(spec).is_some_and(|to| !self.chains.contains_key(to)) {
            return Err(missing());
        }
        if verb == "-X" && self.referenced(name) {
            return Err("Too many links".to_owned());
        }
        // Only what is written is copied: the table as it was is kept until all of it is accepted.
        let chain = Arc::make_mut(self.chains.get_mut(name).ok_or_else(missing)?);
        match verb {
            "-A" => chain.push(spec.to_owned()),
            "-I" => {
                let (position, spec) = spec.split_once(' ').ok_or_else(bad)?;
                let at = position.parse::<usize>().ok().filter(|p| (1..=chain.len() + 1).contains(p));
                chain.insert(at.ok_or("Index of insertion too big")? - 1, spec.to_owned());
            }
            "-D" => {
                let at = chain.iter().position(|rule| rule == spec);
                chain.remove(at.ok_or("Bad rule (does a matching rule exist in that chain?)")?);
            }
            "-F" if spec.is_empty() => {
                chain.clear();
                self.hits.remove(name);
            }
            "-X" if spec.is_empty() && name.starts_with(CHAIN_PREFIX) => {
                if !chain.is_empty() {
                    return Err("Directory not empty".to_owned());
                }
                self.chains.remove(name);
            }
            _ => return Err(bad()),
        }
        Ok(())
    }
}

/// Runs a restore: one transaction a table. `refuse` may object to any line, as a kernel without some module would; an objection that names no line is
/// raised at the table's COMMIT.
pub(super) fn restore<'r>(
    tables: &mut BTreeMap<(Family, Table), FakeTable>,
    family: Family,
    text: &str,
    refuse: impl Fn(&str) -> Option<&'r Refusal>,
) -> Result<(), HostError> {
    let mut open: Option<(Table, FakeTable)> = None;
    let mut unnamed: Option<&Refusal> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let rejected = |table: Option<Table>, said: String| HostError::RestoreRejected {
            table: table.map_or("?", Table::as_str).to_owned(),
            line: number,
            text: line.to_owned(),
            said,
        };
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('*') {
            let table = Table::ALL.into_iter().find(|t| t.as_str() == name);
            let table = table.ok_or_else(|| rejected(None, "unknown table".to_owned()))?;
            if open.is_some() {
                return Err(rejected(Some(table), "COMMIT expected".to_owned()));
            }
            let present = tables.get(&(family, table)).cloned().unwrap_or_else(|| FakeTable::new(table));
            open = Some((table, present));
            continue;
        }
        if line == "COMMIT" {
            let (table, content) = open.take().ok_or_else(|| rejected(None, "COMMIT without a table".to_owned()))?;
            if let Some(refusal) = unnamed {
                return Err(rejected(Some(table), refusal.said.clone()));
            }
            tables.insert((family, table), content);
            continue;
        }
        let Some((table, content)) = open.as_mut() else {
            return Err(rejected(None, "no table named yet".to_owned()));
        };
        let table = *table;
        match refuse(line) {
            Some(refusal) if refusal.named => return Err(rejected(Some(table), refusal.said.clone())),
            refusal => unnamed = unnamed.or(refusal),
        }
        content.apply(line).map_err(|said| rejected(Some(table), said))?;
    }
    match open {
        None => Ok(()),
        Some((table, _)) => Err(HostError::RestoreRejected {
            table: table.as_str().to_owned(),
            line: text.lines().count(),
            text: String::new(),
            said: "COMMIT expected".to_owned(),
        }),
    }
}
