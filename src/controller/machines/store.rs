//! What is known of all objects of one kind. Pure.

use std::collections::BTreeMap;
use std::mem;

use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;

use super::kinds::Kind;

/// Namespace and name.
pub(super) type Key = (String, String);
/// All objects.
pub(super) type Objects<T> = BTreeMap<Key, T>;

/// What is known of one kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Shelf<T> {
    /// Nothing: the first list is not complete, or nobody wants to know.
    #[default]
    Empty,
    /// The cluster has no such kind, and so no object of it: a sentence that says so.
    Absent(String),
    /// The kind cannot be read: why.
    Unreadable(String),
    /// What there is.
    Complete(Objects<T>),
}

impl<T: Kind> Shelf<T> {
    /// Takes in one event; `listing` is what a list has brought so far. Returns whether anything is different that `concerns` says is somebody's concern: machines report
    /// often, and mostly nothing that is looked at.
    pub(super) fn take(&mut self, event: Event<DynamicObject>, listing: &mut Objects<T>, concerns: impl Fn(&Key) -> bool) -> bool {
        match event {
            Event::Init => {
                listing.clear();
                false
            }
            Event::InitApply(object) => {
                listing.insert(key(&object), T::read(&object));
                false
            }
            Event::InitDone => {
                let now = mem::take(listing);
                let Self::Complete(before) = self else {
                    *self = Self::Complete(now);
                    return true;
                };
                let changed = before
                    .keys()
                    .chain(now.keys())
                    .any(|key| concerns(key) && before.get(key) != now.get(key));
                *before = now;
                changed
            }
            Event::Apply(object) => {
                let Self::Complete(objects) = self else { return false };
                let (key, now) = (key(&object), T::read(&object));
                let changed = objects.get(&key) != Some(&now) && concerns(&key);
                objects.insert(key, now);
                changed
            }
            Event::Delete(object) => {
                let Self::Complete(objects) = self else { return false };
                let key = key(&object);
                objects.remove(&key).is_some() && concerns(&key)
            }
        }
    }

    /// Puts something else in its place. Returns whether that is new.
    pub(super) fn becomes(&mut self, now: Self) -> bool {
        let news = *self != now;
        *self = now;
        news
    }
}

fn key(object: &DynamicObject) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::super::kinds::Instance;
    use super::*;

    fn instance(name: &str, address: &str, more: &Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": {"name": name, "namespace": "shop"},
            "status": {"phase": "Running", "interfaces": [{"name": "default", "ipAddress": address}], "more": more},
        }))
        .unwrap()
    }

    #[test]
    fn only_what_somebody_looks_at_is_news() {
        let (mut shelf, mut listing) = (Shelf::<Instance>::default(), Objects::new());
        let mut take = |event| shelf.take(event, &mut listing, |(namespace, name)| namespace == "shop" && name == "named");
        let both = |address| {
            [
                Event::InitApply(instance("named", address, &json!(1))),
                Event::InitApply(instance("other", address, &json!(1))),
            ]
        };
        assert!(!take(Event::Init));
        for event in both("10.0.0.1") {
            assert!(!take(event));
        }
        assert!(take(Event::InitDone), "the first list");
        assert!(!take(Event::Apply(instance("named", "10.0.0.1", &json!({"memory": 17})))));
        assert!(!take(Event::Apply(instance("other", "10.0.0.2", &json!(1)))));
        assert!(take(Event::Apply(instance("named", "10.0.0.2", &json!(1)))));
        take(Event::Init);
        for event in both("10.0.0.2") {
            take(event);
        }
        assert!(!take(Event::InitDone), "a list that says the same");
        assert!(!take(Event::Delete(instance("other", "", &json!(1)))));
        assert!(take(Event::Delete(instance("named", "", &json!(1)))));
    }

    #[test]
    fn what_is_missing_is_told_once() {
        let mut shelf = Shelf::<Instance>::default();
        let absent = || Shelf::Absent("no such kind".into());
        assert!(shelf.becomes(absent()) && !shelf.becomes(absent()) && shelf.becomes(Shelf::Unreadable("no such right".into())));
        assert!(
            !shelf.take(Event::Apply(instance("named", "10.0.0.1", &json!(1))), &mut Objects::new(), |_| {
                true
            })
        );
    }
}
