//! Many at once.

use std::time::{Duration, Instant};

use crate::lab::{Dialler, Manifests, Probers, Steady, VIP, VIP_80, seconds, wait_until};

pub(crate) const OTHER: &str = "192.168.100.4";
pub(crate) const OTHER_80: &str = "192.168.100.4:80";
pub(crate) const OTHER6_80: &str = "[fd00:100::4]:80";
/// New connections while everything is rewritten.
const CONNECTIONS: u64 = 20_000;

/// The seed's mapping and one to vm04.
pub(crate) fn two_mappings() -> Manifests {
    let manifests = Manifests::seed();
    manifests.mapping("other", OTHER, "192.168.200.4", "");
    manifests
}

labs! {
    /// Whole chains are replaced all the while, by changes of the objects and by repairs, and no packet of a new connection finds a gap.
    fn new_connections_while_everything_is_rewritten_all_succeed(seed) {
        let probers = Probers::start(seed, &[VIP, OTHER, "192.168.100.9"]);
        let manifests = two_mappings();
        // Only repairs by the agent's own hand: a vandal's flush of a chain would cost connections whoever repairs it.
        let mut agent = seed.agent(&manifests, &["--min-interval", "1"]);
        seed.wait_serves("vm03");
        wait_until(seconds(20), "the other mapping", || seed.vm01.tcp(OTHER_80).is_some());
        let steady = Steady::connect(&seed.vm01, VIP_80);
        let places = [(VIP_80, "vm03"), (OTHER_80, "vm04")];
        let diallers = [0; 4].map(|_| Dialler::start(&seed.vm01, &places, Duration::ZERO, CONNECTIONS / 4));

        let start = Instant::now();
        let mut rewritten = 0;
        while diallers.iter().any(|d| !d.is_finished()) {
            // Every table changes, with the fence: a mapping of ports, another pool, another wish for logging.
            let turn = rewritten % 4;
            let pool = ["192.168.100.0/24", "192.168.100.0/25"][turn % 2];
            let log = ["", "egress: {default: Deny, log: true}"][turn / 2];
            manifests.write("network.yaml", &crate::lab::network("segment-b", pool, "192.168.200.0/24", log));
            manifests.mapping("turns", "192.168.100.9", ["192.168.200.3", "192.168.200.4"][turn % 2], "");
            // Rules of ours that a vandal adds are taken away by writing the chain anew.
            let chain = [("nat", "SNET-DNAT"), ("mangle", "SNET-FWD"), ("nat", "SNET-SNAT"), ("mangle", "SNET-IN")][turn];
            seed.iptables(&format!("-t {} -A {} -s 203.0.113.{turn} -j RETURN", chain.0, chain.1));
            rewritten += 1;
            std::thread::sleep(Duration::from_millis(150));
            assert!(start.elapsed() < seconds(120), "connections are too slow");
        }
        let passes = agent.log().lines().filter(|l| l.contains(" pass ") && l.contains("writes=")).count();
        assert!(passes > 5, "the rules were rewritten {passes} times");
        agent.assert_alive();
        let mut slowest = Duration::ZERO;
        for dialler in diallers {
            dialler.none_failed("while everything is rewritten");
            assert_eq!(dialler.account().0, CONNECTIONS / 4);
            slowest = slowest.max(dialler.account().1);
        }
        steady.goes_on("while everything is rewritten");
        let (lines, falter) = steady.account();
        let rounds = probers.end();
        println!(
            "measured: {CONNECTIONS} connections in {:?}, slowest {slowest:?}; {passes} passes for {rewritten} changes; {lines} lines, slowest {falter:?}; {rounds} rounds",
            start.elapsed()
        );
    }
}
