//! The seed's closed network probed from inside, and from outside for what nobody mapped; by IPv6 as well where the hosts speak it.

use std::time::Duration;

use super::frames::{hopeless, packets};
use super::prober::{Prober, Witness, fall_silent, frames6, marked, time_of_day};
use super::{Ns, Seed, seconds, wait_until};

/// The marks of who probes from inside, from outside and from a second closed network: types of service. No translation changes them, and ICMP errors repeat them.
const FROM_INSIDE: u8 = 0xb4;
const FROM_OUTSIDE: u8 = 0x74;
const FROM_SECOND: u8 = 0x34;
/// Hardware addresses of the seed's gateway while it is probed, also of interfaces that are made anew.
pub const OUTSIDE_MAC: &str = "02:00:00:00:00:02";
pub const INSIDE_MAC: &str = "02:00:00:00:01:02";

/// The seed's closed network probed from inside, and from outside for what nobody mapped.
#[derive(Debug)]
pub struct Probers {
    probers: Vec<Prober>,
    witnesses: Vec<(&'static str, Witness)>,
}

/// Nobody may ever hear of these.
const HOST: &str = "192.168.100.1";
const ROUTER: &str = "192.168.100.254";
const NOBODY: &str = "192.168.100.77";
const BORROWED: &str = "192.168.100.88";
const STRANGER: &str = "198.51.100.7";
const UNUSED: &str = "192.168.100.200";
/// The same of IPv6, and two addresses that only the router knows the way to.
const HOST6: &str = "fd00:100::1";
const ROUTER6: &str = "fd00:100::fe";
const NOBODY6: &str = "fd00:100::77";
const BORROWED6: &str = "fd00:100::88";
const STRANGER6: &str = "2001:db8:113::7";
const FAR6: &str = "2001:db8:113::1";
/// Words of tcpdump for what a prober sends.
const KINDS: [&str; 6] = ["UDP", "Flags [S]", "Flags [.]", "ICMP echo request", "unreachable", "GREv0"];

impl Probers {
    /// Places and proves them. To be called before anything of ours is there. `virtual_addresses` are probed from inside as well.
    pub fn start(seed: &Seed, virtual_addresses: &[&str]) -> Self {
        let mut probers = Self::place(seed, virtual_addresses);
        probers.prove(seed);
        probers
    }

    /// Gives the gateway known hardware addresses and a default route, and begins to probe.
    pub fn place(seed: &Seed, virtual_addresses: &[&str]) -> Self {
        let gateway = &seed.vm02;
        gateway.sh(&format!(
            "ip link set eth0 address {OUTSIDE_MAC} && ip link set eth1 address {INSIDE_MAC}"
        ));
        gateway.sh(&format!("ip route add default via {ROUTER}"));
        for ns in [&seed.vm01, &seed.vm03, &seed.vm04, &seed.gw_a, &seed.gw_b] {
            ns.sh("ip neigh flush all");
        }
        // Rightful traffic goes to the client, and unmarked. What somebody outside sends may go back there: a gateway is a router.
        let strange = format!(
            "ip and not dst host {HOST} and not multicast and not broadcast and not {}",
            marked(&[FROM_OUTSIDE])
        );
        let asked = [ROUTER, NOBODY, BORROWED, UNUSED].map(|a| format!("arp dst host {a}")).join(" or ");
        // By the end of its address. Whom somebody outside pretends to be may be asked for, to be told that his hops are at their end.
        let asked6 = "(icmp6 and ip6[40] = 135 and ip6[60:4] = 0x77)";
        let escape = format!(
            "{} or ({strange}) or (arp[6:2] = 1 and ({asked})) or {asked6}",
            marked(&[FROM_INSIDE, FROM_SECOND])
        );
        let intrusion = marked(&[FROM_OUTSIDE, FROM_SECOND]);
        let own = ["192.168.200.66", "192.168.200.3", "192.168.200.4"];
        let (virtual6, virtual4): (Vec<&str>, Vec<&str>) = virtual_addresses.iter().partition(|a| a.contains(':'));
        let mut from_inside = everything(FROM_INSIDE, &own, &destinations(&virtual4));
        let mut from_outside = packets(
            FROM_OUTSIDE,
            &["192.168.100.66", BORROWED, STRANGER],
            &["192.168.200.3", "192.168.200.4", "192.168.200.66", "192.168.200.254"],
        );
        if seed.is_dual_stack() {
            let sources = ["fd00:200::66", "fd00:200::3", "fe80::66", HOST6, BORROWED6, STRANGER6];
            let destinations = [&[HOST6, ROUTER6, NOBODY6, FAR6], &virtual6[..]].concat();
            from_inside.extend(frames6(FROM_INSIDE).packets(&sources, &destinations));
            let inside = ["fd00:200::3", "fd00:200::4", "fd00:200::66"];
            from_outside.extend(frames6(FROM_OUTSIDE).packets(&["fd00:100::66", BORROWED6, STRANGER6], &inside));
        }
        Self {
            witnesses: vec![
                ("out of", Witness::start(&seed.segment_a, OUTSIDE_MAC, &escape)),
                ("into", Witness::start(&seed.segment_b, INSIDE_MAC, &intrusion)),
            ],
            probers: vec![
                Prober::start("probe-in", &seed.segment_b, INSIDE_MAC, &from_inside),
                Prober::start("probe-out", &seed.segment_a, OUTSIDE_MAC, &from_outside),
            ],
        }
    }

    /// Probes a second closed network as well, which is behind `mac` on `switch`: the way out, to the first one, and from both others into it.
    pub fn second(&mut self, switch: &Ns, mac: &str, sources: &[&str], virtual_addresses: &[&str]) {
        let mut to = destinations(virtual_addresses);
        to.extend(["192.168.200.3", "192.168.200.4"]);
        let intrusion = marked(&[FROM_INSIDE, FROM_OUTSIDE]);
        self.witnesses
            .push(("into the second network through", Witness::start(switch, mac, &intrusion)));
        self.probers
            .push(Prober::start("probe-second", switch, mac, &everything(FROM_SECOND, sources, &to)));
    }

    /// Proves on the gateway as it is without a fence, forwarding, that everything gets through and is seen. What is seen from then on counts. IPv6 is not forwarded until the
    /// lab says so ([`Seed::route_ipv6`]), which an administrator who cares does once the fence stands: the agent may not.
    pub fn prove(&mut self, seed: &Seed) {
        let gateway = &seed.vm02;
        // Who answers nobody's question is given up after three tries; then the kernel tells every source, and asks for routers to do so.
        let patience = ["ipv4", "ipv6"].map(|family| format!("{family}/neigh/eth0/retrans_time_ms"));
        let found = patience.each_ref().map(|patience| gateway.get(patience));
        for patience in &patience {
            gateway.set(patience, "50");
        }
        gateway.set("ipv4/ip_forward", "1");
        let dual = seed.is_dual_stack();
        if dual {
            seed.route_ipv6(true);
        }
        wait_until(seconds(20), "the witnesses to see what gets through an open router", || {
            let ways: Vec<_> = self.witnesses.iter().map(|(_, witness)| witness.seen().join("\n")).collect();
            let all = |way: &str, words: &[&str]| words.iter().all(|word| way.contains(word));
            all(&ways[0], &KINDS)
                && all(&ways[0], &[HOST, NOBODY, UNUSED, "> 10.1.2.3"])
                && all(&ways[1], &KINDS)
                && all(&ways[1], &["> 192.168.200.3", "> 192.168.200.4"])
                && (!dual || all(&ways[0], &["> fd00:100::1", "> 2001:db8:113::1", "fd00:200::3"]) && ways[1].contains("> fd00:200::3"))
        });
        gateway.set("ipv4/ip_forward", "0");
        if dual {
            seed.route_ipv6(false);
        }
        gateway.forget_flows();
        self.round();
        fall_silent(gateway, &self.witnesses.iter().map(|(_, witness)| witness).collect::<Vec<_>>());
        patience
            .iter()
            .zip(found)
            .for_each(|(patience, found)| gateway.set(patience, &found));
        self.witnesses.iter_mut().for_each(|(_, witness)| witness.forget());
    }

    /// Waits until all have tried everything once more.
    pub fn round(&self) {
        self.probers.iter().for_each(Prober::full_round);
    }

    /// What got through, without what the gateway then asked and said by itself, and how long that went on. Nothing of it counts any more.
    pub fn forgive(&mut self, gateway: &Ns) -> (usize, Duration) {
        fall_silent(gateway, &self.witnesses.iter().map(|(_, witness)| witness).collect::<Vec<_>>());
        let passed = self.passed().into_iter().filter(|line| {
            !["unreachable", "ARP", "neighbor solicitation"]
                .iter()
                .any(|word| line.contains(word))
        });
        let times: Vec<_> = passed.filter_map(|line| time_of_day(&line)).collect();
        self.witnesses.iter_mut().for_each(|(_, witness)| witness.forget());
        let ends = times.iter().min().zip(times.iter().max());
        (
            times.len(),
            ends.map_or(Duration::ZERO, |(first, last)| last.saturating_sub(*first)),
        )
    }

    /// What got through, a line a packet.
    pub fn passed(&self) -> Vec<String> {
        self.witnesses.iter().flat_map(|(_, witness)| witness.seen()).collect()
    }

    /// Fails if anything ever got through.
    pub fn none_passed(&self, when: &str) {
        for (way, witness) in &self.witnesses {
            witness.saw_nothing(&format!("{way} the fence, {when}"));
        }
    }

    /// Fails if anything ever got through, or if the witnesses cannot know. Returns how often everything was tried.
    pub fn end(mut self) -> u64 {
        self.round();
        self.none_passed("by the end");
        self.witnesses.iter_mut().for_each(|(_, witness)| witness.end());
        self.none_passed("by the end");
        self.probers.iter().map(Prober::rounds).min().unwrap_or_default()
    }
}

/// Where a restored VM may turn to.
fn destinations<'a>(virtual_addresses: &[&'a str]) -> Vec<&'a str> {
    [&[HOST, ROUTER, NOBODY, UNUSED, "10.1.2.3"], virtual_addresses].concat()
}

/// Everything from inside, under the sources there and under borrowed ones; of the latter also what the gateway would answer by itself.
fn everything(mark: u8, sources: &[&str], destinations: &[&str]) -> Vec<Vec<u8>> {
    let borrowed = [HOST, BORROWED, STRANGER];
    let all = packets(mark, &[sources, &borrowed].concat(), destinations);
    [all, hopeless(mark, &borrowed, destinations)].concat()
}
