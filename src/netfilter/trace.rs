//! A packet tracer over typed rules: what does one table do to this packet at one hook?
//!
//! Jumps, gotos, returns and the ends of chains work as in the kernel (`ipt_do_table` in `net/ipv4/netfilter/ip_tables.c`), the connection's part as in
//! `nf_nat_core.c`. [`super::path`] strings the hooks together. Only our rules are walked: what others have in the built-in chains is not known here.
//! Rates are taken as not exhausted.

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::rules::{ConnState, Hook};
use super::{ChainName, Family, IfName, Match, Rule, Ruleset, Table, Target, Transport};

/// The kernel refuses rule sets with loops when they are loaded; here a walk just ends.
const STEPS_MAX: usize = 100_000;

/// IANA protocol number.
const IPPROTO_ICMP: u8 = 1;

/// What a packet carries, as far as rules look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A protocol with ports, and the destination port.
    Transport(Transport, u16),
    /// An ICMP echo request.
    EchoRequest,
    /// An `ICMPv6` message of this type.
    Icmp6(u8),
    /// Another protocol, by IANA number.
    Other(u8),
}

/// A packet on its way through the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// IPv4 or IPv6. The addresses of an IPv6 packet mean nothing: no rule looks at them.
    pub family: Family,
    /// Where it came in.
    pub input: Option<IfName>,
    /// Where it will leave, once routed.
    pub output: Option<IfName>,
    /// Present source.
    pub source: Ipv4Addr,
    /// Present destination.
    pub destination: Ipv4Addr,
    /// The rest.
    pub payload: Payload,
    /// What the kernel knows of the connection.
    pub connection: Connection,
}

/// What the kernel knows of a packet's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its state.
    pub state: State,
    /// Mark of the connection.
    pub mark: u32,
    /// Who dialled.
    pub original_source: Ipv4Addr,
    /// What was dialled.
    pub original_destination: Ipv4Addr,
    /// Port that was dialled; 0 for protocols without ports.
    pub original_port: u16,
    /// Whether the destination is translated.
    pub dnat: bool,
}

/// State of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// This is its first packet.
    New,
    /// A packet from the one who dialled, after an answer. The translation is made without asking the rules.
    Established(Translated),
    /// A packet to the one who dialled: the translation is undone.
    Reply(Translated),
    /// No connection: conntrack made nothing of the packet. Nothing is translated.
    Invalid,
}

/// What the addresses of a connection became.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translated {
    /// Source behind the node.
    pub source: Ipv4Addr,
    /// Destination behind the node.
    pub destination: Ipv4Addr,
    /// Destination port behind the node; 0 for protocols without ports.
    pub port: u16,
}

impl Packet {
    /// The first packet of a connection.
    pub fn new(input: &IfName, source: Ipv4Addr, destination: Ipv4Addr, payload: Payload) -> Self {
        Self {
            family: Family::V4,
            input: Some(input.clone()),
            output: None,
            source,
            destination,
            payload,
            connection: Connection {
                state: State::New,
                mark: 0,
                original_source: source,
                original_destination: destination,
                original_port: port_of(payload),
                dnat: false,
            },
        }
    }

    /// An IPv6 packet, of which only the interfaces and the type of message matter.
    pub fn v6(input: &IfName, payload: Payload) -> Self {
        let nowhere = Ipv4Addr::UNSPECIFIED;
        Self {
            family: Family::V6,
            ..Self::new(input, nowhere, nowhere, payload)
        }
    }

    /// The same packet as conntrack could make nothing of it.
    #[must_use]
    pub fn invalid(mut self) -> Self {
        self.connection.state = State::Invalid;
        self
    }

    /// The next packet from the one who dialled, once there was an answer, given how the first left the node.
    #[must_use]
    pub fn next(&self, left: &Self) -> Self {
        let mut packet = self.clone();
        packet.connection = left.connection.clone();
        packet.connection.state = State::Established(left.translated());
        packet
    }

    /// The answer to this packet, which has left the node: it comes in where this went out. It goes to the dialler's port, which is not known here: 0.
    #[must_use]
    pub fn answer(&self) -> Self {
        let mut packet = Self {
            input: self.output.clone(),
            output: None,
            source: self.destination,
            destination: self.source,
            payload: match self.payload {
                Payload::Transport(transport, _) => Payload::Transport(transport, 0),
                Payload::EchoRequest => Payload::Other(IPPROTO_ICMP),
                other => other,
            },
            ..self.clone()
        };
        packet.connection.state = State::Reply(self.translated());
        packet
    }

    /// Destination port; 0 for protocols without ports.
    pub fn port(&self) -> u16 {
        port_of(self.payload)
    }

    fn translated(&self) -> Translated {
        Translated {
            source: self.source,
            destination: self.destination,
            port: self.port(),
        }
    }

    fn send_to(&mut self, to: Ipv4Addr, new_port: u16) {
        self.destination = to;
        if let Payload::Transport(_, port) = &mut self.payload {
            *port = new_port;
        }
    }
}

fn port_of(payload: Payload) -> u16 {
    match payload {
        Payload::Transport(_, port) => port,
        _ => 0,
    }
}

/// A rule that a packet matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Table.
    pub table: Table,
    /// The chain it stands in.
    pub chain: ChainName,
    /// Its position there, from 1.
    pub position: usize,
    /// The rule.
    pub rule: Rule,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, chain, position) = (self.table.as_str(), &self.chain, self.position);
        write!(f, "{table} {chain} rule {position} ({:?}, {:?})", self.rule.target, self.rule.owner)
    }
}

/// What a table decides about a packet at a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// None of our rules decided: others' rules and the policy follow.
    Undecided,
    /// Accepted for this table at this hook.
    Accept,
    /// Dropped.
    Drop,
}

/// One table's part in a packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Every rule that matched, in order. The last one made the verdict, unless that is [`Verdict::Undecided`].
    pub steps: Vec<Step>,
    /// The verdict.
    pub verdict: Verdict,
}

/// Walks `table` at `hook`, changing the packet as the rules say. `own_address` is the node's address on an interface towards a destination: what
/// MASQUERADE takes; without one the packet is dropped, as the kernel does.
pub fn walk(
    ruleset: &Ruleset,
    table: Table,
    hook: Hook,
    packet: &mut Packet,
    own_address: &dyn Fn(&IfName, Ipv4Addr) -> Option<Ipv4Addr>,
) -> Walk {
    let mut steps = Vec::new();
    if table == Table::Nat && !matches!(packet.connection.state, State::New) {
        follow_connection(packet, hook);
        return Walk {
            steps,
            verdict: Verdict::Undecided,
        };
    }
    let verdict = ruleset
        .tables
        .get(&(packet.family, table))
        .and_then(|rules| {
            // A frame is the chain and the rule to go on with; a goto replaces the frame, so that its end returns to the caller's.
            let mut frames = vec![(rules.hooks.get(&hook)?, 0)];
            while let Some((name, at)) = frames.pop() {
                let Some(rule) = rules.chains.get(name).and_then(|chain| chain.get(at)) else {
                    continue;
                };
                if !rule.matches.iter().all(|m| holds(m, packet)) {
                    frames.push((name, at + 1));
                    continue;
                }
                steps.push(Step {
                    table,
                    chain: name.clone(),
                    position: at + 1,
                    rule: rule.clone(),
                });
                match &rule.target {
                    _ if steps.len() > STEPS_MAX => return None,
                    Target::Jump(to) => frames.extend([(name, at + 1), (to, 0)]),
                    Target::Goto(to) => frames.push((to, 0)),
                    Target::Return => {}
                    Target::Nflog { .. } => frames.push((name, at + 1)),
                    Target::SetConnMark(bits) => {
                        if packet.connection.state != State::Invalid {
                            packet.connection.mark |= bits;
                        }
                        frames.push((name, at + 1));
                    }
                    target => return Some(decide(target, packet, own_address)),
                }
            }
            None
        })
        .unwrap_or(Verdict::Undecided);
    Walk { steps, verdict }
}

/// What a deciding target does. Translations change the packet and accept it.
fn decide(target: &Target, packet: &mut Packet, own_address: &dyn Fn(&IfName, Ipv4Addr) -> Option<Ipv4Addr>) -> Verdict {
    match target {
        Target::Dnat { to, ports } => {
            let before = (packet.destination, packet.port());
            let port = ports.map_or(before.1, |(range, base)| {
                range.first() + before.1.saturating_sub(base).min(range.span())
            });
            packet.send_to(*to, port);
            // IPS_DST_NAT is set only if something changed.
            packet.connection.dnat |= before != (packet.destination, packet.port());
        }
        Target::Snat { to } => packet.source = *to,
        Target::Masquerade => match packet.output.as_ref().and_then(|out| own_address(out, packet.destination)) {
            Some(own) => packet.source = own,
            None => return Verdict::Drop,
        },
        Target::Drop => return Verdict::Drop,
        _ => {}
    }
    Verdict::Accept
}

/// What the kernel does to later packets, rules unasked: destinations before routing, sources after it.
fn follow_connection(packet: &mut Packet, hook: Hook) {
    let connection = &packet.connection;
    match (connection.state, hook) {
        (State::Established(to), Hook::Prerouting) => packet.send_to(to.destination, to.port),
        (State::Established(to), Hook::Postrouting) => packet.source = to.source,
        (State::Reply(_), Hook::Prerouting) => packet.destination = connection.original_source,
        (State::Reply(_), Hook::Postrouting) => packet.source = connection.original_destination,
        _ => {}
    }
}

fn holds(m: &Match, packet: &Packet) -> bool {
    let v4 = packet.family == Family::V4;
    let within = |prefix: &Ipv4Net, address: Ipv4Addr| v4 && prefix.contains(&address);
    let connection = &packet.connection;
    let tracked = connection.state != State::Invalid;
    match m {
        Match::Source(prefix) => within(prefix, packet.source),
        Match::Destination(prefix) => within(prefix, packet.destination),
        Match::In(name) => packet.input.as_ref() == Some(name),
        Match::Out(name) => packet.output.as_ref() == Some(name),
        Match::DestinationPorts(transport, ports) => {
            matches!(packet.payload, Payload::Transport(t, port) if t == *transport && ports.contains(port))
        }
        Match::IcmpEchoRequest => v4 && packet.payload == Payload::EchoRequest,
        Match::NeighbourDiscovery(kind) => !v4 && packet.payload == Payload::Icmp6(*kind),
        Match::State(ConnState::EstablishedOrRelated) => matches!(connection.state, State::Established(_) | State::Reply(_)),
        Match::State(ConnState::Dnat) => tracked && connection.dnat,
        Match::OriginalDestination(prefix) => tracked && within(prefix, connection.original_destination),
        Match::OriginalDestinationPorts(transport, ports) => {
            let same = matches!(packet.payload, Payload::Transport(t, _) if t == *transport);
            tracked && same && ports.contains(connection.original_port)
        }
        Match::ConnMark(bits) => tracked && connection.mark & bits == *bits,
        Match::Limit { .. } => true,
    }
}
