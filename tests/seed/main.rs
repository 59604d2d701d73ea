//! The seed experiment with traffic, standalone: what a mapping lets through, that nothing else passes, and that it ends without a trace.

#![allow(clippy::unwrap_used, clippy::panic, clippy::format_collect)]

#[macro_use]
#[path = "../lab/mod.rs"]
mod lab;
mod fence;
mod mappings;
mod segment;
