//! Typed rules to `iptables-restore` input.
//!
//! The encoders are strict: a value that the tools would need quoted, escaped or repeated is refused, with the rule's owner named. What comes out is
//! taken by `iptables-restore --noflush` of 1.8.9 and later, nft and legacy alike.
//!
//! Rules carry `-m comment --comment stagenet:HASH[:OWNER]`. HASH is what a rule is recognised and compared by, because the text that
//! `iptables-save` prints is not the text that was restored (it reorders, renames and drops). OWNER is for people only. Those that very many packets meet bear none
//! ([`Rule::bare`]): they are of the few forms that are printed as they were read.

use std::collections::{BTreeMap, BTreeSet};

use super::diff::TableChange;
pub use super::encode::{HASH_DIGITS, Problem, RULE_COMMENT, hash};
use super::rules::{Hook, HookRule};
use super::{Chain, ChainName, Family, Owner, Rule, Table, TableRules, Target, encode};

/// Comment of our jump in a built-in chain, exactly.
pub const HOOK_COMMENT: &str = "stagenet";

/// A rule that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("render rule in chain {chain}: {problem}")]
pub struct RenderError {
    /// Where the rule stands.
    pub chain: ChainName,
    /// Whose rule it is.
    pub owner: Owner,
    /// What is wrong with it.
    pub problem: Problem,
}

/// Input for `iptables-restore --noflush`, and whose line is whose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoreText {
    /// The input. Empty if there is nothing to do.
    pub text: String,
    /// Owner of each line that adds a rule, by line number from 1, ascending.
    pub owners: Vec<(usize, Owner)>,
    lines: usize,
}

impl RestoreText {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Whose rule stands on line `line` (from 1).
    pub fn owner_at(&self, line: usize) -> Option<&Owner> {
        let at = self.owners.binary_search_by_key(&line, |(number, _)| *number).ok()?;
        self.owners.get(at).map(|(_, owner)| owner)
    }

    /// The text of line `line` (from 1), for messages.
    pub fn line(&self, line: usize) -> Option<&str> {
        self.text.lines().nth(line.checked_sub(1)?)
    }

    fn push(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
        self.lines += 1;
    }

    fn push_rules(&mut self, family: Family, table: Table, name: &ChainName, chain: &Chain) -> Result<(), RenderError> {
        for r in chain {
            let line = rule(family, table, name, r)?;
            self.push(&line);
            self.owners.push((self.lines, r.owner.clone()));
        }
        Ok(())
    }
}

/// The line that a message of `iptables-restore` blames, from 1. The wordings are those of 1.8.9: `Error occurred at line: 3` for what the tool
/// refuses, `line 6: RULE_APPEND failed` (nft) for what the kernel refuses. `line 7 failed` (legacy) names the COMMIT line: no rule in particular.
pub fn error_line(stderr: &str) -> Option<usize> {
    stderr.lines().find_map(|line| {
        let (_, rest) = line.split_once("line: ").or_else(|| line.split_once("line "))?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    })
}

/// The `-A` line of a rule, with its comment, without a line end.
pub fn rule(family: Family, table: Table, chain: &ChainName, rule: &Rule) -> Result<String, RenderError> {
    match encode::rule(family, table, rule) {
        Ok(words) => Ok(format!("-A {chain}{words}")),
        Err(problem) => Err(RenderError {
            chain: chain.clone(),
            owner: rule.owner.clone(),
            problem,
        }),
    }
}

/// A whole table as it is made where nothing of ours exists.
pub fn table(family: Family, table: Table, rules: &TableRules) -> Result<RestoreText, RenderError> {
    check_ways(rules)?;
    let change = TableChange {
        write: rules.chains.clone(),
        hook: rules.hooks.clone(),
        ..TableChange::default()
    };
    changes(family, &BTreeMap::from([(table, change)]))
}

/// Changes of some tables of one family: one transaction a table, tables in the order of [`Table`]. Empty if nothing changes.
///
/// Within a transaction the order is: chains written or going are emptied (which takes away every way that one of ours has to another), our old jumps go,
/// new jumps are placed first in their built-in chains, rules are added, chains that go are deleted. Jumps before rules, because nft judges a rule by the
/// hooks that lead to it: so a rule that the kernel does not take is refused at its own line and not at the jump.
pub fn changes(family: Family, tables: &BTreeMap<Table, TableChange>) -> Result<RestoreText, RenderError> {
    let mut out = RestoreText::default();
    for (table, change) in tables {
        if change.is_empty() {
            continue;
        }
        out.push(&format!("*{}", table.as_str()));
        let written = change.write.keys().map(ChainName::as_str);
        let emptied: BTreeSet<&str> = written
            .chain(change.delete.iter().map(String::as_str))
            .chain(change.empty.iter().map(String::as_str))
            .collect();
        for name in emptied {
            out.push(&format!(":{name} - [0:0]"));
        }
        for (hook, chain) in &change.unhook {
            out.push(&format!("-D {}", hook_line(*hook, chain, "")));
        }
        for (hook, chain) in &change.hook {
            out.push(&format!("-I {}", hook_line(*hook, chain, " 1")));
            out.owners.push((out.lines, Owner::Base));
        }
        for (name, chain) in &change.write {
            out.push_rules(family, *table, name, chain)?;
        }
        for name in &change.delete {
            out.push(&format!("-X {name}"));
        }
        out.push("COMMIT");
    }
    Ok(out)
}

/// The condition stands before the comment, which costs a comparison of its own.
fn hook_line(hook: Hook, rule: &HookRule, position: &str) -> String {
    let text = rule.to_string();
    if matches!(rule, HookRule::Bare(_)) {
        return format!("{}{position} {text}", hook.as_str());
    }
    let (condition, target) = text.split_at(text.find("-j ").unwrap_or_default());
    format!(
        "{}{position} {condition}-m comment --comment {HOOK_COMMENT} {target}",
        hook.as_str()
    )
}

fn check_ways(rules: &TableRules) -> Result<(), RenderError> {
    let missing = |name: &ChainName| !rules.chains.contains_key(name);
    for (from, rule) in rules
        .chains
        .iter()
        .flat_map(|(from, chain)| chain.iter().map(move |rule| (from, rule)))
    {
        if let Target::Jump(to) | Target::Goto(to) = &rule.target
            && missing(to)
        {
            return Err(RenderError {
                chain: from.clone(),
                owner: rule.owner.clone(),
                problem: Problem::MissingChain(to.clone()),
            });
        }
    }
    match rules.hooks.values().filter_map(HookRule::chain).find(|to| missing(to)) {
        Some(to) => Err(RenderError {
            chain: to.clone(),
            owner: Owner::Base,
            problem: Problem::MissingChain(to.clone()),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn name(suffix: &str) -> ChainName {
        ChainName::new(suffix).unwrap()
    }

    fn rules() -> TableRules {
        let network = Owner::Network("segment-b".to_owned());
        TableRules {
            hooks: BTreeMap::from([(Hook::Forward, name("FWD").into())]),
            chains: BTreeMap::from([
                (name("FWD"), vec![Rule::new(Owner::Base, [], Target::Goto(name("Z")))]),
                (name("Z"), vec![Rule::new(network, [], Target::Drop)]),
            ]),
        }
    }

    #[test]
    fn a_table_is_one_transaction_and_each_line_has_its_owner() {
        let out = table(Family::V4, Table::Mangle, &rules()).unwrap();
        let starts: Vec<&str> = out.text.lines().map(|l| l.split(" -m ").next().unwrap()).collect();
        assert_eq!(
            starts,
            [
                "*mangle",
                ":SNET-FWD - [0:0]",
                ":SNET-Z - [0:0]",
                "-I FORWARD 1",
                "-A SNET-FWD",
                "-A SNET-Z",
                "COMMIT"
            ]
        );
        assert!(out.line(5).unwrap().ends_with(" -g SNET-Z"));
        assert_eq!(out.owner_at(6), Some(&Owner::Network("segment-b".to_owned())));
        assert_eq!(out.owner_at(4), Some(&Owner::Base));
        assert_eq!(out.owner_at(7), None);
        assert_eq!(out.owner_at(0), None);
    }

    /// If this text changes on purpose, so do the rules on every node after an upgrade. Set `UPDATE=1` to write the files anew.
    #[test]
    fn the_seed_experiment_as_restore_input() {
        for ((family, name), rules) in &super::super::sample::seed().tables {
            let text = table(*family, *name, rules).unwrap().text;
            let file = format!(
                "{}/tests/golden/seed-{family:?}-{}.restore",
                env!("CARGO_MANIFEST_DIR"),
                name.as_str()
            )
            .to_lowercase();
            if std::env::var_os("UPDATE").is_some() {
                std::fs::write(&file, &text).unwrap();
            }
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "{file}");
        }
    }

    #[test]
    fn a_way_to_a_chain_that_is_not_there_is_refused() {
        let mut broken = rules();
        broken.chains.remove(&name("Z"));
        let error = table(Family::V4, Table::Mangle, &broken).unwrap_err();
        assert_eq!(
            error.to_string(),
            "render rule in chain SNET-FWD: a way to chain SNET-Z, which is not there"
        );
        broken.chains.clear();
        assert!(table(Family::V4, Table::Mangle, &broken).is_err(), "a hook is a way too");
    }

    #[test]
    fn ways_go_before_the_chains_they_lead_to() {
        let change = TableChange {
            write: BTreeMap::from([(name("NEW"), vec![])]),
            delete: BTreeSet::from(["SNET-OLD".to_owned()]),
            unhook: vec![(Hook::Forward, name("OLD").into())],
            hook: BTreeMap::from([(Hook::Forward, name("NEW").into())]),
            ..TableChange::default()
        };
        let out = changes(Family::V4, &BTreeMap::from([(Table::Filter, change)])).unwrap();
        let expected = "*filter\n:SNET-NEW - [0:0]\n:SNET-OLD - [0:0]\n-D FORWARD -m comment --comment stagenet -j SNET-OLD\n\
                        -I FORWARD 1 -m comment --comment stagenet -j SNET-NEW\n-X SNET-OLD\nCOMMIT\n";
        assert_eq!(out.text, expected);
    }

    #[test]
    fn the_tools_messages_name_a_line() {
        let nft = "iptables-nft-restore v1.8.9 (nf_tables): \nline 6: RULE_APPEND failed (Invalid argument): rule in chain SNET-DNAT\n";
        assert_eq!(error_line(nft), Some(6));
        let parser = "iptables-restore v1.8.9 (legacy): invalid port/service `99999' specified\nError occurred at line: 3\nTry `iptables-restore -h'\n";
        assert_eq!(error_line(parser), Some(3));
        assert_eq!(error_line("iptables-restore: line 7 failed\n"), Some(7));
        assert_eq!(error_line("Another app is currently holding the xtables lock.\n"), None);
    }
}
