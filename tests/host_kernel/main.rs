//! The real host on the real kernel: each effect is made with [`LinuxHost`], looked at with the tools an administrator has, undone, and
//! compared with what was before. No packets here but ARP; traffic is the business of the other labs.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a lab that cannot go on has to end there, saying so

mod families;
#[path = "../lab/mod.rs"]
mod lab;
mod links;
mod privileges;
mod tables;
mod unchanged;
mod wire;

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::Ns;
use stagenet::host::linux::{BackendChoice, LinuxHost, LinuxOptions};
use stagenet::host::{HostEvent, LinkChange};
use stagenet::netfilter::{ChainName, IfName};
use stagenet::plan::{GatewayAddress, LinkSettings, ProxyNeighbour, Route, Via};
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
    // Link-local addresses and their routes come a moment after the interface.
    all += &sh("ip -6 route show table all | grep -v -e fe80 -e ff00::/8 -e ^anycast || true");
    all += &sh("ip -6 rule; ip -6 neigh show proxy; ip -6 addr show scope global");
    all + &sh(
        "grep -H . /proc/sys/net/ipv4/conf/*/forwarding /proc/sys/net/ipv4/conf/*/send_redirects /proc/sys/net/ipv4/conf/*/rp_filter /proc/sys/net/ipv4/neigh/*/proxy_delay /proc/sys/net/ipv6/neigh/*/proxy_delay",
    )
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|l| !l.starts_with('#')).flat_map(|l| [l, "\n"]).collect()
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
        for (ns, local, address, ipv6) in [
            (&outside, "eth0", "192.168.100", "2001:db8::"),
            (&inside, "eth1", "192.168.200", "2001:db8:200::"),
        ] {
            sh(&format!("ip link add {local} type veth peer name eth0 netns {}", ns.name()));
            let up = |interface: &str, last: u8| {
                format!(
                    "ip addr add {address}.{last}/24 dev {interface} && ip addr add {ipv6}{last}/64 dev {interface} nodad && ip link set {interface} up"
                )
            };
            sh(&up(local, 2));
            ns.sh(&up("eth0", 9));
        }
        sh("for n in $(seq 100); do ip route | grep -q linkdown || exit 0; sleep 0.05; done; exit 1");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        Self { outside, inside, runtime }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime
            .block_on(async { timeout(Duration::from_mins(2), work).await.unwrap() })
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

fn wanted() -> Vec<LinkChange> {
    let vip = |last| IpAddr::from([192, 168, 100, last]);
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
            address: IpAddr::from([192, 168, 200, 254]),
        }),
    ];
    for last in 3..=8 {
        changes.push(LinkChange::AddRoute(Route::main(vip(last).into(), Via::Loopback)));
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
            table: 254,
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
        LinkChange::AddRule(r) => LinkChange::RemoveRule(r),
        LinkChange::Set(name, _) => LinkChange::PutBack(name),
        other => other,
    };
    changes.iter().rev().map(undo).collect()
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
