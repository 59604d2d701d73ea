//! Whose rule was it, when the kernel refuses a table without naming a line? The legacy tools hand over a whole table and learn only that it was refused.
//! And when it names a rule that it has already, as a kernel out of memory may: that one stays, whatever is to blame.
//!
//! The rules that are new are tried by halves in a chain that nothing leads to. No packet sees it, and what is in force stays in force meanwhile: the
//! kernel checks every rule of a table, whether or not anything leads to it. What it does not check there is where a rule is reached from; a rule that is
//! refused for that is not found, and it is the product's fault, not a mapping's.
//!
//! A crash in between leaves that chain. Its name says that it is ours, so the next pass takes it away.

use std::collections::{BTreeMap, BTreeSet};

use super::pass::Work;
use crate::host::HostError;
use crate::netfilter::diff::TableChange;
use crate::netfilter::dump::{self, RuleHash};
use crate::netfilter::{ChainName, Family, Owner, Rule, Table, Target, render};

/// A rule of a mapping that the kernel refuses even alone.
pub(super) struct Culprit {
    pub(super) owner: Owner,
    /// The rule, and the kernel's words.
    pub(super) said: String,
}

/// What came of a trial.
enum Trial {
    Taken,
    Refused(String),
    /// It could not be tried.
    Failed(HostError),
}

type Suspect = (ChainName, Rule);

/// Trials that surely find one rule among `count`: one for all of them, then two for each halving.
fn enough(count: usize) -> u32 {
    1 + 2 * count.next_power_of_two().ilog2()
}

impl Work<'_> {
    /// Finds mappings that the kernel refuses, of those with new rules in `change`; at most [`enough`] trials in a pass, one
    /// to see whether the kernel takes anything, and one restore to clear up.
    pub(super) async fn narrow(&mut self, family: Family, table: Table, change: &TableChange) -> Vec<Culprit> {
        let Some(scratch) = ChainName::new("TRY") else {
            return Vec::new();
        };
        let suspects = self.suspects((family, table), change);
        let mut left = self.trials_left.unwrap_or_else(|| enough(suspects.len()));
        let (mut found, mut made) = (Vec::<Culprit>::new(), false);
        let mut open = vec![suspects];
        while let Some(mut part) = open.pop() {
            part.retain(|(_, rule)| found.iter().all(|culprit| culprit.owner != rule.owner));
            let Some((chain, first)) = part.first() else { continue };
            if left == 0 {
                break;
            }
            left -= 1;
            let rules = part.iter().map(|(_, rule)| rule.clone()).collect();
            let trial = TableChange {
                write: BTreeMap::from([(scratch.clone(), rules)]),
                ..TableChange::default()
            };
            match self.try_restore(family, table, trial).await {
                Trial::Taken => made = true,
                Trial::Refused(said) if part.len() == 1 => {
                    let line = render::rule(family, table, chain, first).unwrap_or_default();
                    found.push(Culprit {
                        owner: first.owner.clone(),
                        said: format!(
                            "restoring {}: refused without naming a line; refused alone, too: {line}: {said}",
                            table.as_str()
                        ),
                    });
                }
                Trial::Refused(_) => {
                    let second = part.split_off(part.len() / 2);
                    open.extend([second, part]);
                }
                Trial::Failed(error) => {
                    self.trouble(&error);
                    break;
                }
            }
        }
        self.trials_left = Some(left);
        if !made && !found.is_empty() {
            // A kernel that takes nothing at all has nothing against these rules.
            let empty = TableChange {
                write: BTreeMap::from([(scratch.clone(), Vec::new())]),
                ..TableChange::default()
            };
            made = matches!(self.try_restore(family, table, empty).await, Trial::Taken);
            if !made {
                found.clear();
            }
        }
        if made {
            let clear = TableChange {
                delete: BTreeSet::from([scratch.to_string()]),
                ..TableChange::default()
            };
            if let Trial::Failed(error) = self.try_restore(family, table, clear).await {
                // The table is in doubt: the next pass sees the chain and takes it away.
                self.trouble(&error);
            }
        }
        found
    }

    /// Rules of mappings that are not in the kernel yet. Those that lead on are left out: where to may not exist yet.
    fn suspects(&self, at: (Family, Table), change: &TableChange) -> Vec<Suspect> {
        let present = self.present(at);
        let suspicious = |rule: &&Rule| {
            matches!(rule.owner, Owner::Mapping(_))
                && !matches!(rule.target, Target::Jump(_) | Target::Goto(_))
                && render::hash(rule).is_ok_and(|hash| !present.contains(&hash))
        };
        let rules = change
            .write
            .iter()
            .flat_map(|(name, chain)| chain.iter().map(move |rule| (name, rule)));
        rules
            .filter(|(_, rule)| suspicious(rule))
            .map(|(name, rule)| (name.clone(), rule.clone()))
            .collect()
    }

    fn present(&self, at: (Family, Table)) -> BTreeSet<&RuleHash> {
        let seen = self.kept.tables.get(&at).map(|kept| &kept.seen.chains);
        seen.into_iter().flat_map(BTreeMap::values).flatten().flatten().collect()
    }

    /// Whether the rule in this line of restore input was in the kernel before: then it is not what the kernel has something against.
    pub(super) fn stands(&self, at: (Family, Table), line: &str) -> bool {
        let named = dump::parse(line);
        let present = self.present(at);
        named.chains.values().flatten().flatten().any(|hash| present.contains(hash))
    }

    async fn try_restore(&mut self, family: Family, table: Table, change: TableChange) -> Trial {
        let text = match render::changes(family, &BTreeMap::from([(table, change)])) {
            Ok(text) => text.text,
            Err(error) => return Trial::Refused(error.to_string()),
        };
        match self.host.restore(family, &text).await {
            Ok(()) => {
                self.outcome.writes += 1;
                Trial::Taken
            }
            Err(HostError::RestoreRejected { said, .. }) => Trial::Refused(said),
            Err(error) => Trial::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trials_are_bounded_by_the_logarithm() {
        assert_eq!([1, 2, 3, 4, 1000, 10_000].map(enough), [1, 3, 5, 5, 21, 29]);
    }
}
