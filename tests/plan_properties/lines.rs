//! What is rendered: every line has one rule, in words that no tool and no shell could read otherwise, whatever objects are called.

use std::collections::BTreeSet;

use proptest::prelude::*;
use stagenet::netfilter::{Family, render};
use stagenet::plan::{HostPlan, World};

use crate::decide;
use crate::wide::{hostile_worlds, wide_worlds};

const TARGETS: [&str; 13] = [
    "RETURN",
    "ACCEPT",
    "DROP",
    "DNAT",
    "SNAT",
    "NETMAP",
    "MASQUERADE",
    "CONNMARK",
    "MARK",
    "CT",
    "TCPMSS",
    "NFLOG",
    "REJECT",
];
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Nothing that quotes, escapes, substitutes, comments or ends a line anywhere.
fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || " -_.,:/@+*[]!".contains(c)
}

/// The rules of a plan, one text a family, as the agent would restore them where nothing of ours stands.
pub(crate) fn rendered(plan: &HostPlan) -> Vec<(Family, String)> {
    let of = |family| {
        let tables = plan.ruleset.tables.iter().filter(move |((f, _), _)| *f == family);
        let texts = tables.map(|((f, table), rules)| render::table(*f, *table, rules).unwrap_or_else(|error| panic!("{error}")).text);
        (family, texts.collect::<String>())
    };
    Family::ALL.into_iter().map(of).filter(|(_, text)| !text.is_empty()).collect()
}

/// Checks the text of one family.
pub(crate) fn check(text: &str) -> Result<(), TestCaseError> {
    prop_assert!(text.ends_with("COMMIT\n"));
    let (mut chains, mut rules) = (BTreeSet::new(), false);
    for line in text.lines() {
        prop_assert!(line.chars().all(is_plain), "{line:?}");
        prop_assert!(line.len() <= 1024, "{line:?}");
        let words: Vec<&str> = line.split(' ').collect();
        prop_assert!(
            words.iter().all(|word| !word.is_empty() && (*word == "!" || !word.contains('!'))),
            "{line:?}"
        );
        match words.as_slice() {
            ["*mangle" | "*raw" | "*nat" | "*filter"] => {
                prop_assert!(!rules, "{line:?} within a table");
                (chains, rules) = (BTreeSet::new(), true);
            }
            ["COMMIT"] => {
                prop_assert!(rules, "{line:?} without a table");
                rules = false;
            }
            [chain, "-", "[0:0]"] => {
                let name = chain.strip_prefix(':').unwrap_or_default();
                prop_assert!(rules && name.starts_with("SNET-") && chains.insert(name), "{line:?}");
            }
            ["-I", hook, "1", rest @ ..] => {
                prop_assert!(rules && HOOKS.contains(hook) && is_way(rest, &chains), "{line:?}");
            }
            ["-A", chain, rest @ ..] => {
                prop_assert!(rules && chains.contains(chain), "{line:?}");
                check_rule(rest, &chains).map_err(|why| TestCaseError::fail(format!("{why}: {line:?}")))?;
            }
            _ => prop_assert!(false, "{line:?}"),
        }
    }
    Ok(())
}

/// What stands in a built-in chain: a jump to a chain of ours, for all or for what the fence has not admitted, or an accept of what it has.
fn is_way(words: &[&str], chains: &BTreeSet<&str>) -> bool {
    if let ["-j", target @ ("SNET-FWD" | "SNET-RAW")] = words {
        return chains.contains(target);
    }
    let (admitted, rest) = match words {
        ["-m", "connmark", "!", "--mark", mark, rest @ ..] if is_mark(mark) => (false, rest),
        ["-m", "connmark", "--mark", mark, rest @ ..] if is_mark(mark) => (true, rest),
        rest => (false, rest),
    };
    let ["-m", "comment", "--comment", "stagenet", "-j", target] = rest else {
        return false;
    };
    if admitted { *target == "ACCEPT" } else { chains.contains(target) }
}

fn is_mark(mark: &str) -> bool {
    mark.split_once('/')
        .is_some_and(|(bits, mask)| bits == mask && bits.starts_with("0x"))
}

fn check_rule(words: &[&str], chains: &BTreeSet<&str>) -> Result<(), &'static str> {
    let count = |option: &[&str]| words.iter().filter(|word| option.contains(word)).count();
    if count(&["-A", "-I", "-D", "-N", "-X", "-F", "-P", "-t", "COMMIT"]) > 0 {
        return Err("a second command");
    }
    if count(&["--comment"]) > 1 || count(&["-j", "-g"]) != 1 {
        return Err("not at most one comment and one target");
    }
    let after = |option: &[&str]| {
        words
            .windows(2)
            .find(|pair| option.contains(&pair[0]))
            .map(|pair| pair[1])
            .unwrap_or_default()
    };
    if count(&["--comment"]) == 1 && !after(&["--comment"]).starts_with("stagenet:") {
        return Err("a comment that is not ours");
    }
    let target = after(&["-j", "-g"]);
    let led = ["RETURN", "MARK", "CT"].contains(&target) || chains.contains(target);
    if count(&["--comment"]) == 0 && !led {
        return Err("a rule without a comment that decides more than the way");
    }
    if !TARGETS.contains(&target) && !chains.contains(target) {
        return Err("an unknown target");
    }
    Ok(())
}

fn check_world(world: &World) -> Result<(), TestCaseError> {
    let (_, plan) = decide(world);
    for (_, text) in rendered(&plan) {
        check(&text)?;
    }
    Ok(())
}

proptest! {
    // The tests of `kernel` check ten thousand worlds more.
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_line_has_one_rule_in_plain_words(world in wide_worlds()) {
        check_world(&world)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn hostile_names_break_no_line(world in hostile_worlds()) {
        check_world(&world)?;
    }
}
