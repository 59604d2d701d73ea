//! A packet tracer over typed rules: what does one table do to this packet at one hook?
//!
//! Jumps, gotos, returns and the ends of chains work as in the kernel (`ipt_do_table` in `net/ipv4/netfilter/ip_tables.c`), the connection's part as in
//! `nf_nat_core.c`. [`super::path`] strings the hooks together. Only our rules are walked: what others have in the built-in chains is not known here.
//! Rates are taken as not exhausted.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::rules::{ConnState, Hook, HookRule, icmp};
use super::{ChainName, Family, Helper, IfName, Match, Rule, Ruleset, Table, Target, Transport};

/// The kernel refuses rule sets with loops when they are loaded; here a walk just ends.
const STEPS_MAX: usize = 100_000;

/// What a packet carries, as far as rules look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A protocol with ports, and the destination port.
    Transport(Transport, u16),
    /// An ICMP echo request.
    EchoRequest,
    /// An ICMP or `ICMPv6` message of this type, other than an echo request.
    Icmp(u8),
    /// Another protocol, by IANA number.
    Other(u8),
}

/// A packet on its way through the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// IPv4 or IPv6: that of its addresses.
    pub family: Family,
    /// Where it came in.
    pub input: Option<IfName>,
    /// Where it will leave, once routed.
    pub output: Option<IfName>,
    /// Present source.
    pub source: IpAddr,
    /// Present destination.
    pub destination: IpAddr,
    /// The rest.
    pub payload: Payload,
    /// The packet's own mark, which routing looks at.
    pub mark: u32,
    /// The conntrack zone that it is looked up in.
    pub zone: u16,
    /// The helper that its connection gets if it opens one.
    pub helper: Option<Helper>,
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
    pub original_source: IpAddr,
    /// What was dialled.
    pub original_destination: IpAddr,
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
    pub source: IpAddr,
    /// Destination behind the node.
    pub destination: IpAddr,
    /// Destination port behind the node; 0 for protocols without ports.
    pub port: u16,
}

impl Packet {
    /// The first packet of a connection.
    pub fn new(input: &IfName, source: IpAddr, destination: IpAddr, payload: Payload) -> Self {
        Self {
            family: Family::of(destination),
            input: Some(input.clone()),
            output: None,
            source,
            destination,
            payload,
            mark: 0,
            zone: 0,
            helper: None,
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
            mark: 0,
            zone: 0,
            source: self.destination,
            destination: self.source,
            payload: match self.payload {
                Payload::Transport(transport, _) => Payload::Transport(transport, 0),
                Payload::EchoRequest => Payload::Icmp(0),
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

    /// Whether it belongs to a connection that bears these bits.
    fn marked(&self, bits: u32) -> bool {
        self.connection.state != State::Invalid && self.connection.mark & bits == bits
    }

    fn translated(&self) -> Translated {
        Translated {
            source: self.source,
            destination: self.destination,
            port: self.port(),
        }
    }

    fn send_to(&mut self, to: IpAddr, new_port: u16) {
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
    own_address: &dyn Fn(&IfName, IpAddr) -> Option<IpAddr>,
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
            let mut frames = match rules.hooks.get(&hook)? {
                HookRule::Jump(chain) | HookRule::Bare(chain) => vec![(chain, 0)],
                HookRule::AcceptMarked(bits) if packet.marked(*bits) => return Some(Verdict::Accept),
                HookRule::AcceptMarked(_) => return None,
            };
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
                    Target::Nflog { .. } | Target::ClampMss => frames.push((name, at + 1)),
                    Target::SetMark(mark) => {
                        packet.mark = packet.mark & !mark.mask ^ mark.value;
                        frames.push((name, at + 1));
                    }
                    Target::Track { zone, helper } => {
                        // A template that is there already stays (`xt_ct_target` in net/netfilter/xt_CT.c).
                        if packet.zone == 0 && packet.helper.is_none() {
                            (packet.zone, packet.helper) = (zone.unwrap_or(0), *helper);
                        }
                        frames.push((name, at + 1));
                    }
                    Target::SetConnMark(bits) => {
                        if packet.connection.state != State::Invalid {
                            packet.connection.mark |= bits;
                        }
                        frames.push((name, at + 1));
                    }
                    target => return Some(decide(target, hook, packet, own_address)),
                }
            }
            None
        })
        .unwrap_or(Verdict::Undecided);
    Walk { steps, verdict }
}

/// What a deciding target does. Translations change the packet and accept it.
fn decide(target: &Target, hook: Hook, packet: &mut Packet, own_address: &dyn Fn(&IfName, IpAddr) -> Option<IpAddr>) -> Verdict {
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
        Target::Netmap { to } if hook == Hook::Postrouting => packet.source = moved(packet.source, *to),
        Target::Netmap { to } => {
            let (before, port) = (packet.destination, packet.port());
            packet.send_to(moved(before, *to), port);
            packet.connection.dnat |= before != packet.destination;
        }
        Target::Masquerade => match packet.output.as_ref().and_then(|out| own_address(out, packet.destination)) {
            Some(own) => packet.source = own,
            None => return Verdict::Drop,
        },
        Target::Drop => return Verdict::Drop,
        _ => {}
    }
    Verdict::Accept
}

/// `address` with the network part of `to` (`netmap_tg4` in `net/netfilter/xt_NETMAP.c`).
fn moved(address: IpAddr, to: IpNet) -> IpAddr {
    match (address, to) {
        (IpAddr::V4(address), IpNet::V4(to)) => IpAddr::V4(to.network() | (address & to.hostmask())),
        (IpAddr::V6(address), IpNet::V6(to)) => IpAddr::V6(to.network() | (address & to.hostmask())),
        _ => address,
    }
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
    let connection = &packet.connection;
    let tracked = connection.state != State::Invalid;
    match m {
        Match::Source(prefix) => prefix.contains(&packet.source),
        Match::Destination(prefix) => prefix.contains(&packet.destination),
        Match::In(name) => packet.input.as_ref() == Some(name),
        Match::Out(name) => packet.output.as_ref() == Some(name),
        Match::DestinationPorts(transport, ports) => {
            matches!(packet.payload, Payload::Transport(t, port) if t == *transport && ports.contains(port))
        }
        Match::InLike(prefix) => packet.input.as_ref().is_some_and(|name| prefix.begins(name)),
        Match::OutLike(prefix) => packet.output.as_ref().is_some_and(|name| prefix.begins(name)),
        Match::Mark(mark) => packet.mark & mark.mask == mark.value,
        // Only first packets are told apart from the rest by rules of ours, and those of a connection are SYN.
        Match::TcpSyn => matches!(packet.payload, Payload::Transport(Transport::Tcp, _)) && connection.state == State::New,
        // Said by the node itself, which no packet here is.
        Match::NoRoute => false,
        Match::Icmp(kind) => match packet.payload {
            Payload::EchoRequest => *kind == icmp::echo_request(packet.family),
            Payload::Icmp(present) => *kind == present,
            _ => false,
        },
        Match::State(ConnState::EstablishedOrRelated) => matches!(connection.state, State::Established(_) | State::Reply(_)),
        Match::State(ConnState::Dnat) => tracked && connection.dnat,
        Match::OriginalDestination(prefix) => tracked && prefix.contains(&connection.original_destination),
        Match::OriginalDestinationPorts(transport, ports) => {
            let same = matches!(packet.payload, Payload::Transport(t, _) if t == *transport);
            tracked && same && ports.contains(connection.original_port)
        }
        Match::ConnMark(bits) => packet.marked(*bits),
        Match::Limit { .. } => true,
    }
}
