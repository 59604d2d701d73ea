//! Dispatch by interface name, so that packets of other interfaces pay for few comparisons however many names there are.
//!
//! Names that begin alike share one rule, `-i br+`, which leads to a chain that tells them apart: a node's interfaces are mostly numbered. Names are compared, and no
//! device group or index, because an interface that is deleted and made anew under its name must never be without its rules.
//!
//! Everything is entered by goto, so that RETURN means in the chains led to what it would mean in the root. A packet whose interface just begins like one of the
//! names goes on in the chain `otherwise`, which therefore holds the same rules as follow the dispatch in the root.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::{Chain, ChainName, IfName, IfPrefix, Match, Owner, Rule, Target};

/// The most names that stand flat in a chain below the root.
const LEAF_MAX: usize = 8;

/// Which interface of a packet is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Where it came in.
    In,
    /// Where it leaves.
    Out,
}

impl Way {
    fn exactly(self, name: &IfName) -> Match {
        match self {
            Self::In => Match::In(name.clone()),
            Self::Out => Match::Out(name.clone()),
        }
    }

    fn like(self, prefix: IfPrefix) -> Match {
        match self {
            Self::In => Match::InLike(prefix),
            Self::Out => Match::OutLike(prefix),
        }
    }
}

/// Appends to `root` rules that lead packets of each interface to its chain, on behalf of its owner. Adds chains named `SNET-LABEL-` and eight digits.
pub fn dispatch(
    chains: &mut BTreeMap<ChainName, Chain>,
    root: &mut Chain,
    label: &str,
    way: Way,
    entries: &BTreeMap<IfName, (Owner, ChainName)>,
    otherwise: &ChainName,
) {
    let entries: Vec<_> = entries.iter().collect();
    let mut names = Names {
        chains,
        label,
        way,
        otherwise,
    };
    root.extend(names.branch(&entries, 0));
}

type Entry<'a> = (&'a IfName, &'a (Owner, ChainName));

struct Names<'a> {
    chains: &'a mut BTreeMap<ChainName, Chain>,
    label: &'a str,
    way: Way,
    otherwise: &'a ChainName,
}

impl Names<'_> {
    /// The rules that stand for `entries` (ordered), whose names share their first `common` characters.
    fn branch(&mut self, entries: &[Entry<'_>], common: usize) -> Chain {
        let next = |name: &IfName| name.as_str().as_bytes().get(common).copied();
        let mut chain = Chain::new();
        for group in entries.chunk_by(|a, b| next(a.0) == next(b.0)) {
            let (Some((first, _)), Some((last, _))) = (group.first(), group.last()) else {
                continue;
            };
            let shared = first
                .as_str()
                .bytes()
                .zip(last.as_str().bytes())
                .take_while(|(a, b)| a == b)
                .count();
            match IfPrefix::of(first, shared) {
                Some(prefix) if group.len() > 1 => chain.push(self.guard(group, prefix, shared)),
                _ => chain.extend(group.iter().map(|entry| self.lead(*entry))),
            }
        }
        chain
    }

    fn lead(&self, (name, (owner, to)): Entry<'_>) -> Rule {
        Rule::new(owner.clone(), [self.way.exactly(name)], Target::Goto(to.clone())).bare()
    }

    fn guard(&mut self, group: &[Entry<'_>], prefix: IfPrefix, shared: usize) -> Rule {
        let digest = Sha256::digest(prefix.to_string());
        let number = digest.iter().take(4).fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
        let name = ChainName::lossy(&format!("{}-{number:08X}", self.label));
        let mut chain = if group.len() <= LEAF_MAX {
            group.iter().map(|entry| self.lead(*entry)).collect()
        } else {
            self.branch(group, shared)
        };
        chain.push(Rule::new(Owner::Base, [], Target::Goto(self.otherwise.clone())).bare());
        self.chains.insert(name.clone(), chain);
        Rule::new(Owner::Base, [self.way.like(prefix)], Target::Goto(name)).bare()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn link(name: &str) -> IfName {
        IfName::new(name).unwrap()
    }

    fn chain(name: &str) -> ChainName {
        ChainName::new(name).unwrap()
    }

    fn build(names: &[String]) -> (Chain, BTreeMap<ChainName, Chain>) {
        let entries = names
            .iter()
            .enumerate()
            .map(|(n, name)| (link(name), (Owner::Base, chain(&format!("T{n}")))))
            .collect();
        let (mut chains, mut root) = (BTreeMap::new(), Chain::new());
        dispatch(&mut chains, &mut root, "IG", Way::In, &entries, &chain("ELSE"));
        (root, chains)
    }

    /// Where a packet from `name` is led, and how many rules it met.
    fn led(root: &Chain, chains: &BTreeMap<ChainName, Chain>, name: &str) -> (Option<String>, usize) {
        let name = link(name);
        let (mut at, mut met) = (root, 0);
        'chains: loop {
            for rule in at {
                met += 1;
                let holds = rule.matches.iter().all(|m| match m {
                    Match::In(n) => *n == name,
                    Match::InLike(prefix) => prefix.begins(&name),
                    other => panic!("{other:?}"),
                });
                match &rule.target {
                    Target::Goto(to) if holds && chains.contains_key(to) => {
                        at = &chains[to];
                        continue 'chains;
                    }
                    Target::Goto(to) if holds => return (Some(to.to_string()), met),
                    _ => {}
                }
            }
            return (None, met);
        }
    }

    #[test]
    fn every_name_is_led_to_its_own_chain_and_no_other_is() {
        let numbered: Vec<String> = (0..200).map(|n| format!("br{n}")).collect();
        let odd = ["eth1", "eth10", "e", "vm-a.100", "vm-a.101", "x"].map(str::to_owned).to_vec();
        for names in [numbered, odd.clone(), odd[..1].to_vec()] {
            let (root, chains) = build(&names);
            for (n, name) in names.iter().enumerate() {
                assert_eq!(led(&root, &chains, name).0, Some(format!("SNET-T{n}")), "{name}");
            }
            for stranger in ["br", "br999", "eth0", "eth11", "vm-a.1", "lo"] {
                let to = led(&root, &chains, stranger).0;
                assert!(to.is_none() || to.as_deref() == Some("SNET-ELSE"), "{stranger}: {to:?}");
            }
        }
    }

    #[test]
    fn strangers_pay_one_comparison_for_names_that_begin_alike() {
        let (root, chains) = build(&(0..50).map(|n| format!("br{n}")).collect::<Vec<_>>());
        assert_eq!(led(&root, &chains, "eth0"), (None, 1));
        let longest = chains.values().map(Vec::len).max().unwrap();
        assert!(longest <= 12, "{longest}");
    }
}
