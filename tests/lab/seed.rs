//! The seed experiment: two segments, a gateway with a foot in each, a client, a restored VM, and each segment's own router.

use std::fs;
use std::path::{Path, PathBuf};

use super::net::plug;
use super::{Agent, Ns, Ran, Server, bridge, seconds, stagenet};

/// Which iptables tool a lab is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Nft,
    Legacy,
}

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }

    /// The tool by its full name, such as `iptables-nft`.
    pub fn iptables(self) -> String {
        format!("iptables-{}", self.name())
    }
}

/// A folder of manifests.
#[derive(Debug)]
pub struct Manifests(PathBuf);

impl Manifests {
    /// A folder of its own for `name`, empty.
    pub fn empty(name: &str) -> Self {
        let dir = PathBuf::from(format!("/run/lab/{name}"));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// A copy of `examples/seed`.
    pub fn seed() -> Self {
        let manifests = Self::empty("seed");
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/seed")).unwrap() {
            let entry = entry.unwrap();
            manifests.write(entry.file_name().to_str().unwrap(), &fs::read_to_string(entry.path()).unwrap());
        }
        manifests
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Puts a file in place whole, as editors and `kubectl` mounts do.
    pub fn write(&self, file: &str, text: &str) {
        let temporary = format!("/run/lab/.{file}.new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.0.join(file)).unwrap();
    }

    /// Writes a file where it is, for a folder on a file system of its own.
    pub fn write_in_place(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap();
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.0.join(file)).unwrap();
    }

    /// Writes the network `segment-b` of the seed, with further lines (indented by two) below `spec`.
    pub fn network(&self, more: &str) {
        self.write("network.yaml", &network("segment-b", "192.168.100.0/24", "192.168.200.0/24", more));
    }

    /// The same network of both families ([`Seed::dual_stack`]).
    pub fn dual_network(&self, more: &str) {
        let (pool, inside) = ("192.168.100.0/24, \"fd00:100::/64\"", "192.168.200.0/24, \"fd00:200::/64\"");
        self.write("network.yaml", &network("segment-b", pool, inside, more));
    }

    /// Writes the mapping `default/NAME` in `segment-b`, with further lines below `spec`.
    pub fn mapping(&self, name: &str, virtual_address: &str, target: &str, more: &str) {
        self.write(&format!("{name}.yaml"), &mapping(name, "segment-b", virtual_address, target, more));
    }
}

/// A `StagingNetwork` between eth0 and eth1. `more` is YAML below `spec`, not indented.
pub fn network(name: &str, pool: &str, inside: &str, more: &str) -> String {
    format!(
        "apiVersion: stagenet.dev/v1alpha1\nkind: StagingNetwork\nmetadata:\n  name: {name}\nspec:\n  gateway:\n    nodeSelector: {{}}\n  \
         outside:\n    interface: eth0\n    addresses: [{pool}]\n  inside:\n    interface: eth1\n    addresses: [{inside}]\n{}",
        indented(more)
    )
}

/// A `NatMapping` in namespace default. `more` is YAML below `spec`, not indented.
pub fn mapping(name: &str, network: &str, virtual_address: &str, target: &str, more: &str) -> String {
    format!(
        "apiVersion: stagenet.dev/v1alpha1\nkind: NatMapping\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  networkRef:\n    \
         name: {network}\n  virtual:\n    address: {virtual_address}\n  target:\n    address: {target}\n{}",
        indented(more)
    )
}

fn indented(more: &str) -> String {
    more.lines().map(|l| format!("  {l}\n")).collect()
}

/// The seed's hosts. Names and addresses are the experiment's own.
#[derive(Debug)]
pub struct Seed {
    /// Client, 192.168.100.1.
    pub vm01: Ns,
    /// Gateway, eth0 192.168.100.2 and eth1 192.168.200.2.
    pub vm02: Ns,
    /// Restored VM, 192.168.200.3.
    pub vm03: Ns,
    /// A second restored VM, 192.168.200.4.
    pub vm04: Ns,
    /// The router of segment A, 192.168.100.254.
    pub gw_a: Ns,
    /// The router of segment B, 192.168.200.254. It sends what is for segment A to vm02: only the fence stands between.
    pub gw_b: Ns,
    /// The switches.
    pub segment_a: Ns,
    pub segment_b: Ns,
    pub backend: Backend,
    servers: Vec<Server>,
}

/// The virtual address, and TCP and UDP port 80 there.
pub const VIP: &str = "192.168.100.3";
pub const VIP_80: &str = "192.168.100.3:80";
/// The same of IPv6.
pub const VIP6: &str = "fd00:100::3";
pub const VIP6_80: &str = "[fd00:100::3]:80";

impl Seed {
    /// The hosts as they are before anybody thought of stagenet, with servers on port 80 of every VM and of the client.
    pub fn new(backend: Backend) -> Self {
        let [vm01, vm02, vm03, vm04, gw_a, gw_b] = ["vm01", "vm02", "vm03", "vm04", "gw-a", "gw-b"].map(Ns::new);
        let segment_a = bridge(
            "segment-a",
            &[
                (&vm01, "eth0", "192.168.100.1/24"),
                (&vm02, "eth0", "192.168.100.2/24"),
                (&gw_a, "eth0", "192.168.100.254/24"),
            ],
        );
        let segment_b = bridge(
            "segment-b",
            &[
                (&vm02, "eth1", "192.168.200.2/24"),
                (&vm03, "eth0", "192.168.200.3/24"),
                (&vm04, "eth0", "192.168.200.4/24"),
                (&gw_b, "eth0", "192.168.200.254/24"),
            ],
        );
        vm01.sh("ip route add default via 192.168.100.254");
        for vm in [&vm03, &vm04] {
            vm.sh("ip route add default via 192.168.200.254");
        }
        for router in [&gw_a, &gw_b] {
            router.set("ipv4/ip_forward", "1");
            router.set("ipv4/conf/all/send_redirects", "0");
            router.set("ipv4/conf/eth0/send_redirects", "0");
        }
        gw_b.sh("ip route add 192.168.100.0/24 via 192.168.200.2");
        let servers = [&vm01, &vm03, &vm04].map(|vm| vm.serve(80)).into();
        Self {
            vm01,
            vm02,
            vm03,
            vm04,
            gw_a,
            gw_b,
            segment_a,
            segment_b,
            backend,
            servers,
        }
    }

    /// Gives the hosts IPv6 beside IPv4: `fd00:100::` outside and `fd00:200::` inside, ending as the IPv4 addresses do. The gateway may answer for others and does not forward yet.
    pub fn dual_stack(&self) {
        let gateway = &self.vm02;
        for interface in ["all", "default", "eth0", "eth1"] {
            gateway.set(&format!("ipv6/conf/{interface}/proxy_ndp"), "1");
            // Addresses outlive that their interface is down for a while, as those of IPv4 do.
            gateway.set(&format!("ipv6/conf/{interface}/keep_addr_on_down"), "1");
        }
        for (ns, interface, address) in [
            (&self.vm01, "eth0", "fd00:100::1"),
            (gateway, "eth0", "fd00:100::2"),
            (&self.gw_a, "eth0", "fd00:100::fe"),
            (gateway, "eth1", "fd00:200::2"),
            (&self.vm03, "eth0", "fd00:200::3"),
            (&self.vm04, "eth0", "fd00:200::4"),
        ] {
            ns.sh(&format!("ip addr add {address}/64 dev {interface} nodad"));
        }
        gateway.sh("ip route add default via fd00:100::fe");
        for vm in [&self.vm03, &self.vm04] {
            vm.sh("ip route add default via fd00:200::2");
        }
    }

    /// Whether [`Seed::dual_stack`] was called.
    pub fn is_dual_stack(&self) -> bool {
        self.vm02.get("ipv6/conf/default/proxy_ndp") == "1"
    }

    /// Whether the gateway forwards IPv6, which only its administrator can say.
    pub fn route_ipv6(&self, on: bool) {
        self.vm02.set("ipv6/conf/all/forwarding", if on { "1" } else { "0" });
    }

    /// Rules of somebody else in every table of the gateway, as a node in use has them.
    pub fn add_foreign_rules(&self) {
        let tool = self.backend.iptables();
        for (table, rule) in [
            ("raw", "PREROUTING -p udp --dport 4789 -j NOTRACK"),
            (
                "mangle",
                "FORWARD -p tcp --tcp-flags SYN,RST SYN -m comment --comment theirs -j TCPMSS --clamp-mss-to-pmtu",
            ),
            ("mangle", "INPUT -s 203.0.113.9 -j DROP"),
            (
                "nat",
                "PREROUTING -d 203.0.113.7 -m comment --comment theirs -j DNAT --to-destination 203.0.113.8",
            ),
            ("nat", "POSTROUTING -s 203.0.113.0/24 -j MASQUERADE"),
            ("filter", "FORWARD -s 203.0.113.0/24 -j DROP"),
            ("filter", "INPUT -p tcp --dport 2222 -j REJECT"),
        ] {
            self.vm02.sh(&format!("{tool} -w -t {table} -A {rule}"));
        }
        self.vm02
            .sh(&format!("{tool} -w -t nat -N THEIRS && {tool} -w -t nat -A OUTPUT -j THEIRS"));
        self.vm02.sh(&format!(
            "ip6tables-{} -w -t mangle -A FORWARD -s 2001:db8::/32 -j DROP",
            self.backend.name()
        ));
    }

    /// Gives the gateway a new inside interface in place of one that was deleted.
    pub fn replug_inside(&self) {
        plug(&self.segment_b, "new", &self.vm02, "eth1");
        self.vm02.sh("ip addr add 192.168.200.2/24 dev eth1");
        if self.is_dual_stack() {
            self.vm02.sh("ip addr add fd00:200::2/64 dev eth1 nodad");
        }
    }

    /// Gives the gateway a new outside interface in place of one that was deleted.
    pub fn replug_outside(&self) {
        plug(&self.segment_a, "new", &self.vm02, "eth0");
        self.vm02.sh("ip addr add 192.168.100.2/24 dev eth0");
        self.vm01.sh("ip neigh flush dev eth0");
    }

    /// Starts the agent on the gateway, with `more` arguments.
    pub fn agent(&self, manifests: &Manifests, more: &[&str]) -> Agent {
        let mut args = vec!["--manifests", manifests.path(), "--node", "vm02", "--backend", self.backend.name()];
        args.extend(more);
        Agent::start(&self.vm02, &args)
    }

    /// Runs the agent with `--once`.
    pub fn once(&self, manifests: &Manifests) -> Ran {
        stagenet(
            &self.vm02,
            &[
                "agent",
                "--manifests",
                manifests.path(),
                "--node",
                "vm02",
                "--backend",
                self.backend.name(),
                "--once",
            ],
        )
    }

    /// Runs the agent with `--once` and expects that all is ready.
    pub fn converge(&self, manifests: &Manifests) {
        let ran = self.once(manifests);
        assert_eq!(ran.code, 0, "agent --once: {}", ran.said());
    }

    /// The same where IPv6 is not forwarded yet: not before the fence stands.
    pub fn converge_dual(&self, manifests: &Manifests) {
        self.once(manifests);
        self.route_ipv6(true);
        self.converge(manifests);
    }

    /// Runs `stagenet cleanup` on the gateway.
    pub fn cleanup(&self) {
        let ran = stagenet(&self.vm02, &["cleanup"]);
        assert_eq!(ran.code, 0, "cleanup: {}", ran.said());
    }

    /// Runs the gateway's own iptables tool.
    pub fn iptables(&self, args: &str) -> String {
        self.vm02.sh(&format!("{} -w {args}", self.backend.iptables()))
    }

    /// The gateway's rules, counters included, of the families' four tables.
    pub fn rules(&self) -> String {
        let b = self.backend.name();
        self.vm02
            .sh(&format!("iptables-{b}-save; ip6tables-{b}-save"))
            .lines()
            .filter(|l| !l.starts_with('#'))
            .map(|l| format!("{l}\n"))
            .collect()
    }

    /// Packets counted by the DROP rules of a chain whose name starts with `prefix`.
    pub fn dropped(&self, prefix: &str) -> u64 {
        self.vm02
            .sh(&format!("{}-save -c -t mangle", self.backend.iptables()))
            .lines()
            .filter(|l| l.contains(&format!("-A {prefix}")) && l.contains("-j DROP"))
            .filter_map(|l| l.strip_prefix('[')?.split(':').next()?.parse::<u64>().ok())
            .sum()
    }

    /// Waits until the virtual address leads to `server`.
    pub fn wait_serves(&self, server: &str) {
        super::wait_until(seconds(20), &format!("{VIP} to lead to {server}"), || {
            self.vm01.tcp(VIP_80).is_some_and(|c| c.server == server)
        });
    }
}
