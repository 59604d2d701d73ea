//! Which generations of the nftables rule set are our own doing.
//!
//! The kernel counts generations, one a transaction, and tells each with the process that made it; but it tells the process id of
//! the initial namespace, which a container cannot compare with its own. So the counter is read before and after each restore of ours,
//! and if it moved by exactly the number of our transactions, those generations are ours. If somebody else came in between, none is taken
//! for ours and the agent checks once too often, which is the safe side.
//!
//! The counter also tells that nothing was missed: once the listener has heard of the present generation, no change is unknown of a table that was read since it began.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::RangeInclusive;

use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem};

use super::netlink::{Answer, Netlink};
use crate::netfilter::{Family, Table};

/// `NFT_MSG_NEWGEN` and `NFT_MSG_GETGEN` (`linux/netfilter/nf_tables.h`).
pub(super) const NFT_MSG_NEWGEN: u8 = 15;
const NFT_MSG_GETGEN: u8 = 16;
/// `NFTA_GEN_ID`
pub(super) const NFTA_GEN_ID: u16 = 1;
/// `sizeof(struct nfgenmsg)`
pub(super) const NFGENMSG: usize = 4;
/// Restores whose generations are remembered: events arrive in order and at once.
const REMEMBERED: usize = 64;

/// The present generation.
pub(super) fn read(netlink: &mut Netlink) -> io::Result<u32> {
    let inner = NetfilterMessageInner::Other {
        subsys: NetfilterSubsystem::NfTables,
        message_type: NFT_MSG_GETGEN,
        attributes: Vec::new(),
    };
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
    netlink.ask(NetfilterMessage::new(header, inner), id)
}

/// How many generations the restore of `text` makes: one a table. A refused one makes fewer, nobody knows how many, so that none counts as
/// ours: the only one that came meanwhile may be somebody else's.
pub(super) fn expected(text: &str, restored: bool) -> u32 {
    let commits = text.lines().filter(|line| *line == "COMMIT" && restored).count();
    u32::try_from(commits).unwrap_or_default()
}

/// The generation that a `NFT_MSG_NEWGEN` tells.
pub(super) fn id(answer: &Answer<'_>) -> Option<u32> {
    let (_, value) = answer.attributes(NFGENMSG).find(|(kind, _)| *kind == NFTA_GEN_ID)?;
    value.try_into().ok().map(u32::from_be_bytes)
}

/// Generations that we made, and those that the listener has heard of.
#[derive(Debug, Default)]
pub(super) struct Own {
    ranges: VecDeque<RangeInclusive<u32>>,
    /// The last generation that was heard of. None: nobody listens, or has not for long enough.
    heard: Option<u32>,
    /// How often the listener has begun.
    begun: u64,
    /// Tables that have been read at all.
    read: BTreeSet<(Family, Table)>,
    /// Those of them that were last read before the listener began, or began anew: what happened to them in between is not known.
    unheard: BTreeSet<(Family, Table)>,
}

impl Own {
    /// The listener begins at this generation; None: it could not be read.
    pub(super) fn begin(&mut self, at: Option<u32>) {
        self.heard = at;
        self.begun += 1;
        self.unheard.clone_from(&self.read);
    }

    /// How often the listener has begun: to be asked for before a table is read.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// A whole table was read; before that the listener had `begun` so often.
    pub(super) fn read(&mut self, at: (Family, Table), begun: u64) {
        self.read.insert(at);
        if begun == self.begun && begun > 0 {
            self.unheard.remove(&at);
        } else {
            self.unheard.insert(at);
        }
    }

    /// The listener has heard of a generation, and has told of it if need be.
    pub(super) fn hear(&mut self, generation: u32) {
        self.heard = Some(generation);
    }

    /// Whether all changes of tables up to the generation `now` have been heard of, since they were read or this was last asked. Who hears no reads them all.
    pub(super) fn told(&mut self, now: u32) -> bool {
        std::mem::take(&mut self.unheard).is_empty() && self.heard == Some(now)
    }

    /// Notes a restore of `commits` transactions that took the counter from `before` to `after`.
    pub(super) fn note(&mut self, before: u32, after: u32, commits: u32) {
        if commits == 0 || after.wrapping_sub(before) != commits {
            return;
        }
        if self.ranges.len() == REMEMBERED {
            self.ranges.pop_front();
        }
        self.ranges.push_back(before.wrapping_add(1)..=after);
    }

    /// Whether a generation is ours.
    pub(super) fn made(&self, generation: u32) -> bool {
        self.ranges.iter().any(|range| range.contains(&generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_the_listener_began_is_not_known() {
        let at = (Family::V4, Table::Nat);
        let mut own = Own::default();
        assert!(!own.told(5), "nobody listens");
        own.read(at, own.begun());
        own.begin(Some(5));
        assert!(!own.told(5), "the table was read before");
        assert!(own.told(5), "it has been read since");
        own.begin(Some(5));
        own.read(at, own.begun());
        assert!(own.told(5), "it was read afterwards");
        let begun = own.begun();
        own.begin(Some(5));
        own.read(at, begun);
        assert!(!own.told(5), "the listener began anew while it was read");
        own.read((Family::V6, Table::Nat), own.begun());
        assert!(!own.told(6), "not heard of yet");
        own.hear(6);
        assert!(own.told(6));
        own.begin(None);
        assert!(!own.told(6) && !own.told(6));
    }

    #[test]
    fn what_somebody_else_did_during_a_refused_restore_is_not_ours() {
        let text = "*mangle\n-A IN -j DROP\nCOMMIT\n*nat\nCOMMIT\n";
        let mut own = Own::default();
        own.note(10, 12, expected(text, false));
        assert!(!own.made(11) && !own.made(12));
        own.note(10, 12, expected(text, true));
        assert!(own.made(11) && own.made(12));
    }

    #[test]
    fn only_an_undisturbed_restore_counts_as_ours() {
        let mut own = Own::default();
        own.note(10, 12, 2);
        own.note(20, 22, 1);
        own.note(30, 30, 1);
        let made: Vec<_> = (9..32).filter(|g| own.made(*g)).collect();
        assert_eq!(made, [11, 12]);
        (0..100).for_each(|n| own.note(1000 + n, 1001 + n, 1));
        assert!(!own.made(11) && own.made(1100) && own.ranges.len() == REMEMBERED);
    }
}
