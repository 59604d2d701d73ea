//! What the kernel says has changed.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::plan::PolicyRule;

/// One event. The agent asks its plan whether the event contradicts it; if so, or if in doubt, it checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// Somebody else than us changed one of our chains, or a built-in chain that we have a jump in (nft only).
    Tables {
        /// "COMMAND (pid N)" as the kernel tells it, if it does. The number is one of the host's, not of a container's.
        by: Option<String>,
        /// Chains that were touched, `table/chain`, sorted.
        chains: Vec<String>,
    },
    /// A route of ours disappeared: its table and destination.
    RouteGone(u32, IpNet),
    /// A policy routing rule of ours disappeared.
    RuleGone(PolicyRule),
    /// A proxy neighbour of ours disappeared.
    ProxyGone(IpAddr),
    /// Interfaces, addresses or their settings changed.
    Links,
    /// Events were lost: check everything.
    Overrun,
}
