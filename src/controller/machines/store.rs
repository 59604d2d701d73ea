//! What is known of all objects of one kind. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Instant;

use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;

use super::kinds::Kind;
use crate::controller::doubt::Doubt;

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

    /// Takes note of an event before it is taken in: what a complete list lacks and is in doubt is put into `listing`.
    pub(super) fn doubt(&self, event: &Event<DynamicObject>, listing: &mut Objects<T>, doubt: &mut Doubt<Key>, now: Instant) {
        match (event, self) {
            (Event::InitDone, Self::Complete(before)) => {
                for key in doubt.listed(before.keys().cloned(), |key| listing.contains_key(key), now) {
                    listing.extend(before.get(key).map(|known| (key.clone(), known.clone())));
                }
            }
            (Event::Apply(object) | Event::Delete(object), _) => doubt.told(&key(object)),
            _ => {}
        }
    }

    /// Takes for gone what was held long enough. Returns whether that concerns anybody.
    pub(super) fn over(&mut self, gone: &BTreeSet<Key>, concerns: impl Fn(&Key) -> bool) -> bool {
        let Self::Complete(objects) = self else { return false };
        objects.retain(|key, _| !gone.contains(key));
        gone.iter().any(concerns)
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
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::kinds::Instance;
    use super::*;
    use crate::controller::doubt::Believed;

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

    /// A list that lacks what nobody deleted takes no machine away before the guard's time is over; what is told to be deleted goes at once.
    #[test]
    fn an_empty_list_is_doubted_for_a_while() {
        let (guard, start) = (Duration::from_mins(1), Instant::now());
        let (mut shelf, mut listing) = (Shelf::<Instance>::default(), Objects::new());
        let mut doubt = Doubt::new(guard, Believed::Half);
        let mut take = |shelf: &mut Shelf<Instance>, doubt: &mut Doubt<Key>, events: Vec<Event<DynamicObject>>| {
            let mut news = false;
            for event in events {
                shelf.doubt(&event, &mut listing, doubt, start);
                news |= shelf.take(event, &mut listing, |_| true);
            }
            news
        };
        let known = |shelf: &Shelf<Instance>| match shelf {
            Shelf::Complete(objects) => objects.keys().map(|(_, name)| name.clone()).collect::<Vec<_>>(),
            _ => vec![],
        };
        let both = ["a", "b"].map(|name| Event::InitApply(instance(name, "10.0.0.1", &json!(1))));
        let [a, b] = both;
        take(&mut shelf, &mut doubt, vec![Event::Init, a, b, Event::InitDone]);
        assert!(
            !take(&mut shelf, &mut doubt, vec![Event::Init, Event::InitDone]),
            "it is news to nobody"
        );
        assert_eq!((known(&shelf), doubt.due()), (vec!["a".into(), "b".into()], Some(start + guard)));
        take(&mut shelf, &mut doubt, vec![Event::Delete(instance("a", "", &json!(1)))]);
        assert_eq!(known(&shelf), ["b"]);
        assert!(!shelf.over(&doubt.over(start), |_| true));
        assert!(shelf.over(&doubt.over(start + guard), |_| true));
        assert_eq!(known(&shelf), Vec::<String>::new());
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
