//! Which entries of the kernel's connection table agree with the plan.
//!
//! Removing a rule does not stop the flows that it let in, so after a change the table is walked once and every entry that the
//! present plan would not have made is deleted. The question is asked of the plan, not of the change: an agent that was killed
//! between the two finds the same answer after its restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::sites::Site;
use super::translation::egress_sources;
use super::verdict::Claim;
use crate::api::network::SourceTranslation;
use crate::netfilter::PortRange;

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
}

/// What a mapping makes of a flow to a virtual address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MappedFlow {
    /// Protocol number and ports at the virtual address; None: every protocol.
    pub ports: Option<(u8, PortRange)>,
    /// The target.
    pub target: IpAddr,
    /// First port at the target; None: the port is kept.
    pub target_first: Option<u16>,
    /// Whether the dialler's address is hidden from the target.
    pub source_translation: SourceTranslation,
}

/// The plan's opinion of the connection table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowPolicy {
    /// Virtual address → what may be made of flows to it.
    pub mappings: BTreeMap<IpAddr, Vec<MappedFlow>>,
    /// All pools of this node's networks.
    pub pools: BTreeSet<IpNet>,
    /// All inside prefixes of this node's networks.
    pub inside: BTreeSet<IpNet>,
    /// Target → virtual address under which it may dial out.
    pub egress: BTreeMap<IpAddr, BTreeSet<IpAddr>>,
    /// Prefixes that nothing inside may dial.
    pub protected: BTreeSet<IpNet>,
    /// The mark of what the fence admits ([`HostOptions::connmark`](super::HostOptions::connmark)), on a node where there was a fence; else 0.
    pub connmark: u32,
    /// Inside prefixes whose fence has just gone up: flows that touch them and were not made by a mapping are older than the fence.
    pub raised: BTreeSet<IpNet>,
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
            if let Some(network) = site.network {
                policy.pools.extend(&network.pool);
                policy.inside.extend(&network.inside);
                policy.protected.extend(&network.protected);
            }
            for (_, claim) in &site.claims {
                policy.mappings.entry(claim.virtual_address).or_default().extend(mapped(claim));
            }
            for (target, (_, address)) in egress_sources(site) {
                policy.egress.entry(target).or_default().insert(address);
            }
        }
        for flows in policy.mappings.values_mut() {
            flows.sort_unstable();
        }
        policy
    }

    /// This policy with a say also in what an `earlier` one had a say in: for the sweep after networks went, whose flows must not stay.
    #[must_use]
    pub fn covering(&self, earlier: &Self) -> Self {
        let mut policy = self.clone();
        policy.pools.extend(&earlier.pools);
        policy.inside.extend(&earlier.inside);
        policy
    }

    /// Whether the plan would have made this entry, or has no say in it.
    ///
    /// It has a say in: what dials a claimed address, what was translated from a pool to an inside prefix, what left an inside prefix under an address of
    /// a pool, what was translated and bears the fence's mark (whatever plan admitted it, it is not this one: an agent that was not there
    /// when pools or prefixes changed knows nothing else of them), and everything that touches a prefix in [`Self::raised`]. The node's own
    /// connections and those of bystanders are none of these.
    pub fn agrees(&self, flow: &FlowTuple) -> bool {
        match self.opinion(flow) {
            Opinion::Made => true,
            Opinion::Wrong => false,
            Opinion::Foreign => !self.older_than_fence(flow),
        }
    }

    fn opinion(&self, flow: &FlowTuple) -> Opinion {
        if let Some(mapped) = self.mappings.get(&flow.destination) {
            let made = mapped.iter().any(|m| self.makes(m, flow));
            return if made { Opinion::Made } else { Opinion::Wrong };
        }
        let translated = flow.destination != flow.reply_source;
        if translated && any(&self.pools, flow.destination) && any(&self.inside, flow.reply_source) {
            return Opinion::Wrong;
        }
        let renamed = flow.source != flow.reply_destination;
        if renamed && any(&self.inside, flow.source) && any(&self.pools, flow.reply_destination) {
            let allowed = self.egress.get(&flow.source).is_some_and(|a| a.contains(&flow.reply_destination));
            let made = allowed && !any(&self.protected, flow.destination);
            return if made { Opinion::Made } else { Opinion::Wrong };
        }
        let admitted = self.connmark != 0 && flow.mark & self.connmark == self.connmark;
        if admitted && (translated || renamed) {
            return Opinion::Wrong;
        }
        Opinion::Foreign
    }

    fn makes(&self, mapped: &MappedFlow, flow: &FlowTuple) -> bool {
        let port = match mapped.ports {
            None => flow.destination_port,
            Some((protocol, ports)) => {
                if protocol != flow.protocol || !ports.contains(flow.destination_port) {
                    return false;
                }
                let base = mapped.target_first.unwrap_or(ports.first());
                base.saturating_add(flow.destination_port - ports.first())
            }
        };
        // A VM that dials its own network is hidden whatever the mode.
        let hidden = mapped.source_translation == SourceTranslation::Masquerade || any(&self.inside, flow.source);
        flow.reply_source == mapped.target && flow.reply_source_port == port && (flow.source != flow.reply_destination) == hidden
    }

    fn older_than_fence(&self, flow: &FlowTuple) -> bool {
        [flow.source, flow.destination, flow.reply_source, flow.reply_destination]
            .into_iter()
            .any(|address| any(&self.raised, address))
    }
}

fn mapped(claim: &Claim) -> Vec<MappedFlow> {
    let flow = |ports, target_first| MappedFlow {
        ports,
        target: claim.target,
        target_first,
        source_translation: claim.source_translation,
    };
    if claim.ports.is_empty() {
        return vec![flow(None, None)];
    }
    claim
        .ports
        .iter()
        .map(|p| flow(Some((p.transport.number(), p.ports)), Some(p.target_first)))
        .collect()
}

fn any(prefixes: &BTreeSet<IpNet>, address: IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(&address))
}
