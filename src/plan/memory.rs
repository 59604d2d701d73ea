//! What was judged of each mapping by itself, kept from one judgement to the next: of ten thousand mappings mostly one has changed.
//!
//! What one mapping comes to by itself depends on the object, the networks, what the nodes have and the labels of namespaces, and on nothing else. An object is taken for the same only if it is the very same
//! piece of memory, which the memory holds on to; as soon as anything of the rest differs, all is forgotten. So a judgement from memory is the judgement from nothing
//! (shown on random sequences of changes in `tests/plan_properties`).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::claims::Taken;
use super::tenancy::Namespaces;
use super::verdict::{MappingKey, MappingVerdict, NetworkVerdict};
use crate::api::NatMapping;

/// The memory. An empty one is as good as any.
#[derive(Debug, Default)]
pub struct Memory {
    networks: BTreeMap<String, NetworkVerdict>,
    taken: Taken,
    namespaces: Arc<Namespaces>,
    /// By where the object is.
    known: HashMap<usize, Known>,
}

#[derive(Debug)]
struct Known {
    /// Keeps the object where it is, and as it is.
    _object: Arc<NatMapping>,
    key: MappingKey,
    verdict: Arc<MappingVerdict>,
    /// Whether it was asked for since [`Memory::begin`].
    asked: bool,
}

impl Memory {
    /// Begins a judgement: what was known of another world is forgotten.
    pub(super) fn begin(&mut self, networks: &BTreeMap<String, NetworkVerdict>, taken: Taken, namespaces: &Arc<Namespaces>) {
        if self.networks != *networks
            || self.taken != taken
            || (!Arc::ptr_eq(&self.namespaces, namespaces) && self.namespaces != *namespaces)
        {
            self.networks.clone_from(networks);
            self.taken = taken;
            self.namespaces = namespaces.clone();
            self.known.clear();
        }
    }

    /// What no claim may have in the present judgement.
    pub(super) fn taken(&self) -> &Taken {
        &self.taken
    }

    /// The verdict of `object`, made if it is not known.
    pub(super) fn recall(
        &mut self,
        object: &Arc<NatMapping>,
        judge: impl FnOnce(&Taken) -> (MappingKey, Arc<MappingVerdict>),
    ) -> (MappingKey, Arc<MappingVerdict>) {
        let taken = &self.taken;
        let known = self.known.entry(Arc::as_ptr(object).addr()).or_insert_with(|| {
            let (key, verdict) = judge(taken);
            Known {
                _object: object.clone(),
                key,
                verdict,
                asked: false,
            }
        });
        known.asked = true;
        (known.key.clone(), known.verdict.clone())
    }

    /// Ends a judgement: objects that it did not ask for are let go.
    pub(super) fn end(&mut self) {
        self.known.retain(|_, known| std::mem::take(&mut known.asked));
    }
}
