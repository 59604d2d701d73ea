//! What rules look like in the tools' words, and what is refused.

use std::net::IpAddr;

use super::*;
use crate::netfilter::{IfName, Transport};

fn words(table: Table, matches: &[Match], target: Target) -> Result<String, Problem> {
    let text = rule(Family::V4, table, &Rule::new(Owner::Base, matches.to_vec(), target))?;
    // The comment is looked at elsewhere.
    let (matches, rest) = text.split_once(" -m comment --comment ").unwrap();
    Ok(format!("{}{}", matches.trim_start(), rest.trim_start_matches(|c| c != ' ')))
}

fn to(ports: Option<(PortRange, u16)>) -> Target {
    Target::Dnat {
        to: IpAddr::from([192, 168, 200, 3]),
        ports,
    }
}

fn ports(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).unwrap()
}

fn dialled(first: u16, last: u16) -> Match {
    Match::DestinationPorts(Transport::Tcp, ports(first, last))
}

#[test]
fn translated_ports_move_one_by_one() {
    let dnat = |at: Match, moved| words(Table::Nat, &[at], to(moved)).unwrap();
    assert_eq!(
        dnat(dialled(80, 80), None),
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.200.3"
    );
    assert_eq!(
        dnat(dialled(80, 80), Some((ports(8080, 8080), 80))),
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.200.3:8080"
    );
    assert_eq!(
        dnat(dialled(80, 90), Some((ports(8080, 8090), 80))),
        "-p tcp -m tcp --dport 80:90 -j DNAT --to-destination 192.168.200.3:8080-8090/80"
    );
    assert_eq!(
        dnat(dialled(80, 90), Some((ports(80, 90), 80))),
        "-p tcp -m tcp --dport 80:90 -j DNAT --to-destination 192.168.200.3"
    );
}

#[test]
fn ports_move_only_with_the_ports_matched() {
    let moved = Some((ports(8080, 8090), 80));
    assert_eq!(words(Table::Nat, &[], to(moved)), Err(Problem::PortsWithoutProtocol));
    assert_eq!(words(Table::Nat, &[dialled(80, 89)], to(moved)), Err(Problem::PortsDiffer));
    assert_eq!(words(Table::Nat, &[dialled(81, 91)], to(moved)), Err(Problem::PortsDiffer));
}

#[test]
fn conditions_on_the_connection_are_one_match() {
    let matches = [
        Match::Out(IfName::new("eth1").unwrap()),
        Match::OriginalDestinationPorts(Transport::Udp, ports(53, 53)),
        Match::State(ConnState::Dnat),
        Match::OriginalDestination("192.168.100.3/24".parse().unwrap()),
    ];
    assert_eq!(
        words(Table::Nat, &matches, Target::Masquerade).unwrap(),
        "-o eth1 -p udp -m conntrack --ctorigdstport 53 --ctstate DNAT --ctorigdst 192.168.100.0/24 -j MASQUERADE"
    );
}

#[test]
fn what_the_tools_would_refuse_is_refused_here() {
    let mangle = |matches: &[Match], target| words(Table::Mangle, matches, target).unwrap_err();
    assert_eq!(mangle(&[dialled(1, 1), dialled(2, 2)], Target::Drop), Problem::RepeatedMatch);
    assert_eq!(mangle(&[dialled(1, 1), Match::Icmp(8)], Target::Drop), Problem::TwoProtocols);
    assert_eq!(
        mangle(&[Match::Source("fd00::/64".parse().unwrap())], Target::Drop),
        Problem::WrongFamily
    );
    let mark = |value, mask| Match::Mark(Mark { value, mask });
    assert_eq!(mangle(&[mark(0, 0)], Target::Drop), Problem::Mark);
    assert_eq!(mangle(&[mark(0x300, 0xff)], Target::Drop), Problem::Mark);
    let track = |zone, helper| Target::Track { zone, helper };
    assert_eq!(mangle(&[], track(Some(1), None)), Problem::WrongTable(Table::Mangle));
    assert_eq!(words(Table::Raw, &[], track(None, None)), Err(Problem::NothingToTrack));
    assert_eq!(mangle(&[Match::ConnMark(0)], Target::Drop), Problem::EmptyMark);
    assert_eq!(mangle(&[], Target::SetConnMark(0)), Problem::EmptyMark);
    assert_eq!(mangle(&[], to(None)), Problem::WrongTable(Table::Mangle));
    assert_eq!(words(Table::Nat, &[], Target::Drop), Err(Problem::WrongTable(Table::Nat)));
    for (per_second, burst) in [(0, 1), (10_001, 1), (1, 0), (1, 10_001)] {
        assert_eq!(mangle(&[Match::Limit { per_second, burst }], Target::Drop), Problem::Limit);
    }
    for prefix in [
        String::new(),
        "a b".to_owned(),
        "a\"b".to_owned(),
        "a\nCOMMIT".to_owned(),
        "x".repeat(64),
    ] {
        assert_eq!(mangle(&[], Target::Nflog { group: 5, prefix }), Problem::NflogPrefix);
    }
    for owner in ["a b", "a\"", "a\n-A", "ä"] {
        let rule_of = Rule::new(Owner::Network(owner.to_owned()), [], Target::Drop);
        assert_eq!(rule(Family::V4, Table::Mangle, &rule_of), Err(Problem::OwnerName));
    }
}

#[test]
fn ipv6_rules_have_no_ipv4_in_them() {
    let v6 = |m: Match| rule(Family::V6, Table::Mangle, &Rule::new(Owner::Base, [m], Target::Drop));
    assert!(
        v6(Match::Icmp(136))
            .unwrap()
            .starts_with(" -p ipv6-icmp -m icmp6 --icmpv6-type 136 ")
    );
    assert!(v6(Match::In(IfName::new("eth1").unwrap())).is_ok());
    assert_eq!(v6(Match::Source("10.0.0.0/8".parse().unwrap())), Err(Problem::WrongFamily));
    assert!(v6(Match::Source("fd00::/64".parse().unwrap())).is_ok());
}

#[test]
fn the_hash_is_of_what_a_rule_does_and_for_whom() {
    let of = |owner: &str, target| hash(&Rule::new(Owner::Mapping(owner.to_owned()), [], target)).unwrap();
    assert_eq!(of("a/b", Target::Drop).0.len(), HASH_DIGITS);
    assert_ne!(of("a/b", Target::Drop), of("a/b", Target::Accept));
    assert_ne!(of("a/b", Target::Drop), of("a/c", Target::Drop));
}

#[test]
fn the_longest_owner_still_fits_a_comment() {
    let owner = Owner::Mapping(format!("{}/{}", "n".repeat(63), "m".repeat(253)));
    let text = rule(Family::V4, Table::Mangle, &Rule::new(owner, [], Target::Drop)).unwrap();
    let comment = text.split(' ').find(|word| word.starts_with(RULE_COMMENT)).unwrap();
    assert_eq!(comment.len(), COMMENT_MAX);
}
