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
//! Levels are four bits apart, and those at which everything goes one way are left out: a chain of the tree has at most sixteen branches. Where every packet of the node,
//! not only the first of a flow, walks the tree, they are two bits apart: with nft-backed tools a rule costs each of them some 20 ns.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::mem;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::rules::CHAIN_PREFIX;
use super::{Chain, ChainName, Match, Owner, Rule, Target};

/// How far a tree branches.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// The most rules that stand flat at the root: below, a tree costs more in jumps than it saves in rules.
    root: usize,
    /// The most rules that stand flat below the root: what one change rewrites.
    leaf: usize,
    /// Bits between two levels: 4 or 2.
    step: u8,
}

/// The most levels below a root. Where iptables is nft's, the kernel refuses chains that lead sixteen deep into each other (`nft_chain_validate` in `net/netfilter/nf_tables_api.c`), and somebody may
/// choose addresses that part at every level; what goes deeper stands flat. Up to two trees stand below each other, behind a handful of other chains.
const DEPTH_MAX: u8 = 4;

/// Walked by the first packet of a flow.
const FIRST: Shape = Shape {
    root: 32,
    leaf: 16,
    step: 4,
};
/// Walked by every packet.
const EVERY: Shape = Shape { root: 4, leaf: 4, step: 2 };

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
    shaped(chains, root, key, entries, FIRST);
}

fn shaped(chains: &mut BTreeMap<ChainName, Chain>, root: &ChainName, key: Key, entries: Entries, shape: Shape) {
    debug_assert!(
        entries.values().flatten().all(|rule| rule.target != Target::Return),
        "RETURN in an entry of {root}"
    );
    let mut all: Vec<Entry> = entries.into_iter().filter(|(_, rules)| !rules.is_empty()).collect();
    let fits = all.first().is_none_or(|(prefix, _)| sub_chain(root, host(*prefix)).is_some());
    let mut branches = Tree { chains, root, key, shape };
    let appended = if fits { branches.branch(&mut all, None, 0) } else { flat(&mut all) };
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
        shaped(chains, &name, key, group.iter_mut().map(mem::take).collect(), EVERY);
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
    shape: Shape,
}

impl Tree<'_> {
    /// The rules that stand for `entries` (ordered) in the chain of `at`, which covers them all; what stands below is added. `at` is None at the root.
    fn branch(&mut self, entries: &mut [Entry], at: Option<IpNet>, depth: u8) -> Chain {
        let most = if at.is_none() { self.shape.root } else { self.shape.leaf };
        let level = at.map_or(0, |prefix| prefix.prefix_len());
        let Some(below) = level_below(entries, level, self.shape.step).filter(|_| depth < DEPTH_MAX && weight(entries) > most) else {
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
            let inside = self.branch(group, Some(prefix), depth + 1);
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
fn level_below(entries: &[Entry], level: u8, step: u8) -> Option<u8> {
    let longest = entries.iter().map(|(prefix, _)| prefix.prefix_len()).max()?;
    let shortest = entries.iter().map(|(prefix, _)| prefix.prefix_len()).min()?;
    let (first, last) = (entries.first()?.0, entries.last()?.0);
    let mut levels = (level + step..=longest).step_by(step.into());
    levels.find(|l| *l > shortest || !alike(first, last, *l) || *l + step > longest)
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

/// Name of the chain below `root` for a prefix whose length is even: its hexadecimal digits, and a letter from G to J for two bits more. None if it does not fit.
fn sub_chain(root: &ChainName, prefix: IpNet) -> Option<ChainName> {
    let digits = match prefix {
        IpNet::V4(prefix) => {
            let (bits, length) = (prefix.network().to_bits(), prefix.prefix_len());
            let mut digits = format!("{bits:08X}").get(..usize::from(length / 4))?.to_owned();
            if length % 4 != 0 {
                digits.push(char::from(b'G' + u8::try_from(bits >> (32 - length) & 3).ok()?));
            }
            digits
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
#[path = "tree_tests.rs"]
mod tests;
