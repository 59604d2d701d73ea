//! A second closed network on the seed's gateway.

use crate::lab::{self, Manifests, Ns, Probers, Seed};

pub(crate) const SECOND_VIP: &str = "192.168.100.130";
const MAC: &str = "02:00:00:00:02:02";

/// segment-c behind eth2, with vm05 in it.
pub(crate) struct Second {
    pub(crate) switch: Ns,
    pub(crate) vm05: Ns,
}

impl Second {
    pub(crate) fn new(seed: &Seed) -> Self {
        let vm05 = Ns::new("vm05");
        let ports = [(&seed.vm02, "eth2", "192.168.201.2/24"), (&vm05, "eth0", "192.168.201.5/24")];
        let switch = lab::bridge("segment-c", &ports);
        seed.vm02.sh(&format!("ip link set eth2 address {MAC}"));
        vm05.sh("ip neigh flush all && ip route add default via 192.168.201.2");
        let _server = vm05.serve(80);
        Self { switch, vm05 }
    }

    /// Probers in both networks and outside. `virtual_addresses` are those of the first one.
    pub(crate) fn probers(&self, seed: &Seed, virtual_addresses: &[&str]) -> Probers {
        let all = [virtual_addresses, &[SECOND_VIP]].concat();
        let mut probers = Probers::place(seed, &all);
        probers.second(&self.switch, MAC, &["192.168.201.66", "192.168.201.5"], &all);
        probers.prove(seed);
        probers
    }

    /// Writes the network and a mapping for vm05.
    pub(crate) fn declare(manifests: &Manifests) {
        let network = lab::network("segment-c", "192.168.100.128/26", "192.168.201.0/24", "");
        manifests.write("second.yaml", &network.replace("eth1", "eth2"));
        manifests.write("vm05.yaml", &lab::mapping("vm05", "segment-c", SECOND_VIP, "192.168.201.5", ""));
    }

    /// Takes both away.
    pub(crate) fn withdraw(manifests: &Manifests) {
        for file in ["second.yaml", "vm05.yaml"] {
            manifests.remove(file);
        }
    }
}
