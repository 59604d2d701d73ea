//! What mappings claim, where they lead, and the doors at which that shows. Written down once more, without a look at the product's own rules.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::{Value, json};

/// A closed network of the scenario. Both are behind the same gateways.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    pub name: &'static str,
    pub pool: &'static [&'static str],
    /// The gateways' interface inside.
    pub interface: &'static str,
    pub inside: &'static [&'static str],
}

/// Of both families. What the scenario does to a network it does to this one.
pub const MAIN: Network = Network {
    name: "segment-b",
    pool: &["192.168.100.0/25", "fd00:100::/64"],
    interface: "eth1",
    inside: &["192.168.200.0/24", "fd00:200::/64"],
};
/// A neighbour that nobody does anything to.
pub const OTHER: Network = Network {
    name: "segment-c",
    pool: &["192.168.100.128/25"],
    interface: "eth2",
    inside: &["192.168.201.0/24"],
};
pub const NETWORKS: [Network; 2] = [MAIN, OTHER];

/// Addresses that whole mappings of the main network choose from.
pub const POOL: [&str; 5] = [
    "192.168.100.11",
    "192.168.100.12",
    "192.168.100.13",
    "192.168.100.14",
    "192.168.100.15",
];
/// The same of IPv6.
pub const POOL6: [&str; 2] = ["fd00:100::11", "fd00:100::12"];
/// The address of which ports are claimed, by [`PORTS`].
pub const SHARED: &str = "192.168.100.16";
/// Sets of ports that may be claimed there; all lead to port 80.
pub const PORTS: [&[u16]; 3] = [&[8080], &[8081], &[8080, 8081]];
/// A prefix, where it leads, and an address of it that may be claimed beside it: what is more specific counts there.
pub const PREFIX: [&str; 2] = ["192.168.100.32/30", "192.168.200.32/30"];
pub const SPECIFIC: &str = "192.168.100.33";
/// Addresses of the other network.
pub const OTHERS: [&str; 2] = ["192.168.100.131", "192.168.100.132"];

/// Every place that clients dial, claimed or not.
pub fn doors() -> Vec<SocketAddr> {
    let whole = POOL.iter().chain(&POOL6).chain(&OTHERS).chain([&SPECIFIC, &"192.168.100.34"]);
    let at = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port);
    let mut doors: Vec<SocketAddr> = whole.map(|address| at(address, 80)).collect();
    // Nobody ever claims port 80 of the shared address.
    doors.extend([80, 8080, 8081].map(|port| at(SHARED, port)));
    doors
}

/// The restored machine that has an address.
pub fn server(target: IpAddr) -> &'static str {
    match target.to_string().as_str() {
        "192.168.200.3" | "192.168.200.33" | "fd00:200::3" => "vm03",
        "192.168.200.4" | "192.168.200.34" | "fd00:200::4" => "vm04",
        "192.168.201.3" => "vm06",
        _ => "nobody",
    }
}

/// One claim as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub network: String,
    /// An address or a prefix.
    pub place: String,
    /// Ports of TCP that lead to port 80. None: everything leads there as it is.
    pub ports: Vec<u16>,
    /// As `place`.
    pub target: String,
}

impl Claim {
    /// All of an address of the main network, or a prefix.
    pub fn whole(place: &str, target: &str) -> Self {
        Self {
            network: MAIN.name.to_owned(),
            place: place.to_owned(),
            ports: Vec::new(),
            target: target.to_owned(),
        }
    }

    pub fn spec(&self) -> Value {
        let kind = if self.place.contains('/') { "prefix" } else { "address" };
        let mut spec = json!({
            "networkRef": {"name": self.network}, "virtual": {kind: self.place}, "target": {kind: self.target},
        });
        if !self.ports.is_empty() {
            let port = |port: &u16| json!({"protocol": "TCP", "port": port, "targetPort": 80});
            spec["ports"] = self.ports.iter().map(port).collect();
        }
        spec
    }

    /// A merge patch that makes this of any other claim.
    pub fn patch(&self) -> Value {
        let mut spec = self.spec();
        for side in ["virtual", "target"] {
            for kind in ["address", "prefix"] {
                spec[side].as_object_mut().unwrap().entry(kind).or_insert(Value::Null);
            }
        }
        spec.as_object_mut().unwrap().entry("ports").or_insert(Value::Null);
        json!({"spec": spec})
    }

    /// What an object claims. None: it cannot be read.
    pub fn of(spec: &Value) -> Option<Self> {
        let place = |side: &Value| side["address"].as_str().or(side["prefix"].as_str()).map(str::to_owned);
        let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
        Some(Self {
            network: spec["networkRef"]["name"].as_str()?.to_owned(),
            place: place(&spec["virtual"])?,
            ports: ports.iter().filter_map(|p| p["port"].as_u64()?.try_into().ok()).collect(),
            target: place(&spec["target"])?,
        })
    }

    pub fn net(&self) -> IpNet {
        net(&self.place)
    }

    /// Whether the addresses of `other` are this one's or some of them.
    pub fn covers(&self, address: IpAddr) -> bool {
        self.net().contains(&address)
    }

    /// Who answers at a door if this claim counts there. None: the door is not claimed by it.
    pub fn server_at(&self, door: SocketAddr) -> Option<&'static str> {
        let here = self.covers(door.ip()) && (self.ports.is_empty() || self.ports.contains(&door.port()));
        here.then(|| server(same_place(door.ip(), self.net(), net(&self.target))))
    }

    /// Whether only one of the two can stand.
    pub fn rivals(&self, other: &Self) -> bool {
        let all = self.ports.is_empty() || other.ports.is_empty();
        self.net() == other.net() && (all || self.ports.iter().any(|port| other.ports.contains(port)))
    }

    /// Why it is refused for what it says, whatever others say.
    pub fn refused(&self) -> Option<&'static str> {
        let network = NETWORKS.iter().find(|network| network.name == self.network).unwrap();
        let within = |place: &str, prefixes: &[&str]| prefixes.iter().any(|prefix| net(prefix).contains(&net(place)));
        if !within(&self.place, network.pool) {
            Some("OutsidePool")
        } else if !within(&self.target, network.inside) {
            Some("TargetOutside")
        } else {
            None
        }
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()))
}

/// The address at the place in `to` that `address` has in `from`.
fn same_place(address: IpAddr, from: IpNet, to: IpNet) -> IpAddr {
    match (address, from.network(), to.network()) {
        (IpAddr::V4(address), IpAddr::V4(from), IpAddr::V4(to)) => {
            IpAddr::V4((u32::from(to) + (u32::from(address) - u32::from(from))).into())
        }
        (IpAddr::V6(address), IpAddr::V6(from), IpAddr::V6(to)) => {
            IpAddr::V6((u128::from(to) + (u128::from(address) - u128::from(from))).into())
        }
        _ => to.network(),
    }
}
