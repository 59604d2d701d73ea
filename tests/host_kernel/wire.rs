//! The connection table, ARP, and what the kernel tells.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use stagenet::host::linux::BackendChoice;
use stagenet::host::{Host as _, HostEvent, LinkChange};
use stagenet::netfilter::Family;
use stagenet::plan::{self, FlowPolicy, HostOptions, InterfaceFacts, NodeFacts, ProxyNeighbour, Sweep};

use crate::lab::isolated;
use crate::{FENCE, World, host, name, next, sh, wanted};

#[test]
fn flows_that_the_plan_does_not_agree_with_are_deleted_and_no_others() {
    isolated("wire::flows_that_the_plan_does_not_agree_with_are_deleted_and_no_others", || {
        let world = World::new();
        let mut host = host(BackendChoice::Auto);
        sh(
            "set -e; for n in $(seq 1 200); do echo \"-I -p tcp --state ESTABLISHED -t 300 -s 192.168.100.9 -d 192.168.100.$((n % 2 + 3)) \
            --sport $((1000 + n)) --dport 80 -r 192.168.200.3 -q 192.168.100.9 --reply-port-src 80 --reply-port-dst $((1000 + n))\"; done \
            > /run/flows; while read -r l; do conntrack $l >/dev/null 2>&1 || exit 1; done < /run/flows; \
            conntrack -I -w 7 -p tcp --state ESTABLISHED -t 300 -s 192.168.100.9 -d 192.168.100.3 --sport 5 --dport 80 -r 192.168.200.3 -q 192.168.100.9 \
            --reply-port-src 80 --reply-port-dst 5 >/dev/null; \
            for last in 3 4; do conntrack -I -w 7 -p udp -t 300 -s 2001:db8::9 -d 2001:db8::$last --sport 5 --dport 53 \
            -r 2001:db8:200::$last -q 2001:db8::9 --reply-port-src 53 --reply-port-dst 5 >/dev/null; done; \
            conntrack -I -p udp -t 300 -s 2001:db8::9 -d 2001:db8::4 --sport 5 --dport 53 \
            -r 2001:db8:1::9 -q 2001:db8::9 --reply-port-src 53 --reply-port-dst 5 >/dev/null; \
            conntrack -I -w 7 -p udp -t 300 -s 192.168.100.9 -d 192.168.100.4 --sport 5 --dport 53 -r 192.168.200.3 -q 192.168.100.9 --reply-port-src 53 --reply-port-dst 5 >/dev/null",
        );
        let policy = two_mappings();
        assert_eq!(
            world.run(host.sweep_flows(&policy, Sweep::default())).unwrap(),
            100,
            "those to .4; zone 7 is nobody's"
        );
        let gone = ["192.168.100.4/32", "2001:db8::4/128"].map(|p| p.parse().unwrap());
        let everywhere = Sweep {
            earlier: plan::Reach::anywhere(gone),
            ..Sweep::default()
        };
        assert_eq!(
            world.run(host.sweep_flows(&policy, everywhere)).unwrap(),
            3,
            "in whatever zone, of both families"
        );
        assert_eq!(sh("conntrack -L -d 192.168.100.3 2>/dev/null | wc -l"), "101\n");
        assert_eq!(sh("conntrack -L 2>/dev/null | wc -l"), "102\n");
        let ipv6 = sh("conntrack -L -f ipv6 2>/dev/null");
        assert!(
            ipv6.lines().count() == 1 && ipv6.contains("dst=2001:db8::3") && ipv6.contains("zone=7"),
            "{ipv6}"
        );
        assert_eq!(world.run(host.sweep_flows(&policy, Sweep::default())).unwrap(), 0);
    });
}

/// 192.168.100.3, TCP port 80, and `2001:db8::3`, UDP port 53, lead inside; clients keep their address.
fn two_mappings() -> Arc<FlowPolicy> {
    let network = json!({
        "apiVersion": "stagenet.dev/v1alpha1", "kind": "StagingNetwork", "metadata": {"name": "net"},
        "spec": {
            "gateway": {"nodeSelector": {}}, "sourceTranslation": "Preserve",
            "outside": {"interface": "eth0", "announce": false, "addresses": ["192.168.100.0/28", "2001:db8::/124"]},
            "inside": {"interface": "eth1", "addresses": ["192.168.200.0/24", "2001:db8:200::/64"]},
        },
    });
    let mapping = |from: &str, to: &str, protocol: &str, port: u16| {
        let object = json!({
            "apiVersion": "stagenet.dev/v1alpha1", "kind": "NatMapping", "metadata": {"name": protocol.to_lowercase(), "namespace": "default"},
            "spec": {
                "networkRef": {"name": "net"}, "virtual": {"address": from}, "target": {"address": to},
                "ports": [{"protocol": protocol, "port": port}],
            },
        });
        serde_json::from_value(object).unwrap()
    };
    let interfaces = ["eth0", "eth1"].map(|name| (name.to_owned(), InterfaceFacts::default()));
    let world = plan::World {
        networks: vec![serde_json::from_value(network).unwrap()],
        mappings: vec![
            mapping("192.168.100.3", "192.168.200.3", "TCP", 80),
            mapping("2001:db8::3", "2001:db8:200::3", "UDP", 53),
        ],
        nodes: vec![NodeFacts {
            name: "node".into(),
            kernel: plan::KernelFacts {
                ipv6_forwarding: true,
                ..plan::KernelFacts::default()
            },
            interfaces: interfaces.into(),
            ..NodeFacts::default()
        }],
        ..plan::World::default()
    };
    plan::host_plan(&world, &plan::judge(&world), "node", &HostOptions::default()).flows
}

fn on_eth0(address: IpAddr) -> ProxyNeighbour {
    ProxyNeighbour {
        interface: name("eth0"),
        address,
    }
}

#[test]
fn strangers_are_found_by_probes_and_announcements_are_seen() {
    isolated("wire::strangers_are_found_by_probes_and_announcements_are_seen", || {
        let world = World::new();
        let mut host = host(BackendChoice::Auto);
        let vip = |last| IpAddr::from([192, 168, 100, last]);
        world.outside.sh("ip addr add 192.168.100.7/24 dev eth0");
        let mac = world
            .outside
            .sh("ip -o link show eth0 | sed 's/.*ether \\([^ ]*\\).*/\\1/'")
            .trim()
            .to_owned();
        let asked = BTreeMap::from([(name("eth0"), (1..=200).map(vip).collect::<BTreeSet<_>>())]);
        let found = world.run(host.probe(&asked)).unwrap();
        assert_eq!(
            found,
            BTreeMap::from([(on_eth0(vip(7)), mac.clone()), (on_eth0(vip(9)), mac)]),
            "our own 192.168.100.2 is no stranger"
        );
        // Nobody learned anything from the probes.
        assert_eq!(world.outside.sh("ip -4 neigh show 192.168.100.3"), "");

        let announced = BTreeMap::from([(name("eth0"), BTreeSet::from([vip(3), vip(4)]))]);
        let capture = world.outside.enter(|| {
            Command::new("timeout")
                .args([
                    "20",
                    "tcpdump",
                    "-i",
                    "eth0",
                    "-n",
                    "-l",
                    "-c",
                    "12",
                    "arp and src host 192.168.100.3 or src host 192.168.100.4",
                ])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        std::thread::sleep(Duration::from_millis(700));
        world.run(host.announce(&announced)).unwrap();
        let seen = String::from_utf8(capture.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(
            seen.lines().filter(|l| l.contains("Request who-has 192.168.100.3")).count(),
            3,
            "{seen}"
        );
        assert_eq!(
            seen.lines().filter(|l| l.contains("Reply 192.168.100.4 is-at")).count(),
            3,
            "{seen}"
        );

        let missing = BTreeMap::from([(name("eth9"), BTreeSet::from([vip(3)]))]);
        assert!(world.run(host.probe(&missing)).unwrap_err().to_string().contains("eth9"));
        sh("ip link set eth0 down");
        world.run(host.probe(&asked)).unwrap_err();
    });
}

#[test]
fn strangers_of_ipv6_are_found_and_caches_are_corrected_by_announcements() {
    isolated(
        "wire::strangers_of_ipv6_are_found_and_caches_are_corrected_by_announcements",
        || {
            let world = World::new();
            let mut host = host(BackendChoice::Auto);
            let vip = |last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
            world.outside.sh("ip addr add 2001:db8::7/64 dev eth0 nodad");
            let mac_of = |words: &str| words.split("ether ").nth(1).unwrap()[..17].to_owned();
            let (mac, own) = (
                mac_of(&world.outside.sh("ip -o link show eth0").replace("link/ether", "ether")),
                mac_of(&sh("ip -o link show eth0").replace("link/ether", "ether")),
            );
            let all = |last: std::ops::RangeInclusive<u16>| BTreeMap::from([(name("eth0"), last.map(vip).collect::<BTreeSet<_>>())]);
            let found = world.run(host.probe(&all(1..=200))).unwrap();
            assert_eq!(
                found,
                BTreeMap::from([(on_eth0(vip(7)), mac.clone()), (on_eth0(vip(9)), mac.clone())]),
                "our own 2001:db8::2 is no stranger"
            );
            assert!(
                !world.outside.sh("ip -6 neigh show").contains("2001:db8::"),
                "nobody learned anything"
            );
            let mut mixed = all(7..=7);
            mixed.get_mut(&name("eth0")).unwrap().insert(IpAddr::from([192, 168, 100, 9]));
            assert_eq!(world.run(host.probe(&mixed)).unwrap().len(), 2, "both families at once");

            // A client that knows another gateway: its kernel takes the news, so it is well-formed in all that it checks.
            world
                .outside
                .sh("ip -6 neigh add 2001:db8::3 lladdr 02:00:00:00:00:99 dev eth0 nud stale");
            let capture = world.outside.enter(|| {
                Command::new("timeout")
                    .args(["20", "tcpdump", "-i", "eth0", "-n", "-l", "-v", "-c", "6", "icmp6[0] == 136"])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            });
            std::thread::sleep(Duration::from_millis(700));
            world.run(host.announce(&all(2..=3))).unwrap();
            let seen = String::from_utf8(capture.wait_with_output().unwrap().stdout).unwrap();
            assert_eq!(seen.matches("tgt is 2001:db8::3, Flags [override]").count(), 3, "{seen}");
            assert_eq!(seen.matches("tgt is 2001:db8::2, Flags [router, override]").count(), 3, "{seen}");
            assert_eq!(seen.matches("icmp6 sum ok").count(), 6, "{seen}");
            assert_eq!(seen.matches("hlim 255").count(), 6, "{seen}");
            let cache = world.outside.sh("ip -6 neigh show 2001:db8::3");
            assert!(cache.contains(&own) && !cache.contains("02:00:00:00:00:99"), "{cache}");
            sh("ip link set eth0 down");
            world.run(host.probe(&all(3..=3))).unwrap_err();
        },
    );
}

/// Ten thousand addresses are announced for seconds at a time. Whoever gives one up meanwhile does not wait for the others, and it is not announced any more.
#[test]
fn giving_an_address_up_waits_for_no_announcement_of_others() {
    isolated("wire::giving_an_address_up_waits_for_no_announcement_of_others", || {
        let world = World::new();
        let mut host = host(BackendChoice::Auto);
        let all: BTreeSet<IpAddr> = (0..10_000_u32).map(|n| IpAddr::from((0x0ac0_0000_u32 + n).to_be_bytes())).collect();
        let last = *all.last().unwrap();
        let announced = BTreeMap::from([(name("eth0"), all)]);
        world.run(async {
            let begun = Instant::now();
            host.announce(&announced).await.unwrap();
            let whole = begun.elapsed();
            // The first repetition has begun, and takes as long again.
            tokio::time::sleep(Duration::from_millis(1200)).await;
            let mut capture = world.outside.enter(|| {
                Command::new("tcpdump")
                    .args(["-i", "eth0", "-n", "-l", &format!("arp and arp host {last}")])
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            });
            let given_up = Instant::now();
            host.change_links(&[LinkChange::RemoveProxy(on_eth0(last))]).await.ok();
            let waited = given_up.elapsed();
            assert!(waited < whole / 4, "{waited:?} of {whole:?}");
            tokio::time::sleep(whole).await;
            capture.kill().unwrap();
            let seen = String::from_utf8(capture.wait_with_output().unwrap().stdout).unwrap();
            assert_eq!(seen, "", "it was the last of them, and its turn had not come");
        });
    });
}

#[test]
fn others_changes_are_told_with_their_maker_and_our_own_are_not() {
    isolated("wire::others_changes_are_told_with_their_maker_and_our_own_are_not", || {
        let world = World::new();
        let mut host = host(BackendChoice::Nft);
        world.run(async {
            let mut events = host.events();
            tokio::time::sleep(Duration::from_millis(300)).await; // the listeners are up
            host.restore(Family::V4, FENCE).await.unwrap();
            host.restore(
                Family::V4,
                FENCE.split("-I FORWARD").next().map(|f| format!("{f}COMMIT\n")).unwrap().as_str(),
            )
            .await
            .unwrap();
            sh("iptables-nft -t filter -N FOREIGN; iptables-nft -t filter -A FOREIGN -j RETURN");
            assert_eq!(next(&mut events, 500, |e| matches!(e, HostEvent::Tables { .. })).await, None);

            sh("iptables-nft -t mangle -F");
            let event = next(&mut events, 10_000, |e| matches!(e, HostEvent::Tables { .. })).await.unwrap();
            let HostEvent::Tables { by, chains } = event else { unreachable!() };
            assert!(by.as_ref().is_some_and(|by| by.starts_with("iptables")), "{by:?}");
            assert_eq!(chains, ["mangle/FORWARD", "mangle/SNET-FO-AABBCCDD", "mangle/SNET-FWD"]);

            let vip = IpAddr::from([192, 168, 100, 3]);
            host.change_links(&wanted()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1500)).await;
            while events.try_recv().is_ok() {}
            sh("ip route del 192.168.100.3 dev lo");
            assert!(
                next(&mut events, 10_000, |e| *e == HostEvent::RouteGone(254, vip.into()))
                    .await
                    .is_some()
            );
            sh("ip neigh del proxy 192.168.100.3 dev eth0");
            assert!(next(&mut events, 10_000, |e| *e == HostEvent::ProxyGone(vip)).await.is_some());
            while events.try_recv().is_ok() {}
            sh("echo 0 > /proc/sys/net/ipv4/conf/eth1/forwarding");
            assert!(next(&mut events, 10_000, |e| *e == HostEvent::Links).await.is_some());
            while next(&mut events, 1500, |_| true).await.is_some() {}
            for told_by_nobody in ["conf/eth0/send_redirects", "neigh/eth0/proxy_delay"] {
                sh(&format!("echo 1 > /proc/sys/net/ipv4/{told_by_nobody}"));
                assert!(
                    next(&mut events, 10_000, |e| *e == HostEvent::Links).await.is_some(),
                    "{told_by_nobody}"
                );
                while next(&mut events, 1500, |_| true).await.is_some() {}
            }
            sh("ip link set eth1 down");
            assert!(next(&mut events, 10_000, |e| *e == HostEvent::Links).await.is_some());
        });
    });
}

/// The queue in the kernel is finite. What did not fit is told as such, and afterwards events are told again.
#[test]
fn lost_events_are_told_as_lost() {
    isolated("wire::lost_events_are_told_as_lost", || {
        let world = World::new();
        let mut host = host(BackendChoice::Nft);
        world.run(async {
            let mut events = host.events();
            tokio::time::sleep(Duration::from_millis(300)).await; // the listeners are up
            // Nobody reads meanwhile: the stream fills, then the kernel's queue.
            sh("for n in $(seq 1 30000); do echo \"route add 198.51.100.1 dev lo proto 211\"; echo \"route del 198.51.100.1 dev lo proto 211\"; \
                done > /run/batch; ip -batch /run/batch");
            assert!(next(&mut events, 20_000, |e| *e == HostEvent::Overrun).await.is_some());
            while next(&mut events, 1500, |_| true).await.is_some() {}
            sh("ip link set eth1 down");
            assert!(next(&mut events, 10_000, |e| *e == HostEvent::Links).await.is_some());
        });
    });
}
