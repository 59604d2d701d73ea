//! Dispatch trees that keep chains short however many addresses there are.
//!
//! Input: for each prefix its rules, every one of which matches that prefix by itself. The tree only shortens the way to them, so it may be
//! wrong about nothing: a packet meets the same rules in the same order as in one flat list, longest prefix first. Costs of flat lists, and the shape: a rule costs 6-7 ns
//! for the first packet of a flow, a whole chain is the least that `iptables-restore --noflush` can replace.
//!
//! ```text
//! ROOT            -d 192.168.100.0/24 -j ROOT-C0A864       jump: a packet that nothing in there decides comes back behind it,
//! ROOT-C0A864     -d 192.168.100.0/28 -g ROOT-C0A8640            so whatever follows the dispatch in ROOT still sees it
//! ROOT-C0A8640    the rules of .0 to .15                   goto: a miss goes straight back to ROOT, the other branches cannot match
//! ```
//!
//! Levels are four bits apart, and those at which everything goes one way are left out: a chain of the tree has at most sixteen branches.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::mem;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::rules::CHAIN_PREFIX;
use super::{Chain, ChainName, Match, Owner, Rule, Target};

/// The most rules that stand flat at the root: below, a tree costs more in jumps than it saves in rules.
pub const FLAT_MAX: usize = 32;
/// The most rules that stand flat below the root: what one change rewrites.
const LEAF_MAX: usize = 16;
/// Bits between two levels: hexadecimal digits of an address.
const STEP: u8 = 4;

/// Which address of a packet is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

impl Key {
    /// The match of this address.
    pub fn matching(self, prefix: IpNet) -> Match {
        match self {
            Self::Source => Match::Source(prefix),
            Self::Destination => Match::Destination(prefix),
        }
    }
}

/// Rules by the prefix that every one of them matches. All of one family.
pub type Entries = BTreeMap<IpNet, Vec<Rule>>;

/// Appends to chain `root` (made if absent) rules that lead a packet to the `entries` of its address, and adds the sub-chains needed.
///
/// - Every rule of an entry matches the entry's prefix itself; its order within the entry is kept. Entries with longer prefixes come first.
/// - A packet that no entry decides goes on behind what was appended.
/// - No rule of an entry may have the target RETURN, nor goto a chain that falls through or returns: in a sub-chain that means "not decided", in a flat root it means
///   "leave root". An entry that lets a packet pass sets a mark, and the rule behind the dispatch asks for the mark.
/// - Sub-chains are named after the root and the digits of their prefix (IPv6: twelve digits of its hash), so a change touches the one chain it is in, and the chain
///   above only if its first or last rule comes or goes. Roots longer than 19 characters (IPv6: 15) have no room for that and stay flat.
pub fn dispatch(chains: &mut BTreeMap<ChainName, Chain>, root: &ChainName, key: Key, entries: Entries) {
    debug_assert!(
        entries.values().flatten().all(|rule| rule.target != Target::Return),
        "RETURN in an entry of {root}"
    );
    let mut all: Vec<Entry> = entries.into_iter().filter(|(_, rules)| !rules.is_empty()).collect();
    let fits = all.first().is_none_or(|(prefix, _)| sub_chain(root, host(*prefix)).is_some());
    let mut branches = Tree { chains, root, key };
    let appended = if fits { branches.branch(&mut all, None) } else { flat(&mut all) };
    chains.entry(root.clone()).or_default().extend(appended);
}

/// Below this many prefixes side by side a guard costs more than it saves.
const GUARD_MIN: usize = 3;

/// Rules that lead a packet to the `entries` of its address, for chains that every packet of the node walks: prefixes that begin alike stand behind one rule, in a
/// tree below a chain `SNET-LABEL` with four digits. Conditions on `entries` as for [`dispatch`].
pub fn guarded(chains: &mut BTreeMap<ChainName, Chain>, label: &str, key: Key, entries: Entries) -> Chain {
    let mut chain = Chain::new();
    let mut all: Vec<Entry> = entries.into_iter().collect();
    for group in all.chunk_by_mut(|a, b| beginning(a.0) == beginning(b.0)) {
        let (Some((first, _)), Some((last, _))) = (group.first(), group.last()) else {
            continue;
        };
        let Some(guard) = common(*first, *last, group).filter(|_| group.len() >= GUARD_MIN) else {
            chain.extend(flat(group));
            continue;
        };
        let name = ChainName::lossy(&format!("{label}{:04X}", beginning(*first)));
        dispatch(chains, &name, key, group.iter_mut().map(mem::take).collect());
        chain.push(Rule::new(Owner::Base, [key.matching(guard)], Target::Jump(name)).bare());
    }
    chain
}

/// The first eight bits of an IPv4 prefix, the first sixteen of an IPv6 one.
fn beginning(prefix: IpNet) -> u16 {
    match prefix {
        IpNet::V4(net) => u16::from(net.network().octets()[0]),
        IpNet::V6(net) => net.network().segments()[0],
    }
}

/// The longest prefix around all of `group`, which begins with `first` and ends with `last`. None if that is everything.
fn common(first: IpNet, last: IpNet, group: &[Entry]) -> Option<IpNet> {
    let shortest = group.iter().map(|(prefix, _)| prefix.prefix_len()).min()?;
    let around = (1..=shortest).rev().map(|length| (widened(first, length), widened(last, length)));
    around.into_iter().find(|(a, b)| a == b).map(|(prefix, _)| prefix)
}

/// A prefix and its rules. Rules are moved to where they stand: ten thousand are not copied for each plan.
type Entry = (IpNet, Vec<Rule>);

struct Tree<'a> {
    chains: &'a mut BTreeMap<ChainName, Chain>,
    root: &'a ChainName,
    key: Key,
}

impl Tree<'_> {
    /// The rules that stand for `entries` (ordered) in the chain of `at`, which covers them all; what stands below is added. `at` is None at the root.
    fn branch(&mut self, entries: &mut [Entry], at: Option<IpNet>) -> Chain {
        let most = if at.is_none() { FLAT_MAX } else { LEAF_MAX };
        let level = at.map_or(0, |prefix| prefix.prefix_len());
        let Some(below) = level_below(entries, level).filter(|_| weight(entries) > most) else {
            return flat(entries);
        };
        let shorter = |(prefix, _): &Entry| prefix.prefix_len() < below;
        let mut own: Vec<Entry> = Vec::new();
        let mut longer: Vec<Entry> = Vec::new();
        let deeper = if entries.iter().any(shorter) {
            for entry in entries {
                let side = if shorter(entry) { &mut own } else { &mut longer };
                side.push(mem::take(entry));
            }
            longer.as_mut_slice()
        } else {
            entries
        };
        let mut chain = Chain::new();
        for group in deeper.chunk_by_mut(|a, b| alike(a.0, b.0, below)) {
            // One rule needs no chain of its own.
            if let [(_, rules)] = group
                && rules.len() == 1
            {
                chain.append(rules);
                continue;
            }
            let Some((first, _)) = group.first() else { continue };
            let prefix = widened(*first, below);
            let Some(name) = sub_chain(self.root, prefix) else { continue };
            let inside = self.branch(group, Some(prefix));
            self.chains.insert(name.clone(), inside);
            // From a goto nothing comes back to the shorter prefixes that stand behind it.
            let target = if at.is_none() || !own.is_empty() {
                Target::Jump(name)
            } else {
                Target::Goto(name)
            };
            chain.push(Rule::new(Owner::Base, [self.key.matching(prefix)], target).bare());
        }
        chain.append(&mut flat(&mut own));
        chain
    }
}

/// The next level below `level` at which `entries` part ways or one of them has ended. None if no prefix reaches further.
fn level_below(entries: &[Entry], level: u8) -> Option<u8> {
    let longest = entries.iter().map(|(prefix, _)| prefix.prefix_len()).max()?;
    let shortest = entries.iter().map(|(prefix, _)| prefix.prefix_len()).min()?;
    let (first, last) = (entries.first()?.0, entries.last()?.0);
    let mut levels = (level + STEP..=longest).step_by(STEP.into());
    levels.find(|l| *l > shortest || !alike(first, last, *l) || *l + STEP > longest)
}

fn weight(entries: &[Entry]) -> usize {
    entries.iter().map(|(_, rules)| rules.len()).sum()
}

/// All rules, those of longer prefixes first.
fn flat(entries: &mut [Entry]) -> Chain {
    entries.sort_by_key(|(prefix, _)| Reverse(prefix.prefix_len()));
    let mut chain = Chain::with_capacity(weight(entries));
    for (_, rules) in entries {
        chain.append(rules);
    }
    chain
}

/// Whether the first `length` bits of two prefixes of one family are the same.
fn alike(a: IpNet, b: IpNet, length: u8) -> bool {
    let differing = match (a, b) {
        (IpNet::V4(a), IpNet::V4(b)) => (a.addr().to_bits() ^ b.addr().to_bits()).leading_zeros(),
        (IpNet::V6(a), IpNet::V6(b)) => (a.addr().to_bits() ^ b.addr().to_bits()).leading_zeros(),
        _ => return false,
    };
    differing >= length.into()
}

fn host(prefix: IpNet) -> IpNet {
    IpNet::from(prefix.addr())
}

/// The prefix of this length around `prefix`, whose own is not shorter.
fn widened(prefix: IpNet, length: u8) -> IpNet {
    IpNet::new(prefix.addr(), length).map_or(prefix, |net| net.trunc())
}

/// Name of the chain below `root` for a prefix whose length is a multiple of four. None if it does not fit.
fn sub_chain(root: &ChainName, prefix: IpNet) -> Option<ChainName> {
    let digits = match prefix {
        IpNet::V4(prefix) => {
            let digits = format!("{:08X}", prefix.network().to_bits());
            digits.get(..usize::from(prefix.prefix_len() / STEP))?.to_owned()
        }
        IpNet::V6(prefix) => {
            let digest = Sha256::digest(prefix.trunc().to_string());
            let number = digest.iter().take(6).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
            format!("{number:012X}")
        }
    };
    ChainName::new(&format!("{}-{digits}", root.as_str().strip_prefix(CHAIN_PREFIX)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
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
}
