//! Feeds a store from a watch. A list that lacks too much is not believed at once, nor a deletion while the definition of the kind goes ([`super::doubt`]).

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tracing::warn;

use super::backoff::WatchBackoff;
use super::definitions::{ASK, Definition};
use super::doubt::{Believed, Doubt};
use super::stored::Stored;
use crate::telemetry::{chain, object_key};

/// For how long deletions that are not believed are gathered before a line of log says so.
const SAY: Duration = Duration::from_secs(1);

/// What a store has although the API server says that it is not there: namespace and name, as text. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Held(Arc<Mutex<BTreeSet<String>>>);

impl Held {
    /// The names.
    pub fn names(&self) -> BTreeSet<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes note of them.
    pub fn are(&self, names: &BTreeSet<String>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *held != *names {
            held.clone_from(names);
        }
    }
}

/// What a watch is followed with.
pub(super) struct Follow {
    bell: Arc<Notify>,
    guard: Duration,
    /// Of kinds whose definition people replace.
    definition: Option<Definition>,
    held: Held,
}

impl Follow {
    pub(super) fn new(bell: &Arc<Notify>, guard: Duration) -> Self {
        Self {
            bell: bell.clone(),
            guard,
            definition: None,
            held: Held::default(),
        }
    }

    /// Deletions are believed only while the definition of `K` is whole.
    pub(super) fn defined<K: Resource<DynamicType = ()>>(self, client: &Client) -> Self {
        Self {
            definition: Some(Definition::of::<K>(client)),
            ..self
        }
    }

    /// Says in `held` what is held.
    pub(super) fn telling(self, held: &Held) -> Self {
        Self {
            held: held.clone(),
            ..self
        }
    }
}

/// Namespace and name, as text.
fn key<K: Resource>(object: &K) -> String {
    object
        .namespace()
        .map_or_else(|| object.name_any(), |space| format!("{space}/{}", object.name_any()))
}

/// Feeds a store from a watch, and rings when `matters` says so of an object's old and new state, when one is gone, and after every list.
/// `keep` gives the new state what is to be kept of the old one.
pub(super) async fn follow<K>(
    api: Api<K>,
    mut writer: kube::runtime::reflector::store::Writer<K>,
    mut follow: Follow,
    matters: impl Fn(Option<&K>, &K) -> bool,
    keep: impl Fn(&mut K, &K),
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let reader = writer.as_reader();
    let mut doubt = Doubt::new(follow.guard, Believed::Half);
    let mut listed = BTreeSet::new();
    let mut asked = Instant::now();
    // When to say what is held that nobody has been told of.
    let mut say: Option<Instant> = None;
    // managedFields are half of an object and nothing to us.
    let events = watcher(api, watcher::Config::default()).modify(|object| object.meta_mut().managed_fields = None);
    let mut events = std::pin::pin!(events.backoff(WatchBackoff::default()));
    loop {
        let ask = doubt.asks().then_some(asked + ASK);
        let idle = Instant::now() + Duration::from_hours(1);
        let due = doubt.due().into_iter().chain(ask).chain(say).min().unwrap_or(idle);
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep_until(due.into()) => {
                if say.take_if(|say| *say <= Instant::now()).is_some() && let Some(message) = doubt.message(&kind, Clone::clone) {
                    warn!(kind, count = doubt.held().len(), "{message}");
                }
                // Nothing that is held for the definition's sake is let go without asking.
                let ask = ask.into_iter().chain(doubt.due()).min().is_some_and(|ask| ask <= Instant::now());
                if let (true, Some(definition)) = (ask && doubt.asks(), &mut follow.definition) {
                    let standing = definition.standing(None).await;
                    asked = Instant::now();
                    doubt.asked(standing, asked);
                }
                let gone = doubt.over(Instant::now());
                let objects = reader.state().into_iter().filter(|object| gone.contains(&key(&**object)));
                objects.for_each(|object| writer.apply_watcher_event(&Event::Delete(K::clone(&object))));
                if !gone.is_empty() {
                    follow.held.are(doubt.held());
                    warn!(kind, count = gone.len(), "nobody has told of what the list lacks: taken for deleted");
                    follow.bell.notify_one();
                }
                continue;
            }
        };
        let mut event = match event {
            Some(Ok(event)) => event,
            Some(Err(error)) => {
                warn!(kind, error = %chain(&error), "watching failed; trying again");
                continue;
            }
            None => return,
        };
        if let Event::Apply(object) | Event::InitApply(object) = &mut event
            && let Some(old) = reader.get(&ObjectRef::from_obj(object))
        {
            keep(object, &old);
        }
        if let Event::Delete(object) = &event
            && let Some(definition) = &mut follow.definition
            && let standing = definition
                .standing(object.meta().creation_timestamp.as_ref().map(|time| time.0))
                .await
            && doubt.hold(key(object), standing, Instant::now())
        {
            // All objects of a kind go one by one: one line says so of many.
            say = say.or_else(|| Some(Instant::now() + SAY));
            follow.held.are(doubt.held());
            follow.bell.notify_one();
            continue;
        }
        let ring = match &event {
            Event::Apply(object) => {
                doubt.told(&key(object));
                matters(reader.get(&ObjectRef::from_obj(object)).as_deref(), object)
            }
            Event::InitApply(object) => {
                listed.insert(key(object));
                matters(None, object);
                false
            }
            Event::Delete(object) => {
                doubt.told(&key(object));
                true
            }
            Event::InitDone => {
                let had = reader.state();
                let held = doubt.listed(had.iter().map(|object| key(&**object)), |key| listed.contains(key), Instant::now());
                let kept = had.iter().filter(|object| held.contains(&key(&***object)));
                kept.for_each(|object| writer.apply_watcher_event(&Event::InitApply(K::clone(object))));
                if let Some(message) = doubt.message(&kind, Clone::clone) {
                    warn!(kind, count = doubt.held().len(), "{message}");
                }
                true
            }
            Event::Init => {
                listed.clear();
                false
            }
        };
        writer.apply_watcher_event(&event);
        follow.held.are(doubt.held());
        if ring {
            follow.bell.notify_one();
        }
    }
}

/// For the kinds of our own every change matters; what cannot be decoded is logged.
pub(super) fn any_change<K: Resource<DynamicType = ()> + Clone>(_: Option<&Stored<K>>, new: &Stored<K>) -> bool {
    if let Some(error) = &new.error {
        let object = object_key(&K::kind(&()), new.meta().namespace.as_deref(), &new.name_any());
        warn!(
            object,
            error, "object cannot be decoded; its last good version stays in force if there is one, others are not affected"
        );
    }
    true
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "follow_tests.rs"]
mod tests;
