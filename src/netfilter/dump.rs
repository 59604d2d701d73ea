//! What of `iptables-save` output is ours: hook positions and, rule by rule, the hashes in our chains. Never a full rule parser.

use std::collections::BTreeMap;

use super::{ChainName, Hook};

/// One table as found in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// For each built-in chain with a jump of ours: what is in it.
    pub hooks: BTreeMap<Hook, ObservedHook>,
    /// Each chain whose name starts with `SNET-`, valid or not: one entry a rule, the hash that its comment carries, or None for a rule without our mark.
    pub chains: BTreeMap<String, Vec<Option<RuleHash>>>,
}

/// Our jumps in one built-in chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedHook {
    /// Chains that our jumps lead to, with the position of each (1 = first rule), in order.
    pub jumps: Vec<(u32, ChainName)>,
}

/// Enough of a SHA-256 over a rule's rendered text to compare by: 12 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleHash(pub String);
