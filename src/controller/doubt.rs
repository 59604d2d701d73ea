//! Whether a list that lacks a lot may be believed. Pure: the clock comes from outside.
//!
//! An object that is deleted is told of: its watch says so, and that is believed at once, be it all of them. But a watch that begins anew begins with a list, and what
//! that lacks nobody has called deleted. An API server on a restored or half-restored etcd answers such lists, and so may a proxy or a cache in between. What is missing then
//! is held for a while: until it is listed or told of again, until it is told to be deleted, or until the guard's time is over, because
//! objects may as well have been deleted while nobody watched.
//!
//! What is told to be deleted while the definition of its kind goes is held as well ([`super::definitions`]), until the definition is back and the guard's time is over; and what is told to be deleted
//! while nobody answers for the definition, until somebody does. Whoever holds it asks again ([`Doubt::asks`]).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::definitions::Standing;

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
    /// How the definition of the kind stands, if something is held for its sake.
    definition: Option<Standing>,
}

impl<Key: Ord + Clone> Doubt<Key> {
    /// `guard`: how long what is missing is held. Zero: every list is believed.
    pub fn new(guard: Duration, believed: Believed) -> Self {
        Self {
            guard,
            believed,
            since: None,
            held: BTreeSet::new(),
            definition: None,
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
        if !holds {
            self.definition = None;
        }
        &self.held
    }

    /// An object is told to be deleted, and the definition of its kind stands like this. Returns whether it is held.
    pub fn hold(&mut self, key: Key, definition: Standing, now: Instant) -> bool {
        if self.guard.is_zero() || definition == Standing::Whole {
            return false;
        }
        self.since = Some(now);
        if self.definition != Some(Standing::Broken) {
            self.definition = Some(definition);
        }
        self.held.insert(key);
        true
    }

    /// Whether the definition is to be asked for: something is held for its sake.
    pub fn asks(&self) -> bool {
        self.definition.is_some()
    }

    /// The definition stands like this now.
    pub fn asked(&mut self, definition: Standing, now: Instant) {
        match (self.definition, definition) {
            (None, _) => {}
            (_, Standing::Broken) => (self.since, self.definition) = (Some(now), Some(Standing::Broken)),
            (_, Standing::Unknown) => self.since = Some(now),
            // Somebody meant it: only could nobody be asked when it was told.
            (Some(Standing::Unknown), Standing::Whole) => self.since = now.checked_sub(self.guard),
            (Some(_), Standing::Whole) => {}
        }
    }

    /// An object was told of after the list, as it is or as deleted: there is no doubt about it.
    pub fn told(&mut self, key: &Key) {
        self.held.remove(key);
        if self.held.is_empty() {
            self.since = None;
            self.definition = None;
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
        self.definition = None;
        std::mem::take(&mut self.held)
    }

    /// What a person has to know, of `kind`: None when nothing is held.
    pub fn message(&self, kind: &str, name: impl Fn(&Key) -> String) -> Option<String> {
        if self.held.is_empty() {
            return None;
        }
        let first: Vec<String> = self.held.iter().take(3).map(name).collect();
        let more = self.held.len() - first.len();
        let others = if more == 0 { String::new() } else { format!(" and {more} more") };
        let seconds = self.guard.as_secs();
        let what = format!("{}{others}", first.join(", "));
        Some(match self.definition {
            Some(Standing::Broken) => format!(
                "{what} went with the definition (CustomResourceDefinition) of {kind}s; what was known of them stays in force until {seconds} s after the definition is back \
                 (--mass-removal-guard). Apply the definition and the objects again; if they are to go for good, run stagenet cleanup on the nodes"
            ),
            Some(_) => format!(
                "{what} were deleted, but the API server does not say whether that is because the definition (CustomResourceDefinition) of {kind}s goes; what was known of them stays in force until it does"
            ),
            None => format!(
                "the API server's list of {kind}s lacks {what}, and nobody has told that they were deleted; what was known of them stays in force for {seconds} s \
                 (--mass-removal-guard). If they are to go, nothing needs to be done; if not, see whether etcd was restored, and apply them again",
            ),
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
        // What goes with its definition is held until the definition has been back for a while.
        assert!(!doubt.hold("a", Standing::Whole, start) && !doubt.asks());
        assert!(doubt.hold("a", Standing::Broken, start) && doubt.asks());
        let said = doubt.message("NatMapping", ToString::to_string).unwrap_or_default();
        assert!(said.starts_with("a went with the definition"), "{said}");
        for unsaid in [Standing::Broken, Standing::Unknown] {
            doubt.asked(unsaid, start + GUARD);
            assert_eq!(doubt.over(start + GUARD), set(&[]), "it is not back");
        }
        doubt.asked(Standing::Whole, start + GUARD * 3 / 2);
        assert_eq!(list(&mut doubt, &["a"], &[], start + GUARD * 3 / 2), set(&["a"]));
        assert_eq!(doubt.over(start + GUARD * 2), set(&["a"]));
        assert!(!doubt.asks());
        // What nobody answered for goes as soon as somebody says that it was meant.
        assert!(doubt.hold("a", Standing::Unknown, start));
        let said = doubt.message("NatMapping", ToString::to_string).unwrap_or_default();
        assert!(said.contains("does not say whether"), "{said}");
        doubt.asked(Standing::Whole, start + GUARD);
        assert_eq!(doubt.over(start + GUARD), set(&["a"]));
        let mut believer = Doubt::new(Duration::ZERO, Believed::All);
        assert!(!believer.hold("a", Standing::Broken, start));
        assert_eq!(list(&mut believer, &["a"], &[], start), set(&[]));
    }
}
