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

/// Verdicts by key.
pub(super) type ByKey = BTreeMap<MappingKey, Arc<MappingVerdict>>;
/// What one object comes to by itself.
pub(super) type Alone = (MappingKey, Arc<MappingVerdict>);

/// So many objects that come and go are taken into the verdicts by key one by one. Of more, all are put in order anew.
const FEW: usize = 256;

/// The memory. An empty one is as good as any.
#[derive(Debug, Default)]
pub struct Memory {
    networks: BTreeMap<String, NetworkVerdict>,
    taken: Taken,
    namespaces: Arc<Namespaces>,
    /// In the order in which they were last told. Held, so that each stays where it is, and as it is.
    objects: Vec<Arc<NatMapping>>,
    /// What each of them comes to by itself, in the same order.
    alone: Vec<Alone>,
    /// The same by key. None if several have one key, or before anything was judged.
    by_key: Option<Arc<ByKey>>,
}

impl Memory {
    /// Begins a judgement: what was known of another world is forgotten.
    pub(super) fn begin(&mut self, networks: &BTreeMap<String, NetworkVerdict>, taken: Taken, namespaces: &Arc<Namespaces>) {
        let elsewhere = !Arc::ptr_eq(&self.namespaces, namespaces) && self.namespaces != *namespaces;
        if self.networks != *networks || self.taken != taken || elsewhere {
            *self = Self {
                networks: networks.clone(),
                taken,
                namespaces: namespaces.clone(),
                ..Self::default()
            };
        }
    }

    /// What no claim may have in the present judgement.
    pub(super) fn taken(&self) -> &Taken {
        &self.taken
    }

    /// What each of `objects` comes to by itself, in their order, and by key unless several have one. Those that are not known are judged.
    pub(super) fn recall(
        &mut self,
        objects: &[Arc<NatMapping>],
        judge: impl Fn(&NatMapping, &Taken) -> Alone,
    ) -> (&[Alone], Option<Arc<ByKey>>) {
        // What came, went or moved lies between what both lists begin with and what both end with.
        let same = |(old, new): &(&Arc<NatMapping>, &Arc<NatMapping>)| Arc::ptr_eq(old, new);
        let before = self.objects.iter().zip(objects).take_while(same).count();
        let rest = (&self.objects[before..], &objects[before..]);
        let behind = rest.0.iter().rev().zip(rest.1.iter().rev()).take_while(same).count();
        let (until, new_until) = (self.objects.len() - behind, objects.len() - behind);

        let new = &objects[before..new_until];
        let old = self
            .objects
            .splice(before..until, new.iter().cloned())
            .zip(&self.alone[before..until]);
        let gone: HashMap<usize, (Arc<NatMapping>, &Alone)> = old.map(|(object, alone)| (place(&object), (object, alone))).collect();
        let known = |object: &Arc<NatMapping>| gone.get(&place(object)).map(|(_, alone)| (*alone).clone());
        let come: Vec<Alone> = new
            .iter()
            .map(|object| known(object).unwrap_or_else(|| judge(object, &self.taken)))
            .collect();
        drop(gone);

        let few = (until - before) + come.len() <= FEW;
        let kept = self.by_key.take().filter(|_| few);
        self.by_key = match kept {
            Some(mut kept) => {
                let by_key = Arc::make_mut(&mut kept);
                for (key, _) in &self.alone[before..until] {
                    by_key.remove(key);
                }
                by_key.extend(come.iter().cloned());
                Some(kept)
            }
            None => None,
        };
        self.alone.splice(before..until, come);
        let all = || Arc::new(self.alone.iter().cloned().collect());
        let by_key = self.by_key.take().unwrap_or_else(all);
        self.by_key = Some(by_key).filter(|by_key| by_key.len() == self.alone.len());
        (&self.alone, self.by_key.clone())
    }
}

/// Where an object is.
fn place(object: &Arc<NatMapping>) -> usize {
    Arc::as_ptr(object).addr()
}
