//! The tracer says what the kernel does with packets.

use std::cell::RefCell;
use std::net::Ipv4Addr;

use proptest::prelude::*;
use stagenet::netfilter::rules::{ConnState, Hook};
use stagenet::netfilter::{Family, Match, Owner, PortRange, Rule, Ruleset, Table, TableRules, Target, Transport};

use crate::lab::{Backend, isolated};
use crate::netfilter::gateway::{Gateway, Kind, Probe};
use crate::netfilter::random::{dialled, link, name, ruleset};
use crate::netfilter::tool::Tool;
use crate::runner;

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
    isolated("tracer::the_tracer_says_what_the_kernel_does_with_nft", || {
        tracer_agrees(Backend::Nft);
    });
}

#[test]
fn the_tracer_says_what_the_kernel_does_with_legacy() {
    isolated("tracer::the_tracer_says_what_the_kernel_does_with_legacy", || {
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
        hooks: [(Hook::Prerouting, name("P").into()), (Hook::Postrouting, name("S").into())].into(),
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
        hooks: [(Hook::Forward, name("F").into())].into(),
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
    isolated("tracer::translations_that_change_nothing_whole_ranges_and_hairpins", || {
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
