//! The plans of whole scenes, as text to read.

use std::fmt::Write as _;

use serde_json::json;

use super::super::testing::{mapping, network, plan, seed};
use super::super::{HostPlan, World};
use crate::netfilter::render;

/// The rules as `iptables-restore` reads them, then everything else.
fn text(plan: &HostPlan) -> String {
    let mut out = String::new();
    for ((family, table), rules) in &plan.ruleset.tables {
        let restore = render::table(*family, *table, rules).unwrap();
        let _ = writeln!(out, "# {family:?}\n{}", restore.text);
    }
    let _ = writeln!(
        out,
        "{:#?}\n{:#?}\n{:#?}\n{:#?}\n{:#?}\n{:#?}\n{:#?}",
        plan.networks, plan.mappings, plan.links, plan.addresses, plan.routes, plan.proxies, plan.flows
    );
    out
}

#[test]
fn the_seed() {
    insta::assert_snapshot!(text(&plan(&seed()).1));
}

#[test]
fn every_field_in_use() {
    let world = World {
        networks: vec![network(
            "net",
            0,
            json!({
                "outside": {"interface": null},
                "inside": {"interface": null, "gatewayAddresses": ["192.168.200.254"]},
                "egress": {"default": "Allow", "log": true},
                "protected": ["10.0.0.0/8"],
            }),
        )],
        mappings: vec![
            mapping("team/whole", 1, "192.168.100.3", "192.168.200.3", json!({})),
            mapping(
                "team/ports",
                2,
                "192.168.100.4",
                "192.168.200.4",
                json!({"sourceTranslation": "Preserve", "ports": [
                    {"protocol": "TCP", "port": 443},
                    {"protocol": "TCP", "port": 80, "targetPort": 8080},
                    {"protocol": "UDP", "port": 6000, "endPort": 6010, "targetPort": 7000},
                ]}),
            ),
        ],
        ..seed()
    };
    insta::assert_snapshot!(text(&plan(&world).1));
}
