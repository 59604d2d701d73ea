//! A second closed network with the same prefixes and the same machine as the lab's own.

use crate::lab::dual::{WEB, address, mapping, network};
use crate::lab::{Dual, Ns, bridge};

/// The virtual addresses of the machine.
pub(crate) const VIRTUAL: [&str; 2] = ["192.168.100.165", "fd00:100::1:41"];
/// The gateway's address in both networks.
pub(crate) const GATEWAY: [&str; 2] = ["192.168.200.254", "fd00:200::fe"];

/// Builds it on the lab's gateway and writes both networks, with further lines below `spec`. Returns its machine, `twin`, which has the addresses of `web`.
pub(crate) fn add(dual: &Dual, more: &str) -> Ns {
    let twin = Ns::new("twin");
    bridge::add(&dual.gateway, "eth2");
    bridge::attach(&dual.gateway, "eth2", "to-twin", &twin, "eth0");
    dual.gateway.set("ipv6/conf/eth2/proxy_ndp", "1");
    dual.gateway.set("ipv4/fwmark_reflect", "1");
    dual.gateway.set("ipv6/fwmark_reflect", "1");
    dual.gateway.sh("ip addr flush dev eth1");
    address(&twin, "eth0", WEB);
    for ns in [&dual.web, &twin] {
        ns.sh(&format!(
            "ip route replace default via {} && ip route replace default via {}",
            GATEWAY[0], GATEWAY[1]
        ));
    }
    let inside = "192.168.200.0/24, \"fd00:200::/64\"";
    let gateways = format!(", gatewayAddresses: [{}, \"{}\"]", GATEWAY[0], GATEWAY[1]);
    let sources = ", sourceAddress: 192.168.100.100, sourceAddressIPv6: \"fd00:100::fa\"";
    dual.network_of("192.168.100.64/26, \"fd00:100::/112\"", inside, sources, &gateways, more);
    let sources = ", sourceAddress: 192.168.100.250, sourceAddressIPv6: \"fd00:100::1:fa\"";
    let outside = ["eth0", "192.168.100.128/25, \"fd00:100::1:0/112\"", sources];
    let text = network("twin", outside, ["eth2", inside, &gateways], more);
    dual.manifests.write("twin.yaml", &text);
    twin
}

/// Writes the mapping of its machine in family `n`.
pub(crate) fn map(dual: &Dual, n: usize, more: &str) {
    let name = format!("map-twin{n}");
    let text = mapping("default", &name, "twin", VIRTUAL[n], WEB[n], more);
    dual.manifests.write(&format!("{name}.yaml"), &text);
}
