//! Taking turns: every lane of a comparison is measured in every round, a few hundred microseconds each, so that what disturbs the machine
//! disturbs all of them. Two lanes are compared by the median, over all rounds, of the ratio within a round.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, gettid};

/// What is measured: does a bit of work and says how long it took, each time.
pub type Work<'a> = Box<dyn FnMut() -> Duration + 'a>;

/// One lane and what a round took.
pub struct Lane<'a> {
    work: Work<'a>,
    took: Vec<f64>,
}

impl<'a> Lane<'a> {
    /// A lane that has not run yet.
    pub fn new(work: impl FnMut() -> Duration + 'a) -> Self {
        Self {
            work: Box::new(work),
            took: Vec::new(),
        }
    }

    /// Median, in nanoseconds.
    pub fn median(&self) -> f64 {
        median(self.took.clone())
    }

    /// Median of the ratios to `other` within a round.
    pub fn over(&self, other: &Self) -> f64 {
        median(self.took.iter().zip(&other.took).map(|(a, b)| a / b).collect())
    }
}

/// Runs all lanes `rounds` times, each time beginning with another one.
pub fn race(lanes: &mut [Lane<'_>], rounds: usize) {
    for round in 0..rounds {
        let count = lanes.len();
        for n in 0..count {
            let lane = &mut lanes[(n + round) % count];
            let took = (lane.work)();
            lane.took.push(took.as_secs_f64() * 1e9);
        }
    }
}

/// How long `work` takes.
pub fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// Keeps this thread on one processor and ahead of everybody else there, if it may: an interrupted round is no measurement.
pub fn steady() {
    let last = std::thread::available_parallelism().map_or(0, |n| n.get() - 1);
    let mut cpus = CpuSet::new();
    cpus.set(last).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    let thread = gettid().to_string();
    let ahead = Command::new("chrt").args(["--fifo", "--pid", "1", &thread]).status();
    if !ahead.is_ok_and(|s| s.success()) {
        eprintln!("this thread cannot be put ahead of others (chrt): figures are noisier");
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
