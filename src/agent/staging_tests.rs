#![allow(clippy::unwrap_used)]
use super::*;
use crate::netfilter::{Family, Mark};
use crate::plan::{GatewayAddress, ProxyNeighbour};

fn interface(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn route(table: u32, destination: &str, via: Via) -> Route {
    Route {
        table,
        destination: destination.parse().unwrap(),
        via,
    }
}

fn to(table: u32, destination: &str, name: &str) -> Route {
    route(table, destination, Via::Link(interface(name)))
}

fn blackhole(table: u32, destination: &str) -> Route {
    route(table, destination, Via::Blackhole)
}

fn rule(preference: u32, mark: Option<u32>, table: u32) -> PolicyRule {
    PolicyRule {
        family: Family::V4,
        preference,
        mark: mark.map(|value| Mark { value, mask: 0xff }),
        input: None,
        action: RuleAction::Lookup(table),
    }
}

const INSIDE: &str = "10.0.0.0/24";
const LAST: u32 = 210_999;

/// A network with identifier `n` behind `name`.
fn isolated(plan: &mut HostPlan, n: u32, name: &str) {
    plan.routes.extend([to(211_000 + n, INSIDE, name), blackhole(211_000 + n, INSIDE)]);
    plan.policy_rules
        .extend([rule(20_000 + n, Some(n), 211_000 + n), rule(32_900, None, LAST)]);
}

fn seen(plan: &HostPlan) -> ObservedLinks {
    ObservedLinks {
        routes: plan.routes.clone(),
        policy_rules: plan.policy_rules.clone(),
        proxies: plan.proxies.clone(),
        addresses: plan.addresses.clone(),
        ..ObservedLinks::default()
    }
}

fn all(stages: &LinkStages) -> Vec<LinkChange> {
    let LinkStages {
        separation,
        removals,
        ways,
        additions,
        leavings,
    } = stages;
    [separation, removals, ways, additions, leavings]
        .into_iter()
        .flatten()
        .cloned()
        .collect()
}

/// Made in order, the changes lead from one plan to the other, and the kernel never holds two routes in one place.
fn leads(from: &HostPlan, to: &HostPlan) -> LinkStages {
    let mut now = seen(from);
    let stages = link_stages(to, &now);
    for change in all(&stages) {
        if let LinkChange::AddRoute(new) = &change {
            assert!(!now.routes.iter().any(|old| same_place(old, new)), "{new} is taken");
        }
        acknowledged(&mut now, &[change]);
    }
    assert_eq!((now.routes, now.policy_rules), (to.routes.clone(), to.policy_rules.clone()));
    stages
}

#[test]
fn a_network_that_becomes_isolated_is_led_all_the_while() {
    let mut plain = HostPlan::default();
    plain.routes.insert(to(TABLE_MAIN, INSIDE, "brA"));
    let mut both = HostPlan::default();
    isolated(&mut both, 1, "brA");
    isolated(&mut both, 2, "brB");
    both.routes.insert(to(LAST, INSIDE, "brA"));

    let comes = leads(&plain, &both);
    assert_eq!(comes.separation.len(), 6, "{:?}", comes.separation);
    assert_eq!(comes.removals, []);
    let ways = [to(LAST, INSIDE, "brA")].map(LinkChange::AddRoute);
    assert_eq!(comes.ways, [&ways[..], &[LinkChange::AddRule(rule(32_900, None, LAST))]].concat());
    assert_eq!(
        comes.leavings,
        [LinkChange::RemoveRoute(to(TABLE_MAIN, INSIDE, "brA"))],
        "main leads until nothing asks it"
    );

    let goes = leads(&both, &plain);
    assert_eq!(goes.separation, []);
    assert_eq!(goes.removals, []);
    assert_eq!(goes.ways, [LinkChange::AddRoute(to(TABLE_MAIN, INSIDE, "brA"))]);
    let kinds: Vec<&str> = goes
        .leavings
        .iter()
        .map(|change| match change {
            LinkChange::RemoveRule(_) => "rule",
            LinkChange::RemoveRoute(r) if r.via == Via::Blackhole => "blackhole",
            LinkChange::RemoveRoute(_) => "way",
            _ => "?",
        })
        .collect();
    assert_eq!(kinds, ["rule", "rule", "rule", "way", "way", "way", "blackhole", "blackhole"]);
}

#[test]
fn marks_that_change_lead_nobody_astray() {
    let marked = |n: u32, value: u32, mask: u32| PolicyRule {
        mark: Some(Mark { value, mask }),
        ..rule(20_000 + n, None, 211_000 + n)
    };
    let skip = |mask: u32| PolicyRule {
        action: RuleAction::Goto(30_000),
        ..marked(0, 0, mask)
    };
    let with = |base: u32, mask: u32, step: u32| HostPlan {
        policy_rules: [skip(mask), marked(1, base, mask), marked(2, base + step, mask)].into(),
        ..HostPlan::default()
    };
    let (low, high, shifted) = (with(1, 0xff, 1), with(0x1_0000, 0xff_0000, 0x1_0000), with(2, 0xff, 1));
    let stages = leads(&low, &high);
    assert_eq!(
        stages.separation[0],
        LinkChange::RemoveRule(skip(0xff)),
        "before raw has other marks"
    );
    assert_eq!(stages.separation.len(), 3);
    assert_eq!(stages.additions, [LinkChange::AddRule(skip(0xff_0000))], "when it has them");
    assert_eq!(
        stages.leavings.len(),
        2,
        "what packets of before are led by stays until there are none"
    );

    // The first network's mark is now what was the second one's.
    let stages = leads(&low, &shifted);
    let held = PolicyRule {
        preference: PREFERENCE_HOLD,
        action: RuleAction::Blackhole,
        ..marked(0, 2, 0xff)
    };
    assert_eq!(stages.separation[0], LinkChange::AddRule(held.clone()), "{stages:?}");
    assert_eq!(stages.leavings.last(), Some(&LinkChange::RemoveRule(held.clone())));
    // After a crash in between it is still there, and still the last to go.
    let mut halfway = low.clone();
    halfway.policy_rules.extend([held.clone(), marked(1, 2, 0xff)]);
    let stages = leads(&halfway, &shifted);
    assert!(!stages.separation.contains(&LinkChange::AddRule(held.clone())));
    assert_eq!(stages.leavings.last(), Some(&LinkChange::RemoveRule(held)));
}

#[test]
fn what_has_no_mark_is_never_held() {
    let from_inside = |n: u32, interface: &str, mask: u32| PolicyRule {
        mark: Some(Mark { value: 0, mask }),
        input: Some(IfName::new(interface).unwrap()),
        ..rule(11_000 + n, None, 211_000 + n)
    };
    let nobody = |mask: u32| PolicyRule {
        mark: Some(Mark { value: mask, mask }),
        action: RuleAction::Blackhole,
        ..rule(29_000, None, 0)
    };
    let with = |n: u32, interface: &str, mask: u32| HostPlan {
        policy_rules: [from_inside(n, interface, mask), nobody(mask)].into(),
        ..HostPlan::default()
    };
    let one = with(1, "br1", 0xff);
    for next in [with(1, "br1", 0xff_0000), with(2, "br2", 0xff)] {
        let stages = leads(&one, &next);
        let holds = |change: &LinkChange| matches!(change, LinkChange::AddRule(rule) if rule.preference == PREFERENCE_HOLD);
        assert!(
            !stages.separation.iter().any(holds),
            "the node's own packets bear no mark: {stages:?}"
        );
    }
}

#[test]
fn a_table_that_changes_hands_leads_nowhere_in_between() {
    let (mut before, mut after) = (HostPlan::default(), HostPlan::default());
    isolated(&mut before, 2, "brB");
    isolated(&mut after, 2, "brC");
    let stages = leads(&before, &after);
    assert_eq!(stages.removals, [LinkChange::RemoveRoute(to(211_002, INSIDE, "brB"))]);
    assert_eq!(stages.additions, [LinkChange::AddRoute(to(211_002, INSIDE, "brC"))]);
    assert!(stages.separation.is_empty() && stages.ways.is_empty() && stages.leavings.is_empty());

    // A narrower prefix of the new network would take packets of the old one.
    let mut narrow = HostPlan::default();
    narrow
        .routes
        .extend([to(211_002, "10.0.0.0/25", "brC"), blackhole(211_002, "10.0.0.0/25")]);
    narrow.policy_rules.clone_from(&before.policy_rules);
    let stages = leads(&before, &narrow);
    assert_eq!(stages.removals, [LinkChange::RemoveRoute(to(211_002, INSIDE, "brB"))]);
    assert_eq!(stages.separation, [LinkChange::AddRoute(blackhole(211_002, "10.0.0.0/25"))]);
    assert_eq!(stages.additions, [LinkChange::AddRoute(to(211_002, "10.0.0.0/25", "brC"))]);
    assert_eq!(stages.leavings, [LinkChange::RemoveRoute(blackhole(211_002, INSIDE))]);
}

#[test]
fn the_way_that_the_reverse_path_filter_asks_for_is_never_long_gone() {
    let (mut before, mut after) = (HostPlan::default(), HostPlan::default());
    for (plan, name) in [(&mut before, "brA"), (&mut after, "brB")] {
        plan.policy_rules.insert(rule(32_900, None, LAST));
        plan.routes.insert(to(LAST, INSIDE, name));
    }
    let stages = leads(&before, &after);
    let at_once = [
        LinkChange::RemoveRoute(to(LAST, INSIDE, "brA")),
        LinkChange::AddRoute(to(LAST, INSIDE, "brB")),
    ];
    assert_eq!(stages.ways, at_once);
    assert_eq!(all(&stages).len(), 2);
}

#[test]
fn what_attracts_goes_first_and_comes_last() {
    let mut plan = HostPlan::default();
    let address = "192.0.2.3".parse().unwrap();
    plan.proxies.insert(ProxyNeighbour {
        interface: interface("eth0"),
        address,
    });
    plan.addresses.insert(GatewayAddress {
        interface: interface("brA"),
        address: "10.0.0.1".parse().unwrap(),
    });
    plan.routes.insert(route(TABLE_MAIN, "192.0.2.3/32", Via::Loopback));
    plan.routes.insert(to(TABLE_MAIN, INSIDE, "brA"));
    let comes = link_stages(&plan, &ObservedLinks::default());
    assert_eq!(comes.ways, [LinkChange::AddRoute(to(TABLE_MAIN, INSIDE, "brA"))]);
    assert!(matches!(
        comes.additions[..],
        [LinkChange::AddAddress(_), LinkChange::AddRoute(_), LinkChange::AddProxy(_)]
    ));
    let goes = link_stages(&HostPlan::default(), &seen(&plan));
    assert!(matches!(
        goes.removals[..],
        [LinkChange::RemoveProxy(_), LinkChange::RemoveRoute(_), LinkChange::RemoveAddress(_)]
    ));
    assert_eq!(goes.leavings, [LinkChange::RemoveRoute(to(TABLE_MAIN, INSIDE, "brA"))]);
}

#[test]
fn a_filter_becomes_strict_before_labels_go_where_a_network_was_served_and_no_sooner_elsewhere() {
    let br1 = interface("br1");
    let mut plan = HostPlan::default();
    plan.routes.insert(to(TABLE_MAIN, INSIDE, "br1"));
    plan.links.insert(
        br1.clone(),
        LinkSettings {
            forwarding: Some(true),
            rp_filter: Some(1),
            ..LinkSettings::default()
        },
    );
    let strict = |change: &LinkChange| matches!(change, LinkChange::Set(_, set) if set.rp_filter == Some(1));
    let mut now = ObservedLinks::default();
    now.links.insert(br1.clone(), LinkSettings::default());
    let fresh = link_stages(&plan, &now);
    assert!(!fresh.ways.iter().any(strict) && fresh.additions.iter().any(strict), "{fresh:#?}");

    now.inside.insert(br1);
    let served = link_stages(&plan, &now);
    assert!(strict(served.ways.last().unwrap()), "behind the way in main: {served:#?}");
    assert!(!served.additions.iter().any(strict), "{served:#?}");
}
