//! In which order things change, so that no packet slips through. Pure.
//!
//! Removals go from the outside in (first the node stops attracting traffic), additions from the inside out (the node attracts traffic last).
//! What translated packets are led by stands as long as anything is translated. What stands between the stages is in [`crate::agent::stages`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::outcome::Drift;
use crate::host::{LinkChange, ObservedLinks};
use crate::netfilter::{ChainName, IfName, Mark, Owner, TableRules};
use crate::plan::{HostPlan, LinkSettings, PolicyRule, Route, RuleAction, TABLE_MAIN, Via};

/// Of policy rules that stand only while marks change their meaning: before all that ask for marks.
const PREFERENCE_HOLD: u32 = 19_999;

/// The link changes of a pass, by stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkStages {
    /// Routing tables of isolated networks and the policy rules that ask them, which come: nobody bears their marks yet.
    pub separation: Vec<LinkChange>,
    /// Proxies, routes, addresses that go, in this order.
    pub removals: Vec<LinkChange>,
    /// Ways inside that come in tables that are asked for any packet: behind the fence, before anything is translated to them. Then reverse path filters that
    /// become strict where a network was served before: they need those ways, and must stand before its labels go.
    pub ways: Vec<LinkChange>,
    /// Settings, addresses, routes, proxies that come, in this order: forwarding is switched on where the fence stands already, and the node
    /// answers for an address only once it can deliver.
    pub additions: Vec<LinkChange>,
    /// Policy rules, ways inside and routing tables that go, in this order: nothing is translated or marked for them any more.
    pub leavings: Vec<LinkChange>,
}

/// What has to change so that `seen` becomes as planned. Settings of interfaces that left the plan are not in here: see [`closing`].
pub fn link_stages(plan: &HostPlan, seen: &ObservedLinks) -> LinkStages {
    let mut stages = LinkStages::default();
    let (going, coming) = turnover(&seen.proxies, &plan.proxies);
    stages.removals.extend(going.into_iter().cloned().map(LinkChange::RemoveProxy));
    let insides: BTreeSet<&IfName> = plan.networks.values().filter_map(|network| network.inside.as_ref()).collect();
    let recorded = |name: &IfName| seen.inside.contains(name) || !seen.links.contains_key(name);
    let out = &mut stages.additions;
    out.extend(
        insides
            .into_iter()
            .filter(|i| plan.links.contains_key(*i) && !recorded(i))
            .cloned()
            .map(LinkChange::Inside),
    );
    let mut strict = Vec::new();
    for (interface, wanted) in &plan.links {
        let change = seen.links.get(interface).and_then(|present| settings_change(wanted, present));
        let Some(mut change) = change else { continue };
        if seen.inside.contains(interface) {
            let rp_filter = change.rp_filter.take_if(|value| *value == LinkSettings::STRICT);
            let early = LinkSettings {
                rp_filter,
                ..LinkSettings::default()
            };
            strict.extend(rp_filter.map(|_| LinkChange::Set(interface.clone(), early)));
        }
        if change != LinkSettings::default() {
            out.push(LinkChange::Set(interface.clone(), change));
        }
    }
    out.extend(plan.addresses.difference(&seen.addresses).cloned().map(LinkChange::AddAddress));
    routing(&mut stages, plan, seen);
    stages.ways.extend(strict);
    stages
        .removals
        .extend(seen.addresses.difference(&plan.addresses).cloned().map(LinkChange::RemoveAddress));
    stages.additions.extend(coming.into_iter().cloned().map(LinkChange::AddProxy));
    stages
}

/// Policy rules and routes that come and go, and when.
///
/// Packets bear the marks of before until raw is written, whatever marks are planned. What leads unmarked ones past the other rules would take those for unmarked, so it comes after
/// raw, and goes before. And a mark that means something else from now on is held: whoever bears it goes nowhere until all of its packets mean the new thing.
fn routing(stages: &mut LinkStages, plan: &HostPlan, seen: &ObservedLinks) {
    let skips = |rule: &&PolicyRule| matches!(rule.action, RuleAction::Goto(_));
    let (past, going): (Vec<_>, Vec<_>) = seen.policy_rules.difference(&plan.policy_rules).partition(skips);
    let (first, coming): (Vec<_>, Vec<_>) = plan.policy_rules.difference(&seen.policy_rules).partition(skips);
    stages.separation.extend(past.into_iter().cloned().map(LinkChange::RemoveRule));
    let (held, going): (Vec<_>, Vec<_>) = going.into_iter().partition(|rule| rule.preference == PREFERENCE_HOLD);
    let holds: BTreeSet<PolicyRule> = going.iter().flat_map(|old| coming.iter().flat_map(|new| hold(old, new))).collect();
    let unheld = holds.difference(&seen.policy_rules).cloned();
    stages.separation.extend(unheld.map(LinkChange::AddRule));
    let over: BTreeSet<PolicyRule> = held.into_iter().cloned().chain(holds).collect();
    let gone = going.into_iter().cloned().chain(over);
    stages.leavings.extend(gone.map(LinkChange::RemoveRule));
    Turnover::new(plan, seen).routes(stages);
    for rule in coming.into_iter().cloned() {
        let stage = if asks_for_any(&rule) {
            &mut stages.ways
        } else {
            &mut stages.separation
        };
        stage.push(LinkChange::AddRule(rule));
    }
    stages.additions.extend(first.into_iter().cloned().map(LinkChange::AddRule));
}

/// What holds both marks of two rules of which one would be followed by packets that are marked for the other. No mark at all is never held: the node's own packets have none. Rules that ask
/// for it ask for an inside interface, too, and give nobody's mark a meaning.
fn hold(old: &PolicyRule, new: &PolicyRule) -> Vec<PolicyRule> {
    let (Some(was), Some(is)) = (old.mark, new.mark) else {
        return Vec::new();
    };
    if was.value == 0 || is.value == 0 {
        return Vec::new();
    }
    let taken = |mark: Mark, by: Mark| mark.value & by.mask == by.value;
    if old.family != new.family || old.action == new.action || !(taken(was, is) || taken(is, was)) {
        return Vec::new();
    }
    let held = |mark| PolicyRule {
        family: new.family,
        preference: PREFERENCE_HOLD,
        mark: Some(mark),
        input: None,
        action: RuleAction::Blackhole,
    };
    [was, is].map(held).into()
}

/// What goes and what comes, found in one walk over both: with ten thousand on either side that is most of what there is to do.
fn turnover<'a, T: Ord>(before: &'a BTreeSet<T>, after: &'a BTreeSet<T>) -> (Vec<&'a T>, Vec<&'a T>) {
    let (mut going, mut coming) = (Vec::new(), Vec::new());
    let mut rest = after.iter().peekable();
    for old in before {
        while let Some(new) = rest.next_if(|new| *new < old) {
            coming.push(new);
        }
        if rest.next_if_eq(&old).is_none() {
            going.push(old);
        }
    }
    coming.extend(rest);
    (going, coming)
}

/// Whether a policy rule asks a routing table for packets of anybody.
fn asks_for_any(rule: &PolicyRule) -> bool {
    matches!(rule.action, RuleAction::Lookup(_)) && rule.mark.is_none() && rule.input.is_none()
}

/// Routes that come and go, and when.
struct Turnover<'a> {
    coming: Vec<&'a Route>,
    going: Vec<&'a Route>,
    /// Tables that are asked for any packet.
    common: BTreeSet<u32>,
}

impl<'a> Turnover<'a> {
    fn new(plan: &'a HostPlan, seen: &'a ObservedLinks) -> Self {
        let rules = plan.policy_rules.iter().chain(&seen.policy_rules).filter(|rule| asks_for_any(rule));
        let asked = rules.filter_map(|rule| match rule.action {
            RuleAction::Lookup(table) => Some(table),
            RuleAction::Goto(_) | RuleAction::Blackhole | RuleAction::Nop => None,
        });
        let (going, coming) = turnover(&seen.routes, &plan.routes);
        Self {
            coming,
            going,
            common: asked.chain([TABLE_MAIN]).collect(),
        }
    }

    fn routes(&self, stages: &mut LinkStages) {
        let (blackholes, led): (Vec<&Route>, Vec<&Route>) = self.coming.iter().partition(|route| route.via == Via::Blackhole);
        for route in blackholes.into_iter().chain(led) {
            let change = LinkChange::AddRoute(route.clone());
            match &route.via {
                Via::Loopback | Via::Gateway(_) => stages.additions.push(change),
                _ if self.last_resort(route) => {
                    let replaced = self.going.iter().find(|old| same_place(old, route));
                    stages.ways.extend(replaced.map(|old| LinkChange::RemoveRoute((*old).clone())));
                    stages.ways.push(change);
                }
                Via::Link(_) if self.going.iter().any(|old| contested(old, route)) => stages.additions.push(change),
                _ if self.common.contains(&route.table) => stages.ways.push(change),
                _ => stages.separation.push(change),
            }
        }
        let (blackholes, led): (Vec<&Route>, Vec<&Route>) = self.going.iter().partition(|route| route.via == Via::Blackhole);
        for route in led.into_iter().chain(blackholes) {
            let change = LinkChange::RemoveRoute(route.clone());
            match &route.via {
                Via::Loopback | Via::Gateway(_) => stages.removals.push(change),
                _ if self.last_resort(route) && self.coming.iter().any(|new| same_place(route, new)) => {}
                Via::Link(_) if self.coming.iter().any(|new| contested(route, new)) => stages.removals.push(change),
                _ => stages.leavings.push(change),
            }
        }
    }

    /// Whether a route only tells the reverse path filter that there is a way: in a table that is asked when no other knew one. It is replaced at once.
    fn last_resort(&self, route: &Route) -> bool {
        route.table != TABLE_MAIN && self.common.contains(&route.table)
    }
}

/// Whether the kernel takes only one of the two.
fn same_place(a: &Route, b: &Route) -> bool {
    let place = |r: &Route| (r.table, r.destination, r.via == Via::Blackhole);
    place(a) == place(b)
}

/// Whether a packet that is translated for the network of `old` would be led by `new` into another one: then the old way goes before the new one comes, and
/// the new one comes only when nothing is translated for the old one any more.
fn contested(old: &Route, new: &Route) -> bool {
    let meet = old.destination.contains(&new.destination) || new.destination.contains(&old.destination);
    let led = |route: &Route| matches!(route.via, Via::Link(_));
    old.table == new.table && old.via != new.via && ((led(old) && led(new) && meet) || same_place(old, new))
}

/// The settings that are wanted and differ. None if all are as wanted.
fn settings_change(wanted: &LinkSettings, present: &LinkSettings) -> Option<LinkSettings> {
    fn differing<T: Copy + PartialEq>(wanted: Option<T>, present: Option<T>) -> Option<T> {
        wanted.filter(|value| present != Some(*value))
    }
    let change = LinkSettings {
        forwarding: differing(wanted.forwarding, present.forwarding),
        send_redirects: differing(wanted.send_redirects, present.send_redirects),
        rp_filter: differing(wanted.rp_filter, present.rp_filter),
        proxy_delay: differing(wanted.proxy_delay, present.proxy_delay),
        proxy_delay_ipv6: differing(wanted.proxy_delay_ipv6, present.proxy_delay_ipv6),
    };
    (change != LinkSettings::default()).then_some(change)
}

/// Interfaces that we changed settings of and that the plan no longer uses: closed wholly until what was found is put back.
pub fn closing(plan: &HostPlan, seen: &ObservedLinks) -> BTreeSet<IfName> {
    seen.touched
        .iter()
        .filter(|name| !plan.links.contains_key(*name))
        .cloned()
        .collect()
}

/// Interfaces that are `closing` forward no more, those that stay closed included: the node would answer what it cannot pass on before it asks the fence. What was found is put back when
/// they open.
pub fn shutting(closing: &BTreeSet<IfName>, seen: &ObservedLinks) -> Vec<LinkChange> {
    let off = LinkSettings {
        forwarding: Some(false),
        ..LinkSettings::default()
    };
    let forwards = |name: &&IfName| seen.links.get(*name).is_some_and(|link| link.forwarding == Some(true));
    closing
        .iter()
        .filter(forwards)
        .map(|name| LinkChange::Set(name.clone(), off.clone()))
        .collect()
}

/// What others changed of ours since `before` was read, as far as the interfaces still exist: the kernel itself removes what hangs on an
/// interface that goes.
pub fn link_drift(before: &ObservedLinks, now: &ObservedLinks, plan: &HostPlan) -> Vec<Drift> {
    let mut drift = Vec::new();
    let mut note = |place, what| drift.push(Drift { place, what });
    let there = |interface: &IfName| now.links.contains_key(interface);
    for route in before.routes.difference(&now.routes).filter(|r| plan.routes.contains(r)) {
        note("route", format!("the route to {} was removed", place(route)));
    }
    for route in now.routes.difference(&before.routes) {
        note("route", format!("a route to {} was added that bears our mark", place(route)));
    }
    let wanted = |rule: &&PolicyRule| plan.policy_rules.contains(rule);
    for rule in before.policy_rules.difference(&now.policy_rules).filter(wanted) {
        note("rule", format!("the {} policy routing rule {rule} was removed", rule.family));
    }
    for rule in now.policy_rules.difference(&before.policy_rules) {
        let what = format!("the {} policy routing rule {rule} was added, which bears our mark", rule.family);
        note("rule", what);
    }
    for proxy in before
        .proxies
        .difference(&now.proxies)
        .filter(|p| plan.proxies.contains(p) && there(&p.interface))
    {
        note(
            "proxy",
            format!("the proxy neighbour {} on {} was removed", proxy.address, proxy.interface),
        );
    }
    for proxy in now.proxies.difference(&before.proxies) {
        note(
            "proxy",
            format!(
                "a proxy neighbour {} on {} was added that bears our mark",
                proxy.address, proxy.interface
            ),
        );
    }
    for address in before
        .addresses
        .difference(&now.addresses)
        .filter(|a| plan.addresses.contains(a) && there(&a.interface))
    {
        note(
            "address",
            format!("the address {} on {} was removed", address.address, address.interface),
        );
    }
    for (interface, wanted) in &plan.links {
        let (Some(old), Some(new)) = (before.links.get(interface), now.links.get(interface)) else {
            continue;
        };
        if settings_change(wanted, old).is_none() && settings_change(wanted, new).is_some() {
            note("link", format!("settings of {interface} were changed"));
        }
    }
    drift
}

/// Destination, and table if it is not main.
fn place(route: &Route) -> String {
    match route.table {
        TABLE_MAIN => route.destination.to_string(),
        table => format!("{} in table {table}", route.destination),
    }
}

/// Addresses that begin to attract traffic, by interface: announced on both sides, so that nobody waits for a cache to expire.
pub fn announcements(made: &[LinkChange]) -> BTreeMap<IfName, BTreeSet<IpAddr>> {
    let mut out: BTreeMap<IfName, BTreeSet<IpAddr>> = BTreeMap::new();
    for change in made {
        match change {
            LinkChange::AddProxy(p) => out.entry(p.interface.clone()).or_default().insert(p.address),
            LinkChange::AddAddress(a) => out.entry(a.interface.clone()).or_default().insert(a.address),
            _ => continue,
        };
    }
    out
}

/// `seen` after `made`, all of which the kernel has acknowledged one by one.
pub fn acknowledged(seen: &mut ObservedLinks, made: &[LinkChange]) {
    for change in made {
        match change {
            LinkChange::RemoveProxy(p) => drop(seen.proxies.remove(p)),
            LinkChange::RemoveRoute(r) => drop(seen.routes.remove(r)),
            LinkChange::RemoveAddress(a) => drop(seen.addresses.remove(a)),
            LinkChange::RemoveRule(r) => drop(seen.policy_rules.remove(r)),
            LinkChange::AddRule(r) => drop(seen.policy_rules.insert(r.clone())),
            LinkChange::AddAddress(a) => drop(seen.addresses.insert(a.clone())),
            LinkChange::AddRoute(r) => drop(seen.routes.insert(r.clone())),
            LinkChange::AddProxy(p) => drop(seen.proxies.insert(p.clone())),
            LinkChange::Set(name, set) => {
                seen.touched.insert(name.clone());
                let present = seen.links.entry(name.clone()).or_default();
                present.forwarding = set.forwarding.or(present.forwarding);
                present.send_redirects = set.send_redirects.or(present.send_redirects);
                present.rp_filter = set.rp_filter.or(present.rp_filter);
                present.proxy_delay = set.proxy_delay.or(present.proxy_delay);
                present.proxy_delay_ipv6 = set.proxy_delay_ipv6.or(present.proxy_delay_ipv6);
            }
            LinkChange::Inside(name) => {
                seen.touched.insert(name.clone());
                seen.inside.insert(name.clone());
            }
            LinkChange::PutBack(name) => {
                seen.touched.remove(name);
                seen.inside.remove(name);
            }
        }
    }
}

/// Names of the networks whose part of the fence is not in `standing`, the chains of mangle as they are now.
pub fn unfenced(desired: &TableRules, standing: impl Fn(&ChainName) -> bool) -> BTreeSet<&str> {
    let missing = desired.chains.iter().filter(|(name, _)| !standing(name));
    missing
        .flat_map(|(_, rules)| rules)
        .filter_map(|rule| match &rule.owner {
            Owner::Network(name) => Some(name.as_str()),
            Owner::Base | Owner::Mapping(_) => None,
        })
        .collect()
}

#[cfg(test)]
#[path = "staging_tests.rs"]
mod tests;
