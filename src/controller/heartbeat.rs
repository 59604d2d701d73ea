//! Which agents are silent. Pure: the clock comes from outside.
//!
//! Each agent renews a Lease. Clocks of different machines are never compared: what counts is how long ago *this* process
//! last saw the Lease change, as in Kubernetes' own leader election. Time in which this process heard of no Lease at all counts for nobody: the
//! controllers' own Lease is renewed all the while, so it was this process that could not hear, or the API server that was away, and the agents
//! may be as well as ever. Else every gateway would move when an API server comes back that was away for longer than a Lease lasts.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Prefix of the names of agents' Leases; the rest is the name of the node.
pub const LEASE_PREFIX: &str = "stagenet-agent-";

/// How long an agent may be silent when its Lease does not say.
const DEFAULT_DURATION: Duration = Duration::from_secs(40);
/// What a Lease may ask for: less than the shortest would make every hiccup of an API server a silence, more than the longest would hide a dead node.
const BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));

/// After how long without news of any Lease this process counts as deaf: more than two renewals of the controllers' own.
const DEAF: Duration = Duration::from_secs(5);

/// What is known of an agent's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// Its Lease changed lately.
    Alive,
    /// Its Lease has not changed since this process began to look, which is not long enough ago to say more. What was said
    /// before stays said.
    Unproven,
    /// Its Lease expired, or it never had one.
    Silent,
}

/// When each Lease was last seen to change.
#[derive(Clone, Debug, Default)]
pub struct Heartbeats {
    beats: BTreeMap<String, Beat>,
    /// When any Lease was last heard of. None: that is not known, and taken for now.
    heard: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Beat {
    version: String,
    changed: Instant,
    duration: Duration,
    proven: bool,
}

impl Heartbeats {
    /// Takes note that some Lease, whosever, was told of.
    pub fn heard(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.heard.unwrap_or(now));
        if gap > DEAF {
            self.beats.values_mut().for_each(|beat| beat.changed += gap);
        }
        self.heard = Some(now);
    }

    /// Takes note of a Lease. Returns whether the life of the node reads differently now.
    pub fn observe(&mut self, node: &str, version: &str, duration: Option<Duration>, now: Instant) -> bool {
        let before = self.life(node, now);
        let duration = duration.unwrap_or(DEFAULT_DURATION).clamp(BOUNDS.0, BOUNDS.1);
        let beat = self.beats.entry(node.to_owned()).or_insert_with(|| Beat {
            version: version.to_owned(),
            changed: now,
            duration,
            proven: false,
        });
        if beat.version != version {
            // An entry without version was made by `expect`: its first Lease is as old as it is, nobody knows how old.
            *beat = Beat {
                proven: !beat.version.is_empty() || beat.proven,
                version: version.to_owned(),
                changed: now,
                duration,
            };
        }
        self.life(node, now) != before
    }

    /// Starts the clock for a node that reports but has no Lease.
    pub fn expect(&mut self, node: &str, now: Instant) {
        self.beats.entry(node.to_owned()).or_insert_with(|| Beat {
            version: String::new(),
            changed: now,
            duration: DEFAULT_DURATION,
            proven: false,
        });
    }

    /// Forgets nodes that `keep` does not want.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.beats.retain(|node, _| keep(node));
    }

    /// What is known of a node's agent at `now`.
    pub fn life(&self, node: &str, now: Instant) -> Life {
        let now = self.heard.map_or(now, |heard| now.min(heard + DEAF));
        match self.beats.get(node) {
            None => Life::Silent,
            Some(beat) if now.saturating_duration_since(beat.changed) >= beat.duration => Life::Silent,
            Some(beat) if beat.proven => Life::Alive,
            Some(_) => Life::Unproven,
        }
    }

    /// When the next agent falls silent if none is heard of until then.
    pub fn next_silence(&self, now: Instant) -> Option<Instant> {
        self.beats
            .values()
            .map(|beat| beat.changed + beat.duration)
            .filter(|at| *at > now)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silent_is_who_did_not_renew_for_the_time_its_lease_says() {
        let start = Instant::now();
        let mut beats = Heartbeats::default();
        assert!(beats.observe("a", "1", Some(15 * SECOND), start));
        assert_eq!(beats.life("a", start), Life::Unproven);
        assert!(beats.observe("a", "2", Some(15 * SECOND), start + 5 * SECOND));
        assert_eq!(beats.life("a", start + 19 * SECOND), Life::Alive);
        assert_eq!(beats.next_silence(start + 19 * SECOND), Some(start + 20 * SECOND));
        assert_eq!(beats.life("a", start + 20 * SECOND), Life::Silent);
        assert_eq!(beats.next_silence(start + 20 * SECOND), None);
        // The same version again is no sign of life; a new one is.
        assert!(!beats.observe("a", "2", Some(15 * SECOND), start + 21 * SECOND));
        assert!(beats.observe("a", "3", Some(15 * SECOND), start + 22 * SECOND));
        assert_eq!(beats.life("a", start + 22 * SECOND), Life::Alive);
        // Going on as before is nothing new.
        assert!(!beats.observe("a", "4", Some(15 * SECOND), start + 23 * SECOND));
    }

    #[test]
    fn an_old_lease_found_at_start_proves_nothing() {
        let start = Instant::now();
        let mut beats = Heartbeats::default();
        beats.observe("dead", "77", Some(15 * SECOND), start);
        assert_eq!(beats.life("dead", start + 14 * SECOND), Life::Unproven);
        assert_eq!(beats.life("dead", start + 15 * SECOND), Life::Silent);
    }

    #[test]
    fn nobody_falls_silent_while_nothing_is_heard_of_anybody() {
        let start = Instant::now();
        let mut beats = Heartbeats::default();
        for (second, version) in [(0, "1"), (5, "2")] {
            beats.heard(start + second * SECOND);
            beats.observe("a", version, Some(15 * SECOND), start + second * SECOND);
            beats.observe("dead", "7", Some(15 * SECOND), start);
        }
        // The API server is away for a minute. The controllers' own Lease is the first to be heard of again.
        assert_eq!(beats.life("a", start + 64 * SECOND), Life::Alive);
        beats.heard(start + 65 * SECOND);
        assert_eq!(beats.life("a", start + 65 * SECOND), Life::Alive);
        for second in [69, 73] {
            beats.heard(start + second * SECOND);
        }
        // Five seconds before the gap, eight after it; who lives says so by now.
        assert_eq!(beats.life("dead", start + 74 * SECOND), Life::Unproven);
        beats.observe("a", "3", Some(15 * SECOND), start + 74 * SECOND);
        beats.heard(start + 76 * SECOND);
        assert_eq!(
            [beats.life("a", start + 76 * SECOND), beats.life("dead", start + 76 * SECOND)],
            [Life::Alive, Life::Silent]
        );
    }

    #[test]
    fn a_node_without_lease_is_given_some_time() {
        let start = Instant::now();
        let mut beats = Heartbeats::default();
        assert_eq!(beats.life("a", start), Life::Silent);
        beats.expect("a", start);
        assert_eq!(beats.life("a", start), Life::Unproven);
        assert_eq!(beats.life("a", start + DEFAULT_DURATION), Life::Silent);
        beats.observe("a", "1", Some(15 * SECOND), start + SECOND);
        assert_eq!(beats.life("a", start + SECOND), Life::Unproven);
        beats.observe("a", "2", Some(15 * SECOND), start + 2 * SECOND);
        assert_eq!(beats.life("a", start + 2 * SECOND), Life::Alive);
        beats.retain(|node| node != "a");
        assert_eq!(beats.next_silence(start), None);
    }

    #[test]
    fn durations_are_kept_within_bounds() {
        let start = Instant::now();
        let mut beats = Heartbeats::default();
        beats.observe("a", "1", Some(Duration::ZERO), start);
        beats.observe("b", "1", Some(Duration::from_secs(u64::from(u32::MAX))), start);
        assert_eq!(beats.next_silence(start), Some(start + BOUNDS.0));
        assert_eq!(beats.life("b", start + BOUNDS.1), Life::Silent);
    }
}
