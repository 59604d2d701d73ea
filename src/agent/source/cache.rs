//! All objects of one kind as the API server last told. Pure.
//!
//! An object that cannot be decoded keeps its last good version: an administrator who changes a definition must not take mappings away.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

/// Namespace and name.
type Key = (String, String);

/// How much a change matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// Nothing that anybody looks at.
    None,
    /// Only the resource version: it must be reported some time.
    Version,
    /// What is planned may change.
    Meaning,
}

/// The cache of one kind.
#[derive(Debug)]
pub(super) struct Cache<K> {
    objects: BTreeMap<Key, Arc<K>>,
    listing: Option<BTreeMap<Key, Arc<K>>>,
    /// Objects that could not be decoded, and why.
    pub(super) bad: BTreeMap<Key, String>,
    /// Whether the first list is complete.
    pub(super) ready: bool,
    /// Whether two versions of an object mean the same to this node.
    same: fn(&K, &K) -> bool,
    /// Takes away what nobody looks at.
    trim: fn(&mut K),
}

impl<K: Resource<DynamicType = ()>> Cache<K> {
    pub(super) fn new(same: fn(&K, &K) -> bool) -> Self {
        Self {
            objects: BTreeMap::new(),
            listing: None,
            bad: BTreeMap::new(),
            ready: false,
            same,
            trim: |_| (),
        }
    }

    /// Without what `trim` takes away: ten thousand statuses are held, copied and dropped for nothing.
    pub(super) fn trimmed(self, trim: fn(&mut K)) -> Self {
        Self { trim, ..self }
    }

    /// All objects, sorted.
    pub(super) fn objects(&self) -> impl Iterator<Item = &K> {
        self.objects.values().map(AsRef::as_ref)
    }

    /// All objects, sorted, to be kept.
    pub(super) fn shared(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values()
    }

    /// Takes in one event.
    pub(super) fn take(&mut self, event: Event<DeserializeGuard<K>>) -> Change {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                self.bad.clear();
                Change::None
            }
            Event::InitApply(object) => {
                let (key, object) = self.decode(object);
                if let (Some(listing), Some(object)) = (&mut self.listing, object) {
                    listing.insert(key, object);
                }
                Change::None
            }
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                let mut change = if self.ready { Change::None } else { Change::Meaning };
                self.ready = true;
                if listed.len() != self.objects.len() {
                    change = Change::Meaning;
                }
                for (key, object) in &listed {
                    change = change.max(self.compare(key, object));
                }
                self.objects = listed;
                change
            }
            Event::Apply(object) => {
                let (key, object) = self.decode(object);
                let Some(object) = object else { return Change::Meaning };
                let change = self.compare(&key, &object);
                self.objects.insert(key, object);
                change
            }
            Event::Delete(object) => {
                let key = (object.namespace().unwrap_or_default(), object.name_any());
                self.bad.remove(&key);
                if self.objects.remove(&key).is_some() {
                    Change::Meaning
                } else {
                    Change::None
                }
            }
        }
    }

    /// The object, or its last good version if it cannot be decoded.
    fn decode(&mut self, object: DeserializeGuard<K>) -> (Key, Option<Arc<K>>) {
        let key = (object.namespace().unwrap_or_default(), object.name_any());
        match object.0 {
            Ok(mut object) => {
                object.managed_fields_mut().clear();
                (self.trim)(&mut object);
                self.bad.remove(&key);
                (key, Some(Arc::new(object)))
            }
            Err(invalid) => {
                self.bad.insert(key.clone(), invalid.error);
                let kept = self.objects.get(&key).cloned();
                (key, kept)
            }
        }
    }

    fn compare(&self, key: &Key, object: &Arc<K>) -> Change {
        match self.objects.get(key) {
            Some(old) if Arc::ptr_eq(old, object) => Change::None,
            Some(old) if old.uid() == object.uid() && (self.same)(old, object) => {
                if old.resource_version() == object.resource_version() {
                    Change::None
                } else {
                    Change::Version
                }
            }
            _ => Change::Meaning,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::core::error_boundary::InvalidObject;

    use super::*;

    fn object(name: &str, version: &str, meaning: &str) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.into());
        map.metadata.resource_version = Some(version.into());
        map.data = Some([("k".to_owned(), meaning.to_owned())].into());
        map
    }

    fn good(name: &str, version: &str, meaning: &str) -> DeserializeGuard<ConfigMap> {
        DeserializeGuard(Ok(object(name, version, meaning)))
    }

    fn bad(name: &str) -> DeserializeGuard<ConfigMap> {
        DeserializeGuard(Err(InvalidObject {
            error: "no such field".into(),
            metadata: object(name, "9", "").metadata,
        }))
    }

    fn cache() -> Cache<ConfigMap> {
        Cache::new(|a, b| a.data == b.data)
    }

    fn meanings(cache: &Cache<ConfigMap>) -> Vec<String> {
        cache.objects().map(|o| o.data.as_ref().unwrap()["k"].clone()).collect()
    }

    #[test]
    fn nothing_is_told_before_the_first_list_is_complete() {
        let mut cache = cache();
        assert_eq!(cache.take(Event::Init), Change::None);
        assert_eq!(cache.take(Event::InitApply(good("a", "1", "x"))), Change::None);
        assert!(!cache.ready && meanings(&cache).is_empty());
        assert_eq!(cache.take(Event::InitDone), Change::Meaning);
        assert!(cache.ready);
        assert_eq!(meanings(&cache), ["x"]);
    }

    #[test]
    fn an_empty_first_list_is_news() {
        let mut cache = cache();
        cache.take(Event::Init);
        assert_eq!(cache.take(Event::InitDone), Change::Meaning);
    }

    #[test]
    fn a_new_version_of_the_same_meaning_is_told_apart() {
        let mut cache = cache();
        assert_eq!(cache.take(Event::Apply(good("a", "1", "x"))), Change::Meaning);
        assert_eq!(cache.take(Event::Apply(good("a", "2", "x"))), Change::Version);
        assert_eq!(cache.take(Event::Apply(good("a", "2", "x"))), Change::None);
        assert_eq!(cache.take(Event::Apply(good("a", "3", "y"))), Change::Meaning);
        assert_eq!(cache.take(Event::Delete(good("a", "4", "y"))), Change::Meaning);
        assert!(meanings(&cache).is_empty());
    }

    #[test]
    fn a_list_after_an_outage_takes_away_what_was_deleted_meanwhile() {
        let mut cache = cache();
        cache.take(Event::Apply(good("a", "1", "x")));
        cache.take(Event::Apply(good("b", "1", "y")));
        cache.take(Event::Init);
        cache.take(Event::InitApply(good("b", "1", "y")));
        assert_eq!(meanings(&cache), ["x", "y"], "the old state stays until the list is complete");
        assert_eq!(cache.take(Event::InitDone), Change::Meaning);
        assert_eq!(meanings(&cache), ["y"]);
    }

    #[test]
    fn what_cannot_be_decoded_keeps_its_last_good_version() {
        let mut cache = cache();
        cache.take(Event::Apply(good("a", "1", "x")));
        cache.take(Event::Apply(bad("a")));
        assert_eq!(meanings(&cache), ["x"]);
        assert_eq!(cache.bad.len(), 1);
        cache.take(Event::Init);
        cache.take(Event::InitApply(bad("a")));
        cache.take(Event::InitApply(bad("never-good")));
        cache.take(Event::InitDone);
        assert_eq!(meanings(&cache), ["x"]);
        cache.take(Event::Apply(good("a", "5", "z")));
        assert_eq!((meanings(&cache), cache.bad.len()), (vec!["z".to_owned()], 1));
    }
}
