//! Foreign hands and foreign rules: what they change of ours is undone, what is theirs stays, and nothing of ours is left behind.

use std::cell::RefCell;
use std::collections::BTreeSet;

use proptest::prelude::*;
use stagenet::netfilter::rules::Hook;
use stagenet::netfilter::{Family, Owner, Rule, Ruleset, Table, TableRules, Target};

use crate::lab::{Backend, Ns, isolated};
use crate::netfilter::random::{name, ruleset};
use crate::netfilter::tool::Tool;
use crate::runner;

/// What foreign hands do to rules, as shell lines with $T for the tool, and how they take their own things away again.
const FOREIGN_EDITS: [(&str, &str); 15] = [
    ("$T -t mangle -F", ""),
    ("$T -t nat -F && $T -t nat -X", ""),
    ("$T -t filter -F SNET-A0", ""),
    ("$T -t mangle -I SNET-F0 1 -j ACCEPT", ""),
    ("$T -t nat -A SNET-P1 -j ACCEPT", ""),
    ("$T -t mangle -D FORWARD 1", ""),
    (
        "$T -t mangle -I FORWARD 1 -p 253 -j ACCEPT",
        "$T -t mangle -D FORWARD -p 253 -j ACCEPT",
    ),
    ("$T -t mangle -A FORWARD -m comment --comment stagenet -j SNET-F0", ""),
    ("$T -t mangle -I FORWARD 1 -m comment --comment stagenet -j SNET-I0", ""),
    (
        "$T -t nat -N SNET-OLD && $T -t nat -A SNET-OLD -j SNET-P0 && $T -t nat -I PREROUTING 1 -m comment --comment stagenet -j SNET-OLD",
        "",
    ),
    ("$T -t nat -N SNET-odd_name", ""),
    ("$T -t filter -A FORWARD -j SNET-A0", "$T -t filter -D FORWARD -j SNET-A0"),
    // A rule of ours goes, moves to the end, stands twice.
    ("$T -t mangle -D SNET-F3 1", ""),
    (
        "r=$($T -t nat -S SNET-P0 1 | sed 's/^-A SNET-P0//') && eval \"$T -t nat -D SNET-P0 $r\" && eval \"$T -t nat -A SNET-P0 $r\"",
        "",
    ),
    ("r=$($T -t nat -S SNET-S0 1) && eval \"$T -t nat $r\"", ""),
];

fn foreign_edits_are_undone(backend: Backend) {
    let ns = Ns::new("node");
    let tool = Tool { ns: &ns, backend };
    let line = |what: &str| format!("T='{}'; {what}", backend.iptables());
    let done = RefCell::new(BTreeSet::new());
    let checked = runner(6).run(&ruleset(), |rules| {
        tool.apply(&rules);
        let before = tool.state();
        for (edit, undo) in FOREIGN_EDITS {
            // Some edits need a rule that this set may not have.
            if ns.try_sh(&line(edit)).code != 0 {
                continue;
            }
            if tool.state() != before {
                done.borrow_mut().insert(edit);
            }
            tool.apply(&rules);
            prop_assert_eq!(tool.changes(&rules), vec![], "{}: once is enough", edit);
            ns.sh(&line(undo));
            prop_assert_eq!(tool.state(), before.clone(), "{}", edit);
        }
        Ok(())
    });
    checked.unwrap();
    let all = BTreeSet::from(FOREIGN_EDITS.map(|(edit, _)| edit));
    assert_eq!(done.into_inner(), all, "every edit has changed something at least once");
}

#[test]
fn foreign_edits_are_undone_with_nft() {
    isolated("foreign::foreign_edits_are_undone_with_nft", || {
        foreign_edits_are_undone(Backend::Nft);
    });
}

#[test]
fn foreign_edits_are_undone_with_legacy() {
    isolated("foreign::foreign_edits_are_undone_with_legacy", || {
        foreign_edits_are_undone(Backend::Legacy);
    });
}

fn nothing_is_left_behind(backend: Backend) {
    let ns = Ns::new("node");
    let tool = Tool { ns: &ns, backend };
    tool.run(
        Table::Mangle,
        "-A FORWARD -i eth7 -m comment --comment 'say \"stagenet\"' -j ACCEPT",
    );
    tool.run(Table::Nat, "-N FOREIGN");
    tool.run(Table::Nat, "-A FOREIGN -d 192.0.2.1 -j DNAT --to-destination 192.0.2.2");
    tool.run(Table::Nat, "-A PREROUTING -j FOREIGN");
    tool.run(Table::Filter, "-P FORWARD DROP");
    let before = tool.state();
    let sets = (ruleset(), ruleset());
    let checked = runner(10).run(&sets, |(first, second)| {
        tool.apply(&first);
        tool.apply(&second);
        prop_assert_eq!(tool.changes(&second), vec![], "from one set to another in one step");
        tool.apply(&Ruleset::default());
        prop_assert_eq!(tool.state(), before.clone());
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn nothing_is_left_behind_with_nft() {
    isolated("foreign::nothing_is_left_behind_with_nft", || nothing_is_left_behind(Backend::Nft));
}

#[test]
fn nothing_is_left_behind_with_legacy() {
    isolated("foreign::nothing_is_left_behind_with_legacy", || {
        nothing_is_left_behind(Backend::Legacy);
    });
}

/// One rule, which accepts everything, so the chain can stand under any hook.
fn one_chain(chain: &str) -> Ruleset {
    let rules = TableRules {
        hooks: [(Hook::Forward, name(chain).into())].into(),
        chains: [(name(chain), vec![Rule::new(Owner::Base, [], Target::Accept)])].into(),
    };
    Ruleset {
        tables: [((Family::V4, Table::Filter), rules)].into(),
    }
}

#[test]
fn a_chain_that_a_foreign_rule_leads_to_is_emptied_and_goes_later() {
    isolated("foreign::a_chain_that_a_foreign_rule_leads_to_is_emptied_and_goes_later", || {
        for backend in [Backend::Nft, Backend::Legacy] {
            let ns = Ns::new(backend.name());
            let tool = Tool { ns: &ns, backend };
            let before = tool.state();
            tool.apply(&one_chain("ACC"));
            tool.run(Table::Filter, "-A OUTPUT -j SNET-ACC");
            tool.apply(&Ruleset::default());
            assert!(!tool.state().contains("stagenet"), "rules and jump are gone:\n{}", tool.state());
            assert_eq!(tool.changes(&Ruleset::default()), vec![], "no pass tries again what cannot be");
            tool.run(Table::Filter, "-D OUTPUT -j SNET-ACC");
            tool.apply(&Ruleset::default());
            assert_eq!(tool.state(), before);
        }
    });
}
