//! The guard against lists that lack what nobody deleted, which agent and controller share.

use std::time::Duration;

use clap::Args;

/// See [`crate::controller::doubt`].
#[derive(Clone, Debug, Args)]
pub(super) struct GuardArg {
    /// Seconds for which objects stay in force that a list of the API server lacks and that nobody told to be deleted; 0: every list is believed
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=86400), help_heading = "Cluster")]
    mass_removal_guard: u64,
}

impl GuardArg {
    pub(super) fn duration(&self) -> Duration {
        Duration::from_secs(self.mass_removal_guard)
    }
}
