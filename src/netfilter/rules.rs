//! The vocabulary: families, tables, hooks, chains, matches, targets. Words are the kernel's and `iptables-extensions(8)`'.
//!
//! Values here are valid by construction ([`IfName`], [`ChainName`]): nothing that reaches the renderer can break a restore line.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Address family of a table: `iptables` or `ip6tables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The family of a prefix.
    pub fn of_net(prefix: &IpNet) -> Self {
        Self::of(prefix.addr())
    }
}

/// A table, in the order in which additions are applied: the fence first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// The fence.
    Mangle,
    /// Conntrack zones, marks and helpers, before conntrack sees a packet.
    Raw,
    /// The translations.
    Nat,
    /// The accepts for hosts whose FORWARD policy is DROP.
    Filter,
}

impl Table {
    /// All, in the order in which additions are applied.
    pub const ALL: [Self; 4] = [Self::Mangle, Self::Raw, Self::Nat, Self::Filter];

    /// The name that the tools use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Raw => "raw",
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }
}

/// A built-in chain that we place a jump into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To the node itself.
    Input,
    /// Through the node.
    Forward,
    /// From the node itself.
    Output,
    /// After routing.
    Postrouting,
}

impl Hook {
    /// All, in the order in which a packet meets them.
    pub const ALL: [Self; 5] = [Self::Prerouting, Self::Input, Self::Forward, Self::Output, Self::Postrouting];

    /// The chain's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prerouting => "PREROUTING",
            Self::Input => "INPUT",
            Self::Forward => "FORWARD",
            Self::Output => "OUTPUT",
            Self::Postrouting => "POSTROUTING",
        }
    }
}

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
    use super::Family;

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

/// Connection states as `-m conntrack --ctstate` knows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnState {
    /// `ESTABLISHED,RELATED`: part of a connection that was let in before, or an error about one.
    EstablishedOrRelated,
    /// `DNAT`: the destination was translated.
    Dnat,
}

/// One condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Match {
    /// `-s`
    Source(IpNet),
    /// `-d`
    Destination(IpNet),
    /// `-i`
    In(IfName),
    /// `-o`
    Out(IfName),
    /// `-i PREFIX+`
    InLike(IfPrefix),
    /// `-o PREFIX+`
    OutLike(IfPrefix),
    /// `-m ttl --ttl-lt 2`, or `-m hl --hl-lt 2`: packets that a router does not pass on.
    LastHop,
    /// `-m mark --mark V/M`
    Mark(Mark),
    /// `-p P --dport A:B`
    DestinationPorts(Transport, PortRange),
    /// `-p tcp --tcp-flags SYN,RST SYN`: the packets in which the two ends tell each other the largest segment that they take.
    TcpSyn,
    /// `-p icmp --icmp-type T`, or `-p ipv6-icmp --icmpv6-type T`. See [`icmp`].
    Icmp(u8),
    /// `-m conntrack --ctstate`
    State(ConnState),
    /// `-m conntrack --ctorigdst`: the destination before translation.
    OriginalDestination(IpNet),
    /// `-p P -m conntrack --ctorigdstport A:B`: the destination port before translation.
    OriginalDestinationPorts(Transport, PortRange),
    /// `-m connmark --mark V/V`: all these bits are set in the connection's mark.
    ConnMark(u32),
    /// `-m limit --limit N/second --limit-burst M`
    Limit {
        /// Packets a second on average.
        per_second: u32,
        /// Packets at once.
        burst: u32,
    },
}

/// What a matching rule does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// `-j CHAIN`: comes back if nothing there decides.
    Jump(ChainName),
    /// `-g CHAIN`: returns to where the present chain was called from.
    Goto(ChainName),
    /// `-j RETURN`
    Return,
    /// `-j ACCEPT`
    Accept,
    /// `-j DROP`
    Drop,
    /// `-j DNAT --to-destination`
    Dnat {
        /// The target's address.
        to: IpAddr,
        /// `None` keeps the port. `Some((range, base))` moves the range that starts at `base` to `range`, port by port.
        ports: Option<(PortRange, u16)>,
    },
    /// `-j SNAT --to-source`
    Snat {
        /// The new source address.
        to: IpAddr,
    },
    /// `-j NETMAP --to`: the prefix of the address is replaced, its host part kept. Destinations in PREROUTING, sources in POSTROUTING.
    Netmap {
        /// The new prefix, as long as the one that the rule matches.
        to: IpNet,
    },
    /// `-j MASQUERADE`: the address of the interface that the packet leaves by.
    Masquerade,
    /// `-j CONNMARK --set-xmark V/V`: sets these bits in the connection's mark.
    SetConnMark(u32),
    /// `-j MARK --set-xmark V/M`
    SetMark(Mark),
    /// `-j CT [--zone Z] [--helper H]`: decides both for this packet, once: a second CT rule on the same packet is ignored.
    Track {
        /// Conntrack zone, if another than 0.
        zone: Option<u16>,
        /// Helper for a connection that this packet opens.
        helper: Option<Helper>,
    },
    /// `-j TCPMSS --clamp-mss-to-pmtu`
    ClampMss,
    /// `-j NFLOG --nflog-group G --nflog-prefix P`
    Nflog {
        /// Group that a listener binds to.
        group: u16,
        /// At most 63 bytes of letters, digits, `-`, `.`, `:`; anything else is refused by the renderer.
        prefix: String,
    },
}

/// On whose behalf a rule exists. Not rendered: it says whom to blame when the kernel refuses the rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The product itself: hooks, dispatch, trees.
    Base,
    /// A network, by name.
    Network(String),
    /// A mapping, by `namespace/name`.
    Mapping(String),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// All must hold. Rendered in this order.
    pub matches: Vec<Match>,
    /// What happens then.
    pub target: Target,
    /// Whose rule it is.
    pub owner: Owner,
}

impl Rule {
    /// A rule.
    pub fn new(owner: Owner, matches: impl IntoIterator<Item = Match>, target: Target) -> Self {
        Self {
            matches: matches.into_iter().collect(),
            target,
            owner,
        }
    }
}

/// The rules of one chain, in order.
pub type Chain = Vec<Rule>;

/// A rule of ours in a built-in chain. Every packet of the node meets it, so it asks for little.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookRule {
    /// All packets are led to the chain.
    Jump(ChainName),
    /// Those are accepted whose connection mark has all these bits. (The opposite, leading the unmarked ones to a chain, would pass over what conntrack has made nothing of:
    /// `connmark_mt` in net/netfilter/xt_connmark.c matches no such packet, negated or not.)
    AcceptMarked(u32),
}

impl HookRule {
    /// The chain that packets are led to.
    pub fn chain(&self) -> Option<&ChainName> {
        match self {
            Self::Jump(chain) => Some(chain),
            Self::AcceptMarked(_) => None,
        }
    }
}

impl From<ChainName> for HookRule {
    fn from(chain: ChainName) -> Self {
        Self::Jump(chain)
    }
}

/// In the words of `iptables-save`, without the comment that marks it as ours.
impl fmt::Display for HookRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) => write!(f, "-j {chain}"),
            Self::AcceptMarked(bits) => write!(f, "-m connmark --mark {bits:#x}/{bits:#x} -j ACCEPT"),
        }
    }
}

/// Our part of one table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableRules {
    /// Our rule in each built-in chain, the first there.
    pub hooks: BTreeMap<Hook, HookRule>,
    /// Our chains. Every chain that a rule or hook names is in here.
    pub chains: BTreeMap<ChainName, Chain>,
}

/// Everything of ours in netfilter. A table that is absent holds nothing of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// By family and table.
    pub tables: BTreeMap<(Family, Table), TableRules>,
}
