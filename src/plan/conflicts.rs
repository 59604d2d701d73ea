//! Which of several claims to the same thing stands: the oldest.
//!
//! - Two claims of side Outside meet where their virtual prefixes share addresses and their ports overlap, whatever their networks: ports of one address never lead into
//!   two closed networks, which would tie the two together and could not be announced by two gateways at once.
//! - A claim to part of another one's prefix stands beside it if both are of one namespace and one network: being more specific says so. Else it is a conflict.
//! - Claims of side Inside are dialled in their own network only, and meet only those.

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::Timestamp;

use super::prefixes::PrefixIndex;
use super::verdict::{Claim, ClaimedPorts, MappingKey, Refusal};
use crate::api::mapping::Side;
use crate::api::reasons;
use crate::netfilter::Transport;

/// A claim that stands by itself: since when, whose, what.
pub(super) type Contender<'a> = (Option<Timestamp>, &'a MappingKey, &'a Claim);

/// Claims that an older one rules out.
pub(super) fn losers(claims: Vec<Contender<'_>>) -> Vec<(MappingKey, Refusal)> {
    let mut claims = disputed(claims);
    claims.sort_unstable_by_key(|(created, key, _)| (*created, *key));
    let mut outside: PrefixIndex<Held> = PrefixIndex::default();
    let mut inside: BTreeMap<&str, PrefixIndex<Held>> = BTreeMap::new();
    let mut lost = Vec::new();
    for (at, (_, key, claim)) in claims.iter().enumerate() {
        let space = match claim.side {
            Side::Outside => &mut outside,
            Side::Inside => inside.entry(&claim.network).or_default(),
        };
        match winner(&claims, space, key, claim).and_then(|w| claims.get(w)) {
            None => space.entry(claim.virtual_prefix).add(claim, at),
            Some(winner) => lost.push(((*key).clone(), conflict(key, claim, winner))),
        }
    }
    lost
}

/// Those that share virtual addresses with another claim: of ten thousand mostly none, and only among these can anybody lose.
fn disputed(mut claims: Vec<Contender<'_>>) -> Vec<Contender<'_>> {
    fn place<'a>((.., claim): &Contender<'a>) -> (Option<&'a str>, IpNet) {
        let own = (claim.side == Side::Inside).then_some(&*claim.network);
        (own, claim.virtual_prefix)
    }
    claims.sort_unstable_by(|a, b| place(a).cmp(&place(b)));
    // Ordered by address, then length: a prefix stands before all that lie in it.
    let meets = |first: &Contender<'_>, other: &Contender<'_>| {
        let ((space, around), (other, within)) = (place(first), place(other));
        space == other && around.contains(&within)
    };
    let mut found = Vec::new();
    let mut rest = claims.as_slice();
    while let Some((first, after)) = rest.split_first() {
        let others = after.iter().take_while(|other| meets(first, other)).count();
        let (run, after) = rest.split_at(1 + others);
        found.extend_from_slice(if others > 0 { run } else { &[] });
        rest = after;
    }
    found
}

/// The position of the claim that rules `claim` out.
fn winner(claims: &[Contender<'_>], space: &PrefixIndex<Held>, key: &MappingKey, claim: &Claim) -> Option<usize> {
    let overlapping = space.around(claim.virtual_prefix).chain(space.within(claim.virtual_prefix));
    overlapping
        .filter_map(|(prefix, held)| {
            let same_prefix = prefix == claim.virtual_prefix;
            let (_, first_key, first) = claims.get(held.first()?)?;
            if first.network != claim.network {
                return held.first();
            }
            // All that is held of one prefix may be several namespaces'; only what meets in ports rules out.
            if !same_prefix && first_key.namespace == key.namespace && held.all_of(claims, &key.namespace) {
                return None;
            }
            held.meeting(claim)
        })
        .min()
}

/// What older claims hold of one virtual prefix. Ranges of one transport are disjoint, since whoever came later was refused.
#[derive(Debug, Default)]
struct Held {
    /// Positions of the claims.
    claims: Vec<usize>,
    /// The claim that holds every port.
    whole: Option<usize>,
    /// First port → last port, and the claim's position.
    ranges: BTreeMap<(Transport, u16), (u16, usize)>,
}

impl Held {
    fn add(&mut self, claim: &Claim, at: usize) {
        self.claims.push(at);
        if claim.ports.is_empty() {
            self.whole = Some(at);
        }
        let ranges = claim.ports.iter().map(|p| ((p.transport, p.ports.first()), (p.ports.last(), at)));
        self.ranges.extend(ranges);
    }

    fn first(&self) -> Option<usize> {
        self.claims.first().copied()
    }

    fn all_of(&self, claims: &[Contender<'_>], namespace: &str) -> bool {
        let of = |at: &usize| claims.get(*at).is_some_and(|(_, key, _)| *key.namespace == *namespace);
        self.claims.iter().all(of)
    }

    /// The oldest claim that shares a port with `claim`.
    fn meeting(&self, claim: &Claim) -> Option<usize> {
        if claim.ports.is_empty() {
            return self.first();
        }
        let ranges = claim.ports.iter().filter_map(|ports| self.holder(*ports));
        ranges.chain(self.whole).min()
    }

    fn holder(&self, ports: ClaimedPorts) -> Option<usize> {
        let until = (ports.transport, ports.ports.last());
        let (&(transport, _), &(last, at)) = self.ranges.range(..=until).next_back()?;
        (transport == ports.transport && last >= ports.ports.first()).then_some(at)
    }
}

/// Names the winner only to its own namespace: what others claim is theirs to tell.
fn conflict(key: &MappingKey, claim: &Claim, (since, winner, won): &Contender<'_>) -> Refusal {
    let who = if winner.namespace == key.namespace {
        format!("NatMapping {}", winner.name)
    } else {
        "an older claim in another namespace".to_owned()
    };
    let since = since.map(|t| format!(" since {t}")).unwrap_or_default();
    let what = if won.network != claim.network {
        " for another network"
    } else if won.ports.is_empty() || claim.ports.is_empty() {
        ""
    } else {
        " with overlapping ports"
    };
    let (field, held) = (field(claim.virtual_prefix), written(won.virtual_prefix));
    Refusal {
        reason: reasons::CONFLICT,
        message: format!(
            "spec.virtual.{field} must not be claimed already: {who} holds {held}{what}{since}; choose another address or other ports, or delete one of the two"
        ),
    }
}

/// `address` or `prefix`.
pub(super) fn field(prefix: IpNet) -> &'static str {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        "address"
    } else {
        "prefix"
    }
}

/// As people write it: a single address without its length.
pub fn written(prefix: IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        prefix.addr().to_string()
    } else {
        prefix.to_string()
    }
}
