//! From strings to values: the only place that looks at a raw spec. All problems of an object are found, not just the first.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::api::network::SourceTranslation;
use crate::netfilter::IfName;

/// A network that passed validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidNetwork {
    /// Its name.
    pub name: String,
    /// The outside interface as named; None: found by subnet.
    pub outside_interface: Option<IfName>,
    /// The pool. Sorted.
    pub pool: BTreeSet<Ipv4Net>,
    /// Whether claimed addresses are announced.
    pub announce: bool,
    /// The inside interface as named; None: found by subnet.
    pub inside_interface: Option<IfName>,
    /// Inside prefixes. Sorted.
    pub inside: BTreeSet<Ipv4Net>,
    /// Addresses that the active gateway answers for inside. Sorted.
    pub gateway_addresses: BTreeSet<Ipv4Addr>,
    /// Default for mappings.
    pub source_translation: SourceTranslation,
    /// Whether mapped VMs may open connections to the outside.
    pub egress_allowed: bool,
    /// Whether denied packets go to NFLOG.
    pub log: bool,
    /// Production prefixes. Sorted.
    pub protected: BTreeSet<Ipv4Net>,
}
