//! `stagenet plan -o json`.

use serde_json::{Map, Value, json};

use super::plan::{Planned, restore};
use crate::netfilter::Family;
use crate::plan::{MappingState, Refusal, written};

/// The plan for programs. Keys are added in later versions, never renamed.
pub(super) fn json(planned: &Planned) -> Value {
    let plan = &planned.plan;
    let mut networks = Map::new();
    for (name, verdict) in &planned.verdicts.networks {
        let here = plan.networks.get(name);
        let refusal = verdict.accepted.as_ref().err().or_else(|| here.and_then(|n| n.problem.as_ref()));
        let entry = json!({
            "outside": here.and_then(|n| n.outside.as_ref()).map(ToString::to_string),
            "inside": here.and_then(|n| n.inside.as_ref()).map(ToString::to_string),
            "isolation": here.and_then(|n| n.isolated).map(|i| {
                json!({"identifier": i.identifier, "zone": i.zone, "mark": i.mark.to_string(), "table": i.table})
            }),
            "role": here.map(|n| format!("{:?}", n.role)),
            "refusal": refusal.map(self::refusal),
        });
        networks.insert(name.clone(), entry);
    }
    let mut mappings = Map::new();
    for (key, verdict) in planned.verdicts.mappings.iter() {
        let refusal = match (&verdict.accepted, plan.mappings.get(key)) {
            (Err(refusal), _) | (_, Some(MappingState::Failed(refusal))) => Some(refusal),
            _ => None,
        };
        let claim = verdict.accepted.as_ref().ok();
        let entry = json!({
            "network": &*verdict.network,
            "virtual": claim.map(|c| written(c.virtual_prefix)),
            "target": claim.map(|c| written(c.target)),
            "programmed": refusal.is_none() && plan.mappings.contains_key(key),
            "refusal": refusal.map(self::refusal),
        });
        mappings.insert(key.to_string(), entry);
    }
    let links: Map<String, Value> = plan
        .links
        .iter()
        .map(|(name, s)| {
            let settings = json!({
                "forwarding": s.forwarding,
                "sendRedirects": s.send_redirects,
                "rpFilter": s.rp_filter,
                "proxyDelayMilliseconds": s.proxy_delay,
                "proxyDelayIPv6Milliseconds": s.proxy_delay_ipv6,
            });
            (name.to_string(), settings)
        })
        .collect();
    json!({
        "node": planned.node,
        "interfacesTakenOnTrust": planned.trusted,
        "problems": planned.manifests.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "networks": networks,
        "mappings": mappings,
        "links": links,
        "addresses": plan.addresses.iter().map(|a| json!({"interface": a.interface.as_str(), "address": a.address})).collect::<Vec<_>>(),
        "routes": plan.routes.iter().map(|r| json!({"table": r.table, "destination": r.destination, "via": r.via.to_string()})).collect::<Vec<_>>(),
        "policyRules": plan.policy_rules.iter().map(|r| json!({"family": r.family.to_string(), "rule": r.to_string()})).collect::<Vec<_>>(),
        "proxyNeighbours": plan.proxies.iter().map(|p| json!({"interface": p.interface.as_str(), "address": p.address})).collect::<Vec<_>>(),
        "iptablesRestore": restore(&plan.ruleset, Family::V4).unwrap_or_default(),
        "ip6tablesRestore": restore(&plan.ruleset, Family::V6).unwrap_or_default(),
    })
}

fn refusal(refusal: &Refusal) -> Value {
    json!({"reason": refusal.reason, "message": refusal.message})
}
