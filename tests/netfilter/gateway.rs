//! A gateway with three segments, and what it does to packets: on the real kernel, and by the tracer's word.
//!
//! The hosts behind the segments have no addresses: the gateway has fixed neighbours instead, and the labs' packets are made and read by hand.
//! So nobody answers on his own, and what arrives is just what the gateway let through.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use pnet_datalink::{Channel, Config, DataLinkReceiver, DataLinkSender};
use stagenet::netfilter::path::{Fate, Node, Trace};
use stagenet::netfilter::trace::{Packet, Payload};
use stagenet::netfilter::{Ruleset, Transport};

use super::random::link;
use super::wire::{Content, Frame};
use crate::lab::{Ns, veth};

/// For packets that should come: far more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(5);
/// After the last packet that should come, for those that should not. One that comes later is found by the next round.
const GRACE: Duration = Duration::from_millis(30);
/// First port of the diallers; no rule looks at these.
const FIRST_PORT: u16 = 20_000;
/// Bit of the tokens of answers.
const ANSWER: u32 = 1 << 31;

/// One first packet.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Segment (1 to 3) that it comes from.
    pub segment: u8,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Echo,
    Udp(u16),
    Tcp(u16),
    /// A TCP reset without a connection.
    Reset(u16),
}

/// Where something arrived, and how it looked.
type Arrivals = BTreeMap<(u32, bool), (u8, Frame)>;

pub struct Gateway {
    pub ns: Ns,
    segments: Vec<Segment>,
    arrived: Receiver<(u8, Frame)>,
    sent: u32,
}

struct Segment {
    _ns: Ns,
    send: Box<dyn DataLinkSender>,
}

fn mac(end: u8, segment: u8) -> [u8; 6] {
    [2, 0, 0, 0, end, segment]
}

fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

impl Gateway {
    /// eth0, eth1, eth2 lead to 10.1.0.0/24, 10.2.0.0/24, 10.3.0.0/24; 10.9.0.0/16 is virtual.
    pub fn new() -> Self {
        let ns = Ns::new("gateway");
        let (tell, arrived) = channel();
        let segments = (1..=3).map(|n| Segment::new(&ns, n, &tell)).collect();
        ns.set("ipv4/ip_forward", "1");
        ns.sh("ip route add 10.9.0.0/16 dev lo");
        Self {
            ns,
            segments,
            arrived,
            sent: 0,
        }
    }

    /// The same gateway as the tracer knows it.
    pub fn node() -> Node {
        let node = (1..=3).fold(Node::default(), |node, n| {
            node.with_address(&link(&format!("eth{}", n - 1)), format!("10.{n}.0.254/24").parse().unwrap())
        });
        node.with_route("10.9.0.0/16".parse().unwrap(), &link("lo"))
    }

    /// Sends `probes`, then answers what came through, then goes on talking; fails where kernel and tracer disagree. Returns how many probes came through.
    pub fn compare(&mut self, node: &Node, ruleset: &Ruleset, probes: &[Probe]) -> Result<usize, String> {
        let first: Vec<(u8, Frame, Packet)> = probes.iter().map(|probe| self.first(probe)).collect();
        let traces: Vec<Trace> = first.iter().map(|(_, _, packet)| node.trace(ruleset, packet.clone())).collect();
        let seen = self.round(&first, &traces)?;
        // Only what came through can be answered.
        let through: Vec<usize> = (0..first.len())
            .filter(|n| seen.contains_key(&key(&first[*n].1)) && traces[*n].fate == Fate::Forwarded)
            .collect();
        let answered = || through.iter().filter(|n| !matches!(probes[**n].kind, Kind::Reset(_)));
        let answers: Vec<_> = answered()
            .map(|n| {
                let (segment, came) = seen[&key(&first[*n].1)];
                (segment, answer(&came), traces[*n].packet.answer())
            })
            .collect();
        let back: Vec<Trace> = answers.iter().map(|(_, _, packet)| node.trace(ruleset, packet.clone())).collect();
        self.round(&answers, &back)?;
        let next: Vec<_> = answered()
            .map(|n| (first[*n].0, next(&first[*n].1), first[*n].2.next(&traces[*n].packet)))
            .collect();
        let on: Vec<Trace> = next.iter().map(|(_, _, packet)| node.trace(ruleset, packet.clone())).collect();
        self.round(&next, &on)?;
        Ok(through.len())
    }

    fn first(&mut self, probe: &Probe) -> (u8, Frame, Packet) {
        self.sent += 1;
        let from = FIRST_PORT + u16::try_from(self.sent % 40_000).unwrap();
        let (content, payload) = match probe.kind {
            Kind::Echo => (Content::Echo { id: from, reply: false }, Payload::EchoRequest),
            Kind::Udp(to) => (Content::Udp { from, to }, Payload::Transport(Transport::Udp, to)),
            Kind::Tcp(to) => {
                let syn = Content::Tcp {
                    from,
                    to,
                    syn: true,
                    acknowledged: None,
                };
                (syn, Payload::Transport(Transport::Tcp, to))
            }
            Kind::Reset(to) => (Content::Reset { from, to }, Payload::Transport(Transport::Tcp, to)),
        };
        let frame = Frame {
            token: self.sent << 4,
            source: probe.source,
            destination: probe.destination,
            content,
        };
        let packet = Packet::new(&interface(probe.segment), probe.source.into(), probe.destination.into(), payload);
        let packet = if let Kind::Reset(_) = probe.kind {
            packet.invalid()
        } else {
            packet
        };
        (probe.segment, frame, packet)
    }

    /// Sends frames and compares what arrives with what the traces say.
    fn round(&mut self, sent: &[(u8, Frame, Packet)], traces: &[Trace]) -> Result<Arrivals, String> {
        let expected: Arrivals = sent
            .iter()
            .zip(traces)
            .filter_map(|((segment, frame, _), trace)| expectation(*segment, frame, trace))
            .collect();
        let known: BTreeSet<u32> = sent.iter().map(|(_, frame, _)| frame.token).collect();
        for (segment, frame, _) in sent {
            let bytes = frame.bytes(mac(2, *segment), mac(1, *segment));
            self.segments[usize::from(*segment) - 1]
                .send
                .send_to(&bytes, None)
                .unwrap()
                .unwrap();
        }
        let start = Instant::now();
        let mut seen = Arrivals::new();
        loop {
            let wait = if expected.keys().all(|key| seen.contains_key(key)) {
                GRACE
            } else {
                PATIENCE.saturating_sub(start.elapsed())
            };
            match self.arrived.recv_timeout(wait) {
                // The gateway's own resets to those who dial it.
                Ok((_, frame)) if !known.contains(&frame.token) && frame.token == 0 => {}
                Ok((segment, frame)) => {
                    seen.insert(key(&frame), (segment, frame));
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => panic!("nobody listens"),
            }
        }
        let looks = |arrivals: &Arrivals, key| {
            arrivals
                .get(key)
                .map(|(segment, f)| (*segment, f.source, f.destination, f.content.ports().1))
        };
        let keys: BTreeSet<&(u32, bool)> = expected.keys().chain(seen.keys()).collect();
        for key in keys {
            let (real, told) = (looks(&seen, key), looks(&expected, key));
            if real == told {
                continue;
            }
            let at = sent.iter().position(|(_, frame, _)| frame.token == key.0);
            let story = at.map(|at| format!("{:?}\n{}", sent[at].2, traces[at]));
            return Err(format!(
                "token {key:?}: kernel {real:?}, tracer {told:?}\n{}",
                story.unwrap_or_default()
            ));
        }
        Ok(seen)
    }
}

impl Segment {
    fn new(gateway: &Ns, n: u8, tell: &Sender<(u8, Frame)>) -> Self {
        let ns = Ns::new(&format!("segment{n}"));
        let name = interface(n).to_string();
        for quiet in ["all", "default"] {
            ns.set(&format!("ipv6/conf/{quiet}/disable_ipv6"), "1");
        }
        veth(gateway, &name, &ns, "net0");
        ns.sh(&format!("ip link set net0 address {}", text(mac(2, n))));
        gateway.sh(&format!(
            "ip link set {name} address {} && ip addr add 10.{n}.0.254/24 dev {name}",
            text(mac(1, n))
        ));
        gateway.set(&format!("ipv4/conf/{name}/send_redirects"), "0");
        gateway.set("ipv4/conf/all/send_redirects", "0");
        for host in 1..=20 {
            gateway.sh(&format!(
                "ip neigh replace 10.{n}.0.{host} lladdr {} nud permanent dev {name}",
                text(mac(2, n))
            ));
        }
        let (send, mut receive) = ns.enter(open);
        let tell = tell.clone();
        std::thread::spawn(move || {
            loop {
                // A pause without packets ends with an error; the thread ends with the world.
                let Ok(bytes) = receive.next() else { continue };
                let from_gateway = bytes.get(6..12) == Some(&mac(1, n)[..]);
                let Some(frame) = Frame::read(bytes).filter(|_| from_gateway) else {
                    continue;
                };
                if tell.send((n, frame)).is_err() {
                    return;
                }
            }
        });
        Self { _ns: ns, send }
    }
}

fn open() -> (Box<dyn DataLinkSender>, Box<dyn DataLinkReceiver>) {
    let interface = pnet_datalink::interfaces().into_iter().find(|i| i.name == "net0").unwrap();
    match pnet_datalink::channel(&interface, Config::default()).unwrap() {
        Channel::Ethernet(send, receive) => (send, receive),
        _ => panic!("not an Ethernet interface"),
    }
}

fn interface(segment: u8) -> stagenet::netfilter::IfName {
    link(&format!("eth{}", segment - 1))
}

fn key(frame: &Frame) -> (u32, bool) {
    (frame.token, matches!(frame.content, Content::Echo { reply: true, .. }))
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is no IPv4 address"),
    }
}

/// What should arrive where, by the tracer's word.
fn expectation(segment: u8, frame: &Frame, trace: &Trace) -> Option<((u32, bool), (u8, Frame))> {
    let mut arriving = *frame;
    match (&trace.fate, frame.content) {
        (Fate::Forwarded, content) => {
            let output = trace.packet.output.as_ref().unwrap().as_str();
            // A packet to a virtual address that nothing translates goes in circles over lo until its hops are used up.
            let out = output.strip_prefix("eth")?.parse::<u8>().unwrap() + 1;
            (arriving.source, arriving.destination) = (v4(trace.packet.source), v4(trace.packet.destination));
            let answering = frame.token & ANSWER != 0;
            arriving.content = match content {
                Content::Udp { from, .. } if !answering => Content::Udp {
                    from,
                    to: trace.packet.port(),
                },
                Content::Reset { from, .. } => Content::Reset {
                    from,
                    to: trace.packet.port(),
                },
                Content::Tcp {
                    from, syn, acknowledged, ..
                } if !answering => {
                    let to = trace.packet.port();
                    Content::Tcp {
                        from,
                        to,
                        syn,
                        acknowledged,
                    }
                }
                other => other,
            };
            Some((key(frame), (out, arriving)))
        }
        // The gateway itself answers.
        (Fate::Local, Content::Echo { id, reply: false }) => {
            (arriving.source, arriving.destination) = (frame.destination, frame.source);
            arriving.content = Content::Echo { id, reply: true };
            Some((key(&arriving), (segment, arriving)))
        }
        _ => None,
    }
}

/// The answer of whoever got `came`.
fn answer(came: &Frame) -> Frame {
    let token = came.token | ANSWER;
    let content = match came.content {
        Content::Echo { id, .. } => Content::Echo { id, reply: true },
        Content::Udp { from, to } => Content::Udp { from: to, to: from },
        Content::Tcp { from, to, .. } | Content::Reset { from, to } => Content::Tcp {
            from: to,
            to: from,
            syn: true,
            acknowledged: Some(came.token + 1),
        },
    };
    Frame {
        token,
        source: came.destination,
        destination: came.source,
        content,
    }
}

/// What the dialler says next.
fn next(first: &Frame) -> Frame {
    let content = match first.content {
        Content::Tcp { from, to, .. } => Content::Tcp {
            from,
            to,
            syn: false,
            acknowledged: Some((first.token | ANSWER) + 1),
        },
        other => other,
    };
    Frame {
        token: first.token + 1,
        content,
        ..*first
    }
}
