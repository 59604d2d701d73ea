//! A gateway between a client and a server, three namespaces of its own for each set of rules that is compared.
//!
//! ```text
//! client c0 ── out0 gateway in0..inN ── s0 server      the closed networks; only the last one has somebody in it
//! client c1 ── by0  gateway by1      ── s1 server      bystanders: two interfaces that belong to no network
//! ```

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};

use super::flow::Ends;
use crate::lab::{BINARY, Backend, Ns, veth};

/// A link layer address that nobody has: who receives such a packet drops it before looking into it.
const NOBODY: &str = "02:00:00:00:00:99";
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 64, 255, 2);
const CLIENT_PORT: u16 = 40_000;
const SERVER_PORT: u16 = 80;

/// What the gateway of a world does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Routing alone: no rules, no connection table.
    Plain,
    /// Routing with the connection table: one rule that asks for a packet's state, where the fence would be.
    Tracked,
    /// Served by stagenet.
    Served(Served),
}

/// What stagenet serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    pub networks: u8,
    /// Mappings of each.
    pub mappings: usize,
    /// Whether all networks have the same inside prefix.
    pub clones: bool,
    /// Whether clients keep their own address.
    pub preserve: bool,
}

impl Served {
    /// Networks with inside prefixes of their own, clients hidden.
    pub const fn plain(networks: u8, mappings: usize) -> Self {
        Self {
            networks,
            mappings,
            clones: false,
            preserve: false,
        }
    }

    /// The second byte of the inside addresses of network `n`.
    fn inside(self, n: u8) -> u8 {
        if self.clones { 128 } else { 128 + n }
    }
}

impl Rules {
    fn served(self) -> Served {
        match self {
            Self::Plain | Self::Tracked => Served::plain(1, 0),
            Self::Served(served) => served,
        }
    }
}

/// See the module.
pub struct World {
    pub client: Ns,
    pub gateway: Ns,
    pub server: Ns,
    rules: Rules,
}

impl World {
    /// Builds the hosts and puts the rules in place.
    pub fn new(name: &str, backend: Backend, rules: Rules) -> Self {
        let host = |part: &str| Ns::new(&format!("{name}-{part}"));
        let world = Self {
            client: host("client"),
            gateway: host("gateway"),
            server: host("server"),
            rules,
        };
        world.connect();
        match rules {
            Rules::Plain => {}
            Rules::Tracked => {
                let tool = backend.iptables();
                world.gateway.sh(&format!(
                    "{tool} -w -t mangle -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j RETURN"
                ));
            }
            Rules::Served(served) => world.serve(name, backend, served),
        }
        if rules != Rules::Plain {
            // Checksums of packets made by hand are not there; a network card would have verified them.
            world.gateway.set("netfilter/nf_conntrack_checksum", "0");
        }
        world
    }

    /// The number of the network that is used.
    fn used(&self) -> u8 {
        self.rules.served().networks - 1
    }

    /// The second byte of the inside addresses of the network that is used.
    fn inside(&self) -> u8 {
        self.rules.served().inside(self.used())
    }

    fn connect(&self) {
        let (client, gateway, server) = (&self.client, &self.gateway, &self.server);
        for host in [client, gateway, server] {
            host.set("ipv6/conf/all/disable_ipv6", "1");
            host.set("ipv6/conf/default/disable_ipv6", "1");
        }
        gateway.set("ipv4/ip_forward", "1");
        let (used, inside) = (self.used(), self.inside());
        let clones = self.rules.served().clones;
        veth(client, "c0", gateway, "out0");
        veth(client, "c1", gateway, "by0");
        veth(gateway, "by1", server, "s1");
        for n in 0..used {
            gateway.sh(&format!(
                "ip link add in{n} type veth peer name peer{n} && ip link set in{n} up && ip link set peer{n} up"
            ));
            if !clones {
                gateway.sh(&format!("ip addr add 10.{}.255.1/16 dev in{n}", 128 + n));
            }
        }
        veth(gateway, &format!("in{used}"), server, "s0");
        gateway.sh("ip addr add 10.64.255.1/16 dev out0 && ip addr add 172.20.0.1/24 dev by0 && ip addr add 172.21.0.1/24 dev by1");
        // Clones get their addresses, and routes by them, from the agent.
        if !clones {
            gateway.sh(&format!(
                "ip addr add 10.{inside}.255.1/16 dev in{used} && ip route add 10.{inside}.0.0/17 via 10.{inside}.255.2"
            ));
        }
        client.sh(&format!(
            "ip addr add {CLIENT}/16 dev c0 && ip addr add 172.20.0.2/24 dev c1 && \
             ip route add 10.64.0.0/17 via 10.64.255.1 && ip route add 10.128.0.0/9 via 10.64.255.1 && ip route add 172.21.0.0/24 via 172.20.0.1"
        ));
        server.sh(&format!(
            "ip addr add 10.{inside}.255.2/16 dev s0 && ip addr add 172.21.0.2/24 dev s1 && ip route add local 10.{inside}.0.0/17 dev lo && \
             ip route add 10.64.0.0/16 via 10.{inside}.255.1 && ip route add 172.20.0.0/24 via 172.21.0.1"
        ));
    }

    /// From now on packets end at the client's and the server's doorstep, so that nobody answers.
    pub fn close_doors(&self) {
        let inside = format!("in{}", self.used());
        for (address, interface) in [
            (CLIENT, "out0"),
            (Ipv4Addr::new(10, self.inside(), 255, 2), inside.as_str()),
            (*self.flow(1).server.ip(), &inside),
            (Ipv4Addr::new(172, 20, 0, 2), "by0"),
            (Ipv4Addr::new(172, 21, 0, 2), "by1"),
        ] {
            self.gateway
                .sh(&format!("ip neigh replace {address} lladdr {NOBODY} nud permanent dev {interface}"));
        }
        for (host, own, interface, address) in [
            (&self.client, "c0", "out0", "10.64.255.1".to_owned()),
            (&self.client, "c1", "by0", "172.20.0.1".to_owned()),
            (&self.server, "s0", &inside, format!("10.{}.255.1", self.inside())),
            (&self.server, "s1", "by1", "172.21.0.1".to_owned()),
        ] {
            let line = self.gateway.sh(&format!("ip -o link show {interface}"));
            let mac = line
                .split("link/ether ")
                .nth(1)
                .and_then(|l| l.split(' ').next())
                .unwrap()
                .to_owned();
            host.sh(&format!("ip neigh replace {address} lladdr {mac} nud permanent dev {own}"));
        }
    }

    /// Runs the real agent once.
    fn serve(&self, name: &str, backend: Backend, served: Served) {
        let dir = format!("/run/lab/{name}");
        manifests(&dir, served);
        let state = format!("{dir}.state");
        let args = [
            "agent",
            "--manifests",
            &dir,
            "--node",
            "bench",
            "--backend",
            backend.name(),
            "--state-dir",
            &state,
            "--once",
        ];
        let ran = self.gateway.exec(BINARY, &args);
        let ready = ran.stdout.lines().filter(|l| l.split_whitespace().nth(4) == Some("True")).count();
        let all = usize::from(served.networks) * served.mappings;
        assert!(ready == all, "{name}: {ready} of {all} mappings are ready:\n{}", ran.stderr);
    }

    /// A flow between the client and mapping `i` of the network that is used; without rules, between the client and that VM itself.
    pub fn flow(&self, i: usize) -> Ends {
        let server = SocketAddrV4::new(target(self.inside(), i), SERVER_PORT);
        let client = SocketAddrV4::new(CLIENT, CLIENT_PORT);
        let (dialled, seen) = match self.rules {
            Rules::Served(served) => (
                SocketAddrV4::new(virtual_address(self.used(), i), SERVER_PORT),
                if served.preserve {
                    client
                } else {
                    SocketAddrV4::new(Ipv4Addr::new(10, self.inside(), 255, 1), CLIENT_PORT)
                },
            ),
            _ => (server, client),
        };
        Ends {
            client,
            dialled,
            server,
            seen,
        }
    }

    /// A flow that is none of stagenet's business.
    pub fn bystander() -> Ends {
        let client = SocketAddrV4::new(Ipv4Addr::new(172, 20, 0, 2), CLIENT_PORT);
        let server = SocketAddrV4::new(Ipv4Addr::new(172, 21, 0, 2), SERVER_PORT);
        Ends {
            client,
            dialled: server,
            server,
            seen: client,
        }
    }

    /// Packets that have left the gateway by the interfaces with somebody behind them.
    pub fn forwarded(&self) -> u64 {
        let inside = format!("in{}:", self.used());
        let page = self.gateway.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
        let sent = |line: &str| line.split_whitespace().nth(10)?.parse::<u64>().ok();
        let ours = |line: &&str| {
            ["out0:", "by0:", "by1:", &inside]
                .iter()
                .any(|name| line.trim_start().starts_with(name))
        };
        page.lines().filter(ours).filter_map(sent).sum()
    }
}

/// Writes the manifests of some networks and their mappings, 500 to a file.
pub fn manifests(dir: &str, served: Served) {
    fs::create_dir_all(dir).unwrap();
    for n in 0..served.networks {
        fs::write(format!("{dir}/network{n}.yaml"), network(n, served)).unwrap();
    }
    let all: Vec<(u8, usize)> = (0..served.networks)
        .flat_map(|n| (0..served.mappings).map(move |i| (n, i)))
        .collect();
    for (part, some) in all.chunks(500).enumerate() {
        let text: String = some.iter().map(|(n, i)| mapping(*n, served.inside(*n), *i)).collect();
        fs::write(format!("{dir}/mappings{part}.yaml"), text).unwrap();
    }
}

/// Virtual address of mapping `i` of network `n`. A lone network has up to 10 000 of them; of several, each a /24.
pub fn virtual_address(n: u8, i: usize) -> Ipv4Addr {
    let (high, low) = (u8::try_from(i / 250).unwrap(), u8::try_from(i % 250 + 1).unwrap());
    Ipv4Addr::new(10, 64, n + high, low)
}

/// The VM of mapping `i` of a network with this second byte in its inside addresses.
pub fn target(inside: u8, i: usize) -> Ipv4Addr {
    let (high, low) = (u8::try_from(i / 250).unwrap(), u8::try_from(i % 250 + 1).unwrap());
    Ipv4Addr::new(10, inside, high, low)
}

fn network(n: u8, served: Served) -> String {
    let pool = if served.networks == 1 {
        "10.64.0.0/16".to_owned()
    } else {
        format!("10.64.{n}.0/24")
    };
    let inside = served.inside(n);
    let gateway = if served.clones {
        format!(", gatewayAddresses: [10.{inside}.255.1]")
    } else {
        String::new()
    };
    let source = if served.preserve { "Preserve" } else { "Masquerade" };
    format!(
        "apiVersion: stagenet.dev/v1alpha1\nkind: StagingNetwork\nmetadata: {{name: net{n:02}}}\nspec:\n  gateway: {{nodeSelector: {{}}}}\n  \
         sourceTranslation: {source}\n  outside: {{interface: out0, addresses: [{pool}]}}\n  \
         inside: {{interface: in{n}, addresses: [10.{inside}.0.0/16]{gateway}}}\n"
    )
}

/// The manifest of mapping `i` of network `n`, to a VM with this second byte in its address.
pub fn mapping(n: u8, inside: u8, i: usize) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "---\napiVersion: stagenet.dev/v1alpha1\nkind: NatMapping\nmetadata: {{name: vm{n:02}-{i:05}, namespace: default}}\nspec:\n  \
         networkRef: {{name: net{n:02}}}\n  virtual: {{address: {}}}\n  target: {{address: {}}}\n",
        virtual_address(n, i),
        target(inside, i)
    );
    text
}
