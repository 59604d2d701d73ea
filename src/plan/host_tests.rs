use serde_json::json;

use super::testing::{key, plan, seed, vm02};
use super::*;
use crate::netfilter::IfName;

fn eth(n: u8) -> IfName {
    IfName::new(&format!("eth{n}")).unwrap()
}

#[test]
fn the_seed() {
    let (verdicts, plan) = plan(&seed());
    assert!(verdicts.mappings[&key("vm03")].accepted.is_ok());
    assert!(matches!(plan.mappings[&key("vm03")], MappingState::Planned { .. }));
    let vip = "192.168.100.3".parse().unwrap();
    assert_eq!(
        plan.routes.into_iter().collect::<Vec<_>>(),
        [Route {
            destination: Ipv4Net::from(vip),
            via: Via::Loopback
        }]
    );
    assert_eq!(
        plan.proxies.into_iter().collect::<Vec<_>>(),
        [ProxyNeighbour {
            interface: eth(0),
            address: vip
        }]
    );
    assert!(plan.addresses.is_empty());
    assert_eq!(plan.links[&eth(0)].proxy_delay, Some(0));
    assert_eq!(plan.links[&eth(1)].forwarding, Some(true));
}

#[test]
fn a_node_in_no_selector_gets_nothing() {
    let mut world = seed();
    world.nodes[0].labels = Some(BTreeMap::new());
    assert_eq!(plan(&world).1, HostPlan::default());
    assert_eq!(
        host_plan(&world, &judge(&world), "unknown", &HostOptions::default()),
        HostPlan::default()
    );
    let _ = (vm02(), json!({}));
}
