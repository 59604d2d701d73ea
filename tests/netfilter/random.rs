//! Random rule sets over a small world, so that many rules match many packets.

use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use stagenet::netfilter::rules::{ConnState, Hook};
use stagenet::netfilter::{ChainName, Family, IfName, Match, Owner, PortRange, Rule, Ruleset, Table, TableRules, Target, Transport};

/// Chains under one hook. A chain leads only to later ones, so there are no loops.
const CHAINS: usize = 4;

/// A rule before its chain is known.
#[derive(Clone, Debug)]
struct Draft {
    source: Option<Match>,
    destination: Option<Match>,
    input: Option<Match>,
    output: Option<Match>,
    protocol: Option<Match>,
    connection: [Option<Match>; 3],
    mark: Option<Match>,
    limited: bool,
    target: DraftTarget,
}

#[derive(Clone, Debug)]
enum DraftTarget {
    Lead { jump: bool, skip: usize },
    Dnat { to: Ipv4Addr, first: Option<u16> },
    Other(Target),
}

pub fn name(suffix: &str) -> ChainName {
    ChainName::new(suffix).unwrap()
}

pub fn link(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

/// An address of a host behind the gateway.
fn host() -> impl Strategy<Value = Ipv4Addr> {
    (1..=3_u8, 1..=3_u8).prop_map(|(segment, host)| Ipv4Addr::new(10, segment, 0, host))
}

/// An address that somebody may dial: virtual, a host's, the gateway's.
pub fn dialled() -> impl Strategy<Value = Ipv4Addr> {
    prop_oneof![
        4 => (1..=3_u8).prop_map(|host| Ipv4Addr::new(10, 9, 0, host)),
        2 => host(),
        1 => (1..=3_u8).prop_map(|segment| Ipv4Addr::new(10, segment, 0, 254)),
    ]
}

fn prefix(address: impl Strategy<Value = Ipv4Addr>) -> impl Strategy<Value = ipnet::IpNet> {
    (address, prop::sample::select(vec![0, 8, 16, 24, 31, 32])).prop_map(|(a, length)| ipnet::IpNet::new(a.into(), length).unwrap().trunc())
}

fn ports() -> impl Strategy<Value = PortRange> {
    (1000..1008_u16, 0..6_u16).prop_map(|(first, more)| PortRange::new(first, first + more).unwrap())
}

/// Of these three, SCTP is only loaded, never sent.
fn transport() -> impl Strategy<Value = Transport> {
    prop_oneof![3 => Just(Transport::Tcp), 3 => Just(Transport::Udp), 1 => Just(Transport::Sctp)]
}

fn interface(names: &'static [&'static str]) -> impl Strategy<Value = IfName> {
    prop::sample::select(names).prop_map(link)
}

fn protocol() -> impl Strategy<Value = Match> {
    prop_oneof![
        3 => (transport(), ports()).prop_map(|(t, p)| Match::DestinationPorts(t, p)),
        1 => Just(Match::Icmp(8)),
    ]
}

fn lead() -> impl Strategy<Value = DraftTarget> {
    (any::<bool>(), 1..CHAINS).prop_map(|(jump, skip)| DraftTarget::Lead { jump, skip })
}

fn simple(targets: Vec<Target>) -> impl Strategy<Value = DraftTarget> {
    prop::sample::select(targets).prop_map(DraftTarget::Other)
}

fn nflog() -> Target {
    Target::Nflog {
        group: 5,
        prefix: "stagenet:in:a.b-c".to_owned(),
    }
}

fn decisions() -> BoxedStrategy<DraftTarget> {
    let plain = vec![
        Target::Return,
        Target::Accept,
        Target::Drop,
        Target::SetConnMark(0x2000),
        Target::SetConnMark(0x10),
        nflog(),
    ];
    prop_oneof![2 => simple(plain), 1 => lead()].boxed()
}

fn destinations() -> BoxedStrategy<DraftTarget> {
    let dnat =
        (prop_oneof![4 => host(), 1 => dialled()], option::of(2000..2003_u16)).prop_map(|(to, first)| DraftTarget::Dnat { to, first });
    prop_oneof![4 => dnat, 1 => simple(vec![Target::Return, Target::Accept]), 2 => lead()].boxed()
}

fn sources() -> BoxedStrategy<DraftTarget> {
    let snat = dialled().prop_map(|to| DraftTarget::Other(Target::Snat { to: to.into() }));
    prop_oneof![2 => snat, 2 => simple(vec![Target::Masquerade]), 1 => simple(vec![Target::Return, Target::Accept]), 2 => lead()].boxed()
}

/// Every match, also where it cannot hold (`-o` before routing): the tracer has to know that too.
fn draft(target: BoxedStrategy<DraftTarget>) -> impl Strategy<Value = Draft> {
    let seldom = 0.25;
    let state = prop_oneof![Just(ConnState::Dnat), Just(ConnState::EstablishedOrRelated)].prop_map(Match::State);
    let connection = (
        option::weighted(seldom, state),
        option::weighted(seldom, prefix(dialled()).prop_map(Match::OriginalDestination)),
        option::weighted(0.1, (transport(), ports()).prop_map(|(t, p)| Match::OriginalDestinationPorts(t, p))),
    );
    (
        option::weighted(seldom, prefix(host()).prop_map(Match::Source)),
        option::weighted(0.4, prefix(dialled()).prop_map(Match::Destination)),
        option::weighted(seldom, interface(&["eth0", "eth1", "eth2"]).prop_map(Match::In)),
        option::weighted(seldom, interface(&["eth0", "eth1", "eth2", "lo"]).prop_map(Match::Out)),
        option::weighted(seldom, protocol()),
        connection,
        option::weighted(0.15, prop::sample::select(vec![0x2000, 0x10]).prop_map(Match::ConnMark)),
        prop::bool::weighted(0.1),
        target,
    )
        .prop_map(
            |(source, destination, input, output, protocol, (state, to, ports), mark, limited, target)| Draft {
                source,
                destination,
                input,
                output,
                protocol,
                connection: [state, to, ports],
                mark,
                limited,
                target,
            },
        )
}

impl Draft {
    fn rule(self, chain: usize, number: usize, prefix: &str) -> Rule {
        let moved = match &self.protocol {
            Some(Match::DestinationPorts(_, ports)) => Some(*ports),
            _ => None,
        };
        let target = match self.target {
            DraftTarget::Lead { skip, .. } if chain + skip >= CHAINS => Target::Return,
            DraftTarget::Lead { jump: true, skip } => Target::Jump(name(&format!("{prefix}{}", chain + skip))),
            DraftTarget::Lead { skip, .. } => Target::Goto(name(&format!("{prefix}{}", chain + skip))),
            DraftTarget::Dnat { to, first } => Target::Dnat {
                to: to.into(),
                ports: first
                    .zip(moved)
                    .map(|(first, from)| (PortRange::new(first, first + from.span()).unwrap(), from.first())),
            },
            DraftTarget::Other(target) => target,
        };
        let transport_of = |m: &Option<Match>| match m {
            Some(Match::DestinationPorts(t, _) | Match::OriginalDestinationPorts(t, _)) => Some(*t),
            _ => None,
        };
        let [state, to, ports] = self.connection;
        let ports = match &self.protocol {
            Some(_) if transport_of(&ports) != transport_of(&self.protocol) => None,
            _ => ports,
        };
        // Never exhausted by the handful of packets that a lab sends.
        let limit = self.limited.then_some(Match::Limit {
            per_second: 10_000,
            burst: 10_000,
        });
        let matches = [
            self.source,
            self.input,
            self.protocol,
            state,
            self.destination,
            to,
            ports,
            self.output,
            self.mark,
            limit,
        ];
        let owner = match number % 3 {
            0 => Owner::Base,
            1 => Owner::Network("segment-b".to_owned()),
            _ => Owner::Mapping(format!("default/vm{number:02}")),
        };
        let rule = Rule::new(owner, matches.into_iter().flatten(), target);
        if number.is_multiple_of(2) {
            return rule;
        }
        // In the order in which the tools print matches, so that some of them can do without a comment.
        let place = |m: &Match| match m {
            Match::Source(_) => 0,
            Match::Destination(_) => 1,
            Match::In(_) => 2,
            Match::Out(_) => 3,
            _ => 4,
        };
        let mut rule = rule.bare();
        rule.matches.sort_by_key(place);
        rule
    }
}

/// The chains under one hook. The first always stands; its name is `PREFIX0`.
fn chains(target: BoxedStrategy<DraftTarget>, hook: Hook, prefix: &'static str) -> impl Strategy<Value = TableRules> {
    vec(vec(draft(target), 0..6), CHAINS).prop_map(move |drafts| {
        let chains = drafts.into_iter().enumerate().map(|(at, rules)| {
            let rules = rules
                .into_iter()
                .enumerate()
                .map(|(number, draft)| draft.rule(at, number, prefix))
                .collect();
            (name(&format!("{prefix}{at}")), rules)
        });
        TableRules {
            hooks: [(hook, name(&format!("{prefix}0")).into())].into(),
            chains: chains.collect(),
        }
    })
}

fn both(a: TableRules, b: TableRules) -> TableRules {
    TableRules {
        hooks: a.hooks.into_iter().chain(b.hooks).collect(),
        chains: a.chains.into_iter().chain(b.chains).collect(),
    }
}

fn fence_v6() -> impl Strategy<Value = TableRules> {
    let rule = (
        option::of(interface(&["eth0", "eth1"])),
        prop::sample::select(vec![135_u8, 136]),
        any::<bool>(),
    )
        .prop_map(|(input, kind, drop)| {
            let input = input.map(Match::In);
            let target = if drop { Target::Drop } else { Target::Return };
            Rule::new(Owner::Base, input.into_iter().chain([Match::Icmp(kind)]), target)
        });
    vec(rule, 0..5).prop_map(|rules| TableRules {
        hooks: [(Hook::Input, name("IN").into())].into(),
        chains: [(name("IN"), rules)].into(),
    })
}

/// A whole rule set that a kernel takes.
pub fn ruleset() -> impl Strategy<Value = Ruleset> {
    let mangle = (chains(decisions(), Hook::Forward, "F"), chains(decisions(), Hook::Input, "I")).prop_map(|(a, b)| both(a, b));
    let nat = (
        chains(destinations(), Hook::Prerouting, "P"),
        chains(sources(), Hook::Postrouting, "S"),
    )
        .prop_map(|(a, b)| both(a, b));
    (mangle, nat, chains(decisions(), Hook::Forward, "A"), fence_v6()).prop_map(|(mangle, nat, filter, v6)| Ruleset {
        tables: [
            ((Family::V4, Table::Mangle), mangle),
            ((Family::V4, Table::Nat), nat),
            ((Family::V4, Table::Filter), filter),
            ((Family::V6, Table::Mangle), v6),
        ]
        .into(),
    })
}
