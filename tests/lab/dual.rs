//! A gateway between two dual-stack segments, three restored machines inside, and an internet behind the outside's router.
//!
//! ```text
//!  internet ── 203.0.113.0/24 ── router ── 192.168.100.0/24 ── eth0 gateway eth1 ── 192.168.200.0/24 ── web, db, mail
//!              2001:db8:113::/64           fd00:100::/64                            fd00:200::/64
//! ```

#![allow(clippy::doc_markdown, clippy::unused_self, clippy::zombie_processes)] // names of programs; steps that read as sentences; victims that are killed and reaped by their namespace

use serde_json::Value;

use super::net::plug;
use super::{Agent, Backend, Manifests, Ns, Ran, Server, bridge, net, stagenet};

/// What the gateway's inside interface is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// A cable to a switch elsewhere.
    Cable,
    /// A bridge with the machines at its ports; what is bridged passes iptables.
    Filtered,
    /// The same, and what is bridged does not pass iptables.
    Unfiltered,
}

/// The lab's hosts. All of them serve TCP and UDP on port 80.
#[derive(Debug)]
pub struct Dual {
    pub backend: Backend,
    pub wiring: Wiring,
    /// A client, 192.168.100.1 and fd00:100::1.
    pub client: Ns,
    /// The outside's router, 192.168.100.254 and fd00:100::fe.
    pub router: Ns,
    /// Everybody else: [`DNS`], [`OTHER`], and what stands for production, [`PRODUCTION`]. Serves on port 53 of each, too.
    pub internet: Ns,
    /// The gateway: .2 in both segments, eth0 and eth1. Its administrator has switched IPv6 forwarding and proxying on.
    pub gateway: Ns,
    /// Restored machines: .33, .34 and .35, `::21`, `::22` and `::23`. Their default route is the gateway.
    pub web: Ns,
    pub db: Ns,
    pub mail: Ns,
    /// The switch outside.
    pub segment: Ns,
    /// Where the machines are plugged in: the gateway, or the switch inside.
    pub inside: Ns,
    pub manifests: Manifests,
    servers: Vec<Server>,
}

/// Name servers in the internet, called `dns` and `other`, IPv4 and IPv6.
pub const DNS: [&str; 2] = ["203.0.113.53", "2001:db8:113::53"];
pub const OTHER: [&str; 2] = ["203.0.113.54", "2001:db8:113::54"];
/// A server of production called `production`, which only the router knows the way to.
pub const PRODUCTION: [&str; 2] = ["10.0.0.53", "fd00:10::53"];
/// The client, the addresses of the three machines, and of the gateway, outside and inside.
pub const CLIENT: [&str; 2] = ["192.168.100.1", "fd00:100::1"];
pub const WEB: [&str; 2] = ["192.168.200.33", "fd00:200::21"];
pub const DB: [&str; 2] = ["192.168.200.34", "fd00:200::22"];
pub const MAIL: [&str; 2] = ["192.168.200.35", "fd00:200::23"];
pub const GATEWAY: [&str; 2] = ["192.168.100.2", "fd00:100::2"];
pub const GATEWAY_INSIDE: [&str; 2] = ["192.168.200.2", "fd00:200::2"];
/// Virtual addresses of the machines wherever a test has no reason for others.
pub const VIRTUAL_WEB: [&str; 2] = ["192.168.100.65", "fd00:100::41"];
pub const VIRTUAL_DB: [&str; 2] = ["192.168.100.66", "fd00:100::42"];
pub const VIRTUAL_MAIL: [&str; 2] = ["192.168.100.67", "fd00:100::43"];
/// An address of the pool to leave under, where a test sets one.
pub const SOURCE: [&str; 2] = ["192.168.100.250", "fd00:100::fa"];

impl Dual {
    /// The hosts as they are before anybody thought of stagenet.
    pub fn new(backend: Backend, wiring: Wiring) -> Self {
        let [client, router, internet, gateway, web, db, mail] = ["client", "router", "internet", "gateway", "web", "db", "mail"].map(host);
        let segment = net::bridge("segment", &[(&client, "eth0", ""), (&gateway, "eth0", ""), (&router, "eth0", "")]);
        net::veth(&router, "eth1", &internet, "eth0");
        let inside = match wiring {
            Wiring::Cable => net::bridge("inside", &[(&gateway, "eth1", "")]),
            Wiring::Filtered | Wiring::Unfiltered => {
                bridge::add(&gateway, "eth1");
                bridge::netfilter(&gateway, wiring == Wiring::Filtered);
                gateway.clone()
            }
        };
        let dual = Self {
            backend,
            wiring,
            client,
            router,
            internet,
            gateway,
            web,
            db,
            mail,
            segment,
            inside,
            manifests: Manifests::empty("ways"),
            servers: Vec::new(),
        };
        dual.furnish()
    }

    fn furnish(mut self) -> Self {
        address(&self.client, "eth0", CLIENT);
        address(&self.router, "eth0", ["192.168.100.254", "fd00:100::fe"]);
        address(&self.router, "eth1", ["203.0.113.1", "2001:db8:113::1"]);
        for at in [DNS, OTHER, PRODUCTION] {
            address(&self.internet, "eth0", at);
        }
        // Calls of its own come from the first one.
        for at in [OTHER, PRODUCTION] {
            self.internet.sh(&format!("ip addr change {}/64 dev eth0 preferred_lft 0", at[1]));
        }
        address(&self.gateway, "eth0", GATEWAY);
        address(&self.gateway, "eth1", GATEWAY_INSIDE);
        for (ns, at) in [(&self.web, WEB), (&self.db, DB), (&self.mail, MAIL)] {
            self.plug(ns);
            address(ns, "eth0", at);
            ns.sh("ip route add default via 192.168.200.2 && ip route add default via fd00:200::2");
        }
        for ns in [&self.client, &self.gateway] {
            ns.sh("ip route add default via 192.168.100.254 && ip route add default via fd00:100::fe");
        }
        self.internet
            .sh("ip route add default via 203.0.113.1 && ip route add default via 2001:db8:113::1");
        self.router
            .sh("ip route add 10.0.0.0/24 dev eth1 && ip route add fd00:10::/64 dev eth1");
        self.router.set("ipv4/ip_forward", "1");
        self.router.set("ipv6/conf/all/forwarding", "1");
        self.gateway.set("ipv6/conf/all/forwarding", "1");
        self.gateway.set("ipv6/conf/eth0/proxy_ndp", "1");
        self.gateway.set("ipv6/conf/eth1/proxy_ndp", "1");
        self.servers = [&self.client, &self.web, &self.db, &self.mail].map(|ns| ns.serve(80)).into();
        for (name, at) in [("dns", DNS), ("other", OTHER), ("production", PRODUCTION)] {
            for (address, port) in at.iter().flat_map(|address| [(address, 53), (address, 80)]) {
                self.servers.push(self.internet.serve_as(name, address, port));
            }
        }
        self
    }

    /// Plugs a host's `eth0` into the closed network.
    pub fn plug(&self, ns: &Ns) {
        let port = format!("to-{}", ns.name());
        if self.wiring == Wiring::Cable {
            plug(&self.inside, &port, ns, "eth0");
        } else {
            bridge::attach(&self.gateway, "eth1", &port, ns, "eth0");
            if self.wiring == Wiring::Filtered {
                // A machine that dials itself comes back by the port that it left by.
                bridge::hairpin(&self.gateway, &port);
            }
        }
    }

    /// Writes the network `closed`, with further fields of `outside` and `inside` (as in `, a: b`) and lines below `spec`.
    pub fn network(&self, outside: &str, inside: &str, more: &str) {
        self.network_of(
            "192.168.100.0/24, \"fd00:100::/64\"",
            "192.168.200.0/24, \"fd00:200::/64\"",
            outside,
            inside,
            more,
        );
    }

    /// The same with other prefixes, as in `192.0.2.0/24, "2001:db8::/64"`.
    pub fn network_of(&self, pool: &str, prefixes: &str, outside: &str, inside: &str, more: &str) {
        let text = network("closed", ["eth0", pool, outside], ["eth1", prefixes, inside], more);
        self.manifests.write("network.yaml", &text);
    }

    /// Writes the mapping `default/NAME` of addresses or prefixes, with further lines below `spec`.
    pub fn mapping(&self, name: &str, virtual_at: &str, target: &str, more: &str) {
        self.manifests.write(
            &format!("{name}.yaml"),
            &mapping("default", name, "closed", virtual_at, target, more),
        );
    }

    /// Writes the mappings `NAME4` and `NAME6`, the same for both families.
    pub fn mappings(&self, name: &str, virtual_at: [&str; 2], target: [&str; 2], more: &str) {
        for (family, (virtual_at, target)) in [4, 6].iter().zip(virtual_at.iter().zip(target)) {
            self.mapping(&format!("{name}{family}"), virtual_at, target, more);
        }
    }

    fn arguments(&self) -> Vec<&str> {
        vec![
            "--manifests",
            self.manifests.path(),
            "--node",
            "gateway",
            "--backend",
            self.backend.name(),
        ]
    }

    /// Starts the agent on the gateway, with `more` arguments.
    pub fn agent(&self, more: &[&str]) -> Agent {
        Agent::start(&self.gateway, &[&self.arguments(), more].concat())
    }

    /// Runs the agent with `--once`: what it printed, and the status of all objects.
    pub fn once(&self) -> (Ran, Status) {
        let file = "/run/lab/once.json";
        let mut args = vec!["agent", "--once", "--status-file", file];
        args.extend(self.arguments());
        let ran = stagenet(&self.gateway, &args);
        let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{e}: {}", ran.said()));
        (ran, Status(serde_json::from_str(&text).unwrap()))
    }

    /// Runs the agent with `--once` and expects that all is ready.
    pub fn converge(&self) -> Status {
        let (ran, status) = self.once();
        assert_eq!(ran.code, 0, "agent --once: {}\n{}", ran.said(), self.rules());
        status
    }

    /// Runs the agent with `--once` and expects that something is not.
    pub fn half(&self) -> Status {
        let (ran, status) = self.once();
        assert_eq!(ran.code, 2, "agent --once: {}", ran.said());
        status
    }

    /// Runs `stagenet cleanup` on the gateway.
    pub fn cleanup(&self) {
        let ran = stagenet(&self.gateway, &["cleanup"]);
        assert_eq!(ran.code, 0, "cleanup: {}", ran.said());
    }

    /// The gateway's rules of both families, counters included.
    pub fn rules(&self) -> String {
        let b = self.backend.name();
        self.gateway.sh(&format!("iptables-{b}-save -c; ip6tables-{b}-save -c"))
    }

    /// Packets counted by our rules that drop, or that let pass what ends in a blackhole behind them.
    pub fn dropped(&self) -> u64 {
        self.rules()
            .lines()
            .filter(|l| l.contains(" -A SNET-") && l.contains("-j DROP") || l.contains(" -A SNET-U-"))
            .filter_map(|l| l.strip_prefix('[')?.split(':').next()?.parse::<u64>().ok())
            .sum()
    }

    /// Fails unless `attempt` gets nowhere and our rules count at least `packets` that they drop meanwhile.
    pub fn is_denied(&self, packets: u64, what: &str, attempt: impl FnOnce() -> bool) {
        let before = self.dropped();
        assert!(attempt(), "{what}: it has to get nowhere\n{}", self.rules());
        let counted = self.dropped() - before;
        assert!(counted >= packets, "{what}: {counted} drops counted of {packets}\n{}", self.rules());
    }

    /// The gateway's hardware address outside.
    pub fn mac(&self) -> String {
        let link = self.gateway.sh("ip -o link show eth0");
        link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
    }
}

/// A host without duplicate address detection, which would make it wait for a second.
fn host(name: &str) -> Ns {
    let ns = Ns::new(name);
    ns.set("ipv6/conf/default/accept_dad", "0");
    ns
}

/// Gives an interface an address of each family, in a /24 and a /64.
pub fn address(ns: &Ns, interface: &str, [v4, v6]: [&str; 2]) {
    ns.sh(&format!(
        "ip addr add {v4}/24 dev {interface} && ip addr add {v6}/64 dev {interface} nodad"
    ));
}

/// `ADDRESS:PORT` or `[ADDRESS]:PORT`.
pub fn at(address: &str, port: u16) -> String {
    std::net::SocketAddr::new(address.parse().unwrap(), port).to_string()
}

/// A `StagingNetwork`. Each side: interface, prefixes as in `192.0.2.0/24, "2001:db8::/64"`, and further fields as in `, a: b`.
pub fn network(name: &str, outside: [&str; 3], inside: [&str; 3], more: &str) -> String {
    let side = |[interface, prefixes, more]: [&str; 3]| format!("{{interface: {interface}, addresses: [{prefixes}]{more}}}");
    format!(
        "apiVersion: stagenet.dev/v1alpha1\nkind: StagingNetwork\nmetadata: {{name: {name}}}\nspec:\n  gateway: {{nodeSelector: {{}}}}\n  \
         outside: {}\n  inside: {}\n{}",
        side(outside),
        side(inside),
        indented(more)
    )
}

/// A `NatMapping` of addresses, or of prefixes where there is a slash.
pub fn mapping(namespace: &str, name: &str, network: &str, virtual_at: &str, target: &str, more: &str) -> String {
    let place = |text: &str| {
        let kind = if text.contains('/') { "prefix" } else { "address" };
        format!("{{{kind}: \"{text}\"}}")
    };
    format!(
        "apiVersion: stagenet.dev/v1alpha1\nkind: NatMapping\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         networkRef: {{name: {network}}}\n  virtual: {}\n  target: {}\n{}",
        place(virtual_at),
        place(target),
        indented(more)
    )
}

fn indented(more: &str) -> String {
    more.lines().map(|l| format!("  {l}\n")).collect()
}

/// The status of all objects, as the agent writes it to its status file.
#[derive(Debug)]
pub struct Status(Value);

impl Status {
    fn object(&self, name: &str) -> &Value {
        let found = self.0["items"]
            .as_array()
            .and_then(|items| items.iter().find(|o| o["metadata"]["name"] == name));
        found.unwrap_or_else(|| panic!("no {name} in {:#}", self.0))
    }

    /// `status.announcement` of a mapping.
    pub fn announcement(&self, name: &str) -> Option<&str> {
        self.object(name)["status"]["announcement"].as_str()
    }

    /// Status (True, False, Unknown), reason and message of a condition.
    pub fn condition(&self, name: &str, kind: &str) -> [&str; 3] {
        let object = self.object(name);
        let conditions = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
        let found = conditions.iter().find(|c| c["type"] == kind);
        let found = found.unwrap_or_else(|| panic!("no condition {kind} in {object:#}"));
        ["status", "reason", "message"].map(|field| found[field].as_str().unwrap_or_default())
    }

    pub fn is_ready(&self, name: &str) -> bool {
        self.condition(name, "Ready")[0] == "True"
    }

    /// Fails if the object is ready, or if neither Accepted nor Ready has a message that holds all of `words`.
    pub fn assert_not_ready(&self, name: &str, words: &[&str]) {
        let [ready, accepted] = ["Ready", "Accepted"].map(|kind| self.condition(name, kind));
        let told = [ready, accepted].iter().any(|c| words.iter().all(|w| c[2].contains(w)));
        assert!(
            ready[0] != "True" && told,
            "{name}: Ready {ready:?}, Accepted {accepted:?}, expected {words:?}"
        );
    }

    /// Fails unless the object is not ready for `reason`, with a message that holds all of `words`.
    pub fn assert_refused(&self, name: &str, reason: &str, words: &[&str]) {
        let [status, got, message] = self.condition(name, "Ready");
        let holds = words.iter().all(|w| message.contains(w));
        // An object that is not accepted says so in Ready, and why in Accepted.
        let accepted = self.condition(name, "Accepted");
        let why = accepted[1] == reason && words.iter().all(|w| accepted[2].contains(w));
        assert!(
            status != "True" && (got == reason && holds || why),
            "{name}: Ready {status}, {got}: {message}\nAccepted {accepted:?}\nexpected {reason} with {words:?}"
        );
    }
}
