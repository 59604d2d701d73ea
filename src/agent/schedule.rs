//! When the next pass may run. Pure: the caller brings the time.
//!
//! At once when idle, then at most once every minimum interval; after a failure ever more slowly; while somebody fights with us over the
//! same things, at most once a second.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Repairs within [`FIGHT_WINDOW`] that make it a fight.
const FIGHT_REPAIRS: usize = 5;
/// How far back repairs are counted.
const FIGHT_WINDOW: Duration = Duration::from_secs(30);
/// Interval between repairs in a fight: the other side may win in between, but neither side eats the machine.
const FIGHT_INTERVAL: Duration = Duration::from_secs(1);
/// First wait after a failure. Doubled with each further one.
pub const FIRST_BACKOFF: Duration = Duration::from_millis(250);

/// The state of the clockwork.
#[derive(Debug)]
pub struct Schedule {
    min_interval: Duration,
    max_backoff: Duration,
    wanted: bool,
    ended: Option<Instant>,
    failures: u32,
    repairs: VecDeque<Instant>,
}

impl Schedule {
    /// Nothing is wanted yet.
    pub fn new(min_interval: Duration, max_backoff: Duration) -> Self {
        Self {
            min_interval,
            max_backoff,
            wanted: false,
            ended: None,
            failures: 0,
            repairs: VecDeque::new(),
        }
    }

    /// A pass is wanted.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// A person or the API changed what is wanted: that is tried without waiting for the end of a backoff.
    pub fn want_fresh(&mut self) {
        self.wanted = true;
        self.failures = 0;
    }

    /// When the next pass is due. None: none is wanted.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        if !self.wanted {
            return None;
        }
        Some(self.ended.map_or(now, |ended| ended + self.interval(now)))
    }

    fn interval(&self, now: Instant) -> Duration {
        let backoff = match self.failures {
            0 => Duration::ZERO,
            n => FIRST_BACKOFF.saturating_mul(1 << (n - 1).min(16)).min(self.max_backoff),
        };
        let fight = if self.contended(now) { FIGHT_INTERVAL } else { Duration::ZERO };
        self.min_interval.max(backoff).max(fight)
    }

    /// A pass begins: what was wanted up to now is in it.
    pub fn begin(&mut self) {
        self.wanted = false;
    }

    /// A pass ended. A failed one is wanted again.
    pub fn end(&mut self, now: Instant, failed: bool, repaired: bool) {
        self.ended = Some(now);
        self.failures = if failed { self.failures.saturating_add(1) } else { 0 };
        self.wanted |= failed;
        if repaired {
            self.repairs.push_back(now);
        }
        while self.repairs.len() > FIGHT_REPAIRS {
            self.repairs.pop_front();
        }
    }

    /// Whether somebody keeps undoing our repairs.
    pub fn contended(&self, now: Instant) -> bool {
        self.repairs.len() >= FIGHT_REPAIRS
            && self
                .repairs
                .front()
                .is_some_and(|first| now.saturating_duration_since(*first) < FIGHT_WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn schedule() -> (Schedule, Instant) {
        (Schedule::new(50 * MS, Duration::from_secs(30)), Instant::now())
    }

    #[test]
    fn at_once_when_idle_then_once_an_interval() {
        let (mut s, t) = schedule();
        assert_eq!(s.due(t), None);
        s.want();
        assert_eq!(s.due(t), Some(t));
        s.begin();
        s.end(t, false, false);
        assert_eq!(s.due(t + MS), None);
        s.want();
        s.want();
        assert_eq!(s.due(t + MS), Some(t + 50 * MS), "not before the interval is over");
        assert!(
            s.due(t + 500 * MS).is_some_and(|due| due <= t + 500 * MS),
            "idle long enough: at once"
        );
    }

    #[test]
    fn what_comes_during_a_pass_is_not_lost() {
        let (mut s, t) = schedule();
        s.want();
        s.begin();
        s.want();
        s.end(t, false, false);
        assert!(s.due(t).is_some());
    }

    #[test]
    fn failures_are_tried_again_ever_more_slowly_and_without_end() {
        let (mut s, t) = schedule();
        let mut last = Duration::ZERO;
        for n in 0..40 {
            s.begin();
            s.end(t, true, false);
            let wait = s.due(t).map(|due| due - t).unwrap_or_default();
            assert!(
                wait >= last && wait <= Duration::from_secs(30) && !wait.is_zero(),
                "failure {n}: {wait:?}"
            );
            last = wait;
        }
        assert_eq!(last, Duration::from_secs(30));
        s.want_fresh();
        assert_eq!(s.due(t), Some(t + 50 * MS), "a new wish does not wait for the end of a backoff");
    }

    #[test]
    fn a_fight_is_bounded_and_ends() {
        let (mut s, t) = schedule();
        for _ in 0..FIGHT_REPAIRS {
            assert!(!s.contended(t));
            s.end(t, false, true);
        }
        assert!(s.contended(t));
        s.want();
        assert_eq!(s.due(t), Some(t + FIGHT_INTERVAL));
        assert!(!s.contended(t + FIGHT_WINDOW), "the other side gave up");
    }
}
