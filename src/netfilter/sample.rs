//! The seed experiment's rules, written by hand: one closed network behind eth1, its pool on eth0, two mappings. For tests.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::rules::{ConnState, Hook};
use super::{ChainName, Family, IfName, Match, Owner, PortRange, Rule, Ruleset, Table, TableRules, Target, Transport};

const BIT: u32 = 0x2000;

fn chain(suffix: &str) -> ChainName {
    ChainName::new(suffix).unwrap()
}

fn link(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn network(matches: impl IntoIterator<Item = Match>, target: Target) -> Rule {
    Rule::new(Owner::Network("segment-b".to_owned()), matches, target)
}

fn base(matches: impl IntoIterator<Item = Match>, target: Target) -> Rule {
    Rule::new(Owner::Base, matches, target)
}

fn mapping(name: &str, matches: impl IntoIterator<Item = Match>, to: &str, ports: Option<(PortRange, u16)>) -> Rule {
    let to = to.parse().unwrap();
    Rule::new(Owner::Mapping(format!("default/{name}")), matches, Target::Dnat { to, ports })
}

fn denied(direction: &str) -> [Rule; 2] {
    let log = Target::Nflog {
        group: 5,
        prefix: format!("stagenet:{direction}:segment-b"),
    };
    [
        network([Match::Limit { per_second: 10, burst: 20 }], log),
        network([], Target::Drop),
    ]
}

fn table(hooks: &[(Hook, &str)], chains: Vec<(&str, Vec<Rule>)>) -> TableRules {
    TableRules {
        hooks: hooks.iter().map(|(hook, name)| (*hook, chain(name).into())).collect(),
        chains: chains.into_iter().map(|(name, rules)| (chain(name), rules)).collect(),
    }
}

/// The rules of vm02.
pub(crate) fn seed() -> Ruleset {
    Ruleset {
        tables: [
            ((Family::V4, Table::Mangle), fence()),
            ((Family::V4, Table::Nat), translations()),
            ((Family::V4, Table::Filter), accepts()),
            ((Family::V6, Table::Mangle), fence_v6()),
        ]
        .into(),
    }
}

fn fence() -> TableRules {
    let pool = "192.168.100.0/24".parse().unwrap();
    let (inside, outside) = (|| Match::In(link("eth1")), || Match::Out(link("eth1")));
    let admitted = || [Match::State(ConnState::Dnat), Match::OriginalDestination(pool)];
    let established = || base([Match::State(ConnState::EstablishedOrRelated)], Target::Return);
    let closed = |name, mut rules: Vec<Rule>, direction| {
        rules.extend(denied(direction));
        (name, rules)
    };
    table(
        &[(Hook::Forward, "FWD"), (Hook::Input, "IN")],
        vec![
            (
                "FWD",
                vec![
                    established(),
                    base([Match::ConnMark(BIT)], Target::Return),
                    network(
                        [Match::Destination(pool), Match::Out(link("lo"))],
                        Target::Goto(chain("U-0123ABCD")),
                    ),
                    network([inside()], Target::Goto(chain("FO-0123ABCD"))),
                    network([outside()], Target::Goto(chain("FI-0123ABCD"))),
                ],
            ),
            closed("FO-0123ABCD", vec![network([outside()], Target::Return)], "out"),
            closed(
                "FI-0123ABCD",
                vec![network(admitted(), Target::SetConnMark(BIT)), network(admitted(), Target::Return)],
                "in",
            ),
            closed("U-0123ABCD", vec![], "unmapped"),
            ("IN", vec![established(), network([inside()], Target::Goto(chain("N-0123ABCD")))]),
            closed("N-0123ABCD", vec![network([Match::Icmp(8)], Target::Return)], "node"),
        ],
    )
}

fn translations() -> TableRules {
    let pool = "192.168.100.0/24".parse().unwrap();
    let ports = |first, last| PortRange::new(first, last).unwrap();
    table(
        &[(Hook::Prerouting, "DNAT"), (Hook::Postrouting, "SNAT")],
        vec![
            (
                "DNAT",
                vec![
                    mapping(
                        "vm03",
                        [Match::Destination("192.168.100.3/32".parse().unwrap())],
                        "192.168.200.3",
                        None,
                    ),
                    mapping(
                        "vm04",
                        [
                            Match::Destination("192.168.100.4/32".parse().unwrap()),
                            Match::DestinationPorts(Transport::Udp, ports(1000, 1010)),
                        ],
                        "192.168.200.4",
                        Some((ports(2000, 2010), 1000)),
                    ),
                ],
            ),
            (
                "SNAT",
                vec![network(
                    [
                        Match::Out(link("eth1")),
                        Match::State(ConnState::Dnat),
                        Match::OriginalDestination(pool),
                    ],
                    Target::Masquerade,
                )],
            ),
        ],
    )
}

fn accepts() -> TableRules {
    table(
        &[(Hook::Forward, "ACC")],
        vec![("ACC", vec![base([Match::ConnMark(BIT)], Target::Accept)])],
    )
}

fn fence_v6() -> TableRules {
    let inside = || Match::In(link("eth1"));
    table(
        &[(Hook::Forward, "FWD"), (Hook::Input, "IN")],
        vec![
            (
                "FWD",
                vec![
                    network([inside(), Match::Out(link("eth1"))], Target::Return),
                    network([inside()], Target::Drop),
                    network([Match::Out(link("eth1"))], Target::Drop),
                ],
            ),
            (
                "IN",
                vec![
                    network([inside(), Match::Icmp(135)], Target::Return),
                    network([inside(), Match::Icmp(136)], Target::Return),
                    network([inside()], Target::Drop),
                ],
            ),
        ],
    )
}
