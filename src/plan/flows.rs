//! Which entries of the kernel's connection table agree with the plan.
//!
//! Removing a rule does not stop the flows that it let in, so after a change the table is walked once and every entry that the
//! present plan would not have made is deleted. The question is asked of the plan, not of the change: an agent that was killed
//! between the two finds the same answer after its restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::egress::leaving;
use super::prefixes::{PrefixIndex, PrefixTable};
use super::sites::Site;
use super::validate::EgressTo;
use super::verdict::{Claim, ClaimedPorts};
use crate::api::mapping::Side;
use crate::api::network::SourceTranslation;
use crate::netfilter::Family;

/// One entry of the connection table, as `conntrack -L` shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowTuple {
    /// Conntrack zone: flows of different zones have nothing to do with each other.
    pub zone: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Who dialled.
    pub source: IpAddr,
    /// What was dialled.
    pub destination: IpAddr,
    /// Port that was dialled; 0 for protocols without ports.
    pub destination_port: u16,
    /// Source of the answers: the target if the destination was translated.
    pub reply_source: IpAddr,
    /// Source port of the answers.
    pub reply_source_port: u16,
    /// Destination of the answers: the dialler, unless its address was translated.
    pub reply_destination: IpAddr,
    /// Connection mark.
    pub mark: u32,
    /// The connection that a helper expected this one for: the control connection of an FTP transfer. It may have ended.
    pub master: Option<Dialled>,
}

/// How a connection was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dialled {
    /// IANA protocol number.
    pub protocol: u8,
    /// Who dialled.
    pub source: IpAddr,
    /// What was dialled.
    pub destination: IpAddr,
    /// Port that was dialled; 0 for protocols without ports.
    pub destination_port: u16,
}

impl FlowTuple {
    fn dialled(&self) -> Dialled {
        Dialled {
            protocol: self.protocol,
            source: self.source,
            destination: self.destination,
            destination_port: self.destination_port,
        }
    }
}

/// What a mapping makes of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Made {
    /// None: every protocol.
    ports: Option<ClaimedPorts>,
    from: IpNet,
    to: IpNet,
    /// Whether the dialler's address is hidden from the target.
    source_translation: SourceTranslation,
}

/// What may leave a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outward {
    /// Prefix of those inside → the one that they leave under.
    mirrors: PrefixIndex<IpNet>,
    source: Option<IpAddr>,
    open: bool,
    rules: Vec<EgressTo>,
}

/// One network's part in a zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct NetworkFlows {
    inward: PrefixTable<Made>,
    outward: BTreeMap<Family, Outward>,
}

/// What flows of one zone may be. Inside prefixes of one zone do not meet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Zone {
    mappings: PrefixTable<Made>,
    /// Addresses outside that lead, or led, inside.
    outside: PrefixIndex<()>,
    /// Inside prefix → position of its network.
    inside: PrefixIndex<usize>,
    networks: Vec<NetworkFlows>,
    protected: PrefixIndex<()>,
}

/// The plan's opinion of the connection table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowPolicy {
    zones: BTreeMap<u16, Zone>,
}

/// What else a sweep goes by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// The mark of what the fence admits ([`HostOptions::connmark`](super::HostOptions::connmark)), on a node where there was a fence; else 0.
    pub connmark: u32,
    /// Whether everything goes that bears this mark, because no fence is left: also what is translated by no address of a network, or not at all.
    pub unfenced: bool,
    /// Inside prefixes, each in its zone, whose fence has just gone up: flows that touch them and were not made by a mapping are older than the fence.
    pub raised: BTreeSet<(u16, IpNet)>,
    /// What an earlier policy had a say in: the flows of networks that went must not stay.
    pub earlier: Reach,
}

/// What a policy has a say in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Addresses outside and inside of each zone.
    zones: BTreeMap<u16, (PrefixIndex<()>, PrefixIndex<()>)>,
    /// Virtual addresses, wherever they lead.
    anywhere: PrefixIndex<()>,
}

/// What the plan says of one entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opinion {
    /// A mapping of the plan makes exactly this.
    Made,
    /// The plan has a say in it, and would not have made it.
    Wrong,
    /// The plan has no say in it.
    Foreign,
}

impl FlowPolicy {
    /// The policy of a node's networks.
    pub(super) fn of(sites: &[Site<'_>]) -> Self {
        let mut policy = Self::default();
        for site in sites {
            let Some(network) = site.network else { continue };
            let zone = policy.zones.entry(site.zone().unwrap_or(0)).or_default();
            network.pool.iter().for_each(|prefix| zone.outside.insert(*prefix, ()));
            site.sources
                .values()
                .for_each(|address| zone.outside.insert(IpNet::from(*address), ()));
            network.protected.iter().for_each(|prefix| zone.protected.insert(*prefix, ()));
            network
                .inside
                .iter()
                .for_each(|prefix| zone.inside.insert(*prefix, zone.networks.len()));
            let mut flows = NetworkFlows::default();
            let of = |side| site.claims.iter().map(|(_, claim)| *claim).filter(move |claim| claim.side == side);
            let made = |claim| made(claim).map(|made| (claim.virtual_prefix, made));
            zone.mappings.add(of(Side::Outside).flat_map(made));
            flows.inward.add(of(Side::Inside).flat_map(made));
            for family in Family::ALL {
                let Some(leaving) = leaving(site, family) else { continue };
                let outward = flows.outward.entry(family).or_default();
                for (target, (_, from)) in &leaving.mirrors {
                    outward.mirrors.insert(*target, *from);
                }
                outward.source = leaving.source;
                outward.open = leaving.open;
                outward.rules = leaving.rules.into_iter().cloned().collect();
            }
            zone.networks.push(flows);
        }
        policy
    }

    /// What this policy has a say in.
    pub fn reach(&self) -> Reach {
        let of = |zone: &Zone| {
            let mut inside = PrefixIndex::default();
            zone.inside.iter().for_each(|(prefix, _)| inside.insert(prefix, ()));
            (zone.outside.clone(), inside)
        };
        Reach {
            zones: self.zones.iter().map(|(number, zone)| (*number, of(zone))).collect(),
            anywhere: PrefixIndex::default(),
        }
    }

    /// Whether `prefix` shares addresses with the inside of one of the networks.
    pub fn meets_inside(&self, prefix: IpNet) -> bool {
        self.zones.values().any(|zone| zone.inside.overlapping(prefix).is_some())
    }

    /// Whether the plan would have made this entry, or has no say in it.
    ///
    /// It has a say in: what dials a claimed address, what was translated from a pool to an inside prefix, what left an inside prefix under an address of
    /// a pool, what was translated and bears the fence's mark (whatever plan admitted it, it is not this one: an agent that was not there
    /// when pools or prefixes changed knows nothing else of them), everything in the zone of an isolated network that went, and everything that touches a prefix in
    /// [`Sweep::raised`]. The node's own connections and those of bystanders are none of these.
    pub fn agrees(&self, flow: &FlowTuple, sweep: &Sweep) -> bool {
        match self.opinion(flow, sweep) {
            Opinion::Made => true,
            Opinion::Wrong => false,
            Opinion::Foreign => !sweep.older_than_fence(flow),
        }
    }

    fn opinion(&self, flow: &FlowTuple, sweep: &Sweep) -> Opinion {
        let zone = self.zones.get(&flow.zone);
        let known = zone.and_then(|zone| zone.opinion(flow));
        known.unwrap_or_else(|| {
            let translated = flow.destination != flow.reply_source;
            let renamed = flow.source != flow.reply_destination;
            let admitted = sweep.connmark != 0 && flow.mark & sweep.connmark == sweep.connmark;
            let before = sweep.earlier.has_say(flow, zone.is_some());
            if before || admitted && (sweep.unfenced || translated || renamed) {
                Opinion::Wrong
            } else {
                Opinion::Foreign
            }
        })
    }
}

impl Reach {
    /// All flows that dial one of these prefixes or leave under an address of theirs, in every zone.
    pub fn anywhere(prefixes: impl IntoIterator<Item = IpNet>) -> Self {
        let mut reach = Self::default();
        prefixes.into_iter().for_each(|prefix| reach.anywhere.insert(prefix, ()));
        reach
    }

    /// Whether the flow is one of these: led inside, left from inside, or of a zone that is no more.
    fn has_say(&self, flow: &FlowTuple, zone_is_there: bool) -> bool {
        let renamed = flow.source != flow.reply_destination;
        if covers(&self.anywhere, flow.destination) || renamed && covers(&self.anywhere, flow.reply_destination) {
            return true;
        }
        let Some((outside, inside)) = self.zones.get(&flow.zone) else {
            return false;
        };
        if flow.zone != 0 && !zone_is_there {
            return true;
        }
        let led = flow.destination != flow.reply_source && covers(outside, flow.destination) && covers(inside, flow.reply_source);
        let left = renamed && covers(inside, flow.source) && covers(outside, flow.reply_destination);
        led || left
    }
}

impl Sweep {
    fn older_than_fence(&self, flow: &FlowTuple) -> bool {
        let ends = [flow.source, flow.destination, flow.reply_source, flow.reply_destination];
        let raised = |(zone, prefix): &(u16, IpNet)| *zone == flow.zone && ends.iter().any(|end| prefix.contains(end));
        self.raised.iter().any(raised)
    }
}

impl Zone {
    /// None: no say.
    fn opinion(&self, flow: &FlowTuple) -> Option<Opinion> {
        let judged = |made| Some(if made { Opinion::Made } else { Opinion::Wrong });
        if flow.master.is_some_and(|master| self.expects(&master, flow)) {
            return Some(Opinion::Made);
        }
        let network = self.inside.covering(flow.source).and_then(|(_, at)| self.networks.get(*at));
        // What is dialled from inside is looked for in its own network first, as in table nat.
        if let Some(made) = network.and_then(|network| dialled(&network.inward, &flow.dialled())) {
            let leaves = network.and_then(|network| network.leaves_under(flow.source));
            return judged(made.leads(flow) && leaves == Some(flow.reply_destination) && !covers(&self.protected, flow.reply_source));
        }
        if self.mappings.covers(flow.destination) {
            let made = dialled(&self.mappings, &flow.dialled());
            return judged(
                made.is_some_and(|made| made.leads(flow) && made.hides(network.is_some()) == (flow.source != flow.reply_destination)),
            );
        }
        let translated = flow.destination != flow.reply_source;
        if translated && covers(&self.outside, flow.destination) && covers(&self.inside, flow.reply_source) {
            return Some(Opinion::Wrong);
        }
        let renamed = flow.source != flow.reply_destination;
        match network {
            Some(network) if renamed && covers(&self.outside, flow.reply_destination) => {
                let under = network.leaves_under(flow.source) == Some(flow.reply_destination);
                judged(under && !covers(&self.protected, flow.destination) && network.may_leave(&flow.dialled()))
            }
            _ => None,
        }
    }
    /// Whether the plan makes `master` still, and the flow is between the same machine and whom it knows by the same address: whatever ports the two agree upon.
    fn expects(&self, master: &Dialled, flow: &FlowTuple) -> bool {
        let network = self.inside.covering(master.source).and_then(|(_, at)| self.networks.get(*at));
        let inward = network.and_then(|network| dialled(&network.inward, master));
        let made = inward.or_else(|| dialled(&self.mappings, master));
        let ends = match (made, network) {
            (Some(made), _) => moved(master.destination, made.from, made.to).map(|target| (target, master.destination)),
            (None, Some(network)) if !covers(&self.protected, master.destination) && network.may_leave(master) => {
                network.leaves_under(master.source).map(|under| (master.source, under))
            }
            _ => None,
        };
        ends.is_some_and(|(machine, known)| {
            [flow.source, flow.reply_source].contains(&machine) && [flow.destination, flow.reply_destination].contains(&known)
        })
    }
}

impl NetworkFlows {
    /// The address that a machine leaves under.
    fn leaves_under(&self, source: IpAddr) -> Option<IpAddr> {
        let outward = self.outward.get(&Family::of(source))?;
        let mirror = outward.mirrors.covering(source);
        mirror.and_then(|(from, to)| moved(source, from, *to)).or(outward.source)
    }

    fn may_leave(&self, flow: &Dialled) -> bool {
        let Some(outward) = self.outward.get(&Family::of(flow.source)) else {
            return false;
        };
        let ports = |rule: &EgressTo| {
            let mut ports = rule.ports.iter();
            rule.ports.is_empty()
                || ports.any(|(transport, ports)| transport.number() == flow.protocol && ports.contains(flow.destination_port))
        };
        outward.open || outward.rules.iter().any(|rule| rule.to.contains(&flow.destination) && ports(rule))
    }
}

impl Made {
    /// Whether this rule is asked for such a flow.
    fn matches(&self, flow: &Dialled) -> bool {
        let asked = |ports: ClaimedPorts| ports.transport.number() == flow.protocol && ports.ports.contains(flow.destination_port);
        self.ports.is_none_or(asked)
    }

    /// Whether it leads where this flow went.
    fn leads(&self, flow: &FlowTuple) -> bool {
        let port = self.ports.map_or(flow.destination_port, |ports| {
            ports.target_first.saturating_add(flow.destination_port - ports.ports.first())
        });
        moved(flow.destination, self.from, self.to) == Some(flow.reply_source) && flow.reply_source_port == port
    }

    /// A machine that dials its own network is hidden whatever the mode.
    fn hides(&self, dialled_from_inside: bool) -> bool {
        self.source_translation == SourceTranslation::Masquerade || dialled_from_inside
    }
}

/// The rule that decides: of the longest prefix that has one for this flow.
fn dialled<'m>(mappings: &'m PrefixTable<Made>, flow: &Dialled) -> Option<&'m Made> {
    mappings.around(flow.destination).find(|made| made.matches(flow))
}

/// `address` at the same place of another prefix of the same length.
fn moved(address: IpAddr, from: IpNet, to: IpNet) -> Option<IpAddr> {
    match (address, from, to) {
        (IpAddr::V4(address), IpNet::V4(from), IpNet::V4(to)) => Some(IpAddr::V4(to.network() | (address & from.hostmask()))),
        (IpAddr::V6(address), IpNet::V6(from), IpNet::V6(to)) => Some(IpAddr::V6(to.network() | (address & from.hostmask()))),
        _ => None,
    }
}

fn made(claim: &Claim) -> impl Iterator<Item = Made> {
    let whole = claim.ports.is_empty().then_some(None);
    let ports = claim.ports.iter().map(|ports| Some(*ports));
    whole.into_iter().chain(ports).map(|ports| Made {
        ports,
        from: claim.virtual_prefix,
        to: claim.target,
        source_translation: claim.source_translation,
    })
}

fn covers<T>(prefixes: &PrefixIndex<T>, address: IpAddr) -> bool {
    prefixes.covering(address).is_some()
}
