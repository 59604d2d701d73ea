//! Routes of client nodes.

use serde_json::{Value, json};

use super::{active, address, cluster, plan_of, route};
use crate::api::gatewaynode::Role;
use crate::api::network::ActiveGateway;
use crate::plan::testing::mapping;
use crate::plan::{HostPlan, Via, World};

fn clients(change: Value) -> World {
    let mut world = cluster(json!({"outside": {"clientRoutes": {"nodeSelector": {"matchLabels": {"client": "true"}}}}}));
    let mut raw = serde_json::to_value(&world.networks[0].spec).unwrap();
    raw["outside"]["addresses"] = change;
    world.networks[0].spec = serde_json::from_value(raw).unwrap();
    world
}

fn via() -> Via {
    Via::Gateway(address("192.168.100.2"))
}

#[test]
fn clients_get_routes_and_nothing_else() {
    let world = clients(json!(["192.168.100.0/24"]));
    let far = plan_of(&world, "far");
    assert_eq!(far.networks["net"].role, Role::Client);
    assert_eq!(far.routes, [route("192.168.100.0/24", via())].into());
    let rest = HostPlan {
        routes: [].into(),
        networks: [].into(),
        ..far
    };
    assert_eq!(rest, HostPlan::default());
    let near = plan_of(&world, "near");
    assert_eq!(
        near.routes,
        [route("192.168.100.3/32", via())].into(),
        "its own segment stays where it is"
    );
    let gateway = plan_of(&world, "vm12");
    assert!(
        !gateway.routes.iter().any(|r| matches!(r.via, Via::Gateway(_))),
        "a gateway is no client"
    );
}

#[test]
fn clients_wait_for_a_usable_gateway_address() {
    let mut world = clients(json!(["192.168.100.0/24"]));
    for given in [None, Some("junk"), Some("0.0.0.0"), Some("fe80::1"), Some("224.0.0.1")] {
        active(&mut world, "vm02", given);
        let far = plan_of(&world, "far");
        assert!(far.routes.is_empty(), "{given:?}");
        assert_eq!(far.networks["net"].role, Role::Client);
    }
}

#[test]
fn pools_that_two_gateways_share_are_routed_address_by_address() {
    let mut world = clients(json!(["192.168.100.0/24"]));
    let mut other = world.networks[0].clone();
    other.metadata.name = Some("other".into());
    other.spec.outside.addresses = vec!["192.168.100.128/25".into(), "192.168.101.0/24".into()];
    other.spec.inside.addresses = vec!["192.168.201.0/24".into()];
    other.status.as_mut().unwrap().active_gateway = Some(ActiveGateway {
        node: "vm12".into(),
        address: Some("192.168.100.12".into()),
        address_ipv6: None,
    });
    world.networks.push(other);
    world.mappings.push(mapping(
        "vm05",
        2,
        "192.168.100.130",
        "192.168.201.5",
        json!({"networkRef": {"name": "other"}}),
    ));
    let other_via = || Via::Gateway(address("192.168.100.12"));
    let wanted = [
        route("192.168.100.3/32", via()),
        route("192.168.100.130/32", other_via()),
        route("192.168.101.0/24", other_via()),
    ];
    assert_eq!(plan_of(&world, "far").routes, wanted.into());
}

#[test]
fn each_family_has_its_own_next_hop() {
    let mut world = clients(json!(["192.168.100.0/24", "fd00:100::/64"]));
    let six = || Via::Gateway(address("fd00:100::2"));
    let tell = |world: &mut World, four: Option<&str>, six: Option<&str>| {
        active(world, "vm02", four);
        let status = world.networks[0].status.as_mut().unwrap();
        status.active_gateway.as_mut().unwrap().address_ipv6 = six.map(Into::into);
    };
    tell(&mut world, Some("192.168.100.2"), None);
    assert_eq!(plan_of(&world, "far").routes, [route("192.168.100.0/24", via())].into());
    tell(&mut world, Some("192.168.100.2"), Some("fd00:100::2"));
    let both = [route("192.168.100.0/24", via()), route("fd00:100::/64", six())];
    assert_eq!(plan_of(&world, "far").routes, both.into());
    tell(&mut world, None, Some("fd00:100::2"));
    assert_eq!(plan_of(&world, "far").routes, [route("fd00:100::/64", six())].into());
    world.nodes[2]
        .interfaces
        .get_mut("ens1")
        .unwrap()
        .addresses
        .insert("fd00:100::50/64".parse().unwrap());
    world.mappings.push(mapping("six", 2, "fd00:100::3", "fd00:200::3", json!({})));
    world.networks[0].spec.inside.addresses.push("fd00:200::/64".into());
    assert_eq!(
        plan_of(&world, "near").routes,
        [route("fd00:100::3/128", six())].into(),
        "in its own segment address by address"
    );
}
