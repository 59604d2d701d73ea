//! Who may claim: namespaces by their labels, and what belongs to the cluster itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::super::testing::{key, mapping, network, plan, seed};
use super::super::{Memory, World, judge, judge_again};
use crate::api::{StagingNetworkStatus, reasons};

fn namespaces(of: &[(&str, &[(&str, &str)])]) -> Arc<BTreeMap<String, BTreeMap<String, String>>> {
    let owned = |labels: &[(&str, &str)]| labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Arc::new(of.iter().map(|(name, labels)| ((*name).to_owned(), owned(labels))).collect())
}

/// A mapping of namespace `shop` in a network that says this of namespaces.
fn world(allowed: &Value, labels: Option<&[(&str, &str)]>) -> World {
    World {
        networks: vec![network("net", 0, json!({"allowedNamespaces": allowed}))],
        mappings: vec![mapping("shop/vm03", 1, "192.168.100.3", "192.168.200.3", json!({}))],
        namespaces: labels.map(|labels| namespaces(&[("shop", labels)])).unwrap_or_default(),
        ..seed()
    }
}

/// Reason and message of the refusal; empty if it is accepted.
fn said(world: &World) -> (&'static str, String) {
    let verdict = judge(world).mappings[&key("shop/vm03")].clone();
    match &verdict.accepted {
        Ok(_) => ("", String::new()),
        Err(refusal) => (refusal.reason, refusal.message.clone()),
    }
}

#[test]
fn labels_decide_who_may_claim() {
    let team = json!({"from": "Selector", "selector": {"matchLabels": {"team": "staging"}}});
    let (reason, message) = said(&world(&team, Some(&[("team", "sales")])));
    assert_eq!(reason, reasons::NAMESPACE_NOT_ALLOWED);
    assert!(
        message.contains(
            "metadata.namespace must be one that allowedNamespaces of network net selects, those with labels team=staging: shop is not"
        ),
        "{message}"
    );
    assert_eq!(said(&world(&team, Some(&[("team", "staging"), ("more", "x")]))).0, "");
    assert_eq!(said(&world(&team, Some(&[]))).0, reasons::NAMESPACE_NOT_ALLOWED);
    assert_eq!(
        said(&world(&team, None)).0,
        reasons::NAMESPACE_UNKNOWN,
        "what is not known is not allowed"
    );
    assert_eq!(
        said(&world(&json!({"from": "All"}), None)).0,
        "",
        "who may claim anyway needs no labels"
    );
    assert_eq!(
        said(&world(&json!({"from": "Selector", "selector": {}}), Some(&[]))).0,
        "",
        "an empty selector selects every namespace"
    );
}

#[test]
fn a_namespace_has_its_name_as_a_label_whatever_it_says() {
    let named = |name: &str| json!({"from": "Selector", "selector": {"matchLabels": {"kubernetes.io/metadata.name": name}}});
    assert_eq!(said(&world(&named("shop"), Some(&[]))).0, "");
    assert_eq!(
        said(&world(&named("other"), Some(&[("kubernetes.io/metadata.name", "other")]))).0,
        reasons::NAMESPACE_NOT_ALLOWED
    );
}

/// Whoever may not claim learns nothing of addresses and nodes, and blocks nobody.
#[test]
fn who_may_not_claim_is_told_just_that_and_wins_nothing() {
    let team = json!({"from": "Selector", "selector": {"matchLabels": {"team": "staging"}}});
    let mut world = world(&team, Some(&[]));
    world
        .mappings
        .push(mapping("team/later", 9, "192.168.100.3", "192.168.200.3", json!({})));
    world
        .mappings
        .push(mapping("shop/owned", 2, "192.168.100.2", "10.0.0.1", json!({})));
    world.namespaces = namespaces(&[("shop", &[]), ("team", &[("team", "staging")])]);
    let (verdicts, plan) = plan(&world);
    assert!(
        verdicts.mappings[&key("team/later")].accepted.is_ok(),
        "an older claim that is not allowed holds nothing"
    );
    assert_eq!(plan.mappings.keys().map(ToString::to_string).collect::<Vec<_>>(), ["team/later"]);
    let refusal = verdicts.mappings[&key("shop/owned")].accepted.as_ref().unwrap_err();
    assert_eq!(refusal.reason, reasons::NAMESPACE_NOT_ALLOWED);
    assert!(
        !refusal.message.contains("vm02") && !refusal.message.contains("192.168"),
        "{}",
        refusal.message
    );
}

/// Labels are part of what a verdict is remembered by.
#[test]
fn a_label_that_goes_takes_the_claim_away() {
    let team = json!({"from": "Selector", "selector": {"matchLabels": {"team": "staging"}}});
    let mut world = world(&team, Some(&[("team", "staging")]));
    let mappings: Vec<_> = world.mappings.iter().cloned().map(Arc::new).collect();
    let mut memory = Memory::default();
    let mut accepted = |world: &World| {
        let view = super::super::View {
            mappings: super::super::Borrowed::Shared(&mappings),
            ..world.into()
        };
        judge_again(view, &mut memory).mappings[&key("shop/vm03")].accepted.is_ok()
    };
    assert!(accepted(&world));
    world.namespaces = namespaces(&[("shop", &[])]);
    assert!(!accepted(&world));
    world.namespaces = namespaces(&[("shop", &[("team", "staging")])]);
    assert!(accepted(&world));
    world.namespaces = Arc::default();
    assert!(!accepted(&world), "the namespace is gone");
}

/// What the API server's validation would not let in.
#[test]
fn half_a_selector_is_refused() {
    for (allowed, says) in [
        (json!({"from": "Selector"}), "selector must be given with from Selector"),
        (json!({"from": "All", "selector": {}}), "selector must be left out with from All"),
        (
            json!({"from": "Selector", "selector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}),
            "spec.allowedNamespaces.selector.matchExpressions[0]: operator must be",
        ),
    ] {
        let verdicts = judge(&world(&allowed, Some(&[])));
        let refusal = verdicts.networks["net"].accepted.as_ref().unwrap_err();
        assert!(
            refusal.reason == reasons::INVALID && refusal.message.contains(says),
            "{allowed}: {}",
            refusal.message
        );
    }
}

#[test]
fn nobody_claims_or_leads_to_the_api_server() {
    let mut world = seed();
    let source = json!({"outside": {"sourceAddress": "192.168.100.9"}});
    world.networks = vec![
        network("net", 0, source),
        network("knows", 1, json!({"inside": {"addresses": ["192.168.201.0/24"]}})),
    ];
    // Any network's status says it for all.
    world.networks[1].status = Some(StagingNetworkStatus {
        api_server_addresses: vec!["192.168.100.3".into(), "10.96.0.1".into(), "rubbish".into()],
        ..StagingNetworkStatus::default()
    });
    let inside = json!({"side": "Inside", "target": {"address": "10.96.0.1"}, "virtual": {"address": "172.16.0.1"}});
    world.mappings.push(mapping("sink", 2, "", "", inside));
    let verdicts = judge(&world);
    for (name, reason, says) in [
        (
            "vm03",
            reasons::ADDRESS_OWNED,
            "192.168.100.3 is an address of the cluster's API server",
        ),
        (
            "sink",
            reasons::PROTECTED,
            "spec.target.address must not be the cluster's API server: 10.96.0.1",
        ),
    ] {
        let refusal = verdicts.mappings[&key(name)].accepted.as_ref().unwrap_err();
        assert!(
            refusal.reason == reason && refusal.message.contains(says),
            "{name}: {}: {}",
            refusal.reason,
            refusal.message
        );
    }
}

/// Labels that cannot be read take nothing from anybody: the claim is not served, and its address is not free for a younger one. What was refused before holds nothing.
#[test]
fn a_claim_of_a_namespace_that_nobody_knows_holds_its_address_unless_it_was_refused() {
    let team = json!({"from": "Selector", "selector": {"matchLabels": {"team": "staging"}}});
    let mut world = world(&team, None);
    world.networks.push(network("open", 5, json!({})));
    let mut younger = mapping("team/later", 9, "192.168.100.3", "192.168.200.3", json!({}));
    younger.spec.network_ref.name = "open".into();
    world.mappings.push(younger);
    let verdicts = judge(&world);
    let older = &verdicts.mappings[&key("shop/vm03")];
    assert_eq!(older.accepted.as_ref().unwrap_err().reason, reasons::NAMESPACE_UNKNOWN);
    assert!(older.standing().is_some());
    assert!(verdicts.mappings[&key("team/later")].conflicted);
    let refusal = crate::controller::testing::condition(reasons::types::ACCEPTED, "False", reasons::NAMESPACE_NOT_ALLOWED);
    world.mappings[0].status.get_or_insert_default().conditions = vec![refusal];
    let verdicts = judge(&world);
    assert_eq!(said(&world).0, reasons::NAMESPACE_UNKNOWN);
    assert!(
        verdicts.mappings[&key("team/later")].accepted.is_ok(),
        "{:?}",
        verdicts.mappings[&key("team/later")].accepted
    );
}
