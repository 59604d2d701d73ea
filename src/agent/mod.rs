//! The agent: keeps one node as planned.
//!
//! ```text
//! source (directory | API server) ─┐
//! kernel events ───────────────────┼→ runner: one task, owns the host → pass → outcome → report (GatewayNode | file), metrics, events
//! slow timer ──────────────────────┘
//! ```
//!
//! | module | does | IO |
//! |---|---|---|
//! | [`source`] | snapshots of all objects | files or API server |
//! | [`schedule`] | when the next pass may run | none |
//! | [`runner`] | waits for reasons, runs passes | the host, through [`crate::host::Host`] |
//! | [`pass`], `stages`, `apply`, `narrow`, `probe` | one pass | the host |
//! | `check` | whether anything has changed without an event | the host, reading |
//! | [`staging`] | what changes in which order | none |
//! | [`kept`] | what is known of the kernel | none |
//! | [`counters`], `counting` | what rules have counted | the host |
//! | [`report`] | status, events, heartbeat | API server or a file |
//! | [`cleanup`] | takes everything away | the host |
//!
//! Nothing is written to the kernel before every source has delivered its first list, and nothing is taken away when the agent stops.

mod apply;
mod blame;
mod check;
pub mod cleanup;
pub mod counters;
mod counting;
mod files;
mod hold;
pub mod kept;
mod narrow;
pub mod outcome;
pub mod pass;
mod probe;
pub mod report;
pub mod runner;
pub mod schedule;
pub mod source;
pub mod stages;
pub mod staging;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What ends the agent, or keeps it from starting.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The directory cannot be listed.
    #[error("reading the manifests in {path}: {source}; nothing was changed", path = path.display())]
    Manifests {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory cannot be watched.
    #[error("watching {path} for changes: {source}", path = path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why not.
        source: notify::Error,
    },
    /// No way to the API server is configured.
    #[error("finding the API server: {0}; run in a pod, set KUBECONFIG, or use --manifests DIR without a cluster")]
    NoCluster(#[from] Box<kube::Error>),
    /// A part of the agent ended that must not.
    #[error("{0} ended; the agent stops so that it is started anew (rules stay in force)")]
    Died(String),
    /// Probes and metrics.
    #[error(transparent)]
    Serve(#[from] crate::telemetry::ServeError),
    /// Signals cannot be handled.
    #[error("waiting for signals: {0}")]
    Signals(io::Error),
}

impl AgentError {
    /// Whether the command line or an input is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Manifests { .. })
    }
}
