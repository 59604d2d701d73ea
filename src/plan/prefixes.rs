//! Which prefixes cover an address or overlap a prefix, without looking at all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use ipnet::IpNet;

/// Prefixes with a value each. The first value entered for a prefix stays.
///
/// Two prefixes either nest or share nothing, so one lookup per prefix length in use answers every question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PrefixIndex<T> {
    by_prefix: BTreeMap<IpNet, T>,
    lengths: BTreeSet<u8>,
}

impl<T> Default for PrefixIndex<T> {
    fn default() -> Self {
        Self {
            by_prefix: BTreeMap::new(),
            lengths: BTreeSet::new(),
        }
    }
}

impl<T> PrefixIndex<T> {
    /// Enters the network of `prefix` (host bits are ignored).
    pub(super) fn insert(&mut self, prefix: IpNet, value: T) {
        self.lengths.insert(prefix.prefix_len());
        self.by_prefix.entry(prefix.trunc()).or_insert(value);
    }

    /// The longest prefix that covers `address`.
    pub(super) fn covering(&self, address: IpAddr) -> Option<(IpNet, &T)> {
        self.covering_prefix(IpNet::from(address))
    }

    /// The longest prefix that covers all of `prefix`.
    pub(super) fn covering_prefix(&self, prefix: IpNet) -> Option<(IpNet, &T)> {
        self.around(prefix).next()
    }

    /// All prefixes that cover all of `prefix`, the longest first.
    pub(super) fn around(&self, prefix: IpNet) -> impl Iterator<Item = (IpNet, &T)> {
        self.lengths.range(..=prefix.prefix_len()).rev().filter_map(move |&length| {
            let candidate = IpNet::new(prefix.addr(), length).ok()?.trunc();
            self.by_prefix.get(&candidate).map(|value| (candidate, value))
        })
    }

    /// All prefixes that lie in `prefix`, itself left out, by address.
    pub(super) fn within(&self, prefix: IpNet) -> impl Iterator<Item = (IpNet, &T)> {
        let prefix = prefix.trunc();
        // Ordered by address, then length: everything inside `prefix` follows it directly.
        let after = self.by_prefix.range((Bound::Excluded(prefix), Bound::Unbounded));
        after
            .take_while(move |(inner, _)| prefix.contains(*inner))
            .map(|(inner, value)| (*inner, value))
    }

    /// The value of just this prefix, made if absent.
    pub(super) fn entry(&mut self, prefix: IpNet) -> &mut T
    where
        T: Default,
    {
        self.lengths.insert(prefix.prefix_len());
        self.by_prefix.entry(prefix.trunc()).or_default()
    }

    /// All, by prefix.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpNet, &T)> {
        self.by_prefix.iter().map(|(prefix, value)| (*prefix, value))
    }

    /// One prefix that shares an address with `prefix`: the longest around it, else the first in it.
    pub(super) fn overlapping(&self, prefix: IpNet) -> Option<(IpNet, &T)> {
        self.covering_prefix(prefix).or_else(|| self.within(prefix).next())
    }
}

/// Values by prefix, several for one perhaps, made of many at once: as one piece of memory, where ten thousand that are kept while they are in force would else be as many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PrefixTable<T> {
    /// By prefix; those of one prefix in the order in which they were added.
    entries: Vec<(IpNet, T)>,
    lengths: BTreeSet<u8>,
}

impl<T> Default for PrefixTable<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            lengths: BTreeSet::new(),
        }
    }
}

impl<T> PrefixTable<T> {
    /// Adds values, each for the network of its prefix.
    pub(super) fn add(&mut self, entries: impl Iterator<Item = (IpNet, T)>) {
        self.entries.extend(entries.map(|(prefix, value)| (prefix.trunc(), value)));
        self.entries.sort_by_key(|(prefix, _)| *prefix);
        self.entries.shrink_to_fit();
        let mut last = None;
        for length in self.entries.iter().map(|(prefix, _)| prefix.prefix_len()) {
            if last != Some(length) {
                self.lengths.insert(length);
                last = Some(length);
            }
        }
    }

    /// Whether a prefix covers `address`.
    pub(super) fn covers(&self, address: IpAddr) -> bool {
        self.around(address).next().is_some()
    }

    /// The values of all prefixes that cover `address`, those of the longest first.
    pub(super) fn around(&self, address: IpAddr) -> impl Iterator<Item = &T> {
        let longest = IpNet::from(address).prefix_len();
        self.lengths.range(..=longest).rev().flat_map(move |&length| {
            let prefix = IpNet::new(address, length).ok().map(|net| net.trunc());
            let first = self.entries.partition_point(|(other, _)| Some(*other) < prefix);
            let of_prefix = self.entries[first..].iter().take_while(move |(other, _)| Some(*other) == prefix);
            of_prefix.map(|(_, value)| value)
        })
    }
}

/// Whether the two share addresses.
pub(super) fn meet(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Whether `address` is one that no host of `subnet` has: its network or broadcast address (RFC 3021: /31 and /32 have neither), or in IPv6 the anycast address of its
/// routers (RFC 4291, 2.6.1; not in /127 and /128, RFC 6164).
pub(super) fn is_edge(subnet: IpNet, address: IpAddr) -> bool {
    let hosts_only = subnet.prefix_len() + 1 >= subnet.max_prefix_len();
    !hosts_only && (address == subnet.network() || address == subnet.broadcast() && address.is_ipv4())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn net(s: &str) -> IpNet {
        s.parse().unwrap()
    }

    fn index(prefixes: &[&str]) -> PrefixIndex<usize> {
        let mut index = PrefixIndex::default();
        for (n, p) in prefixes.iter().enumerate() {
            index.insert(net(p), n);
        }
        index
    }

    #[test]
    fn longest_cover_wins() {
        let index = index(&["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"]);
        assert_eq!(index.covering("10.1.2.3".parse().unwrap()).unwrap().0, net("10.1.2.0/24"));
        assert_eq!(index.covering("10.2.2.3".parse().unwrap()).unwrap().0, net("10.0.0.0/8"));
        assert!(index.covering("11.0.0.0".parse().unwrap()).is_none());
    }

    #[test]
    fn overlap_is_found_from_both_sides() {
        let index = index(&["10.1.2.0/24", "192.168.0.0/16"]);
        assert_eq!(index.overlapping(net("10.0.0.0/8")).unwrap().0, net("10.1.2.0/24"));
        assert_eq!(index.overlapping(net("192.168.7.0/24")).unwrap().0, net("192.168.0.0/16"));
        assert_eq!(index.overlapping(net("10.1.2.0/24")).unwrap().0, net("10.1.2.0/24"));
        assert!(index.overlapping(net("10.1.3.0/24")).is_none());
        assert!(index.overlapping(net("10.1.0.0/23")).is_none());
    }

    #[test]
    fn a_table_has_several_values_for_a_prefix_and_the_longest_first() {
        let mut table = PrefixTable::default();
        let first = [("10.1.0.0/16", 'a'), ("10.1.2.3/32", 'b'), ("fd00::/8", 'c')];
        let more = [("10.1.2.3/32", 'd'), ("10.0.0.0/8", 'e')];
        for part in [&first[..], &more[..]] {
            table.add(part.iter().map(|(prefix, value)| (net(prefix), *value)));
        }
        let around = |address: &str| table.around(address.parse().unwrap()).collect::<String>();
        assert_eq!(
            ["10.1.2.3", "10.1.9.9", "10.9.9.9", "fd00::1"].map(around),
            ["bdae", "ae", "e", "c"]
        );
        assert!(!table.covers("11.0.0.0".parse().unwrap()) && !table.covers("::1".parse().unwrap()));
    }

    #[test]
    fn edges_of_subnets() {
        let a = |s: &str| s.parse().unwrap();
        assert!(is_edge(net("10.0.0.5/24"), a("10.0.0.0")));
        assert!(is_edge(net("10.0.0.5/24"), a("10.0.0.255")));
        assert!(!is_edge(net("10.0.0.5/24"), a("10.0.0.5")));
        assert!(!is_edge(net("10.0.0.4/31"), a("10.0.0.4")));
    }
}
