//! Clones do not hear of each other, and nothing of theirs is heard outside.

use crate::lab::clones::{GATEWAY_MAC, mac};
use crate::lab::{Clones, Prober, Witness, fall_silent, hopeless, packets, seconds, wait_until};

/// Types of service, which tell whose packets are seen.
const FIRST: u8 = 0xb4;
const SECOND: u8 = 0x34;
const OUTSIDE: u8 = 0x74;

/// Whose mark a packet bears, itself or in what an ICMP error quotes.
fn marked(mark: u8) -> String {
    format!("(ip[1] = {mark} or (icmp and ip[29] = {mark}))")
}

/// Somebody in each clone and somebody outside who try everything, and witnesses of what gets where it must not.
struct Watch {
    probers: Vec<Prober>,
    outside: Witness,
    first: Witness,
    second: Witness,
}

impl Watch {
    /// Starts all of them on a gateway that has no fence, and proves that each witness sees what an open router lets through.
    fn start(clones: &Clones) -> Self {
        let gateway = &clones.gateway;
        // Of the closed networks' own addresses nothing may ever be heard outside, whoever sends it; but what comes from outside with those addresses goes back there, since a
        // gateway is a router, and production may have them.
        let outside = format!(
            "ether src {GATEWAY_MAC} and ({} or {} or (net 10.0.0.0/24 and not {}) or arp dst host 192.168.100.77)",
            marked(FIRST),
            marked(SECOND),
            marked(OUTSIDE)
        );
        // On a bridge itself those of its own side are seen as well.
        let inside = |k: usize, foreign: u8| {
            let filter = format!("ether src {} and ({} or ip[1] = {OUTSIDE})", mac(k), marked(foreign));
            Witness::on(gateway, &format!("br{k}"), &filter)
        };
        let mut watch = Self {
            outside: Witness::on(&clones.segment, "br0", &outside),
            first: inside(1, SECOND),
            second: inside(2, FIRST),
            probers: Vec::new(),
        };
        let everywhere = [
            "192.168.100.1",
            "192.168.100.254",
            "192.168.100.77",
            "192.168.100.2",
            "198.51.100.7",
            "10.0.0.1",
            // Nobody's in the first clone: whoever the source says it is would be told so, the true owner of a borrowed address too.
            "10.0.0.5",
        ];
        let vips = [1, 2].map(|k| [clones.vip(k, "a"), clones.vip(k, "b"), clones.address(k, 1), clones.address(k, 9)]);
        let sources = [
            "10.0.0.66",
            "10.0.0.3",
            "10.0.0.4",
            "192.168.100.1",
            "192.168.100.88",
            "203.0.113.7",
        ];
        for (k, mark) in [(1, FIRST), (2, SECOND)] {
            let other = &vips[2 - k];
            let destinations: Vec<_> = everywhere.into_iter().chain(other.iter().map(String::as_str)).collect();
            let ns = clones.join(k, &format!("probe{k}"));
            let all = [packets(mark, &sources, &destinations), hopeless(mark, &sources, &destinations)].concat();
            watch.probers.push(Prober::on(&ns, &mac(k), &all));
        }
        let unmapped = [clones.address(1, 9), clones.address(2, 1)];
        let destinations: Vec<_> = ["10.0.0.3", "10.0.0.4", "10.0.0.5"]
            .into_iter()
            .chain(unmapped.iter().map(String::as_str))
            .collect();
        let strangers = packets(OUTSIDE, &["192.168.100.66", "10.0.0.3", "203.0.113.7"], &destinations);
        watch
            .probers
            .push(Prober::start("probe-out", &clones.segment, GATEWAY_MAC, &strangers));
        watch.prove(clones);
        watch
    }

    fn prove(&mut self, clones: &Clones) {
        let gateway = &clones.gateway;
        let all = ["all", "br1", "br2", "eth0"].map(|i| format!("ipv4/conf/{i}/rp_filter"));
        let found = all.each_ref().map(|setting| gateway.get(setting));
        for setting in &all {
            gateway.set(setting, "0");
        }
        if !clones.shape.default_route {
            gateway.sh("ip route add default via 192.168.100.254");
        }
        // The way of errors to machines of a closed network, where the administrator's own route leads into one of the clones.
        gateway.sh("ip route add 10.0.0.66/32 via 192.168.100.254");
        gateway.set("ipv4/ip_forward", "1");
        // Narrower than inside, so that there is something to say.
        gateway.sh("ip link set eth0 mtu 1400");
        let told = |witness: &Witness, words: &[&str], what: &str| {
            wait_until(
                seconds(20),
                &format!("the witness {what} to see what an open router lets through"),
                || {
                    let seen = witness.seen().join("\n");
                    words.iter().all(|w| seen.contains(w))
                },
            );
        };
        for (here, there, witness) in [("br1", "br2", &self.second), ("br2", "br1", &self.first)] {
            // A neighbour that answers nothing, so that packets are sent.
            let route =
                format!("ip route replace 10.0.0.5/32 dev {there} && ip neigh replace 10.0.0.5 lladdr 02:00:00:00:07:07 dev {there}");
            gateway.sh(&route);
            told(
                witness,
                &["> 10.0.0.5", "UDP", "Flags [S]", "ICMP echo request", "GREv0"],
                &format!("of {here} in {there}"),
            );
            gateway.sh(&format!(
                "ip route del 10.0.0.5/32 dev {there} && ip neigh del 10.0.0.5 dev {there}"
            ));
        }
        let words = [
            "10.0.0.66",
            "> 192.168.100.1",
            "> 198.51.100.7",
            "UDP",
            "Flags [S]",
            "Flags [.]",
            "ICMP echo request",
            "exceeded",
            "need to frag",
            "GREv0",
        ];
        told(&self.outside, &words, "outside");
        gateway.set("ipv4/ip_forward", "0");
        gateway.sh("ip route del 10.0.0.66/32");
        if !clones.shape.default_route {
            gateway.sh("ip route del default");
        }
        for (setting, value) in all.iter().zip(found) {
            gateway.set(setting, &value);
        }
        gateway.forget_flows();
        // The echo that the gateway's own address gives is no concern of a fence that is not there yet.
        gateway.set("ipv4/icmp_echo_ignore_all", "1");
    }

    /// From here on nothing may be seen. To be called once the fence stands.
    fn begin(&mut self, clones: &Clones) {
        clones.gateway.set("ipv4/icmp_echo_ignore_all", "0");
        self.round();
        fall_silent(&clones.gateway, &[&self.outside, &self.first, &self.second]);
        for witness in [&mut self.outside, &mut self.first, &mut self.second] {
            witness.forget();
        }
    }

    /// Waits until everything was tried once more by all.
    fn round(&self) {
        self.probers.iter().for_each(Prober::full_round);
    }

    fn none_passed(&self, when: &str) {
        for (witness, place) in [
            (&self.outside, "outside"),
            (&self.first, "in clone 1"),
            (&self.second, "in clone 2"),
        ] {
            witness.saw_nothing(&format!("{place}, {when}"));
        }
    }

    /// Fails if anything was seen, or if the witnesses cannot know.
    fn end(mut self) {
        self.round();
        for witness in [&mut self.outside, &mut self.first, &mut self.second] {
            witness.end();
        }
        self.none_passed("by the end");
    }
}

/// A machine of one clone does not get through to anything of the other.
pub(crate) fn strangers_to_each_other(clones: &Clones) {
    for (k, other) in [(1, 2), (2, 1)] {
        for machine in ["a", "b"] {
            let vm = clones.vm(k, machine);
            let vip = clones.vip(other, machine);
            assert!(vm.tcp_is_dropped(&format!("{vip}:80")), "{} to {vip}", vm.name());
            assert_eq!(vm.udp(&format!("{vip}:80")), None, "{} to {vip} over UDP", vm.name());
            assert!(!vm.ping(&vip), "{} to {vip} by echo", vm.name());
            let vip6 = clones.vip6(other, machine);
            assert!(vm.tcp_fails(&format!("[{vip6}]:80")) && !vm.ping(&vip6), "{} to {vip6}", vm.name());
        }
    }
    let only_there = clones.vm(1, "a");
    assert!(
        only_there.tcp_fails("10.0.0.5:80") && !only_there.ping("10.0.0.5"),
        "an address that only the other clone has"
    );
    wait_until(seconds(20), "it to answer there, busy as it is", || {
        clones.vm(2, "a").ping("10.0.0.5")
    });
}

/// Both clones, the second with a machine whose address the first lacks.
pub(crate) fn two(shape: crate::lab::Shape) -> Clones {
    let clones = Clones::new(shape, 2);
    clones.vm(2, "b").sh("ip addr add 10.0.0.5/24 dev eth0");
    clones
}

clones! {
    /// Whoever tries whatever inside, borrowed addresses included: nothing is seen outside or in the other clone, from before the second clone came until after it
    /// went, nor while their marks change.
    fn nothing_passes_between_clones_or_leaves_them(shape) in [nft_node, legacy_node, nft_router, legacy_cables, nft_shared] {
        let clones = two(shape);
        let mut watch = Watch::start(&clones);
        clones.write(1, false, "Deny");
        clones.write(2, false, "Deny");
        let agent = clones.agent(&["--resync", "5"]);
        for k in clones.all() {
            clones.wait_serves(k);
        }
        watch.begin(&clones);
        watch.round();
        watch.none_passed("with both clones");
        strangers_to_each_other(&clones);
        // The fence of a network stands around its interface for as long as it exists, so the second goes with its interface down.
        for turn in 0..2 {
            clones.gateway.sh("ip link set br2 down");
            clones.erase(2);
            clones.wait_gone(2);
            watch.round();
            watch.none_passed(&format!("with the first clone alone, turn {turn}"));
            clones.wait_serves(1);
            clones.write(2, false, "Deny");
            wait_until(seconds(20), "the fence around the second clone", || clones.rules("mangle").contains("-i br2 "));
            clones.gateway.sh("ip link set br2 up");
            clones.wait_serves(2);
            watch.round();
            watch.none_passed(&format!("with both clones again, turn {turn}"));
        }
        assert_eq!(agent.stop("KILL"), None);
        watch.round();
        watch.none_passed("without an agent");
        // Every rule that tells the clones apart becomes another one; then the first clone's mark is what was the second one's.
        let mask = ["--fwmark-mask", "0x3f000000", "--allow-mark-clash"];
        for (base, gone) in [("0x1000000", "/0xff"), ("0x2000000", "0x1000000/0x3f000000")] {
            let agent = clones.agent(&[&mask[..], &["--fwmark-base", base]].concat());
            wait_until(seconds(30), "other marks, and none of those before", || {
                let rules = clones.gateway.sh("ip rule");
                let marks = clones.rules("raw") + &rules;
                marks.contains(&format!("fwmark {base}/0x3f000000")) && !marks.contains(gone) && !rules.contains("19999:")
            });
            clones.all().for_each(|k| clones.wait_serves(k));
            watch.round();
            watch.none_passed(&format!("with marks from {base}"));
            assert_eq!(agent.stop("KILL"), None);
        }
        watch.end();
    }

    /// Where clones may leave, they leave for the outside, and still not for each other.
    fn egress_does_not_lead_into_another_clone(shape) in [legacy_node, nft_shared] {
        let clones = two(shape);
        for k in clones.all() {
            clones.write(k, true, "Allow");
        }
        clones.converge();
        strangers_to_each_other(&clones);
        for k in clones.all() {
            assert!(clones.vm(k, "a").tcp("192.168.100.1:80").is_some(), "outside is open");
            assert!(clones.vm(k, "a").tcp("[2001:db8:a::1]:80").is_some(), "outside is open over IPv6");
        }
        // Nor for the gateway itself, under whatever address.
        let _ssh = clones.gateway.serve(22);
        for address in ["10.0.0.1:22", "192.168.100.2:22", "[fd00:10::1]:22", "[2001:db8:a::2]:22"] {
            for k in clones.all() {
                assert!(clones.vm(k, "a").tcp_is_dropped(address), "{address} from clone {k}");
            }
        }
    }
}
