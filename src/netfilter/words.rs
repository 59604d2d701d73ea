//! Single values that rules are made of: names of chains and interfaces, ports, marks, helpers, types of ICMP.
//!
//! Valid by construction: nothing of them can break a line of `iptables-restore` input.

use std::fmt;
use std::sync::Arc;

/// Prefix of all our chains.
pub const CHAIN_PREFIX: &str = "SNET-";
/// The longest chain name that both tools take (`XT_EXTENSION_MAXNAMELEN` in `linux/netfilter/x_tables.h`, less the end mark).
pub const CHAIN_NAME_MAX: usize = 28;

/// Name of one of our chains: `SNET-`, then upper-case letters, digits and `-`, at most 28 characters in all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(Arc<str>);

impl ChainName {
    /// Puts `SNET-` before `suffix`. None if the result is no valid chain name.
    pub fn new(suffix: &str) -> Option<Self> {
        let valid = !suffix.is_empty()
            && suffix.len() <= CHAIN_NAME_MAX - CHAIN_PREFIX.len()
            && suffix.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'-');
        valid.then(|| Self(format!("{CHAIN_PREFIX}{suffix}").into()))
    }

    /// Like [`ChainName::new`] for suffixes that are fixed in the program: what no chain name may have is left out, so there is always a name.
    pub fn lossy(suffix: &str) -> Self {
        let kept = suffix
            .chars()
            .filter(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '-')
            .take(CHAIN_NAME_MAX - CHAIN_PREFIX.len());
        Self(CHAIN_PREFIX.chars().chain(kept).collect::<String>().into())
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of a network interface as the kernel takes it (`dev_valid_name` in net/core/dev.c: 1 to 15 bytes, no `/`, `:` or white space),
/// narrowed to letters, digits, `.`, `_`, `-` and `@`: a trailing `+` would be a wildcard to iptables. Cheap to clone: thousands of plan entries name the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(Arc<str>);

impl IfName {
    /// None if `name` is no such name.
    pub fn new(name: &str) -> Option<Self> {
        let valid = (1..=15).contains(&name.len())
            && name != "."
            && name != ".."
            && !name.starts_with('-')
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-@".contains(&b));
        valid.then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How interface names begin: rendered with a trailing `+`. One to fifteen characters of an [`IfName`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfPrefix(Arc<str>);

impl IfPrefix {
    /// The first `length` characters of `name`. None for none, or for more than it has.
    pub fn of(name: &IfName, length: usize) -> Option<Self> {
        name.as_str().get(..length).filter(|p| !p.is_empty()).map(|p| Self(p.into()))
    }

    /// Whether `name` begins so.
    pub fn begins(&self, name: &IfName) -> bool {
        name.as_str().starts_with(&*self.0)
    }
}

impl fmt::Display for IfPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+", self.0)
    }
}

/// A conntrack helper, by the name that the kernel registers it under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Helper {
    /// `nf_conntrack_amanda.c`, UDP.
    Amanda,
    /// `nf_conntrack_ftp.c`, TCP.
    Ftp,
    /// The call signalling of H.323 (`nf_conntrack_h323_main.c`), TCP.
    H323Signalling,
    /// The registration of H.323 (`nf_conntrack_h323_main.c`), UDP.
    H323Ras,
    /// `nf_conntrack_irc.c`, TCP, IPv4 only.
    Irc,
    /// `nf_conntrack_pptp.c`, TCP, IPv4 only.
    Pptp,
    /// `nf_conntrack_sip.c`, TCP and UDP.
    Sip,
    /// `nf_nat_snmp_basic_main.c`, UDP, IPv4 only.
    Snmp,
    /// `nf_conntrack_tftp.c`, UDP.
    Tftp,
}

impl Helper {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Amanda,
        Self::Ftp,
        Self::H323Signalling,
        Self::H323Ras,
        Self::Irc,
        Self::Pptp,
        Self::Sip,
        Self::Snmp,
        Self::Tftp,
    ];

    /// The kernel's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Amanda => "amanda",
            Self::Ftp => "ftp",
            Self::H323Signalling => "Q.931",
            Self::H323Ras => "RAS",
            Self::Irc => "irc",
            Self::Pptp => "pptp",
            Self::Sip => "sip",
            Self::Snmp => "snmp",
            Self::Tftp => "tftp",
        }
    }
}

/// Bits of the firewall mark (`skb->mark`): a value under a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark {
    /// The bits' value; none outside the mask.
    pub value: u32,
    /// Which bits are looked at or set. Not 0.
    pub mask: u32,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// Types of ICMP and `ICMPv6` messages (IANA's registries) that rules name.
pub mod icmp {
    use super::super::rules::Family;

    /// RFC 4861: neighbour solicitation.
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    /// RFC 4861: neighbour advertisement.
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

    /// Echo request (RFC 792, RFC 4443).
    pub fn echo_request(family: Family) -> u8 {
        match family {
            Family::V4 => 8,
            Family::V6 => 128,
        }
    }

    /// What a router says about a packet that it could not forward (RFC 792: unreachable, redirect, time exceeded, parameter problem; RFC 4443: unreachable, too big, time
    /// exceeded, parameter problem; RFC 4861: redirect).
    pub fn errors(family: Family) -> &'static [u8] {
        match family {
            Family::V4 => &[3, 5, 11, 12],
            Family::V6 => &[1, 2, 3, 4, 137],
        }
    }
}

/// A transport protocol that a rule can match ports of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// RFC 9293.
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Transport {
    /// The name that iptables takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// An inclusive range of ports, first ≤ last, neither 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// None if `first` is 0 or above `last`.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first != 0 && first <= last).then_some(Self { first, last })
    }

    /// The first port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The last port, inclusive.
    pub fn last(self) -> u16 {
        self.last
    }

    /// Number of ports, less one.
    pub fn span(self) -> u16 {
        self.last - self.first
    }

    /// Whether `port` is in the range.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether the two share a port.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}
