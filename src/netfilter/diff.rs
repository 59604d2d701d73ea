//! The difference between a desired and an observed table, as whole chains to replace.
//!
//! Rules are compared by the hash in their comments, never by text. Chains named `SNET-…` are ours, whoever made them and whatever is in them: one that is not
//! desired goes. Of everybody else's chains only the built-in ones matter, and of those only our jumps.

use std::collections::{BTreeMap, BTreeSet};

use super::dump::{ObservedTable, RuleHash};
use super::encode::BARE_MARK;
use super::render;
use super::rules::{CHAIN_NAME_MAX, Hook, HookRule};
use super::{Chain, ChainName, TableRules};

/// What must change in one table. Empty if the kernel holds what is desired.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableChange {
    /// Chains that are missing or differ, as they must be.
    pub write: BTreeMap<ChainName, Chain>,
    /// Chains of ours that must go.
    pub delete: BTreeSet<String>,
    /// Chains of ours that should go, but a foreign rule leads there: they can only be emptied.
    pub empty: BTreeSet<String>,
    /// Jumps of ours to remove from built-in chains, one entry for each copy. A jump that is moved stands here and in `hook`.
    pub unhook: Vec<(Hook, HookRule)>,
    /// Jumps to place first in built-in chains.
    pub hook: BTreeMap<Hook, HookRule>,
    /// Whether the table must be switched on, before all else.
    pub wake: bool,
    /// How what was found differs, for people, one clause each, to be put behind the table's name: `FORWARD: our jump is gone`.
    /// It is drift if the table was as desired before.
    pub drift: Vec<String>,
}

impl TableChange {
    /// Whether nothing is to be written. Chains that are empty already, but cannot go, do not count.
    pub fn is_empty(&self) -> bool {
        !self.wake && self.write.is_empty() && self.only_writes()
    }

    /// Whether chains are written, and nothing else: no chain and no jump comes or goes.
    pub fn only_writes(&self) -> bool {
        self.delete.is_empty() && self.empty.is_empty() && self.unhook.is_empty() && self.hook.is_empty()
    }

    /// Chains that this change touches: what to read back.
    pub fn touched(&self) -> BTreeSet<String> {
        let written = self.write.keys().map(|name| name.as_str().to_owned());
        written
            .chain(self.delete.iter().cloned())
            .chain(self.empty.iter().cloned())
            .collect()
    }
}

/// What must change so that `observed` becomes `desired`. To remove everything of ours, desire the empty table.
///
/// `observed` must be the whole table; for a part of it, narrow `desired` to the same chains with [`narrow`].
pub fn diff(desired: &TableRules, observed: &ObservedTable) -> TableChange {
    let mut change = TableChange {
        wake: observed.dormant && *desired != TableRules::default(),
        ..TableChange::default()
    };
    if change.wake {
        change
            .drift
            .push("switched off as a whole (flags dormant): no packet saw it".to_owned());
    }
    for (name, chain) in &desired.chains {
        let found = observed.chains.get(name.as_str());
        if let Some(what) = chain_drift(chain, found) {
            change.drift.push(format!("{name}: {what}"));
            change.write.insert(name.clone(), chain.clone());
        }
    }
    let wanted: BTreeSet<&str> = desired.chains.keys().map(ChainName::as_str).collect();
    for (name, rules) in &observed.chains {
        if wanted.contains(name.as_str()) || !writable(name) {
            continue;
        }
        if !observed.referenced.contains(name) {
            change.drift.push(format!("{name}: nobody wants it any more"));
            change.delete.insert(name.clone());
        } else if !rules.is_empty() {
            change
                .drift
                .push(format!("{name}: nobody wants it any more, but a foreign rule leads there"));
            change.empty.insert(name.clone());
        }
    }
    let hooks: BTreeSet<Hook> = desired.hooks.keys().chain(observed.hooks.keys()).copied().collect();
    for hook in hooks {
        let found = observed.hooks.get(&hook).map(|h| h.jumps.as_slice()).unwrap_or_default();
        let wanted = desired.hooks.get(&hook);
        let Some(what) = hook_drift(wanted, found) else {
            continue;
        };
        change.drift.push(format!("{}: {what}", hook.as_str()));
        change.unhook.extend(found.iter().map(|(_, rule)| (hook, rule.clone())));
        change.hook.extend(wanted.map(|rule| (hook, rule.clone())));
    }
    change
}

/// The part of `desired` that concerns `chains`, hooks included: what to compare a partial reading with.
pub fn narrow(desired: &TableRules, chains: &BTreeSet<ChainName>) -> TableRules {
    TableRules {
        hooks: desired.hooks.clone(),
        chains: desired
            .chains
            .iter()
            .filter(|(name, _)| chains.contains(name))
            .map(|(n, c)| (n.clone(), c.clone()))
            .collect(),
    }
}

/// How a chain differs; None if it does not.
fn chain_drift(desired: &Chain, observed: Option<&Vec<Option<RuleHash>>>) -> Option<String> {
    let Some(found) = observed else {
        return Some("missing".to_owned());
    };
    // A rule that cannot be rendered has no hash, so its chain differs, and the renderer says why.
    let wanted: Vec<Option<RuleHash>> = desired.iter().map(|rule| render::hash(rule).ok()).collect();
    if wanted == *found && wanted.iter().all(Option::is_some) {
        return None;
    }
    let known: BTreeSet<&RuleHash> = wanted.iter().flatten().collect();
    let unmarked = |hash: &RuleHash| hash.0.starts_with(BARE_MARK) && !known.contains(hash);
    let foreign = found.iter().filter(|hash| hash.as_ref().is_none_or(unmarked)).count();
    let present: BTreeSet<&RuleHash> = found.iter().flatten().filter(|hash| !unmarked(hash)).collect();
    let missing = known.difference(&present).count();
    let extra = present.difference(&known).count();
    let mut parts = Vec::new();
    for (count, what) in [(foreign, "without our mark"), (missing, "missing"), (extra, "not wanted any more")] {
        match count {
            0 => {}
            1 => parts.push(format!("1 rule {what}")),
            _ => parts.push(format!("{count} rules {what}")),
        }
    }
    if parts.is_empty() {
        parts.push("rules repeated or in another order".to_owned());
    }
    Some(parts.join(", "))
}

/// How our jumps in a built-in chain differ; None if there is just the wanted one, first.
fn hook_drift(wanted: Option<&HookRule>, found: &[(u32, HookRule)]) -> Option<String> {
    match (wanted, found) {
        (None, []) => None,
        (Some(wanted), [(1, rule)]) if rule == wanted => None,
        (None, _) => Some("our jump stands there and nobody wants it any more".to_owned()),
        (Some(_), []) => Some("our jump is gone".to_owned()),
        (Some(wanted), [(position, rule)]) if rule == wanted => Some(format!("our jump is rule {position}, not the first")),
        (Some(_), [(_, rule)]) => Some(format!("our jump is another one: {rule}")),
        (Some(_), several) => Some(format!("our jump stands there {} times", several.len())),
    }
}

/// Whether a chain's name can be written back: everything that the tools take unquoted. Others are left alone.
fn writable(name: &str) -> bool {
    name.len() <= CHAIN_NAME_MAX && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::netfilter::{Family, Owner, Rule, Table, Target, dump};

    fn name(suffix: &str) -> ChainName {
        ChainName::new(suffix).unwrap()
    }

    fn drop_for(owner: &str) -> Rule {
        Rule::new(Owner::Network(owner.to_owned()), [], Target::Drop)
    }

    fn desired() -> TableRules {
        TableRules {
            hooks: BTreeMap::from([(Hook::Forward, name("FWD").into())]),
            chains: BTreeMap::from([
                (name("FWD"), vec![Rule::new(Owner::Base, [], Target::Goto(name("A")))]),
                (name("A"), vec![drop_for("a"), drop_for("b")]),
            ]),
        }
    }

    /// What the kernel shows after `rules` were restored.
    fn shown(rules: &TableRules) -> String {
        let text = render::table(Family::V4, Table::Mangle, rules).unwrap().text;
        text.replace("-I FORWARD 1", "-A FORWARD")
    }

    fn after(edit: impl Fn(String) -> String) -> TableChange {
        diff(&desired(), &dump::parse(&edit(shown(&desired()))))
    }

    #[test]
    fn what_is_as_desired_is_not_written() {
        let change = after(|text| text);
        assert_eq!(change, TableChange::default());
        assert!(
            render::changes(Family::V4, &BTreeMap::from([(Table::Mangle, change)]))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn an_empty_kernel_gets_everything() {
        let change = diff(&desired(), &ObservedTable::default());
        assert_eq!(change.write, desired().chains);
        assert_eq!(change.hook, desired().hooks);
        assert_eq!(change.drift, ["SNET-A: missing", "SNET-FWD: missing", "FORWARD: our jump is gone"]);
    }

    #[test]
    fn foreign_edits_of_a_chain_replace_that_chain_only() {
        let junk = after(|text| text.replace("COMMIT", "-A SNET-A -j ACCEPT\nCOMMIT"));
        assert_eq!(junk.drift, ["SNET-A: 1 rule without our mark"]);
        assert_eq!(junk.touched(), BTreeSet::from(["SNET-A".to_owned()]));
        let swapped = diff(
            &desired(),
            &dump::parse(&shown(&TableRules {
                chains: BTreeMap::from([
                    (name("FWD"), desired().chains[&name("FWD")].clone()),
                    (name("A"), vec![drop_for("b"), drop_for("a")]),
                ]),
                ..desired()
            })),
        );
        assert_eq!(swapped.drift, ["SNET-A: rules repeated or in another order"]);
    }

    #[test]
    fn a_jump_that_is_not_first_moves_and_copies_go() {
        let moved = after(|text| text.replace("-A FORWARD", "-A FORWARD -j ACCEPT\n-A FORWARD"));
        assert_eq!(moved.drift, ["FORWARD: our jump is rule 2, not the first"]);
        assert_eq!((moved.unhook.len(), moved.hook.len()), (1, 1));
        let jump = "-A FORWARD -m comment --comment stagenet -j SNET-FWD\n";
        let doubled = after(|text| text.replace(jump, &jump.repeat(2)));
        assert_eq!((doubled.unhook.len(), doubled.hook.len()), (2, 1));
    }

    #[test]
    fn nothing_desired_removes_chains_and_jumps_but_not_what_others_point_to() {
        let text = shown(&desired()).replace("COMMIT", "-A OUTPUT -j SNET-A\nCOMMIT");
        let change = diff(&TableRules::default(), &dump::parse(&text));
        assert_eq!(change.delete, BTreeSet::from(["SNET-FWD".to_owned()]));
        assert_eq!(change.empty, BTreeSet::from(["SNET-A".to_owned()]));
        assert_eq!(change.unhook, [(Hook::Forward, name("FWD").into())]);
        let emptied = dump::parse(":SNET-A - [0:0]\n-A OUTPUT -j SNET-A\n");
        assert!(
            diff(&TableRules::default(), &emptied).is_empty(),
            "an emptied chain is not emptied again and again"
        );
    }

    #[test]
    fn a_part_of_a_table_is_compared_with_a_part_of_the_plan() {
        let part = narrow(&desired(), &BTreeSet::from([name("A")]));
        let text: String = shown(&desired())
            .lines()
            .filter(|l| !l.contains("-A SNET-FWD") && !l.starts_with(":SNET-FWD"))
            .fold(String::new(), |t, l| t + l + "\n");
        assert!(diff(&part, &dump::parse(&text)).is_empty());
    }
}
