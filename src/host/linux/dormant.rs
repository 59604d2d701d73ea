//! Tables of nftables that somebody has switched off.
//!
//! A table with the flag `dormant` keeps its chains and rules, and no packet sees them: the kernel takes its hooks away. The iptables tools neither show the flag nor clear it, so it is
//! read and cleared over nfnetlink (`nf_tables_updtable` in `net/netfilter/nf_tables_api.c`).

use std::io;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem};
use nix::libc;

use super::generation::NFGENMSG;
use super::netlink::{Answer, Netlink};
use crate::netfilter::{Family, Table};

// linux/netfilter/nf_tables.h
pub(super) const NFT_MSG_NEWTABLE: u8 = 0;
const NFT_MSG_GETTABLE: u8 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_TABLE_F_DORMANT: u32 = 1;

fn message(family: Family, kind: u8, attributes: Vec<DefaultNla>) -> NetfilterMessage {
    let family = match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    };
    let inner = NetfilterMessageInner::Other {
        subsys: NetfilterSubsystem::NfTables,
        message_type: kind,
        attributes,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

fn name(table: Table) -> DefaultNla {
    DefaultNla::new(NFTA_TABLE_NAME, [table.as_str().as_bytes(), &[0]].concat())
}

fn flags(answer: &Answer<'_>) -> Option<u32> {
    let (_, value) = answer.attributes(NFGENMSG).find(|(kind, _)| *kind == NFTA_TABLE_FLAGS)?;
    value.try_into().ok().map(u32::from_be_bytes)
}

/// Whether an `NFT_MSG_NEWTABLE` tells of a table that is switched off.
pub(super) fn told(answer: &Answer<'_>) -> bool {
    flags(answer).is_some_and(|flags| flags & NFT_TABLE_F_DORMANT != 0)
}

/// Whether a table is switched off. One that is not there is not.
pub(super) fn is(netlink: &mut Netlink, family: Family, table: Table) -> io::Result<bool> {
    match netlink.ask(message(family, NFT_MSG_GETTABLE, vec![name(table)]), flags) {
        Ok(flags) => Ok(flags & NFT_TABLE_F_DORMANT != 0),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Switches a table on.
pub(super) fn wake(netlink: &mut Netlink, family: Family, table: Table) -> io::Result<()> {
    let none = DefaultNla::new(NFTA_TABLE_FLAGS, 0_u32.to_be_bytes().to_vec());
    netlink.transact(message(family, NFT_MSG_NEWTABLE, vec![name(table), none]))
}
