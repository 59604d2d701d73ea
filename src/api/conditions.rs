//! Condition arithmetic: from facts to `status.conditions`, pure, in one place.
//!
//! Callers say what they know ([`MappingFacts`], [`NetworkFacts`], [`NodeFinding`]); this module decides which conditions that makes, and
//! [`merge`] carries transition times over, so that an unchanged status is an equal value and nobody writes it again. No clock: the time is an argument.
//!
//! # How the words go together
//!
//! | facts | Accepted | Programmed | Ready | besides |
//! |---|---|---|---|---|
//! | refused for good | False | False `NotAccepted` | False | `Stalled` |
//! | refused until something appears (`NetworkNotFound`) | False | False `NotAccepted` | False | `Reconciling` |
//! | waits for a node, an address, an apply | True | False | False | `Reconciling` |
//! | waits for a machine that it names (`ResolvedRefs=False` says why) | True | False | False | `Reconciling` |
//! | the machine is attached elsewhere, or has no address inside (the same) | True | False | False | `Stalled` |
//! | cannot be programmed until a person acts | True | False | False | `Stalled` |
//! | the gateway is silent | True | Unknown | Unknown | nothing |
//! | this version cannot read it | Unknown | Unknown | Unknown | nothing |
//! | labels that decide whether it may claim cannot be read | Unknown | as before | Unknown | nothing |
//! | in every kernel that should have it | True | True | True | nothing |
//! | the same, but an interface is down (`LinkDown`) | True | True | False | `Reconciling` |
//! | the same, but without a helper (`HelperMissing`, which `ResolvedRefs` says too) | True | True | False | `Stalled` |
//!
//! kstatus reads `Reconciling=True` as in progress, `Stalled=True` as failed, and without either a Ready of Unknown as in progress. Flux's checker wants
//! Ready to be False beside `Reconciling` or `Stalled`. So a silent gateway, like an object or labels that cannot be read, the cases in which Ready is Unknown, has neither of the two: it is in progress
//! for both, and it is not a lie, because nothing is being done here that would end it.
//! The root's `observedGeneration` is the generation that was looked at, as the API conventions have it, also while work is under way.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::reasons::{self, types};

/// Longest message of a condition, in characters. The API server allows 32768 bytes; a person reads one screen.
pub const MESSAGE_MAX: usize = 1024;

/// A fixed reason and what it means here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A constant of [`super::reasons`].
    pub reason: String,
    /// What is, why, what next.
    pub message: String,
}

impl Finding {
    /// A finding.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Whether the kernels that should have something have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Programmed {
    /// All have it; the message says which.
    Yes(String),
    /// Not all: why.
    No(Finding),
    /// Nobody can say, because a gateway is silent.
    Unknown(Finding),
}

/// What is known of a `NatMapping`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingFacts {
    /// `metadata.generation` of the object judged.
    pub generation: i64,
    /// Whether the claim stands.
    pub accepted: Result<(), Finding>,
    /// Whether what it refers to exists.
    pub resolved_refs: Result<(), Finding>,
    /// What there is to say of what it refers to besides the network, while `resolved_refs` is Ok.
    pub found: Option<String>,
    /// Whether an older claim won. Then `accepted` is an error that names it.
    pub conflicted: bool,
    /// Not looked at unless `accepted` is Ok.
    pub programmed: Programmed,
    /// What keeps it from being Ready although it is programmed: `HelperMissing`, which is the error of `resolved_refs` then, or `LinkDown`.
    pub impaired: Option<Finding>,
}

/// What is known of a `StagingNetwork`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFacts {
    /// `metadata.generation` of the object judged.
    pub generation: i64,
    /// Whether the network stands.
    pub accepted: Result<(), Finding>,
    /// Not looked at unless `accepted` is Ok.
    pub programmed: Programmed,
    /// What keeps it from being Ready although it is programmed: `LinkDown`, or a source address that is not to be had.
    pub impaired: Option<Finding>,
    /// Which machines do not get out although egress is allowed, as the spec has it.
    pub limited: Option<Finding>,
}

/// One preflight finding or summary of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFinding {
    /// A constant of [`types`].
    pub kind: &'static str,
    /// True, False, or None: Unknown.
    pub status: Option<bool>,
    /// A constant of [`super::reasons`].
    pub reason: &'static str,
    /// What is, why, what next.
    pub message: String,
}

/// Reasons that nothing will change until a person changes an object or a node: `Stalled`. All others wait: `Reconciling`.
const FINAL: &[&str] = &[
    reasons::INVALID,
    reasons::POOL,
    reasons::PROTECTED,
    reasons::TARGET_OUTSIDE,
    reasons::TARGET_IS_GATEWAY,
    reasons::ADDRESS_OWNED,
    reasons::CONFLICT,
    reasons::PREFIX_OVERLAP,
    reasons::NETWORK_NOT_ACCEPTED,
    reasons::INTERFACE_AMBIGUOUS,
    reasons::SAME_INTERFACE,
    reasons::INTERFACE_SHARED,
    reasons::INTERFACE_ENSLAVED,
    reasons::TOOL_MISSING,
    reasons::NOT_PERMITTED,
    reasons::RESTORE_REJECTED,
    reasons::TARGET_INSIDE,
    reasons::SOURCE_ADDRESS_MISSING,
    reasons::SOURCE_ADDRESS_UNUSABLE,
    reasons::NAMESPACE_NOT_ALLOWED,
    reasons::HELPER_NOT_ALLOWED,
    reasons::HELPER_MISSING,
    reasons::ISOLATION_EXHAUSTED,
    reasons::MACHINE_INTERFACE_MISSING,
    reasons::TARGET_ON_OTHER_NETWORK,
];

/// Whether a reason stays until a person acts.
pub fn is_final(reason: &str) -> bool {
    FINAL.contains(&reason)
}

/// The conditions of a `NatMapping`: those present become `status.conditions` as they are.
pub fn mapping(facts: &MappingFacts, present: &[Condition], now: Timestamp) -> Vec<Condition> {
    let mut set = Builder::new(facts.generation);
    set.verdict(types::ACCEPTED, &facts.accepted, reasons::ACCEPTED, "The claim stands.");
    let found = facts.found.as_deref().unwrap_or("The network exists.");
    set.verdict(types::RESOLVED_REFS, &facts.resolved_refs, reasons::RESOLVED, found);
    if let (true, Err(why)) = (facts.conflicted, &facts.accepted) {
        set.add(types::CONFLICTED, "True", &why.reason, &why.message);
    }
    // What is programmed without something that it refers to was not refused for that.
    let unresolved = facts.resolved_refs.as_ref().err().filter(|_| facts.impaired.is_none());
    if let Some(why) = unresolved.filter(|why| why.reason == reasons::TARGET_ON_OTHER_NETWORK) {
        set.add(types::TARGET_ON_OTHER_NETWORK, "True", &why.reason, &why.message);
    }
    let waits = unresolved.map(|why| Programmed::No(why.clone()));
    let programmed = waits.as_ref().unwrap_or(&facts.programmed);
    set.summary(facts.accepted.as_ref().err(), programmed, facts.impaired.as_ref());
    merge(present, set.conditions, now)
}

/// The conditions of a `NatMapping` of which nobody knows whether it may claim. Whether it is programmed and what it refers to stays as it was said of the same spec.
pub fn undecided(generation: i64, why: &Finding, present: &[Condition], now: Timestamp) -> Vec<Condition> {
    let mut set = Builder::new(generation);
    set.add(types::ACCEPTED, "Unknown", &why.reason, &why.message);
    for kind in [types::RESOLVED_REFS, types::PROGRAMMED] {
        match find(present, kind).filter(|told| told.observed_generation == Some(generation)) {
            Some(told) => set.conditions.push(told.clone()),
            None => set.add(kind, "Unknown", &why.reason, &why.message),
        }
    }
    set.add(types::READY, "Unknown", &why.reason, &why.message);
    merge(present, set.conditions, now)
}

/// The conditions of a `StagingNetwork`: those present become `status.conditions` as they are.
pub fn network(facts: &NetworkFacts, present: &[Condition], now: Timestamp) -> Vec<Condition> {
    let mut set = Builder::new(facts.generation);
    set.verdict(types::ACCEPTED, &facts.accepted, reasons::ACCEPTED, "The network is valid.");
    if let Some(limited) = &facts.limited {
        set.add(types::EGRESS_LIMITED, "True", &limited.reason, &limited.message);
    }
    set.summary(facts.accepted.as_ref().err(), &facts.programmed, facts.impaired.as_ref());
    merge(present, set.conditions, now)
}

/// The conditions of a `GatewayNode`. Of two findings of one type the last counts.
pub fn node(findings: &[NodeFinding], generation: i64, present: &[Condition], now: Timestamp) -> Vec<Condition> {
    let mut set = Builder::new(generation);
    for finding in findings {
        let status = match finding.status {
            Some(true) => "True",
            Some(false) => "False",
            None => "Unknown",
        };
        set.add(finding.kind, status, finding.reason, &finding.message);
    }
    merge(present, set.conditions, now)
}

/// Conditions of which nobody can say whether they hold.
pub fn unknown(kinds: &[&str], generation: i64, why: &Finding, present: &[Condition], now: Timestamp) -> Vec<Condition> {
    let mut set = Builder::new(generation);
    for kind in kinds {
        set.add(kind, "Unknown", &why.reason, &why.message);
    }
    merge(present, set.conditions, now)
}

/// The condition of a type.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether a condition of that type is there and True.
pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// `wanted` in the fixed order of [`types::ALL`], one of each type (the last counts), with the transition time of `present` wherever the status is
/// the same, and else `now` in whole seconds, as Kubernetes stores it. What is no longer wanted is dropped.
pub fn merge(present: &[Condition], wanted: Vec<Condition>, now: Timestamp) -> Vec<Condition> {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let mut merged: Vec<Condition> = Vec::with_capacity(wanted.len());
    for mut condition in wanted {
        condition.last_transition_time = match find(present, &condition.type_) {
            Some(old) if old.status == condition.status => old.last_transition_time.clone(),
            _ => Time(now),
        };
        condition.message = shorten(&condition.message);
        match merged.iter_mut().find(|other| other.type_ == condition.type_) {
            Some(other) => *other = condition,
            None => merged.push(condition),
        }
    }
    merged.sort_by(|a, b| rank(&a.type_).cmp(&rank(&b.type_)).then_with(|| a.type_.cmp(&b.type_)));
    merged
}

/// At most [`MESSAGE_MAX`] characters, without control characters, cut where a character ends.
pub fn shorten(message: &str) -> String {
    let mut clean = message.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = clean.by_ref().take(MESSAGE_MAX).collect();
    if clean.next().is_some() {
        short.pop();
        short.push('…');
    }
    short
}

fn rank(kind: &str) -> usize {
    types::ALL.iter().position(|doc| doc.name == kind).unwrap_or(usize::MAX)
}

struct Builder {
    generation: i64,
    conditions: Vec<Condition>,
}

impl Builder {
    fn new(generation: i64) -> Self {
        Self {
            generation,
            conditions: Vec::new(),
        }
    }

    fn add(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        self.conditions.push(Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: Some(self.generation),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
        });
    }

    fn verdict(&mut self, kind: &str, verdict: &Result<(), Finding>, well: &str, message: &str) {
        match verdict {
            Ok(()) => self.add(kind, "True", well, message),
            Err(why) => self.add(kind, "False", &why.reason, &why.message),
        }
    }

    /// Programmed, Ready, and Reconciling or Stalled.
    fn summary(&mut self, refused: Option<&Finding>, programmed: &Programmed, impaired: Option<&Finding>) {
        let open = match (refused, programmed) {
            (Some(why), _) => {
                let message = "Nothing is programmed, because the object is not accepted.";
                self.add(types::PROGRAMMED, "False", reasons::NOT_ACCEPTED, message);
                why
            }
            (None, Programmed::Yes(message)) => {
                self.add(types::PROGRAMMED, "True", reasons::PROGRAMMED, message);
                let Some(why) = impaired else {
                    self.add(types::READY, "True", reasons::READY, message);
                    return;
                };
                why
            }
            (None, Programmed::Unknown(why)) => {
                self.add(types::PROGRAMMED, "Unknown", &why.reason, &why.message);
                self.add(types::READY, "Unknown", &why.reason, &why.message);
                return;
            }
            (None, Programmed::No(why)) => {
                self.add(types::PROGRAMMED, "False", &why.reason, &why.message);
                why
            }
        };
        self.add(types::READY, "False", &open.reason, &open.message);
        let kind = if is_final(&open.reason) {
            types::STALLED
        } else {
            types::RECONCILING
        };
        self.add(kind, "True", &open.reason, &open.message);
    }
}

#[cfg(test)]
#[path = "conditions_tests.rs"]
mod tests;
