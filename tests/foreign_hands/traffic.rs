//! Foreign hands while people work: open connections go on, new ones are made, and somebody inside tries every way out all the while.

use std::time::{Duration, Instant};

use crate::lab::{
    Agent, Backend, Dialler, INSIDE_MAC, Manifests, Probers, Seed, Snapshot, Steady, VIP, VIP_80, VIP6, VIP6_80, in_binary, isolated,
    seconds, wait_until,
};
use crate::{bound, culprit};

const OTHER: &str = "192.168.100.4";
const OTHER_80: &str = "192.168.100.4:80";

/// A gateway at work.
struct Busy<'s> {
    seed: &'s Seed,
    manifests: Manifests,
    agent: Agent,
    planned: Snapshot,
    probers: Probers,
    steady: Vec<Steady>,
    dialler: Option<Dialler>,
    repairs: Vec<(String, Duration)>,
    gaps: Vec<(String, usize, Duration)>,
}

impl<'s> Busy<'s> {
    fn start(seed: &'s Seed) -> Self {
        seed.dual_stack();
        let probers = Probers::start(seed, &[VIP, OTHER, VIP6]);
        let manifests = Manifests::empty("busy");
        let (pool, inside) = ("192.168.100.0/24, \"fd00:100::/64\"", "192.168.200.0/24, \"fd00:200::/64\"");
        let network = crate::lab::network("segment-b", pool, inside, "");
        let inside = "    interface: eth1\n";
        let gateways = format!("{inside}    gatewayAddresses: [192.168.200.250, \"fd00:200::fa\"]\n");
        manifests.write("network.yaml", &network.replace(inside, &gateways));
        manifests.mapping("first", VIP, "192.168.200.3", "");
        manifests.mapping("first6", VIP6, "fd00:200::3", "");
        manifests.mapping("other", OTHER, "192.168.200.4", "");
        let agent = seed.agent(&manifests, &[]);
        seed.wait_serves("vm03");
        seed.route_ipv6(true);
        wait_until(seconds(20), "the other mappings", || {
            [OTHER_80, VIP6_80].iter().all(|to| seed.vm01.tcp(to).is_some())
        });
        let planned = rest(seed);
        Self {
            seed,
            manifests,
            agent,
            planned,
            probers,
            steady: steady(seed),
            dialler: Some(dialler(seed)),
            repairs: Vec::new(),
            gaps: Vec::new(),
        }
    }

    /// Does something to the gateway and waits until it is as planned and the agent has said so, once, in a line with `words`. Nothing gets through meanwhile.
    fn hand(&mut self, line: &str, words: &[&str]) {
        self.repaired(line, words);
        self.probers.round();
        self.probers.none_passed(&format!("after `{line}`"));
    }

    /// The same for a hand that opens the fence. Nothing gets through once the repair is there. Nobody dials meanwhile: what is dialled while there is no fence is not marked by it.
    fn breach(&mut self, line: &str, words: &[&str]) {
        self.probers.none_passed(&format!("before `{line}`"));
        self.nobody_dials();
        self.repaired(line, words);
        let (packets, lasted) = self.probers.forgive(&self.seed.vm02);
        self.gaps.push((line.to_owned(), packets, lasted));
        assert!(lasted < bound(self.seed), "`{line}` left a gap of {lasted:?}");
        self.dialler = Some(dialler(self.seed));
        self.goes_on(line);
        self.probers.round();
        self.probers.none_passed(&format!("after the repair of `{line}`"));
    }

    fn repaired(&mut self, line: &str, words: &[&str]) {
        let (said, start) = (self.agent.log().len(), Instant::now());
        self.seed.vm02.sh(line);
        let end = start + bound(self.seed);
        while Snapshot::of(&self.seed.vm02) != self.planned {
            if Instant::now() > end {
                self.planned.assert_same(&Snapshot::of(&self.seed.vm02));
            }
            self.agent.assert_alive();
            std::thread::sleep(Duration::from_millis(20));
        }
        self.repairs.push((line.to_owned(), start.elapsed()));
        let log = || self.agent.log()[said..].to_owned();
        let repairs = |log: &str| -> Vec<String> {
            let all = log.lines().filter(|l| l.contains("repaired"));
            all.filter_map(|l| Some(l.split_once(' ')?.1.to_owned())).collect()
        };
        wait_until(seconds(10), &format!("after `{line}` a report of a repair with {words:?}"), || {
            repairs(&log()).iter().any(|l| words.iter().all(|w| l.contains(w)))
        });
        self.goes_on(line);
        let all = repairs(&log());
        let once: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(once.len(), all.len(), "after `{line}` something is reported twice:\n{}", log());
    }

    fn goes_on(&self, after: &str) {
        for steady in &self.steady {
            steady.goes_on(&format!("after `{after}`"));
        }
        if let Some(dialler) = &self.dialler {
            dialler.goes_on(&format!("after `{after}`"));
        }
    }

    fn everybody_rests(&mut self) {
        self.goes_on("up to now");
        self.nobody_dials();
        self.steady.clear();
    }

    fn everybody_works(&mut self) {
        self.seed.wait_serves("vm03");
        wait_until(seconds(20), "the other mappings", || {
            [OTHER_80, VIP6_80].iter().all(|to| self.seed.vm01.tcp(to).is_some())
        });
        self.steady = steady(self.seed);
        self.dialler = Some(dialler(self.seed));
        self.goes_on("they began anew");
    }

    fn nobody_dials(&mut self) {
        if let Some(dialler) = self.dialler.take() {
            dialler.none_failed("up to now");
        }
    }

    fn end(mut self) {
        let dialler = self.dialler.take().expect("somebody dials");
        let (calls, slowest) = dialler.account();
        dialler.none_failed("to the end");
        // Somebody who wonders what a repair takes wonders about the slow ones.
        self.repairs.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
        self.repairs.truncate(4);
        println!(
            "measured: slowest repairs {:?}; gaps {:?}; {calls} connections, slowest {slowest:?}; {} rounds",
            self.repairs,
            self.gaps,
            self.probers.end()
        );
    }
}

/// Connections that stay.
fn steady(seed: &Seed) -> Vec<Steady> {
    let tcp = [VIP_80, OTHER_80, VIP6_80].map(|to| Steady::connect(&seed.vm01, to));
    tcp.into_iter().chain([Steady::datagrams(&seed.vm01, VIP_80)]).collect()
}

/// New connections, one after the other.
fn dialler(seed: &Seed) -> Dialler {
    let places = [(VIP_80, "vm03"), (OTHER_80, "vm04"), (VIP6_80, "vm03")];
    Dialler::start(&seed.vm01, &places, Duration::from_millis(20), u64::MAX)
}

/// The gateway once nothing changes any more.
fn rest(seed: &Seed) -> Snapshot {
    let mut last = (Snapshot::of(&seed.vm02), Instant::now());
    while last.1.elapsed() < seconds(1) {
        let now = Snapshot::of(&seed.vm02);
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    last.0
}

labs! {
    fn tables_change_during_traffic(seed) {
        let mut busy = Busy::start(seed);
        let (tool, by) = (format!("{} -w", seed.backend.iptables()), culprit(seed));
        for (table, chain) in [("nat", "PREROUTING"), ("nat", "SNET-DNAT"), ("filter", "FORWARD")] {
            busy.hand(&format!("{tool} -t {table} -F {chain}"), &[table, by]);
        }
        busy.hand(&format!("{tool} -t nat -F"), &["nat", by]);
        busy.hand(&format!("{tool} -t filter -F"), &["filter", by]);
        busy.breach(&format!("{tool} -t mangle -F"), &["mangle", by]);
        busy.breach(&format!("{tool} -t mangle -D FORWARD 1"), &["mangle", by]);
        busy.hand(&format!("{tool} -t nat -A SNET-SNAT -s 203.0.113.9 -j RETURN"), &["nat", by]);
        busy.hand(&format!("{tool} -t nat -I SNET-DNAT 1 -d 192.168.100.9/32 -j DNAT --to-destination 192.168.200.9"), &["nat", by]);
        busy.breach(&format!("{tool} -t mangle -I SNET-FWD 1 -j RETURN"), &["mangle", by]);
        // The last rule, the DROP, becomes the first: in one transaction.
        let chain = seed.rules().lines().find_map(|l| l.strip_prefix(':').filter(|c| c.starts_with("SNET-FI-")).map(|c| c[..16].to_owned())).unwrap();
        let last = seed.iptables(&format!("-t mangle -S {chain}")).lines().last().unwrap().to_owned();
        assert!(last.contains("DROP"), "{last}");
        let spec = last.strip_prefix(&format!("-A {chain} ")).unwrap();
        let reordered = format!("*mangle\\n-D {chain} {spec}\\n-I {chain} 1 {spec}\\nCOMMIT\\n");
        busy.hand(&format!("printf '{reordered}' | {}-restore -w --noflush", seed.backend.iptables()), &["mangle", by]);
        let tool = format!("ip6tables-{} -w", seed.backend.name());
        let by = if by.is_empty() { "" } else { "ip6tables" };
        busy.hand(&format!("{tool} -t nat -F"), &["IPv6 table nat", by]);
        busy.hand(&format!("{tool} -t filter -F"), &["IPv6 table filter", by]);
        busy.breach(&format!("{tool} -t mangle -F"), &["IPv6 table mangle", by]);
        busy.breach(&format!("{tool} -t mangle -D FORWARD 1"), &["IPv6 table mangle", by]);
        busy.hand(&format!("{tool} -t nat -I SNET-DNAT 1 -d fd00:100::9/128 -j DNAT --to-destination fd00:200::9"), &["IPv6 table nat", by]);
        busy.breach(&format!("{tool} -t mangle -I SNET-FWD 1 -j RETURN"), &["IPv6 table mangle", by]);
        busy.end();
    }

    /// Somebody else's ACCEPT or DROP ahead of our hook: it moves ahead again, and theirs stays.
    fn hooks_are_overtaken_during_traffic(seed) {
        let mut busy = Busy::start(seed);
        let four = [("mangle", "-i eth1 -j ACCEPT", true), ("filter", "-i eth0 -j DROP", false)];
        for (family, (table, theirs, opens)) in ["iptables", "ip6tables"].into_iter().flat_map(|family| four.map(|hand| (family, hand))) {
            let tool = format!("{family}-{} -w -t {table}", seed.backend.name());
            let said = busy.agent.log().len();
            if opens {
                busy.nobody_dials();
            }
            let start = Instant::now();
            seed.vm02.sh(&format!("{tool} -I FORWARD 1 {theirs}"));
            wait_until(bound(seed), &format!("our hook to come before `{theirs}`"), || {
                let rules = seed.vm02.sh(&format!("{tool} -S FORWARD"));
                let rules: Vec<_> = rules.lines().filter(|l| l.starts_with("-A")).collect();
                rules.len() == 2 && rules[1].contains(theirs)
            });
            busy.repairs.push((format!("{family} {theirs}"), start.elapsed()));
            if opens {
                let (packets, lasted) = busy.probers.forgive(&seed.vm02);
                assert!(lasted < bound(seed), "a gap of {lasted:?}");
                busy.gaps.push((theirs.to_owned(), packets, lasted));
                busy.dialler = Some(dialler(seed));
            }
            busy.probers.round();
            busy.probers.none_passed(&format!("below our hook, `{theirs}`"));
            wait_until(seconds(10), "a report", || busy.agent.log()[said..].lines().any(|l| l.contains("repaired") && l.contains(table)));
            seed.vm02.sh(&format!("{tool} -D FORWARD {theirs}"));
            busy.goes_on(theirs);
        }
        busy.end();
    }

    fn links_change_during_traffic(seed) {
        let mut busy = Busy::start(seed);
        busy.hand("ip neigh del proxy 192.168.100.3 dev eth0", &["proxy", VIP]);
        busy.hand("ip route del 192.168.100.3 dev lo", &["route", VIP]);
        busy.hand("ip addr del 192.168.200.250/32 dev eth1", &["address", "192.168.200.250"]);
        busy.hand("ip -6 neigh del proxy fd00:100::3 dev eth0", &["proxy", VIP6]);
        busy.hand("ip route del fd00:100::3 dev lo", &["route", VIP6]);
        // The kernel forgets what it masqueraded under an address that goes (net/netfilter/nf_nat_masquerade.c), and that is the one that it took.
        busy.everybody_rests();
        busy.hand("ip addr del fd00:200::fa/128 dev eth1", &["address", "fd00:200::fa"]);
        busy.everybody_works();
        busy.hand("sysctl -qw net.ipv4.conf.eth1.forwarding=0", &["link", "eth1"]);
        busy.breach("sysctl -qw net.ipv4.conf.eth1.rp_filter=0", &["link", "eth1"]);
        // The fence knows interfaces by name: their group is nobody's concern.
        let said = busy.agent.log().len();
        seed.vm02.sh("ip link set eth1 group 7");
        busy.goes_on("the group of eth1 was changed");
        busy.planned.assert_same(&Snapshot::of(&seed.vm02));
        assert!(!busy.agent.log()[said..].contains("writes="), "a changed group is no reason to write: {}", &busy.agent.log()[said..]);
        busy.probers.none_passed("before links go down");
        // So it does when the device goes down, so these start anew.
        busy.everybody_rests();
        seed.vm02.sh("ip link set eth1 down && sleep 0.3 && ip link set eth1 up");
        busy.everybody_works();
        seed.vm02.sh("ip link set eth0 down && sleep 0.3 && ip link set eth0 up && ip route replace default via 192.168.100.254 && ip route replace default via fd00:100::fe");
        busy.goes_on("eth0 was down for a while");
        busy.everybody_rests();
        seed.vm02.sh("ip link del eth1");
        std::thread::sleep(Duration::from_millis(300));
        seed.replug_inside();
        seed.vm02.sh(&format!("ip link set eth1 address {INSIDE_MAC}"));
        for vm in [&seed.vm03, &seed.vm04] {
            vm.sh("ip neigh flush all");
        }
        busy.everybody_works();
        busy.probers.round();
        // Whom somebody outside pretended to be is asked for there, to be told that there is no way inside.
        let passed = busy.probers.passed();
        let from_inside: Vec<_> = passed.iter().filter(|l| !l.contains("ARP") && !l.contains("neighbor solicitation")).collect();
        assert!(from_inside.is_empty(), "{} packets, such as {:#?}", from_inside.len(), &from_inside[..from_inside.len().min(8)]);
        // It makes the gateway give up whom it asks for, and tell whoever dials.
        busy.nobody_dials();
        busy.probers.forgive(&seed.vm02);
        busy.dialler = Some(dialler(seed));
        busy.goes_on("eth1 was made anew");
        busy.agent.assert_alive();
        busy.end();
    }

    /// The tool cannot be run for a while: what stands goes on, nothing new is said to be there, and then it is.
    fn the_tool_is_missing_during_traffic(seed) {
        let mut busy = Busy::start(seed);
        let binary = format!("/usr/sbin/xtables-{}-multi", seed.backend.name());
        seed.vm02.sh(&format!("cp {binary} /run/lab/tool && mount --bind /dev/null {binary}"));
        let said = busy.agent.log().len();
        seed.vm02.sh("/run/lab/tool iptables -w -t nat -D SNET-DNAT 1");
        busy.manifests.mapping("late", "192.168.100.9", "192.168.200.4", "");
        wait_until(seconds(30), "a complaint", || busy.agent.log()[said..].lines().any(|l| l.contains("ERROR")));
        assert!(seed.vm01.tcp("192.168.100.9:80").is_none());
        busy.probers.round();
        busy.probers.none_passed("without the tool");
        busy.agent.assert_alive();
        seed.vm02.sh(&format!("umount {binary}"));
        wait_until(seconds(60), "the late mapping", || seed.vm01.tcp("192.168.100.9:80").is_some_and(|c| c.server == "vm04"));
        busy.goes_on("the tool was missing");
        busy.manifests.remove("late.yaml");
        wait_until(seconds(20), "the gateway to be as planned", || Snapshot::of(&seed.vm02) == busy.planned);
        busy.end();
    }
}

/// Only legacy tools take the lock: while another program holds it nothing is changed, that is said, and it is tried again.
#[test]
fn the_xtables_lock_is_held_during_traffic() {
    isolated(
        in_binary(concat!(module_path!(), "::the_xtables_lock_is_held_during_traffic")),
        || {
            let seed = Seed::new(Backend::Legacy);
            let mut busy = Busy::start(&seed);
            seed.vm02.try_sh("flock /run/xtables.lock sleep 10 >/dev/null 2>&1 &");
            let held = Instant::now();
            std::thread::sleep(Duration::from_millis(200));
            busy.manifests.mapping("late", "192.168.100.9", "192.168.200.4", "");
            busy.agent.wait_log(seconds(30), &["xtables lock is held by flock (pid "]);
            busy.goes_on("the lock was taken");
            busy.probers.round();
            wait_until(seconds(60), "the mapping once the lock is free", || {
                seed.vm01.tcp("192.168.100.9:80").is_some_and(|c| c.server == "vm04")
            });
            assert!(held.elapsed() >= seconds(10), "it was served while the lock was held");
            println!("measured: served {:?} after the lock was taken for 10 s", held.elapsed());
            busy.probers.none_passed("while the lock was held");
            busy.goes_on("the lock was held");
            busy.manifests.remove("late.yaml");
            wait_until(seconds(20), "the gateway to be as planned", || {
                Snapshot::of(&seed.vm02) == busy.planned
            });
            busy.end();
        },
    );
}
