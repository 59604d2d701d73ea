//! Which mappings are not what the plan says, because a route or a proxy neighbour did not come to be.
//!
//! Clones may have the same addresses inside, so what is missing is looked for where the mapping's own network has it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::outcome::Trouble;
use super::pass::Work;
use crate::api::mapping::Side;
use crate::api::reasons;
use crate::host::ObservedLinks;
use crate::netfilter::IfName;
use crate::plan::{Claim, HostPlan, MappingState, ProxyNeighbour, Refusal, Route, TABLE_MAIN, Via};

/// What the plan has and the kernel has not.
struct Missing<'a> {
    routes: BTreeSet<&'a Route>,
    proxies: BTreeSet<ProxyNeighbour>,
}

impl Work<'_> {
    /// Takes the mappings out of what is programmed whose route or proxy did not come to be.
    pub(super) fn blame_links(&mut self) {
        // Every change was acknowledged, or none was needed.
        if self.outcome.complete && self.unasked.is_empty() {
            return;
        }
        let nothing = ObservedLinks::default();
        let seen = self.kept.links.as_deref().unwrap_or(&nothing);
        let plan = &self.outcome.plan;
        let missing = Missing {
            routes: plan.routes.difference(&seen.routes).filter(|r| r.via == Via::Loopback).collect(),
            proxies: plan.proxies.difference(&seen.proxies).cloned().collect(),
        };
        let why = link_errors(&self.outcome.troubles);
        for (key, state) in &mut self.outcome.mappings {
            let claim = self.verdicts.mappings.get(key).and_then(|verdict| verdict.accepted.as_ref().ok());
            let (MappingState::Planned { .. }, Some(claim)) = (&*state, claim) else {
                continue;
            };
            let Some((interface, table)) = place(plan, claim) else { continue };
            let refusal = if let Some((asked, why)) = self.unasked.range(on(interface, claim.virtual_prefix)).next() {
                Refusal {
                    reason: reasons::PROBE_FAILED,
                    message: format!(
                        "{} is not taken, because {interface} could not be asked whether somebody has it: {why}",
                        asked.address
                    ),
                }
            } else if let Some(address) = missing.of(claim, interface, table) {
                Refusal {
                    reason: reasons::APPLY_FAILED,
                    message: format!("the kernel has no route or proxy neighbour for {address}: {why}"),
                }
            } else {
                continue;
            };
            *state = MappingState::Failed(refusal);
        }
    }
}

impl Missing<'_> {
    /// The first address of the claim that is not attracted. Of a prefix that has no route: its first.
    fn of(&self, claim: &Claim, interface: &IfName, table: u32) -> Option<IpAddr> {
        let destination = claim.virtual_prefix;
        let via = Via::Loopback;
        let lost = self.routes.contains(&Route { table, destination, via });
        let proxy = || Some(self.proxies.range(on(interface, destination)).next()?.address);
        lost.then(|| destination.addr()).or_else(proxy)
    }
}

/// The interface on which the addresses of a claim are answered for, and the routing table in which they end.
fn place<'p>(plan: &'p HostPlan, claim: &Claim) -> Option<(&'p IfName, u32)> {
    let network = plan.networks.get(&*claim.network)?;
    match claim.side {
        Side::Outside => Some((network.outside.as_ref()?, TABLE_MAIN)),
        Side::Inside => Some((
            network.inside.as_ref()?,
            network.isolated.map_or(TABLE_MAIN, |isolated| isolated.table),
        )),
    }
}

/// All addresses of `prefix` on an interface.
fn on(interface: &IfName, prefix: IpNet) -> RangeInclusive<ProxyNeighbour> {
    let at = |address| ProxyNeighbour {
        interface: interface.clone(),
        address,
    };
    at(prefix.network())..=at(prefix.broadcast())
}

/// What went wrong, for a mapping's message.
fn link_errors(troubles: &[Trouble]) -> String {
    match troubles {
        [] => "it has just been removed".to_owned(),
        [first] => first.message.clone(),
        [first, rest @ ..] => format!("{} (and {} more)", first.message, rest.len()),
    }
}
