//! Which node attracts a network's traffic.

use serde_json::json;

use super::super::testing::{network, node};
use super::super::validate;
use super::super::verdict::elect;
use super::super::{NodeFacts, validate::ValidNetwork};
use crate::api::network::ActiveGateway;

fn net() -> ValidNetwork {
    validate::network(&network("net", 0, json!({}))).unwrap()
}

fn fit(name: &str, address: &str) -> NodeFacts {
    node(name, Some(&[]), &[("eth0", &[address]), ("eth1", &["192.168.200.2/24"])])
}

fn active(node: &str, address: Option<&str>) -> ActiveGateway {
    ActiveGateway {
        node: node.into(),
        address: address.map(Into::into),
        address_ipv6: None,
    }
}

#[test]
fn the_first_fit_node_by_name() {
    let unfit = node("a", Some(&[]), &[("eth0", &["192.168.100.9/24"])]);
    let candidates = [fit("c", "192.168.100.4/24"), unfit, fit("b", "192.168.100.5/24")];
    assert_eq!(elect(None, &candidates, &net()), Some(active("b", Some("192.168.100.5"))));
    assert_eq!(elect(None, &candidates[1..2], &net()), None);
}

#[test]
fn it_stays_where_it_is() {
    let candidates = [fit("a", "192.168.100.4/24"), fit("b", "192.168.100.5/24")];
    assert_eq!(
        elect(Some(&active("b", Some("192.168.100.77"))), &candidates, &net()),
        Some(active("b", Some("192.168.100.5"))),
        "with the address it has now"
    );
    assert_eq!(
        elect(Some(&active("gone", None)), &candidates, &net()),
        Some(active("a", Some("192.168.100.4")))
    );
    let unseen = [node("b", Some(&[]), &[])];
    let current = active("b", Some("192.168.100.5"));
    assert_eq!(elect(Some(&current), &unseen, &net()), Some(current));
}

#[test]
fn the_address_is_the_one_in_the_pool_s_subnet() {
    let two = node(
        "a",
        Some(&[]),
        &[("eth0", &["10.0.0.1/24", "192.168.100.5/24"]), ("eth1", &["192.168.200.2/24"])],
    );
    assert_eq!(elect(None, &[two], &net()), Some(active("a", Some("192.168.100.5"))));
    let none = node("a", Some(&[]), &[("eth0", &[]), ("eth1", &["192.168.200.2/24"])]);
    assert_eq!(elect(None, &[none], &net()), Some(active("a", None)));
}

#[test]
fn each_family_has_its_address_and_a_link_local_one_is_none() {
    let both = network("net", 0, json!({"outside": {"addresses": ["192.168.100.0/24", "fd00:100::/64"]}}));
    let both = validate::network(&both).unwrap();
    let inside: (&str, &[&str]) = ("eth1", &["192.168.200.2/24"]);
    let elected = |outside: &[&str]| elect(None, &[node("a", Some(&[]), &[("eth0", outside), inside])], &both).unwrap();
    let dual = elected(&["192.168.100.5/24", "fd00:9::5/64", "fd00:100::5/64", "fe80::5/64"]);
    assert_eq!(
        (dual.address.as_deref(), dual.address_ipv6.as_deref()),
        (Some("192.168.100.5"), Some("fd00:100::5"))
    );
    let local = elected(&["192.168.100.5/24", "fe80::5/64"]);
    assert_eq!(
        (local.address.as_deref(), local.address_ipv6.as_deref()),
        (Some("192.168.100.5"), None)
    );
}
