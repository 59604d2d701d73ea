//! Which mappings need no second look, kept from one pass to the next: of ten thousand mostly one has changed.
//!
//! The status of a mapping depends on the object, its verdict, where its machine is, and on what is known of its network: the network's own verdict and status, and what the gateway
//! that serves it says. A mapping that has the status that it should have, and is served or refused for good, is settled: as long as none of these changes it is left out. That
//! says the same as [`super::aggregate`] (shown on random sequences of changes in `tests.rs` beside this).
//!
//! A report that has come further (`syncedResourceVersion`) is no change: a mapping that was covered is covered by it too. Mappings that wait for a report are never settled.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Inputs, Life, Statuses, mapping, networks};
use crate::api::conditions::is_true;
use crate::api::gatewaynode::{FailureReport, NetworkReport, RefusedReport};
use crate::api::reasons::types;
use crate::api::{NatMapping, NatMappingStatus, StagingNetworkStatus};
use crate::controller::machines::Resolved;
use crate::controller::version;
use crate::plan::{MappingVerdict, NetworkVerdict};

/// The memory. An empty one is as good as any.
#[derive(Debug, Default)]
pub struct Memory {
    networks: BTreeMap<String, Context>,
    /// By where the object is. Held, so that it stays there.
    settled: HashMap<usize, Settled>,
}

/// What the statuses of all mappings of a network depend on.
#[derive(Debug)]
struct Context {
    verdict: NetworkVerdict,
    status: StagingNetworkStatus,
    served: Option<Served>,
}

/// What the gateway that serves a network says.
#[derive(Debug, PartialEq)]
struct Served {
    life: Life,
    /// Without what is only counted, and without the version that it has come to.
    told: Option<NetworkReport>,
    synced: String,
    refused: Vec<RefusedReport>,
    failures: Vec<FailureReport>,
    failure_count: u32,
}

#[derive(Debug)]
struct Settled {
    object: Arc<NatMapping>,
    verdict: Arc<MappingVerdict>,
    machine: Option<Box<Resolved>>,
}

/// The mappings of a cluster, by namespace and name.
#[derive(Clone, Copy, Debug)]
pub struct Objects<'a> {
    /// As they are stored.
    pub stored: &'a [Arc<NatMapping>],
    /// The same as they were judged: with the address of their machine as it is now.
    pub judged: &'a [Arc<NatMapping>],
}

impl Memory {
    /// The statuses of all networks, and of those mappings that are not settled.
    pub fn aggregate(&mut self, inputs: &Inputs<'_>, objects: Objects<'_>) -> Statuses {
        let networks = networks(inputs);
        let contexts: BTreeMap<String, Context> = networks
            .iter()
            .filter_map(|(name, status)| Some((name.clone(), context(inputs, name, status)?)))
            .collect();
        let same: BTreeMap<&str, bool> = contexts
            .iter()
            .map(|(name, now)| (name.as_str(), self.networks.get(name).is_some_and(|old| old.holds(now))))
            .collect();
        let gone = |name: &str| !same.contains_key(name) && !self.networks.contains_key(name);
        let mut before = std::mem::take(&mut self.settled);
        let mut settled = HashMap::with_capacity(objects.judged.len());
        let mut mappings = BTreeMap::new();
        // Verdicts are in the same order.
        let mut verdicts = inputs.verdicts.mappings.iter().peekable();
        for (stored, object) in objects.stored.iter().zip(objects.judged) {
            let place = (
                object.metadata.namespace.as_deref().unwrap_or_default(),
                object.metadata.name.as_deref().unwrap_or_default(),
            );
            while verdicts.next_if(|(key, _)| (&*key.namespace, &*key.name) < place).is_some() {}
            let Some((key, verdict)) = verdicts.next_if(|(key, _)| (&*key.namespace, &*key.name) == place) else {
                continue;
            };
            let machine = inputs.machines.get(key);
            let at = Arc::as_ptr(object).addr();
            if let Some(known) = before.remove(&at).filter(|known| Arc::ptr_eq(&known.object, object))
                && (same.get(&*verdict.network).copied().unwrap_or_else(|| gone(&verdict.network)))
                && known.verdict == *verdict
                && known.machine.as_deref() == machine
            {
                settled.insert(at, known);
                continue;
            }
            let Some((key, status)) = mapping(inputs, &networks, object) else {
                continue;
            };
            if Arc::ptr_eq(stored, object) && object.status.as_ref() == Some(&status) && rests(&status) {
                let now = Settled {
                    object: object.clone(),
                    verdict: verdict.clone(),
                    machine: machine.cloned().map(Box::new),
                };
                settled.insert(at, now);
            } else {
                mappings.insert(key, status);
            }
        }
        self.settled = settled;
        self.networks = contexts;
        Statuses { networks, mappings }
    }
}

/// Whether a status says something that holds until something else changes than how far a gateway has come.
fn rests(status: &NatMappingStatus) -> bool {
    let refused = status.conditions.iter().any(|c| c.type_ == types::ACCEPTED && c.status == "False");
    refused || is_true(&status.conditions, types::PROGRAMMED)
}

fn context(inputs: &Inputs<'_>, name: &str, status: &StagingNetworkStatus) -> Option<Context> {
    let active = status.active_gateway.as_ref();
    let served = active.and_then(|active| inputs.reports.get(&active.node)).map(|report| {
        let mut told = report.status.networks.iter().find(|told| told.name == name).cloned();
        let synced = told.as_mut().map(|told| std::mem::take(&mut told.synced_resource_version));
        if let Some(told) = &mut told {
            told.programmed = 0;
        }
        Served {
            life: report.life,
            told,
            synced: synced.unwrap_or_default(),
            refused: report.status.refused.clone(),
            failures: report.status.failures.clone(),
            failure_count: report.status.failure_count,
        }
    });
    Some(Context {
        verdict: inputs.verdicts.networks.get(name)?.clone(),
        status: status.clone(),
        served,
    })
}

impl Context {
    /// Whether what was settled then is settled now.
    fn holds(&self, now: &Self) -> bool {
        let served = match (&self.served, &now.served) {
            (Some(old), Some(new)) => {
                version::reached(&new.synced, &old.synced)
                    && (old.life, &old.told, &old.refused, &old.failures, old.failure_count)
                        == (new.life, &new.told, &new.refused, &new.failures, new.failure_count)
            }
            (old, new) => old == new,
        };
        served && self.verdict == now.verdict && self.status == now.status
    }
}
