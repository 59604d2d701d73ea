//! Reads counters from the host for [`super::counters`]: before chains are written anew, on a timer, and when somebody asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::counters::{self, COUNTED};
use super::kept::Kept;
use super::pass::Work;
use crate::host::{Backend, Host, HostError};
use crate::netfilter::diff::TableChange;
use crate::netfilter::{ChainName, Family, Table, TableRules};

/// How long after somebody asked for counters his interest is taken to last.
const INTEREST: Duration = Duration::from_mins(10);

/// Reads chains of a table and takes in what they have counted. The rules must be those that the chains hold.
async fn read(
    host: &mut dyn Host,
    kept: &mut Kept,
    at: (Family, Table),
    rules: &TableRules,
    chains: &BTreeSet<ChainName>,
) -> Result<(), HostError> {
    if !chains.is_empty() {
        let read = host.counters(at.0, at.1, chains).await?;
        kept.counts.take(at, rules, read, SystemTime::now());
    }
    Ok(())
}

/// Reads what is counted in `tables`. Tables in doubt wait for the pass that looks after them.
pub(super) async fn read_tables(host: &mut dyn Host, kept: &mut Kept, tables: &[Table]) -> Result<(), HostError> {
    let standing: BTreeMap<(Family, Table), Arc<TableRules>> = COUNTED
        .into_iter()
        .filter_map(|at| Some((at, kept.tables.get(&at)?.verified.clone()?)))
        .collect();
    for (at, rules) in &standing {
        let chains = if tables.contains(&at.1) {
            counters::chains(at.1, rules, None)
        } else {
            counters::denying(rules).cloned().collect()
        };
        read(host, kept, *at, rules, &chains).await?;
    }
    let (mut same, mut weak) = (true, BTreeMap::new());
    for (at, rules) in &standing {
        let now = Arc::downgrade(rules);
        same &= kept.counted.get(at).is_some_and(|before| before.ptr_eq(&now));
        weak.insert(*at, now);
    }
    // Ten thousand rules are not gone through for a timer. Who asks for mappings is shown those with nothing to show, too.
    let mappings = tables.contains(&Table::Nat);
    if standing.len() == COUNTED.len() && (mappings || !same) {
        let of_mappings = mappings || kept.counts.has_mappings();
        kept.counts
            .retain(standing.iter().map(|(at, rules)| (*at, &**rules)), mappings, of_mappings);
        kept.counted = weak;
    }
    Ok(())
}

/// Somebody has asked for the counters of mappings.
#[derive(Debug, Default)]
pub(super) struct Interest {
    last: Option<Instant>,
}

impl Interest {
    pub(super) fn shown(&mut self) {
        self.last = Some(Instant::now());
    }

    pub(super) fn lasts(&self) -> bool {
        self.last.is_some_and(|last| last.elapsed() < INTEREST)
    }
}

impl Work<'_> {
    /// Reads chains that are about to be written anew, as the kernel forgets then what they have counted.
    ///
    /// With nft this is a question of microseconds a chain. With legacy tools it takes as long as the change itself, and so is done only while
    /// somebody asks for counters. A failure costs counts and nothing else.
    pub(super) async fn count_before(&mut self, family: Family, changes: &BTreeMap<Table, TableChange>) {
        if self.host.backend() != Some(Backend::Nft) && !self.kept.interest.lasts() {
            return;
        }
        for (table, change) in changes {
            let at = (family, *table);
            if !COUNTED.contains(&at) {
                continue;
            }
            let Some(rules) = self.kept.tables.get(&at).and_then(|kept| kept.verified.clone()) else {
                continue;
            };
            let touched = change.touched();
            let written = rules
                .chains
                .keys()
                .filter(|name| touched.contains(name.as_str()))
                .cloned()
                .collect();
            let chains = counters::chains(*table, &rules, Some(&written));
            if let Err(error) = read(self.host, self.kept, at, &rules, &chains).await {
                tracing::debug!(%error, "reading counters ahead of a change; what they have is lost");
            }
        }
    }

    /// Chains were written anew.
    pub(super) fn count_anew(&mut self, family: Family, changes: &BTreeMap<Table, TableChange>) {
        for (table, change) in changes.iter().filter(|(table, _)| COUNTED.contains(&(family, **table))) {
            self.kept.counts.written((family, *table), change.write.keys());
        }
    }
}
