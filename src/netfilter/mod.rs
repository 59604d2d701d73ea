//! Typed netfilter rules, their rendering to `iptables-restore` input, and the comparison with what the kernel holds.
//!
//! Pure: no IO, no clock, no API types. Rules stay typed until [`render`]; what comes back from the kernel is
//! recognised by the hash in a rule's comment and never parsed further.

pub mod diff;
pub mod dump;
mod encode;
pub mod names;
pub mod path;
pub mod render;
pub mod rules;
#[cfg(test)]
mod sample;
pub mod trace;
pub mod tree;
mod words;

pub use rules::{
    Chain, ChainName, ConnState, Family, Helper, Hook, HookRule, IfName, IfPrefix, Mark, Match, Owner, PortRange, Rule, Ruleset, Table,
    TableRules, Target, Transport,
};
