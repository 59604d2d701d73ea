//! What machines of a closed network may start towards the outside, and under which address they leave.
//!
//! A machine with a 1:1 mapping leaves under its own virtual address (the mirror), every other under the network's source address. Without either nothing
//! leaves. What may leave: everything but `protected` where `egress` allows it, what `egress.allow` lists, and what an Inside mapping leads to a target.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::MappingKey;
use super::sites::Site;
use super::validate::{EgressTo, ValidNetwork};
use super::verdict::{Claim, Refusal};
use crate::api::mapping::Side;
use crate::api::reasons;
use crate::netfilter::Family;

/// What may leave one network in one family.
#[derive(Debug)]
pub(super) struct Leaving<'a> {
    /// Target of a 1:1 mapping → the mapping, and the virtual prefix that it leaves under.
    pub(super) mirrors: BTreeMap<IpNet, (&'a MappingKey, IpNet)>,
    /// The address of all others.
    pub(super) source: Option<IpAddr>,
    /// Whether everything may leave.
    pub(super) open: bool,
    /// What may leave otherwise.
    pub(super) rules: Vec<&'a EgressTo>,
    /// Mappings of side Inside.
    pub(super) inward: Vec<(&'a MappingKey, &'a Claim)>,
}

impl Leaving<'_> {
    /// Where what may leave is on its way to, unless it is [`Self::open`].
    pub(super) fn destinations(&self) -> Vec<IpNet> {
        let inward = self.inward.iter().map(|(_, claim)| claim.target);
        self.rules.iter().map(|rule| rule.to).chain(inward).collect()
    }
}

/// None if nothing may leave.
pub(super) fn leaving<'a>(site: &Site<'a>, family: Family) -> Option<Leaving<'a>> {
    let network = site.network.filter(|_| site.served().is_some())?;
    let claims = || site.claims.iter().filter(|(_, claim)| claim.family() == family);
    let rules: Vec<&EgressTo> = network.egress.iter().filter(|rule| Family::of_net(&rule.to) == family).collect();
    let inward: Vec<_> = claims().filter(|(_, claim)| claim.side == Side::Inside).copied().collect();
    if !network.egress_allowed && rules.is_empty() && inward.is_empty() {
        return None;
    }
    let leaving = Leaving {
        mirrors: mirrors(claims()),
        source: site.sources.get(&family).copied(),
        open: network.egress_allowed,
        rules,
        inward,
    };
    let nobody = leaving.mirrors.is_empty() && leaving.source.is_none();
    (!nobody).then_some(leaving)
}

/// See [`super::egress_limited`].
pub(super) fn limited(network: &ValidNetwork) -> Option<Refusal> {
    let concerned = |family: &Family| {
        let let_out = network.egress_allowed || network.egress.iter().any(|rule| Family::of_net(&rule.to) == *family);
        let_out && network.inside_of(*family).next().is_some() && !network.source_addresses.contains_key(family)
    };
    let families: Vec<Family> = Family::ALL.into_iter().filter(concerned).collect();
    let (over, field) = match families.as_slice() {
        [] => return None,
        [Family::V6] if network.source_addresses.contains_key(&Family::V4) => ("IPv6", "spec.outside.sourceAddressIPv6"),
        [Family::V6] => ("IPv6", "an IPv6 spec.outside.sourceAddress"),
        [Family::V4] => ("IPv4", "an IPv4 spec.outside.sourceAddress"),
        _ => ("IPv4 and IPv6", "spec.outside.sourceAddress and sourceAddressIPv6"),
    };
    Some(Refusal {
        reason: reasons::SOURCE_ADDRESS_MISSING,
        message: format!(
            "over {over} only machines with a 1:1 mapping (one of all protocols) leave the network, each under its virtual address. What the others send out \
             is denied and counted, because there is no address for it to leave under: give them {field}, or a mapping each"
        ),
    })
}

/// Of two 1:1 mappings to one target the older counts.
fn mirrors<'a, 's>(claims: impl Iterator<Item = &'s (&'a MappingKey, &'a Claim)>) -> BTreeMap<IpNet, (&'a MappingKey, IpNet)>
where
    'a: 's,
{
    let mut found: BTreeMap<IpNet, (&MappingKey, &Claim)> = BTreeMap::new();
    for (key, claim) in claims.filter(|(_, claim)| claim.mirrored()) {
        let entry = found.entry(claim.target).or_insert((key, claim));
        if (claim.created, *key) < (entry.1.created, entry.0) {
            *entry = (key, claim);
        }
    }
    found
        .into_iter()
        .map(|(target, (key, claim))| (target, (key, claim.virtual_prefix)))
        .collect()
}
