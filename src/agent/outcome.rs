//! What one pass did and found: the only thing that reports, metrics and exit codes are made from.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::gatewaynode::Role;
use crate::api::reasons;
use crate::controller::version;
use crate::host::{Backend, Finding, HostError};
use crate::netfilter::IfName;
use crate::plan::{HostPlan, MappingKey, MappingState, NodeFacts, Verdicts};

/// So many refused mappings are reported.
const REFUSED_MAX: usize = 32;

/// Something that kept a pass from doing all that it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// A constant of [`reasons`].
    pub reason: &'static str,
    /// What is, why, what next.
    pub message: String,
}

impl From<&HostError> for Trouble {
    fn from(error: &HostError) -> Self {
        Self {
            reason: reason(error),
            message: error.to_string(),
        }
    }
}

/// The fixed reason of a host's error.
pub fn reason(error: &HostError) -> &'static str {
    match error {
        HostError::ToolMissing { .. } => reasons::TOOL_MISSING,
        HostError::Denied { .. } => reasons::NOT_PERMITTED,
        HostError::LockHeld { .. } => reasons::LOCK_HELD,
        HostError::RestoreRejected { .. } => reasons::RESTORE_REJECTED,
        HostError::Netlink { .. } | HostError::Failed { .. } => reasons::APPLY_FAILED,
    }
}

/// Something of ours that somebody else changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    /// mangle, nat, filter, route, proxy, address or link.
    pub place: &'static str,
    /// What was changed, one sentence.
    pub what: String,
}

/// What became of a network's mappings, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Mappings that are programmed.
    pub programmed: u32,
    /// The highest resource version among the network's mappings, whatever became of them. Empty without a cluster.
    pub synced: String,
}

/// The result of one pass.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was judged. Only the pass's caller has it: see [`Outcome::settle`].
    pub verdicts: Verdicts,
    /// Of each network.
    pub tallies: BTreeMap<String, Tally>,
    /// What was planned. Its rules have been moved to the memory of the pass, its mappings to [`Outcome::mappings`].
    pub plan: HostPlan,
    /// The node as planned for.
    pub facts: NodeFacts,
    /// The tool in use.
    pub backend: Option<Backend>,
    /// Preflight.
    pub findings: Vec<Finding>,
    /// What became of each accepted mapping. Planned means: read back from the kernel, if [`Outcome::complete`].
    pub mappings: BTreeMap<MappingKey, MappingState>,
    /// The first [`REFUSED_MAX`] mappings that were refused of networks that this node serves, and for which reason.
    pub refused: Vec<(MappingKey, &'static str)>,
    /// How many were.
    pub refused_count: usize,
    /// Whether everything planned but for failed mappings was read back from the kernel.
    pub complete: bool,
    /// Whether the fences of all networks of the plan were read back from the kernel.
    pub fenced: bool,
    /// Inside interfaces of networks that nobody can tell the end of: nothing passes them.
    pub held: BTreeSet<IfName>,
    /// What went wrong.
    pub troubles: Vec<Trouble>,
    /// What others had changed.
    pub drift: Vec<Drift>,
    /// Number of writes to the kernel: restores, link changes.
    pub writes: usize,
    /// Connection table entries deleted.
    pub flows_deleted: u64,
    /// Mappings that were put into quarantine in this pass.
    pub quarantined: Vec<(MappingKey, String)>,
}

impl Outcome {
    /// Whether the pass must be tried again soon.
    pub fn failed(&self) -> bool {
        !self.complete || !self.troubles.is_empty()
    }

    pub(super) fn tally(&mut self) {
        let mut tallies: BTreeMap<&str, (u32, &str)> = BTreeMap::new();
        // Both are by key: one walk, where looking each up would take longer than most changes.
        let mut states = self.mappings.iter().peekable();
        let (mut refused, mut refused_count) = (Vec::new(), 0);
        for (key, verdict) in self.verdicts.mappings.iter() {
            let (programmed, synced) = tallies.entry(&verdict.network).or_default();
            if let Err(why) = &verdict.accepted
                && self.plan.networks.get(&*verdict.network).is_some_and(|n| n.role != Role::Client)
            {
                refused_count += 1;
                if refused.len() < REFUSED_MAX {
                    refused.push((key.clone(), why.reason));
                }
            }
            while states.next_if(|(other, _)| *other < key).is_some() {}
            if let Some((_, MappingState::Planned { .. })) = states.next_if(|(other, _)| *other == key) {
                *programmed += 1;
            }
            if synced.is_empty() || version::reached(&verdict.resource_version, synced) {
                *synced = &verdict.resource_version;
            }
        }
        let owned = |(name, (programmed, synced)): (&str, (u32, &str))| {
            let synced = synced.to_owned();
            (name.to_owned(), Tally { programmed, synced })
        };
        self.tallies = tallies.into_iter().map(owned).collect();
        (self.refused, self.refused_count) = (refused, refused_count);
    }

    /// Keeps what those that report look at: numbers, networks, and what did not go well. Ten thousand verdicts and mappings that are as planned are only
    /// memory while the agent has nothing to do.
    pub(super) fn settle(&mut self) {
        self.verdicts = Verdicts::default();
        self.plan = HostPlan {
            networks: std::mem::take(&mut self.plan.networks),
            ..HostPlan::default()
        };
        let well = |state: &MappingState| matches!(state, MappingState::Planned { missing_helpers, .. } if missing_helpers.is_empty());
        self.mappings.retain(|_, state| !well(state));
    }

    /// Label `result` of the metric of passes.
    pub fn label(&self) -> &'static str {
        match (self.failed(), self.writes) {
            (true, _) => "failed",
            (false, 0) => "unchanged",
            (false, _) => "changed",
        }
    }
}
