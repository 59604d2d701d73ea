//! Foreign hands on a gateway of two clones, whose labels and ways are what keeps them apart, while both work.

use std::time::{Duration, Instant};

use crate::lab::{Agent, Backend, Clones, Escapes, Shape, Snapshot, Steady, in_binary, isolated, seconds, wait_until};

#[test]
fn nft() {
    isolated(in_binary(concat!(module_path!(), "::nft")), || hands_on_clones(Backend::Nft));
}

#[test]
fn legacy() {
    isolated(in_binary(concat!(module_path!(), "::legacy")), || hands_on_clones(Backend::Legacy));
}

fn hands_on_clones(backend: Backend) {
    let clones = Clones::new(Shape::node(backend), 2);
    let escapes = Escapes::start(&clones, &[1, 2]);
    for k in clones.all() {
        clones.write(k, true, "Deny");
    }
    let agent = clones.agent(&[]);
    clones.all().for_each(|k| clones.wait_serves(k));
    let mut busy = Busy::new(clones, agent, escapes);
    let b = backend.name();
    for (ip, tables) in [
        ("ip", [format!("iptables-{b} -w"), "10.0.0.0/24".to_owned()]),
        ("ip -6", [format!("ip6tables-{b} -w"), "fd00:10::/64".to_owned()]),
    ] {
        let [tool, inside] = tables;
        let rules = busy.clones.gateway.sh(&format!("{ip} rule"));
        let preferences: Vec<_> = rules
            .lines()
            .filter(|l| l.contains("proto 211"))
            .map(|l| l.split(':').next().unwrap().to_owned())
            .collect();
        assert!(preferences.len() >= 4, "{rules}");
        for preference in preferences {
            // Without those that tell marks apart, what the node says to a clone, and to nobody inside, follows its own routes until they are back.
            let opens = !["20000", "30000", "32900"].contains(&preference.as_str());
            busy.hand(&format!("{ip} rule del pref {preference}"), &["rule"], opens);
        }
        let routes = busy.clones.gateway.sh(&format!("{ip} route show table all proto 211"));
        let table = routes
            .lines()
            .find_map(|l| l.split_once(" table 2110")?.1.split(' ').next())
            .map(|t| format!("2110{t}"))
            .unwrap();
        busy.hand(
            &format!(
                "{ip} route del {inside} dev br{} table {table}",
                table.trim_start_matches("2110").trim_start_matches('0')
            ),
            &["route", &inside],
            false,
        );
        busy.hand(&format!("{tool} -t nat -F"), &["nat"], false);
        busy.hand(&format!("{tool} -t raw -F"), &["raw"], true);
        busy.hand(&format!("{tool} -t raw -I SNET-RAW 1 -j RETURN"), &["raw"], true);
        busy.hand(&format!("{tool} -t raw -D PREROUTING 1"), &["raw"], true);
    }
    busy.end();
}

/// A gateway of two clones at work.
struct Busy {
    clones: Clones,
    agent: Agent,
    planned: Snapshot,
    escapes: Escapes,
    steady: Vec<Steady>,
    slowest: Duration,
}

impl Busy {
    fn new(clones: Clones, agent: Agent, mut escapes: Escapes) -> Self {
        escapes.begin(&clones.gateway);
        let [four, six] = [false, true].map(|six| {
            let at = |k: usize| {
                if six {
                    format!("[{}]:80", clones.vip6(k, "a"))
                } else {
                    format!("{}:80", clones.vip(k, "a"))
                }
            };
            clones.all().map(at).collect::<Vec<_>>()
        });
        let connected = four.iter().chain(&six).map(|at| Steady::connect(&clones.client, at));
        let steady = connected
            .chain(four.iter().map(|at| Steady::datagrams(&clones.client, at)))
            .collect();
        let planned = Snapshot::of(&clones.gateway);
        Self {
            clones,
            agent,
            planned,
            escapes,
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
            self.escapes.begin(&self.clones.gateway);
        }
        self.escapes.round();
        self.escapes.none_passed(&after);
    }

    fn end(self) {
        println!("measured: slowest repair {:?}, {} rounds", self.slowest, self.escapes.end());
    }
}
