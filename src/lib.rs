//! stagenet: chosen VMs of a closed network reachable at virtual addresses, and a fence around everything else.
//!
//! ```text
//! objects → validate → plan → render → diff against the kernel → apply → read back → report
//! ```
//!
//! | module | does | may use |
//! |---|---|---|
//! | [`api`] | the three kinds, conditions, reasons | nothing of ours |
//! | [`netfilter`] | typed rules, rendering, recognising, diff, tracing | nothing of ours |
//! | [`plan`] | verdicts and host plans; pure | `api`, `netfilter` |
//! | [`host`] | the kernel: processes and sockets | `plan`, `netfilter` |
//! | [`agent`] | keeps one node as planned | all of the above, the API server |
//! | [`controller`] | writes status | `api`, `plan`, the API server |
//! | [`cli`] | what people type | everything |
//! | [`telemetry`] | logs, metrics, probes | nothing of ours |

#![deny(clippy::disallowed_methods)]

pub mod agent;
pub mod api;
pub mod cli;
pub mod controller;
pub mod host;
pub mod netfilter;
pub mod plan;
pub mod telemetry;
