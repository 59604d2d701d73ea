//! Foreign hands on a gateway of two clones, whose labels and ways are what keeps them apart, while both work.

use std::time::{Duration, Instant};

use crate::lab::clones::{GATEWAY_MAC, mac};
use crate::lab::{
    Agent, Backend, Clones, Prober, Shape, Snapshot, Steady, Witness, hopeless, in_binary, isolated, packets, seconds, wait_until,
};

#[test]
fn nft() {
    isolated(in_binary(concat!(module_path!(), "::nft")), || hands_on_clones(Backend::Nft));
}

#[test]
fn legacy() {
    isolated(in_binary(concat!(module_path!(), "::legacy")), || hands_on_clones(Backend::Legacy));
}

/// Types of service of the probers in the two clones.
const MARKS: [u8; 2] = [0xb4, 0x34];

/// Somebody in each clone who tries to get out, or into the other one.
fn probers(clones: &Clones) -> Vec<Prober> {
    clones
        .all()
        .zip(MARKS)
        .map(|(k, mark)| {
            let other = 3 - k;
            let vips = [clones.vip(other, "a"), clones.vip(other, "b"), clones.address(other, 9)];
            let mut to = vec!["192.168.100.1", "192.168.100.254", "192.168.100.77", "198.51.100.7"];
            to.extend(vips.iter().map(String::as_str));
            let borrowed = ["192.168.100.1", "192.168.100.88"];
            let all = [
                packets(mark, &["10.0.0.66", "10.0.0.3", borrowed[0], borrowed[1]], &to),
                hopeless(mark, &borrowed, &to),
            ];
            Prober::on(&clones.join(k, &format!("probe{k}")), &mac(k), &all.concat())
        })
        .collect()
}

/// Sees what gets out of either clone, or into the other one.
fn witnesses(clones: &Clones) -> [Witness; 3] {
    let marked = |mark: u8| format!("(ip[1] = {mark} or (icmp and ip[29] = {mark}))");
    let outside = format!("ether src {GATEWAY_MAC} and ({} or {})", marked(MARKS[0]), marked(MARKS[1]));
    let inside = |k: usize| {
        let filter = format!("ether src {} and {}", mac(k), marked(MARKS[2 - k]));
        Witness::on(&clones.gateway, &format!("br{k}"), &filter)
    };
    [Witness::on(&clones.segment, "br0", &outside), inside(1), inside(2)]
}

fn hands_on_clones(backend: Backend) {
    let clones = Clones::new(Shape::node(backend), 2);
    let witnesses = witnesses(&clones);
    let probers = probers(&clones);
    // The control: an open router lets them out.
    clones.gateway.set("ipv4/ip_forward", "1");
    wait_until(seconds(20), "the witness to see what an open router lets out", || {
        let seen = witnesses[0].seen().join("\n");
        ["> 192.168.100.1", "> 198.51.100.7", "UDP", "Flags [S]", "exceeded"]
            .iter()
            .all(|w| seen.contains(w))
    });
    clones.gateway.set("ipv4/ip_forward", "0");
    clones.gateway.forget_flows();
    for k in clones.all() {
        clones.write(k, false, "Deny");
    }
    let agent = clones.agent(&[]);
    clones.all().for_each(|k| clones.wait_serves(k));
    let mut busy = Busy::new(clones, agent, probers, witnesses);
    let tool = format!("{} -w", backend.iptables());
    let rules = busy.clones.gateway.sh("ip rule");
    let preferences: Vec<_> = rules
        .lines()
        .filter(|l| l.contains("proto 211"))
        .map(|l| l.split(':').next().unwrap().to_owned())
        .collect();
    assert!(preferences.len() >= 4, "{rules}");
    for preference in preferences {
        // Without those that tell marks apart, what the node says to a clone, and to nobody inside, follows its own routes until they are back.
        let opens = !["20000", "30000", "32900"].contains(&preference.as_str());
        busy.hand(&format!("ip rule del pref {preference}"), &["rule"], opens);
    }
    let routes = busy.clones.gateway.sh("ip route show table all proto 211");
    let table = routes
        .lines()
        .find_map(|l| l.split_once(" table 2110")?.1.split(' ').next())
        .map(|t| format!("2110{t}"))
        .unwrap();
    busy.hand(&format!("ip route del 10.0.0.0/24 table {table}"), &["route", "10.0.0.0/24"], false);
    busy.hand(&format!("{tool} -t nat -F"), &["nat"], false);
    busy.hand(&format!("{tool} -t raw -F"), &["raw"], true);
    busy.hand(&format!("{tool} -t raw -I SNET-RAW 1 -j RETURN"), &["raw"], true);
    busy.hand(&format!("{tool} -t raw -D PREROUTING 1"), &["raw"], true);
    busy.end();
}

/// A gateway of two clones at work.
struct Busy {
    clones: Clones,
    agent: Agent,
    planned: Snapshot,
    probers: Vec<Prober>,
    witnesses: [Witness; 3],
    steady: Vec<Steady>,
    slowest: Duration,
}

impl Busy {
    fn new(clones: Clones, agent: Agent, probers: Vec<Prober>, mut witnesses: [Witness; 3]) -> Self {
        crate::lab::fall_silent(&clones.gateway, &witnesses.each_ref());
        witnesses.iter_mut().for_each(Witness::forget);
        let at = |k: usize| format!("{}:80", clones.vip(k, "a"));
        let steady = clones
            .all()
            .flat_map(|k| [Steady::connect(&clones.client, &at(k)), Steady::datagrams(&clones.client, &at(k))])
            .collect();
        let planned = Snapshot::of(&clones.gateway);
        Self {
            clones,
            agent,
            planned,
            probers,
            witnesses,
            steady,
            slowest: Duration::ZERO,
        }
    }

    /// Does something to the gateway and waits until it is as planned and the agent has said so in a line with `words`; open connections to both clones go on, new ones are made, and nothing gets
    /// through; or, where the hand itself `opens` a way, nothing once it is repaired.
    fn hand(&mut self, line: &str, words: &[&str], opens: bool) {
        let (said, start) = (self.agent.log().len(), Instant::now());
        self.clones.gateway.sh(line);
        while Snapshot::of(&self.clones.gateway) != self.planned {
            if start.elapsed() > seconds(20) {
                self.planned.assert_same(&Snapshot::of(&self.clones.gateway));
            }
            self.agent.assert_alive();
            std::thread::sleep(Duration::from_millis(20));
        }
        self.slowest = self.slowest.max(start.elapsed());
        wait_until(
            seconds(10),
            &format!("after `{line}` a report of a repair with {words:?}: {}", self.agent.log()),
            || {
                let log = self.agent.log();
                log[said..]
                    .lines()
                    .any(|l| l.contains("repaired") && words.iter().all(|w| l.contains(w)))
            },
        );
        let after = format!("after `{line}`");
        self.steady.iter().for_each(|steady| steady.goes_on(&after));
        // Who dials while a way is missing may be told that there is none; afterwards everybody is served.
        for k in self.clones.all() {
            let served = self.clones.client.tcp(&format!("{}:80", self.clones.vip(k, "a")));
            assert_eq!(served.map(|c| c.server), Some(format!("c{k}a")), "{after}");
        }
        if opens {
            crate::lab::fall_silent(&self.clones.gateway, &self.witnesses.each_ref());
            self.witnesses.iter_mut().for_each(Witness::forget);
        }
        self.probers.iter().for_each(Prober::full_round);
        self.witnesses.iter().for_each(|witness| witness.saw_nothing(&after));
    }

    fn end(mut self) {
        self.witnesses.iter_mut().for_each(Witness::end);
        self.witnesses.iter().for_each(|witness| witness.saw_nothing("by the end"));
        println!("measured: slowest repair {:?}, {} rounds", self.slowest, self.probers[0].rounds());
    }
}
