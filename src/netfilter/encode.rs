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
    let comment = comment(&rule.owner, &hash(rule)?)?;
    Ok(format!("{matches} -m comment --comment {comment} {target}"))
}

/// What the comment of `rule` carries. Two rules of a table have the same hash only if they do the same on behalf of the same owner. The words are those of IPv4 in
/// both families: nobody compares across them.
pub fn hash(rule: &Rule) -> Result<RuleHash, Problem> {
    let (matches, target) = body(Family::V4, rule)?;
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
        Match::Icmp(_) if family == Family::V4 => Some("icmp"),
        Match::Icmp(_) => Some("ipv6-icmp"),
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
        Match::InLike(prefix) => format!("-i {prefix}"),
        Match::OutLike(prefix) => format!("-o {prefix}"),
        Match::LastHop if family == Family::V4 => "-m ttl --ttl-lt 2".to_owned(),
        Match::LastHop => "-m hl --hl-lt 2".to_owned(),
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
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::netfilter::{IfName, Transport};

    fn words(table: Table, matches: &[Match], target: Target) -> Result<String, Problem> {
        let text = rule(Family::V4, table, &Rule::new(Owner::Base, matches.to_vec(), target))?;
        // The comment is looked at elsewhere.
        let (matches, rest) = text.split_once(" -m comment --comment ").unwrap();
        Ok(format!("{}{}", matches.trim_start(), rest.trim_start_matches(|c| c != ' ')))
    }

    fn to(ports: Option<(PortRange, u16)>) -> Target {
        Target::Dnat {
            to: IpAddr::from([192, 168, 200, 3]),
            ports,
        }
    }

    fn ports(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    fn dialled(first: u16, last: u16) -> Match {
        Match::DestinationPorts(Transport::Tcp, ports(first, last))
    }

    #[test]
    fn translated_ports_move_one_by_one() {
        let dnat = |at: Match, moved| words(Table::Nat, &[at], to(moved)).unwrap();
        assert_eq!(
            dnat(dialled(80, 80), None),
            "-p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.200.3"
        );
        assert_eq!(
            dnat(dialled(80, 80), Some((ports(8080, 8080), 80))),
            "-p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.200.3:8080"
        );
        assert_eq!(
            dnat(dialled(80, 90), Some((ports(8080, 8090), 80))),
            "-p tcp -m tcp --dport 80:90 -j DNAT --to-destination 192.168.200.3:8080-8090/80"
        );
        assert_eq!(
            dnat(dialled(80, 90), Some((ports(80, 90), 80))),
            "-p tcp -m tcp --dport 80:90 -j DNAT --to-destination 192.168.200.3"
        );
    }

    #[test]
    fn ports_move_only_with_the_ports_matched() {
        let moved = Some((ports(8080, 8090), 80));
        assert_eq!(words(Table::Nat, &[], to(moved)), Err(Problem::PortsWithoutProtocol));
        assert_eq!(words(Table::Nat, &[dialled(80, 89)], to(moved)), Err(Problem::PortsDiffer));
        assert_eq!(words(Table::Nat, &[dialled(81, 91)], to(moved)), Err(Problem::PortsDiffer));
    }

    #[test]
    fn conditions_on_the_connection_are_one_match() {
        let matches = [
            Match::Out(IfName::new("eth1").unwrap()),
            Match::OriginalDestinationPorts(Transport::Udp, ports(53, 53)),
            Match::State(ConnState::Dnat),
            Match::OriginalDestination("192.168.100.3/24".parse().unwrap()),
        ];
        assert_eq!(
            words(Table::Nat, &matches, Target::Masquerade).unwrap(),
            "-o eth1 -p udp -m conntrack --ctorigdstport 53 --ctstate DNAT --ctorigdst 192.168.100.0/24 -j MASQUERADE"
        );
    }

    #[test]
    fn what_the_tools_would_refuse_is_refused_here() {
        let mangle = |matches: &[Match], target| words(Table::Mangle, matches, target).unwrap_err();
        assert_eq!(mangle(&[dialled(1, 1), dialled(2, 2)], Target::Drop), Problem::RepeatedMatch);
        assert_eq!(mangle(&[dialled(1, 1), Match::Icmp(8)], Target::Drop), Problem::TwoProtocols);
        assert_eq!(
            mangle(&[Match::Source("fd00::/64".parse().unwrap())], Target::Drop),
            Problem::WrongFamily
        );
        let mark = |value, mask| Match::Mark(Mark { value, mask });
        assert_eq!(mangle(&[mark(0, 0)], Target::Drop), Problem::Mark);
        assert_eq!(mangle(&[mark(0x300, 0xff)], Target::Drop), Problem::Mark);
        let track = |zone, helper| Target::Track { zone, helper };
        assert_eq!(mangle(&[], track(Some(1), None)), Problem::WrongTable(Table::Mangle));
        assert_eq!(words(Table::Raw, &[], track(None, None)), Err(Problem::NothingToTrack));
        assert_eq!(mangle(&[Match::ConnMark(0)], Target::Drop), Problem::EmptyMark);
        assert_eq!(mangle(&[], Target::SetConnMark(0)), Problem::EmptyMark);
        assert_eq!(mangle(&[], to(None)), Problem::WrongTable(Table::Mangle));
        assert_eq!(words(Table::Nat, &[], Target::Drop), Err(Problem::WrongTable(Table::Nat)));
        for (per_second, burst) in [(0, 1), (10_001, 1), (1, 0), (1, 10_001)] {
            assert_eq!(mangle(&[Match::Limit { per_second, burst }], Target::Drop), Problem::Limit);
        }
        for prefix in [
            String::new(),
            "a b".to_owned(),
            "a\"b".to_owned(),
            "a\nCOMMIT".to_owned(),
            "x".repeat(64),
        ] {
            assert_eq!(mangle(&[], Target::Nflog { group: 5, prefix }), Problem::NflogPrefix);
        }
        for owner in ["a b", "a\"", "a\n-A", "ä"] {
            let rule_of = Rule::new(Owner::Network(owner.to_owned()), [], Target::Drop);
            assert_eq!(rule(Family::V4, Table::Mangle, &rule_of), Err(Problem::OwnerName));
        }
    }

    #[test]
    fn ipv6_rules_have_no_ipv4_in_them() {
        let v6 = |m: Match| rule(Family::V6, Table::Mangle, &Rule::new(Owner::Base, [m], Target::Drop));
        assert!(
            v6(Match::Icmp(136))
                .unwrap()
                .starts_with(" -p ipv6-icmp -m icmp6 --icmpv6-type 136 ")
        );
        assert!(v6(Match::In(IfName::new("eth1").unwrap())).is_ok());
        assert_eq!(v6(Match::Source("10.0.0.0/8".parse().unwrap())), Err(Problem::WrongFamily));
        assert!(v6(Match::Source("fd00::/64".parse().unwrap())).is_ok());
    }

    #[test]
    fn the_hash_is_of_what_a_rule_does_and_for_whom() {
        let of = |owner: &str, target| hash(&Rule::new(Owner::Mapping(owner.to_owned()), [], target)).unwrap();
        assert_eq!(of("a/b", Target::Drop).0.len(), HASH_DIGITS);
        assert_ne!(of("a/b", Target::Drop), of("a/b", Target::Accept));
        assert_ne!(of("a/b", Target::Drop), of("a/c", Target::Drop));
    }

    #[test]
    fn the_longest_owner_still_fits_a_comment() {
        let owner = Owner::Mapping(format!("{}/{}", "n".repeat(63), "m".repeat(253)));
        let text = rule(Family::V4, Table::Mangle, &Rule::new(owner, [], Target::Drop)).unwrap();
        let comment = text.split(' ').find(|word| word.starts_with(RULE_COMMENT)).unwrap();
        assert_eq!(comment.len(), COMMENT_MAX);
    }
}
