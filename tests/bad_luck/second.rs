//! A second closed network on the seed's gateway.

use crate::lab::{self, Manifests, Ns, Probers, Seed};

pub(crate) const SECOND_VIP: &str = "192.168.100.130";
const MAC: &str = "02:00:00:00:02:02";

/// Which prefix the second network has inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inside {
    /// One of its own.
    Own,
    /// That of the first one: it is a clone.
    Same,
}

impl Inside {
    /// vm05's address.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::Own => "192.168.201.5",
            Self::Same => "192.168.200.5",
        }
    }
}

/// segment-c, or its stand-in segment-d, behind eth2, with vm05 in it, which has an address of either prefix.
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
        vm05.sh("ip neigh flush all && ip addr add 192.168.200.5/24 dev eth0 && ip route add default via 192.168.201.2");
        let _server = vm05.serve(80);
        Self { switch, vm05 }
    }

    /// Probers in both networks and outside. `virtual_addresses` are those of the first one.
    pub(crate) fn probers(&self, seed: &Seed, virtual_addresses: &[&str]) -> Probers {
        let all = [virtual_addresses, &[SECOND_VIP]].concat();
        let mut probers = Probers::place(seed, &all);
        let all: Vec<_> = all.into_iter().filter(|address| !address.contains(':')).collect();
        probers.second(&self.switch, MAC, &["192.168.201.66", "192.168.201.5", "192.168.200.66"], &all);
        probers.prove(seed);
        probers
    }

    /// Writes the network and a mapping for vm05.
    pub(crate) fn declare(manifests: &Manifests, inside: Inside) {
        // Of another name, since a network that once was a clone stays isolated.
        let (name, prefix, gateway) = match inside {
            Inside::Own => ("segment-c", "192.168.201.0/24", ""),
            Inside::Same => ("segment-d", "192.168.200.0/24", "\n    gatewayAddresses: [192.168.200.250]"),
        };
        let network = lab::network(name, "192.168.100.128/26", prefix, "");
        manifests.write("second.yaml", &network.replace("eth1", &format!("eth2{gateway}")));
        manifests.write("vm05.yaml", &lab::mapping("vm05", name, SECOND_VIP, inside.target(), ""));
    }

    /// Takes both away.
    pub(crate) fn withdraw(manifests: &Manifests) {
        for file in ["second.yaml", "vm05.yaml"] {
            drop(std::fs::remove_file(format!("{}/{file}", manifests.path())));
        }
    }
}
