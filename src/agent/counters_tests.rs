//! Totals from readings.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::time::Duration;

use super::*;

const NAT: (Family, Table) = (Family::V4, Table::Nat);

fn chain(name: &str) -> ChainName {
    ChainName::new(name).unwrap()
}

fn at(second: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(second)
}

fn mapped(name: &str, last: u8) -> Rule {
    let dialled = Match::Destination(IpAddr::from([192, 168, 100, last]).into());
    let target = Target::Dnat {
        to: IpAddr::from([192, 168, 200, last]),
        ports: None,
    };
    Rule::new(Owner::Mapping(name.to_owned()), [dialled], target)
}

fn nat() -> TableRules {
    let mut rules = TableRules::default();
    let mirror = Rule::new(
        Owner::Mapping("a/one".to_owned()),
        [Match::Source("192.168.200.3/32".parse().unwrap())],
        Target::Snat {
            to: IpAddr::from([192, 168, 100, 3]),
        },
    );
    rules.chains.insert(chain("DNAT"), vec![mapped("a/one", 3), mapped("b/two", 4)]);
    rules.chains.insert(chain("M-1"), vec![mirror]);
    let hide = Rule::new(
        Owner::Mapping("a/one".to_owned()),
        [Match::State(crate::netfilter::ConnState::Dnat)],
        Target::Masquerade,
    );
    rules.chains.insert(chain("X-1"), vec![hide]);
    rules
}

fn reading(rules: &TableRules, name: &str, counts: &[(u64, u64)]) -> BTreeMap<ChainName, Vec<RuleCount>> {
    let name = chain(name);
    let counted = rules.chains[&name].iter().zip(counts).map(|(rule, (packets, bytes))| RuleCount {
        hash: render::hash(rule).unwrap(),
        packets: *packets,
        bytes: *bytes,
    });
    BTreeMap::from([(name.clone(), counted.collect())])
}

fn total(packets: u64, bytes: u64, last_hit: Option<u64>) -> Total {
    Total {
        packets,
        bytes,
        last_hit: last_hit.map(at),
    }
}

#[test]
fn totals_outlive_chains_that_are_written_anew() {
    let (rules, mut counts) = (nat(), Counts::default());
    counts.take(NAT, &rules, reading(&rules, "DNAT", &[(5, 300), (0, 0)]), at(1));
    assert_eq!(counts.mappings()["a/one"][&Way::Dialled], total(5, 300, None), "nobody knows when");
    counts.take(NAT, &rules, reading(&rules, "DNAT", &[(7, 420), (0, 0)]), at(2));
    counts.written(NAT, [chain("DNAT")].iter());
    counts.take(NAT, &rules, reading(&rules, "DNAT", &[(7, 420), (1, 60)]), at(3));
    assert_eq!(
        counts.mappings()["a/one"][&Way::Dialled],
        total(14, 840, Some(3)),
        "the same count again is seven more"
    );
    assert_eq!(counts.mappings()["b/two"][&Way::Dialled], total(1, 60, Some(3)));
    counts.take(NAT, &rules, reading(&rules, "DNAT", &[(7, 420), (1, 60)]), at(4));
    assert_eq!(counts.mappings()["b/two"][&Way::Dialled], total(1, 60, Some(3)), "nothing came");
    counts.take(NAT, &rules, reading(&rules, "DNAT", &[(2, 120), (1, 60)]), at(5));
    assert_eq!(
        counts.mappings()["a/one"][&Way::Dialled],
        total(16, 960, Some(5)),
        "somebody set it to 0"
    );
}

#[test]
fn both_ways_are_told_apart_and_what_only_hides_a_client_is_not_counted_again() {
    let (rules, mut counts) = (nat(), Counts::default());
    assert_eq!(chains(Table::Nat, &rules, None), BTreeSet::from([chain("DNAT"), chain("M-1")]));
    assert_eq!(
        chains(Table::Nat, &rules, Some(&BTreeSet::from([chain("M-1"), chain("X-1")]))),
        BTreeSet::from([chain("M-1")])
    );
    counts.take(NAT, &rules, reading(&rules, "DNAT", &[(1, 60), (0, 0)]), at(1));
    counts.take(NAT, &rules, reading(&rules, "M-1", &[(3, 180)]), at(1));
    let page = counts.page("vm02", at(2));
    assert_eq!(page["mappings"][0]["dialled"]["packets"], 1);
    assert_eq!(page["mappings"][0]["left"]["bytes"], 180);
    assert_eq!(page["read"], "1970-01-01T00:00:02Z");
    assert_eq!(page["mappings"][1]["left"], Value::Null);
}

#[test]
fn what_is_counted_no_more_is_forgotten_and_what_is_new_is_there_at_once() {
    let (mut rules, mut counts) = (nat(), Counts::default());
    counts.take(NAT, &rules, reading(&rules, "DNAT", &[(5, 300), (6, 360)]), at(1));
    rules.chains.insert(chain("DNAT"), vec![mapped("a/one", 3), mapped("c/three", 5)]);
    rules.chains.remove(&chain("M-1"));
    counts.retain([(NAT, &rules)].into_iter(), true, true);
    assert_eq!(counts.mappings().into_keys().collect::<Vec<_>>(), ["a/one", "c/three"]);
    assert_eq!(counts.mappings()["a/one"].len(), 1, "the other way is gone");
}

#[test]
fn denied_packets_are_counted_by_network_and_direction_over_chains_and_families() {
    let mut rules = TableRules::default();
    let network = |matches: Vec<Match>, target| Rule::new(Owner::Network("b".to_owned()), matches, target);
    let protected = Match::Destination("10.0.0.0/8".parse().unwrap());
    let out = vec![network(vec![protected], Target::Drop), network(vec![], Target::Drop)];
    rules.chains.insert(chain("FO-AABBCCDD"), out);
    rules.chains.insert(
        chain("N-AABBCCDD"),
        vec![network(vec![], Target::Return), network(vec![], Target::Drop)],
    );
    rules.chains.insert(chain("V"), vec![Rule::new(Owner::Base, [], Target::Drop)]);
    let mut counts = Counts::default();
    for family in Family::ALL {
        let at_family = (family, Table::Mangle);
        counts.take(at_family, &rules, reading(&rules, "FO-AABBCCDD", &[(2, 80), (7, 420)]), at(1));
        counts.take(at_family, &rules, reading(&rules, "N-AABBCCDD", &[(9, 400), (1, 40)]), at(1));
    }
    let key = |direction: &str| ("b".to_owned(), direction.to_owned());
    assert_eq!(counts.denied(), BTreeMap::from([(key("out"), 18), (key("node"), 2)]));
    assert_eq!(counts.page("vm02", at(1))["denied"][1]["packets"], 18);
}

/// In IPv6 what has no port to go to is counted in table nat, which is otherwise gone through only for those who ask for mappings.
#[test]
fn what_is_counted_before_a_blackhole_is_denied_too() {
    let mut rules = nat();
    let counting = Rule::new(Owner::Network("b".to_owned()), [], Target::Return);
    rules.chains.insert(chain("U-AABBCCDD"), vec![counting]);
    let at_six = (Family::V6, Table::Nat);
    let mut counts = Counts::default();
    assert_eq!(denying(&rules).cloned().collect::<Vec<_>>(), [chain("U-AABBCCDD")]);
    for packets in [4, 9] {
        counts.take(at_six, &rules, reading(&rules, "U-AABBCCDD", &[(packets, 400)]), at(packets));
        assert!(!counts.has_mappings());
        let mut mangle = TableRules::default();
        let dropping = Rule::new(Owner::Network("b".to_owned()), [], Target::Drop);
        mangle.chains.insert(chain("U-AABBCCDD"), vec![dropping]);
        let tables = [((Family::V6, Table::Mangle), &mangle), (at_six, &rules)];
        counts.retain(tables.into_iter(), false, false);
        let key = ("b".to_owned(), "unmapped".to_owned());
        assert_eq!(counts.denied(), BTreeMap::from([(key, packets)]));
    }
}
