//! Routing of isolated networks: a table each, asked by mark; and of packets from nobody inside, which is nowhere.
//!
//! A table holds the network's inside prefixes and, behind them, blackholes of the same: when the interface goes, the kernel takes the route away, and what then followed main's
//! route would reach another clone or production. Everything else is not in there, and goes on to main.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::host::{HostPlan, Route, Via};
use super::isolation::{
    PREFERENCE_END, PREFERENCE_INPUT, PREFERENCE_LAST, PREFERENCE_MARK, PREFERENCE_NOBODY, PREFERENCE_SKIP, TABLE_LAST,
};
use super::policy::{PolicyRule, RuleAction};
use super::sites::Site;
use super::{HostOptions, KernelFacts};
use crate::api::mapping::Side;
use crate::netfilter::Family;

/// Adds the routes and policy rules of all isolated networks, whatever the node's role.
pub(super) fn program(plan: &mut HostPlan, sites: &[Site<'_>], kernel: &KernelFacts, options: &HostOptions) {
    for family in Family::ALL {
        let before = plan.policy_rules.len();
        let mut last = BTreeSet::new();
        for site in sites {
            network(plan, site, family, options, &mut last);
        }
        let isolated = plan.policy_rules.len() > before;
        if isolated {
            ends(plan, family, options);
        }
        if isolated || sites.iter().any(|site| site.marks_nobody(family, kernel)) {
            nobody(plan, family, options);
        }
    }
}

fn network(plan: &mut HostPlan, site: &Site<'_>, family: Family, options: &HostOptions, last: &mut BTreeSet<IpNet>) {
    let (Some(served), Some(separate)) = (site.served(), site.separate) else {
        return;
    };
    if !site.has(family) {
        return;
    }
    let table = separate.table;
    for destination in served.network.inside_of(family) {
        let via = Via::Link(served.inside.clone());
        // Of clones one will do: the last resort is for the reverse path filter, nothing is sent there.
        if last.insert(destination) && family == Family::V4 {
            plan.routes.insert(Route {
                table: TABLE_LAST,
                destination,
                via: via.clone(),
            });
        }
        plan.routes.insert(Route { table, destination, via });
        plan.routes.insert(Route {
            table,
            destination,
            via: Via::Blackhole,
        });
    }
    let rule = |preference, mark, input| PolicyRule {
        family,
        preference,
        mark,
        input,
        action: RuleAction::Lookup(table),
    };
    plan.policy_rules
        .insert(rule(PREFERENCE_MARK + separate.identifier, Some(separate.mark), None));
    // The kernel answers ARP for an address only if its route leads elsewhere than where it is asked, and it asks without a mark. Packets have one: that of nobody must not be led.
    let dialled_inside = site
        .claims
        .iter()
        .any(|(_, claim)| claim.side == Side::Inside && claim.family() == family);
    if dialled_inside {
        let input = Some(served.inside.clone());
        plan.policy_rules
            .insert(rule(PREFERENCE_INPUT + separate.identifier, Some(options.marks.none()), input));
    }
}

/// Where packets go whose source is nobody inside. Before any rule of others that leads to main: behind those of isolated networks, whose marks are other ones.
fn nobody(plan: &mut HostPlan, family: Family, options: &HostOptions) {
    plan.policy_rules.insert(PolicyRule {
        family,
        preference: PREFERENCE_NOBODY,
        mark: Some(options.marks.nobody()),
        input: None,
        action: RuleAction::Blackhole,
    });
}

/// What stands around the rules of the networks.
fn ends(plan: &mut HostPlan, family: Family, options: &HostOptions) {
    let rule = |preference, mark, action| PolicyRule {
        family,
        preference,
        mark,
        input: None,
        action,
    };
    let unmarked = Some(options.marks.none());
    plan.policy_rules
        .insert(rule(PREFERENCE_SKIP, unmarked, RuleAction::Goto(PREFERENCE_END)));
    plan.policy_rules.insert(rule(PREFERENCE_END, None, RuleAction::Nop));
    if plan.routes.iter().any(|route| route.table == TABLE_LAST) && family == Family::V4 {
        plan.policy_rules
            .insert(rule(PREFERENCE_LAST, None, RuleAction::Lookup(TABLE_LAST)));
    }
}
