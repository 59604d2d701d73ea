//! Dispatch trees that keep chains short however many addresses there are.
//!
//! Input: for each address its rules, every one of which matches that address by itself. The tree only shortens the way to them, so it may be
//! wrong about nothing: a packet meets the same rules in the same order as in one flat list. Costs of flat lists, and the shape: a rule costs 6-7 ns
//! for the first packet of a flow, a whole chain is the least that `iptables-restore --noflush` can replace.
//!
//! ```text
//! ROOT            -d 192.168.100.0/24 -j ROOT-C0A864       jump: a packet that nothing in there decides comes back behind it,
//! ROOT-C0A864     -d 192.168.100.0/28 -g ROOT-C0A8640            so whatever follows the dispatch in ROOT still sees it
//! ROOT-C0A8640    the rules of .0 to .15                   goto: a miss goes straight back to ROOT, the other branches cannot match
//! ```

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::rules::CHAIN_PREFIX;
use super::{Chain, ChainName, Match, Owner, Rule, Target};

/// The most rules that stand flat in one chain: below, a tree costs more in jumps than it saves in rules.
pub const FLAT_MAX: usize = 32;
/// Above this many addresses a /20 level stands on top: 4096 addresses side by side are 16 chains of /24, and so many rules are walked in a row.
pub const TWO_LEVEL_MAX: usize = 4096;

/// Which address of a packet is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

impl Key {
    fn matching(self, prefix: Ipv4Net) -> Match {
        match self {
            Self::Source => Match::Source(prefix),
            Self::Destination => Match::Destination(prefix),
        }
    }
}

/// Appends to chain `root` (made if absent) rules that lead a packet to the `entries` of its address, and adds the sub-chains needed.
///
/// - Every rule of an entry matches the entry's address itself; its order within the entry is kept.
/// - A packet that no entry decides goes on behind what was appended.
/// - No rule of an entry may have the target RETURN, nor goto a chain that falls through or returns: in a sub-chain that means "not decided", in a flat root it means
///   "leave root". An entry that lets a packet pass sets a mark, and the rule behind the dispatch asks for the mark.
/// - Sub-chains are named after the root and the digits of their prefix (five for /20, six for /24, seven for /28, eight for one address), so a change
///   touches the one chain it is in, and the chain above only if its first or last rule comes or goes. Roots longer than 19 characters have
///   no room for that and stay flat.
pub fn dispatch(chains: &mut BTreeMap<ChainName, Chain>, root: &ChainName, key: Key, entries: &BTreeMap<Ipv4Addr, Vec<Rule>>) {
    debug_assert!(
        entries.values().flatten().all(|rule| rule.target != Target::Return),
        "RETURN in an entry of {root}"
    );
    let rules: usize = entries.values().map(Vec::len).sum();
    let levels: &[u8] = if rules <= FLAT_MAX || sub_chain(root, Ipv4Addr::UNSPECIFIED, 32).is_none() {
        &[]
    } else if entries.len() <= TWO_LEVEL_MAX {
        &[24, 28, 32]
    } else {
        &[20, 24, 28, 32]
    };
    let entries: Vec<(Ipv4Addr, &[Rule])> = entries
        .iter()
        .map(|(a, r)| (*a, r.as_slice()))
        .filter(|(_, r)| !r.is_empty())
        .collect();
    let appended = branch(chains, root, key, levels, &entries, true);
    chains.entry(root.clone()).or_default().extend(appended);
}

/// The rules that stand for `entries` in one chain; what stands below is added to `chains`.
fn branch(
    chains: &mut BTreeMap<ChainName, Chain>,
    root: &ChainName,
    key: Key,
    levels: &[u8],
    entries: &[(Ipv4Addr, &[Rule])],
    top: bool,
) -> Chain {
    let flat = || entries.iter().flat_map(|(_, rules)| rules.iter().cloned()).collect();
    let Some((&length, below)) = levels.split_first() else {
        return flat();
    };
    // A /28 is a leaf unless its addresses have so many ports that the rules do not stand flat.
    if length == 32 && entries.iter().map(|(_, rules)| rules.len()).sum::<usize>() <= FLAT_MAX {
        return flat();
    }
    let mut chain = Chain::new();
    for group in entries.chunk_by(|a, b| truncate(a.0, length) == truncate(b.0, length)) {
        let Some((network, rules)) = group.first().map(|(address, rules)| (truncate(*address, length), rules)) else {
            continue;
        };
        // One rule needs no chain of its own.
        if length == 32 && rules.len() == 1 {
            chain.extend(rules.iter().cloned());
            continue;
        }
        let (Some(name), Ok(prefix)) = (sub_chain(root, network, length), Ipv4Net::new(network, length)) else {
            chain.extend(group.iter().flat_map(|(_, rules)| rules.iter().cloned()));
            continue;
        };
        let inside = branch(chains, root, key, below, group, false);
        chains.insert(name.clone(), inside);
        let target = if top { Target::Jump(name) } else { Target::Goto(name) };
        chain.push(Rule::new(Owner::Base, [key.matching(prefix)], target));
    }
    chain
}

fn truncate(address: Ipv4Addr, length: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() & u32::MAX.unbounded_shl(32 - u32::from(length)))
}

/// Name of the chain below `root` for a prefix whose length is a multiple of four. None if it does not fit.
fn sub_chain(root: &ChainName, network: Ipv4Addr, length: u8) -> Option<ChainName> {
    let digits = format!("{:08X}", network.to_bits());
    let digits = digits.get(..usize::from(length / 4))?;
    ChainName::new(&format!("{}-{digits}", root.as_str().strip_prefix(CHAIN_PREFIX)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn drop_to(address: Ipv4Addr, owner: &str) -> Rule {
        Rule::new(
            Owner::Mapping(owner.to_owned()),
            [Match::Destination(Ipv4Net::from(address))],
            Target::Drop,
        )
    }

    fn entries(count: u32, rules: usize) -> BTreeMap<Ipv4Addr, Vec<Rule>> {
        let first = Ipv4Addr::new(10, 0, 0, 0).to_bits();
        (0..count)
            .map(|n| {
                let address = Ipv4Addr::from_bits(first + n);
                (address, (0..rules).map(|r| drop_to(address, &format!("a/{r}"))).collect())
            })
            .collect()
    }

    fn build(entries: &BTreeMap<Ipv4Addr, Vec<Rule>>) -> BTreeMap<ChainName, Chain> {
        let mut chains = BTreeMap::new();
        dispatch(&mut chains, &root(), Key::Destination, entries);
        chains
    }

    fn root() -> ChainName {
        ChainName::new("DNAT").unwrap()
    }

    /// The rules of entries that a packet to `address` meets, in order, walking jumps and gotos.
    fn met(chains: &BTreeMap<ChainName, Chain>, name: &ChainName, address: Ipv4Addr) -> Vec<Rule> {
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
        assert_eq!(chains[&ChainName::new("DNAT-0A00000").unwrap()].len(), 4);
    }

    #[test]
    fn every_packet_meets_the_rules_of_its_address_in_their_order() {
        for (count, rules) in [(5, 3), (40, 1), (40, 3), (300, 2), (5000, 1)] {
            let entries = entries(count, rules);
            let chains = build(&entries);
            for (address, expected) in entries.iter().step_by(7) {
                assert_eq!(&met(&chains, &root(), *address), expected);
            }
            assert!(met(&chains, &root(), Ipv4Addr::new(10, 200, 0, 1)).is_empty());
        }
    }

    #[test]
    fn one_change_touches_one_chain() {
        let before = build(&entries(1000, 1));
        let mut more = entries(1000, 1);
        let changed = Ipv4Addr::new(10, 0, 1, 77);
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
    fn what_follows_the_dispatch_stays_behind_it() {
        let mut chains = BTreeMap::from([(root(), vec![drop_to(Ipv4Addr::LOCALHOST, "first")])]);
        dispatch(&mut chains, &root(), Key::Destination, &entries(40, 1));
        assert_eq!(chains[&root()][0], drop_to(Ipv4Addr::LOCALHOST, "first"));
        assert!(
            matches!(chains[&root()][1].target, Target::Jump(_)),
            "the root jumps, so that a miss comes back"
        );
    }

    #[test]
    fn a_root_without_room_for_names_stays_flat() {
        let long = ChainName::new("ABCDEFGHIJKLMNOPQ").unwrap();
        let mut chains = BTreeMap::new();
        dispatch(&mut chains, &long, Key::Source, &entries(40, 1));
        assert_eq!(chains[&long].len(), 40);
    }

    #[test]
    fn per_network_roots_have_room() {
        let mut chains = BTreeMap::new();
        dispatch(&mut chains, &ChainName::new("E-0123ABCD").unwrap(), Key::Source, &entries(5000, 1));
        assert!(chains.len() > 300);
    }
}
