//! Somebody in each of two clones who tries to get out, or into the other one, and witnesses of every way.

use super::clones::{GATEWAY_MAC, mac};
use super::frames::{hopeless, packets};
use super::prober::{Prober, Witness, fall_silent, frames6, marked};
use super::{Clones, Ns, seconds, wait_until};

/// Types of service of the probers in the clones 1 and 2.
const MARKS: [u8; 2] = [0xb4, 0x34];

/// The probers, and who watches what leaves the gateway outside and by each bridge.
#[derive(Debug)]
pub struct Escapes {
    probers: Vec<Prober>,
    witnesses: [Witness; 3],
}

impl Escapes {
    /// Places them, and proves on the gateway as it is without a fence that each witness sees. The clones of `dual` are probed by IPv6 as well: since the gateway's
    /// administrator has it forwarded, that gets out until a fence stands. So nothing counts before [`Escapes::begin`].
    pub fn start(clones: &Clones, dual: &[usize]) -> Self {
        let inside = |k: usize| {
            let filter = format!("ether src {} and {}", mac(k), marked(&[MARKS[2 - k]]));
            Witness::on(&clones.gateway, &format!("br{k}"), &filter)
        };
        let outside = format!("ether src {GATEWAY_MAC} and {}", marked(&MARKS));
        let escapes = Self {
            witnesses: [Witness::on(&clones.segment, "br0", &outside), inside(1), inside(2)],
            probers: [1, 2].map(|k| prober(clones, k, dual.contains(&k))).into(),
        };
        escapes.prove(clones, dual);
        escapes
    }

    fn prove(&self, clones: &Clones, dual: &[usize]) {
        let gateway = &clones.gateway;
        // A neighbour in each clone who has the address that the other one probes, so that there is a way from clone to clone.
        let ways = [1, 2].map(|k| [(clones.vip(k, "a"), true), (clones.vip6(k, "a"), dual.contains(&(3 - k)))]);
        let each = || {
            (1..)
                .zip(&ways)
                .flat_map(|(k, ways)| ways.iter().map(move |(address, _)| (k, address)))
        };
        for (k, address) in each() {
            // What is forwarded already makes a neighbour of its own as soon as there is a way.
            gateway.sh(&format!(
                "ip neigh replace {address} lladdr 02:00:00:00:07:07 dev br{k} && ip route add {address} dev br{k}"
            ));
        }
        gateway.set("ipv4/ip_forward", "1");
        wait_until(seconds(20), "the witnesses to see what an open router lets through", || {
            let seen = self.witnesses.each_ref().map(|witness| witness.seen().join("\n"));
            let six = if dual.is_empty() { "" } else { "> 2001:db8:a::1" };
            let out = ["> 192.168.100.1", "> 198.51.100.7", "UDP", "Flags [S]", "exceeded", six];
            let across = |seen: &str, ways: &[(String, bool); 2]| {
                let probed = ways.iter().filter(|(_, probed)| *probed);
                probed.into_iter().all(|(address, _)| seen.contains(&format!("> {address}")))
            };
            out.iter().all(|word| seen[0].contains(word)) && across(&seen[1], &ways[0]) && across(&seen[2], &ways[1])
        });
        gateway.set("ipv4/ip_forward", "0");
        for (k, address) in each() {
            gateway.sh(&format!("ip route del {address} dev br{k} && ip neigh del {address} dev br{k}"));
        }
        gateway.forget_flows();
    }

    /// What gets through from now on counts.
    pub fn begin(&mut self, gateway: &Ns) {
        fall_silent(gateway, &self.witnesses.each_ref());
        self.witnesses.iter_mut().for_each(Witness::forget);
    }

    /// Waits until all have tried everything once more.
    pub fn round(&self) {
        self.probers.iter().for_each(Prober::full_round);
    }

    /// Fails if anything ever got through.
    pub fn none_passed(&self, when: &str) {
        for (witness, way) in self
            .witnesses
            .iter()
            .zip(["outside", "into the first clone", "into the second clone"])
        {
            witness.saw_nothing(&format!("{way}, {when}"));
        }
    }

    /// Fails if anything ever got through, or if the witnesses cannot know. Returns how often everything was tried.
    pub fn end(mut self) -> u64 {
        self.round();
        self.witnesses.iter_mut().for_each(Witness::end);
        self.none_passed("by the end");
        self.probers.iter().map(Prober::rounds).min().unwrap_or_default()
    }
}

fn prober(clones: &Clones, k: usize, dual: bool) -> Prober {
    let (other, mark) = (3 - k, MARKS[k - 1]);
    let vips = [clones.vip(other, "a"), clones.vip(other, "b"), clones.address(other, 9)];
    let mut to = vec!["192.168.100.1", "192.168.100.254", "192.168.100.77", "198.51.100.7"];
    to.extend(vips.iter().map(String::as_str));
    let borrowed = ["192.168.100.1", "192.168.100.88"];
    let mut all = [
        packets(mark, &["10.0.0.66", "10.0.0.3", borrowed[0], borrowed[1]], &to),
        hopeless(mark, &borrowed, &to),
    ]
    .concat();
    if dual {
        let vips = [clones.vip6(other, "a"), clones.vip6(other, "b")];
        let to = ["2001:db8:a::1", "2001:db8:a::fe", "2001:db8:a::77", &vips[0], &vips[1]];
        let sources = ["fd00:10::66", "fd00:10::3", "fe80::66", "2001:db8:a::1", "2001:db8:a::88"];
        all.extend(frames6(mark).packets(&sources, &to));
    }
    Prober::on(&clones.join(k, &format!("probe{k}")), &mac(k), &all)
}
