//! Logs, metrics, probes: what both long-running commands show of themselves.
//!
//! Knows nothing of networks and mappings: the agent and the controller put numbers in, this module names, documents and serves them.
//! `docs/metrics.md` is made from [`describe::index`], and the tables of `docs/metrics/*.md` from [`describe::table`]; tests/pages.rs compares them.

pub mod describe;
pub mod groups;
pub mod logs;
pub mod metrics;
pub mod server;

pub use logs::{LogFormat, LogOptions, chain, object_key};
pub use metrics::{Metrics, Program};
pub use server::{Desk, Health, Questions, ServeError, serve};
