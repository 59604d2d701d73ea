//! Is the node still as it was left? Looked at without a pass: that would judge and plan everything anew to find that nothing is to be done.
//!
//! Events tell of most changes at once. This finds the others, and what an event was lost for. It changes nothing: what it finds in doubt is for the next pass, which reads
//! it again and says what was changed.
//!
//! # What it costs
//!
//! Reading grows with the number of mappings, so the time between two looks does, too: nobody pays more than a thousandth of a processor for an agent with nothing to do.
//! With nft no table is read as long as the listener has heard of every generation ([`Host::tables_told`]). Legacy tables tell nothing: they are read, ever more
//! rarely the larger they are ([`poll_interval`]).

use std::collections::BTreeMap;
use std::time::Duration;

use super::kept::Kept;
use crate::host::{Host, HostError};

/// Least time between two readings of legacy tables.
const POLL_MIN: Duration = Duration::from_secs(2);
/// Most time between two readings of legacy tables.
const POLL_MAX: Duration = Duration::from_mins(1);
/// Time between two readings of legacy tables, for each rule of ours: a reading of 10 000 takes some tens of milliseconds, so this is a thousandth.
const POLL_EACH: Duration = Duration::from_millis(6);
/// The time between two looks is at least this many times what a look takes.
const SHARE: u32 = 2000;
/// The most by which that makes the time between two looks longer.
const LONGER: u32 = 4;

/// Time until the next look, after one that took so long.
pub(super) fn look_interval(resync: Duration, took: Duration) -> Duration {
    took.saturating_mul(SHARE).clamp(resync, resync.saturating_mul(LONGER))
}

/// Time between two readings of legacy tables that hold this many rules of ours.
pub(super) fn poll_interval(rules: usize) -> Duration {
    let rules = u32::try_from(rules).unwrap_or(u32::MAX);
    POLL_EACH.saturating_mul(rules).clamp(POLL_MIN, POLL_MAX)
}

impl Kept {
    /// Whether everything is as the last pass left it. If not, what differs is in doubt now. Tables that are `polled` anyway are not read for it.
    pub async fn stands(&mut self, host: &mut dyn Host, polled: bool) -> bool {
        // What could not be had is tried again, and that takes a pass.
        let doubts = self.links_doubted || self.tables.values().any(|table| table.doubted);
        let wanting = !self.settled || doubts || !self.in_use.is_empty() || !self.quarantined.is_empty();
        let looked = if wanting { Ok(false) } else { self.look(host, polled).await };
        if wanting || looked.is_err() {
            // The pass says what cannot be read.
            self.doubt_all();
        }
        looked.unwrap_or(false)
    }

    async fn look(&mut self, host: &mut dyn Host, polled: bool) -> Result<bool, HostError> {
        let mut stands = true;
        if self.interfaces != Some(host.interfaces().await?) || self.kernel != Some(host.kernel().await?) {
            self.doubt_interfaces();
            stands = false;
        }
        let findings = host.preflight(&self.preflighted.0).await?;
        if self.findings.as_ref() != Some(&findings) {
            self.findings = Some(findings);
            stands = false;
        }
        if self.works_with(host.backend()) {
            stands = false;
        }
        let links = match &self.links {
            Some(known) => host.links_stand(known).await?,
            None => false,
        };
        if !links {
            self.doubt_links();
            stands = false;
        }
        let told = polled || host.tables_told().await?;
        Ok((told || self.look_at_tables(host).await?) && stands)
    }

    /// Whether all tables are as they were last read.
    pub(super) async fn tables_stand(&mut self, host: &mut dyn Host) -> bool {
        let looked = self.look_at_tables(host).await;
        if looked.is_err() {
            self.doubt_tables();
        }
        looked.unwrap_or(false)
    }

    async fn look_at_tables(&mut self, host: &mut dyn Host) -> Result<bool, HostError> {
        let sure = self.tables.iter().filter(|(_, table)| !table.doubted && table.concerns());
        let known: BTreeMap<_, _> = sure.map(|(at, table)| (*at, &table.seen)).collect();
        let changed = host.changed_tables(&known).await?;
        for (at, table) in &mut self.tables {
            table.doubted |= changed.contains(at);
        }
        Ok(self.tables.values().all(|table| !table.doubted))
    }

    /// Rules that are thought to be in tables of ours.
    pub(super) fn rules(&self) -> usize {
        let chains = self.tables.values().flat_map(|table| table.seen.chains.values());
        chains.map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn large_tables_are_read_more_rarely() {
        assert_eq!([0, 100, 300].map(poll_interval), [2 * SECOND; 3]);
        assert_eq!(poll_interval(1000), 6 * SECOND);
        assert_eq!([10_000, 50_000, usize::MAX].map(poll_interval), [60 * SECOND; 3]);
    }

    #[test]
    fn a_look_that_takes_long_is_repeated_later_within_bounds() {
        let ms = Duration::from_millis;
        assert_eq!(look_interval(60 * SECOND, ms(5)), 60 * SECOND);
        assert_eq!(look_interval(60 * SECOND, ms(60)), 120 * SECOND);
        assert_eq!(look_interval(60 * SECOND, 5 * SECOND), 240 * SECOND);
    }
}
