//! Routes, proxy neighbours, addresses and settings of interfaces.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use stagenet::host::linux::BackendChoice;
use stagenet::host::{Host as _, LinkChange};
use stagenet::plan::{LinkSettings, ProxyNeighbour, Route, Via};

use crate::lab::isolated;
use crate::{World, host, look, name, sh, undone, wanted};

#[test]
fn routes_proxies_addresses_and_settings_come_and_go_without_a_trace() {
    isolated("links::routes_proxies_addresses_and_settings_come_and_go_without_a_trace", || {
        let world = World::new();
        links_come_and_go(&world);
    });
}

fn links_come_and_go(world: &World) {
    let before = look();
    let changes = wanted();
    let mut first = host(BackendChoice::Auto);
    world.run(first.change_links(&changes)).unwrap();
    world.run(first.change_links(&changes)).unwrap(); // what is there already is no error
    assert!(sh("ip route show proto 211").contains("192.168.100.3 dev lo scope link"));
    assert_eq!(sh("ip neigh show proxy").matches("proto 211").count(), 6);
    assert!(sh("ip -4 addr show eth1").contains("192.168.200.254/32"));
    assert_eq!(
        sh("cat /proc/sys/net/ipv4/conf/eth1/forwarding /proc/sys/net/ipv4/conf/eth1/rp_filter"),
        "1\n2\n"
    );
    assert_eq!(
        sh("cat /proc/sys/net/ipv4/conf/eth0/send_redirects /proc/sys/net/ipv4/neigh/eth0/proxy_delay"),
        "0\n0\n"
    );

    // A fresh agent knows its own by the marks alone.
    let mut second = host(BackendChoice::Auto);
    let seen = world.run(second.read_links()).unwrap();
    assert_eq!((seen.routes.len(), seen.proxies.len(), seen.addresses.len()), (8, 6, 1));
    assert_eq!(seen.touched, BTreeSet::from([name("eth0"), name("eth1")]));
    assert_eq!(seen.links[&name("eth0")].proxy_delay, Some(0));
    assert_eq!(seen.links[&name("eth0")].send_redirects, Some(false));
    assert_eq!(seen.links[&name("eth1")].rp_filter, Some(2));
    let facts = world.run(second.interfaces()).unwrap();
    assert_eq!(
        facts["eth1"].addresses,
        BTreeSet::from(["192.168.200.2/24", "2001:db8:200::2/64"].map(|a| a.parse().unwrap())),
        "ours left out"
    );
    assert_eq!(facts["eth1"].rp_filter, 2);
    assert!(facts["eth0"].up && facts["eth0"].mtu == 1500 && facts["eth0"].mac.len() == 17);

    world.run(second.change_links(&undone(&changes))).unwrap();
    world.run(second.change_links(&undone(&changes))).unwrap(); // what is gone already is no error
    assert_eq!(look(), before);
    assert!(!Path::new("/run/stagenet/found.json").exists());
}

#[test]
fn what_bears_no_mark_is_neither_replaced_nor_removed() {
    isolated("links::what_bears_no_mark_is_neither_replaced_nor_removed", || {
        let world = World::new();
        sh(
            "ip route add 192.168.100.3 via 192.168.100.9; ip neigh add proxy 192.168.100.3 dev eth0; ip addr add 192.168.200.254/32 dev eth1",
        );
        let before = look();
        let mut host = host(BackendChoice::Auto);
        let changes: Vec<_> = wanted()
            .into_iter()
            .filter(|change| match change {
                LinkChange::AddAddress(_) => true,
                LinkChange::AddRoute(r) => r.destination.addr() == IpAddr::from([192, 168, 100, 3]),
                LinkChange::AddProxy(p) => p.address == IpAddr::from([192, 168, 100, 3]),
                _ => false,
            })
            .collect();
        let errors = world.run(host.change_links(&changes)).unwrap_err();
        assert_eq!(errors.len(), 3, "{errors:?}");
        assert!(errors.iter().all(|e| e.to_string().contains("left alone")), "{errors:?}");
        world.run(host.change_links(&undone(&changes))).unwrap();
        assert_eq!(look(), before);
    });
}

#[test]
fn settings_of_an_interface_made_anew_and_of_a_lost_record() {
    isolated("links::settings_of_an_interface_made_anew_and_of_a_lost_record", || {
        let world = World::new();
        let on = LinkChange::Set(
            name("eth1"),
            LinkSettings {
                forwarding: Some(true),
                ..LinkSettings::default()
            },
        );
        let forwarding = || sh("cat /proc/sys/net/ipv4/conf/eth1/forwarding");
        let mut first = host(BackendChoice::Auto);
        world.run(first.change_links(std::slice::from_ref(&on))).unwrap();
        sh("ip link del eth1");
        assert!(world.run(first.read_links()).unwrap().touched.is_empty());
        world.run(first.change_links(&[LinkChange::PutBack(name("eth1"))])).unwrap();
        let errors = world.run(first.change_links(std::slice::from_ref(&on))).unwrap_err();
        assert!(errors[0].to_string().contains("no such interface"), "{errors:?}");

        sh("ip link add eth1 type veth peer name eth7; echo 1 > /proc/sys/net/ipv4/conf/eth1/forwarding");
        world.run(first.change_links(std::slice::from_ref(&on))).unwrap();
        world.run(first.change_links(&[LinkChange::PutBack(name("eth1"))])).unwrap();
        assert_eq!(forwarding(), "1\n", "found on, put back on");

        world.run(first.change_links(&[on])).unwrap();
        sh("rm /run/stagenet/found.json");
        let mut second = host(BackendChoice::Auto);
        world.run(second.change_links(&[LinkChange::PutBack(name("eth1"))])).unwrap();
        assert_eq!(forwarding(), "0\n", "a lost record means no forwarding");
    });
}

/// Errors in the midst of a large batch are told by name, and everything else of it is done.
#[test]
fn one_refused_change_among_many_holds_up_no_other() {
    isolated("links::one_refused_change_among_many_holds_up_no_other", || {
        let world = World::new();
        sh("ip route add 10.1.0.77 dev eth0");
        let mut host = host(BackendChoice::Auto);
        let mut changes: Vec<_> = (0..300u32)
            .map(|n| {
                LinkChange::AddRoute(Route::main(
                    IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a01_0000 + n)).into(),
                    Via::Loopback,
                ))
            })
            .collect();
        changes.push(LinkChange::AddProxy(ProxyNeighbour {
            interface: name("eth9"),
            address: IpAddr::from([10, 1, 0, 1]),
        }));
        let mut errors: Vec<_> = world
            .run(host.change_links(&changes))
            .unwrap_err()
            .iter()
            .map(ToString::to_string)
            .collect();
        errors.sort();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(
            errors[0].contains("proxy neighbour 10.1.0.1 on eth9") && errors[0].contains("no such interface"),
            "{errors:?}"
        );
        assert!(
            errors[1].contains("route to 10.1.0.77/32") && errors[1].contains("left alone"),
            "{errors:?}"
        );
        assert_eq!(world.run(host.read_links()).unwrap().routes.len(), 299);
        world.run(host.change_links(&undone(&changes))).unwrap();
        assert_eq!(sh("ip route show 10.1.0.0/16; ip route show proto 211").trim(), "");
        assert!(sh("ip route show").contains("10.1.0.77 dev eth0"));
    });
}
