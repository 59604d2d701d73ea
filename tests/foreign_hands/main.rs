//! Other programs and people change the gateway while the agent runs: what is ours comes back, what is theirs stays, and it is said.

#![allow(clippy::unwrap_used, clippy::panic, clippy::format_collect)]

#[macro_use]
#[path = "../lab/mod.rs"]
mod lab;
mod clones;
mod traffic;

use std::time::Duration;

use lab::{Agent, Backend, Manifests, Seed, Snapshot, VIP, VIP_80, seconds, wait_until};

/// How soon a repair has to be there: ten times the second that is promised for nft, ten times the poll interval for legacy tables,
/// which give no events.
fn bound(seed: &Seed) -> Duration {
    match seed.backend {
        Backend::Nft => seconds(10),
        Backend::Legacy => seconds(20),
    }
}

/// The seed's mapping in force, and the gateway as it stands then.
fn standing(seed: &Seed) -> (Manifests, Agent, Snapshot) {
    let manifests = Manifests::seed();
    let agent = seed.agent(&manifests, &[]);
    seed.wait_serves("vm03");
    // The announcement and the report come after the rules; what follows is compared with a gateway at rest.
    std::thread::sleep(Duration::from_millis(500));
    let before = Snapshot::of(&seed.vm02);
    (manifests, agent, before)
}

/// Does something to the gateway and waits until it is as before, traffic included, and the agent has said so in a line with `words`.
fn is_repaired(seed: &Seed, agent: &mut Agent, before: &Snapshot, line: &str, words: &[&str]) {
    let said = agent.log().len();
    seed.vm02.sh(line);
    let end = std::time::Instant::now() + bound(seed);
    while Snapshot::of(&seed.vm02) != *before {
        if std::time::Instant::now() > end {
            before.assert_same(&Snapshot::of(&seed.vm02));
        }
        agent.assert_alive();
        std::thread::sleep(Duration::from_millis(20));
    }
    wait_until(
        seconds(5),
        &format!(
            "after `{line}` the agent to report a repair with {words:?}; its log:\n{}",
            agent.log()
        ),
        || {
            agent.log()[said..]
                .lines()
                .any(|l| l.contains("repaired") && words.iter().all(|w| l.contains(w)))
        },
    );
    assert_eq!(
        seed.vm01.tcp(VIP_80).unwrap_or_else(|| panic!("traffic after `{line}`")).server,
        "vm03"
    );
    assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"), "the fence after `{line}`");
}

/// The kernel names the process for nft tables only.
fn culprit(seed: &Seed) -> &'static str {
    match seed.backend {
        Backend::Nft => "iptables",
        Backend::Legacy => "",
    }
}

labs! {
    fn flushed_tables_are_filled_again(seed) {
        let (_manifests, mut agent, before) = standing(seed);
        let (tool, by) = (seed.backend.iptables(), culprit(seed));
        for table in ["mangle", "nat", "filter"] {
            is_repaired(seed, &mut agent, &before, &format!("{tool} -w -t {table} -F"), &[table, by]);
        }
        is_repaired(seed, &mut agent, &before, &format!("{tool} -w -t nat -F && {tool} -w -t nat -X"), &["nat", by]);
    }

    /// A table that is switched off keeps its rules, the tools show nothing of it, and no packet sees it. Only nft has such a switch.
    fn tables_that_were_switched_off_are_switched_on(seed) {
        if seed.backend == Backend::Legacy {
            return;
        }
        let (manifests, mut agent, before) = standing(seed);
        let asleep = |family: &str, table: &str| seed.vm02.sh(&format!("nft list table {family} {table}")).contains("flags dormant");
        for (family, table) in [("ip", "mangle"), ("ip6", "mangle"), ("ip", "nat"), ("ip", "filter")] {
            let off = format!("nft 'add table {family} {table} {{ flags dormant; }}'");
            is_repaired(seed, &mut agent, &before, &off, &[table, "switched off", "nft"]);
            assert!(!asleep(family, table), "{family} {table}");
        }
        // While no agent is there to see it.
        drop(agent);
        seed.vm02.sh("nft 'add table ip mangle { flags dormant; }'");
        assert!(asleep("ip", "mangle"));
        let _again = seed.agent(&manifests, &[]);
        wait_until(bound(seed), "a new agent to switch it on", || !asleep("ip", "mangle"));
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"));
    }

    fn hooks_that_were_removed_come_back(seed) {
        let (_manifests, mut agent, before) = standing(seed);
        let (tool, by) = (seed.backend.iptables(), culprit(seed));
        for (table, chain) in [("mangle", "FORWARD"), ("nat", "PREROUTING"), ("nat", "POSTROUTING"), ("filter", "FORWARD")] {
            is_repaired(seed, &mut agent, &before, &format!("{tool} -w -t {table} -D {chain} 1"), &[table, by]);
        }
    }

    /// Somebody else's rule ahead of the fence could let packets pass it: the fence moves ahead again, and the rule stays where it is.
    fn a_hook_that_was_overtaken_comes_first_again(seed) {
        let (_manifests, mut agent, _) = standing(seed);
        for chain in ["FORWARD", "INPUT"] {
            seed.iptables(&format!("-t mangle -I {chain} 1 -i eth1 -m comment --comment theirs -j ACCEPT"));
            wait_until(bound(seed), &format!("our hook to lead {chain}"), || {
                let rules = seed.iptables(&format!("-t mangle -S {chain}"));
                let rules: Vec<_> = rules.lines().filter(|l| l.starts_with("-A")).collect();
                rules.len() == 2 && rules[0].contains("SNET-") && rules[1].contains("theirs")
            });
        }
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"));
        agent.wait_log(seconds(5), &["repaired", "mangle"]);
    }

    fn junk_in_our_chains_goes(seed) {
        let (_manifests, mut agent, before) = standing(seed);
        let (tool, by) = (seed.backend.iptables(), culprit(seed));
        for junk in [
            "-t nat -A SNET-DNAT -d 192.168.100.9/32 -j DNAT --to-destination 192.168.200.9",
            "-t nat -I SNET-DNAT 1 -d 192.168.100.3/32 -j DNAT --to-destination 192.168.200.9",
            "-t mangle -I SNET-FWD 1 -j RETURN",
            "-t mangle -I SNET-IN 1 -j RETURN",
        ] {
            let table = junk.split(' ').nth(1).unwrap();
            is_repaired(seed, &mut agent, &before, &format!("{tool} -w {junk}"), &[table, by]);
        }
    }

    fn rules_of_ours_that_were_deleted_or_reordered_are_put_right(seed) {
        let (_manifests, mut agent, before) = standing(seed);
        let (tool, by) = (seed.backend.iptables(), culprit(seed));
        let chain = seed.rules().lines().find_map(|l| l.strip_prefix(':').filter(|c| c.starts_with("SNET-FI-")).map(|c| c[..16].to_owned()));
        let chain = chain.expect("the chain for packets to the inside");
        is_repaired(seed, &mut agent, &before, &format!("{tool} -w -t mangle -D SNET-FWD 1"), &["mangle", by]);
        // The last rule, the DROP, becomes the first.
        let last = seed.iptables(&format!("-t mangle -S {chain}")).lines().last().unwrap().to_owned();
        assert!(last.contains("DROP"), "{last}");
        let spec = last.strip_prefix("-A ").unwrap().strip_prefix(&chain).unwrap();
        is_repaired(
            seed,
            &mut agent,
            &before,
            &format!("{tool} -w -t mangle -D {chain} {spec} && {tool} -w -t mangle -I {chain} 1 {spec}"),
            &["mangle", by],
        );
    }

    fn routes_neighbours_and_settings_are_put_back(seed) {
        let (_manifests, mut agent, before) = standing(seed);
        for line in [
            "ip neigh del proxy 192.168.100.3 dev eth0",
            "ip route del 192.168.100.3 dev lo",
            "sysctl -qw net.ipv4.conf.eth1.forwarding=0",
            "sysctl -qw net.ipv4.conf.eth0.forwarding=0",
        ] {
            is_repaired(seed, &mut agent, &before, line, &[]);
        }
    }

    /// The kernel tells nobody that redirects were switched on: the slow check finds it.
    fn what_gives_no_event_is_found_by_the_slow_check(seed) {
        let manifests = Manifests::seed();
        let mut agent = seed.agent(&manifests, &["--resync", "5"]);
        seed.wait_serves("vm03");
        seed.vm02.set("ipv4/conf/eth0/send_redirects", "1");
        wait_until(seconds(50), "redirects to be off again", || seed.vm02.get("ipv4/conf/eth0/send_redirects") == "0");
        agent.wait_log(seconds(5), &["repaired", "eth0"]);
    }

    fn a_device_that_is_made_anew_is_served_again(seed) {
        let (_manifests, mut agent, _) = standing(seed);
        seed.vm02.sh("ip link del eth1");
        std::thread::sleep(Duration::from_millis(300));
        assert!(seed.vm01.tcp(VIP_80).is_none());
        agent.assert_alive();
        seed.replug_inside();
        seed.wait_serves("vm03");
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"), "the new device is fenced");

        seed.vm02.sh("ip link del eth0");
        seed.replug_outside();
        seed.wait_serves("vm03");
        agent.assert_alive();
    }

    /// Through all of it, what bears no mark of ours is not touched.
    fn foreign_rules_are_never_touched(seed) {
        seed.add_foreign_rules();
        seed.vm02.sh("ip route add 203.0.113.0/24 via 192.168.100.254 && ip neigh add proxy 192.168.100.77 dev eth0");
        let untouched = Snapshot::of(&seed.vm02);
        let manifests = Manifests::seed();
        let agent = seed.agent(&manifests, &[]);
        seed.wait_serves("vm03");
        seed.iptables("-t mangle -D FORWARD 1");
        seed.iptables("-t nat -F SNET-DNAT");
        seed.vm02.sh("ip neigh del proxy 192.168.100.3 dev eth0");
        wait_until(bound(seed), "repair", || seed.vm01.tcp(VIP_80).is_some() && seed.iptables("-t mangle -S FORWARD").contains("SNET-FWD"));
        manifests.remove("mapping.yaml");
        wait_until(seconds(20), "the mapping to go", || !seed.rules().contains(VIP));
        assert_eq!(agent.stop("TERM"), Some(0));
        seed.cleanup();
        untouched.assert_same(&Snapshot::of(&seed.vm02));
    }

    /// Somebody who undoes every repair is told of, and does not make the agent spin.
    fn a_fight_is_bounded_and_reported(seed) {
        let (_manifests, mut agent, before) = standing(seed);
        let tool = seed.backend.iptables();
        let vandal = format!("for n in $(seq 100); do {tool} -w -t nat -F SNET-DNAT; sleep 0.05; done");
        seed.vm02.try_sh(&vandal);
        let repairs = agent.log().lines().filter(|l| l.contains("repaired")).count();
        assert!((1..=40).contains(&repairs), "{repairs} repairs in some five seconds");
        wait_until(bound(seed), "peace", || Snapshot::of(&seed.vm02) == before);
        agent.assert_alive();
    }
}
