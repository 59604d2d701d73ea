//! The real host on the real kernel: each effect is made with [`LinuxHost`], looked at with the tools an administrator has, undone, and
//! compared with what was before. No packets here but ARP; traffic is the business of the other labs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a lab that cannot go on has to end there, saying so

mod lab;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::{Ns, isolated};
use stagenet::host::linux::{BackendChoice, LinuxHost, LinuxOptions};
use stagenet::host::{Backend, Host, HostError, HostEvent, LinkChange};
use stagenet::netfilter::{ChainName, Family, Hook, IfName, PortRange, Table};
use stagenet::plan::{FlowPolicy, GatewayAddress, LinkSettings, ProxyNeighbour, Route, Via};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// What the world looks like to an administrator, as text.
fn look() -> String {
    let mut all = String::new();
    for tool in ["iptables-nft-save", "ip6tables-nft-save"] {
        all += &without_comments(&sh(tool));
    }
    if Path::new("/proc/net/ip_tables_names").exists() && !fs::read_to_string("/proc/net/ip_tables_names").unwrap().is_empty() {
        all += &without_comments(&sh("iptables-legacy-save"));
    }
    all += &sh("ip -4 route show table all; ip -4 rule; ip -4 neigh show proxy; ip -4 addr");
    all + &sh(
        "grep -H . /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/conf/*/send_redirects /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/neigh/*/proxy_delay",
    )
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect()
}

fn sh(line: &str) -> String {
    let ran = Command::new("sh").args(["-c", line]).stdin(Stdio::null()).output().unwrap();
    assert!(
        ran.status.success(),
        "{line}: {}\n{}",
        ran.status,
        String::from_utf8_lossy(&ran.stderr)
    );
    String::from_utf8(ran.stdout).unwrap()
}

fn name(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn chain(suffix: &str) -> ChainName {
    ChainName::new(suffix).unwrap()
}

fn host(backend: BackendChoice) -> LinuxHost {
    LinuxHost::new(LinuxOptions {
        backend,
        state_dir: "/run/stagenet".into(),
    })
}

/// The gateway of the seed, in the world's own namespace: eth0 to `out`, eth1 to `in`.
struct World {
    outside: Ns,
    inside: Ns,
    runtime: Runtime,
}

impl World {
    fn new() -> Self {
        let (outside, inside) = (Ns::new("outside"), Ns::new("inside"));
        for (ns, local, address) in [(&outside, "eth0", "192.168.100"), (&inside, "eth1", "192.168.200")] {
            sh(&format!("ip link add {local} type veth peer name eth0 netns {}", ns.name()));
            sh(&format!("ip addr add {address}.2/24 dev {local} && ip link set {local} up"));
            ns.sh(&format!("ip addr add {address}.9/24 dev eth0 && ip link set eth0 up"));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self { outside, inside, runtime }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { timeout(Duration::from_secs(120), work).await.unwrap() })
    }
}

const FENCE: &str = "*mangle\n:SNET-FWD - [0:0]\n:SNET-FO-AABBCCDD - [0:0]\n\
    -A SNET-FO-AABBCCDD -m comment --comment \"stagenet:0123456789ab:segment-b\" -j DROP\n\
    -A SNET-FWD -i eth1 -m comment --comment \"stagenet:ba9876543210:segment-b\" -g SNET-FO-AABBCCDD\n\
    -I FORWARD 1 -m comment --comment stagenet -j SNET-FWD\nCOMMIT\n";
const UNFENCE: &str = "*mangle\n:SNET-FWD - [0:0]\n:SNET-FO-AABBCCDD - [0:0]\n\
    -D FORWARD -m comment --comment stagenet -j SNET-FWD\n-X SNET-FWD\n-X SNET-FO-AABBCCDD\nCOMMIT\n";

fn both(test: impl Fn(&World, BackendChoice)) {
    for backend in [BackendChoice::Nft, BackendChoice::Legacy] {
        test(&World::new(), backend);
        sh("ip link del eth0; ip link del eth1; ip netns del outside; ip netns del inside; rm -rf /run/stagenet");
    }
}

#[test]
fn rules_are_restored_read_back_counted_and_taken_away() {
    isolated("rules_are_restored_read_back_counted_and_taken_away", || {
        both(|world, backend| {
            sh("iptables-nft -t mangle -A FORWARD -j RETURN");
            if backend == BackendChoice::Legacy {
                sh("iptables-legacy -t mangle -A FORWARD -j RETURN");
            }
            let before = look();
            let mut host = host(backend);
            world.run(async {
                host.restore(Family::V4, FENCE).await.unwrap();
                for chains in [None, Some(BTreeSet::from([chain("FWD"), chain("FO-AABBCCDD")]))] {
                    let seen = host.read_table(Family::V4, Table::Mangle, chains.as_ref()).await.unwrap();
                    assert_eq!(seen.hooks[&Hook::Forward].jumps, [(1, chain("FWD"))]);
                    assert_eq!(seen.chains["SNET-FWD"][0].as_ref().unwrap().0, "ba9876543210");
                    assert_eq!(seen.chains.len(), 2);
                }
                let absent = BTreeSet::from([chain("NOT-THERE")]);
                let seen = host.read_table(Family::V4, Table::Mangle, Some(&absent)).await.unwrap();
                assert!(seen.chains.is_empty() && seen.hooks.len() == 1, "{seen:?}");
            });
            // A new flow from inside to outside is dropped and counted.
            sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
            world.inside.sh("ip route add default via 192.168.200.2");
            world.inside.try_sh("ping -c 2 -i 0.2 -W 1 192.168.100.9");
            let denied = world.run(host.denied()).unwrap();
            assert_eq!(denied, BTreeMap::from([(("segment-b".to_owned(), "out".to_owned()), 2)]));
            sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
            world.run(host.restore(Family::V4, UNFENCE)).unwrap();
            assert_eq!(look(), before);
            sh("iptables-nft -t mangle -F");
        });
    });
}

#[test]
fn reading_makes_no_tables() {
    isolated("reading_makes_no_tables", || {
        both(|world, backend| {
            let mut host = host(backend);
            world.run(async {
                for table in [Table::Mangle, Table::Nat, Table::Filter] {
                    for family in [Family::V4, Family::V6] {
                        assert!(host.read_table(family, table, None).await.unwrap().chains.is_empty());
                        host.read_table(family, table, Some(&BTreeSet::from([chain("FWD")]))).await.unwrap();
                    }
                }
                let one = BTreeSet::from([name("eth0")]);
                host.preflight(&one, &BTreeSet::new()).await.unwrap();
                host.denied().await.unwrap();
            });
            assert_eq!(
                sh("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names; iptables-nft-save; ip6tables-nft-save"),
                ""
            );
        });
    });
}

#[test]
fn a_refused_rule_is_named_and_nothing_of_its_table_is_changed() {
    isolated("a_refused_rule_is_named_and_nothing_of_its_table_is_changed", || {
        both(|world, backend| {
            let mut host = host(backend);
            world.run(host.restore(Family::V4, FENCE)).unwrap();
            let before = look();
            for (rule, line) in [
                ("-A SNET-FWD -m nosuchmatch -j DROP", Some(3)),
                ("-A SNET-FWD -j SNET-NOT-THERE", Some(3)),
                ("-A SNET-FWD -d 300.1.1.1/32 -j DROP", Some(3)),
                // The kernel's own refusal: the legacy tool blames the COMMIT.
                ("-A SNET-FWD -j MASQUERADE", (backend == BackendChoice::Nft).then_some(3)),
            ] {
                let text = format!("*mangle\n:SNET-FWD - [0:0]\n{rule}\nCOMMIT\n");
                match world.run(host.restore(Family::V4, &text)) {
                    Err(HostError::RestoreRejected {
                        table,
                        line: at,
                        text,
                        said,
                    }) => {
                        assert_eq!((table.as_str(), at), ("mangle", line.unwrap_or(4)), "{rule}: {said}");
                        assert!(line.is_none() || text == rule, "{rule}: {text}");
                        assert!(!said.is_empty() && !said.contains('\n'), "{said}");
                    }
                    other => panic!("{rule}: {other:?}"),
                }
                assert_eq!(look(), before, "{rule}");
            }
            world.run(host.restore(Family::V4, UNFENCE)).unwrap();
        });
    });
}

#[test]
fn routes_proxies_addresses_and_settings_come_and_go_without_a_trace() {
    isolated("routes_proxies_addresses_and_settings_come_and_go_without_a_trace", || {
        let world = World::new();
        links_come_and_go(&world);
    });
}

fn wanted() -> Vec<LinkChange> {
    let vip = |last| Ipv4Addr::new(192, 168, 100, last);
    let mut changes = vec![
        LinkChange::Set(
            name("eth1"),
            LinkSettings {
                forwarding: Some(true),
                rp_filter: Some(2),
                ..LinkSettings::default()
            },
        ),
        LinkChange::Set(
            name("eth0"),
            LinkSettings {
                forwarding: Some(true),
                send_redirects: Some(false),
                proxy_delay: Some(0),
                ..LinkSettings::default()
            },
        ),
        LinkChange::AddAddress(GatewayAddress {
            interface: name("eth1"),
            address: Ipv4Addr::new(192, 168, 200, 254),
        }),
    ];
    for last in 3..=8 {
        changes.push(LinkChange::AddRoute(Route {
            destination: vip(last).into(),
            via: Via::Loopback,
        }));
        changes.push(LinkChange::AddProxy(ProxyNeighbour {
            interface: name("eth0"),
            address: vip(last),
        }));
    }
    for (destination, via) in [
        ("203.0.113.0/24", Via::Gateway(vip(9))),
        ("198.51.100.0/24", Via::Link(name("eth1"))),
    ] {
        changes.push(LinkChange::AddRoute(Route {
            destination: destination.parse().unwrap(),
            via,
        }));
    }
    changes
}

fn undone(changes: &[LinkChange]) -> Vec<LinkChange> {
    let undo = |change: &LinkChange| match change.clone() {
        LinkChange::AddAddress(a) => LinkChange::RemoveAddress(a),
        LinkChange::AddRoute(r) => LinkChange::RemoveRoute(r),
        LinkChange::AddProxy(p) => LinkChange::RemoveProxy(p),
        LinkChange::Set(name, _) => LinkChange::PutBack(name),
        other => other,
    };
    changes.iter().rev().map(undo).collect()
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
        BTreeSet::from(["192.168.200.2/24".parse().unwrap()]),
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
    isolated("what_bears_no_mark_is_neither_replaced_nor_removed", || {
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
                LinkChange::AddRoute(r) => r.destination.addr() == Ipv4Addr::new(192, 168, 100, 3),
                LinkChange::AddProxy(p) => p.address == Ipv4Addr::new(192, 168, 100, 3),
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
    isolated("settings_of_an_interface_made_anew_and_of_a_lost_record", || {
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

#[test]
fn flows_that_the_plan_does_not_agree_with_are_deleted_and_no_others() {
    isolated("flows_that_the_plan_does_not_agree_with_are_deleted_and_no_others", || {
        let world = World::new();
        let mut host = host(BackendChoice::Auto);
        sh(
            "for n in $(seq 1 200); do echo \"-I -p tcp --state ESTABLISHED -t 300 -s 192.168.100.9 -d 192.168.100.$((n % 2 + 3)) \
            --sport $((1000 + n)) --dport 80 -r 192.168.200.3 -q 192.168.100.9 --reply-port-src 80 --reply-port-dst $((1000 + n))\"; done \
            > /run/flows; while read -r l; do conntrack $l >/dev/null 2>&1 || exit 1; done < /run/flows; \
            conntrack -I -w 7 -p udp -t 300 -s 192.168.100.9 -d 192.168.100.4 --sport 5 --dport 53 -r 192.168.200.3 -q 192.168.100.9 --reply-port-src 53 --reply-port-dst 5 >/dev/null",
        );
        let vip = |last| Ipv4Addr::new(192, 168, 100, last);
        let mapped = stagenet::plan::MappedFlow {
            ports: Some((6, PortRange::new(80, 80).unwrap())),
            target: Ipv4Addr::new(192, 168, 200, 3),
            target_first: None,
            source_translation: stagenet::api::network::SourceTranslation::Preserve,
        };
        let policy = FlowPolicy {
            mappings: BTreeMap::from([(vip(3), vec![mapped])]),
            pools: BTreeSet::from(["192.168.100.0/28".parse().unwrap()]),
            inside: BTreeSet::from(["192.168.200.0/24".parse().unwrap()]),
            ..FlowPolicy::default()
        };
        assert_eq!(
            world.run(host.sweep_flows(&policy)).unwrap(),
            101,
            "those to .4, one of them in a zone"
        );
        assert_eq!(sh("conntrack -L -d 192.168.100.3 2>/dev/null | wc -l"), "100\n");
        assert_eq!(sh("conntrack -L 2>/dev/null | wc -l"), "100\n");
        assert_eq!(world.run(host.sweep_flows(&policy)).unwrap(), 0);
    });
}

#[test]
fn strangers_are_found_by_probes_and_announcements_are_seen() {
    isolated("strangers_are_found_by_probes_and_announcements_are_seen", || {
        let world = World::new();
        let mut host = host(BackendChoice::Auto);
        let vip = |last| Ipv4Addr::new(192, 168, 100, last);
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
            BTreeMap::from([(vip(7), mac.clone()), (vip(9), mac)]),
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
fn others_changes_are_told_with_their_maker_and_our_own_are_not() {
    isolated("others_changes_are_told_with_their_maker_and_our_own_are_not", || {
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

            let vip = Ipv4Addr::new(192, 168, 100, 3);
            host.change_links(&wanted()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1500)).await;
            while events.try_recv().is_ok() {}
            sh("ip route del 192.168.100.3 dev lo");
            assert!(
                next(&mut events, 10_000, |e| *e == HostEvent::RouteGone(vip.into()))
                    .await
                    .is_some()
            );
            sh("ip neigh del proxy 192.168.100.3 dev eth0");
            assert!(next(&mut events, 10_000, |e| *e == HostEvent::ProxyGone(vip)).await.is_some());
            while events.try_recv().is_ok() {}
            sh("echo 0 > /proc/sys/net/ipv4/conf/eth1/forwarding");
            assert!(next(&mut events, 10_000, |e| *e == HostEvent::Links).await.is_some());
            sh("ip link set eth1 down");
            assert!(next(&mut events, 10_000, |e| *e == HostEvent::Links).await.is_some());
        });
    });
}

/// The next event that is `wanted`, others passed over; None if none comes within `bound` milliseconds.
async fn next(events: &mut tokio::sync::mpsc::Receiver<HostEvent>, bound: u64, wanted: impl Fn(&HostEvent) -> bool) -> Option<HostEvent> {
    let find = async {
        loop {
            match events.recv().await {
                Some(event) if wanted(&event) => return Some(event),
                Some(_) => {}
                None => return None,
            }
        }
    };
    timeout(Duration::from_millis(bound), find).await.ok().flatten()
}

#[test]
fn a_held_lock_is_told_with_its_holder_and_nothing_is_changed() {
    isolated("a_held_lock_is_told_with_its_holder_and_nothing_is_changed", || {
        let world = World::new();
        let mut host = host(BackendChoice::Legacy);
        let mut holder = Command::new("flock").args(["/run/xtables.lock", "sleep", "60"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        match world.run(host.restore(Family::V4, FENCE)) {
            Err(HostError::LockHeld { holder: Some(holder), .. }) => assert!(holder.contains("(pid "), "{holder}"),
            other => panic!("{other:?}"),
        }
        let findings = world.run(host.preflight(&BTreeSet::new(), &BTreeSet::new())).unwrap();
        assert!(
            findings.iter().any(|f| f.reason == "LockHeld" && f.message.contains("(pid ")),
            "{findings:?}"
        );
        holder.kill().unwrap();
        holder.wait().unwrap();
        sh("pid=$(fuser /run/xtables.lock 2>/dev/null || true); [ -z \"$pid\" ] || kill $pid");
        world.run(host.restore(Family::V4, FENCE)).unwrap();
    });
}

#[test]
fn a_missing_tool_is_told_and_found_again_when_it_appears() {
    isolated("a_missing_tool_is_told_and_found_again_when_it_appears", || {
        let world = World::new();
        let mut host = host(BackendChoice::Auto);
        // Files that cannot be run, laid over the tools in this world only.
        for tool in ["iptables-nft", "iptables-legacy"] {
            sh(&format!("mount --bind /dev/null $(readlink -f /usr/sbin/{tool})"));
        }
        let error = world.run(host.restore(Family::V4, FENCE)).unwrap_err();
        assert!(matches!(error, HostError::ToolMissing { .. }), "{error:?}");
        assert_eq!(host.backend(), None);
        let findings = world.run(host.preflight(&BTreeSet::new(), &BTreeSet::new())).unwrap();
        assert!(
            findings
                .iter()
                .any(|f| f.condition == "Backend" && !f.ok && f.reason == "ToolMissing"),
            "{findings:?}"
        );
        sh("umount $(readlink -f /usr/sbin/iptables-nft)");
        world.run(host.restore(Family::V4, FENCE)).unwrap();
        assert_eq!(host.backend(), Some(Backend::Nft));
    });
}

/// Runs the named test once more with fewer privileges, in the world as it is.
fn again(test: &str, capabilities: &str) -> String {
    let program = std::env::current_exe().unwrap();
    let ran = Command::new("setpriv")
        .args(["--bounding-set", capabilities, "--inh-caps", capabilities, "--no-new-privs", "--"])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("STAGENET_HOST_AGAIN", capabilities)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}");
    said
}

#[test]
fn two_capabilities_and_a_read_only_proc_sys_are_enough() {
    const NAME: &str = "two_capabilities_and_a_read_only_proc_sys_are_enough";
    if std::env::var_os("STAGENET_HOST_AGAIN").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(
            fs::write("/proc/sys/net/ipv4/conf/eth1/forwarding", "1").is_err(),
            "/proc/sys is read-only"
        );
        return runtime.block_on(all_effects());
    }
    isolated(NAME, || {
        let world = World::new();
        // Not only for this test's sake: a container's directory for state and lock belongs to it.
        sh("mkdir -p /run/stagenet && mount -o bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys");
        again(NAME, "-all,+net_admin,+net_raw");
        drop(world);
    });
}

/// Every effect once, and every undoing.
async fn all_effects() {
    for backend in [BackendChoice::Nft, BackendChoice::Legacy] {
        let mut host = host(backend);
        let findings = host
            .preflight(&BTreeSet::from([name("eth0")]), &BTreeSet::from([name("eth1")]))
            .await
            .unwrap();
        assert!(
            findings
                .iter()
                .filter(|f| f.condition == "Permissions" || f.condition == "Backend")
                .all(|f| f.ok),
            "{findings:?}"
        );
        let mut events = host.events();
        host.restore(Family::V4, FENCE).await.unwrap();
        assert_eq!(host.read_table(Family::V4, Table::Mangle, None).await.unwrap().chains.len(), 2);
        host.change_links(&wanted()).await.unwrap();
        assert_eq!(host.read_links().await.unwrap().proxies.len(), 6);
        let eth0 = BTreeMap::from([(name("eth0"), BTreeSet::from([Ipv4Addr::new(192, 168, 100, 9)]))]);
        assert_eq!(host.probe(&eth0).await.unwrap().len(), 1);
        host.announce(&BTreeMap::from([(name("eth0"), BTreeSet::from([Ipv4Addr::new(192, 168, 100, 3)]))]))
            .await
            .unwrap();
        host.sweep_flows(&FlowPolicy::default()).await.unwrap();
        host.denied().await.unwrap();
        assert!(next(&mut events, 10_000, |e| *e == HostEvent::Links).await.is_some());
        host.change_links(&undone(&wanted())).await.unwrap();
        host.restore(Family::V4, UNFENCE).await.unwrap();
    }
}

#[test]
fn without_privileges_every_change_says_so() {
    const NAME: &str = "without_privileges_every_change_says_so";
    if std::env::var_os("STAGENET_HOST_AGAIN").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(all_denied());
    }
    isolated(NAME, || {
        let world = World::new();
        sh("mkdir -p /run/stagenet");
        let before = look();
        again(NAME, "-all");
        assert_eq!(look(), before);
        drop(world);
    });
}

async fn all_denied() {
    let denied = |error: &HostError| matches!(error, HostError::Denied { .. });
    for backend in [BackendChoice::Nft, BackendChoice::Legacy] {
        let mut host = host(backend);
        let error = host.restore(Family::V4, FENCE).await.unwrap_err();
        assert!(denied(&error), "{error:?}");
        let errors = host.change_links(&wanted()).await.unwrap_err();
        assert!(errors.len() == wanted().len() + 1 && errors.iter().all(denied), "{errors:?}");
        let error = host.sweep_flows(&FlowPolicy::default()).await.unwrap_err();
        assert!(denied(&error), "{error:?}");
        let eth0 = BTreeMap::from([(name("eth0"), BTreeSet::from([Ipv4Addr::new(192, 168, 100, 9)]))]);
        let error = host.probe(&eth0).await.unwrap_err();
        assert!(denied(&error), "{error:?}");
        let findings = host.preflight(&BTreeSet::new(), &BTreeSet::new()).await.unwrap();
        assert!(
            findings
                .iter()
                .any(|f| f.reason == "NotPermitted" && f.message.contains("NET_ADMIN and NET_RAW")),
            "{findings:?}"
        );
    }
}
