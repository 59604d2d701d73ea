//! Closed networks that are copies of each other: the same prefixes, machines and gateway address, once on every bridge of one gateway.

#![allow(clippy::doc_markdown, clippy::unused_self, clippy::zombie_processes)] // names of programs; steps that read as sentences; victims that are killed and reaped by their namespace

use std::fmt::Write as _;
use std::fs;

use super::{Agent, Backend, Manifests, Ns, Ran, Server, bridge, net, seconds, stagenet, wait_until};

/// What the inside interfaces of the gateway are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// Bridges, with the machines at their ports.
    Bridges,
    /// Cables to a switch elsewhere.
    Cables,
}

/// Where the clones' virtual addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// A prefix for each, to which clients have a route on the segment.
    Own,
    /// The outside segment itself, for all of them.
    Shared,
}

/// How a lab is built.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is a setting of the gateway, on or off
pub struct Shape {
    pub backend: Backend,
    pub inside: Inside,
    pub pool: Pool,
    /// What is bridged passes iptables.
    pub bridge_netfilter: bool,
    /// The administrator gave the gateway the same address and prefix in every clone.
    pub connected: bool,
    /// The gateway has a default route outside.
    pub default_route: bool,
    /// `rp_filter` is 1 everywhere.
    pub strict: bool,
    /// `fwmark_reflect` is 1.
    pub reflect: bool,
}

impl Shape {
    /// A node of a cluster: bridges that pass netfilter, a default route, no addresses inside.
    pub fn node(backend: Backend) -> Self {
        Self {
            backend,
            inside: Inside::Bridges,
            pool: Pool::Own,
            bridge_netfilter: true,
            connected: false,
            default_route: true,
            strict: false,
            reflect: true,
        }
    }

    /// As unlike [`Shape::node`] as can be, bridges apart.
    pub fn router(backend: Backend) -> Self {
        Self {
            backend,
            inside: Inside::Bridges,
            pool: Pool::Shared,
            bridge_netfilter: false,
            connected: true,
            default_route: false,
            strict: true,
            reflect: false,
        }
    }
}

/// The gateway, a client and a router outside, and some clones with two machines each.
#[derive(Debug)]
pub struct Clones {
    pub shape: Shape,
    /// 192.168.100.1, 2001:db8:a::1.
    pub client: Ns,
    /// 192.168.100.254: production, and the way to the rest of the world.
    pub production: Ns,
    /// eth0 192.168.100.2, 2001:db8:a::2, and br1, br2, … inside.
    pub gateway: Ns,
    /// The switch outside.
    pub segment: Ns,
    pub manifests: Manifests,
    count: usize,
    servers: Vec<Server>,
}

/// The machines of each clone.
pub const MACHINES: [&str; 2] = ["a", "b"];
/// The hardware address of the gateway outside.
pub const GATEWAY_MAC: &str = "02:00:00:00:00:02";

/// The hardware address of the gateway inside clone `k`.
pub fn mac(k: usize) -> String {
    format!("02:00:00:00:01:{k:02x}")
}

impl Clones {
    /// The clones 1 to `count`, the gateway as it was before anybody thought of stagenet.
    pub fn new(shape: Shape, count: usize) -> Self {
        let all: Vec<_> = (1..=count).collect();
        Self::with(shape, count, &all)
    }

    /// The same where only some of the clones have machines; the others have but their interface.
    pub fn with(shape: Shape, count: usize, inhabited: &[usize]) -> Self {
        let [client, production, gateway] = ["client", "production", "gateway"].map(Ns::new);
        for family in ["ipv4", "ipv6"] {
            gateway.set(&format!("{family}/fwmark_reflect"), if shape.reflect { "1" } else { "0" });
        }
        for interface in ["all", "default"] {
            gateway.set(&format!("ipv4/conf/{interface}/rp_filter"), if shape.strict { "1" } else { "0" });
            gateway.set(&format!("ipv6/conf/{interface}/forwarding"), "1");
            gateway.set(&format!("ipv6/conf/{interface}/proxy_ndp"), "1");
        }
        let segment = net::bridge(
            "segment",
            &[
                (&client, "eth0", "192.168.100.1/24"),
                (&gateway, "eth0", "192.168.100.2/24"),
                (&production, "eth0", "192.168.100.254/24"),
            ],
        );
        gateway.sh(&format!("ip link set eth0 address {GATEWAY_MAC}"));
        for (ns, address) in [(&client, "1"), (&gateway, "2"), (&production, "fe")] {
            ns.sh(&format!("ip addr add 2001:db8:a::{address}/64 dev eth0 nodad"));
        }
        client.sh("ip route add 172.16.0.0/12 dev eth0 && ip route add fd00:172::/32 dev eth0");
        client.sh("ip route add default via 192.168.100.254");
        production.sh("ip addr add 198.51.100.7/32 dev lo");
        if shape.default_route {
            gateway.sh("ip route add default via 192.168.100.254 && ip route add default via 2001:db8:a::fe");
        }
        let mut servers = vec![client.serve(80), production.serve(80)];
        let mut batch = String::new();
        for k in (1..=count).filter(|_| shape.inside == Inside::Bridges) {
            let _ = writeln!(
                batch,
                "link add br{k} address {} type bridge forward_delay 0\nlink set br{k} up",
                mac(k)
            );
            if !inhabited.contains(&k) {
                // A port, so that the bridge has a carrier.
                let _ = writeln!(
                    batch,
                    "link add d{k} type veth peer name e{k}\nlink set d{k} master br{k} up\nlink set e{k} up"
                );
            }
        }
        fs::write("/run/lab/batch", batch).unwrap();
        gateway.sh("ip -batch /run/lab/batch");
        bridge::netfilter(&gateway, shape.bridge_netfilter);
        let mut clones = Self {
            shape,
            client,
            production,
            gateway,
            segment,
            manifests: Manifests::empty("clones"),
            count,
            servers: Vec::new(),
        };
        for k in inhabited {
            clones.inhabit(*k, &mut servers);
        }
        for k in (1..=count).filter(|_| shape.connected) {
            clones.gateway.sh(&format!(
                "ip addr add 10.0.0.250/24 dev br{k} && ip addr add fd00:10::fa/64 dev br{k} nodad"
            ));
        }
        clones.servers = servers;
        clones
    }

    fn inhabit(&self, k: usize, servers: &mut Vec<Server>) {
        let switch = (self.shape.inside == Inside::Cables).then(|| {
            let switch = net::bridge(&format!("switch{k}"), &[(&self.gateway, &format!("br{k}"), "")]);
            self.gateway.sh(&format!("ip link set br{k} address {}", mac(k)));
            switch
        });
        for (n, name) in MACHINES.iter().enumerate() {
            let vm = Ns::new(&format!("c{k}{name}"));
            vm.set("ipv6/conf/default/accept_dad", "0");
            let port = self.port(k, name);
            match &switch {
                Some(switch) => net::plug(switch, &port, &vm, "eth0"),
                None => bridge::attach(&self.gateway, &format!("br{k}"), &port, &vm, "eth0"),
            }
            let host = n + 3;
            vm.sh(&format!(
                "ip addr add 10.0.0.{host}/24 dev eth0 && ip route add default via 10.0.0.1 && \
                 ip addr add fd00:10::{host}/64 dev eth0 nodad && ip -6 route add default via fd00:10::1"
            ));
            servers.push(vm.serve(80));
        }
    }

    /// A further host in clone `k`, without addresses: its eth0 is at the port of its name, with a `p` before it.
    pub fn join(&self, k: usize, name: &str) -> Ns {
        let ns = Ns::new(name);
        ns.set("ipv6/conf/default/disable_ipv6", "1");
        match self.shape.inside {
            Inside::Bridges => bridge::attach(&self.gateway, &format!("br{k}"), &format!("p{name}"), &ns, "eth0"),
            Inside::Cables => net::plug(&Ns::existing(&format!("switch{k}")), &format!("p{name}"), &ns, "eth0"),
        }
        ns
    }

    /// The port that leads to a machine, on the gateway or on the clone's switch.
    pub fn port(&self, k: usize, machine: &str) -> String {
        format!("p{k}{machine}")
    }

    /// Machine `a` (10.0.0.3) or `b` (10.0.0.4) of a clone.
    pub fn vm(&self, k: usize, machine: &str) -> Ns {
        Ns::existing(&format!("c{k}{machine}"))
    }

    /// All clones.
    pub fn all(&self) -> std::ops::RangeInclusive<usize> {
        1..=self.count
    }

    /// The virtual address with a host number: 3 and 4 are those of the machines, 1 is the clone's own.
    pub fn address(&self, k: usize, host: usize) -> String {
        match self.shape.pool {
            Pool::Own => format!("172.16.{k}.{host}"),
            Pool::Shared => format!("192.168.100.{}", k * 10 + host),
        }
    }

    /// The same for IPv6.
    pub fn address6(&self, k: usize, host: usize) -> String {
        match self.shape.pool {
            Pool::Own => format!("fd00:172:0:{k:x}::{host}"),
            Pool::Shared => format!("2001:db8:a::{k:x}:{host}"),
        }
    }

    /// The virtual address of a machine.
    pub fn vip(&self, k: usize, machine: &str) -> String {
        self.address(k, if machine == "a" { 3 } else { 4 })
    }

    /// The same for IPv6.
    pub fn vip6(&self, k: usize, machine: &str) -> String {
        self.address6(k, if machine == "a" { 3 } else { 4 })
    }

    /// Writes the network of clone `k`, with both families if `dual`, and with more lines (YAML, not indented) below `spec`.
    pub fn network(&self, k: usize, dual: bool, more: &str) {
        let (pool, pool6) = match self.shape.pool {
            Pool::Own => (format!("172.16.{k}.0/24"), format!("fd00:172:0:{k:x}::/64")),
            Pool::Shared => ("192.168.100.0/24".to_owned(), "2001:db8:a::/64".to_owned()),
        };
        let list = |four: &str, six: &str| {
            if dual {
                format!("[{four}, \"{six}\"]")
            } else {
                format!("[{four}]")
            }
        };
        let own = format!("    sourceAddress: {}\n", self.address(k, 1));
        let own6 = format!("    sourceAddressIPv6: \"{}\"\n", self.address6(k, 1));
        let more: String = more.lines().map(|l| format!("  {l}\n")).collect();
        self.manifests.write(
            &format!("clone-{k:03}.yaml"),
            &format!(
                "apiVersion: stagenet.dev/v1alpha1\nkind: StagingNetwork\nmetadata:\n  name: clone-{k:03}\nspec:\n  gateway:\n    nodeSelector: {{}}\n  \
                 outside:\n    interface: eth0\n    addresses: {}\n{own}{}  inside:\n    interface: br{k}\n    addresses: {}\n    gatewayAddresses: {}\n{more}",
                list(&pool, &pool6),
                if dual { own6.as_str() } else { "" },
                list("10.0.0.0/24", "fd00:10::/64"),
                list("10.0.0.1", "fd00:10::1"),
            ),
        );
    }

    /// Writes a mapping of clone `k`. `more` as for [`Clones::network`].
    pub fn mapping(&self, k: usize, name: &str, from: &str, to: &str, more: &str) {
        let name = format!("clone-{k:03}-{name}");
        let text = super::mapping(&name, &format!("clone-{k:03}"), from, to, more);
        self.manifests.write(&format!("{name}.yaml"), &text);
    }

    /// Writes clone `k` as most tests want it: machine `a` with all protocols, `b` with TCP port 80 and UDP port 80, so that `a` leaves under its virtual
    /// address and `b` under the clone's, and egress as said.
    pub fn write(&self, k: usize, dual: bool, egress: &str) {
        self.network(k, dual, &format!("egress: {{default: {egress}}}"));
        let ports = "ports: [{protocol: TCP, port: 80}, {protocol: UDP, port: 80}]";
        for (machine, host, more) in [("a", 3, ""), ("b", 4, ports)] {
            self.mapping(k, machine, &self.vip(k, machine), &format!("10.0.0.{host}"), more);
            if dual {
                let (from, to) = (format!("\"{}\"", self.vip6(k, machine)), format!("\"fd00:10::{host}\""));
                self.mapping(k, &format!("{machine}6"), &from, &to, more);
            }
        }
    }

    /// Takes clone `k` and its mappings out of the folder, mappings last: so they are without a network for a moment.
    pub fn erase(&self, k: usize) {
        let stem = format!("clone-{k:03}");
        self.manifests.remove(&format!("{stem}.yaml"));
        for entry in fs::read_dir(self.manifests.path()).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.starts_with(&stem) {
                self.manifests.remove(&name);
            }
        }
    }

    /// Starts the agent on the gateway, with `more` arguments.
    pub fn agent(&self, more: &[&str]) -> Agent {
        let mut args = vec![
            "--manifests",
            self.manifests.path(),
            "--node",
            "gateway",
            "--backend",
            self.shape.backend.name(),
        ];
        args.extend(more);
        Agent::start(&self.gateway, &args)
    }

    /// Runs the agent with `--once`.
    pub fn once(&self) -> Ran {
        let backend = self.shape.backend.name();
        let args = [
            "agent",
            "--manifests",
            self.manifests.path(),
            "--node",
            "gateway",
            "--backend",
            backend,
            "--once",
        ];
        stagenet(&self.gateway, &args)
    }

    /// Runs the agent with `--once` and expects that all is ready.
    pub fn converge(&self) {
        let ran = self.once();
        assert_eq!(ran.code, 0, "agent --once with {:?}: {}", self.shape, ran.said());
    }

    /// Runs `stagenet cleanup` on the gateway.
    pub fn cleanup(&self) {
        let ran = stagenet(&self.gateway, &["cleanup"]);
        assert_eq!(ran.code, 0, "cleanup: {}", ran.said());
    }

    /// Waits until both machines of clone `k` are reached from outside.
    pub fn wait_serves(&self, k: usize) {
        for machine in MACHINES {
            let (to, who) = (format!("{}:80", self.vip(k, machine)), format!("c{k}{machine}"));
            wait_until(seconds(30), &format!("{to} to lead to {who}"), || {
                self.client.tcp(&to).is_some_and(|c| c.server == who)
            });
        }
    }

    /// Waits until no rule names clone `k` any more.
    pub fn wait_gone(&self, k: usize) {
        wait_until(seconds(30), &format!("clone {k} to go"), || {
            let rules = ["raw", "mangle", "nat"].map(|table| self.rules(table)).concat();
            !rules.contains(&format!("clone-{k:03}"))
        });
    }

    /// The gateway's rules of the families' tables named.
    pub fn rules(&self, table: &str) -> String {
        let b = self.shape.backend.name();
        let rules = self
            .gateway
            .sh(&format!("iptables-{b}-save -t {table}; ip6tables-{b}-save -t {table}"));
        rules.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect()
    }

    /// Runs the gateway's own iptables tool.
    pub fn iptables(&self, args: &str) -> String {
        self.gateway.sh(&format!("{} -w {args}", self.shape.backend.iptables()))
    }

    /// Entries of the connection table in a zone, a line each.
    pub fn zone(&self, zone: u64) -> Vec<String> {
        let listed = self.gateway.sh(&format!("conntrack -L -w {zone} 2>/dev/null"));
        listed.lines().map(str::to_owned).collect()
    }
}
