//! The scenario's hosts: the seed's, of both families, with a second gateway and a second closed network behind both.

use crate::claims::{MAIN, OTHER};
use crate::lab::{self, Ns, Seed};

/// The gateway nodes.
pub const GATEWAYS: [&str; 2] = ["vm02", "vm05"];

/// Adds to the seed's hosts, and returns the second gateway, `vm05`.
pub fn furnish(seed: &Seed) -> Ns {
    let gateways = [seed.vm02.clone(), Ns::new("vm05")];
    let [first, second] = &gateways;
    lab::bridge::attach(&seed.segment_a, "br0", "second", second, "eth0");
    lab::bridge::attach(&seed.segment_b, "br0", "second", second, MAIN.interface);
    let machine = Ns::new("vm06");
    lab::bridge(
        OTHER.name,
        &[
            (first, OTHER.interface, "192.168.201.2/24"),
            (second, OTHER.interface, "192.168.201.5/24"),
            (&machine, "eth0", "192.168.201.3/24"),
        ],
    );
    machine.serve(80);
    second.sh("ip addr add 192.168.100.5/24 dev eth0; ip addr add 192.168.200.5/24 dev eth1");
    // Addresses are there at once, also after an interface was down.
    for ns in [&seed.vm01, first, second, &seed.vm03, &seed.vm04] {
        for interface in ["all", "default", "eth0"] {
            ns.set(&format!("ipv6/conf/{interface}/accept_dad"), "0");
            ns.set(&format!("ipv6/conf/{interface}/keep_addr_on_down"), "1");
        }
    }
    seed.dual_stack();
    second.sh("ip addr add fd00:100::5/64 dev eth0 nodad; ip addr add fd00:200::5/64 dev eth1 nodad");
    for gateway in &gateways {
        for interface in ["all", "default", "eth0", "eth1"] {
            gateway.set(&format!("ipv6/conf/{interface}/proxy_ndp"), "1");
            gateway.set(&format!("ipv6/conf/{interface}/keep_addr_on_down"), "1");
        }
        gateway.set("ipv6/conf/all/forwarding", "1");
    }
    // Further addresses of the machines, for a mapping of a prefix.
    seed.vm03.sh("ip addr add 192.168.200.33/24 dev eth0");
    seed.vm04.sh("ip addr add 192.168.200.34/24 dev eth0");
    // A client that asks again soon whose an address is, so that its patience is not taken for the product's.
    for (family, reachable) in [("ipv4", "200"), ("ipv6", "500")] {
        let neighbours = format!("/proc/sys/net/{family}/neigh/eth0");
        seed.vm01.sh(&format!(
            "echo 100 > {neighbours}/retrans_time_ms; echo {reachable} > {neighbours}/base_reachable_time_ms"
        ));
    }
    let [_, second] = gateways;
    second
}
