//! The vocabulary: families, tables, hooks, chains, matches, targets. Words are the kernel's and `iptables-extensions(8)`'.
//!
//! Values here are valid by construction ([`IfName`], [`ChainName`]): nothing that reaches the renderer can break a restore line.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

pub use super::words::{CHAIN_NAME_MAX, CHAIN_PREFIX, ChainName, Helper, IfName, IfPrefix, Mark, PortRange, Transport, icmp};

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
    /// `-m mark --mark V/M`
    Mark(Mark),
    /// `-p P --dport A:B`
    DestinationPorts(Transport, PortRange),
    /// `-p tcp --tcp-flags SYN,RST SYN`: the packets in which the two ends tell each other the largest segment that they take.
    TcpSyn,
    /// `-p icmp --icmp-type T`, or `-p ipv6-icmp --icmpv6-type T`. See [`icmp`].
    Icmp(u8),
    /// `-p icmp --icmp-type 3/0`, or `-p ipv6-icmp --icmpv6-type 1/0`: what a router says that knows no way (RFC 792, RFC 4443).
    NoRoute,
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
    /// Whether it does without a comment, see [`Rule::bare`].
    pub bare: bool,
}

impl Rule {
    /// A rule.
    pub fn new(owner: Owner, matches: impl IntoIterator<Item = Match>, target: Target) -> Self {
        Self {
            matches: matches.into_iter().collect(),
            target,
            owner,
            bare: false,
        }
    }

    /// For rules that very many packets meet: written without a comment, which costs each of them as much as a comparison of the connection's mark where iptables is nft's.
    /// Such a rule is recognised by its words, so it has to be of a form that the tools print as they read it (`bare` in module `encode`); another one keeps its comment.
    #[must_use]
    pub fn bare(self) -> Self {
        Self { bare: true, ..self }
    }
}

/// The rules of one chain, in order.
pub type Chain = Vec<Rule>;

/// A rule of ours in a built-in chain. Every packet of the node meets it, so it asks for little.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HookRule {
    /// All packets are led to the chain.
    Jump(ChainName),
    /// The same without a comment, where every packet that passes the node comes by. Ours by the name of the chain, so only for [`HookRule::BARE`].
    Bare(ChainName),
    /// Those are accepted whose connection mark has all these bits. (The opposite, leading the unmarked ones to a chain, would pass over what conntrack has made nothing of:
    /// `connmark_mt` in `net/netfilter/xt_connmark.c` matches no such packet, negated or not.)
    AcceptMarked(u32),
}

impl HookRule {
    /// Where a jump bears no comment, and to which of our chains.
    pub const BARE: [(Hook, &str); 2] = [(Hook::Forward, "SNET-FWD"), (Hook::Prerouting, "SNET-RAW")];

    /// What leads all packets to `chain`.
    pub fn to(at: Hook, chain: ChainName) -> Self {
        if Self::BARE.contains(&(at, chain.as_str())) {
            Self::Bare(chain)
        } else {
            Self::Jump(chain)
        }
    }

    /// The chain that packets are led to.
    pub fn chain(&self) -> Option<&ChainName> {
        match self {
            Self::Jump(chain) | Self::Bare(chain) => Some(chain),
            Self::AcceptMarked(_) => None,
        }
    }
}

impl From<ChainName> for HookRule {
    fn from(chain: ChainName) -> Self {
        Self::Jump(chain)
    }
}

/// In the words of `iptables-save`, without the comment that may mark it as ours.
impl fmt::Display for HookRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jump(chain) | Self::Bare(chain) => write!(f, "-j {chain}"),
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
