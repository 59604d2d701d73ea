//! Two gateways of one network: one attracts the traffic and the other has everything else.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::clones::network;
use crate::lab::{self, Agent, Api, Backend, Ns, Seed, VIP, VIP_80, isolated_with_api, seconds, stagenet, wait_until};

/// How long a gateway may say nothing before it counts as silent.
const LEASE: &str = "5";

struct Pair {
    api: Api,
    seed: Seed,
    second: Ns,
    _twin: lab::Server,
}

impl Pair {
    /// The seed's hosts, a second gateway beside vm02, and a clone of segment B that both have a foot in.
    fn start(bin: &std::path::Path) -> Self {
        let seed = Seed::new(Backend::Nft);
        let (second, twin) = (Ns::new("vm05"), Ns::new("twin"));
        lab::bridge::attach(&seed.segment_a, "br0", "second", &second, "eth0");
        lab::bridge::attach(&seed.segment_b, "br0", "second", &second, "eth1");
        second.sh("ip addr add 192.168.100.5/24 dev eth0; ip addr add 192.168.200.5/24 dev eth1");
        let ports = [(&seed.vm02, "eth2", ""), (&second, "eth2", ""), (&twin, "eth0", "192.168.200.3/24")];
        lab::bridge("segment-c", &ports);
        twin.sh("ip route add default via 192.168.200.9");
        let server = twin.serve(80);
        Self {
            api: Api::start(bin),
            seed,
            second,
            _twin: server,
        }
    }

    fn agent(node: &Ns, kubeconfig: &str) -> Agent {
        let state = format!("/run/lab/state-{}", node.name());
        let args = ["--node", node.name(), "--state-dir", &state, "--lease-duration", LEASE];
        Agent::run(node, "agent", kubeconfig, &args)
    }

    fn active(&self) -> String {
        self.api.field("snet/segment-b", ".status.activeGateway.node")
    }

    /// What a node reports its part in both networks to be.
    fn roles(&self, node: &Ns) -> String {
        self.api.field(&format!("gwnode/{}", node.name()), ".status.networks[*].role")
    }

    fn wait_roles(&self, node: &Ns, roles: &str) {
        wait_until(seconds(60), &format!("{} to report {roles}", node.name()), || {
            self.roles(node) == roles
        });
    }
}

/// What an event of a watch says of Ready; None for half a line.
fn ready(event: &str) -> Option<String> {
    let event: Value = serde_json::from_str(event).ok()?;
    let conditions = event["object"]["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    Some(format!("{}/{}", ready["status"].as_str()?, ready["reason"].as_str()?))
}

fn mac(node: &Ns) -> String {
    let line = node.sh("ip -o link show eth0");
    line.split("link/ether ").nth(1).unwrap()[..17].to_owned()
}

/// A process whose output is read when it is over.
struct Recorder {
    child: Child,
    file: String,
}

impl Recorder {
    fn of(ns: &Ns, line: &str, file: &str) -> Self {
        let out = File::create(file).unwrap();
        let child = ns.enter(|| {
            lab::command("sh")
                .args(["-c", &format!("exec env {line}")])
                .stdout(out)
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        });
        Self {
            child,
            file: file.to_owned(),
        }
    }

    fn so_far(&self) -> Vec<String> {
        fs::read_to_string(&self.file).unwrap().lines().map(str::to_owned).collect()
    }

    /// Who answers when `client` asks for the virtual address: hardware addresses. This records the client's ARP.
    fn answerers(&self, client: &Ns) -> BTreeSet<String> {
        let before = self.so_far().len();
        client.sh("ip neigh flush dev eth0");
        assert!(client.echoes(VIP));
        let answer = |line: &String| Some(line.split_once(&format!("Reply {VIP} is-at "))?.1.split_once(',')?.0.to_owned());
        let answers = || self.so_far().iter().skip(before).filter_map(answer).collect::<BTreeSet<_>>();
        wait_until(seconds(10), "an answer to be recorded", || !answers().is_empty());
        // A second one comes as soon as the first.
        std::thread::sleep(Duration::from_millis(500));
        answers()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What of a kernel attracts traffic, and what does not.
struct Kernel {
    rules: Vec<String>,
    policies: String,
    ways: String,
    attracting: String,
}

impl Kernel {
    fn of(node: &Ns) -> Self {
        let own = node.sh("ip -4 -o addr show dev eth1 | awk '{print $4}' | head -1");
        let own = own.trim().trim_end_matches("/24");
        let rules = node.sh("iptables-nft-save").replace(own, "OWN");
        let rule = |line: &str| line.starts_with("-A ") && (line.contains("SNET") || line.contains("stagenet"));
        let routes = node.sh("ip -4 route show table all proto 211; ip -4 route show table all type blackhole proto 211");
        let (attracting, ways): (Vec<&str>, Vec<&str>) = routes.lines().partition(|line| line.contains("dev lo"));
        let proxies = node.sh("ip -4 neigh show proxy");
        let addresses = node.sh("ip -4 -o addr show | grep 192.168.200.9 || true");
        let without_source = |line: &&str| line.split(" src ").next().unwrap_or_default().trim().to_owned();
        Self {
            // The first word of a comment is a hash of the rule, which may name the node's own address.
            rules: rules
                .lines()
                .filter(|line| rule(line))
                .map(|line| match line.split_once("stagenet:") {
                    Some((before, rest)) => format!("{before}stagenet:{}", rest.split_once(':').map_or(rest, |(_, owner)| owner)),
                    None => line.to_owned(),
                })
                .collect(),
            policies: node.sh("ip -4 rule show | grep -v 'lookup \\(local\\|main\\|default\\)' || true"),
            ways: ways
                .iter()
                .map(without_source)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join("\n"),
            attracting: format!("{}{proxies}{addresses}", attracting.join("\n")),
        }
    }

    fn stands_by_for(&self, active: &Self) -> bool {
        self.attracting.is_empty() && self.rules == active.rules && self.policies == active.policies && self.ways == active.ways
    }
}

/// The one kernel holds what the other does, but for what attracts traffic. Whoever has just started gets there in several steps, the fence first, and what its object says
/// may still be from its former life; so this waits.
fn stands_by(standby: &Ns, active: &Ns) {
    let deadline = Instant::now() + seconds(60);
    let both = || (Kernel::of(standby), Kernel::of(active));
    let (mut standby, mut active) = both();
    while !standby.stands_by_for(&active) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(200));
        (standby, active) = both();
    }
    assert!(
        active
            .rules
            .iter()
            .any(|rule| rule.contains("DNAT") && rule.contains("192.168.200.3"))
    );
    assert_eq!(standby.rules, active.rules);
    assert!(
        active.policies.contains("fwmark") && active.ways.contains("blackhole"),
        "{}",
        active.ways
    );
    assert_eq!(standby.policies, active.policies);
    assert_eq!(standby.ways, active.ways);
    for word in [VIP, "192.168.100.4", "192.168.200.9"] {
        assert!(active.attracting.contains(word), "{word} in {}", active.attracting);
    }
    assert_eq!(standby.attracting, "");
}

/// The standby holds all that the active one does and attracts nothing; when the active one falls silent nobody knows what it does until the other serves; when it is back it
/// stands by, silently, and does not take over.
#[test]
fn the_next_gateway_serves_and_the_old_one_stands_by() {
    isolated_with_api("handover::the_next_gateway_serves_and_the_old_one_stands_by", |bin| {
        let c = Pair::start(bin);
        let label = "stagenet.dev/gateway: \"true\"";
        let kubeconfigs = [
            c.api.join(&c.seed.vm02, "10.99.0.2", label),
            c.api.join(&c.second, "10.99.0.3", label),
        ];
        let _controller = crate::controller(&c.api, &c.api.controller());
        let first = Pair::agent(&c.seed.vm02, &kubeconfigs[0]);
        for (name, interface, mapping, address) in [("segment-b", "eth1", "vm03", VIP), ("segment-c", "eth2", "twin", "192.168.100.4")] {
            c.api.apply(&network(name, interface));
            c.api.apply(&lab::mapping(mapping, name, address, "192.168.200.3", ""));
        }
        let both_ready = || ["vm03", "twin"].iter().for_each(|name| c.api.wait_ready_mapping(name));
        both_ready();
        assert_eq!(c.active(), "vm02");
        let _second = Pair::agent(&c.second, &kubeconfigs[1]);
        c.wait_roles(&c.second, "Standby Standby");
        both_ready();

        stands_by(&c.second, &c.seed.vm02);
        let (old, next) = (mac(&c.seed.vm02), mac(&c.second));
        let heard = Recorder::of(&c.seed.vm01, "tcpdump -i eth0 -e -n -l arp", "/run/lab/heard");
        wait_until(seconds(20), "the recorder to hear", || {
            c.seed.vm01.sh("ip neigh flush dev eth0");
            c.seed.vm01.echoes(VIP) && !heard.so_far().is_empty()
        });
        assert_eq!(heard.answerers(&c.seed.vm01), BTreeSet::from([old.clone()]));

        // The agent dies. Its kernel goes on, and nobody can say so.
        let watch = "get --raw '/apis/stagenet.dev/v1alpha1/namespaces/default/natmappings?watch=true&fieldSelector=metadata.name%3Dvm03'";
        let told = Recorder::of(&c.api.host, &c.api.admin_line(watch), "/run/lab/told");
        wait_until(seconds(60), "the watch to begin", || !told.so_far().is_empty());
        first.stop("KILL");
        wait_until(seconds(90), "the next gateway", || c.active() == "vm05");
        c.wait_roles(&c.second, "Active Active");
        both_ready();
        let sequence = || {
            let mut all: Vec<String> = told.so_far().iter().filter_map(|line| ready(line)).collect();
            all.dedup();
            all
        };
        // Who records may be late.
        wait_until(seconds(20), "both changes to be told", || sequence().len() >= 3);
        assert_eq!(sequence(), ["True/Ready", "Unknown/GatewaySilent", "True/Ready"]);
        assert!(
            c.seed.vm02.sh("ip neigh show proxy").contains(VIP),
            "nobody has told the old kernel"
        );

        // It comes back: once with all that it held, once after a reboot. It says nothing about addresses outside, and soon answers for none.
        for rebooted in [false, true] {
            if rebooted {
                assert_eq!(stagenet(&c.seed.vm02, &["cleanup", "--state-dir", "/run/lab/state-vm02"]).code, 0);
            }
            let before = heard.so_far().len();
            let mut agent = Pair::agent(&c.seed.vm02, &kubeconfigs[0]);
            c.wait_roles(&c.seed.vm02, "Standby Standby");
            stands_by(&c.seed.vm02, &c.second);
            let of_the_old = |line: &&String| line.contains(&old) && ["192.168.100.3", "192.168.100.4"].iter().any(|a| line.contains(a));
            let lines = heard.so_far();
            let said: Vec<_> = lines.iter().skip(before).filter(of_the_old).collect();
            assert!(said.is_empty(), "rebooted: {rebooted}: {said:?}");
            assert_eq!(
                heard.answerers(&c.seed.vm01),
                BTreeSet::from([next.clone()]),
                "rebooted: {rebooted}"
            );
            both_ready();
            assert_eq!(c.seed.vm01.tcp(VIP_80).expect("Ready means that traffic flows").server, "vm03");
            assert_eq!(
                c.seed.vm01.tcp("192.168.100.4:80").expect("Ready means that traffic flows").server,
                "twin"
            );
            agent.assert_alive();
            if !rebooted {
                agent.stop("TERM");
            }
        }
        assert_eq!(c.active(), "vm05", "who comes back does not take over");
    });
}
