//! Policy routing rules as values: which routing table is asked for whom. Pure; what there is of them is decided in [`super::separation`].

use std::fmt;

use crate::netfilter::{Family, IfName, Mark};

/// A policy routing rule of ours (`ip rule`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Its place: rules are asked in ascending order (`FRA_PRIORITY`). No two of ours have the same in one family.
    pub preference: u32,
    /// The firewall mark that it asks for; None: any.
    pub mark: Option<Mark>,
    /// The interface that a packet has come in by; None: any, and the node's own packets too.
    pub input: Option<IfName>,
    /// What happens then.
    pub action: RuleAction,
}

/// As `ip rule` takes it.
impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {}", self.preference)?;
        if let Some(mark) = self.mark {
            write!(f, " fwmark {mark}")?;
        }
        if let Some(input) = &self.input {
            write!(f, " iif {input}")?;
        }
        match self.action {
            RuleAction::Lookup(table) => write!(f, " lookup {table}"),
            RuleAction::Goto(preference) => write!(f, " goto {preference}"),
            RuleAction::Blackhole => f.write_str(" blackhole"),
            RuleAction::Nop => f.write_str(" nop"),
        }
    }
}

/// What a policy routing rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    /// Asks this routing table; without a route there, the next rule is asked.
    Lookup(u32),
    /// Goes on with the rule of this preference (`FR_ACT_GOTO`).
    Goto(u32),
    /// Drops the packet without a word (`FR_ACT_BLACKHOLE`). Unlike a blackhole route it also takes what goes to link-local addresses: the look-up for these asks for routes of
    /// their interface only (`__fib6_rule_action` in `net/ipv6/fib6_rules.c`).
    Blackhole,
    /// Nothing: a place to go to (`FR_ACT_NOP`).
    Nop,
}
