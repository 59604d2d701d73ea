//! Inside interfaces that stay closed although the plan no longer names them. Pure.
//!
//! A fence comes down because its network was deleted, and for no other reason. An interface may also leave the plan because its network was
//! found by a subnet that the interface has lost, because the network is refused now, because the interface was renamed, or because the file it is in cannot be read by an agent
//! that has just started. What is behind it is as dangerous as before, so nothing passes it until that is mended.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::ObservedLinks;
use crate::netfilter::{ChainName, ConnState, Family, Hook, IfName, Match, Owner, Rule, Table, TableRules, Target};
use crate::plan::rules::close_interfaces;
use crate::plan::{HostPlan, NodeFacts, Verdicts};

/// Those of `closing`, the interfaces that left the plan, that must not be opened. `unreadable`: something that was declared cannot be read.
pub(super) fn held(
    closing: &BTreeSet<IfName>,
    seen: &ObservedLinks,
    plan: &HostPlan,
    verdicts: &Verdicts,
    unreadable: bool,
    facts: &NodeFacts,
) -> BTreeSet<IfName> {
    let mut here = verdicts
        .networks
        .iter()
        .filter(|(_, verdict)| verdict.gateways.contains(&facts.name));
    // A network that names its interface keeps its fence there, also while it is refused or the interface is missing.
    let homeless = here.any(|(name, verdict)| match &verdict.accepted {
        Ok(network) => network.inside_interface.is_none() && plan.networks.get(name).is_none_or(|n| n.inside.is_none()),
        Err(_) => !plan.networks.contains_key(name),
    });
    // One that was renamed leads where it led before, while a network looks for it under the old name.
    let missed = plan.networks.values().any(|network| network.inside.is_none());
    if !(unreadable || homeless || missed) {
        return BTreeSet::new();
    }
    let stays = |name: &IfName| unreadable || homeless || seen.renamed.contains(name);
    // One that has a fence in the plan needs no other.
    let fenced = |name: &IfName| plan.networks.values().any(|network| network.inside.as_ref() == Some(name));
    let mut held: BTreeSet<IfName> = closing
        .intersection(&seen.inside)
        .filter(|name| !fenced(name) && stays(name))
        .cloned()
        .collect();
    // One that became a port is routed by the name of its bridge; but what leads outside is not closed, it is the node's own way.
    let leads_out = |master: &IfName| {
        let mut outsides = plan.networks.values().filter_map(|network| network.outside.as_ref());
        outsides.any(|outside| outside == master || facts.masters(outside.as_str()).contains(master))
    };
    let masters: Vec<IfName> = held.iter().flat_map(|name| facts.masters(name.as_str())).collect();
    held.extend(masters.into_iter().filter(|master| !fenced(master) && !leads_out(master)));
    held
}

/// Drops what comes from or goes to `held` interfaces: forwarded, ahead of all else; to the node, but for answers to it.
pub(super) fn close(tables: &mut BTreeMap<(Family, Table), TableRules>, held: &BTreeSet<IfName>) {
    let Some(input) = ChainName::new("IN").filter(|_| !held.is_empty()) else {
        return;
    };
    close_interfaces(tables, held);
    for family in [Family::V4, Family::V6] {
        let table = tables.entry((family, Table::Mangle)).or_default();
        table.hooks.entry(Hook::Input).or_insert_with(|| input.clone().into());
        // Ahead of all else: what follows may lead packets of several interfaces away by the beginning of their names.
        let closed = held.iter().flat_map(|name| {
            let from = Match::In(name.clone());
            let answers = [from.clone(), Match::State(ConnState::EstablishedOrRelated)];
            [
                Rule::new(Owner::Base, answers, Target::Return),
                Rule::new(Owner::Base, [from], Target::Drop),
            ]
        });
        table.chains.entry(input.clone()).or_default().splice(0..0, closed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_held_interface_is_closed_before_names_that_begin_alike_lead_away() {
        let (input, other) = (ChainName::new("IN").unwrap(), ChainName::new("N-0123ABCD").unwrap());
        let leads = Rule::new(Owner::Base, [], Target::Goto(other));
        let mut table = TableRules::default();
        table.chains.insert(input.clone(), vec![leads.clone()]);
        let mut tables = BTreeMap::from([((Family::V4, Table::Mangle), table)]);
        let held = IfName::new("br3").unwrap();
        close(&mut tables, &BTreeSet::from([held.clone()]));
        let from = Match::In(held);
        let answers = [from.clone(), Match::State(ConnState::EstablishedOrRelated)];
        let closed = [
            Rule::new(Owner::Base, answers, Target::Return),
            Rule::new(Owner::Base, [from], Target::Drop),
        ];
        let chain = |family| tables[&(family, Table::Mangle)].chains[&input].clone();
        assert_eq!(chain(Family::V4), [&closed[..], &[leads]].concat());
        assert_eq!(chain(Family::V6), closed, "also where there is no fence");
        assert!(tables.values().all(|table| table.hooks.contains_key(&Hook::Input)));
    }
}
