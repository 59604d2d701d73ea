//! A packet's whole way through a node, for tests and explanations.
//!
//! 1. raw, mangle and nat PREROUTING (destinations are translated here)
//! 2. routing
//! 3. for the node itself: mangle and filter INPUT; else mangle and filter FORWARD
//! 4. mangle and nat POSTROUTING (sources are translated here)
//!
//! The node's addresses and routes are given. Neighbours, reverse path filters, bridges and hop limits are not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::rules::Hook;
use super::trace::{Packet, Step, Verdict, Walk, walk};
use super::{IfName, Mark, Ruleset, Table};

/// The node that a packet comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Addresses with prefix length, by interface, the primary one first. Their prefixes are routed there.
    pub addresses: BTreeMap<IfName, Vec<IpNet>>,
    /// Further routes: prefix → interface.
    pub routes: BTreeMap<IpNet, IfName>,
    /// Policy routing: routes of packets that bear a mark, asked before all others, in this order.
    pub marked_routes: Vec<(Mark, IpNet, IfName)>,
    /// Whether the policy of filter FORWARD is DROP, as docker and firewalld set it.
    pub forward_drops: bool,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It leaves the node, as [`Trace::packet`] says.
    Forwarded,
    /// The node itself gets it.
    Local,
    /// This rule dropped it.
    Dropped(Box<Step>),
    /// Nothing of ours accepted it and the policy of filter FORWARD is DROP.
    DroppedByPolicy,
    /// There is no route to its destination.
    Unroutable,
}

/// A packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Every rule that matched, in order.
    pub steps: Vec<Step>,
    /// What became of it.
    pub fate: Fate,
    /// How it looked at the end.
    pub packet: Packet,
}

impl Trace {
    /// Where it left and with which addresses and destination port, if it was forwarded.
    pub fn forwarded(&self) -> Option<(&IfName, IpAddr, IpAddr, u16)> {
        let packet = &self.packet;
        match self.fate {
            Fate::Forwarded => Some((packet.output.as_ref()?, packet.source, packet.destination, packet.port())),
            _ => None,
        }
    }

    /// The rule that dropped it, if one did.
    pub fn dropped_by(&self) -> Option<&Step> {
        match &self.fate {
            Fate::Dropped(step) => Some(step),
            _ => None,
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        let (from, to, port) = (self.packet.source, self.packet.destination, self.packet.port());
        match &self.fate {
            Fate::Forwarded => {
                let output = self.packet.output.as_ref().map_or("nowhere", IfName::as_str);
                write!(f, "forwarded to {output} as {from} → {to} port {port}")
            }
            Fate::Local => write!(f, "delivered to the node itself as {from} → {to} port {port}"),
            Fate::Dropped(step) => write!(f, "dropped by {step}"),
            Fate::DroppedByPolicy => f.write_str("dropped by the policy of filter FORWARD"),
            Fate::Unroutable => write!(f, "no route to {to}"),
        }
    }
}

impl Node {
    /// Adds an address with its prefix to an interface.
    #[must_use]
    pub fn with_address(mut self, interface: &IfName, address: IpNet) -> Self {
        self.addresses.entry(interface.clone()).or_default().push(address);
        self
    }

    /// Adds a route.
    #[must_use]
    pub fn with_route(mut self, prefix: IpNet, interface: &IfName) -> Self {
        self.routes.insert(prefix.trunc(), interface.clone());
        self
    }

    /// What happens to `packet` on a node with these rules.
    pub fn trace(&self, ruleset: &Ruleset, packet: Packet) -> Trace {
        let mut trace = Trace {
            steps: Vec::new(),
            fate: Fate::Forwarded,
            packet,
        };
        trace.fate = match self.way(ruleset, &mut trace) {
            Ok(fate) | Err(fate) => fate,
        };
        trace
    }

    /// Err ends the way early.
    fn way(&self, ruleset: &Ruleset, trace: &mut Trace) -> Result<Fate, Fate> {
        for table in [Table::Raw, Table::Mangle, Table::Nat] {
            self.pass(ruleset, table, Hook::Prerouting, trace)?;
        }
        if self.local_addresses().contains(&trace.packet.destination) {
            self.pass(ruleset, Table::Mangle, Hook::Input, trace)?;
            self.pass(ruleset, Table::Filter, Hook::Input, trace)?;
            return Ok(Fate::Local);
        }
        let output = self.route(trace.packet.destination, trace.packet.mark);
        // In IPv6 such a route is a blackhole.
        let led = output.filter(|name| name.as_str() != "lo" || trace.packet.destination.is_ipv4());
        trace.packet.output = Some(led.cloned().ok_or(Fate::Unroutable)?);
        self.pass(ruleset, Table::Mangle, Hook::Forward, trace)?;
        let filter = self.pass(ruleset, Table::Filter, Hook::Forward, trace)?;
        if self.forward_drops && filter == Verdict::Undecided {
            return Err(Fate::DroppedByPolicy);
        }
        self.pass(ruleset, Table::Mangle, Hook::Postrouting, trace)?;
        self.pass(ruleset, Table::Nat, Hook::Postrouting, trace)?;
        Ok(Fate::Forwarded)
    }

    fn pass(&self, ruleset: &Ruleset, table: Table, hook: Hook, trace: &mut Trace) -> Result<Verdict, Fate> {
        let own = |interface: &IfName, towards: IpAddr| self.own_address(interface, towards);
        let Walk { steps, verdict } = walk(ruleset, table, hook, &mut trace.packet, &own);
        trace.steps.extend(steps);
        match (verdict, trace.steps.last()) {
            (Verdict::Drop, Some(step)) => Err(Fate::Dropped(Box::new(step.clone()))),
            _ => Ok(verdict),
        }
    }

    fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.addresses.values().flatten().map(IpNet::addr).collect()
    }

    /// Of the routes without a mark the longest prefix wins.
    fn route(&self, destination: IpAddr, mark: u32) -> Option<&IfName> {
        let marked = |(bits, prefix, _): &&(Mark, IpNet, IfName)| mark & bits.mask == bits.value && prefix.contains(&destination);
        if let Some((_, _, interface)) = self.marked_routes.iter().find(marked) {
            return Some(interface);
        }
        let connected = self
            .addresses
            .iter()
            .flat_map(|(name, nets)| nets.iter().map(move |net| (net.trunc(), name)));
        connected
            .chain(self.routes.iter().map(|(prefix, name)| (*prefix, name)))
            .filter(|(prefix, _)| prefix.contains(&destination))
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map(|(_, name)| name)
    }

    /// `inet_select_addr`: the first address whose prefix covers the destination, else the first.
    fn own_address(&self, interface: &IfName, towards: IpAddr) -> Option<IpAddr> {
        let addresses = self.addresses.get(interface)?;
        let covering = addresses.iter().find(|net| net.contains(&towards));
        covering.or(addresses.first()).map(IpNet::addr)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::super::sample;
    use super::super::trace::Payload;
    use super::*;
    use crate::netfilter::{Family, Owner, Transport};

    const SSH: Payload = Payload::Transport(Transport::Tcp, 22);

    fn link(name: &str) -> IfName {
        IfName::new(name).unwrap()
    }

    fn vm02() -> Node {
        Node::default()
            .with_address(&link("eth0"), "192.168.100.2/24".parse().unwrap())
            .with_address(&link("eth1"), "192.168.200.2/24".parse().unwrap())
            .with_route("192.168.100.3/32".parse().unwrap(), &link("lo"))
            .with_route("192.168.100.77/32".parse().unwrap(), &link("lo"))
            .with_route("0.0.0.0/0".parse().unwrap(), &link("eth0"))
    }

    fn packet(input: &str, from: &str, to: &str, payload: Payload) -> Packet {
        Packet::new(&link(input), from.parse().unwrap(), to.parse().unwrap(), payload)
    }

    fn send(input: &str, from: &str, to: &str, payload: Payload) -> Trace {
        vm02().trace(&sample::seed(), packet(input, from, to, payload))
    }

    #[track_caller]
    fn assert_left(trace: &Trace, output: &str, from: &str, to: &str, port: u16) {
        let expected = Some((&link(output), from.parse().unwrap(), to.parse().unwrap(), port));
        assert_eq!(trace.forwarded(), expected, "{trace}");
    }

    #[track_caller]
    fn assert_dropped(trace: &Trace, chain: &str) {
        let Some(step) = trace.dropped_by() else {
            panic!("not dropped: {trace}");
        };
        assert_eq!(step.chain.as_str(), chain, "{trace}");
    }

    #[test]
    fn a_client_reaches_the_virtual_address_and_the_answer_comes_back() {
        let dialled = packet("eth0", "192.168.100.1", "192.168.100.3", SSH);
        let there = vm02().trace(&sample::seed(), dialled.clone());
        assert_left(&there, "eth1", "192.168.200.2", "192.168.200.3", 22);
        let back = vm02().trace(&sample::seed(), there.packet.answer());
        assert_left(&back, "eth0", "192.168.100.3", "192.168.100.1", 0);
        let next = vm02().trace(&sample::seed(), dialled.next(&there.packet));
        assert_left(&next, "eth1", "192.168.200.2", "192.168.200.3", 22);
    }

    #[test]
    fn ports_move_to_where_the_mapping_says() {
        let there = send("eth0", "192.168.100.1", "192.168.100.4", Payload::Transport(Transport::Udp, 1003));
        assert_left(&there, "eth1", "192.168.200.2", "192.168.200.4", 2003);
    }

    #[test]
    fn what_no_mapping_covers_is_dropped() {
        assert_dropped(&send("eth0", "192.168.100.1", "192.168.100.77", SSH), "SNET-U-0123ABCD");
        assert_dropped(&send("eth0", "192.168.100.1", "192.168.200.3", SSH), "SNET-FI-0123ABCD");
        assert_dropped(&send("eth1", "192.168.200.9", "192.168.100.1", SSH), "SNET-FO-0123ABCD");
        assert_dropped(&send("eth1", "192.168.200.9", "8.8.8.8", Payload::Other(47)), "SNET-FO-0123ABCD");
        assert_dropped(&send("eth1", "192.168.200.3", "192.168.200.2", SSH), "SNET-N-0123ABCD");
        let invalid = packet("eth0", "192.168.100.1", "192.168.200.3", SSH).invalid();
        assert_dropped(&vm02().trace(&sample::seed(), invalid), "SNET-FI-0123ABCD");
    }

    #[test]
    fn the_drop_names_its_network() {
        let trace = send("eth1", "192.168.200.3", "192.168.100.1", SSH);
        assert_eq!(
            trace.dropped_by().map(|step| &step.rule.owner),
            Some(&Owner::Network("segment-b".to_owned()))
        );
        assert!(trace.to_string().contains("dropped by mangle SNET-FO-0123ABCD rule"), "{trace}");
    }

    #[test]
    fn the_gateway_answers_pings_and_other_traffic_is_left_alone() {
        assert_eq!(
            send("eth1", "192.168.200.3", "192.168.200.2", Payload::EchoRequest).fate,
            Fate::Local
        );
        assert_eq!(send("eth0", "192.168.100.1", "192.168.100.2", SSH).fate, Fate::Local);
        assert_left(
            &send("eth1", "192.168.200.3", "192.168.200.9", SSH),
            "eth1",
            "192.168.200.3",
            "192.168.200.9",
            22,
        );
        assert_left(
            &send("eth0", "192.168.100.1", "10.9.9.9", SSH),
            "eth0",
            "192.168.100.1",
            "10.9.9.9",
            22,
        );
        let nowhere = Node {
            routes: BTreeMap::new(),
            ..vm02()
        };
        assert_eq!(
            nowhere
                .trace(&sample::seed(), packet("eth0", "192.168.100.1", "10.9.9.9", SSH))
                .fate,
            Fate::Unroutable
        );
    }

    #[test]
    fn a_forward_policy_of_drop_lets_only_what_a_mapping_admitted_pass() {
        let node = Node {
            forward_drops: true,
            ..vm02()
        };
        let admitted = node.trace(&sample::seed(), packet("eth0", "192.168.100.1", "192.168.100.3", SSH));
        assert_eq!(admitted.fate, Fate::Forwarded, "{admitted}");
        let other = node.trace(&sample::seed(), packet("eth0", "192.168.100.1", "10.9.9.9", SSH));
        assert_eq!(other.fate, Fate::DroppedByPolicy);
    }

    #[test]
    fn nothing_leaves_by_ipv6() {
        let node = vm02()
            .with_address(&link("eth1"), "fd00:200::2/64".parse().unwrap())
            .with_route("::/0".parse().unwrap(), &link("eth0"));
        let send = |input, to, payload| node.trace(&sample::seed(), packet(input, "fd00:200::3", to, payload));
        let out = |input| send(input, "2001:db8::1", SSH);
        assert_dropped(&out("eth1"), "SNET-FWD");
        assert_eq!(out("eth2").fate, Fate::Forwarded);
        let local = |kind| send("eth1", "fd00:200::2", Payload::Icmp(kind)).fate;
        assert_eq!(local(135), Fate::Local);
        assert!(matches!(local(128), Fate::Dropped(_)));
    }

    #[test]
    fn the_end_of_a_goto_chain_returns_to_the_caller_of_the_chain_that_went_there() {
        use crate::netfilter::{ChainName, Rule, Target};
        let name = |suffix: &str| ChainName::new(suffix).unwrap();
        let rule = |target| Rule::new(Owner::Base, [], target);
        let mark = |bits| rule(Target::SetConnMark(bits));
        let chains = BTreeMap::from([
            (
                name("A"),
                vec![rule(Target::Jump(name("B"))), mark(1), rule(Target::Return), mark(2)],
            ),
            (name("B"), vec![rule(Target::Goto(name("C"))), mark(4)]),
            (name("C"), vec![mark(8), rule(Target::Jump(name("D"))), mark(16)]),
            (name("D"), vec![rule(Target::Return), mark(32)]),
        ]);
        let mut ruleset = Ruleset::default();
        let table = ruleset.tables.entry((Family::V4, Table::Mangle)).or_default();
        table.chains = chains;
        table.hooks.insert(Hook::Forward, name("A").into());
        let trace = vm02().trace(&ruleset, packet("eth0", "192.168.100.1", "10.9.9.9", SSH));
        assert_eq!(trace.packet.connection.mark, 1 | 8 | 16);
    }
}
