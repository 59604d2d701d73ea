//! One rule in the words of `iptables`, and the hash that it is recognised by.
//!
//! Strict: a value that would need quoting or escaping is refused. Knows nothing of chains, tables' texts and transactions; that is [`super::render`].

use std::mem::discriminant;
use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::dump::RuleHash;
use super::rules::{ConnState, Mark};
use super::{ChainName, Family, Match, Owner, PortRange, Rule, Table, Target, Transport};

/// What the comment of every rule in our chains starts with; [`HASH_DIGITS`] digits of its hash follow.
pub const RULE_COMMENT: &str = "stagenet:";
/// Hexadecimal digits of a rule's hash: 48 bits, and only rules at the same place of the same chain are ever compared.
pub const HASH_DIGITS: usize = 12;
/// What the hash of a rule without a comment begins with.
pub(super) const BARE_MARK: char = '=';
/// `XT_MAX_COMMENT_LEN` in `linux/netfilter/xt_comment.h`, less the end mark.
const COMMENT_MAX: usize = 255;
/// `prefix` of `struct xt_nflog_info` is 64 bytes with the end mark.
const NFLOG_PREFIX_MAX: usize = 63;
/// `XT_LIMIT_SCALE` in `linux/netfilter/xt_limit.h`: the tools refuse a faster rate.
const LIMIT_MAX: u32 = 10_000;

/// Why a rule cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The tools take each kind of match once a rule.
    #[error("the same kind of match stands twice")]
    RepeatedMatch,
    /// Two matches name different protocols.
    #[error("matches of two protocols in one rule")]
    TwoProtocols,
    /// Addresses, translations and ICMP belong to IPv4 rules, neighbour discovery to IPv6 rules.
    #[error("a match or target of the other address family")]
    WrongFamily,
    /// The kernel registers DNAT, SNAT, MASQUERADE for table nat only, and the tools refuse DROP there.
    #[error("a target that table {} does not have", .0.as_str())]
    WrongTable(Table),
    /// Ports can be translated only where the rule matches ports.
    #[error("a translation of ports without a match of destination ports")]
    PortsWithoutProtocol,
    /// The translated range is not as long as the matched one.
    #[error("translated and matched ports are not equally many")]
    PortsDiffer,
    /// A mark of no bits matches everything and sets nothing.
    #[error("a connection mark without a bit")]
    EmptyMark,
    /// 1 to 10000 a second, burst 1 to 10000.
    #[error("a rate limit outside 1 to 10000")]
    Limit,
    /// 1 to 63 letters, digits, `-`, `.`, `:`.
    #[error("a log prefix that is not 1 to 63 letters, digits, '-', '.' or ':'")]
    NflogPrefix,
    /// An owner's name that would need quoting.
    #[error("an owner's name with other characters than letters, digits, '-', '_', '.' and '/'")]
    OwnerName,
    /// A value has bits that its mask has not, or the mask has none.
    #[error("a mark whose value is not within its mask")]
    Mark,
    /// Neither zone nor helper.
    #[error("connection tracking without a zone or a helper")]
    NothingToTrack,
    /// The prefixes of NETMAP must be of one length.
    #[error("a prefix that is translated to one of another length")]
    PrefixesDiffer,
    /// A rule or hook leads to a chain that is not in the table.
    #[error("a way to chain {0}, which is not there")]
    MissingChain(ChainName),
}

/// Everything of a rule behind `-A CHAIN`, with a leading space.
pub(super) fn rule(family: Family, table: Table, rule: &Rule) -> Result<String, Problem> {
    check_place(family, table, rule)?;
    let (matches, target) = body(family, rule)?;
    if bare(rule) {
        return Ok(format!("{matches} {target}"));
    }
    let comment = comment(&rule.owner, &hash(rule)?)?;
    Ok(format!("{matches} -m comment --comment {comment} {target}"))
}

/// Whether `rule` is written without a comment: if it is to be ([`Rule::bare`]), and both tools print its words as they read them. They print addresses, then interfaces, then
/// extensions, and leave out what matches everything; how they shorten IPv6 addresses that begin with zeros depends on the C library.
pub(super) fn bare(rule: &Rule) -> bool {
    let place = |m: &Match| match m {
        Match::Source(prefix) if plain(prefix) => Some(0),
        Match::Destination(prefix) if plain(prefix) => Some(1),
        Match::In(_) | Match::InLike(_) => Some(2),
        Match::Out(_) | Match::OutLike(_) => Some(3),
        Match::Mark(_) | Match::ConnMark(_) => Some(4),
        _ => None,
    };
    let places: Option<Vec<u8>> = rule.matches.iter().map(place).collect();
    let target = match rule.target {
        Target::Jump(_) | Target::Goto(_) | Target::Return | Target::SetMark(_) => true,
        Target::Track { zone, helper } => zone.is_some() && helper.is_none(),
        _ => false,
    };
    rule.bare && target && places.is_some_and(|places| places.is_sorted_by(|a, b| a < b))
}

fn plain(prefix: &IpNet) -> bool {
    prefix.prefix_len() > 0
        && match prefix {
            IpNet::V4(_) => true,
            IpNet::V6(net) => net.network().segments()[0] != 0,
        }
}

/// What a rule of ours without a comment is recognised by. `words`: all of it behind `-A CHAIN`, without counters. Told from the hash of a comment by its first character.
pub(super) fn bare_hash(words: &str) -> RuleHash {
    let RuleHash(digits) = digest(words.trim_start(), "", &Owner::Base);
    RuleHash(format!("{BARE_MARK}{digits}"))
}

/// What the comment of `rule` carries, or what its words say if it has none. Two rules of a table have the same hash only if they do the same on behalf of the same owner. The words are those of IPv4 in
/// both families: nobody compares across them.
pub fn hash(rule: &Rule) -> Result<RuleHash, Problem> {
    let (matches, target) = body(Family::V4, rule)?;
    if bare(rule) {
        return Ok(bare_hash(&format!("{matches} {target}")));
    }
    Ok(digest(&matches, &target, &rule.owner))
}

fn digest(matches: &str, target: &str, owner: &Owner) -> RuleHash {
    let bytes = Sha256::digest(format!("{matches} {target} {}", owner_name(owner)));
    let number = bytes
        .iter()
        .take(HASH_DIGITS / 2)
        .fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    RuleHash(format!("{number:0HASH_DIGITS$x}"))
}

fn owner_name(owner: &Owner) -> &str {
    match owner {
        Owner::Base => "",
        Owner::Network(name) | Owner::Mapping(name) => name,
    }
}

fn comment(owner: &Owner, hash: &RuleHash) -> Result<String, Problem> {
    let name = owner_name(owner);
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b)) {
        return Err(Problem::OwnerName);
    }
    let separator = if name.is_empty() { "" } else { ":" };
    let mut comment = format!("{RULE_COMMENT}{}{separator}{name}", hash.0);
    comment.truncate(COMMENT_MAX);
    Ok(comment)
}

fn check_place(family: Family, table: Table, rule: &Rule) -> Result<(), Problem> {
    let of_family = |prefix: &IpNet| Family::of_net(prefix) == family;
    let matched = rule.matches.iter().all(|m| match m {
        Match::Source(prefix) | Match::Destination(prefix) | Match::OriginalDestination(prefix) => of_family(prefix),
        _ => true,
    });
    let translated = match &rule.target {
        Target::Dnat { to, .. } | Target::Snat { to } => Family::of(*to) == family,
        Target::Netmap { to } => of_family(to),
        _ => true,
    };
    if !(matched && translated) {
        return Err(Problem::WrongFamily);
    }
    let fits = match &rule.target {
        Target::Dnat { .. } | Target::Snat { .. } | Target::Netmap { .. } | Target::Masquerade => table == Table::Nat,
        Target::Track { .. } => table == Table::Raw,
        Target::ClampMss => table == Table::Mangle,
        Target::SetMark(_) => matches!(table, Table::Raw | Table::Mangle),
        Target::Drop => table != Table::Nat,
        _ => true,
    };
    if fits { Ok(()) } else { Err(Problem::WrongTable(table)) }
}

/// Matches (each with a leading space), and the target with its `-j` or `-g`.
fn body(family: Family, rule: &Rule) -> Result<(String, String), Problem> {
    // Empty, so that joining puts a space before the first word too.
    let mut words = vec![String::new()];
    let mut protocol = None;
    let mut connection = false;
    for (at, m) in rule.matches.iter().enumerate() {
        if rule.matches.iter().take(at).any(|before| discriminant(before) == discriminant(m)) {
            return Err(Problem::RepeatedMatch);
        }
        if let Some(name) = protocol_of(family, m) {
            match protocol.replace(name) {
                None => words.push(format!("-p {name}")),
                Some(before) if before == name => {}
                Some(_) => return Err(Problem::TwoProtocols),
            }
        }
        if connection_option(m).is_none() {
            words.push(condition(family, m)?);
        } else if !std::mem::replace(&mut connection, true) {
            // All conditions on the connection in one match: each match costs every packet that comes so far.
            words.push("-m conntrack".to_owned());
            words.extend(rule.matches.iter().filter_map(connection_option));
        }
    }
    Ok((words.join(" "), target(rule)?))
}

fn protocol_of(family: Family, m: &Match) -> Option<&'static str> {
    match m {
        Match::DestinationPorts(transport, _) | Match::OriginalDestinationPorts(transport, _) => Some(transport.as_str()),
        Match::TcpSyn => Some(Transport::Tcp.as_str()),
        Match::Icmp(_) | Match::NoRoute if family == Family::V4 => Some("icmp"),
        Match::Icmp(_) | Match::NoRoute => Some("ipv6-icmp"),
        _ => None,
    }
}

fn connection_option(m: &Match) -> Option<String> {
    match m {
        Match::State(ConnState::EstablishedOrRelated) => Some("--ctstate ESTABLISHED,RELATED".to_owned()),
        Match::State(ConnState::Dnat) => Some("--ctstate DNAT".to_owned()),
        Match::OriginalDestination(prefix) => Some(format!("--ctorigdst {}", prefix.trunc())),
        Match::OriginalDestinationPorts(_, ports) => Some(format!("--ctorigdstport {}", range(*ports, ':'))),
        _ => None,
    }
}

fn condition(family: Family, m: &Match) -> Result<String, Problem> {
    Ok(match m {
        Match::Source(prefix) => format!("-s {}", prefix.trunc()),
        Match::Destination(prefix) => format!("-d {}", prefix.trunc()),
        Match::In(name) => format!("-i {name}"),
        Match::Out(name) => format!("-o {name}"),
        Match::DestinationPorts(transport, ports) => format!("-m {} --dport {}", transport.as_str(), range(*ports, ':')),
        Match::TcpSyn => "-m tcp --tcp-flags SYN,RST SYN".to_owned(),
        Match::Icmp(kind) if family == Family::V4 => format!("-m icmp --icmp-type {kind}"),
        Match::Icmp(kind) => format!("-m icmp6 --icmpv6-type {kind}"),
        Match::NoRoute if family == Family::V4 => "-m icmp --icmp-type 3/0".to_owned(),
        Match::NoRoute => "-m icmp6 --icmpv6-type 1/0".to_owned(),
        Match::InLike(prefix) => format!("-i {prefix}"),
        Match::OutLike(prefix) => format!("-o {prefix}"),
        Match::Mark(mark) => format!("-m mark --mark {}", within(*mark)?),
        Match::ConnMark(0) => return Err(Problem::EmptyMark),
        Match::ConnMark(bits) => format!("-m connmark --mark {bits:#x}/{bits:#x}"),
        Match::Limit { per_second, burst } if (1..=LIMIT_MAX).contains(per_second) && (1..=LIMIT_MAX).contains(burst) => {
            format!("-m limit --limit {per_second}/second --limit-burst {burst}")
        }
        Match::Limit { .. } => return Err(Problem::Limit),
        Match::State(_) | Match::OriginalDestination(_) | Match::OriginalDestinationPorts(..) => connection_option(m).unwrap_or_default(),
    })
}

fn target(rule: &Rule) -> Result<String, Problem> {
    Ok(match &rule.target {
        Target::Jump(chain) => format!("-j {chain}"),
        Target::Goto(chain) => format!("-g {chain}"),
        Target::Return => "-j RETURN".to_owned(),
        Target::Accept => "-j ACCEPT".to_owned(),
        Target::Drop => "-j DROP".to_owned(),
        Target::Dnat { to, ports } => {
            let ports = translated_ports(rule, *ports)?;
            match to {
                IpAddr::V6(to) if !ports.is_empty() => format!("-j DNAT --to-destination [{to}]{ports}"),
                _ => format!("-j DNAT --to-destination {to}{ports}"),
            }
        }
        Target::Snat { to } => format!("-j SNAT --to-source {to}"),
        Target::Netmap { to } => {
            let same = |m: &Match| matches!(m, Match::Source(from) | Match::Destination(from) if from.prefix_len() == to.prefix_len());
            if !rule.matches.iter().any(same) {
                return Err(Problem::PrefixesDiffer);
            }
            format!("-j NETMAP --to {}", to.trunc())
        }
        Target::Masquerade => "-j MASQUERADE".to_owned(),
        Target::SetMark(mark) => format!("-j MARK --set-xmark {}", within(*mark)?),
        Target::Track { zone: None, helper: None } => return Err(Problem::NothingToTrack),
        Target::Track { zone, helper } => {
            let zone = zone.map(|z| format!(" --zone {z}")).unwrap_or_default();
            let helper = helper.map(|h| format!(" --helper {}", h.as_str())).unwrap_or_default();
            format!("-j CT{zone}{helper}")
        }
        Target::ClampMss => "-j TCPMSS --clamp-mss-to-pmtu".to_owned(),
        Target::SetConnMark(0) => return Err(Problem::EmptyMark),
        Target::SetConnMark(bits) => format!("-j CONNMARK --set-xmark {bits:#x}/{bits:#x}"),
        Target::Nflog { group, prefix } => {
            let plain = prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b));
            if !plain || prefix.is_empty() || prefix.len() > NFLOG_PREFIX_MAX {
                return Err(Problem::NflogPrefix);
            }
            format!("-j NFLOG --nflog-group {group} --nflog-prefix {prefix}")
        }
    })
}

/// `mark`, unless no packet could bear it.
fn within(mark: Mark) -> Result<Mark, Problem> {
    if mark.mask == 0 || mark.value & !mark.mask != 0 {
        return Err(Problem::Mark);
    }
    Ok(mark)
}

/// `:FIRST-LAST/BASE` moves a range port by port (`NF_NAT_RANGE_PROTO_OFFSET`, kernel 4.18 and iptables 1.8.0); without `/BASE` a kernel would
/// choose any port of the range. A range that stays where it is needs no words: the port is kept.
fn translated_ports(rule: &Rule, ports: Option<(PortRange, u16)>) -> Result<String, Problem> {
    let Some((to, base)) = ports else {
        return Ok(String::new());
    };
    let matched = rule.matches.iter().find_map(|m| match m {
        Match::DestinationPorts(_, ports) => Some(*ports),
        _ => None,
    });
    match matched {
        None => Err(Problem::PortsWithoutProtocol),
        Some(from) if from.first() != base || from.span() != to.span() => Err(Problem::PortsDiffer),
        Some(from) if from == to => Ok(String::new()),
        Some(_) if to.span() == 0 => Ok(format!(":{}", to.first())),
        Some(_) => Ok(format!(":{}/{base}", range(to, '-'))),
    }
}

fn range(ports: PortRange, separator: char) -> String {
    match ports.span() {
        0 => ports.first().to_string(),
        _ => format!("{}{separator}{}", ports.first(), ports.last()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
#[path = "encode_tests.rs"]
mod tests;
