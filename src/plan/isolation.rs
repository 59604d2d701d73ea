//! How networks with the same inside share a gateway: conntrack zone, firewall mark and routing table of each.
//!
//! An identifier is allocated once, when a network first shares a gateway with another one whose inside prefixes meet its own, and kept for the network's life: it is in the marks of
//! packets on their way, in the zones of established connections, in routing tables. The first of several that meet keeps zone 0, in which its connections were before
//! there was another, so that nobody's connections notice when a clone comes or goes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::prefixes::meet;
use super::validate::ValidNetwork;
use super::{NetworkVerdict, Verdicts, View};
use crate::api::network::Isolation;
use crate::api::schema::ISOLATION_MAX;

/// Routing table of identifier 0, so to speak: that of identifier N is N further. Nobody's by convention (`/etc/iproute2/rt_tables` names 253 to 255).
pub const TABLE_BASE: u32 = 211_000;
/// Routing table of [`PREFERENCE_LAST`].
pub const TABLE_LAST: u32 = TABLE_BASE - 1;
/// Policy routing rule of identifier N that asks by interface, N further. Behind `local` (0), before `main` (32766), as all but the last.
pub const PREFERENCE_INPUT: u32 = 11_000;
/// Policy routing rule that leads what bears no mark of ours past all others of ours: bystanders walk one rule.
pub const PREFERENCE_SKIP: u32 = 20_000;
/// Policy routing rule of identifier N that asks by mark, N further.
pub const PREFERENCE_MARK: u32 = 20_000;
/// Policy routing rule that drops packets from inside whose source is nobody inside.
pub const PREFERENCE_NOBODY: u32 = 29_000;
/// Where [`PREFERENCE_SKIP`] leads.
pub const PREFERENCE_END: u32 = 30_000;
/// The last policy routing rule, behind `default` (32767): a node without a default route knows no way back to the machines inside, and a loose reverse path filter asks for
/// any at all.
pub const PREFERENCE_LAST: u32 = 32_900;
/// Identifiers for which there is a place between those.
pub const IDENTIFIER_MAX: u32 = 8191;

/// The isolation of every network that has one, or needs one now: those that may meet on a gateway and whose inside prefixes share addresses.
///
/// What a network has is kept, unless an older one has the same identifier (two controllers may have been at work for a moment), or has zone 0 as well and now meets it (a gateway or
/// a prefix was added to one of them): connections of the younger one end then, since nothing tells them from the other's. Networks that are not accepted keep theirs too.
pub fn allocate<'a>(world: impl Into<View<'a>>, verdicts: &Verdicts) -> BTreeMap<String, Isolation> {
    let view = world.into();
    let created: BTreeMap<&str, Option<Timestamp>> = view
        .networks
        .iter()
        .filter_map(|raw| Some((raw.metadata.name.as_deref()?, raw.metadata.creation_timestamp.as_ref().map(|t| t.0))))
        .collect();
    let mut networks: Vec<(&str, &NetworkVerdict)> = verdicts.networks.iter().map(|(name, verdict)| (name.as_str(), verdict)).collect();
    networks.sort_by_key(|(name, _)| (created.get(name).copied().flatten(), *name));

    let mut allocated: BTreeMap<String, Isolation> = BTreeMap::new();
    let mut taken: BTreeSet<u32> = BTreeSet::new();
    let mut first: Vec<&NetworkVerdict> = Vec::new();
    for (name, verdict) in &networks {
        let Some(Isolation { identifier, zone }) = verdict.isolation.filter(|i| taken.insert(i.identifier)) else {
            continue;
        };
        let meets = |other: &&NetworkVerdict| verdict.accepted.as_ref().is_ok_and(|network| may_meet((network, verdict), other));
        let zone = if zone == 0 && !first.iter().any(meets) {
            first.push(verdict);
            0
        } else {
            own_zone(identifier)
        };
        allocated.insert((*name).to_owned(), Isolation { identifier, zone });
    }
    for (name, verdict) in &networks {
        let Ok(network) = &verdict.accepted else { continue };
        if allocated.contains_key(*name) {
            continue;
        }
        let met: Vec<&str> = networks
            .iter()
            .filter(|(other, theirs)| other != name && may_meet((network, verdict), theirs))
            .map(|(other, _)| *other)
            .collect();
        let free = (1..=ISOLATION_MAX.min(IDENTIFIER_MAX)).find(|n| !taken.contains(n));
        let (Some(identifier), false) = (free, met.is_empty()) else {
            continue;
        };
        let first = met
            .iter()
            .all(|other| allocated.get(*other).is_none_or(|isolation| isolation.zone != 0));
        let zone = if first { 0 } else { own_zone(identifier) };
        taken.insert(identifier);
        allocated.insert((*name).to_owned(), Isolation { identifier, zone });
    }
    allocated
}

fn own_zone(identifier: u32) -> u16 {
    u16::try_from(identifier).unwrap_or(u16::MAX)
}

/// Whether two networks have a gateway node in common and share inside addresses.
fn may_meet((network, verdict): (&ValidNetwork, &NetworkVerdict), other: &NetworkVerdict) -> bool {
    let Ok(theirs) = &other.accepted else { return false };
    verdict.gateways.iter().any(|node| other.gateways.contains(node)) && overlap(network, theirs)
}

/// Whether two networks share inside addresses.
pub(super) fn overlap(a: &ValidNetwork, b: &ValidNetwork) -> bool {
    a.inside.iter().any(|p| b.inside.iter().any(|q| meet(*p, *q)))
}
