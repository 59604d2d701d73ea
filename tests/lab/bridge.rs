//! Bridges of a host itself, as hypervisors have them, and hosts plugged into them.

use super::net::veth;
use super::{Ns, seconds, wait_until};

/// A bridge of `host`, up, without ports. It forwards at once.
pub fn add(host: &Ns, name: &str) {
    host.sh(&format!("ip link add {name} type bridge forward_delay 0 && ip link set {name} up"));
}

/// Connects `interface` of `ns` to a bridge of `host` by its new port `port`, and waits until it forwards.
pub fn attach(host: &Ns, bridge: &str, port: &str, ns: &Ns, interface: &str) {
    veth(host, port, ns, interface);
    host.sh(&format!("ip link set {port} master {bridge}"));
    wait_until(seconds(10), "the port to forward", || {
        host.sh(&format!("bridge -d link show dev {port}")).contains("forwarding")
    });
}

/// Lets what is bridged on `host` pass its iptables and ip6tables, or not (`net.bridge.bridge-nf-call-*`). Kubernetes nodes have it on.
pub fn netfilter(host: &Ns, on: bool) {
    for tool in ["iptables", "ip6tables"] {
        host.set(&format!("bridge/bridge-nf-call-{tool}"), if on { "1" } else { "0" });
    }
}

/// Lets a port send back what came in by it, which a machine behind it needs to reach itself by its virtual address.
pub fn hairpin(host: &Ns, port: &str) {
    host.sh(&format!("bridge link set dev {port} hairpin on"));
}
