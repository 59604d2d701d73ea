//! What was written and what failed, so that a status is patched once and not again. Pure.
//!
//! A watch echoes a write only after a while. Until then the store still has the old object, and comparing with that would write the same
//! thing twice. So the answer of the API server to a write is kept until the store has caught up with it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;

use super::version;
use super::watch::place;
use super::write::{Change, Reported};

/// Waits after the first failure of a write and after many.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// `(namespace, name)`; no namespace for cluster-wide kinds.
pub type Key = (Option<String>, String);

/// The key of an object.
pub fn key<K: kube::Resource>(object: &K) -> Key {
    (object.namespace(), object.name_any())
}

/// What became of a write, as far as the ledger is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The object has changed meanwhile. Tried again at once when the newer one is here.
    Conflict,
    /// The API server does not want it.
    Refused,
}

#[derive(Clone, Debug)]
struct Failed {
    version: String,
    failure: Failure,
    attempts: u32,
    until: Instant,
}

/// What is remembered of one kind.
#[derive(Clone, Debug)]
pub struct Ledger<K: Reported> {
    written: BTreeMap<Key, Arc<K>>,
    failed: BTreeMap<Key, Failed>,
}

impl<K: Reported> Default for Ledger<K> {
    fn default() -> Self {
        Self {
            written: BTreeMap::new(),
            failed: BTreeMap::new(),
        }
    }
}

impl<K: Reported> Ledger<K> {
    /// Puts what was written in the place of what the store has not caught up with, and forgets what it has. The two lists, each by namespace
    /// and name, are all objects that there are: failures of others are forgotten.
    pub fn overlay(&mut self, mut lists: [&mut [Arc<K>]; 2]) {
        let find = |list: &[Arc<K>], (namespace, name): &Key| {
            let key = (namespace.as_deref(), Some(name.as_str()));
            list.binary_search_by(|object| place(&**object).cmp(&key)).ok()
        };
        self.failed.retain(|key, _| lists.iter().any(|list| find(list, key).is_some()));
        self.written.retain(|key, written| {
            let mut found = lists.iter_mut().filter_map(|list| find(list, key).and_then(|at| list.get_mut(at)));
            let Some(object) = found.next() else { return false };
            let stored = object.resource_version().unwrap_or_default();
            let same = written.uid() == object.uid();
            let ahead = same && !version::reached(&stored, &written.resource_version().unwrap_or_default());
            if ahead {
                *object = written.clone();
            }
            ahead
        });
    }

    /// The changes to make now, at most `limit`, and what is left for later: objects whose status differs and that are not held back
    /// by a failure. Those come first whose status is about an older generation: somebody waits for them.
    pub fn changes(&self, wanted: Vec<(Arc<K>, K::Status)>, limit: usize, now: Instant) -> Todo<K> {
        let mut todo = Todo::default();
        for (object, status) in wanted {
            if object.status() == Some(&status) {
                todo.unchanged += 1;
            } else if let Some(until) = self.held_back(&object, now) {
                todo.next = Some(todo.next.map_or(until, |next| next.min(until)));
            } else {
                todo.changes.push(Change { object, status });
            }
        }
        todo.changes
            .sort_by_key(|change| change.object.status().and_then(K::observed) == K::observed(&change.status));
        if todo.changes.len() > limit {
            todo.changes.truncate(limit);
            todo.next = Some(now);
        }
        todo
    }

    fn held_back(&self, object: &K, now: Instant) -> Option<Instant> {
        let failed = self.failed.get(&key(object))?;
        let newer = failed.failure == Failure::Conflict && Some(&failed.version) != object.meta().resource_version.as_ref();
        (failed.until > now && !newer).then_some(failed.until)
    }

    /// Takes note of a write that succeeded, with the API server's answer.
    pub fn wrote(&mut self, mut answer: K) {
        answer.meta_mut().managed_fields = None;
        let key = key(&answer);
        self.failed.remove(&key);
        self.written.insert(key, Arc::new(answer));
    }

    /// Takes note of a write that failed. Returns when to try again.
    pub fn failed(&mut self, object: &K, failure: Failure, now: Instant) -> Instant {
        let attempts = self.failed.get(&key(object)).map_or(0, |failed| failed.attempts);
        let until = now + backoff(attempts);
        let failed = Failed {
            version: object.resource_version().unwrap_or_default(),
            failure,
            attempts: attempts.saturating_add(1),
            until,
        };
        self.failed.insert(key(object), failed);
        until
    }

    /// Forgets an object that is gone.
    pub fn forget(&mut self, object: &K) {
        self.failed.remove(&key(object));
        self.written.remove(&key(object));
    }
}

/// What [`Ledger::changes`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Todo<K: Reported> {
    /// To be written now.
    pub changes: Vec<Change<K>>,
    /// How many objects have the status that they should have.
    pub unchanged: u64,
    /// When there is more to do.
    pub next: Option<Instant>,
}

impl<K: Reported> Default for Todo<K> {
    fn default() -> Self {
        Self {
            changes: Vec::new(),
            unchanged: 0,
            next: None,
        }
    }
}

/// How long to wait after `attempts` earlier failures.
pub fn backoff(attempts: u32) -> Duration {
    BACKOFF.0.saturating_mul(2_u32.saturating_pow(attempts.min(16))).min(BACKOFF.1)
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
