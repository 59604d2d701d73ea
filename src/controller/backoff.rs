//! How long a watch that failed rests before it is tried again. Pure but for the clock that it reads when it is asked.
//!
//! What is not watched cannot be told truly, so the first pause is short: a connection that was cut and a version that is too old by now (410 Gone) are everyday
//! events, and both together cost two pauses. An API server that stays away is asked ever less often. kube's own policy begins with most of a second, and begins anew
//! at whatever a watch says, also at the announcement that it is about to list, which it makes before anything was asked.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use kube::runtime::utils::Backoff;
use tokio::time::Instant;

/// The first pause and the longest; each is lengthened by a random share of itself, so that a cluster's agents do not come all at once. The longest is what is
/// not known, at most twice over, once an API server is back; hundreds of agents that ask every few seconds are less to it than what they do when they are well.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A watch that held for as long as this, and twice as long as its last pause, has recovered.
const RECOVERED: Duration = Duration::from_secs(5);

/// The pauses of one watch, for `WatchStreamExt::backoff`.
pub struct WatchBackoff {
    pauses: ExponentialBackoff,
    last: Option<(Instant, Duration)>,
}

/// The pauses after a first failure.
fn pauses() -> ExponentialBackoff {
    let growing = ExponentialBuilder::new()
        .with_factor(2.0)
        .with_min_delay(PAUSES.0)
        .with_max_delay(PAUSES.1);
    growing.without_max_times().with_jitter().build()
}

impl Default for WatchBackoff {
    fn default() -> Self {
        Self {
            pauses: pauses(),
            last: None,
        }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let recovered = |(failed, pause): (Instant, Duration)| now.saturating_duration_since(failed) > RECOVERED.max(pause * 3);
        if self.last.is_some_and(recovered) {
            self.pauses = pauses();
        }
        let pause = self.pauses.next()?;
        self.last = Some((now, pause));
        Some(pause)
    }
}

impl Backoff for WatchBackoff {
    /// Nothing: the time that passes without a failure is what counts.
    fn reset(&mut self) {}
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_until_the_watch_has_held_for_a_while() {
        let mut backoff = WatchBackoff::default();
        let first = backoff.next().unwrap();
        assert!(first >= PAUSES.0 && first <= PAUSES.0 * 2, "{first:?}");
        tokio::time::advance(first).await;
        // What a watch says before it has asked anything is no sign of recovery.
        backoff.reset();
        assert!(backoff.next().unwrap() >= PAUSES.0 * 2);
        for _ in 0..20 {
            let pause = backoff.next().unwrap();
            assert!(pause <= PAUSES.1 * 2, "{pause:?}");
            tokio::time::advance(pause).await;
        }
        assert!(backoff.next().unwrap() >= PAUSES.1, "it stays away");
        tokio::time::advance(PAUSES.1 * 7).await;
        assert!(backoff.next().unwrap() <= PAUSES.0 * 2, "a new trouble");
    }
}
