//! What flowed through mappings and what the fence denied, counted by our own rules. Pure: readings come in, totals go out.
//!
//! The kernel counts a rule from 0 whenever its chain is written anew. So what is shown are totals: a chain is read before it is written, and each reading
//! adds what came since the one before. What was counted before the agent started is in the first reading, as far as the rules are still the same.
//!
//! Rules of table nat are asked once a connection (`nf_nat_inet_fn` in `net/netfilter/nf_nat_core.c`): a mapping's packets are its new connections, its
//! bytes the sizes of their first packets. The fence's rules are asked for every packet that they deny.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::netfilter::dump::{RuleCount, RuleHash};
use crate::netfilter::rules::CHAIN_PREFIX;
use crate::netfilter::{ChainName, Family, Match, Owner, Rule, Table, TableRules, Target, render};

/// The tables that something is counted in.
pub const COUNTED: [(Family, Table); 4] = [
    (Family::V4, Table::Mangle),
    (Family::V6, Table::Mangle),
    (Family::V4, Table::Nat),
    (Family::V6, Table::Nat),
];

/// Which connections of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// To its virtual address.
    Dialled,
    /// From its target, leaving under its virtual address.
    Left,
}

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Packets that the fence of a network dropped in a direction: in, out, node or unmapped.
    Denied(String, &'static str),
    /// Connections of a mapping, by `namespace/name`.
    Mapping(String, Way),
}

/// What was counted since the rule was first written, or the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// When a reading last found more than the one before.
    pub last_hit: Option<SystemTime>,
}

type Place = (Family, Table, ChainName);

/// The memory: totals, and what they were made from last.
#[derive(Debug, Default)]
pub struct Counts {
    totals: BTreeMap<Subject, Total>,
    /// As last read; empty for a chain that was written since. A chain that is not in here has never been read.
    last: BTreeMap<Place, Vec<RuleCount>>,
}

/// What a rule of a table counts, if that is shown.
fn subject(table: Table, chain: &ChainName, rule: &Rule) -> Option<Subject> {
    match (table, &rule.owner, &rule.target) {
        // What bears the mark of nobody inside is dropped where it would be routed.
        (Table::Mangle, Owner::Network(network), Target::Drop | Target::SetMark(_)) => {
            Some(Subject::Denied(network.clone(), direction(chain)?))
        }
        // What ends in a blackhole of IPv6 before the fence.
        (Table::Nat, Owner::Network(network), Target::Return) => Some(Subject::Denied(network.clone(), direction(chain)?)),
        (Table::Nat, Owner::Mapping(name), Target::Dnat { .. } | Target::Snat { .. } | Target::Netmap { .. }) => {
            let from = rule.matches.iter().any(|m| matches!(m, Match::Source(_)));
            Some(Subject::Mapping(name.clone(), if from { Way::Left } else { Way::Dialled }))
        }
        _ => None,
    }
}

/// What a chain of the fence stands in the way of. Its name says so (the layout is that of [`crate::plan::rules`]).
fn direction(chain: &ChainName) -> Option<&'static str> {
    match chain.as_str().strip_prefix(CHAIN_PREFIX)?.split('-').next()? {
        "FO" | "E" | "ES" | "P" => Some("out"),
        "FI" => Some("in"),
        "N" => Some("node"),
        "U" => Some("unmapped"),
        _ => None,
    }
}

/// Those chains of table nat that count what is denied. By their names: the rules of ten thousand mappings are not gone through for it.
pub fn denying(rules: &TableRules) -> impl Iterator<Item = &ChainName> {
    let first = ChainName::lossy("U-");
    rules
        .chains
        .range(first..)
        .map(|(name, _)| name)
        .take_while(|name| direction(name) == Some("unmapped"))
}

/// The chains of a table that count something, those of `among` only if it is given.
pub fn chains(table: Table, rules: &TableRules, among: Option<&BTreeSet<ChainName>>) -> BTreeSet<ChainName> {
    let counts = |(name, chain): &(&ChainName, &Vec<Rule>)| {
        among.is_none_or(|among| among.contains(*name)) && chain.iter().any(|rule| subject(table, name, rule).is_some())
    };
    rules.chains.iter().filter(counts).map(|(name, _)| name.clone()).collect()
}

impl Counts {
    /// Takes in a reading of chains that hold `rules`.
    pub fn take(
        &mut self,
        (family, table): (Family, Table),
        rules: &TableRules,
        read: BTreeMap<ChainName, Vec<RuleCount>>,
        now: SystemTime,
    ) {
        for (name, counts) in read {
            let Some(chain) = rules.chains.get(&name) else { continue };
            let subjects: BTreeMap<RuleHash, Subject> = chain
                .iter()
                .filter_map(|rule| Some((render::hash(rule).ok()?, subject(table, &name, rule)?)))
                .collect();
            let place = (family, table, name);
            let before = self.last.get(&place);
            for count in &counts {
                let Some(subject) = subjects.get(&count.hash) else { continue };
                let earlier = before.and_then(|all| all.iter().find(|earlier| earlier.hash == count.hash));
                let (packets, bytes) = grown(earlier, count);
                let total = self.totals.entry(subject.clone()).or_default();
                total.packets = total.packets.saturating_add(packets);
                total.bytes = total.bytes.saturating_add(bytes);
                // The first reading of an agent says nothing about when.
                if packets > 0 && before.is_some() {
                    total.last_hit = Some(now);
                }
            }
            self.last.insert(place, counts);
        }
    }

    /// Chains were written: their rules count from 0.
    pub fn written<'a>(&mut self, (family, table): (Family, Table), chains: impl Iterator<Item = &'a ChainName>) {
        for name in chains {
            self.last.insert((family, table, name.clone()), Vec::new());
        }
    }

    /// Whether anything is known of a mapping.
    pub fn has_mappings(&self) -> bool {
        self.totals.keys().any(|subject| matches!(subject, Subject::Mapping(..)))
            || self
                .last
                .keys()
                .any(|(_, table, name)| *table == Table::Nat && direction(name).is_none())
    }

    /// Forgets what is counted no more: what is in none of these tables. What has counted nothing yet is there with 0 afterwards, `mappings` only if they are wanted. Without
    /// `of_mappings` nothing is known of any.
    pub fn retain<'a>(&mut self, tables: impl Iterator<Item = ((Family, Table), &'a TableRules)>, mappings: bool, of_mappings: bool) {
        let (mut subjects, mut places) = (BTreeSet::new(), BTreeSet::new());
        for ((family, table), rules) in tables {
            if table == Table::Nat && !of_mappings {
                places.extend(denying(rules).map(|name| (family, table, name)));
                continue;
            }
            for (name, chain) in &rules.chains {
                subjects.extend(chain.iter().filter_map(|rule| subject(table, name, rule)));
                places.insert((family, table, name));
            }
        }
        self.totals.retain(|subject, _| subjects.contains(subject));
        self.last
            .retain(|(family, table, name), _| places.contains(&(*family, *table, name)));
        for subject in subjects {
            if mappings || !matches!(subject, Subject::Mapping(..)) {
                self.totals.entry(subject).or_default();
            }
        }
    }

    /// Denied packets by network and direction.
    pub fn denied(&self) -> BTreeMap<(String, String), u64> {
        let denied = self.totals.iter().filter_map(|(subject, total)| match subject {
            Subject::Denied(network, direction) => Some(((network.clone(), (*direction).to_owned()), total.packets)),
            Subject::Mapping(..) => None,
        });
        denied.collect()
    }

    /// Totals of mappings, by `namespace/name`.
    pub fn mappings(&self) -> BTreeMap<&str, BTreeMap<Way, Total>> {
        let mut mappings: BTreeMap<&str, BTreeMap<Way, Total>> = BTreeMap::new();
        for (subject, total) in &self.totals {
            if let Subject::Mapping(name, way) = subject {
                mappings.entry(name).or_default().insert(*way, *total);
            }
        }
        mappings
    }

    /// The page `/counters`.
    pub fn page(&self, node: &str, now: SystemTime) -> Value {
        let shown = |total: &Total| json!({"packets": total.packets, "bytes": total.bytes, "lastHit": total.last_hit.and_then(time)});
        let mapping = |(name, ways): (&str, BTreeMap<Way, Total>)| {
            let way = |way| ways.get(&way).map(shown);
            json!({"mapping": name, "dialled": way(Way::Dialled), "left": way(Way::Left)})
        };
        let denied = self.totals.iter().filter_map(|(subject, total)| match subject {
            Subject::Denied(network, direction) => {
                let mut entry = shown(total);
                entry["network"] = json!(network);
                entry["direction"] = json!(direction);
                Some(entry)
            }
            Subject::Mapping(..) => None,
        });
        json!({
            "node": node,
            "read": time(now),
            "mappings": self.mappings().into_iter().map(mapping).collect::<Vec<_>>(),
            "denied": denied.collect::<Vec<_>>(),
        })
    }
}

/// In whole seconds, as everything in a status is.
fn time(at: SystemTime) -> Option<String> {
    let at = Timestamp::try_from(at).ok()?;
    Some(Timestamp::from_second(at.as_second()).ok()?.to_string())
}

/// What came since an earlier reading. A count lower than before was started anew by somebody else.
fn grown(earlier: Option<&RuleCount>, now: &RuleCount) -> (u64, u64) {
    match earlier {
        Some(earlier) if now.packets >= earlier.packets && now.bytes >= earlier.bytes => {
            (now.packets - earlier.packets, now.bytes - earlier.bytes)
        }
        _ => (now.packets, now.bytes),
    }
}

#[cfg(test)]
#[path = "counters_tests.rs"]
mod tests;
