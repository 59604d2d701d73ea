#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::{IpAddr, Ipv4Addr};

use super::*;

fn drop_to(prefix: impl Into<IpNet>, owner: &str) -> Rule {
    Rule::new(Owner::Mapping(owner.to_owned()), [Match::Destination(prefix.into())], Target::Drop)
}

fn rules_of(prefix: IpNet, rules: usize) -> (IpNet, Vec<Rule>) {
    (prefix, (0..rules).map(|r| drop_to(prefix, &format!("a/{r}"))).collect())
}

fn entries(count: u32, rules: usize) -> Entries {
    let first = Ipv4Addr::new(10, 0, 0, 0).to_bits();
    let address = |n| IpNet::from(IpAddr::from(Ipv4Addr::from_bits(first + n)));
    (0..count).map(|n| rules_of(address(n), rules)).collect()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn build(entries: &Entries) -> BTreeMap<ChainName, Chain> {
    let mut chains = BTreeMap::new();
    dispatch(&mut chains, &root(), Key::Destination, entries.clone());
    chains
}

fn root() -> ChainName {
    ChainName::new("DNAT").unwrap()
}

/// The rules of entries that a packet to `address` meets, in order, walking jumps and gotos.
fn met(chains: &BTreeMap<ChainName, Chain>, name: &ChainName, address: IpAddr) -> Vec<Rule> {
    let mut found = Vec::new();
    for rule in &chains[name] {
        let hit = rule
            .matches
            .iter()
            .all(|m| matches!(m, Match::Destination(p) if p.contains(&address)));
        match &rule.target {
            Target::Jump(next) if hit => found.extend(met(chains, next, address)),
            Target::Goto(next) if hit => {
                found.extend(met(chains, next, address));
                return found;
            }
            _ if hit => found.push(rule.clone()),
            _ => {}
        }
    }
    found
}

#[test]
fn up_to_32_rules_stand_flat() {
    let chains = build(&entries(32, 1));
    assert_eq!(chains.len(), 1);
    assert_eq!(chains[&root()].len(), 32);
}

#[test]
fn chains_stay_short_at_any_size() {
    for count in [33, 4096, 4097, 20_000] {
        let chains = build(&entries(count, 1));
        let longest = chains.values().map(Vec::len).max().unwrap();
        assert!(longest <= 16, "{longest} rules in one chain at {count} addresses");
    }
}

#[test]
fn an_address_with_many_ports_gets_its_own_chain() {
    let chains = build(&entries(4, 16));
    assert_eq!(chains[&ChainName::new("DNAT-0A000003").unwrap()].len(), 16);
    assert_eq!(chains[&root()].len(), 4);
}

#[test]
fn every_packet_meets_the_rules_of_its_address_in_their_order() {
    for (count, rules) in [(5, 3), (40, 1), (40, 3), (300, 2), (5000, 1)] {
        let entries = entries(count, rules);
        let chains = build(&entries);
        for (address, expected) in entries.iter().step_by(7) {
            assert_eq!(&met(&chains, &root(), address.addr()), expected);
        }
        assert!(met(&chains, &root(), net("10.200.0.1/32").addr()).is_empty());
    }
}

#[test]
fn one_change_touches_one_chain() {
    let before = build(&entries(1000, 1));
    let mut more = entries(1000, 1);
    let changed = net("10.0.1.77/32");
    more.insert(changed, vec![drop_to(changed, "b/other")]);
    let after = build(&more);
    let differing: Vec<&str> = after
        .iter()
        .filter(|(n, c)| before.get(n) != Some(c))
        .map(|(n, _)| n.as_str())
        .collect();
    assert_eq!(differing, ["SNET-DNAT-0A00014"]);
}

#[test]
fn a_more_specific_prefix_comes_first_wherever_it_stands() {
    let mut all = entries(300, 1);
    all.extend(["10.0.0.0/8", "10.0.0.0/24", "10.0.0.16/28", "10.0.0.16/30", "10.7.0.0/16"].map(|p| rules_of(net(p), 1)));
    let chains = build(&all);
    let seen: Vec<_> = met(&chains, &root(), net("10.0.0.17/32").addr())
        .iter()
        .map(|r| r.matches[0].clone())
        .collect();
    let expected = ["10.0.0.17/32", "10.0.0.16/30", "10.0.0.16/28", "10.0.0.0/24", "10.0.0.0/8"];
    assert_eq!(seen, expected.map(|p| Match::Destination(net(p))));
    assert_eq!(met(&chains, &root(), net("10.7.7.7/32").addr()).len(), 2);
}

#[test]
fn ipv6_addresses_stand_in_short_chains_too() {
    let all: Entries = (0..5000_u32)
        .map(|n| rules_of(net(&format!("fd00:1:{:x}::{:x}/128", n % 7, n)), 1))
        .collect();
    let chains = build(&all);
    let longest = chains.values().map(Vec::len).max().unwrap();
    assert!(longest <= 16, "{longest}");
    for (prefix, rules) in all.iter().step_by(11) {
        assert_eq!(&met(&chains, &root(), prefix.addr()), rules);
    }
}

#[test]
fn what_follows_the_dispatch_stays_behind_it() {
    let mut chains = BTreeMap::from([(root(), vec![drop_to(net("127.0.0.1/32"), "first")])]);
    dispatch(&mut chains, &root(), Key::Destination, entries(40, 1));
    assert_eq!(chains[&root()][0], drop_to(net("127.0.0.1/32"), "first"));
    assert!(
        matches!(chains[&root()][1].target, Target::Jump(_)),
        "the root jumps, so that a miss comes back"
    );
}

#[test]
fn where_every_packet_comes_by_few_rules_stand_side_by_side() {
    for count in [3, 10, 50, 200] {
        let networks: Vec<Ipv4Addr> = (0..count).map(|n| Ipv4Addr::new(10, 64, n, 0)).collect();
        let all: Entries = networks.iter().map(|n| rules_of(net(&format!("{n}/24")), 1)).collect();
        let mut chains = BTreeMap::new();
        let guards = guarded(&mut chains, "RAWA", Key::Destination, all.clone());
        assert_eq!(guards.len(), 1);
        let longest = chains.values().map(Vec::len).max().unwrap();
        assert!(longest <= 4, "{longest} rules in one chain at {count} networks");
        let Target::Jump(below) = &guards[0].target else {
            panic!("{guards:?}")
        };
        for (prefix, rules) in &all {
            assert_eq!(&met(&chains, below, prefix.addr()), rules);
        }
        assert!(met(&chains, below, net("10.65.0.1/32").addr()).is_empty());
    }
}

#[test]
fn addresses_that_part_at_every_level_lead_no_deeper_than_the_kernel_allows() {
    let parting: Entries = (0..64)
        .flat_map(|bit| (0..2_u128).map(move |low| 0xfd00_u128 << 112 | 1 << (2 * bit % 112) | low << (bit % 2)))
        .map(|bits| rules_of(IpNet::from(IpAddr::from(std::net::Ipv6Addr::from_bits(bits))), 3))
        .collect();
    for every in [false, true] {
        let mut chains = BTreeMap::new();
        let top = if every {
            let guards = guarded(&mut chains, "RAWA", Key::Destination, parting.clone());
            let Target::Jump(below) = &guards[0].target else {
                panic!("{guards:?}")
            };
            below.clone()
        } else {
            dispatch(&mut chains, &root(), Key::Destination, parting.clone());
            root()
        };
        assert!(chains.len() > 5, "a tree");
        assert!(depth(&chains, &top) <= 4, "{}", depth(&chains, &top));
        for (prefix, rules) in &parting {
            assert_eq!(&met(&chains, &top, prefix.addr()), rules);
        }
    }
}

/// Chains below `name` on the longest way down.
fn depth(chains: &BTreeMap<ChainName, Chain>, name: &ChainName) -> usize {
    let below = chains[name].iter().filter_map(|rule| match &rule.target {
        Target::Jump(next) | Target::Goto(next) => Some(1 + depth(chains, next)),
        _ => None,
    });
    below.max().unwrap_or_default()
}

#[test]
fn a_root_without_room_for_names_stays_flat() {
    let long = ChainName::new("ABCDEFGHIJKLMNOPQ").unwrap();
    let mut chains = BTreeMap::new();
    dispatch(&mut chains, &long, Key::Source, entries(40, 1));
    assert_eq!(chains[&long].len(), 40);
}

#[test]
fn per_network_roots_have_room() {
    let mut chains = BTreeMap::new();
    dispatch(&mut chains, &ChainName::new("E-0123ABCD").unwrap(), Key::Source, entries(5000, 1));
    assert!(chains.len() > 300);
}
