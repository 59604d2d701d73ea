//! The netfilter modules against the real tools and the real kernel, nft and legacy: what is rendered is accepted and read back as it was meant, and the
//! tracer says what the kernel does.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod lab;
mod netfilter;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::process::Command;

use lab::{Backend, Ns, isolated};
use netfilter::gateway::{Gateway, Kind, Probe};
use netfilter::random::{dialled, link, name, ruleset};
use netfilter::tool::Tool;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use stagenet::netfilter::rules::{ConnState, Hook};
use stagenet::netfilter::tree::{Key, dispatch};
use stagenet::netfilter::{Family, Match, Owner, PortRange, Rule, Ruleset, Table, TableRules, Target, Transport, dump, render};

/// The same cases every time: a failure can be looked at again.
fn runner(cases: u32) -> TestRunner {
    let config = Config {
        cases,
        max_shrink_iters: 40,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

fn accepted_and_read_back(backend: Backend) {
    let ns = Ns::new("node");
    let tool = Tool { ns: &ns, backend };
    let checked = runner(30).run(&ruleset(), |rules| {
        tool.apply(&rules);
        prop_assert_eq!(tool.changes(&rules), vec![], "a second pass writes nothing");
        for (family, table) in rules.tables.keys() {
            prop_assert_eq!(
                tool.observe(*family, *table),
                dump::parse(&tool.list(*family, *table)),
                "both ways to read a table"
            );
        }
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn rules_are_accepted_and_read_back_by_nft() {
    isolated("rules_are_accepted_and_read_back_by_nft", || accepted_and_read_back(Backend::Nft));
}

#[test]
fn rules_are_accepted_and_read_back_by_legacy() {
    isolated("rules_are_accepted_and_read_back_by_legacy", || {
        accepted_and_read_back(Backend::Legacy);
    });
}

fn probe() -> impl Strategy<Value = Probe> {
    let port = 1000..1012_u16;
    let kind = prop_oneof![
        2 => Just(Kind::Echo),
        3 => port.clone().prop_map(Kind::Udp),
        3 => port.clone().prop_map(Kind::Tcp),
        1 => port.prop_map(Kind::Reset),
    ];
    (1..=3_u8, 1..=3_u8, dialled(), kind).prop_map(|(segment, host, destination, kind)| Probe {
        segment,
        source: Ipv4Addr::new(10, segment, 0, host),
        destination,
        kind,
    })
}

fn tracer_agrees(backend: Backend) {
    let mut gateway = Gateway::new();
    let node = Gateway::node();
    let ns = gateway.ns.clone();
    let tool = Tool { ns: &ns, backend };
    let counted = RefCell::new((&mut gateway, 0, 0));
    let checked = runner(40).run(&(ruleset(), prop::collection::vec(probe(), 24)), |(rules, probes)| {
        tool.apply(&rules);
        let (gateway, sent, through) = &mut *counted.borrow_mut();
        *sent += probes.len();
        *through += gateway.compare(&node, &rules, &probes).map_err(TestCaseError::fail)?;
        Ok(())
    });
    checked.unwrap();
    let (_, sent, through) = counted.into_inner();
    // Neither all nor nothing: the comparison has seen both.
    assert!((sent / 20..sent * 19 / 20).contains(&through), "{through} of {sent} came through");
}

#[test]
fn the_tracer_says_what_the_kernel_does_with_nft() {
    isolated("the_tracer_says_what_the_kernel_does_with_nft", || tracer_agrees(Backend::Nft));
}

#[test]
fn the_tracer_says_what_the_kernel_does_with_legacy() {
    isolated("the_tracer_says_what_the_kernel_does_with_legacy", || {
        tracer_agrees(Backend::Legacy);
    });
}

/// Rules that a random set seldom meets with the right packet.
fn particular_cases() -> Ruleset {
    let mapping = |to: [u8; 4], matches: Vec<Match>, ports| {
        let to = to.into();
        Rule::new(Owner::Base, matches, Target::Dnat { to, ports })
    };
    let dialled = |address: &str| Match::Destination(address.parse().unwrap());
    let base = |matches: Vec<Match>, target| Rule::new(Owner::Base, matches, target);
    let ports = |first, last| PortRange::new(first, last).unwrap();
    let udp = |first, last| Match::DestinationPorts(Transport::Udp, ports(first, last));
    let nat = TableRules {
        hooks: [(Hook::Prerouting, name("P")), (Hook::Postrouting, name("S"))].into(),
        chains: [
            (
                name("P"),
                vec![
                    // To itself: that is no translation.
                    mapping([10, 2, 0, 1], vec![dialled("10.2.0.1/32")], None),
                    mapping(
                        [10, 2, 0, 2],
                        vec![dialled("10.9.0.1/32"), udp(1000, 1004)],
                        Some((ports(2000, 2004), 1000)),
                    ),
                    mapping(
                        [10, 2, 0, 2],
                        vec![dialled("10.9.0.1/32"), udp(1005, 1009)],
                        Some((ports(1005, 1009), 1005)),
                    ),
                    mapping([10, 1, 0, 1], vec![dialled("10.9.0.2/32")], None),
                ],
            ),
            (name("S"), vec![base(vec![Match::State(ConnState::Dnat)], Target::Masquerade)]),
        ]
        .into(),
    };
    let mangle = TableRules {
        hooks: [(Hook::Forward, name("F"))].into(),
        chains: [(
            name("F"),
            vec![
                base(vec![Match::State(ConnState::EstablishedOrRelated)], Target::Return),
                base(vec![Match::State(ConnState::Dnat)], Target::SetConnMark(0x2000)),
                base(vec![Match::ConnMark(0x2000)], Target::Return),
                base(vec![Match::In(link("eth2"))], Target::Return),
                base(vec![], Target::Drop),
            ],
        )]
        .into(),
    };
    Ruleset {
        tables: [((Family::V4, Table::Nat), nat), ((Family::V4, Table::Mangle), mangle)].into(),
    }
}

#[test]
fn translations_that_change_nothing_whole_ranges_and_hairpins() {
    isolated("translations_that_change_nothing_whole_ranges_and_hairpins", || {
        let mut gateway = Gateway::new();
        let rules = particular_cases();
        let from = |segment: u8, to: [u8; 4], kind| Probe {
            segment,
            source: Ipv4Addr::new(10, segment, 0, 1),
            destination: to.into(),
            kind,
        };
        let mut probes: Vec<Probe> = (999..=1010).map(|port| from(1, [10, 9, 0, 1], Kind::Udp(port))).collect();
        for kind in [Kind::Echo, Kind::Tcp(80), Kind::Udp(80), Kind::Reset(80)] {
            probes.push(from(1, [10, 2, 0, 1], kind));
            probes.push(from(3, [10, 2, 0, 1], kind));
            probes.push(from(2, [10, 9, 0, 2], kind));
            // Hairpin: the target dials its own virtual address.
            probes.push(from(1, [10, 9, 0, 2], kind));
        }
        for backend in [Backend::Nft, Backend::Legacy] {
            let ns = gateway.ns.clone();
            let tool = Tool { ns: &ns, backend };
            tool.apply(&rules);
            let through = gateway.compare(&Gateway::node(), &rules, &probes).unwrap_or_else(|e| panic!("{e}"));
            // Ten ports of the range; from segment 3 everything; to the second mapping all but the reset, twice.
            assert_eq!(through, 10 + 4 + 3 + 3);
            tool.apply(&Ruleset::default());
        }
    });
}

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
    isolated("foreign_edits_are_undone_with_nft", || foreign_edits_are_undone(Backend::Nft));
}

#[test]
fn foreign_edits_are_undone_with_legacy() {
    isolated("foreign_edits_are_undone_with_legacy", || foreign_edits_are_undone(Backend::Legacy));
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
    isolated("nothing_is_left_behind_with_nft", || nothing_is_left_behind(Backend::Nft));
}

#[test]
fn nothing_is_left_behind_with_legacy() {
    isolated("nothing_is_left_behind_with_legacy", || nothing_is_left_behind(Backend::Legacy));
}

/// One rule, which accepts everything, so the chain can stand under any hook.
fn one_chain(chain: &str) -> Ruleset {
    let rules = TableRules {
        hooks: [(Hook::Forward, name(chain))].into(),
        chains: [(name(chain), vec![Rule::new(Owner::Base, [], Target::Accept)])].into(),
    };
    Ruleset {
        tables: [((Family::V4, Table::Filter), rules)].into(),
    }
}

#[test]
fn a_chain_that_a_foreign_rule_leads_to_is_emptied_and_goes_later() {
    isolated("a_chain_that_a_foreign_rule_leads_to_is_emptied_and_goes_later", || {
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

#[test]
fn a_refused_rule_is_found_and_nothing_is_half_applied() {
    isolated("a_refused_rule_is_found_and_nothing_is_half_applied", || {
        // Source translation before routing: the kernel takes no such way to a chain.
        let culprit = Owner::Mapping("default/culprit".to_owned());
        let fine = Rule::new(Owner::Mapping("default/fine".to_owned()), [], Target::Accept);
        let refused = Rule::new(culprit.clone(), [], Target::Snat { to: [192, 0, 2, 1].into() });
        let rules = TableRules {
            hooks: [(Hook::Prerouting, name("P"))].into(),
            chains: [(name("P"), vec![fine, refused])].into(),
        };
        for backend in [Backend::Nft, Backend::Legacy] {
            let ns = Ns::new(backend.name());
            let tool = Tool { ns: &ns, backend };
            let before = tool.state();
            let text = render::table(Family::V4, Table::Nat, &rules).unwrap();
            let said = tool.restore(Family::V4, &text.text).unwrap_err();
            let line = render::error_line(&said).unwrap();
            match backend {
                Backend::Nft => assert_eq!(text.owner_at(line), Some(&culprit), "{said}"),
                // The legacy kernel takes or refuses a table as a whole.
                Backend::Legacy => assert_eq!(text.line(line), Some("COMMIT"), "{said}"),
            }
            assert_eq!(tool.state(), before);
        }
    });
}

#[test]
fn one_change_among_5000_mappings_rewrites_one_small_chain() {
    isolated("one_change_among_5000_mappings_rewrites_one_small_chain", || {
        let target = |n: u32, to: u8| {
            let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 9, 0, 0).to_bits() + n);
            let to = Ipv4Addr::new(10, 2, 0, to);
            let rule = Rule::new(
                Owner::Mapping(format!("default/vm{n}")),
                [Match::Destination(address.into())],
                Target::Dnat { to, ports: None },
            );
            (address, vec![rule])
        };
        let ruleset_of = |entries: &BTreeMap<Ipv4Addr, Vec<Rule>>| {
            let mut nat = TableRules::default();
            nat.hooks.insert(Hook::Prerouting, name("DNAT"));
            dispatch(&mut nat.chains, &name("DNAT"), Key::Destination, entries);
            Ruleset {
                tables: [((Family::V4, Table::Nat), nat)].into(),
            }
        };
        let entries: BTreeMap<_, _> = (0..5000).map(|n| target(n, u8::try_from(n % 20).unwrap() + 1)).collect();
        let mut changed = entries.clone();
        changed.extend([target(4321, 9)]);
        let mut gateway = Gateway::new();
        let ns = gateway.ns.clone();
        for backend in [Backend::Nft, Backend::Legacy] {
            let tool = Tool { ns: &ns, backend };
            tool.apply(&ruleset_of(&entries));
            let written = tool.apply(&ruleset_of(&changed));
            assert!(written <= 1 + 1 + 16 + 1, "{written} lines for one change");
            let rules = ruleset_of(&changed);
            let probes: Vec<Probe> = [0, 1, 15, 16, 255, 256, 4095, 4096, 4321, 4999, 5000, 60_000]
                .map(|n| Probe {
                    segment: 1,
                    source: Ipv4Addr::new(10, 1, 0, 1),
                    destination: Ipv4Addr::from_bits(Ipv4Addr::new(10, 9, 0, 0).to_bits() + n),
                    kind: Kind::Tcp(22),
                })
                .into();
            let through = gateway.compare(&Gateway::node(), &rules, &probes).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(through, probes.len() - 2, "all but the two that are no mapping's");
            tool.apply(&Ruleset::default());
        }
    });
}

/// The seed's manifests, through the whole product, to what the tools take. The text is kept in `tests/golden`; `UPDATE=1` writes it anew.
#[test]
fn what_plan_prints_for_the_seed_is_taken_as_it_is() {
    let root = env!("CARGO_MANIFEST_DIR");
    let printed = Command::new(env!("CARGO_BIN_EXE_stagenet"))
        .args(["plan", "-f", &format!("{root}/examples/seed"), "--node", "vm02", "-o", "restore"])
        .output()
        .unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let printed = String::from_utf8(printed.stdout).unwrap();
    let golden = format!("{root}/tests/golden/plan-seed.restore");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&golden, &printed).unwrap();
    }
    assert_eq!(printed, std::fs::read_to_string(&golden).unwrap(), "{golden}");
    isolated("what_plan_prints_for_the_seed_is_taken_as_it_is", || {
        for backend in [Backend::Nft, Backend::Legacy] {
            let ns = Ns::new(backend.name());
            let tool = Tool { ns: &ns, backend };
            tool.restore(Family::V4, &printed).unwrap_or_else(|said| panic!("{said}"));
            let drops = dump::dropped_packets(&tool.save_counted(Table::Mangle));
            assert!(drops.len() >= 4 && drops.values().all(|packets| *packets == 0), "{drops:?}");
        }
    });
}
