//! IPv6, tables of our own, and policy routing rules.

use std::collections::BTreeSet;
use std::net::IpAddr;

use stagenet::host::linux::BackendChoice;
use stagenet::host::{Host as _, HostEvent, LinkChange, Needs};
use stagenet::netfilter::{Family, Helper, Mark};
use stagenet::plan::{GatewayAddress, LinkSettings, PolicyRule, ProxyNeighbour, Route, RuleAction, Via};

use crate::lab::isolated;
use crate::{World, host, look, name, next, sh, undone};

/// The table of an isolated network.
const TABLE: u32 = 211_001;

fn v6(last: u16) -> IpAddr {
    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last])
}

fn routes() -> Vec<Route> {
    let route = |table, destination: &str, via| Route {
        table,
        destination: destination.parse().unwrap(),
        via,
    };
    vec![
        Route::main(v6(3).into(), Via::Loopback),
        Route::main("2001:db8:1::/64".parse().unwrap(), Via::Link(name("eth1"))),
        Route::main("2001:db8:2::/64".parse().unwrap(), Via::Gateway(v6(9))),
        route(TABLE, "192.168.200.0/24", Via::Link(name("eth1"))),
        route(TABLE, "192.168.200.0/24", Via::Blackhole),
        route(TABLE, "2001:db8:5::/64", Via::Link(name("eth1"))),
        route(TABLE, "2001:db8:5::/64", Via::Blackhole),
        route(100, "10.1.0.0/16", Via::Loopback),
    ]
}

fn rules() -> Vec<PolicyRule> {
    let rule = |family, preference, mark: Option<u32>, input: Option<&str>, action| PolicyRule {
        family,
        preference,
        mark: mark.map(|value| Mark { value, mask: 0xff }),
        input: input.map(name),
        action,
    };
    let of = |family| {
        [
            rule(family, 2110, Some(0), None, RuleAction::Goto(2400)),
            rule(family, 2111, Some(1), None, RuleAction::Lookup(TABLE)),
            rule(family, 2112, Some(2), Some("eth1"), RuleAction::Lookup(100)),
            rule(family, 2113, None, Some("not-there"), RuleAction::Lookup(100)),
            rule(family, 2114, Some(3), None, RuleAction::Blackhole),
            rule(family, 2400, None, None, RuleAction::Nop),
        ]
    };
    Family::ALL.into_iter().flat_map(of).collect()
}

fn address() -> GatewayAddress {
    GatewayAddress {
        interface: name("eth1"),
        address: IpAddr::from([0x2001, 0xdb8, 5, 0, 0, 0, 0, 1]),
    }
}

fn proxies() -> Vec<ProxyNeighbour> {
    (3..=8)
        .map(|last| ProxyNeighbour {
            interface: name("eth0"),
            address: v6(last),
        })
        .collect()
}

/// Every kind of link change that [`crate::wanted`] has not.
pub(crate) fn wanted() -> Vec<LinkChange> {
    let delay = LinkSettings {
        proxy_delay_ipv6: Some(0),
        ..LinkSettings::default()
    };
    let mut changes = vec![LinkChange::Set(name("eth0"), delay)];
    changes.extend(rules().into_iter().map(LinkChange::AddRule));
    changes.push(LinkChange::AddAddress(address()));
    changes.extend(routes().into_iter().map(LinkChange::AddRoute));
    changes.extend(proxies().into_iter().map(LinkChange::AddProxy));
    changes
}

#[test]
fn both_families_tables_and_policy_rules_come_and_go_without_a_trace() {
    isolated(
        "families::both_families_tables_and_policy_rules_come_and_go_without_a_trace",
        || {
            let world = World::new();
            let before = look();
            let mut first = host(BackendChoice::Auto);
            world.run(first.change_links(&wanted())).unwrap();
            world.run(first.change_links(&wanted())).unwrap(); // what is there already is no error

            let main = sh("ip -6 route show proto 211");
            for line in [
                "2001:db8::3 dev lo metric 1024",
                "2001:db8:1::/64 dev eth1 metric 1024",
                "2001:db8:2::/64 via 2001:db8::9 dev eth0 metric 1024",
            ] {
                assert!(main.contains(line), "{line} in\n{main}");
            }
            let own = sh("ip route show table 211001 proto 211; ip -6 route show table 211001 proto 211");
            for line in [
                "192.168.200.0/24 dev eth1 scope link",
                "blackhole 192.168.200.0/24 metric 4294967295",
                "2001:db8:5::/64 dev eth1 metric 1024",
                "blackhole 2001:db8:5::/64 dev lo metric 4294967295",
            ] {
                assert!(own.contains(line), "{line} in\n{own}");
            }
            for family in ["-4", "-6"] {
                let rules = sh(&format!("ip {family} rule show"));
                for line in [
                    "2110:\tfrom all fwmark 0/0xff goto 2400 proto 211",
                    "2111:\tfrom all fwmark 0x1/0xff lookup 211001 proto 211",
                    "2112:\tfrom all fwmark 0x2/0xff iif eth1 lookup 100 proto 211",
                    "2113:\tfrom all iif not-there [detached] lookup 100 proto 211",
                    "2114:\tfrom all fwmark 0x3/0xff blackhole proto 211",
                    "2400:\tfrom all nop proto 211",
                ] {
                    assert!(rules.contains(line), "{line} in\n{rules}");
                }
            }
            let address = sh("ip -6 -o addr show dev eth1 to 2001:db8:5::1");
            assert!(
                address.contains("2001:db8:5::1/128") && address.contains("nodad") && address.contains("noprefixroute"),
                "{address}"
            );
            assert_eq!(sh("ip -6 neigh show proxy").matches("proto 211").count(), 6);
            assert_eq!(sh("cat /proc/sys/net/ipv6/neigh/eth0/proxy_delay"), "0\n");
            // The kernel does what the rules say.
            assert!(sh("ip route get 192.168.200.77 mark 1").contains("table 211001"));
            assert!(sh("ip -6 route get 2001:db8:5::7 mark 3 2>&1 || true").contains("Invalid argument"));
            sh("ip link set eth1 down");
            assert!(
                sh("ip route get 192.168.200.77 mark 1 2>&1 || true").contains("Invalid argument"),
                "the blackhole"
            );
            sh("ip link set eth1 up; ip -6 addr replace 2001:db8:200::2/64 dev eth1 nodad");

            // What hung on the interface went with it; a fresh agent sees that, and its own by the marks alone.
            let mut second = host(BackendChoice::Auto);
            world.run(second.change_links(&wanted())).unwrap();
            let seen = world.run(second.read_links()).unwrap();
            assert_eq!(seen.routes, routes().into_iter().collect());
            assert_eq!(seen.policy_rules, rules().into_iter().collect());
            assert_eq!(seen.proxies, proxies().into_iter().collect());
            assert_eq!(seen.addresses, BTreeSet::from([crate::families::address()]));
            assert_eq!(seen.links[&name("eth0")].proxy_delay_ipv6, Some(0));
            let facts = world.run(second.interfaces()).unwrap();
            assert_eq!(
                facts["eth1"].addresses,
                ["192.168.200.2/24", "2001:db8:200::2/64"].map(|a| a.parse().unwrap()).into(),
                "ours and link-local ones left out"
            );

            world.run(second.change_links(&undone(&wanted()))).unwrap();
            world.run(second.change_links(&undone(&wanted()))).unwrap(); // what is gone already is no error
            assert_eq!(look(), before);
        },
    );
}

#[test]
fn others_rules_routes_and_neighbours_are_neither_replaced_nor_removed() {
    isolated(
        "families::others_rules_routes_and_neighbours_are_neither_replaced_nor_removed",
        || {
            let world = World::new();
            sh(
                "ip -6 route add 2001:db8::3 via 2001:db8::9 metric 1024; ip -6 neigh add proxy 2001:db8::3 dev eth0; \
                ip -6 addr add 2001:db8:5::1/128 dev eth1 nodad; ip rule add pref 2111 fwmark 1/0xff lookup 211001; \
                ip route add blackhole 192.168.200.0/24 table 211001 metric 4294967295; \
                ip route add blackhole 10.9.0.0/16 table 211001 metric 7 proto 210",
            );
            let before = look();
            let mut host = host(BackendChoice::Auto);
            let taken: Vec<_> = wanted()
                .into_iter()
                .filter(|change| match change {
                    LinkChange::AddAddress(_) => true,
                    LinkChange::AddRule(rule) => rule.family == Family::V4 && rule.preference == 2111,
                    LinkChange::AddRoute(r) => {
                        r.destination.addr() == v6(3) || r.via == Via::Blackhole && r.destination.to_string() == "192.168.200.0/24"
                    }
                    LinkChange::AddProxy(p) => p.address == v6(3),
                    _ => false,
                })
                .collect();
            assert_eq!(taken.len(), 5);
            let errors = world.run(host.change_links(&taken)).unwrap_err();
            assert_eq!(errors.len(), 4, "{errors:?}");
            assert!(errors.iter().all(|e| e.to_string().contains("left alone")), "{errors:?}");
            // The same rule of two owners is two rules.
            assert_eq!(sh("ip rule show pref 2111").lines().count(), 2);
            world.run(host.change_links(&undone(&taken))).unwrap();
            assert_eq!(look(), before);
            let seen = world.run(host.read_links()).unwrap();
            assert!(seen.routes.is_empty() && seen.policy_rules.is_empty(), "{seen:?}");
        },
    );
}

#[test]
fn what_others_take_away_is_told() {
    isolated("families::what_others_take_away_is_told", || {
        let world = World::new();
        let mut host = host(BackendChoice::Auto);
        world.run(async {
            let mut events = host.events();
            tokio::time::sleep(std::time::Duration::from_millis(300)).await; // the listeners are up
            host.change_links(&wanted()).await.unwrap();
            while next(&mut events, 1500, |_| true).await.is_some() {}
            let fresh = |event: &HostEvent| *event != HostEvent::Links;
            for (command, told) in [
                ("ip -6 route del 2001:db8::3 dev lo", HostEvent::RouteGone(254, v6(3).into())),
                (
                    "ip -6 route del 2001:db8:5::/64 table 211001 metric 1024",
                    HostEvent::RouteGone(TABLE, "2001:db8:5::/64".parse().unwrap()),
                ),
                (
                    "ip route del blackhole 192.168.200.0/24 table 211001",
                    HostEvent::RouteGone(TABLE, "192.168.200.0/24".parse().unwrap()),
                ),
                ("ip rule del pref 2110", HostEvent::RuleGone(rules()[0].clone())),
                ("ip -6 rule del pref 2112", HostEvent::RuleGone(rules()[8].clone())),
                ("ip -6 neigh del proxy 2001:db8::4 dev eth0", HostEvent::ProxyGone(v6(4))),
            ] {
                sh(command);
                assert_eq!(next(&mut events, 10_000, fresh).await, Some(told), "{command}");
            }
            while next(&mut events, 1500, |_| true).await.is_some() {}
            for command in [
                "ip -6 addr del 2001:db8:5::1/128 dev eth1",
                "echo 1 > /proc/sys/net/ipv6/conf/eth0/proxy_ndp",
                "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
                "echo 1 > /proc/sys/net/ipv6/neigh/eth0/proxy_delay",
                "echo 1 > /proc/sys/net/ipv4/fwmark_reflect",
            ] {
                sh(command);
                assert!(next(&mut events, 10_000, |e| *e == HostEvent::Links).await.is_some(), "{command}");
                while next(&mut events, 1500, |_| true).await.is_some() {}
            }
            assert!(host.interfaces().await.unwrap()["eth0"].proxy_ndp);
        });
    });
}

#[test]
fn what_only_the_administrator_can_set_is_seen_and_asked_for() {
    isolated("families::what_only_the_administrator_can_set_is_seen_and_asked_for", || {
        let world = World::new();
        let mut host = host(BackendChoice::Auto);
        sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding");
        let needs = Needs {
            ipv6: true,
            proxy_ndp: [name("eth0")].into(),
            isolated: Family::ALL.into(),
            ..Needs::default()
        };
        let mut missing = || -> Vec<&'static str> {
            let findings = world.run(host.preflight(&needs)).unwrap();
            let about = ["Ipv6Forwarding", "ProxyNdp", "FwmarkReflect"];
            findings
                .iter()
                .filter(|f| about.contains(&f.condition) && !f.ok)
                .map(|f| f.reason)
                .collect()
        };
        assert_eq!(missing(), ["IPv6ForwardingOff", "ProxyNdpOff", "FwmarkReflectOff"]);
        sh("cd /proc/sys/net; echo 1 > ipv6/conf/all/forwarding; echo 1 > ipv6/conf/all/proxy_ndp; echo 1 > ipv4/fwmark_reflect");
        assert_eq!(missing(), ["FwmarkReflectOff"]);
        sh("echo 1 > /proc/sys/net/ipv6/fwmark_reflect");
        assert!(missing().is_empty());
    });
}

/// The rules of a helper that is said to be there are taken by the kernel.
#[test]
fn helpers_that_are_said_to_be_there_are() {
    isolated("families::helpers_that_are_said_to_be_there_are", || {
        let world = World::new();
        let mut host = host(BackendChoice::Nft);
        let facts = world.run(host.kernel()).unwrap();
        let hooks = sh("iptables-nft-save; cat /proc/modules 2>/dev/null || true");
        let helpers = facts.helpers.expect("/proc/kallsyms is there");
        assert_eq!(
            sh("iptables-nft-save; cat /proc/modules 2>/dev/null || true"),
            hooks,
            "nothing was loaded or made to find out"
        );
        sh("iptables-nft -t raw -N SNET-RAW");
        for helper in helpers {
            let transport = match helper {
                Helper::Ftp | Helper::Irc | Helper::Pptp | Helper::Sip | Helper::H323Signalling => "tcp",
                Helper::Amanda | Helper::Snmp | Helper::Tftp | Helper::H323Ras => "udp",
            };
            sh(&format!(
                "iptables-nft -t raw -A SNET-RAW -p {transport} --dport 99 -j CT --helper {}",
                helper.as_str()
            ));
        }
    });
}
