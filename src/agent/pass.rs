//! One pass: what is known and planned, up to the kernel ([`super::stages`]), and what came of it.
//!
//! May assume: it is the only one that calls the host. Must not: decide what is right (that is the plan), or wait for anything but the host.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::sync::Arc;

use super::kept::{Kept, Quarantine, TABLES};
use super::outcome::{Outcome, Trouble};
use super::source::Snapshot;
use super::{probe, staging};
use crate::api::reasons;
use crate::host::{Host, HostError, Needs};
use crate::netfilter::{Family, IfName, Owner, Table, TableRules};
use crate::plan::{self, HostOptions, HostPlan, MappingKey, Marks, NodeFacts, ProxyNeighbour, Verdicts};

/// Mappings that one pass takes out because the kernel refuses them, before it gives up until the next.
const MAX_REJECTED: usize = 16;

/// What never changes while the agent runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the node.
    pub node: String,
    /// See [`HostOptions::connmark`].
    pub connmark: u32,
    /// See [`HostOptions::marks`].
    pub marks: Marks,
    /// See [`HostOptions::nflog_group`].
    pub nflog_group: u16,
}

/// How a stage ended.
pub(super) enum Step {
    /// Go on.
    Done,
    /// What is planned has changed (a mapping was taken out): plan again.
    Again,
    /// The pass cannot go on.
    Stop,
}

/// A pass at work.
pub(super) struct Work<'a> {
    pub(super) host: &'a mut dyn Host,
    pub(super) kept: &'a mut Kept,
    pub(super) outcome: Outcome,
    pub(super) verdicts: &'a Verdicts,
    /// Hardware addresses of the other known nodes.
    pub(super) colleagues: BTreeSet<String>,
    /// See [`HostOptions::connmark`].
    pub(super) connmark: u32,
    /// Whether something that was declared cannot be read.
    pub(super) unreadable: bool,
    /// Addresses that could not be asked for, and where.
    pub(super) unasked: BTreeMap<ProxyNeighbour, String>,
    /// Restores that may still be tried to find out which rule the kernel refuses. None: none was needed yet.
    pub(super) trials_left: Option<u32>,
}

/// The rules of a plan, shared with the memory.
pub(super) type Tables = BTreeMap<(Family, Table), Arc<TableRules>>;

/// Runs one pass.
pub async fn run(host: &mut dyn Host, kept: &mut Kept, snapshot: &Snapshot, settings: &Settings) -> Outcome {
    let mut outcome = Outcome::default();
    let facts = match node_facts(host, kept, snapshot, settings).await {
        Ok(facts) => facts,
        Err(error) => {
            outcome.troubles.push(observing(&error));
            return outcome;
        }
    };
    let nodes = snapshot.nodes(facts.clone());
    let world = snapshot.view(&nodes);
    outcome.facts = facts;
    let verdicts = plan::judge_again(world, &mut kept.judged);
    release_quarantine(kept, &verdicts);
    let mut work = Work {
        host,
        kept,
        outcome,
        verdicts: &verdicts,
        colleagues: probe::colleagues(snapshot),
        connmark: settings.connmark,
        unreadable: !snapshot.problems.is_empty(),
        unasked: BTreeMap::new(),
        trials_left: None,
    };
    work.ask_again().await;
    // One more than may be rejected, and two for addresses found in use.
    for _ in 0..MAX_REJECTED + 3 {
        let options = work.options(settings);
        let mut plan = plan::host_plan(world, &verdicts, &settings.node, &options);
        let tables = mem::take(&mut plan.ruleset).tables;
        let step = work.attempt(&plan, tables).await;
        work.outcome.mappings = mem::take(&mut plan.mappings);
        work.outcome.plan = plan;
        match step {
            Step::Again => {}
            Step::Done => {
                work.outcome.complete = true;
                break;
            }
            Step::Stop => break,
        }
    }
    work.outcome.backend = work.host.backend();
    work.blame_links();
    work.kept.settled |= work.outcome.complete;
    let mut outcome = work.outcome;
    outcome.verdicts = verdicts;
    outcome.tally();
    outcome
}

async fn node_facts(host: &mut dyn Host, kept: &mut Kept, snapshot: &Snapshot, settings: &Settings) -> Result<NodeFacts, HostError> {
    let interfaces = match &kept.interfaces {
        Some(known) => known.clone(),
        None => kept.interfaces.insert(host.interfaces().await?).clone(),
    };
    let kernel = match &kept.kernel {
        Some(known) => known.clone(),
        None => kept.kernel.insert(host.kernel().await?).clone(),
    };
    Ok(NodeFacts {
        name: settings.node.clone(),
        labels: snapshot.labels.clone(),
        interfaces,
        kernel,
    })
}

pub(super) fn shared(tables: BTreeMap<(Family, Table), TableRules>) -> Tables {
    tables.into_iter().map(|(at, rules)| (at, Arc::new(rules))).collect()
}

/// A mapping that claims something else than what was refused is tried again.
fn release_quarantine(kept: &mut Kept, verdicts: &Verdicts) {
    kept.quarantined.retain(|key, q| {
        verdicts
            .mappings
            .get(key)
            .is_some_and(|v| v.accepted.as_ref().ok() == q.claim.as_ref())
    });
}

fn observing(error: &HostError) -> Trouble {
    let mut trouble = Trouble::from(error);
    if trouble.reason == reasons::APPLY_FAILED {
        trouble.reason = reasons::OBSERVE_FAILED;
    }
    trouble
}

impl Work<'_> {
    pub(super) fn trouble(&mut self, error: &HostError) {
        self.outcome.troubles.push(Trouble::from(error));
    }

    fn trouble_observing(&mut self, error: &HostError) {
        self.outcome.troubles.push(observing(error));
    }

    fn options(&self, settings: &Settings) -> HostOptions {
        HostOptions {
            connmark: settings.connmark,
            marks: settings.marks,
            nflog_group: settings.nflog_group,
            in_use: self.kept.in_use.clone(),
            quarantined: self.kept.quarantined.iter().map(|(key, q)| (key.clone(), q.said.clone())).collect(),
        }
    }

    /// What the node lacks. A failure to find out keeps nothing from being tried.
    pub(super) async fn preflight(&mut self, plan: &HostPlan) {
        let needs = Needs::of(plan, self.verdicts);
        let facts = &self.outcome.facts;
        let proxying = |name: &&IfName| facts.interfaces.get(name.as_str()).is_some_and(|i| i.proxy_ndp);
        let proxying = needs.proxy_ndp.iter().filter(proxying).cloned().collect();
        let about = (needs, facts.kernel.clone(), proxying);
        if self.kept.findings.is_none() || self.kept.preflighted != about || self.host.backend().is_none() {
            match self.host.preflight(&about.0).await {
                Ok(findings) => self.kept.findings = Some(findings),
                Err(error) => self.trouble_observing(&error),
            }
            self.kept.preflighted = about;
        }
        self.outcome.findings = self.kept.findings.clone().unwrap_or_default();
    }

    /// Reads what is unknown or in doubt. False: something could not be read.
    pub(super) async fn observe(&mut self, plan: &HostPlan, netfilter: bool) -> bool {
        for at in TABLES {
            if !netfilter || self.kept.tables.get(&at).is_some_and(|t| !t.doubted) {
                continue;
            }
            match self.host.read_table(at.0, at.1, None).await {
                Ok(seen) => {
                    let drift = self.kept.take_table(at, seen);
                    self.outcome.drift.extend(drift);
                }
                Err(error) => {
                    self.trouble_observing(&error);
                    return false;
                }
            }
        }
        if self.kept.links.is_some() && !self.kept.links_doubted {
            return true;
        }
        match self.host.read_links().await {
            Ok(seen) => {
                if let Some(before) = self.kept.links.as_ref().filter(|_| self.kept.settled) {
                    self.outcome.drift.extend(staging::link_drift(before, &seen, plan));
                }
                // What stood was asked for before it was taken, be it by the process before this one. On a link that is down nobody can be asked again until it is back.
                if let Some(before) = &self.kept.links {
                    let facts = &self.outcome.facts.interfaces;
                    let down = |proxy: &&ProxyNeighbour| facts.get(proxy.interface.as_str()).is_some_and(|interface| !interface.up);
                    self.kept
                        .asked
                        .extend(before.proxies.difference(&seen.proxies).filter(down).cloned());
                }
                self.kept.links = Some(Arc::new(seen));
                self.kept.links_doubted = false;
                true
            }
            Err(error) => {
                self.trouble_observing(&error);
                false
            }
        }
    }

    /// The kernel refused a rule: whoever's it is, is taken out, so that it harms nobody else.
    pub(super) fn reject(&mut self, owner: Option<&Owner>, said: &str, trouble: Trouble) -> Step {
        let key = match owner {
            Some(Owner::Mapping(name)) => name.split_once('/').map(|(namespace, name)| MappingKey {
                namespace: namespace.into(),
                name: name.into(),
            }),
            _ => None,
        };
        match key {
            Some(key) if self.outcome.quarantined.len() < MAX_REJECTED && !self.kept.quarantined.contains_key(&key) => {
                let claim = self.verdicts.mappings.get(&key).and_then(|v| v.accepted.clone().ok());
                self.outcome.quarantined.push((key.clone(), said.to_owned()));
                self.kept.quarantined.insert(
                    key,
                    Quarantine {
                        said: said.to_owned(),
                        claim,
                    },
                );
                Step::Again
            }
            _ => {
                self.outcome.troubles.push(trouble);
                Step::Stop
            }
        }
    }
}
