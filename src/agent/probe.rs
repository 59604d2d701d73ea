//! Is an address free? Asked outside before it is attracted for the first time, again when the link comes up (RFC 5227, section 2.1: somebody may have taken it meanwhile), and
//! again on the slow timer while somebody has it.
//!
//! Another gateway of ours that still answers for an address, because it has not yet heard that the network moved here, is nobody else: its hardware
//! address is known, and it stops by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;

use super::outcome::Trouble;
use super::pass::{Step, Work};
use super::source::Snapshot;
use crate::api::reasons;
use crate::host::{HostError, LinkChange};
use crate::netfilter::IfName;
use crate::plan::{HostPlan, ProxyNeighbour};

/// What to ask for, where.
type Questions = BTreeMap<IfName, BTreeSet<IpAddr>>;

/// Hardware addresses of all interfaces of the other nodes.
pub(super) fn colleagues(snapshot: &Snapshot) -> BTreeSet<String> {
    let interfaces = snapshot.others.iter().flat_map(|node| node.interfaces.values());
    interfaces
        .map(|i| i.mac.to_ascii_lowercase())
        .filter(|mac| !mac.is_empty())
        .collect()
}

fn each(questions: Questions) -> impl Iterator<Item = ProxyNeighbour> {
    questions.into_iter().flat_map(|(interface, addresses)| {
        addresses.into_iter().map(move |address| ProxyNeighbour {
            interface: interface.clone(),
            address,
        })
    })
}

impl Work<'_> {
    /// Who answers, colleagues left out.
    async fn ask(&mut self, questions: &Questions) -> Result<BTreeMap<ProxyNeighbour, String>, HostError> {
        let mut answered = self.host.probe(questions).await?;
        answered.retain(|_, mac| !self.colleagues.contains(&mac.to_ascii_lowercase()));
        Ok(answered)
    }

    /// The same interface by interface: one that cannot be asked on keeps no other question from being asked.
    async fn ask_one_by_one(&mut self, questions: &Questions) -> BTreeMap<ProxyNeighbour, String> {
        let mut all = BTreeMap::new();
        for (interface, addresses) in questions {
            let one = Questions::from([(interface.clone(), addresses.clone())]);
            all.extend(match self.ask(&one).await {
                Ok(answered) => answered,
                Err(error) => self.unanswered(&one, &error),
            });
        }
        all
    }

    /// Takes note of questions that could not be asked.
    fn unanswered(&mut self, questions: &Questions, error: &HostError) -> BTreeMap<ProxyNeighbour, String> {
        let message = error.to_string();
        self.outcome.troubles.push(Trouble {
            reason: reasons::PROBE_FAILED,
            message: message.clone(),
        });
        self.unasked.extend(each(questions.clone()).map(|asked| (asked, message.clone())));
        BTreeMap::new()
    }

    /// Asks again for addresses that somebody had, before they are planned without. Those that cannot be asked for stay untaken.
    pub(super) async fn ask_again(&mut self) {
        // What is asked by an interface that is gone keeps no other question from being asked. If it comes back, its addresses are new ones.
        let there = &self.outcome.facts.interfaces;
        self.kept.in_use.retain(|taken, _| there.contains_key(taken.interface.as_str()));
        if !mem::take(&mut self.kept.ask_again) || self.kept.in_use.is_empty() {
            return;
        }
        let mut questions = Questions::new();
        for taken in self.kept.in_use.keys() {
            questions.entry(taken.interface.clone()).or_default().insert(taken.address);
        }
        match self.ask(&questions).await {
            Ok(answered) => self.kept.in_use.retain(|taken, mac| {
                let now = answered.get(taken);
                if let Some(now) = now {
                    mac.clone_from(now);
                }
                now.is_some()
            }),
            Err(error) => tracing::debug!(%error, "asking again for addresses in use"),
        }
    }

    /// Interfaces that have come up since this was last asked. None of those that were there when the agent began: what it finds standing was asked for.
    fn risen(&mut self) -> BTreeSet<IfName> {
        let up = self.outcome.facts.interfaces.iter().filter(|(_, facts)| facts.up);
        let live: BTreeSet<(IfName, u32)> = up.filter_map(|(name, facts)| Some((IfName::new(name)?, facts.index))).collect();
        let risen = match &self.kept.live {
            Some(before) => live.difference(before).map(|(name, _)| name.clone()).collect(),
            None => BTreeSet::new(),
        };
        self.kept.live = Some(live);
        risen
    }

    /// Asks for the addresses that are about to be attracted for the first time, by `additions`, and for those that stand on a link that has come up.
    pub(super) async fn probe(&mut self, plan: &HostPlan, additions: &[LinkChange]) -> Step {
        // With ten thousand, telling that all are still planned takes longer than most changes.
        if !plan.proxies.is_superset(&self.kept.asked) {
            self.kept.asked.retain(|proxy| plan.proxies.contains(proxy));
        }
        let risen = self.risen();
        let mut questions = Questions::new();
        if !risen.is_empty() {
            self.kept.asked.retain(|proxy| !risen.contains(&proxy.interface));
            let standing = self.kept.links.iter().flat_map(|links| &links.proxies);
            for proxy in standing.filter(|proxy| risen.contains(&proxy.interface) && plan.proxies.contains(proxy)) {
                questions.entry(proxy.interface.clone()).or_default().insert(proxy.address);
            }
        }
        let coming = additions.iter().filter_map(|change| match change {
            LinkChange::AddProxy(proxy) => Some(proxy),
            _ => None,
        });
        for proxy in coming.filter(|proxy| !self.kept.asked.contains(proxy)) {
            questions.entry(proxy.interface.clone()).or_default().insert(proxy.address);
        }
        if questions.is_empty() {
            return Step::Done;
        }
        let answered = match self.ask(&questions).await {
            Ok(answered) => answered,
            Err(_) if questions.len() > 1 => self.ask_one_by_one(&questions).await,
            Err(error) => self.unanswered(&questions, &error),
        };
        let step = if answered.is_empty() { Step::Done } else { Step::Again };
        for asked in each(questions).filter(|asked| !self.unasked.contains_key(asked)) {
            match answered.get(&asked) {
                Some(mac) => drop(self.kept.in_use.insert(asked, mac.clone())),
                None => drop(self.kept.asked.insert(asked)),
            }
        }
        if let Some(live) = &mut self.kept.live {
            // It is as if their links had not come up yet: the next pass asks again.
            live.retain(|(name, _)| !self.unasked.keys().any(|address| address.interface == *name));
        }
        step
    }
}
