//! Clones come and go, the agent too, and nobody else is disturbed.

use std::time::Duration;

use crate::lab::{Agent, Clones, Dialler, Ns, Shape, Snapshot, Steady, seconds, veth, wait_for, wait_until};

/// What a lost packet costs at most: the first retransmissions of TCP, on a busy machine.
const FALTER: Duration = Duration::from_secs(3);

/// Where bridged packets pass the node's netfilter, neighbours on a segment wait while its network leaves: its interface is closed for the length of a pass, some tenths of a second, and
/// TCP asks again ever more rarely. A busy machine takes ten times as long.
const CLOSED: Duration = Duration::from_secs(15);

/// Identifier and zone of clone `k`, as the agent reports them.
fn isolation(agent: &Agent, k: usize) -> Option<(u64, u64)> {
    let status: serde_json::Value = serde_json::from_str(&agent.status()).ok()?;
    let name = format!("clone-{k:03}");
    let items = status["items"].as_array()?;
    let network = items
        .iter()
        .find(|i| i["kind"] == "StagingNetwork" && i["metadata"]["name"] == name.as_str())?;
    let isolation = &network["status"]["isolation"];
    Some((isolation["identifier"].as_u64()?, isolation["zone"].as_u64()?))
}

fn wait_isolation(agent: &Agent, k: usize) -> (u64, u64) {
    wait_for(
        seconds(20),
        &format!("clone {k} to have an isolation in the status; status:\n{}", agent.status()),
        || isolation(agent, k),
    )
}

/// All that goes on with machine `a` of a clone.
struct Flows {
    k: usize,
    steady: Vec<Steady>,
    dialler: Dialler,
}

impl Flows {
    fn start(clones: &Clones, k: usize) -> Self {
        let (to, who) = (format!("{}:80", clones.vip(k, "a")), format!("c{k}a"));
        Self {
            k,
            steady: vec![
                Steady::connect(&clones.client, &to),
                Steady::datagrams(&clones.client, &to),
                Steady::connect(&clones.vm(k, "a"), "192.168.100.1:80"),
                Steady::datagrams(&clones.vm(k, "b"), "192.168.100.1:80"),
            ],
            dialler: Dialler::start(&clones.client, &[(&to, &who)], Duration::from_millis(10), u64::MAX),
        }
    }

    fn go_on(&self, after: &str) {
        let after = format!("of clone {} {after}", self.k);
        for steady in &self.steady {
            steady.goes_on(&after);
            let (_, falter) = steady.account();
            assert!(falter < FALTER, "{after}, a connection stood still for {falter:?}");
        }
        self.dialler.goes_on(&after);
    }
}

clones! {
    /// A network that had its gateway for itself gets clones, which come and go. Its open connections and those of each clone go on; those of a clone that
    /// goes end, and of its own zone no entry stays.
    fn clones_come_and_go_beside_traffic(shape) in [nft_node, legacy_router, nft_shared] {
        let clones = Clones::new(shape, 3);
        let before = Snapshot::of(&clones.gateway);
        // What machines say to their neighbours passes the node's netfilter, on some nodes.
        let inside: Vec<_> = clones
            .all()
            .flat_map(|k| [Steady::connect(&clones.vm(k, "a"), "10.0.0.4:80"), Steady::datagrams(&clones.vm(k, "b"), "10.0.0.3:80")])
            .collect();
        let neighbours = |after: &str| {
            for steady in &inside {
                steady.goes_on(after);
                let (_, falter) = steady.account();
                assert!(falter < CLOSED, "{after}, neighbours stood still for {falter:?}");
            }
        };
        clones.write(1, false, "Allow");
        let agent = clones.agent(&[]);
        clones.wait_serves(1);
        assert_eq!(isolation(&agent, 1), None, "nobody shares its addresses yet");
        let first = Flows::start(&clones, 1);

        clones.write(2, false, "Allow");
        clones.wait_serves(2);
        first.go_on("after its first clone came");
        let second = Flows::start(&clones, 2);
        clones.write(3, false, "Allow");
        clones.wait_serves(3);
        let third = Flows::start(&clones, 3);
        for flows in [&first, &second, &third] {
            flows.go_on("with three clones");
        }
        neighbours("with three clones");
        let (one, two, three) = (wait_isolation(&agent, 1), wait_isolation(&agent, 2), wait_isolation(&agent, 3));
        assert_eq!(one.1, 0, "the first keeps its flows where they were");
        for (other, name) in [(two, "second"), (three, "third")] {
            assert!(other.0 == other.1 && other.0 > 0, "the {name} has a zone of its own: {other:?}");
        }
        assert!(one.0 != two.0 && two.0 != three.0 && three.0 != one.0, "{one:?} {two:?} {three:?}");

        let mut open = clones.client.tcp(&format!("{}:80", clones.vip(2, "a"))).unwrap();
        assert!(open.works() && !clones.zone(two.1).is_empty());
        drop(second);
        clones.erase(2);
        clones.wait_gone(2);
        wait_until(seconds(10), "the zone of the clone that went to be empty", || clones.zone(two.1).is_empty());
        assert!(open.is_cut(), "its connections end");
        assert!(!clones.zone(three.1).is_empty(), "the others' zones are left alone");
        first.go_on("after a clone went");
        third.go_on("after a clone went");

        clones.write(2, false, "Allow");
        clones.wait_serves(2);
        let second = Flows::start(&clones, 2);
        drop(first);
        clones.erase(1);
        clones.wait_gone(1);
        second.go_on("after the first network went");
        third.go_on("after the first network went");
        assert_eq!(wait_isolation(&agent, 3), three, "what was given is kept");

        drop((second, third));
        assert_eq!(agent.stop("TERM"), Some(0));
        clones.cleanup();
        neighbours("after cleanup");
        before.assert_same(&Snapshot::of(&clones.gateway));
    }

    /// What was given to a network is found again by the next agent, which finds nothing to do.
    fn the_allocation_outlives_the_agent(shape) in [nft_shared, legacy_node] {
        let clones = Clones::new(Shape { connected: false, ..shape }, 2);
        let before = Snapshot::of(&clones.gateway);
        // The second by name comes first.
        for k in [2, 1] {
            clones.write(k, false, "Allow");
            clones.converge();
        }
        let mut agent = clones.agent(&[]);
        let given = [wait_isolation(&agent, 1), wait_isolation(&agent, 2)];
        assert_eq!(given[1].1, 0, "the one that was there first: {given:?}");
        clones.wait_serves(1);
        clones.wait_serves(2);
        let flows = [Flows::start(&clones, 1), Flows::start(&clones, 2)];
        for signal in ["KILL", "TERM"] {
            let standing = Snapshot::of(&clones.gateway);
            agent.stop(signal);
            flows.iter().for_each(|f| f.go_on("without an agent"));
            agent = clones.agent(&[]);
            assert_eq!([wait_isolation(&agent, 1), wait_isolation(&agent, 2)], given);
            std::thread::sleep(Duration::from_millis(300));
            standing.assert_same(&Snapshot::of(&clones.gateway));
            flows.iter().for_each(|f| f.go_on("with another agent"));
        }
        drop((flows, agent));
        clones.cleanup();
        before.assert_same(&Snapshot::of(&clones.gateway));
    }

    /// Who has nothing to do with closed networks is served by the node as ever: what it forwards, what it serves itself, what it calls.
    fn others_on_the_node_notice_nothing(shape) in [nft_node, legacy_router] {
        let clones = Clones::new(shape, 2);
        let gateway = &clones.gateway;
        let pod = Ns::new("pod");
        veth(gateway, "pod0", &pod, "eth0");
        gateway.sh("ip addr add 10.244.0.1/24 dev pod0 && sysctl -qw net.ipv4.conf.pod0.forwarding=1 net.ipv4.conf.eth0.forwarding=1");
        pod.sh("ip addr add 10.244.0.2/24 dev eth0 && ip route add default via 10.244.0.1");
        clones.client.sh("ip route add 10.244.0.0/24 via 192.168.100.2");
        let _servers = [pod.serve(80), gateway.serve(80)];
        let well = || {
            let ways = [(&clones.client, "10.244.0.2:80", "pod"), (&pod, "192.168.100.1:80", "client"), (&clones.client, "192.168.100.2:80", "gateway")];
            for (from, to, who) in ways.into_iter().chain([(gateway, "192.168.100.1:80", "client"), (&pod, "10.244.0.1:80", "gateway")]) {
                let call = from.tcp(to).unwrap_or_else(|| panic!("{} to {to}", from.name()));
                assert_eq!(call.server, who);
            }
            assert_eq!(clones.client.tcp("10.244.0.2:80").unwrap().seen_as.ip().to_string(), "192.168.100.1", "nobody translates it");
        };
        well();
        let steady = [
            Steady::connect(&clones.client, "10.244.0.2:80"),
            Steady::datagrams(&pod, "192.168.100.1:80"),
            Steady::connect(gateway, "192.168.100.1:80"),
        ];
        for k in clones.all() {
            clones.write(k, false, "Allow");
            clones.converge();
            well();
        }
        // Nor do they get in, or are got at.
        assert!(pod.tcp_is_dropped("10.0.0.3:80") || pod.tcp("10.0.0.3:80").is_none());
        for k in clones.all() {
            assert!(clones.vm(k, "a").tcp_is_dropped("10.244.0.1:80"));
        }
        clones.erase(1);
        clones.converge();
        well();
        for flow in &steady {
            flow.goes_on("while clones came and went");
            let (_, falter) = flow.account();
            assert!(falter < FALTER, "stood still for {falter:?}");
        }
    }

    /// Prefixes that overlap in part are clones as well; a network beside them that overlaps with nobody has no part in what they need.
    fn only_those_that_overlap_pay(shape) in [nft_node, legacy_router] {
        let clones = Clones::new(shape, 3);
        let other = |k: usize| {
            for (machine, host) in [("a", 3), ("b", 4)] {
                let vm = clones.vm(k, machine);
                vm.sh(&format!("ip addr add 10.3.0.{host}/24 dev eth0 && ip route replace default via 10.3.0.1 && ip addr del 10.0.0.{host}/24 dev eth0"));
            }
        };
        other(3);
        let before = Snapshot::of(&clones.gateway);
        let rules = clones.gateway.sh("ip -4 rule; ip -6 rule");
        clones.write(1, false, "Allow");
        alone(&clones, 3);
        clones.converge();
        plain(&clones, &rules);
        clones.wait_serves(1);
        clones.wait_serves(3);

        clones.network(2, false, "egress: {default: Allow}");
        let wider = std::fs::read_to_string(format!("{}/clone-002.yaml", clones.manifests.path())).unwrap();
        clones.manifests.write("clone-002.yaml", &wider.replace("[10.0.0.0/24]", "[10.0.0.0/23]"));
        for (machine, host) in [("a", 3), ("b", 4)] {
            clones.mapping(2, machine, &clones.vip(2, machine), &format!("10.0.0.{host}"), "");
        }
        clones.converge();
        for k in clones.all() {
            clones.wait_serves(k);
        }
        let raw = clones.rules("raw");
        assert!(raw.contains("-i br1 ") && raw.contains("-i br2 "), "{raw}");
        assert!(!raw.contains("clone-003") && !raw.contains("br3 "), "{raw}");
        let nat: String = clones.rules("nat").lines().filter(|l| l.contains("clone-003")).map(|l| l.to_owned() + "\n").collect();
        assert!(!nat.is_empty() && !nat.contains("-m mark"), "{nat}");
        assert!(!clones.gateway.sh("ip route show table all").contains("10.3.0.0/24 dev br3 table 211"));

        clones.erase(2);
        clones.converge();
        clones.wait_serves(1);
        clones.wait_serves(3);
        for k in [1, 3] {
            clones.erase(k);
        }
        clones.cleanup();
        before.assert_same(&Snapshot::of(&clones.gateway));
    }
}

/// Writes clone `k` with prefixes of its own.
fn alone(clones: &Clones, k: usize) {
    clones.write(k, false, "Allow");
    let folder = clones.manifests.path();
    let stem = format!("clone-{k:03}");
    for file in [stem.clone(), format!("{stem}-a"), format!("{stem}-b")] {
        let text = std::fs::read_to_string(format!("{folder}/{file}.yaml")).unwrap();
        clones.manifests.write(&format!("{file}.yaml"), &text.replace("10.0.0.", "10.3.0."));
    }
}

/// Nothing but rules of translation and the fence. In IPv6, which has no reverse path filter, the fence has a policy rule for what comes from nobody inside.
fn plain(clones: &Clones, policy: &str) {
    assert!(!clones.rules("raw").contains("SNET"), "{}", clones.rules("raw"));
    let nobody = "29000:\tfrom all fwmark 0xff/0xff blackhole proto 211\n";
    assert_eq!(clones.gateway.sh("ip -4 rule; ip -6 rule").replacen(nobody, "", 1), policy);
    assert!(!clones.gateway.sh("ip -4 rule").contains("proto 211"));
    let mangle = clones.rules("mangle");
    for word in ["-A POSTROUTING", "-j CT"] {
        assert!(!mangle.contains(word), "{mangle}");
    }
    for mark in mangle.lines().filter(|l| l.contains("-j MARK")) {
        assert!(mark.ends_with("--set-xmark 0xff/0xff"), "{mangle}");
    }
    assert!(!clones.rules("nat").contains("-m mark"), "{}", clones.rules("nat"));
}
