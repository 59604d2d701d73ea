//! Which rules are in single chains and what they have counted, asked of nftables itself: no process, and no dump of the table.
//!
//! `iptables-nft` writes a rule as expressions: its conditions, the comment among them, then `counter`, then what it does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem};
use nix::libc;

use super::generation::NFGENMSG;
use super::netlink::{Answer, Netlink, attributes, text};
use crate::netfilter::dump::{self, ObservedTable, RuleCount};
use crate::netfilter::{ChainName, Family, Table};

// linux/netfilter/nf_tables.h, linux/netfilter/nf_tables_compat.h, linux/netfilter/xt_comment.h
const NFT_MSG_GETRULE: u8 = 7;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_MATCH_INFO: u16 = 3;
/// The part of a rule's user data that is a comment (`NFTNL_UDATA_RULE_COMMENT` in libnftnl's udata.h).
const USERDATA_COMMENT: u8 = 0;

/// Reads the counters of these chains. Chains that are not there are left out, and so are rules without our mark.
pub(super) fn read(
    netlink: &mut Netlink,
    family: Family,
    table: Table,
    chains: &BTreeSet<ChainName>,
) -> io::Result<BTreeMap<ChainName, Vec<RuleCount>>> {
    let mut found = BTreeMap::new();
    for chain in chains {
        let rules = match netlink.dump(&request(family, table, chain), rule) {
            Ok(rules) => rules,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
            Err(error) => return Err(error),
        };
        if !rules.is_empty() {
            found.insert(chain.clone(), rules);
        }
    }
    Ok(found)
}

/// Reads which rules are in these chains. None if one has none, since the answer for a chain that is not there is the same, or if one holds a rule without a comment:
/// what such a rule is recognised by are its words, and the tools know those.
pub(super) fn chains(
    netlink: &mut Netlink,
    family: Family,
    table: Table,
    chains: &BTreeSet<ChainName>,
) -> io::Result<Option<ObservedTable>> {
    let mut found = ObservedTable::default();
    for chain in chains {
        let rules = netlink.dump(&request(family, table, chain), |answer| Some(rule(answer).map(|rule| rule.hash)))?;
        if rules.is_empty() || rules.iter().any(Option::is_none) {
            return Ok(None);
        }
        found.chains.insert(chain.to_string(), rules);
    }
    Ok(Some(found))
}

/// Asks for the rules of one chain.
fn request(family: Family, table: Table, chain: &ChainName) -> NetfilterMessage {
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    let name = |kind, name: &str| DefaultNla::new(kind, [name.as_bytes(), &[0]].concat());
    let inner = NetfilterMessageInner::Other {
        subsys: NetfilterSubsystem::NfTables,
        message_type: NFT_MSG_GETRULE,
        attributes: vec![name(NFTA_RULE_TABLE, table.as_str()), name(NFTA_RULE_CHAIN, chain.as_str())],
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

/// What one rule has counted, if it bears our mark.
pub(super) fn rule(answer: &Answer<'_>) -> Option<RuleCount> {
    let (mut hash, mut counted) = (None, (0, 0));
    for (kind, value) in answer.attributes(NFGENMSG) {
        match kind {
            NFTA_RULE_EXPRESSIONS => {
                for (_, expression) in attributes(value) {
                    match named(expression, NFTA_EXPR_NAME, NFTA_EXPR_DATA) {
                        Some((name, data)) if name == "counter" => counted = numbers(data),
                        Some((name, data)) if name == "match" => {
                            let comment = named(data, NFTA_MATCH_NAME, NFTA_MATCH_INFO).filter(|(name, _)| name == "comment");
                            hash = hash.or_else(|| dump::marked(&text(comment?.1)));
                        }
                        _ => {}
                    }
                }
            }
            NFTA_RULE_USERDATA => hash = hash.or_else(|| dump::marked(&comment(value)?)),
            _ => {}
        }
    }
    let (packets, bytes) = counted;
    hash.map(|hash| RuleCount { hash, packets, bytes })
}

/// A name and what belongs to it.
fn named(bytes: &[u8], name: u16, data: u16) -> Option<(String, &[u8])> {
    let find = |wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    Some((text(find(name)?), find(data)?))
}

/// Packets and bytes of a `counter`.
fn numbers(data: &[u8]) -> (u64, u64) {
    let number = |wanted| {
        let found = attributes(data).find(|(kind, _)| *kind == wanted);
        found.and_then(|(_, value)| value.try_into().ok()).map_or(0, u64::from_be_bytes)
    };
    (number(NFTA_COUNTER_PACKETS), number(NFTA_COUNTER_BYTES))
}

/// The comment in a rule's user data: type and length of one byte each, then the value.
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == USERDATA_COMMENT {
            return Some(text(value));
        }
        data = rest.get(usize::from(*length)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_in_user_data_is_found_behind_others() {
        assert_eq!(comment(&[1, 2, 0, 0, 0, 3, b'a', b'b', 0]).as_deref(), Some("ab"));
        assert_eq!(comment(&[0, 9, b'a']), None);
        assert_eq!(comment(&[]), None);
    }
}
