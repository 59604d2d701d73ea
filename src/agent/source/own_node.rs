//! What the API server says of the own Node. Pure: the clock comes from outside.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;

use super::Problem;
use super::cache::Change;

/// The own Node.
pub(super) struct OwnNode {
    name: String,
    guard: Duration,
    /// Its labels. None: not known yet.
    labels: Option<BTreeMap<String, String>>,
    found: bool,
    /// When it is taken for deleted, since a list lacks it and nobody told so.
    missed: Option<Instant>,
}

impl OwnNode {
    /// Nothing is known yet. What a list lacks stays in force for `guard`.
    pub(super) fn new(name: &str, guard: Duration) -> Self {
        Self {
            name: name.to_owned(),
            guard,
            labels: None,
            found: false,
            missed: None,
        }
    }

    /// Its labels: none if there is no such Node. None: not known yet.
    pub(super) fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.labels.as_ref()
    }

    /// When it is to be taken for deleted.
    pub(super) fn due(&self) -> Option<Instant> {
        self.missed
    }

    /// Takes it for deleted if it was held long enough.
    pub(super) fn over(&mut self, now: Instant) -> Change {
        if self.missed.is_none_or(|at| now < at) {
            return Change::None;
        }
        self.missed = None;
        self.labels = Some(BTreeMap::new());
        Change::Meaning
    }

    /// Takes in one event.
    pub(super) fn take(&mut self, event: Event<PartialObjectMeta<Node>>, now: Instant) -> Change {
        let known = self.labels.is_some() && !self.guard.is_zero();
        // That it is back is to be told, also if it is as it was.
        let was_missed = self.missed.is_some();
        let labels = match event {
            Event::Init => {
                self.found = false;
                return Change::None;
            }
            Event::InitApply(node) | Event::Apply(node) => {
                self.found = true;
                self.missed = None;
                node.labels().clone()
            }
            Event::InitDone if self.found => return Change::None,
            // Nobody has told that it was deleted: what it had to do stays in force for a while.
            Event::InitDone if known => {
                let first = self.missed.is_none();
                self.missed.get_or_insert(now + self.guard);
                return if first { Change::Meaning } else { Change::None };
            }
            Event::InitDone | Event::Delete(_) => {
                self.found = false;
                self.missed = None;
                BTreeMap::new()
            }
        };
        if self.labels.as_ref() == Some(&labels) && !was_missed {
            return Change::None;
        }
        self.labels = Some(labels);
        Change::Meaning
    }

    /// What is wrong if it is not there.
    pub(super) fn problem(&self) -> Option<Problem> {
        let message = match self.missed {
            Some(_) => format!(
                "the API server does not list it, and nobody has told that it was deleted; what it has to do stays in force for {} s (--mass-removal-guard)",
                self.guard.as_secs()
            ),
            None => "the cluster has no such Node; --node (NODE_NAME) must be the name that kubectl get nodes shows".to_owned(),
        };
        (!self.found).then(|| Problem {
            place: format!("Node {}", self.name),
            message,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(label: &str) -> PartialObjectMeta<Node> {
        serde_json::from_value(json!({"metadata": {"name": "a", "labels": {"gateway": label}}})).unwrap()
    }

    #[test]
    fn a_node_that_a_list_lacks_is_held_and_one_that_is_deleted_is_not() {
        let (guard, start) = (Duration::from_mins(1), Instant::now());
        let mut own = OwnNode::new("a", guard);
        for event in [Event::Init, Event::InitApply(node("yes")), Event::InitDone] {
            own.take(event, start);
        }
        assert!(own.problem().is_none() && own.labels().unwrap().len() == 1);
        own.take(Event::Init, start);
        assert_eq!(own.take(Event::InitDone, start), Change::Meaning);
        assert!(own.problem().unwrap().message.contains("--mass-removal-guard") && own.labels().unwrap().len() == 1);
        assert_eq!((own.over(start), own.due()), (Change::None, Some(start + guard)));
        assert_eq!(own.take(Event::Apply(node("yes")), start), Change::Meaning, "that it is back");
        own.take(Event::Init, start);
        own.take(Event::InitDone, start);
        assert_eq!(own.over(start + guard), Change::Meaning);
        assert!(own.labels().unwrap().is_empty());
        own.take(Event::Apply(node("yes")), start);
        assert_eq!(own.take(Event::Delete(node("yes")), start), Change::Meaning);
        assert!(own.labels().unwrap().is_empty() && own.due().is_none());
    }
}
