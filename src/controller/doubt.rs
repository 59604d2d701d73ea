//! Whether a list that lacks a lot may be believed. Pure: the clock comes from outside.
//!
//! An object that is deleted is told of: its watch says so, and that is believed at once, be it all of them. But a watch that begins anew begins with a list, and what
//! that lacks nobody has called deleted. An API server on a restored or half-restored etcd answers such lists, and so may a proxy or a cache in between. What is missing then
//! is held for a while: until it is listed or told of again, until it is told to be deleted, or until the guard's time is over, because
//! objects may as well have been deleted while nobody watched.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How much may be missing from a list without doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Believed {
    /// Half of what was there.
    Half,
    /// Nothing.
    All,
}

/// The doubt about one kind. `Key` names its objects.
#[derive(Clone, Debug)]
pub struct Doubt<Key> {
    guard: Duration,
    believed: Believed,
    since: Option<Instant>,
    held: BTreeSet<Key>,
}

impl<Key: Ord + Clone> Doubt<Key> {
    /// `guard`: how long what is missing is held. Zero: every list is believed.
    pub fn new(guard: Duration, believed: Believed) -> Self {
        Self {
            guard,
            believed,
            since: None,
            held: BTreeSet::new(),
        }
    }

    /// Takes note of a complete list. `had` is everything that there was before. Returns what is to be kept although the list lacks it.
    pub fn listed(&mut self, had: impl Iterator<Item = Key>, listed: impl Fn(&Key) -> bool, now: Instant) -> &BTreeSet<Key> {
        let mut all = 0_usize;
        let missing: BTreeSet<Key> = had.inspect(|_| all += 1).filter(|key| !listed(key)).collect();
        let doubtful = match self.believed {
            Believed::Half => missing.len() * 2 > all,
            Believed::All => !missing.is_empty(),
        };
        // A second list that says the same does not begin the time anew, and what was held is held on although the others came back.
        let begun = self.since.filter(|_| !missing.is_empty());
        let since = begun.unwrap_or(now);
        let holds = (doubtful || begun.is_some()) && now.saturating_duration_since(since) < self.guard;
        self.since = holds.then_some(since);
        self.held = if holds { missing } else { BTreeSet::new() };
        &self.held
    }

    /// An object was told of after the list, as it is or as deleted: there is no doubt about it.
    pub fn told(&mut self, key: &Key) {
        self.held.remove(key);
        if self.held.is_empty() {
            self.since = None;
        }
    }

    /// What is held.
    pub fn held(&self) -> &BTreeSet<Key> {
        &self.held
    }

    /// When it is held no longer.
    pub fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + self.guard)
    }

    /// What is to be believed gone now.
    pub fn over(&mut self, now: Instant) -> BTreeSet<Key> {
        if self.due().is_none_or(|due| now < due) {
            return BTreeSet::new();
        }
        self.since = None;
        std::mem::take(&mut self.held)
    }

    /// What a person has to know, of `kind`: None when nothing is held.
    pub fn message(&self, kind: &str, name: impl Fn(&Key) -> String) -> Option<String> {
        let first: Vec<String> = self.held.iter().take(3).map(name).collect();
        let more = self.held.len() - first.len();
        let others = if more == 0 { String::new() } else { format!(" and {more} more") };
        (!first.is_empty()).then(|| {
            format!(
                "the API server's list of {kind}s lacks {}{others}, and nobody has told that they were deleted; what was known of them stays in force for {} s \
                 (--mass-removal-guard). If they are to go, nothing needs to be done; if not, see whether etcd was restored, and apply them again",
                first.join(", "),
                self.guard.as_secs()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUARD: Duration = Duration::from_mins(1);

    fn set(keys: &[&'static str]) -> BTreeSet<&'static str> {
        keys.iter().copied().collect()
    }

    fn list(doubt: &mut Doubt<&'static str>, had: &[&'static str], listed: &[&'static str], now: Instant) -> BTreeSet<&'static str> {
        doubt.listed(had.iter().copied(), |key| listed.contains(key), now).clone()
    }

    #[test]
    fn a_list_that_lacks_most_is_believed_after_a_while() {
        let start = Instant::now();
        let mut doubt = Doubt::new(GUARD, Believed::Half);
        assert_eq!(
            list(&mut doubt, &["a", "b", "c", "d"], &["a", "b"], start),
            set(&[]),
            "half of them may well be gone"
        );
        assert_eq!(list(&mut doubt, &["a", "b", "c"], &["c"], start), set(&["a", "b"]));
        assert!(
            doubt
                .message("NatMapping", ToString::to_string)
                .is_some_and(|m| m.contains("lacks a, b,"))
        );
        assert_eq!(doubt.due(), Some(start + GUARD));
        // The same once more, and with one of them back: the time goes on.
        let later = start + GUARD / 2;
        assert_eq!(list(&mut doubt, &["a", "b", "c"], &["c"], later), set(&["a", "b"]));
        assert_eq!(list(&mut doubt, &["a", "b", "c"], &["a", "c"], later), set(&["b"]));
        assert_eq!(doubt.due(), Some(start + GUARD));
        assert_eq!(doubt.over(later), set(&[]));
        assert_eq!(doubt.over(start + GUARD), set(&["b"]));
        assert_eq!((doubt.due(), doubt.held().len()), (None, 0));
        assert_eq!(doubt.message("NatMapping", ToString::to_string), None);
    }

    #[test]
    fn what_is_told_or_listed_again_is_in_no_doubt() {
        let start = Instant::now();
        let mut doubt = Doubt::new(GUARD, Believed::All);
        assert_eq!(list(&mut doubt, &["a", "b", "c"], &["a", "b"], start), set(&["c"]), "not even one");
        doubt.told(&"c");
        assert_eq!(doubt.due(), None);
        list(&mut doubt, &["a", "b", "c"], &[], start);
        assert_eq!(list(&mut doubt, &["a", "b", "c"], &["a", "b", "c"], start), set(&[]));
        assert_eq!(doubt.due(), None);
        let mut believer = Doubt::new(Duration::ZERO, Believed::All);
        assert_eq!(list(&mut believer, &["a"], &[], start), set(&[]));
    }
}
