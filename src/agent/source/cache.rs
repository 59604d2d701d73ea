//! All objects of one kind as the API server last told. Pure.
//!
//! An object that cannot be decoded keeps its last good version: an administrator who changes a definition must not take mappings away.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

use super::Problem;
use crate::controller::definitions::Standing;
use crate::controller::doubt::{Believed, Doubt};

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
    /// The same as it was told last, while a list is read.
    told_bad: Option<BTreeMap<Key, String>>,
    /// Whether the first list is complete.
    pub(super) ready: bool,
    /// Whether two versions of an object mean the same to this node.
    same: fn(&K, &K) -> bool,
    /// Takes away what nobody looks at.
    trim: fn(&mut K),
    /// Gives an object what is to be kept of the one that was known before.
    keep: fn(&mut K, &K),
    /// Whether lists are believed.
    doubt: Doubt<Key>,
}

impl<K: Resource<DynamicType = ()>> Cache<K> {
    pub(super) fn new(same: fn(&K, &K) -> bool) -> Self {
        Self {
            objects: BTreeMap::new(),
            listing: None,
            bad: BTreeMap::new(),
            told_bad: None,
            ready: false,
            same,
            trim: |_| (),
            keep: |_, _| (),
            doubt: Doubt::new(Duration::ZERO, Believed::Half),
        }
    }

    /// What a list lacks is held for `guard` if it lacks more than is believed.
    pub(super) fn guarded(self, guard: Duration, believed: Believed) -> Self {
        Self {
            doubt: Doubt::new(guard, believed),
            ..self
        }
    }

    /// Without what `trim` takes away: ten thousand statuses are held, copied and dropped for nothing.
    pub(super) fn trimmed(self, trim: fn(&mut K)) -> Self {
        Self { trim, ..self }
    }

    /// The object of that name, of a kind without namespaces.
    pub(super) fn named(&self, name: &str) -> Option<&K> {
        self.objects.get(&(String::new(), name.to_owned())).map(AsRef::as_ref)
    }

    /// `keep` gives an object what is to be kept of the one that was known before.
    pub(super) fn keeping(self, keep: fn(&mut K, &K)) -> Self {
        Self { keep, ..self }
    }

    /// All objects, sorted.
    pub(super) fn shared(&self) -> impl Iterator<Item = &Arc<K>> {
        self.objects.values()
    }

    /// When what a list lacked is to be taken for deleted.
    pub(super) fn due(&self) -> Option<Instant> {
        self.doubt.due()
    }

    /// Takes for deleted what was held long enough.
    pub(super) fn over(&mut self, now: Instant) -> Change {
        let gone = self.doubt.over(now);
        self.objects.retain(|key, _| !gone.contains(key));
        self.bad.retain(|key, _| !gone.contains(key));
        if gone.is_empty() { Change::None } else { Change::Meaning }
    }

    /// An object is told to be deleted, and the definition of its kind stands like this: if it is not whole the object stays in force for now.
    pub(super) fn hold(&mut self, object: DeserializeGuard<K>, definition: Standing, now: Instant) -> Change {
        let key = key(&object);
        if self.objects.contains_key(&key) && self.doubt.hold(key, definition, now) {
            return Change::Meaning;
        }
        self.take(Event::Delete(object), now)
    }

    /// Whether the definition is to be asked for: something is held for its sake.
    pub(super) fn asks(&self) -> bool {
        self.doubt.asks()
    }

    /// The definition stands like this now.
    pub(super) fn asked(&mut self, definition: Standing, now: Instant) {
        self.doubt.asked(definition, now);
    }

    /// Whether the last list lacked an object that stays in force for a while.
    pub(super) fn holds(&self, object: &K) -> bool {
        !self.doubt.held().is_empty() && self.doubt.held().contains(&key(object))
    }

    /// Whether there is such an object.
    pub(super) fn has(&self, object: &K) -> bool {
        self.objects.contains_key(&key(object))
    }

    /// What a person has to know: objects that are held, objects that cannot be decoded.
    pub(super) fn problems(&self, kind: &str, problems: &mut Vec<Problem>) {
        let text = |(namespace, name): &Key| format!("{namespace}{}{name}", if namespace.is_empty() { "" } else { "/" });
        problems.extend(self.doubt.message(kind, text).map(|message| Problem {
            place: kind.to_owned(),
            message,
        }));
        problems.extend(self.bad.iter().map(|(key, error)| Problem {
            place: format!("{kind} {}", text(key)),
            message: format!("cannot be decoded: {error}; its last good version stays in force if there is one"),
        }));
    }

    /// Takes in one event.
    pub(super) fn take(&mut self, event: Event<DeserializeGuard<K>>, now: Instant) -> Change {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                // A list that was begun and not ended has said nothing.
                if self.told_bad.is_none() {
                    self.told_bad = Some(std::mem::take(&mut self.bad));
                }
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
                let mut listed = self.listing.take().unwrap_or_default();
                let was_held = !self.doubt.held().is_empty();
                // Also what is there and cannot be decoded is listed.
                let there = |key: &Key| listed.contains_key(key) || self.bad.contains_key(key);
                let held = self.doubt.listed(self.objects.keys().cloned(), there, now);
                let kept = held.iter().filter_map(|key| Some((key.clone(), self.objects.get(key)?.clone())));
                let kept: Vec<_> = kept.collect();
                // That something is held or cannot be decoded, or is not so any more, is to be told.
                let told = was_held || !kept.is_empty() || self.told_bad.take().is_some_and(|bad| bad != self.bad);
                listed.extend(kept);
                let mut change = if self.ready { Change::None } else { Change::Meaning };
                self.ready = true;
                if told || listed.len() != self.objects.len() {
                    change = Change::Meaning;
                }
                for (key, object) in &listed {
                    change = change.max(self.compare(key, object));
                }
                self.objects = listed;
                change
            }
            Event::Apply(object) => {
                let before = self.bad.get(&key(&object)).cloned();
                let (key, object) = self.decode(object);
                self.doubt.told(&key);
                let Some(object) = object else { return Change::Meaning };
                let told = self.bad.get(&key) != before.as_ref();
                let change = if told { Change::Meaning } else { self.compare(&key, &object) };
                self.objects.insert(key, object);
                change
            }
            Event::Delete(object) => {
                let key = key(&object);
                self.bad.remove(&key);
                self.doubt.told(&key);
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
        let key = key(&object);
        match object.0 {
            Ok(mut object) => {
                object.managed_fields_mut().clear();
                (self.trim)(&mut object);
                if let Some(old) = self.objects.get(&key) {
                    (self.keep)(&mut object, old);
                }
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

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
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

    fn take(cache: &mut Cache<ConfigMap>, event: Event<DeserializeGuard<ConfigMap>>) -> Change {
        cache.take(event, Instant::now())
    }

    fn cache() -> Cache<ConfigMap> {
        Cache::new(|a, b| a.data == b.data)
    }

    fn meanings(cache: &Cache<ConfigMap>) -> Vec<String> {
        cache.shared().map(|o| o.data.as_ref().unwrap()["k"].clone()).collect()
    }

    #[test]
    fn nothing_is_told_before_the_first_list_is_complete() {
        let mut cache = cache();
        assert_eq!(take(&mut cache, Event::Init), Change::None);
        assert_eq!(take(&mut cache, Event::InitApply(good("a", "1", "x"))), Change::None);
        assert!(!cache.ready && meanings(&cache).is_empty());
        assert_eq!(take(&mut cache, Event::InitDone), Change::Meaning);
        assert!(cache.ready);
        assert_eq!(meanings(&cache), ["x"]);
    }

    #[test]
    fn an_empty_first_list_is_news() {
        let mut cache = cache();
        take(&mut cache, Event::Init);
        assert_eq!(take(&mut cache, Event::InitDone), Change::Meaning);
    }

    #[test]
    fn a_new_version_of_the_same_meaning_is_told_apart() {
        let mut cache = cache();
        assert_eq!(take(&mut cache, Event::Apply(good("a", "1", "x"))), Change::Meaning);
        assert_eq!(take(&mut cache, Event::Apply(good("a", "2", "x"))), Change::Version);
        assert_eq!(take(&mut cache, Event::Apply(good("a", "2", "x"))), Change::None);
        assert_eq!(take(&mut cache, Event::Apply(good("a", "3", "y"))), Change::Meaning);
        assert_eq!(take(&mut cache, Event::Delete(good("a", "4", "y"))), Change::Meaning);
        assert!(meanings(&cache).is_empty());
    }

    #[test]
    fn what_cannot_be_decoded_is_news_once_and_so_is_that_it_can() {
        let mut cache = cache();
        take(&mut cache, Event::Apply(good("a", "1", "x")));
        assert_eq!(take(&mut cache, Event::Apply(bad("a"))), Change::Meaning);
        assert_eq!(take(&mut cache, Event::Apply(bad("a"))), Change::None);
        assert_eq!(take(&mut cache, Event::Apply(good("a", "1", "x"))), Change::Meaning);
        cache.ready = true;
        for (object, change) in [
            (bad("a"), Change::Meaning),
            (bad("a"), Change::None),
            (good("a", "1", "x"), Change::Meaning),
            (good("a", "1", "x"), Change::None),
        ] {
            take(&mut cache, Event::Init);
            // A list that breaks off says nothing.
            take(&mut cache, Event::Init);
            take(&mut cache, Event::InitApply(object));
            assert_eq!(take(&mut cache, Event::InitDone), change);
            assert_eq!(meanings(&cache), ["x"]);
        }
    }

    #[test]
    fn a_list_after_an_outage_takes_away_what_was_deleted_meanwhile() {
        let mut cache = cache();
        take(&mut cache, Event::Apply(good("a", "1", "x")));
        take(&mut cache, Event::Apply(good("b", "1", "y")));
        take(&mut cache, Event::Init);
        take(&mut cache, Event::InitApply(good("b", "1", "y")));
        assert_eq!(meanings(&cache), ["x", "y"], "the old state stays until the list is complete");
        assert_eq!(take(&mut cache, Event::InitDone), Change::Meaning);
        assert_eq!(meanings(&cache), ["y"]);
    }

    #[test]
    fn a_list_that_lacks_most_is_believed_when_somebody_says_so_or_in_time() {
        let start = Instant::now();
        let guard = Duration::from_mins(1);
        let said = |cache: &Cache<ConfigMap>| {
            let mut problems = Vec::new();
            cache.problems("NatMapping", &mut problems);
            problems.iter().map(ToString::to_string).collect::<String>()
        };
        let mut cache = cache().guarded(guard, Believed::Half);
        for name in ["a", "b", "c"] {
            take(&mut cache, Event::Apply(good(name, "1", name)));
        }
        let list = |cache: &mut Cache<ConfigMap>, names: &[&str], now| {
            cache.take(Event::Init, now);
            for name in names {
                cache.take(Event::InitApply(good(name, "1", name)), now);
            }
            cache.take(Event::InitDone, now)
        };
        assert_eq!(list(&mut cache, &["a", "b", "c"], start), Change::Meaning, "the first list");
        assert_eq!(list(&mut cache, &[], start), Change::Meaning, "that they are held is to be told");
        assert_eq!(meanings(&cache), ["a", "b", "c"]);
        assert!(said(&cache).contains("lacks a, b, c,"));
        cache.take(Event::Delete(good("a", "2", "a")), start);
        assert_eq!(meanings(&cache), ["b", "c"], "what is told to be deleted is");
        assert_eq!(list(&mut cache, &["b"], start), Change::Meaning);
        assert_eq!((meanings(&cache).len(), cache.due()), (2, Some(start + guard)));
        assert_eq!(cache.over(start), Change::None);
        assert_eq!(cache.over(start + guard), Change::Meaning);
        assert_eq!((meanings(&cache), said(&cache)), (vec!["b".to_owned()], String::new()));
    }

    #[test]
    fn what_cannot_be_decoded_keeps_its_last_good_version() {
        let mut cache = cache();
        take(&mut cache, Event::Apply(good("a", "1", "x")));
        take(&mut cache, Event::Apply(bad("a")));
        assert_eq!(meanings(&cache), ["x"]);
        assert_eq!(cache.bad.len(), 1);
        take(&mut cache, Event::Init);
        take(&mut cache, Event::InitApply(bad("a")));
        take(&mut cache, Event::InitApply(bad("never-good")));
        take(&mut cache, Event::InitDone);
        assert_eq!(meanings(&cache), ["x"]);
        take(&mut cache, Event::Apply(good("a", "5", "z")));
        assert_eq!((meanings(&cache), cache.bad.len()), (vec!["z".to_owned()], 1));
    }
}
