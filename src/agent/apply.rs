//! The effects of a pass: restores with their reading back, link changes, the sweep, announcements.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::outcome::Trouble;
use super::pass::{Step, Tables, Work};
use super::staging;
use crate::api::reasons;
use crate::host::{HostError, LinkChange, ObservedLinks};
use crate::netfilter::diff::TableChange;
use crate::netfilter::render::RestoreText;
use crate::netfilter::{ChainName, Family, Hook, IfName, Table, TableRules, render};
use crate::plan::{HostPlan, Sweep};

/// Above this many changed chains, or if jumps or chains went or came, the whole table is read back at once.
const READ_BACK_CHAINS: usize = 64;

impl Work<'_> {
    /// Brings tables of one family to what is desired, in one restore, and reads back what was written.
    pub(super) async fn restore(&mut self, family: Family, names: &[Table], tables: &Tables) -> Step {
        let nothing = Arc::new(TableRules::default());
        let desired = |table: Table| tables.get(&(family, table)).unwrap_or(&nothing);
        let mut changes: BTreeMap<Table, TableChange> = BTreeMap::new();
        for table in names {
            let at = (family, *table);
            let mut change = self.kept.change(at, desired(*table));
            if change.wake {
                self.outcome.writes += 1;
                if let Err(error) = self.host.wake(family, *table).await {
                    self.doubt(family, std::iter::once(table));
                    self.trouble(&error);
                    return Step::Stop;
                }
                self.kept.woke(at);
                change = self.kept.change(at, desired(*table));
            }
            if change.is_empty() {
                self.kept.confirm((family, *table), desired(*table));
            } else {
                changes.insert(*table, change);
            }
        }
        if changes.is_empty() {
            return Step::Done;
        }
        let text = match render::changes(family, &changes) {
            Ok(text) => text,
            Err(error) => {
                let said = error.to_string();
                let trouble = Trouble {
                    reason: reasons::APPLY_FAILED,
                    message: said.clone(),
                };
                return self.reject(Some(&error.owner), &said, trouble);
            }
        };
        self.count_before(family, &changes).await;
        if let Err(error) = self.host.restore(family, &text.text).await {
            // An earlier table of the same text may be in the kernel.
            self.doubt(family, changes.keys());
            return self.refused(family, &changes, &text, &error).await;
        }
        self.outcome.writes += 1;
        self.count_anew(family, &changes);
        for (table, change) in &changes {
            let chains: BTreeSet<ChainName> = change.write.keys().cloned().collect();
            let part = (change.only_writes() && chains.len() <= READ_BACK_CHAINS).then_some(&chains);
            let now = match self.host.read_table(family, *table, part).await {
                Ok(now) => now,
                Err(error) => {
                    self.doubt(family, changes.keys());
                    self.trouble(&error);
                    return Step::Stop;
                }
            };
            if !self.kept.take_back((family, *table), desired(*table), change, part.is_none(), now) {
                self.outcome.troubles.push(Trouble {
                    reason: reasons::APPLY_FAILED,
                    message: format!(
                        "reading back table {}: it is not as it was written a moment ago; another program changed it, it is done again",
                        table.as_str()
                    ),
                });
                return Step::Stop;
            }
        }
        Step::Done
    }

    /// The kernel or the tool did not take `text`: whose fault is it?
    async fn refused(&mut self, family: Family, changes: &BTreeMap<Table, TableChange>, text: &RestoreText, error: &HostError) -> Step {
        let mut trouble = Trouble::from(error);
        let HostError::RestoreRejected { table, line, .. } = error else {
            return self.reject(None, &trouble.message.clone(), trouble);
        };
        let change = changes.iter().find(|(name, _)| name.as_str() == table);
        let named = text.line(*line).unwrap_or_default();
        let Some((table, change)) = change.filter(|(table, _)| named == "COMMIT" || self.stands((family, **table), named)) else {
            return self.reject(text.owner_at(*line), &error.to_string(), trouble);
        };
        let culprits = self.narrow(family, *table, change).await;
        if culprits.is_empty() {
            trouble.message += "; no rule of a mapping was found that is refused by itself; what was in force before stays so";
            return self.reject(None, "", trouble);
        }
        let mut step = Step::Again;
        for culprit in &culprits {
            step = self.reject(Some(&culprit.owner), &culprit.said, trouble.clone());
        }
        step
    }

    fn doubt<'t>(&mut self, family: Family, tables: impl Iterator<Item = &'t Table>) {
        for table in tables {
            self.kept.tables.entry((family, *table)).or_default().doubted = true;
        }
    }

    /// Makes link changes. False: not all of them.
    pub(super) async fn change_links(&mut self, changes: &[LinkChange]) -> bool {
        if changes.is_empty() {
            return true;
        }
        self.outcome.writes += changes.len();
        let Err(errors) = self.host.change_links(changes).await else {
            if let Some(seen) = &mut self.kept.links {
                staging::acknowledged(Arc::make_mut(seen), changes);
            }
            return true;
        };
        for error in &errors {
            self.trouble(error);
        }
        // Which of them failed is asked of the kernel, at once for the report and again before the next pass.
        if let Ok(seen) = self.host.read_links().await {
            self.kept.links = Some(Arc::new(seen));
        }
        self.kept.links_doubted = true;
        false
    }

    /// Notes whose fence goes up in this pass: what flowed there before must end.
    pub(super) fn note_raised(&mut self, plan: &HostPlan, tables: &Tables) {
        let at = (Family::V4, Table::Mangle);
        let Some(desired) = tables.get(&at) else { return };
        let standing = self.kept.tables.get(&at).map(|t| &t.seen);
        let hooked = standing.is_some_and(|seen| desired.hooks.contains_key(&Hook::Forward) == seen.hooks.contains_key(&Hook::Forward));
        let awake = standing.is_some_and(|seen| !seen.dormant);
        let missing = staging::unfenced(desired, |name| {
            hooked && awake && standing.is_some_and(|seen| seen.chains.contains_key(name.as_str()))
        });
        let touched = self.kept.links.as_ref().map(|l| &l.touched);
        // A fence that somebody had opened may have let something through.
        let opened = self.outcome.drift.iter().any(|d| d.place == Table::Mangle.as_str());
        for (name, network) in &plan.networks {
            // Forwarding is switched on after the flows were swept: an interface not touched yet tells of a crash in between.
            let fresh = network
                .inside
                .as_ref()
                .is_some_and(|i| plan.links.contains_key(i) && touched.is_some_and(|t| !t.contains(i)));
            if (missing.contains(name.as_str()) || fresh || opened)
                && let Some(Ok(valid)) = self.verdicts.networks.get(name).map(|v| &v.accepted)
            {
                let zone = network.isolated.map_or(0, |isolated| isolated.zone);
                self.kept.raised.extend(valid.inside.iter().map(|prefix| (zone, *prefix)));
            }
        }
    }

    /// Notes which inside prefixes leave with the interfaces in `closing`, where no earlier plan of this agent tells: it has not been there, or could not
    /// read which network it was.
    pub(super) fn note_left(&mut self, plan: &HostPlan, closing: &BTreeSet<IfName>) {
        let Some(links) = &self.kept.links else { return };
        let facts = &self.outcome.facts.interfaces;
        let left = closing.intersection(&links.inside).filter_map(|name| facts.get(name.as_str()));
        let prefixes = left.flat_map(|facts| &facts.addresses).map(IpNet::trunc);
        let unknown = |prefix: &IpNet| {
            // Every interface has link-local addresses; and where another network has the same ones, its flows are not told from those of this.
            let shared = plan.flows.meets_inside(*prefix) || matches!(prefix, IpNet::V6(v6) if v6.addr().is_unicast_link_local());
            !shared && !self.kept.swept.as_ref().is_some_and(|before| before.meets_inside(*prefix))
        };
        let unknown: Vec<_> = prefixes.filter(unknown).map(|prefix| (0, prefix)).collect();
        self.kept.raised.extend(unknown);
    }

    /// Deletes flows that the plan does not agree with, if the plan's opinion has changed. False: older flows might pass the fence.
    pub(super) async fn sweep(&mut self, plan: &HostPlan) -> bool {
        if self.kept.raised.is_empty() && self.kept.swept.as_ref() == Some(&plan.flows) {
            return true;
        }
        // A network that is gone has no mapping left, and its flows must end all the same.
        let mut sweep = Sweep {
            connmark: 0,
            unfenced: false,
            raised: self.kept.raised.clone(),
            earlier: self.kept.swept.as_ref().map(|before| before.reach()).unwrap_or_default(),
        };
        // An agent that has just started does not know what there was before; the interfaces that were changed tell that there was something.
        if self.kept.links.as_ref().is_some_and(|links| !links.touched.is_empty()) {
            sweep.connmark = self.connmark;
        }
        match self.host.sweep_flows(&plan.flows, sweep).await {
            Ok(deleted) => {
                self.outcome.flows_deleted += deleted;
                self.kept.swept = Some(plan.flows.clone());
                self.kept.raised.clear();
                true
            }
            Err(error) => {
                self.trouble(&error);
                self.kept.raised.is_empty()
            }
        }
    }

    /// Announces what begins to attract traffic. Clients whose caches are old find out by themselves if this fails.
    pub(super) async fn announce(&mut self, made: &[LinkChange]) {
        let empty = ObservedLinks::default();
        let seen = self.kept.links.as_deref().unwrap_or(&empty);
        let there = |change: &&LinkChange| match change {
            LinkChange::AddProxy(p) => seen.proxies.contains(p),
            LinkChange::AddAddress(a) => seen.addresses.contains(a),
            _ => false,
        };
        let made: Vec<LinkChange> = made.iter().filter(there).cloned().collect();
        let addresses = staging::announcements(&made);
        if addresses.is_empty() {
            return;
        }
        if let Err(error) = self.host.announce(&addresses).await {
            tracing::warn!(%error, "announcing addresses failed; clients find out when their caches expire");
        }
    }
}
