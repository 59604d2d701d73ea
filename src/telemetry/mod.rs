//! Logs, metrics, probes: what both long-running commands show of themselves.
//!
//! Knows nothing of networks and mappings: the agent and the controller put numbers in, this module names, documents and serves them.
//! `docs/metrics.md` is made from [`describe::markdown`] and compared with it by a test.

pub mod describe;
pub mod logs;
pub mod metrics;
pub mod server;

pub use logs::{LogFormat, LogOptions, chain};
pub use metrics::{Metrics, Program};
pub use server::{Desk, Health, Questions, ServeError, serve};
