//! What one pass did and found: the only thing that reports, metrics and exit codes are made from.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::reasons;
use crate::host::{Backend, Finding, HostError};
use crate::netfilter::IfName;
use crate::plan::{HostPlan, MappingKey, MappingState, NodeFacts, Verdicts};

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

/// The result of one pass.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What was judged.
    pub verdicts: Verdicts,
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

    /// Label `result` of the metric of passes.
    pub fn label(&self) -> &'static str {
        match (self.failed(), self.writes) {
            (true, _) => "failed",
            (false, 0) => "unchanged",
            (false, _) => "changed",
        }
    }
}
