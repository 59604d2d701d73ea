//! What is rendered is accepted and read back, a refusal names its rule, and a small change writes little.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use proptest::prelude::*;
use stagenet::netfilter::rules::Hook;
use stagenet::netfilter::tree::{Entries, Key, dispatch};
use stagenet::netfilter::{Family, Match, Owner, Rule, Ruleset, Table, TableRules, Target, dump, render};

use crate::lab::{Backend, Ns, isolated};
use crate::netfilter::gateway::{Gateway, Kind, Probe};
use crate::netfilter::random::{name, ruleset};
use crate::netfilter::tool::Tool;
use crate::runner;

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
    isolated("rules::rules_are_accepted_and_read_back_by_nft", || {
        accepted_and_read_back(Backend::Nft);
    });
}

#[test]
fn rules_are_accepted_and_read_back_by_legacy() {
    isolated("rules::rules_are_accepted_and_read_back_by_legacy", || {
        accepted_and_read_back(Backend::Legacy);
    });
}

#[test]
fn a_refused_rule_is_found_and_nothing_is_half_applied() {
    isolated("rules::a_refused_rule_is_found_and_nothing_is_half_applied", || {
        // Source translation before routing: the kernel takes no such way to a chain.
        let culprit = Owner::Mapping("default/culprit".to_owned());
        let fine = Rule::new(Owner::Mapping("default/fine".to_owned()), [], Target::Accept);
        let refused = Rule::new(culprit.clone(), [], Target::Snat { to: [192, 0, 2, 1].into() });
        let rules = TableRules {
            hooks: [(Hook::Prerouting, name("P").into())].into(),
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
    isolated("rules::one_change_among_5000_mappings_rewrites_one_small_chain", || {
        let target = |n: u32, to: u8| {
            let address = ipnet::IpNet::from(IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(10, 9, 0, 0).to_bits() + n)));
            let to = Ipv4Addr::new(10, 2, 0, to);
            let rule = Rule::new(
                Owner::Mapping(format!("default/vm{n}")),
                [Match::Destination(address)],
                Target::Dnat {
                    to: to.into(),
                    ports: None,
                },
            );
            (address, vec![rule])
        };
        let ruleset_of = |entries: &Entries| {
            let mut nat = TableRules::default();
            nat.hooks.insert(Hook::Prerouting, name("DNAT").into());
            dispatch(&mut nat.chains, &name("DNAT"), Key::Destination, entries.clone());
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
    isolated("rules::what_plan_prints_for_the_seed_is_taken_as_it_is", || {
        for backend in [Backend::Nft, Backend::Legacy] {
            let ns = Ns::new(backend.name());
            let tool = Tool { ns: &ns, backend };
            tool.restore(Family::V4, &printed).unwrap_or_else(|said| panic!("{said}"));
            let drops = dump::dropped_packets(&tool.save_counted(Table::Mangle));
            assert!(drops.len() >= 4 && drops.values().all(|packets| *packets == 0), "{drops:?}");
        }
    });
}
