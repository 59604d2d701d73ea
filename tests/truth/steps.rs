//! What people and hosts do in the scenario, at random.

use crate::cluster::Cluster;
use crate::desk::Desk;
use crate::lab::{self, seconds, wait_until};
use crate::model::{Claim, NETWORK, POOL};

/// Names that mappings may have.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// Random numbers from a seed (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }

    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn claim(&mut self) -> Claim {
        Claim {
            address: (*self.one(&POOL)).to_owned(),
            target: (*self.one(&["192.168.200.3", "192.168.200.4"])).to_owned(),
        }
    }

    /// A claim that is refused, or one that is not.
    fn any_claim(&mut self) -> Claim {
        let mut claim = self.claim();
        match self.below(6) {
            0 => "192.168.99.11".clone_into(&mut claim.address),
            1 => "10.0.0.3".clone_into(&mut claim.target),
            _ => {}
        }
        claim
    }

    /// Puts `all` in an order.
    pub fn shuffled<T>(&mut self, mut all: Vec<T>) -> Vec<T> {
        for n in (1..all.len()).rev() {
            all.swap(n, self.below(n + 1));
        }
        all
    }
}

/// Does something to one mapping and says what. Does not wait.
pub fn touch(cluster: &mut Cluster, dice: &mut Dice) -> String {
    let name = *dice.one(&NAMES);
    if !cluster.model.claims.contains_key(name) {
        let claim = dice.any_claim();
        let said = format!("{name} is created, {} to {}", claim.address, claim.target);
        cluster.create(name, claim);
        return said;
    }
    if dice.below(4) == 0 {
        cluster.delete(name);
        return format!("{name} is deleted");
    }
    let claim = dice.any_claim();
    let said = format!("{name} is edited, {} to {}", claim.address, claim.target);
    cluster.edit(name, claim);
    said
}

/// One step, settled.
pub fn step(cluster: &mut Cluster, dice: &mut Dice) {
    match dice.below(20) {
        0 => network_goes(cluster, dice),
        1 => link(cluster, ["eth0", "eth1"][dice.below(2)]),
        2 => tampered(cluster, dice),
        3 => machine_goes(cluster, ["vm03", "vm04"][dice.below(2)]),
        4..=7 => {
            let many: Vec<String> = (0..4).map(|_| touch(cluster, dice)).collect();
            settle(cluster, &many.join("; "));
        }
        _ => {
            let said = touch(cluster, dice);
            settle(cluster, &said);
        }
    }
}

pub fn settle(cluster: &mut Cluster, what: &str) {
    cluster.log(what);
    cluster.settle(what);
}

/// The network is deleted under its mappings, and comes back.
fn network_goes(cluster: &mut Cluster, dice: &mut Dice) {
    cluster.desk.delete(&Desk::network_path(NETWORK));
    cluster.model.network = false;
    let said = format!("the network is deleted; {}", touch(cluster, dice));
    settle(cluster, &said);
    cluster.create_network();
    settle(cluster, "the network is created anew");
}

/// A cable of the active gateway is pulled and plugged.
fn link(cluster: &mut Cluster, interface: &str) {
    let ns = cluster.gateways[cluster.active_gateway()].ns.clone();
    ns.sh(&format!("ip link set {interface} down"));
    cluster.model.trouble = Some("LinkDown");
    settle(cluster, &format!("{interface} of {} goes down", ns.name()));
    ns.sh(&format!("ip link set {interface} up"));
    cluster.model.trouble = None;
    settle(cluster, &format!("{interface} of {} comes up", ns.name()));
}

/// Somebody else changes the active gateway's kernel.
fn tampered(cluster: &mut Cluster, dice: &mut Dice) {
    let n = cluster.active_gateway();
    let tool = if n == 0 { "iptables-nft" } else { "iptables-legacy" };
    let line = match dice.below(3) {
        0 => format!("{tool} -w -t nat -F SNET-DNAT"),
        1 => format!("{tool} -w -t mangle -F SNET-FWD"),
        _ => "for a in $(ip neigh show proxy | cut -d' ' -f1); do ip neigh del proxy $a dev eth0; done".to_owned(),
    };
    let ns = cluster.gateways[n].ns.clone();
    ns.try_sh(&line);
    settle(cluster, &format!("{line} on {}", ns.name()));
}

/// A restored machine is switched off and on. No gateway can know.
fn machine_goes(cluster: &mut Cluster, name: &str) {
    let vm = lab::Ns::existing(name);
    cluster.watchman.excuse.lock().unwrap().gone.insert(name.to_owned());
    vm.sh("ip link set eth0 down");
    settle(cluster, &format!("{name} is switched off"));
    vm.sh("ip link set eth0 up && ip route replace default via 192.168.200.254");
    cluster.log(&format!("{name} is switched on"));
    let router = cluster.seed.gw_b.clone();
    let gateway = cluster.gateways[cluster.active_gateway()].ns.clone();
    wait_until(seconds(20), "the machine to be back", || {
        gateway
            .try_sh(&format!(
                "ping -c1 -W1 {}",
                if name == "vm03" { "192.168.200.3" } else { "192.168.200.4" }
            ))
            .code
            == 0
            && router.try_sh("true").code == 0
    });
    cluster.watchman.excuse.lock().unwrap().gone.clear();
    settle(cluster, &format!("{name} is back"));
}
