//! Logs, metrics, probes.
